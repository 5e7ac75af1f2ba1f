package rest

import (
	"context"
	"encoding/json"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// The mode of a supervisor under test is its configuration, without its folder.
func TestMain(m *testing.M) {
	flag.Set("test.parallel", "8") // they wait for clouds, most of the time; what the command line says goes before this
	adaptertest.Main(m, func(_ context.Context, dir, mode string) ([]supervisor.Runner, error) {
		var cfg Config
		if err := json.Unmarshal([]byte(mode), &cfg); err != nil {
			return nil, err
		}
		cfg.Dir = dir
		log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		r, err := NewRunner(cfg, log)
		if err != nil {
			return nil, err
		}
		return []supervisor.Runner{r}, nil
	})
}

// settings is how the fake is reached.
func (c *cloud) settings(file string) Config {
	name, err := filepath.Abs(filepath.Join("testdata", file))
	if err != nil {
		c.t.Fatal(err)
	}
	token := filepath.Join(c.dir, "token")
	if err := os.WriteFile(token, []byte(cloudToken+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return Config{
		Instance: "i-test", File: name, AllowPrivate: true, Labels: pcm.Labels{"site": "test"},
		Settings: map[string]string{"endpoint": c.url()}, Secrets: map[string]string{"token": "file:" + token},
	}
}

// instance is an adapter with a supervisor of its own on the back end.
func instance(t *testing.T, cfg Config, c *cloud) adaptertest.Instance {
	t.Helper()
	ins := boxed(t, cfg)
	ins.Hang, ins.Restart = c.Hang, c.restart
	ins.Fill = func() (release func()) {
		place := c.room.Enter(1 << 10)
		<-place.Ready()
		return sync.OnceFunc(place.Leave)
	}
	ins.Starts = func(k adapters.Key) int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.begun[jobName(cfg.Instance, k)]
	}
	return ins
}

// boxed is an adapter with a supervisor of its own.
func boxed(t *testing.T, cfg Config) adaptertest.Instance {
	t.Helper()
	mode, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	box := adaptertest.NewBox(t, string(mode))
	cfg.Dir = box.Dir
	make := func(client *supervisor.Client) adapters.Adapter {
		a, err := New(cfg, client)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	return adaptertest.Instance{
		Adapter: make(box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return make(box.Reconnect()) },
	}
}

func subject(file string) adaptertest.Subject {
	fresh := func(t *testing.T) adaptertest.Instance {
		c := newCloud(t, 1<<10)
		return instance(t, c.settings(file), c)
	}
	return adaptertest.Subject{
		Script: steps, Remote: true, Parallel: 4, Pace: time.Second, Patience: 3 * time.Minute, Enough: 8 << 30,
		New: fresh, Own: fresh,
		Missing: func(t *adapters.Task) { t.Command = []string{"no-such-program"} },
		GPU:     func(_ *testing.T, t *adapters.Task) { t.Pool, t.Resources.GPU = "gpu.a100", 2 },
		Env:     []string{"PWD", "OLDPWD", "SHLVL", "_"},
		Unsupported: map[string]string{
			"no network":       "tasks of the fake have this machine's network",
			"images":           "the fake has no images",
			"read-only inputs": "inputs are copies",
			"exec":             "descriptions have no commands beside a task",
			"copy":             "descriptions have no files of running tasks",
			"service":          "descriptions have no ports",
		},
	}
}

func TestConformance(t *testing.T) {
	t.Parallel()
	adaptertest.Run(t, subject("small.yaml"))
}
