package kubernetes

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	gorilla "github.com/gorilla/websocket"
)

// tunnel is a connection to a port of a pod. It implements net.Conn.
type tunnel struct {
	s *session

	read   sync.Mutex
	left   io.Reader // of the frame that is being read
	begun  [2]int    // bytes of the port's number that have come, by channel
	failed error
}

var _ net.Conn = (*tunnel)(nil)

func (t *tunnel) Read(p []byte) (int, error) {
	t.read.Lock()
	defer t.read.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if t.failed != nil {
			return 0, t.failed
		}
		if t.left == nil {
			if err := t.next(); err != nil {
				t.failed = err
				continue
			}
		}
		if t.left == nil {
			continue
		}
		n, err := t.left.Read(p)
		if errors.Is(err, io.EOF) {
			t.left, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// next takes the next frame.
func (t *tunnel) next() error {
	kind, r, err := t.s.conn.NextReader()
	if err != nil {
		var closed *gorilla.CloseError
		if errors.As(err, &closed) {
			return io.EOF
		}
		return err
	}
	var channel [1]byte
	if _, err := io.ReadFull(r, channel[:]); err != nil || kind != gorilla.BinaryMessage || channel[0] > 1 {
		return nil
	}
	var number [2]byte
	if c := channel[0]; t.begun[c] < 2 {
		n, err := io.ReadFull(r, number[t.begun[c]:])
		t.begun[c] += n
		if err != nil {
			return nil
		}
	}
	if channel[0] == 0 {
		t.left = r
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(r, 4096))
	if err == nil && len(text) > 0 {
		return errors.New(string(text))
	}
	return err
}

func (t *tunnel) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, frameSize)
		if err := t.s.write(0, p[done:done+n]); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}

func (t *tunnel) Close() error                       { return t.s.conn.Close() }
func (t *tunnel) LocalAddr() net.Addr                { return t.s.conn.LocalAddr() }
func (t *tunnel) RemoteAddr() net.Addr               { return t.s.conn.RemoteAddr() }
func (t *tunnel) SetReadDeadline(at time.Time) error { return t.s.conn.SetReadDeadline(at) }

// SetWriteDeadline is that of each write; see session.
func (t *tunnel) SetWriteDeadline(at time.Time) error { return t.s.conn.SetWriteDeadline(at) }

func (t *tunnel) SetDeadline(at time.Time) error {
	return errors.Join(t.SetReadDeadline(at), t.SetWriteDeadline(at))
}
