package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Who may do what:
//
//   - Over the unix socket everything: its mode (0600, in a folder of mode 0700)
//     lets in the node's own user and root, who could read the token anyway.
//   - Over TCP, views are open to whoever reaches the loopback address. Whatever
//     changes something, and logs and outputs, which may hold secrets, needs the token.
//   - A browser is turned away unless it shows a page of this very server: the Host
//     header must be exact (against DNS rebinding) and the Origin its own.

// maxBody bounds a request's body. A spec has at most [pcm.MaxSpec] bytes; JSON
// may need more for the same.
const maxBody = 2 * pcm.MaxSpec

const (
	bodyTimeout  = 30 * time.Second // for a whole body to arrive
	writeTimeout = 60 * time.Second // for an answer, or one piece of a stream, to be taken
	maxInFlight  = 256              // ordinary requests at once; more are told to come back
	maxStreams   = 256              // event streams and followed logs at once
)

type (
	unixConn   struct{} // context key: the connection came over the unix socket
	authorized struct{} // context key: the request may do everything
)

// connContext marks connections over the unix socket.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if c.LocalAddr().Network() == "unix" {
		return withCaller(context.WithValue(ctx, unixConn{}, true), c)
	}
	return ctx
}

func overUnix(ctx context.Context) bool { return ctx.Value(unixConn{}) != nil }

// guard is what every request passes first.
func (s *Server) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w = newTimedWriter(w)
		defer s.recoverPanic(w, r)
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		trusted, err := s.admit(r)
		if err != nil {
			writeError(w, errorBody(err))
			return
		}
		if trusted {
			r = r.WithContext(context.WithValue(r.Context(), authorized{}, true))
		}
		select {
		case s.inFlight <- struct{}{}:
			defer func() { <-s.inFlight }()
		default:
			writeError(w, newErrorBody(pcm.Busy, "the node is answering many requests: try again in a moment"))
			return
		}
		if err := readBody(w, r); err != nil {
			writeError(w, errorBody(err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// admit judges a request by its Host, Origin and token, and tells whether it
// may do everything. What changes something must be; see [mayReadSecrets] for the rest.
func (s *Server) admit(r *http.Request) (trusted bool, err error) {
	unix := overUnix(r.Context())
	if !unix && !slices.Contains(s.hosts(r), strings.ToLower(r.Host)) {
		return false, pcm.Errorf(pcm.Forbidden, "host %q is not this API: use the address it listens on, or add the name to api_hosts", r.Host)
	}
	if origin := r.Header.Get("Origin"); origin != "" && (unix || !strings.EqualFold(origin, "http://"+r.Host)) {
		return false, pcm.Errorf(pcm.Forbidden, "origin %q is another site: only pages of this API may call it", origin)
	}
	switch site := r.Header.Get("Sec-Fetch-Site"); site {
	case "", "none", "same-origin":
	default:
		return false, pcm.Errorf(pcm.Forbidden, "the request comes from a page of another site (%s): only pages of this API may call it", site)
	}
	if unix {
		return true, nil
	}
	if header := r.Header.Get("Authorization"); header != "" {
		given, _ := strings.CutPrefix(header, "Bearer ")
		a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(s.cfg.Token))
		if s.cfg.Token == "" || subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
			return false, pcm.Errorf(pcm.Unauthorized, "the token is wrong: the right one stands in file %q of the node's data folder", TokenFile)
		}
		return true, nil
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return false, noToken()
	}
	return false, nil
}

func noToken() error {
	return pcm.Errorf(pcm.Unauthorized, "this needs the token in file %q of the node's data folder: give the CLI --data or PCM_TOKEN, or send 'Authorization: Bearer TOKEN'", TokenFile)
}

// mayReadSecrets refuses a request without token that asks for logs or outputs.
func mayReadSecrets(ctx context.Context) error {
	if ctx.Value(authorized{}) == nil {
		return noToken()
	}
	return nil
}

// hosts lists the Host headers that name this server: the address that the
// connection came in on, localhost if that is a loopback address, and what was configured.
func (s *Server) hosts(r *http.Request) []string {
	hosts := slices.Clone(s.cfg.Hosts)
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		hosts = append(hosts, local.String())
		if local.IP.IsLoopback() {
			_, port, _ := net.SplitHostPort(local.String())
			hosts = append(hosts, net.JoinHostPort("localhost", port))
		}
	}
	return hosts
}

// readBody takes the whole body in, within its bound and its time, so that a
// handler never waits for a slow client and a read deadline never cuts a handler short.
func readBody(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	tooLarge := func(size string) error {
		return pcm.Errorf(pcm.TooLarge, "the request has %s, at most %s are taken: a spec names large data as inputs, it does not hold it", size, pcm.Bytes(maxBody))
	}
	if r.ContentLength > maxBody {
		return tooLarge(pcm.Bytes(r.ContentLength).String())
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // not every writer has deadlines; the bound on size holds then
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	rc.SetReadDeadline(time.Time{})
	if err != nil {
		return pcm.Errorf(pcm.Invalid, "the request's body broke off after %d bytes: %w", len(body), err)
	}
	if len(body) > maxBody {
		return tooLarge("more than " + pcm.Bytes(maxBody).String())
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// recoverPanic turns a bug in one request into an answer of that request.
func (s *Server) recoverPanic(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(v) // net/http's own way to cut a connection
	}
	s.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", string(debug.Stack()))
	writeError(w, newErrorBody(pcm.Internal, "this request met a bug in the node; its log says more"))
}

// router answers what no route matches in the API's own error form.
func router(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h, pattern := mux.Handler(r)
		if pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		probe := &statusProbe{header: http.Header{}}
		h.ServeHTTP(probe, r)
		if probe.status == http.StatusMethodNotAllowed {
			w.Header().Set("Allow", probe.header.Get("Allow"))
			e := newErrorBody(pcm.Invalid, r.Method+" is not possible on "+r.URL.Path+"; possible: "+probe.header.Get("Allow"))
			e.status = http.StatusMethodNotAllowed
			writeError(w, e)
			return
		}
		writeError(w, newErrorBody(pcm.NotFound, "there is nothing at "+r.URL.Path+"; /openapi.json lists what there is"))
	})
}

// statusProbe keeps only the status and headers that a handler sets.
type statusProbe struct {
	header http.Header
	status int
}

func (p *statusProbe) Header() http.Header         { return p.header }
func (p *statusProbe) Write(b []byte) (int, error) { return len(b), nil }
func (p *statusProbe) WriteHeader(status int)      { p.status = status }

// timedWriter bounds how long a client may take to take an answer, counted from
// the answer's first byte: a handler itself may work for longer than that.
type timedWriter struct {
	http.ResponseWriter
	begun bool
}

func newTimedWriter(w http.ResponseWriter) *timedWriter {
	http.NewResponseController(w).SetWriteDeadline(time.Time{}) // that of the connection's previous answer
	return &timedWriter{ResponseWriter: w}
}

func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *timedWriter) begin() {
	if !t.begun {
		t.begun = true
		http.NewResponseController(t.ResponseWriter).SetWriteDeadline(time.Now().Add(writeTimeout))
	}
}

func (t *timedWriter) WriteHeader(status int) {
	t.begin()
	t.ResponseWriter.WriteHeader(status)
}

func (t *timedWriter) Write(b []byte) (int, error) {
	t.begin()
	return t.ResponseWriter.Write(b)
}
