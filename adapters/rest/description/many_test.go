package description

import (
	"slices"
	"strings"
	"testing"
)

// withMany is the small description with one call for many jobs, from line 21 on.
var withMany = strings.Replace(small, "  id: $.id\nwatch:", `  id: $.id
  many:
    most: 10
    each: {name: "${task.key}", argv: "${task.command}"}
    request: {method: POST, path: /batch, body: {jobs: "${array.each}"}}
    items: $.results
    name: item.name
    id: item.id
    refused: item.?error
watch:`, 1)

// Each mistake in a call for many jobs is named, with its line.
func TestLintMany(t *testing.T) {
	if d, problems := Parse([]byte(withMany)); d == nil || len(problems) > 0 || d.Create.Many.Most != 10 {
		t.Fatal(problems)
	}
	const told = "    items: $.results\n    name: item.name\n    id: item.id\n    refused: item.?error\n"
	for _, c := range []struct{ from, to, want string }{
		{"most: 10", "most: 1", "line 22: create.many.most: 1 is out of range: 2 to 1000"},
		{"most: 10", "most: 1001", "line 22: create.many.most: 1001 is out of range"},
		{"    most: 10\n", "", "line 22: create.many: most is missing"},
		{"    each: {name: \"${task.key}\", argv: \"${task.command}\"}\n", "", "create.many: each is missing"},
		{"    request: {method: POST, path: /batch, body: {jobs: \"${array.each}\"}}\n", "", "line 22: create.many: request is missing"},
		{"method: POST, path: /batch", "method: GET, path: /batch", "line 24: create.many.request: a GET makes nothing"},
		{"${array.each}", "${array.name}", "line 24: create.many.request: it doesn't say what each task is: use ${array.each}"},
		{"{jobs: \"${array.each}\"}", "{jobs: \"${array.each}\", name: \"${task.name}\"}", "line 24: create.many.request.body: task.name is not the same for all tasks of the call"},
		{"{jobs: \"${array.each}\"}", "{jobs: \"${array.each}\", all: \"${task}\"}", "task is not the same for all tasks"},
		{"{jobs: \"${array.each}\"}", "{jobs: \"${array.each}\", in: \"${data.inputs}\"}", "data.inputs is not the same for all tasks"},
		{"{jobs: \"${array.each}\"}", "{jobs: \"${array.each}\", mib: \"${task.memory}\", of: \"${pool.native.id}\"}", ""},
		{"{jobs: \"${array.each}\"}", "{jobs: \"${array.each}\", n: \"${array.size}\"}", `array has no field "size": it has name, count, width, each`},
		{"name: item.name\n    id", "name: item.name + task.name\n    id", "line 26: create.many.name: task.name is not the same"},
		{"argv: \"${task.command}\"}", "argv: sh}", "warning: line 23: create.many.each: nothing in it says what the job runs"},
		{"argv: \"${task.command}\"}", "argv: \"${task.script_url}\"}", "task.script_url is in a data store s3 whose scheme is https"},
		{"    name: item.name\n", "", "line 22: create.many: nothing says whose an item is"},
		{"    name: item.name\n", "    name: item.name\n    index: item.index\n", "line 27: create.many.index: name and index exclude each other"},
		{"    items: $.results\n", "", "line 22: create.many: name and index look at an item"},
		{told, "    id: body.id\n", "line 25: create.many.id: it is the same for every task"},
		{told, "    id: body.id + string(task.array.index)\n", ""},
		{told, "    id: body.id + string(task.array.index)\n    refused: item.x\n", "refused and full look at an item"},
		{"id: item.id\n    refused", "id: body.id\n    refused", "line 27: create.many.id: it doesn't look at the item"},
		{"find:\n  list: {request: {path: /jobs}, items: $.jobs}\n  where: item.name == task.key\n  id: $.id\n", "", "line 22: create.many: it needs find"},
		{"each: {name: \"${task.key}\", ", "each: {", "line 22: create.many: it says neither task.name, in each, nor array.name"},
		{"{jobs: \"${array.each}\"}}\n    items", "{jobs: \"${array.each}\", name: \"${array.name}\"}}\n    items", ""},
		{"about: a test\n", "about: a test\nlacks: {arrays: it has none}\n", `"arrays" contradicts create.many`},
	} {
		text := strings.Replace(withMany, c.from, c.to, 1)
		if text == withMany {
			t.Fatalf("no %q", c.from)
		}
		d, problems := Parse([]byte(text))
		if c.want == "" {
			if len(problems) > 0 {
				t.Errorf("%s: %v", c.to, problems)
			}
			continue
		}
		said := slices.ContainsFunc(problems, func(p Problem) bool {
			text := p.String()
			if p.Warning {
				text = "warning: " + text
			}
			return strings.Contains(text, c.want)
		})
		if !said || (d == nil) == strings.HasPrefix(c.want, "warning: ") {
			t.Errorf("%s:\n%v\nwant %q", c.to, problems, c.want)
		}
	}
	// Jobs that are called by their array's name are to be looked for by that.
	array := strings.NewReplacer(`each: {name: "${task.key}", `, "each: {", `{jobs: "${array.each}"}}`+"\n    items", `{jobs: "${array.each}", name: "${array.name}"}}`+"\n    items").Replace(withMany)
	if _, problems := Parse([]byte(array)); len(problems) != 1 || !strings.Contains(problems[0].String(), "find: it doesn't look for task.array.name and task.array.index") {
		t.Errorf("%v", problems)
	}
	array = strings.Replace(array, "where: item.name == task.key", `where: 'item.name == task.key || item.name == task.array.name + "." + string(task.array.index)'`, 1)
	if _, problems := Parse([]byte(array)); len(problems) != 0 {
		t.Errorf("%v", problems)
	}
}

func TestDiffMany(t *testing.T) {
	a, _ := Parse([]byte(small))
	b, problems := Parse([]byte(withMany))
	if a == nil || b == nil {
		t.Fatal(problems)
	}
	want := []Difference{{"capability", "arrays", "no: each task is created by itself", "yes"}, {"call", "create", "each task", "up to 10 tasks"}}
	if got := Diff(a, b); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
