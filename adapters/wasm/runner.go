package wasm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
	"github.com/tetratelabs/wazero/sys"
	"golang.org/x/sys/unix"
)

// RunnerConfig says where compiled code is kept and what the bounds are.
type RunnerConfig struct {
	CacheDir   string    // of compiled code; empty: memory only
	MaxModule  pcm.Bytes // of a module's file; default 256 MiB
	MaxCached  pcm.Bytes // of the files of modules kept compiled in memory; default 256 MiB
	MaxModules int       // of modules kept compiled in memory; default 64
	Memory     pcm.Bytes // of tasks that ask for none; default 256 MiB
	Logger     *slog.Logger
}

// exitTrap is the exit code of a module that trapped: that of an abort.
const exitTrap = 128 + int(syscall.SIGABRT)

// Runner is the supervisor's side. It implements supervisor.Runner.
type Runner struct {
	cfg     RunnerConfig
	runtime wazero.Runtime
	modules *modules
}

var _ supervisor.Runner = (*Runner)(nil)

// NewRunner makes the one runtime in which all modules run, each in an instance of its own.
func NewRunner(ctx context.Context, cfg RunnerConfig) (*Runner, error) {
	if cfg.MaxModule <= 0 {
		cfg.MaxModule = 256 << 20
	}
	if cfg.MaxCached <= 0 {
		cfg.MaxCached = 256 << 20
	}
	if cfg.MaxModules <= 0 {
		cfg.MaxModules = 64
	}
	if cfg.Memory <= 0 {
		cfg.Memory = 256 << 20
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	rc := wazero.NewRuntimeConfig().WithCloseOnContextDone(true).WithCoreFeatures(api.CoreFeaturesV2)
	if cfg.CacheDir != "" {
		cache, err := wazero.NewCompilationCacheWithDir(cfg.CacheDir)
		if err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "can't use the folder of compiled modules: %w", err)
		}
		rc = rc.WithCompilationCache(cache)
	}
	rt := wazero.NewRuntimeWithConfig(ctx, rc)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, rt); err != nil {
		rt.Close(ctx)
		return nil, pcm.Errorf(pcm.Internal, "can't set up WASI: %w", err)
	}
	r := &Runner{cfg: cfg, runtime: rt}
	r.modules = newModules(rt, cfg)
	return r, nil
}

// Close implements supervisor.Runner: it frees all compiled code.
func (r *Runner) Close(ctx context.Context) error { return r.runtime.Close(ctx) }

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return Name }

// Facts implements supervisor.Runner.
func (r *Runner) Facts() supervisor.Facts {
	return supervisor.Facts{Sandbox: Name, Labels: pcm.Labels{"wasi": "preview1"}}
}

// Sweep implements supervisor.Runner: what ran in a supervisor died with it.
func (r *Runner) Sweep([]adapters.Key) error { return nil }

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	if t.Module == "" || len(t.Command) > 0 {
		return pcm.Errorf(pcm.Invalid, "the wasm adapter runs modules; attempt %s has none", t.Key)
	}
	if !path.IsAbs(t.Module) {
		return pcm.Errorf(pcm.Invalid, "module %q is not an absolute path", t.Module)
	}
	return nil
}

// Run implements supervisor.Runner. A module can't be asked to end by itself:
// a stop ends it at once.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	// The module's close by context is asynchronous; this one also covers a graceful stop.
	runCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-t.Stopping:
			cancel()
		case <-over:
		}
	}()
	m, err := r.modules.get(runCtx, t.Module)
	if err != nil {
		return refused(err)
	}
	defer r.modules.put(m)
	root, err := newRoot(t.Work, t.Inputs)
	if err != nil {
		return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: err.Error()}
	}
	defer root.close()

	limit := t.Resources.Memory
	if limit == 0 {
		limit = r.cfg.Memory
	}
	mem := &allocator{limit: uint64(limit)}
	defer mem.free()
	config := wazero.NewModuleConfig().WithName("").
		WithArgs(append([]string{path.Base(t.Module)}, t.Args...)...).
		WithStdout(t.Stdout).WithStderr(t.Stderr).
		WithRandSource(rand.Reader).WithSysWalltime().WithSysNanotime().
		WithNanosleep(func(ns int64) { sleep(runCtx, ns) }).WithOsyield(runtime.Gosched).
		WithFSConfig(wazero.NewFSConfig().(sysfs.FSConfig).WithSysFSMount(root, "/"))
	for _, e := range supervisor.Environ(t.Task, "/", "") {
		if k, v, _ := strings.Cut(e, "="); k != "PATH" || v != "" {
			config = config.WithEnv(k, v)
		}
	}

	// The thread is the task's alone while it runs, so that its time can be told.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadTime()
	t.Started()
	err = r.instantiate(experimental.WithMemoryAllocator(runCtx, mem), m.compiled, config, mem)
	exit := judge(err, runCtx, mem, limit)
	exit.CPUMS = (threadTime() - before).Milliseconds()
	exit.Memory = pcm.Bytes(mem.peak)
	return exit
}

// instantiate runs the module's start function.
func (r *Runner) instantiate(ctx context.Context, m wazero.CompiledModule, config wazero.ModuleConfig, mem *allocator) (err error) {
	defer func() {
		// wazero panics where the allocator refuses the memory that a module begins with.
		if p := recover(); p != nil {
			if !mem.refused {
				panic(p)
			}
			err = errors.New("no memory to begin with")
		}
	}()
	inst, err := r.runtime.InstantiateModule(ctx, m, config)
	if inst != nil {
		inst.Close(context.WithoutCancel(ctx))
	}
	return err
}

// judge decides what the end of a module's start function means.
func judge(err error, ctx context.Context, mem *allocator, limit pcm.Bytes) supervisor.Exit {
	var exit *sys.ExitError
	switch {
	case err == nil:
		return supervisor.Exit{Outcome: pcm.OutcomeOK}
	case errors.As(err, &exit) && exit.ExitCode() == 0:
		return supervisor.Exit{Outcome: pcm.OutcomeOK}
	case ctx.Err() != nil:
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL), Reason: "ended by force"}
	case mem.refused:
		e := supervisor.Exit{Outcome: pcm.OutcomeMemory, Code: exitTrap, Reason: fmt.Sprintf("wanted more than its %s of memory", limit)}
		if exit != nil {
			e.Code = int(exit.ExitCode() & 0xff)
		}
		return e
	case exit != nil:
		// As a process' exit code: eight bits.
		code := int(exit.ExitCode() & 0xff)
		if code == 0 {
			code = 255
		}
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: code, Reason: fmt.Sprintf("exit code %d", exit.ExitCode())}
	}
	text := strings.Join(strings.Fields(err.Error()), " ")
	if _, trap, ok := strings.Cut(text, "wasm error: "); ok {
		text = trap
	}
	return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: exitTrap, Reason: "trap: " + text}
}

// badModule is a fault of the module itself.
type badModule struct{ err error }

func (e *badModule) Error() string { return e.err.Error() }

func refused(err error) supervisor.Exit {
	var bad *badModule
	if errors.As(err, &bad) {
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 126, Reason: bad.Error()}
	}
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: err.Error()}
}

// sleep is a module's sleep, which must not outlive the module.
func sleep(ctx context.Context, ns int64) {
	if ns <= 0 {
		return
	}
	timer := time.NewTimer(time.Duration(ns))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func threadTime() time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(unix.RUSAGE_THREAD, &ru) != nil {
		return 0
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}
