package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// RunnerConfig says how tasks are kept in.
type RunnerConfig struct {
	Dir      string             // the supervisor's folder, as in supervisor.Config
	Sandbox  string             // default auto
	ReadOnly []string           // host folders that sandboxed tasks see beside the system's, e.g. /opt
	Hide     []string           // host folders that they must not see, should one lie within those; Dir is hidden anyway
	Network  bool               // tasks that ask for it get the network: the host's
	MaxPIDs  int                // processes and threads of one task; default 1,024
	Disk     pcm.Bytes          // what one task may keep in its working folder; default 10 GiB
	Devices  []adapters.Devices // accelerators of this machine; tasks get those of the first kind
	NoCgroup bool               // limit by rlimits also where cgroups can be had
	Logger   *slog.Logger

	noSpaces bool // sandbox landlock without namespaces also where they can be had
}

// Runner is the supervisor's side. It implements supervisor.Runner.
type Runner struct {
	cfg     RunnerConfig
	log     *slog.Logger
	box     sandbox // nil: none
	limit   limiter
	devices *share
	spawn   chan func(born *sync.WaitGroup) (home bool) // to the spawners' threads

	mu       sync.Mutex
	children map[adapters.Key]*child // that run
}

var _ supervisor.Runner = (*Runner)(nil)

// NewRunner finds out what this machine can do. The error has code Unavailable
// if the sandbox that cfg insists on doesn't work here, and says why.
func NewRunner(cfg RunnerConfig) (*Runner, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxPIDs <= 0 {
		cfg.MaxPIDs = 1024
	}
	if cfg.Disk <= 0 {
		cfg.Disk = 10 << 30
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "folder %q: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	r := &Runner{cfg: cfg, log: cfg.Logger, devices: newShare(cfg.Devices), spawn: make(chan func(*sync.WaitGroup) bool), children: map[adapters.Key]*child{}}
	box, why, err := findSandbox(cfg)
	if err != nil {
		return nil, err
	}
	if box != nil { // a nil one stays no sandbox
		r.box = box
	}
	for _, err := range why {
		r.log.Info("the better sandbox does not work here", "err", err)
	}
	r.limit = rlimits{} // until Sweep
	for range spawners {
		go r.spawner()
	}
	return r, nil
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return Name }

// Facts implements supervisor.Runner. What is weaker than it could be stands in
// the labels.
func (r *Runner) Facts() supervisor.Facts {
	f := supervisor.Facts{Sandbox: SandboxNone, Labels: pcm.Labels{"limits": r.limit.name(), "namespaces": "no", "network": "none"}}
	r.devices.facts(&f)
	if r.box != nil {
		f.Sandbox = r.box.name()
		if r.box.namespaces() {
			f.Labels["namespaces"] = "yes"
		}
	}
	if r.cfg.Network {
		f.Labels["network"] = "host"
	} else if r.box == nil {
		f.Labels["network"] = "open" // nothing keeps tasks from it
	}
	return f
}

// Close implements supervisor.Runner.
func (r *Runner) Close(context.Context) error { return r.limit.close() }

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	if t.Module != "" || len(t.Command) == 0 || t.Command[0] == "" {
		return pcm.Errorf(pcm.Invalid, "the process adapter runs commands; attempt %s has none", t.Key)
	}
	if t.Network && !r.cfg.Network {
		return pcm.Errorf(pcm.Refused, "attempt %s asks for the network, which this node's process adapter does not give: its operator can allow it (adapters.process.network)", t.Key)
	}
	if t.Resources.Disk > r.cfg.Disk {
		return pcm.Errorf(pcm.Refused, "attempt %s asks for %s of disk, more than this node's process adapter gives a task: %s (adapters.process.disk)", t.Key, t.Resources.Disk, r.cfg.Disk)
	}
	if err := r.devices.check(t); err != nil {
		return err
	}
	return t.Resources.CheckMemory()
}

// disk is what the task may keep in its working folder.
func (r *Runner) disk(t *supervisor.Run) pcm.Bytes {
	if t.Resources.Disk > 0 {
		return t.Resources.Disk
	}
	return r.cfg.Disk
}

// Sweep takes the folder's cgroups over and kills what an earlier supervisor
// left, by these and by the attempt's mark in the environment.
func (r *Runner) Sweep(unfinished []adapters.Key) error {
	if !r.cfg.NoCgroup {
		if l, err := findCgroups(r.cfg.Dir); err == nil {
			r.limit = l
		} else {
			r.log.Info("no cgroups: limits are rlimits", "err", err)
		}
	}
	bound := unix.Rlimit{Cur: uint64(r.cfg.Disk), Max: uint64(r.cfg.Disk)} // inherited by all tasks
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &bound); err != nil {
		r.log.Warn("can't bound the size of files", "err", err)
	}
	err := r.limit.sweep()
	if len(unfinished) > 0 {
		marks := map[string]bool{}
		for _, k := range unfinished {
			marks[k.String()] = true
		}
		for range 100 {
			if killMarked(r.cfg.Dir, marks) == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond) // until the kernel has done away with them
		}
	}
	return err
}

// child is a started task.
type child struct {
	proc  *os.Process
	group group
	born  *sync.WaitGroup // of the thread that started it
}

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	if err := r.devices.take(ctx, t); err != nil {
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL)}
	}
	defer r.devices.back(t.Key)
	spec, err := r.prepare(ctx, t)
	if err != nil {
		return exitOf(ctx, err)
	}
	defer spec.close()
	out, err := newCopier(t.Stdout, spec.ran != nil)
	if err != nil {
		return seller("can't make a pipe: %v", err)
	}
	defer out.close()
	errs, err := newCopier(t.Stderr, spec.ran != nil)
	if err != nil {
		return seller("can't make a pipe: %v", err)
	}
	defer errs.close()
	resources := t.Resources
	if _, weak := r.limit.(rlimits); weak && spec.limited {
		resources.Memory = 0
	}
	grp, err := r.limit.make(t.Key.String(), resources, r.cfg.MaxPIDs)
	if err != nil {
		return seller("can't set its limits: %v", err)
	}
	defer grp.remove()
	if ctx.Err() != nil {
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL)}
	}
	c, err := r.start(spec, out.w, errs.w, grp)
	out.started()
	errs.started()
	if err != nil {
		// In a group that is full the kernel fails in many ways, as with "too many open files".
		if te := (*taskError)(nil); !errors.As(err, &te) && ctx.Err() == nil && grp.tight() {
			return tooTight(t)
		}
		return exitOf(ctx, err)
	}
	if err := settle(t, c, spec); err != nil {
		r.log.Warn("nothing can be run beside this task", "attempt", t.Key.String(), "err", err)
	}
	r.mu.Lock()
	r.children[t.Key] = c
	r.mu.Unlock()
	t.Started()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go r.watchDisk(ctx, t, c.proc.Pid, stop)
	state := r.wait(ctx, c, t, spec)
	r.mu.Lock()
	delete(r.children, t.Key)
	r.mu.Unlock()

	c.killAll(r.cfg.Dir, t.Key.String(), spec.boxed)
	out.finish()
	errs.finish()
	exit := supervisor.Exit{Outcome: pcm.OutcomeOK}
	if ru, ok := state.SysUsage().(*syscall.Rusage); ok {
		exit.CPUMS = (ru.Utime.Nano() + ru.Stime.Nano()) / 1e6
		exit.Memory = pcm.Bytes(ru.Maxrss) << 10
	}
	used := grp.usage()
	if used.peak > 0 {
		exit.Memory = used.peak
	}
	if used.cpu > 0 {
		exit.CPUMS = used.cpu.Milliseconds()
	}
	oom := used.oom
	// The sandbox may have met the limit while it was being made.
	tight := oom || grp.tight() && strings.Contains(errs.head(), "Cannot allocate memory")
	r.judge(&exit, state, oom, tight, t, spec, errs.head())
	if errors.Is(context.Cause(ctx), errDisk) && exit.Outcome != pcm.OutcomeOK {
		exit.Outcome, exit.Reason = pcm.OutcomeOutput, fmt.Sprintf("filled its working folder with more than %s", r.disk(t))
	}
	return exit
}

// wait waits for the main process, passing on what the supervisor wants of it.
func (r *Runner) wait(ctx context.Context, c *child, t *supervisor.Run, spec *spec) *os.ProcessState {
	ended := make(chan *os.ProcessState, 1)
	go func() {
		state, err := c.proc.Wait()
		if err != nil {
			r.log.Error("can't wait for a task", "attempt", t.Key.String(), "err", err)
		}
		c.born.Done()
		ended <- state
	}()
	stopping, done := t.Stopping, ctx.Done()
	for {
		select {
		case state := <-ended:
			return state
		case <-stopping:
			stopping = nil
			c.halt(false) // the suspended could not end
			c.terminate(spec)
		case <-done:
			done = nil
			c.killAll(r.cfg.Dir, t.Key.String(), spec.boxed)
		}
	}
}

// judge decides what the end of the main process means.
func (r *Runner) judge(exit *supervisor.Exit, state *os.ProcessState, oom, tight bool, t *supervisor.Run, spec *spec, stderr string) {
	ws, ok := state.Sys().(syscall.WaitStatus)
	if !ok {
		*exit = seller("its end can't be told")
		return
	}
	exit.Code = ws.ExitStatus()
	if ws.Signaled() {
		exit.Code = 128 + int(ws.Signal())
	}
	if exit.Code != 0 && !ws.Signaled() && !spec.executed() {
		if tight {
			*exit = tooTight(t)
			return
		}
		r.box.explain(exit, spec, t.Command[0], stderr)
		return
	}
	switch {
	case exit.Code == 0:
	case oom:
		exit.Outcome, exit.Reason = pcm.OutcomeMemory, fmt.Sprintf("used more than its %s of memory", t.Resources.Memory)
	case exit.Code > 128 && exit.Code < 128+65:
		exit.Outcome, exit.Reason = pcm.OutcomeFailed, fmt.Sprintf("ended by signal %d (%s)", exit.Code-128, syscall.Signal(exit.Code-128))
	default:
		exit.Outcome, exit.Reason = pcm.OutcomeFailed, fmt.Sprintf("exit code %d", exit.Code)
	}
}

// tooTight is the end of a task whose limit leaves no room to start a program.
func tooTight(t *supervisor.Run) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeMemory, Code: 128 + int(syscall.SIGKILL),
		Reason: fmt.Sprintf("its %s of memory are too little to start a program: ask for more", t.Resources.Memory)}
}

func seller(format string, args ...any) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: fmt.Sprintf(format, args...)}
}

// taskError is a fault of the task's own that shows before it runs.
type taskError struct {
	code   int
	reason string
}

func (e *taskError) Error() string { return e.reason }

func exitOf(ctx context.Context, err error) supervisor.Exit {
	var te *taskError
	switch {
	case ctx.Err() != nil:
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL)}
	case errors.As(err, &te):
		return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: te.code, Reason: te.reason}
	}
	return seller("%v", err)
}

// execError tells what a failed exec means, as a shell would.
func execError(program string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &taskError{127, fmt.Sprintf("program %q was not found here, or its interpreter was not", program)}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.E2BIG),
		errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG):
		return &taskError{126, fmt.Sprintf("program %q can't be run: %v", program, supervisor.Errno(err))}
	}
	return fmt.Errorf("can't start program %q: %w", program, supervisor.Errno(err))
}

// copier takes one stream of the task to its bounded file.
type copier struct {
	r, w *os.File
	dst  io.Writer
	keep bool // remember the beginning
	done sync.WaitGroup

	mu    sync.Mutex
	begin []byte
}

const (
	keepHead   = 512
	drainLimit = 2 * time.Second // for what is in a pipe whose writers were killed
)

var buffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func newCopier(dst io.Writer, keep bool) (*copier, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c := &copier{r: r, w: w, dst: dst, keep: keep}
	c.done.Go(c.copy)
	return c, nil
}

func (c *copier) copy() {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	full := false
	for {
		n, err := c.r.Read(*buf)
		if n > 0 && c.keep {
			c.mu.Lock()
			c.begin = append(c.begin, (*buf)[:min(n, keepHead-len(c.begin))]...)
			c.mu.Unlock()
		}
		// What is over the cap is read and dropped until the kill arrives.
		if n > 0 && !full {
			_, werr := c.dst.Write((*buf)[:n])
			full = werr != nil
		}
		if err != nil {
			return
		}
	}
}

// started lets go of the task's end, so that the stream ends when the task has.
func (c *copier) started() { c.w.Close(); c.w = nil }

// finish waits until everything that was written has been copied.
func (c *copier) finish() {
	c.r.SetReadDeadline(time.Now().Add(drainLimit))
	c.done.Wait()
}

func (c *copier) close() {
	if c.w != nil {
		c.w.Close()
	}
	c.r.SetReadDeadline(time.Now())
	c.done.Wait()
	c.r.Close()
}

func (c *copier) head() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.begin)
}
