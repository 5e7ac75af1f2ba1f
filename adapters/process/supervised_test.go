package process

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// lab is a box with the adapter in one mode.
type lab struct {
	t   *testing.T
	box *adaptertest.Box
	a   *Adapter
	ctx context.Context
}

func newLab(t *testing.T, mode string) *lab {
	t.Helper()
	needs(t, mode)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	box := adaptertest.NewBox(t, mode)
	return &lab{t, box, New(Config{}, box.Client()), ctx}
}

func (l *lab) reconnect() { l.a = New(Config{}, l.box.Reconnect()) }

// start starts a script, or a command if change makes it one.
func (l *lab) start(change func(*adapters.Task), steps ...string) adapters.Task {
	l.t.Helper()
	task := adaptertest.NewTask()
	script(l.t, &task, steps...)
	if change != nil {
		change(&task)
	}
	if err := l.a.Start(l.ctx, task); err != nil {
		l.t.Fatal(err)
	}
	return task
}

func (l *lab) wait(k adapters.Key, s adapters.State) adapters.Status {
	l.t.Helper()
	st, err := adaptertest.Wait(l.ctx, l.a, k, s)
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// waitAgain waits for the end across the loss of the supervisor.
func (l *lab) waitAgain(k adapters.Key) adapters.Status {
	l.t.Helper()
	for {
		st, err := adaptertest.Wait(l.ctx, l.a, k, adapters.Ended)
		if err == nil {
			return st
		}
		if l.ctx.Err() != nil {
			l.t.Fatal(err)
		}
	}
}

func (l *lab) stdout(k adapters.Key, follow bool) string {
	l.t.Helper()
	r, err := l.a.Logs(l.ctx, k, adapters.Stdout, 0, follow)
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	var buf bytes.Buffer
	buf.ReadFrom(r)
	return buf.String()
}

// await polls for what the kernel doesn't tell of.
func (l *lab) await(what string, f func() bool) {
	l.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// alive counts the processes with the task's mark.
func alive(k adapters.Key) int {
	n := 0
	for _, pid := range processes() {
		env, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if bytes.Contains(env, []byte("PCM_ATTEMPT="+k.String())) {
			n++
		}
	}
	return n
}

func forModes(t *testing.T, f func(*testing.T, *lab)) {
	for _, mode := range modes {
		t.Run(strings.ReplaceAll(mode, " ", "_"), func(t *testing.T) {
			t.Parallel()
			f(t, newLab(t, mode))
		})
	}
}

// A killed supervisor takes its tasks along, and the next one says so.
func TestSupervisorKilled(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		task := l.start(nil, "child", "5m", "out", "ready", "sleep", "5m")
		l.await("its output", func() bool { return strings.Contains(l.stdout(task.Key, false), "ready") })
		if alive(task.Key) < 2 {
			t.Fatalf("%d processes are alive", alive(task.Key))
		}
		l.box.Signal(syscall.SIGKILL)
		l.await("the death of the main process", func() bool { return alive(task.Key) < 2 })
		// The child in a session of its own is found by the next supervisor.
		st := l.waitAgain(task.Key)
		if st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "supervisor ended") {
			t.Errorf("%+v", st)
		}
		l.await("the death of all", func() bool { return alive(task.Key) == 0 })
	})
}

// Without a daemon tasks go on, until their lease is over.
func TestDaemonGone(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		lease := 1200 * time.Millisecond
		task := l.start(func(t *adapters.Task) { t.Deadline = adapters.Now().Add(lease) }, "out", "ready", "sleep", "5m")
		quick := l.start(func(t *adapters.Task) { t.Deadline = adapters.Now().Add(time.Minute) }, "sleep", "500ms", "out", "done")
		pid := l.box.PID()
		l.await("its output", func() bool { return l.stdout(task.Key, false) != "" })
		l.box.Client().Close()
		l.await("the lease's end", func() bool { return alive(task.Key) == 0 })
		if early := task.Deadline.Until(); early > 0 {
			t.Errorf("killed %s before its lease was over", early)
		}
		l.reconnect()
		if l.box.PID() != pid {
			t.Error("another supervisor answers")
		}
		if st := l.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeSeller || !strings.HasPrefix(st.Reason, "lease ended") {
			t.Errorf("%+v", st)
		}
		if st := l.wait(quick.Key, adapters.Ended); st.Outcome != pcm.OutcomeOK {
			t.Errorf("%+v", st)
		}
	})
}

// A supervisor that was stopped ends what is overdue as soon as it runs again.
func TestSupervisorStopped(t *testing.T) {
	l := newLab(t, plain)
	task := l.start(func(t *adapters.Task) { t.Deadline = adapters.Now().Add(500 * time.Millisecond) }, "sleep", "5m")
	l.wait(task.Key, adapters.Running)
	resume := l.box.Hang()
	defer resume()
	l.await("the lease's end", func() bool { return task.Deadline.Until() < -300*time.Millisecond })
	resume()
	if st := l.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeSeller || st.Usage.WallMS > 10_000 {
		t.Errorf("%+v", st)
	}
}

// What a task leaves running dies with it, and doesn't hold its end up.
func TestLeftovers(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		task := l.start(nil, "child", "5m", "out", "bye")
		st := l.wait(task.Key, adapters.Ended)
		if st.Outcome != pcm.OutcomeOK || st.Usage.WallMS > 20_000 {
			t.Errorf("%+v", st)
		}
		if n := alive(task.Key); n != 0 {
			t.Errorf("%d processes are left", n)
		}
		if out := l.stdout(task.Key, false); !strings.HasSuffix(out, "bye\n") {
			t.Errorf("stdout %q", out)
		}
	})
}

func TestCommands(t *testing.T) {
	forModes(t, func(t *testing.T, l *lab) {
		dir := t.TempDir()
		for name, f := range map[string]struct {
			text string
			mode os.FileMode
		}{"data": {"x", 0o644}, "noint": {"#!/no/such/interpreter\n", 0o755}, "script": {"#!/bin/sh\necho run as $0 in $PWD\nexit 9\n", 0o755}} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(f.text), f.mode); err != nil {
				t.Fatal(err)
			}
			os.Chmod(filepath.Join(dir, name), f.mode)
		}
		for _, c := range []struct {
			command []string
			code    int
			reason  string
		}{
			{[]string{"true"}, 0, ""},
			{[]string{"/usr/bin/false"}, 1, "exit code 1"},
			{[]string{"sh", "-c", "exit 255"}, 255, "exit code 255"},
			{[]string{"sh", "-c", "kill -SEGV $$"}, 139, "signal 11"},
			{[]string{"in/script"}, 9, "exit code 9"},
			{[]string{"in/data"}, 126, "can't be run"},
			{[]string{"./in"}, 126, "can't be run"},
			{[]string{"in/none"}, 127, "not found"},
			{[]string{"/no/such/program"}, 127, "not found"},
			{[]string{"in/noint"}, 127, "not found"},
			{[]string{"no-such-program"}, 127, "not found"},
			{[]string{"awk", "BEGIN { exit 4 }"}, 4, "exit code 4"},
		} {
			task := l.start(func(t *adapters.Task) {
				t.Command, t.Inputs, t.Env = c.command, []adapters.Mount{{Path: dir, Target: "in"}}, nil
			})
			st := l.wait(task.Key, adapters.Ended)
			if st.ExitCode != c.code || !strings.Contains(st.Reason, c.reason) || st.Outcome == pcm.OutcomeSeller {
				t.Errorf("%q: %s, exit code %d, %q", c.command, st.Outcome, st.ExitCode, st.Reason)
			}
		}
	})
}

// A sandboxed task sees the system's programs, its own folder, and nothing else.
func TestSandbox(t *testing.T) {
	l := newLab(t, sandboxed)
	secret := filepath.Join(l.box.Dir, "secret")
	if err := os.WriteFile(secret, []byte("treasure"), 0o644); err != nil {
		t.Fatal(err)
	}
	task := l.start(func(t *adapters.Task) {
		t.Env["LD_PRELOAD"] = "/work/evil.so" // must act inside only, where there is no such file
	}, "out", "begin", "try", "cat", secret, "try", "cat", "/etc/shadow", "try", "ls", "/root", "try", "ls", "/sys", "try", "ls", "/home",
		"try", "write", "/usr/x", "x", "try", "write", "/etc/x", "x", "write", "/tmp/x", "tmp", "cat", "/tmp/x", "out", "",
		"ls", "/", "out", "fds", "ls", "/proc/self/fd", "out", "net", "cat", "/proc/net/dev", "out", "user", "try", "cat", "/proc/self/uid_map", "cat", "/proc/self/cgroup")
	st := l.wait(task.Key, adapters.Ended)
	out := l.stdout(task.Key, false)
	if st.Outcome != pcm.OutcomeOK {
		t.Fatalf("%+v\n%s", st, out)
	}
	if strings.Contains(out, "treasure") || strings.Contains(out, "root:x") || strings.Contains(out, l.box.Dir+"/tasks") {
		t.Errorf("it sees the host:\n%s", out)
	}
	if n := strings.Count(out, "refused:"); n < 6 {
		t.Errorf("%d of its tries were refused:\n%s", n, out)
	}
	_, rest, _ := strings.Cut(out, "fds\n")
	fds, net, _ := strings.Cut(rest, "net\n")
	if n := len(strings.Fields(fds)); n > 6 { // three, the folder being listed, two of the runtime
		t.Errorf("it has inherited descriptors: %q", fds)
	}
	for _, line := range strings.Split(net, "\n") {
		if name, _, ok := strings.Cut(line, ":"); ok && strings.Contains(line, " 0 ") && strings.TrimSpace(name) != "lo" {
			t.Errorf("it has a network: %q", line)
		}
	}
	if got, _, _ := strings.Cut(out, "\n"); got != "begin" {
		t.Errorf("stdout begins with %q", got)
	}
	// It was bwrap's own environment that stayed clean.
	b, err := findBubblewrap(RunnerConfig{Dir: l.box.Dir})
	if err != nil {
		t.Fatal(err)
	}
	s, err := b.prepare(&supervisor.Run{Task: task, Work: t.TempDir()}, surroundings{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if strings.Contains(strings.Join(s.env, " "), "LD_PRELOAD") {
		t.Errorf("the task's environment reaches bwrap itself: %q", s.env)
	}
}

// The data folder stays hidden even where a visible folder holds it.
func TestSandboxHides(t *testing.T) {
	needs(t, sandboxed)
	shown := t.TempDir()
	dir := filepath.Join(shown, "data", "supervisor")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := findBubblewrap(RunnerConfig{Dir: dir, ReadOnly: []string{shown}, Hide: []string{filepath.Join(shown, "data")}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(b.path, append(b.common(1<<20), "--", "ls", "-A", shown, filepath.Join(shown, "data"))...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "supervisor") || !strings.Contains(string(out), "data") {
		t.Errorf("%q, %v", out, err)
	}
}

// Without a sandbox inputs are copies; links in them don't lead out.
func TestCopiedLinks(t *testing.T) {
	l := newLab(t, plain)
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(outside, []byte("treasure"), 0o644)
	os.WriteFile(filepath.Join(dir, "a"), []byte("alpha\n"), 0o644)
	os.Mkdir(filepath.Join(dir, "d"), 0o755)
	for name, to := range map[string]string{"good": "a", "d/up": "../a", "abs": outside, "out": "../../../../../.." + outside, "d/out": "../../x"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644)
	task := l.start(func(t *adapters.Task) { t.Inputs = append(t.Inputs, adapters.Mount{Path: dir, Target: "in"}) }, "ls", "in", "ls", "in/d", "cat", "in/good", "cat", "in/d/up")
	st := l.wait(task.Key, adapters.Ended)
	if out := l.stdout(task.Key, false); st.Outcome != pcm.OutcomeOK || out != "a\nd\ngood\nup\nalpha\nalpha\n" {
		t.Errorf("%+v: %q", st, out)
	}
}

// A supervisor of another version is replaced when it has nothing to do.
func TestUpgrade(t *testing.T) {
	l := newLab(t, plain)
	l.box.Version = "1"
	l.reconnect()
	first := l.box.PID()
	task := l.start(nil, "out", "ready", "sleep", "5m")
	l.wait(task.Key, adapters.Running)
	l.box.Version = "2"
	l.reconnect()
	if l.box.PID() != first {
		t.Fatal("the old supervisor was replaced while a task ran under it")
	}
	if err := l.a.Stop(l.ctx, task.Key, 0, "upgrade"); err != nil {
		t.Fatal(err)
	}
	l.wait(task.Key, adapters.Ended)
	l.reconnect()
	if l.box.PID() == first {
		t.Fatal("the old supervisor is still there")
	}
	if st := l.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeStopped {
		t.Errorf("what the old one ran: %+v", st)
	}
}

// An output that its owner may not read comes back all the same, and its
// folder can be removed.
func TestUnreadableOutputs(t *testing.T) {
	l := newLab(t, plain)
	task := l.start(func(t *adapters.Task) {
		t.Command = []string{"sh", "-c", "mkdir -p d/e && echo x >d/e/f && mkfifo d/pipe && chmod 0 d/e/f d/e d"}
		t.Outputs = []string{"d"}
	})
	if st := l.wait(task.Key, adapters.Ended); st.Outcome != pcm.OutcomeOK {
		t.Fatalf("%+v", st)
	}
	info, err := os.Stat(filepath.Join(l.box.Dir, "tasks", task.Key.String(), "work/d/e/f"))
	if err != nil || info.Mode()&0o400 == 0 {
		t.Errorf("%v, %v", info, err)
	}
	if err := l.a.Remove(l.ctx, task.Key); err != nil {
		t.Error(err)
	}
}
