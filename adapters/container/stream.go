package container

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
)

// streams brings a container's output into the attempt's files: live, by being
// attached from before the start; and from the engine's log where that was cut,
// or when an earlier supervisor was attached.
type streams struct {
	out, errs sink
	from      io.Closer
	done      chan struct{} // closed at the end of what is read now
}

// sink passes a stream on and counts it.
type sink struct {
	w    io.Writer
	n    int64 // bytes that arrived so far
	skip int64 // of what comes next: passed on before
	over atomic.Bool
}

// Write drops what is over the task's cap: the supervisor is ending it then.
func (s *sink) Write(p []byte) (int, error) {
	n := len(p)
	if s.skip > 0 {
		k := min(s.skip, int64(len(p)))
		s.skip -= k
		p = p[k:]
	}
	s.n += int64(len(p))
	if len(p) > 0 && !s.over.Load() {
		if _, err := s.w.Write(p); err != nil {
			s.over.Store(true)
		}
	}
	return n, nil
}

// attach reads what the container will write.
func (s *streams) attach(ctx context.Context, e *engine, id string) error {
	s.close()
	res, err := e.ContainerAttach(ctx, id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	s.read(res.Reader, res.Conn)
	return nil
}

// again reads from the engine's log what was not read before, and goes on.
func (s *streams) again(ctx context.Context, e *engine, id string) error {
	s.close()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer := time.AfterFunc(callLimit, cancel)
	body, err := e.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
	if !timer.Stop() && err == nil {
		body.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		return err
	}
	s.out.skip, s.errs.skip = s.out.n, s.errs.n
	s.read(body, closer(func() error { cancel(); return body.Close() }))
	return nil
}

type closer func() error

func (c closer) Close() error { return c() }

func (s *streams) read(r io.Reader, from io.Closer) {
	s.from, s.done = from, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		stdcopy.StdCopy(&s.out, &s.errs, r) // how it ended is seen in the container's state
	}(s.done)
}

// drain waits for the rest of what a container has written that has ended.
func (s *streams) drain(limit time.Duration) {
	if s.done != nil {
		select {
		case <-s.done:
		case <-time.After(limit):
		}
	}
	s.close()
}

// close ends the reading.
func (s *streams) close() {
	if s.from == nil {
		return
	}
	s.from.Close()
	<-s.done
	s.from = nil
}
