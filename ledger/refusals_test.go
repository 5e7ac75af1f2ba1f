package ledger

import (
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var newRefusals = flag.Bool("refusals", false, "write testdata/refusals anew; only for what is said at a level that has not shipped")

// The answers to commands are remembered in the state, with their texts, and so are in its
// digest: releases that word a refusal differently stop each other in one cell. What the
// ledger says at a level that has shipped stays as it is, to the letter; new texts are added.
func TestRefusalsKeepTheirTexts(t *testing.T) {
	const golden = "testdata/refusals"
	now := refusals(t)
	if *newRefusals {
		if err := os.WriteFile(golden, []byte(strings.Join(now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	kept := strings.Split(strings.TrimSpace(string(raw)), "\n")
	for _, was := range kept {
		if !slices.Contains(now, was) {
			t.Errorf("a refusal is not said any more as it was: %s\nIf its level has shipped, say it as it was, and anew at a new level; if not, go test ./ledger -run Refusals -refusals", was)
		}
	}
	for _, is := range now {
		if !slices.Contains(kept, is) {
			t.Errorf("a refusal is new: %s\nIt may be said only where an older release says nothing, at a new level. Then: go test ./ledger -run Refusals -refusals", is)
		}
	}
}

// refusals are the texts and codes of all errors that the package makes, sorted.
func refusals(t *testing.T) []string {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, src, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Errorf" {
				return true
			}
			text, ok := call.Args[1].(*ast.BasicLit)
			code, named := call.Args[0].(*ast.SelectorExpr)
			if !ok || !named {
				return true
			}
			s, err := strconv.Unquote(text.Value)
			if err != nil {
				t.Fatal(err)
			}
			found[code.Sel.Name+": "+strconv.Quote(s)] = true
			return true
		})
	}
	if len(found) < 50 {
		t.Fatalf("only %d refusals are found", len(found))
	}
	return slices.Sorted(maps.Keys(found))
}
