package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/jointcloud/pcm"
)

// errorTrailer is the HTTP trailer that carries, as JSON, the error that cut a
// stream short after its first byte.
const errorTrailer = "Pcm-Error"

// keepAlive is how often an idle event stream carries a comment, so that both
// sides notice when the other is gone.
const keepAlive = 15 * time.Second

func (s *Server) streamRoutes() {
	type logsQuery struct {
		TaskPath
		Stream string `query:"stream" enum:"stdout,stderr" default:"stdout" doc:"Which of the task's outputs."`
		Follow bool   `query:"follow" doc:"Stay until the task's attempt ends."`
	}
	streamRoute(s, "/v1/jobs/{id}/tasks/{step}/{index}/logs", "task-logs", "What a task writes, as it writes it", "text/plain", true,
		func(ctx context.Context, in *logsQuery, w io.Writer) error {
			t, step, err := s.task(ctx, in.TaskPath)
			if err != nil {
				return err
			}
			rc, err := s.node.Logs(ctx, t.Job, step, t.Index, in.Stream, in.Follow)
			if err != nil {
				return err
			}
			defer rc.Close()
			defer context.AfterFunc(ctx, func() { rc.Close() })()
			if _, err = w.Write(nil); err != nil { // the answer begins now, not with the first output
				return err
			}
			_, err = io.CopyBuffer(w, struct{ io.Reader }{rc}, make([]byte, 32<<10))
			return err
		})
	streamRoute(s, "/v1/jobs/{id}/tasks/{step}/{index}/output", "task-output", "A task's results as a tar archive: stdout, stderr, out/…", "application/x-tar", true,
		func(ctx context.Context, in *TaskPath, w io.Writer) error {
			t, step, err := s.task(ctx, *in)
			if err != nil {
				return err
			}
			return s.node.Fetch(ctx, t.Job, step, t.Index, w)
		})
	type changesQuery struct {
		Kind []string `query:"kind" maxItems:"32" doc:"Only changes of these kinds, separated by commas." example:"ended"`
		Job  string   `query:"job" maxLength:"64" doc:"Only changes of this job."`
	}
	streamRoute(s, "/v1/changes", "changes", "What changes, as server-sent events: each event's data is a Change in JSON", "text/event-stream", false,
		func(ctx context.Context, in *changesQuery, w io.Writer) error {
			return s.changes(ctx, in.Kind, in.Job, w)
		})
	s.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[Change](), true, "Change")
}

// streamRoute registers an operation that writes its answer bit by bit. What run
// returns before its first Write becomes an ordinary error answer. Its context
// ends with the client, or when the server shuts down.
func streamRoute[I any](s *Server, path, id, summary, contentType string, secret bool, run func(context.Context, *I, io.Writer) error) {
	schema := &huma.Schema{Type: huma.TypeString}
	if strings.HasPrefix(contentType, "application/") {
		schema.Format = "binary"
	}
	op := huma.Operation{
		OperationID: id, Method: http.MethodGet, Path: path, Summary: summary,
		Responses: map[string]*huma.Response{"200": {
			Description: "OK", Content: map[string]*huma.MediaType{contentType: {Schema: schema}},
		}},
	}
	if secret {
		op.Security = []map[string][]string{{"token": {}}}
	}
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*huma.StreamResponse, error) {
		if secret {
			if err := mayReadSecrets(ctx); err != nil {
				return nil, errorBody(err)
			}
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			r, w := humago.Unwrap(hc)
			select {
			case s.streams <- struct{}{}:
				defer func() { <-s.streams }()
			default:
				writeError(w, newErrorBody(pcm.Busy, fmt.Sprintf("%d streams are open already, no more are served: close some", maxStreams)))
				return
			}
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			go func() {
				select {
				case <-s.closing:
					cancel()
				case <-ctx.Done():
				}
			}()
			sw := &streamWriter{w: w, rc: http.NewResponseController(w), contentType: contentType}
			sw.finish(s.streamError(ctx, id, run(ctx, in, sw)))
		}}, nil
	})
}

func (s *Server) streamError(ctx context.Context, op string, err error) error {
	if err == nil {
		return nil
	}
	select {
	case <-s.closing:
		return pcm.Errorf(pcm.Unavailable, "the node is ending")
	default:
		return s.fail(ctx, op, err)
	}
}

// streamWriter sends each Write at once. The answer's head goes out with the first.
type streamWriter struct {
	w           http.ResponseWriter
	rc          *http.ResponseController
	contentType string
	begun       bool
}

func (s *streamWriter) Write(b []byte) (int, error) {
	s.rc.SetWriteDeadline(time.Now().Add(writeTimeout)) // not every writer has deadlines
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", s.contentType)
		s.w.Header().Set("Trailer", errorTrailer)
		s.w.WriteHeader(http.StatusOK)
	}
	n, err := s.w.Write(b)
	if err == nil {
		err = s.rc.Flush()
	}
	s.rc.SetWriteDeadline(time.Time{}) // a stream may be silent for long
	return n, err
}

func (s *streamWriter) finish(err error) {
	s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	switch {
	case err != nil && !s.begun:
		writeError(s.w, errorBody(err))
	case err != nil:
		if text, jerr := json.Marshal(errorBody(err)); jerr == nil {
			s.w.Header().Set(errorTrailer, string(text))
		}
	case !s.begun:
		s.Write(nil)
	}
}

// changes writes server-sent events until ctx ends or this reader is too slow.
func (s *Server) changes(ctx context.Context, kinds []string, typed string, w io.Writer) error {
	job, err := s.optionalJob(ctx, typed)
	if err != nil {
		return err
	}
	ch, err := s.node.Changes(ctx)
	if err != nil {
		return err
	}
	// This first comment tells the client that it misses nothing from now on.
	if _, err := io.WriteString(w, ": following\n\n"); err != nil {
		return err
	}
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		select {
		case c, ok := <-ch:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return pcm.Errorf(pcm.Busy, "this reader was too slow and missed changes: read the state and follow again")
			}
			if (job != "" && c.Job != job) || (len(kinds) > 0 && !slices.Contains(kinds, c.Kind)) {
				continue
			}
			data, err := json.Marshal(c)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "id: %s\ndata: %s\n\n", oneLine(c.ID), data); err != nil {
				return err
			}
		case <-alive.C:
			if _, err := io.WriteString(w, ": alive\n\n"); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// oneLine keeps an ID from starting a line of its own in an event stream.
func oneLine(s string) string { return strings.NewReplacer("\n", "", "\r", "", "\x00", "").Replace(s) }
