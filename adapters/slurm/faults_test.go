package slurm

import (
	"bufio"
	"context"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// fault is a cluster of its own and an adapter on it. Its test is one of several at once.
type fault struct {
	*testing.T
	s   *server.Slurm
	ins adaptertest.Instance
	ctx context.Context
	cfg Config
}

func newFault(t *testing.T, o server.SlurmOptions) *fault {
	t.Helper()
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	s := cluster(t, o)
	cfg := settings(t, s, o.REST)
	f := &fault{t, s, instance(t, s, cfg), ctx, cfg}
	f.cfg.Dir = f.ins.Box.Dir
	return f
}

func (f *fault) task(steps ...string) adapters.Task {
	t := adaptertest.NewTask()
	script(f.T, &t, steps...)
	return t
}

func (f *fault) start(t adapters.Task) {
	f.Helper()
	if err := f.ins.Adapter.Start(f.ctx, t); err != nil {
		f.Fatal(err)
	}
}

// begin starts a task and waits for its first line.
func (f *fault) begin(t adapters.Task) {
	f.Helper()
	f.start(t)
	r, err := f.ins.Adapter.Logs(f.ctx, t.Key, adapters.Stdout, 0, true)
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		f.Fatal(err)
	}
}

func (f *fault) end(k adapters.Key) adapters.Status {
	f.Helper()
	st, err := adaptertest.Wait(f.ctx, f.ins.Adapter, k, adapters.Ended)
	if err != nil {
		f.Fatal(err)
	}
	return st
}

// expect checks an end.
func (f *fault) expect(st adapters.Status, o pcm.Outcome, native, reason string) {
	f.Helper()
	if st.Outcome != o || !strings.Contains(st.Reason, reason) || native != "" && st.Native != native {
		f.Errorf("ended as %q, %q, %q; expected %q, %q, %q", st.Outcome, st.Native, st.Reason, o, native, reason)
	}
}

func (f *fault) stdout(k adapters.Key) string {
	f.Helper()
	r, err := f.ins.Adapter.Logs(f.ctx, k, adapters.Stdout, 0, false)
	if err != nil {
		f.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		f.Fatal(err)
	}
	return string(data)
}

func (f *fault) command(name string, args ...string) string {
	f.Helper()
	out, err := f.s.Command(f.ctx, name, args...)
	if err != nil {
		f.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// number waits until Slurm has given the attempt one.
func (f *fault) number(k adapters.Key) int64 {
	f.Helper()
	var in intent
	until(f, "the job has a number", func() bool {
		in, _ = spool(f.cfg.root()).loadIntent(k.String())
		return in.ID > 0
	})
	return in.ID
}

// restart ends the controller as a crash would, at once, and starts it again.
func (f *fault) restart() {
	f.Helper()
	f.s.KillController()
	if err := f.s.StartController(); err != nil {
		f.Fatal(err)
	}
	if err := f.s.WaitIdle(f.ctx); err != nil {
		f.Fatal(err)
	}
}

// A controller that is killed right after a submit forgets the job, and gives
// its number again. What has not begun is submitted once more, and what has got
// the number since is left alone.
func TestForgottenJob(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 1})
	release := f.ins.Fill()
	defer release()
	saved(t, f.s)
	kept, stopped := f.task("out", "kept"), f.task("out", "stopped")
	f.start(stopped)
	number := f.number(stopped.Key)
	f.start(kept)
	f.number(kept.Key)
	f.restart()
	if out := f.command("squeue", "-h", "-o", "%j"); strings.Contains(out, "pcm.") {
		t.Log("the controller had saved the jobs already: it has not forgotten them")
	}
	foreign := f.command("sbatch", "--parsable", "--job-name=foreign", "--output=/dev/null", "--hold", "--wrap=true")
	if err := f.ins.Adapter.Stop(f.ctx, stopped.Key, 0, "not wanted"); err != nil {
		t.Fatal(err)
	}
	f.expect(f.end(stopped.Key), pcm.OutcomeStopped, "", "not wanted")
	if foreign != strconv.FormatInt(number, 10) {
		t.Logf("the controller gave number %s, not %d again", foreign, number)
	}
	release()
	f.expect(f.end(kept.Key), pcm.OutcomeOK, "", "")
	if out := f.stdout(kept.Key); out != "kept\n" {
		t.Errorf("stdout %q", out)
	}
	if n := starts(t, f.s, kept.Key); n != 1 {
		t.Errorf("it ran %d times", n)
	}
	if out := f.command("squeue", "-h", "-n", "foreign", "-o", "%i %T"); out != foreign+" PENDING" {
		t.Errorf("somebody else's job became %q", out)
	}
}

// What had begun when its controller forgot it may run on or not; it never runs twice.
func TestForgottenWhileItRuns(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 2})
	task := f.task("out", "ready", "sleep", "6s", "out", "over")
	f.begin(task)
	f.restart()
	switch st := f.end(task.Key); {
	case st.Outcome == pcm.OutcomeOK:
		if out := f.stdout(task.Key); out != "ready\nover\n" {
			t.Errorf("stdout %q", out)
		}
	case st.Native == "CANCELLED": // by the node that was to begin with it once more
		f.expect(st, pcm.OutcomeSeller, "CANCELLED", "by somebody else")
	default:
		f.expect(st, pcm.OutcomeSeller, "", "had begun on n")
	}
	if out := f.stdout(task.Key); strings.Count(out, "ready") != 1 {
		t.Errorf("it ran more than once: %q", out)
	}
	next := f.task("out", "next")
	f.begin(next)
	f.expect(f.end(next.Key), pcm.OutcomeOK, "", "")
}

// What the cluster's people and its scheduler do behind our back.
func TestInterference(t *testing.T) {
	for _, c := range []struct {
		name           string
		do             func(f *fault, id string)
		native, reason string
	}{
		{"cancelled", func(f *fault, id string) { f.command("scancel", id) }, "CANCELLED", "by somebody else"},
		{"requeued", func(f *fault, id string) {
			f.command("scontrol", "update", "jobid="+id, "requeue=1")
			f.command("scontrol", "requeue", id)
		}, "REQUEUED", "back into its queue"},
		{"node down", func(f *fault, _ string) { f.command("scontrol", "update", "nodename=n1", "state=down", "reason=test") }, "NODE_FAIL", "node failed"},
		{"preempted", func(f *fault, _ string) {
			f.command("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 60")
		}, "PREEMPTED", "preempted"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			f := newFault(t, server.SlurmOptions{Nodes: 1})
			task := f.task("out", "ready", "sleep", "1m", "out", "over")
			f.begin(task)
			c.do(f, strconv.FormatInt(f.number(task.Key), 10))
			f.expect(f.end(task.Key), pcm.OutcomeSeller, c.native, c.reason)
			if out := f.stdout(task.Key); out != "ready\n" {
				t.Errorf("stdout %q", out)
			}
		})
	}
}

// What is to be ended while the controller hangs ends all the same, and its job
// is gone when it answers again.
func TestKillWhileHung(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 1})
	deaf := f.task("deaf", "out", "ready", "sleep", "5m")
	f.begin(deaf)
	resume := f.s.HangController()
	defer resume()
	if err := f.ins.Adapter.Stop(f.ctx, deaf.Key, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	f.expect(f.end(deaf.Key), pcm.OutcomeStopped, "", "enough")
	until(t, "no process of it is left", func() bool { return !runs(deaf.Key.String()) })
	resume()
	until(t, "Slurm has ended its job", func() bool {
		return f.command("squeue", "-h", "-t", "running,pending,completing", "-o", "%j") == ""
	})
}

// runs tells whether a process has the key in its environment.
func runs(key string) bool {
	names, _ := os.ReadDir("/proc")
	for _, e := range names {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		env, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if strings.Contains("\x00"+string(env), "\x00PCM_ATTEMPT="+key+"\x00") {
			return true
		}
	}
	return false
}

// A token that is refused is read again, and its refusal is said.
func TestToken(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 1, REST: true})
	good, err := os.ReadFile(f.cfg.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(f.cfg.TokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.ins.Adapter.Pools(f.ctx); err != nil {
		t.Fatal(err)
	}
	write("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjEsInN1biI6InJvb3QifQ.bad")
	fresh := f.ins.Reconnect() // has no token yet
	if _, err := fresh.Pools(f.ctx); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("pools with a bad token: %v", err)
	}
	write("")
	if _, err := open(t, f.cfg, f.ins.Box.Client()).Pools(f.ctx); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "token") {
		t.Errorf("pools without a token: %v", err)
	}
	write("SLURM_JWT=" + string(good))
	if _, err := fresh.Pools(f.ctx); err != nil {
		t.Errorf("pools with a new token: %v", err)
	}
}

// Each partition is a pool, and a task runs in that of its pool.
func TestPartitions(t *testing.T) {
	for _, rest := range []bool{false, true} {
		t.Run("rest="+strconv.FormatBool(rest), func(t *testing.T) {
			f := newFault(t, server.SlurmOptions{Nodes: 2, REST: rest})
			pools, err := f.ins.Adapter.Pools(f.ctx)
			if err != nil {
				t.Fatal(err)
			}
			byID := map[pcm.PoolID]pcm.Pool{}
			for _, p := range pools {
				byID[p.ID] = p
			}
			main, short := byID["slurm-main"], byID["slurm-short"]
			if len(pools) != 3 || main.Capacity != (pcm.Resources{CPU: 16000, Memory: 32000 << 20, GPU: 8}) || short.Capacity.CPU != 8000 || short.MaxTime != 60_000 || main.MaxTime != 0 {
				t.Errorf("pools %+v", pools)
			}
			if l := main.Labels; l["partition"] != "main" || l["slurm"] != "22.05.8" && l["slurm"] == "" || l["gpu"] != "fake" || l["site"] != "test" || l["arch"] == "" || !main.OwnOnly {
				t.Errorf("pool %+v", main)
			}
			task := f.task("out", "ready", "sleep", "1m")
			task.Pool, task.Limit = "slurm-short", 50*time.Second
			task.Resources = pcm.Resources{CPU: 2500, Memory: 300 << 20, GPU: 3}
			f.begin(task)
			if out := f.command("squeue", "-h", "-o", "%P %C %m %b %l"); out != "short 3 300M gres:gpu:fake:3 1:00" {
				t.Errorf("submitted as %q", out)
			}
			// What it has is still ours.
			if pools, err := f.ins.Adapter.Pools(f.ctx); err != nil || pools[0].Capacity.CPU != main.Capacity.CPU-3000 || pools[1].Capacity != short.Capacity {
				t.Errorf("while a task runs: %+v, %v", pools, err)
			}
			wrong := f.task("out", "x")
			wrong.Pool = "slurm-nowhere"
			f.start(wrong)
			f.expect(f.end(wrong.Key), pcm.OutcomeSeller, "", "slurm-nowhere")
			if err := f.ins.Adapter.Stop(f.ctx, task.Key, 0, "enough"); err != nil {
				t.Fatal(err)
			}
			f.expect(f.end(task.Key), pcm.OutcomeStopped, "", "enough")
		})
	}
}
