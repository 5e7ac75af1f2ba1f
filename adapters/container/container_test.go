package container

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The mode of the supervisor under test is its runner's configuration.
func TestMain(m *testing.M) {
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		var cfg RunnerConfig
		if err := json.Unmarshal([]byte(mode), &cfg); err != nil {
			return nil, err
		}
		cfg.Dir = dir
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)) // in the supervisor's log
		r, err := NewRunner(cfg)
		return []supervisor.Runner{r}, err
	})
}

const image = "localhost/pcm-test:latest"

// rig is an engine with what tests need: an image, a program, accelerators.
type rig struct {
	*server.Engine
	program string
	cfg     RunnerConfig
}

// newRig starts an engine that ends with the test.
func newRig(t *testing.T, name string, start func(context.Context) (*server.Engine, error)) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	e, err := start(ctx)
	require.Server(t, name, err)
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(e.Path("engine.log")); err == nil {
				t.Logf("the end of the engine's log:\n%s", log[max(0, len(log)-3000):])
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := e.Load(ctx, image, map[string]string{"image.txt": "of the image\n"}); err != nil {
		t.Fatal(err)
	}
	r := &rig{Engine: e, program: program(t)}
	r.cfg = RunnerConfig{Socket: e.Socket, DefaultImage: image, Images: []string{"localhost/*"}, Network: e.Network}
	for _, name := range []string{"davinci0", "davinci1", "davinci_manager"} {
		if err := syscall.Mknod(e.Path(name), syscall.S_IFCHR|0o666, 1<<8|3); err != nil { // as /dev/null
			t.Fatal(err)
		}
	}
	r.cfg.GPUs, r.cfg.GPUDevices = []string{e.Path("davinci0"), e.Path("davinci1")}, []string{e.Path("davinci_manager")}
	return r
}

// program builds what tasks run.
func program(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "task")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, adaptertest.ScriptPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("can't build %s: %v\n%s", adaptertest.ScriptPackage, err, msg)
	}
	return out
}

func (r *rig) script(_ *testing.T, task *adapters.Task, steps ...string) {
	task.Command = append([]string{"./task"}, steps...)
	task.Inputs = []adapters.Mount{{Path: r.program, Target: "task"}}
}

// instance makes an adapter with a supervisor of its own on the engine.
func (r *rig) instance(t *testing.T) adaptertest.Instance {
	mode, err := json.Marshal(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	box := adaptertest.NewBox(t, string(mode))
	make := func(c *supervisor.Client) adapters.Adapter {
		cfg := r.cfg
		cfg.Dir = box.Dir
		a, err := New(Config{Runner: cfg}, c)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	return adaptertest.Instance{
		Adapter: make(box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return make(box.Reconnect()) },
		Hang:      r.Hang,
		Restart: func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if err := r.Restart(ctx); err != nil {
				t.Fatal(err)
			}
		},
		Starts: func(k adapters.Key) int { return r.Starts(nameOf(k)) },
	}
}

// conformance runs the suite on one shared engine, and what disturbs engines on others.
func conformance(t *testing.T, name string, start func(context.Context) (*server.Engine, error), change func(*adaptertest.Subject)) {
	t.Parallel()
	shared := newRig(t, name, start)
	s := adaptertest.Subject{
		Name: "container (" + name + ")", Long: name == "podman",
		New:    shared.instance,
		Own:    func(t *testing.T) adaptertest.Instance { return newRig(t, name, start).instance(t) },
		Script: shared.script, Remote: true, Image: "localhost/pcm-test",
		Missing: func(task *adapters.Task) { task.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, task *adapters.Task) { task.Resources.GPU = 2 },
		Unsupported: map[string]string{
			"arrays":  "engines know no arrays: each task is a container of its own",
			"waiting": "an engine starts at once what it is given: the node's slots decide what waits",
		},
		// Engines before API 1.42 set the size of a terminal a moment after the start.
		Exec:     func(steps ...string) []string { return append([]string{"./task", "sleep", "200ms"}, steps...) },
		Parallel: 4, Pace: time.Second, Many: 12,
	}
	if change != nil {
		change(&s)
	}
	adaptertest.Run(t, s)
}

func TestConformanceDocker(t *testing.T) {
	conformance(t, "docker", lively, func(s *adaptertest.Subject) {
		s.Unsupported["back end restarted"] = "Docker loses what a task prints while the engine is down if the task ends before it is back: that attempt is not accepted and runs again"
	})
}

// Podman is for the long form: it is slow.
func TestConformancePodman(t *testing.T) {
	if !require.Named("podman") {
		t.Skip("PODMAN IS NOT TESTED HERE: PCM_TEST_REQUIRE does not name it")
	}
	conformance(t, "podman", server.Podman, func(s *adaptertest.Subject) {
		s.Env = []string{"HOSTNAME", "TERM", "container"} // which it can't be talked out of
		s.Long = true
		s.Patience, s.Parallel = 3*time.Minute, 2
	})
}
