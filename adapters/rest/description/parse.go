package description

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/jointcloud/pcm/adapters/expr"
)

// MaxSize bounds the file.
const MaxSize = 256 << 10

// Problem is what is wrong at a place of the file.
type Problem struct {
	Line    int    `json:"line"` // from 1; 0: of the whole file
	Path    string `json:"path"` // e.g. $.create.request.body
	Message string `json:"message"`
	Warning bool   `json:"warning,omitempty"` // it works all the same
}

func (p Problem) String() string {
	if p.Line == 0 {
		return p.Message
	}
	return fmt.Sprintf("line %d: %s: %s", p.Line, strings.TrimPrefix(p.Path, "$."), p.Message)
}

// Parse is [ParseIn] of a description that is by itself.
func Parse(data []byte) (*Description, []Problem) { return ParseIn(data, nil) }

// ParseIn reads a description, with the OpenAPI document that it may name from its
// folder, and compiles all that is in it. Problems are sorted by line; the description
// is nil if one of them is no warning.
func ParseIn(data []byte, dir fs.FS) (*Description, []Problem) {
	if len(data) > MaxSize {
		return nil, []Problem{{Message: fmt.Sprintf("it has %d bytes, over the bound of %d", len(data), MaxSize)}}
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, []Problem{yamlProblem(err)}
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, []Problem{{Message: "it is not one YAML document"}}
	}
	if problems := unknown(file.Docs[0].Body); len(problems) > 0 {
		return nil, problems
	}
	var d Description
	if err := yaml.NodeToValue(file.Docs[0].Body, &d, yaml.DisallowUnknownField()); err != nil {
		return nil, []Problem{yamlProblem(err)}
	}
	c := &compiler{d: &d, root: file.Docs[0].Body, envs: map[string]*expr.Env{}, used: map[string]bool{}}
	c.operations(dir)
	c.walk(reflect.ValueOf(&d).Elem(), "$", nil)
	c.check(&d)
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	if slices.ContainsFunc(c.problems, func(p Problem) bool { return !p.Warning }) {
		return nil, c.problems
	}
	return &d, c.problems
}

func readAll(f fs.File) ([]byte, error) { return io.ReadAll(io.LimitReader(f, MaxOpenAPI+1)) }

func yamlProblem(err error) Problem {
	var e yaml.Error
	if errors.As(err, &e) && e.GetToken() != nil {
		return Problem{Line: e.GetToken().Position.Line, Path: "$", Message: e.GetMessage()}
	}
	return Problem{Message: err.Error()}
}

type compiler struct {
	d        *Description
	root     ast.Node
	used     map[string]bool      // what is read or named somewhere: settings.x, secrets.x, let.x, more.x, step.x
	reads    []read               // of expressions, each with its place
	ops      map[string]Operation // of the OpenAPI document
	envs     map[string]*expr.Env
	problems []Problem
}

func (c *compiler) add(path, format string, args ...any) {
	c.problems = append(c.problems, Problem{Line: c.line(path), Path: path, Message: fmt.Sprintf(format, args...)})
}

// line finds where the path is, or what it would be in.
func (c *compiler) line(path string) int {
	for path != "" && path != "$" {
		if p, err := yaml.PathString(path); err == nil {
			if n, err := p.FilterNode(c.root); err == nil && n != nil {
				return n.GetToken().Position.Line
			}
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			break
		}
		path = path[:i]
	}
	return 0
}

func (c *compiler) env(vars []string) *expr.Env {
	name := strings.Join(vars, ",")
	if c.envs[name] == nil {
		e, err := expr.New(vars...)
		if err != nil {
			panic(err) // of names that stand in this package
		}
		c.envs[name] = e
	}
	return c.envs[name]
}

var (
	expressionType = reflect.TypeFor[Expression]()
	templateType   = reflect.TypeFor[Template]()
)

// walk compiles what is in v. vars are the names that its place has; tags add to them.
func (c *compiler) walk(v reflect.Value, path string, vars []string) {
	switch v.Type() {
	case expressionType:
		x := v.Addr().Interface().(*Expression)
		if !x.Given() {
			return
		}
		of := "body"
		for _, name := range []string{"item", "job"} {
			if !slices.Contains(vars, of) && slices.Contains(vars, name) {
				of = name
			}
		}
		compiled, err := c.env(vars).CompilePath(x.source, of)
		if err != nil {
			c.add(path, "%v", err)
			return
		}
		x.Expr = compiled
		c.refer(path, compiled)
		return
	case templateType:
		t := v.Addr().Interface().(*Template)
		if !t.given {
			return
		}
		raw := normal(t.raw)
		tpl, err := c.env(vars).Template(raw)
		if err != nil {
			c.add(path, "%v", err)
			return
		}
		t.raw, t.tpl = raw, tpl
		c.refer(path, tpl.Exprs()...)
		c.inlined(path, raw)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			c.walk(v.Elem(), path, vars)
		}
	case reflect.Slice:
		for i := range v.Len() {
			c.walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), vars)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			e := reflect.New(v.Type().Elem()).Elem()
			e.Set(v.MapIndex(k))
			c.walk(e, path+"."+k.String(), vars)
			v.SetMapIndex(k, e)
		}
	case reflect.Struct:
		if r, ok := v.Addr().Interface().(*Request); ok {
			c.expand(path, r)
		}
		if !v.IsZero() {
			c.required(path, v)
			c.inspect(path, v.Addr().Interface())
		}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if !f.IsExported() || strings.Contains(f.Tag.Get("yaml"), "omitempty") && v.Field(i).IsZero() {
				continue
			}
			if _, ok := v.Field(i).Interface().(Call); ok && v.Field(i).IsZero() {
				continue // see log
			}
			name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
			at := path + "." + name
			if strings.Contains(options, "inline") {
				at = path
			}
			c.walk(v.Field(i), at, with(vars, f.Tag.Get("vars")))
		}
	}
}

// inlined looks for secrets in a template: written out, or named in the body of a log-in.
func (c *compiler) inlined(path string, raw any) {
	if strings.HasPrefix(path, "$.login.request.") {
		named := false
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case []any:
				for _, x := range v {
					walk(x)
				}
			case map[string]any:
				if name, ok := v["secret"].(string); ok && len(v) == 1 {
					named = true
					c.secret(path, c.d, name)
					return
				}
				for _, k := range sorted(v) {
					walk(v[k])
				}
			}
		}
		if walk(raw); named {
			return
		}
	}
	c.secrets(path, path[strings.LastIndexByte(path, '.')+1:], raw)
}

func with(vars []string, more string) []string {
	all := slices.Clone(vars)
	for _, v := range strings.Split(more, ",") {
		if v != "" && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	return all
}

// normal has YAML's values in the forms that templates take.
func normal(v any) any {
	switch v := v.(type) {
	case uint64:
		return int64(v)
	case int:
		return int64(v)
	case map[string]any:
		for k := range v {
			v[k] = normal(v[k])
		}
	case []any:
		for i := range v {
			v[i] = normal(v[i])
		}
	}
	return v
}
