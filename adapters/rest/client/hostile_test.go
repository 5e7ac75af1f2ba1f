package client

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// rawServer answers each connection's first request with bytes of a test's own.
func rawServer(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					serve(c)
				}
			}()
		}
	}()
	return "http://" + l.Addr().String()
}

// flood writes until the other side has enough of it.
func flood(c net.Conn, text string) (sent int64) {
	chunk := []byte(strings.Repeat(text, 1+(32<<10)/len(text)))
	for sent < 4<<30 {
		n, err := c.Write(chunk)
		if sent += int64(n); err != nil {
			return sent
		}
	}
	return sent
}

// trickle writes a piece now and then, until the other side has enough of it.
func trickle(c net.Conn, text string) {
	for {
		if _, err := io.WriteString(c, text); err != nil {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
}

// TestHostileServers: each is left in time, with a reason, without reading or
// keeping much.
func TestHostileServers(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	chunked := head + "Transfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct {
		name  string
		slow  bool // it is time that ends it
		serve func(net.Conn)
		want  string
	}{
		{"says nothing", true, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, " within "},
		{"slow headers", true, func(c net.Conn) { _, _ = io.WriteString(c, head); trickle(c, "A: b\r\n") }, " within "},
		{"slow body", true, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: 1000000\r\n\r\n"); trickle(c, "1") }, " within "},
		{"slow chunks", true, func(c net.Conn) { _, _ = io.WriteString(c, chunked); trickle(c, "1\r\n1\r\n") }, " within "},
		{"early hints for ever", true, func(c net.Conn) { trickle(c, "HTTP/1.1 103 Early Hints\r\n\r\n") }, ""},
		{"continue for ever", true, func(c net.Conn) { trickle(c, "HTTP/1.1 100 Continue\r\n\r\n") }, ""},
		{"flood of early hints", false, func(c net.Conn) { flood(c, "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n") }, ""},
		{"endless headers", false, func(c net.Conn) { _, _ = io.WriteString(c, head); flood(c, "A: b\r\n") }, "exceeded"},
		{"endless header", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"A: "); flood(c, "b") }, "exceeded"},
		{"endless status", false, func(c net.Conn) { flood(c, "H") }, ""},
		{"endless body", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"\r\n"); flood(c, " ") }, "over the bound of 1MiB"},
		{"endless chunks", false, func(c net.Conn) { _, _ = io.WriteString(c, chunked); flood(c, "8\r\n        \r\n") }, "over the bound of 1MiB"},
		{"endless trailer", false, func(c net.Conn) { _, _ = io.WriteString(c, chunked+"0\r\n"); flood(c, "A: b\r\n") }, ""},
		{"endless chunk extension", false, func(c net.Conn) { _, _ = io.WriteString(c, chunked+"1;"); flood(c, "a") }, ""},
		{"huge length", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: 9000000000000000000\r\n\r\n{}") }, "cut short"},
		{"shorter than it says", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: 100\r\n\r\n{}") }, "cut short"},
		{"negative length", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: -1\r\n\r\n{}") }, ""},
		{"two lengths", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}") }, ""},
		{"cut in a chunk", false, func(c net.Conn) { _, _ = io.WriteString(c, chunked+"ff\r\n{}") }, "cut short"},
		{"no HTTP", false, func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-OpenSSH\r\n") }, "malformed"},
		{"switches protocols", false, func(c net.Conn) {
			_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
		}, "another protocol"},
		{"unasked packing", false, func(c net.Conn) { _, _ = io.WriteString(c, head+"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}") }, "packed as"},
		{"false packing", false, func(c net.Conn) {
			_, _ = io.WriteString(c, head+"Content-Encoding: gzip\r\nContent-Length: 12\r\n\r\n{          }")
		}, "packed by gzip, and is not"},
		{"bomb", false, func(c net.Conn) {
			_, _ = io.WriteString(c, head+"Content-Encoding: gzip\r\n\r\n")
			z, _ := gzip.NewWriterLevel(c, gzip.BestCompression)
			flood(writeConn{c, z}, "\x00")
		}, "over the bound of 1MiB"},
		{"bomb of empty members", false, func(c net.Conn) {
			var empty bytes.Buffer
			_ = gzip.NewWriter(&empty).Close()
			_, _ = io.WriteString(c, head+"Content-Encoding: gzip\r\n\r\n")
			flood(c, empty.String())
		}, "over the bound of 1MiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			address := rawServer(t, c.serve)
			timeout := time.Minute
			if c.slow {
				timeout = 300 * time.Millisecond
			}
			client, err := New(Config{Origins: []string{address}, AllowPrivate: true, MaxBody: 1 << 20, Timeout: timeout, Retry: Retry{Tries: 1}})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			began := time.Now()
			resp, err := client.Do(t.Context(), Request{URL: address})
			if pcm.ErrorCode(err) != pcm.Unavailable && pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), c.want) || resp != nil && len(resp.Body) > 0 {
				t.Errorf("%+v, %v; want %q", resp, err, c.want)
			}
			if took := time.Since(began); took > 50*time.Second {
				t.Errorf("it took %s", took)
			}
			if err != nil && (len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\r\n")) {
				t.Errorf("unclean: %q", err)
			}
		})
	}
}

// writeConn is a connection that packs what is written.
type writeConn struct {
	net.Conn
	w io.Writer
}

func (w writeConn) Write(p []byte) (int, error) { return w.w.Write(p) }

// TestMemory: hostile answers leave nothing behind.
func TestMemory(t *testing.T) {
	var bomb bytes.Buffer
	z, _ := gzip.NewWriterLevel(&bomb, gzip.BestCompression)
	_, _ = z.Write(make([]byte, 8<<20))
	_ = z.Close()
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes())
	}, func(c *Config) { c.MaxBody, c.Trace, c.Retry.Tries = 1<<20, nil, 1 })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		_, err := b.Do(t.Context(), Request{URL: b.URL})
		wantError(t, err, pcm.Unavailable, "over the bound of 1MiB")
	}
	runtime.ReadMemStats(&after)
	// Growing buffers cost a few times the bound.
	if each := (after.TotalAlloc - before.TotalAlloc) / 10; each > 12<<20 {
		t.Errorf("each bomb cost %d bytes", each)
	}
}

func TestHostileJSON(t *testing.T) {
	var body, kind atomic.Value
	kind.Store("application/json")
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind.Load().(string))
		_, _ = io.WriteString(w, body.Load().(string))
	})
	answer := func(text string) (any, error) {
		body.Store(text)
		resp, err := b.Do(t.Context(), Request{URL: b.URL})
		if err != nil {
			t.Fatal(err)
		}
		return resp.JSON()
	}
	for text, want := range map[string]string{
		strings.Repeat("[", 10000) + strings.Repeat("]", 10000): "64 levels",
		strings.Repeat(`{"a":`, 10000):                          "64 levels",
		`{"a":1,"b":{"c":1,"c":2}}`:                             `"c" twice`,
		`{"a":1,"\u0061":2}`:                                    `"a" twice`,
		`{"a":1`:                                                "ends too early",
		`{"a":1} {"a":2}`:                                       "more behind",
		`{"a":01}`:                                              "no valid JSON",
		`{'a':1}`:                                               "no valid JSON",
		`[1,]`:                                                  "no valid JSON",
		`{"a" 1}`:                                               "no valid JSON",
		`NaN`:                                                   "no valid JSON",
		strings.Repeat("1", 100_000):                            "100000 digits",
		"[" + strings.Repeat("0,", maxValues) + "0]": "200000 values",
	} {
		if v, err := answer(text); v != nil || pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"1e400": "1e400", "-0.10": "-0.10", "18446744073709551617": "18446744073709551617", "\ufefftrue": "true", `"\ud800"`: "\ufffd",
	} {
		if v, err := answer(text); err != nil || fmt.Sprint(v) != want {
			t.Errorf("%s: %v, %v", text, v, err)
		}
	}
	if v, err := answer(" \n"); v != nil || err != nil {
		t.Errorf("nothing: %v, %v", v, err)
	}
	kind.Store("text/html; charset=utf-8")
	_, err := answer("<html>Please log in</html>")
	wantError(t, err, pcm.Unavailable, "text/html", "not JSON")
	kind.Store("text/plain")
	if v, err := answer(`{"a":1}`); err != nil || v == nil {
		t.Errorf("JSON under another name: %v, %v", v, err)
	}
}

// FuzzJSON holds the reader against the standard library's, which is slower, and
// knows neither doubled keys nor bounds.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"a":[1,2.5e3,"x\u00e9",null,true,false]}`, `[[[]]]`, `{"a":{"a":1}}`, `"`, `{`, `[1,]`, `{"a":1,}`, `"\"`, `"\\"`, "\"\xff\"", "\"\t\"", `01`, `-`, `1.`, `1e`, `-0.0E+07`,
		` { "a" : [ ] } `, `nul`, `"\ud83d\ude00\ud800"`, "\ufeff1", `1 2`, `{"a":1,"\u0061":2}`, `[}`, `{]`, `{1:2}`, `"\x"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := decodeJSON(data)
		d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
		d.UseNumber()
		var w any
		werr := d.Decode(&w)
		if werr == nil {
			_, werr = d.Token()
			if werr == io.EOF {
				werr = nil
			} else {
				werr = errors.New("there is more")
			}
		}
		switch {
		case err == nil && (werr != nil || !reflect.DeepEqual(v, w)):
			t.Fatalf("%q is %#v, by the standard library %#v, %v", data, v, w, werr)
		case err != nil && werr == nil && pcm.ErrorCode(err) != pcm.TooLarge && !strings.Contains(err.Error(), "twice"):
			t.Fatalf("%q is %#v, and not taken: %v", data, w, err)
		}
	})
}

func TestRedirects(t *testing.T) {
	var other atomic.Pointer[http.Request]
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		other.Store(r)
		_, _ = io.WriteString(w, "elsewhere")
	}))
	defer elsewhere.Close()
	tlsServer := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }))
	defer tlsServer.Close()
	var calls atomic.Int32
	h := func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		if to := r.URL.Query().Get("to"); to != "" {
			w.Header().Set("Location", to)
			w.WriteHeader(http.StatusFound)
			return
		}
		fmt.Fprintf(w, "here %s", r.Header.Get("Authorization"))
	}
	b := newBench(t, h, func(c *Config) {
		c.Secrets, c.Login = secrets(t, map[string]string{"key": "the-key"}), Login{Kind: BearerToken, Token: "key"}
	})
	get := func(to string) (*Response, error) {
		calls.Store(0)
		return b.Do(t.Context(), Request{URL: b.URL + "/", Query: url.Values{"to": {to}}, Header: http.Header{"X-Own": {"1"}}})
	}
	if resp, err := get("/there?x=1"); err != nil || string(resp.Body) != "here Bearer the-key" || resp.URL != b.URL+"/there" {
		t.Errorf("the same server: %+v, %v", resp, err)
	}
	for to, want := range map[string]string{
		elsewhere.URL:                              "not a public one",
		"http://localhost:1/":                      "not a public one",
		"http://[::1]:1/":                          "not a public one",
		"http://[::ffff:127.0.0.1]:1/":             "not a public one",
		"http://10.1.2.3/":                         "not a public one",
		"http://169.254.169.254/latest/meta-data/": "metadata service",
		"http://[fd00:ec2::254]/":                  "metadata service",
		"http://[64:ff9b::a9fe:a9fe]/":             "metadata service",
		"http://0.0.0.0:1/":                        "not that of a server",
		"//169.254.169.254/":                       "metadata service",
		"ftp://host/":                              "not of the form",
		"file:///etc/passwd":                       "not of the form",
		"http://me:pw@host/":                       "has a user or password",
		"http://h/%zz":                             "address that is none",
	} {
		other.Store(nil)
		resp, err := get(to)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "pw") {
			t.Errorf("%s: %+v, %v; want %q", to, resp, err, want)
		}
		if other.Load() != nil {
			t.Errorf("%s: it went there", to)
		}
	}
	// Round in a circle.
	loop := "/?to=" + url.QueryEscape("/?to="+url.QueryEscape("/?to="+url.QueryEscape("/?to="+url.QueryEscape("/?to=%2F"))))
	_, err := get(loop)
	wantError(t, err, pcm.Refused, "more than 3 times")
	if calls.Load() != 4 {
		t.Errorf("%d calls", calls.Load())
	}
	_, err = b.Do(t.Context(), Request{Method: "POST", URL: b.URL + "/?to=/x", Idempotent: true})
	wantError(t, err, pcm.Refused, "followed for GET only")

	// An address that the site named gets the log-in, but none that is only public: nothing of ours goes there.
	b.trust(mustURL(t, elsewhere.URL))
	if resp, err := get(elsewhere.URL + "/a?b=c"); err != nil || string(resp.Body) != "elsewhere" {
		t.Errorf("%+v, %v", resp, err)
	} else if r := other.Load(); r.Header.Get("Authorization") != "" || r.Header.Get("X-Own") != "" || r.RequestURI != "/a?b=c" {
		t.Errorf("sent on %s %v", r.RequestURI, r.Header)
	}
	if strings.Contains(b.seen(), "the-key") {
		t.Error("shows the key")
	}

	// From HTTPS to HTTP.
	c, err := New(Config{Origins: []string{tlsServer.URL}, AllowPrivate: true, Retry: Retry{Tries: 1}})
	if err != nil {
		t.Fatal(err)
	}
	c.open = tlsServer.Client().Transport
	_, err = c.Do(t.Context(), Request{URL: tlsServer.URL})
	wantError(t, err, pcm.Refused, "from HTTPS to HTTP")
}

// TestGuard: without leave, no address of an inner network is dialled, whatever
// its name says.
func TestGuard(t *testing.T) {
	var calls atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "127.1.2.3", "[::ffff:7f00:1]"} {
		address := "https://" + host + ":" + port
		c, err := New(Config{Origins: []string{address}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Do(t.Context(), Request{URL: address})
		wantError(t, err, pcm.Refused, "not a public one", "allow_private")
		if !Unsent(err) {
			t.Errorf("%s: something was sent", host)
		}
		_, err = c.Do(t.Context(), Request{URL: "http://" + host + ":" + port, Anonymous: true})
		wantError(t, err, pcm.Refused, "is not HTTPS")
	}
	t.Setenv("HTTPS_PROXY", srv.URL)
	t.Setenv("HTTP_PROXY", srv.URL)
	c, err := New(Config{Origins: []string{"https://10.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Do(t.Context(), Request{URL: "https://10.0.0.1"})
	wantError(t, err, pcm.Refused, "not a public one")
	if calls.Load() != 0 {
		t.Errorf("%d calls came through", calls.Load())
	}
}

func TestAddresses(t *testing.T) {
	for text, want := range map[string]string{
		"8.8.8.8": "public", "2606:4700::1111": "public", "64:ff9b::808:808": "public", "172.32.0.1": "public",
		"127.0.0.1": "inner", "10.0.0.1": "inner", "172.16.0.1": "inner", "192.168.1.1": "inner", "169.254.1.1": "inner", "100.64.0.1": "inner",
		"198.18.0.1": "inner", "240.0.0.1": "inner", "0.1.2.3": "inner", "::1": "inner", "fe80::1": "inner", "fe80::1%eth0": "inner", "fc00::1": "inner",
		"fec0::1": "inner", "2001:db8::1": "inner", "2002:7f00:1::": "inner", "::7f00:1": "inner", "::ffff:10.0.0.1": "inner", "64:ff9b::a00:1": "inner",
		"169.254.169.254": "never", "::ffff:169.254.169.254": "never", "100.100.100.200": "never", "fd00:ec2::254": "never", "2002:a9fe:a9fe::": "never",
		"0.0.0.0": "never", "::": "never", "224.0.0.1": "never", "ff02::1": "never", "255.255.255.255": "never",
	} {
		a := netip.MustParseAddr(text)
		got := "public"
		if checkAddress(a, false) != nil {
			got = "inner"
		}
		if checkAddress(a, true) != nil {
			got = "never"
		}
		if got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// TestStorm: a server that refuses everything, and wants to be left alone for
// thirty years, holds nobody for so long.
func TestStorm(t *testing.T) {
	var calls atomic.Int32
	for _, after := range []string{"1e9", "1000000000", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT", "-5", "soon", "NaN", "Inf"} {
		b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
			calls.Add(1)
			w.Header().Set("Retry-After", after)
			w.WriteHeader(http.StatusTooManyRequests)
		})
		calls.Store(0)
		began := time.Now()
		_, err := b.Do(t.Context(), Request{URL: b.URL})
		wantError(t, err, pcm.Busy, "429")
		if took := time.Since(began); took > 30*time.Second || calls.Load() > 4 {
			t.Errorf("%s: %d calls in %s", after, calls.Load(), took)
		}
		if n := calls.Load(); (after == "1e9" || strings.HasPrefix(after, "Fri")) && (n != 1 || !strings.Contains(err.Error(), "left alone for")) {
			t.Errorf("%s: %d calls: %v", after, n, err)
		}
	}
}

// TestQueue: more callers than there is room for are sent away.
func TestQueue(t *testing.T) {
	b := newBench(t, func(http.ResponseWriter, *http.Request) {})
	b.waiting.Store(maxWaiting)
	_, err := b.Do(t.Context(), Request{URL: b.URL})
	wantError(t, err, pcm.Busy, "1024 calls wait")
	b.waiting.Store(0)
	if _, err := b.Do(t.Context(), Request{URL: b.URL}); err != nil || b.waiting.Load() != 0 {
		t.Errorf("%d wait, %v", b.waiting.Load(), err)
	}
}

// TestAhead: what can't wait is kept back neither by calls that wait for their turn,
// nor by such as are not answered.
func TestAhead(t *testing.T) {
	answer := make(chan struct{})
	b := newBench(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/log" {
			<-answer
		}
	}, func(cfg *Config) { cfg.Rate, cfg.Burst = 2, 2*maxConns })
	var waiting sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); close(answer); waiting.Wait() }()
	const many = 500
	for range many {
		waiting.Go(func() { b.Do(ctx, Request{URL: b.URL + "/log"}) })
	}
	for end := time.Now().Add(time.Minute); b.waiting.Load() < many || b.limiter.Tokens() > 0; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("they don't wait")
		}
	}
	quick, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	if _, err := b.Do(Ahead(quick), Request{URL: b.URL + "/kill", Method: "POST"}); err != nil {
		t.Error(err)
	}
}

// TestUnasked: what a server says without being asked does not come to the log,
// where net/http would write it.
func TestUnasked(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "the server's own words\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	lines := make(chan string, 100)
	before := log.Writer()
	defer log.SetOutput(before)
	log.SetOutput(quieter{lineWriter(lines)})
	address := "http://" + l.Addr().String()
	c, err := New(Config{Origins: []string{address}, AllowPrivate: true, Retry: Retry{First: time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// Each connection is a race between the server's words and the request.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if _, err := c.Do(t.Context(), Request{URL: address}); err == nil {
			t.Fatal("that was no answer")
		}
		select {
		case line := <-lines:
			if strings.Contains(line, "own words") {
				t.Errorf("the log has %q", line)
			}
			if strings.HasSuffix(line, string(unsolicited)+"\n") {
				return
			}
		default:
		}
	}
	t.Error("net/http writes no such line any more: is there a need for this?")
}

type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	select {
	case w <- string(p):
	default:
	}
	return len(p), nil
}
