package generate

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"text/template/parse"
)

// execute fills in a template in the syntax of text/template: fields, the methods
// below, variables, if, with and range, eq, printf. That package itself calls methods by
// names that the linker can't know, which keeps 8 MiB of dead code in a program.
func execute(name, text string, p *Project) ([]byte, error) {
	trees, err := parse.Parse(name, text, "", "", map[string]any{"eq": true, "printf": true})
	if err != nil {
		return nil, err
	}
	x := execution{vars: []variable{{"$", reflect.ValueOf(p)}}}
	if err := x.list(trees[name].Root, reflect.ValueOf(p)); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return []byte(x.out.String()), nil
}

// methods of a project that templates may call.
var methods = map[string]func(p *Project, args []any) (any, error){
	"Section":  oneText(func(p *Project, s string) any { return p.Section(s) }),
	"Has":      oneText(func(p *Project, s string) any { return p.Has(s) }),
	"Text":     oneText(func(p *Project, s string) any { return p.Text(s) }),
	"Signed":   func(p *Project, _ []any) (any, error) { return p.Signed(), nil },
	"Stored":   func(p *Project, _ []any) (any, error) { return p.Stored(), nil },
	"Optional": func(p *Project, _ []any) (any, error) { return p.Optional(), nil },
	"Trial":    func(p *Project, _ []any) (any, error) { return p.Trial(), nil },
	"Params": func(p *Project, args []any) (any, error) {
		if len(args) == 2 {
			if op, ok := args[0].(Operation); ok {
				return p.Params(op, fmt.Sprint(args[1])), nil
			}
		}
		return nil, errors.New("it needs an operation and a place")
	},
	"Hint":       oneText(func(p *Project, s string) any { return p.Hint(s) }),
	"Guessed":    func(p *Project, _ []any) (any, error) { return p.Guessed(), nil },
	"Descriptor": func(p *Project, _ []any) (any, error) { return p.Descriptor() },
}

func oneText(f func(*Project, string) any) func(*Project, []any) (any, error) {
	return func(p *Project, args []any) (any, error) {
		if len(args) != 1 {
			return nil, fmt.Errorf("it needs one text, not %d", len(args))
		}
		return f(p, fmt.Sprint(args[0])), nil
	}
}

type variable struct {
	name  string
	value reflect.Value
}

type execution struct {
	out  strings.Builder
	vars []variable
}

func (x *execution) list(l *parse.ListNode, dot reflect.Value) error {
	if l == nil {
		return nil
	}
	for _, n := range l.Nodes {
		if err := x.node(n, dot); err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) node(n parse.Node, dot reflect.Value) error {
	mark := len(x.vars)
	switch n := n.(type) {
	case *parse.TextNode:
		x.out.Write(n.Text)
	case *parse.CommentNode:
	case *parse.ActionNode:
		v, err := x.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		if len(n.Pipe.Decl) > 0 {
			x.vars = append(x.vars, variable{n.Pipe.Decl[0].Ident[0], v})
			return nil
		}
		fmt.Fprint(&x.out, plainValue(v))
	case *parse.IfNode:
		v, err := x.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		branch := n.ElseList
		if truth(v) {
			branch = n.List
		}
		err = x.list(branch, dot)
		x.vars = x.vars[:mark]
		return err
	case *parse.WithNode:
		v, err := x.pipe(n.Pipe, dot)
		if err != nil {
			return err
		}
		if truth(v) {
			err = x.list(n.List, v)
		} else {
			err = x.list(n.ElseList, dot)
		}
		x.vars = x.vars[:mark]
		return err
	case *parse.RangeNode:
		return x.each(n, dot)
	default:
		return fmt.Errorf("line %d: templates here have no %q", n.Position(), n)
	}
	return nil
}

// each goes through a list, or a map in the order of its keys.
func (x *execution) each(n *parse.RangeNode, dot reflect.Value) error {
	over, err := x.pipe(n.Pipe, dot)
	if err != nil {
		return err
	}
	over = behind(over)
	var keys, values []reflect.Value
	switch over.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range over.Len() {
			keys, values = append(keys, reflect.ValueOf(i)), append(values, over.Index(i))
		}
	case reflect.Map:
		keys = over.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			values = append(values, over.MapIndex(k))
		}
	case reflect.Invalid:
	default:
		return fmt.Errorf("%s can't be gone through: it is %s", n.Pipe, over.Kind())
	}
	if len(values) == 0 {
		return x.list(n.ElseList, dot)
	}
	mark := len(x.vars)
	for i := range values {
		switch d := n.Pipe.Decl; len(d) {
		case 1:
			x.vars = append(x.vars, variable{d[0].Ident[0], values[i]})
		case 2:
			x.vars = append(x.vars, variable{d[0].Ident[0], keys[i]}, variable{d[1].Ident[0], values[i]})
		}
		if err := x.list(n.List, values[i]); err != nil {
			return err
		}
		x.vars = x.vars[:mark]
	}
	return nil
}

func (x *execution) pipe(p *parse.PipeNode, dot reflect.Value) (reflect.Value, error) {
	if len(p.Cmds) != 1 {
		return reflect.Value{}, fmt.Errorf("%s: templates here have no pipelines", p)
	}
	v, err := x.command(p.Cmds[0], dot)
	if err != nil {
		return v, fmt.Errorf("%s: %w", p, err)
	}
	return v, nil
}

func (x *execution) command(c *parse.CommandNode, dot reflect.Value) (reflect.Value, error) {
	var args []reflect.Value
	for _, a := range c.Args[1:] {
		v, err := x.argument(a, dot, nil)
		if err != nil {
			return v, err
		}
		args = append(args, v)
	}
	if f, ok := c.Args[0].(*parse.IdentifierNode); ok { // eq or printf: there are no others
		if len(args) < 2 {
			return reflect.Value{}, fmt.Errorf("%s needs two values", f.Ident)
		}
		if f.Ident == "eq" {
			return reflect.ValueOf(plainValue(args[0]) == plainValue(args[1])), nil
		}
		return reflect.ValueOf(fmt.Sprintf(fmt.Sprint(plainValue(args[0])), plainValues(args[1:])...)), nil
	}
	return x.argument(c.Args[0], dot, args)
}

func (x *execution) argument(n parse.Node, dot reflect.Value, args []reflect.Value) (reflect.Value, error) {
	switch n := n.(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.StringNode:
		return reflect.ValueOf(n.Text), nil
	case *parse.FieldNode:
		return follow(dot, n.Ident, args)
	case *parse.VariableNode:
		for i := len(x.vars) - 1; i >= 0; i-- {
			if x.vars[i].name == n.Ident[0] {
				return follow(x.vars[i].value, n.Ident[1:], args)
			}
		}
		return reflect.Value{}, errors.New("it is not set")
	case *parse.PipeNode:
		return x.pipe(n, dot)
	}
	return reflect.Value{}, fmt.Errorf("templates here have no %q", n)
}

// follow goes along fields; the last may be a method of the project.
func follow(v reflect.Value, names []string, args []reflect.Value) (reflect.Value, error) {
	for i, name := range names {
		if p, ok := plainValue(v).(*Project); ok && methods[name] != nil {
			var given []any
			if i == len(names)-1 {
				given, args = plainValues(args), nil
			}
			out, err := methods[name](p, given)
			if err != nil {
				return reflect.Value{}, err
			}
			v = reflect.ValueOf(out)
			continue
		}
		s := behind(v)
		switch s.Kind() {
		case reflect.Struct:
			v = s.FieldByName(name)
		case reflect.Map:
			v = s.MapIndex(reflect.ValueOf(name))
			if !v.IsValid() {
				v = reflect.Zero(s.Type().Elem())
			}
		default:
			v = reflect.Value{}
		}
		if !v.IsValid() {
			return v, fmt.Errorf("there is no %s", name)
		}
	}
	if len(args) > 0 {
		return v, errors.New("it takes no arguments")
	}
	return v, nil
}

// behind is what pointers and interfaces lead to.
func behind(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer || v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	return v
}

func plainValue(v reflect.Value) any {
	if !v.IsValid() {
		return nil
	}
	return v.Interface()
}

func plainValues(values []reflect.Value) (all []any) {
	for _, v := range values {
		all = append(all, plainValue(v))
	}
	return all
}

// truth is false of what is empty.
func truth(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Invalid:
		return false
	case reflect.Slice, reflect.Map, reflect.String, reflect.Array:
		return v.Len() > 0
	case reflect.Struct:
		return true
	}
	return !v.IsZero()
}
