package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

// s3Servers are two stores that share no code with each other or with the
// client: one checks signatures, one has more of S3.
func s3Servers(t *testing.T) map[string]http.Handler {
	strict, err := objects.Open(objects.Options{Dir: t.TempDir(), Region: "cn-north-4"})
	if err != nil {
		t.Fatal(err)
	}
	strict.Allow("AKIDSTORE", "st0re-secret")
	if err := strict.CreateBucket("pcm"); err != nil {
		t.Fatal(err)
	}
	backend := s3mem.New()
	if err := backend.CreateBucket("pcm"); err != nil {
		t.Fatal(err)
	}
	return map[string]http.Handler{"strict": strict, "gofakes3": gofakes3.New(backend, gofakes3.WithoutVersioning()).Server()}
}

func newStore(t *testing.T, h http.Handler, change ...func(*Config, *S3)) (*Store, string) {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	cfg := Config{
		Secrets: secrets(t, map[string]string{"access": "AKIDSTORE", "secret": "st0re-secret"}), AllowPrivate: true, Rate: 1e6, Burst: 1e6, Timeout: time.Minute,
		Retry: Retry{First: time.Millisecond, MaxWait: 5 * time.Millisecond},
	}
	where := S3{Endpoint: srv.URL, Region: "cn-north-4", Bucket: "pcm", AccessKey: "access", SecretKey: "secret"}
	for _, f := range change {
		f(&cfg, &where)
	}
	s, err := NewStore(cfg, where)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, srv.URL
}

func put(t *testing.T, s *Store, name, text string) {
	t.Helper()
	if err := s.Put(t.Context(), name, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	for kind, h := range s3Servers(t) {
		t.Run(kind, func(t *testing.T) {
			s, _ := newStore(t, h)
			odd := "a b/ä+=&:@!'()*~$,;?#[]%41/x"
			for _, name := range []string{"one", odd, "deep/er/still"} {
				put(t, s, name, "content of "+name)
				var out bytes.Buffer
				o, err := s.Get(t.Context(), name, &out, 1<<20)
				if err != nil || out.String() != "content of "+name || o.Size != int64(out.Len()) || o.Modified.IsZero() {
					t.Errorf("%s: %+v, %q, %v", name, o, out.String(), err)
				}
			}
			put(t, s, "one", "")
			var out bytes.Buffer
			if _, err := s.Get(t.Context(), "one", &out, 0); err != nil || out.Len() != 0 {
				t.Errorf("empty: %q, %v", out.String(), err)
			}
			_, err := s.Get(t.Context(), "none", &out, 1)
			wantError(t, err, pcm.NotFound, "NoSuchKey")
			_, err = s.Get(t.Context(), odd, io.Discard, 10)
			wantError(t, err, pcm.TooLarge, "over the bound of 10")
			all, err := s.List(t.Context(), "", 10)
			if err != nil || len(all) != 3 {
				t.Errorf("%+v, %v", all, err)
			}
			all, err = s.List(t.Context(), "deep", 10)
			if err != nil || len(all) != 1 || all[0].Name != "er/still" || all[0].Size != 24 || all[0].ETag == "" || all[0].Modified.IsZero() {
				t.Errorf("%+v, %v", all, err)
			}
			_, err = s.List(t.Context(), "", 2)
			wantError(t, err, pcm.TooLarge, "more than 2")
			for range 2 {
				if err := s.Delete(t.Context(), "one"); err != nil {
					t.Error(err)
				}
			}
			if all, err := s.List(t.Context(), "", 10); err != nil || len(all) != 2 {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}

func TestTrees(t *testing.T) {
	for kind, h := range s3Servers(t) {
		t.Run(kind, func(t *testing.T) {
			s, _ := newStore(t, h)
			from, to := t.TempDir(), t.TempDir()
			big := make([]byte, 3<<20)
			_, _ = rand.Read(big)
			for name, text := range map[string][]byte{"a": []byte("A"), "d/b": []byte("B"), "d/e/big": big} {
				path := filepath.Join(from, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink("a", filepath.Join(from, "link")); err != nil {
				t.Fatal(err)
			}
			if err := s.PutTree(t.Context(), from, "in/one"); err != nil {
				t.Fatal(err)
			}
			if err := s.PutTree(t.Context(), filepath.Join(from, "a"), "in/two"); err != nil {
				t.Fatal(err)
			}
			_, _, err := s.GetTree(t.Context(), "in/one", to, 3<<20)
			wantError(t, err, pcm.TooLarge, "3MiB")
			n, size, err := s.GetTree(t.Context(), "in/one", to, 4<<20)
			if err != nil || n != 4 || size != 3<<20+3 {
				t.Fatalf("%d files, %d bytes, %v", n, size, err)
			}
			for name, want := range map[string][]byte{"a": []byte("A"), "link": []byte("A"), "d/b": []byte("B"), "d/e/big": big} {
				if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes, %v", name, len(got), err)
				}
			}
			_, _, err = s.GetTree(t.Context(), "in/one", to, 4<<20)
			wantError(t, err, pcm.Internal, "exists")
			if err := s.DeleteTree(t.Context(), "in/one"); err != nil {
				t.Fatal(err)
			}
			if err := s.DeleteTree(t.Context(), "in/two"); err != nil {
				t.Fatal(err)
			}
			if all, err := s.List(t.Context(), "", 10); err != nil || len(all) != 0 {
				t.Errorf("%+v, %v", all, err)
			}
			if err := os.Symlink("/etc/passwd", filepath.Join(from, "out")); err != nil {
				t.Fatal(err)
			}
			if err := s.PutTree(t.Context(), from, "in/three"); err == nil {
				t.Error("a link to the outside was stored")
			}
		})
	}
}

// TestPresigned: URLs that the store makes are good without any log-in, and only
// for what they were made for.
// TestDeleteAll: whatever a task has left below its name is deleted, also what
// List would not take, and more than it takes at once.
func TestDeleteAll(t *testing.T) {
	for kind, h := range s3Servers(t) {
		t.Run(kind, func(t *testing.T) {
			s, _ := newStore(t, h)
			put(t, s, "job/file", "x")
			put(t, s, "job-2/file", "stays")
			odd := []string{"job/back\\slash", "job/sub/", "job/file/below", "job/tab\tand\u00a0space"}
			for i := range 1100 {
				odd = append(odd, fmt.Sprintf("job/many/%d", i))
			}
			for _, key := range odd {
				o, err := s.compose(http.MethodPut, key, nil)
				if err != nil {
					t.Fatal(err)
				}
				o.header.Set(contentHash, "UNSIGNED-PAYLOAD")
				if _, err := s.c.call(t.Context(), o, nil); err != nil {
					t.Logf("%s does not take %q: %v", kind, key, err)
				}
			}
			if err := s.DeleteTree(t.Context(), "job"); err != nil {
				t.Fatal(err)
			}
			page, _, err := s.page(t.Context(), url.Values{"list-type": {"2"}})
			if err != nil || len(page.Contents) != 1 || page.Contents[0].Key != "job-2/file" {
				t.Errorf("%d objects are left, %v", len(page.Contents), err)
			}
		})
	}
}

func TestPresigned(t *testing.T) {
	s, url := newStore(t, s3Servers(t)["strict"])
	c, err := New(Config{Origins: []string{url}, AllowPrivate: true, Retry: Retry{Tries: 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sign := func(method, name string) string {
		u, err := s.Presign(method, name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	text := "by a URL: ä b"
	if _, err := c.Upload(t.Context(), Transfer{URL: sign("PUT", "x/ä b+c")}, strings.NewReader(text), int64(len(text))); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if n, err := c.Download(t.Context(), Transfer{URL: sign("GET", "x/ä b+c")}, &out, 100); err != nil || out.String() != text || n != int64(len(text)) {
		t.Errorf("%q, %d, %v", out.String(), n, err)
	}
	wrong := strings.Replace(sign("GET", "x/other"), "other", "%C3%A4%20b%2Bc", 1)
	for name, u := range map[string]string{"method": sign("PUT", "x/ä b+c"), "name": wrong, "nothing": strings.Split(wrong, "?")[0]} {
		_, err := c.Download(t.Context(), Transfer{URL: u}, io.Discard, 100)
		wantError(t, err, pcm.Refused, "is not, or no longer, valid")
		if strings.Contains(err.Error(), "Signature=") {
			t.Errorf("%s: shows the URL's signature: %v", name, err)
		}
	}
	_, err = s.Presign("GET", "x", 8*24*time.Hour)
	wantError(t, err, pcm.Invalid, "seven days")
}

func TestWrongKey(t *testing.T) {
	s, _ := newStore(t, s3Servers(t)["strict"], func(c *Config, _ *S3) {
		c.Secrets = secrets(t, map[string]string{"access": "AKIDSTORE", "secret": "wr0ng-secret"})
	})
	err := s.Put(t.Context(), "x", strings.NewReader("1"), 1)
	wantError(t, err, pcm.Refused, "SignatureDoesNotMatch", "secret (file:")
}

// TestBrokenTransfer: a download goes on where it broke off, if the object is
// still the same.
func TestBrokenTransfer(t *testing.T) {
	data := make([]byte, 1<<20)
	_, _ = rand.Read(data)
	var calls atomic.Int32
	change := atomic.Bool{}
	h := func(w http.ResponseWriter, r *http.Request) {
		n := calls.Add(1)
		tag := `"one"`
		if change.Load() && n > 1 {
			tag = `"two"`
		}
		w.Header().Set("ETag", tag)
		if n <= 2 {
			// The promised length is not kept.
			cut := httptest.NewRecorder()
			http.ServeContent(cut, r, "x", time.Time{}, bytes.NewReader(data))
			for k, vs := range cut.Header() {
				w.Header()[k] = vs
			}
			w.Header().Set("ETag", tag)
			w.WriteHeader(cut.Code)
			_, _ = w.Write(cut.Body.Bytes()[:min(300<<10, cut.Body.Len())])
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(data))
	}
	b := newBench(t, h)
	var out bytes.Buffer
	if n, err := b.Download(t.Context(), Transfer{URL: b.URL}, &out, 1<<20); err != nil || n != 1<<20 || !bytes.Equal(out.Bytes(), data) || calls.Load() != 3 {
		t.Errorf("%d bytes, %d calls, %v", n, calls.Load(), err)
	}
	calls.Store(0)
	change.Store(true)
	if _, err := b.Download(t.Context(), Transfer{URL: b.URL}, io.Discard, 1<<20); err == nil {
		t.Error("pieces of two objects were put together")
	}
}

// TestUploadTriedAgain: each try sends the whole body.
func TestUploadTriedAgain(t *testing.T) {
	data := make([]byte, 2<<20)
	_, _ = rand.Read(data)
	var calls atomic.Int32
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		if calls.Add(1) < 3 {
			_, _ = io.CopyN(io.Discard, r.Body, 100)
			panic(http.ErrAbortHandler)
		}
		if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, data) {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
	})
	if _, err := b.Upload(t.Context(), Transfer{URL: b.URL}, bytes.NewReader(data), int64(len(data))); err != nil || calls.Load() != 3 {
		t.Errorf("%d calls, %v", calls.Load(), err)
	}
	_, err := b.Upload(t.Context(), Transfer{URL: b.URL}, bytes.NewReader(nil), 6<<30)
	wantError(t, err, pcm.TooLarge, "5GiB")
}

// TestSlowTransfer: who sends a byte now and then is left.
func TestSlowTransfer(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			fmt.Fprint(w, "x")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(20 * time.Millisecond):
			case <-r.Context().Done():
			}
		}
	}, func(c *Config) { c.Timeout, c.Retry.Tries = 300*time.Millisecond, 1 })
	_, err := b.Download(t.Context(), Transfer{URL: b.URL}, io.Discard, 1<<20)
	wantError(t, err, pcm.Unavailable, "moves less than 32KiB")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = b.Download(ctx, Transfer{URL: b.URL}, io.Discard, 1<<20)
	wantError(t, err, pcm.Unavailable, "given up")
}

// TestLyingStore: names that lead elsewhere, sizes and digests that are not so,
// lists without an end.
func TestLyingStore(t *testing.T) {
	list := func(more string, keys ...string) string {
		text := `<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>` + more
		for _, k := range keys {
			text += "<Contents><Key>" + k + "</Key><Size>1</Size></Contents>"
		}
		return text + "</ListBucketResult>"
	}
	var answer atomic.Value
	var pages atomic.Int32
	s, _ := newStore(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := strings.ReplaceAll(answer.Load().(string), "PAGE", fmt.Sprint(pages.Add(1)))
		if strings.HasPrefix(text, "sum ") {
			w.Header().Set("X-Amz-Meta-Pcm-Sha256", "00")
		}
		_, _ = io.WriteString(w, text)
	}))
	for text, want := range map[string]string{
		list("", "f/../../etc/passwd"):                 "no name",
		list("", "f//x"):                               "no name",
		list("", "f/."):                                "no name",
		list("", `f/a\b`):                              "backslash",
		list("", "f/a&#10;b"):                          "control character",
		list("", "elsewhere/x"):                        "does not belong",
		list("", "f/a", "f/a"):                         "twice",
		list("", "f/a", "f/a/b"):                       "a file and a folder",
		list("", "f/a/b", "f/a"):                       "a file and a folder",
		list("<IsTruncated>true</IsTruncated>", "f/a"): "does not say where",
		list("<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>", "f/PAGE"):    "does not say where",
		list("<IsTruncated>true</IsTruncated><NextContinuationToken>PAGE</NextContinuationToken>", "f/PAGE"): "more than 50",
		"{}":               "not the XML",
		"<a>" + "<b>" + "": "not the XML",
	} {
		answer.Store(text)
		_, err := s.List(t.Context(), "f", 50)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	to := t.TempDir()
	answer.Store(list("", "f/../x"))
	if _, _, err := s.GetTree(t.Context(), "f", to, 100); err == nil {
		t.Error("a name that leads outside was fetched")
	}
	answer.Store(list("", "f/a")) // which is far more than the one byte that it says
	_, _, err := s.GetTree(t.Context(), "f", to, 1000)
	wantError(t, err, pcm.TooLarge)
	answer.Store("sum is wrong")
	_, err = s.Get(t.Context(), "a", io.Discard, 1000)
	wantError(t, err, pcm.Unavailable, "not what was stored")
	for _, name := range []string{"", ".", "..", "/a", "a/", "a/../b", "a\x00", strings.Repeat("a", 901), "a\\b", "\xff"} {
		if err := s.Put(t.Context(), name, strings.NewReader(""), 0); name != "" && pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestStoreAddress(t *testing.T) {
	for _, c := range []struct{ endpoint, bucket, style, want string }{
		{"https://s3.eu-central-1.amazonaws.com", "b-1", "", "https://b-1.s3.eu-central-1.amazonaws.com/x"},
		{"https://obs.cn-north-4.myhuaweicloud.com/", "b-1", "", "https://b-1.obs.cn-north-4.myhuaweicloud.com/x"},
		{"https://minio.site:9000", "b-1", "", "https://minio.site:9000/b-1/x"},
		{"https://minio.site/s3", "b-1", "path", "https://minio.site/s3/b-1/x"},
		{"https://store.site", "b-1", "host", "https://b-1.store.site/x"},
	} {
		s, err := NewStore(Config{}, S3{Endpoint: c.endpoint, Bucket: c.bucket, Style: c.style, AccessKey: "a", SecretKey: "b"})
		if err != nil {
			t.Error(err)
		} else if got := s.url("x").String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.endpoint, got, c.want)
		}
	}
	for _, where := range []S3{{Endpoint: "host", Bucket: "bbb"}, {Endpoint: "https://h", Bucket: "a/b"}, {Endpoint: "https://h", Bucket: "bbb", Style: "x"}, {Endpoint: "https://h", Bucket: "bbb"}} {
		_, err := NewStore(Config{}, where)
		wantError(t, err, pcm.Invalid)
	}
}
