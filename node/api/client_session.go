package api

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// session opens a session with a task. The context bounds all of it.
func (c *Client) session(ctx context.Context, id, step string, index int, r SessionRequest) (*Session, func() bool, error) {
	if err := r.Check(); err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+taskURL(id, step, index)+"/session", nil)
	if err != nil {
		return nil, nil, pcm.Errorf(pcm.Invalid, "can't make the request of a session: %w", err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", SessionProtocol)
	resp, err := c.sendRequest(ctx, req)
	if err != nil {
		return nil, nil, err
	}
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
		resp.Body.Close()
		return nil, nil, pcm.Errorf(pcm.Unavailable, "%s did not make the connection a session (%s): is its pcm older than this one?", c.where, resp.Status)
	}
	s := NewSession(conn)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	if err := s.Write(FrameRequest, pcm.MustMarshal(r)); err != nil {
		stop()
		return nil, nil, err
	}
	return s, stop, nil
}

// receive reads the answer of a session to its end and returns its exit code.
func receive(ctx context.Context, s *Session, stdout, stderr io.Writer) (int, error) {
	defer s.Close()
	for {
		kind, data, err := s.Read()
		if err != nil {
			if ctx.Err() != nil {
				err = pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
			}
			return 0, err
		}
		switch kind {
		case FrameStdout:
			_, err = stdout.Write(data)
		case FrameStderr:
			_, err = stderr.Write(data)
		case FrameExit:
			if len(data) != 1 {
				return 0, pcm.Errorf(pcm.Invalid, "the session ended without an exit code")
			}
			return int(data[0]), nil
		case FrameError:
			return 0, frameError(data)
		}
		if err != nil {
			return 0, pcm.Errorf(pcm.Unavailable, "can't write what came: %w", err)
		}
	}
}

// send copies r to the other side, with its end.
func (s *Session) send(r io.Reader) {
	if _, err := io.CopyBuffer(frameWriter{s, FrameStdin}, struct{ io.Reader }{r}, make([]byte, 32<<10)); err == nil {
		s.Write(FrameStdin, nil) // a session that is over needs no end
	}
}

// Exec runs a command beside a running task and returns its exit code.
func (c *Client) Exec(ctx context.Context, id, step string, index int, x ExecRequest) (int, error) {
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{
		Op: OpExec, Command: x.Command, TTY: x.TTY, Stdin: x.Stdin != nil, Rows: x.Rows, Cols: x.Cols,
	})
	if err != nil {
		return 0, err
	}
	defer stop()
	if x.Stdin != nil {
		go s.send(x.Stdin)
	}
	if x.Resize != nil {
		go func() {
			for {
				select {
				case size := <-x.Resize:
					if s.Write(FrameResize, []byte{byte(size[0] >> 8), byte(size[0]), byte(size[1] >> 8), byte(size[1])}) != nil {
						return
					}
				case <-s.Done():
					return
				}
			}
		}()
	}
	return receive(ctx, s, orDiscard(x.Stdout), orDiscard(x.Stderr))
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// CopyOut writes a file or folder of a running task to w as a tar stream.
func (c *Client) CopyOut(ctx context.Context, id, step string, index int, path string, w io.Writer) error {
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{Op: OpCopyOut, Path: path})
	if err != nil {
		return err
	}
	defer stop()
	_, err = receive(ctx, s, w, io.Discard)
	return err
}

// CopyIn unpacks a tar stream into a folder of a running task.
func (c *Client) CopyIn(ctx context.Context, id, step string, index int, folder string, r io.Reader) error {
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{Op: OpCopyIn, Path: folder})
	if err != nil {
		return err
	}
	defer stop()
	broken := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(frameWriter{s, FrameStdin}, struct{ io.Reader }{r}, make([]byte, 32<<10))
		if err == nil {
			err = s.Write(FrameStdin, nil)
		}
		if err != nil { // of r: the other side must not take a part for the whole
			broken <- err
			s.Close()
		}
	}()
	_, err = receive(ctx, s, io.Discard, io.Discard)
	select {
	case cause := <-broken:
		if pcm.ErrorCode(err) == pcm.Unavailable {
			return cause
		}
	default:
	}
	return err
}

// DialTask connects to the service of a running task; port 0 is the service's own.
// The context bounds the connection, not only its making.
func (c *Client) DialTask(ctx context.Context, id, step string, index, port int) (net.Conn, error) {
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{Op: OpDial, Port: port})
	if err != nil {
		return nil, err
	}
	kind, data, err := s.Read()
	switch {
	case err != nil:
	case kind == FrameError:
		err = frameError(data)
	case kind != FrameReady:
		err = pcm.Errorf(pcm.Invalid, "the session began with a frame of kind %d", kind)
	}
	if err != nil {
		stop()
		s.Close()
		return nil, err
	}
	return &sessionConn{s: s, stop: stop}, nil
}

// sessionConn is a connection within a session. It has no deadlines.
type sessionConn struct {
	s    *Session
	stop func() bool
	mu   sync.Mutex
	rest []byte
	err  error
}

func (c *sessionConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.rest) == 0 {
		if c.err != nil {
			return 0, c.err
		}
		kind, data, err := c.s.Read()
		switch {
		case err != nil:
			c.err = err
		case kind == FrameError:
			c.err = frameError(data)
		case kind == FrameExit, kind == FrameStdout && len(data) == 0:
			c.err = io.EOF
		case kind == FrameStdout:
			c.rest = data
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *sessionConn) Write(p []byte) (int, error) { return frameWriter{c.s, FrameStdin}.Write(p) }

// CloseWrite tells the service that nothing more comes.
func (c *sessionConn) CloseWrite() error { return c.s.Write(FrameStdin, nil) }

func (c *sessionConn) Close() error {
	c.stop()
	return c.s.Close()
}

type sessionAddr struct{}

func (sessionAddr) Network() string { return "pcm" }
func (sessionAddr) String() string  { return "task" }

func (c *sessionConn) LocalAddr() net.Addr              { return sessionAddr{} }
func (c *sessionConn) RemoteAddr() net.Addr             { return sessionAddr{} }
func (c *sessionConn) SetDeadline(time.Time) error      { return net.ErrClosed }
func (c *sessionConn) SetReadDeadline(time.Time) error  { return net.ErrClosed }
func (c *sessionConn) SetWriteDeadline(time.Time) error { return net.ErrClosed }

// Suspend halts a running task, or lets it go on.
func (c *Client) Suspend(ctx context.Context, id, step string, index int, suspend bool) error {
	op := OpResume
	if suspend {
		op = OpSuspend
	}
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{Op: op})
	if err != nil {
		return err
	}
	defer stop()
	_, err = receive(ctx, s, io.Discard, io.Discard)
	return err
}

// Look asks the peer that runs a task how it is.
func (c *Client) Look(ctx context.Context, id, step string, index int) (v Live, err error) {
	s, stop, err := c.session(ctx, id, step, index, SessionRequest{Op: OpLook})
	if err != nil {
		return v, err
	}
	defer stop()
	var b bytes.Buffer
	if _, err = receive(ctx, s, &b, io.Discard); err != nil {
		return v, err
	}
	if err := json.Unmarshal(b.Bytes(), &v); err != nil {
		return v, pcm.Errorf(pcm.Invalid, "the peer's word on the task can't be read: %w", err)
	}
	return v, nil
}
