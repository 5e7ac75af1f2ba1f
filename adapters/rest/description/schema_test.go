package description

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/jointcloud/pcm/adapters"
)

var update = flag.Bool("update", false, "write configs/adapter.schema.json anew")

const schemaFile = "../../../configs/adapter.schema.json"

// words are the fields that hold one of a few words.
var words = map[string][]string{
	"Description.pcm": {Format},
	"Login.kind":      LoginKinds(),
	"Login.in":        {"header", "query"},
	"Request.method":  methods[1:],
	"Request.answer":  {"json", "text"},
	"Paging.kind":     {"offset", "page", "marker", "link", "url"},
	"Paging.in":       {"query", "body"},
	"State.state":     {string(adapters.Pending), string(adapters.Running), string(adapters.Suspended), string(adapters.Ended)},
	"State.outcome":   outcomes,
	"Log.stream":      {string(adapters.Stdout), string(adapters.Stderr)},
	"Log.follow":      {"whole", "offset", "marker", "tail"},
	"Data.store":      {"s3", "presigned"},
	"Data.pack":       {"files", "tar"},
	"Data.scheme":     {"s3", "obs", "https"},
}

// comments are those of types and fields: "Login", "Login.Kind".
func comments(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	file, err := parser.ParseFile(token.NewFileSet(), "description.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.TYPE {
			continue
		}
		spec := gen.Specs[0].(*ast.TypeSpec)
		all[spec.Name.Name] = oneLine(gen.Doc)
		fields, ok := spec.Type.(*ast.StructType)
		if !ok {
			continue
		}
		for _, f := range fields.Fields.List {
			for _, name := range f.Names {
				all[spec.Name.Name+"."+name.Name] = strings.TrimSpace(oneLine(f.Doc) + " " + oneLine(f.Comment))
			}
		}
	}
	return all
}

func oneLine(g *ast.CommentGroup) string {
	return strings.Join(strings.Fields(g.Text()), " ")
}

type schemer struct {
	docs map[string]string
	defs map[string]any
}

// of is the schema of a type; that of a struct is kept by its name.
func (s *schemer) of(typ reflect.Type) map[string]any {
	switch typ {
	case expressionType:
		return map[string]any{"type": "string", "title": "CEL, or JSONPath if it begins with $."}
	case templateType:
		return map[string]any{"title": "a value in whose texts ${CEL} may stand"}
	case reflect.TypeFor[Duration]():
		return map[string]any{"type": "string", "pattern": `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`}
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return s.of(typ.Elem())
	case reflect.Slice:
		return map[string]any{"type": "array", "items": s.of(typ.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": s.of(typ.Elem())}
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Interface:
		return map[string]any{}
	}
	if _, ok := s.defs[typ.Name()]; !ok {
		s.defs[typ.Name()] = nil // in the making
		properties, required := map[string]any{}, []string{}
		s.fields(typ, properties, &required)
		def := map[string]any{"type": "object", "properties": properties, "additionalProperties": false, "description": s.docs[typ.Name()]}
		if slices.Sort(required); len(required) > 0 {
			def["required"] = required
		}
		s.defs[typ.Name()] = def
	}
	return map[string]any{"$ref": "#/$defs/" + typ.Name()}
}

func (s *schemer) fields(typ reflect.Type, properties map[string]any, required *[]string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if options == "inline" {
			s.fields(f.Type, properties, required)
			continue
		}
		def := s.of(f.Type)
		if doc := s.docs[typ.Name()+"."+f.Name]; doc != "" {
			def["description"] = doc
		}
		if w := words[typ.Name()+"."+name]; w != nil {
			def["enum"] = w
		}
		properties[name] = def
		if options == "" && name != "request" && name != "servers" { // those depend on what else is there
			*required = append(*required, name)
		}
	}
}

func TestSchema(t *testing.T) {
	s := &schemer{comments(t), map[string]any{}}
	s.of(reflect.TypeFor[Description]())
	root := s.defs["Description"].(map[string]any)
	delete(s.defs, "Description")
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://github.com/jointcloud/pcm/configs/adapter.schema.json"
	root["title"] = "PCM adapter"
	root["description"] = "A back end with a REST API, described so that it needs no code. docs/descriptions.md explains each field, and what expressions may read."
	root["$defs"] = s.defs
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(root); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(schemaFile, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(schemaFile); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("configs/adapter.schema.json is out of date (%v): run go test ./adapters/rest/description -run TestSchema -update", err)
	}
	for name := range words {
		typ, field, _ := strings.Cut(name, ".")
		def, _ := s.defs[typ].(map[string]any)
		if typ == "Description" {
			def = root
		}
		if def == nil || def["properties"].(map[string]any)[field] == nil {
			t.Errorf("there is no field %s", name)
		}
	}
}

// What Parse takes the schema takes, and the shipped descriptions are among it.
func TestSchemaFits(t *testing.T) {
	raw, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("adapter.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("adapter.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"small": small}
	for _, pattern := range []string{"../../../configs/adapters/*.yaml", "../testdata/*.yaml", "testdata/*.yaml", "../../../examples/adapters/*/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "\npcm: adapter/") || strings.HasPrefix(string(text), "pcm: adapter/") {
				texts[name] = string(text)
			}
		}
	}
	validate := func(text string) error {
		asJSON, err := yaml.YAMLToJSON([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
		if err != nil {
			t.Fatal(err)
		}
		return schema.Validate(v)
	}
	for name, text := range texts {
		if err := validate(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if strings.Contains(name, "configs/adapters/") && !strings.HasPrefix(text, "# yaml-language-server: $schema=") {
			t.Errorf("%s: its first line does not tell editors where the schema is", name)
		}
	}
	for _, bad := range []struct{ from, to string }{
		{"kind: none", "kind: other"}, {"state: ended", "state: over"}, {"about: a test", "abuot: a test"}, {"kind: marker", "limit: 5"},
	} {
		if validate(strings.Replace(small, bad.from, bad.to, 1)) == nil {
			t.Errorf("the schema takes %s", bad.to)
		}
	}
}
