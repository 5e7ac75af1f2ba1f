package node

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// believed is how much longer than the buyer saw it an attempt may say that it ran.
const believed = 2 * time.Second

// age is how long ago the ledger says that something happened, by its clock or by this
// machine's, whichever is ahead: the ledger's stands still in a cell in which nothing
// happens, as while its only voter is down, and tasks run on meanwhile.
func age(at, logTime int64, now time.Time) time.Duration {
	return time.Duration(max(0, max(logTime, now.UnixMilli())-at)) * time.Millisecond
}

// settle makes the ops that pay for decided attempts of a trade: those whose use
// agrees with what this peer saw; the others it disputes.
func (d *driver) settle(id pcm.TradeID, m *tradeModel, pay map[int]pcm.Result) []pcm.Op {
	var good, doubted []int
	var amount pcm.Micro
	seen := time.Since(m.since)
	worst := time.Duration(0)
	for _, i := range sortedKeys(pay) {
		r := pay[i]
		if w := r.Usage.Wall(); w > seen+believed {
			doubted = append(doubted, i)
			worst = max(worst, w)
			continue
		}
		good = append(good, i)
		amount = pcm.AddMicro(amount, m.terms.Charge(r.Usage))
	}
	var ops []pcm.Op
	if len(good) > 0 {
		ops = append(ops, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: pcm.SpansOf(good), Amount: amount}})
	}
	if len(doubted) > 0 {
		why := clip(fmt.Sprintf("the seller says that it ran for %s; its driver saw %s since the award", worst, seen.Round(time.Millisecond)))
		ops = append(ops, pcm.Op{Dispute: &pcm.Dispute{Trade: id, Tasks: pcm.SpansOf(doubted), Reason: why}})
	}
	return ops
}

// untilPay is how long what a job has cost is not to be paid yet; never, while it hasn't
// ended and is to be paid after its end. It needs the cell's View.
func (n *Node) untilPay(j *ledger.Job) time.Duration {
	switch at := j.PayAt(); {
	case at == 0:
		return 0
	case j.EndedAt == 0:
		return math.MaxInt64
	default:
		return max(0, time.Duration(j.PayAfterMS)*time.Millisecond-age(j.EndedAt, n.cell.LogTime(), time.Now()))
	}
}

// awaitPay is how long the job's cost is not to be paid yet. When that is over, the model is
// read anew: what its buyer has disputed meanwhile is not paid.
func (d *driver) awaitPay(ctx context.Context) (left time.Duration, err error) {
	if !d.model.unpaid {
		return 0, nil
	}
	d.n.cell.View(func() {
		if j, ok := d.n.state.Job(d.job); ok {
			left = d.n.untilPay(j)
		}
	})
	if left > 0 {
		return left, nil
	}
	return 0, d.reload(ctx)
}

// dropTasks takes tasks out of a map by task.
func dropTasks[V any](m map[int]V, tasks pcm.Spans) {
	for i := range tasks.All {
		delete(m, i)
	}
}

// debt is what is unpaid of a trade.
type debt struct {
	trade  pcm.TradeID
	tasks  []int
	amount pcm.Micro
}

// settleEnded pays what is unpaid of jobs that have ended and that nobody
// drives any more: a driver may have died between Accept and Settle. The ledger lets
// the buyer's account pay what it has disputed, so this peer looks once more when it
// has all that was decided: what a person has just disputed is not paid.
func (n *Node) settleEnded(ctx context.Context) {
	if len(n.debtsOfEnded()) == 0 {
		return
	}
	try, cancel := context.WithTimeout(ctx, commandValidity)
	defer cancel()
	if err := n.cell.Sync(try); err != nil {
		return // it looks again soon
	}
	for _, b := range n.debtsOfEnded() {
		if _, err := n.must(ctx, pcm.Op{Settle: &pcm.Settle{Trade: b.trade, Tasks: pcm.SpansOf(b.tasks), Amount: b.amount}}); err != nil && ctx.Err() == nil {
			n.log.Info("can't settle a trade of an ended job yet", "trade", b.trade, "reason", err)
		}
	}
}

// debtsOfEnded is what this peer is to pay of ended jobs' trades in this cell.
func (n *Node) debtsOfEnded() (debts []debt) {
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			if j.EndedAt == 0 || n.untilPay(j) > 0 || j.Buyer != n.account && j.Driver != n.self || n.drivers.has(j.ID) {
				continue
			}
			for _, t := range n.state.Trades() {
				if t.Terms.Job != j.ID || t.Terms.Abroad() {
					continue
				}
				b := debt{trade: t.ID}
				for i, at := range t.All {
					if at.State == pcm.AttemptFinished {
						b.tasks = append(b.tasks, i)
						b.amount = pcm.AddMicro(b.amount, t.Terms.Charge(at.Result.Usage))
					}
				}
				if len(b.tasks) > 0 {
					debts = append(debts, b)
				}
			}
		}
	})
	return debts
}

// clearEnded looks after trades in other cells of jobs that have ended and that
// nobody drives any more.
func (n *Node) clearEnded() {
	type ended struct {
		job  pcm.JobID
		term uint64
	}
	var jobs []ended
	now := n.cell.LogTime()
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			if j.EndedAt == 0 || len(j.Places) == 0 || j.Buyer != n.account {
				continue
			}
			m, ok := n.state.Member(j.Driver)
			if foreign := ok && m.Account != j.Buyer; foreign || j.Driver == n.self || now >= n.state.DriverSilentAt(j) {
				jobs = append(jobs, ended{j.ID, j.Term})
			}
		}
	})
	for _, j := range jobs {
		h, _ := n.specs.find(j.job)
		d, err := n.drivers.prepare(j.job, h)
		if err != nil {
			continue // driven here
		}
		d.term = j.term
		if err := d.load(n.run, 0); err != nil {
			n.drivers.cancelPrepared(j.job)
			continue
		}
		n.drivers.start(d)
	}
}

// has tells whether a job is driven here.
func (ds *drivers) has(job pcm.JobID) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.jobs[job] != nil
}
