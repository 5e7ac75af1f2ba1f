package objects

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	access = "AKIAIOSFODNN7EXAMPLE"
	secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
)

func open(t *testing.T, o Options) *Store {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(access, secret)
	return s
}

// TestPublishedSignatures checks the examples that AWS publishes with its
// description of the signature, "Authenticating Requests" of the S3 API reference.
func TestPublishedSignatures(t *testing.T) {
	s := open(t, Options{Now: func() time.Time { return time.Date(2013, 5, 24, 0, 0, 0, 0, time.UTC) }})
	const (
		nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
		scope   = access + "/20130524/us-east-1/s3/aws4_request"
	)
	for _, c := range []struct {
		name, method, url, signed, signature, hash string
		header                                     map[string]string
	}{
		{"object", "GET", "/test.txt", "host;range;x-amz-content-sha256;x-amz-date",
			"f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41", nothing,
			map[string]string{"Range": "bytes=0-9"}},
		{"put", "PUT", "/test%24file.text", "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
			"44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			map[string]string{"Date": "Fri, 24 May 2013 00:00:00 GMT", "X-Amz-Storage-Class": "REDUCED_REDUNDANCY"}},
		{"lifecycle", "GET", "/?lifecycle", "host;x-amz-content-sha256;x-amz-date",
			"fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543", nothing, nil},
		{"list", "GET", "/?max-keys=2&prefix=J", "host;x-amz-content-sha256;x-amz-date",
			"34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7", nothing, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, "http://examplebucket.s3.amazonaws.com"+c.url, nil)
			for k, v := range c.header {
				r.Header.Set(k, v)
			}
			r.Header.Set("X-Amz-Date", "20130524T000000Z")
			r.Header.Set("X-Amz-Content-Sha256", c.hash)
			r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s,SignedHeaders=%s,Signature=%s", algorithm, scope, c.signed, c.signature))
			hash, err := s.authenticate(r)
			if err != nil || hash != c.hash {
				t.Fatalf("authenticate: %q, %v", hash, err)
			}
			r.URL.Path += "x"
			if _, err := s.authenticate(r); !errors.Is(err, errSignature) {
				t.Errorf("of another path: %v", err)
			}
		})
	}
	r := httptest.NewRequest("GET", "http://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404", nil)
	if _, err := s.authenticate(r); err != nil {
		t.Errorf("the published link: %v", err)
	}
}

// do sends a request that is signed as sent, then changed.
func do(t *testing.T, s *Store, at, method, path, body string, change func(*http.Request)) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, at+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	now := s.o.Now().UTC()
	c := claim{access: access, day: now.Format("20060102"), region: "r", service: "s3", time: now, hash: hexSum(body),
		signed: []string{"host", "x-amz-content-sha256", "x-amz-date"}}
	r.Header.Set("X-Amz-Date", now.Format(timestamp))
	r.Header.Set("X-Amz-Content-Sha256", c.hash)
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s/r/s3/aws4_request, SignedHeaders=%s, Signature=%s",
		algorithm, access, c.day, strings.Join(c.signed, ";"), c.sign(secret, r)))
	if change != nil {
		change(r)
	}
	return send(t, r)
}

func send(t *testing.T, r *http.Request) (int, string) {
	t.Helper()
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func serve(t *testing.T, s *Store) string {
	t.Helper()
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return srv.URL
}

func TestObjects(t *testing.T) {
	s := open(t, Options{})
	at := serve(t, s)
	want := func(method, path, body string, status int, says string) {
		t.Helper()
		if code, text := do(t, s, at, method, path, body, nil); code != status || !strings.Contains(text, says) {
			t.Errorf("%s %s: %d %s, want %d %q", method, path, code, text, status, says)
		}
	}
	want("PUT", "/no", "", 400, "InvalidBucketName")
	want("PUT", "/bucket/a", "hello", 404, "NoSuchBucket")
	want("PUT", "/bucket", "", 200, "")
	want("PUT", "/bucket/a%20b/ü+.txt", "hello", 200, "")
	want("GET", "/bucket/a%20b/ü+.txt", "", 200, "hello")
	want("HEAD", "/bucket/a%20b/ü+.txt", "", 200, "")
	want("GET", "/bucket/none", "", 404, "NoSuchKey")
	want("HEAD", "/bucket/none", "", 404, "")
	want("HEAD", "/bucket", "", 200, "")
	want("HEAD", "/nobucket", "", 404, "")
	want("GET", "/", "", 200, "<Name>bucket</Name>")
	want("DELETE", "/bucket", "", 409, "BucketNotEmpty")
	want("POST", "/bucket/a?uploads", "", 501, "NotImplemented")
	want("GET", "/bucket", "", 501, "NotImplemented") // the first version of the list
	want("DELETE", "/bucket/a%20b/ü+.txt", "", 204, "")
	want("DELETE", "/bucket/a%20b/ü+.txt", "", 204, "")
	want("DELETE", "/bucket", "", 204, "")
}

func TestWrongSignatures(t *testing.T) {
	s := open(t, Options{})
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	at := serve(t, s)
	for _, c := range []struct {
		name, says string
		change     func(*http.Request)
	}{
		{"none", "AccessDenied", func(r *http.Request) { r.Header.Del("Authorization") }},
		{"another object", "SignatureDoesNotMatch", func(r *http.Request) { r.URL.Path += "2" }},
		{"another query", "SignatureDoesNotMatch", func(r *http.Request) { r.URL.RawQuery = "x=1" }},
		{"another body", "XAmzContentSHA256Mismatch", func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("HELLO")) }},
		{"another body and hash", "SignatureDoesNotMatch", func(r *http.Request) {
			r.Body = io.NopCloser(strings.NewReader("HELLO"))
			r.Header.Set("X-Amz-Content-Sha256", hexSum("HELLO"))
		}},
		{"more than was signed", "AccessDenied", func(r *http.Request) { r.Header.Set("X-Amz-Copy-Source", "/bucket/other") }},
		{"an old one", "RequestTimeTooSkewed", func(r *http.Request) {
			r.Header.Set("X-Amz-Date", time.Now().Add(-time.Hour).UTC().Format(timestamp))
		}},
		{"another day", "SignatureDoesNotMatch", func(r *http.Request) {
			r.Header.Set("X-Amz-Date", s.o.Now().UTC().Add(time.Second).Format(timestamp))
		}},
		{"a stranger", "InvalidAccessKeyId", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), access, "STRANGER", 1))
		}},
		{"nonsense", "AuthorizationHeaderMalformed", func(r *http.Request) { r.Header.Set("Authorization", algorithm+" x") }},
		{"chunks", "NotImplemented", func(r *http.Request) {
			r.Header.Set("X-Amz-Content-Sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD")
		}},
		{"no date", "AccessDenied", func(r *http.Request) { r.Header.Del("X-Amz-Date") }},
		{"an unsigned date", "AccessDenied", func(r *http.Request) {
			r.Header.Set("Date", r.Header.Get("X-Amz-Date"))
			r.Header.Del("X-Amz-Date")
		}},
		{"no hash", "InvalidRequest", func(r *http.Request) { r.Header.Del("X-Amz-Content-Sha256") }},
	} {
		if code, text := do(t, s, at, "PUT", "/bucket/a", "hello", c.change); code < 400 || !strings.Contains(text, "<Code>"+c.says+"<") {
			t.Errorf("%s: %d %s, want %s", c.name, code, text, c.says)
		}
	}
	if list, err := s.List("bucket", ""); err != nil || len(list) != 0 {
		t.Errorf("after all refusals there is %v, %v", list, err)
	}
}

func TestLinks(t *testing.T) {
	now := time.Now()
	s := open(t, Options{Now: func() time.Time { return now }})
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	at := serve(t, s)
	link := func(method string) *http.Request {
		t.Helper()
		u, err := s.Presign(method, at, access, "bucket", "a b/c", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequest(method, u, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	put := link("PUT")
	put.Body, put.ContentLength = io.NopCloser(strings.NewReader("text")), 4
	if code, text := send(t, put); code != 200 {
		t.Fatalf("PUT by a link: %d %s", code, text)
	}
	if code, text := send(t, link("GET")); code != 200 || text != "text" {
		t.Errorf("GET by a link: %d %s", code, text)
	}
	other := link("GET")
	other.Method = "DELETE"
	if code, _ := send(t, other); code != 403 {
		t.Errorf("DELETE by a link for GET: %d", code)
	}
	late := link("GET")
	now = now.Add(2 * time.Minute)
	if code, text := send(t, late); code != 403 || !strings.Contains(text, "expired") {
		t.Errorf("a link that has expired: %d %s", code, text)
	}
}

func TestListPages(t *testing.T) {
	s := open(t, Options{})
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "b/1", "b/2", "b/3", "c", "d/1"} {
		if err := s.Put("bucket", key, strings.NewReader(key)); err != nil {
			t.Fatal(err)
		}
	}
	at := serve(t, s)
	pages := func(query string) (names []string, n int) {
		token := ""
		for n < 10 {
			n++
			code, text := do(t, s, at, "GET", "/bucket?list-type=2&max-keys=2"+query+token, "", nil)
			var l listing
			if err := xml.Unmarshal([]byte(text), &l); err != nil || code != 200 {
				t.Fatalf("%d %s: %v", code, text, err)
			}
			for _, c := range l.Contents {
				names = append(names, c.Key)
			}
			for _, p := range l.CommonPrefixes {
				names = append(names, p.Prefix)
			}
			if !l.IsTruncated {
				return names, n
			}
			token = "&continuation-token=" + l.NextContinuationToken
		}
		t.Fatalf("pages without end: %q", names)
		return nil, 0
	}
	if got, n := pages(""); !slices.Equal(got, []string{"a", "b/1", "b/2", "b/3", "c", "d/1"}) || n != 3 {
		t.Errorf("all: %q in %d pages", got, n)
	}
	if got, n := pages("&prefix=b%2F"); !slices.Equal(got, []string{"b/1", "b/2", "b/3"}) || n != 2 {
		t.Errorf("with a prefix: %q in %d pages", got, n)
	}
	if got, _ := pages("&delimiter=%2F"); !slices.Equal(got, []string{"a", "b/", "c", "d/"}) {
		t.Errorf("with a delimiter: %q", got)
	}
}

func TestBounds(t *testing.T) {
	s := open(t, Options{Object: 10, Bytes: 25, Objects: 3})
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	put := func(key string, n int) error { return s.Put("bucket", key, bytes.NewReader(make([]byte, n))) }
	for _, c := range []struct {
		key  string
		n    int
		want error
	}{
		{"a", 11, errTooLarge}, {"a", 10, nil}, {"b", 10, nil}, {"c", 10, errFull}, {"a", 5, nil}, {"c", 10, nil}, {"d", 0, errFull},
		{strings.Repeat("k", 1025), 1, errKey}, {"", 1, errKey},
	} {
		if err := put(c.key, c.n); !errors.Is(err, c.want) {
			t.Errorf("%d bytes for %.10q: %v, want %v", c.n, c.key, err, c.want)
		}
	}
	at := serve(t, s)
	if code, text := do(t, s, at, "PUT", "/bucket/e", strings.Repeat("x", 11), nil); code != 400 || !strings.Contains(text, "EntityTooLarge") {
		t.Errorf("a large body: %d %s", code, text)
	}
}

func TestKept(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	if err := s.CreateBucket("bucket"); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"old", "new"} {
		if err := s.Put("bucket", "a", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, Options{Dir: dir})
	f, info, err := s.Get("bucket", "a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if data, err := io.ReadAll(f); string(data) != "new" || err != nil || info.Size != 3 || s.count != 1 || s.bytes != 3 {
		t.Errorf("opened again: %q, %v, %+v, %d objects of %d bytes", data, err, info, s.count, s.bytes)
	}
}

func hexSum(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
