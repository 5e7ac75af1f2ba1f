package wasm

import (
	"cmp"
	"context"
	"path/filepath"
	"testing"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

func TestMain(m *testing.M) {
	adaptertest.Main(m, func(ctx context.Context, dir, cache string) ([]supervisor.Runner, error) {
		r, err := NewRunner(ctx, RunnerConfig{CacheDir: cmp.Or(cache, filepath.Join(dir, "cache"))})
		return []supervisor.Runner{r}, err
	})
}

// instance makes an adapter; its supervisor keeps compiled code in cache.
func instance(t *testing.T, cache string) adaptertest.Instance {
	box := adaptertest.NewBox(t, cache)
	return adaptertest.Instance{
		Adapter: New(Config{}, box.Client()), Box: box,
		Reconnect: func() adapters.Adapter { return New(Config{}, box.Reconnect()) },
	}
}

func TestConformance(t *testing.T) {
	module := adaptertest.BuildWASI(t, adaptertest.ScriptPackage)
	cache := t.TempDir() // shared, so that the module is compiled but once or twice
	adaptertest.Run(t, adaptertest.Subject{
		New: func(t *testing.T) adaptertest.Instance { return instance(t, cache) },
		Script: func(_ *testing.T, task *adapters.Task, steps ...string) {
			task.Module, task.Args = module, steps
		},
		Name: Name,
		Unsupported: map[string]string{
			"missing program":    "a module is its program",
			"graceful stop":      "WebAssembly knows no signals: it is ended at once",
			"accelerators":       "modules can't use any",
			"no network":         "there is no way in WASI preview 1 to open a connection",
			"network":            "there is no way in WASI preview 1 to open a connection",
			"images":             "modules need none",
			"arrays":             "nothing here has a queue: each task is started when there is room for it",
			"waiting":            "nothing here has a queue: each task is started when there is room for it",
			"back end hung":      "its back end is its supervisor",
			"back end restarted": "its back end is its supervisor",
			"suspend and resume": "a module that runs can only be ended",
			"exec":               "a module has no surroundings in which another program could run",
			"service":            "there is no way in WASI preview 1 to open a connection",
		},
	})
}
