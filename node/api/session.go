package api

import (
	"bufio"
	"encoding/binary"
	"io"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
)

// A session is an operation on a running task that needs both directions: a
// command beside it, a copy, a connection. It is a stream of frames, the same
// from the client to the seller's peer: the peers between only pass them on.
//
// A frame is one byte of kind, three of length, and that many bytes. The client
// begins with a request. The answer begins with ready and ends with exit, or it
// is an error. An empty frame of stdin or stdout is the end of that direction.

// SessionProtocol is what a request to upgrade a connection to a session asks for.
const SessionProtocol = "pcm-session/1"

// FrameKind says what a frame holds.
type FrameKind byte

// The kinds.
const (
	FrameRequest FrameKind = iota + 1 // a [SessionRequest]
	FrameReady                        // it has begun
	FrameStdin                        // to the task
	FrameStdout                       // from the task
	FrameStderr
	FrameResize // rows and columns, two bytes each
	FrameExit   // the exit code, one byte: the end
	FrameError  // a [pcm.Error]: the end
	FrameAlive  // nothing: the other side is there
)

// Bounds of a session.
const (
	maxFrame          = 64 << 10         // bytes in a frame; more is sent in several
	sessionAlive      = 15 * time.Second // how often each side shows that it is there
	sessionSilence    = time.Minute      // without a frame from the other side, the session ends
	sessionStuck      = 5 * time.Minute  // that the other side may leave a frame unread
	sessionIdle       = 2 * time.Hour    // without data in either direction
	sessionLongest    = 24 * time.Hour   // in all
	sessionBegin      = 30 * time.Second // for the request to come
	MaxSessionRequest = 48 << 10         // bytes of a request
)

// SessionOp is what a session does.
type SessionOp string

// The operations.
const (
	OpExec    SessionOp = "exec"     // a command beside the task
	OpCopyOut SessionOp = "copy_out" // a file or folder as a tar stream
	OpCopyIn  SessionOp = "copy_in"  // a tar stream into a folder
	OpDial    SessionOp = "dial"     // a connection to the task's service
	OpSuspend SessionOp = "suspend"
	OpResume  SessionOp = "resume"
	OpLook    SessionOp = "look" // how the task is: a [Live] in JSON, on stdout
)

// Feature is what a pool must be able to do for the operation; "" for one that all can do.
func (o SessionOp) Feature() pcm.Feature {
	switch o {
	case OpExec:
		return pcm.FeatureExec
	case OpCopyOut, OpCopyIn:
		return pcm.FeatureCopy
	case OpDial:
		return pcm.FeatureService
	case OpSuspend, OpResume:
		return pcm.FeatureSuspend
	}
	return ""
}

// SessionRequest is how a session begins.
type SessionRequest struct {
	Op      SessionOp `cbor:"1,keyasint"`
	Command []string  `cbor:"2,keyasint,omitempty"` // to exec
	TTY     bool      `cbor:"3,keyasint,omitempty"`
	Stdin   bool      `cbor:"4,keyasint,omitempty"` // the client sends some
	Rows    uint16    `cbor:"5,keyasint,omitempty"`
	Cols    uint16    `cbor:"6,keyasint,omitempty"`
	Path    string    `cbor:"7,keyasint,omitempty"` // to copy from, or the folder to copy into; in the task's working folder
	Port    int       `cbor:"8,keyasint,omitempty"` // to dial; 0: the service's
}

// Check finds what is wrong with a request, whatever the task.
func (r SessionRequest) Check() error {
	switch r.Op {
	case OpExec:
		size := 0
		for _, w := range r.Command {
			if size += len(w) + 1; !utf8.ValidString(w) || strings.ContainsRune(w, 0) {
				return pcm.Errorf(pcm.Invalid, "%.80q, a word of the command, holds a NUL character or isn't UTF-8", w)
			}
		}
		if len(r.Command) == 0 || r.Command[0] == "" || len(r.Command) > pcm.MaxArgs || size > MaxSessionRequest/2 {
			return pcm.Errorf(pcm.Invalid, "a command to run in a task has 1 to %d words and at most %d bytes; this one has %d words and %d bytes", pcm.MaxArgs, MaxSessionRequest/2, len(r.Command), size)
		}
	case OpCopyOut, OpCopyIn:
		if !LocalPath(r.Path) {
			return pcm.Errorf(pcm.Invalid, "%.200q leads out of the task's working folder: give a relative path without ..", r.Path)
		}
	case OpDial:
		if r.Port < 0 || r.Port > 65535 {
			return pcm.Errorf(pcm.Invalid, "%d is not a port: 1 to 65535, or 0 for the service's own", r.Port)
		}
	case OpSuspend, OpResume, OpLook:
	default:
		return pcm.Errorf(pcm.Invalid, "%.40q is not an operation on a running task", string(r.Op))
	}
	return nil
}

// LocalPath tells whether p stays inside a task's working folder.
func LocalPath(p string) bool {
	c := path.Clean(p)
	return p != "" && len(p) <= 4096 && utf8.ValidString(p) && !strings.ContainsAny(p, "\x00\\") && !path.IsAbs(p) && c != ".." && !strings.HasPrefix(c, "../")
}

// Live is how a task is at the peer that runs it.
type Live struct {
	ID     string    `json:"id"`    // JOB/STEP/INDEX
	State  string    `json:"state"` // of its back end: pending, running, suspended, ended
	Native string    `json:"native,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`   // when it began to run
	Health string    `json:"health,omitempty"` // of a service: starting, healthy, unhealthy
	Check  string    `json:"check,omitempty"`  // what the last health check found, if that was bad
}

// Session is one side of a stream of frames. Reading is for one goroutine;
// writing for any.
type Session struct {
	conn io.ReadWriteCloser
	r    *bufio.Reader
	wmu  sync.Mutex
	data atomic.Int64 // when data last passed, Unix ms
	once sync.Once
	done chan struct{} // closed with the session
}

// NewSession makes a session of a connection, which it closes in the end. It
// shows the other side that this one is there.
func NewSession(conn io.ReadWriteCloser) *Session {
	s := &Session{conn: conn, r: bufio.NewReaderSize(conn, 32<<10), done: make(chan struct{})}
	s.data.Store(time.Now().UnixMilli())
	go s.keep()
	return s
}

// Close ends the session at once.
func (s *Session) Close() error {
	var err error
	s.once.Do(func() {
		close(s.done)
		err = s.conn.Close()
	})
	return err
}

// Done is closed when the session is.
func (s *Session) Done() <-chan struct{} { return s.done }

// keep shows that this side is there, and ends a session that lies idle or is too old.
func (s *Session) keep() {
	begun := time.Now()
	tick := time.NewTicker(sessionAlive)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			idle := time.Since(time.UnixMilli(s.data.Load()))
			if idle > sessionIdle || time.Since(begun) > sessionLongest || s.Write(FrameAlive, nil) != nil {
				s.Close()
				return
			}
		case <-s.done:
			return
		}
	}
}

// Write sends data, in as many frames as it takes.
func (s *Session) Write(kind FrameKind, data []byte) error {
	if kind != FrameAlive {
		s.data.Store(time.Now().UnixMilli())
	}
	s.wmu.Lock()
	defer s.wmu.Unlock()
	stuck := time.AfterFunc(sessionStuck, func() { s.Close() })
	defer stuck.Stop()
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), maxFrame)
		frame := make([]byte, 4, 4+n)
		binary.BigEndian.PutUint32(frame, uint32(n))
		frame[0] = byte(kind)
		if _, err := s.conn.Write(append(frame, data[:n]...)); err != nil {
			s.Close()
			return pcm.Errorf(pcm.Unavailable, "the session broke off: %w", err)
		}
		data = data[n:]
	}
	return nil
}

// Read returns the next frame that says something. An end of the connection is an error.
func (s *Session) Read() (FrameKind, []byte, error) { return s.read(sessionSilence) }

func (s *Session) read(patience time.Duration) (FrameKind, []byte, error) {
	for {
		kind, data, err := s.next(patience)
		if err != nil {
			s.Close()
			return 0, nil, err
		}
		if kind != FrameAlive {
			s.data.Store(time.Now().UnixMilli())
			return kind, data, nil
		}
	}
}

func (s *Session) next(patience time.Duration) (FrameKind, []byte, error) {
	silent := time.AfterFunc(patience, func() { s.Close() })
	defer silent.Stop()
	var head [4]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return 0, nil, pcm.Errorf(pcm.Unavailable, "the session broke off: %w", err)
	}
	kind := FrameKind(head[0])
	head[0] = 0
	size := binary.BigEndian.Uint32(head[:])
	if kind < FrameRequest || kind > FrameAlive || size > maxFrame {
		return 0, nil, pcm.Errorf(pcm.Invalid, "a frame of kind %d with %d bytes is not of %s", kind, size, SessionProtocol)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(s.r, data); err != nil {
		return 0, nil, pcm.Errorf(pcm.Unavailable, "the session broke off: %w", err)
	}
	return kind, data, nil
}

// ReadRequest reads the frame that begins a session into v, as a CBOR value.
func (s *Session) ReadRequest(v any) error {
	kind, data, err := s.read(sessionBegin)
	if err != nil {
		return err
	}
	if kind != FrameRequest || len(data) > MaxSessionRequest {
		return pcm.Errorf(pcm.Invalid, "a session begins with a request of at most %d bytes, not with a frame of kind %d with %d", MaxSessionRequest, kind, len(data))
	}
	return pcm.Unmarshal(data, v)
}

// Fail ends the session with an error, which the other side reads.
func (s *Session) Fail(err error) {
	s.Write(FrameError, pcm.MustMarshal(pcm.AsError(err))) // who has gone reads nothing
}

// frameError reads an error frame.
func frameError(data []byte) error {
	var e pcm.Error
	if err := pcm.Unmarshal(data, &e); err != nil || e.Message == "" {
		return pcm.Errorf(pcm.Unavailable, "the session ended with an error that can't be read")
	}
	text := strings.Map(func(r rune) rune { // it comes from another peer, and is shown on a terminal
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, e.Message)
	return &pcm.Error{Code: e.Code, Message: text}
}

// writer sends what is written to it as frames of one kind.
type frameWriter struct {
	s    *Session
	kind FrameKind
}

func (w frameWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // an empty frame would be the end
	}
	if err := w.s.Write(w.kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
