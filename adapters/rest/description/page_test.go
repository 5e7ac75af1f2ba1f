package description

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/expr"
)

const pageFile = "../../../docs/descriptions.md"

// yamlNames are the names of the types' fields as descriptions have them.
func yamlNames(tag string) map[string]string {
	names := map[string]string{}
	for _, typ := range pageTypes {
		for i := range typ.NumField() {
			name, _, _ := strings.Cut(typ.Field(i).Tag.Get(tag), ",")
			names[typ.Name()+"."+typ.Field(i).Name] = name
		}
	}
	return names
}

var pageTypes = []reflect.Type{
	reflect.TypeFor[Description](), reflect.TypeFor[Setting](), reflect.TypeFor[Secret](), reflect.TypeFor[Login](), reflect.TypeFor[Limits](),
	reflect.TypeFor[Call](), reflect.TypeFor[Request](), reflect.TypeFor[List](), reflect.TypeFor[Paging](), reflect.TypeFor[Pools](),
	reflect.TypeFor[Pool](), reflect.TypeFor[More](), reflect.TypeFor[Let](), reflect.TypeFor[Create](), reflect.TypeFor[Many](), reflect.TypeFor[Step](),
	reflect.TypeFor[Find](), reflect.TypeFor[Watch](), reflect.TypeFor[Status](), reflect.TypeFor[State](), reflect.TypeFor[Log](),
	reflect.TypeFor[Data](), reflect.TypeFor[Transfer](), reflect.TypeFor[Bridge](), reflect.TypeFor[Task](), reflect.TypeFor[Input](), reflect.TypeFor[Array](),
}

// source is a file of this package.
func source(t *testing.T, name string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// block is a comment in which lines that are set in keep their form.
func block(doc string) string {
	var b strings.Builder
	code := false
	for _, l := range strings.Split(strings.TrimSpace(doc), "\n") {
		in := strings.HasPrefix(l, "\t")
		if in != code && (in || l != "") {
			b.WriteString("```\n")
			code = in
		}
		b.WriteString(strings.TrimPrefix(l, "\t") + "\n")
	}
	if code {
		b.WriteString("```\n")
	}
	return b.String()
}

func kindOf(typ reflect.Type) string {
	switch typ {
	case expressionType:
		return "expression"
	case templateType:
		return "template"
	case reflect.TypeFor[Duration]():
		return "time"
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return kindOf(typ.Elem())
	case reflect.Slice:
		return "list of " + kindOf(typ.Elem())
	case reflect.Map:
		return kindOf(typ.Elem()) + " by name"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64, reflect.Float64:
		return "number"
	case reflect.Interface:
		return "any"
	}
	return fmt.Sprintf("[%s](#%s)", typ.Name(), strings.ToLower(typ.Name()))
}

// page is the reference of the form, as the comments of this package have it.
func page(t *testing.T) []byte {
	docs := comments(t)
	types := map[string]string{}
	for _, file := range []string{"description.go", "task.go"} {
		f := source(t, file)
		for _, decl := range f.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.TYPE {
				continue
			}
			spec := gen.Specs[0].(*ast.TypeSpec)
			types[spec.Name.Name] = gen.Doc.Text()
			for _, field := range spec.Type.(*ast.StructType).Fields.List {
				for _, name := range field.Names {
					docs[spec.Name.Name+"."+name.Name] = strings.TrimSpace(oneLine(field.Doc) + " " + oneLine(field.Comment))
				}
			}
		}
	}
	var b bytes.Buffer
	b.WriteString("# The form of descriptions\n\nWritten by `make generate` from the comments of `adapters/rest/description`; not by hand.\nThose that are shipped, in `configs/adapters`, are examples; `pcm adapter lint FILE` checks\none, `pcm adapter try FILE` goes through it, `pcm adapter schema` prints its JSON Schema.\n\n")
	b.WriteString(block(source(t, "description.go").Doc.Text()))
	b.WriteString("\nA template is a value in whose texts `${EXPRESSION}` stands for what the expression gives; `$${` stands for `${`. A text that is one `${…}` and no more becomes the value itself, and elements of lists and maps that become nothing are left out. An expression is CEL, or JSONPath if it begins with `$.`; a time is like `30s` or `5m`. Below, \"reads\" says what an expression or template may read, beside what those of the whole section may.\n\n## Functions\n\nBeside CEL's own, with its optional values (`item.?gpu.orValue(0)`):\n\n| function | gives |\n|---|---|\n")
	for _, f := range expr.Functions() {
		name := f.Name + "(…)"
		if f.Member {
			name = "value." + name
		}
		fmt.Fprintf(&b, "| `%s` | %s |\n", name, strings.ReplaceAll(f.Meaning, "|", "\\|"))
	}
	names, tasks := yamlNames("yaml"), yamlNames("json")
	for _, typ := range pageTypes {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n| field | holds | what it is |\n|---|---|---|\n", typ.Name(), block(types[typ.Name()]))
		for i := range typ.NumField() {
			f := typ.Field(i)
			if strings.Contains(f.Tag.Get("yaml"), "inline") {
				fmt.Fprintf(&b, "| | | and the fields of %s |\n", kindOf(f.Type))
				continue
			}
			name := names[typ.Name()+"."+f.Name]
			if name == "" {
				name = tasks[typ.Name()+"."+f.Name]
			}
			doc := docs[typ.Name()+"."+f.Name]
			if doc == "" {
				t.Errorf("%s.%s has no comment: it is explained to nobody", typ.Name(), f.Name)
			}
			if w := words[typ.Name()+"."+name]; w != nil && !strings.Contains(doc, w[len(w)-1]) {
				doc = strings.TrimSpace(doc + " (one of " + strings.Join(w, ", ") + ")")
			}
			if vars := f.Tag.Get("vars"); vars != "" {
				doc = strings.TrimSpace(doc + " — reads `" + strings.ReplaceAll(vars, ",", "`, `") + "`")
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, kindOf(f.Type), strings.ReplaceAll(doc, "|", "\\|"))
		}
	}
	return b.Bytes()
}

// The reference is that of this form, and explains what expressions may speak of.
func TestPageSchema(t *testing.T) {
	want := page(t)
	if *update {
		if err := os.WriteFile(pageFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(pageFile); err != nil || !bytes.Equal(got, want) {
		t.Errorf("docs/descriptions.md is out of date (%v): run 'make generate'", err)
	}
	for _, name := range append([]string{"`ceildiv(…)`", "more.NAME", "native", "ours"}, taskFields()...) {
		if !bytes.Contains(want, []byte(name)) {
			t.Errorf("%s is not explained", name)
		}
	}
}
