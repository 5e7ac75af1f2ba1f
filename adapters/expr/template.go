package expr

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/jointcloud/pcm"
)

// Template is a value as YAML or JSON has it, in whose texts ${EXPRESSION} stands
// for what the expression gives. A text that is nothing but one ${…} becomes the
// value itself, of whatever type; elements of lists and maps that become nothing
// (null, or an optional that has no value) are left out. $${ stands for ${ itself.
type Template struct {
	value any // []*Template, map[string]*Template, *Expr, concat, or any other literal
}

type concat []any // string or *Expr

// Template compiles a value of maps with text keys, lists, texts, numbers, booleans and nil.
func (e *Env) Template(v any) (*Template, error) {
	switch v := v.(type) {
	case string:
		return e.textTemplate(v)
	case []any:
		list := make([]*Template, len(v))
		for i, x := range v {
			t, err := e.Template(x)
			if err != nil {
				return nil, pcm.Errorf(pcm.Invalid, "[%d]: %w", i, err)
			}
			list[i] = t
		}
		return &Template{list}, nil
	case map[string]any:
		m := make(map[string]*Template, len(v))
		for k, x := range v {
			t, err := e.Template(x)
			if err != nil {
				return nil, pcm.Errorf(pcm.Invalid, "%s: %w", k, err)
			}
			m[k] = t
		}
		return &Template{m}, nil
	}
	return &Template{v}, nil
}

func (e *Env) textTemplate(s string) (*Template, error) {
	var parts concat
	var literal strings.Builder
	for len(s) > 0 {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			literal.WriteString(s)
			break
		}
		literal.WriteString(s[:i])
		s = s[i:]
		switch {
		case strings.HasPrefix(s, "$${"):
			literal.WriteString("${")
			s = s[3:]
		case strings.HasPrefix(s, "${"):
			end := closing(s[2:])
			if end < 0 {
				return nil, pcm.Errorf(pcm.Invalid, "%q has no closing brace", short(s))
			}
			x, err := e.Compile(s[2 : 2+end])
			if err != nil {
				return nil, err
			}
			if literal.Len() > 0 {
				parts = append(parts, literal.String())
				literal.Reset()
			}
			parts = append(parts, x)
			s = s[2+end+1:]
		default:
			literal.WriteByte('$')
			s = s[1:]
		}
	}
	if literal.Len() > 0 {
		parts = append(parts, literal.String())
	}
	switch {
	case len(parts) == 0:
		return &Template{""}, nil
	case len(parts) == 1:
		return &Template{parts[0]}, nil
	}
	return &Template{parts}, nil
}

// closing finds the brace that ends an expression; braces in it and its texts don't.
func closing(s string) int {
	depth := 0
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == '\\' {
				i++
			} else if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '{':
			depth++
		case c == '}':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}

// Render gives the value with each expression evaluated.
func (t *Template) Render(ctx context.Context, vars map[string]any) (any, error) {
	switch v := t.value.(type) {
	case *Expr:
		return v.Eval(ctx, vars)
	case concat:
		var b strings.Builder
		for _, p := range v {
			if s, ok := p.(string); ok {
				b.WriteString(s)
				continue
			}
			x, err := p.(*Expr).Eval(ctx, vars)
			if err != nil {
				return nil, err
			}
			b.WriteString(Text(x))
			if b.Len() > MaxText {
				return nil, pcm.Errorf(pcm.TooLarge, "the text is over %d bytes", MaxText)
			}
		}
		return b.String(), nil
	case []*Template:
		list := []any{}
		for i, e := range v {
			x, err := e.Render(ctx, vars)
			if err != nil {
				return nil, pcm.Errorf(pcm.Invalid, "[%d]: %w", i, err)
			}
			if x != nil || e.value == nil {
				list = append(list, x)
			}
		}
		return list, nil
	case map[string]*Template:
		m := map[string]any{}
		for k, e := range v {
			x, err := e.Render(ctx, vars)
			if err != nil {
				return nil, pcm.Errorf(pcm.Invalid, "%s: %w", k, err)
			}
			if x != nil || e.value == nil {
				m[k] = x
			}
		}
		return m, nil
	}
	return t.value, nil
}

// Text is Render of what stands in a text, such as a URL.
func (t *Template) Text(ctx context.Context, vars map[string]any) (string, error) {
	v, err := t.Render(ctx, vars)
	if err != nil {
		return "", err
	}
	return Text(v), nil
}

// Value is what the template is made of: *Expr, []any of texts and *Expr
// (concatenated), []*Template, map[string]*Template, or a literal.
func (t *Template) Value() any {
	if c, ok := t.value.(concat); ok {
		return []any(c)
	}
	return t.value
}

// Plain turns what encoding/json decoded with UseNumber into plain values: whole
// numbers that fit become int64, others float64.
func Plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, _ := v.Float64()
		return f
	case int:
		return int64(v)
	case []any:
		for i := range v {
			v[i] = Plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = Plain(v[k])
		}
	}
	return v
}

func short(s string) string {
	if len(s) > 80 {
		return s[:77] + "…"
	}
	return s
}
