package node

import (
	"context"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// halt ends attempts because the buyer asks.
func (s *seller) halt(id pcm.TradeID, tasks pcm.Spans, reason string) {
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return
	}
	var queued, running []int
	x.queue = slices.DeleteFunc(x.queue, func(i int) bool {
		if tasks.Has(i) {
			queued = append(queued, i)
			x.ended[i] = true
			return true
		}
		return false
	})
	for i := range x.running {
		if tasks.Has(i) {
			x.stop[i] = reason
			running = append(running, i)
		}
	}
	s.mu.Unlock()
	for _, i := range queued {
		r := pcm.Result{Index: i, Outcome: pcm.OutcomeStopped, Reason: clip(reason)}
		s.note(x, "ended", r)
		s.reports.finished(id, r)
	}
	for _, i := range running {
		go s.stopOne(x, i, reason)
	}
}

// lose ends attempts that the cell has given up: their results will not be paid,
// and their leases are not extended any more.
func (s *seller) lose(id pcm.TradeID, tasks pcm.Spans, reason string) {
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return
	}
	x.queue = slices.DeleteFunc(x.queue, func(i int) bool {
		if tasks.Has(i) {
			x.ended[i] = true
		}
		return tasks.Has(i)
	})
	var running []int
	for i := range x.running {
		if tasks.Has(i) {
			x.ended[i], x.stop[i] = true, reason
			running = append(running, i)
		}
	}
	for _, i := range running {
		delete(x.running, i)
	}
	s.mu.Unlock()
	for _, i := range running {
		s.note(x, "lost", pcm.Result{Index: i, Reason: clip(reason)})
	}
	for _, i := range running {
		go s.stopOne(x, i, reason)
	}
	s.next(id, x)
}

// finished forgets attempts whose results the ledger has: what this process itself
// reported is not here any more.
func (s *seller) finished(id pcm.TradeID, results []pcm.Result) {
	tasks := make([]int, 0, len(results))
	for _, r := range results {
		tasks = append(tasks, r.Index)
	}
	slices.Sort(tasks)
	s.lose(id, pcm.SpansOf(tasks), "its result is in the ledger")
}

// How long a task has to end by itself when it is stopped, and how long the back
// end is asked to stop it, before that is left to its lease and to the next tidying.
const (
	stopGrace    = 5 * time.Second
	stopPatience = time.Minute
)

// stopOne has the back end stop an attempt, and asks again while that fails. One
// that the back end has not got yet is stopped by whoever starts it.
func (s *seller) stopOne(x *execution, i int, reason string) {
	ctx, cancel := context.WithTimeout(s.n.run, stopPatience)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := s.adapters[x.terms.Adapter].Stop(ctx, x.key(i), stopGrace, clip(reason))
		if err == nil || pcm.ErrorCode(err) == pcm.NotFound && !s.starting(x, i) {
			return
		}
		if !pause(ctx, wait) {
			if s.n.run.Err() == nil {
				s.n.log.Warn("can't stop a task", "attempt", x.key(i), "error", err)
			}
			return
		}
	}
}

// starting tells whether an attempt is on its way to the back end.
func (s *seller) starting(x *execution, i int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := x.running[i]
	return r != nil && !r.placed
}

// end cleans up after a trade that is closed.
func (s *seller) end(id pcm.TradeID) {
	s.mu.Lock()
	x := s.trades[id]
	delete(s.trades, id)
	s.mu.Unlock()
	if x == nil { // it ran before a start of this peer, and may have left something
		s.n.unpin(tradeOwner(id))
		s.nudgeTidy()
		return
	}
	x.cancel()
	go func() {
		<-x.idle // it pins and materializes until then
		for _, release := range x.release {
			release()
		}
		s.removeAll(x)
		s.n.unpin(tradeOwner(id))
	}()
}

// removeAll removes what a closed trade left at its back end. What runs still is
// stopped, and removed when it has ended: see ended and tidy.
func (s *seller) removeAll(x *execution) {
	a := s.adapters[x.terms.Adapter]
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
	defer cancel()
	for i := range x.terms.Tasks.All {
		err := a.Remove(ctx, x.key(i))
		if pcm.ErrorCode(err) == pcm.Conflict {
			err = a.Stop(ctx, x.key(i), stopGrace, "its trade is closed")
		}
		if err != nil && pcm.ErrorCode(err) != pcm.NotFound && s.n.run.Err() == nil {
			s.n.log.Warn("can't remove what a closed trade left yet", "attempt", x.key(i), "error", err)
			s.nudgeTidy()
		}
	}
}
