package slurm

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The mode of a supervisor under test is its configuration, without its folder.
func TestMain(m *testing.M) {
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		var cfg Config
		if err := json.Unmarshal([]byte(mode), &cfg); err != nil {
			return nil, err
		}
		cfg.Dir = dir
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		r, err := NewRunner(cfg, log)
		return []supervisor.Runner{r}, err
	})
}

// cluster starts a Slurm that ends with the test.
func cluster(t testing.TB, o server.SlurmOptions) *server.Slurm {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := server.StartSlurm(ctx, o)
	require.Server(t, "slurm", err)
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"log/ctld.log", "slurmrestd.log"} {
				if data, err := os.ReadFile(s.Path(name)); err == nil {
					t.Logf("%s:\n%s", name, data[max(0, len(data)-6000):])
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Errorf("the cluster's end: %v", err)
		}
	})
	return s
}

// settings is how the cluster is reached.
func settings(t testing.TB, s *server.Slurm, rest bool) Config {
	t.Helper()
	cfg := Config{Conf: s.Conf, Timeout: 5 * time.Second, Labels: pcm.Labels{"site": "test"}}
	if rest {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		token, err := s.Token(ctx, "root", time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write("token", token+"\n", 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.Conf, cfg.URL, cfg.User, cfg.TokenFile = "", s.URL, "root", s.Path("token")
	}
	return cfg
}

func open(t testing.TB, cfg Config, client *supervisor.Client) adapters.Adapter {
	t.Helper()
	a, err := New(cfg, client)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// encode is the mode of a supervisor with these settings.
func encode(t testing.TB, cfg Config) []byte {
	t.Helper()
	mode, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return mode
}

// instance is an adapter with a supervisor of its own on the cluster.
func instance(t *testing.T, s *server.Slurm, cfg Config) adaptertest.Instance {
	t.Helper()
	box := adaptertest.NewBox(t, string(encode(t, cfg)))
	cfg.Dir = box.Dir
	return adaptertest.Instance{
		Adapter: open(t, cfg, box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return open(t, cfg, box.Reconnect()) },
		Hang:      s.HangController,
		Restart: func() {
			saved(t, s)
			s.KillController()
			if err := s.StartController(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := s.WaitIdle(ctx); err != nil {
				t.Fatal(err)
			}
		},
		Fill:   func() (release func()) { return fill(t, s) },
		Starts: func(k adapters.Key) int { return starts(t, s, k) },
	}
}

// saved waits until the controller has written down what it was told by now: what
// it was not, it forgets when it is killed. TestForgottenJob shows that.
func saved(t *testing.T, s *server.Slurm) {
	t.Helper()
	told := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// Without a change since then it may have nothing to write down.
	for _, command := range [][]string{{"sbatch", "--hold", "--job-name=change", "--output=/dev/null", "--wrap=true"}, {"scancel", "--name=change"}} {
		if _, err := s.Command(ctx, command[0], command[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the controller has saved its jobs", func() bool {
		info, err := os.Stat(s.Path("state/job_state"))
		return err == nil && info.ModTime().After(told)
	})
}

// fill takes all CPUs of the cluster.
func fill(t *testing.T, s *server.Slurm) (release func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for range s.Nodes {
		if _, err := s.Command(ctx, "sbatch", "--job-name=fill", "--exclusive", "--mem=64M", "--output=/dev/null", "--wrap=sleep 300"); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the cluster is full", func() bool {
		out, err := s.Command(ctx, "squeue", "-h", "-n", "fill", "-t", "running", "-o", "%i")
		return err == nil && strings.Count(out, "\n") == s.Nodes
	})
	return sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if _, err := s.Command(ctx, "scancel", "--name=fill"); err != nil {
			t.Error(err)
		}
	})
}

// starts counts the jobs of an attempt that have run, as Slurm's own record has it.
func starts(t *testing.T, s *server.Slurm, k adapters.Key) (n int) {
	t.Helper()
	until(t, "Slurm has recorded a job of "+k.String(), func() bool {
		data, err := os.ReadFile(s.Path("log/jobcomp.txt"))
		if err != nil {
			t.Fatal(err)
		}
		n = 0
		for line := range strings.Lines(string(data)) {
			f := fields(line)
			if strings.HasPrefix(f["Name"]+".", "pcm."+k.String()+".") && f["NodeList"] != "(null)" {
				n++
			}
		}
		return n > 0
	})
	return n
}

func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	end := time.After(40 * time.Second)
	for !f() {
		select {
		case <-time.After(30 * time.Millisecond):
		case <-end:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// script makes a task run the test binary, which the task finds as an input.
func script(t *testing.T, task *adapters.Task, steps ...string) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	task.Command = append([]string{"./task"}, steps...)
	task.Env = map[string]string{adaptertest.EnvTask: "1"}
	task.Inputs = []adapters.Mount{{Path: exe, Target: "task"}}
}

func subject(t *testing.T, rest bool) adaptertest.Subject {
	s := cluster(t, server.SlurmOptions{Nodes: 3, REST: rest})
	cfg := settings(t, s, rest)
	sub := adaptertest.Subject{
		Name: "slurm (commands)", Script: script, Remote: true, Parallel: 6, Pace: time.Second, Patience: 2 * time.Minute, Enough: 4 << 30,
		New: func(t *testing.T) adaptertest.Instance { return instance(t, s, cfg) },
		Own: func(t *testing.T) adaptertest.Instance {
			own := cluster(t, server.SlurmOptions{Nodes: 2, REST: rest})
			return instance(t, own, settings(t, own, rest))
		},
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Resources.GPU = 2 },
		Env:     []string{"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"},
		Unsupported: map[string]string{
			"no network":       "tasks have their node's network, as all jobs of a cluster",
			"images":           "a job runs the programs of its node, or what it has as input",
			"read-only inputs": "inputs are copies, which only their permissions keep from being written",
			"out of memory":    "the cluster of the tests has no cgroups, by which Slurm tells",
		},
	}
	if rest {
		sub.Name = "slurm (slurmrestd)"
		sub.Unsupported["suspend and resume"] = "slurmrestd has no such request"
		sub.Unsupported["exec"] = "slurmrestd has no such request"
	}
	return sub
}

func TestConformanceByCommands(t *testing.T) { t.Parallel(); adaptertest.Run(t, subject(t, false)) }
func TestConformanceByREST(t *testing.T)     { t.Parallel(); adaptertest.Run(t, subject(t, true)) }
