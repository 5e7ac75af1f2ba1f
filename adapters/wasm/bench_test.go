package wasm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

func BenchmarkWasmTiny(b *testing.B) {
	box := adaptertest.NewBox(b, "")
	module := filepath.Join(b.TempDir(), "tiny.wasm")
	if err := os.WriteFile(module, adaptertest.Module("_start", 1), 0o600); err != nil {
		b.Fatal(err)
	}
	adaptertest.Bench(b, New(Config{}, box.Client()), 8, func(t *adapters.Task) { t.Module = module })
}

func BenchmarkWasmGo(b *testing.B) {
	module := adaptertest.BuildWASI(b, adaptertest.ScriptPackage)
	box := adaptertest.NewBox(b, "")
	adaptertest.Bench(b, New(Config{}, box.Client()), 8, func(t *adapters.Task) { t.Module, t.Args = module, []string{"out", "hello"} })
}
