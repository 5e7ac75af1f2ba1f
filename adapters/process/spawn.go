package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm/adapters/supervisor"
)

// spawners is how many threads start processes. The kernel ties a child's
// parent-death signal to the thread that forked it, so these don't end before
// their children.
const spawners = 4

// defaultPath is the PATH of tasks that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// spawner makes this goroutine's thread one that starts processes. It must not
// be the main thread: that one stands for the whole process in a control group,
// with its memory and when one is chosen to be killed, and it can't end alone.
func (r *Runner) spawner() {
	runtime.LockOSThread()
	if syscall.Gettid() != os.Getpid() {
		r.serve()
		return
	}
	begun := make(chan struct{})
	go func() { // on another thread: this one is taken
		runtime.LockOSThread()
		close(begun)
		r.serve()
	}()
	<-begun
	runtime.UnlockOSThread()
}

// serve starts processes. A thread that is stuck in a task's group starts no
// more, so that nothing else is born there; another takes its place.
func (r *Runner) serve() {
	var born sync.WaitGroup // children of this thread that are alive
	for f := range r.spawn {
		if f(&born) {
			continue
		}
		r.log.Warn("a thread can't leave a task's control group: it ends with its last child", "thread", syscall.Gettid())
		go r.spawner()
		born.Wait()
		return // still locked, which ends the thread
	}
}

// spec is a process ready to be started.
type spec struct {
	path    string
	argv    []string
	env     []string
	dir     string
	program string // as the task names it
	boxed   bool   // in namespaces that end, with all within, with this process
	// How many processes of the sandbox stand between this one and the task.
	wrappers int
	sys      *syscall.SysProcAttr // nil: only what every task has

	// What a sandbox has to say, and whether that means that the program ran; nil
	// where the process is the program itself.
	ran     func(report []byte) bool
	report  *os.File // read end
	reportW *os.File
	heard   []byte
	pass    []*os.File // inherited after reportW
	copied  *os.File   // the copy of the program that is run; nil: itself

	limited bool // it sets the rlimit of memory itself, when it is to run the program

	cell cell // for what is run beside it
}

func (s *spec) close() {
	s.launched()
	if s.report != nil {
		s.report.Close()
	}
}

// reports makes the way on which the sandbox reports.
func (s *spec) reports() (err error) {
	s.report, s.reportW, err = os.Pipe()
	return err
}

// files are inherited from the third on.
func (s *spec) files() []*os.File {
	if s.reportW == nil {
		return nil
	}
	return append([]*os.File{s.reportW}, s.pass...)
}

// launched lets go of what only the process needs.
func (s *spec) launched() {
	for _, f := range s.files() {
		f.Close()
	}
	if s.copied != nil {
		s.copied.Close()
	}
	s.reportW, s.pass, s.copied = nil, nil, nil
}

// runPrivate makes it run a copy of its program.
func (s *spec) runPrivate() (err error) {
	if s.copied, err = private(s.path); err == nil {
		s.path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.copied.Fd())
	}
	return err
}

// said is what the sandbox reported up to its end.
func (s *spec) said() []byte {
	if s.heard == nil && s.report != nil {
		s.launched()
		s.report.SetReadDeadline(soon())
		s.heard, _ = io.ReadAll(io.LimitReader(s.report, 4096))
	}
	return s.heard
}

// executed tells whether the program itself was run.
func (s *spec) executed() bool { return s.ran == nil || s.ran(s.said()) }

// prepare lays out the inputs and makes the command line.
func (r *Runner) prepare(ctx context.Context, t *supervisor.Run) (*spec, error) {
	extra := surroundings{network: t.Network, scratch: t.Resources.Memory}
	if extra.scratch == 0 || extra.scratch > r.cfg.Disk {
		extra.scratch = r.cfg.Disk
	}
	if r.limit.name() == (rlimits{}).name() {
		extra.processes, extra.memory = r.cfg.MaxPIDs, t.Resources.Memory
	}
	r.devices.give(t.Key, &extra)
	if r.box != nil {
		return r.box.prepare(t, extra)
	}
	for _, in := range t.Inputs {
		if err := supervisor.CopyInput(ctx, in, t.Work); err != nil {
			return nil, err
		}
	}
	env := environ(t.Task, t.Work, extra)
	program, err := lookPath(t.Command[0], t.Work, env)
	if err != nil {
		return nil, err
	}
	return &spec{path: program, argv: t.Command, env: env, dir: t.Work, program: t.Command[0],
		cell: cell{Walls: SandboxNone, Network: true, Work: t.Work, Env: env}}, nil
}

// lookPath finds the program as execvp would: a name with a slash is relative
// to the working folder, others are looked up in the task's own PATH.
func lookPath(name, work string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if filepath.IsAbs(name) {
			return name, nil
		}
		return filepath.Join(work, name), nil
	}
	var dirs string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			dirs = v
		}
	}
	var denied error
	for _, dir := range filepath.SplitList(dirs) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(work, dir)
		}
		p := path.Join(dir, name)
		info, err := os.Stat(p)
		if err != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return p, nil
		}
		denied = execError(name, fs.ErrPermission)
	}
	if denied != nil {
		return "", denied
	}
	return "", &taskError{127, fmt.Sprintf("program %q was not found here: PATH is %s", name, dirs)}
}

// start starts the process within its limits, on a spawner's thread.
func (r *Runner) start(s *spec, stdout, stderr *os.File, grp group) (*child, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	attr := &os.ProcAttr{Dir: s.dir, Env: s.env, Files: append([]*os.File{null, stdout, stderr}, s.files()...), Sys: s.sys}
	if attr.Sys == nil {
		attr.Sys = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	}
	type result struct {
		child *child
		err   error
	}
	done := make(chan result, 1)
	r.spawn <- func(born *sync.WaitGroup) bool {
		proc, home, err := grp.start(attr, func() (*os.Process, error) { return spawn(s, attr) })
		if err == nil {
			born.Add(1)
		}
		done <- result{&child{proc, grp, born}, err}
		return home
	}
	res := <-done
	s.launched()
	if res.err != nil {
		return nil, execError(s.program, res.err)
	}
	return res.child, nil
}

// spawn starts the process. A program that was just copied may still be open
// for writing in a child that another thread has forked but that has not yet
// become its own program: that passes.
func spawn(s *spec, attr *os.ProcAttr) (*os.Process, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		proc, err := os.StartProcess(s.path, s.argv, attr)
		if !errors.Is(err, syscall.ETXTBSY) || wait > time.Second {
			return proc, err
		}
		time.Sleep(wait)
	}
}
