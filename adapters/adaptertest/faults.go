package adaptertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func testAdoption(b *bench) {
	t := b.t
	before := b.run(b.task("out", "before", "exit", "4"))
	running := b.task("out", "ready", "sleep", b.times(8), "out", "went on") // longer than a busy machine takes to reconnect
	b.start(running)
	b.firstLine(running.Key)
	watch, err := b.ins.Adapter.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}

	b.ins.Adapter = b.ins.Reconnect()
	for range watch { // the lost one's watch must be closed
	}
	if st, ok := b.find(running.Key); !ok || st.State != adapters.Running || st.Fence != running.Fence {
		t.Fatalf("after the restart: %+v, %v", st, ok)
	}
	if st, ok := b.find(before.Key); !ok || st.ExitCode != 4 || st.Outcome != pcm.OutcomeFailed {
		t.Errorf("what had ended: %+v, %v", st, ok)
	}
	b.start(running) // again: must not run twice
	b.expect(b.wait(running.Key, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(running.Key, adapters.Stdout, 0, true); out != "ready\nwent on\n" {
		t.Errorf("stdout %q", out)
	}
}

func testHungSupervisor(b *bench) {
	t := b.t
	b.needs(b.ins.Box != nil, "the instance has no box")
	k := b.start(b.task("out", "x"))
	b.wait(k, adapters.Ended)
	resume := b.ins.Box.Hang()
	defer resume()
	for name, call := range map[string]func(context.Context) error{
		"pools":  func(ctx context.Context) error { _, err := b.ins.Adapter.Pools(ctx); return err },
		"list":   func(ctx context.Context) error { _, err := b.ins.Adapter.List(ctx); return err },
		"start":  func(ctx context.Context) error { return b.ins.Adapter.Start(ctx, b.task("out", "y")) },
		"stop":   func(ctx context.Context) error { return b.ins.Adapter.Stop(ctx, k, 0, "x") },
		"remove": func(ctx context.Context) error { return b.ins.Adapter.Remove(ctx, NewTask().Key) },
	} {
		ctx, cancel := context.WithTimeout(b.ctx, 200*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if pcm.ErrorCode(err) != pcm.Unavailable || time.Since(began) > 20*time.Second {
			t.Errorf("%s of a hung supervisor: %v after %s", name, err, time.Since(began))
		}
	}
	resume()
	b.expect(b.run(b.task("out", "back")), pcm.OutcomeOK, 0)
}

// What its supervisor's end does to an attempt: it ends with it, for a reason
// that says so, or is taken up again by the next one and runs on. Never does it
// run twice.
func testLostSupervisor(b *bench) {
	t := b.t
	b.needs(b.ins.Box != nil, "the instance has no box")
	done := b.run(b.task("out", "done"))
	running, quick, late := b.task("out", "ready", "await", "go", "out", "went on"), b.task("out", "quick", "exit", "5"), b.task("sleep", "5m")
	if !b.s.Remote {
		running = b.task("out", "ready", "sleep", "5m")
	}
	late.Limit = b.pace(5)
	b.start(running)
	b.firstLine(running.Key)
	b.start(quick) // may be anywhere when the supervisor is killed
	b.start(late)
	b.ins.Box.Kill()
	b.ins.Adapter = b.ins.Reconnect()
	for _, task := range []adapters.Task{running, quick, late} {
		b.start(task) // again: must not run twice
	}
	if st, ok := b.find(done.Key); !ok || st.Outcome != pcm.OutcomeOK || b.logs(done.Key, adapters.Stdout, 0, false) != "done\n" {
		t.Errorf("what had ended: %+v, %v", st, ok)
	}
	if !b.s.Remote {
		for _, task := range []adapters.Task{running, late} {
			st := b.wait(task.Key, adapters.Ended)
			b.expect(st, pcm.OutcomeSeller, -1)
			if !strings.Contains(st.Reason, "supervisor") {
				t.Errorf("reason %q", st.Reason)
			}
		}
		if st := b.wait(quick.Key, adapters.Ended); st.Outcome != pcm.OutcomeSeller {
			b.expect(st, pcm.OutcomeFailed, 5)
		}
		return
	}
	fencer, ok := b.ins.Adapter.(adapters.Fencer)
	b.needs(ok, "the adapter can't end attempts by itself")
	leases := map[adapters.Key]adapters.BootTime{}
	for _, task := range []adapters.Task{running, quick, late} {
		leases[task.Key] = adapters.Now().Add(5 * time.Minute)
	}
	if err := fencer.Extend(b.ctx, leases); err != nil {
		t.Fatal(err)
	}
	b.wait(running.Key, adapters.Running)
	b.expect(b.wait(quick.Key, adapters.Ended), pcm.OutcomeFailed, 5)
	b.expect(b.wait(late.Key, adapters.Ended), pcm.OutcomeTimeLimit, -1)
	if err := b.ins.Adapter.Stop(b.ctx, running.Key, 0, "enough"); err != nil {
		t.Fatal(err)
	}
	b.expect(b.wait(running.Key, adapters.Ended), pcm.OutcomeStopped, -1)
	if out := b.logs(running.Key, adapters.Stdout, 0, false); out != "ready\n" {
		t.Errorf("stdout of what ran on: %q", out)
	}
	if out := b.logs(quick.Key, adapters.Stdout, 0, false); out != "quick\n" {
		t.Errorf("stdout of what had ended meanwhile: %q", out)
	}
	b.once(running.Key, quick.Key, late.Key)
}

// once checks that the back end has run each attempt once.
func (b *bench) once(keys ...adapters.Key) {
	b.t.Helper()
	b.needs(!b.s.Remote || b.s.Uncounted || b.ins.Starts != nil, "the instance counts no starts")
	if b.ins.Starts == nil {
		return
	}
	for _, k := range keys {
		if n := b.ins.Starts(k); n != 1 {
			b.t.Errorf("attempt %s was begun %d times", k, n)
		}
	}
}

// unobservable checks that a back end which doesn't answer can't be observed.
func (b *bench) unobservable() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, b.pace(2))
	defer cancel()
	began := time.Now()
	pools, err := b.ins.Adapter.Pools(ctx)
	if pcm.ErrorCode(err) != pcm.Unavailable || time.Since(began) > 10*time.Second+b.pace(2) {
		b.t.Errorf("pools of a hung back end after %s: %v, %v", time.Since(began), pools, err)
	}
}

// A back end that hangs can't be observed, which is no fault of what runs there.
func testHung(b *bench) {
	t := b.t
	b.needs(b.ins.Hang != nil, "the instance can't hang its back end")
	if _, err := b.ins.Adapter.Pools(b.ctx); err != nil {
		t.Fatal(err)
	}
	over, on := b.task("out", "ready", "sleep", b.times(1), "out", "went on"), b.task("out", "ready", "sleep", b.times(8), "out", "went on")
	stopped := b.task("out", "ready", "sleep", "5m")
	for _, task := range []adapters.Task{over, on, stopped} {
		b.start(task)
		b.firstLine(task.Key)
	}
	resume := b.ins.Hang()
	defer resume()
	b.unobservable()
	ctx, cancel := context.WithTimeout(b.ctx, b.pace(1))
	err := b.ins.Adapter.Stop(ctx, stopped.Key, time.Minute, "not wanted")
	cancel()
	if err != nil && pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("stop: %v", err)
	}
	b.after(b.pace(3))
	b.unobservable()
	resume()
	if err != nil {
		if err := b.ins.Adapter.Stop(b.ctx, stopped.Key, 0, "not wanted"); err != nil {
			t.Error(err)
		}
	}
	for _, k := range []adapters.Key{over.Key, on.Key} {
		b.expect(b.wait(k, adapters.Ended), pcm.OutcomeOK, 0)
		if out := b.logs(k, adapters.Stdout, 0, false); out != "ready\nwent on\n" {
			t.Errorf("stdout %q", out)
		}
	}
	b.expect(b.wait(stopped.Key, adapters.Ended), pcm.OutcomeStopped, -1)
	b.until("the back end is observed again", func() bool { _, err := b.ins.Adapter.Pools(b.ctx); return err == nil })
	b.expect(b.run(b.task("out", "back")), pcm.OutcomeOK, 0)
	b.once(over.Key, on.Key)
}

// A back end whose service ends hard and comes back has lost nothing, or says so.
func testRestart(b *bench) {
	t := b.t
	b.needs(b.ins.Restart != nil, "the instance can't restart its back end")
	over, on := b.task("out", "ready", "sleep", b.times(1), "out", "went on"), b.task("out", "ready", "sleep", b.times(10), "out", "went on")
	for _, task := range []adapters.Task{over, on} {
		b.start(task)
		b.firstLine(task.Key)
	}
	unborn := b.task("out", "unborn") // submitted at most
	b.start(unborn)
	b.ins.Restart()
	for _, task := range []adapters.Task{over, on} {
		st := b.wait(task.Key, adapters.Ended)
		if task.Key == over.Key && st.Outcome == pcm.OutcomeSeller && st.Reason != "" {
			continue // it ended meanwhile, and the back end can't say how: that is said
		}
		b.expect(st, pcm.OutcomeOK, 0)
		if out := b.logs(task.Key, adapters.Stdout, 0, false); out != "ready\nwent on\n" {
			t.Errorf("stdout %q", out)
		}
	}
	if st := b.wait(unborn.Key, adapters.Ended); st.Outcome != pcm.OutcomeSeller || st.Reason == "" {
		b.expect(st, pcm.OutcomeOK, 0)
	}
	b.expect(b.run(b.task("out", "back")), pcm.OutcomeOK, 0)
	b.once(over.Key, on.Key)
}

// What its back end has no room for waits there, and says why.
func testWaiting(b *bench) {
	t := b.t
	b.needs(b.ins.Fill != nil, "the instance can't fill its back end")
	release := b.ins.Fill()
	defer release()
	first, second := b.task("out", "first"), b.task("out", "second")
	b.start(first)
	b.start(second)
	var st adapters.Status
	b.until("it waits, and says why", func() bool {
		st, _ = b.find(first.Key)
		return st.State == adapters.Pending && st.Reason != "" && st.Native != ""
	})
	if !st.Started.IsZero() || st.Usage.WallMS != 0 {
		t.Errorf("it waits, and has run: %+v", st)
	}
	if err := b.ins.Adapter.Stop(b.ctx, second.Key, 0, "never mind"); err != nil {
		t.Fatal(err)
	}
	b.expect(b.wait(second.Key, adapters.Ended), pcm.OutcomeStopped, -1)
	release()
	b.expect(b.wait(first.Key, adapters.Ended), pcm.OutcomeOK, 0)
	if out := b.logs(second.Key, adapters.Stdout, 0, false); out != "" {
		t.Errorf("what was stopped while it waited has run: %q", out)
	}
}

// Arrays are started whole; no more of one run at once than may.
func testArrays(b *bench) {
	t := b.t
	batcher, ok := b.ins.Adapter.(adapters.Batcher)
	b.needs(ok, "the adapter is no Batcher")
	const n, width = 6, 2
	if batcher.MaxBatch() < n {
		t.Fatalf("it takes %d tasks at once", batcher.MaxBatch())
	}
	ch, err := b.ins.Adapter.Watch(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	first := b.task()
	var keys []adapters.Key
	for i := range n {
		steps := []string{"env", "clock", "sleep", b.times(1), "clock", "exit", string(rune('0' + i))}
		if i == n-1 {
			steps = []string{"sleep", "5m"}
		}
		task := b.task(steps...)
		task.Trade, task.Job, task.Index, task.Count, task.Batch, task.Width = first.Trade, first.Job, 10+i, 100, n, width
		keys = append(keys, b.start(task))
	}
	if err := b.ins.Adapter.Stop(b.ctx, keys[n-1], 0, "one of many"); err != nil {
		t.Fatal(err)
	}
	left := n
	var outs []string
	for st := range ch {
		if !slices.Contains(keys, st.Key) || st.State != adapters.Ended {
			continue
		}
		out := b.logs(st.Key, adapters.Stdout, 0, false)
		if i := st.Index - 10; i == n-1 {
			b.expect(st, pcm.OutcomeStopped, -1)
		} else if outs = append(outs, out); st.ExitCode != i || !strings.Contains(out, "PCM_ATTEMPT="+st.Key.String()+"\n") {
			t.Errorf("task %d of the array ended as %q with code %d, %q: %.500s", i, st.Outcome, st.ExitCode, st.Reason, out)
		}
		if left--; left == 0 {
			break
		}
	}
	// When the adapter says that one has begun, another may be over of which it has yet to say so.
	if most, err := AtOnce(outs); err != nil || left > 0 || most > width {
		t.Errorf("%d of %d have not ended; %d ran at once, not %d; %v", left, n, most, width, err)
	}
}

// AtOnce is how many tasks ran at the same time, by what each printed: the steps
// "clock" at its begin and at its end.
func AtOnce(outs []string) (most int, err error) {
	type event struct {
		at   int64
		more int
	}
	var all []event
	for _, out := range outs {
		var stamps []int64
		for line := range strings.Lines(out) {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), "clock "); ok {
				at, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					return 0, err
				}
				stamps = append(stamps, at)
			}
		}
		if len(stamps) != 2 || stamps[1] < stamps[0] {
			return 0, fmt.Errorf("the times of begin and end, as a task printed them: %d", stamps)
		}
		all = append(all, event{stamps[0], 1}, event{stamps[1], -1})
	}
	slices.SortFunc(all, func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), a.more-b.more) })
	n := 0
	for _, e := range all {
		n += e.more
		most = max(most, n)
	}
	return most, nil
}
