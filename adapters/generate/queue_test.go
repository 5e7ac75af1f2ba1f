package generate

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

const queueExample = "../../examples/adapters/dirqueue"

// What is generated of the example is what would be generated now, nothing is left
// to write, and its author wrote no more than a tenth.
func TestQueueIsCurrent(t *testing.T) {
	isCurrent(t, queueExample)
}

func isCurrent(t *testing.T, example string) {
	t.Helper()
	name := filepath.Base(example)
	dir := filepath.Join(t.TempDir(), name)
	copyExample(t, example, dir)
	var m manifest
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, manifestName))), &m); err != nil {
		t.Fatal(err)
	}
	r := generated(t, Options{Name: m.Name, Language: m.Language, Dir: dir, Version: m.Version})
	if len(r.Written) != 0 || len(r.Deleted) != 0 || len(r.Orphaned) != 0 || len(r.Left) != 0 {
		t.Errorf("written %v, deleted %v, orphaned %v, left %v: go run ./cmd/pcm adapter new %s --lang %s --dir examples/adapters/%[5]s", r.Written, r.Deleted, r.Orphaned, r.Left, name, m.Language)
	}
	if r.Share.Percent() < 90 {
		t.Errorf("%.1f %% are generated, less than 90", r.Share.Percent())
	}
}

// The adapter of the queue passes the suite on a real one.
func TestQueue(t *testing.T) {
	if !require.Named("python") {
		t.Skip("SKIPPED: it fetches packages of Python, and PCM_TEST_REQUIRE does not name that: 'make test-plugins' does")
	}
	dir := filepath.Join(t.TempDir(), "dirqueue")
	if err := os.CopyFS(dir, os.DirFS(queueExample)); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(dir, "dirq")
	if err := os.Chmod(tool, 0o755); err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(map[string]string{"dirq": tool, "folder": filepath.Join(t.TempDir(), "jobs"), "slots": "12"})
	if err != nil {
		t.Fatal(err)
	}
	trial, err := json.Marshal(map[string]any{
		"patience": "2m", "pace": "1s", "many": 12, "parallel": 6, "missing": "no-such-program", "task": taskProgram(t), "subject": "generate (Python, dirqueue)", "env": []string{"OLDPWD", "SHLVL", "_"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range toolChains["python"].steps {
		cmd := exec.CommandContext(t.Context(), step[0], step[1:]...)
		if strings.HasPrefix(step[0], ".") {
			cmd.Path = filepath.Join(dir, step[0])
		}
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "PCM="+pcmProgram(t), "ADAPTER_SETTINGS="+string(settings), "ADAPTER_TRIAL="+string(trial))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", step, err, out)
		}
	}
}
