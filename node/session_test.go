package node

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// workEnd is a back end whose attempts can be worked with.
type workEnd struct {
	*slowEnd
	held  chan struct{} // an exec of "hold" waits for it
	ended chan error    // and says why it ended
	put   bytes.Buffer
}

func (e *workEnd) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	switch x.Command[0] {
	case "cat":
		_, err := io.Copy(x.Stdout, x.Stdin)
		return 0, err
	case "size":
		size := <-x.Resize
		x.Stdout.Write([]byte{byte(size[0]), byte(size[1])})
		return 0, nil
	case "fail":
		io.WriteString(x.Stderr, "no")
		return 300, nil
	case "hold":
		close(e.held)
		<-ctx.Done()
		e.ended <- context.Cause(ctx)
		return 0, ctx.Err()
	}
	return 0, pcm.Errorf(pcm.Refused, "no program %s", x.Command[0])
}

func (e *workEnd) CopyOut(_ context.Context, _ adapters.Key, path string, w io.Writer) error {
	_, err := io.WriteString(w, strings.Repeat(path, 100_000))
	return err
}

func (e *workEnd) CopyIn(_ context.Context, _ adapters.Key, folder string, r io.Reader) error {
	e.put.WriteString(folder + ":")
	_, err := io.Copy(&e.put, r)
	return err
}

func (e *workEnd) Dial(context.Context, adapters.Key, int) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		io.Copy(far, far)
	}()
	return near, nil
}

// workingTrade is a trade of one task that runs, at a back end that can do what workEnd can.
func workingTrade(t *testing.T, st pcm.Step) (*seller, *workEnd, attemptRequest, *execution) {
	t.Helper()
	s, slow, id, x := sellingTrade(t, 1)
	st.Count = 1
	x.held.spec.Steps[0] = st
	s.n.account, x.terms.Buyer = "acc-buyer", "acc-buyer"
	end := &workEnd{slowEnd: slow, held: make(chan struct{}), ended: make(chan error, 1)}
	s.adapters["slow"] = end
	x.queue, x.running[0] = nil, &run{placed: true}
	return s, end, attemptRequest{Trade: id}, x
}

// work has a session served, and is its client's side.
func work(t *testing.T, s *seller, req attemptRequest, r api.SessionRequest, who asker) *api.Session {
	t.Helper()
	near, far := net.Pipe()
	client, server := api.NewSession(near), api.NewSession(far)
	req.Request = r
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		s.n.serveAttempt(t.Context(), server, req, who)
	}()
	t.Cleanup(func() {
		client.Close()
		<-done
		s.sessions.mu.Lock()
		defer s.sessions.mu.Unlock()
		if s.sessions.all != 0 || len(s.sessions.by) != 0 {
			t.Errorf("%d sessions are counted, with %v", s.sessions.all, s.sessions.by)
		}
	})
	return client
}

// all reads a session to its end.
func all(t *testing.T, s *api.Session) (out, errs string, code int, failure *pcm.Error) {
	t.Helper()
	for {
		kind, data, err := s.Read()
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case api.FrameStdout:
			out += string(data)
		case api.FrameStderr:
			errs += string(data)
		case api.FrameExit:
			return out, errs, int(data[0]), nil
		case api.FrameError:
			failure = new(pcm.Error)
			if err := pcm.Unmarshal(data, failure); err != nil {
				t.Fatal(err)
			}
			return out, errs, 0, failure
		}
	}
}

var buyer = asker{account: "acc-buyer", peer: "peer-buyer"}

func exec(words ...string) api.SessionRequest {
	return api.SessionRequest{Op: api.OpExec, Command: words, Stdin: true}
}

func TestSessionExec(t *testing.T) {
	s, _, req, _ := workingTrade(t, pcm.Step{})
	c := work(t, s, req, exec("cat"), buyer)
	big := bytes.Repeat([]byte("0123456789"), 30_000)
	go func() {
		c.Write(api.FrameStdin, big)
		c.Write(api.FrameStdin, nil)
	}()
	if out, _, code, err := all(t, c); out != string(big) || code != 0 || err != nil {
		t.Errorf("%d bytes, code %d, %v", len(out), code, err)
	}
	c = work(t, s, req, exec("size"), buyer)
	go c.Write(api.FrameResize, []byte{0, 50, 0, 132})
	if out, _, _, err := all(t, c); out != "\x32\x84" || err != nil {
		t.Errorf("size %q, %v", out, err)
	}
	if _, errs, code, err := all(t, work(t, s, req, exec("fail"), buyer)); errs != "no" || code != 255 || err != nil {
		t.Errorf("%q, code %d, %v", errs, code, err)
	}
	if _, _, _, err := all(t, work(t, s, req, exec("frob"), buyer)); err == nil || err.Code != pcm.Refused || err.Message != "no program frob" {
		t.Errorf("unknown program: %v", err)
	}
}

// A command ends when its client goes away, and when its attempt ends.
func TestSessionEnds(t *testing.T) {
	s, end, req, _ := workingTrade(t, pcm.Step{})
	c := work(t, s, req, exec("hold"), buyer)
	go c.Read()
	<-end.held
	c.Close()
	select {
	case err := <-end.ended:
		if err == nil {
			t.Error("it ended without a cause")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the command goes on without its client")
	}
}

func TestSessionCopies(t *testing.T) {
	s, end, req, _ := workingTrade(t, pcm.Step{})
	out, _, _, err := all(t, work(t, s, req, api.SessionRequest{Op: api.OpCopyOut, Path: "ab"}, buyer))
	if len(out) != 200_000 || err != nil {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	c := work(t, s, req, api.SessionRequest{Op: api.OpCopyIn, Path: "in"}, buyer)
	go func() {
		c.Write(api.FrameStdin, []byte("archive"))
		c.Write(api.FrameStdin, nil)
	}()
	if _, _, _, err := all(t, c); err != nil || end.put.String() != "in:archive" {
		t.Errorf("put %q, %v", end.put.String(), err)
	}
}

// What is refused, with the reason why.
func TestSessionRefusals(t *testing.T) {
	type arrangement struct {
		s   *seller
		end *workEnd
		req attemptRequest
		x   *execution
		who asker
	}
	for _, c := range []struct {
		name string
		r    api.SessionRequest
		set  func(*arrangement)
		code pcm.Code
		says string
	}{
		{"an unknown trade", exec("cat"), func(a *arrangement) { a.req.Trade = pcm.NewTradeID(pcm.NewJobID(), 1) }, pcm.NotFound, "runs here"},
		{"a task that has ended", exec("cat"), func(a *arrangement) { a.x.ended[0] = true }, pcm.Conflict, "does not run now"},
		{"a task on its way", exec("cat"), func(a *arrangement) { a.x.running[0].placed = false }, pcm.Conflict, "does not run now"},
		{"another index", exec("cat"), func(a *arrangement) { a.req.Index = -1 }, pcm.Conflict, "does not run now"},
		{"no command", exec(), nil, pcm.Invalid, "1 to 4096 words"},
		{"a command without end", exec("cat", strings.Repeat("x", api.MaxSessionRequest)), nil, pcm.Invalid, "at most"},
		{"a NUL", exec("cat", "a\x00b"), nil, pcm.Invalid, "NUL"},
		{"a path to outside", api.SessionRequest{Op: api.OpCopyOut, Path: "a/../../b"}, nil, pcm.Invalid, "leads out"},
		{"an absolute path", api.SessionRequest{Op: api.OpCopyIn, Path: "/etc"}, nil, pcm.Invalid, "leads out"},
		{"an unknown operation", api.SessionRequest{Op: "reboot"}, nil, pcm.Invalid, "reboot"},
		{"a port beyond", api.SessionRequest{Op: api.OpDial, Port: 70000}, nil, pcm.Invalid, "70000"},
		{"a back end that can't", api.SessionRequest{Op: api.OpSuspend}, nil, pcm.Refused, "can't do suspend; no pool in the mesh can"},
		{"a task that is no service", api.SessionRequest{Op: api.OpDial}, nil, pcm.Refused, "not a service"},
		{"another port", api.SessionRequest{Op: api.OpDial, Port: 22}, func(a *arrangement) {
			a.x.held.spec.Steps[0].Service = &pcm.Service{Port: 8080}
		}, pcm.Refused, "8080, not 22"},
		{"what the operator forbids", exec("cat"), func(a *arrangement) { a.s.n.cfg.Operations.Exec = PermitOff }, pcm.Refused, "allows no exec"},
		{"what is for the own account", exec("cat"), func(a *arrangement) {
			a.s.n.cfg.Operations.Exec, a.s.n.account = PermitOwn, "acc-seller"
		}, pcm.Refused, "own account's tasks only"},
		{"one session too many", exec("cat"), func(a *arrangement) {
			k := a.x.key(0)
			a.s.sessions.by[k] = maxSessionsTask
		}, pcm.Busy, "close some"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := arrangement{who: buyer}
			a.s, a.end, a.req, a.x = workingTrade(t, pcm.Step{})
			if c.set != nil {
				c.set(&a)
			}
			s := work(t, a.s, a.req, c.r, a.who)
			_, _, _, err := all(t, s)
			if err == nil || err.Code != c.code || !strings.Contains(err.Message, c.says) {
				t.Errorf("%v, want %s with %q", err, c.code, c.says)
			}
			clear(a.s.sessions.by)
		})
	}
}

// The operator of the machine may look into what runs there.
func TestSessionOfOperator(t *testing.T) {
	s, _, req, x := workingTrade(t, pcm.Step{})
	s.n.cfg.Operations.Exec, x.terms.Buyer = PermitOff, "acc-other"
	if _, errs, _, err := all(t, work(t, s, req, exec("fail"), asker{account: "acc-buyer", own: true})); err != nil || errs != "no" {
		t.Errorf("%q, %v", errs, err)
	}
}

func TestSessionDial(t *testing.T) {
	s, _, req, _ := workingTrade(t, pcm.Step{Service: &pcm.Service{Port: 8080}})
	c := work(t, s, req, api.SessionRequest{Op: api.OpDial}, buyer)
	if kind, _, err := c.Read(); kind != api.FrameReady || err != nil {
		t.Fatalf("began with %d, %v", kind, err)
	}
	go c.Write(api.FrameStdin, []byte("hello"))
	if kind, data, err := c.Read(); kind != api.FrameStdout || string(data) != "hello" || err != nil {
		t.Errorf("frame %d %q, %v", kind, data, err)
	}
}

// stuckStream is a stream whose other side reads nothing. As with QUIC's, only a
// deadline or a reset lets go of a write.
type stuckStream struct {
	network.Stream
	late chan struct{}
	once sync.Once
}

func (s *stuckStream) SetDeadline(t time.Time) error {
	if !t.After(time.Now()) {
		s.once.Do(func() { close(s.late) })
	}
	return nil
}

func (s *stuckStream) Close() error                    { return nil }
func (s *stuckStream) SetReadDeadline(time.Time) error { return nil }

func (s *stuckStream) Write([]byte) (int, error) {
	<-s.late
	return 0, os.ErrDeadlineExceeded
}

// Whoever reads nothing can't hold a session for ever.
func TestSlowReaderLetsGo(t *testing.T) {
	s := api.NewSession(closeGently{&stuckStream{late: make(chan struct{})}})
	wrote := make(chan error, 1)
	go func() { wrote <- s.Write(api.FrameStdout, []byte("hello")) }()
	s.Close()
	select {
	case err := <-wrote:
		if err == nil {
			t.Error("written, though nobody reads")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a write goes on after the session was closed")
	}
}
