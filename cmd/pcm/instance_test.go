package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jointcloud/pcm"
)

// Nodes that share a namespace, or Slurm's shared folder, delete there what is
// their own and nobody has use for: no two may take each other's for that.
func TestNodesApart(t *testing.T) {
	cfg := Config{Adapters: Adapters{Slurm: Slurm{SharedFolder: "/shared/"}}}
	seen := map[string]bool{}
	for range 2 {
		data := t.TempDir()
		id, err := instance(data)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := instance(data); again != id || err != nil {
			t.Errorf("%q became %q: %v", id, again, err)
		}
		// Wherever its data folder is: two hosts have it at the same place.
		s, k := cfg.Adapters.Slurm.settings("/var/lib/pcm", id), cfg.Adapters.Kubernetes.settings(id)
		if seen[s.Shared] || seen[k.Instance] || filepath.Dir(s.Shared) != "/shared" {
			t.Errorf("%q, %q", s.Shared, k.Instance)
		}
		seen[s.Shared], seen[k.Instance] = true, true
		if err := s.Validate(); err != nil {
			t.Error(err)
		}
	}
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "tasks"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "tasks", "instance"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, err := instance(data); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("a damaged name gave %q, %v", id, err)
	}
}
