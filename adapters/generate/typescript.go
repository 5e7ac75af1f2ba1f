package generate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/jointcloud/pcm/adapters/rest/description"
)

var typescript = &language{
	Syntax: Syntax{
		Null: "null", True: "true", False: "false",
		Int:   func(i int64) string { return strconv.FormatInt(i, 10) + "n" },
		Float: floating,
		Text:  jsonText,
		List:  func(items []string) string { return "[" + strings.Join(items, ", ") + "]" },
		Map: func(keys, values []string) string {
			return call("mapOf", pairs(keys, values, ", ")...)
		},
		Lambda: func(params []string, body string) string {
			switch {
			case len(params) == 0:
				return "() => " + body
			case params[0] == "":
				return "(v) => " + body
			}
			return "(" + strings.Join(params, ", ") + ") => " + body
		},
		If: func(cond, then, otherwise string) string {
			return "(truth(" + cond + ") ? " + then + " : " + otherwise + ")"
		},
		Var:   func(name string) string { return "v[" + strconv.Quote(name) + "]" },
		Local: localName,
	},
	client: &clientSyntax{pair: func(key, value string) string { return "[" + key + ", " + value + "]" }, name: camel, taken: "constructor config server login check sign call base logIn exchange failed redact", schema: typescriptSchema},
	structure: func(_ reflect.Type, fields []Field) string {
		var items []string
		for _, f := range fields {
			items = append(items, f.Name+": "+f.Value)
		}
		return block("{ ", items, " }")
	},
	slice: func(_ reflect.Type, items []string) string { return block("[", items, "]") },
	dict: func(_ reflect.Type, keys, values []string) string {
		return block("{ ", pairs(keys, values, ": "), " }")
	},
	pointer: func(_ reflect.Type, inner string) string { return inner },
	number:  func(i int64) string { return strconv.FormatInt(i, 10) },
	stubs:   map[string]string{"adapter.proto": "adapter.proto"},
	format:  importing,
}

func init() { languages["typescript"] = typescript }

// typescriptSchema is a type of TypeScript. Whole numbers of answers are bigint.
func typescriptSchema(p *Project, s description.Schema, typeName func(int) string) string {
	var parts []string
	switch s.Kind {
	case "string":
		for _, w := range s.Enum {
			parts = append(parts, p.emitter.Text(w))
		}
		if s.Enum == nil {
			parts = []string{"string"}
		}
	case "integer", "number":
		parts = []string{"number", "bigint"}
	case "boolean":
		parts = []string{s.Kind}
	case "array":
		parts = []string{"(" + typescriptSchema(p, *s.Items, typeName) + ")[]"}
	case "map":
		parts = []string{"{ [key: string]: " + typescriptSchema(p, *s.Items, typeName) + " }"}
	case "object":
		parts = []string{typeName(s.Type)}
	case "union":
		for _, one := range s.Of {
			parts = append(parts, typescriptSchema(p, one, typeName))
		}
	default:
		return "any"
	}
	if s.Null {
		parts = append(parts, "null")
	}
	return strings.Join(parts, " | ")
}

// jsonText is a text in double quotes with JSON's escapes.
func jsonText(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return strconv.Quote(s)
	}
	var out strings.Builder
	for _, r := range strings.TrimSuffix(b.String(), "\n") {
		switch {
		case strconv.IsPrint(r):
			out.WriteRune(r)
		case r > 0xffff:
			for _, half := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&out, `\u%04x`, half)
			}
		default: // what controls, or turns the direction of what is shown
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}

// valuesImport stands where a file has to import what it uses of the support.
const valuesImport = `import {} from "./pcm_values.js";`

var calls = regexp.MustCompile(`\b[a-z]\w*\(`)

// importing names what a file uses of expressions' functions.
func importing(name string, text []byte) ([]byte, error) {
	if !bytes.Contains(text, []byte(valuesImport)) {
		return text, nil
	}
	var names []string
	if bytes.Contains(text, []byte(": Record<string, Value>")) {
		names = append(names, "type Value")
	}
	known := append(Functions(), supportFunctions()...)
	for _, match := range calls.FindAllString(string(text), -1) {
		f := strings.TrimSuffix(match, "(")
		if slices.Contains(known, f) && !slices.Contains(names, f) {
			names = append(names, f)
		}
	}
	if len(names) == 0 {
		return bytes.ReplaceAll(text, []byte(valuesImport+"\n"), nil), nil
	}
	return bytes.ReplaceAll(text, []byte(valuesImport), []byte("import { "+strings.Join(names, ", ")+` } from "./pcm_values.js";`)), nil
}

// supportFunctions are those of the support that expressions call beside CEL's own.
func supportFunctions() []string {
	names := []string{"get", "has", "path", "paths", "present", "both", "either", "negate", "minus", "fold", "concat", "list", "object", "nothing", "truth", "mapOf"}
	for _, op := range binary {
		names = append(names, op)
	}
	return names
}
