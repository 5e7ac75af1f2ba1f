package slurm

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// taker is a controller that takes everything.
type taker struct {
	transport
	taken chan batch
}

func (t taker) submit(_ context.Context, b batch) (int64, error) {
	t.taken <- b
	return int64(len(t.taken)), nil
}

func (t taker) partitions(context.Context) ([]partition, error) { return nil, nil }

// testQueue is a queue before a controller that takes everything, with n attempts of one trade.
func testQueue(t *testing.T, n, width int) (*queue, []*attempt, chan batch) {
	s := spool(t.TempDir())
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	taken := make(chan batch, 100)
	r := &Runner{spool: s, link: taker{taken: taken}, log: slog.New(slog.DiscardHandler), ctx: context.Background()}
	r.poller = newPoller(r)
	r.queue = newQueue(r)
	first := adaptertest.NewTask()
	var all []*attempt
	for i := range n {
		task := first
		task.Key = adapters.Key{Trade: first.Trade, Index: i, Attempt: 1}
		task.Command, task.Batch, task.Width, task.Pool = []string{"true"}, n, width, ""
		a := &attempt{Run: &supervisor.Run{Task: task, Wake: func() {}}, key: task.Key.String(), work: "/"}
		if err := r.prepare(t.Context(), a); err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return r.queue, all, taken
}

// sizes are the groups that were submitted so far.
func sizes(taken chan batch) (all []string) {
	for {
		select {
		case b := <-taken:
			all = append(all, fmt.Sprintf("%d%%%d", b.Count, b.Width))
		default:
			return all
		}
	}
}

func check(t *testing.T, when string, taken chan batch, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := sizes(taken); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: submitted %v, expected %v", when, got, want)
	}
}

// A slow machine brings the tasks of an array one by one; they are one array all the same.
func TestCollect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, all, taken := testQueue(t, 40, 4)
		for _, a := range all {
			q.add(a)
			time.Sleep(supervisor.Collect / 2)
		}
		check(t, "all have come", taken, "40%4")

		q, all, taken = testQueue(t, 40, 4)
		for _, a := range all[:30] {
			q.add(a)
		}
		check(t, "ten more are to come", taken)
		time.Sleep(supervisor.Collect)
		check(t, "they don't", taken, "30%4")

		q, all, taken = testQueue(t, 100, 100)
		for _, a := range all {
			q.add(a)
			time.Sleep(supervisor.Collect * 9 / 10)
		}
		check(t, "they take more than "+supervisor.CollectAll.String(), taken, "36%100", "36%0")
		time.Sleep(supervisor.Collect)
		check(t, "the last", taken, "28%0")
	})
}

// What missed its array follows in groups, and a single one doesn't wait for long.
func TestFollowing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, all, taken := testQueue(t, 40, 8)
		for _, a := range all[:20] {
			q.add(a)
		}
		time.Sleep(supervisor.Collect)
		check(t, "the first", taken, "20%8")
		for _, a := range all[20:] {
			q.add(a)
		}
		time.Sleep(supervisor.Collect)
		check(t, "no room for the rest", taken)
		for _, a := range all[:13] {
			q.done(a)
		}
		check(t, "room for one", taken)
		q.done(all[13])
		check(t, "room for a quarter of the width", taken, "2%0")
		q.done(all[14])
		check(t, "room for one", taken)
		time.Sleep(supervisor.Gather)
		check(t, "room for one, for some time", taken, "1%0")
	})
}

// What Slurm has lost of an array comes again as one, and no more of the trade than
// its width is out at once.
func TestLostTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, all, taken := testQueue(t, 6, 2)
		for _, a := range all {
			q.add(a)
		}
		check(t, "all have come", taken, "6%2")
		for _, a := range all[1:5] {
			q.again(a, 2)
			time.Sleep(supervisor.Collect / 2)
		}
		time.Sleep(supervisor.Collect)
		check(t, "four were lost, two are out", taken)
		q.done(all[5])
		time.Sleep(supervisor.Gather)
		check(t, "room for one", taken, "1%0")
		q.done(all[0])
		time.Sleep(supervisor.Gather)
		check(t, "room for another", taken, "1%0")

		q, all, taken = testQueue(t, 6, 2)
		for _, a := range all {
			q.add(a)
		}
		check(t, "all have come", taken, "6%2")
		for _, a := range all {
			q.again(a, 2)
		}
		check(t, "all were lost", taken, "6%2")
		if in, _ := all[3].place(); in.Generation != 2 || !strings.HasSuffix(in.Name, ".g2") || in.Index != 3 {
			t.Errorf("submitted again as %+v", in)
		}
	})
}

// What an earlier supervisor submitted counts before what it did not, once.
func TestAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, all, taken := testQueue(t, 6, 2)
		for _, a := range all[:2] {
			q.Adopt(a.Key)
		}
		for _, a := range all[2:] {
			q.add(a)
		}
		time.Sleep(supervisor.CollectAll)
		check(t, "two are out", taken)
		q.Adopt(all[0].Key)
		q.done(all[0])
		time.Sleep(supervisor.Gather)
		check(t, "room for one", taken, "1%0")
	})
}
