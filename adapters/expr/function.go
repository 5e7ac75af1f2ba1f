package expr

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

// Function describes one that expressions have beside CEL's own.
type Function struct {
	Name    string
	Member  bool // value.name(…) instead of name(value, …)
	Args    int  // the value itself included
	Meaning string
}

// Functions lists them all.
func Functions() []Function {
	list := make([]Function, len(table))
	for i, f := range table {
		list[i] = f.Function
	}
	return list
}

// MaxText bounds what a function makes.
const MaxText = 1 << 20

var table = []struct {
	Function
	call func(args []any) (any, error)
}{
	{Function{"split", true, 2, "the parts of a text between separators: \"a,b\".split(\",\")"}, func(a []any) (any, error) {
		s, sep, err := twoTexts(a)
		parts := []any{}
		for _, p := range strings.Split(s, sep) {
			parts = append(parts, p)
		}
		return parts, err
	}},
	{Function{"join", true, 2, "a list as one text: [\"a\", \"b\"].join(\",\")"}, func(a []any) (any, error) {
		list, ok1 := a[0].([]any)
		sep, ok2 := a[1].(string)
		if !ok1 || !ok2 {
			return nil, fmt.Errorf("join needs a list and a text, not %s and %s", Kind(a[0]), Kind(a[1]))
		}
		var parts []string
		for _, p := range list {
			parts = append(parts, Text(p))
		}
		return bounded(strings.Join(parts, sep))
	}},
	{Function{"replace", true, 3, "a text with each occurrence of one text replaced by another"}, func(a []any) (any, error) {
		s, from, err := twoTexts(a)
		to, ok := a[2].(string)
		if err != nil || !ok {
			return nil, fmt.Errorf("replace needs texts")
		}
		if n := strings.Count(s, from); n*len(to)+len(s) > MaxText {
			return nil, fmt.Errorf("the text is over %d bytes", MaxText)
		}
		return strings.ReplaceAll(s, from, to), nil
	}},
	{Function{"lower", true, 1, "a text in lower case"}, text(strings.ToLower)},
	{Function{"upper", true, 1, "a text in upper case"}, text(strings.ToUpper)},
	{Function{"trim", true, 1, "a text without white space around it"}, text(strings.TrimSpace)},
	{Function{"base64", false, 1, "a text in base64"}, text(func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) })},
	{Function{"unbase64", false, 1, "the text that base64 stands for"}, func(a []any) (any, error) {
		s, ok := a[0].(string)
		if !ok {
			return nil, fmt.Errorf("unbase64 needs a text, not %s", Kind(a[0]))
		}
		data, err := base64.StdEncoding.DecodeString(s)
		return string(data), err
	}},
	{Function{"json", false, 1, "a value as JSON, the keys of maps in order"}, func(a []any) (any, error) { return bounded(encode(a[0])) }},
	{Function{"shell", false, 1, "a text, or a list of words, quoted for a POSIX shell"}, func(a []any) (any, error) {
		list, ok := a[0].([]any)
		if !ok {
			list = a
		}
		var words []string
		for _, w := range list {
			words = append(words, "'"+strings.ReplaceAll(Text(w), "'", `'\''`)+"'")
		}
		return bounded(strings.Join(words, " "))
	}},
	{Function{"least", false, 1, "the least of a list of whole numbers: least([cores / 4, cards])"}, func(a []any) (any, error) {
		list, ok := a[0].([]any)
		if !ok || len(list) == 0 {
			return nil, fmt.Errorf("least needs a list of whole numbers, not %s", Kind(a[0]))
		}
		var least int64
		for i, v := range list {
			n, ok := v.(int64)
			if !ok {
				return nil, fmt.Errorf("least needs whole numbers, not %s", Kind(v))
			}
			if i == 0 || n < least {
				least = n
			}
		}
		return least, nil
	}},
	{Function{"ceildiv", false, 2, "the least whole number not under a/b, of whole numbers: bytes to MiB is ceildiv(task.memory, 1048576)"}, func(a []any) (any, error) {
		x, ok1 := a[0].(int64)
		y, ok2 := a[1].(int64)
		if !ok1 || !ok2 || y <= 0 {
			return nil, fmt.Errorf("ceildiv needs whole numbers, the second over 0")
		}
		q := x / y
		if x%y > 0 {
			q++
		}
		return q, nil
	}},
}

func text(f func(string) string) func([]any) (any, error) {
	return func(a []any) (any, error) {
		s, ok := a[0].(string)
		if !ok {
			return nil, fmt.Errorf("it needs a text, not %s", Kind(a[0]))
		}
		return bounded(f(s))
	}
}

func twoTexts(a []any) (string, string, error) {
	s, ok1 := a[0].(string)
	t, ok2 := a[1].(string)
	if !ok1 || !ok2 {
		return "", "", fmt.Errorf("it needs two texts, not %s and %s", Kind(a[0]), Kind(a[1]))
	}
	return s, t, nil
}

func bounded(s string) (any, error) {
	if len(s) > MaxText {
		return nil, fmt.Errorf("the text has %d bytes, over the bound of %d", len(s), MaxText)
	}
	return s, nil
}

// encode is a plain value as compact JSON.
func encode(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

func functions() (opts []cel.EnvOption) {
	for _, f := range table {
		var args []*cel.Type
		for range f.Args {
			args = append(args, cel.DynType)
		}
		binding := cel.FunctionBinding(func(vals ...ref.Val) ref.Val {
			plainArgs := make([]any, len(vals))
			for i, v := range vals {
				p, err := plain(v)
				if err != nil {
					return types.WrapErr(err)
				}
				plainArgs[i] = p
			}
			out, err := f.call(plainArgs)
			if err != nil {
				return types.NewErr("%s: %v", f.Name, err)
			}
			return types.DefaultTypeAdapter.NativeToValue(out)
		})
		if f.Member {
			opts = append(opts, cel.Function(f.Name, cel.MemberOverload("pcm_"+f.Name, args, cel.DynType, binding)))
		} else {
			opts = append(opts, cel.Function(f.Name, cel.Overload("pcm_"+f.Name, args, cel.DynType, binding)))
		}
	}
	return opts
}

// collection is a list or map of plain values. Keys of maps become texts.
func collection(v ref.Val) (any, error) {
	switch v := v.(type) {
	case traits.Lister:
		list := []any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			p, err := plain(it.Next())
			if err != nil {
				return nil, err
			}
			list = append(list, p)
		}
		return list, nil
	case traits.Mapper:
		m := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			k := it.Next()
			p, err := plain(v.Get(k))
			if err != nil {
				return nil, err
			}
			m[fmt.Sprint(k.Value())] = p
		}
		return m, nil
	}
	return nil, fmt.Errorf("a value of type %s can't be used here", v.Type().TypeName())
}
