package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestConformance runs PCM's conformance suite. It needs a back end: ADAPTER_SETTINGS
// is a JSON object of the settings, and the secrets are in the environment under their names.
func TestConformance(t *testing.T) {
	settings := os.Getenv("ADAPTER_SETTINGS")
	if settings == "" {
		t.Skip("SKIPPED: ADAPTER_SETTINGS does not say where a back end to test with is")
	}
	pcm := os.Getenv("PCM")
	if pcm == "" {
		pcm = "pcm"
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "adapter")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	secrets := map[string]string{}
	for _, name := range secretNames {
		if os.Getenv(name) != "" {
			secrets[name] = "env:" + name
		}
	}
	var values map[string]any
	if err := json.Unmarshal([]byte(settings), &values); err != nil {
		t.Fatalf("ADAPTER_SETTINGS: %v", err)
	}
	config, err := json.Marshal(map[string]any{"name": "openi", "command": []string{program}, "settings": values, "secrets": secrets})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"adapter", "test", "--config", file}
	if _, err := os.Stat("unsupported.yaml"); err == nil {
		args = append(args, "--unsupported", "unsupported.yaml")
	}
	out, err := exec.Command(pcm, args...).CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Errorf("the suite does not pass: %v", err)
	}
}
