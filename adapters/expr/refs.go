package expr

import (
	"slices"
	"strings"

	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/operators"
	"github.com/google/cel-go/common/types"
)

// Refs lists the variables that a CEL expression reads, each with the fields that
// it takes of it: "settings.endpoint", "task.let.size". What is computed, such as
// settings[item.x], ends the list of fields: "settings". JSONPath reads one variable.
func (x *Expr) Refs() []string {
	if x.path != nil {
		return []string{x.path.of}
	}
	seen := map[string]bool{}
	refs(x.ast.NativeRep().Expr(), nil, seen)
	var all []string
	for r := range seen {
		all = append(all, r)
	}
	slices.Sort(all)
	return all
}

// chain is the variable and the fields that e names, if it is nothing else.
func chain(e ast.Expr) ([]string, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return []string{e.AsIdent()}, true
	case ast.SelectKind:
		c, ok := chain(e.AsSelect().Operand())
		return append(c, e.AsSelect().FieldName()), ok
	case ast.CallKind:
		switch e.AsCall().FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
			args := e.AsCall().Args()
			if field, ok := args[1].AsLiteral().(types.String); ok && args[1].Kind() == ast.LiteralKind {
				c, ok := chain(args[0])
				return append(c, string(field)), ok
			}
		}
	}
	return nil, false
}

func refs(e ast.Expr, bound []string, seen map[string]bool) {
	if c, ok := chain(e); ok {
		if !slices.Contains(bound, c[0]) && !strings.HasPrefix(c[0], "@") {
			seen[strings.Join(c, ".")] = true
		}
		return
	}
	switch e.Kind() {
	case ast.SelectKind:
		refs(e.AsSelect().Operand(), bound, seen)
	case ast.CallKind:
		if e.AsCall().IsMemberFunction() {
			refs(e.AsCall().Target(), bound, seen)
		}
		for _, a := range e.AsCall().Args() {
			refs(a, bound, seen)
		}
	case ast.ListKind:
		for _, x := range e.AsList().Elements() {
			refs(x, bound, seen)
		}
	case ast.MapKind:
		for _, entry := range e.AsMap().Entries() {
			refs(entry.AsMapEntry().Key(), bound, seen)
			refs(entry.AsMapEntry().Value(), bound, seen)
		}
	case ast.ComprehensionKind:
		c := e.AsComprehension()
		refs(c.IterRange(), bound, seen)
		refs(c.AccuInit(), bound, seen)
		inner := append(slices.Clone(bound), c.IterVar(), c.IterVar2(), c.AccuVar())
		for _, x := range []ast.Expr{c.LoopCondition(), c.LoopStep(), c.Result()} {
			refs(x, inner, seen)
		}
	}
}

// Exprs lists the expressions in a template.
func (t *Template) Exprs() (all []*Expr) {
	switch v := t.value.(type) {
	case *Expr:
		return []*Expr{v}
	case concat:
		for _, p := range v {
			if x, ok := p.(*Expr); ok {
				all = append(all, x)
			}
		}
	case []*Template:
		for _, e := range v {
			all = append(all, e.Exprs()...)
		}
	case map[string]*Template:
		for _, e := range v {
			all = append(all, e.Exprs()...)
		}
	}
	return all
}
