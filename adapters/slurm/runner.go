package slurm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const pendingState = adapters.Pending

// Runner is the supervisor's side. It implements supervisor.Remote.
type Runner struct {
	cfg    Config
	log    *slog.Logger
	spool  spool
	owner  string // what our jobs' comments say
	link   transport
	queue  *queue
	poller *poller
	places places

	ctx  context.Context // of the work below
	stop context.CancelFunc
	work sync.WaitGroup
}

var _ supervisor.Remote = (*Runner)(nil)

// NewRunner prepares the shared folder. Whether Slurm answers is not looked at.
func NewRunner(cfg Config, log *slog.Logger) (*Runner, error) {
	cfg.defaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "folder %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	r := &Runner{cfg: cfg, log: log, spool: spool(cfg.root())}
	if err := r.spool.open(); err != nil {
		return nil, err
	}
	if r.owner, err = r.spool.owner(); err != nil {
		return nil, err
	}
	if r.link, err = dial(cfg); err != nil {
		return nil, err
	}
	r.places.cfg, r.places.link = cfg, r.link
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.queue = newQueue(r)
	r.poller = newPoller(r)
	return r, nil
}

// dial makes the transport that cfg asks for.
func dial(cfg Config) (transport, error) {
	if cfg.URL != "" {
		return newREST(cfg)
	}
	return newCLI(cfg)
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return Name }

// Remote implements supervisor.Remote.
func (r *Runner) Remote() {}

// Facts implements supervisor.Runner.
func (r *Runner) Facts() supervisor.Facts { return supervisor.Facts{Sandbox: Name} }

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	switch {
	case t.Module != "" || len(t.Command) == 0 || t.Command[0] == "":
		return pcm.Errorf(pcm.Invalid, "the slurm adapter runs commands; attempt %s has none", t.Key)
	case t.Image != "":
		return pcm.Errorf(pcm.Invalid, "the slurm adapter runs no container images; attempt %s asks for %s", t.Key, t.Image)
	case strings.Contains(t.Command[0], "="):
		return pcm.Errorf(pcm.Invalid, "the slurm adapter can't run %q: the name of a program must not contain =", t.Command[0])
	}
	return t.Resources.CheckMemory()
}

// Sweep begins the work that all attempts share, and deletes what attempts of
// before left whose end is on record.
func (r *Runner) Sweep(unfinished []adapters.Key) error {
	for _, k := range unfinished {
		if _, ok := r.spool.loadIntent(k.String()); ok {
			r.queue.Adopt(k)
		}
	}
	for _, key := range r.spool.leftovers(r.ctx) {
		if _, err := adapters.ParseKey(key); err == nil && r.recorded(key) {
			if in, ok := r.spool.loadIntent(key); ok {
				r.poller.drop(jobRef{in.ID, in.Index, in.Name})
				r.poller.done[key] = in.Generation
			} else {
				r.spool.forget(key, 1)
			}
		}
	}
	r.spool.tidyArrays()
	r.tidyEvidence()
	r.work.Go(func() { r.poller.watchQueue(r.ctx) })
	r.work.Go(func() { r.poller.watchSpool(r.ctx) })
	return nil
}

// tidyEvidence deletes what came after an attempt was forgotten: the last word of a
// task that was given up.
func (r *Runner) tidyEvidence() {
	names, _ := readNames(r.spool.events())
	for _, name := range names {
		key := keyOf(name)
		if _, err := adapters.ParseKey(key); err != nil || !r.recorded(key) {
			continue
		}
		if _, err := os.Lstat(r.spool.attempt(key)); errors.Is(err, fs.ErrNotExist) {
			os.Remove(filepath.Join(r.spool.events(), name))
		}
	}
}

// recorded tells whether the supervisor has recorded the attempt's end, or
// forgotten the attempt.
func (r *Runner) recorded(key string) bool {
	dir := filepath.Join(r.cfg.Dir, "tasks", key)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	_, err := os.Lstat(filepath.Join(dir, "status.cbor"))
	return err == nil
}

// Close implements supervisor.Runner.
func (r *Runner) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	// What is still to be cancelled gets its chance.
	for r.poller.cancelling() && r.poller.hungSince().IsZero() && ctx.Err() == nil {
		r.poller.soon()
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	r.poller.tidy()
	r.stop()
	r.work.Wait()
	return nil
}

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	a := &attempt{Run: t, key: t.Key.String(), work: t.Work}
	if exit := r.take(ctx, a); exit != nil {
		return *exit
	}
	a.seen = watched{
		out: tail{r: r, of: a, name: "stdout", dst: t.Stdout}, errs: tail{r: r, of: a, name: "stderr", dst: t.Stderr}, wait: tailFast,
		again: func(ctx context.Context) supervisor.Exit { return r.follow(ctx, a) },
	}
	return r.follow(ctx, a)
}

// take has an attempt submitted, or finds it at Slurm; otherwise it is over.
func (r *Runner) take(ctx context.Context, a *attempt) *supervisor.Exit {
	if r.cfg.Shared != "" {
		a.work = r.spool.file(a.key, "work")
	}
	in, known := intent{}, false
	if a.Again {
		in, known = r.spool.loadIntent(a.key)
	}
	if !known {
		if err := r.prepare(ctx, a); err != nil {
			exit := seller(err.Error())
			if ctx.Err() != nil {
				exit = killed()
			}
			return &exit
		}
	}
	r.poller.add(a)
	if known {
		a.at = in
		r.queue.Adopt(a.Key)
		r.work.Go(func() { r.find(ctx, a) })
	} else {
		r.queue.add(a)
	}
	return nil
}

// leave is for an attempt that is over here.
func (r *Runner) leave(a *attempt) {
	a.leave()
	r.queue.done(a)
	in, _ := a.place()
	a.mu.Lock()
	given := in.ID > 0 || a.fatal != nil // if not, whoever submits it sees that nobody wants it
	a.mu.Unlock()
	if a.withdrawn && given {
		r.poller.drop(a.ref())
	}
	r.poller.remove(a, max(in.Generation, 1))
}

// prepare makes the attempt's folders and puts its inputs in place.
func (r *Runner) prepare(ctx context.Context, a *attempt) error {
	if err := os.RemoveAll(r.spool.attempt(a.key)); err != nil {
		return fmt.Errorf("can't clear its folder: %w", supervisor.Errno(err))
	}
	if err := os.MkdirAll(r.spool.attempt(a.key), 0o700); err != nil {
		return fmt.Errorf("can't make its folder: %w", supervisor.Errno(err))
	}
	if a.Again { // an earlier supervisor may have come as far as this
		old, err := os.ReadDir(a.work)
		for _, e := range old {
			err = errors.Join(err, os.RemoveAll(filepath.Join(a.work, e.Name())))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("can't clear its working folder: %w", supervisor.Errno(err))
		}
	}
	if err := os.MkdirAll(a.work, 0o700); err != nil {
		return fmt.Errorf("can't make its working folder: %w", supervisor.Errno(err))
	}
	for _, m := range a.Inputs {
		if err := supervisor.CopyInput(ctx, m, a.work); err != nil {
			return fmt.Errorf("can't put input %s in place: %w", m.Target, supervisor.Errno(err))
		}
	}
	return nil
}

// lookUp gives the number of our job of that name; 0 if there is none.
func (r *Runner) lookUp(ctx context.Context, name string) (int64, error) {
	all, err := r.link.jobs(ctx)
	if err != nil {
		return 0, err
	}
	var id int64
	for _, j := range all {
		if j.Name == name && r.poller.ours(j) && (id == 0 || j.ID < id) {
			id = j.ID
		}
	}
	return id, nil
}

// find looks for a job that an earlier supervisor submitted, or meant to.
func (r *Runner) find(ctx context.Context, a *attempt) {
	for wait := 100 * time.Millisecond; !a.dead(); wait = min(2*wait, maxBackOff) {
		in, _ := a.place()
		id, err := r.lookUp(ctx, in.Name)
		if err == nil {
			a.mu.Lock()
			if id > 0 {
				a.at.ID = id
			}
			a.submitted = time.Now()
			if id == 0 {
				a.missing, a.since = looks, time.Now().Add(-vanished)
			}
			a.mu.Unlock()
			a.nudge()
			r.poller.soon()
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

func killed() supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL)}
}
