package pcm_test

import (
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Everything under ledger's Apply must come out the same on every replica. The
// tests here scan for what could make it differ: clocks, randomness, goroutines,
// floats, unsorted maps, the local time zone, package-level state.

// ledgerImports is all that package ledger may import: nothing that reads a
// clock, does I/O or draws at random. Of time only what computes, see clocks.
var ledgerImports = []string{
	"bytes", "cmp", "crypto/sha256", "fmt", "iter", "maps", "slices", "strings", "time",
	"github.com/transparency-dev/merkle/compact", "github.com/transparency-dev/merkle/rfc6962",
	module,
}

// clocks are the names of package time that read a clock, wait or know the machine's zone.
var clocks = []string{
	"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Local", "LoadLocation",
}

// timeTexts are methods of time.Time whose result depends on its zone.
var timeTexts = []string{
	"Format", "String", "AppendFormat", "Date", "Clock", "Year", "Month", "Day", "Hour", "Minute", "YearDay",
	"Weekday", "ISOWeek", "Zone", "MarshalText", "MarshalJSON", "GoString", "Local",
}

var (
	// mapWalks are functions of package maps that walk in no order; they must be sorted on the spot.
	mapWalks = []string{"Keys", "Values", "All"}
	sorters  = []string{"Sorted", "SortedFunc", "SortedStableFunc"}
	// mapWholes don't depend on an order, if the function they are given has no effect.
	mapWholes = []string{"DeleteFunc", "Equal", "EqualFunc", "Clone", "Copy"}
)

// allowed violations, each with its reason.
var allowed = map[string]string{
	"github.com/jointcloud/pcm.allValid: crypto/rand.Read": "weighs the equations of a batch; the verdicts are those of Verify",
}

// checked is a type-checked package.
type checked struct {
	fset  *token.FileSet
	files []*ast.File
	info  *types.Info
	pkg   *types.Package
}

// checker type-checks sources against the compiled packages that go list knows of.
type checker struct {
	dirs  map[string]listed
	fset  *token.FileSet
	compl types.Importer
}

func newChecker(t *testing.T, packages ...string) *checker {
	c := &checker{dirs: map[string]listed{}, fset: token.NewFileSet()}
	for _, p := range golist(t, append([]string{"-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles"}, packages...)...) {
		c.dirs[p.ImportPath] = p
	}
	c.compl = importer.ForCompiler(c.fset, "gc", func(path string) (io.ReadCloser, error) {
		if c.dirs[path].Export == "" {
			return nil, fmt.Errorf("%s is not compiled", path)
		}
		return os.Open(c.dirs[path].Export)
	})
	return c
}

func (c *checker) check(t *testing.T, path string, files ...*ast.File) *checked {
	t.Helper()
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	pkg, err := (&types.Config{Importer: c.compl}).Check(path, c.fset, files, info)
	if err != nil {
		t.Fatalf("type-check %s: %v", path, err)
	}
	return &checked{c.fset, files, info, pkg}
}

// load type-checks a package of this module.
func (c *checker) load(t *testing.T, path string) *checked {
	t.Helper()
	var files []*ast.File
	for _, name := range c.dirs[path].GoFiles {
		f, err := parser.ParseFile(c.fset, filepath.Join(c.dirs[path].Dir, name), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatalf("%s has no files", path)
	}
	return c.check(t, path, files...)
}

// functions are the declared functions and methods by their full names.
func (p *checked) functions() map[string]*ast.FuncDecl {
	all := map[string]*ast.FuncDecl{}
	for _, f := range p.files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				all[p.info.Defs[fn.Name].(*types.Func).FullName()] = fn
			}
		}
	}
	return all
}

// calls are the functions of package path that a piece of code names.
func (p *checked) calls(node ast.Node, path string) []string {
	var names []string
	ast.Inspect(node, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			if fn, ok := p.info.Uses[id].(*types.Func); ok && fn.Pkg() != nil && fn.Pkg().Path() == path {
				names = append(names, fn.Origin().FullName())
			}
		}
		return true
	})
	return names
}

// impure lists what in a function could come out differently elsewhere.
func (p *checked) impure(name string, fn ast.Node) []string {
	var found []string
	sorted := map[ast.Node]bool{}
	report := func(n ast.Node, format string, args ...any) {
		what := fmt.Sprintf(format, args...)
		if allowed[name+": "+what] == "" {
			pos := p.fset.Position(n.Pos())
			found = append(found, fmt.Sprintf("%s:%d: %s: %s", filepath.Base(pos.Filename), pos.Line, name, what))
		}
	}
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			report(n, "starts a goroutine")
		case *ast.SelectStmt, *ast.SendStmt:
			report(n, "uses a channel")
		case *ast.RangeStmt:
			switch t := p.info.Types[n.X].Type; core(t).(type) {
			case *types.Map:
				report(n, "ranges over a map in no order")
			case *types.Chan:
				report(n, "uses a channel")
			}
		case *ast.AssignStmt:
			for _, l := range n.Lhs {
				p.global(l, report)
			}
		case *ast.IncDecStmt:
			p.global(n.X, report)
		case *ast.CallExpr:
			if slices.Contains(sorters, p.member("slices", n.Fun)) && len(n.Args) > 0 {
				if in, ok := n.Args[0].(*ast.CallExpr); ok {
					sorted[in] = true
				}
			}
			if walk := p.member("maps", n.Fun); slices.Contains(mapWalks, walk) && !sorted[n] {
				report(n, "walks maps.%s in no order", walk)
			} else if walk != "" && !slices.Contains(mapWalks, walk) && !slices.Contains(mapWholes, walk) {
				report(n, "calls maps.%s", walk)
			}
			if sel, ok := n.Fun.(*ast.SelectorExpr); ok && isTime(p.info.Types[sel.X].Type) {
				if in, ok := sel.X.(*ast.CallExpr); slices.Contains(timeTexts, sel.Sel.Name) && (!ok || p.method(in) != "UTC") {
					report(n, "writes a time in the local zone: .UTC() first")
				}
			}
			if id, ok := n.Fun.(*ast.Ident); ok && id.Name == "print" || ok && id.Name == "println" {
				report(n, "does I/O")
			}
		case *ast.BasicLit:
			if n.Kind == token.STRING && strings.Contains(n.Value, "%p") {
				report(n, "prints an address")
			}
		case *ast.Ident:
			p.name(n, report)
		case *ast.UnaryExpr:
			if n.Op == token.ARROW {
				report(n, "uses a channel")
			}
		}
		if e, ok := n.(ast.Expr); ok {
			if t := p.info.Types[e].Type; t != nil {
				if b, ok := t.Underlying().(*types.Basic); ok && b.Info()&(types.IsFloat|types.IsComplex) != 0 {
					report(n, "computes with floats")
					return false
				}
			}
		}
		return true
	})
	return found
}

// core is the type that ranging over t walks.
func core(t types.Type) types.Type {
	if p, ok := t.(*types.TypeParam); ok {
		var u types.Type
		if i, ok := p.Constraint().Underlying().(*types.Interface); ok && i.NumEmbeddeds() == 1 {
			u = i.EmbeddedType(0)
			if union, ok := u.(*types.Union); ok && union.Len() == 1 {
				u = union.Term(0).Type()
			}
		}
		if u != nil {
			return u.Underlying()
		}
	}
	return t.Underlying()
}

func isTime(t types.Type) bool { return t != nil && t.String() == "time.Time" }

// method names the method that a call calls.
func (p *checked) method(call *ast.CallExpr) string {
	if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
		return sel.Sel.Name
	}
	return ""
}

// member names the function of a package that an expression is; "" if it is another.
func (p *checked) member(pkg string, e ast.Expr) string {
	if i, ok := e.(*ast.IndexExpr); ok {
		e = i.X
	}
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if o := p.info.Uses[sel.Sel]; o != nil && o.Pkg() != nil && o.Pkg().Path() == pkg {
		return o.Name()
	}
	return ""
}

// name reports the use of a clock or of randomness.
func (p *checked) name(id *ast.Ident, report func(ast.Node, string, ...any)) {
	o := p.info.Uses[id]
	if o == nil || o.Pkg() == nil || o.Parent() != o.Pkg().Scope() {
		return
	}
	switch path := o.Pkg().Path(); {
	case path == "time" && slices.Contains(clocks, o.Name()):
		report(id, "reads a clock: time.%s", o.Name())
	case path == "math/rand" || path == "math/rand/v2" || path == "crypto/rand":
		report(id, "%s.%s", path, o.Name())
	case path == "os" || path == "net" || path == "runtime" || path == "sync" || path == "sync/atomic":
		report(id, "%s.%s", path, o.Name())
	}
}

// global reports an assignment to a variable of the package.
func (p *checked) global(e ast.Expr, report func(ast.Node, string, ...any)) {
	for {
		switch x := e.(type) {
		case *ast.IndexExpr:
			e = x.X
			continue
		case *ast.ParenExpr:
			e = x.X
			continue
		case *ast.Ident:
			if v, ok := p.info.Uses[x].(*types.Var); ok && v.Parent() == p.pkg.Scope() {
				report(e, "changes the package's variable %s", x.Name)
			}
		}
		return
	}
}

// reachable are the functions of a package that some of its functions lead to.
// Methods that fmt and encoders call by themselves count as named.
func (p *checked) reachable(from []string) []string {
	all := p.functions()
	seen := map[string]bool{}
	queue := slices.Clone(from)
	for name, fn := range all {
		if fn.Recv != nil && slices.Contains([]string{"String", "Error", "Unwrap", "MarshalText", "MarshalCBOR", "UnmarshalText", "UnmarshalCBOR"}, fn.Name.Name) {
			queue = append(queue, name)
		}
	}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] || all[name] == nil {
			continue
		}
		seen[name] = true
		queue = append(queue, p.calls(all[name], p.pkg.Path())...)
	}
	var names []string
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// TestLedgerIsPure scans package ledger, and those functions of the root package
// that it leads to.
func TestLedgerIsPure(t *testing.T) {
	c := newChecker(t, module+"/ledger")
	led, root := c.load(t, module+"/ledger"), c.load(t, module)
	for _, f := range led.files {
		for _, i := range f.Imports {
			if path := strings.Trim(i.Path.Value, `"`); !slices.Contains(ledgerImports, path) {
				t.Errorf("%s imports %s: the ledger computes, it neither reads nor writes anything", c.fset.Position(i.Pos()), path)
			}
		}
	}
	var into []string
	for name, fn := range led.functions() {
		for _, v := range led.impure(name, fn) {
			t.Error(v)
		}
		into = append(into, led.calls(fn, module)...)
	}
	reached := root.reachable(into)
	if len(reached) < 30 || !slices.Contains(reached, module+".OpenPassport") || !slices.Contains(reached, module+".rate") {
		t.Fatalf("only %d functions of the root package are reached: %q", len(reached), reached)
	}
	for _, name := range reached {
		for _, v := range root.impure(name, root.functions()[name]) {
			t.Error(v)
		}
	}
}

// TestRootDrawsInNew holds that the root package reads no clock at all and draws
// at random only where something new is made.
func TestRootDrawsInNew(t *testing.T) {
	root := newChecker(t, module).load(t, module)
	for name, fn := range root.functions() {
		for _, v := range root.draws(name, fn) {
			t.Error(v)
		}
	}
}

// draws lists where a function reads a clock or draws at random without being one that makes something new.
func (p *checked) draws(name string, fn *ast.FuncDecl) []string {
	var found []string
	ast.Inspect(fn, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			p.name(id, func(_ ast.Node, format string, args ...any) {
				what := fmt.Sprintf(format, args...)
				makes := strings.HasPrefix(fn.Name.Name, "New") || fn.Name.Name == "random"
				if allowed[name+": "+what] == "" && !(makes && strings.HasPrefix(what, "crypto/rand.")) {
					found = append(found, name+": "+what)
				}
			})
		}
		return true
	})
	return found
}

// TestPureCatches plants violations.
func TestPureCatches(t *testing.T) {
	c := newChecker(t, module+"/ledger", "math/rand/v2", "os", "sync")
	for _, v := range []struct{ want, imports, body string }{
		{"reads a clock", `"time"`, `func f() int64 { return time.Now().Unix() }`},
		{"reads a clock", `"time"`, `var clock = 1; func f(t time.Time) bool { now := time.Since; return now(t) > 0 }`},
		{"math/rand/v2.IntN", `"math/rand/v2"`, `func f() int { return rand.IntN(3) }`},
		{"crypto/rand.Read", `"crypto/rand"`, `func f(b []byte) { rand.Read(b) }`},
		{"goroutine", ``, `func f() { go f() }`},
		{"channel", ``, `func f(c chan int) int { return <-c }`},
		{"channel", ``, `func f(c chan int) { c <- 1 }`},
		{"ranges over a map", ``, `func f(m map[string]int) (n int) { for _, v := range m { n = v }; return n }`},
		{"ranges over a map", ``, `type counts map[string]int; func f(m counts) (s string) { for k := range m { s += k }; return s }`},
		{"ranges over a map", ``, `func f[M ~map[string]int](m M) (s string) { for k := range m { s += k }; return s }`},
		{"walks maps.Keys", "\"maps\"\n\"slices\"", `func f(m map[string]int) []string { return slices.Collect(maps.Keys(m)) }`},
		{"walks maps.Values", "\"maps\"", `func f(m map[string]int) (n int) { for v := range maps.Values(m) { n = v }; return n }`},
		{"floats", ``, `func f(a int64) int64 { return int64(float64(a) * 0.5) }`},
		{"local zone", `"time"`, `func f(ms int64) string { return time.UnixMilli(ms).Format(time.RFC3339) }`},
		{"package's variable", ``, `var calls int; func f() { calls++ }`},
		{"package's variable", ``, `var memo = map[int]int{}; func f(i int) { memo[i] = i }`},
		{"os.Getenv", `"os"`, `func f() string { return os.Getenv("HOME") }`},
		{"sync.Mutex", `"sync"`, `func f() { var m sync.Mutex; m.Lock() }`},
		{"address", `"fmt"`, `func f(p *int) string { return fmt.Sprintf("%p", p) }`},
		{"", "\"maps\"\n\"slices\"\n\"time\"", `
			func f(m map[string]int, stamp int64) (string, int64) {
				var keys string
				for _, k := range slices.Sorted(maps.Keys(m)) { keys += k }
				maps.DeleteFunc(m, func(k string, v int) bool { return v == 0 })
				for i := range []int{1, 2} { m["x"] += i }
				return keys + time.UnixMilli(stamp).UTC().Format(time.RFC3339), (10 * time.Second).Milliseconds()
			}`},
	} {
		src := "package planted\nimport (\n" + v.imports + "\n)\n" + v.body
		f, err := parser.ParseFile(c.fset, "planted.go", src, 0)
		if err != nil {
			t.Fatal(err)
		}
		p := c.check(t, "planted", f)
		var found []string
		for name, fn := range p.functions() {
			found = append(found, p.impure(name, fn)...)
		}
		switch all := strings.Join(found, "\n"); {
		case v.want == "" && all != "":
			t.Errorf("nothing is wrong with\n%s\nfound\n%s", v.body, all)
		case !strings.Contains(all, v.want):
			t.Errorf("%s\nhas %q, found %q", v.body, v.want, all)
		}
	}
	f, err := parser.ParseFile(c.fset, "planted.go", "package planted\nimport \"crypto/rand\"\nfunc NewKey(b []byte) { rand.Read(b) }\nfunc sign(b []byte) { rand.Read(b) }", 0)
	if err != nil {
		t.Fatal(err)
	}
	p := c.check(t, "planted", f)
	for name, fn := range p.functions() {
		if bad := len(p.draws(name, fn)) > 0; bad != (name == "planted.sign") {
			t.Errorf("%s: %q", name, p.draws(name, fn))
		}
	}
}
