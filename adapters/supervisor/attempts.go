package supervisor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Attempts is what the adapters of this machine have in common: all of
// [adapters.Adapter] but name and pools, and [adapters.Fencer]. Logs and results
// are read from the folder itself, supervisor alive or not.
type Attempts struct {
	client *Client
	runner string
}

// Facts says what the runner does with tasks on this machine. The supervisor is
// asked each time, so that one that hangs is noticed.
func (a *Attempts) Facts(ctx context.Context) (Facts, error) {
	if _, err := a.client.call(ctx, &message{Op: opList, Runner: a.runner, After: pastAll}); err != nil {
		return Facts{}, err
	}
	return a.client.Facts(ctx, a.runner)
}

// pastAll sorts after every key: what is listed after it is nothing.
const pastAll = "~"

// Start runs an attempt.
func (a *Attempts) Start(ctx context.Context, t adapters.Task) error {
	_, err := a.client.call(ctx, &message{Op: opStart, Runner: a.runner, Task: wireTask(a.runner, t)})
	return err
}

// Watch delivers changes; see [adapters.Adapter]. The channel is also closed
// when its reader falls 8,192 changes behind.
func (a *Attempts) Watch(ctx context.Context) (<-chan adapters.Status, error) {
	dial, cancel := bounded(ctx)
	defer cancel()
	for try := 1; ; try++ {
		l, err := a.client.connect(dial)
		if err != nil {
			return nil, err
		}
		ch, err := l.subscribe(ctx, a.runner)
		if err == nil || try == 2 {
			return ch, err
		}
	}
}

// List tells of all attempts that were not removed, sorted by key.
func (a *Attempts) List(ctx context.Context) ([]adapters.Status, error) {
	var all []adapters.Status
	for after := ""; ; {
		reply, err := a.client.call(ctx, &message{Op: opList, Runner: a.runner, After: after})
		if err != nil {
			return nil, err
		}
		for _, s := range reply.Statuses {
			st, err := s.open()
			if err != nil {
				return nil, err
			}
			all = append(all, st)
			after = s.Key
		}
		if !reply.More || len(reply.Statuses) == 0 {
			return all, nil
		}
	}
}

// Stop ends an attempt.
func (a *Attempts) Stop(ctx context.Context, k adapters.Key, grace time.Duration, reason string) error {
	_, err := a.client.call(ctx, &message{Op: opStop, Key: k.String(), GraceMS: grace.Milliseconds(), Reason: cut(reason, maxReason)})
	return err
}

// Halt suspends an attempt, or lets it go on, if its runner is a [Halter].
func (a *Attempts) Halt(ctx context.Context, k adapters.Key, on bool) error {
	m := &message{Op: opResume, Key: k.String()}
	if on {
		m.Op = opSuspend
	}
	_, err := a.client.call(ctx, m)
	return err
}

// Remove forgets an ended attempt.
func (a *Attempts) Remove(ctx context.Context, k adapters.Key) error {
	_, err := a.client.call(ctx, &message{Op: opRemove, Key: k.String()})
	return err
}

// Extend moves leases on.
func (a *Attempts) Extend(ctx context.Context, leases map[adapters.Key]adapters.BootTime) error {
	batch := make([]lease, 0, min(len(leases), maxLeases))
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := a.client.call(ctx, &message{Op: opExtend, Leases: batch})
		batch = batch[:0]
		return err
	}
	for k, t := range leases {
		if batch = append(batch, lease{k.String(), t}); len(batch) == maxLeases {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// Results opens what an ended attempt left.
func (a *Attempts) Results(ctx context.Context, k adapters.Key) (fs.FS, error) {
	f := folderOf(a.client.cfg.Dir, k.String())
	if !f.exists() {
		return nil, pcm.Errorf(pcm.NotFound, "no attempt %s here", k)
	}
	if !f.ended() {
		return nil, pcm.Errorf(pcm.Conflict, "attempt %s has not ended", k)
	}
	t, err := f.loadTask()
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't read what attempt %s was: %w", k, err)
	}
	return newResults(f, t), nil
}

// Logs reads a stream.
func (a *Attempts) Logs(ctx context.Context, k adapters.Key, s adapters.StreamName, offset int64, follow bool) (io.ReadCloser, error) {
	if s != adapters.Stdout && s != adapters.Stderr {
		return nil, pcm.Errorf(pcm.Invalid, "a task has no stream %q: only stdout and stderr", s)
	}
	if offset < 0 {
		return nil, pcm.Errorf(pcm.Invalid, "offset %d is negative", offset)
	}
	f := folderOf(a.client.cfg.Dir, k.String())
	if !f.exists() {
		return nil, pcm.Errorf(pcm.NotFound, "no attempt %s here", k)
	}
	return &logReader{ctx: ctx, folder: f, stream: s, offset: offset, follow: follow, closed: make(chan struct{})}, nil
}

// logReader reads a stream's file, which appears with its first byte.
type logReader struct {
	ctx    context.Context // of the reader's life, as the contract's Logs has it
	folder folder
	stream adapters.StreamName
	follow bool
	closed chan struct{}
	once   sync.Once

	mu     sync.Mutex // held by Read
	file   *os.File
	offset int64
}

func (r *logReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	for wait := 10 * time.Millisecond; ; wait = min(wait*3/2, 200*time.Millisecond) {
		select {
		case <-r.closed:
			return 0, os.ErrClosed
		default:
		}
		// Whether it has ended is read first: what comes after that is all there is.
		ended := !r.follow || r.folder.ended() || !r.folder.exists()
		n, err := r.readNow(p)
		if n > 0 || err != nil {
			return n, err
		}
		if ended {
			return 0, io.EOF
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.closed:
		case <-r.ctx.Done():
			timer.Stop()
			return 0, pcm.Errorf(pcm.Unavailable, "following %s of attempt was cut short: %w", r.stream, context.Cause(r.ctx))
		}
		timer.Stop()
	}
}

func (r *logReader) readNow(p []byte) (int, error) {
	if r.file == nil {
		f, err := os.Open(r.folder.stream(r.stream))
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, pcm.Errorf(pcm.Unavailable, "can't read %s: %w", r.stream, err)
		}
		r.file = f
	}
	n, err := r.file.ReadAt(p, r.offset)
	r.offset += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, pcm.Errorf(pcm.Unavailable, "can't read %s: %w", r.stream, err)
	}
	return n, nil
}

// Close ends the reader, also a Read that waits.
func (r *logReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
	return nil
}
