package ledger

import (
	"cmp"
	"maps"
	"slices"

	"github.com/jointcloud/pcm"
)

// A trade abroad is in another cell than its job, and no entry spans two cells.
// The job's cell, its home, has the placement: it judges the tasks and the budget,
// and believes the driver, who is of the buyer's account, about results. The
// seller's cell has the trade: it judges offer, capacity, credit and pay, and
// knows no job. What a driver left half done is found out with Void.

// Bounds of what is abroad and of what must be remembered of it.
const (
	maxAbroadEach = 256     // placements of one job that are not cleared
	maxAbroad     = 100_000 // of all jobs
	maxVoids      = 100_000
)

// Bought is what a cell keeps of a trade abroad that is over for it: a job of its
// own bought in another cell.
type Bought struct {
	Terms     pcm.Terms `cbor:"1,keyasint"`
	Paid      pcm.Micro `cbor:"2,keyasint"`           // what it cost, as its buyer's account says; of one that time has cleared: as far as this cell knows
	Due       pcm.Spans `cbor:"3,keyasint,omitempty"` // tasks with a result that was to be paid
	Doubt     int       `cbor:"4,keyasint,omitempty"` // tasks given up of which this cell never learned what they cost
	PlacedAt  int64     `cbor:"5,keyasint,omitempty"` // log time, ms
	ClearedAt int64     `cbor:"6,keyasint"`           // log time, ms
	ByTime    bool      `cbor:"7,keyasint,omitempty"` // nobody said what it cost
}

// BoughtKey is the document key of what was bought in another cell.
func BoughtKey(id pcm.TradeID) string { return "bought/" + string(id) }

// keepBought puts a trade abroad among the documents, unless it was never awarded.
func (a *applying) keepBought(p *Placement, paid pcm.Micro, byTime bool) {
	if a.Level() < 3 || p.Unsold {
		return
	}
	a.document(BoughtKey(p.Trade), &Bought{
		Terms: *p.Terms, Paid: paid, Due: p.Due, Doubt: p.Doubt, PlacedAt: p.PlacedAt, ClearedAt: a.stamp, ByTime: byTime,
	})
}

// abroad counts the job's placements abroad.
func (j *Job) abroad() int {
	n := 0
	for i := range j.Places {
		if j.Places[i].Terms != nil {
			n++
		}
	}
	return n
}

// placedAbroad finds a placement abroad; nil if the job has none for the trade.
func (j *Job) placedAbroad(trade pcm.TradeID) *Placement {
	for i := range j.Places {
		if p := &j.Places[i]; p.Trade == trade && p.Terms != nil {
			return p
		}
	}
	return nil
}

// mayPlaceAbroad checks what terms say of the cells of a trade.
func (a *applying) mayPlaceAbroad(j *Job, t *pcm.Terms) error {
	switch {
	case t.Cell == a.genesis.Cell && !t.Abroad():
		return nil
	case t.Cell == a.genesis.Cell || t.Home != a.genesis.Cell:
		return pcm.Errorf(pcm.Invalid, "%s is in %s; the terms name %.40q as its cell, and %s as the seller's", j.ID, a.genesis.Cell, t.Home, t.Cell)
	case a.by.Account != j.Buyer && j.Mandate == "":
		return pcm.Errorf(pcm.Forbidden, "peer %s drives %s for another account and may not buy in other cells for it", pcm.Short(a.by.Peer), j.ID)
	case a.by.Account != j.Buyer && j.Budget == 0:
		return pcm.Errorf(pcm.Forbidden, "peer %s drives %s for another account and may not buy in other cells for it, as the job has no budget", pcm.Short(a.by.Peer), j.ID)
	case j.abroad() >= maxAbroadEach:
		return pcm.Errorf(pcm.Busy, "%s has %d placements in other cells that are not cleared, which is its bound: retry when some are", j.ID, maxAbroadEach)
	case a.abroad >= maxAbroad:
		return pcm.Errorf(pcm.Busy, "the jobs of %s have %d placements in other cells, which is its bound: retry when some are cleared", pcm.Short(a.genesis.Cell), a.abroad)
	}
	return nil
}

// awardAbroad binds the seller to terms whose job is in another cell. Whether they
// were placed there is between the buyer and its own cell.
func (a *applying) awardAbroad(o *pcm.Op, id pcm.TradeID) error {
	t := &o.Award.Terms
	_, void := a.voids[id]
	switch {
	case a.by.Account != t.Buyer && !a.actsFor(t):
		return pcm.Errorf(pcm.Forbidden, "peer %s is not of account %s and can't buy for it in %s", pcm.Short(a.by.Peer), pcm.Short(t.Buyer), pcm.Short(a.genesis.Cell))
	case t.Step < 0 || t.Step >= pcm.MaxSteps || !t.Tasks.Valid(pcm.MaxTasks) || !t.Job.Valid():
		return pcm.Errorf(pcm.Invalid, "the terms name tasks that no job has")
	case void:
		return pcm.Errorf(pcm.Conflict, "%s is void, or was awarded and has closed: abandon its tasks and place them anew", id)
	case t.AwardBy < a.stamp:
		return pcm.Errorf(pcm.Conflict, "%s was to be awarded by log time %d, it is %d now: abandon its tasks and place them anew", id, t.AwardBy, a.stamp)
	case t.AwardBy > a.stamp+pcm.CommandWindow:
		return pcm.Errorf(pcm.Invalid, "%s may be awarded until log time %d, it is %d now: at most %d ms ahead", id, t.AwardBy, a.stamp, pcm.CommandWindow)
	}
	if a.by.Account != t.Buyer {
		if err := a.mayBuy(o.Award); err != nil {
			return err
		}
	}
	p, seller, err := a.sellable(t)
	if err != nil {
		return err
	}
	if err := a.bind(o, p, seller); err != nil {
		return err
	}
	if a.by.Account != t.Buyer {
		a.spend(a.trades[id])
	}
	return nil
}

// barAgain keeps a trade abroad that has closed from being awarded once more.
func (a *applying) barAgain(t *Trade) {
	if t.Terms.AwardBy >= a.stamp {
		a.setVoid(t.ID, t.Terms.AwardBy)
	}
}

// Barred tells whether an award on terms of a trade abroad, if there was none, is refused
// from now on.
func (s *State) Barred(t *pcm.Terms) bool {
	until, void := s.voids[t.Trade()]
	return void && until >= t.AwardBy || t.AwardBy < s.stamp
}

func (s *State) setVoid(id pcm.TradeID, until int64) {
	if len(s.voids) == 0 || until < s.voidsDue {
		s.voidsDue = until
	}
	s.voids[id] = until
}

// forgetVoids drops those of which an award would be refused by time.
func (s *State) forgetVoids() {
	if len(s.voids) == 0 || s.stamp <= s.voidsDue {
		return
	}
	s.voidsDue = never
	for _, id := range slices.SortedFunc(maps.Keys(s.voids), cmp.Compare[pcm.TradeID]) {
		if until := s.voids[id]; until < s.stamp {
			delete(s.voids, id)
		} else {
			s.voidsDue = min(s.voidsDue, until)
		}
	}
}

// void bars a trade abroad, unless it is open. It tells whether that is news.
func (a *applying) void(op *pcm.Void) (bool, error) {
	t := &op.Terms
	if err := checkTerms(t); err != nil {
		return false, err
	}
	id := t.Trade()
	until, known := a.voids[id]
	known = known && (until >= t.AwardBy || a.Level() < 3) // else it is void for less long
	switch {
	case !t.Abroad() || t.Cell != a.genesis.Cell:
		return false, pcm.Errorf(pcm.Invalid, "%s is not a trade of another cell's job in %s", id, a.genesis.Cell)
	case a.by.Account != t.Buyer && !a.actsFor(t):
		return false, pcm.Errorf(pcm.Forbidden, "%s is for its buyer %s to make void", id, pcm.Short(t.Buyer))
	case a.trades[id] != nil:
		return false, pcm.Errorf(pcm.Conflict, "%s was awarded and is open", id)
	case known || t.AwardBy < a.stamp:
		return false, nil
	case t.AwardBy > a.stamp+2*pcm.CommandWindow:
		return false, pcm.Errorf(pcm.Busy, "%s could be awarded until log time %d, it is %d now: retry later", id, t.AwardBy, a.stamp)
	case len(a.voids) >= maxVoids:
		return false, pcm.Errorf(pcm.Busy, "%s remembers %d void trades, which is its bound: retry in a minute", pcm.Short(a.genesis.Cell), len(a.voids))
	}
	a.setVoid(id, t.AwardBy)
	return true, nil
}

// decideAbroad decides one placed task of a trade abroad. Its hold stays while it
// is in doubt what the task costs.
func (a *applying) decideAbroad(j *Job, p *Placement, i int, r *pcm.Result, doubt bool) {
	p.Open--
	switch {
	case doubt:
		p.Doubt++
	default:
		j.Held -= p.HoldEach
		if r != nil {
			charge := p.Terms.Charge(r.Usage)
			j.Paid += charge
			p.Counted += charge
			p.Due = p.Due.With(i)
		}
	}
	if p.Open == 0 {
		p.DecidedAt = a.stamp
		a.soon(a.stamp + pcm.ClearFor.Milliseconds())
	}
}

// CheckResultAbroad checks a result that a driver says a seller abroad has finished with.
func CheckResultAbroad(r *pcm.Result) error {
	if err := checkResult(r); err != nil {
		return err
	}
	if r.Outcome == pcm.OutcomeSeller {
		return pcm.Errorf(pcm.Invalid, "task %d has no result: what is the seller's fault is abandoned", r.Index)
	}
	return nil
}

// acceptAbroad takes results of a trade abroad, as its driver tells them.
func (a *applying) acceptAbroad(o *pcm.Op, j *Job, p *Placement) (pcm.Spans, error) {
	op := o.Accept
	results, err := byIndex(op.Results)
	if err != nil {
		return nil, err
	}
	if err := a.believes(o, j, p, op.Receipt); err != nil {
		return nil, err
	}
	skipped, err := each(indexesOf(op.Results), func(i int) error {
		tk, err := j.placedBy(p.Trade, p.Step, i)
		if err != nil {
			return err
		}
		if err := CheckResultAbroad(results[i]); err != nil {
			return err
		}
		a.decideAbroad(j, p, i, results[i], false)
		tk.take(results[i])
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(o, j.ID, p.news(), j.Driver, j.Submitter)
	a.endIfDone(j)
	return skipped, nil
}

// abandonAbroad gives attempts of a trade abroad up.
func (a *applying) abandonAbroad(o *pcm.Op, j *Job, p *Placement) (pcm.Spans, error) {
	op := o.Abandon
	if err := checkTasks(op.Tasks); err != nil {
		return nil, err
	}
	if op.Unsold && (!op.Over || op.Fault != pcm.FaultSeller) {
		return nil, pcm.Errorf(pcm.Invalid, "what was never sold is over, and not the task's own fault")
	}
	results, err := byIndex(op.Results)
	if err != nil {
		return nil, err
	}
	if err := a.believes(o, j, p, op.Receipt); err != nil {
		return nil, err
	}
	skipped, err := each(op.Tasks.All, func(i int) error {
		tk, err := j.placedBy(p.Trade, p.Step, i)
		if err != nil {
			return err
		}
		r := results[i]
		if op.Fault == pcm.FaultTask {
			if r == nil {
				return pcm.Errorf(pcm.Conflict, "task %d/%d has no result that could be its own failure", p.Step, i)
			}
			if err := CheckResultAbroad(r); err != nil {
				return err
			}
		}
		if err := j.retries(tk, p.Step, i, op.Fault); err != nil {
			return err
		}
		if op.Fault == pcm.FaultSeller {
			r = nil
		}
		a.decideAbroad(j, p, i, r, op.Fault == pcm.FaultSeller && !op.Over)
		if p.Unsold = op.Unsold && a.Level() >= 3; op.Unsold { // a full cell must not use up the tries of what waits
			tk.Attempt--
			tk.Trade, tk.Seller, tk.State, tk.Reason = "", "", pcm.TaskWaiting, op.Reason
			if j.Stopping {
				tk.State = pcm.TaskCancelled
			}
			return nil
		}
		j.again(tk, p.Step, op.Reason)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(o, j.ID, p.news(), j.Driver, j.Submitter)
	a.endIfDone(j)
	return skipped, nil
}

// news is what events of a placement abroad tell of its trade.
func (p *Placement) news() *Trade { return &Trade{ID: p.Trade, Terms: *p.Terms} }

// clear ends a placement abroad, with what its trade has cost.
func (a *applying) clear(o *pcm.Op) error {
	op := o.Clear
	j := a.jobs[op.Job]
	if j == nil {
		return pcm.Errorf(pcm.NotFound, "no open job %s in %s", op.Job, pcm.Short(a.genesis.Cell))
	}
	p := j.placedAbroad(op.Trade)
	switch {
	case p == nil:
		return pcm.Errorf(pcm.Conflict, "%s has no placement abroad of %s: it may have been cleared", j.ID, op.Trade)
	case a.by.Account != j.Buyer:
		return pcm.Errorf(pcm.Forbidden, "%s belongs to account %s", j.ID, pcm.Short(j.Buyer))
	case p.Open > 0:
		return pcm.Errorf(pcm.Conflict, "%d tasks of %s are undecided: accept or abandon them first", p.Open, op.Trade)
	}
	most := pcm.AddMicro(p.Counted, pcm.MulMicro(p.HoldEach, p.Doubt))
	if op.Paid < 0 || op.Paid > most {
		return pcm.Errorf(pcm.Invalid, "%s can't have cost %s: %s is set aside for it", op.Trade, op.Paid, most)
	}
	j.Paid += op.Paid - p.Counted
	a.keepBought(p, op.Paid, false)
	a.event(o, j.ID, p.news(), j.Driver, j.Submitter)
	a.unhold(j, *p)
	return nil
}

// unhold lets go of a placement abroad, and with it perhaps of its job.
func (a *applying) unhold(j *Job, p Placement) {
	j.Held -= pcm.MulMicro(p.HoldEach, p.Doubt)
	j.Places = slices.DeleteFunc(j.Places, func(o Placement) bool { return o.Trade == p.Trade })
	a.abroad--
	a.archive(j)
}

// expireAbroad clears by time what nobody has cleared.
func (a *applying) expireAbroad(j *Job) {
	for at := 0; at < len(j.Places) && !a.full(); {
		p := j.Places[at]
		end := p.DecidedAt + pcm.ClearFor.Milliseconds()
		switch {
		case p.Terms == nil || p.Open > 0:
			at++
		case a.stamp < end:
			a.soon(end)
			at++
		default:
			a.keepBought(&p, p.Counted, true)
			a.fact(pcm.Fact{Cleared: &pcm.Cleared{Job: j.ID, Trade: p.Trade, Cell: p.Terms.Cell}}, j.ID, p.news(), j.Driver, j.Submitter)
			a.unhold(j, p)
		}
	}
}
