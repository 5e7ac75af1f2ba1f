package plugin

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

// rig is a plug-in in some mode, and what tests do with it.
type rig struct {
	t   *testing.T
	ins adaptertest.Instance
	ctx context.Context
	f   folders
}

func newRig(t *testing.T, mode string) *rig {
	t.Helper()
	t.Parallel()
	r := &rig{t: t, ins: instance(t, mode)}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	f, err := testConfig(r.ins.Box.Dir, mode).folders()
	if err != nil {
		t.Fatal(err)
	}
	r.ctx, r.f = ctx, f
	return r
}

func (r *rig) task(steps ...string) adapters.Task {
	task := adaptertest.NewTask()
	script(r.t, &task, steps...)
	return task
}

func (r *rig) start(task adapters.Task) adapters.Key {
	r.t.Helper()
	if err := r.ins.Adapter.Start(r.ctx, task); err != nil {
		r.t.Fatal(err)
	}
	return task.Key
}

func (r *rig) reach(k adapters.Key, state adapters.State) adapters.Status {
	r.t.Helper()
	st, err := adaptertest.Wait(r.ctx, r.ins.Adapter, k, state)
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

func (r *rig) run(task adapters.Task) adapters.Status {
	r.t.Helper()
	return r.reach(r.start(task), adapters.Ended)
}

func (r *rig) expect(st adapters.Status, outcome pcm.Outcome, words string) {
	r.t.Helper()
	if st.Outcome != outcome || !strings.Contains(st.Reason, words) {
		r.t.Fatalf("ended as %s, %d, %q; expected %s, %q", st.Outcome, st.ExitCode, st.Reason, outcome, words)
	}
}

// trouble waits until Pools says that the plug-in can't be used, and why.
func (r *rig) trouble(words string) {
	r.t.Helper()
	var pools []pcm.Pool
	var err error
	wait(r.t, "Pools says "+words, func() bool {
		ctx, cancel := context.WithTimeout(r.ctx, 5*time.Second)
		defer cancel()
		pools, err = r.ins.Adapter.Pools(ctx)
		if err == nil && len(pools) > 0 {
			r.t.Fatalf("it offers %v", pools)
		}
		if pcm.ErrorCode(err) != pcm.Unavailable {
			r.t.Fatalf("pools: %v", err)
		}
		return strings.Contains(err.Error(), words)
	})
}

func (r *rig) pools() []pcm.Pool {
	r.t.Helper()
	pools, err := r.ins.Adapter.Pools(r.ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return pools
}

func TestGreeting(t *testing.T) {
	r := newRig(t, "greeting")
	if pools := r.pools(); len(pools) != 1 || pools[0].ID != "proc.local" || pools[0].Adapter != "proc" {
		t.Errorf("pools %+v", pools)
	}
	for _, name := range []string{r.f.stateFile(), r.f.logFile(), filepath.Join(r.ins.Box.Dir, "supervisor.log")} {
		if data, err := os.ReadFile(name); err != nil || strings.Contains(string(data), testSecret) {
			t.Errorf("%s shows the secret, or: %v", name, err)
		}
	}
}

// What can't be used is not offered, with a reason for people.
func TestUnusable(t *testing.T) {
	for mode, words := range map[string]string{
		"old":      "speaks version 0",
		"new":      "it speaks version 7 of the contract of plug-ins, this peer versions 1 to 1: take a plug-in or a PCM that fits",
		"impostor": "is not the process that was started",
		"gossip":   "can't log in with ***",
		"doomed":   "the queue manager is not installed",
		"lazy":     "did not listen on PCM_PLUGIN_SOCKET within 1s",
		"huge":     "more than 4194304 bytes",
		"many":     "names 1001 pools: at most 64",
	} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t, mode)
			r.trouble(words)
			if mode == "doomed" { // what is to run there waits, and can be stopped
				k := r.start(r.task("out", "x"))
				st := r.reach(k, adapters.Pending)
				wait(t, "it says why it waits", func() bool {
					all, err := r.ins.Adapter.List(r.ctx)
					return err == nil && len(all) == 1 && strings.Contains(all[0].Reason, "the queue manager is not installed")
				})
				if err := r.ins.Adapter.Stop(r.ctx, k, 0, "never mind"); err != nil {
					t.Fatal(err, st)
				}
				r.expect(r.reach(k, adapters.Ended), pcm.OutcomeStopped, "never mind")
			}
		})
	}
}

// The log of a plug-in is bounded before it listens, too.
func TestChatty(t *testing.T) {
	r := newRig(t, "chatty")
	if _, err := r.ins.Adapter.(*Adapter).Facts(r.ctx); err != nil {
		t.Fatal(err)
	}
	wait(t, "its log was cut", func() bool {
		info, err := os.Stat(r.f.logFile())
		old, oldErr := os.Stat(r.f.logFile() + ".1")
		return err == nil && oldErr == nil && info.Size() <= maxLog && old.Size() <= maxLog
	})
}

// Of pools that can't be, none is offered; the good one is.
func TestLyingPools(t *testing.T) {
	r := newRig(t, "liar")
	pools := r.pools()
	if len(pools) != 1 || pools[0].ID != "proc.local" || pools[0].Slots != 64 {
		t.Errorf("pools %+v", pools)
	}
}

// What one task may have is the plug-in's to say, and never more than the pool has.
func TestSizes(t *testing.T) {
	r := newRig(t, "sizes")
	got := map[pcm.PoolID]pcm.Pool{}
	for _, p := range r.pools() {
		got[p.ID] = p
	}
	if p := got["proc.cells"]; p.Largest == nil || *p.Largest != (pcm.Resources{CPU: 250, Memory: 256 << 20}) || p.Most().CPU != 250 || !p.NoFiles {
		t.Errorf("cells: %+v, one task has %v", p, p.Largest)
	}
	for _, id := range []pcm.PoolID{"proc.whole", "proc.unsaid", "proc.local"} { // local is of a plug-in that knows nothing of it
		if p, ok := got[id]; !ok || p.Largest != nil || p.NoFiles || p.Most() != p.Capacity {
			t.Errorf("%s: %+v", id, p)
		}
	}
	if p := got["proc.boast"]; p.Most().CPU != 1000 {
		t.Errorf("a task of a pool of one core may have %s", p.Most())
	}
}

// A crash in the middle of a call loses nothing, and starts nothing twice.
func TestCrashes(t *testing.T) {
	for _, method := range []string{"Handshake", "Start", "Logs", "Outputs", "Remove", "Stop"} {
		t.Run(method, func(t *testing.T) {
			r := newRig(t, "crash:"+method)
			task := r.task("out", "hello", "write", "one", "1", "exit", "3")
			task.Outputs = []string{"one"}
			if method == "Stop" {
				task = r.task("out", "hello", "sleep", "5m")
			}
			k := r.start(task)
			if method == "Stop" {
				r.reach(k, adapters.Running)
				if err := r.ins.Adapter.Stop(r.ctx, k, time.Minute, "enough"); err != nil {
					t.Fatal(err)
				}
				r.expect(r.reach(k, adapters.Ended), pcm.OutcomeStopped, "enough")
			} else if st := r.reach(k, adapters.Ended); st.Outcome != pcm.OutcomeFailed || st.ExitCode != 3 {
				t.Errorf("ended as %+v", st)
			}
			wait(t, "it crashed", func() bool { return exists(filepath.Join(r.f.lasting(), "crashed")) })
			wait(t, "it is forgotten", func() bool { return !exists(filepath.Join(r.f.lasting(), "tasks", k.String())) })
			if n := r.ins.Starts(k); n != 1 {
				t.Errorf("it was begun %d times", n)
			}
		})
	}
}

// A call that hangs is an error in time, and is made again where it must be.
func TestHangs(t *testing.T) {
	t.Run("Pools", func(t *testing.T) {
		r := newRig(t, "hangs:Pools")
		r.trouble("no answer in time")
		if st := r.run(r.task("out", "x")); st.Outcome != pcm.OutcomeOK { // what runs is not touched
			t.Errorf("ended as %+v", st)
		}
	})
	t.Run("Start", func(t *testing.T) {
		r := newRig(t, "hangs:Start")
		task := r.task("out", "x")
		task.Deadline = adapters.Now().Add(3 * time.Second)
		r.expect(r.run(task), pcm.OutcomeSeller, "lease ended")
	})
	t.Run("mute", func(t *testing.T) { // it is ended, and started anew
		r := newRig(t, "mute")
		r.ins.Adapter.Pools(r.ctx) // starts it; on a busy machine it may be ended before it answers
		before := pluginPID(t, r.f)
		wait(t, "another process", func() bool {
			s, err := loadState(r.f.stateFile())
			return err == nil && s.PID != before && born(s.PID) == s.Born
		})
		if log, err := os.ReadFile(filepath.Join(r.ins.Box.Dir, "supervisor.log")); err != nil || !strings.Contains(string(log), "it was silent for") {
			t.Errorf("nothing says why: %v", err)
		}
	})
}

// A fault is the site's, and its words are fit to be shown.
func TestFaults(t *testing.T) {
	r := newRig(t, "fail:Start")
	st := r.run(r.task("out", "x"))
	r.expect(st, pcm.OutcomeSeller, "segmentation fault")
	if strings.ContainsAny(st.Reason, "\x1b\n") {
		t.Errorf("reason %q", st.Reason)
	}
	r = &rig{t: t, ins: instance(t, "forget"), ctx: r.ctx}
	task := r.task("write", "one", "1")
	task.Outputs = []string{"one"}
	r.expect(r.run(task), pcm.OutcomeSeller, "no outputs here")
	r = &rig{t: t, ins: instance(t, "overfull"), ctx: r.ctx}
	r.expect(r.run(r.task("out", "x")), pcm.OutcomeSeller, "3145728")
}

// What it tells of others, or of what it was not given, is passed over.
func TestBabble(t *testing.T) {
	r := newRig(t, "babble")
	st := r.run(r.task("out", "mine", "sleep", "300ms", "exit", "4"))
	if st.Outcome != pcm.OutcomeFailed || st.ExitCode != 4 {
		t.Errorf("ended as %+v", st)
	}
	all, err := r.ins.Adapter.List(r.ctx)
	if err != nil || len(all) != 1 {
		t.Errorf("listed %v, %v", all, err)
	}
}

// An end is for good, and what can't be is not believed.
func TestRelapse(t *testing.T) {
	r := newRig(t, "relapse")
	st := r.run(r.task("out", "x"))
	r.expect(st, pcm.OutcomeSeller, "exit code of 100000")
	if st.ExitCode != 255 || st.Usage.CPUMS < 0 || st.Usage.MaxMemory > 1<<50 || strings.Contains(st.Native, "\x1b") || len(st.Native) > 64 {
		t.Errorf("status %+v", st)
	}
}

// A flood is not read faster than it may come, and others are served meanwhile.
func TestFlood(t *testing.T) {
	r := newRig(t, "flood")
	r.pools()
	box := r.ins.Box
	before := used(t, box.PID())
	began := time.Now()
	wait(t, "three seconds of it", func() bool { return time.Since(began) > 3*time.Second })
	if spent := used(t, box.PID()) - before; spent > 2*time.Second {
		t.Errorf("reading it took %s of CPU time in %s", spent, time.Since(began))
	}
	r.pools()
}

// Nothing is read, and so nothing shown, of what is said to wait.
func TestEarlyLog(t *testing.T) {
	r := newRig(t, "early")
	k := r.start(r.task("out", "x", "sleep", "1s"))
	r.expect(r.reach(k, adapters.Ended), pcm.OutcomeOK, "")
	if exists(filepath.Join(r.f.lasting(), "asked")) {
		t.Error("its output was asked for while it was pending")
	}
	out, err := r.ins.Adapter.Logs(r.ctx, k, adapters.Stdout, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if all, err := io.ReadAll(out); string(all) != "x\n" || err != nil {
		t.Errorf("in the end it is %q, %v", all, err)
	}
}

// A log without an end ends at the cap.
func TestEndlessLog(t *testing.T) {
	r := newRig(t, "endless")
	task := r.task("out", "x", "sleep", "5m")
	task.OutputCap = 100_000
	st := r.run(task)
	if st.Outcome != pcm.OutcomeOutput {
		t.Errorf("ended as %+v", st)
	}
}

// What it doesn't end stays out of the pool until it has ended.
func TestDeaf(t *testing.T) {
	r := newRig(t, "deaf")
	whole := r.pools()[0]
	task := r.task("out", "ready", "sleep", "5m")
	task.Pool = whole.ID
	k := r.start(task)
	r.reach(k, adapters.Running)
	if err := r.ins.Adapter.Stop(r.ctx, k, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	r.reach(k, adapters.Ended)
	less := r.pools()[0]
	if less.Capacity != whole.Capacity.Minus(task.Resources) || less.Slots != whole.Slots-1 {
		t.Errorf("the pool has %s and %d slots of %s and %d", less.Capacity, less.Slots, whole.Capacity, whole.Slots)
	}
	log, err := os.ReadFile(filepath.Join(r.ins.Box.Dir, "supervisor.log"))
	if err != nil || !strings.Contains(string(log), "DOES NOT END AN ATTEMPT") {
		t.Errorf("it was not said loudly: %v", err)
	}
	if err := os.WriteFile(filepath.Join(r.f.lasting(), "hears"), nil, 0o600); err != nil { // it comes to its senses
		t.Fatal(err)
	}
	wait(t, "the pool is whole again", func() bool { p := r.pools()[0]; return p.Capacity == whole.Capacity && p.Slots == whole.Slots })
}
