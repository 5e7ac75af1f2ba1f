package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/mesh/artifact"
)

// Bounds of fetching outputs.
const (
	fetchTries = 4
	fetchWait  = 30 * time.Second
)

// finished takes a seller's results in: those with outputs are decided when the
// outputs are here, so that what is paid for can be had.
func (d *driver) finished(ctx context.Context, id pcm.TradeID, m *tradeModel, results []pcm.Result) {
	var fetch []pcm.Result
	for _, r := range results {
		if !m.live[r.Index] {
			continue
		}
		delete(m.live, r.Index)
		switch {
		case r.Outcome == pcm.OutcomeSeller:
			m.failed[r.Index] = orElse(r.Reason, "the seller could not run it")
			how := 5 * time.Second
			if strings.HasPrefix(r.Reason, ruleMark) { // nothing but time or another job helps
				how = ruledFor
			}
			d.avoidFor(m.terms, how, "could not run a task: "+r.Reason)
			d.n.denials.learn(m.terms, r.Reason, time.Now())
		case r.Output == "":
			m.ready = append(m.ready, r)
		default:
			fetch = append(fetch, r)
		}
	}
	d.fetch(ctx, id, m, fetch)
}

// fetchAll begins to fetch what a freshly read model says is ready.
func (d *driver) fetchAll(ctx context.Context) {
	for _, id := range sortedKeys(d.trades) {
		m := d.trades[id]
		ready := m.ready
		m.ready = nil
		var fetch []pcm.Result
		for _, r := range ready {
			if r.Output == "" {
				m.ready = append(m.ready, r)
			} else { // what is here already is pinned for the job by this
				fetch = append(fetch, r)
			}
		}
		d.fetch(ctx, id, m, fetch)
	}
}

// fetch brings outputs here, pinned for the job.
func (d *driver) fetch(_ context.Context, id pcm.TradeID, m *tradeModel, results []pcm.Result) {
	if len(results) == 0 {
		return
	}
	m.fetching += len(results)
	seller := m.terms.Seller
	go func() {
		err := d.bring(seller, results)
		d.mu.Lock()
		d.arrived = append(d.arrived, arrival{id, results, err})
		d.mu.Unlock()
		d.nudge()
	}()
}

// bring fetches and pins outputs. The seller gets a few tries; this peer's own
// store, if it has no room, as long as it takes: that is not the seller's fault.
func (d *driver) bring(seller pcm.PeerID, results []pcm.Result) error {
	var digests []pcm.Digest
	for _, r := range results {
		if !slices.Contains(digests, r.Output) {
			digests = append(digests, r.Output)
		}
	}
	defer d.setNoRoom("")
	for failed := 0; ; {
		own, err := d.bringOnce(seller, digests, fetchWait+fetchTime(results))
		if err == nil || d.n.run.Err() != nil {
			return err
		}
		if own {
			d.setNoRoom("this peer can't store the results: " + err.Error())
			d.n.log.Error("can't store outputs: make room", "job", d.job, "error", err)
			if !pause(d.n.run, 10*time.Second) {
				return err
			}
			continue
		}
		if failed++; failed == fetchTries {
			return err
		}
		d.n.log.Warn("can't fetch outputs yet", "job", d.job, "seller", pcm.Short(seller), "try", failed, "error", err)
		if !pause(d.n.run, time.Duration(failed)*time.Second) {
			return err
		}
	}
}

// bringOnce tries once. It tells whether a failure is this peer's own.
func (d *driver) bringOnce(seller pcm.PeerID, digests []pcm.Digest, most time.Duration) (own bool, err error) {
	if err := d.n.pin(jobOwner(d.job), digests...); err != nil {
		return true, err
	}
	if seller == d.n.self {
		return false, nil // the seller's part of this peer has stored them
	}
	ctx, cancel := context.WithTimeout(d.n.run, most)
	defer cancel()
	if err := d.n.files.FetchAll(ctx, digests, seller); err != nil {
		return pcm.ErrorCode(err) == pcm.Refused, err // see artifact.Service.Fetch
	}
	return true, d.n.store.Sync() // what is accepted must be had after a crash
}

func (d *driver) setNoRoom(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.noRoom = why
}

// fetchTime allows for outputs of any size that their adapters let through: the
// longer a task ran, the more it may have written.
func fetchTime(results []pcm.Result) time.Duration {
	var d time.Duration
	for _, r := range results {
		d += r.Usage.Wall()
	}
	return min(d, time.Hour)
}

// arrive takes fetched outputs into the model.
func (d *driver) arrive(a arrival) {
	m := d.trades[a.trade]
	if m == nil {
		return
	}
	m.fetching = max(0, m.fetching-len(a.results))
	for _, r := range a.results {
		if !d.placed(a.trade, m.terms.Step, r.Index) || slices.ContainsFunc(m.ready, func(o pcm.Result) bool { return o.Index == r.Index }) {
			continue
		}
		if a.err != nil {
			m.spoiled[r.Index] = clip(fmt.Sprintf("its outputs can't be had from the seller: %v", a.err))
			continue
		}
		m.ready = append(m.ready, r)
	}
}

// decide makes the commands for all that has come in: results are accepted or
// tried again and settled, lost attempts given up.
func (d *driver) decide() []step {
	var round []step
	for _, id := range sortedKeys(d.trades) {
		if len(round) >= maxRound {
			break
		}
		m := d.trades[id]
		if len(m.ready) > 0 || len(m.unpaid) > 0 && !d.model.unpaid {
			round = append(round, d.acceptAndSettle(id, m))
		}
		if len(m.failed) > 0 {
			round = append(round, d.giveUp(id, m, m.failed, nil)...)
		}
		if len(m.spoiled) > 0 {
			round = append(round, d.giveUp(id, m, m.spoiled, func(tasks pcm.Spans, reason string) []pcm.Op {
				return []pcm.Op{{Dispute: &pcm.Dispute{Trade: id, Tasks: tasks, Reason: reason, Undelivered: true}}}
			})...)
		}
		if d.idle(m) {
			delete(d.trades, id)
		}
	}
	return round
}

// idle tells whether nothing of a trade awaits this driver.
func (d *driver) idle(m *tradeModel) bool {
	return len(m.live)+len(m.ready)+len(m.failed)+len(m.spoiled)+len(m.unpaid)+m.fetching == 0
}

// acceptAndSettle decides the results of one trade and pays for them, in one
// command: Accept for those that stand, Abandon for failures that have a retry
// left, Settle for what the buyer believes, Dispute for what it doesn't.
func (d *driver) acceptAndSettle(id pcm.TradeID, m *tradeModel) step {
	s := m.terms.Step
	st := &d.model.steps[s]
	var accept []pcm.Result
	retry := map[string][]int{} // by reason
	results := m.ready[:fitting(m.ready)]
	for _, r := range results {
		if !d.placed(id, s, r.Index) {
			continue
		}
		why, again := d.goesOn(s, r.Index, r)
		if !again {
			accept = append(accept, r)
			continue
		}
		why = clip(why)
		retry[why] = append(retry[why], r.Index)
	}
	var ops []pcm.Op
	if len(accept) > 0 {
		ops = append(ops, pcm.Op{Accept: &pcm.Accept{Job: d.job, Term: d.term, Trade: id, Results: accept}})
	}
	const mostReasons = 8 // in one command; the rest comes with the next round
	retried := map[int]bool{}
	for n, why := range sortedKeys(retry) {
		if n == mostReasons {
			break
		}
		slices.Sort(retry[why])
		for _, i := range retry[why] {
			retried[i] = true
		}
		ops = append(ops, pcm.Op{Abandon: &pcm.Abandon{
			Job: d.job, Term: d.term, Trade: id, Tasks: pcm.SpansOf(retry[why]), Fault: pcm.FaultTask, Reason: why,
		}})
	}
	pay := map[int]pcm.Result{}
	for i, r := range m.unpaid {
		pay[i] = r
	}
	for _, r := range results {
		if retried[r.Index] || slices.ContainsFunc(accept, func(o pcm.Result) bool { return o.Index == r.Index }) {
			pay[r.Index] = r
		}
	}
	if !d.model.unpaid {
		ops = append(ops, d.settle(id, m, pay)...)
	}
	return step{ops: ops, then: func(r pcm.CommandResult) bool {
		if r.First() != nil || slices.ContainsFunc(r.Ops, func(o pcm.OpResult) bool { return len(o.Skipped) > 0 }) {
			return true
		}
		for _, res := range accept {
			d.set(s, res.Index, decided(res.Outcome))
		}
		for _, res := range results {
			if !retried[res.Index] {
				continue
			}
			d.set(s, res.Index, pcm.TaskWaiting)
			st.tasks[res.Index].failures++
			d.rest(s, res.Index, res, time.Since(m.since), time.Now())
		}
		m.ready = slices.DeleteFunc(m.ready, func(o pcm.Result) bool {
			_, done := pay[o.Index]
			return done
		})
		if clear(m.unpaid); d.model.unpaid {
			m.unpaid = pay
		}
		if d.idle(m) {
			delete(d.trades, id)
		}
		return false
	}}
}

// decided is the state of a task whose result was accepted.
func decided(o pcm.Outcome) pcm.TaskState {
	switch o {
	case pcm.OutcomeOK:
		return pcm.TaskDone
	case pcm.OutcomeStopped:
		return pcm.TaskCancelled
	}
	return pcm.TaskFailed
}

// giveUp abandons attempts that are their seller's fault, by reason.
func (d *driver) giveUp(id pcm.TradeID, m *tradeModel, tasks map[int]string, first func(pcm.Spans, string) []pcm.Op) []step {
	by := map[string][]int{}
	for i, why := range tasks {
		if d.placed(id, m.terms.Step, i) {
			by[why] = append(by[why], i)
		} else {
			delete(tasks, i)
		}
	}
	var round []step
	for _, why := range sortedKeys(by) {
		list := by[why]
		slices.Sort(list)
		spans, reason := pcm.SpansOf(list), clip(why)
		var ops []pcm.Op
		if first != nil {
			ops = first(spans, reason)
		}
		ops = append(ops, pcm.Op{Abandon: &pcm.Abandon{
			Job: d.job, Term: d.term, Trade: id, Tasks: spans, Fault: pcm.FaultSeller, Reason: reason,
		}})
		round = append(round, step{ops: ops, then: func(r pcm.CommandResult) bool {
			if r.First() != nil || slices.ContainsFunc(r.Ops, func(o pcm.OpResult) bool { return len(o.Skipped) > 0 }) {
				return true
			}
			state := pcm.TaskWaiting
			if d.model.stopping != "" {
				state = pcm.TaskCancelled
			}
			for _, i := range list {
				delete(tasks, i)
				d.set(m.terms.Step, i, state)
				if st := &d.model.steps[m.terms.Step]; st.service == nil && st.tasks[i].attempt >= pcm.MaxAttempts {
					return true
				}
			}
			if d.idle(m) {
				delete(d.trades, id)
			}
			return false
		}})
	}
	return round
}

// jobEnded lets go of what was kept for driving a job; its results stay for a while.
func (n *Node) jobEnded(job pcm.JobID) {
	n.log.Info("a job has ended and is settled", "job", job)
}

// emptyOutput tells whether results hold nothing worth keeping.
func emptyOutput(d pcm.Digest) bool { return d == "" || d == artifact.Empty }

// failure says how a task failed. Adapters may give the exit code as the reason:
// it is said once.
func failure(r pcm.Result) string {
	s := fmt.Sprintf("%s with exit code %d", r.Outcome, r.ExitCode)
	if r.Reason == "" || strings.HasSuffix(s, r.Reason) {
		return s
	}
	return s + ": " + r.Reason
}
