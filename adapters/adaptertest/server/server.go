// Package server starts real back ends, each a private instance in a temporary
// folder, for tests, the demo and the bench. One file a server.
package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// ErrMissing is in errors that say that a server's programs are not installed.
var ErrMissing = errors.New("not installed")

// Need finds the programs; those that are missing are named in the error, which
// holds ErrMissing.
func Need(programs ...string) (map[string]string, error) {
	found := map[string]string{}
	var missing []string
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil && !strings.Contains(p, "/") { // not in everybody's path
			path, err = exec.LookPath(filepath.Join("/usr/sbin", p))
		}
		if err != nil {
			missing = append(missing, p)
			continue
		}
		found[p] = path
	}
	if len(missing) > 0 {
		return nil, pcm.Errorf(pcm.NotFound, "%w: %s (.ci/backends installs it)", ErrMissing, strings.Join(missing, ", "))
	}
	return found, nil
}

// Folder is where one server keeps everything, and how its processes are known.
type Folder struct {
	Dir string // short, as sockets need; its owner alone enters, unless that is changed
}

// envServers set to "none" has no server started, installed or not: for runs of
// tests that are to be quick.
const envServers = "PCM_TEST_SERVERS"

// NewFolder makes one, named after the server.
func NewFolder(name string) (*Folder, error) {
	if os.Getenv(envServers) == "none" {
		return nil, pcm.Errorf(pcm.NotFound, "%w, or as good as that: %s is none", ErrMissing, envServers)
	}
	dir, err := os.MkdirTemp("", "pcm-"+name+"-")
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't make a folder for %s: %w", name, err)
	}
	return &Folder{Dir: dir}, nil
}

// Path is a name below the folder.
func (f *Folder) Path(elem ...string) string {
	return filepath.Join(append([]string{f.Dir}, elem...)...)
}

// Write makes a file, and the folders above it.
func (f *Folder) Write(name, text string, mode os.FileMode) error {
	p := f.Path(name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(p, []byte(text), mode); err != nil {
		return err
	}
	return os.Chmod(p, mode) // whatever the umask
}

// envFolder marks the processes of a folder, and those that they start.
const envFolder = "PCM_TEST_SERVER"

// Close ends what still runs in the folder and deletes it. What had to be ended
// by force is named in the error.
func (f *Folder) Close() error {
	var left []string
	for try := 0; ; try++ {
		all := f.processes()
		if len(all) == 0 {
			break
		}
		for pid, name := range all {
			if try == 0 {
				left = append(left, fmt.Sprintf("%s (process %d)", name, pid))
			}
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if try == 100 {
			return pcm.Errorf(pcm.Unavailable, "processes of %s can't be ended: %v", f.Dir, all)
		}
		<-time.After(20 * time.Millisecond)
	}
	unmount(f.Dir)
	if err := os.RemoveAll(f.Dir); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't delete %s: %w", f.Dir, err)
	}
	if len(left) > 0 {
		return pcm.Errorf(pcm.Internal, "were left running and killed: %s", strings.Join(left, ", "))
	}
	return nil
}

// unmount takes away what is mounted below dir, the last first.
func unmount(dir string) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	lines := strings.Split(string(data), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if field := strings.Fields(lines[i]); len(field) > 4 && strings.HasPrefix(field[4], dir+"/") {
			syscall.Unmount(field[4], syscall.MNT_DETACH)
		}
	}
}

// processes finds those that carry the folder's mark, name it in their command or
// work in it; not this one.
func (f *Folder) processes() map[int]string {
	all := map[int]string{}
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		pid, _ := strconv.Atoi(filepath.Base(name))
		if pid == os.Getpid() {
			continue
		}
		command, err := os.ReadFile(name + "/cmdline")
		if err != nil || len(command) == 0 { // of the kernel, or ended
			continue
		}
		env, _ := os.ReadFile(name + "/environ")
		cwd, _ := os.Readlink(name + "/cwd")
		if bytes.Contains(command, []byte(f.Dir)) || strings.HasPrefix(cwd, f.Dir) ||
			bytes.Contains(append([]byte{0}, env...), []byte("\x00"+envFolder+"="+f.Dir+"\x00")) {
			all[pid] = strings.ReplaceAll(strings.TrimRight(string(command[:min(len(command), 120)]), "\x00"), "\x00", " ")
		}
	}
	return all
}

// Process is a server's process in a session of its own.
type Process struct {
	Name string
	Log  string // what it printed
	cmd  *exec.Cmd
	done chan struct{}
	once sync.Once
	err  error // how it ended; read after done
}

// Start starts a program whose output goes to a log file named name.log.
func (f *Folder) Start(name string, env []string, path string, args ...string) (*Process, error) {
	log, err := os.OpenFile(f.Path(name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't make the log of %s: %w", name, err)
	}
	defer log.Close()
	p := &Process{Name: name, Log: log.Name(), cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = append(append(os.Environ(), envFolder+"="+f.Dir), env...)
	p.cmd.Dir = f.Dir
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't start %s: %w", name, err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

// PID is the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process and its group.
func (p *Process) Signal(sig syscall.Signal) { syscall.Kill(-p.PID(), sig) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop asks the process to end and kills its group after grace.
func (p *Process) Stop(grace time.Duration) {
	p.once.Do(func() { syscall.Kill(p.PID(), syscall.SIGTERM) })
	select {
	case <-p.done:
	case <-time.After(grace):
		p.Kill()
	}
}

// Kill ends the process and its group as a crash would.
func (p *Process) Kill() {
	p.Signal(syscall.SIGCONT)
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Hang stops the process and its group until resume is called.
func (p *Process) Hang() (resume func()) {
	p.Signal(syscall.SIGSTOP)
	// The threads of a process stop one by one, and the last may still answer.
	for end := time.Now().Add(10 * time.Second); !p.stopped() && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
	return sync.OnceFunc(func() { p.Signal(syscall.SIGCONT) })
}

// stopped tells whether every thread of the process is.
func (p *Process) stopped() bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.PID()))
	for _, name := range threads {
		data, err := os.ReadFile(name)
		if i := bytes.LastIndexByte(data, ')'); err != nil || i < 0 || i+2 >= len(data) || data[i+2] != 'T' {
			return false
		}
	}
	return err == nil
}

// Ready waits until f finds nothing wrong. If that doesn't come, or the process
// ends, the error says what f found last and what the process printed.
func (p *Process) Ready(ctx context.Context, f func(context.Context) error) error {
	var last error
	for {
		if last = f(ctx); last == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
			continue
		case <-p.done:
			last = fmt.Errorf("it ended: %v; %w", p.err, last)
		case <-ctx.Done():
		}
		log, _ := os.ReadFile(p.Log)
		return pcm.Errorf(pcm.Unavailable, "%s does not get ready: %w\n%s", p.Name, last, log[max(0, len(log)-4096):])
	}
}

// Run runs a program to its end and gives what it printed on stdout.
func (f *Folder) Run(ctx context.Context, env []string, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(append(os.Environ(), envFolder+"="+f.Dir), env...)
	cmd.Dir = f.Dir
	cmd.WaitDelay = 5 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), pcm.Errorf(pcm.Unavailable, "%s %s: %w: %.2000s", filepath.Base(path), strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}
