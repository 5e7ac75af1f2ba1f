package rest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// try collects the steps of a Try.
func try(t *testing.T, cfg Config, opt TryOptions) (steps []Step, err error) {
	t.Helper()
	opt.Out = func(s Step) { steps = append(steps, s) }
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = Try(ctx, cfg, opt)
	text, jerr := json.Marshal(steps)
	if jerr != nil {
		t.Fatal(jerr)
	}
	if strings.Contains(string(text), cloudToken) {
		t.Errorf("the secret is in %s", text)
	}
	return steps, err
}

// requests are those of the steps: "POST /v1/jobs".
func requests(steps []Step, sent bool) (all []string) {
	for _, s := range steps {
		if s.Exchange != nil && s.Sent == sent {
			_, path, _ := strings.Cut(strings.TrimPrefix(s.Exchange.URL, "http://"), "/")
			all = append(all, s.Exchange.Method+" /"+path)
		}
	}
	return all
}

func begins(all []string, prefix string) bool {
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	return false
}

func TestTry(t *testing.T) {
	for _, file := range []string{"small.yaml", "shell.yaml"} {
		c := newCloud(t, 4)
		cfg := c.settings(file)
		steps, err := try(t, cfg, TryOptions{DryRun: true})
		if err != nil || c.Count("") != 0 {
			t.Errorf("dry: %v, %d calls", err, c.Count(""))
		}
		shown := requests(steps, false)
		for _, want := range []string{"GET /v1/flavors", "GET /v1/jobs?name=", "POST /v1/jobs", "POST /v1/jobs/JOB-ID/stop", "DELETE /v1/jobs/JOB-ID"} {
			if !begins(shown, want) {
				t.Errorf("%s is not in %q", want, shown)
			}
		}

		steps, err = try(t, cfg, TryOptions{})
		if err != nil || c.Count("POST") != 0 || !begins(requests(steps, true), "GET /v1/flavors") || !begins(requests(steps, false), "POST /v1/jobs") {
			t.Errorf("without a task: %v, sent %q, shown %q", err, requests(steps, true), requests(steps, false))
		}
		pool := false
		for _, s := range steps {
			for _, f := range s.Facts {
				pool = pool || strings.HasPrefix(f.Ours, "pool std.4: 4 slots of 4 cpu, 32GiB, class cpu.medium") && strings.Contains(f.Theirs, `"name":"std.4"`)
			}
		}
		if !pool {
			t.Errorf("the pool is not told of: %+v", steps)
		}

		steps, err = try(t, cfg, TryOptions{Run: true, Task: adapters.Task{Command: []string{"echo", "hello"}}})
		last := steps[len(steps)-1]
		if err != nil || !begins(requests(steps, true), "POST /v1/jobs") || !begins(requests(steps, true), "DELETE /v1/jobs/") {
			t.Errorf("%s: %v, %q, %+v", file, err, requests(steps, true), last)
		}
		said := ""
		for _, s := range steps {
			if s.Part == "end" {
				said = s.Facts[1].Theirs
			}
		}
		if said != "hello" {
			t.Errorf("%s: the task said %q", file, said)
		}
		if n := len(c.jobs); n != 0 {
			t.Errorf("%s: %d jobs are left", file, n)
		}
	}
}

// What comes with PCM can be shown without asking anybody.
func TestTryShipped(t *testing.T) {
	files, err := filepath.Glob("../../configs/adapters/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		cfg := Config{Instance: "i-test", File: file, Settings: map[string]string{}, Secrets: map[string]string{}}
		d, err := cfg.Load()
		if err != nil {
			t.Fatal(err)
		}
		for k, s := range d.Settings {
			cfg.Settings[k] = cmp.Or(s.Example, s.Default, "example")
		}
		for k := range d.Secrets {
			cfg.Secrets[k] = "env:PCM_TEST_NO_SUCH"
		}
		steps, err := try(t, cfg, TryOptions{DryRun: true})
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, s := range steps {
			if s.Err != "" {
				t.Errorf("%s: %s: %s", file, s.Part, s.Err)
			}
		}
		if shown := requests(steps, false); len(shown) < 6 || len(requests(steps, true)) > 0 {
			t.Errorf("%s: shown are %q", file, shown)
		}
	}
}

// What is no pool, though it is meant to be one, is told of.
func TestTryFlaw(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 4)
	cfg := c.settings("small.yaml")
	text, err := os.ReadFile(cfg.File)
	if err != nil {
		t.Fatal(err)
	}
	cfg.File = filepath.Join(t.TempDir(), "flawed.yaml")
	flawed := strings.Replace(string(text), "${item.mib} MiB", `'${item.name == "gpu.a100" ? "a lot" : string(item.mib) + " MiB"}'`, 1)
	if err := os.WriteFile(cfg.File, []byte(flawed), 0o600); err != nil {
		t.Fatal(err)
	}
	steps, err := try(t, cfg, TryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if strings.Contains(s.Err, "1 items are left out of 2: pool gpu.a100") {
			return
		}
	}
	t.Errorf("%+v", steps)
}

// changed is the small description with one thing changed.
func changed(t *testing.T, c *cloud, from, to string) Config {
	t.Helper()
	cfg := c.settings("small.yaml")
	text, err := os.ReadFile(cfg.File)
	if err != nil || !strings.Contains(string(text), from) {
		t.Fatal(err, from)
	}
	cfg.File = filepath.Join(t.TempDir(), "changed.yaml")
	if err := os.WriteFile(cfg.File, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// Where no job could be made, none is said to be left.
func TestTryUnmade(t *testing.T) {
	t.Parallel()
	cfg := changed(t, newCloud(t, 4), "flavor: ${pool.native.name}", "flavor: ${pool.native.nane}")
	_, err := try(t, cfg, TryOptions{Run: true})
	if err == nil || strings.Contains(err.Error(), "delete") || !strings.Contains(err.Error(), "no such key: nane") {
		t.Error(err)
	}
}

// A word for a state that isn't described ends the trial, and is named.
func TestTryStrangeState(t *testing.T) {
	t.Parallel()
	cfg := changed(t, newCloud(t, 4), "  running: {state: running}\n", "")
	_, err := try(t, cfg, TryOptions{Run: true, Task: adapters.Task{Command: []string{"sleep", "30"}}})
	if err == nil || !strings.Contains(err.Error(), "state running, which is not described: add it under states") {
		t.Error(err)
	}
}

// Where no answer comes, the trial says which setting it was.
func TestTryUnheard(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 4)
	cfg := c.settings("small.yaml")
	c.srv.Close()
	for name, f := range map[string]func() error{
		"try":  func() error { _, err := try(t, cfg, TryOptions{}); return err },
		"list": func() error { _, err := List(t.Context(), cfg); return err },
	} {
		if err := f(); pcm.ErrorCode(err) != pcm.Unavailable || !strings.HasSuffix(err.Error(), "no answer comes from "+c.addr+"; check setting endpoint") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Several calls that fail are all named at the end.
func TestTryFailures(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 4)
	cfg := c.settings("small.yaml")
	text, err := os.ReadFile(cfg.File)
	if err != nil {
		t.Fatal(err)
	}
	cfg.File = filepath.Join(t.TempDir(), "other.yaml")
	if err := os.WriteFile(cfg.File, []byte(strings.ReplaceAll(string(text), "body.jobs", "body.tasks")), 0o600); err != nil {
		t.Fatal(err)
	}
	steps, err := try(t, cfg, TryOptions{})
	if err == nil || !strings.HasPrefix(err.Error(), "find and watch failed") {
		t.Error(err)
	}
	said := 0
	for _, s := range steps {
		if strings.Contains(s.Err, "tasks") {
			said++
		}
	}
	if said != 2 {
		t.Errorf("%d steps tell of an error: %+v", said, steps)
	}
}

// All that is missing is asked for at once.
func TestMissing(t *testing.T) {
	t.Parallel()
	cfg := newCloud(t, 1).settings("small.yaml")
	d, err := cfg.Load()
	if err != nil {
		t.Fatal(err)
	}
	err = Config{}.Check(d)
	const want = "small needs the setting endpoint: where it is, e.g. http://127.0.0.1:8080; the secret token (what its requests show): name where it is, env:NAME or file:/absolute/path"
	m, ok := errors.AsType[*Missing](err)
	if pcm.ErrorCode(err) != pcm.Invalid || err.Error() != want || !ok || len(m.Settings) != 1 || len(m.Secrets) != 1 {
		t.Errorf("%v, %+v", err, m)
	}
	if err := cfg.Check(d); err != nil {
		t.Error(err)
	}
}

func TestEnding(t *testing.T) {
	for want, exit := range map[string]supervisor.Exit{
		"outcome failed, exit code 3":                   {Outcome: pcm.OutcomeFailed, Code: 3, Reason: "exit code 3"},
		"outcome ok, exit code 0":                       {Outcome: pcm.OutcomeOK},
		"outcome failed, exit code 137: ended by force": {Outcome: pcm.OutcomeFailed, Code: 137, Reason: "ended by force"},
	} {
		if s := ending(exit); s != want {
			t.Errorf("%q, want %q", s, want)
		}
	}
}
