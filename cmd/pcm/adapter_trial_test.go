package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters"
)

func TestReadTrial(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	program := file("adapter", "#!/bin/sh\n")
	good, err := readTrial(file("good.yaml", "command: [./adapter, --loud]\nsettings: {a: \"1\"}\npace: 1s\ntask: adapter\n"), nil)
	if err != nil || good.Command[0] != program || good.Task != program || !slices.Equal(good.steps([]string{"exit", "1"}), []string{"./task", "exit", "1"}) || good.Command[1] != "--loud" || good.Name != "plugin" || good.Settings["a"] != "1" {
		t.Errorf("%+v, %v", good, err)
	}
	for text, words := range map[string]string{
		"name: x\n":                                      "no plug-in to test",
		"command: [./absent]\n":                          "there is no program " + filepath.Join(dir, "absent"),
		"command: [./adapter]\npace: soon\n":             `"soon" is not a duration`,
		"command: [./adapter]\nname: slurm\n":            "built in",
		"command: [./adapter]\nsecrets: {token: open}\n": "no reference to a secret",
		"command: [./adapter]\ntask: ./none\n":           "there is no program " + filepath.Join(dir, "none"),
		"command: [./adapter]\nunsuported: {}\n":         "unsuported",
	} {
		_, err := readTrial(file("bad.yaml", text), nil)
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// The adapters that 'pcm adapter list' calls built in are those whose names are taken.
func TestBuiltIn(t *testing.T) {
	var names []string
	for _, v := range builtIn {
		names = append(names, v.Name)
	}
	if !slices.Equal(names, adapters.BuiltIn) {
		t.Errorf("%q are listed, %q are taken", names, adapters.BuiltIn)
	}
}

// As many tests run at once as a trial says, however few processors there are.
func TestTrialFlags(t *testing.T) {
	if got := (adapterTrial{Parallel: 8}).flags("stop by force"); !slices.Contains(got, "-test.parallel=8") || !slices.Contains(got, "-test.run=^Adapter$/stop_by_force") {
		t.Errorf("flags %q", got)
	}
	if got := (adapterTrial{}).flags(""); strings.Contains(strings.Join(got, " "), "parallel") { // then 0 would be refused
		t.Errorf("flags %q", got)
	}
}
