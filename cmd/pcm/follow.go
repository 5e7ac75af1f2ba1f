package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

const (
	maxLive      = 16 // tasks whose output is shown as it is written; of more, when they end
	maxRetryWait = 200 * time.Millisecond
	fetchers     = 8 // logs that are read at once
)

// follow shows what a job's tasks write until it ends, and returns it as it ended.
func (a *app) follow(ctx context.Context, c *api.Client, job api.Job) (api.Job, error) {
	tasks, err := c.Tasks(ctx, string(job.ID), api.Query{})
	if err != nil {
		return job, err
	}
	var ended api.Job
	g, gctx := errgroup.WithContext(ctx)
	over := make(chan struct{}) // closed when the job has ended
	g.Go(func() (err error) {
		defer close(over)
		ended, err = a.await(gctx, c, job)
		return err
	})
	screen := &sync.Mutex{}
	if len(tasks.Items) > maxLive {
		g.Go(func() error { return a.showEnded(gctx, c, job.ID, screen, over) })
	} else {
		for _, t := range tasks.Items {
			for stream, w := range map[string]io.Writer{"stdout": a.out, "stderr": a.errOut} {
				if len(tasks.Items) > 1 {
					w = &lineWriter{w: w, screen: screen, prefix: taskPrefix(t)}
				}
				g.Go(func() error {
					f := follower{c: c, task: t, stream: stream, w: w, over: over, notice: a.errOut}
					return f.run(gctx)
				})
			}
		}
	}
	err = g.Wait()
	return ended, err
}

// taskPrefix names a task at the beginning of a line.
func taskPrefix(t api.Task) string { return fmt.Sprintf("[%s/%d] ", t.Step, t.Index) }

// follower shows one output of one task, through lost attempts and broken
// connections, each byte of the attempt that counts once.
type follower struct {
	c       *api.Client
	task    api.Task
	stream  string
	w       io.Writer
	notice  io.Writer       // nil: no notices
	over    <-chan struct{} // closed when the job has ended; nil: nobody watches
	shown   int64           // bytes of attempt that were shown
	attempt int             // 0: none yet
}

func (f *follower) run(ctx context.Context) error {
	defer flush(f.w)
	wait := 10 * time.Millisecond
	for {
		before := f.shown
		err := f.read(ctx, true)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if code := pcm.ErrorCode(err); err != nil && code != pcm.NotFound && code != pcm.Conflict && code != pcm.Unavailable && code != pcm.Busy && code != pcm.Refused {
			return err
		}
		if f.shown > before {
			wait = 10 * time.Millisecond
		}
		over := f.isOver() // before the task is read, which then can't change any more
		t, err := f.c.Task(ctx, string(f.task.Job), f.task.Step, f.task.Index)
		if err != nil {
			return err
		}
		if over || t.State.Final() {
			f.settle(t.Attempt)
			if t.Attempt == 0 {
				return nil // it never ran
			}
			err := f.read(ctx, false)
			if code := pcm.ErrorCode(err); code == pcm.NotFound || code == pcm.Conflict || !t.State.Final() || t.State == pcm.TaskCancelled {
				return nil // it ended without a result: there need be no output
			}
			return err
		}
		f.settle(t.Attempt)
		select {
		case <-time.After(wait):
			wait = min(2*wait, maxRetryWait)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// isOver tells whether the whole job has ended.
func (f *follower) isOver() bool {
	select {
	case <-f.over:
		return true
	default:
		return false
	}
}

// settle notes which attempt is the task's now; what was shown of another one does not count.
func (f *follower) settle(attempt int) {
	if f.attempt != 0 && attempt != f.attempt {
		if f.shown > 0 && f.notice != nil {
			fmt.Fprintf(f.notice, "pcm: task %s/%d was run again (attempt %d); its %s follows from the start\n", f.task.Step, f.task.Index, attempt, f.stream)
		}
		f.shown = 0
	}
	f.attempt = attempt
}

// read shows what is there beyond what was shown.
func (f *follower) read(ctx context.Context, live bool) error {
	rc, err := f.c.Logs(ctx, string(f.task.Job), f.task.Step, f.task.Index, f.stream, live)
	if err != nil {
		return err
	}
	defer rc.Close()
	if _, err := io.CopyN(io.Discard, rc, f.shown); err != nil {
		if err == io.EOF {
			return nil // nothing new
		}
		return err
	}
	n, err := io.Copy(f.w, rc)
	f.shown += n
	return err
}

// showEnded shows the outputs of tasks as they end.
func (a *app) showEnded(ctx context.Context, c *api.Client, id pcm.JobID, screen *sync.Mutex, over <-chan struct{}) error {
	shown := map[string]bool{}
	for last := false; ; {
		begun := time.Now()
		tasks, err := c.Tasks(ctx, string(id), api.Query{})
		if err != nil {
			return err
		}
		pause := max(maxRetryWait, 10*time.Since(begun)) // looking shall not slow the tasks down
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(fetchers)
		for _, t := range tasks.Items {
			if !t.State.Final() || shown[t.ID] {
				continue
			}
			shown[t.ID] = true
			if t.Attempt == 0 {
				continue
			}
			g.Go(func() error { return a.showTask(gctx, c, t, screen, taskPrefix(t)) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if last {
			return nil
		}
		select {
		case <-over:
			last = true
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// showTask shows both outputs of a task as far as they are there.
func (a *app) showTask(ctx context.Context, c *api.Client, t api.Task, screen *sync.Mutex, prefix string) error {
	for _, s := range []struct {
		name string
		w    io.Writer
	}{{"stdout", a.out}, {"stderr", a.errOut}} {
		w := &lineWriter{w: s.w, screen: screen, prefix: prefix}
		f := follower{c: c, task: t, stream: s.name, w: w}
		err := f.read(ctx, false)
		w.flush()
		if code := pcm.ErrorCode(err); err != nil && code != pcm.NotFound && code != pcm.Conflict {
			return err
		}
	}
	return nil
}

// maxLine bounds how much of an unfinished line is kept back.
const maxLine = 64 << 10

// lineWriter puts a prefix ahead of each line and writes whole lines only, so
// that several of them can share one screen.
type lineWriter struct {
	w      io.Writer
	screen *sync.Mutex // guards w among all writers
	prefix string
	rest   []byte // of an unfinished line
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	var out []byte
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 && len(l.rest) >= maxLine {
			i = maxLine - 1
		}
		if i < 0 {
			break
		}
		out = append(append(out, l.prefix...), bytes.TrimSuffix(l.rest[:i+1], []byte("\n"))...)
		out = append(out, '\n')
		l.rest = l.rest[i+1:]
	}
	if len(out) == 0 {
		return len(b), nil
	}
	l.screen.Lock()
	defer l.screen.Unlock()
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (l *lineWriter) flush() {
	if len(l.rest) > 0 {
		l.Write([]byte("\n")) // the screen is gone if this fails: nobody is left to tell
	}
}

func flush(w io.Writer) {
	if l, ok := w.(*lineWriter); ok {
		l.flush()
	}
}
