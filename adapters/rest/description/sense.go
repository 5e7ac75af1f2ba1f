package description

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

// read is that an expression at a place reads something: "task.name".
type read struct{ path, ref string }

// fields are those of variables that have the same ones in every description.
var fields = map[string][]string{
	"task":  taskFields(),
	"pool":  {"id", "native"},
	"array": {"name", "count", "width", "each"},
	"data":  {"inputs", "outputs", "in", "out", "prefix", "in_url", "out_url", "prefix_url", "pack", "streams"},
}

func taskFields() (names []string) {
	typ := reflect.TypeFor[Task]()
	for i := range typ.NumField() {
		names = append(names, typ.Field(i).Tag.Get("json"))
	}
	return names
}

// readsAny tells whether what stands below one of the places reads one of the
// variables or fields; what reads all of a variable reads its fields.
func (c *compiler) readsAny(places []string, refs ...string) bool {
	return slices.ContainsFunc(c.reads, func(r read) bool {
		return slices.ContainsFunc(places, func(p string) bool { return below(p, r.path) }) &&
			slices.ContainsFunc(refs, func(ref string) bool { return below(ref, r.ref) || below(r.ref, ref) })
	})
}

// jobs checks that calls speak of the one job that is meant.
func (c *compiler) jobs(d *Description) {
	making := []string{"$.create", "$.let"}
	if !c.readsAny(making, "task.command", "task.script") {
		c.warn("$.create", "nothing in it says what the job runs, so the task never does: use ${task.script}, or ${task.command}")
	}
	if d.Find.List != nil {
		c.finds(d, making)
	}
	if d.Watch.One != nil && !c.readsAny([]string{"$.watch.one.request"}, "id") {
		c.add("$.watch.one.request", "it asks the same of every job: put ${id} in its path, query or body")
	}
	calls := map[string]*Call{"stop": d.Stop, "kill": d.Kill, "suspend": d.Suspend, "resume": d.Resume, "delete": d.Delete}
	for _, name := range sorted(calls) {
		if calls[name] != nil {
			c.means("$."+name+".request", []string{"$." + name + ".request"})
		}
	}
	for i, l := range d.Logs {
		at := fmt.Sprintf("$.logs[%d]", i)
		if l.Request.Path.given || l.Request.Operation != "" {
			c.means(at+".request", []string{at + ".request"})
		}
	}
}

// links checks that what speaks of a script's place has one.
func (c *compiler) links(d *Description) {
	if d.Data != nil && d.Data.Store == "s3" && d.Data.Scheme == "https" {
		return
	}
	for _, r := range c.reads {
		if r.ref == "task.script_url" {
			c.add(r.path, "task.script_url is in a data store s3 whose scheme is https, and section data says of none")
			return
		}
	}
}

func (c *compiler) means(path string, places []string) {
	if !c.readsAny(places, "id", "job", "task") {
		c.add(path, "it doesn't say which job is meant: put ${id} in its path, query or body")
	}
}

// finds checks that the job of an attempt can be told from others.
func (c *compiler) finds(d *Description, making []string) {
	finding := []string{"$.find"}
	if c.readsAny(finding, "task.let") {
		finding = append(finding, "$.let")
	}
	const which = "write such as item.name == task.name"
	switch {
	case !d.Find.Where.Given(): // said already
	case !c.readsAny([]string{"$.find.where"}, "item"):
		c.add("$.find.where", "it doesn't look at the item, so that jobs of others are taken for the attempt's: "+which)
	case !c.readsAny(finding, "task"):
		c.add("$.find.where", "it looks for nothing of the task, so that jobs of others are taken for the attempt's: "+which)
	case c.readsAny(finding, "task.name", "task.key"):
		for _, ref := range []string{"task.name", "task.key"} {
			if c.readsAny(finding, ref) && c.readsAny(making, ref) {
				return
			}
		}
		ref := "task.name"
		if !c.readsAny(finding, ref) {
			ref = "task.key"
		}
		c.add("$.create", "find looks for %s, which create doesn't say: no job would be found, and a lost answer makes a second one; put ${%s} into the job's name or tags", ref, ref)
	}
}

// sandboxes are the words for what keeps tasks in that buyers know.
var sandboxes = []string{"none", "vm", "microvm", "container", "gvisor", "kata", "wasm", "bubblewrap", "landlock"}

func (c *compiler) sandbox(word string) {
	switch {
	case word == "" || slices.Contains(sandboxes, word):
	case slices.Contains([]string{"no", "off", "false", "nothing", "null", "-"}, strings.ToLower(word)) || pcm.Nearest(word, sandboxes) == "none":
		c.add("$.sandbox", "%q opens the pools to tasks of others, as any word but none does: write none", word)
	default:
		c.warn("$.sandbox", "%q is no word that buyers know%s (%s); any but none opens the pools to tasks of others", word, near(word, sandboxes), strings.Join(sandboxes, ", "))
	}
}

// constant is the value of a template that reads nothing.
func constant(t Template) (v any, ok bool, err error) {
	if t.tpl == nil {
		return nil, false, nil
	}
	for _, x := range t.tpl.Exprs() {
		if len(x.Refs()) > 0 {
			return nil, false, nil
		}
	}
	v, err = t.Render(context.Background(), map[string]any{})
	return v, true, err
}

// amounts checks those of pools that stand in the description, and pools' names.
func (c *compiler) amounts(d *Description) {
	m := &d.Pools.Pool
	number := func(s string) error {
		if n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64); s != "" && (err != nil || n < 0) {
			return pcm.Errorf(pcm.Invalid, "%.40q is not a whole number", s)
		}
		return nil
	}
	for _, f := range []struct {
		name  string
		value Template
		check func(string) error
	}{
		{"cpu", m.CPU, func(s string) error { _, err := pcm.ParseMilliCPU(s); return err }},
		{"memory", m.Memory, func(s string) error { _, err := pcm.ParseBytes(s); return err }},
		{"disk", m.Disk, func(s string) error { _, err := pcm.ParseBytes(s); return err }},
		{"gpu", m.GPU, number},
		{"slots", m.Slots, number},
		{"max_time", m.MaxTime, func(s string) error {
			if _, err := time.ParseDuration(s); err == nil {
				return nil
			}
			return number(s)
		}},
	} {
		v, ok, err := constant(f.value)
		if ok && err == nil && v != nil {
			err = f.check(expr.Text(v))
		}
		if ok && err != nil {
			c.add("$.pools.pool."+f.name, "%v", err)
		}
	}
	if !m.ID.given || c.readsAny([]string{"$.pools.pool.id"}, "item") {
		return
	}
	const same = "it is the same for each item, of which only one can be a pool then: take it from the item, such as ${item.id}"
	switch {
	case len(d.Pools.Fixed) > 1:
		c.add("$.pools.pool.id", same)
	case d.Pools.List != nil:
		c.warn("$.pools.pool.id", same)
	}
}
