package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"

	"github.com/jointcloud/pcm"
)

// ExecRequest is a command to run beside a task.
type ExecRequest struct {
	Command    []string
	TTY        bool
	Rows, Cols uint16
	Stdin      io.Reader
	Stdout     io.Writer
	Stderr     io.Writer
	Resize     <-chan [2]uint16 // rows, columns
}

// SessionHandler does what sessions ask for, with one task.
type SessionHandler interface {
	Exec(ctx context.Context, x ExecRequest) (code int, err error)
	CopyOut(ctx context.Context, path string, w io.Writer) error
	CopyIn(ctx context.Context, folder string, r io.Reader) error
	Dial(ctx context.Context, port int) (net.Conn, error)
	Suspend(ctx context.Context, suspend bool) error
	Look(ctx context.Context) (Live, error)
}

var errGone = pcm.Errorf(pcm.Unavailable, "the client has gone")

// ServeSession carries out one session whose request was read and checked. It
// returns when the session is over; ctx ends it early. The error is what the
// client was told.
func ServeSession(ctx context.Context, s *Session, r SessionRequest, h SessionHandler) (code int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(ctx, func() { s.Close() })()
	go func() { // whoever is busy with the task does not see that the client has gone
		select {
		case <-s.Done():
			cancel(errGone)
		case <-ctx.Done():
		}
	}()
	in := &sessionInput{s: s, resize: make(chan [2]uint16, 4), cancel: cancel}
	in.r, in.w = io.Pipe()
	defer in.r.CloseWithError(io.ErrClosedPipe) // lets go of take
	switch r.Op {
	case OpExec:
		if err = s.Write(FrameReady, nil); err != nil {
			return 0, err
		}
		go in.take()
		x := ExecRequest{
			Command: r.Command, TTY: r.TTY, Rows: r.Rows, Cols: r.Cols, Resize: in.resize,
			Stdout: frameWriter{s, FrameStdout}, Stderr: frameWriter{s, FrameStderr},
		}
		if r.Stdin || r.TTY {
			x.Stdin = in.r
		} else {
			in.r.CloseWithError(io.ErrClosedPipe)
		}
		code, err = h.Exec(ctx, x)
	case OpCopyOut:
		go in.take()
		err = h.CopyOut(ctx, r.Path, frameWriter{s, FrameStdout})
	case OpCopyIn:
		if err = s.Write(FrameReady, nil); err != nil {
			return 0, err
		}
		go in.take()
		err = h.CopyIn(ctx, r.Path, in.r)
	case OpDial:
		err = serveDial(ctx, s, r.Port, h, in)
	case OpSuspend, OpResume:
		err = h.Suspend(ctx, r.Op == OpSuspend)
	case OpLook:
		var v Live
		var raw []byte
		if v, err = h.Look(ctx); err == nil {
			if raw, err = json.Marshal(v); err == nil {
				err = s.Write(FrameStdout, raw)
			}
		}
	default:
		err = r.Check()
	}
	if err != nil {
		if ctx.Err() != nil && context.Cause(ctx) != nil {
			err = pcm.Errorf(pcm.Unavailable, "the session ended: %w", context.Cause(ctx))
		}
		s.Fail(err)
		return 0, err
	}
	return code, s.Write(FrameExit, []byte{byte(min(max(code, 0), 255))})
}

// sessionInput takes what the client sends.
type sessionInput struct {
	s      *Session
	r      *io.PipeReader
	w      *io.PipeWriter
	resize chan [2]uint16
	cancel context.CancelCauseFunc
}

// take hands the client's frames on until it goes away, which ends the session.
func (in *sessionInput) take() {
	for {
		kind, data, err := in.s.Read()
		if err != nil {
			in.w.CloseWithError(err)
			in.cancel(err)
			return
		}
		switch kind {
		case FrameStdin:
			if len(data) == 0 {
				in.w.Close()
				continue
			}
			in.w.Write(data) // whoever reads may have closed: what still comes is dropped
		case FrameResize:
			if len(data) != 4 {
				continue
			}
			size := [2]uint16{binary.BigEndian.Uint16(data), binary.BigEndian.Uint16(data[2:])}
			select {
			case in.resize <- size:
			default: // who does not look at sizes gets the next one
			}
		default:
			err := pcm.Errorf(pcm.Invalid, "a client does not send frames of kind %d", kind)
			in.w.CloseWithError(err)
			in.cancel(err)
			return
		}
	}
}

// serveDial connects client and service.
func serveDial(ctx context.Context, s *Session, port int, h SessionHandler, in *sessionInput) error {
	conn, err := h.Dial(ctx, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := s.Write(FrameReady, nil); err != nil {
		return err
	}
	go in.take()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.Copy(conn, in.r) // a service that reads no more may still answer
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			half.CloseWrite()
		}
	}()
	_, err = io.Copy(frameWriter{s, FrameStdout}, conn)
	if err == nil {
		// It answers no more. Connections that are open in one direction only are
		// not worth keeping: the client's side ends with this frame as well.
		err = s.Write(FrameStdout, nil)
	}
	in.r.CloseWithError(io.ErrClosedPipe)
	conn.Close()
	<-sent
	if err != nil && ctx.Err() == nil {
		err = pcm.Errorf(pcm.Unavailable, "the connection to the service broke: %w", err)
	}
	return err
}
