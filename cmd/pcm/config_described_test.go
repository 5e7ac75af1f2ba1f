package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/configs"
)

const describedYAML = `pcm: adapter/1
name: mine
about: a test
settings:
  endpoint: {about: where it is, required: true, pattern: "https://.+"}
  zone: {about: which, default: north}
secrets:
  token: {about: what is shown}
servers: {api: "${settings.endpoint}/${settings.zone}"}
login: {kind: bearer, token: token}
pools:
  fixed: [{id: a}]
  pool: {id: "${item.id}", cpu: 4, memory: 8 GiB}
create:
  request: {method: POST, path: /jobs, body: {name: "${task.name}", argv: "${task.command}"}}
  id: $.id
watch:
  one: {request: {path: "/jobs/${id}"}}
  status: {state: $.state}
states:
  done: {state: ended, outcome: ok}
delete: {request: {method: DELETE, path: "/jobs/${id}"}}
`

func TestDescribedConfig(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine.yaml"), []byte(describedYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	load := func(entry string) (Config, error) {
		file := filepath.Join(dir, "config.yaml")
		if err := os.WriteFile(file, []byte("adapters:\n  described:\n"+entry), 0o600); err != nil {
			t.Fatal(err)
		}
		return loadConfig(file, dir, func(string) string { return "" }, func(*Config) {})
	}
	const good = "    - description: mine.yaml\n      settings: {endpoint: 'https://x.example'}\n      secrets: {token: 'env:MINE_TOKEN'}\n"
	for entry, want := range map[string]string{
		strings.Replace(good, "mine.yaml", "nine.yaml", 1):                "there is no file",
		strings.Replace(good, "mine.yaml", "modelart", 1):                 `did you mean "modelarts"?`,
		strings.Replace(good, "endpoint: ", "endpiont: ", 1):              "did you mean endpoint?",
		strings.Replace(good, "https://x", "ftp://x", 1):                  "doesn't look like it",
		strings.Replace(good, "{endpoint: 'https://x.example'}", "{}", 1): "needs the setting endpoint",
		strings.Replace(good, "{token: 'env:MINE_TOKEN'}", "{}", 1):       "needs the secret token",
		strings.Replace(good, "env:MINE_TOKEN", "s3cr3t", 1):              "a secret is not written down here",
		good + good:                              "another description",
		good + "      name: slurm\n":             "an adapter of this program",
		good + "      name: No One\n":            "not a name",
		good + "      poll: often\n":             "not a time",
		good + "      price: {per_task: much}\n": "per_task",
	} {
		_, err := load(entry)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v, not %q", entry, err, want)
		}
	}
	c, err := load(good + strings.Replace(good, "\n", "\n      name: other\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("MINE_TOKEN", "abc")
	all, err := describedConfigs(c.Adapters.Described, dir, "i-x")
	if err != nil || len(all) != 2 || all[1].Name != "other" {
		t.Fatalf("%+v, %v", all, err)
	}
	// What was read counts, whatever becomes of the file.
	if err := os.Remove(filepath.Join(dir, "mine.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if d, err := c.Load(); err != nil || d.Name != "mine" || c.Check(d) != nil {
			t.Errorf("%v, %v", d, err)
		}
	}
	if env := describedEnviron(c.Adapters.Described); len(env) != 1 || env[0] != "MINE_TOKEN=abc" {
		t.Errorf("environment %q", env)
	}
	if runners := describedRunners(append(all, rest.Config{File: "/nowhere", Dir: dir}), slog.New(slog.DiscardHandler)); len(runners) != 2 || runners[0].Name() != "mine" {
		t.Errorf("runners %v", runners)
	}
	for _, name := range configs.AdapterNames() {
		if _, _, err := (Described{Description: name}).read(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
