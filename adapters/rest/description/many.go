package description

import (
	"cmp"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// MaxMany bounds the tasks of one call.
const MaxMany = 1000

// shared are the fields of a task that are the same for all tasks of one call.
var shared = []string{
	"owner", "instance", "job", "trade", "pool", "count", "attempt", "image", "network", "port",
	"cpu", "cpu_milli", "memory", "disk", "gpu", "seconds", "output_cap",
}

// many checks the call that makes the jobs of several tasks.
func (c *compiler) many(d *Description) {
	m := d.Create.Many
	if m == nil {
		return
	}
	const at = "$.create.many"
	if m.Most != 0 && (m.Most < 2 || m.Most > MaxMany) {
		c.add(at+".most", "%d is out of range: 2 to %d tasks in one call", m.Most, MaxMany)
	}
	if reflect.ValueOf(m.Call).IsZero() {
		c.add(at, "request is missing")
		return
	}
	if slices.Contains(methods[:3], m.Request.Method) && m.Request.Operation == "" {
		c.add(at+".request", "a %s makes nothing: say method: POST or another", cmp.Or(m.Request.Method, http.MethodGet))
	}
	for _, r := range c.reads {
		field, isTask := strings.CutPrefix(r.ref, "task")
		name, _, _ := strings.Cut(strings.TrimPrefix(field, "."), ".")
		of := isTask && (field == "" || field[0] == '.') && !slices.Contains(shared, name) || r.ref == "data" || strings.HasPrefix(r.ref, "data.")
		if of && below(at, r.path) && !below(at+".each", r.path) && !below(at+".id", r.path) {
			c.add(r.path, "%s is not the same for all tasks of the call: say it in each, which array.each has for all of them", r.ref)
		}
	}
	if m.Each.given && !c.readsAny([]string{at + ".request"}, "array.each") {
		c.add(at+".request", "it doesn't say what each task is: use ${array.each}")
	}
	if m.Each.given && !c.readsAny([]string{at + ".each", "$.let"}, "task.command", "task.script", "task.script_url") {
		c.warn(at+".each", "nothing in it says what the job runs, so the task never does: use ${task.script}, ${task.script_url} or ${task.command}")
	}
	told := m.Items.Given() || m.List != nil
	switch {
	case m.Name.Given() && m.Index.Given():
		c.add(at+".index", "name and index exclude each other")
	case told && !m.Name.Given() && !m.Index.Given():
		c.add(at, "nothing says whose an item is: name it by name, or its place by index")
	case !told && (m.Name.Given() || m.Index.Given()):
		c.add(at, "name and index look at an item: say by items where the answer has them, or by list which call tells of them")
	case !told && (m.Refused.Given() || m.Full.Given()):
		c.add(at, "refused and full look at an item: say by items where the answer has them")
	}
	if m.ID.Given() && !told && !c.readsAny([]string{at + ".id"}, "task.array", "task.name", "task.key", "task.index") {
		c.add(at+".id", "it is the same for every task: add task.array.index to what the answer says, or say by items or list where each is told of")
	}
	if m.ID.Given() && told && !c.readsAny([]string{at + ".id"}, "item") {
		c.add(at+".id", "it doesn't look at the item, so that it is the same for every task")
	}
	if d.Find.List == nil {
		c.add(at, "it needs find: of a call that was not answered each job must be found, or be made by itself")
		return
	}
	if f := d.Find; !f.Where.Given() {
		return // said already
	}
	own := []string{"task.name", "task.key"}
	byName := c.readsAny([]string{at + ".each"}, own...) || c.readsAny([]string{at + ".each"}, "task.let") && c.readsAny([]string{"$.let"}, own...)
	byArray := c.readsAny([]string{at + ".request", at + ".each"}, "array.name", "task.array")
	switch {
	case !byName && !byArray:
		c.add(at, "it says neither task.name, in each, nor array.name, so that no job would be found whose answer was lost: put one of them into the jobs' names or tags")
	case !byName && !c.readsAny([]string{"$.find"}, "task.array"):
		c.add("$.find", "it doesn't look for task.array.name and task.array.index, by which create.many names jobs: those whose answer was lost would be made twice")
	}
}

// below tells whether a place is another, or in it.
func below(whole, part string) bool {
	rest, ok := strings.CutPrefix(part, whole)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// arrays says how jobs of many tasks are made.
func (d *Description) arrays() string {
	if m := d.Create.Many; m != nil {
		return fmt.Sprintf("up to %d tasks", m.Most)
	}
	return "each task"
}
