package generate

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// Field is one of a structure's, as code.
type Field struct {
	Name  string // as the form has it: exit_code
	Go    string // as Go has it: ExitCode; for what is inlined, the type
	Value string
}

// describe makes the description's sections into code. What a language can't say
// is refused, with the line.
func (p *Project) describe(o Options, lang *language) error {
	d := reflect.ValueOf(p.Description).Elem()
	for i := range d.NumField() {
		f := d.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if d.Field(i).IsZero() || slices.Contains([]string{"pcm", "name", "about", "homepage", "openapi", "lacks", "bridge"}, name) {
			continue
		}
		code, err := p.code(lang, d.Field(i), "$."+name)
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "%s: %w", o.FromFile, err)
		}
		p.sections[name] = code
	}
	p.Scripted = strings.Contains(string(o.From), "task.script")
	return nil
}

// code writes a value of the description in the language.
func (p *Project) code(lang *language, v reflect.Value, path string) (string, error) {
	switch x := v.Interface().(type) {
	case description.Template:
		return p.function(x, x.Given(), path)
	case description.Expression:
		return p.function(x, x.Given(), path)
	case description.Duration:
		return p.emitter.Int(int64(x) / 1e6), nil // milliseconds
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return p.emitter.Null, nil
		}
		inner, err := p.code(lang, v.Elem(), path)
		return lang.pointer(v.Type().Elem(), inner), err
	case reflect.Struct:
		fields, err := p.fields(lang, v, path)
		if err != nil {
			return "", err
		}
		return lang.structure(v.Type(), fields), nil
	case reflect.Slice:
		items := make([]string, v.Len())
		for i := range items {
			item, err := p.code(lang, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
			if err != nil {
				return "", err
			}
			items[i] = item
		}
		return lang.slice(v.Type(), items), nil
	case reflect.Map:
		var keys, values []string
		for _, k := range slices.Sorted(func(yield func(string) bool) {
			for _, k := range v.MapKeys() {
				if !yield(k.String()) {
					return
				}
			}
		}) {
			value, err := p.code(lang, v.MapIndex(reflect.ValueOf(k)), path+"."+k)
			if err != nil {
				return "", err
			}
			keys, values = append(keys, p.emitter.Text(k)), append(values, value)
		}
		return lang.dict(v.Type(), keys, values), nil
	case reflect.String:
		return p.emitter.Text(v.String()), nil
	case reflect.Int:
		return lang.number(v.Int()), nil
	case reflect.Float64:
		return p.emitter.Float(v.Float()), nil
	case reflect.Bool:
		return p.emitter.plain(v.Bool())
	case reflect.Interface:
		return p.emitter.plain(v.Interface())
	}
	return "", pcm.Errorf(pcm.Internal, "%s: a %s can't be written", path, v.Type())
}

func (p *Project) fields(lang *language, v reflect.Value, path string) (fields []Field, err error) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if v.Field(i).IsZero() || f.Type == reflect.TypeFor[*description.Many]() { // see Report.Omitted
			continue
		}
		if f.Anonymous && !lang.embeds {
			inner, err := p.fields(lang, v.Field(i), path)
			if err != nil {
				return nil, err
			}
			fields = append(fields, inner...)
			continue
		}
		at := path
		if name != "" {
			at += "." + name
		}
		value, err := "", error(nil)
		if r, ok := v.Interface().(description.Request); ok && name == "path" {
			value, err = p.path(r.Path, at)
		} else {
			value, err = p.code(lang, v.Field(i), at)
		}
		if err != nil {
			return nil, err
		}
		fields = append(fields, Field{name, f.Name, value})
	}
	return fields, nil
}

// function is what gives the value of a template or expression.
func (p *Project) function(x any, given bool, path string) (string, error) {
	if !given {
		return p.emitter.Null, nil
	}
	value, err := p.emitter.value(x)
	if t, ok := x.(description.Template); ok && err == nil && slices.ContainsFunc(t.Compiled().Exprs(), func(x *expr.Expr) bool { return slices.Contains(x.Refs(), "task.script_url") }) {
		err = pcm.Errorf(pcm.Invalid, "projects bring no scripts to the store: say task.script instead of task.script_url")
	}
	if err != nil {
		return "", pcm.Errorf(pcm.Invalid, "%s: %w", strings.TrimPrefix(path, "$."), err)
	}
	return p.emitter.Lambda([]string{""}, value), nil
}

// path is a template in which what expressions give is one segment, whatever is in it.
func (p *Project) path(t description.Template, at string) (string, error) {
	if t.Compiled() == nil {
		return p.emitter.Null, nil
	}
	parts, ok := t.Compiled().Value().([]any)
	if !ok {
		parts = []any{t.Compiled().Value()}
	}
	var out []string
	for _, part := range parts {
		x, ok := part.(*expr.Expr)
		if !ok {
			out = append(out, p.emitter.Text(expr.Text(part)))
			continue
		}
		code, err := p.emitter.expression(x)
		if err != nil {
			return "", pcm.Errorf(pcm.Invalid, "%s: %w", strings.TrimPrefix(at, "$."), err)
		}
		out = append(out, call("escape", code))
	}
	return p.emitter.Lambda([]string{""}, call("concat", out...)), nil
}
