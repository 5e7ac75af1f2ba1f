package container

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// RunnerConfig says where the engine is and how tasks are kept in.
type RunnerConfig struct {
	Dir          string             `json:"-"`                       // the supervisor's folder, as in supervisor.Config
	Socket       string             `json:"socket,omitempty"`        // default DefaultSocket
	DefaultImage string             `json:"default_image,omitempty"` // for tasks that name none; "": such tasks are refused
	Images       []string           `json:"images,omitempty"`        // that tasks may name, * standing for anything; the default image always is
	Pull         string             `json:"pull,omitempty"`          // default missing
	Auth         string             `json:"auth,omitempty"`          // path of a Docker config.json with the registries' credentials
	User         string             `json:"user,omitempty"`          // UID:GID; default the supervisor's own, 65534:65534 where that is root
	Network      string             `json:"network,omitempty"`       // of the engine, for tasks that ask for one; "": they get none
	Runtime      string             `json:"runtime,omitempty"`       // e.g. runsc; default the engine's
	PIDs         int                `json:"pids,omitempty"`          // processes and threads of one task; default 1,024
	Tmp          pcm.Bytes          `json:"tmp,omitempty"`           // size of /tmp, which counts as memory; default 64 MiB
	Disk         pcm.Bytes          `json:"disk,omitempty"`          // what one task may keep in its working folder; default 10 GiB
	GPUs         []string           `json:"gpus,omitempty"`          // nvidia:ID, or device files
	GPUDevices   []string           `json:"gpu_devices,omitempty"`   // device files that every task with an accelerator gets
	Devices      []adapters.Devices `json:"-"`                       // the machine's accelerators, as far as they were found: they tell what GPUs are
	Logger       *slog.Logger       `json:"-"`
}

// Runner is the supervisor's side. It implements supervisor.Remote: containers
// outlive the supervisor.
type Runner struct {
	cfg    RunnerConfig
	log    *slog.Logger
	engine *engine
	home   string // names the supervisor's folder in labels
	owner  owner
	images *images
	gpus   *gpus
	meter  *meter
	watch  *watcher
}

var _ supervisor.Remote = (*Runner)(nil)

// NewRunner checks the configuration. The engine need not be there yet.
func NewRunner(cfg RunnerConfig) (*Runner, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.PIDs = cmp.Or(max(cfg.PIDs, 0), 1024)
	cfg.Tmp = cmp.Or(max(cfg.Tmp, 0), 64<<20)
	cfg.Disk = cmp.Or(max(cfg.Disk, 0), 10<<30)
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "folder %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	e, err := openEngine(cfg.Socket)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(dir))
	r := &Runner{cfg: cfg, log: cfg.Logger, engine: e, home: hex.EncodeToString(sum[:6])}
	if r.owner, err = newOwner(cfg.User); err != nil {
		return nil, err
	}
	if r.images, err = newImages(e, cfg); err != nil {
		return nil, err
	}
	if r.gpus, err = newGPUs(cfg.GPUs, cfg.GPUDevices); err != nil {
		return nil, err
	}
	r.meter, r.watch = newMeter(e, r.home), newWatcher(e, r.home, r.log)
	return r, nil
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return Name }

// Remote implements supervisor.Remote.
func (r *Runner) Remote() {}

// Facts implements supervisor.Runner.
func (r *Runner) Facts() supervisor.Facts {
	return supervisor.Facts{Sandbox: Name, GPU: int64(len(r.cfg.GPUs)), Accelerator: alike(r.cfg.GPUs, r.cfg.Devices)}
}

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	switch {
	case t.Module != "":
		return pcm.Errorf(pcm.Invalid, "the container adapter runs commands in images; attempt %s is a WebAssembly module", t.Key)
	case t.Image == "" && (len(t.Command) == 0 || t.Command[0] == ""):
		return pcm.Errorf(pcm.Invalid, "attempt %s names neither a command nor an image that has one", t.Key)
	case t.Network && r.cfg.Network == "":
		return pcm.Errorf(pcm.Refused, "this seller gives containers no network")
	case t.Port > 0 && !canEnter():
		return pcm.Errorf(pcm.Refused, "this seller runs no services in containers: its node is not root, and can't enter their network")
	case t.Resources.Memory > 0 && t.Resources.Memory < minMemory:
		return pcm.Errorf(pcm.Invalid, "memory %s is too little for a container: at least %s", t.Resources.Memory, pcm.Bytes(minMemory))
	case t.Resources.Disk > r.cfg.Disk:
		return pcm.Errorf(pcm.Refused, "attempt %s asks for %s of disk, more than this node gives a container: %s (adapters.container.disk)", t.Key, t.Resources.Disk, r.cfg.Disk)
	case t.Resources.GPU > int64(len(r.cfg.GPUs)):
		return pcm.Errorf(pcm.Refused, "%d accelerators were asked for, and this seller's containers have %d", t.Resources.GPU, len(r.cfg.GPUs))
	}
	return r.images.check(t.Image)
}

// Sweep implements supervisor.Runner. Containers of attempts that are unfinished
// are taken up by Run; those that nobody takes up are removed by the watcher.
func (r *Runner) Sweep([]adapters.Key) error {
	r.meter.clean()
	r.watch.mu.Lock()
	r.watch.begin()
	r.watch.mu.Unlock()
	return nil
}

// Close implements supervisor.Runner.
func (r *Runner) Close(context.Context) error {
	r.watch.close()
	r.meter.clean()
	return r.engine.Close()
}

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	a := &attempt{Runner: r, t: t, name: nameOf(t.Key), image: cmp.Or(t.Image, r.cfg.DefaultImage), nonce: rand.Text()}
	a.streams.out.w, a.streams.errs.w = t.Stdout, t.Stderr
	a.loadMark()
	if a.mark.Exit != nil { // an earlier supervisor saw its end
		t.Started()
		return *a.mark.Exit
	}
	a.track = r.watch.add(a.name)
	defer r.watch.drop(a.track)
	r.gpus.hold(a.mark.GPUs)
	defer func() { r.gpus.back(a.mark.GPUs) }()
	defer r.meter.remove(t.Key)
	exit, ended := a.begin(ctx)
	if ended {
		a.removeContainer()
		return exit
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go r.watchDisk(ctx, t, stop)
	exit = a.follow(ctx)
	if context.Cause(ctx) == errDisk && exit.Outcome != pcm.OutcomeOK {
		exit.Outcome, exit.Reason = pcm.OutcomeOutput, fmt.Sprintf("kept more than %s in its working folder", r.disk(t))
	}
	return exit
}
