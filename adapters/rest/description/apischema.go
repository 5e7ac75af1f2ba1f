package description

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Bounds of what is read of the schemas of an OpenAPI document, which may refer to
// themselves, and stand for more than fits: what is beyond them may be anything.
const (
	maxTypes    = 2000
	maxLooks    = 200_000
	maxNesting  = 32
	maxVariants = 16
)

// Type is an object with named fields.
type Type struct {
	Name     string // as the document has it, or where it stands: "Job", "createJob body"
	Fields   []Property
	Answered bool // is in answers, not only in what is sent
}

// Property is a field of an object.
type Property struct {
	Name     string
	Required bool
	Schema   Schema
}

// Schema is what a value may be.
type Schema struct {
	Kind  string   // string, integer, number, boolean, array, map, object, union, any
	Null  bool     // or null
	Enum  []string // of a string: these only
	Items *Schema  // of an array or a map
	Type  int      // of an object: its place in the types
	Of    []Schema // of a union
}

// schemas reads them.
type schemas struct {
	doc   openAPI
	looks int
	types []Type
	at    map[string]int // types by reference or place
}

var anything = Schema{Kind: "any"}

// read reads a schema that stands at a place, in words.
func (s *schemas) read(v any, place string, depth int) Schema {
	s.looks++
	m, ref := s.doc.resolve(v)
	if m == nil || s.looks > maxLooks || depth > maxNesting {
		return anything
	}
	types, null := kinds(m)
	parts := anyList(m["allOf"])
	properties := s.doc.object(m["properties"])
	if len(parts) == 1 && len(properties) == 0 { // a reference with something beside it
		out := s.read(parts[0], place, depth+1)
		out.Null = out.Null || null
		return out
	}
	if len(properties) > 0 || len(parts) > 0 {
		return s.object(m, ref, place, null)
	}
	variants := anyList(m["oneOf"])
	if len(variants) == 0 {
		variants = anyList(m["anyOf"])
	}
	out := Schema{Null: null}
	switch {
	case len(variants) > maxVariants:
		out.Kind = "any"
	case len(variants) > 0:
		for i, v := range variants {
			s.add(&out, s.read(v, fmt.Sprint(place, " ", i+1), depth+1), v)
		}
	case len(types) > 1:
		for _, t := range types {
			s.add(&out, s.one(m, t, place, depth), nil)
		}
	default:
		one := s.one(m, strings.Join(types, ""), place, depth)
		one.Null = null
		return one
	}
	switch {
	case len(out.Of) == 1:
		one := out.Of[0]
		one.Null = one.Null || out.Null
		return one
	case out.Kind == "" && len(out.Of) > 1:
		out.Kind = "union"
	default:
		out.Kind, out.Of = "any", nil
	}
	return out
}

// add makes a schema one of a union's; from is what it was read of.
func (s *schemas) add(union *Schema, one Schema, from any) {
	if m, _ := s.doc.resolve(from); m != nil {
		if types, null := kinds(m); null && len(types) == 0 {
			union.Null = true
			return
		}
	}
	if one.Kind == "any" {
		union.Kind = "any"
	}
	union.Null = union.Null || one.Null
	one.Null = false
	if !slices.ContainsFunc(union.Of, func(o Schema) bool { return reflect.DeepEqual(o, one) }) {
		union.Of = append(union.Of, one)
	}
}

// one reads a schema of one type.
func (s *schemas) one(m map[string]any, kind, place string, depth int) Schema {
	switch kind {
	case "string", "":
		if words := enum(m); words != nil {
			return Schema{Kind: "string", Enum: words}
		}
		if kind == "" && m["items"] != nil {
			break
		}
		if kind == "" {
			return anything
		}
		return Schema{Kind: kind}
	case "integer", "number", "boolean":
		return Schema{Kind: kind}
	case "object":
		items := anything
		if more, ok := m["additionalProperties"].(map[string]any); ok {
			items = s.read(more, place+" value", depth+1)
		}
		return Schema{Kind: "map", Items: &items}
	case "array":
	default:
		return anything
	}
	items := s.read(m["items"], place+" item", depth+1)
	return Schema{Kind: "array", Items: &items}
}

// object reads one with named fields, once however often it is referred to.
func (s *schemas) object(m map[string]any, ref, place string, null bool) Schema {
	key, name := place, place
	if ref != "" {
		key = ref
		name = strings.ReplaceAll(strings.ReplaceAll(ref[strings.LastIndexByte(ref, '/')+1:], "~1", "/"), "~0", "~")
	}
	out := Schema{Kind: "object", Null: null}
	if i, ok := s.at[key]; ok {
		out.Type = i
		return out
	}
	if len(s.types) >= maxTypes {
		return Schema{Kind: "map", Items: &Schema{Kind: "any"}, Null: null}
	}
	out.Type = len(s.types)
	s.at[key] = out.Type
	s.types = append(s.types, Type{Name: name})
	fields := map[string]any{}
	needs := map[string]bool{}
	s.merge(m, fields, needs, 0)
	for _, f := range sorted(fields) {
		p := Property{Name: strings.ToValidUTF8(f, "\ufffd"), Required: needs[f], Schema: s.read(fields[f], name+" "+f, 0)}
		s.types[out.Type].Fields = append(s.types[out.Type].Fields, p)
	}
	return out
}

// merge collects the fields of an object and of all that it is made of; those of
// which only some variants have are not needed.
func (s *schemas) merge(m map[string]any, fields map[string]any, needs map[string]bool, depth int) {
	s.looks++
	if m == nil || depth > 8 || s.looks > maxLooks {
		return
	}
	maps.Copy(fields, s.doc.object(m["properties"]))
	for _, n := range anyList(m["required"]) {
		needs[fmt.Sprint(n)] = true
	}
	for _, p := range anyList(m["allOf"]) {
		s.merge(s.doc.object(p), fields, needs, depth+1)
	}
	for _, p := range slices.Concat(anyList(m["oneOf"]), anyList(m["anyOf"])) {
		s.merge(s.doc.object(p), fields, map[string]bool{}, depth+1)
	}
}

// answered marks types that are in answers.
func (s *schemas) answered(x Schema) {
	switch x.Kind {
	case "object":
		if s.types[x.Type].Answered {
			return
		}
		s.types[x.Type].Answered = true
		for _, f := range s.types[x.Type].Fields {
			s.answered(f.Schema)
		}
	case "array", "map":
		s.answered(*x.Items)
	case "union":
		for _, one := range x.Of {
			s.answered(one)
		}
	}
}

// kinds are the types that a schema names, without null.
func kinds(m map[string]any) (types []string, null bool) {
	null, _ = m["nullable"].(bool)
	names := anyList(m["type"])
	if t, ok := m["type"].(string); ok {
		names = []any{t}
	}
	for _, n := range names {
		switch t := fmt.Sprint(n); {
		case n == nil || t == "null":
			null = true
		case !slices.Contains(types, t):
			types = append(types, t)
		}
	}
	return types, null
}

// enum are the texts that a schema allows; nil if it names none, or others too.
func enum(m map[string]any) (words []string) {
	all := anyList(m["enum"])
	if c, ok := m["const"]; ok {
		all = []any{c}
	}
	for _, w := range all {
		if w == nil {
			continue
		}
		t, ok := w.(string)
		if !ok || len(words) >= 256 {
			return nil
		}
		if t = strings.ToValidUTF8(t, "\ufffd"); !slices.Contains(words, t) {
			words = append(words, t)
		}
	}
	return words
}

func anyList(v any) []any {
	list, _ := v.([]any)
	return list
}
