package generate

import (
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Syntax is how a language writes what expressions are made of. Everything else is
// a call of a function that the language's support has: the same in all languages.
type Syntax struct {
	Null, True, False string
	Int               func(int64) string
	Float             func(float64) string
	Text              func(string) string
	List              func([]string) string
	Map               func(keys, values []string) string
	Lambda            func(params []string, body string) string
	If                func(cond, then, otherwise string) string
	Var               func(name string) string // of the site, the task, the answer
	Local             func(name string) string // of a lambda
}

// functions are those of CEL's own, beside the tree's, that the support of every language has.
var functions = []string{
	"size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bool", "dyn",
	"orValue", "or", "value", "hasValue", "optional.of", "optional.none", "optional.ofNonZeroValue",
}

// Functions are the names that the support of a language must have for the functions of expressions.
func Functions() (names []string) {
	for _, f := range functions {
		names = append(names, functionName(f))
	}
	for _, f := range expr.Functions() {
		names = append(names, functionName(f.Name))
	}
	sort.Strings(names)
	return names
}

func functionName(name string) string {
	name = strings.ReplaceAll(name, "optional.", "optional_")
	var b strings.Builder
	b.WriteString("f")
	for _, part := range strings.Split(name, "_") {
		b.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return b.String()
}

// binary are the operators, by the support's name for them.
var binary = map[string]string{
	operators.Equals: "eq", operators.NotEquals: "ne", operators.Less: "lt", operators.LessEquals: "le",
	operators.Greater: "gt", operators.GreaterEquals: "ge", operators.Add: "add", operators.Subtract: "sub",
	operators.Multiply: "mul", operators.Divide: "div", operators.Modulo: "mod", operators.In: "within",
	operators.Index: "at", operators.OptIndex: "opt", operators.OptSelect: "opt",
}

// emitter writes expressions in a language.
type emitter struct {
	Syntax
	locals []string // in scope
}

func call(name string, args ...string) string { return name + "(" + strings.Join(args, ", ") + ")" }

// expression writes x as an expression of the language.
func (e *emitter) expression(x *expr.Expr) (string, error) {
	if x.AST() == nil {
		of, steps, ok := x.Steps()
		if !ok {
			return "", pcm.Errorf(pcm.Invalid, "the JSONPath %q has a filter, slice or descent: write it as CEL", x.Source())
		}
		name, args := "path", []string{e.Var(of)}
		for _, s := range steps {
			switch s := s.(type) {
			case string:
				args = append(args, e.Text(s))
			case int64:
				args = append(args, e.Int(s))
			default:
				name = "paths"
				args = append(args, e.Null)
			}
		}
		return call(name, args...), nil
	}
	out, err := e.node(x.AST().NativeRep().Expr())
	if err != nil {
		return "", pcm.Errorf(pcm.Invalid, "in %q: %w", x.Source(), err)
	}
	return out, nil
}

func (e *emitter) nodes(list []ast.Expr) ([]string, error) {
	out := make([]string, len(list))
	for i, x := range list {
		s, err := e.node(x)
		if err != nil {
			return nil, err
		}
		out[i] = s
	}
	return out, nil
}

func (e *emitter) node(x ast.Expr) (string, error) {
	switch x.Kind() {
	case ast.LiteralKind:
		return e.literal(x)
	case ast.IdentKind:
		if name := x.AsIdent(); slices.Contains(e.locals, name) {
			return e.Local(name), nil
		} else {
			return e.Var(name), nil
		}
	case ast.SelectKind:
		operand, err := e.node(x.AsSelect().Operand())
		if err != nil {
			return "", err
		}
		name := "get"
		if x.AsSelect().IsTestOnly() {
			name = "has"
		}
		if inner, ok := strings.CutSuffix(operand, ")"); ok && name == "get" && strings.HasPrefix(operand, "get(") && x.AsSelect().Operand().Kind() == ast.SelectKind {
			return inner + ", " + e.Text(x.AsSelect().FieldName()) + ")", nil
		}
		return call(name, operand, e.Text(x.AsSelect().FieldName())), nil
	case ast.ListKind:
		list := x.AsList()
		parts, err := e.nodes(list.Elements())
		if err != nil {
			return "", err
		}
		if len(list.OptionalIndices()) == 0 {
			return e.List(parts), nil
		}
		for i := range parts {
			if !list.IsOptional(int32(i)) {
				parts[i] = call("fOptionalOf", parts[i])
			}
		}
		return call("present", e.List(parts)), nil
	case ast.MapKind:
		var keys, values []string
		for _, entry := range x.AsMap().Entries() {
			if entry.AsMapEntry().IsOptional() {
				return "", pcm.Errorf(pcm.Invalid, "maps with optional fields can't be written in another language: use a condition")
			}
			kv, err := e.nodes([]ast.Expr{entry.AsMapEntry().Key(), entry.AsMapEntry().Value()})
			if err != nil {
				return "", err
			}
			keys, values = append(keys, kv[0]), append(values, kv[1])
		}
		return e.Map(keys, values), nil
	case ast.CallKind:
		return e.call(x.AsCall())
	case ast.ComprehensionKind:
		return e.fold(x.AsComprehension())
	}
	return "", pcm.Errorf(pcm.Invalid, "a message can't be made here")
}

func (e *emitter) literal(x ast.Expr) (string, error) {
	switch v := x.AsLiteral().(type) {
	case types.Null:
		return e.Null, nil
	case types.Bool:
		if v {
			return e.True, nil
		}
		return e.False, nil
	case types.Int:
		return e.Int(int64(v)), nil
	case types.Uint:
		return e.Int(int64(v)), nil
	case types.Double:
		return e.Float(float64(v)), nil
	case types.String:
		return e.Text(string(v)), nil
	}
	return "", pcm.Errorf(pcm.Invalid, "the literal %v can't be written in another language", x.AsLiteral())
}

func (e *emitter) call(c ast.CallExpr) (string, error) {
	args := c.Args()
	name := c.FunctionName()
	if c.IsMemberFunction() {
		args = append([]ast.Expr{c.Target()}, args...)
	}
	out, err := e.nodes(args)
	if err != nil {
		return "", err
	}
	switch name {
	case operators.Conditional:
		return e.If(out[0], out[1], out[2]), nil
	case operators.LogicalAnd:
		return call("both", e.Lambda(nil, out[0]), e.Lambda(nil, out[1])), nil
	case operators.LogicalOr:
		return call("either", e.Lambda(nil, out[0]), e.Lambda(nil, out[1])), nil
	case operators.LogicalNot:
		return call("negate", out[0]), nil
	case operators.Negate:
		return call("minus", out[0]), nil
	case operators.NotStrictlyFalse:
		return out[0], nil
	}
	if op, ok := binary[name]; ok {
		return call(op, out...), nil
	}
	known := slices.Contains(functions, name) || slices.ContainsFunc(expr.Functions(), func(f expr.Function) bool { return f.Name == name })
	if !known {
		return "", pcm.Errorf(pcm.Invalid, "the function %s can't be written in another language yet", name)
	}
	return call(functionName(name), out...), nil
}

// fold writes what the macros all, exists, map, filter and optMap stand for.
func (e *emitter) fold(c ast.ComprehensionExpr) (string, error) {
	if c.HasIterVar2() {
		return "", pcm.Errorf(pcm.Invalid, "macros with two variables can't be written in another language")
	}
	over, err := e.nodes([]ast.Expr{c.IterRange(), c.AccuInit()})
	if err != nil {
		return "", err
	}
	was := len(e.locals)
	e.locals = append(e.locals, c.AccuVar(), c.IterVar())
	defer func() { e.locals = e.locals[:was] }()
	loop, err := e.nodes([]ast.Expr{c.LoopCondition(), c.LoopStep()})
	if err != nil {
		return "", err
	}
	e.locals = e.locals[:was+1]
	result, err := e.node(c.Result())
	if err != nil {
		return "", err
	}
	accu, iter := e.Local(c.AccuVar()), e.Local(c.IterVar())
	return call("fold", over[0], over[1], e.Lambda([]string{accu, iter}, loop[0]), e.Lambda([]string{accu, iter}, loop[1]), e.Lambda([]string{accu}, result)), nil
}

// template writes a template as an expression of the language. Elements that
// become nothing are left out by the support's functions list and object.
func (e *emitter) template(t *expr.Template) (string, error) {
	switch v := t.Value().(type) {
	case nil:
		return call("nothing"), nil
	case *expr.Expr:
		return e.expression(v)
	case []any: // texts and expressions
		var parts []string
		for _, p := range v {
			if s, ok := p.(string); ok {
				parts = append(parts, e.Text(s))
				continue
			}
			s, err := e.expression(p.(*expr.Expr))
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		return call("concat", parts...), nil
	case []*expr.Template:
		var parts []string
		for _, x := range v {
			s, err := e.template(x)
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		return call("list", parts...), nil
	case map[string]*expr.Template:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		var parts []string
		for _, k := range keys {
			s, err := e.template(v[k])
			if err != nil {
				return "", err
			}
			parts = append(parts, e.Text(k), s)
		}
		return call("object", parts...), nil
	}
	return e.plain(t.Value())
}

// plain writes a value as YAML has it.
func (e *emitter) plain(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return e.Null, nil
	case bool:
		if v {
			return e.True, nil
		}
		return e.False, nil
	case int:
		return e.Int(int64(v)), nil
	case int64:
		return e.Int(v), nil
	case uint64:
		return e.Int(int64(v)), nil
	case float64:
		return e.Float(v), nil
	case string:
		return e.Text(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			s, err := e.plain(x)
			if err != nil {
				return "", err
			}
			parts[i] = s
		}
		return e.List(parts), nil
	case map[string]any:
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		var names, values []string
		for _, k := range keys {
			s, err := e.plain(v[k])
			if err != nil {
				return "", err
			}
			names, values = append(names, e.Text(k)), append(values, s)
		}
		return e.Map(names, values), nil
	}
	return "", pcm.Errorf(pcm.Invalid, "a %T can't be written in another language", v)
}

// value writes what a template or expression of a description gives.
func (e *emitter) value(v any) (string, error) {
	switch v := v.(type) {
	case description.Template:
		if v.Compiled() == nil {
			return e.Null, nil
		}
		return e.template(v.Compiled())
	case description.Expression:
		if !v.Given() {
			return e.Null, nil
		}
		return e.expression(v.Expr)
	}
	return "", fmt.Errorf("%T is no expression", v)
}
