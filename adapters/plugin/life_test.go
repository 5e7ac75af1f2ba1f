package plugin

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// used is the CPU time of a process.
func used(t *testing.T, pid int) time.Duration {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var u, s int
	fmt.Sscan(fields[11], &u)
	fmt.Sscan(fields[12], &s)
	return time.Duration(u+s) * 10 * time.Millisecond
}

func (r *rig) extend(k adapters.Key) {
	r.t.Helper()
	if err := r.ins.Adapter.(adapters.Fencer).Extend(r.ctx, map[adapters.Key]adapters.BootTime{k: adapters.Now().Add(5 * time.Minute)}); err != nil {
		r.t.Fatal(err)
	}
}

// The plug-in outlives its supervisor, and is adopted by the next.
func TestAdoption(t *testing.T) {
	r := newRig(t, "good")
	r.pools()
	pid := pluginPID(t, r.f)
	k := r.start(r.task("out", "ready", "await", "go", "out", "over"))
	r.reach(k, adapters.Running)
	r.ins.Box.Kill()
	if born(pid) == "" {
		t.Fatal("the plug-in has ended with its supervisor")
	}
	r.ins.Adapter = r.ins.Reconnect()
	r.extend(k)
	r.reach(k, adapters.Running)
	if now := pluginPID(t, r.f); now != pid {
		t.Errorf("process %d was not adopted: %d serves", pid, now)
	}
	r.proceed(k)
	r.expect(r.reach(k, adapters.Ended), pcm.OutcomeOK, "")
	if n := r.ins.Starts(k); n != 1 {
		t.Errorf("it was begun %d times", n)
	}
	r.ins.Box.End()
	wait(t, "the plug-in ends with a supervisor that ends in order", func() bool { return born(pid) == "" })
}

// proceed makes the file that a task waits for.
func (r *rig) proceed(k adapters.Key) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.ins.Box.Dir, "tasks", k.String(), "work", "go"), nil, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// Both are killed: the next supervisor starts the plug-in anew, which finds what it ran.
func TestBothKilled(t *testing.T) {
	r := newRig(t, "good")
	k := r.start(r.task("out", "ready", "await", "go", "out", "over"))
	r.reach(k, adapters.Running)
	pid := pluginPID(t, r.f)
	r.ins.Box.Kill()
	syscall.Kill(pid, syscall.SIGKILL)
	wait(t, "it is gone", func() bool { return born(pid) == "" })
	r.ins.Adapter = r.ins.Reconnect()
	r.extend(k)
	r.reach(k, adapters.Running)
	if now := pluginPID(t, r.f); now == pid {
		t.Error("a dead process serves")
	}
	r.proceed(k)
	r.expect(r.reach(k, adapters.Ended), pcm.OutcomeOK, "")
	if n := r.ins.Starts(k); n != 1 {
		t.Errorf("it was begun %d times", n)
	}
}

// What a plug-in has lost is the site's fault, and is not started again.
func TestLost(t *testing.T) {
	r := newRig(t, "good")
	k := r.start(r.task("out", "ready", "sleep", "5m"))
	r.reach(k, adapters.Running)
	pid := pluginPID(t, r.f)
	if err := os.Rename(filepath.Join(r.f.lasting(), "tasks", k.String()), filepath.Join(t.TempDir(), "lost")); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	r.expect(r.reach(k, adapters.Ended), pcm.OutcomeSeller, "does not know it any more")
	if n := r.ins.Starts(k); n != 1 {
		t.Errorf("it was begun %d times", n)
	}
}

// A plug-in of other settings is replaced.
func TestOtherSettings(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cfg := testConfig(dir, "good")
	cfg.Times = cfg.Times.defaults()
	f, err := cfg.folders()
	if err != nil {
		t.Fatal(err)
	}
	first, err := launch(cfg, f, newHost(cfg, f).of, "nonce") // by a supervisor that was lost
	if err != nil {
		t.Fatal(err)
	}
	if err := store(f.stateFile(), first.state); err != nil {
		t.Fatal(err)
	}
	cfg.Settings = []byte(`{"answer": 43}`)
	r, err := NewRunner(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	defer r.Close(t.Context())
	wait(t, "the first is gone", func() bool { return born(first.PID) == "" })
	wait(t, "another one is up", func() bool {
		s, err := loadState(f.stateFile())
		return err == nil && s.PID != first.PID && s.Trouble == "" && born(s.PID) == s.Born
	})
}

// A plug-in that is another user's reaches nothing of ours, and works all the same.
func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT ROOT: PLUG-INS AS USERS OF THEIR OWN ARE NOT TESTED HERE")
	}
	if _, err := user.Lookup("nobody"); err != nil {
		t.Skip("THERE IS NO USER nobody: PLUG-INS AS USERS OF THEIR OWN ARE NOT TESTED HERE")
	}
	r := newRig(t, "good nobody")
	secret := filepath.Join(r.ins.Box.Dir, "secret")
	if err := os.WriteFile(secret, []byte("treasure"), 0o600); err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, []byte("of the input\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	task := r.task("try", "cat", secret, "cat", "in.txt", "write", "d/one", "1", "symlink", secret, "d/leak", "symlink", "one", "d/two", "out", "done")
	task.Inputs = append(task.Inputs, adapters.Mount{Path: in, Target: "in.txt"})
	task.Outputs = []string{"d"}
	k := r.start(task)
	st := r.reach(k, adapters.Ended)
	r.expect(st, pcm.OutcomeOK, "")
	pid := pluginPID(t, r.f)
	info, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	if err != nil || ownerOf(info) != int(r.f.number.uid) {
		t.Errorf("the plug-in is a process of user %d: %v", ownerOf(info), err)
	}
	out, err := r.ins.Adapter.Results(r.ctx, k)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"out/d/one": "1", "out/d/two": "1"} {
		if data, err := readFS(out, name); err != nil || data != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if data, err := readFS(out, "out/d/leak"); err == nil {
		t.Errorf("a link leads out: %q", data)
	}
	text, err := readFS(out, "stdout")
	if err != nil || !strings.HasPrefix(text, "refused: ") || !strings.HasSuffix(text, "of the input\ndone\n") {
		t.Errorf("stdout %q, %v", text, err)
	}
	wait(t, "what was staged is gone", func() bool { return !exists(r.f.stageOf(k.String())) })
}
