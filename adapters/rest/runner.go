package rest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Runner is the supervisor's side. It implements supervisor.Remote.
type Runner struct {
	b       *backend
	log     *slog.Logger
	notes   notebook
	poller  *poller
	cleaner *cleaner
	arrays  *arrays // nil: each job is made by a call of its own

	ctx  context.Context // of the work below
	stop context.CancelFunc
	work sync.WaitGroup

	mu   sync.Mutex
	live map[adapters.Key]*attempt
}

var (
	_ supervisor.Remote = (*Runner)(nil)
	_ supervisor.Halter = (*Runner)(nil)
)

// NewRunner reads the description. Whether the back end answers is not looked at.
func NewRunner(cfg Config, log *slog.Logger) (*Runner, error) {
	ctx, stop := context.WithCancel(context.Background())
	b, err := open(ctx, cfg, nil)
	if err != nil {
		stop()
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Runner{b: b, log: log.With("adapter", b.name), notes: notebook(cfg.notes(b.name)), ctx: ctx, stop: stop, live: map[adapters.Key]*attempt{}}
	if err := r.notes.open(); err != nil {
		stop()
		return nil, err
	}
	b.tell = func(a *absence) {
		if err := r.notes.absent(a); err != nil {
			r.log.Warn("can't note whether the back end answers", "err", err)
		}
	}
	b.tell(nil) // of before
	r.poller = newPoller(b, r.log)
	r.cleaner = newCleaner(r)
	r.arrays = newArrays(r)
	return r, nil
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return r.b.name }

// Remote implements supervisor.Remote.
func (r *Runner) Remote() {}

// Facts implements supervisor.Runner.
func (r *Runner) Facts() supervisor.Facts { return supervisor.Facts{Sandbox: r.b.sandbox()} }

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	can := r.b.d.Features
	switch {
	case t.Module != "" || len(t.Command) == 0 || t.Command[0] == "":
		return pcm.Errorf(pcm.Invalid, "the %s adapter runs commands; attempt %s has none", r.b.name, t.Key)
	case t.Image != "" && !has(can, pcm.FeatureImage):
		return pcm.Errorf(pcm.Refused, "the %s adapter runs no container images; attempt %s asks for %s", r.b.name, t.Key, t.Image)
	case t.Network && !has(can, pcm.FeatureNetwork):
		return pcm.Errorf(pcm.Refused, "the %s adapter gives tasks no network", r.b.name)
	case (len(t.Inputs) > 0 || len(t.Outputs) > 0) && r.b.d.Data == nil:
		return pcm.Errorf(pcm.Refused, "the %s adapter has no way to bring files to its tasks, or from them: its description has no data", r.b.name)
	case len(t.Inputs) > maxInputs:
		return pcm.Errorf(pcm.TooLarge, "%d inputs: at most %d", len(t.Inputs), maxInputs)
	}
	if err := checkScript(t); err != nil {
		return err
	}
	return t.Resources.CheckMemory()
}

const maxInputs = 256

func has(words []string, f pcm.Feature) bool {
	for _, w := range words {
		if w == string(f) {
			return true
		}
	}
	return false
}

// Sweep begins the work that all attempts share, and takes up what attempts of
// before have left at the back end.
func (r *Runner) Sweep(unfinished []adapters.Key) error {
	for _, k := range unfinished {
		if n := r.notes.load(k.String()); n != nil {
			r.arrays.adopt(n)
		}
	}
	for _, key := range r.notes.keys() {
		if !r.recorded(key) {
			continue // it is run again
		}
		if n := r.notes.load(key); n != nil {
			r.cleaner.add(n)
		}
	}
	r.work.Go(func() { r.poller.run(r.ctx) })
	r.work.Go(func() { r.cleaner.run(r.ctx) })
	return nil
}

// recorded tells whether the supervisor has recorded the attempt's end, or
// forgotten the attempt.
func (r *Runner) recorded(key string) bool {
	dir := filepath.Join(r.b.cfg.Dir, "tasks", key)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return true
	}
	_, err := os.Lstat(filepath.Join(dir, "status.cbor"))
	return err == nil
}

// closeTime bounds how long the end of the supervisor waits for jobs that are to be ended.
const closeTime = 15 * time.Second

// Close implements supervisor.Runner. What is left is taken up by the next supervisor.
func (r *Runner) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	for !r.cleaner.idle() && ctx.Err() == nil {
		if r.poller.fault() != nil {
			break
		}
		r.cleaner.soon()
		pause(ctx, 50*time.Millisecond)
	}
	r.stop()
	r.work.Wait()
	r.b.http.Close()
	return nil
}

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	a := &attempt{Run: t, r: r, b: r.b, key: t.Key.String(), stop: make(chan struct{})}
	if t.Again {
		a.n = r.notes.load(a.key)
	}
	if a.n == nil {
		a.n = &note{Task: t.Task, Nonce: newNonce()} // saved before anything is made
		if t.Again && r.notes.has(a.key) {           // it can't be read: nobody knows how far it came
			a.n.Stage, a.n.Asked = making, time.Now()
		}
	}
	a.n.Dying = false
	if r.arrays.adopt(a.n) {
		a.seat.counted = true
	}
	defer r.arrays.done(a)
	r.mu.Lock()
	r.live[t.Key] = a
	r.mu.Unlock()
	left := make(chan struct{})
	listening := make(chan struct{})
	select {
	case <-t.Stopping: // before it has begun: nothing is to be made of it
		close(a.stop)
		close(listening)
	default:
		go func() { // a stop is heard whatever the attempt is at
			defer close(listening)
			select {
			case <-t.Stopping:
				close(a.stop)
			case <-left:
			}
		}()
	}
	exit := a.run(ctx)
	close(left)
	<-listening
	r.mu.Lock()
	delete(r.live, t.Key)
	r.mu.Unlock()
	if a.t != nil {
		r.poller.leave(a.t)
	}
	if a.n.Stage == fresh && len(a.n.Step) == 0 && !r.notes.has(a.key) {
		return exit // nothing was made
	}
	a.n.Dying = a.n.Stage != over
	if err := r.notes.save(a.n); err != nil {
		r.log.Warn("can't note what is left of an attempt", "attempt", a.key, "err", err)
	}
	r.cleaner.add(a.n)
	return exit
}

// Halt implements supervisor.Halter.
func (r *Runner) Halt(k adapters.Key, on bool) error {
	r.mu.Lock()
	a := r.live[k]
	r.mu.Unlock()
	if a == nil {
		return pcm.Errorf(pcm.NotFound, "attempt %s doesn't run here", k)
	}
	return a.halt(on)
}

func seller(reason string) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: reason}
}

func killed() supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL), Reason: "ended by force"}
}

func stopped() supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM)}
}
