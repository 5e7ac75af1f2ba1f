package description

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

// Expression is CEL, or JSONPath into body (into job or item where there is no
// body) if it begins with "$.".
type Expression struct {
	source string
	*expr.Expr
}

// UnmarshalYAML keeps the source; it is compiled when the place is known.
func (x *Expression) UnmarshalYAML(decode func(any) error) error { return decode(&x.source) }

// Source is the expression as written; "" if there is none.
func (x Expression) Source() string { return x.source }

// Given tells whether there is one.
func (x Expression) Given() bool { return x.source != "" }

// Template is a value with ${…} in it.
type Template struct {
	raw   any
	given bool
	tpl   *expr.Template
}

// UnmarshalYAML keeps the value; it is compiled when the place is known.
func (t *Template) UnmarshalYAML(decode func(any) error) error {
	t.given = true
	return decode(&t.raw)
}

// Given tells whether there is one.
func (t Template) Given() bool { return t.given }

// Raw is the value as written.
func (t Template) Raw() any { return t.raw }

// Compiled is its compiled form; nil if there is none.
func (t Template) Compiled() *expr.Template { return t.tpl }

// Render gives the value; nil if there is none.
func (t Template) Render(ctx context.Context, vars map[string]any) (any, error) {
	if t.tpl == nil {
		return nil, nil
	}
	return t.tpl.Render(ctx, vars)
}

// Text gives the value as text; "" if there is none.
func (t Template) Text(ctx context.Context, vars map[string]any) (string, error) {
	v, err := t.Render(ctx, vars)
	return expr.Text(v), err
}

// Duration is a time as specs have it: "30s", "5m".
type Duration time.Duration

// UnmarshalYAML reads it.
func (d *Duration) UnmarshalYAML(decode func(any) error) error {
	var s string
	if err := decode(&s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil || v <= 0 {
		return pcm.Errorf(pcm.Invalid, "%q is not a time such as 30s or 5m", s)
	}
	*d = Duration(v)
	return nil
}
