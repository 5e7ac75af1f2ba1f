package generate

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

// small has what the generator knows: lists, paging, templates, macros, optionals.
const small = `pcm: adapter/1
name: small
about: runs jobs of a service as small as can be
settings:
  endpoint: {about: where it is, required: true, example: "http://127.0.0.1:8080"}
secrets:
  token: {about: what its requests show}
servers:
  api: ${settings.endpoint}/v1
login: {kind: bearer, token: token}
limits: {rate: 1000, burst: 1000, tries: 2, poll: 100ms}
pools:
  list:
    request: {path: /flavors}
    items: body.flavors.filter(f, f.count > 0 && f.name != "old")
  pool: {id: "${item.name}", cpu: "${item.cpus}", memory: "${item.mib} MiB", slots: "${item.?count.orValue(1)}"}
let:
  - {name: size, value: "${ceildiv(task.memory, 1048576)}"}
create:
  request:
    method: POST
    path: /jobs
    body: {name: "${task.name}", argv: "${task.command}", size: "${task.let.size}", none: null}
  id: $.id
find:
  list: {request: {path: /jobs}, items: "$.jobs"}
  where: item.name == task.name
  id: $.id
watch:
  one: {request: {path: "/jobs/${id}"}}
  status: {state: 'job.?state.optMap(s, s.lower()).orValue("")', exit_code: job.?code}
states:
  queued: {state: pending, reason: it waits}
  running: {state: running}
  done: {state: ended, outcome: ok}
logs:
  - {stream: stdout, request: {path: "/jobs/${id}/log", answer: text}}
stop: {request: {method: DELETE, path: "/jobs/${id}"}}
`

func generated(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func edit(t *testing.T, name, from, to string) {
	t.Helper()
	text := read(t, name)
	if !strings.Contains(text, from) {
		t.Fatalf("%s has no %q", name, from)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(text, from, to, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Written again, a project keeps what is the author's and nothing else.
func TestAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	o := Options{Name: "jobs", Language: "go", Dir: dir, From: []byte(small), FromFile: "small.yaml"}
	first := generated(t, o)
	if first.Share.Hand != 0 || first.Share.Generated < 50 || first.Share.Stubs == 0 || len(first.Left) != 0 {
		t.Errorf("a described project: %+v", first)
	}
	if again := generated(t, o); len(again.Written) != 0 {
		t.Errorf("written again without a change: %q", again.Written)
	}
	main, author := filepath.Join(dir, "main.go"), filepath.Join(dir, "author.go")
	edit(t, main, "\t// pcm:end main", "\td.Limits.Tries = 3\n\n\t// pcm:end main")
	edit(t, author, "\t// pcm:begin sign\n", "\t// pcm:begin sign\n\tr.Header.Set(\"X-Mine\", \"1\")\n")
	if err := os.WriteFile(filepath.Join(dir, "extra.go"), []byte("package main\n\nvar extra = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	o.From = []byte(strings.Replace(small, "running: {", "started: {", 1))
	r := generated(t, o)
	if want := "author.go: sign main.go: main"; strings.Join(r.Kept, " ") != want {
		t.Errorf("kept %q, want %q", r.Kept, want)
	}
	if !strings.Contains(read(t, main), "\td.Limits.Tries = 3\n") || !strings.Contains(read(t, author), `"X-Mine"`) || !strings.Contains(read(t, filepath.Join(dir, "states.go")), `"started"`) {
		t.Error("the author's part is gone, or the description's change did not come")
	}
	if r.Share.Hand != 5 { // 1 in main, 2 in sign with what stood there, 2 in extra.go
		t.Errorf("%d lines by hand, want 5", r.Share.Hand)
	}

	// Generated lines that were edited are not lost silently.
	edit(t, filepath.Join(dir, "states.go"), `"it waits"`, `"it waits long"`)
	if _, err := New(o); pcm.ErrorCode(err) != pcm.Conflict || !strings.Contains(err.Error(), "states.go") {
		t.Errorf("edited lines: %v", err)
	}
	o.Force = true
	generated(t, o)
	if strings.Contains(read(t, filepath.Join(dir, "states.go")), "long") {
		t.Error("--force did not write the file anew")
	}

	// What has no place any more is kept apart.
	edit(t, main, "pcm:begin main", "pcm:begin gone")
	edit(t, main, "pcm:end main", "pcm:end gone")
	if r = generated(t, o); len(r.Orphaned) != 1 || !strings.Contains(read(t, filepath.Join(dir, "ORPHANED.md")), "d.Limits.Tries = 3") {
		t.Errorf("orphaned: %q", r.Orphaned)
	}
}

func TestRefusals(t *testing.T) {
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "other"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(o *Options)
		want   string
	}{
		{func(o *Options) { o.Language = "cobol" }, `"cobol" is none of the languages`},
		{func(o *Options) { o.Name = "No Name" }, "is not a name"},
		{func(o *Options) { o.Dir = full }, "is not empty"},
		{func(o *Options) { o.From = []byte(strings.Replace(small, "id: $.id", "id: nobody.id", 1)) }, "small.yaml: line 24: create.id"},
		{func(o *Options) { o.From = []byte(strings.Replace(small, "id: $.id", "id: $..id", 1)) }, "create.id: the JSONPath"},
		{func(o *Options) {
			o.From = []byte(strings.Replace(small, "id: $.id", `id: string(timestamp(body.t))`, 1))
		}, "create.id: in \"string(timestamp(body.t))\": the function timestamp can't be written"},
		{func(o *Options) {
			o.From = []byte(strings.Replace(small, "${task.command}", "${task.script_url}", 1) + "data: {store: s3, scheme: https, endpoint: \"https://x\", bucket: b, access_key: token, secret_key: token}\n")
		}, "projects bring no scripts to the store"},
	} {
		o := Options{Name: "jobs", Language: "go", Dir: filepath.Join(t.TempDir(), "x"), From: []byte(small), FromFile: "small.yaml"}
		c.change(&o)
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// Packages of Python are called neither like its own modules nor what is no name.
func TestPythonPackages(t *testing.T) {
	for name, want := range map[string]string{"queue": "adapter_queue", "class": "adapter_class", "2nd.cloud": "adapter_2nd_cloud", "my-cloud": "my_cloud"} {
		dir := filepath.Join(t.TempDir(), "x")
		generated(t, Options{Name: name, Language: "python", Dir: dir})
		if text := read(t, filepath.Join(dir, "pyproject.toml")); !strings.Contains(text, `= "`+want+`.__main__:main"`) {
			t.Errorf("%s: no package %s in\n%s", name, want, text)
		}
	}
}

// The support of each language has all functions that expressions may call.
func TestSupportHasFunctions(t *testing.T) {
	for _, lang := range Languages() {
		p := &Project{Name: "x", Package: "x", Language: lang, emitter: &emitter{Syntax: languages[lang].Syntax}}
		files, err := p.files(languages[lang])
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, f := range files {
			if f.kind == Support {
				all.Write(f.text)
			}
		}
		names := Functions()
		for _, op := range binary {
			names = append(names, op)
		}
		for _, name := range append(names, "get", "has", "path", "paths", "present", "both", "either", "negate", "minus", "fold", "concat", "list", "object", "nothing") {
			if !strings.Contains(all.String(), " "+name+"(") {
				t.Errorf("the support of %s has no function %s", lang, name)
			}
		}
	}
}

// Go projects build and pass vet, from whatever they are made.
func TestGoBuilds(t *testing.T) {
	arrays, err := os.ReadFile("../../configs/adapters/openstack.yaml") // that has what projects leave out
	if err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string][]byte{"described": []byte(small), "arrays": arrays, "openapi": []byte(anAPI), "bare": nil} {
		dir := filepath.Join(t.TempDir(), name)
		r := generated(t, Options{Name: name, Language: "go", Dir: dir, From: from, FromFile: name})
		if (len(r.Omitted) > 0) != (name == "arrays") {
			t.Errorf("%s: left out: %v", name, r.Omitted)
		}
		if described := name == "described"; (len(r.Left) == 0) != described {
			t.Errorf("%s: left to write: %v", name, r.Left)
		}
		cmd := exec.Command("go", "vet", ".")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// Projects take the versions that this module has, which are at hand where it is built.
func TestGoVersions(t *testing.T) {
	ours := read(t, "../../go.mod")
	for line := range strings.Lines(read(t, "templates/go/once/go.mod.tmpl")) {
		words := strings.Fields(line)
		if len(words) >= 2 && strings.HasPrefix(words[1], "v") && !strings.Contains(ours, words[0]+" "+words[1]) {
			t.Errorf("projects take %s %s, this module does not: 'go mod tidy' in a project with our versions, and copy go.mod and go.sum", words[0], words[1])
		}
	}
}
