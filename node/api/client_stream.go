package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Logs opens one output of a task, "stdout" or "stderr". With follow it stays
// until the task's attempt ends. A stream that breaks ends in a *pcm.Error, never in io.EOF.
func (c *Client) Logs(ctx context.Context, id, step string, index int, stream string, follow bool) (io.ReadCloser, error) {
	v := url.Values{"stream": {stream}}
	if follow {
		v.Set("follow", "true")
	}
	return c.stream(ctx, taskURL(id, step, index)+"/logs", v)
}

// Output opens a task's results as a tar archive. A stream that breaks ends in a
// *pcm.Error, never in io.EOF.
func (c *Client) Output(ctx context.Context, id, step string, index int) (io.ReadCloser, error) {
	return c.stream(ctx, taskURL(id, step, index)+"/output", nil)
}

func (c *Client) stream(ctx context.Context, path string, query url.Values) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return nil, err
	}
	return &streamReader{c: c, ctx: ctx, resp: resp}, nil
}

// streamReader turns what broke a stream into a *pcm.Error.
type streamReader struct {
	c    *Client
	ctx  context.Context // of the request, whose body this is
	resp *http.Response
}

func (s *streamReader) Close() error { return s.resp.Body.Close() }

func (s *streamReader) Read(b []byte) (int, error) {
	n, err := s.resp.Body.Read(b)
	if err == io.EOF {
		return n, trailerError(s.resp)
	}
	if err != nil {
		return n, s.c.unreachable(s.ctx, err)
	}
	return n, nil
}

// trailerError is the error that cut the stream short, else io.EOF.
func trailerError(resp *http.Response) error {
	text := resp.Trailer.Get(errorTrailer)
	if text == "" {
		return io.EOF
	}
	var e ErrorBody
	if err := json.Unmarshal([]byte(text), &e); err != nil {
		return pcm.Errorf(pcm.Internal, "the stream broke off, and its error can't be read: %w", err)
	}
	return &pcm.Error{Code: e.Fault.Code, Message: e.Fault.Message}
}

// ChangeFilter picks changes. The zero value picks all.
type ChangeFilter struct {
	Kinds []string
	Job   pcm.JobID
}

const maxEvent = 1 << 20 // bytes of one server-sent event's line

// Changes follows what changes. When it returns, the node has begun: no later
// change is missed. The sequence ends with an error, at the latest that of ctx;
// pcm.Busy means that this reader was too slow and has to read the state anew.
func (c *Client) Changes(ctx context.Context, f ChangeFilter) (iter.Seq2[Change, error], error) {
	v := url.Values{}
	if len(f.Kinds) > 0 {
		v.Set("kind", strings.Join(f.Kinds, ","))
	}
	if f.Job != "" {
		v.Set("job", string(f.Job))
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/changes", v, nil)
	if err != nil {
		return nil, err
	}
	return func(yield func(Change, error) bool) {
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(make([]byte, 0, 4096), maxEvent)
		for lines.Scan() {
			data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
			if !ok {
				continue
			}
			var ch Change
			if err := json.Unmarshal(data, &ch); err != nil {
				yield(ch, pcm.Errorf(pcm.Internal, "can't read a change: %w", err))
				return
			}
			if !yield(ch, nil) {
				return
			}
		}
		err := lines.Err()
		switch {
		case err != nil:
			err = c.unreachable(ctx, err)
		default:
			if err = trailerError(resp); err == io.EOF {
				err = pcm.Errorf(pcm.Unavailable, "the node at %s ended the stream of changes", c.where)
			}
		}
		yield(Change{}, err)
	}, nil
}

// waitPoll is how long WaitJob trusts the stream of changes alone.
const waitPoll = 5 * time.Second

// WaitJob waits until done says so of the job, and returns the job as it is then.
// It reads the job when a change tells of it.
func (c *Client) WaitJob(ctx context.Context, id pcm.JobID, done func(Job) bool) (Job, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := c.Changes(ctx, ChangeFilter{Job: id})
	if err != nil {
		return Job{}, err
	}
	kick := make(chan struct{}, 1) // holds one element when the job changed since it was read
	broken := make(chan error, 1)
	go func() {
		for _, err := range changes {
			if err != nil {
				broken <- err
				return
			}
			select {
			case kick <- struct{}{}:
			default:
			}
		}
	}()
	poll := time.NewTicker(waitPoll)
	defer poll.Stop()
	for {
		job, err := c.Job(ctx, string(id))
		if err != nil || done(job) {
			return job, err
		}
		select {
		case <-kick:
		case <-poll.C:
		case err := <-broken:
			if pcm.ErrorCode(err) != pcm.Busy {
				return job, err
			}
			return c.WaitJob(ctx, id, done) // it missed changes: begin anew
		}
	}
}

// Ended tells whether a job has reached its last state.
func Ended(j Job) bool { return j.State != pcm.JobOpen }

// Settled tells whether nothing of a job is open any more.
func Settled(j Job) bool { return Ended(j) && j.Settled }
