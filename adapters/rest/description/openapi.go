package description

import (
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
	Body    *Body // nil: it takes none
}

// Param is a parameter of an operation.
type Param struct {
	Name     string
	In       string // path, query, header or cookie
	Required bool
}

// Body is what an operation takes as JSON.
type Body struct {
	Required bool // there must be one
	Fields   []string
	Needs    []string // of the fields
	Open     bool     // may have fields that are not named
}

// ParseOpenAPI reads the operations of an OpenAPI document, version 3, in YAML or JSON.
func ParseOpenAPI(data []byte) ([]Operation, error) {
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
	var all []Operation
	paths := o.object(doc["paths"])
	for _, path := range sorted(paths) {
		item := o.object(paths[path])
		for _, method := range methods[1:] {
			op := o.object(item[strings.ToLower(method)])
			if op == nil {
				continue
			}
			all = append(all, o.operation(path, method, item, op))
		}
	}
	seen := map[string]bool{}
	for _, op := range all {
		if op.ID != "" && seen[op.ID] {
			return nil, pcm.Errorf(pcm.Invalid, "the OpenAPI document has two operations called %q", op.ID)
		}
		seen[op.ID] = true
	}
	return all, nil
}

type openAPI map[string]any

// object follows references within the document.
func (o openAPI) object(v any) map[string]any {
	for range 16 {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		ref, ok := m["$ref"].(string)
		if !ok {
			return m
		}
		path, ok := strings.CutPrefix(ref, "#/")
		if !ok {
			return nil
		}
		v = map[string]any(o)
		for _, part := range strings.Split(path, "/") {
			part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
			m, _ := v.(map[string]any)
			v = m[part]
		}
	}
	return nil
}

func (o openAPI) operation(path, method string, item, op map[string]any) Operation {
	out := Operation{Method: method, Path: path}
	out.ID, _ = op["operationId"].(string)
	out.Summary, _ = op["summary"].(string)
	for _, list := range []any{item["parameters"], op["parameters"]} {
		params, _ := list.([]any)
		for _, raw := range params {
			p := o.object(raw)
			var param Param
			param.Name, _ = p["name"].(string)
			param.In, _ = p["in"].(string)
			param.Required, _ = p["required"].(bool)
			out.Params = slices.DeleteFunc(out.Params, func(q Param) bool { return q.Name == param.Name && q.In == param.In })
			out.Params = append(out.Params, param)
		}
	}
	if body := o.object(op["requestBody"]); body != nil {
		content := o.object(body["content"])
		if media := o.object(content["application/json"]); media != nil {
			b := &Body{}
			b.Required, _ = body["required"].(bool)
			o.fields(o.object(media["schema"]), b, 0)
			slices.Sort(b.Fields)
			out.Body = b
		}
	}
	return out
}

// fields adds those of a schema and of all that it is made of.
func (o openAPI) fields(schema map[string]any, b *Body, depth int) {
	if schema == nil || depth > 8 || schema["oneOf"] != nil || schema["anyOf"] != nil {
		b.Open = true // more than is read here
		return
	}
	parts, _ := schema["allOf"].([]any)
	for _, p := range parts {
		o.fields(o.object(p), b, depth+1)
	}
	properties := o.object(schema["properties"])
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
	var ops []Operation
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = readAll(f); err == nil {
			ops, err = ParseOpenAPI(data)
		}
	}
	if err != nil {
		c.add("$.openapi", "%v", err)
		return
	}
	c.ops = map[string]Operation{}
	for _, op := range ops {
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
