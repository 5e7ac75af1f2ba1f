package adaptertest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters"
)

// docs/adapters.md is what docs/adapters.json says, which speaks of every adapter
// that has the suite and of every capability.
func TestMatrixIsCurrent(t *testing.T) {
	data, err := os.ReadFile("../../docs/adapters.json")
	if err != nil {
		t.Fatal(err)
	}
	m, err := ReadFindings(data)
	if err != nil {
		t.Fatal(err)
	}
	counted, err := os.ReadFile("../../docs/adapters.lines.json")
	if err != nil {
		t.Fatal(err)
	}
	written, err := ReadLines(counted)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/adapters.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != m.Page(written) || string(data) != string(m.Encode()) {
		t.Error("docs/adapters.md or docs/adapters.json was changed by hand: run 'make test-backends MATRIX=-write'")
	}
	tests, err := filepath.Glob("../*/*_test.go")
	if err != nil || len(tests) == 0 {
		t.Fatalf("found no tests of adapters: %v", err)
	}
	adapters := map[string]bool{}
	for _, name := range tests {
		if filepath.Base(filepath.Dir(name)) == "adaptertest" {
			continue
		}
		if text, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		} else if strings.Contains(string(text), "adaptertest.Run(") {
			adapters[filepath.Base(filepath.Dir(name))] = true
		}
	}
	if len(adapters) < 2 {
		t.Errorf("only %v run the suite: this test sees nothing", adapters)
	}
	for name := range adapters {
		if !slices.ContainsFunc(sorted(m), func(s string) bool { return s == name || strings.HasPrefix(s, name+" (") }) {
			t.Errorf("docs/adapters.json has nothing of adapter %s: run 'make test-backends MATRIX=-write'", name)
		}
	}
	known := places()
	for subject, row := range m {
		for _, c := range Capabilities() {
			f, ok := row[c.Name]
			if !ok || f.Result == Unsupported && f.Reason == "" {
				t.Errorf("docs/adapters.json does not say what %s does of %q: run 'make test-backends MATRIX=-write'", subject, c.Name)
			}
		}
		for name := range row {
			if _, ok := known[name]; !ok {
				t.Errorf("docs/adapters.json says of %s that it can do %q, which is no longer tested", subject, name)
			}
		}
	}
}

// Descriptions and plug-ins name capabilities by the list in package adapters.
func TestCapabilityNames(t *testing.T) {
	var names []string
	for _, c := range Capabilities() {
		names = append(names, c.Name)
	}
	if !slices.Equal(names, adapters.Capabilities) {
		t.Errorf("the suite tests %q, adapters.Capabilities has %q", names, adapters.Capabilities)
	}
}

func TestMatrixDifferences(t *testing.T) {
	row := func(subject string, long bool, change map[string]Result) map[string]Finding {
		all := map[string]Finding{}
		for _, c := range Capabilities() {
			f := Finding{Subject: subject, Capability: c.Name, Result: Pass, Long: long}
			if r, ok := change[c.Name]; ok {
				if f.Result = r; r == "" {
					continue
				}
			}
			all[c.Name] = f
		}
		return all
	}
	kept := Matrix{"a": row("a", false, nil), "b": row("b", true, nil), "c": row("c", false, nil)}
	if d := kept.Differences(Matrix{"a": kept["a"], "c": kept["c"]}, false); len(d) != 0 {
		t.Errorf("without what takes long: %q", d)
	}
	if d := kept.Differences(Matrix{"b": kept["b"]}, true); len(d) != 0 {
		t.Errorf("of some only: %q", d)
	}
	d := kept.Differences(Matrix{"a": row("a", false, map[string]Result{"exec": Fail, "logs": ""}), "b": kept["b"]}, false)
	if want := []string{"c was not tested", "a: logs was not tested", `a: exec is "fail" , was "pass" `}; !slices.Equal(d, want) {
		t.Errorf("differences: %q, want %q", d, want)
	}
	// Written and read again it is the same; of what was tried again the last counts.
	again, err := ReadFindings(append(kept.Encode(), `{"subject":"a","capability":"exec","result":"fail"}
{"subject":"a","capability":"exec","result":"pass"}
{"subject":"a","capability":"logs","result":"pass"}
{"subject":"a","capability":"logs","result":"fail"}
`...))
	if err != nil || len(again) != 3 || again["a"]["logs"].Result != Fail || again["a"]["exec"].Result != Pass || again["c"]["logs"] != kept["c"]["logs"] {
		t.Errorf("read again: %v, %v", again["a"]["logs"], err)
	}
	if page := again.Page(nil); !strings.Contains(page, "| logs | **FAIL** | yes | yes |") {
		t.Errorf("the page is\n%s", page)
	}
}

// What 'pcm adapter test' found is a subject of the run that called it.
func TestMatrixAdd(t *testing.T) {
	name := filepath.Join(t.TempDir(), "matrix")
	t.Setenv(envMatrix, name)
	row := map[string]Finding{"logs": {Subject: "plugin", Capability: "logs", Result: Pass}}
	if err := errors.Join(Add("", row), Add("generate (Go, jobs)", row)); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if want := `{"subject":"generate (Go, jobs)","capability":"logs","result":"pass","long":true}` + "\n"; err != nil || string(data) != want {
		t.Errorf("%s, %v; want %s", data, err, want)
	}
}
