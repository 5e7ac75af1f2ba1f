package wasm

import (
	"context"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

func TestMain(m *testing.M) {
	adaptertest.Main(m, func(ctx context.Context, dir, _ string) ([]supervisor.Runner, error) {
		r, err := NewRunner(ctx, RunnerConfig{CacheDir: filepath.Join(dir, "cache")})
		return []supervisor.Runner{r}, err
	})
}

func instance(t *testing.T) adaptertest.Instance {
	box := adaptertest.NewBox(t, "")
	return adaptertest.Instance{
		Adapter:   New(Config{}, box.Client()),
		Reconnect: func() adapters.Adapter { return New(Config{}, box.Reconnect()) },
		Hang: func() func() {
			pid := box.PID()
			syscall.Kill(pid, syscall.SIGSTOP)
			return sync.OnceFunc(func() { syscall.Kill(pid, syscall.SIGCONT) })
		},
	}
}

func TestConformance(t *testing.T) {
	module := adaptertest.BuildWASI(t, adaptertest.ScriptPackage)
	adaptertest.Run(t, adaptertest.Subject{
		New: instance,
		Script: func(_ *testing.T, task *adapters.Task, steps ...string) {
			task.Module, task.Args = module, steps
		},
		Links: true, Memory: true,
	})
}
