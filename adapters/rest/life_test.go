package rest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// holds has creates be carried out late.
func (c *cloud) holds() (held <-chan struct{}, release func()) {
	hold, told := make(chan struct{}), make(chan struct{}, 100)
	c.mu.Lock()
	c.hold, c.held = hold, told
	c.mu.Unlock()
	return told, func() {
		c.mu.Lock()
		c.hold = nil
		c.mu.Unlock()
		close(hold)
	}
}

// What a create makes that is carried out long after it was given up is deleted.
func TestLateCreate(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	r.b.timeout = time.Hour
	held, release := c.holds()
	ctx, kill := context.WithCancel(t.Context())
	run, _ := runOf(t, "sleep", "600")
	ended := make(chan supervisor.Exit, 1)
	go func() { ended <- r.Run(ctx, run) }()
	<-held
	kill()
	<-ended // its call has timed out
	until(t, "it was looked for more often and longer than what is lost", func() bool {
		r.cleaner.mu.Lock()
		defer r.cleaner.mu.Unlock()
		o := r.cleaner.items[run.Key.String()]
		return o == nil || o.looks > 2*looks && time.Since(o.first) > vanished+time.Second
	})
	release()
	until(t, "it is there and is deleted", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.next > 0 && len(c.jobs) == 0
	})
}

// A supervisor that is killed while a create is on its way leaves a job that comes
// late. The next one creates another, and both are deleted in the end.
func TestCreateAgain(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Dir = t.TempDir()
	held, release := c.holds()
	run, o := runOf(t, "echo", "once")
	run.Again = true
	// What the first supervisor has left.
	n := &note{Task: run.Task, Nonce: newNonce(), Stage: making, Asked: time.Now(), Data: map[string]any{"inputs": []any{}, "outputs": map[string]any{}}}
	r := runner(t, cfg)
	if err := r.notes.keep(n); err != nil {
		t.Fatal(err)
	}
	go func() {
		body := strings.NewReader(fmt.Sprintf(`{"name": %q, "argv": ["echo", "once"]}`, jobName(cfg.Instance, run.Key)))
		req, _ := http.NewRequest("POST", c.url()+"/v1/jobs", body)
		req.Header.Set("Authorization", "Bearer "+cloudToken)
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	<-held
	ended := make(chan supervisor.Exit, 1)
	go func() { ended <- within(t, r, run) }()
	<-held // again, when the first could not be found
	release()
	wantOK(t, <-ended, o, "once\n")
	until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != 2 {
		t.Errorf("%d jobs were made", c.next)
	}
}

// A note that a crash of the machine has destroyed makes no second job.
func TestBrokenNote(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	run, o := runOf(t, "echo", "once")
	run.Again = true
	n := &note{Task: run.Task, Data: map[string]any{"inputs": []any{}, "outputs": map[string]any{}}}
	n.Pool, _ = r.b.placeOf(t.Context(), run.Task)
	if _, err := r.b.call(t.Context(), &r.b.d.Create.Call, r.b.vars(n)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.notes.file(run.Key.String()), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantOK(t, within(t, r, run), o, "once\n")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next != 1 {
		t.Errorf("%d jobs were made", c.next)
	}
}

// What was made before its back end was full, or a stop came, is not left there.
func TestStoppedInDoubt(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	r.b.timeout = time.Second // what is late comes soon
	c.Next(1, "POST /v1/jobs", machine.Fault{Drop: true})
	c.mu.Lock()
	c.change = func(name string, list []map[string]any) []map[string]any {
		if name != "" && c.Count("POST /v1/jobs") < 2 {
			return nil // it doesn't show yet
		}
		return list
	}
	c.mu.Unlock()
	c.Next(6, "POST /v1/jobs", machine.Fault{Status: 429})
	run, o := runOf(t, "sleep", "300")
	stop := make(chan supervisor.Stop, 1)
	run.Stopping = stop
	ended := make(chan supervisor.Exit, 1)
	go func() { ended <- within(t, r, run) }()
	until(t, "it was called again, in vain", func() bool { return o.has("full") })
	stop <- supervisor.Stop{}
	if exit := <-ended; exit.Outcome != pcm.OutcomeStopped {
		t.Errorf("%+v", exit)
	}
	until(t, "nothing is left", func() bool { return c.left() == 0 && len(r.notes.keys()) == 0 })
}

// A task that is larger than one slot of its pool is not sent there, however many
// slots there are.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	places, err := r.b.look(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range []pcm.Resources{{CPU: 1}, {Memory: 1}, {GPU: 1}} {
		run, _ := runOf(t, "true")
		run.Pool, run.Resources = places[0].pool.ID, places[0].each.Plus(more)
		if exit := within(t, r, run); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "this one needs "+run.Resources.String()) {
			t.Errorf("%+v", exit)
		}
	}
	run, o := runOf(t, "echo", "fits")
	run.Pool, run.Resources = places[0].pool.ID, places[0].each
	run.Resources.Disk = 1 << 30 // of which the back end says nothing
	wantOK(t, within(t, r, run), o, "fits\n")
	if n := c.Count("POST /v1/jobs"); n != 1 {
		t.Errorf("%d jobs were made", n)
	}
}

// Attempts that begin together look at pools together.
func TestOneLook(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	resume := c.Hang()
	var work sync.WaitGroup
	for range 50 {
		work.Go(func() {
			if _, err := r.b.placeOf(t.Context(), adaptertest.NewTask()); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "one looks", func() bool { return c.Count("GET /v1/flavors") > 0 })
	resume()
	work.Wait()
	// Who came when the first look was begun may look again.
	if n := c.Count("GET /v1/flavors"); n > 2 {
		t.Errorf("50 attempts looked %d times", n)
	}
	c.Next(1000, "GET /v1/flavors", machine.Fault{Status: 500})
	resume = c.Hang()
	before := c.Count("GET /v1/flavors")
	for range 50 {
		work.Go(func() {
			if _, err := r.b.places(t.Context(), nil, 0); pcm.ErrorCode(err) != pcm.Unavailable {
				t.Errorf("%v", err)
			}
		})
	}
	until(t, "one looks", func() bool { return c.Count("GET /v1/flavors") > before })
	resume()
	work.Wait()
	if n := c.Count("GET /v1/flavors") - before; n > 2*2 { // two tries each
		t.Errorf("50 attempts were told of a failure after %d calls", n)
	}
}

// A step whose answer makes no sense is not made again and again.
func TestSenselessStep(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	r := runner(t, c.settings("small.yaml"))
	text, err := os.ReadFile("testdata/small.yaml")
	if err != nil {
		t.Fatal(err)
	}
	more := "create:\n  before:\n    - name: set\n      request: {method: POST, path: /files, body: {name: x}}\n      find: body.no.such.field\n"
	d, problems := description.Parse(bytes.Replace(text, []byte("create:\n"), []byte(more), 1))
	if d == nil {
		t.Fatal(problems)
	}
	r.b.d = d
	run, _ := runOf(t, "true")
	if exit := within(t, r, run); exit.Outcome != pcm.OutcomeSeller || !strings.Contains(exit.Reason, "set is not as described") {
		t.Errorf("%+v", exit)
	}
	if n := c.Count("POST /v1/files"); n != 1 {
		t.Errorf("it was made %d times", n)
	}
}
