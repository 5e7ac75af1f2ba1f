package generate

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/configs"
)

const anAPI = `{"openapi": "3.1.0", "paths": {"/jobs/{id}": {"get": {"operationId": "getJob", "summary": "shows\na job",
	"parameters": [{"name": "id", "in": "path", "required": true}, {"name": "full", "in": "query"}]}}}}`

// shipped are the descriptions that come with the program.
func shipped(t *testing.T) []string {
	t.Helper()
	all, err := filepath.Glob("../../configs/adapters/*.yaml")
	if err != nil || len(all) == 0 {
		t.Fatalf("there are no shipped descriptions: %v", err)
	}
	return all
}

// apis are OpenAPI documents of several styles.
func apis(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"api.json": []byte(anAPI)}
	for _, name := range []string{"petstore.json", "cloud.yaml", "jobs.yaml"} {
		all[name] = []byte(read(t, filepath.Join("testdata", "openapi", name)))
	}
	return all
}

// Each language is written from whatever it can be written from.
func TestRenders(t *testing.T) {
	for _, lang := range Languages() {
		from := map[string][]byte{"": nil, "small.yaml": []byte(small)}
		for _, file := range shipped(t) {
			from[filepath.Base(file)] = configs.Adapter(strings.TrimSuffix(filepath.Base(file), ".yaml"))
		}
		maps.Copy(from, apis(t))
		for name, text := range from {
			r, err := New(Options{Name: "jobs", Language: lang, Dir: filepath.Join(t.TempDir(), "jobs"), From: text, FromFile: name})
			if err != nil {
				t.Errorf("%s from %q: %v", lang, name, err)
				continue
			}
			if r.Share.Generated < 20 || len(r.Written) < 10 || strings.HasSuffix(name, ".yaml") && name != "small.yaml" && r.Share.Support < 500 {
				t.Errorf("%s from %q: %+v", lang, name, r)
			}
			if len(r.Next) < 3 || !strings.HasPrefix(r.Next[0], "cd ") || !strings.Contains(strings.Join(r.Next, "\n"), "ADAPTER_SETTINGS='{") {
				t.Errorf("%s from %q: next comes %q", lang, name, r.Next)
			}
		}
	}
}

// Each language fills in all that differs in a script from task to task, and sets no
// variables that are the shell's own.
func TestScriptWords(t *testing.T) {
	word := regexp.MustCompile(`@[A-Z]+@`)
	for _, lang := range Languages() {
		l := languages[lang]
		p, err := newProject(Options{Name: "jobs", Language: lang, From: configs.Adapter("openi"), FromFile: "openi"}, l)
		if err != nil {
			t.Fatal(err)
		}
		files, err := p.files(l)
		if err != nil {
			t.Fatal(err)
		}
		var known []string
		found, own := "", false
		for _, f := range files {
			switch base := filepath.Base(f.path); {
			case strings.HasPrefix(base, "pcm_script."):
				known = word.FindAllString(string(f.text), -1)
				own = strings.Contains(strings.ReplaceAll(string(f.text), "\"\n    r\"", ""), rest.ShellsOwn)
			case base == "script.sh":
				found = string(f.text)
			}
		}
		if !own {
			t.Errorf("%s: its script sets variables that are the shell's own", lang)
		}
		if found == "" {
			t.Errorf("%s: there is no script", lang)
		}
		for _, w := range word.FindAllString(found, -1) {
			if !slices.Contains(known, w) {
				t.Errorf("%s: nobody fills in %s", lang, w)
			}
		}
		for _, w := range rest.ScriptWords {
			if !slices.Contains(known, "@"+w+"@") {
				t.Errorf("%s: nobody fills in @%s@", lang, w)
			}
		}
		if len(known) != len(rest.ScriptWords) {
			t.Errorf("%s fills in %v, of %v", lang, known, rest.ScriptWords)
		}
	}
}

// scripted runs a task by a script, and has no way for files.
func scripted(t *testing.T) string {
	t.Helper()
	text := strings.Replace(small, `argv: "${task.command}"`, `argv: ["sh", "-c", "${task.script}"]`, 1)
	text = strings.Replace(text, "answer: text}}", "answer: text}, follow: tail}", 1)
	if !strings.Contains(text, "task.script") || !strings.Contains(text, "tail") {
		t.Fatal("the description has changed")
	}
	return text
}

const goChecks = `package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"jobs/pluginpb"
)

// What tells a script's own words from the task's is on disk before the job is made.
func TestChecksCreate(t *testing.T) {
	s := &attempts{dir: t.TempDir()}
	a := &Attempt{all: s, state: &pluginpb.Status{}, Note: map[string]any{"pool": map[string]any{"name": "s", "size": "s"}}, Request: &pluginpb.StartRequest{Key: "trd-a.0.1", Command: []string{"true"}}}
	kept := "no job was made"
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			data, err := os.ReadFile(filepath.Join(s.dir, "trd-a.0.1", "attempt.json"))
			if kept = string(data); err != nil {
				kept = err.Error()
			}
		}
		w.Write([]byte("{}"))
	}))
	defer srv.Close()
	b := &described{d: &Described{
		Settings: siteSettings, Secrets: siteSecrets, Servers: servers, Login: login, Limits: limits, Features: features, Let: lets, Create: createJob, Logs: logs,
	}}
	if err := b.Configure(context.Background(), Config{Instance: "i", Settings: map[string]string{"endpoint": srv.URL}, Secrets: map[string]string{"token": "x"}}); err != nil {
		t.Fatal(err)
	}
	_, err := b.Start(context.Background(), a) // which gets no name of a job
	if !strings.Contains(kept, "\"script\":") {
		t.Errorf("when the job was made there was on disk: %s (%v)", kept, err)
	}
}

// deaf can't read the output of anything.
type deaf struct{ Backend }

func (deaf) Logs(context.Context, *Attempt, bool) error { return status.Error(codes.Unauthenticated, "who are you?") }

// What a plug-in that was killed had read comes once; and an attempt whose output
// can't be read does not end without it before some time has passed.
func TestChecksKilled(t *testing.T) {
	dir := t.TempDir()
	s, err := newAttempts(dir, deaf{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := &Attempt{all: s, state: &pluginpb.Status{Key: "trd-a.0.1"}, ID: "j", known: true, Note: map[string]any{}, Request: &pluginpb.StartRequest{Key: "trd-a.0.1"}}
	for _, step := range []func() error{a.Save, func() error { return a.Write("stdout", []byte("once")) }, a.Save, func() error { return a.Write("stdout", []byte(", again")) }} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if s, err = newAttempts(dir, deaf{}, time.Hour); err != nil {
		t.Fatal(err)
	}
	a = s.get("trd-a.0.1")
	if a.Size("stdout") != 4 {
		t.Errorf("%d bytes were kept of what is to be read again from byte 4 on", a.Size("stdout"))
	}
	look := Seen{State: State{State: "ended", Outcome: "ok"}}
	a.see(context.Background(), look)
	if a.ended() {
		t.Error("it has ended, and nobody has read what it printed last")
	}
	a.mute = time.Now().Add(-patience)
	a.see(context.Background(), look)
	if !a.ended() {
		t.Error("it never ends")
	}
}

// slow holds back who reads what an attempt printed.
type slow struct {
	Backend
	reads, goOn chan struct{}
}

func (s slow) Logs(_ context.Context, a *Attempt, _ bool) error {
	err := a.Write("stdout", []byte("first"))
	s.reads <- struct{}{}
	<-s.goOn
	return err
}

// That an attempt runs is told before its output is there, however slowly that is read.
func TestChecksSlow(t *testing.T) {
	b := slow{reads: make(chan struct{}), goOn: make(chan struct{})}
	s, err := newAttempts(t.TempDir(), b, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	a := &Attempt{all: s, state: &pluginpb.Status{Key: "trd-a.0.1", State: pluginpb.State_STATE_PENDING}, ID: "j", known: true, Note: map[string]any{}, Request: &pluginpb.StartRequest{Key: "trd-a.0.1"}}
	if err := a.Save(); err != nil {
		t.Fatal(err)
	}
	a.see(context.Background(), Seen{State: State{State: "pending"}}) // which has no output to read
	over := make(chan struct{})
	go func() {
		defer close(over)
		a.see(context.Background(), Seen{State: State{State: "running"}})
	}()
	<-b.reads
	if a.pending() || a.Size("stdout") != 5 || a.state.GetStdoutBytes() != 0 {
		t.Errorf("while %d bytes are there, it is told: %v", a.Size("stdout"), a.state)
	}
	close(b.goOn)
	<-over
	if a.pending() || a.state.GetStdoutBytes() != 5 {
		t.Errorf("then it is told: %v", a.state)
	}
}

func TestChecks(t *testing.T) {
	b := &described{d: &Described{Features: features, Logs: logs}}
	for _, r := range []*pluginpb.StartRequest{
		{Key: "trd-a.0.1", Command: []string{"true"}, Inputs: []*pluginpb.Input{{Path: "/x", Target: "x"}}},
		{Key: "trd-a.0.1", Command: []string{"true"}, Outputs: []string{"x"}},
	} {
		_, err := b.Start(context.Background(), &Attempt{Request: r, Note: map[string]any{}})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no way to bring files") {
			t.Errorf("%v: %v", r, err)
		}
	}
	for _, most := range []int64{0, 1 << 20} {
		a := &Attempt{Note: map[string]any{}, Request: &pluginpb.StartRequest{
			Key: "trd-a.0.1", Command: []string{"true"}, OutputCapBytes: most, Env: map[string]string{"odd-name": "x", "A": "it's", "OLDPWD": "/"},
		}}
		if err := b.prepare(a); err != nil {
			t.Fatal(err)
		}
		text := asText(a.Note["script"])
		if left := regexp.MustCompile("@[A-Z]+@").FindAllString(text, -1); len(left) > 0 {
			t.Errorf("%q is left in the script", left)
		}
		if !strings.Contains(text, "-- 'odd-name=x'") && !strings.Contains(text, "'odd-name=x' \"$@\"") || strings.Contains(text, "export 'OLDPWD") {
			t.Errorf("variables are lost, or can't be set:\n%s", text)
		}
	}
}
`

// A plug-in from a description without data refuses tasks with files, and leaves no word of a script open.
func TestGoScript(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "jobs")
	generated(t, Options{Name: "jobs", Language: "go", Dir: dir, From: []byte(scripted(t)), FromFile: "small.yaml"})
	if err := os.WriteFile(filepath.Join(dir, "checks_test.go"), []byte(goChecks), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-count=1", "-run", "TestChecks", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// The other languages refuse them by the same words.
func TestFilesRefused(t *testing.T) {
	const why = "this back end has no way to bring files to its tasks, or from them: its description has no data"
	condition := map[string]string{"go": "b.d.Data == nil:", "python": "not self.d.data:", "typescript": "!this.d.data) {"}
	for _, lang := range Languages() {
		dir := filepath.Join(t.TempDir(), "jobs")
		r := generated(t, Options{Name: "jobs", Language: lang, Dir: dir, From: []byte(scripted(t)), FromFile: "small.yaml"})
		found := false
		for _, name := range r.Written {
			text := read(t, filepath.Join(dir, filepath.FromSlash(name)))
			if before, _, ok := strings.Cut(text, why); ok {
				lines := strings.Split(before, "\n")
				found = strings.HasSuffix(lines[len(lines)-2], condition[lang])
			}
		}
		if !found {
			t.Errorf("%s: tasks with files are not refused for want of data", lang)
		}
	}
}

// Tests that have nothing to test with fail, and the README says what they need.
func TestNeedsSettings(t *testing.T) {
	for _, lang := range Languages() {
		dir := filepath.Join(t.TempDir(), "jobs")
		generated(t, Options{Name: "jobs", Language: lang, Dir: dir, From: []byte(small), FromFile: "small.yaml"})
		const call = `ADAPTER_SETTINGS='{"endpoint":"http://127.0.0.1:8080"}' token=… make test`
		if text := read(t, filepath.Join(dir, "README.md")); !strings.Contains(text, "\n"+call+"\n") {
			t.Errorf("%s: README.md has no line %s", lang, call)
		}
		cmd := exec.Command("make", "-o", "build", "-o", "node_modules", "test")
		cmd.Dir = dir
		for _, v := range os.Environ() {
			if !strings.HasPrefix(v, "ADAPTER_SETTINGS=") && !strings.HasPrefix(v, "MAKE") {
				cmd.Env = append(cmd.Env, v)
			}
		}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "ADAPTER_SETTINGS is not set") || !strings.Contains(string(out), "README.md") {
			t.Errorf("%s: %v\n%s", lang, err, out)
		}
	}
}

// Measuring looks at projects only.
func TestMeasureElsewhere(t *testing.T) {
	const dir = "/proc/self" // not all of that can be read
	if _, _, err := Measure(dir); pcm.ErrorCode(err) != pcm.NotFound || !strings.Contains(err.Error(), "holds no project") {
		t.Errorf("%v", err)
	}
}
