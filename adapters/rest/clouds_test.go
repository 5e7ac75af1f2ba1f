package rest

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
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
