package frames

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A folder may be called what a pattern would not match, or what is none.
func TestGlobInAnyFolder(t *testing.T) {
	for _, name := range []string{"a [cell", "a[b]", `a\b`} {
		dir := filepath.Join(t.TempDir(), name)
		want := []string{filepath.Join(dir, "1", "meta.sum"), filepath.Join(dir, "2", "meta.sum")}
		for _, path := range append(want, filepath.Join(dir, "2", "other")) {
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if have, err := Glob(dir, "*/meta.sum"); err != nil || !slices.Equal(have, want) {
			t.Errorf("in %s: %q, %v", dir, have, err)
		}
	}
	if have, err := Glob(filepath.Join(t.TempDir(), "missing"), "*.sst"); err != nil || len(have) > 0 {
		t.Errorf("in no folder: %q, %v", have, err)
	}
}
