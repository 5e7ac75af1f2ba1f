package expr_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

func env(t *testing.T) *expr.Env {
	t.Helper()
	e, err := expr.New("task", "body")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var vars = map[string]any{
	"task": map[string]any{"key": "trd-a.0.1", "command": []any{"echo", "it's"}, "memory": int64(3<<20 + 1), "env": map[string]any{"B": "2", "A": "1"}},
	"body": map[string]any{"items": []any{map[string]any{"id": int64(7), "name": "x"}, map[string]any{"id": int64(8)}}, "total": 2.5},
}

func TestExpressions(t *testing.T) {
	for source, want := range map[string]any{
		`task.key + "-x"`: "trd-a.0.1-x", `shell(task.command)`: `'echo' 'it'\''s'`,
		`ceildiv(task.memory, 1048576)`: int64(4), `least([7, 3, 5])`: int64(3), `task.memory / 1048576`: int64(3),
		`body.items.filter(i, has(i.name)).map(i, i.id)`: []any{int64(7)}, `body.?nothing.?at.orValue("none")`: "none",
		`body.total > 2`: true, `json(task.env)`: `{"A":"1","B":"2"}`, `"a,b".split(",").join("+")`: "a+b",
		`base64("x") + unbase64("eA==")`: "eA==x", `" Ab ".trim().lower() + "c".upper()`: "abC", `"aa".replace("a", "b")`: "bb",
		`$.items[0].id`: int64(7), `$.items[*].id`: []any{int64(7), int64(8)}, `$.missing`: nil, `body.?missing`: nil, `null`: nil,
		`{"a": [1, 2u, 1.5, true, b"x"]}`: map[string]any{"a": []any{int64(1), uint64(2), 1.5, true, []byte("x")}},
	} {
		x, err := env(t).CompilePath(source, "body")
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if got, err := x.Eval(t.Context(), vars); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %#v, %v; want %#v", source, got, err, want)
		}
	}
}

func TestBadExpressions(t *testing.T) {
	for source, want := range map[string]string{
		``: "empty", `task.`: "1:6", `nobody.x`: "undeclared reference", strings.Repeat("a", 5000): "over the bound",
		strings.Repeat("(", 300) + "1" + strings.Repeat(")", 300): "recursion", `$.[`: "JSONPath",
	} {
		if _, err := env(t).CompilePath(source, "body"); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", source, err, want)
		}
	}
	many := "[1,2,3,4,5,6,7,8,9,10]"
	for source, want := range map[string]string{
		`body.missing`: "no such key", `task.key.join(",")`: "join needs a list", `ceildiv(1, 0)`: "ceildiv", `least([])`: "least needs", `least(["a"])`: "not a text",
		many + ".map(a, " + many + ".map(b, " + many + ".map(c, " + many + ".map(d, " + many + ".map(e, " + many + ".map(f, 1))))))": "cost",
	} {
		x, err := env(t).Compile(source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.Eval(t.Context(), vars); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %q", source, err, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	tpl, err := env(t).Template(map[string]any{
		"name": "pcm-${task.key}", "mib": "${ceildiv(task.memory, 1048576)}", "literal": "$${x} $5", "none": "${body.?missing}", "null": nil,
		"list": []any{"${body.?missing}", "a", `${ {"}": "{"}["}"] }`}, "n": 3,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := tpl.Render(t.Context(), vars)
	want := map[string]any{"name": "pcm-trd-a.0.1", "mib": int64(4), "literal": "${x} $5", "null": nil, "list": []any{"a", "{"}, "n": 3}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%#v, %v; want %#v", got, err, want)
	}
	for v, want := range map[string]string{"${task.key": "closing brace", "a${nobody}": "undeclared"} {
		if _, err := env(t).Template(map[string]any{"at": []any{v}}); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "at: [0]") {
			t.Errorf("%s: %v", v, err)
		}
	}
}
