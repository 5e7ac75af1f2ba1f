package main

// What the expressions of descriptions are made of: values as JSON has them, whole
// numbers as int64. A field that is missing ends the expression by panic; see catch.

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Vars are what expressions speak of, by name.
type Vars map[string]any

// Value is what a template or an expression gives.
type Value func(v Vars) any

type fault struct{ text string }

func (f fault) Error() string { return f.text }

func wrong(format string, args ...any) any { panic(fault{fmt.Sprintf(format, args...)}) }

// catch makes an error of an expression that found no value.
func catch(err *error) {
	if r := recover(); r != nil {
		f, ok := r.(error) // a fault, or a value of another type than the expression takes
		if !ok {
			panic(r)
		}
		*err = f
	}
}

// eval gives the value; nothing if there is no expression.
func (x Value) eval(v Vars) (out any, err error) {
	if x == nil {
		return nil, nil
	}
	defer catch(&err)
	out = plain(x(v))
	return out, err
}

// text gives the value as text.
func (x Value) text(v Vars) (string, error) {
	out, err := x.eval(v)
	return asText(out), err
}

func (v Vars) with(more Vars) Vars {
	all := make(Vars, len(v)+len(more))
	for k, x := range v {
		all[k] = x
	}
	for k, x := range more {
		all[k] = x
	}
	return all
}

// Optional is a value, or none.
type Optional struct {
	value any
	has   bool
}

type keptNull struct{}

// nothing is a null that is written out; others are left out of lists and objects.
func nothing() any { return keptNull{} }

// plain turns optionals into what they hold.
func plain(x any) any {
	switch x := x.(type) {
	case Optional:
		if !x.has {
			return nil
		}
		return plain(x.value)
	case keptNull:
		return nil
	case int:
		return int64(x)
	case json.Number:
		if i, err := x.Int64(); err == nil {
			return i
		}
		f, _ := x.Float64()
		return f
	case []any:
		for i := range x {
			x[i] = plain(x[i])
		}
	case map[string]any:
		for k := range x {
			x[k] = plain(x[k])
		}
	}
	return x
}

func asText(x any) string {
	switch x := plain(x).(type) {
	case nil:
		return ""
	case string:
		return x
	case []any, map[string]any:
		return encode(x)
	default:
		return fmt.Sprint(x)
	}
}

func encode(x any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(x); err != nil {
		return fmt.Sprint(x)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func find(x, key any) (any, bool) {
	if o, ok := key.(Optional); ok {
		key = o.value
	}
	switch x := x.(type) {
	case map[string]any:
		v, ok := x[asText(key)]
		return v, ok
	case []any:
		if i, ok := key.(int64); ok && i >= 0 && int(i) < len(x) {
			return x[i], true
		}
	}
	return nil, false
}

// get takes fields, of which none may be missing.
func get(x any, names ...string) any {
	for _, name := range names {
		x = at(x, name)
	}
	return x
}

func at(x, key any) any {
	if o, ok := x.(Optional); ok {
		return opt(o, key)
	}
	v, ok := find(x, key)
	if !ok {
		return wrong("there is no %s", asText(key))
	}
	return v
}

func opt(x, key any) any {
	if o, ok := x.(Optional); ok {
		if !o.has {
			return o
		}
		x = o.value
	}
	v, ok := find(x, key)
	return Optional{v, ok}
}

func has(x any, name string) any {
	if o, ok := x.(Optional); ok {
		x = o.value
	}
	_, ok := find(x, name)
	return ok
}

// path follows a JSONPath to one value; nothing if there is none.
func path(x any, steps ...any) any {
	for _, s := range steps {
		if i, ok := s.(int64); ok && i < 0 {
			if l, isList := x.([]any); isList {
				s = i + int64(len(l))
			}
		}
		v, ok := find(x, s)
		if !ok {
			return nil
		}
		x = v
	}
	return x
}

// paths follows one with wildcards, which are nil.
func paths(x any, steps ...any) any {
	found := []any{x}
	for _, s := range steps {
		var next []any
		for _, f := range found {
			if s != nil {
				if v, ok := find(f, s); ok {
					next = append(next, v)
				}
				continue
			}
			switch f := f.(type) {
			case []any:
				next = append(next, f...)
			case map[string]any:
				for _, k := range sortedKeys(f) {
					next = append(next, f[k])
				}
			}
		}
		found = next
	}
	return slices.Clip(append([]any{}, found...))
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// concat is a text from parts, list and object what is not nothing of theirs.
func concat(parts ...any) any {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(asText(p))
	}
	return b.String()
}

func list(items ...any) any {
	all := []any{}
	for _, x := range items {
		if plain(x) != nil || x == (keptNull{}) {
			all = append(all, plain(x))
		}
	}
	return all
}

func object(pairs ...any) any {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if x := pairs[i+1]; plain(x) != nil || x == (keptNull{}) {
			m[pairs[i].(string)] = plain(x)
		}
	}
	return m
}

func mapOf(pairs ...any) any {
	m := map[string]any{}
	for i := 0; i+1 < len(pairs); i += 2 {
		m[asText(pairs[i])] = plain(pairs[i+1])
	}
	return m
}

func present(items []any) any {
	all := []any{}
	for _, x := range items {
		if o := x.(Optional); o.has {
			all = append(all, o.value)
		}
	}
	return all
}

func truth(x any) bool {
	b, ok := x.(bool)
	if !ok {
		wrong("%s is not true or false", asText(x))
	}
	return b
}

func choose(cond any, then, otherwise func() any) any {
	if truth(cond) {
		return then()
	}
	return otherwise()
}

func both(a, b func() any) any   { return truth(a()) && truth(b()) }
func either(a, b func() any) any { return truth(a()) || truth(b()) }
func negate(x any) any           { return !truth(x) }

func fold(over, accu any, cond, step func(accu, x any) any, result func(accu any) any) any {
	var items []any
	switch o := over.(type) {
	case []any:
		items = o
	case map[string]any:
		for _, k := range sortedKeys(o) {
			items = append(items, k)
		}
	default:
		wrong("%s is neither list nor map", asText(over))
	}
	for _, x := range items {
		if !truth(cond(accu, x)) {
			break
		}
		accu = step(accu, x)
	}
	return result(accu)
}

func number(x any) (float64, bool) {
	switch x := x.(type) {
	case int64:
		return float64(x), true
	case float64:
		return x, true
	}
	return 0, false
}

func eq(a, b any) any {
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			return x == y
		}
	}
	return reflect.DeepEqual(a, b)
}

func ne(a, b any) any { return !truth(eq(a, b)) }

func order(a, b any) int {
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		}
	}
	x, ok1 := a.(string)
	y, ok2 := b.(string)
	if !ok1 || !ok2 {
		wrong("%s and %s can't be compared", asText(a), asText(b))
	}
	return strings.Compare(x, y)
}

func lt(a, b any) any { return order(a, b) < 0 }
func le(a, b any) any { return order(a, b) <= 0 }
func gt(a, b any) any { return order(a, b) > 0 }
func ge(a, b any) any { return order(a, b) >= 0 }

func add(a, b any) any {
	switch x := a.(type) {
	case string:
		if y, ok := b.(string); ok {
			return x + y
		}
	case []any:
		if y, ok := b.([]any); ok {
			return append(slices.Clone(x), y...)
		}
	}
	return calculate(a, b, '+')
}

func sub(a, b any) any { return calculate(a, b, '-') }
func mul(a, b any) any { return calculate(a, b, '*') }
func div(a, b any) any { return calculate(a, b, '/') }
func mod(a, b any) any { return calculate(a, b, '%') }
func minus(x any) any  { return calculate(int64(0), x, '-') }

func calculate(a, b any, op byte) any {
	i, ok1 := a.(int64)
	j, ok2 := b.(int64)
	if ok1 && ok2 {
		switch {
		case op == '+':
			return i + j
		case op == '-':
			return i - j
		case op == '*':
			return i * j
		case j == 0:
			return wrong("division by zero")
		case op == '/':
			return i / j
		}
		return i % j
	}
	x, ok1 := number(a)
	y, ok2 := number(b)
	if !ok1 || !ok2 || op == '%' {
		return wrong("%s %c %s can't be calculated", asText(a), op, asText(b))
	}
	switch op {
	case '+':
		return x + y
	case '-':
		return x - y
	case '*':
		return x * y
	}
	return x / y
}

func within(x, in any) any {
	switch l := in.(type) {
	case []any:
		return slices.ContainsFunc(l, func(y any) bool { return truth(eq(x, y)) })
	case map[string]any:
		_, ok := l[asText(x)]
		return ok
	}
	return wrong("%s is neither list nor map", asText(in))
}

func str(x any) string {
	s, ok := x.(string)
	if !ok {
		wrong("%s is not a text", asText(x))
	}
	return s
}

func fSize(x any) any {
	switch x := x.(type) {
	case string:
		return int64(len([]rune(x)))
	case []any:
		return int64(len(x))
	case map[string]any:
		return int64(len(x))
	}
	return wrong("%s has no size", asText(x))
}

func fContains(s, t any) any   { return strings.Contains(str(s), str(t)) }
func fStartsWith(s, t any) any { return strings.HasPrefix(str(s), str(t)) }
func fEndsWith(s, t any) any   { return strings.HasSuffix(str(s), str(t)) }

func fMatches(s, pattern any) any {
	re, err := regexp.Compile(str(pattern))
	if err != nil {
		wrong("%v", err)
	}
	return re.MatchString(str(s))
}

func fInt(x any) any {
	switch x := x.(type) {
	case int64:
		return x
	case float64:
		if x == math.Trunc(x) || !math.IsInf(x, 0) && !math.IsNaN(x) {
			return int64(x)
		}
	case string:
		if i, err := strconv.ParseInt(x, 10, 64); err == nil {
			return i
		}
	}
	return wrong("%s is not a whole number", asText(x))
}

func fUint(x any) any { return fInt(x) }

func fDouble(x any) any {
	if f, ok := number(x); ok {
		return f
	}
	f, err := strconv.ParseFloat(str(x), 64)
	if err != nil {
		wrong("%s is not a number", asText(x))
	}
	return f
}

func fString(x any) any { return asText(x) }
func fDyn(x any) any    { return x }

func fBool(x any) any {
	switch asText(x) {
	case "true":
		return true
	case "false":
		return false
	}
	return wrong("%s is not true or false", asText(x))
}

func fOptionalOf(x any) any { return Optional{x, true} }
func fOptionalNone() any    { return Optional{} }
func fHasValue(x any) any   { return x.(Optional).has }
func fOptionalOfNonZeroValue(x any) any {
	switch asText(x) {
	case "", "0", "false", "[]", "{}":
		return Optional{}
	}
	return Optional{x, true}
}

func fValue(x any) any {
	if o := x.(Optional); o.has {
		return o.value
	}
	return wrong("there is no value")
}

func fOrValue(x, otherwise any) any {
	if o := x.(Optional); o.has {
		return o.value
	}
	return otherwise
}

func fOr(x, otherwise any) any {
	if o := x.(Optional); o.has {
		return o
	}
	return otherwise
}

func fSplit(s, sep any) any {
	parts := []any{}
	for _, p := range strings.Split(str(s), str(sep)) {
		parts = append(parts, p)
	}
	return parts
}

func items(x any) []any {
	l, ok := x.([]any)
	if !ok {
		wrong("%s is not a list", asText(x))
	}
	return l
}

func fJoin(l, sep any) any {
	var parts []string
	for _, p := range items(l) {
		parts = append(parts, asText(p))
	}
	return strings.Join(parts, str(sep))
}

func fReplace(s, from, to any) any { return strings.ReplaceAll(str(s), str(from), str(to)) }
func fLower(s any) any             { return strings.ToLower(str(s)) }
func fUpper(s any) any             { return strings.ToUpper(str(s)) }
func fTrim(s any) any              { return strings.TrimSpace(str(s)) }
func fBase64(s any) any            { return base64.StdEncoding.EncodeToString([]byte(str(s))) }

func fUnbase64(s any) any {
	data, err := base64.StdEncoding.DecodeString(str(s))
	if err != nil {
		wrong("%v", err)
	}
	return string(data)
}

func fJson(x any) any { return encode(plain(x)) }

func fShell(x any) any {
	l, ok := x.([]any)
	if !ok {
		l = []any{x}
	}
	var words []string
	for _, w := range l {
		words = append(words, "'"+strings.ReplaceAll(asText(w), "'", `'\''`)+"'")
	}
	return strings.Join(words, " ")
}

func fCeildiv(a, b any) any {
	x, ok1 := a.(int64)
	y, ok2 := b.(int64)
	if !ok1 || !ok2 || y <= 0 {
		return wrong("ceildiv needs whole numbers, the second over 0")
	}
	q := x / y
	if x%y > 0 {
		q++
	}
	return q
}

func fLeast(l any) any {
	var least any
	for _, x := range items(l) {
		if least == nil || order(x, least) < 0 {
			least = x
		}
	}
	if least == nil {
		wrong("least needs a list that is not empty")
	}
	return least
}
