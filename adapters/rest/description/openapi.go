package description

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/jointcloud/pcm"
)

// MaxOpenAPI bounds an OpenAPI document.
const MaxOpenAPI = 4 << 20

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

func (s *schemas) operation(path, method string, item, op map[string]any) Operation {
	o := s.doc
	out := Operation{Method: method, Path: path}
	out.ID, _ = op["operationId"].(string)
	out.Summary, _ = op["summary"].(string)
	place := cmp.Or(out.ID, method+" "+path)
	for _, list := range []any{item["parameters"], op["parameters"]} {
		params, _ := list.([]any)
		for _, raw := range params {
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
	parts, _ := schema["allOf"].([]any)
	for _, p := range parts {
		s.fields(s.doc.object(p), b, depth+1)
	}
	properties := s.doc.object(schema["properties"])
	if more, ok := schema["additionalProperties"]; ok && more != false || properties == nil && parts == nil {
		b.Open = true
	}
	b.Fields = append(b.Fields, slices.Collect(maps.Keys(properties))...)
	needs, _ := schema["required"].([]any)
	for _, n := range needs {
		b.Needs = append(b.Needs, fmt.Sprint(n))
	}
}

// operations reads the document that the description names.
func (c *compiler) operations(dir fs.FS) {
	if c.d.OpenAPI == "" {
		return
	}
	if dir == nil {
		c.add("$.openapi", "the document is beside a description in a file; this description is none")
		return
	}
	f, err := dir.Open(c.d.OpenAPI)
	var api *API
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = readAll(f); err == nil {
			api, err = ParseOpenAPI(data)
		}
	}
	if err != nil {
		c.add("$.openapi", "%v", err)
		return
	}
	c.ops = map[string]Operation{}
	for _, op := range api.Operations {
		c.ops[op.ID] = op
	}
}

// expand puts method and path of an operation in the place of its name.
func (c *compiler) expand(path string, r *Request) {
	if r.Operation == "" {
		if len(r.Params) > 0 {
			c.add(path+".params", "they are those of an operation, and there is none")
		}
		return
	}
	if c.d.OpenAPI == "" {
		c.add(path+".operation", "there is no OpenAPI document: name it by openapi")
		return
	}
	if c.ops == nil {
		return // said already
	}
	op, ok := c.ops[r.Operation]
	if !ok {
		c.add(path+".operation", "%s has no operation %q%s", c.d.OpenAPI, r.Operation, near(r.Operation, sorted(c.ops)))
		return
	}
	if r.Method != "" || r.Path.given {
		c.add(path, "method and path are those of operation %s: leave them out", r.Operation)
		return
	}
	r.Method = op.Method
	text, given := op.Path, map[string]bool{}
	for _, name := range sorted(r.Params) {
		if !strings.Contains(op.Path, "{"+name+"}") {
			c.add(path+".params."+name, "operation %s has no such parameter in its path %s", r.Operation, op.Path)
		}
		text = strings.ReplaceAll(text, "{"+name+"}", fmt.Sprint(r.Params[name].raw))
		given[name] = true
	}
	r.Path = Template{raw: text, given: true}
	for _, p := range op.Params {
		missing := p.In == "path" && !given[p.Name] || p.In == "query" && p.Required && !r.Query[p.Name].given
		if missing {
			c.add(path, "operation %s needs the parameter %s in its %s", r.Operation, p.Name, p.In)
		}
	}
	for _, name := range sorted(r.Query) {
		if !slices.ContainsFunc(op.Params, func(p Param) bool { return p.In == "query" && p.Name == name }) {
			c.warn(path+".query."+name, "operation %s has no such parameter", r.Operation)
		}
	}
	c.body(path, r, op)
}

func (c *compiler) body(path string, r *Request, op Operation) {
	if op.Body == nil {
		if r.Body.given && op.Method != http.MethodGet {
			c.warn(path+".body", "operation %s takes no JSON", r.Operation)
		}
		return
	}
	fields, isMap := r.Body.raw.(map[string]any)
	switch {
	case !r.Body.given && op.Body.Required:
		c.add(path, "operation %s needs a body", r.Operation)
	case isMap:
		for _, name := range op.Body.Needs {
			if _, ok := fields[name]; !ok {
				c.add(path+".body", "operation %s needs %s in its body", r.Operation, name)
			}
		}
		for _, name := range sorted(fields) {
			if !op.Body.Open && !slices.Contains(op.Body.Fields, name) {
				c.add(path+".body."+name, "operation %s knows no such field%s", r.Operation, near(name, op.Body.Fields))
			}
		}
	}
}
