// Package machine is what the fake clouds have in common: they really run their
// tasks, as processes of this machine, and they fail on demand. Nothing keeps a
// task in but a folder of its own: fakes are for tests and for play.
package machine

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a task, whatever its spec says.
const (
	defaultOutput = 64 << 20 // bytes of output that are kept
	maxCPUSeconds = 900      // of one process, should it outlive its fake
	lastOutput    = 2 * time.Second
)

// Spec says what to run.
type Spec struct {
	Dir         string   // the working folder; made if it isn't there
	Command     []string // looked up in this process's PATH
	Env         []string // the whole environment, NAME=VALUE
	Output      string   // the file that both streams are appended to; "": Dir with ".log" behind it
	OutputLimit int64    // bytes that are kept, the rest is dropped; 0: 64 MiB
	Memory      int64    // bytes that all its processes may hold together; 0: no bound

	// What happens when they hold more: all are killed, as in a container, and what
	// was too quick to be seen counts as killed; with Hungriest only the one that holds most, as a
	// machine's own kernel does it, and the function is told which. One that asks for a
	// quarter more gets none then, seen or not.
	Hungriest func(pid int)
}

// Exit is how a process ended.
type Exit struct {
	Code         int  // 128+n for signal n
	OutOfMemory  bool // it, or a part of it, was killed for holding more than it may
	Stopped      bool // Stop or Kill was called before it had ended
	Began, Ended time.Time
	CPU          time.Duration // of what was waited for
	Memory       int64         // the most that was seen, in bytes
}

// Process is a command with all that it has started.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	kin  *kin
	done chan struct{}

	mu   sync.Mutex
	exit Exit // whole when done is closed
}

// Run starts a command in a session of its own.
func Run(spec Spec) (*Process, error) {
	if len(spec.Command) == 0 {
		return nil, errors.New("machine: there is no command to run")
	}
	if err := os.MkdirAll(spec.Dir, 0o755); err != nil {
		return nil, err
	}
	if spec.Output == "" {
		spec.Output = filepath.Clean(spec.Dir) + ".log"
	}
	if spec.OutputLimit <= 0 {
		spec.OutputLimit = defaultOutput
	}
	file, err := os.OpenFile(spec.Output, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	from, to, err := os.Pipe()
	if err != nil {
		file.Close()
		return nil, err
	}
	argv := slices.Clone(spec.Command)
	if spec.Memory > 0 && spec.Hungriest != nil {
		if argv[0], err = exec.LookPath(argv[0]); err != nil {
			from.Close()
			to.Close()
			file.Close()
			return nil, err
		}
		argv = append([]string{"/bin/sh", "-c", "ulimit -d " + strconv.FormatInt(spec.Memory/4*5>>10, 10) + ` && exec "$@"`, "sh"}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = spec.Dir, spec.Env, to, to
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	p := &Process{spec: spec, cmd: cmd, done: make(chan struct{})}
	p.exit.Began = time.Now()
	err = cmd.Start()
	to.Close()
	if err != nil {
		from.Close()
		file.Close()
		return nil, err
	}
	limit := unix.Rlimit{Cur: maxCPUSeconds, Max: maxCPUSeconds}
	_ = unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_CPU, &limit, nil) // it may have ended
	p.kin = watch(cmd.Process.Pid, spec.Memory, spec.Hungriest)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		defer file.Close()
		// What is over the limit is read all the same, or the task would stand still.
		_, _ = io.CopyN(file, from, spec.OutputLimit)
		_, _ = io.Copy(io.Discard, from)
	}()
	go p.wait(from, copied)
	return p, nil
}

func (p *Process) wait(output *os.File, copied <-chan struct{}) {
	_ = p.cmd.Wait() // ProcessState says it all
	memory, out := p.kin.leave()
	_ = output.SetReadDeadline(time.Now().Add(lastOutput))
	<-copied
	output.Close()
	state := p.cmd.ProcessState
	p.mu.Lock()
	defer p.mu.Unlock()
	p.exit.Code = state.ExitCode()
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		p.exit.Code = 128 + int(ws.Signal())
	}
	p.exit.Ended, p.exit.CPU = time.Now(), state.UserTime()+state.SystemTime()
	p.exit.Memory, p.exit.OutOfMemory = memory, out
	// The kernel's figure is of one process, and counts what this one has ever held when it forked.
	var own syscall.Rusage
	use, ok := state.SysUsage().(*syscall.Rusage)
	if ok && memory == 0 {
		p.exit.Memory = use.Maxrss << 10
	}
	if limit := p.spec.Memory; ok && limit > 0 && p.spec.Hungriest == nil && !out && use.Maxrss<<10 > limit &&
		syscall.Getrusage(syscall.RUSAGE_SELF, &own) == nil && use.Maxrss > own.Maxrss {
		p.exit.Code, p.exit.OutOfMemory, p.exit.Memory = 128+int(syscall.SIGKILL), true, use.Maxrss<<10
	}
	close(p.done)
}

// Done is closed when the process and all that it has started have ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end.
func (p *Process) Wait() Exit {
	<-p.done
	return p.exit
}

// Stop asks the command's process group to end and kills all after grace. It doesn't wait.
func (p *Process) Stop(grace time.Duration) {
	if !p.stopping() {
		return
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGCONT)
	go func() {
		select {
		case <-p.done:
		case <-time.After(grace):
			p.kin.kill()
		}
	}()
}

// Kill ends the command and all that it has started. It doesn't wait.
func (p *Process) Kill() {
	if p.stopping() {
		p.kin.kill()
	}
}

// stopping notes that the end is wanted; false if it has come.
func (p *Process) stopping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		p.exit.Stopped = true
		return true
	}
}

// Pause halts all its processes, or lets them go on.
func (p *Process) Pause(on bool) {
	select {
	case <-p.done:
		return
	default:
	}
	signal := syscall.SIGCONT
	if on {
		signal = syscall.SIGSTOP
	}
	p.kin.signal(signal)
}

// OutputPath is the file that holds what the process has printed.
func (p *Process) OutputPath() string { return p.spec.Output }

// Output reads at most n bytes of what the process has printed, from offset, and
// tells how much there is in all.
func (p *Process) Output(offset int64, n int) (data []byte, total int64) {
	return ReadAt(p.spec.Output, offset, n)
}

// ReadAt reads at most n bytes of a file from offset, and tells how long the file
// is. One that isn't there is empty.
func ReadAt(path string, offset int64, n int) (data []byte, total int64) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0
	}
	total = info.Size()
	if offset < 0 || offset >= total || n <= 0 {
		return nil, total
	}
	data = make([]byte, min(int64(n), total-offset))
	got, _ := f.ReadAt(data, offset)
	return data[:got], total
}

// WriteFile writes a file that may be run at once. No process that is started meanwhile
// inherits it open: the kernel would not run it then.
func WriteFile(name string, data []byte, mode os.FileMode) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(name, data, mode)
}
