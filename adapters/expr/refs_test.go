package expr

import (
	"strings"
	"testing"
)

func TestRefs(t *testing.T) {
	env, err := New("settings", "task", "item")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ source, want string }{
		{`settings.a + "x" + settings["b"]`, "settings.a settings.b"},
		{`has(settings.a) ? settings.?c.orValue("") : task.let.n`, "settings.a settings.c task.let.n"},
		{`item.list.filter(i, i.id == task.key).map(settings, settings)`, "item.list task.key"},
		{`settings[item.x]`, "item.x settings"},
		{`{"a": [item.y]}`, "item.y"},
		{`settings.size() > 1`, "settings"},
	} {
		x, err := env.Compile(c.source)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(x.Refs(), " "); got != c.want {
			t.Errorf("%s: %q, want %q", c.source, got, c.want)
		}
	}
	p, err := env.CompilePath("$.a", "item")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(p.Refs(), " "); got != "item" {
		t.Errorf("a path reads %q", got)
	}
	tpl, err := env.Template(map[string]any{"a": "x${item.a}", "b": []any{"${item.b}", 1}})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tpl.Exprs()); n != 2 {
		t.Errorf("%d expressions in the template, want 2", n)
	}
}
