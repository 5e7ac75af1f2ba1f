package node

import (
	"slices"

	"github.com/jointcloud/pcm"
)

// kill ends attempts by this peer's own will: they count as its fault, are not
// paid, and are tried elsewhere. It tells how many there were.
func (s *seller) kill(id pcm.TradeID, want func(i int) bool, reason string) int {
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return 0
	}
	queued := s.unqueue(x, want)
	var running []int
	for i := range x.running {
		if _, known := x.kill[i]; want(i) && !x.ended[i] && !known {
			if x.kill == nil {
				x.kill = map[int]string{}
			}
			x.kill[i], x.stop[i] = reason, reason
			running = append(running, i)
		}
	}
	s.mu.Unlock()
	for _, i := range queued {
		r := pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: clip(reason)}
		s.note(x, "killed", r)
		s.reports.finished(id, r)
	}
	for _, i := range running {
		go s.stopOne(x, i, reason)
	}
	return len(queued) + len(running)
}

// unqueue takes attempts that have not started out of a trade. The caller holds the lock.
func (s *seller) unqueue(x *execution, want func(i int) bool) (taken []int) {
	x.queue = slices.DeleteFunc(x.queue, func(i int) bool {
		if want(i) {
			taken = append(taken, i)
			x.ended[i] = true
		}
		return want(i)
	})
	return taken
}

// ofPool are the trades of a pool.
func (s *seller) ofPool(id pcm.PoolID) (list []pcm.TradeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, x := range s.trades {
		if x.terms.Pool == id {
			list = append(list, t)
		}
	}
	return list
}

func every(int) bool { return true }

// killPool ends all that runs or waits in a pool.
func (s *seller) killPool(id pcm.PoolID, reason string) {
	for _, t := range s.ofPool(id) {
		s.kill(t, every, reason)
	}
}

// giveBack gives back what waits in a pool and has not started.
func (s *seller) giveBack(id pcm.PoolID, reason string) {
	for _, t := range s.ofPool(id) {
		s.mu.Lock()
		x := s.trades[t]
		var queued []int
		if x != nil {
			queued = s.unqueue(x, every)
		}
		s.mu.Unlock()
		for _, i := range queued {
			r := pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: reason}
			s.note(x, "refused", r)
			s.reports.finished(t, r)
		}
	}
}

// inPool counts the attempts that run and wait in a pool.
func (s *seller) inPool(id pcm.PoolID) (running, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.trades {
		if x.terms.Pool == id {
			running += len(x.running)
			waiting += len(x.queue)
		}
	}
	return running, waiting
}

// killed has the end of an attempt that this peer stopped by its own will be its
// own fault. The caller holds the lock.
func (x *execution) killed(r pcm.Result) pcm.Result {
	if why, ok := x.kill[r.Index]; ok && r.Outcome == pcm.OutcomeStopped {
		r.Outcome, r.Reason, r.ExitCode, r.Output = pcm.OutcomeSeller, clip(why), 0, ""
	}
	return r
}
