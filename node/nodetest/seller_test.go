package nodetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// These tests are about what a seller does with what runs, when it, its buyer, or
// both of them go away at the wrong moment.

// own is a job that only its submitter drives: nobody takes over when that is away.
func own(s pcm.Spec) pcm.Spec {
	s.Takeover = pcm.TakeoverNone
	return s
}

// awaitFile waits until a task has made a file.
func awaitFile(t *testing.T, path string) {
	t.Helper()
	nodetest.Eventually(t, "there is "+filepath.Base(path), func(context.Context) error {
		_, err := os.Stat(path)
		return err
	})
}

// awaitGone waits until a seller's back end holds nothing more: no process of a
// task, and no folder of one.
func awaitGone(t *testing.T, p *nodetest.Peer) {
	t.Helper()
	nodetest.Eventually(t, "nothing is left of tasks at "+p.Name, func(context.Context) error {
		left, err := filepath.Glob(filepath.Join(p.Dir, "*", "tasks", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("there are %d folders, %s is the first", len(left), left[0])
		}
		return err
	})
}

// first checks that the job's one task was done by its first attempt, at bert.
func first(t *testing.T, p *nodetest.Peer, id pcm.JobID) {
	t.Helper()
	if task := p.JobTasks(id)[0]; task.Attempt != 1 || task.SellerName != "bert" {
		t.Errorf("task %+v", task)
	}
	if list := trades(t, p, id); len(list) != 1 || list[0].States[pcm.AttemptSettled] != 1 {
		t.Errorf("trades %+v", list)
	}
}

// TestEndsWhileSpecIsAwaited: a seller that was restarted can't get the spec of a
// task that runs, since its driver stands still; the task ends all the same.
func TestEndsWhileSpecIsAwaited(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	flag, mark := filepath.Join(m.Dir, "go"), filepath.Join(m.Dir, "mark")
	j := carl.Send(own(nodetest.Command(1, "while ! test -e "+flag+"; do sleep 0.05; done; echo ended; touch "+mark)), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	bert.Kill()
	carl.Freeze()
	bert.Up()
	write(t, flag, "")
	awaitFile(t, mark)
	nodetest.Eventually(t, "its end is reported", func(ctx context.Context) error {
		l, err := anna.Trades(ctx, api.Query{Job: j.ID})
		if err == nil && (len(l.Items) != 1 || l.Items[0].States[pcm.AttemptFinished] != 1) {
			err = fmt.Errorf("trades %+v", l.Items)
		}
		return err
	})
	carl.Thaw()
	j = carl.Done(j.ID)
	first(t, carl, j.ID)
	if got := read(t, carl.Get(j.ID), "run/0/stdout"); got != "ended\n" {
		t.Errorf("stdout is %q", got)
	}
	awaitGone(t, bert)
	m.Verify()
}

// TestBothRestart: buyer and seller go down together. The seller is back first
// and can't get the spec; then the buyer, whose ledger is behind, refuses it. What
// runs is not rejected.
func TestBothRestart(t *testing.T) {
	t.Parallel()
	m, _, bert, carl := three(t)
	flag, marks := filepath.Join(m.Dir, "go"), filepath.Join(m.Dir, "marks")
	base := t.TempDir()
	write(t, filepath.Join(base, "in.txt"), "input\n")
	s := own(nodetest.Command(2, fmt.Sprintf(
		"echo begun >> %[1]s; while ! test -e %[2]s; do sleep 0.05; done; echo ended >> %[1]s; cat in.txt", marks, flag)))
	s.Steps[0].Inputs = []pcm.Input{{Source: "in.txt"}}
	j := carl.Send(s, base)
	carl.AwaitRunning(j.ID)
	nodetest.Eventually(t, "both tasks run", func(context.Context) error {
		data, err := os.ReadFile(marks)
		if n := strings.Count(string(data), "begun"); err == nil && n != 2 {
			err = fmt.Errorf("%d do", n)
		}
		return err
	})
	carl.Kill()
	bert.Kill()
	bert.Up()
	carl.Up()
	write(t, flag, "")
	j = carl.Done(j.ID)
	for _, task := range carl.JobTasks(j.ID) {
		if task.Attempt != 1 || task.SellerName != "bert" {
			t.Errorf("task %+v", task)
		}
	}
	if got, want := read(t, m.Dir, "marks"), "begun\nbegun\nended\nended\n"; got != want {
		t.Errorf("the tasks left %q", got)
	}
	if got := read(t, carl.Get(j.ID), "run/1/stdout"); got != "input\n" {
		t.Errorf("stdout is %q", got)
	}
	awaitGone(t, bert)
	m.Verify()
}

// TestStopMeetsRestart: a stop that is committed while its seller is down is
// carried out when that is back, and reported only then.
func TestStopMeetsRestart(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	beats := filepath.Join(m.Dir, "beats")
	j := carl.Send(own(nodetest.Command(1, "while :; do echo beat >> "+beats+"; sleep 0.05; done")), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	bert.Kill()
	if _, err := carl.Cancel(t.Context(), string(j.ID), "no longer needed"); err != nil {
		t.Fatal(err)
	}
	nodetest.Eventually(t, "the stop is committed", func(ctx context.Context) error {
		l, err := anna.Records(ctx, api.Query{})
		if err != nil {
			return err
		}
		for _, r := range l.Items {
			if slices.Contains(r.Kinds, "stop") {
				return nil
			}
		}
		return fmt.Errorf("none in %d records", len(l.Items))
	})
	bert.Up()
	j = carl.AwaitJob(j.ID, "cancelled and settled", api.Settled)
	if j.State != pcm.JobCancelled {
		t.Errorf("it is %+v", j)
	}
	if list := trades(t, carl, j.ID); len(list) != 1 || list[0].States[pcm.AttemptSettled] != 1 {
		t.Errorf("trades %+v", list)
	}
	before := read(t, m.Dir, "beats")
	awaitGone(t, bert)
	if after := read(t, m.Dir, "beats"); after != before {
		t.Error("it ran on after its end was reported")
	}
	m.Verify()
}

// TestOutputsOutliveRestart: a seller gives outputs out that it stored before it
// was restarted.
func TestOutputsOutliveRestart(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	flag := filepath.Join(m.Dir, "go")
	j := carl.Send(own(nodetest.Command(1, "while ! test -e "+flag+"; do sleep 0.05; done; head -c 3000000 /dev/urandom")), "")
	if task := carl.AwaitRunning(j.ID); task.SellerName != "bert" {
		t.Fatalf("it runs at %s", task.SellerName)
	}
	carl.Freeze()
	write(t, flag, "")
	nodetest.Eventually(t, "its end is reported", func(ctx context.Context) error {
		l, err := anna.Trades(ctx, api.Query{Job: j.ID})
		if err == nil && (len(l.Items) != 1 || l.Items[0].States[pcm.AttemptFinished] != 1) {
			err = fmt.Errorf("trades %+v", l.Items)
		}
		return err
	})
	bert.Kill()
	bert.Up()
	carl.Thaw()
	j = carl.Done(j.ID)
	first(t, carl, j.ID)
	if got := read(t, carl.Get(j.ID), "run/0/stdout"); len(got) != 3000000 {
		t.Errorf("stdout has %d bytes", len(got))
	}
	awaitGone(t, bert)
	m.Verify()
}

// TestCancelledArray: arrays that are cancelled in the middle of being placed and
// started are ended by that, not by themselves, and leave nothing.
func TestCancelledArray(t *testing.T) {
	t.Parallel()
	m, anna, bert, carl := three(t)
	placed := func(j api.Job, trades []api.Trade) bool { return len(trades) > 0 }
	started := func(j api.Job, trades []api.Trade) bool {
		for _, tr := range trades {
			if tr.States[pcm.AttemptStarted] > 0 {
				return true
			}
		}
		return false
	}
	at := map[string]func(api.Job, []api.Trade) bool{"at once": nil, "when placed": placed, "when started": started}
	for round := range 10 {
		for when, is := range at {
			j := carl.Send(own(nodetest.Command(100, "sleep 60")), "")
			if is != nil {
				nodetest.Eventually(t, "the array is "+when, func(ctx context.Context) error {
					l, err := carl.Trades(ctx, api.Query{Job: j.ID})
					if err == nil && !is(j, l.Items) {
						err = fmt.Errorf("trades %+v", l.Items)
					}
					return err
				})
			}
			began := time.Now()
			if _, err := carl.Cancel(t.Context(), string(j.ID), "changed my mind"); err != nil {
				t.Fatal(err)
			}
			j = carl.AwaitJob(j.ID, "cancelled "+when+" and settled", api.Settled)
			took := time.Since(began)
			t.Logf("round %d: cancelled %s, settled after %s", round, when, took)
			if took > 20*time.Second || j.State != pcm.JobCancelled {
				t.Errorf("cancelled %s, it is %s after %s: %+v", when, j.State, took, j)
			}
			for _, task := range carl.JobTasks(j.ID) {
				if !task.State.Final() {
					t.Errorf("task %d is %s", task.Index, task.State)
				}
			}
		}
	}
	awaitGone(t, anna)
	awaitGone(t, bert)
	m.Verify()
}
