package generate

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jointcloud/pcm/configs"
)

// The example is what the generator writes today, without a line by hand.
func TestExample(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "openi")
	if err := os.CopyFS(dir, os.DirFS("../../examples/adapters/openi")); err != nil {
		t.Fatal(err)
	}
	r := generated(t, Options{Name: "openi", Language: "go", Dir: dir, From: configs.Adapter("openi"), FromFile: "openi", Force: true})
	if len(r.Written)+len(r.Deleted) > 0 || r.Share.Hand != 0 || len(r.Left) != 0 {
		t.Errorf("examples/adapters/openi is out of date in %q: go run ./cmd/pcm adapter new openi --lang go --from openi --dir examples/adapters/openi", r.Written)
	}
}
