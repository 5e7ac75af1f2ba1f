package rest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// runner is one in this process.
func runner(t testing.TB, cfg Config) *Runner {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	r, err := NewRunner(cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

// told is what a run was told of.
type told struct {
	mu     sync.Mutex
	all    []string
	out    bytes.Buffer
	errs   bytes.Buffer
	begins int
}

func (o *told) add(s string) { o.mu.Lock(); o.all = append(o.all, s); o.mu.Unlock() }

func (o *told) has(s string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Contains(strings.Join(o.all, "\n"), s)
}

func (o *told) started() int { o.mu.Lock(); defer o.mu.Unlock(); return o.begins }

func runOf(t testing.TB, command ...string) (*supervisor.Run, *told) {
	t.Helper()
	o := new(told)
	task := adaptertest.NewTask()
	task.Command, task.OutputCap = command, 1<<20
	dir := t.TempDir()
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	return &supervisor.Run{
		Task: task, Work: work, Stdout: &o.out, Stderr: &o.errs, Stopping: make(chan supervisor.Stop, 1),
		Started: func() { o.mu.Lock(); o.begins++; o.mu.Unlock(); o.add("started") },
		Report:  func(s adapters.State, native, reason string) { o.add(string(s) + " " + native + " " + reason) },
		Used:    func(int64, pcm.Bytes) {},
	}, o
}

func (c *cloud) begins(k adapters.Key) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.begun[jobName("i-test", k)]
}

func (c *cloud) left() int { c.mu.Lock(); defer c.mu.Unlock(); return len(c.jobs) }

// within runs an attempt, which must end within a minute.
func within(t testing.TB, r *Runner, run *supervisor.Run) supervisor.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return r.Run(ctx, run)
}

func wantOK(t testing.TB, exit supervisor.Exit, o *told, out string) {
	t.Helper()
	if exit.Outcome != pcm.OutcomeOK || o.out.String() != out || o.begins != 1 {
		t.Errorf("%+v, begun %d times, stdout %q, not %q; %q", exit, o.begins, o.out.String(), out, o.all)
	}
}

// A create that was done and not answered is not made again.
func TestLostCreate(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]machine.Fault{
		"the answer is lost":      {Drop: true},
		"the connection is cut":   {Cut: true},
		"the service is confused": {Status: 500, Body: "oops"},
		"it asks for patience":    {Status: 503},
		"a proxy says so":         {Status: 502, Body: "<html>"},
		"the log-in is refused":   {Status: 401},
		"it is no JSON":           {Status: 200, Body: "welcome"},
		"it has no id":            {Status: 201, Body: `{"ok":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, 8)
			r := runner(t, c.settings("small.yaml"))
			c.Next(1, "POST /v1/jobs", fault)
			run, o := runOf(t, "echo", "once")
			wantOK(t, within(t, r, run), o, "once\n")
			if n := c.begins(run.Key); n != 1 {
				t.Errorf("it was begun %d times", n)
			}
			until(t, "all is deleted", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
		})
	}
}

// A supervisor that ends between create and its record leaves a note: who takes
// the attempt up finds the job, or makes it.
func TestTakenUp(t *testing.T) {
	t.Parallel()
	for name, there := range map[string]bool{"created": true, "not created": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, 8)
			r := runner(t, c.settings("small.yaml"))
			run, o := runOf(t, "echo", "once")
			run.Again = true
			n := &note{Task: run.Task, Nonce: newNonce(), Stage: making, Let: map[string]any{}, Data: map[string]any{"inputs": []any{}, "outputs": map[string]any{}}}
			place, err := r.b.placeOf(t.Context(), run.Task)
			if err != nil {
				t.Fatal(err)
			}
			n.Pool = place
			if err := r.notes.save(n); err != nil {
				t.Fatal(err)
			}
			if there {
				if _, err := r.b.call(t.Context(), &r.b.d.Create.Call, r.b.vars(n)); err != nil {
					t.Fatal(err)
				}
			}
			wantOK(t, within(t, r, run), o, "once\n")
			if n := c.begins(run.Key); n != 1 {
				t.Errorf("it was begun %d times", n)
			}
		})
	}
}

// What is there twice is ended but for one.
func TestTwice(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	run, o := runOf(t, "sh", "-c", "echo one; sleep 1; echo more")
	run.Again = true
	n := &note{Task: run.Task, Nonce: newNonce(), Stage: making, Let: map[string]any{}, Data: map[string]any{"inputs": []any{}, "outputs": map[string]any{}}}
	n.Pool, _ = r.b.placeOf(t.Context(), run.Task)
	if err := r.notes.save(n); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.b.call(t.Context(), &r.b.d.Create.Call, r.b.vars(n)); err != nil {
			t.Fatal(err)
		}
	}
	wantOK(t, within(t, r, run), o, "one\nmore\n")
	until(t, "all is deleted", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
}

// A back end that has no room has the attempt wait; one that has the job already is believed.
func TestFullAndExists(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	c.Next(3, "POST /v1/jobs", machine.Fault{Status: 429, Body: `{"error":"quota exceeded"}`})
	run, o := runOf(t, "echo", "at last")
	wantOK(t, within(t, r, run), o, "at last\n")
	if !o.has("pending full its back end has no room: small answers HTTP 429: quota exceeded") {
		t.Errorf("told %q", o.all)
	}
	c.Next(1, "POST /v1/jobs", machine.Fault{Drop: true})
	c.Next(1, "POST /v1/jobs", machine.Fault{Status: 409, Body: `{"error":"exists"}`})
	asked := c.Count("POST /v1/jobs")
	c.mu.Lock()
	c.change = func(name string, list []map[string]any) []map[string]any {
		if name != "" && c.Count("POST /v1/jobs") < asked+2 {
			return nil // it shows the job late
		}
		return list
	}
	c.mu.Unlock()
	run, o = runOf(t, "echo", "there")
	wantOK(t, within(t, r, run), o, "there\n")
	if n, creates := c.begins(run.Key), c.Count("POST /v1/jobs")-asked; n != 1 || creates != 2 {
		t.Errorf("it was begun %d times by %d calls", n, creates)
	}
}

// A back end that refuses is not asked again; its words are passed on.
func TestRefused(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	c.Next(100, "POST /v1/jobs", machine.Fault{Status: 422, Body: `{"error":"no flavor\u0007 std.4 for you"}`})
	run, o := runOf(t, "true")
	exit := within(t, r, run)
	if exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "no flavor std.4 for you") || o.begins != 0 {
		t.Errorf("%+v, %q", exit, o.all)
	}
	if n := c.Count("POST /v1/jobs"); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// A job that its back end forgets is given up, and said so.
func TestForgotten(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	run, o := runOf(t, "sleep", "300")
	go func() {
		for end := time.Now().Add(time.Minute); o.started() == 0 && time.Now().Before(end); {
			<-time.After(10 * time.Millisecond)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, j := range c.jobs {
			j.hidden = true
		}
	}()
	exit := within(t, r, run)
	if exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "knows it no more") {
		t.Errorf("%+v", exit)
	}
}

// Garbage is no news, whatever it looks like.
func TestGarbage(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	for _, body := range []string{
		"", "null", "[]", "{}", `{"jobs":{}}`, `{"jobs":[1,null,"x",[],{}]}`, `{"jobs":[{"id":null,"state":"done"}]}`, "<html>", strings.Repeat("[", 5000),
		`{"jobs":[{"id":"j999999","state":"done"}]}`,
	} {
		c.Next(1, "GET /v1/jobs", machine.Fault{Status: 200, Body: body})
	}
	run, o := runOf(t, "sh", "-c", "echo one; sleep 3; echo two")
	wantOK(t, within(t, r, run), o, "one\ntwo\n")
}

// What can't be ended at once keeps its capacity until it has ended.
func TestKilledLater(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Dir = t.TempDir()
	r := runner(t, cfg)
	b, err := open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	daemon := &Adapter{b: b, notes: notebook(cfg.notes("small"))}
	run, o := runOf(t, "sleep", "300")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan supervisor.Exit, 1)
	go func() { ended <- r.Run(ctx, run) }()
	until(t, "it runs", func() bool { return o.started() == 1 })
	resume := c.Hang()
	cancel()
	exit := <-ended
	if exit.Outcome == pcm.OutcomeOK || !strings.Contains(exit.Reason, "has yet to say") {
		t.Errorf("%+v", exit)
	}
	if ours, dying := daemon.census(); ours["std.4"] != 1 || dying["std.4"] != 1 {
		t.Errorf("ours %v, dying %v", ours, dying)
	}
	resume()
	until(t, "it is ended and deleted", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
	if ours, dying := daemon.census(); len(ours) != 0 || len(dying) != 0 {
		t.Errorf("ours %v, dying %v", ours, dying)
	}
}

// What a supervisor left that is no more is deleted by the next one, files and all.
func TestSwept(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Dir = t.TempDir()
	b, err := open(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	notes := notebook(cfg.notes("small"))
	if err := notes.open(); err != nil {
		t.Fatal(err)
	}
	for _, stage := range []stage{fresh, making, made, over} {
		run, _ := runOf(t, "sleep", "300")
		n := &note{Task: run.Task, Nonce: newNonce(), Stage: stage, Stored: true, Data: map[string]any{"inputs": []any{map[string]any{"key": "k", "file": "f1"}}, "outputs": map[string]any{}}}
		n.Pool, _ = b.placeOf(t.Context(), run.Task)
		if stage != fresh {
			said, err := b.call(t.Context(), &b.d.Create.Call, b.vars(n))
			if err != nil {
				t.Fatal(err)
			}
			if stage != making {
				n.ID, _ = said.body.(map[string]any)["id"].(string)
			}
		}
		if stage == over {
			if _, err := b.call(t.Context(), b.d.Kill, b.vars(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := notes.save(n); err != nil {
			t.Fatal(err)
		}
	}
	c.mu.Lock()
	c.files["f1"] = &cloudFile{id: "f1"}
	c.mu.Unlock()
	runner(t, cfg)
	until(t, "all is deleted", func() bool { return c.left() == 0 && len(notes.keys()) == 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.files) != 0 {
		t.Error("files are left")
	}
}

// A stop is heard whatever the attempt is at.
func TestStoppedEarly(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]machine.Fault{"full": {Status: 429}, "away": {Status: 503}, "lost": {Drop: true}, "slow": {Delay: 2 * time.Second}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t, 8)
			r := runner(t, c.settings("small.yaml"))
			c.Next(1000, "POST /v1/jobs", fault)
			c.Next(1000, "GET /v1/jobs", machine.Fault{Status: 503}) // nor can it be looked for
			run, _ := runOf(t, "sleep", "300")
			stop := make(chan supervisor.Stop, 1)
			run.Stopping = stop
			go func() {
				for end := time.Now().Add(time.Minute); c.Count("POST /v1/jobs") == 0 && time.Now().Before(end); {
					<-time.After(10 * time.Millisecond)
				}
				stop <- supervisor.Stop{}
			}()
			if exit := within(t, r, run); exit.Outcome != pcm.OutcomeStopped {
				t.Errorf("%+v", exit)
			}
		})
	}
}
