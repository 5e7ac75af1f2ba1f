package plugin

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/plugin/plugintest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The test binary is the tests, a supervisor, a task, the plug-in and its keepers.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		var err error
		switch os.Args[1] {
		case plugintest.WordKeeper:
			err = plugintest.Keep(os.Args[2])
		case plugintest.WordPlugin:
			err = servePlugin(os.Args[2])
		default:
			err = errNotThat
		}
		if err != errNotThat {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		cfg := testConfig(dir, mode)
		cfg.Logger = slog.New(slog.NewJSONHandler(os.Stderr, nil))
		r, err := NewRunner(cfg)
		return []supervisor.Runner{r}, err
	})
}

var errNotThat = fmt.Errorf("not a run of the plug-in")

const testSecret = "open-sesame"

// testConfig is a plug-in in the mode "MODE [user]".
func testConfig(dir, mode string) Config {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	mode, user, _ := strings.Cut(mode, " ")
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(testSecret+"\n"), 0o600); err != nil {
		panic(err)
	}
	if user != "" {
		exe = othersProgram(dir) // the test binary's folder is ours alone
	}
	return Config{
		Name: "proc", Command: []string{exe, plugintest.WordPlugin, mode}, User: user, Dir: dir, Instance: "test", Version: "test",
		Settings: []byte(`{"answer": 42}`), Secrets: map[string]string{"token": "file:" + token}, Times: testTimes(mode),
	}
}

// othersProgram is a copy of the test binary that other users can run.
func othersProgram(dir string) string { return filepath.Join(dir+".exe", "plugin") }

// script makes a task run the test binary, which it has as an input.
func script(t *testing.T, task *adapters.Task, steps ...string) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	task.Command = append([]string{"./task"}, steps...)
	task.Env = map[string]string{adaptertest.EnvTask: "1"}
	task.Inputs = []adapters.Mount{{Path: exe, Target: "task"}}
}

func newAdapter(t *testing.T, box *adaptertest.Box, client *supervisor.Client) *Adapter {
	t.Helper()
	a, err := New(testConfig(box.Dir, box.Mode), true, client)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// instance is a plug-in under a supervisor of its own.
func instance(t *testing.T, mode string) adaptertest.Instance {
	t.Helper()
	box := adaptertest.NewBox(t, mode)
	f, err := testConfig(box.Dir, mode).folders()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(f.logFile()); err == nil {
				t.Logf("the plug-in's log:\n%.4000s", log)
			}
		}
		box.End()
		if s, err := loadState(f.stateFile()); err == nil { // of a supervisor that was killed, in a test that broke off
			if p := adopt(s); p != nil {
				p.terminate(0)
			}
		}
		if f.apart {
			os.RemoveAll(filepath.Dir(f.place))
		}
	})
	if f.apart {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Dir(othersProgram(box.Dir))
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(to) })
		data, err := os.ReadFile(exe)
		if err == nil {
			err = os.WriteFile(othersProgram(box.Dir), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ins := adaptertest.Instance{Adapter: newAdapter(t, box, box.Client()), Box: box}
	ins.Reconnect = func() adapters.Adapter { return newAdapter(t, box, box.Reconnect()) }
	ins.Hang = func() func() {
		pid := pluginPID(t, f)
		syscall.Kill(pid, syscall.SIGSTOP)
		wait(t, "all of its threads stand still", func() bool { return halted(pid) })
		return func() { syscall.Kill(pid, syscall.SIGCONT) }
	}
	ins.Restart = func() {
		before := pluginPID(t, f)
		syscall.Kill(before, syscall.SIGKILL)
		wait(t, "the plug-in is up again", func() bool {
			s, err := loadState(f.stateFile())
			return err == nil && s.PID != before && s.Trouble == ""
		})
	}
	ins.Starts = func(k adapters.Key) int {
		data, err := os.ReadFile(filepath.Join(f.lasting(), "starts"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(data, []byte(k.String()+"\n"))
	}
	return ins
}

// halted tells whether every thread of the process is stopped: a signal stops them one by one.
func halted(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		data, err := os.ReadFile(name)
		if i := bytes.LastIndexByte(data, ')'); err != nil || i < 0 || i+2 >= len(data) || data[i+2] != 'T' {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

// pluginPID is the plug-in's process, once it is up.
func pluginPID(t *testing.T, f folders) (pid int) {
	t.Helper()
	wait(t, "the plug-in is up", func() bool {
		s, err := loadState(f.stateFile())
		pid = s.PID
		return err == nil && s.Trouble == "" && born(s.PID) == s.Born
	})
	return pid
}

func wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// unsupported is what processes without a sandbox can't do.
var unsupported = map[string]string{
	"images":           "a process runs programs of this machine, or what it has as input",
	"arrays":           "nothing here has a queue: each task is started when it comes",
	"waiting":          "nothing here has a queue: each task is started when it comes",
	"accelerators":     "it was written for tests, and hands out none",
	"no network":       "without a sandbox tasks have the machine's network",
	"read-only inputs": "without namespaces inputs are copies of the task's own",
}

func TestConformance(t *testing.T) {
	adaptertest.Run(t, adaptertest.Subject{
		Name: "plugin (Go, process)", New: func(t *testing.T) adaptertest.Instance { return instance(t, "good") },
		Script: script, Unsupported: unsupported, Remote: true,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
	})
}

func readFS(fsys fs.FS, name string) (string, error) {
	data, err := fs.ReadFile(fsys, name)
	return string(data), err
}
