package container

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func (t *trial) stdout(k adapters.Key) string {
	t.Helper()
	r, err := t.ins.Adapter.Logs(t.ctx, k, adapters.Stdout, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// What keeps a task in: nobody's rights, a read-only image, no more processes,
// files and accelerators than it was given.
func TestSandbox(t *testing.T) {
	t.Parallel()
	r := newRig(t, "docker", lively)
	r.cfg.PIDs, r.cfg.Disk = 48, 1<<20
	x := newTrial(t, r)

	task := x.task("cat", "/proc/self/status", "try", "write", "/etc/passwd", "!", "try", "write", "/new", "!", "write", "/tmp/mine", "ok", "write", "mine", "ok", "ls", "/dev")
	k := x.start(task)
	if st := x.wait(k, adapters.Ended); st.Outcome != pcm.OutcomeOK {
		t.Errorf("ended as %+v", st)
	}
	out := strings.ReplaceAll(x.stdout(k), "\t", " ")
	for _, want := range []string{"Uid: 65534 65534 65534 65534\n", "Gid: 65534 65534", "CapEff: 0000000000000000\n", "CapBnd: 0000000000000000\n", "NoNewPrivs: 1\n", "Seccomp: 2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if n := strings.Count(out, "refused: "); n != 2 {
		t.Errorf("%d of 2 writes to the image were refused:\n%s", n, out)
	}
	if strings.Contains(out, "davinci") {
		t.Errorf("it sees accelerators that it did not ask for:\n%s", out)
	}

	var bomb []string
	for range 48 {
		bomb = append(bomb, "try", "child", "5m")
	}
	k = x.start(x.task(bomb...))
	x.wait(k, adapters.Ended) // however: it may run out of threads itself
	if out := x.stdout(k); strings.Count(out, "child ") >= 48 {
		t.Errorf("it has as many processes as it likes:\n%s", out)
	}
	x.until("none of its processes are left", func() bool { return !alive(k) })

	var hoard []string
	for i := range 12 {
		hoard = append(hoard, "write", "f"+string(rune('a'+i)), strings.Repeat("x", 120_000))
	}
	k = x.start(x.task(append(hoard, "sleep", "5m")...))
	x.expect(x.wait(k, adapters.Ended), pcm.OutcomeOutput, "working folder")
	task = x.task("out", "x")
	task.Resources.Disk = 2 << 20
	if err := x.ins.Adapter.Start(x.ctx, task); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("more disk than there is: %v", err)
	}

	// Two accelerators for three tasks: each has its own, and the third waits.
	var keys []adapters.Key
	for range 2 {
		task := x.task("ls", "/dev", "await", "go")
		task.Resources.GPU = 1
		keys = append(keys, x.start(task))
		x.wait(task.Key, adapters.Running)
	}
	third := x.task("ls", "/dev")
	third.Resources.GPU = 1
	x.start(third)
	x.until("the third waits", func() bool {
		all, err := x.ins.Adapter.List(x.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(all, func(st adapters.Status) bool {
			return st.Key == third.Key && st.State == adapters.Pending && strings.Contains(st.Reason, "accelerator")
		})
	})
	if err := x.ins.Adapter.Stop(x.ctx, keys[0], 0, "enough"); err != nil {
		t.Fatal(err)
	}
	x.expect(x.wait(third.Key, adapters.Ended), pcm.OutcomeOK, "")
	for k, want := range map[adapters.Key]string{keys[0]: "davinci0", keys[1]: "davinci1", third.Key: "davinci0"} {
		var mine []string
		for line := range strings.Lines(x.stdout(k)) {
			if strings.HasPrefix(line, "davinci") {
				mine = append(mine, strings.TrimSpace(line))
			}
		}
		if !slices.Equal(mine, []string{want, "davinci_manager"}) {
			t.Errorf("attempt %s has %v, not %s", k, mine, want)
		}
	}
	if err := x.ins.Adapter.Stop(x.ctx, keys[1], 0, "enough"); err != nil {
		t.Fatal(err)
	}
	x.wait(keys[1], adapters.Ended)
}
