package client

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// bench is a server, a client of it, and all that the client showed.
type bench struct {
	*Client
	URL string

	mu    sync.Mutex
	shown []Exchange
}

// newBench serves h on loopback to a client with quick retries.
func newBench(t *testing.T, h http.HandlerFunc, change ...func(*Config)) *bench {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	b := &bench{URL: srv.URL}
	cfg := Config{
		Origins: []string{srv.URL}, AllowPrivate: true, Rate: 1e6, Burst: 1e6, Timeout: time.Minute,
		Retry: Retry{First: time.Millisecond, MaxWait: 5 * time.Millisecond},
		Trace: func(x Exchange) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.shown = append(b.shown, x)
		},
	}
	for _, f := range change {
		f(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	b.Client = c
	return b
}

// seen is all that was shown, as text.
func (b *bench) seen() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("%+v", b.shown)
}

// secrets puts values into files and variables, by name.
func secrets(t *testing.T, values map[string]string) *Secrets {
	t.Helper()
	refs := map[string]string{}
	for name, v := range values {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(v+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refs[name] = "file:" + path
	}
	s, err := NewSecrets(refs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustURL(t *testing.T, s string) *url.URL {
	t.Helper()
	u, err := parseURL(s)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func wantError(t *testing.T, err error, code pcm.Code, words ...string) {
	t.Helper()
	if pcm.ErrorCode(err) != code {
		t.Errorf("code %q, want %q: %v", pcm.ErrorCode(err), code, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

func TestDo(t *testing.T) {
	var got *http.Request
	var body []byte
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Clone(context.Background())
		body, _ = io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"id": 12345678901234567890, "list": [1.50, null, true, "x"]}`)
	})
	resp, err := b.Do(t.Context(), Request{
		Method: "POST", URL: b.URL + "/v1/jobs?z=1", Header: http.Header{"x-who": {"me"}},
		Query: map[string][]string{"name": {"a b+c"}}, Body: map[string]any{"html": "<&>", "n": json.Number("7")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got.RequestURI != "/v1/jobs?name=a%20b%2Bc&z=1" || got.Header.Get("X-Who") != "me" || got.Header.Get("Content-Type") != "application/json" ||
		got.Header.Get("User-Agent") != "pcm" || string(body) != `{"html":"<&>","n":7}` {
		t.Errorf("sent %s %v %s", got.RequestURI, got.Header, body)
	}
	v, err := resp.JSON()
	want := map[string]any{"id": json.Number("12345678901234567890"), "list": []any{json.Number("1.50"), nil, true, "x"}}
	if err != nil || !reflect.DeepEqual(v, want) {
		t.Errorf("answer %#v, %v", v, err)
	}
	if x := b.shown; len(x) != 1 || x[0].Status != 200 || x[0].Method != "POST" || x[0].RequestBody != string(body) || !strings.Contains(x[0].ResponseBody, "1.50") {
		t.Errorf("shown: %+v", x)
	}
	if _, err := b.Do(t.Context(), Request{Method: "POST", URL: b.URL, Body: map[string][]string{"a": {"b"}}}); err != nil || string(body) != `{"a":["b"]}` {
		t.Errorf("a map: %s, %v", body, err)
	}
}

func TestStatuses(t *testing.T) {
	var calls atomic.Int32
	answer := func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		var status int
		fmt.Sscan(r.URL.Query().Get("status"), &status)
		w.WriteHeader(status)
		io.WriteString(w, r.URL.Query().Get("body"))
	}
	b := newBench(t, answer)
	for _, c := range []struct {
		method string
		status int
		body   string
		code   pcm.Code
		words  string
		calls  int32
		unsent bool
	}{
		{"GET", 401, `{"error_code":"APIG.0301","error_msg":"Incorrect IAM authentication"}`, pcm.Refused, "APIG.0301: Incorrect IAM authentication", 1, true},
		{"GET", 403, `{"error":{"code":403,"message":"no right"}}`, pcm.Refused, "403: no right", 1, true},
		{"GET", 404, `{"itemNotFound":{"message":"no such server","code":404}}`, pcm.NotFound, "404: no such server", 1, true},
		{"POST", 409, `{"errors":[{"detail":"name is taken"}]}`, pcm.Conflict, "name is taken", 1, false},
		{"POST", 400, "plain\x1b[31m\nwords\u202e", pcm.Invalid, "HTTP 400 Bad Request: plain [31m words", 1, true},
		{"POST", 422, `<?xml version="1.0"?><Error><Code>Bad</Code><Message>key</Message></Error>`, pcm.Invalid, "Bad: key", 1, true},
		{"POST", 400, "<html><h1>long page</h1></html>", pcm.Invalid, "HTTP 400 Bad Request", 1, true},
		{"PUT", 413, "", pcm.TooLarge, "413", 1, true},
		{"POST", 429, "", pcm.Busy, "429", 4, true},
		{"GET", 500, "", pcm.Unavailable, "500", 4, false},
		{"POST", 500, "", pcm.Unavailable, "500", 1, false},
		{"GET", 501, "", pcm.Unavailable, "501", 1, false},
		{"POST", 503, "", pcm.Unavailable, "503", 1, false},
		{"DELETE", 502, "", pcm.Unavailable, "502", 1, false},
	} {
		calls.Store(0)
		resp, err := b.Do(t.Context(), Request{Method: c.method, URL: b.URL, Query: map[string][]string{"status": {fmt.Sprint(c.status)}, "body": {c.body}}})
		wantError(t, err, c.code, c.words, c.method+" "+b.URL)
		if resp == nil || resp.Status != c.status || string(resp.Body) != c.body || Unsent(err) != c.unsent || calls.Load() != c.calls {
			t.Errorf("%s %d: response %+v, unsent %v, %d calls; want %d: %v", c.method, c.status, resp, Unsent(err), calls.Load(), c.calls, err)
		}
		if strings.ContainsAny(err.Error(), "\x1b\n\u202e") || strings.Contains(err.Error(), "status=") {
			t.Errorf("unclean: %q", err)
		}
	}
	if _, err := b.Do(t.Context(), Request{Method: "DELETE", URL: b.URL + "?status=404", OK: []int{404}}); err != nil {
		t.Errorf("a status that is no error: %v", err)
	}
	calls.Store(0)
	if _, err := b.Do(t.Context(), Request{Method: "DELETE", URL: b.URL + "?status=502", Idempotent: true}); err == nil || calls.Load() != 4 {
		t.Errorf("an idempotent call: %d tries, %v", calls.Load(), err)
	}
}

// TestRetryRecovers: what fails for a while works in the end, and waits as it is asked to.
func TestRetryRecovers(t *testing.T) {
	var calls atomic.Int32
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		switch calls.Add(1) {
		case 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(503)
		case 2:
			panic(http.ErrAbortHandler)
		default:
			io.WriteString(w, "there")
		}
	}, func(c *Config) { c.Retry.MaxWait = time.Minute })
	began := time.Now()
	resp, err := b.Do(t.Context(), Request{URL: b.URL})
	if err != nil || string(resp.Body) != "there" || calls.Load() != 3 {
		t.Fatalf("%+v, %v after %d calls", resp, err, calls.Load())
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("waited %s, asked for a second", took)
	}
}

// TestLostAnswer: a call that isn't idempotent is not made twice when its answer is lost.
func TestLostAnswer(t *testing.T) {
	var calls atomic.Int32
	b := newBench(t, func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	})
	_, err := b.Do(t.Context(), Request{Method: "POST", URL: b.URL, Body: "x"})
	wantError(t, err, pcm.Unavailable)
	if calls.Load() != 1 || Unsent(err) {
		t.Errorf("%d calls, unsent %v", calls.Load(), Unsent(err))
	}
}

// TestNobodyThere: nothing was sent, so any call may be tried again.
func TestNobodyThere(t *testing.T) {
	b := newBench(t, nil)
	srv := httptest.NewServer(nil)
	gone := srv.URL
	srv.Close()
	b.trust(mustURL(t, gone))
	_, err := b.Do(t.Context(), Request{Method: "POST", URL: gone})
	wantError(t, err, pcm.Unavailable, "refused")
	if !Unsent(err) || strings.Count(b.seen(), "Try:4") != 1 {
		t.Errorf("unsent %v; %s", Unsent(err), b.seen())
	}
}

func TestDeadline(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := b.Do(ctx, Request{URL: b.URL})
	wantError(t, err, pcm.Unavailable, "given up")
	if ctx.Err() == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("%v", err)
	}
}

func TestRate(t *testing.T) {
	b := newBench(t, func(http.ResponseWriter, *http.Request) {}, func(c *Config) { c.Rate, c.Burst = 20, 1 })
	began := time.Now()
	for range 5 {
		if _, err := b.Do(t.Context(), Request{URL: b.URL}); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(began); took < 150*time.Millisecond {
		t.Errorf("five calls at 20/s took %s", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := b.Do(ctx, Request{URL: b.URL})
	wantError(t, err, pcm.Busy, "20 calls a second")
}

func TestBadRequests(t *testing.T) {
	b := newBench(t, nil)
	for want, r := range map[string]Request{
		"is not a method":         {Method: "CONNECT", URL: b.URL},
		"not of the form":         {URL: "ftp://host/x"},
		"has a user or password":  {URL: "https://me:hidden@host/x"},
		"header \"Host\"":         {URL: b.URL, Header: http.Header{"Host": {"x"}}},
		"header \"a b\"":          {URL: b.URL, Header: http.Header{"a b": {"x"}}},
		"has a control character": {URL: b.URL, Header: http.Header{"X-A": {"x\r\nY: z"}}},
		"over the bound of 16384": {URL: b.URL, Query: map[string][]string{"a": {strings.Repeat("x", 20000)}}},
		"can't be made JSON":      {URL: b.URL, Body: func() {}},
		"over the bound of 8MiB":  {URL: b.URL, Body: make([]byte, 9<<20)},
		"is no query":             {URL: b.URL + "?a=%zz"},
	} {
		_, err := b.Do(t.Context(), r)
		if err == nil || !strings.Contains(err.Error(), want) || !Unsent(err) || strings.Contains(err.Error(), "hidden") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	for want, cfg := range map[string]Config{
		"can't be negative": {Rate: -1}, "is no kind": {Login: Login{Kind: "magic"}}, "needs token": {Login: Login{Kind: BearerToken}},
		"is not HTTPS": {Login: Login{Kind: ClientCredentials, URL: "http://h/", ClientID: "a", ClientSecret: "b"}},
		"can't read":   {CA: "/nowhere"}, "not of the form": {Origins: []string{"host"}}, "needs credential_secret": {Login: Login{Kind: Keystone, URL: "https://h/v3", Credential: "x"}},
	} {
		_, err := New(cfg)
		wantError(t, err, pcm.Invalid, want)
	}
}

func TestPreview(t *testing.T) {
	b := newBench(t, func(http.ResponseWriter, *http.Request) { t.Error("something was sent") }, func(c *Config) {
		c.Secrets, c.Login = secrets(t, map[string]string{"key": "s3cr3t-value"}), Login{Kind: BearerToken, Token: "key"}
	})
	x, err := b.Preview(Request{Method: "POST", URL: b.URL + "/jobs", Body: map[string]int{"a": 1}})
	if err != nil || x.Method != "POST" || x.URL != b.URL+"/jobs" || x.RequestBody != `{"a":1}` || x.RequestHeader.Get("Authorization") != "***" {
		t.Errorf("%+v, %v", x, err)
	}
}

// TestCA: a server whose certificate nobody vouches for is not spoken to, unless
// the site names who does.
func TestCA(t *testing.T) {
	var calls atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ca := range []string{"", path} {
		c, err := New(Config{Origins: []string{srv.URL}, AllowPrivate: true, CA: ca})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.Do(t.Context(), Request{URL: srv.URL})
		if ca != "" && (err != nil || calls.Load() != 1) {
			t.Errorf("with its authority: %v", err)
		} else if ca == "" {
			wantError(t, err, pcm.Unavailable, "certificate", "under ca")
		}
	}
	if err := os.WriteFile(path, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := New(Config{CA: path})
	wantError(t, err, pcm.Invalid, "no certificate")
}

// A call costs this much over net/http's own.
func BenchmarkDo(b *testing.B) {
	srv, body := benchServer(b)
	c, err := New(Config{Origins: []string{srv}, AllowPrivate: true, Rate: 1e9, Burst: 1e9})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		resp, err := c.Do(b.Context(), Request{URL: srv})
		if err != nil || len(resp.Body) != body {
			b.Fatal(err)
		}
		if _, err := resp.JSON(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPlain(b *testing.B) {
	srv, body := benchServer(b)
	c := &http.Client{Transport: &http.Transport{}}
	for b.Loop() {
		resp, err := c.Get(srv)
		if err != nil {
			b.Fatal(err)
		}
		data, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		var v any
		if err != nil || len(data) != body || json.Unmarshal(data, &v) != nil {
			b.Fatal(err)
		}
	}
}

func benchServer(b *testing.B) (string, int) {
	var jobs []map[string]any
	for i := range 50 {
		jobs = append(jobs, map[string]any{"id": i, "name": fmt.Sprintf("job-%d", i), "status": map[string]any{"phase": "Running", "duration": 12.5}})
	}
	body, err := json.Marshal(map[string]any{"items": jobs, "total": 50})
	if err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(body) }))
	b.Cleanup(srv.Close)
	return srv.URL, len(body)
}
