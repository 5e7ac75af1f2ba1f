package generate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
)

// A text of a description is no mark of a region.
func TestNoRegionsFromDescriptions(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	from := strings.Replace(small, "size: \"${task.let.size}\"", `size: "a\n# pcm:end mine\n# pcm:begin mine\n"`, 1)
	if from == small {
		t.Fatal("the description has changed")
	}
	generated(t, Options{Name: "jobs", Language: "go", Dir: dir, From: []byte(from), FromFile: "small.yaml"})
	if rs, _, err := regions([]byte(read(t, filepath.Join(dir, "described.go")))); err != nil || len(rs) != 0 {
		t.Errorf("regions %v, %v", rs, err)
	}
}

// A project that comes from others deletes and overwrites nothing outside of it.
func TestHostileProject(t *testing.T) {
	top := t.TempDir()
	dir, victim := filepath.Join(top, "jobs"), filepath.Join(top, "victim")
	o := Options{Name: "jobs", Language: "go", Dir: dir, Force: true}
	generated(t, o)
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(victim, "adapter.pb.go"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, manifestName)
	good := read(t, name)
	edit(t, name, `"files": {`, `"files": {"../victim/adapter.pb.go": {"kind": "support", "digest": "", "lines": 1},`)
	if _, err := New(o); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "outside of the project") {
		t.Errorf("a file outside: %v", err)
	}
	if err := os.WriteFile(name, []byte(good), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "pluginpb")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dir, "pluginpb")); err != nil {
		t.Fatal(err)
	}
	if _, err := New(o); err == nil {
		t.Error("a folder that leads out was written into")
	}
	if text := read(t, filepath.Join(victim, "adapter.pb.go")); text != "mine" {
		t.Errorf("a file outside was overwritten: %.40q", text)
	}
}

// What the author wrote stays, whatever became of the rest.
func TestAuthorsLinesStay(t *testing.T) {
	const own = "\tr.Header.Set(\"X-Mine\", \"1\")\n"
	begin := func(t *testing.T) (Options, string) {
		dir := filepath.Join(t.TempDir(), "jobs")
		o := Options{Name: "jobs", Language: "go", Dir: dir, From: []byte(small), FromFile: "small.yaml"}
		generated(t, o)
		author := filepath.Join(dir, "author.go")
		edit(t, author, "\t// pcm:begin sign\n", "\t// pcm:begin sign\n"+own)
		return o, author
	}
	t.Run("without a manifest", func(t *testing.T) {
		o, author := begin(t)
		if err := os.Remove(filepath.Join(o.Dir, manifestName)); err != nil {
			t.Fatal(err)
		}
		o.Force = true
		generated(t, o)
		if !strings.Contains(read(t, author), own) {
			t.Error("they are gone")
		}
	})
	t.Run("a run that broke off", func(t *testing.T) {
		o, author := begin(t)
		o.From = []byte(strings.Replace(strings.Replace(small, "running: {", "started: {", 1), "method: POST", "method: PUT", 1))
		block := filepath.Join(o.Dir, "states.go.new")
		if err := os.Mkdir(block, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := New(o); err == nil {
			t.Fatal("it was written over a folder")
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		generated(t, o)
		if !strings.Contains(read(t, author), own) || !strings.Contains(read(t, filepath.Join(o.Dir, "states.go")), `"started"`) || !strings.Contains(read(t, filepath.Join(o.Dir, "described.go")), `"PUT"`) {
			t.Error("it can't be finished")
		}
	})
	t.Run("a first run that broke off", func(t *testing.T) {
		o := Options{Name: "jobs", Language: "go", Dir: filepath.Join(t.TempDir(), "jobs"), From: []byte(small), FromFile: "small.yaml"}
		block := filepath.Join(o.Dir, "states.go.new")
		if err := os.MkdirAll(block, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := New(o); err == nil {
			t.Fatal("it was written over a folder")
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(block, []byte("package m"), 0o644); err != nil {
			t.Fatal(err)
		}
		generated(t, o)
		if !strings.Contains(read(t, filepath.Join(o.Dir, "states.go")), `"running"`) {
			t.Error("it can't be finished")
		}
	})
	t.Run("a region that is there twice", func(t *testing.T) {
		o, author := begin(t)
		edit(t, author, "\t// pcm:begin sign\n", "\t// pcm:begin sign\n\t// pcm:end sign\n\t// pcm:begin sign\n")
		o.Force = true
		if _, err := New(o); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "a second region is called sign") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("in a folder that is usually none of the author's", func(t *testing.T) {
		o := Options{Name: "build", Language: "python", Dir: filepath.Join(t.TempDir(), "x")}
		if r := generated(t, o); len(r.Left) == 0 {
			t.Error("nothing is left to write")
		}
		backend := filepath.Join(o.Dir, "src", "build", "backend.py")
		const mark = "        # pcm:begin configure needed\n"
		edit(t, backend, mark, mark+"        mine = 1\n")
		generated(t, o)
		if !strings.Contains(read(t, backend), "mine = 1") {
			t.Error("they are gone")
		}
	})
}

// Keys name folders: the servers of all languages take the same ones, and no "..".
func TestKeysAreNames(t *testing.T) {
	for _, lang := range Languages() {
		p := &Project{Name: "x", Package: "x", Language: lang, emitter: &emitter{Syntax: languages[lang].Syntax}}
		files, err := p.files(languages[lang])
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			found = found || f.kind == Support && strings.Contains(string(f.text), "[a-z0-9-][a-z0-9.-]{0,95}")
		}
		if !found {
			t.Errorf("the server in %s takes other keys", lang)
		}
	}
}
