package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/jointcloud/pcm"
)

// maxSessions bounds the sessions that are open through this API at once.
const maxSessions = 256

func (s *Server) sessionRoutes() {
	const id = "task-session"
	op := huma.Operation{
		OperationID: id, Method: http.MethodGet, Path: "/v1/jobs/{id}/tasks/{step}/{index}/session",
		Summary: "Work with a running task: a command beside it, copies, connections",
		Description: "Upgrades the connection (Connection: Upgrade, Upgrade: " + SessionProtocol + ") to a stream of frames: one byte of kind, three of length, then the content. " +
			"The client begins with a request (kind 1, CBOR); then go stdin (3) and sizes of the terminal (6) one way, ready (2), stdout (4), stderr (5), and at the end exit (7) or error (8) the other way. " +
			"An empty stdin or stdout ends that direction. Both sides send an empty frame of kind 9 every 15 s.",
		Security:  []map[string][]string{{"token": {}}},
		Responses: map[string]*huma.Response{"101": {Description: "The connection is a session now"}},
	}
	huma.Register(s.huma, op, func(ctx context.Context, in *TaskPath) (*huma.StreamResponse, error) {
		if err := mayReadSecrets(ctx); err != nil {
			return nil, errorBody(err)
		}
		t, step, err := s.task(ctx, *in)
		if err != nil {
			return nil, s.fail(ctx, id, err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			select {
			case s.sessions <- struct{}{}:
				defer func() { <-s.sessions }()
			default:
				writeError(w, newErrorBody(pcm.Busy, fmt.Sprintf("%d sessions with tasks are open already, no more are served: close some", maxSessions)))
				return
			}
			s.session(r, w, t.Job, step, t.Index)
		}}, nil
	})
}

func (s *Server) session(r *http.Request, w http.ResponseWriter, job pcm.JobID, step, index int) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), SessionProtocol) {
		e := newErrorBody(pcm.Invalid, "this needs the headers 'Connection: Upgrade' and 'Upgrade: "+SessionProtocol+"'; 'pcm exec', 'pcm cp' and 'pcm port-forward' send them")
		e.status = http.StatusUpgradeRequired
		writeError(w, e)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, newErrorBody(pcm.Internal, "this connection can't be upgraded: "+err.Error()))
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Time{})
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", SessionProtocol); err != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context())) // that of a hijacked request tells nothing more
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	go func() {
		select {
		case <-s.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := s.node.Session(ctx, job, step, index, hijacked{conn, buffered.Reader, &sync.Once{}}); err != nil && !errors.Is(err, context.Canceled) {
		s.log.Debug("a session ended", "job", job, "step", step, "index", index, "err", err)
	}
}

// hijacked is a connection of which the server may have read some already.
type hijacked struct {
	net.Conn
	r    *bufio.Reader
	once *sync.Once
}

// drainTime is how long a client may take to see the end of a session.
const drainTime = 2 * time.Second

// Close lets the client read what was written last: a connection that is closed
// with something unread in it is cut.
func (h hijacked) Close() (err error) {
	h.once.Do(func() {
		h.SetDeadline(time.Now().Add(drainTime))
		if half, ok := h.Conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			io.Copy(io.Discard, h.Conn)
		}
		err = h.Conn.Close()
	})
	return err
}

func (h hijacked) Read(p []byte) (int, error) { return h.r.Read(p) }
