package adaptertest

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func testLogs(b *bench) {
	t := b.t
	task := b.task("out", "first", "sleep", b.times(4), "out", "second", "err", "late")
	k := b.start(task)
	r, err := b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines := bufio.NewReader(r)
	if line, err := lines.ReadString('\n'); line != "first\n" {
		t.Fatalf("live: %q, %v", line, err)
	}
	if st, _ := b.find(k); st.State != adapters.Running {
		t.Errorf("its first line came only when it was %s", st.State)
	}
	rest, err := io.ReadAll(lines)
	if string(rest) != "second\n" || err != nil {
		t.Errorf("the rest: %q, %v", rest, err)
	}
	b.expect(b.wait(k, adapters.Ended), pcm.OutcomeOK, 0)
	if got := b.logs(k, adapters.Stdout, 6, false); got != "second\n" {
		t.Errorf("from offset 6: %q", got)
	}
	if got := b.logs(k, adapters.Stdout, 1000, true); got != "" {
		t.Errorf("from beyond the end: %q", got)
	}
	if got := b.logs(k, adapters.Stderr, 0, true); got != "late\n" {
		t.Errorf("stderr: %q", got)
	}
	if _, err := b.ins.Adapter.Logs(b.ctx, k, "../status", 0, false); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("a stream of another name: %v", err)
	}

	// A reader that waits ends with its context, and with its close.
	k = b.start(b.task("sleep", "5m"))
	ctx, cancel := context.WithCancel(b.ctx)
	r, err = b.ins.Adapter.Logs(ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(r); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("reading after the context's end: %v", err)
	}
	r.Close()
	r, err = b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := io.ReadAll(r); done <- err }()
	r.Close()
	if err := <-done; err == nil {
		t.Error("reading went on to a good end after close")
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
		t.Error(err)
	}
}

func testWatch(b *bench) {
	t := b.t
	ctx, cancel := context.WithCancel(b.ctx)
	ch, err := b.ins.Adapter.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	task := b.task("out", "x", "exit", "5")
	b.start(task)
	var states []adapters.State
	for st := range ch {
		if st.Key != task.Key {
			continue
		}
		states = append(states, st.State)
		if st.State == adapters.Ended {
			b.expect(st, pcm.OutcomeFailed, 5)
			break
		}
	}
	states = slices.DeleteFunc(states, func(s adapters.State) bool { return s == adapters.Pending }) // for whatever reasons it waited
	if !slices.Equal(states, []adapters.State{adapters.Running, adapters.Ended}) {
		t.Errorf("watched %v", states)
	}
	cancel()
	for range ch { // must be closed
	}
}

func testStop(b *bench) {
	t := b.t
	k := b.start(b.task("term", "out", "ready", "sleep", "5m"))
	b.firstLine(k)
	if err := b.ins.Adapter.Stop(b.ctx, k, time.Minute, "no longer wanted"); err != nil {
		t.Fatal(err)
	}
	st := b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeStopped, -1)
	if out := b.logs(k, adapters.Stdout, 0, false); out != "ready\nasked to end\n" || st.Reason != "no longer wanted" {
		t.Errorf("stdout %q, reason %q", out, st.Reason)
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "again"); err != nil {
		t.Errorf("stop of what has ended: %v", err)
	}
	if again, _ := b.find(k); again.Reason != st.Reason {
		t.Errorf("a late stop changed the reason to %q", again.Reason)
	}

	k = b.start(b.task("deaf", "out", "ready", "sleep", "5m"))
	b.firstLine(k)
	if err := b.ins.Adapter.Stop(b.ctx, k, b.pace(0.75), "deaf"); err != nil {
		t.Fatal(err)
	}
	st = b.wait(k, adapters.Ended)
	b.expect(st, pcm.OutcomeStopped, -1)
	if st.Usage.Wall() < b.pace(0.75) {
		t.Errorf("killed after %s, before its grace was over", st.Usage.Wall())
	}
}

// firstLine waits until the task has printed a line.
func (b *bench) firstLine(k adapters.Key) string {
	b.t.Helper()
	r, err := b.ins.Adapter.Logs(b.ctx, k, adapters.Stdout, 0, true)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		b.t.Fatalf("first line: %q, %v", line, err)
	}
	return line
}

func testStopForce(b *bench) {
	t := b.t
	for _, steps := range [][]string{{"out", "ready", "sleep", "5m"}, {"out", "ready", "spin"}} {
		k := b.start(b.task(steps...))
		b.firstLine(k)
		if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
			t.Fatal(err)
		}
		st := b.wait(k, adapters.Ended)
		b.expect(st, pcm.OutcomeStopped, -1)
		if st.Reason != "enough" {
			t.Errorf("reason %q", st.Reason)
		}
	}
	// At once after the start, too.
	for range 5 {
		k := b.start(b.task("sleep", "5m"))
		if err := b.ins.Adapter.Stop(b.ctx, k, 0, "never mind"); err != nil {
			t.Fatal(err)
		}
		b.expect(b.wait(k, adapters.Ended), pcm.OutcomeStopped, -1)
	}
}

func testTimeLimit(b *bench) {
	t := b.t
	for _, steps := range [][]string{{"sleep", "5m"}, {"spin"}} {
		task := b.task(steps...)
		task.Limit = b.pace(1)
		st := b.run(task)
		b.expect(st, pcm.OutcomeTimeLimit, -1)
		if st.Usage.Wall() < task.Limit || st.Usage.Wall() > task.Limit+10*time.Second+2*b.s.Pace {
			t.Errorf("ended after %s at a limit of %s", st.Usage.Wall(), task.Limit)
		}
		if !strings.Contains(st.Reason, "time limit") {
			t.Errorf("reason %q", st.Reason)
		}
	}
}

func testLease(b *bench) {
	t := b.t
	fencer, ok := b.ins.Adapter.(adapters.Fencer)
	b.needs(ok, "the adapter can't end attempts by itself")
	short, long := b.task("sleep", "5m"), b.task("sleep", b.times(3.75), "out", "survived")
	short.Deadline = adapters.Now().Add(b.pace(2.5))
	long.Deadline = short.Deadline
	b.start(short)
	b.start(long)
	ghost := NewTask().Key
	err := fencer.Extend(b.ctx, map[adapters.Key]adapters.BootTime{
		long.Key: adapters.Now().Add(time.Minute), ghost: adapters.Now().Add(time.Minute),
		short.Key: adapters.Now(), // never back: this changes nothing
	})
	if err != nil {
		t.Fatal(err)
	}
	st := b.wait(short.Key, adapters.Ended)
	b.expect(st, pcm.OutcomeSeller, -1)
	if !strings.HasPrefix(st.Reason, "lease ended") || short.Deadline.Until() > 0 {
		t.Errorf("reason %q, %s before its lease's end", st.Reason, short.Deadline.Until())
	}
	b.expect(b.wait(long.Key, adapters.Ended), pcm.OutcomeOK, 0)
}

func testRemove(b *bench) {
	t := b.t
	task := b.task("out", "ready", "sleep", "5m")
	k := b.start(task)
	b.firstLine(k)
	if err := b.ins.Adapter.Remove(b.ctx, k); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("remove of what runs: %v", err)
	}
	if _, err := b.ins.Adapter.Results(b.ctx, k); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("results of what runs: %v", err)
	}
	if err := b.ins.Adapter.Stop(b.ctx, k, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	b.wait(k, adapters.Ended)
	for range 2 {
		if err := b.ins.Adapter.Remove(b.ctx, k); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, ok := b.find(k); ok {
		t.Error("listed after its removal")
	}
	if _, err := b.ins.Adapter.Results(b.ctx, k); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("results after removal: %v", err)
	}
}

func testMany(b *bench) {
	t := b.t
	n := b.s.Many
	ch, err := b.ins.Adapter.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := b.task()
	var wg sync.WaitGroup
	for i := range n {
		task := b.task("out", "mine", "exit", string(rune('0'+i%10)))
		task.Trade, task.Job, task.Index, task.Count = first.Trade, first.Job, i, n
		wg.Go(func() {
			if err := b.ins.Adapter.Start(b.ctx, task); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	wg.Wait()
	left := n
	for st := range ch {
		if st.State == adapters.Ended {
			want := st.Index % 10
			if st.ExitCode != want {
				t.Errorf("task %d: exit code %d (%s)", st.Index, st.ExitCode, st.Reason)
			}
			if left--; left == 0 {
				break
			}
		}
	}
	all, err := b.ins.Adapter.List(b.ctx)
	if err != nil || len(all) != n {
		t.Errorf("%d of %d listed, %v", len(all), n, err)
	}
}
