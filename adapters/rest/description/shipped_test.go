package description

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/configs"
)

// The descriptions that are shipped have nothing wrong with them.
func TestShipped(t *testing.T) {
	files, err := configs.Adapters.ReadDir("adapters")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d descriptions, %v", len(files), err)
	}
	for _, f := range files {
		data, err := configs.Adapters.ReadFile(filepath.Join("adapters", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		d, problems := Parse(data)
		for _, p := range problems {
			t.Errorf("%s: %s", f.Name(), p)
		}
		if d != nil && d.Name != strings.TrimSuffix(f.Name(), ".yaml") {
			t.Errorf("%s describes %q", f.Name(), d.Name)
		}
	}
}
