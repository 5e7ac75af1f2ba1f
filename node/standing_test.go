package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// What the ledger has ended is not started, whichever way it comes: by an award that
// is told late, from the queue, or by another try after its supervisor was away.
func TestEndedIsNotStarted(t *testing.T) {
	nobody := func(pcm.TradeID, uint64, pcm.Spans) pcm.Spans { return nil }
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{started: map[adapters.Key]adapters.Task{}}
		s, id, x := preparedTrade(t, a, 1, 1)
		delete(s.trades, id)
		s.n.self, x.terms.Seller = "me", "me"
		asked := uint64(0)
		s.live = func(_ pcm.TradeID, index uint64, _ pcm.Spans) pcm.Spans {
			asked = index
			return nil
		}
		s.observe(&pcm.Event{Trade: id, Terms: &x.terms, Index: 7, Op: &pcm.Op{Award: &pcm.Award{}}})
		if len(s.trades) != 0 || asked != 7 {
			t.Errorf("%d trades were taken up, the ledger was asked about an award at %d", len(s.trades), asked)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{started: map[adapters.Key]adapters.Task{}}
		s, id, x := preparedTrade(t, a, 2, 1)
		s.live = nobody
		s.next(id, x)
		synctest.Wait()
		if a.tries != 0 || len(x.running)+len(x.queue) != 0 || len(told(s, id)) != 0 {
			t.Errorf("%d starts, %d run, %d wait, told %v", a.tries, len(x.running), len(x.queue), told(s, id))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{left: 1, code: pcm.Unavailable, started: map[adapters.Key]adapters.Task{}}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.next(id, x)
		synctest.Wait()
		s.live = nobody // rejected while its supervisor was away
		time.Sleep(time.Minute)
		synctest.Wait()
		if a.tries != 1 || len(a.started) != 0 || a.stops == 0 {
			t.Errorf("%d tries, %d started, %d stops", a.tries, len(a.started), a.stops)
		}
	})
	// A result in the ledger that this process has not reported itself.
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{started: map[adapters.Key]adapters.Task{}}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.n.self, x.terms.Seller = "me", "me"
		s.observe(&pcm.Event{Trade: id, Terms: &x.terms, Op: &pcm.Op{Finish: &pcm.Finish{Trade: id, Results: []pcm.Result{{Index: 0, Outcome: pcm.OutcomeSeller}}}}})
		s.next(id, x)
		synctest.Wait()
		if a.tries != 0 || len(x.queue) != 0 {
			t.Errorf("%d tries, %d wait", a.tries, len(x.queue))
		}
	})
}

// A renewal extends the lease of what starts only once the ledger here has come to it:
// it may follow the loss of the attempt.
func TestRenewalSpeaksForTheLiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{started: map[adapters.Key]adapters.Task{}}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.n.renewalIndex.Store(9)
		s.n.lastRenewal.Store(int64(x.awarded) + 1)
		come := make(chan struct{})
		s.applied = func(ctx context.Context, index uint64) error {
			if index != 9 {
				t.Errorf("waited for %d", index)
			}
			select {
			case <-come:
				s.live = func(pcm.TradeID, uint64, pcm.Spans) pcm.Spans { return nil }
				return nil
			case <-ctx.Done():
				return pcm.Errorf(pcm.Unavailable, "behind")
			}
		}
		s.next(id, x)
		time.Sleep(2 * startTry)
		synctest.Wait()
		if a.tries != 0 {
			t.Error("it was started by a renewal that the ledger here has not got")
		}
		close(come)
		time.Sleep(time.Minute)
		synctest.Wait()
		if a.tries != 0 || len(x.running) != 0 {
			t.Errorf("%d tries, %d run: the ledger has its loss", a.tries, len(x.running))
		}
	})
}
