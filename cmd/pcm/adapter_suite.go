package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/plugin"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// suite runs the conformance suite by the testing package, whose flags are set here. It ends the process.
func (t adapterTrial) suite(spec, run string) error {
	testing.Init()
	if err := flag.CommandLine.Parse(t.flags(run)); err != nil {
		return pcm.Errorf(pcm.Internal, "can't set up the tests: %w", err)
	}
	os.Setenv("PCM_TEST_SECRET", "of the daemon") // tasks must not see it
	testing.Main(match, []testing.InternalTest{{Name: "Adapter", F: func(tt *testing.T) { adaptertest.Run(tt, t.subject(spec)) }}}, nil, nil)
	return nil
}

// flags are those of the testing package, which by itself runs no more tests at once than there are processors.
func (t adapterTrial) flags(run string) []string {
	all := []string{"-test.v", "-test.timeout=60m", "-test.run=^Adapter$/" + strings.ReplaceAll(run, " ", "_")}
	if t.Parallel > 0 {
		all = append(all, fmt.Sprint("-test.parallel=", t.Parallel))
	}
	return all
}

func match(pattern, name string) (bool, error) { return regexp.MatchString(pattern, name) }

// subject is the plug-in as the suite takes it.
func (t adapterTrial) subject(spec string) adaptertest.Subject {
	patience, _ := time.ParseDuration(t.Patience) // checked when they were read
	pace, _ := time.ParseDuration(t.Pace)
	s := adaptertest.Subject{
		Name: t.Name, Unsupported: t.Unsupported, Image: t.Image, Env: t.Env, Remote: true, Uncounted: true,
		Patience: patience, Pace: pace, Many: t.Many, Parallel: t.Parallel,
		New: func(tt *testing.T) adaptertest.Instance { return t.instance(tt, spec) },
		Script: func(tt *testing.T, task *adapters.Task, steps ...string) {
			program := t.Task
			if program == "" {
				self, err := os.Executable()
				if err != nil {
					tt.Fatal(err)
				}
				program = self
			}
			task.Command = t.steps(steps)
			task.Inputs = []adapters.Mount{{Path: program, Target: "task"}}
			if t.Pool != "" {
				task.Pool = pcm.PoolID(t.Pool)
			}
		},
		Exec: func(steps ...string) []string { return t.steps(steps) },
	}
	if t.Missing != "" {
		s.Missing = func(task *adapters.Task) { task.Command, task.Inputs = []string{t.Missing}, nil }
	}
	if t.GPUs > 0 {
		s.GPU = func(_ *testing.T, task *adapters.Task) { task.Resources.GPU = t.GPUs }
	}
	return s
}

// steps is the command of a task.
func (t adapterTrial) steps(steps []string) []string {
	if t.Task != "" {
		return append([]string{"./task"}, steps...)
	}
	return append([]string{"./task", "adapter-script"}, steps...)
}

// instance is the plug-in under a supervisor of its own.
func (t adapterTrial) instance(tt *testing.T, spec string) adaptertest.Instance {
	tt.Helper()
	self, err := os.Executable()
	if err != nil {
		tt.Fatal(err)
	}
	box := adaptertest.NewBox(tt, "")
	cfg, err := t.plugin(box.Dir)
	if err != nil {
		tt.Fatal(err)
	}
	box.Argv = []string{self, "adapter-supervise", spec, box.Dir}
	box.Env = cfg.Environ(os.Getenv)
	tt.Cleanup(func() {
		if log, err := os.ReadFile(filepath.Join(box.Dir, "plugins", t.Name, "log")); err == nil && tt.Failed() {
			tt.Logf("the plug-in's log:\n%.8000s", log)
		}
	})
	open := func(c *supervisor.Client) *plugin.Adapter {
		a, err := plugin.New(cfg, true, c)
		if err != nil {
			tt.Fatal(err)
		}
		return a
	}
	now := open(box.Client())
	process := func(before int) (pid int) {
		for end := time.Now().Add(time.Minute); ; <-time.After(20 * time.Millisecond) {
			if pid = now.Process(); pid != 0 && pid != before {
				return pid
			}
			if time.Now().After(end) {
				tt.Fatal("the plug-in does not come up")
			}
		}
	}
	return adaptertest.Instance{
		Adapter: now, Box: box,
		Reconnect: func() adapters.Adapter { now = open(box.Reconnect()); return now },
		Hang: func() (resume func()) {
			pid := process(0)
			syscall.Kill(pid, syscall.SIGSTOP)
			for end := time.Now().Add(20 * time.Second); !halted(pid) && time.Now().Before(end); {
				<-time.After(time.Millisecond)
			}
			return func() { syscall.Kill(pid, syscall.SIGCONT) }
		},
		Restart: func() {
			pid := process(0)
			syscall.Kill(pid, syscall.SIGKILL)
			process(pid)
		},
	}
}

// halted tells whether every thread of the process is stopped: a signal stops them one by one.
func halted(pid int) bool {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		data, err := os.ReadFile(name)
		if i := strings.LastIndexByte(string(data), ')'); err != nil || i < 0 || i+2 >= len(data) || data[i+2] != 'T' {
			return false
		}
	}
	return err == nil && len(threads) > 0
}

// supervise is the supervisor of one test.
func (t adapterTrial) supervise(ctx context.Context, dir string) error {
	cfg, err := t.plugin(dir)
	if err != nil {
		return err
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)) // which is the supervisor's log
	r, err := plugin.NewRunner(cfg)
	if err != nil {
		return err
	}
	return supervisor.Serve(ctx, supervisor.Config{Dir: dir, Runners: []supervisor.Runner{r}})
}
