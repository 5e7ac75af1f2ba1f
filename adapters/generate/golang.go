package generate

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm/adapters/rest/description"
)

var golang = &language{
	Syntax: Syntax{
		Null: "nil", True: "true", False: "false",
		Int: func(i int64) string { return fmt.Sprintf("int64(%d)", i) },
		Float: func(f float64) string {
			s := strconv.FormatFloat(f, 'g', -1, 64)
			if !strings.ContainsAny(s, ".e") {
				s += ".0"
			}
			return s
		},
		Text: goText,
		List: func(items []string) string { return "[]any{" + strings.Join(items, ", ") + "}" },
		Map: func(keys, values []string) string {
			var parts []string
			for i := range keys {
				parts = append(parts, keys[i]+", "+values[i])
			}
			return "mapOf(" + strings.Join(parts, ", ") + ")"
		},
		Lambda: func(params []string, body string) string {
			switch {
			case len(params) == 0:
				return "func() any { return " + body + " }"
			case params[0] == "": // of what the description speaks of
				return "func(v Vars) any { return " + body + " }"
			}
			return "func(" + strings.Join(params, ", ") + " any) any { return " + body + " }"
		},
		If: func(cond, then, otherwise string) string {
			return "choose(" + cond + ", func() any { return " + then + " }, func() any { return " + otherwise + " })"
		},
		Var:   func(name string) string { return "v[" + strconv.Quote(name) + "]" },
		Local: func(name string) string { return "x_" + strings.NewReplacer("@", "", "#", "").Replace(name) },
	},
	client: &clientSyntax{quote: strconv.Quote, pair: func(key, value string) string { return key + ": " + value }, name: camel, taken: goTaken, schema: goSchema},
	embeds: true,
	structure: func(t reflect.Type, fields []Field) string {
		var b strings.Builder
		b.WriteString(t.Name() + "{\n")
		for _, f := range fields {
			b.WriteString(f.Go + ": " + f.Value + ",\n")
		}
		return b.String() + "}"
	},
	slice: func(t reflect.Type, items []string) string {
		return goType(t) + "{" + strings.Join(items, ", ") + "}"
	},
	dict: func(t reflect.Type, keys, values []string) string {
		var b strings.Builder
		b.WriteString(goType(t) + "{\n")
		for i := range keys {
			b.WriteString(keys[i] + ": " + values[i] + ",\n")
		}
		return b.String() + "}"
	},
	pointer: func(t reflect.Type, inner string) string {
		if t.Kind() == reflect.Bool {
			return "yes(" + inner + ")"
		}
		return "&" + inner
	},
	number: func(i int64) string { return strconv.FormatInt(i, 10) },
	stubs: map[string]string{
		"adapter.proto": "adapter.proto", "pluginpb/adapter.pb.go": "pluginpb/adapter.pb.go", "plugingrpc/adapter_grpc.pb.go": "plugingrpc/adapter_grpc.pb.go",
	},
	stub: func(p *Project, text []byte) []byte {
		text = bytes.ReplaceAll(text, []byte(`"github.com/jointcloud/pcm/adapters/plugin/pluginpb"`), []byte(strconv.Quote(p.Package+"/pluginpb")))
		if sorted, err := gofmt(text); err == nil { // the import has another place now; the contract is no Go
			return sorted
		}
		return text
	},
	format: func(path string, text []byte) ([]byte, error) {
		if !strings.HasSuffix(path, ".go") {
			return text, nil
		}
		return gofmt(text)
	},
}

// goTaken are words of Go, and what a client has beside its calls.
const goTaken = `
break case chan const continue default defer else fallthrough for func go goto if import interface map package
range return select struct switch type var init base server cfg login sign show check call calls failed redact http
`

// goSchema: what calls take and give in Go is as JSON has it.
func goSchema(*Project, description.Schema, func(int) string) string { return "any" }

// goText is a text over several lines as such, where it can be: no line of it may
// pass for the mark of a region.
func goText(s string) string {
	if strings.Count(s, "\n") > 1 && !strings.ContainsAny(s, "`\r\x00") && !strings.Contains(s, beginMark) && !strings.Contains(s, endMark) {
		return "`" + s + "`"
	}
	return strconv.Quote(s)
}

func goType(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[description.Template](), reflect.TypeFor[description.Expression]():
		return "Value"
	}
	switch t.Kind() {
	case reflect.Slice:
		return "[]" + goType(t.Elem())
	case reflect.Map:
		return "map[string]" + goType(t.Elem())
	case reflect.Interface:
		return "any"
	}
	return t.Name()
}
