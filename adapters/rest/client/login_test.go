package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// TestPlainLogins: where each kind puts what proves who we are.
func TestPlainLogins(t *testing.T) {
	var got *http.Request
	values := map[string]string{"key": "k3y-value/+", "password": "pässword:1"}
	for name, c := range map[string]struct {
		login  Login
		check  func() string
		want   string
		secret string
	}{
		"none":   {Login{}, func() string { return got.Header.Get("Authorization") }, "", "-"},
		"bearer": {Login{Kind: BearerToken, Token: "key"}, func() string { return got.Header.Get("Authorization") }, "Bearer k3y-value/+", ""},
		"bearer with a header of its own": {Login{Kind: BearerToken, Token: "key", Header: "private-token"},
			func() string { return got.Header.Get("Private-Token") }, "k3y-value/+", ""},
		"key":          {Login{Kind: APIKey, Token: "key"}, func() string { return got.Header.Get("X-Api-Key") }, "k3y-value/+", ""},
		"key in query": {Login{Kind: APIKey, Token: "key", Query: "auth"}, func() string { return got.RequestURI }, "/a?auth=k3y-value%2F%2B&b=1", ""},
		"basic": {Login{Kind: BasicLogin, User: "me", Password: "password"},
			func() string { u, p, _ := got.BasicAuth(); return u + " " + p }, "me pässword:1", ""},
	} {
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) { got = r }, func(cfg *Config) {
			cfg.Secrets, cfg.Login = secrets(t, values), c.login
		})
		if _, err := b.Do(t.Context(), Request{URL: b.URL + "/a?b=1"}); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if c.check() != c.want {
			t.Errorf("%s: sent %q, want %q", name, c.check(), c.want)
		}
		if _, err := b.Do(t.Context(), Request{URL: b.URL + "/a?b=1", Anonymous: true}); err != nil || strings.Contains(c.check(), "k3y") || strings.Contains(c.check(), "pässword") {
			t.Errorf("%s: anonymous, and sent %q, %v", name, c.check(), err)
		}
	}
}

// TestLeaks looks for secrets in all that leaves the client, with a server that
// repeats them in every form.
func TestLeaks(t *testing.T) {
	values := map[string]string{"key": "K3y/with+odd\"chars", "password": "P4ssword-is-long", "access": "AKIDLEAKTEST", "session": "s3ssionT0ken=="}
	kinds := []Login{
		{Kind: BearerToken, Token: "key"}, {Kind: APIKey, Token: "key", Query: "auth"}, {Kind: APIKey, Token: "key", Header: "X-Odd"},
		{Kind: BasicLogin, User: "me", Password: "password"}, {Kind: SigV4, AccessKey: "access", SecretKey: "key", SessionToken: "session", Region: "r", Service: "s3"},
		{Kind: Huawei, AccessKey: "access", SecretKey: "key", SessionToken: "session"},
		{Kind: ClientCredentials, ClientID: "id", ClientSecret: "key", URL: "/token"}, {Kind: ClientCredentials, ClientID: "id", ClientSecret: "key", URL: "/token", InBody: true},
		{Kind: BearerToken, Request: &Request{URL: "/token", Body: map[string]any{"p": map[string]any{"secret": "password"}}},
			Find: func(r *Response) (string, time.Duration, error) {
				v, err := r.JSON()
				s, _ := at(v, "access_token").(string)
				return s, 0, err
			}},
	}
	for _, l := range kinds {
		for _, status := range []int{200, 400, 403, 404, 500, 302} {
			t.Run(fmt.Sprintf("%s %d", l.Kind, status), func(t *testing.T) {
				var repeat string // what the server repeats
				h := func(w http.ResponseWriter, r *http.Request) {
					body, _ := io.ReadAll(r.Body)
					if r.URL.Path == "/token" {
						repeat += " " + string(body)
						io.WriteString(w, `{"access_token": "T0ken-that-was-given", "token_type": "Bearer", "expires_in": 3600}`)
						return
					}
					for k, vs := range r.Header {
						repeat += fmt.Sprintf(" %s=%q %s", k, vs, vs)
					}
					repeat += r.RequestURI
					for _, v := range values {
						j, _ := json.Marshal(v)
						repeat += fmt.Sprintf(" %s %s %s %s", v, j, url.QueryEscape(v), url.PathEscape(v))
					}
					w.Header().Set("X-Repeat", strings.NewReplacer("\n", " ", "\r", " ").Replace(repeat))
					w.Header().Set("Location", "https://192.0.2.1/?key="+url.QueryEscape(values["key"]))
					w.WriteHeader(status)
					fmt.Fprint(w, repeat)
				}
				b := newBench(t, h, func(cfg *Config) {
					cfg.Secrets = secrets(t, values)
					l := l
					if l.Request != nil {
						r := *l.Request
						r.URL = cfg.Origins[0] + r.URL
						l.Request = &r
					} else if l.URL != "" {
						l.URL = cfg.Origins[0] + l.URL
					}
					cfg.Login = l
				})
				for name := range values {
					if _, err := b.cfg.Secrets.Get(name); err != nil {
						t.Fatal(err)
					}
				}
				_, err := b.Do(t.Context(), Request{Method: "POST", URL: b.URL + "/x?q=1", Body: values["password"], Idempotent: true})
				preview, perr := b.Preview(Request{Method: "POST", URL: b.URL + "/x", Body: values["password"]})
				if (err == nil) != (status == 200) || perr != nil {
					t.Fatalf("%v, %v", err, perr)
				}
				all := fmt.Sprintf("%v %+v %#v %s %+v %v %#v", err, err, pcm.AsError(err), b.seen(), preview, b.cfg.Secrets, b.cfg.Secrets)
				for e := err; e != nil; e = errors.Unwrap(e) {
					all += e.Error()
				}
				for _, v := range append([]string{"T0ken-that-was-given"}, values["key"], values["password"], values["access"], values["session"]) {
					for _, form := range shapes(v) {
						if strings.Contains(all, form) {
							t.Errorf("%q shows: %s", form, all)
						}
					}
				}
			})
		}
	}
}

func TestSecretReferences(t *testing.T) {
	dir := t.TempDir()
	for ref, want := range map[string]string{
		"hunter2": "is not written down here", "env:": "not the name", "env:a b": "not the name", "file:rel": "absolute", "file:/a/../b": "absolute", "": "not written",
	} {
		_, err := NewSecrets(map[string]string{"x": ref})
		wantError(t, err, pcm.Invalid, want)
		if ref != "" && strings.Contains(err.Error(), ref+"x") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("repeats it: %v", err)
		}
	}
	path := dir + "/secret"
	s, err := NewSecrets(map[string]string{"file": "file:" + path, "dir": "file:" + dir, "env": "env:PCM_TEST_SECRET"})
	if err != nil {
		t.Fatal(err)
	}
	get := func(name string) (string, error) { return s.Get(name) }
	t.Setenv("PCM_TEST_SECRET", "")
	for name, want := range map[string]string{"file": "no such file", "dir": "not a regular file", "env": "not set", "other": "no secret named"} {
		_, err := get(name)
		wantError(t, err, pcm.ErrorCode(err), want)
	}
	t.Setenv("PCM_TEST_SECRET", "from the environment")
	if v, err := get("env"); v != "from the environment" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if err := os.WriteFile(path, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := get("file"); v != "one" || err != nil {
		t.Errorf("%q, %v", v, err)
	}
	if err := os.WriteFile(path, []byte("the other\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v, err := get("file"); v != "the other" || err != nil {
		t.Errorf("after it was changed: %q, %v", v, err)
	}
	if got := s.Redact("one, the other, the+other"); got != "***, ***, ***" {
		t.Errorf("blotted out: %q", got)
	}
	for i := range 2 * maxHidden { // tokens come and go
		s.hide(fmt.Sprintf("token-%d-", i))
	}
	if got := s.Redact(fmt.Sprintf("the other token-%d-", 2*maxHidden-1)); got != "*** ***" || len(s.values) > maxHidden {
		t.Errorf("blotted out: %q, %d values", got, len(s.values))
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = get("file")
	wantError(t, err, pcm.Unavailable, "0644", "chmod 600")
	if err := os.WriteFile(path, make([]byte, maxSecret+1), 0o600); err != nil || os.Chmod(path, 0o600) != nil {
		t.Fatal(err)
	}
	_, err = get("file")
	wantError(t, err, pcm.Unavailable, "over the bound")
}

// tokenServer gives numbered tokens at /token, and accepts only the last one elsewhere.
type tokenServer struct {
	mu     sync.Mutex
	given  int
	life   string
	refuse bool
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Path == "/token" {
		id, secret, _ := r.BasicAuth()
		if s.refuse || id != "cl%2Fient" || secret != "s3cret" || r.FormValue("grant_type") != "client_credentials" || r.FormValue("scope") != "a b" {
			s.given++
			http.Error(w, `{"error":"invalid_client","error_description":"who are you"}`, http.StatusBadRequest)
			return
		}
		s.given++
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"bearer","expires_in":%s}`, s.given, s.life)
		return
	}
	if r.Header.Get("Authorization") != fmt.Sprintf("Bearer token-%d", s.given) {
		w.WriteHeader(401)
	}
}

func (s *tokenServer) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.given
}

func oauthBench(t *testing.T, s *tokenServer) *bench {
	return newBench(t, s.ServeHTTP, func(cfg *Config) {
		cfg.Secrets = secrets(t, map[string]string{"secret": "s3cret"})
		cfg.Login = Login{Kind: ClientCredentials, URL: cfg.Origins[0] + "/token", ClientID: "cl/ient", ClientSecret: "secret", Scopes: []string{"a", "b"}}
	})
}

func TestTokens(t *testing.T) {
	s := &tokenServer{life: "3600"}
	b := oauthBench(t, s)
	now := time.Now()
	var ahead atomic.Int64
	b.now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	do := func(want int) {
		t.Helper()
		if _, err := b.Do(t.Context(), Request{Method: "POST", URL: b.URL}); err != nil {
			t.Fatal(err)
		}
		if s.count() != want {
			t.Fatalf("%d tokens were given, want %d", s.count(), want)
		}
	}
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := b.Do(t.Context(), Request{URL: b.URL}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	do(1) // all waited for one log-in
	ahead.Store(int64(time.Hour - renewBefore - time.Second))
	do(1)
	ahead.Store(int64(time.Hour - renewBefore + time.Second))
	do(2) // renewed before it expires
	s.mu.Lock()
	s.given++ // the server forgets the token
	s.mu.Unlock()
	do(4) // so it says 401, once
	s.mu.Lock()
	s.life = `"1800"`
	s.mu.Unlock()
	ahead.Store(int64(2 * time.Hour))
	do(5)
	ahead.Store(int64(2*time.Hour + 25*time.Minute))
	do(5)
	ahead.Store(int64(2*time.Hour + 29*time.Minute))
	do(6)
}

// TestRefusedLogin: who is refused does not hammer at the door.
func TestRefusedLogin(t *testing.T) {
	s := &tokenServer{life: "3600", refuse: true}
	b := oauthBench(t, s)
	now := time.Now()
	var ahead atomic.Int64
	b.now = func() time.Time { return now.Add(time.Duration(ahead.Load())) }
	for range 5 {
		_, err := b.Do(t.Context(), Request{URL: b.URL})
		wantError(t, err, pcm.Refused, "who are you", "secret (file:", "can't log in")
		if !Unsent(err) {
			t.Error("nothing was sent but the log-in")
		}
	}
	if s.count() != 1 {
		t.Errorf("asked %d times", s.count())
	}
	ahead.Store(int64(loginPause + time.Second))
	s.mu.Lock()
	s.refuse = false
	s.mu.Unlock()
	if _, err := b.Do(t.Context(), Request{URL: b.URL}); err != nil {
		t.Error(err)
	}
}

func TestAlways401(t *testing.T) {
	var tokens, calls atomic.Int32
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/token" {
			tokens.Add(1)
			fmt.Fprint(w, `{"token":"abcdefgh"}`)
			return
		}
		calls.Add(1)
		w.WriteHeader(401)
	}, func(cfg *Config) {
		cfg.Secrets = secrets(t, map[string]string{"secret": "s3cret"})
		cfg.Login = Login{Kind: BearerToken, Request: &Request{URL: cfg.Origins[0] + "/token", Body: map[string]any{"a": []any{map[string]any{"secret": "secret"}}}},
			Find: func(r *Response) (string, time.Duration, error) { return "abcdefgh", time.Minute, nil }}
	})
	_, err := b.Do(t.Context(), Request{URL: b.URL})
	wantError(t, err, pcm.Refused, "the log-in is not accepted", "secret (file:")
	if tokens.Load() != 2 || calls.Load() != 2 {
		t.Errorf("%d tokens, %d calls", tokens.Load(), calls.Load())
	}
}

// keystoneServer is as much of OpenStack Identity as a log-in sees.
func keystoneServer(t *testing.T, nova string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v3/auth/tokens" {
			if r.Header.Get("X-Auth-Token") != "gAAAA-token" {
				w.WriteHeader(401)
			}
			return
		}
		var in map[string]any
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		got, _ := json.Marshal(in)
		switch string(got) {
		case `{"auth":{"identity":{"methods":["password"],"password":{"user":{"domain":{"name":"Default"},"name":"me","password":"s3cret"}}},"scope":{"project":{"domain":{"name":"dom"},"name":"proj"}}}}`,
			`{"auth":{"identity":{"application_credential":{"id":"app","secret":"s3cret"},"methods":["application_credential"]}}}`:
		default:
			http.Error(w, `{"error":{"code":401,"message":"The request you have made requires authentication.","title":"Unauthorized"}}`, http.StatusUnauthorized)
			t.Logf("posted %s", got)
			return
		}
		w.Header().Set("X-Subject-Token", "gAAAA-token")
		w.WriteHeader(201)
		fmt.Fprintf(w, `{"token":{"expires_at":%q,"catalog":[{"type":"compute","name":"nova","endpoints":[
			{"interface":"internal","region_id":"One","url":"http://10.0.0.1/"},
			{"interface":"public","region_id":"One","url":%q},{"interface":"public","region":"Two","url":"http://two.invalid/v2.1/"}]}]}}`,
			time.Now().Add(time.Hour).UTC().Format("2006-01-02T15:04:05.000000Z"), nova)
	}
}

func TestKeystone(t *testing.T) {
	nova := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%q", r.Header.Get("X-Auth-Token"))
	})
	for _, l := range []Login{
		{User: "me", Password: "secret", Project: "proj", ProjectDomain: "dom"}, {Credential: "app", CredentialSecret: "secret"},
	} {
		b := newBench(t, keystoneServer(t, nova.URL+"/v2.1/"), func(cfg *Config) {
			cfg.Secrets = secrets(t, map[string]string{"secret": "s3cret"})
			l.Kind, l.URL = Keystone, cfg.Origins[0]+"/v3/"
			cfg.Login = l
		})
		_, err := b.Do(t.Context(), Request{URL: nova.URL + "/v2.1/servers"})
		wantError(t, err, pcm.Refused, "is not at an address of this back end")
		compute, err := b.Endpoint(t.Context(), "compute", "", "One")
		if err != nil || compute != nova.URL+"/v2.1" {
			t.Fatalf("%q, %v", compute, err)
		}
		resp, err := b.Do(t.Context(), Request{URL: compute + "/servers"})
		if err != nil || string(resp.Body) != `"gAAAA-token"` {
			t.Errorf("%+v, %v", resp, err)
		}
		if two, err := b.Endpoint(t.Context(), "compute", "public", "Two"); two != "http://two.invalid/v2.1" || err != nil {
			t.Errorf("%q, %v", two, err)
		}
		_, err = b.Endpoint(t.Context(), "volume", "", "")
		wantError(t, err, pcm.NotFound, "volume", "compute/public/One")
		if strings.Contains(b.seen(), "gAAAA") || strings.Contains(b.seen(), "s3cret") {
			t.Errorf("shows secrets: %s", b.seen())
		}
	}
}

// TestSignedCalls: what the server gets verifies, body and all.
func TestSignedCalls(t *testing.T) {
	values := map[string]string{"access": "AKIDEXAMPLE", "key": "wJalrXUtnFEMI", "session": "sess"}
	k := keyValues{values["access"], values["key"], ""}
	for _, l := range []Login{
		{Kind: Huawei, AccessKey: "access", SecretKey: "key"}, {Kind: SigV4, AccessKey: "access", SecretKey: "key", Region: "r", Service: "execute-api"},
		{Kind: SigV4, AccessKey: "access", SecretKey: "key", Region: "r", Service: "s3"},
	} {
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			got := r.Header.Get("Authorization")
			_, rest, _ := strings.Cut(got, "SignedHeaders=")
			names, _, _ := strings.Cut(rest, ",")
			// As it came, but for what transport and signature add.
			in := &http.Request{Method: r.Method, Host: r.Host, URL: r.URL, Header: http.Header{}, ContentLength: r.ContentLength}
			for _, n := range strings.Split(names, ";") {
				if v := r.Header.Get(n); v != "" {
					in.Header.Set(n, v)
				}
			}
			want := ""
			if l.Kind == Huawei {
				want = huaweiAuthorization(in, k, strings.Split(names, ";"), body)
			} else {
				at, err := time.Parse(v4Time, r.Header.Get("X-Amz-Date"))
				if err != nil {
					t.Error(err)
				}
				s := &sigv4{region: "r", service: l.Service, now: func() time.Time { return at }}
				s.sign(in, k, hashHex(body))
				want = in.Header.Get("Authorization")
			}
			if got != want || got == "" {
				t.Errorf("%s %s: signed\n%s, want\n%s", r.Method, r.RequestURI, got, want)
			}
		}, func(cfg *Config) { cfg.Secrets, cfg.Login = secrets(t, values), l })
		for _, r := range []Request{
			{URL: b.URL}, {URL: b.URL + "/a b/ä%2F+=:@", Query: url.Values{"z": {"1", "0"}, "a b": {"+&"}}},
			{Method: "POST", URL: b.URL + "/v2/x", Body: map[string]int{"a": 1}, Header: http.Header{"X-Project-Id": {" p "}, "X_Under": {"1"}}},
			{Method: "DELETE", URL: b.URL + "/v2/x"},
		} {
			if _, err := b.Do(t.Context(), r); err != nil {
				t.Error(err)
			}
		}
	}
}
