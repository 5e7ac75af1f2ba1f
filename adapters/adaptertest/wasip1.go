package adaptertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// BuildWASI builds a Go package of this module for WebAssembly (WASI preview 1)
// and gives the path of the result, which is shared by the tests of one run.
// It skips under -short.
func BuildWASI(t testing.TB, pkg string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short: not building " + pkg + " for WebAssembly")
	}
	built.Lock()
	defer built.Unlock()
	if built.paths == nil {
		dir, err := os.MkdirTemp("", "pcm-wasi")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.paths = dir, map[string]string{}
	}
	if p, ok := built.paths[pkg]; ok {
		return p
	}
	out := filepath.Join(built.dir, strings.ReplaceAll(pkg, "/", "_")+".wasm")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("can't build %s for WebAssembly: %v\n%s", pkg, err, msg)
	}
	built.paths[pkg] = out
	return out
}

var built struct {
	sync.Mutex
	dir   string
	paths map[string]string
}

// ScriptPackage is the program that runs scripts; see package script.
const ScriptPackage = "github.com/jointcloud/pcm/adapters/adaptertest/task"
