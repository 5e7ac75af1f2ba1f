package rest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// manys are the styles in which clouds make many jobs by one call: what stands in
// small.yaml, and what instead.
var manys = map[string][]string{
	// A list of jobs; the answer says of each what became of it.
	"list": nil,
	// An array of a size; its jobs are called by its name and their place.
	"array": append([]string{
		listRequest, arrayRequest, listItems, `    id: 'body.id + (task.array.index < 10 ? ".00" : ".0") + string(task.array.index)'
`}, byPlace...),
	// An array whose answer says nothing of its jobs: they are listed.
	"listed": append([]string{
		listRequest, arrayRequest, listItems, `    list:
      request: {path: /jobs}
      items: 'body.jobs.filter(j, j.name.startsWith(array.name + "."))'
      paging: {kind: marker, param: after, size: limit, limit: 500, marker: item.id}
    index: int(item.name.split(".")[1])
    id: item.id
`}, byPlace...),
}

// What stands in small.yaml, for a list of jobs.
const (
	listRequest = `request: {method: POST, path: /batch, body: {jobs: "${array.each}"}}`
	listItems   = `    items: body.results
    name: item.name
    id: item.id
    refused: item.?error
    full: item.?full.orValue(false)
`
)

const arrayRequest = `request: {method: POST, path: /arrays, body: {name: "${array.name}", size: "${array.count}", width: "${array.width}", jobs: "${array.each}"}}`

// byPlace is how jobs of arrays are named, and found.
var byPlace = []string{
	"    each:\n      name:", "    each:\n      label:",
	`query: {name: "${task.name}"}}
    items: body.jobs
  where: item.name == task.name`, `query: {name: "${task.array.count == 1 ? task.name : task.array.name + '.' + string(task.array.index)}"}}
    items: body.jobs
  where: 'item.name == (task.array.count == 1 ? task.name : task.array.name + "." + string(task.array.index))'`,
}

// manyOf is the small cloud's description in a style.
func manyOf(t testing.TB, style string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for pair := range slices.Chunk(manys[style], 2) {
		if !bytes.Contains(text, []byte(pair[0])) {
			t.Fatalf("small.yaml has no %q", pair[0])
		}
		text = bytes.Replace(text, []byte(pair[0]), []byte(pair[1]), 1)
	}
	file := filepath.Join(t.TempDir(), style+".yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// many is a cloud, a runner of the style, and n runs of one trade.
func many(t testing.TB, style string, slots, n, width int, command ...string) (*cloud, *Runner, []*supervisor.Run, []*told) {
	t.Helper()
	c := newCloud(t, slots)
	cfg := c.settings("small.yaml")
	cfg.File = manyOf(t, style)
	r := runner(t, cfg)
	r.b.timeout = 200 * time.Millisecond // what is late comes soon
	runs, tolds := trade(t, n, width, command...)
	return c, r, runs, tolds
}

// trade is n runs of one trade that come together. $I in their command is their index.
func trade(t testing.TB, n, width int, command ...string) (runs []*supervisor.Run, tolds []*told) {
	t.Helper()
	first := adaptertest.NewTask()
	for i := range n {
		words := slices.Clone(command)
		for k := range words {
			words[k] = strings.ReplaceAll(words[k], "$I", fmt.Sprint(i))
		}
		run, o := runOf(t, words...)
		run.Trade, run.Job, run.Index, run.Count, run.Batch, run.Width = first.Trade, first.Job, i, n, n, width
		runs, tolds = append(runs, run), append(tolds, o)
	}
	return runs, tolds
}

// all runs them at once, each for a minute at most.
func all(r *Runner, runs []*supervisor.Run) []supervisor.Exit {
	exits := make([]supervisor.Exit, len(runs))
	var work sync.WaitGroup
	for i, run := range runs {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			exits[i] = r.Run(ctx, run)
		})
	}
	work.Wait()
	return exits
}

func (c *cloud) creates() (many, alone int) {
	return c.Count("POST /v1/batch") + c.Count("POST /v1/arrays"), c.Count("POST /v1/jobs") - c.Count("POST /v1/jobs/")
}

// once sees to it that each ended well and was begun once, and that nothing is left.
func once(t *testing.T, c *cloud, r *Runner, runs []*supervisor.Run, tolds []*told, exits []supervisor.Exit) {
	t.Helper()
	for i, run := range runs {
		wantOK(t, exits[i], tolds[i], fmt.Sprintf("%d\n", i))
		if n := c.begins(run.Key); n != 1 {
			t.Errorf("%d was begun %d times", i, n)
		}
	}
	until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
}

func styles(t *testing.T, f func(t *testing.T, style string)) {
	for _, style := range slices.Sorted(maps.Keys(manys)) {
		t.Run(style, func(t *testing.T) { t.Parallel(); f(t, style) })
	}
}

// The suite that all adapters pass, of clouds whose arrays are not lists. Where a
// task comes alone they are as the small one is.
func TestConformanceArrays(t *testing.T) {
	for _, style := range []string{"array", "listed"} {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			s := subject("small.yaml")
			s.New = func(t *testing.T) adaptertest.Instance {
				c := newCloud(t, 1<<10)
				cfg := c.settings("small.yaml")
				cfg.File = manyOf(t, style)
				return instance(t, cfg, c)
			}
			s.Own = s.New
			s.Unsupported = maps.Clone(s.Unsupported)
			for _, c := range adaptertest.Capabilities() {
				if !slices.Contains([]string{"arrays", "supervisor lost"}, c.Name) {
					s.Unsupported[c.Name] = "as the small cloud"
				}
			}
			adaptertest.Run(t, s)
		})
	}
}

// A hundred tasks are made by one call, and nothing is looked for.
func TestHundred(t *testing.T) {
	styles(t, func(t *testing.T, style string) {
		c, r, runs, tolds := many(t, style, 200, 100, 100, "true")
		c.instant = true
		for i, e := range all(r, runs) {
			wantOK(t, e, tolds[i], "")
			if n := c.begins(runs[i].Key); n != 1 {
				t.Errorf("%d was begun %d times", i, n)
			}
		}
		many, alone := c.creates()
		t.Logf("%s: 100 tasks by %d calls for many jobs and %d for one", style, many, alone)
		if many != 1 || alone != 0 {
			t.Errorf("%d calls for many jobs and %d for one", many, alone)
		}
		until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
	})
}

// atOnce watches how many jobs run; stop gives the most.
func (c *cloud) atOnce() (stop func() int) {
	most, done := 0, make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
			}
			c.mu.Lock()
			n := 0
			for _, j := range c.jobs {
				if j.state == "running" && j.exit == nil {
					n++
				}
			}
			c.mu.Unlock()
			most = max(most, n)
		}
	})
	return func() int { close(done); watch.Wait(); return most }
}

// No more of a trade run at once than may, whoever sees to that.
func TestWidth(t *testing.T) {
	for _, style := range []string{"list", "array"} {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			c, r, runs, tolds := many(t, style, 200, 24, 4, "sh", "-c", "sleep 0.3; echo $I")
			atOnce := c.atOnce()
			exits := all(r, runs)
			most := atOnce()
			once(t, c, r, runs, tolds, exits)
			many, alone := c.creates()
			t.Logf("%s: %d calls for many jobs, %d for one", style, many, alone)
			if most > 4 || many < 1 || style == "array" && (many != 1 || alone > 0) {
				t.Errorf("%d ran at once; %d calls for many, %d for one", most, many, alone)
			}
			waited := func(o *told) bool {
				return o.has("pending queued it waits until others of its job have ended, of which 4 may run at once")
			}
			if style == "list" && !slices.ContainsFunc(tolds, waited) {
				t.Error("nobody was told that it waits")
			}
		})
	}
}

// Nor when an array that would have kept to it could not be made.
func TestWidthWithoutArray(t *testing.T) {
	for name, fault := range map[string]machine.Fault{"refused": {Status: 422, Body: `{"error":"no"}`}, "lost": {Cut: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, r, runs, tolds := many(t, "array", 200, 8, 2, "sh", "-c", "sleep 0.2; echo $I")
			c.Next(1, "POST /v1/arrays", fault)
			atOnce := c.atOnce()
			exits := all(r, runs)
			most := atOnce()
			once(t, c, r, runs, tolds, exits)
			if many, alone := c.creates(); most > 2 || many != 1 || alone != 8 {
				t.Errorf("%d ran at once; %d calls for many, %d for one", most, many, alone)
			}
		})
	}
}

// What a call has made whose answer was lost is found, and not made again.
func TestLostMany(t *testing.T) {
	for name, fault := range map[string]machine.Fault{
		"the answer is lost": {Drop: true}, "the connection is cut": {Cut: true}, "the service is confused": {Status: 500, Body: "oops"},
		"it is of another form": {Status: 201, Body: `{"results": {"a": [1]}, "id": {}}`},
	} {
		t.Run(name, func(t *testing.T) {
			styles(t, func(t *testing.T, style string) {
				if !fault.Drop && style != "list" {
					return // what is not there, is not, whatever the style
				}
				c, r, runs, tolds := many(t, style, 200, 6, 6, "echo", "$I")
				c.Next(1, "POST /v1/batch", fault)
				c.Next(1, "POST /v1/arrays", fault)
				once(t, c, r, runs, tolds, all(r, runs))
				if many, alone := c.creates(); many != 1 || fault.Drop && alone != 0 || !fault.Drop && alone != 6 {
					t.Errorf("%d calls for many jobs and %d for one", many, alone)
				}
			})
		})
	}
}

// A supervisor that was killed between the call and its notes finds what was made, and
// makes what was not.
func TestKilledAfterMany(t *testing.T) {
	for _, made := range []bool{true, false} {
		t.Run(fmt.Sprint(made), func(t *testing.T) {
			styles(t, func(t *testing.T, style string) {
				if !made && style == "listed" {
					return // as array
				}
				c, r, runs, tolds := many(t, style, 200, 6, 6, "echo", "$I")
				var notes []*note
				for _, run := range runs {
					run.Again = true
					n := &note{Task: run.Task, Nonce: newNonce(), Let: map[string]any{}, Data: map[string]any{"inputs": []any{}, "outputs": map[string]any{}}}
					n.Pool, _ = r.b.placeOf(t.Context(), run.Task)
					notes = append(notes, n)
				}
				call, n, err := r.b.many(t.Context(), notes, 6)
				if err != nil || n != 6 {
					t.Fatal(n, err)
				}
				for i, n := range notes {
					n.Stage, n.Array = making, call.places[i]
				}
				if err := r.notes.keep(notes...); err != nil {
					t.Fatal(err)
				}
				if made {
					if _, err := r.b.send(t.Context(), &r.b.d.Create.Many.Call, call.req, call.vars); err != nil {
						t.Fatal(err)
					}
				}
				once(t, c, r, runs, tolds, all(r, runs))
				many, alone := c.creates()
				if made && (many != 1 || alone != 0) || !made && (many != 0 || alone != 6) {
					t.Errorf("%d calls for many jobs and %d for one", many, alone)
				}
			})
		})
	}
}

// Who is refused is refused alone, in the cloud's words; who has no room waits.
func TestPartlyRefused(t *testing.T) {
	t.Parallel()
	c, r, runs, tolds := many(t, "list", 200, 10, 10, "echo", "$I")
	bad, late := jobName("i-test", runs[3].Key), jobName("i-test", runs[7].Key)
	asked := 0
	c.judge = func(name string) (string, bool) {
		switch {
		case name == bad:
			return "no \x07flavor for you", false
		case name == late && asked < 1:
			asked++
			return "quota exceeded", true
		}
		return "", false
	}
	exits := all(r, runs)
	if e := exits[3]; e.Outcome != pcm.OutcomeSeller || !strings.Contains(e.Reason, "no flavor for you") || c.begins(runs[3].Key) != 0 || tolds[3].begins != 0 {
		t.Errorf("%+v", e)
	}
	if !tolds[7].has("pending full its back end has no room: quota exceeded") {
		t.Errorf("told %q", tolds[7].all)
	}
	rest := func(i int) bool { return i != 3 }
	for i := range runs {
		if rest(i) {
			wantOK(t, exits[i], tolds[i], fmt.Sprintf("%d\n", i))
		}
	}
	until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
}

// A cloud that refuses the whole call is asked for each; one without room for any, later.
func TestWhollyRefused(t *testing.T) {
	styles(t, func(t *testing.T, style string) {
		if style == "listed" {
			return // as array
		}
		for fault, alone := range map[int]int{422: 5, 429: 0} {
			c, r, runs, tolds := many(t, style, 200, 5, 5, "echo", "$I")
			c.Next(1, "POST /v1/batch", machine.Fault{Status: fault, Body: `{"error":"no"}`})
			c.Next(1, "POST /v1/arrays", machine.Fault{Status: fault, Body: `{"error":"no"}`})
			once(t, c, r, runs, tolds, all(r, runs))
			if many, n := c.creates(); n != alone || alone == 0 && many != 2 {
				t.Errorf("%d: %d calls for many jobs and %d for one", fault, many, n)
			}
		}
	})
}

// One that is stopped leaves the others alone, whenever that is.
func TestOneStopped(t *testing.T) {
	styles(t, func(t *testing.T, style string) {
		c, r, runs, tolds := many(t, style, 200, 5, 5, "sh", "-c", "sleep 1; echo $I")
		stop := make(chan supervisor.Stop, 1)
		runs[2].Stopping, runs[2].Command = stop, []string{"sleep", "300"}
		early := make(chan supervisor.Stop, 1)
		early <- supervisor.Stop{}
		runs[4].Stopping = early
		go func() {
			until(t, "it runs", func() bool { return tolds[2].started() > 0 })
			stop <- supervisor.Stop{}
		}()
		exits := all(r, runs)
		for i, e := range exits {
			if i == 2 || i == 4 {
				if e.Outcome != pcm.OutcomeStopped {
					t.Errorf("%d: %+v", i, e)
				}
				continue
			}
			wantOK(t, e, tolds[i], fmt.Sprintf("%d\n", i))
		}
		if n := c.begins(runs[4].Key); n != 0 {
			t.Errorf("what was stopped early was begun %d times", n)
		}
		until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
	})
}

// An answer that lies harms nobody but whom it lies about, and not for long: nothing is
// begun twice, and no job of others is taken or ended.
func TestLyingAnswer(t *testing.T) {
	results := func(v map[string]any) []any { return v["results"].([]any) }
	item := func(name, id any) any { return map[string]any{"name": name, "id": id} }
	for name, lie := range map[string]func(v map[string]any, other string) map[string]any{
		"fewer": func(v map[string]any, _ string) map[string]any { v["results"] = results(v)[2:]; return v },
		"none":  func(v map[string]any, _ string) map[string]any { v["results"] = []any{}; return v },
		"more": func(v map[string]any, o string) map[string]any {
			v["results"] = append(results(v), item("x", o), item(nil, o), 7, nil, "x")
			return v
		},
		"the same twice": func(v map[string]any, _ string) map[string]any {
			v["results"] = append(results(v), results(v)...)
			return v
		},
		"two for one": func(v map[string]any, o string) map[string]any {
			n := results(v)[0].(map[string]any)["name"]
			v["results"] = append(results(v), item(n, o))
			return v
		},
		"one for two": func(v map[string]any, _ string) map[string]any {
			a, b := results(v)[0].(map[string]any), results(v)[1].(map[string]any)
			b["id"] = a["id"]
			return v
		},
		"ours of another": func(v map[string]any, o string) map[string]any { results(v)[0].(map[string]any)["id"] = o; return v },
		"no names": func(v map[string]any, _ string) map[string]any {
			for _, x := range results(v) {
				delete(x.(map[string]any), "name")
			}
			return v
		},
		"no ids": func(v map[string]any, _ string) map[string]any {
			for _, x := range results(v) {
				x.(map[string]any)["id"] = nil
			}
			return v
		},
		"long ids": func(v map[string]any, _ string) map[string]any {
			for _, x := range results(v) {
				x.(map[string]any)["id"] = strings.Repeat("j", 5000)
			}
			return v
		},
		"refused and not": func(v map[string]any, _ string) map[string]any {
			n := results(v)[0].(map[string]any)["name"]
			v["results"] = append([]any{map[string]any{"name": n, "error": "no"}}, results(v)...)
			return v
		},
		"in another order": func(v map[string]any, _ string) map[string]any { slices.Reverse(results(v)); return v },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, r, runs, tolds := many(t, "list", 200, 5, 5, "sh", "-c", "sleep 0.2; echo $I")
			// Another job of ours, which must live.
			first, o := runOf(t, "sh", "-c", "sleep 1; echo other")
			ended := make(chan supervisor.Exit, 1)
			go func() { ended <- within(t, r, first) }()
			until(t, "the other one runs", func() bool { return o.started() == 1 })
			c.mu.Lock()
			other := c.jobs[0].ID
			c.answer = func(v map[string]any) map[string]any { return lie(v, other) }
			c.mu.Unlock()
			exits := all(r, runs)
			for i, run := range runs {
				wantOK(t, exits[i], tolds[i], fmt.Sprintf("%d\n", i))
				if n := c.begins(run.Key); n != 1 {
					t.Errorf("%d was begun %d times", i, n)
				}
			}
			wantOK(t, <-ended, o, "other\n")
			if many, alone := c.creates(); many != 1 || alone != 1 {
				t.Errorf("%d calls for many jobs and %d for one", many, alone)
			}
			until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
		})
	}
}

// Lists that name places which aren't there, or jobs of others, lead to none of them.
func TestLyingList(t *testing.T) {
	t.Parallel()
	c, r, runs, tolds := many(t, "listed", 200, 5, 5, "echo", "$I")
	c.mu.Lock()
	c.change = func(name string, list []map[string]any) []map[string]any {
		if name != "" || len(list) == 0 {
			return list
		}
		array, _, _ := strings.Cut(fmt.Sprint(list[0]["name"]), ".")
		return append(list, map[string]any{"id": "jx", "name": array + ".99"}, map[string]any{"id": "jy", "name": array + ".-1"},
			map[string]any{"id": "jz", "name": array + ".1"}, map[string]any{"id": "jz", "name": array + ".x"})
	}
	c.mu.Unlock()
	once(t, c, r, runs, tolds, all(r, runs))
}

// What a supervisor before has left counts once among those of its trade that may run at
// once, also when it is created anew and there is no room at first; and what its first
// call makes too late is found, and ended.
func TestAgainWithoutRoom(t *testing.T) {
	styles(t, func(t *testing.T, style string) {
		c, r, runs, tolds := many(t, style, 200, 2, 1, "echo", "$I")
		for _, run := range runs { // called by themselves, and not answered
			run.Again = true
			if err := r.notes.keep(&note{Task: run.Task, Nonce: newNonce(), Stage: making}); err != nil {
				t.Fatal(err)
			}
		}
		c.Next(8, "POST /v1/jobs", machine.Fault{Status: 429, Body: `{"error":"no"}`})
		once(t, c, r, runs, tolds, all(r, runs))
		if many, _ := c.creates(); many != 0 {
			t.Errorf("%d calls for many jobs, though each may have one of its own", many)
		}
	})
}
