package pcm_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"testing"

	"github.com/danielgtaylor/huma/v2"

	"github.com/jointcloud/pcm"
)

var update = flag.Bool("update", false, "write configs/job.schema.json anew")

const schemaFile = "configs/job.schema.json"

// jobSchema is the JSON Schema of a spec as ParseSpec reads it.
func jobSchema(t *testing.T) []byte {
	t.Helper()
	registry := huma.NewMapRegistry("#/$defs/", huma.DefaultSchemaNamer)
	registry.Schema(reflect.TypeFor[pcm.Spec](), true, "Spec")
	raw, err := json.Marshal(registry.Map())
	if err != nil {
		t.Fatal(err)
	}
	var defs map[string]map[string]any
	if err := json.Unmarshal(raw, &defs); err != nil {
		t.Fatal(err)
	}
	root := defs["Spec"]
	delete(defs, "Spec")
	// Text may be written as a bare number or truth value where people do so.
	number := []any{"string", "number"}
	scalar := []any{"string", "number", "boolean"}
	loosen := func(types []any, def map[string]any, path ...string) {
		for _, p := range path {
			next, ok := def[p].(map[string]any)
			if !ok {
				t.Fatalf("the schema has no %v", path)
			}
			def = next
		}
		def["type"] = types
	}
	loosen(number, root, "properties", "budget")
	loosen(number, defs["Ask"], "properties", "cpu")
	loosen(number, defs["Ask"], "properties", "memory")
	loosen(scalar, defs["Step"], "properties", "command", "items")
	loosen(scalar, defs["Step"], "properties", "args", "items")
	loosen(scalar, defs["Step"], "properties", "env", "additionalProperties")
	loosen(scalar, defs["Step"], "properties", "labels", "additionalProperties")
	root["required"] = []any{"steps"} // the name has a default
	defs["Step"]["oneOf"] = []any{
		map[string]any{"required": []any{"command"}},
		map[string]any{"required": []any{"module"}},
	}
	unlist(root)
	for _, d := range defs {
		unlist(d)
	}
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://github.com/jointcloud/pcm/configs/job.schema.json"
	root["title"] = "PCM job"
	root["description"] = "What a user submits: one or more steps, each with one or more tasks."
	root["$defs"] = defs
	out, err := json.MarshalIndent(root, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(out, '\n')
}

// unlist turns ["array", "null"] into "array": an empty value is refused.
func unlist(v any) {
	switch v := v.(type) {
	case map[string]any:
		if types, ok := v["type"].([]any); ok && len(types) == 2 && types[1] == "null" {
			v["type"] = types[0]
		}
		for _, e := range v {
			unlist(e)
		}
	case []any:
		for _, e := range v {
			unlist(e)
		}
	}
}

func TestJobSchema(t *testing.T) {
	want := jobSchema(t)
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date: run go test -run TestJobSchema -update .", schemaFile)
	}
	var schema struct {
		Additional any                        `json:"additionalProperties"`
		Properties map[string]json.RawMessage `json:"properties"`
		Defs       map[string]struct {
			Additional any `json:"additionalProperties"`
			Properties map[string]struct {
				Description string `json:"description"`
				Ref         string `json:"$ref"`
			} `json:"properties"`
		} `json:"$defs"`
	}
	if err := json.Unmarshal(want, &schema); err != nil {
		t.Fatal(err)
	}
	if schema.Additional != false || len(schema.Properties) != reflect.TypeFor[pcm.Spec]().NumField() {
		t.Errorf("the schema's top level is not that of a spec: %v, %d fields", schema.Additional, len(schema.Properties))
	}
	for name, def := range schema.Defs {
		if def.Additional != false {
			t.Errorf("%s allows unknown fields", name)
		}
		for field, p := range def.Properties {
			if p.Description == "" && p.Ref == "" {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
}

// The example is what the README and the schema's users start from.
func TestJobExample(t *testing.T) {
	data, err := os.ReadFile("configs/job.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := pcm.ParseSpec(data, "job.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.Steps) < 2 || spec.Tasks() < 3 {
		t.Errorf("the example shows too little: %d steps, %d tasks", len(spec.Steps), spec.Tasks())
	}
}

// The example of a service is one, with a health check.
func TestServiceExample(t *testing.T) {
	data, err := os.ReadFile("configs/service.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	spec, err := pcm.ParseSpec(data, "service.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if s := spec.Steps[0].Service; s == nil || s.Health == nil || s.Initial(spec.Steps[0].Count) >= spec.Steps[0].Count {
		t.Errorf("the example shows %+v", s)
	}
}
