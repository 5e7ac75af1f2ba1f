package pcm_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/jointcloud/pcm"

// leaves are the parts that import the root package and not each other. An
// entry ending in /* names the folders below it.
var leaves = []string{
	"ledger", "ledger/tlog", "consensus", "consensus/wal", "consensus/records", "consensus/frames", "mesh", "mesh/artifact", "adapters", "adapters/*", "adapters/plugin/*", "adapters/rest/*",
	"node/placement", "node/rules", "node/api",
	"configs", // the examples, embedded
}

// arrowsBesides are the imports between leaves that are allowed.
var arrowsBesides = map[string][]string{
	"consensus":           {"consensus/wal", "consensus/records", "consensus/frames"},
	"consensus/wal":       {"consensus/frames"},
	"consensus/records":   {"consensus/frames"},
	"adapters/*":          {"adapters", "adapters/supervisor"},
	"adapters/supervisor": {"adapters"},

	"adapters/plugin":            {"adapters", "adapters/supervisor", "adapters/plugin/pluginpb"},
	"adapters/plugin/plugingrpc": {"adapters/plugin/pluginpb"},
	"adapters/rest":              {"adapters", "adapters/supervisor", "adapters/expr", "adapters/rest/description", "adapters/rest/client"},
	"adapters/rest/*":            {"adapters", "adapters/expr"},
	"adapters/generate":          {"adapters", "adapters/expr", "adapters/plugin", "adapters/plugin/pluginpb", "adapters/rest", "adapters/rest/description"},
	"node/rules":                 {"adapters/expr"},
}

// matches tells whether a package, named from the module's root, is one that a pattern names.
func matches(pattern, pkg string) bool {
	ok, err := path.Match(pattern, pkg)
	return err == nil && ok
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

// forTests tells whether a package only serves tests, as adapters/adaptertest and what is below it do.
func forTests(pkg string) bool {
	return slices.ContainsFunc(strings.Split(pkg, "/"), func(part string) bool { return strings.HasSuffix(part, "test") })
}

// isFake tells whether a package is a fake cloud, or what those share: for tests and for play.
func isFake(pkg string) bool { return strings.HasPrefix(pkg, "adapters/rest/fake/") }

func isCmd(pkg string) bool { return pkg == "cmd" || strings.HasPrefix(pkg, "cmd/") }

// badArrow says what is wrong with one package of this module importing another;
// "" if nothing is. Packages are named from the module's root, which is "".
func badArrow(from, to string) string {
	switch {
	case from == "cmd/pcm" && isFake(to):
		return "the binary that users run holds no fake clouds"
	case isCmd(from):
		return "" // cmd wires
	case isCmd(to):
		return "nothing imports cmd"
	case forTests(from):
		return ""
	case forTests(to):
		return "packages for tests are imported by tests only"
	case isFake(from):
		if to != "" && !isFake(to) {
			return "fake clouds know what clouds know: nothing of ours but the root package and each other"
		}
		return ""
	case isFake(to):
		return "fake clouds are imported by tests and commands only"
	case from == "":
		return "the root package holds the nouns and imports none of ours"
	case to == "" || from == "node":
		return "" // node puts the leaves together
	case matchesAny(leaves, from):
		for pattern, allowed := range arrowsBesides {
			if matches(pattern, from) && slices.Contains(allowed, to) && (pattern == from || arrowsBesides[from] == nil) {
				return ""
			}
		}
		return "leaves import the root package and not each other"
	}
	return "this package has no place in the architecture: name it in arch_test.go"
}

// listed is what go list says of a package.
type listed struct {
	ImportPath   string
	Dir          string
	Export       string
	GoFiles      []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func golist(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var list []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// own names a package of this module from its root; false for others.
func own(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// badArrows lists what is wrong with the imports of some packages.
func badArrows(packages []listed) []string {
	var bad []string
	for _, p := range packages {
		from, _ := own(p.ImportPath)
		if from != "" && from != "node" && !isCmd(from) && !forTests(from) && !isFake(from) && !matchesAny(leaves, from) {
			bad = append(bad, from+": this package has no place in the architecture: name it in arch_test.go")
		}
		for _, to := range p.Imports {
			if to, ok := own(to); ok {
				if why := badArrow(from, to); why != "" {
					bad = append(bad, from+" → "+to+": "+why)
				}
			}
		}
		// Tests may look further, but not into cmd.
		for _, to := range slices.Concat(p.TestImports, p.XTestImports) {
			if to, ok := own(to); ok && isCmd(to) && !isCmd(from) {
				bad = append(bad, "tests of "+from+" → "+to+": nothing imports cmd")
			}
		}
	}
	return bad
}

// TestArrows holds the directions in which packages import each other.
func TestArrows(t *testing.T) {
	packages := golist(t, "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	if len(packages) < 5 {
		t.Fatalf("go list names %d packages only", len(packages))
	}
	for _, b := range badArrows(packages) {
		t.Error(b)
	}
}

func TestArrowsCatch(t *testing.T) {
	for _, c := range []struct {
		from, to string
		bad      bool
	}{
		{"ledger", "", false},
		{"ledger", "mesh", true},
		{"ledger", "consensus", true},
		{"consensus", "ledger", true},
		{"mesh", "mesh/artifact", true},
		{"mesh/artifact", "mesh", true},
		{"adapters", "", false},
		{"adapters", "adapters/process", true},
		{"adapters/process", "adapters", false},
		{"adapters/process", "adapters/supervisor", false},
		{"adapters/process", "adapters/wasm", true},
		{"adapters/process", "mesh", true},
		{"adapters/supervisor", "adapters", false},
		{"adapters/supervisor", "adapters/process", true},
		{"adapters/adaptertest", "adapters", false},
		{"adapters/process", "adapters/adaptertest", true},
		{"adapters/adaptertest/task", "adapters/adaptertest/script", false},
		{"adapters/rest/fake/openi", "adapters/rest/fake/machine", false},
		{"adapters/rest/fake/openi", "adapters", true},
		{"adapters/rest", "adapters/rest/fake/openi", true},
		{"cmd/demo", "adapters/rest/fake/openi", false},
		{"cmd/pcm", "adapters/rest/fake/openi", true},
		{"adapters/rest", "adapters/rest/client", false},
		{"adapters/rest/client", "adapters", false},
		{"adapters/rest/client", "adapters/rest", true},
		{"adapters/rest/client", "adapters/rest/description", true},
		{"node/api", "", false},
		{"node/api", "node", true},
		{"node/placement", "node/rules", true},
		{"node/rules", "adapters/expr", false},
		{"ledger", "adapters/expr", true},
		{"ledger", "node/rules", true},
		{"node", "ledger", false},
		{"node", "node/api", false},
		{"node", "cmd/pcm", true},
		{"node/nodetest", "node", false},
		{"node/nodetest", "cmd/pcm", true},
		{"cmd/pcm", "node", false},
		{"", "ledger", true},
		{"helpers", "ledger", true},
	} {
		pkg := func(name string) string { return strings.TrimSuffix(module+"/"+name, "/") }
		got := badArrows([]listed{{ImportPath: pkg(c.from), Imports: []string{pkg(c.to)}}})
		if (len(got) > 0) != c.bad {
			t.Errorf("%q → %q: bad is %v, found %q", c.from, c.to, c.bad, got)
		}
	}
	if got := badArrows([]listed{{ImportPath: module + "/helpers"}}); len(got) != 1 {
		t.Errorf("a package without a place: %q", got)
	}
	if got := badArrows([]listed{{ImportPath: module + "/node", XTestImports: []string{module + "/cmd/pcm"}}}); len(got) != 1 {
		t.Errorf("a test that imports cmd: %q", got)
	}
}
