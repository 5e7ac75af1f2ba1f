package machine

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func start(t *testing.T, spec Spec, script string) *Process {
	t.Helper()
	spec.Dir = filepath.Join(t.TempDir(), "job")
	spec.Command = []string{"/bin/sh", "-c", script}
	spec.Env = append(spec.Env, "PATH="+os.Getenv("PATH"))
	p, err := Run(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); p.Wait() })
	return p
}

// until waits for a condition.
func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.After(time.Minute)
	for !f() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-end:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func output(p *Process) string {
	data, _ := p.Output(0, 1<<20)
	return string(data)
}

func TestRun(t *testing.T) {
	p := start(t, Spec{Env: []string{"A=b c"}}, `echo "$A"; echo err >&2; pwd; echo x >file; exit 3`)
	if e := p.Wait(); e.Code != 3 || e.Stopped || e.OutOfMemory || e.Began.IsZero() || e.Ended.Before(e.Began) {
		t.Errorf("%+v", e)
	}
	if got, want := output(p), "b c\nerr\n"+p.spec.Dir+"\n"; got != want {
		t.Errorf("output %q, expected %q", got, want)
	}
	if data, total := p.Output(4, 3); string(data) != "err" || total != int64(len(output(p))) {
		t.Errorf("from 4: %q of %d", data, total)
	}
	if _, err := os.Stat(filepath.Join(p.spec.Dir, "file")); err != nil {
		t.Error(err)
	}
	if _, err := Run(Spec{Dir: t.TempDir(), Command: []string{"/no/such/program"}}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such program: %v", err)
	}
	if _, err := Run(Spec{Dir: t.TempDir()}); err == nil {
		t.Error("nothing was run")
	}
}

func TestStop(t *testing.T) {
	p := start(t, Spec{}, `trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done`)
	until(t, "it is ready", func() bool { return output(p) == "ready\n" })
	p.Stop(time.Minute)
	if e := p.Wait(); e.Code != 7 || !e.Stopped || !strings.HasSuffix(output(p), "bye\n") {
		t.Errorf("%+v, %q", e, output(p))
	}
	p = start(t, Spec{}, `trap '' TERM; echo ready; while :; do sleep 0.05; done`)
	until(t, "it is ready", func() bool { return output(p) == "ready\n" })
	p.Stop(50 * time.Millisecond)
	if e := p.Wait(); e.Code != 128+9 || !e.Stopped {
		t.Errorf("%+v", e)
	}
	p.Stop(0) // nothing happens
	if e := p.Wait(); e.Code != 128+9 {
		t.Errorf("%+v", e)
	}
}

// A machine goes away as a whole: no shell in it is left to say that another process was killed.
func TestKillIsSilent(t *testing.T) {
	p := start(t, Spec{}, `for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sh -c 'echo .; sleep 300; :' & done; wait`)
	until(t, "all are there", func() bool { return len(output(p)) == 40 })
	p.Kill()
	p.Wait()
	if got := output(p); strings.Trim(got, ".\n") != "" {
		t.Errorf("it printed %q", got)
	}
}

// What a task leaves behind ends with it, in whatever session.
func TestDescendants(t *testing.T) {
	for name, script := range map[string]string{
		"by itself": `setsid sleep 300 & echo $!; until [ -e go ]; do sleep 0.02; done`,
		"killed":    `setsid sleep 300 & echo $!; sleep 300`,
	} {
		p := start(t, Spec{}, script)
		until(t, "the child is there", func() bool { return strings.HasSuffix(output(p), "\n") })
		child, err := strconv.Atoi(strings.TrimSpace(output(p)))
		if err != nil {
			t.Fatal(err)
		}
		until(t, "the child is seen", func() bool {
			p.kin.mu.Lock()
			defer p.kin.mu.Unlock()
			return p.kin.known[child] != 0
		})
		if name == "killed" {
			p.Kill()
		} else if err := os.WriteFile(filepath.Join(p.spec.Dir, "go"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		p.Wait()
		until(t, "the child has ended", func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(child) + "/stat")
			return err != nil || strings.Contains(string(stat), ") Z ")
		})
	}
}

func TestBounds(t *testing.T) {
	p := start(t, Spec{OutputLimit: 1000}, `yes | head -c 500000; echo end >done`)
	if e := p.Wait(); e.Code != 0 || len(output(p)) != 1000 {
		t.Errorf("%+v, %d bytes kept", e, len(output(p)))
	}
	if _, err := os.Stat(filepath.Join(p.spec.Dir, "done")); err != nil {
		t.Error("the task stood still at its output's limit")
	}
	p = start(t, Spec{Memory: 64 << 20}, `x=$(head -c 100000000 /dev/zero | tr '\0' x); sleep 300`)
	if e := p.Wait(); e.Code != 128+9 || !e.OutOfMemory || e.Memory < 64<<20 {
		t.Errorf("%+v", e)
	}
	// Each of three holds less than the bound, together they hold more.
	hungry := `for i in 1 2 3; do (sh -c 'x=$(head -c 30000000 /dev/zero | tr "\0" x); sleep 300'; echo "code $?") & done; wait`
	var killed atomic.Int32
	p = start(t, Spec{Memory: 64 << 20, Hungriest: func(pid int) { killed.Store(int32(pid)) }}, hungry)
	until(t, "one is killed", func() bool { return strings.Contains(output(p), "code 137") && killed.Load() != 0 })
	p.Kill()
	if e := p.Wait(); !e.OutOfMemory {
		t.Errorf("%+v", e)
	}
	// One that is too quick to be seen gets no more than a quarter over the bound.
	p = start(t, Spec{Memory: 64 << 20, Hungriest: func(int) {}}, `sh -c 'x=$(head -c 200000000 /dev/zero | tr "\0" x)'; echo "code $?"`)
	if p.Wait(); !strings.Contains(output(p), "code ") || strings.Contains(output(p), "code 0") {
		t.Errorf("%q", output(p))
	}
	p = start(t, Spec{Memory: 1 << 30}, `head -c 1000000 /dev/zero | tail -c 1000000 | wc -c`)
	if e := p.Wait(); e.Code != 0 || e.OutOfMemory || strings.TrimSpace(output(p)) != "1000000" {
		t.Errorf("%+v, %q", e, output(p))
	}
}

func TestPause(t *testing.T) {
	p := start(t, Spec{}, `while :; do echo tick; sleep 0.02; done`)
	until(t, "it ticks", func() bool { return output(p) != "" })
	p.Pause(true)
	until(t, "it stands", func() bool {
		stat, _ := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
		return strings.Contains(string(stat), ") T ")
	})
	p.Pause(false)
	before := len(output(p))
	until(t, "it goes on", func() bool { return len(output(p)) > before })
	p.Pause(true)
	p.Stop(time.Minute) // reaches what is halted
	if e := p.Wait(); e.Code != 128+int(syscall.SIGTERM) {
		t.Errorf("%+v", e)
	}
}

func TestFaults(t *testing.T) {
	var f Faults
	var done atomic.Int32
	s := httptest.NewServer(f.Wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done.Add(1)
		_, _ = io.WriteString(w, "ok")
	})))
	defer s.Close()
	// Without connections that are kept open the client doesn't try again by itself.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	call := func(ctx context.Context, method, path string) string {
		req, err := http.NewRequestWithContext(ctx, method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return "lost"
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return strconv.Itoa(res.StatusCode) + " " + res.Header.Get("Retry-After") + string(body)
	}
	ctx := context.Background()
	f.Next(2, "POST /jobs", Fault{Status: 503, Header: http.Header{"Retry-After": {"1"}}, Body: " busy"})
	f.Next(1, "POST /jobs", Fault{Drop: true})
	f.Next(1, "DELETE", Fault{Cut: true})
	for _, c := range []struct {
		method, path, want string
		done               int
	}{
		{"GET", "/jobs", "200 ok", 1},
		{"POST", "/jobs", "503 1 busy", 1},
		{"POST", "/jobs", "503 1 busy", 1},
		{"POST", "/other", "200 ok", 2},
		{"POST", "/jobs", "lost", 3},
		{"POST", "/jobs", "200 ok", 4},
		{"DELETE", "/jobs", "lost", 4},
		{"DELETE", "/jobs", "200 ok", 5},
	} {
		if got := call(ctx, c.method, c.path); got != c.want || int(done.Load()) != c.done {
			t.Errorf("%s %s: %q, %d done; expected %q, %d", c.method, c.path, got, done.Load(), c.want, c.done)
		}
	}
	if n := f.Count("POST /jobs"); n != 4 {
		t.Errorf("%d calls are counted, not 4", n)
	}
	resume := f.Hang()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if got := call(short, "GET", "/jobs"); got != "lost" {
		t.Errorf("hung, and answered %q", got)
	}
	answer := make(chan string, 1)
	go func() { answer <- call(ctx, "GET", "/jobs") }()
	until(t, "the call is there", func() bool { return f.Count("GET /jobs") == 3 })
	resume()
	if got := <-answer; got != "200 ok" {
		t.Errorf("resumed, and answered %q", got)
	}
	f.Slow(30 * time.Millisecond)
	if began := time.Now(); call(ctx, "GET", "/jobs") != "200 ok" || time.Since(began) < 30*time.Millisecond {
		t.Error("the answer was not late")
	}
}

func TestRoom(t *testing.T) {
	ready := func(p *Place) bool {
		select {
		case <-p.Ready():
			return true
		default:
			return false
		}
	}
	r := NewRoom(4)
	a, b, c, d := r.Enter(3), r.Enter(2), r.Enter(1), r.Enter(1)
	if !ready(a) || ready(b) || ready(c) || ready(d) {
		t.Error("the first has its place, and nobody overtakes")
	}
	if !ready(r.Enter(0)) {
		t.Error("who wants nothing waits")
	}
	c.Leave()
	a.Leave()
	a.Leave() // once only
	if !ready(b) || ready(c) || !ready(d) {
		t.Error("the next two have their places, and who left has none")
	}
	if all, taken := r.Use(); all != 4 || taken != 3 {
		t.Errorf("%d of %d taken", taken, all)
	}
}
