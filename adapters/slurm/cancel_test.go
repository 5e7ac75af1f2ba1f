package slurm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// asked is a controller that notes what is cancelled.
type asked struct {
	transport
	all []string
}

func (a *asked) signal(_ context.Context, ref jobRef, _ string) error {
	a.all = append(a.all, ref.String())
	return nil
}

// together is one that cancels what waits of an array together.
type together struct{ *asked }

func (a together) cancelPending(_ context.Context, ref jobRef) error {
	a.all = append(a.all, ref.String()+" pending")
	return nil
}

// Tasks of an array that wait are one job at Slurm: a scancel of one takes all of
// them, so that is not done before nobody wants any of them.
func TestCancelPending(t *testing.T) {
	one := &asked{}
	for _, c := range []struct {
		link transport
		want []string // after one of those that wait is dropped, then one that runs, then the rest
	}{
		{together{one}, []string{"[]", "[7_0]", "[7 pending]"}},
		{one, []string{"[7_3]", "[7_0]", "[7_2 7_4]"}},
	} {
		p := newPoller(&Runner{owner: "pcm o", link: c.link, log: slog.New(slog.DiscardHandler)})
		own := job{Comment: "pcm o", Name: "pcm.x", ID: 7, Index: -1}
		waits, runs, over, foreign := own, own, own, own
		waits.Indexes, waits.State = "2-4%2", "PENDING"
		runs.Index, runs.State = 0, "RUNNING"
		over.Index, over.State = 1, "COMPLETED"
		foreign.Comment, foreign.Indexes, foreign.State = "pcm other", "2-9", "PENDING"
		for i, indexes := range [][]int{{3, 1}, {0}, {2, 4}} {
			one.all = nil
			for _, index := range indexes {
				p.drop(jobRef{7, index, "pcm.x"})
			}
			p.cancelDropped(t.Context(), []job{foreign, waits, runs, over}, time.Now().Add(time.Second))
			slices.Sort(one.all)
			if got := fmt.Sprint(one.all); got != c.want[i] {
				t.Errorf("%T, after %v: asked for %s, expected %s", c.link, indexes, got, c.want[i])
			}
			if _, left := c.link.(together); p.cancelling() == (left && i == 0) {
				t.Errorf("%T, after %v: cancelling: %v", c.link, indexes, p.cancelling())
			}
		}
		p.cancelDropped(t.Context(), nil, time.Now().Add(time.Second))
		if p.cancelling() || !p.idle() {
			t.Errorf("%T: what is no more is still to be cancelled", c.link)
		}
	}
}

// An array of which what waited was cancelled by others stands in the queue without
// its indexes. That is no job lost, which would be submitted again.
func TestCancelledRemainder(t *testing.T) {
	n := &named{}
	for _, j := range parseQueue(`7|N/A|7|CANCELLED|1|n/a|main|1|1M|N/A|None|pcm o|pcm.x
7|0|8|RUNNING|1|n1|main|1|1M|N/A|None|pcm o|pcm.x
7|3|9|FAILED|1|n1|main|1|1M|N/A|None|pcm o|pcm.x
`) {
		n.add(&j)
	}
	for index, want := range []string{"RUNNING", "CANCELLED", "CANCELLED", "FAILED"} {
		if found := n.at(index); len(found) != 1 || found[0].State != want {
			t.Errorf("task %d is %+v, expected %s", index, found, want)
		}
	}
	n = &named{}
	for _, j := range parseQueue("7|1-2%2|7|PENDING|1|n/a|main|1|1M|N/A|None|pcm o|pcm.x\n7|0|8|RUNNING|1|n1|main|1|1M|N/A|None|pcm o|pcm.x\n") {
		n.add(&j)
	}
	if found := n.at(3); len(found) != 0 || len(n.at(1)) != 1 || len(n.at(0)) != 1 {
		t.Errorf("task 3, which is not there, is %+v", found)
	}
}

// array starts n tasks that come together, of which width may run at once.
func (f *fault) array(n, width int, steps ...string) []adapters.Key {
	f.Helper()
	first := adaptertest.NewTask()
	keys := make([]adapters.Key, n)
	var wg sync.WaitGroup
	for i := range keys {
		task := f.task(steps...)
		task.Trade, task.Job, task.Index, task.Count, task.Batch, task.Width = first.Trade, first.Job, i, n, n, width
		keys[i] = task.Key
		wg.Go(func() {
			if err := f.ins.Adapter.Start(f.ctx, task); err != nil {
				f.Error(err)
			}
		})
	}
	if wg.Wait(); f.Failed() {
		f.FailNow()
	}
	return keys
}

// at is the attempt that is the index-th of its array.
func (f *fault) at(keys []adapters.Key, index int) adapters.Key {
	f.Helper()
	i := slices.IndexFunc(keys, func(k adapters.Key) bool {
		in, _ := spool(f.cfg.root()).loadIntent(k.String())
		return in.Index == index
	})
	if i < 0 {
		f.Fatalf("there is no task %d of the array", index)
	}
	return keys[i]
}

// pending are the indexes of our array that wait, as Slurm prints them.
func (f *fault) pending() string {
	f.Helper()
	return f.command("squeue", "-h", "-t", "pending", "-o", "%K")
}

// together waits until Slurm has the first of them, and tells whether it has all as one array: else
// the others wait until there is room for them.
func (f *fault) together(keys []adapters.Key) bool {
	f.Helper()
	name := ""
	until(f, "a job has a number", func() bool {
		for _, k := range keys {
			if in, _ := spool(f.cfg.root()).loadIntent(k.String()); in.ID > 0 {
				name = in.Name
			}
		}
		return name != ""
	})
	return !slices.ContainsFunc(keys, func(k adapters.Key) bool {
		in, _ := spool(f.cfg.root()).loadIntent(k.String())
		return in.Name != name
	})
}

// held starts an array whose tasks run until release is called, and waits until as
// many do as may.
func (f *fault) held(n, width int) (keys []adapters.Key, release func()) {
	f.Helper()
	for range 10 {
		gate := filepath.Join(f.TempDir(), "go")
		keys = f.array(n, width, "clock", "await", gate, "clock")
		release = func() {
			f.Helper()
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				f.Fatal(err)
			}
		}
		if f.together(keys) {
			waits := fmt.Sprintf("%d-%d", width, n-1)
			until(f, "as many of the array run as may", func() bool { p, _, _ := strings.Cut(f.pending(), "%"); return p == waits })
			return keys, release
		}
		// The machine is so slow that they did not come together.
		release()
		for _, k := range keys {
			f.expect(f.end(k), pcm.OutcomeOK, "", "")
		}
	}
	f.Fatal("they never came together")
	return nil, nil
}

func (f *fault) stop(k adapters.Key) {
	f.Helper()
	if err := f.ins.Adapter.Stop(f.ctx, k, 0, "not wanted"); err != nil {
		f.Fatal(err)
	}
}

// Two tasks of an array are stopped that have yet to run; the others run as if
// nothing had been.
func TestStopSomeOfArray(t *testing.T) {
	for _, rest := range []bool{false, true} {
		t.Run("rest="+strconv.FormatBool(rest), func(t *testing.T) {
			f := newFault(t, server.SlurmOptions{Nodes: 1, REST: rest})
			const n, width = 6, 2
			keys, release := f.held(n, width)
			stopped := map[adapters.Key]bool{f.at(keys, 3): true, f.at(keys, 4): true}
			for k := range stopped {
				f.stop(k)
				f.expect(f.end(k), pcm.OutcomeStopped, "", "not wanted")
			}
			release()
			var stamps []string
			for _, k := range keys {
				out := f.stdout(k)
				if stopped[k] {
					if out != "" {
						t.Errorf("what was stopped while it waited has run: %q", out)
					}
					continue
				}
				f.expect(f.end(k), pcm.OutcomeOK, "", "")
				stamps = append(stamps, f.stdout(k))
			}
			if most, err := adaptertest.AtOnce(stamps); err != nil || most > width {
				t.Errorf("%d ran at once, not %d: %v", most, width, err)
			}
			until(t, "nothing of it is left in the queue", func() bool {
				return f.command("squeue", "-h", "-t", "pending,running", "-o", "%i") == ""
			})
		})
	}
}

// All that waits of an array is stopped: it goes at once, and what runs goes on.
func TestStopWhatWaits(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 1})
	keys, release := f.held(5, 1)
	runs := f.at(keys, 0)
	for _, k := range keys {
		if k != runs {
			f.stop(k)
			f.expect(f.end(k), pcm.OutcomeStopped, "", "not wanted")
		}
	}
	until(t, "nothing of it waits any more", func() bool { return f.pending() == "" })
	release()
	f.expect(f.end(runs), pcm.OutcomeOK, "", "")
}

// All that waits of an array is cancelled by others: that is said, and nothing is
// submitted again.
func TestArrayCancelledByOthers(t *testing.T) {
	f := newFault(t, server.SlurmOptions{Nodes: 1})
	keys, release := f.held(5, 1)
	runs := f.at(keys, 0)
	f.command("scancel", "--state=PENDING", strconv.FormatInt(f.number(runs), 10))
	for _, k := range keys {
		if k != runs {
			f.expect(f.end(k), pcm.OutcomeSeller, "CANCELLED", "by somebody else")
		}
	}
	release()
	f.expect(f.end(runs), pcm.OutcomeOK, "", "")
}
