package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/generate"
	"github.com/jointcloud/pcm/configs"
)

// count measures the adapters of the tree at root.
func count(root string) (all []adaptertest.Lines, err error) {
	for _, name := range []string{"process", "wasm", "container", "kubernetes", "slurm"} {
		n, err := goLines(filepath.Join(root, "adapters", name))
		if err != nil {
			return nil, err
		}
		all = append(all, adaptertest.Lines{Adapter: name, Kind: "built in", Written: n})
	}
	for _, name := range configs.AdapterNames() {
		all = append(all, adaptertest.Lines{Adapter: name, Kind: "described", Described: codeLines(string(configs.Adapter(name)), "#")})
	}
	projects, err := filepath.Glob(filepath.Join(root, "examples", "adapters", "*", ".pcm-adapter.json"))
	if err != nil || len(projects) == 0 {
		return nil, fmt.Errorf("no generated projects below %s: %v", root, err)
	}
	for _, p := range projects {
		l, err := project(filepath.Dir(p))
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	// What else the generator makes of the same description.
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, lang := range generate.Languages() {
		if lang == "go" { // among the examples
			continue
		}
		o := generate.Options{Name: "openi", Language: lang, Dir: filepath.Join(dir, lang), From: configs.Adapter("openi"), FromFile: "openi"}
		if _, err := generate.New(o); err != nil {
			return nil, err
		}
		l, err := project(o.Dir)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// project measures a generated one.
func project(dir string) (adaptertest.Lines, error) {
	s, _, err := generate.Measure(dir)
	if err != nil {
		return adaptertest.Lines{}, err
	}
	l := adaptertest.Lines{Adapter: fmt.Sprintf("%s (%s)", s.Name, s.Language), Kind: "generated", Generated: s.Generated, Support: s.Support, Written: s.Hand}
	if d := configs.Adapter(s.From); s.From != "" && d != nil {
		l.Described = codeLines(string(d), "#")
	}
	return l, nil
}

// goLines counts the Go of a folder and of those below it, tests left out.
func goLines(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		n += codeLines(string(text), "//")
		return err
	})
	return n, err
}

// codeLines counts lines that are neither blank nor a comment.
func codeLines(text, comment string) (n int) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, comment) {
			n++
		}
	}
	return n
}

// encodeLines is how counts are kept.
func encodeLines(all []adaptertest.Lines) ([]byte, error) {
	data, err := json.MarshalIndent(all, "", "\t")
	return append(data, '\n'), err
}
