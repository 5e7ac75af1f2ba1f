// Package nodetest runs real peers: processes of the pcm program on loopback,
// for tests of what peers do together.
package nodetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm/node/api"
)

// Process is one peer: a daemon in a process of its own. Its methods may be
// called by one goroutine at a time; Kill and Sweep by any.
type Process struct {
	Binary string   // path of pcm
	Name   string   // of the peer
	Dir    string   // data folder
	Config string   // path of a YAML file; "": none
	Log    string   // path of the file that the daemon's output is appended to
	Env    []string // besides PATH and HOME

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when cmd has ended
	client *api.Client
	listen []string // where the peer listened when it was ready first
}

// Start starts the daemon, with arguments of 'pcm up' besides those that say
// where it is. It listens on any free ports, later on the same ones again.
func (p *Process) Start(args ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		select {
		case <-p.ended:
		default:
			return fmt.Errorf("%s runs already", p.Name)
		}
	}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	up := []string{"up", "--data", p.Dir, "--api", "127.0.0.1:0", "--name", p.Name}
	if p.Config != "" {
		up = append(up, "--config", p.Config)
	}
	listen := p.listen
	if listen == nil {
		listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	}
	for _, l := range listen {
		up = append(up, "--listen", l)
	}
	cmd := exec.Command(p.Binary, append(up, args...)...)
	cmd.Env = p.environ()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:   true,            // a terminal's Ctrl-C is for its owner, who ends the peers in order
		Pdeathsig: syscall.SIGKILL, // an owner that is killed leaves none; supervisors end by themselves then
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait() // the state is kept in cmd
	}()
	p.cmd, p.ended = cmd, ended
	return nil
}

func (p *Process) environ() []string {
	return append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + filepath.Dir(p.Dir), "TMPDIR=" + os.TempDir()}, p.Env...)
}

// Client speaks to the peer over the unix socket in its data folder.
func (p *Process) Client() *api.Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client == nil {
		c, err := api.Dial(api.Target{Data: p.Dir})
		if err != nil {
			panic(err) // only of a target that names no node
		}
		p.client = c
	}
	return p.client
}

// AwaitReady waits until the peer takes work.
func (p *Process) AwaitReady(ctx context.Context) error {
	c := p.Client()
	err := Await(ctx, func(ctx context.Context) error {
		select {
		case <-p.Ended():
			return Final(fmt.Errorf("%s has ended:\n%s", p.Name, p.Tail(20)))
		default:
			return c.Ready(ctx)
		}
	})
	if err != nil {
		return fmt.Errorf("%s is not ready: %w", p.Name, err)
	}
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listen = nil
	for _, l := range st.Listen {
		addr, _, _ := strings.Cut(l, "/p2p/")
		p.listen = append(p.listen, addr)
	}
	return nil
}

// Ended is closed when the daemon has ended.
func (p *Process) Ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ended
}

// ExitCode is the daemon's, after it ended; -1 if a signal ended it.
func (p *Process) ExitCode() int {
	<-p.Ended()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.ProcessState.ExitCode()
}

// PID is the daemon's.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// Kill ends the daemon as a crash would. Its supervisor and tasks are left.
func (p *Process) Kill() { p.signal(syscall.SIGKILL, time.Minute) }

// Freeze stops the daemon's time, as a machine that swaps or a paused VM would; Thaw lets it go on.
func (p *Process) Freeze() { p.send(syscall.SIGSTOP) }

// Thaw ends Freeze.
func (p *Process) Thaw() { p.send(syscall.SIGCONT) }

// Supervisor is the process that runs the peer's tasks; 0 if there is none.
func (p *Process) Supervisor() int {
	for _, pid := range processesOf(p.Dir) {
		cmdline, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if args := strings.Split(string(cmdline), "\x00"); len(args) > 1 && args[1] == "supervise" {
			return pid
		}
	}
	return 0
}

func (p *Process) send(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Signal(s) // one that has ended needs none
	}
}

// Stop ends the daemon as an operator would, and tells how long that took.
func (p *Process) Stop() (time.Duration, error) {
	began := time.Now()
	if !p.signal(syscall.SIGTERM, 15*time.Second) {
		p.Kill()
		return time.Since(began), fmt.Errorf("%s did not end within 15 s of SIGTERM", p.Name)
	}
	return time.Since(began), nil
}

// signal sends a signal to the daemon and waits for its end; false if that did not come.
func (p *Process) signal(s os.Signal, patience time.Duration) bool {
	p.mu.Lock()
	cmd, ended, client := p.cmd, p.ended, p.client
	p.mu.Unlock()
	if cmd == nil {
		return true
	}
	cmd.Process.Signal(s) // one that has ended already needs none
	if client != nil {
		client.Close()
	}
	select {
	case <-ended:
		return true
	case <-time.After(patience):
		return false
	}
}

// Sweep ends what the peer's supervisor still runs, and the supervisor itself:
// processes that name the data folder on their command line, or work in it.
func (p *Process) Sweep() error {
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		left := processesOf(p.Dir)
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			syscall.Kill(pid, syscall.SIGKILL) // one that has just ended is gone from the next list
		}
		select {
		case <-tick.C:
		case <-deadline:
			return fmt.Errorf("processes %v of %s don't end", left, p.Name)
		}
	}
}

// processesOf lists the processes that belong to a data folder.
func processesOf(dir string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A zombie, or one that ended meanwhile, has neither.
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		cwd, _ := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if cwd == dir || strings.HasPrefix(cwd, dir+"/") || bytes.Contains(cmdline, []byte(dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Leftovers lists processes that work in a folder or name it on their command line.
func Leftovers(dir string) []int { return processesOf(dir) }

// Tail is the end of the daemon's log.
func (p *Process) Tail(lines int) string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Result is how a run of the command line ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Command is a run of the command line against this peer.
func (p *Process) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.Binary, args...)
	cmd.Env = append(p.environ(), "PCM_DATA="+p.Dir)
	return cmd
}

// CLI runs the command line against this peer.
func (p *Process) CLI(ctx context.Context, args ...string) (Result, error) {
	return Run(p.Command(ctx, args...))
}

// Run runs a command. An exit status other than 0 is a result, not an error.
func Run(cmd *exec.Cmd) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.Code, err = exit.ExitCode(), nil
	}
	return r, err
}

// finalError is not worth another look.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

// Final marks an error of a condition that can't come true any more.
func Final(err error) error { return finalError{err} }

// Await waits until a condition holds: until it returns nil, or ctx ends. Its
// error is the condition's last.
func Await(ctx context.Context, condition func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := condition(ctx)
		var final finalError
		if err == nil || errors.As(err, &final) {
			return err
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", last)
		}
	}
}

// Build makes the pcm program of this module in a folder.
func Build(dir string, log io.Writer) (string, error) {
	binary := filepath.Join(dir, "pcm")
	cmd := exec.Command("go", "build", "-o", binary, "github.com/jointcloud/pcm/cmd/pcm")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("can't build pcm: %w", err)
	}
	return binary, nil
}
