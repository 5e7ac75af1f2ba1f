package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// A trade abroad is driven by looking at how it stands, at home and there, and by
// doing what is missing: whatever was done before a crash is seen, and not done
// again. What is asked for twice is refused or skipped the second time.

// abroadTrade is what a driver knows of one of its job's trades in another cell.
type abroadTrade struct {
	id    pcm.TradeID
	terms pcm.Terms
	since time.Time // when this peer placed it or learned of it, or when it was awarded, if its cell can be believed
	first time.Time // when home had it placed: it can't have been awarded before that, whatever its cell says

	// own is the driver's account, if that is another than the buyer's: home believes it
	// nothing that the seller has not signed.
	own      pcm.AccountID
	warrants warrants

	// As home has it.
	due     map[int]bool // results taken, to be paid
	counted pcm.Micro    // for them
	doubt   int          // tasks given up of which it is open what they cost

	// As its cell has it.
	fresh   bool          // placed by this driver just now: to be awarded
	awarded bool          // for certain
	refused *pcm.Error    // for certain
	void    bool          // it is not open, and can't be awarded any more
	gone    bool          // it never came into being, and never will
	seen    *ledger.Trade // as the cell told it last; nil: not yet, or not there

	// Here.
	ready    map[int]bool   // outputs are here
	spoiled  map[int]string // outputs can't be had
	fetching map[int]bool
}

func newAbroadTrade(id pcm.TradeID, t pcm.Terms) *abroadTrade {
	now := time.Now()
	return &abroadTrade{
		id: id, terms: t, since: now, first: now, due: map[int]bool{}, ready: map[int]bool{}, spoiled: map[int]string{}, fetching: map[int]bool{},
	}
}

// readAbroad makes one of a placement, keeping what an older one knew beyond that;
// age is how long ago home had it placed, by home's own log.
func readAbroad(p *ledger.Placement, old *abroadTrade, age time.Duration) *abroadTrade {
	t := old
	if t == nil {
		t = newAbroadTrade(p.Trade, *p.Terms)
		t.terms.Tasks = slices.Clone(p.Terms.Tasks)
		t.first = t.first.Add(-max(0, age))
	}
	t.counted, t.doubt = p.Counted, p.Doubt
	clear(t.due)
	for i := range p.Due.All {
		t.due[i] = true
	}
	return t
}

// abroadJob is what a trade abroad depends on of its job.
type abroadJob struct {
	id        pcm.JobID
	term      uint64
	undecided func(i int) bool                                 // of the trade's tasks
	unwanted  func(i int) string                               // why a task is to be stopped; "": it isn't
	unpaid    bool                                             // what was finished is not to be paid yet
	goesOn    func(i int, r pcm.Result) (why string, yes bool) // tells whether a task that ended like that is tried again
}

// plausible checks what another cell's peer tells of the trade.
func (t *abroadTrade) plausible(v *ledger.Trade) error {
	if v.ID != t.id || pcm.DigestOf(pcm.MustMarshal(v.Terms)) != pcm.DigestOf(pcm.MustMarshal(t.terms)) || len(v.Attempts) != t.terms.Tasks.Len() {
		return pcm.Errorf(pcm.Invalid, "%s tells of another trade than %s", pcm.Short(t.terms.Cell), t.id)
	}
	for i, at := range v.All {
		_, known := pcm.AttemptNext[at.State]
		final := at.State == pcm.AttemptRejected || at.State == pcm.AttemptLost || at.State == pcm.AttemptSettled
		needs := at.State == pcm.AttemptFinished || at.State == pcm.AttemptSettled || at.State == pcm.AttemptDisputed
		if !known && !final || needs && (at.Result == nil || at.Result.Index != i) {
			return pcm.Errorf(pcm.Invalid, "%s tells of attempt %s/%d what can't be", pcm.Short(t.terms.Cell), t.id, i)
		}
		if needs { // home must not be asked again and again for what it refuses
			if err := ledger.CheckResultAbroad(at.Result); err != nil {
				return pcm.Errorf(pcm.Invalid, "%s tells of attempt %s/%d what can't be: %w", pcm.Short(t.terms.Cell), t.id, i, err)
			}
		}
	}
	if v.Paid < 0 {
		return pcm.Errorf(pcm.Invalid, "%s tells that %s cost %s", pcm.Short(t.terms.Cell), t.id, v.Paid)
	}
	return nil
}

// learnResult takes in what became of an errand: of an award, or of what asks for
// its outcome. What became of others is seen by how the trade stands. It returns
// why the errand was refused, if it was for certain.
func (t *abroadTrade) learnResult(r errandResult) *pcm.Error {
	certain := r.err == nil && r.result.Err == nil && len(r.result.Ops) > 0
	var refusal *pcm.Error
	if certain {
		refusal = r.result.Ops[0].Err
	}
	switch op := r.ops[0]; {
	case op.Award != nil:
		t.fresh = false // if it isn't certain what became of it, a Void finds out
		t.awarded = certain && refusal == nil
		if certain && t.own == "" { // else the seller has to sign that it was never sold: a Void comes first
			t.refused = refusal
		}
	case op.Void != nil && certain:
		t.void = refusal == nil
		t.awarded = refusal != nil && refusal.Code == pcm.Conflict
	}
	return refusal
}

// learnTrade takes in how the trade stands in its cell, as of a log time there; nil:
// the cell does not know it.
func (t *abroadTrade) learnTrade(v *ledger.Trade, stamp int64) error {
	if v == nil {
		t.seen = nil
		switch {
		case t.void || stamp > t.terms.AwardBy:
			t.gone = true
		case t.awarded: // it was there, for all that was known: a Void finds out
			t.awarded = false
		}
		return nil
	}
	if err := t.plausible(v); err != nil {
		return err
	}
	t.seen, t.awarded, t.fresh = v, true, false
	if told := min(max(0, stamp-v.AwardedAt), mostAge.Milliseconds()); time.Since(t.since).Milliseconds() < told {
		t.since = time.Now().Add(-time.Duration(told) * time.Millisecond)
	}
	if t.since.Before(t.first) {
		t.since = t.first
	}
	return nil
}

// mostAge bounds what another cell says of a trade's age.
const mostAge = 10 * 365 * 24 * time.Hour

// over tells whether nothing of it is open in its cell, now and for good.
func (t *abroadTrade) over() bool {
	return t.gone || t.refused != nil || t.seen != nil && t.seen.ClosedAt != 0
}

// open tells whether a task of the trade is undecided.
func (t *abroadTrade) open(j abroadJob) bool {
	for i := range t.terms.Tasks.All {
		if j.undecided(i) {
			return true
		}
	}
	return false
}

// wants are the results whose outputs are to be fetched.
func (t *abroadTrade) wants(j abroadJob) []pcm.Result {
	if t.seen == nil {
		return nil
	}
	var list []pcm.Result
	for i, at := range t.seen.All {
		finished := at.State == pcm.AttemptFinished || at.State == pcm.AttemptSettled
		if finished && j.undecided(i) && at.Result.Output != "" && !t.ready[i] && !t.fetching[i] && t.spoiled[i] == "" {
			list = append(list, *at.Result)
		}
	}
	return list
}

// there are the commands that are to be proposed in the trade's cell now.
func (t *abroadTrade) there(j abroadJob, now time.Time) []pcm.Op {
	switch {
	case t.over() || t.seen == nil && (t.awarded || t.void) || t.sellsItself():
		return nil
	case t.seen == nil && t.fresh:
		return []pcm.Op{{Award: &pcm.Award{Terms: t.terms}}}
	case t.seen == nil: // whatever became of an earlier award: it is open, or is never to be
		return []pcm.Op{{Void: &pcm.Void{Terms: t.terms}}}
	}
	stop, dispute := map[string][]int{}, map[string][]int{}
	var settle, doubted []int
	var amount pcm.Micro
	lived := now.Sub(t.since) + believed
	for i, at := range t.seen.All {
		undecided := j.undecided(i)
		switch {
		case at.State.Live() && at.Stop == "":
			why := "its buyer's cell has given it up"
			if undecided {
				why = j.unwanted(i)
			}
			if why != "" {
				stop[clip(why)] = append(stop[clip(why)], i)
			}
		case at.State != pcm.AttemptFinished:
		case undecided && t.spoiled[i] != "":
			dispute[t.spoiled[i]] = append(dispute[t.spoiled[i]], i)
		case undecided:
		case !t.due[i]:
			why := "it was given up while nothing was heard of its cell"
			dispute[why] = append(dispute[why], i)
		case at.Result.Usage.Wall() > lived:
			doubted = append(doubted, i)
		case j.unpaid:
		default:
			settle = append(settle, i)
			amount = pcm.AddMicro(amount, t.terms.Charge(at.Result.Usage))
		}
	}
	var ops []pcm.Op
	for _, why := range sortedKeys(stop) {
		ops = append(ops, pcm.Op{Stop: &pcm.Stop{Trade: t.id, Tasks: pcm.SpansOf(stop[why]), Reason: why}})
	}
	for _, why := range sortedKeys(dispute) { // the seller then asks for no pay, by itself
		ops = append(ops, pcm.Op{Dispute: &pcm.Dispute{Trade: t.id, Tasks: pcm.SpansOf(dispute[why]), Reason: why, Undelivered: true}})
	}
	if len(doubted) > 0 {
		why := clip(fmt.Sprintf("the seller says that it ran longer than the %s that its driver saw since the award", now.Sub(t.since).Round(time.Millisecond)))
		ops = append(ops, pcm.Op{Dispute: &pcm.Dispute{Trade: t.id, Tasks: pcm.SpansOf(doubted), Reason: why}})
	}
	if len(settle) > 0 {
		ops = append(ops, pcm.Op{Settle: &pcm.Settle{Trade: t.id, Tasks: pcm.SpansOf(settle), Amount: amount}})
	}
	return ops[:min(len(ops), pcm.MaxOps-1)] // one more may go ahead of them
}

// sellsItself tells whether the driver, of another account than the buyer's, drives what
// its own account sells: that is for the buyer alone to settle.
func (t *abroadTrade) sellsItself() bool {
	return t.own != "" && t.seen != nil && t.seen.SellerAccount == t.own
}

// left tells whether nothing of it is left to do for a driver of another account than the
// buyer's: what it has cost is for the buyer to say, and what is in dispute to end.
func (t *abroadTrade) left(j abroadJob, now time.Time) bool {
	if t.own == "" || t.open(j) {
		return false
	}
	if t.over() || t.sellsItself() {
		return true
	}
	return !j.unpaid && t.seen != nil && t.seen.Live == 0 && len(t.there(j, now)) == 0
}

// home is the command that is to be proposed in the job's cell now; silent says why
// the trade's cell counts as gone, "" if it doesn't.
func (t *abroadTrade) home(j abroadJob, silent string) []pcm.Op {
	if !t.open(j) {
		if t.over() && t.own == "" {
			return []pcm.Op{t.clear(j)}
		}
		return nil
	}
	abandon := func(tasks []int, reason string) pcm.Op {
		return pcm.Op{Abandon: &pcm.Abandon{
			Job: j.id, Term: j.term, Trade: t.id, Tasks: pcm.SpansOf(tasks), Fault: pcm.FaultSeller, Reason: clip(reason),
		}}
	}
	var ops []pcm.Op
	if t.seen == nil {
		var all []int
		for i := range t.terms.Tasks.All {
			if j.undecided(i) {
				all = append(all, i)
			}
		}
		why := silent
		switch {
		case t.refused != nil:
			why = t.refused.Message
		case t.gone:
			why = "it was not awarded"
		case silent == "":
			return nil
		}
		op := abandon(all, why)
		op.Abandon.Over, op.Abandon.Unsold = t.over(), t.over()
		if ops = append(ops, op); t.over() && t.own == "" {
			ops = append(ops, t.clear(j))
		}
		return ops
	}
	var accept []pcm.Result
	again, lost, doubt := map[string][]pcm.Result{}, map[string][]int{}, map[string][]int{}
	size := 0
	for i, at := range t.seen.All {
		if !j.undecided(i) {
			continue
		}
		switch at.State {
		case pcm.AttemptFinished, pcm.AttemptSettled:
			r := *at.Result
			switch {
			case t.spoiled[i] != "" && silent != "":
				doubt[silent] = append(doubt[silent], i)
			case r.Output != "" && !t.ready[i] || size >= maxResultBytes: // later
			default:
				size += resultBytes(r)
				if why, yes := j.goesOn(i, r); yes {
					again[clip(why)] = append(again[clip(why)], r)
				} else {
					accept = append(accept, r)
				}
			}
		case pcm.AttemptDisputed:
			why := orElse(at.Reason, "its result is disputed")
			doubt[why] = append(doubt[why], i)
		case pcm.AttemptRejected, pcm.AttemptLost:
			why := orElse(at.Reason, string(at.State))
			lost[why] = append(lost[why], i)
		default:
			if silent != "" {
				doubt[silent] = append(doubt[silent], i)
			}
		}
	}
	if len(accept) > 0 {
		ops = append(ops, pcm.Op{Accept: &pcm.Accept{Job: j.id, Term: j.term, Trade: t.id, Results: accept}})
	}
	for _, why := range sortedKeys(again) {
		var tasks []int
		for _, r := range again[why] {
			tasks = append(tasks, r.Index)
		}
		op := abandon(tasks, why)
		op.Abandon.Fault, op.Abandon.Results = pcm.FaultTask, again[why]
		ops = append(ops, op)
	}
	for _, why := range sortedKeys(lost) {
		op := abandon(lost[why], why)
		op.Abandon.Over = true
		ops = append(ops, op)
	}
	for _, why := range sortedKeys(doubt) {
		ops = append(ops, abandon(doubt[why], why))
	}
	return ops[:min(len(ops), pcm.MaxOps)] // the rest comes with the next round
}

// resultBytes is about what a result takes in a command.
func resultBytes(r pcm.Result) int { return 64 + len(r.Outcome) + len(r.Output) + len(r.Reason) }

// clear tells home what the trade has cost: what its cell says, as far as home has
// set that aside.
func (t *abroadTrade) clear(j abroadJob) pcm.Op {
	var paid pcm.Micro
	if t.seen != nil {
		paid = min(t.seen.Paid, pcm.AddMicro(t.counted, pcm.MulMicro(t.terms.HoldEach(), t.doubt)))
	}
	return pcm.Op{Clear: &pcm.Clear{Job: j.id, Trade: t.id, Paid: paid}}
}

// ran is the longest that an attempt of the trade can have run.
func (t *abroadTrade) ran(now time.Time) time.Duration { return now.Sub(t.since) }
