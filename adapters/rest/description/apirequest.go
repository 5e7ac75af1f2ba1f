package description

import (
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
)

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
