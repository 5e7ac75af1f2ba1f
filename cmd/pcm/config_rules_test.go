package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/node/rules"
)

// The example's rules are good, each with examples that show what it says.
func TestExampleRules(t *testing.T) {
	list, at, file, err := ruleFile("../../configs/rules.example.yaml", "", os.Getenv)
	if err != nil || len(list) == 0 {
		t.Fatalf("%d rules, %v", len(list), err)
	}
	_, found := rules.Check(list)
	for _, f := range found {
		t.Error(placed(f, at, file))
	}
	for _, tried := range rules.Try(list) {
		if tried.Why != "" {
			t.Errorf("%+v", tried)
		}
	}
}

// A node doesn't start with faulty rules, and is told where the fault is.
func TestConfigRules(t *testing.T) {
	load := func(text string) error {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		none := func(string) string { return "" }
		_, err := loadConfig("", dir, none, func(*Config) {})
		if _, again := ruleReader("", dir, none)(); (again == nil) != (err == nil) {
			t.Errorf("at the start: %v; read anew: %v", err, again)
		}
		return err
	}
	good := "rules:\n  - name: a\n    accept: job.gpu < 2\n"
	if err := load(good); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"rules:\n  - name: a\n    accept: job.gpus < 2\n":                    "config.yaml:3:13: rules[0].accept: job has no field gpus; did you mean gpu?",
		"rules:\n  - name: a\n    acept: job.gpu < 2\n":                      "config.yaml:3:5: rules[0].acept",
		good + "    examples: [{expect: refuse}]\n":                          "config.yaml:4:16: rules[0].examples[0]: expects refuse, the rule comes to accept",
		good + "    examples: [{given: {job: {gpus: 1}}}]\n":                 "no such field; did you mean gpu?",
		good + "    examples: [{given: {job: {memory: lots}}}]\n":            "lots",
		good + "    limit: {tasks: 3}\n":                                     "config.yaml:2:5: rules[0]: rule a says 2 things",
		"rules:\n  - name: a\n    public: true\n    accept: time.hour > 3\n": "only private rules may speak of time",
	} {
		if err := load(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
