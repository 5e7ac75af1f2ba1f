package plugin

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

const (
	roleCall = 30 * time.Second
	chunk    = 64 << 10
)

// role is the way to a plug-in that has the role.
func (a *Adapter) role(name string) (*link, error) {
	l, made, err := a.reach()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(made.Roles, name) {
		return nil, pcm.Errorf(pcm.Refused, "plug-in %s can't %s", a.cfg.Name, name)
	}
	return l, nil
}

// Suspend implements adapters.Suspender.
func (a *Adapter) Suspend(ctx context.Context, k adapters.Key) error {
	l, err := a.role("suspend")
	if err != nil {
		return err
	}
	_, err = call[pluginpb.SuspendRequest, pluginpb.SuspendResponse](ctx, l, "Suspend", roleCall, &pluginpb.SuspendRequest{Key: k.String()})
	return err
}

// Resume implements adapters.Suspender.
func (a *Adapter) Resume(ctx context.Context, k adapters.Key) error {
	l, err := a.role("suspend")
	if err != nil {
		return err
	}
	_, err = call[pluginpb.ResumeRequest, pluginpb.ResumeResponse](ctx, l, "Resume", roleCall, &pluginpb.ResumeRequest{Key: k.String()})
	return err
}

// streams ends a plug-in's stream with whoever uses it.
func bidi[Req, Res any](ctx context.Context, l *link, method string) *connect.BidiStreamForClient[Req, Res] {
	return connect.NewClient[Req, Res](l.http, service+method, l.opts...).CallBidiStream(ctx)
}

// Exec implements adapters.Execer.
func (a *Adapter) Exec(ctx context.Context, k adapters.Key, x adapters.Exec) (int, error) {
	l, err := a.role("exec")
	if err != nil {
		return 0, err
	}
	if len(x.Command) == 0 {
		return 0, pcm.Errorf(pcm.Invalid, "no command to run beside attempt %s", k)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := bidi[pluginpb.ExecRequest, pluginpb.ExecResponse](ctx, l, "Exec")
	defer s.CloseResponse()
	var sending sync.Mutex // requests go one by one
	send := func(m *pluginpb.ExecRequest) error {
		sending.Lock()
		defer sending.Unlock()
		return s.Send(m)
	}
	start := &pluginpb.ExecStart{
		Key: k.String(), Command: x.Command, Tty: x.TTY, Stdin: x.Stdin != nil,
		Size: &pluginpb.TerminalSize{Rows: uint32(x.Rows), Columns: uint32(x.Cols)},
	}
	send(&pluginpb.ExecRequest{Message: &pluginpb.ExecRequest_Start{Start: start}}) // its failure shows below
	if x.Stdin == nil && x.Resize == nil {
		s.CloseRequest()
	}
	if x.Stdin != nil {
		go func() {
			buf := make([]byte, chunk)
			for {
				n, err := x.Stdin.Read(buf)
				if n > 0 && send(&pluginpb.ExecRequest{Message: &pluginpb.ExecRequest_Stdin{Stdin: slices.Clone(buf[:n])}}) != nil {
					return
				}
				if err != nil {
					sending.Lock()
					s.CloseRequest()
					sending.Unlock()
					return
				}
			}
		}()
	}
	if x.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-x.Resize:
					if !ok || send(&pluginpb.ExecRequest{Message: &pluginpb.ExecRequest_Resize{Resize: &pluginpb.TerminalSize{Rows: uint32(size[0]), Columns: uint32(size[1])}}}) != nil {
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	stdout, stderr := cmp.Or[io.Writer](x.Stdout, io.Discard), cmp.Or[io.Writer](x.Stderr, io.Discard)
	for {
		m, err := s.Receive()
		if err != nil {
			return 0, l.broken("Exec", err)
		}
		switch m := m.Message.(type) {
		case *pluginpb.ExecResponse_Stdout:
			_, err = stdout.Write(m.Stdout)
		case *pluginpb.ExecResponse_Stderr:
			_, err = stderr.Write(m.Stderr)
		case *pluginpb.ExecResponse_ExitCode:
			if m.ExitCode < 0 || m.ExitCode > 255 {
				return 0, pcm.Errorf(pcm.Internal, "plug-in %s told an exit code of %d", a.cfg.Name, m.ExitCode)
			}
			return int(m.ExitCode), nil
		}
		if err != nil { // nobody reads any more
			return 0, pcm.Errorf(pcm.Unavailable, "the output of the command beside attempt %s can't be passed on: %w", k, err)
		}
	}
}

// broken is the error of a stream; one that ends too early is the plug-in's fault.
func (l *link) broken(method string, err error) error {
	if errors.Is(err, io.EOF) {
		return pcm.Errorf(pcm.Unavailable, "plug-in %s ended %s before it was done", l.name, method)
	}
	return l.fault(method, err)
}

// CopyOut implements adapters.Copier.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, path string, w io.Writer) error {
	l, err := a.role("copy")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := connect.NewClient[pluginpb.CopyOutRequest, pluginpb.CopyOutResponse](l.http, service+"CopyOut", l.opts...).CallServerStream(ctx,
		connect.NewRequest(&pluginpb.CopyOutRequest{Key: k.String(), Path: path}))
	if err != nil {
		return l.fault("CopyOut", err)
	}
	defer s.Close()
	for s.Receive() {
		if _, err := w.Write(s.Msg().Data); err != nil {
			return pcm.Errorf(pcm.Unavailable, "what is copied out of attempt %s can't be passed on: %w", k, err)
		}
	}
	if err := s.Err(); err != nil {
		return l.fault("CopyOut", err)
	}
	return nil
}

// CopyIn implements adapters.Copier.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	l, err := a.role("copy")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := connect.NewClient[pluginpb.CopyInRequest, pluginpb.CopyInResponse](l.http, service+"CopyIn", l.opts...).CallClientStream(ctx)
	first := &pluginpb.CopyInRequest{Key: k.String(), Folder: folder}
	buf := make([]byte, chunk)
	for err := s.Send(first); err == nil; {
		var n int
		n, err = r.Read(buf)
		if n > 0 {
			if serr := s.Send(&pluginpb.CopyInRequest{Data: slices.Clone(buf[:n])}); serr != nil {
				break // the answer says why
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return pcm.Errorf(pcm.Unavailable, "what is to be copied into attempt %s can't be read: %w", k, err)
		}
	}
	if _, err := s.CloseAndReceive(); err != nil {
		return l.fault("CopyIn", err)
	}
	return nil
}

// Dial implements adapters.Dialer.
func (a *Adapter) Dial(ctx context.Context, k adapters.Key, port int) (net.Conn, error) {
	l, err := a.role("dial")
	if err != nil {
		return nil, err
	}
	if port < 1 || port > 65535 {
		return nil, pcm.Errorf(pcm.Invalid, "%d is not a port", port)
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the connection outlives the call
	s := bidi[pluginpb.DialRequest, pluginpb.DialResponse](life, l, "Dial")
	made := make(chan error, 1)
	go func() {
		err := s.Send(&pluginpb.DialRequest{Key: k.String(), Port: uint32(port)})
		if _, rerr := s.Receive(); rerr != nil {
			err = l.broken("Dial", rerr)
		} else if err != nil {
			err = l.broken("Dial", err)
		}
		made <- err
	}()
	limit := time.NewTimer(roleCall)
	defer limit.Stop()
	select {
	case err = <-made:
	case <-ctx.Done():
		err = pcm.Errorf(pcm.Unavailable, "port %d of attempt %s was not reached in time", port, k)
	case <-limit.C:
		err = pcm.Errorf(pcm.Unavailable, "port %d of attempt %s was not reached within %s", port, k, roleCall)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	ours, theirs := net.Pipe()
	go func() { // to the plug-in
		buf := make([]byte, chunk)
		for {
			n, err := theirs.Read(buf)
			if n > 0 && s.Send(&pluginpb.DialRequest{Data: slices.Clone(buf[:n])}) != nil {
				break
			}
			if err != nil {
				break
			}
		}
		s.CloseRequest()
	}()
	go func() { // and back
		defer cancel()
		for {
			m, err := s.Receive()
			if err != nil {
				break
			}
			if _, err := theirs.Write(m.Data); err != nil {
				break
			}
		}
		theirs.Close()
	}()
	return &conn{Conn: ours, end: cancel}, nil
}

// conn is one end of a connection that goes through a plug-in.
type conn struct {
	net.Conn
	end context.CancelFunc
}

// Close ends both directions.
func (c *conn) Close() error {
	err := c.Conn.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil
	}
	c.end()
	return err
}
