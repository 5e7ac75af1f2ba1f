package generate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

// completed says where the parts of testdata/openapi/author.* belong.
type completed struct {
	author  string
	own     string   // a file of the author's
	backend string   // file with the regions of the back end
	types   string   // file that the document's change shows in
	checks  []string // a command that reads the code of a project, in a folder where packages are
	modules string   // what that has of packages
	trial   string   // file that calls is written to
	calls   string   // a program that makes calls and says what becomes of them
	run     []string // runs it
}

var completions = map[string]completed{
	"go": {author: "author.go.txt", own: "jobs.go", backend: "backend.go", types: "calls.go"},
	"python": {
		author: "author.py", backend: "src/jobs/backend.py", types: "src/jobs/api_types.py",
		checks: []string{"python", "-c", readPython}, modules: ".venv",
		trial: "trial.py", calls: callsPython, run: []string{".venv/bin/python", "trial.py"},
	},
	"typescript": {
		author: "author.ts", backend: "src/backend.ts", types: "src/api_types.ts",
		checks: []string{"npx", "--no-install", "tsc", "--noEmit"}, modules: "node_modules",
		trial: "trial.mjs", calls: callsTypeScript, run: []string{"node", "trial.mjs"},
	},
}

// readPython evaluates all that is generated, with the types that are texts.
const readPython = `
import importlib, inspect, pathlib, sys, typing
sys.path.insert(0, "src")
calls = importlib.import_module("jobs.calls")
for name, method in inspect.getmembers(calls.API, inspect.isfunction):
    typing.get_type_hints(method)
if pathlib.Path("src/jobs/api_types.py").exists():
    types = importlib.import_module("jobs.api_types")
    for name, t in vars(types).items():
        if typing.is_typeddict(t):
            typing.get_type_hints(t)
importlib.import_module("jobs.backend")
`

const callsPython = `
import sys
sys.path.insert(0, "src")
from jobs.calls import API
from jobs.pcm_backend import Config
from jobs.pcm_errors import CallError
from jobs.states import state

def client(settings, secrets):
    return API(Config("n", "i", settings, secrets))

api = client({"endpoint": sys.argv[1] + "/v1/"}, {"token": "correct horse"})
for call in (
    lambda: api.list_sizes(),
    lambda: api.list_jobs(name=["a b", "c&d"]),
    lambda: api.get_job(id="a/b?c"),
    lambda: api.get_job(id=".."),
    lambda: api.make_job({"name": "x", "size": "y", "command": []}),
    lambda: api.read_output(id="x", stream="stdout", from_=0),
    lambda: api.read_output(id="x", stream="stderr", from_=0, most=10),
    lambda: api.delete_job(id="x"),
    lambda: client({"endpoint": "ftp://x"}, {"token": "x"}),
    lambda: client({"endpoint": "http://x"}, {}),
):
    try:
        print("OK", call())
    except CallError as e:
        print(e.code.name, "absent" if e.absent else "", e)
for word in ("constructor", "__proto__"):
    print(state(word).state, state(word).reason)
`

const callsTypeScript = `
import { API } from "./dist/calls.js";
import { CallError, Code } from "./dist/pcm_errors.js";
import { state } from "./dist/states.js";

function client(settings, secrets) {
  const api = new API({ name: "n", instance: "i", settings, secrets });
  api.check();
  return api;
}

const api = client({ endpoint: process.argv[2] + "/v1/" }, { token: "correct horse" });
for (const call of [
  () => api.listSizes(),
  () => api.listJobs({ name: ["a b", "c&d"] }),
  () => api.getJob({ id: "a/b?c" }),
  () => api.getJob({ id: ".." }),
  () => api.makeJob({ name: "x", size: "y", command: [] }),
  () => api.readOutput({ id: "x", stream: "stdout", from: 0 }),
  () => api.readOutput({ id: "x", stream: "stderr", from: 0 }, undefined, 10),
  () => api.deleteJob({ id: "x" }),
  async () => client({ endpoint: "ftp://x" }, { token: "x" }),
  async () => client({ endpoint: "http://x" }, {}),
]) {
  try {
    console.log("OK", await call());
  } catch (e) {
    if (!(e instanceof CallError)) throw e;
    console.log(Code[e.code], e.absent ? "absent" : "", e.message);
  }
}
for (const word of ["constructor", "__proto__"]) console.log(state(word).state, state(word).reason);
`

// callsGo is a test in a project in Go.
const callsGo = `package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
)

func TestCalls(t *testing.T) {
	ctx := context.Background()
	client := func(endpoint string, secrets map[string]string) (*api, error) {
		return newAPI(Config{Settings: map[string]string{"endpoint": endpoint}, Secrets: secrets})
	}
	c, err := client(os.Getenv("TRAP")+"/v1/", map[string]string{"token": "correct horse"})
	if err != nil {
		t.Fatal(err)
	}
	raw := func(stream string, most int64) (any, error) {
		return nil, c.readOutput(ctx, Params{"id": "x", "stream": stream, "from": 0}, &bytes.Buffer{}, most)
	}
	for _, call := range []func() (any, error){
		func() (any, error) { return c.listSizes(ctx, nil) },
		func() (any, error) { return c.listJobs(ctx, Params{"name": []string{"a b", "c&d"}}) },
		func() (any, error) { return c.getJob(ctx, Params{"id": "a/b?c"}) },
		func() (any, error) { return c.getJob(ctx, Params{"id": ".."}) },
		func() (any, error) { return c.makeJob(ctx, nil, map[string]any{"name": "x"}) },
		func() (any, error) { return raw("stdout", 1000) },
		func() (any, error) { return raw("stderr", 10) },
		func() (any, error) { return c.deleteJob(ctx, Params{"id": "x"}) },
		func() (any, error) { return client("ftp://x", map[string]string{"token": "x"}) },
		func() (any, error) { return client("http://x", nil) },
	} {
		said, err := call()
		var e *callError
		if errors.As(err, &e) {
			absent := ""
			if e.absent {
				absent = "absent"
			}
			fmt.Println(map[int]string{3: "INVALID_ARGUMENT", 5: "NOT_FOUND", 13: "INTERNAL", 14: "UNAVAILABLE"}[int(e.code)], absent, e.text)
			continue
		}
		fmt.Println("OK", said)
	}
	for _, word := range []string{"constructor", "__proto__"} {
		fmt.Println(state(word).State, state(word).Reason)
	}
}
`

// trap is a server that means no good, or is broken.
type trap struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newTrap(t *testing.T) *trap {
	s := &trap{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.RequestURI)
		s.mu.Unlock()
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/sizes":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "GET /v1/jobs":
			fmt.Fprint(w, "[1, 2]")
		case "POST /v1/jobs":
			fmt.Fprintf(w, "{\"id\": \"%s\"}", strings.Repeat("x", 17<<20))
		case "GET /v1/jobs/x/output/stdout":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, "short")
		case "GET /v1/jobs/x/output/stderr":
			fmt.Fprint(w, "more than ten bytes")
		case "DELETE /v1/jobs/x":
			w.WriteHeader(http.StatusNoContent)
		default:
			http.Error(w, "there is none for "+r.Header.Get("Authorization"), http.StatusNotFound)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// check says whether a client went by its document, told what was wrong, and kept the secret; and that words mean what the table says alone.
func (s *trap) check(t *testing.T, said string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); !regexp.MustCompile(`^(PASS|ok |=== |--- )`).MatchString(line) {
			lines = append(lines, line)
		}
	}
	for i, want := range []string{
		"INVALID_ARGUMENT .*HTTP 302", "INTERNAL .*no object", `NOT_FOUND absent .*HTTP 404.*Bearer \*\*\*`, "INVALID_ARGUMENT .*parameter id is ", "INTERNAL .*over 16777216 bytes",
		"UNAVAILABLE .*broke off", "INTERNAL .*over 10 bytes", "^OK", "INVALID_ARGUMENT .*setting endpoint", "INVALID_ARGUMENT .*secret token is missing",
		"^running its back end calls its state constructor, which is not known here$", "^running its back end calls its state __proto__, which is not known here$",
	} {
		if i >= len(lines) || !regexp.MustCompile(want).MatchString(lines[i]) {
			t.Errorf("call %d: want %s in\n%.3000s", i, want, said)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.seen, "\n")
	for _, want := range []string{"GET /v1/jobs?name=a+b&name=c%26d", "GET /v1/jobs/a%2Fb%3Fc\n"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
	if strings.Contains(all, "elsewhere") || strings.Contains(said, "correct horse") {
		t.Errorf("it went where it was sent, or told the secret:\n%s\n%.3000s", all, said)
	}
}

// The client in Go does the same.
func TestGoCalls(t *testing.T) {
	s := newTrap(t)
	dir := filepath.Join(t.TempDir(), "jobs")
	generated(t, Options{Name: "jobs", Language: "go", Dir: dir, From: apis(t)["jobs.yaml"], FromFile: "jobs.yaml"})
	if err := os.WriteFile(filepath.Join(dir, "calls_test.go"), []byte(callsGo), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-v", "-count=1", "-run", "TestCalls", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off", "TRAP="+s.URL)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	s.check(t, string(out))
}

// unsupportedJobs are what the service of jobs.yaml can't do.
var unsupportedJobs = map[string]string{
	"memory limit": "the service knows no limits", "out of memory": "the service knows no limits", "too little memory": "the service knows no limits",
	"use of CPU": "the service does not measure", "use of memory": "the service does not measure", "accelerators": "the service has none",
	"no network": "jobs have the service's network", "read-only inputs": "a job has copies of its own", "images": "it runs programs of its own machine",
	"arrays": "the service has no arrays", "suspend and resume": "the service can't halt a job", "exec": "the service can't", "copy": "the service can't",
	"service": "the service gives no address", "waiting": "nothing fills the service here",
}

// A project from an OpenAPI document, when its author has written what is left, passes
// PCM's suite by its own language's tools; and the author's part stays when the document changes.
func TestToolChainsOpenAPI(t *testing.T) {
	for _, lang := range Languages() {
		t.Run(lang, func(t *testing.T) {
			if !require.Named(lang) {
				t.Skipf("SKIPPED: it fetches packages or takes minutes, and PCM_TEST_REQUIRE does not name %s: 'make test-plugins' does", lang)
			}
			testOpenAPI(t, lang)
		})
	}
}

func testOpenAPI(t *testing.T, lang string) {
	c := completions[lang]
	s := &site{t: t, handler: newJobServer(t, 12), address: "127.0.0.1:0"}
	s.start()
	t.Cleanup(func() { s.server.Close() })
	dir := filepath.Join(t.TempDir(), "jobs")
	o := Options{Name: "jobs", Language: lang, Dir: dir, From: apis(t)["jobs.yaml"], FromFile: "jobs.yaml"}
	r := generated(t, o)
	var left []string
	for _, p := range r.Left {
		left = append(left, p.Name)
	}
	if want := "pools find start poll logs stop outputs remove"; strings.Join(left, " ") != want {
		t.Errorf("left to write: %q, want %q", left, want)
	}
	complete(t, dir, c)

	settings, err := json.Marshal(map[string]string{"endpoint": "http://" + s.address})
	if err != nil {
		t.Fatal(err)
	}
	trial, err := json.Marshal(map[string]any{
		"patience": "2m", "pace": "1s", "many": 12, "parallel": 6, "missing": "no-such-program", "task": taskProgram(t), "env": []string{"OLDPWD", "SHLVL", "_"},
		"unsupported": unsupportedJobs,
	})
	if err != nil {
		t.Fatal(err)
	}
	run := func(dir string, step []string, env ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), step[0], step[1:]...)
		if strings.HasPrefix(step[0], ".") {
			cmd.Path = filepath.Join(dir, step[0])
		}
		cmd.Dir = dir
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "PCM_TEST_MATRIX=") { // which is of what PCM ships
				cmd.Env = append(cmd.Env, v)
			}
		}
		cmd.Env = append(cmd.Env, env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %q: %v\n%s", dir, step, err, out)
		}
		return string(out)
	}
	env := []string{"PCM=" + pcmProgram(t), "ADAPTER_SETTINGS=" + string(settings), "ADAPTER_TRIAL=" + string(trial), "token=correct horse"}
	if lang == "go" { // whose test in the project takes no trial
		if program, err := build(filepath.Join(dir, "bin", "adapter"), dir, "."); err != nil {
			t.Fatal(err)
		} else {
			trial := strings.TrimSuffix(string(trial), "}") + fmt.Sprintf(`, "name": "jobs", "command": [%q], "settings": %s, "secrets": {"token": "env:token"}}`, program, settings)
			file := filepath.Join(t.TempDir(), "trial.yaml")
			if err := os.WriteFile(file, []byte(trial), 0o644); err != nil {
				t.Fatal(err)
			}
			run(dir, []string{pcmProgram(t), "adapter", "test", "--config", file}, env...)
		}
	} else {
		tryOpenAPI(t, lang, dir, c, run, env)
	}

	// The document changes.
	before := read(t, filepath.Join(dir, filepath.FromSlash(c.backend)))
	o.From = []byte(strings.Replace(string(o.From), "name: {type: string}\n        size:", "name: {type: string}\n        note: {type: string}\n        size:", 1))
	r = generated(t, o)
	if len(r.Orphaned) != 0 || len(r.Left) != 0 || read(t, filepath.Join(dir, filepath.FromSlash(c.backend))) != before {
		t.Errorf("the author's part did not stay: %+v", r)
	}
	if !strings.Contains(read(t, filepath.Join(dir, filepath.FromSlash(c.types))), "note") {
		t.Error("the document's change did not come")
	}
	t.Logf("%s: %d generated, %d of support, %d by hand: %.1f %% not by hand", lang, r.Share.Generated, r.Share.Support, r.Share.Hand, r.Share.Percent())
	if r.Share.Percent() < 90 {
		t.Errorf("%.1f %% are generated, less than 90", r.Share.Percent())
	}
}

// tryOpenAPI reads what is generated of all documents, and runs the project's own tests, by the language's tools.
func tryOpenAPI(t *testing.T, lang, dir string, c completed, run func(dir string, step []string, env ...string) string, env []string) {
	t.Helper()
	steps := toolChains[lang].steps
	last := len(steps) - 1
	for _, step := range steps[:last] {
		run(dir, step)
	}

	// What is generated of others is code that the language takes.
	documents := apis(t)
	documents["hostile.json"] = hostileAPI(t)
	for name, text := range documents {
		other := filepath.Join(t.TempDir(), strings.ReplaceAll(name, ".", "-"))
		generated(t, Options{Name: "jobs", Language: lang, Dir: other, From: text, FromFile: name})
		if err := os.Symlink(filepath.Join(dir, c.modules), filepath.Join(other, c.modules)); err != nil {
			t.Fatal(err)
		}
		check := slices.Clone(c.checks)
		if lang == "python" {
			check[0] = filepath.Join(dir, ".venv", "bin", "python")
			run(other, []string{filepath.Join(dir, ".venv", "bin", "ruff"), "check"})
		}
		run(other, check)
	}

	trap := newTrap(t)
	check := filepath.Join(dir, c.trial)
	if err := os.WriteFile(check, []byte(c.calls), 0o644); err != nil {
		t.Fatal(err)
	}
	said := run(dir, append(slices.Clone(c.run), trap.URL))
	if err := os.Remove(check); err != nil {
		t.Fatal(err)
	}
	trap.check(t, said)

	run(dir, steps[last], env...)
}

// complete writes what an author would.
func complete(t *testing.T, dir string, c completed) {
	t.Helper()
	all, _, err := regions([]byte(read(t, filepath.Join("testdata", "openapi", c.author))))
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, r := range all {
		if r.Name == "own-file" {
			if err := os.WriteFile(filepath.Join(dir, c.own), []byte(r.Text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		texts[r.Name] = r.Text
	}
	backend := filepath.Join(dir, filepath.FromSlash(c.backend))
	if err := os.WriteFile(backend, fill([]byte(read(t, backend)), texts), 0o644); err != nil {
		t.Fatal(err)
	}
	if len(texts) > 0 {
		t.Fatalf("%s has no regions for %v", c.backend, texts)
	}
}

// No operation is called like what all clients have: it would take its place.
func TestClientNames(t *testing.T) {
	for lang, c := range map[string]struct{ file, methods string }{
		"python":     {"templates/python/support-openapi/src/NAME/pcm_calls.py.txt", `(?m)^    def ([a-z]\w*)\(\s*self|self\.(\w+)`},
		"typescript": {"templates/typescript/support-openapi/src/pcm_calls.ts.txt", `(?m)^  (?:private |async |readonly )*([a-z]\w*)[(:]|this\.(\w+)`},
	} {
		_, class, ok := strings.Cut(read(t, filepath.FromSlash(c.file)), "class Calls")
		all := regexp.MustCompile(c.methods).FindAllStringSubmatch(class, -1)
		if !ok || len(all) < 10 {
			t.Fatalf("%s: %d names", lang, len(all))
		}
		taken := strings.Fields(languages[lang].client.taken)
		for _, m := range all {
			if name := m[1] + m[2]; !slices.Contains(taken, name) && name != "name" {
				t.Errorf("%s: an operation may be called %s", lang, name)
			}
		}
	}
}
