package process

import (
	"bytes"
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
	path     string
	argv     []string
	env      []string
	dir      string
	program  string // as the task names it
	bwrapped bool

	report  *os.File // where bubblewrap reports; read end
	reportW *os.File
}

func (s *spec) close() {
	for _, f := range []*os.File{s.report, s.reportW} {
		if f != nil {
			f.Close()
		}
	}
}

// executed tells whether bubblewrap got as far as running the program.
func (s *spec) executed() bool {
	if s.reportW != nil {
		s.reportW.Close()
		s.reportW = nil
	}
	s.report.SetReadDeadline(soon())
	data, _ := io.ReadAll(io.LimitReader(s.report, 4096))
	return bytes.Contains(data, []byte(`"exit-code"`))
}

// prepare lays out the inputs and makes the command line.
func (r *Runner) prepare(ctx context.Context, t *supervisor.Run) (*spec, error) {
	if r.bwrap != nil {
		return r.bwrap.prepare(t)
	}
	for _, in := range t.Inputs {
		if err := copyInput(ctx, in, t.Work); err != nil {
			return nil, err
		}
	}
	env := supervisor.Environ(t.Task, t.Work, defaultPath)
	program, err := lookPath(t.Command[0], t.Work, env)
	if err != nil {
		return nil, err
	}
	return &spec{path: program, argv: t.Command, env: env, dir: t.Work, program: t.Command[0]}, nil
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
	attr := &os.ProcAttr{
		Dir: s.dir, Env: s.env, Files: []*os.File{null, stdout, stderr},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	if s.reportW != nil {
		attr.Files = append(attr.Files, s.reportW)
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
	if s.reportW != nil {
		s.reportW.Close()
		s.reportW = nil
	}
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
