package plugin

import (
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Runner is the supervisor's side: the plug-in's host. It implements supervisor.Remote.
type Runner struct {
	cfg  Config
	f    folders
	log  *slog.Logger
	host *host
	end  context.CancelFunc // nil: not begun
	over sync.WaitGroup
	once sync.Once
	held held
}

var _ supervisor.Remote = (*Runner)(nil)

// NewRunner checks the configuration. The plug-in is started by Sweep, when the
// folder is ours alone: no two supervisors have one plug-in.
func NewRunner(cfg Config) (*Runner, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.Times = cfg.Times.defaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := cfg.folders()
	if err != nil {
		return nil, err
	}
	r := &Runner{cfg: cfg, f: f, log: cfg.Logger, host: newHost(cfg, f)}
	r.held.file, r.host.held = f.heldFile(), &r.held
	return r, nil
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return r.cfg.Name }

// Remote implements supervisor.Remote.
func (r *Runner) Remote() {}

// Facts implements supervisor.Runner. What the plug-in says of itself stands in its state.
func (r *Runner) Facts() supervisor.Facts { return supervisor.Facts{} }

// Sweep implements supervisor.Runner: it starts the plug-in.
func (r *Runner) Sweep(unfinished []adapters.Key) error {
	if err := r.f.make(); err != nil {
		return err
	}
	r.held.load()
	r.begin()
	return nil
}

func (r *Runner) begin() {
	r.once.Do(func() {
		ctx, cancel := context.WithCancel(context.Background())
		r.end = cancel
		r.over.Go(func() { r.host.run(ctx) })
	})
}

// Close implements supervisor.Runner: nothing runs any more, and the plug-in ends.
func (r *Runner) Close(context.Context) error {
	if r.end != nil {
		r.end()
	}
	r.over.Wait()
	return nil
}

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	if t.Module == "" && t.Image == "" && (len(t.Command) == 0 || t.Command[0] == "") {
		return pcm.Errorf(pcm.Invalid, "attempt %s has nothing to run: no command, no module and no image", t.Key)
	}
	size := 0
	for k, v := range t.Env {
		size += len(k) + len(v)
	}
	for _, w := range append(append([]string{}, t.Command...), t.Args...) {
		size += len(w)
	}
	if size > maxTaskWords {
		return pcm.Errorf(pcm.TooLarge, "command and environment have %d bytes: at most %d", size, maxTaskWords)
	}
	return nil
}

const maxTaskWords = 2 << 20

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	a := &attempt{Run: t, r: r, h: r.host}
	a.track = r.host.follow(t.Key, t.Fence)
	defer r.host.leave(t.Key, a.track)
	if exit, ok := a.start(ctx); !ok {
		return exit
	}
	return a.attend(ctx)
}

// The file beside an attempt's working folder which says that the plug-in has taken it.
func noteFile(t *supervisor.Run) string { return filepath.Join(filepath.Dir(t.Work), "plugin") }

func wasTaken(t *supervisor.Run) bool { _, err := os.Lstat(noteFile(t)); return err == nil }

func noteTaken(t *supervisor.Run) error {
	err := os.WriteFile(noteFile(t), nil, 0o600)
	if os.IsNotExist(err) || err == fs.ErrNotExist {
		return nil // its folder was removed
	}
	return err
}
