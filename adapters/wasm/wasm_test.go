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
		Adapter:   New(Config{}, box.Client()),
		Reconnect: func() adapters.Adapter { return New(Config{}, box.Reconnect()) },
		Hang:      box.Hang,
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
		Links: true, Memory: true,
	})
}
