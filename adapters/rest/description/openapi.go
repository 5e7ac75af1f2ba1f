package description

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/jointcloud/pcm"
)

// MaxOpenAPI bounds an OpenAPI document.
const MaxOpenAPI = 4 << 20

// API is what an OpenAPI document says, as far as clients need it.
type API struct {
	Operations []Operation
	Types      []Type
	Logins     []Scheme // what a request shows, all of them
	Unknown    []string // schemes of log-in that are in use and can't be read here, by name
	Server     string   // "" where the document doesn't tell, or has a pattern
}

// Operation is what an OpenAPI document says of one call, as far as it is needed here.
type Operation struct {
	ID      string
	Method  string
	Path    string // with {names}
	Summary string
	Params  []Param
	Body    *Body   // nil: it takes none
	Upload  string  // media type of what it takes, if that is no JSON
	Answer  *Schema // nil: it answers nothing, or no JSON
	Raw     bool    // it answers something that is no JSON
}

// Param is a parameter of an operation.
type Param struct {
	Name     string
	In       string // path, query, header or cookie
	Required bool
	Schema   Schema
	Join     string // between the items of a list in a query; "&": each item is a parameter
}

// Body is what an operation takes as JSON.
type Body struct {
	Required bool // there must be one
	Fields   []string
	Needs    []string // of the fields
	Open     bool     // may have fields that are not named
	Schema   Schema
}

// Scheme is a way to show who asks.
type Scheme struct {
	Name string // as the document has it
	Kind string // bearer, basic, header or query
	As   string // name of the header or parameter
}

// ParseOpenAPI reads an OpenAPI document, version 3, in YAML or JSON.
func ParseOpenAPI(data []byte) (*API, error) {
	if len(data) > MaxOpenAPI {
		return nil, pcm.Errorf(pcm.TooLarge, "the OpenAPI document has over %d bytes", MaxOpenAPI)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "the OpenAPI document can't be read: %v", yamlProblem(err))
	}
	if version, _ := doc["openapi"].(string); !strings.HasPrefix(version, "3.") {
		return nil, pcm.Errorf(pcm.Invalid, "it is not an OpenAPI document of version 3: openapi is %v", doc["openapi"])
	}
	o := openAPI(doc)
	s := &schemas{doc: o, at: map[string]int{}}
	var all []Operation
	var items []map[string]any
	paths := o.object(doc["paths"])
	for _, path := range sorted(paths) {
		item := o.object(paths[path])
		for _, method := range methods[1:] {
			op := o.object(item[strings.ToLower(method)])
			if op == nil {
				continue
			}
			all, items = append(all, s.operation(path, method, item, op)), append(items, op)
		}
	}
	seen := map[string]bool{}
	for _, op := range all {
		if op.ID != "" && seen[op.ID] {
			return nil, pcm.Errorf(pcm.Invalid, "the OpenAPI document has two operations called %q", op.ID)
		}
		seen[op.ID] = true
		if op.Answer != nil {
			s.answered(*op.Answer)
		}
	}
	api := &API{Operations: all, Types: s.types, Server: o.server()}
	api.Logins, api.Unknown = o.login(items)
	return api, nil
}

type openAPI map[string]any

// object follows references within the document.
func (o openAPI) object(v any) map[string]any {
	m, _ := o.resolve(v)
	return m
}

// resolve follows references; last is the last of them. It is nil where they lead nowhere.
func (o openAPI) resolve(v any) (m map[string]any, last string) {
	for range 16 {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, last
		}
		ref, ok := m["$ref"].(string)
		if !ok {
			return m, last
		}
		path, ok := strings.CutPrefix(ref, "#/")
		if !ok {
			return nil, ref
		}
		last, v = ref, map[string]any(o)
		for _, part := range strings.Split(path, "/") {
			part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
			m, _ := v.(map[string]any)
			v = m[part]
		}
	}
	return nil, last
}

func (s *schemas) operation(path, method string, item, op map[string]any) Operation {
	o := s.doc
	out := Operation{Method: method, Path: path}
	out.ID, _ = op["operationId"].(string)
	out.Summary, _ = op["summary"].(string)
	place := cmp.Or(out.ID, method+" "+path)
	for _, list := range []any{item["parameters"], op["parameters"]} {
		for _, raw := range anyList(list) {
			p := o.object(raw)
			var param Param
			param.Name, _ = p["name"].(string)
			param.In, _ = p["in"].(string)
			param.Required, _ = p["required"].(bool)
			param.Schema, param.Join = s.read(p["schema"], place+" "+param.Name, 0), joined(p)
			out.Params = slices.DeleteFunc(out.Params, func(q Param) bool { return q.Name == param.Name && q.In == param.In })
			out.Params = append(out.Params, param)
		}
	}
	if body := o.object(op["requestBody"]); body != nil {
		kind, media := o.media(body)
		if jsonMedia(kind) {
			b := &Body{Schema: s.read(media["schema"], place+" body", 0)}
			b.Required, _ = body["required"].(bool)
			s.fields(o.object(media["schema"]), b, 0)
			slices.Sort(b.Fields)
			b.Fields = slices.Compact(b.Fields)
			out.Body = b
		} else {
			out.Upload = kind
		}
	}
	answers := o.object(op["responses"])
	for _, status := range sorted(answers) {
		if len(status) != 3 || status[0] != '2' {
			continue
		}
		kind, media := o.media(o.object(answers[status]))
		if kind == "" {
			continue // 204, as a rule
		}
		if jsonMedia(kind) {
			answer := s.read(media["schema"], place+" answer", 0)
			out.Answer = &answer
		} else {
			out.Raw = true
		}
		break
	}
	return out
}

// media is what a body or an answer may be: JSON, if that is among it. It is "" for nothing.
func (o openAPI) media(of map[string]any) (kind string, media map[string]any) {
	content := o.object(of["content"])
	for _, k := range sorted(content) {
		if kind == "" || jsonMedia(k) && (!jsonMedia(kind) || k == "application/json") {
			kind, media = k, o.object(content[k])
		}
	}
	return kind, media
}

func jsonMedia(kind string) bool {
	kind, _, _ = strings.Cut(kind, ";")
	return kind == "application/json" || strings.HasPrefix(kind, "application/") && strings.HasSuffix(kind, "+json")
}

// joined tells what stands between the items of a list in a query.
func joined(p map[string]any) string {
	style, _ := p["style"].(string)
	if explode, given := p["explode"].(bool); given && explode || !given && (style == "" || style == "form") {
		return "&"
	}
	switch style {
	case "spaceDelimited":
		return " "
	case "pipeDelimited":
		return "|"
	}
	return ","
}

// fields adds those of a schema and of all that it is made of.
func (s *schemas) fields(schema map[string]any, b *Body, depth int) {
	s.looks++
	if schema == nil || depth > 8 || s.looks > maxLooks || schema["oneOf"] != nil || schema["anyOf"] != nil {
		b.Open = true // more than is read here
		return
	}
	parts := anyList(schema["allOf"])
	for _, p := range parts {
		s.fields(s.doc.object(p), b, depth+1)
	}
	properties := s.doc.object(schema["properties"])
	if more, ok := schema["additionalProperties"]; ok && more != false || properties == nil && parts == nil {
		b.Open = true
	}
	b.Fields = append(b.Fields, slices.Collect(maps.Keys(properties))...)
	for _, n := range anyList(schema["required"]) {
		b.Needs = append(b.Needs, fmt.Sprint(n))
	}
}

// login reads what requests show: the first choice of all that can be read here.
func (o openAPI) login(items []map[string]any) (all []Scheme, unknown []string) {
	defined := o.object(o.object(o["components"])["securitySchemes"])
	var choices []any
	for _, of := range append([]map[string]any{o}, items...) {
		if list := anyList(of["security"]); len(list) > 0 {
			choices = list
			break
		}
	}
	free := false
	for _, c := range choices {
		names, _ := c.(map[string]any)
		if len(names) == 0 {
			free = true // of a choice that asks for nothing
			continue
		}
		var these []Scheme
		for _, name := range sorted(names) {
			s, ok := scheme(name, o.object(defined[name]))
			if !ok {
				unknown = append(unknown, name)
				these = nil
				break
			}
			these = append(these, s)
		}
		if these != nil {
			return these, nil
		}
	}
	if free {
		return nil, nil
	}
	return nil, unknown
}

func scheme(name string, m map[string]any) (Scheme, bool) {
	text := func(key string) string { t, _ := m[key].(string); return t }
	s := Scheme{Name: name, As: text("name")}
	switch kind, in := text("type"), text("in"); {
	case kind == "http" && strings.EqualFold(text("scheme"), "bearer"):
		s.Kind = "bearer"
	case kind == "http" && strings.EqualFold(text("scheme"), "basic"):
		s.Kind = "basic"
	case kind == "apiKey" && in == "query" && s.As != "":
		s.Kind = "query"
	case kind == "apiKey" && in == "header" && headerName(s.As):
		s.Kind = "header"
	}
	return s, s.Kind != ""
}

// headerName tells whether a text can name a header.
func headerName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// server is the first address that the document tells.
func (o openAPI) server() string {
	for _, s := range anyList(o["servers"]) {
		m, _ := s.(map[string]any)
		url, _ := m["url"].(string)
		if (strings.HasPrefix(url, "https://") || strings.HasPrefix(url, "http://")) && !strings.ContainsAny(url, "{}") {
			return url
		}
	}
	return ""
}
