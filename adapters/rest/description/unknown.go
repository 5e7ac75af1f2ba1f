package description

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// maxUnknown bounds how many fields are told of that aren't known.
const maxUnknown = 20

// unknown finds fields that the form doesn't have, and times that are none, each with its line.
func unknown(root ast.Node) []Problem {
	var problems []Problem
	add := func(n ast.Node, path, format string, args ...any) {
		if len(problems) < maxUnknown {
			problems = append(problems, Problem{Line: n.GetToken().Position.Line, Path: path, Message: fmt.Sprintf(format, args...)})
		}
	}
	var walk func(n ast.Node, typ reflect.Type, path string)
	walk = func(n ast.Node, typ reflect.Type, path string) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if a, ok := n.(*ast.AnchorNode); ok {
			n = a.Value
		}
		if typ == expressionType || typ == templateType {
			return
		}
		if typ == reflect.TypeFor[Duration]() {
			if v, ok := n.(ast.ScalarNode); ok {
				if d, err := time.ParseDuration(fmt.Sprint(v.GetValue())); err != nil || d <= 0 {
					add(n, path, "%q is not a time such as 30s or 5m", fmt.Sprint(v.GetValue()))
				}
			}
			return
		}
		switch typ.Kind() {
		case reflect.Slice:
			if list, ok := n.(*ast.SequenceNode); ok {
				for i, v := range list.Values {
					walk(v, typ.Elem(), fmt.Sprintf("%s[%d]", path, i))
				}
			}
		case reflect.Map, reflect.Struct:
			m, ok := n.(ast.MapNode)
			if !ok {
				return
			}
			var names []string
			known := map[string]reflect.Type{}
			if typ.Kind() == reflect.Struct {
				names = members(typ, known)
			}
			for entries := m.MapRange(); entries.Next(); {
				if entries.Key().IsMergeKey() {
					continue
				}
				name := entries.Key().GetToken().Value
				at := path + "." + name
				switch t, ok := known[name]; {
				case typ.Kind() == reflect.Map:
					walk(entries.Value(), typ.Elem(), at)
				case ok:
					walk(entries.Value(), t, at)
				default:
					hint := near(name, names)
					if hint == "" {
						hint = "; it is one of " + strings.Join(names, ", ")
					}
					add(entries.Key(), at, "unknown field %q%s", name, hint)
				}
			}
		}
	}
	walk(root, reflect.TypeFor[Description](), "$")
	return problems
}

// members are the names of a struct's fields, in their order; those of its inlined structs are among them.
func members(typ reflect.Type, types map[string]reflect.Type) (names []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case strings.Contains(options, "inline"):
			names = append(names, members(f.Type, types)...)
		case name != "":
			types[name] = f.Type
			names = append(names, name)
		}
	}
	return names
}
