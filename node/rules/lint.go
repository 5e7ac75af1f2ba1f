package rules

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

// Finding is what is wrong with rules, or odd about them.
type Finding struct {
	Field   string // path like "rules[0].accept"
	Message string
	Warning bool // odd, but no fault
}

// Check makes rules ready, and tells what is wrong and what is odd about them. With
// a fault there is no set. Examples are run.
func Check(list []Rule) (Set, []Finding) {
	l := &linter{}
	if len(list) > MaxOwn {
		l.fault("rules", "%d rules are too many: at most %d", len(list), MaxOwn)
		return Set{}, l.found
	}
	var set Set
	names := map[string]int{}
	for i, r := range list {
		l.at = fmt.Sprintf("rules[%d]", i)
		p, field, err := r.terse()
		if err != nil {
			l.fault(field, "%v", err)
			continue
		}
		if first, twice := names[r.Name]; twice {
			l.fault("name", "rules[%d] is called %s too", first, r.Name)
			continue
		}
		names[r.Name] = i
		if l.rule(r, p) {
			l.examples(r, p)
		}
		if r.public() {
			set.Public = append(set.Public, p)
		} else {
			set.Private = append(set.Private, p)
		}
	}
	l.at = ""
	if !l.faulty() {
		if err := pcm.CheckRules(set.Public); err != nil {
			l.fault("rules", "%v", err)
		}
	}
	if l.faulty() {
		return Set{}, l.found
	}
	return set, l.found
}

// Faults are those findings that are no mere warnings, as one error; nil if there are none.
func Faults(found []Finding) error {
	for _, f := range found {
		if !f.Warning {
			return &pcm.FieldError{Field: f.Field, Err: pcm.Errorf(pcm.Invalid, "%s", f.Message)}
		}
	}
	return nil
}

type linter struct {
	at    string
	found []Finding
	book  Book
}

func (l *linter) path(field string) string { return strings.Trim(l.at+"."+field, ".") }

func (l *linter) fault(field, format string, args ...any) {
	l.found = append(l.found, Finding{l.path(field), fmt.Sprintf(format, args...), false})
}

func (l *linter) warn(field, format string, args ...any) {
	l.found = append(l.found, Finding{l.path(field), fmt.Sprintf(format, args...), true})
}

func (l *linter) faulty() bool {
	return slices.ContainsFunc(l.found, func(f Finding) bool { return !f.Warning })
}

// rule checks one rule's expressions. It tells whether they can be evaluated.
func (l *linter) rule(r Rule, p pcm.Rule) bool {
	before := len(l.found)
	for _, x := range []struct{ field, source string }{{"when", r.When}, {"accept", r.Accept}, {"data", r.Data}} {
		if x.source != "" {
			l.expression(r, x.field, x.source)
		}
	}
	if r.Reason != "" {
		if e := l.book.compiled(key{r.Reason, !r.public(), true}); e.err != nil {
			l.fault("reason", "%s", l.hint(r, e.err))
		} else {
			for _, x := range expressions(e.template) {
				l.uses(r, "reason", x)
			}
		}
		if r.Price != "" {
			l.warn("reason", "nobody is told why a price is asked for: it is of no use here")
		}
	} else if p.Accept != "" || p.Data != "" {
		l.warn("", "rule %s has no reason: buyers are told no more than its name", r.Name)
	}
	if len(r.Examples) == 0 {
		l.warn("", "rule %s has no examples: nothing shows that it says what you mean", r.Name)
	}
	return !slices.ContainsFunc(l.found[before:], func(f Finding) bool { return !f.Warning })
}

func (l *linter) expression(r Rule, field, source string) {
	e := l.book.compiled(key{source, !r.public(), false})
	if e.err != nil {
		l.fault(field, "%s", l.hint(r, e.err))
		return
	}
	l.uses(r, field, e.expr)
	if gives := l.gives(e.expr); gives != "" {
		l.fault(field, "%q gives %s, not true or false: it is no condition", source, gives)
		return
	}
	if len(e.expr.Uses()) > 0 {
		return
	}
	a := &asking{b: &l.book, private: !r.public(), vars: constants}
	if is, err := a.bool(source); err != nil {
		l.fault(field, "%v", err)
	} else {
		l.warn(field, "is always %v, whatever the job", is)
	}
}

// gives names what an expression gives that is not true or false, by its type, or
// else for one of the samples; "" if it is, or nobody knows.
func (l *linter) gives(x *expr.Expr) string {
	if never := x.Never(); never != "" {
		return never
	}
	for _, vars := range samples() {
		v, _, err := x.EvalCost(context.Background(), vars)
		if _, is := v.(bool); err == nil && !is {
			return expr.Kind(v)
		}
	}
	return ""
}

// samples are facts to try conditions on: all of them empty, and none.
var samples = sync.OnceValue(func() (all []map[string]any) {
	for _, f := range []any{Facts{}, filled(reflect.TypeFor[Facts]()).Interface()} {
		vars := maps.Clone(constants)
		maps.Copy(vars, Of(f))
		all = append(all, vars)
	}
	return all
})

// filled is a value of a type of which no part is empty, but for labels: what keys
// they have nobody knows.
func filled(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	switch t.Kind() {
	case reflect.Struct:
		for i := range t.NumField() {
			v.Field(i).Set(filled(t.Field(i).Type))
		}
	case reflect.Slice:
		v = reflect.Append(v, filled(t.Elem()))
	case reflect.String:
		v.SetString("sample")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Int, reflect.Int64:
		v.SetInt(1)
	}
	return v
}

// hint adds to an error of the compiler what its author may have meant.
func (l *linter) hint(r Rule, err error) string {
	text := err.Error()
	_, name, ok := strings.Cut(text, "undeclared reference to '")
	if !ok {
		return text
	}
	name, _, _ = strings.Cut(name, "'")
	if name == "time" {
		return text + ": only private rules may speak of time, since buyers don't know this peer's clock"
	}
	vars := publicVars
	if !r.public() {
		vars = privateVars
	}
	if near := pcm.Nearest(name, vars); near != "" {
		return text + "; did you mean " + near + "?"
	}
	return text + "; rules know " + strings.Join(vars, ", ")
}

// uses checks the fields that an expression mentions.
func (l *linter) uses(r Rule, field string, x *expr.Expr) {
	tested := map[string]bool{}
	for _, u := range x.Uses() {
		if u.Tested {
			tested[strings.Join(u.Path, ".")] = true
		}
	}
	for _, u := range x.Uses() {
		known, whole := fields[u.Path[0]], strings.Join(u.Path, ".")
		switch {
		case u.Path[0] == "peer" && r.Data == "":
			l.fault(field, "peer is known only to rules that say data: it is each peer with which a task's data are exchanged")
		case len(u.Path) > 1 && len(known) > 0 && !slices.Contains(known, u.Path[1]):
			if near := pcm.Nearest(u.Path[1], known); near != "" {
				l.fault(field, "%s has no field %s; did you mean %s?", u.Path[0], u.Path[1], near)
			} else {
				l.fault(field, "%s has no field %s, but %s", u.Path[0], u.Path[1], strings.Join(known, ", "))
			}
		case len(u.Path) > 2 && u.Path[1] == "labels" && !tested[whole]:
			l.warn(field, "refuses all that have no label %s: test it with has(%s)", u.Path[2], whole)
		}
	}
}

// expressions are those in a template of a text.
func expressions(t *expr.Template) (list []*expr.Expr) {
	parts, ok := t.Value().([]any)
	if !ok {
		parts = []any{t.Value()}
	}
	for _, p := range parts {
		if x, ok := p.(*expr.Expr); ok {
			list = append(list, x)
		}
	}
	return list
}

// examples runs those of one rule.
func (l *linter) examples(r Rule, p pcm.Rule) {
	if len(r.Examples) > maxExamples {
		l.fault("examples", "%d are too many: at most %d", len(r.Examples), maxExamples)
		return
	}
	for i, e := range r.Examples {
		at := fmt.Sprintf("examples[%d]", i)
		known := []string{"accept", "refuse"}
		switch {
		case r.Limit != nil:
			known = append(known, "full")
		case r.Price != "":
			known = []string{"accept", r.Price}
		}
		if !slices.Contains(known, strings.TrimSpace(e.Expect)) {
			l.fault(at+".expect", "%.40q is not what this rule can come to: %s", e.Expect, strings.Join(known, ", "))
			continue
		}
		if why := e.fails(&l.book, p, !r.public()); why != "" {
			l.fault(at, "%s", why)
		}
	}
}
