package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// startAfter is how long an attempt runs before its start is committed: one
// that ends sooner is reported by its end alone.
const startAfter = 150 * time.Millisecond

// paceFor is the least time between two commands of results while n more
// attempts run: a commit for each would cost more than the attempts themselves,
// and of many some end at any moment.
func paceFor(n int) time.Duration {
	if n < 8 {
		return 20 * time.Millisecond
	}
	return 60 * time.Millisecond
}

// Bounds of the results in one command, so that it stays within pcm.MaxCommand.
const (
	maxResults     = 256
	maxResultBytes = 30 << 10 // encoded, more or less; what else the command says has the rest
)

// fitting is how many of results, from the first on, go into one command: at least one.
func fitting(results []pcm.Result) int {
	n, size := 0, 0
	for n < min(len(results), maxResults) {
		r := results[n]
		if size += 64 + len(r.Outcome) + len(r.Output) + len(r.Reason); n > 0 && size > maxResultBytes {
			break
		}
		n++
	}
	return n
}

// reports are what a seller has to tell its cell: starts and results. They wait
// together, and go in as few commands as possible.
type reports struct {
	mu      sync.Mutex
	results map[pcm.TradeID][]pcm.Result
	starts  map[pcm.TradeID]map[int]time.Time
	lost    []pcm.Op // disputes in which this seller gives in
	wake    chan struct{}
}

func newReports() *reports {
	return &reports{results: map[pcm.TradeID][]pcm.Result{}, starts: map[pcm.TradeID]map[int]time.Time{}, wake: make(chan struct{}, 1)}
}

func (r *reports) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// started notes that an attempt runs.
func (r *reports) started(id pcm.TradeID, i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starts[id] == nil {
		r.starts[id] = map[int]time.Time{}
	}
	if _, ok := r.starts[id][i]; !ok {
		r.starts[id][i] = time.Now()
		time.AfterFunc(startAfter, r.nudge)
	}
}

// giveIn notes that what was disputed could not be had from this seller: it
// asks for no pay.
func (r *reports) giveIn(id pcm.TradeID, tasks pcm.Spans) {
	r.mu.Lock()
	if !slices.ContainsFunc(r.lost, func(op pcm.Op) bool { return op.Reject.Trade == id && slices.Equal(op.Reject.Tasks, tasks) }) {
		r.lost = append(r.lost, pcm.Op{Reject: &pcm.Reject{Trade: id, Tasks: tasks, Reason: "its outputs could not be had from the seller in time"}})
	}
	r.mu.Unlock()
	r.nudge()
}

// finished notes a result.
func (r *reports) finished(id pcm.TradeID, res pcm.Result) {
	r.mu.Lock()
	r.results[id] = append(r.results[id], res)
	if starts := r.starts[id]; starts != nil {
		delete(starts, res.Index)
		if len(starts) == 0 {
			delete(r.starts, id)
		}
	}
	r.mu.Unlock()
	r.nudge()
}

// take takes what is to be told now, as commands' ops, each with its results.
func (r *reports) take(now time.Time) (batch []pcm.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch, r.lost = r.lost, nil
	for _, id := range sortedKeys(r.results) {
		list := r.results[id]
		for len(list) > 0 {
			n := fitting(list)
			batch = append(batch, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: slices.Clone(list[:n])}})
			list = list[n:]
		}
		delete(r.results, id)
	}
	for _, id := range sortedKeys(r.starts) {
		var due []int
		for _, i := range sortedKeys(r.starts[id]) {
			if now.Sub(r.starts[id][i]) >= startAfter {
				due = append(due, i)
				delete(r.starts[id], i)
			}
		}
		if len(r.starts[id]) == 0 {
			delete(r.starts, id)
		}
		if len(due) > 0 {
			batch = append(batch, pcm.Op{Start: &pcm.Start{Trade: id, Tasks: pcm.SpansOf(due)}})
		}
	}
	return batch
}

// putBack returns what could not be told. A start goes along next time, unless
// its attempt has ended: then that tells it.
func (r *reports) putBack(batch []pcm.Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, op := range batch {
		switch {
		case op.Finish != nil:
			r.results[op.Finish.Trade] = append(op.Finish.Results, r.results[op.Finish.Trade]...)
		case op.Reject != nil:
			r.lost = append(r.lost, op)
		}
	}
	for _, op := range batch {
		if op.Start == nil {
			continue
		}
		id := op.Start.Trade
		for i := range op.Start.Tasks.All {
			if slices.ContainsFunc(r.results[id], func(res pcm.Result) bool { return res.Index == i }) {
				continue
			}
			if r.starts[id] == nil {
				r.starts[id] = map[int]time.Time{}
			}
			r.starts[id][i] = time.Time{} // due at once
		}
	}
}

// report tells the cell what there is to tell, until ctx ends.
func (s *seller) report(ctx context.Context) error {
	var told time.Time
	for {
		select {
		case <-s.reports.wake:
		case <-ctx.Done():
			return nil
		}
		for {
			if running, _ := s.busy(); running > 0 { // more will come soon: it goes along
				if wait := paceFor(running) - time.Since(told); wait > 0 && !pause(ctx, wait) {
					return nil
				}
			}
			batch := s.reports.take(time.Now())
			if len(batch) == 0 {
				break
			}
			told = time.Now()
			if err := s.tell(ctx, batch); err != nil {
				s.reports.putBack(batch)
				if ctx.Err() != nil {
					return nil // the results are with the supervisors: they are told after a restart
				}
				s.n.log.Warn("can't report results yet", "error", err)
				pause(ctx, time.Second)
			}
		}
	}
}

// tell proposes reports, each as a command of its own: one that is refused (its
// attempt was lost meanwhile) takes no other with it.
func (s *seller) tell(ctx context.Context, batch []pcm.Op) error {
	// What is reported must not be lost by a crash of this machine. One sync is
	// for the whole batch.
	if slices.ContainsFunc(batch, hasOutput) {
		if err := s.n.store.Sync(); err != nil {
			return err
		}
	}
	commands := make([][]pcm.Op, len(batch))
	for i, op := range batch {
		commands[i] = []pcm.Op{op}
	}
	try, cancel := context.WithTimeout(ctx, commandValidity)
	defer cancel()
	results, err := s.n.commit(try, commands)
	if err != nil {
		return err
	}
	for i, r := range results {
		if misdated(r) {
			return r.Err
		}
		if why := r.First(); why != nil && batch[i].Finish != nil {
			s.n.log.Info("results came too late", "trade", batch[i].Finish.Trade, "results", len(batch[i].Finish.Results), "reason", why)
		}
	}
	return nil
}

func hasOutput(op pcm.Op) bool {
	return op.Finish != nil && slices.ContainsFunc(op.Finish.Results, func(r pcm.Result) bool { return r.Output != "" })
}
