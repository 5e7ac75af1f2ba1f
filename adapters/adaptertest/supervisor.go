package adaptertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters/adaptertest/script"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The variables by which a test binary knows that it is something else.
const (
	envSupervisor = "PCM_TEST_SUPERVISOR" // the folder to serve
	envMode       = "PCM_TEST_MODE"       // free for the package under test
	envIdle       = "PCM_TEST_IDLE"
	// EnvTask marks a run of the test binary as that of a task: see [script.Main].
	EnvTask = "PCM_TEST_TASK"
)

// Main is the TestMain of packages that need a supervisor: the test binary
// serves as that, as a task and as the tests. runners makes the runners of the
// supervisor of dir, in the mode that the test asked for.
func Main(m *testing.M, runners func(ctx context.Context, dir, mode string) ([]supervisor.Runner, error)) {
	switch {
	case os.Getenv(EnvTask) != "":
		script.Main(os.Args[1:])
		os.Exit(0)
	case os.Getenv(envSupervisor) != "":
		if err := serve(runners); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Setenv("PCM_TEST_SECRET", "of the daemon") // tasks must not see it
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func serve(runners func(ctx context.Context, dir, mode string) ([]supervisor.Runner, error)) error {
	ctx, stop := terminated()
	defer stop()
	dir := os.Getenv(envSupervisor)
	rs, err := runners(ctx, dir, os.Getenv(envMode))
	if err != nil {
		return err
	}
	idle, _ := time.ParseDuration(os.Getenv(envIdle))
	return supervisor.Serve(ctx, supervisor.Config{Dir: dir, Runners: rs, Version: os.Getenv("PCM_TEST_VERSION"), Idle: idle})
}

// Box is a supervisor of its own for one test.
type Box struct {
	t       testing.TB
	Dir     string
	Mode    string
	Version string
	Idle    time.Duration
	Argv    []string // the supervisor's command; nil: the test binary, see [Main]
	Env     []string // of its, beside what a supervisor has
	client  *supervisor.Client
}

// NewBox makes a box; its supervisor starts with the first call. Whatever runs
// in it ends with the test.
func NewBox(t testing.TB, mode string) *Box {
	t.Helper()
	// Not t.TempDir: a socket's path must be short, and the folder must be one
	// that a sandbox hides.
	dir, err := os.MkdirTemp("", "pcm")
	if err != nil {
		t.Fatal(err)
	}
	b := &Box{t: t, Dir: dir, Mode: mode}
	t.Cleanup(func() {
		b.End()
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(dir, "supervisor.log")); err == nil {
				t.Logf("the supervisor's log:\n%s", log)
			}
		}
		os.RemoveAll(dir)
	})
	return b
}

// Client gives the box's client, made on first use.
func (b *Box) Client() *supervisor.Client {
	if b.client == nil {
		b.client = supervisor.NewClient(b.Config())
	}
	return b.client
}

// Config is the configuration of a client of this box.
func (b *Box) Config() supervisor.ClientConfig {
	exe, err := os.Executable()
	if err != nil {
		b.t.Fatal(err)
	}
	argv := b.Argv
	if argv == nil {
		argv = []string{exe}
	}
	return supervisor.ClientConfig{
		Dir: b.Dir, Argv: argv, Version: b.Version, StartTimeout: 30 * time.Second,
		Env: append([]string{envSupervisor + "=" + b.Dir, envMode + "=" + b.Mode, envIdle + "=" + b.Idle.String(), "PCM_TEST_VERSION=" + b.Version}, b.Env...),
	}
}

// Reconnect drops the client, as the end of the daemon does, and makes a new one.
func (b *Box) Reconnect() *supervisor.Client {
	if b.client != nil {
		b.client.Close()
	}
	b.client = nil
	return b.Client()
}

// PID is the supervisor's process.
func (b *Box) PID() int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	pid, err := b.Client().PID(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return pid
}

// Signal sends the supervisor a signal.
func (b *Box) Signal(sig syscall.Signal) {
	b.t.Helper()
	if err := syscall.Kill(b.PID(), sig); err != nil {
		b.t.Fatal(err)
	}
}

// Kill ends the supervisor as a crash would, and waits until it is gone.
func (b *Box) Kill() {
	b.t.Helper()
	b.Signal(syscall.SIGKILL)
	b.Gone()
}

// Hang stops the supervisor, until resume is called.
func (b *Box) Hang() (resume func()) {
	b.t.Helper()
	pid := b.PID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		b.t.Fatal(err)
	}
	resume = sync.OnceFunc(func() { syscall.Kill(pid, syscall.SIGCONT) })
	// A signal stops the threads one by one.
	for end := time.Now().Add(20 * time.Second); !stopped(pid); {
		if time.Now().After(end) {
			resume()
			b.t.Fatal("the supervisor can't be stopped")
		}
		<-time.After(time.Millisecond)
	}
	return resume
}

// stopped tells whether every thread of the process is in state T.
func stopped(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		data, err := os.ReadFile(name)
		if i := bytes.LastIndexByte(data, ')'); err != nil || i < 0 || i+2 >= len(data) || data[i+2] != 'T' {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

// Gone waits until no supervisor serves the box.
func (b *Box) Gone() {
	b.t.Helper()
	f, err := os.Open(filepath.Join(b.Dir, "supervisor.lock"))
	if err != nil {
		return // there never was one
	}
	defer f.Close()
	got := make(chan error, 1)
	go func() { got <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err := <-got:
		if err != nil {
			b.t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		b.t.Fatal("the supervisor does not end")
	}
}

// End ends the supervisor, if one was started.
func (b *Box) End() {
	cfg := b.Config()
	cfg.Argv = nil
	c := supervisor.NewClient(cfg)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if pid, err := c.PID(ctx); err == nil {
		syscall.Kill(pid, syscall.SIGTERM)
	}
	if b.client != nil {
		b.client.Close()
	}
	b.Gone()
}
