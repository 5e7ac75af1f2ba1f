package rest

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// host serves a fake cloud at an address that stays when its service is restarted.
type host struct {
	t       *testing.T
	handler http.Handler
	address string
	server  *http.Server
}

func newHost(t *testing.T, handler http.Handler) *host {
	t.Helper()
	h := &host{t: t, handler: handler, address: "127.0.0.1:0"}
	h.start()
	t.Cleanup(h.stop)
	return h
}

func (h *host) url() string { return "http://" + h.address }

func (h *host) start() {
	h.t.Helper()
	var l net.Listener
	until(h.t, "the address can be listened on again", func() (ok bool) {
		var err error
		l, err = net.Listen("tcp", h.address)
		return err == nil
	})
	h.address, h.server = l.Addr().String(), &http.Server{Handler: h.handler, ReadHeaderTimeout: time.Minute}
	go h.server.Serve(l)
}

// stop ends the service hard, with all its connections. What runs there runs on.
func (h *host) stop() { h.server.Close() }

// until waits for what nothing tells of.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	for !f() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-end:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// minutes begins a test that takes minutes: what starts no servers is quick, and leaves
// it to 'make test-backends'. The engine's own suite runs over a smaller fake.
func minutes(t *testing.T) {
	t.Helper()
	if os.Getenv("PCM_TEST_SERVERS") == "none" {
		require.Server(t, "clouds", fmt.Errorf("%w: its suite takes minutes", server.ErrMissing))
	}
}

// program is what tasks run in tests: a small one, as each task has a copy of its own.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pcm-rest-task-")
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "task")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, adaptertest.ScriptPackage)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = &os.PathError{Op: "build", Path: string(out), Err: err}
	}
	return file, err
})

// steps makes a task run the steps of a script.
func steps(t *testing.T, task *adapters.Task, steps ...string) {
	t.Helper()
	file, err := program()
	if err != nil {
		t.Fatal(err)
	}
	task.Command = append([]string{"./task"}, steps...)
	task.Inputs = []adapters.Mount{{Path: file, Target: "task"}}
}

// shipped is the file of a description that is shipped.
func shipped(t *testing.T, name string) string {
	t.Helper()
	file, err := filepath.Abs("../../configs/adapters/" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// secrets keeps values in files, and gives the references to them.
func secrets(t *testing.T, values map[string]string) map[string]string {
	t.Helper()
	dir, refs := t.TempDir(), map[string]string{}
	for name, value := range values {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		refs[name] = "file:" + file
	}
	return refs
}

// provider is a fake cloud under test.
type provider struct {
	cfg    Config
	host   *host
	hang   func() (resume func())
	fill   func() (release func())
	logOut func() // what a restart of its service makes it forget
	starts func(name string) int

	faults *machine.Faults
	create string                  // the call that makes a job, as faults match it
	forget func(name string)       // loses a job
	left   func() (names []string) // all that is there
}

// instance is an adapter with a supervisor of its own at the cloud.
func (c provider) instance(t *testing.T) adaptertest.Instance {
	t.Helper()
	cfg := c.cfg
	cfg.Instance = t.Name()
	ins := boxed(t, cfg)
	ins.Hang, ins.Fill = c.hang, c.fill
	ins.Restart = func() { c.host.stop(); c.logOut(); c.host.start() }
	ins.Starts = func(k adapters.Key) int { return c.starts(jobName(cfg.Instance, k)) }
	return ins
}

// described says which capabilities the description says it lacks.
func described(t *testing.T, cfg Config) map[string]string {
	t.Helper()
	d, err := cfg.Load()
	if err != nil {
		t.Fatal(err)
	}
	return d.Lacks
}

// testFaults has a cloud go wrong, and sees to it that tasks run once, end as they
// should, and leave nothing there.
func testFaults(t *testing.T, begin func(*testing.T) provider) {
	t.Parallel()
	busy := machine.Fault{Status: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {"1"}}, Body: "{}"}
	for name, do := range map[string]struct {
		before  func(provider)         // the start
		during  func(provider, string) // the run, of a job of this name
		outcome pcm.Outcome
		starts  int
	}{
		"nothing":                      {outcome: pcm.OutcomeOK, starts: 1},
		"the answer to create is lost": {before: func(c provider) { c.faults.Next(1, c.create, machine.Fault{Drop: true}) }, outcome: pcm.OutcomeOK, starts: 1},
		"create does not arrive":       {before: func(c provider) { c.faults.Next(1, c.create, machine.Fault{Cut: true}) }, outcome: pcm.OutcomeOK, starts: 1},
		"it is busy":                   {before: func(c provider) { c.faults.Next(2, "", busy) }, outcome: pcm.OutcomeOK, starts: 1},
		"the log-in is forgotten":      {during: func(c provider, _ string) { c.logOut() }, outcome: pcm.OutcomeOK, starts: 1},
		"answers are lost":             {during: func(c provider, _ string) { c.faults.Next(5, "", machine.Fault{Cut: true}) }, outcome: pcm.OutcomeOK, starts: 1},
		"the job is forgotten":         {during: func(c provider, name string) { c.forget(name) }, outcome: pcm.OutcomeSeller, starts: 1},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			c := begin(t)
			ins := c.instance(t)
			task := adaptertest.NewTask()
			steps(t, &task, "out", "ready", "sleep", "3s", "write", "result", "42")
			task.Outputs = []string{"result"}
			if do.before != nil {
				do.before(c)
			}
			if err := ins.Adapter.Start(ctx, task); err != nil {
				t.Fatal(err)
			}
			if do.during != nil {
				if _, err := adaptertest.Wait(ctx, ins.Adapter, task.Key, adapters.Running); err != nil {
					t.Fatal(err)
				}
				do.during(c, jobName(t.Name(), task.Key))
			}
			st, err := adaptertest.Wait(ctx, ins.Adapter, task.Key, adapters.Ended)
			if err != nil || st.Outcome != do.outcome || (st.Outcome == pcm.OutcomeOK) != (st.Reason == "") {
				t.Fatalf("ended as %+v, %v; expected %s", st, err, do.outcome)
			}
			if st.Outcome == pcm.OutcomeOK {
				left, err := ins.Adapter.Results(ctx, task.Key)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := fs.ReadFile(left, "out/result"); string(got) != "42" || err != nil {
					t.Errorf("its output is %q, %v", got, err)
				}
			}
			if n := ins.Starts(task.Key); n != do.starts {
				t.Errorf("it was begun %d times", n)
			}
			var names []string
			until(t, "nothing is left at the cloud", func() bool { names = c.left(); return len(names) == 0 })
		})
	}
}
