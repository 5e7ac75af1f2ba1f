package ledger

import (
	"iter"
	"slices"

	"github.com/jointcloud/pcm"
)

// Bounds of trades and of what sellers say about them.
const (
	maxTrades = 200_000
	MaxReason = 256 // bytes of the reason of a task, dispute, rejection or stop
)

// Trade is a trade as its seller's cell sees it.
type Trade struct {
	ID            pcm.TradeID   `cbor:"1,keyasint"`
	Terms         pcm.Terms     `cbor:"2,keyasint"`
	SellerAccount pcm.AccountID `cbor:"3,keyasint"`
	AwardedAt     int64         `cbor:"4,keyasint"` // log time, ms
	ClosedAt      int64         `cbor:"5,keyasint"` // 0: open
	Attempts      []Attempt     `cbor:"6,keyasint"` // in the order of Terms.Tasks
	Live          int           `cbor:"7,keyasint"` // attempts that may be running
	Open          int           `cbor:"8,keyasint"` // attempts that are not in a final state
	Held          pcm.Micro     `cbor:"9,keyasint"`
	Paid          pcm.Micro     `cbor:"10,keyasint"`
	WallMS        int64         `cbor:"11,keyasint"`           // run time that its results are charged for, all together
	Mandate       pcm.Digest    `cbor:"12,keyasint,omitempty"` // by which a driver of another account than the buyer's has bought it
}

// Attempt is one attempt of a trade.
type Attempt struct {
	State     pcm.AttemptState `cbor:"1,keyasint"`
	StartedAt int64            `cbor:"2,keyasint"` // log time, ms; 0: not started
	Result    *pcm.Result      `cbor:"3,keyasint,omitempty"`
	Metered   pcm.Usage        `cbor:"4,keyasint"` // use so far
	Reason    string           `cbor:"5,keyasint,omitempty"`
	Stop      string           `cbor:"6,keyasint,omitempty"` // the buyer asked, with this reason
	StopAt    int64            `cbor:"9,keyasint,omitempty"` // when it asked, log time, ms
	// Charge is what its result costs: set once, when it finishes, never above
	// Terms.Charge of the usage. Budget and balance both go by it.
	Charge pcm.Micro `cbor:"10,keyasint,omitempty"`
	// Of a dispute: since when, log time, ms; and whether it is about outputs that can't be had.
	DisputedAt  int64 `cbor:"7,keyasint,omitempty"`
	Undelivered bool  `cbor:"8,keyasint,omitempty"`
}

// position finds the attempt of task index; -1 if the trade doesn't have it.
func (t *Trade) position(index int) int {
	n := 0
	for _, r := range t.Terms.Tasks {
		if index >= r.Lo && index < r.Hi {
			return n + index - r.Lo
		}
		n += r.Hi - r.Lo
	}
	return -1
}

// attempt finds the attempt of task index; nil if the trade doesn't have it.
func (t *Trade) attempt(index int) *Attempt {
	if p := t.position(index); p >= 0 {
		return &t.Attempts[p]
	}
	return nil
}

// Attempt finds the attempt of task index; nil if the trade doesn't have it.
func (t *Trade) Attempt(index int) *Attempt { return t.attempt(index) }

// All yields the task indexes with their attempts.
func (t *Trade) All(yield func(int, *Attempt) bool) {
	n := 0
	for i := range t.Terms.Tasks.All {
		if !yield(i, &t.Attempts[n]) {
			return
		}
		n++
	}
}

// reserved is what the trade holds of its pool.
func (t *Trade) reserved() (pcm.Resources, int) {
	n := min(t.Terms.Width, t.Live)
	return t.Terms.Each.Times(n), n
}

// each applies f to every index; those refused are skipped. It is an error when none is left.
func each(indexes iter.Seq[int], f func(i int) error) (pcm.Spans, error) {
	var skip []int
	var first error
	done := 0
	for i := range indexes {
		if err := f(i); err != nil {
			if first == nil {
				first = err
			}
			skip = append(skip, i)
			continue
		}
		done++
	}
	if done == 0 {
		if first == nil {
			first = pcm.Errorf(pcm.Invalid, "the operation names no task")
		}
		return nil, first
	}
	slices.Sort(skip)
	return pcm.SpansOf(slices.Compact(skip)), nil
}

// each applies f to the attempts of the given tasks.
func (t *Trade) each(indexes iter.Seq[int], f func(i int, at *Attempt) error) (pcm.Spans, error) {
	return each(indexes, func(i int) error {
		at := t.attempt(i)
		if at == nil {
			return pcm.Errorf(pcm.Invalid, "%s has no task %d", t.ID, i)
		}
		return f(i, at)
	})
}

// checkTasks checks the tasks that an operation names for a trade, before they are walked.
func checkTasks(tasks pcm.Spans) error {
	if !tasks.Valid(pcm.MaxTasks) || tasks.Len() > pcm.MaxBatch {
		return pcm.Errorf(pcm.Invalid, "the operation names no valid tasks: 1 to %d of one trade, in order", pcm.MaxBatch)
	}
	return nil
}

// openTrade looks a trade up.
func (a *applying) openTrade(id pcm.TradeID) (*Trade, error) {
	t, ok := a.trades[id]
	if !ok {
		return nil, pcm.Errorf(pcm.NotFound, "no open trade %s in %s", id, pcm.Short(a.genesis.Cell))
	}
	return t, nil
}

// sold looks up a trade in which the signing peer is the seller.
func (a *applying) sold(id pcm.TradeID) (*Trade, error) {
	t, err := a.openTrade(id)
	if err != nil {
		return nil, err
	}
	if t.Terms.Seller != a.by.Peer {
		return nil, pcm.Errorf(pcm.Forbidden, "%s is sold by peer %s", id, pcm.Short(t.Terms.Seller))
	}
	return t, nil
}

// driver is who should hear of a trade's news: whoever drives its job now, as far as
// this cell knows.
func (a *applying) driver(t *Trade) pcm.PeerID {
	if j := a.jobOf(t); j != nil {
		return j.Driver
	}
	if d := a.deputy(&t.Terms); d != nil {
		return d.Peer
	}
	return t.Terms.Driver
}

// jobOf is the job of a trade; nil if it is in another cell, or archived.
func (s *State) jobOf(t *Trade) *Job {
	if t.Terms.Abroad() {
		return nil
	}
	return s.jobs[t.Terms.Job]
}

// award binds the seller: the sole judge of offer, price, capacity and credit.
func (a *applying) award(o *pcm.Op) (bool, error) {
	t := &o.Award.Terms
	if err := checkTerms(t); err != nil {
		return false, err
	}
	if len(a.trades) >= maxTrades {
		return false, pcm.Errorf(pcm.Busy, "%s has %d open trades, which is its bound: retry when some are settled", pcm.Short(a.genesis.Cell), len(a.trades))
	}
	if t.Cell != a.genesis.Cell {
		return false, pcm.Errorf(pcm.Invalid, "the trade belongs to %s, this is %s", t.Cell, a.genesis.Cell)
	}
	if t.Driver != a.by.Peer {
		return false, pcm.Errorf(pcm.Forbidden, "the terms are driven by peer %s, not by %s", pcm.Short(t.Driver), pcm.Short(a.by.Peer))
	}
	id := t.Trade()
	if old, ok := a.trades[id]; ok {
		if pcm.DigestOf(pcm.MustMarshal(old.Terms)) == pcm.DigestOf(pcm.MustMarshal(*t)) {
			return false, nil
		}
		return false, pcm.Errorf(pcm.Conflict, "%s was awarded on other terms", id)
	}
	if t.Abroad() {
		return true, a.awardAbroad(o, id)
	}
	// Place comes before Award: every task must be placed with exactly this trade.
	j, err := a.openJob(t.Job)
	if err != nil {
		return false, err
	}
	if j.Stopping {
		return false, pcm.Errorf(pcm.Conflict, "%s was cancelled: %s", j.ID, j.Reason)
	}
	if t.Step < 0 || t.Step >= len(j.Steps) || !t.Tasks.Valid(len(j.Steps[t.Step].Tasks)) {
		return false, pcm.Errorf(pcm.Invalid, "the terms name tasks that %s doesn't have", j.ID)
	}
	place := slices.IndexFunc(j.Places, func(p Placement) bool { return p.Trade == id })
	if place < 0 || j.Places[place].HoldEach != t.HoldEach() || j.Buyer != t.Buyer || j.Spec != t.Spec || t.Price.Unit != j.Unit {
		return false, pcm.Errorf(pcm.Conflict, "%s has no placement of %s on these terms", j.ID, id)
	}
	if j.Places[place].Awarded {
		return false, pcm.Errorf(pcm.Conflict, "%s was awarded and has closed: abandon its tasks and place them anew", id)
	}
	for i := range t.Tasks.All {
		tk, err := j.placedBy(id, t.Step, i)
		if err != nil {
			return false, err
		}
		if tk.Attempt != t.Attempt || tk.Seller != t.Seller {
			return false, pcm.Errorf(pcm.Conflict, "task %d/%d is placed as attempt %d at peer %s", t.Step, i, tk.Attempt, pcm.Short(tk.Seller))
		}
	}
	p, seller, err := a.sellable(t)
	if err != nil {
		return false, err
	}
	if err := a.bind(o, p, seller); err != nil {
		return false, err
	}
	j.Places[place].Awarded = true
	j.Trades++
	return true, nil
}

// bind opens the trade that an award brings about, if the seller gives credit for it.
func (a *applying) bind(o *pcm.Op, p *Pool, seller *Member) error {
	t, id := &o.Award.Terms, o.Award.Terms.Trade()
	n := t.Tasks.Len()
	hold := pcm.MulMicro(t.HoldEach(), n)
	if err := a.mayOwe(t.Buyer, seller, t.Price.Unit, hold); err != nil {
		return err
	}
	tr := &Trade{
		ID: id, Terms: *t, SellerAccount: seller.Account, AwardedAt: a.stamp,
		Attempts: make([]Attempt, n), Live: n, Open: n, Held: hold,
	}
	tr.Terms.Tasks = slices.Clone(t.Tasks)
	for i := range tr.Attempts {
		tr.Attempts[i].State = pcm.AttemptAwarded
	}
	a.trades[id] = tr
	r, slots := tr.reserved()
	p.Reserved, p.Slots = p.Reserved.Plus(r), p.Slots+slots
	seller.Live += n
	a.hold(tr, hold)
	a.soon(a.stamp + leaseMS(0))
	a.event(o, t.Job, tr, t.Seller, a.by.Peer)
	return nil
}

// sellable checks the seller's side of the terms.
func (a *applying) sellable(t *pcm.Terms) (*Pool, *Member, error) {
	seller := a.members[t.Seller]
	p := a.pools[PoolKey{t.Seller, t.Pool}]
	switch {
	case seller == nil:
		return nil, nil, pcm.Errorf(pcm.NotFound, "peer %s does not sell in %s", pcm.Short(t.Seller), pcm.Short(a.genesis.Cell))
	case p == nil || p.Closed:
		return nil, nil, pcm.Errorf(pcm.Conflict, "peer %s declares no pool %s any more", pcm.Short(t.Seller), t.Pool)
	case p.Offer != t.Offer:
		return nil, nil, pcm.Errorf(pcm.Conflict, "offer %d of peer %s is no longer current: %d is", t.Offer, pcm.Short(t.Seller), p.Offer)
	case !p.Pool.Sold(t.Price) || p.Pool.Adapter != t.Adapter:
		return nil, nil, pcm.Errorf(pcm.Conflict, "the terms are not those of offer %d of peer %s", t.Offer, pcm.Short(t.Seller))
	case p.Pool.OwnOnly && t.Buyer != seller.Account:
		return nil, nil, pcm.Errorf(pcm.Refused, "pool %s of peer %s is sold to its own account only", t.Pool, pcm.Short(t.Seller))
	case p.Pool.MaxTime > 0 && t.LimitMS > p.Pool.MaxTime:
		return nil, nil, pcm.Errorf(pcm.Refused, "pool %s of peer %s runs attempts of at most %d ms, the time limit is %d ms", t.Pool, pcm.Short(t.Seller), p.Pool.MaxTime, t.LimitMS)
	case p.Pool.Largest != nil && !t.Each.Within(p.Pool.Most()):
		return nil, nil, pcm.Errorf(pcm.Refused, "pool %s of peer %s runs tasks of at most %s, these have %s each", t.Pool, pcm.Short(t.Seller), p.Pool.Most(), t.Each)
	}
	want := t.Each.Times(t.Width)
	if free := p.Pool.Capacity.Minus(p.Reserved); !want.Within(free) {
		return nil, nil, pcm.Errorf(pcm.Refused, "pool %s of peer %s has %s free, these tasks reserve %s", t.Pool, pcm.Short(t.Seller), free, want)
	}
	if free := p.Pool.Slots - p.Slots; t.Width > free {
		return nil, nil, pcm.Errorf(pcm.Refused, "pool %s of peer %s has %d slots free, these tasks take %d", t.Pool, pcm.Short(t.Seller), free, t.Width)
	}
	return p, seller, nil
}

// move brings an attempt into another state, if the transition table allows.
func (a *applying) move(t *Trade, i int, at *Attempt, to pcm.AttemptState) error {
	if !slices.Contains(pcm.AttemptNext[at.State], to) {
		return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s and can't become %s", t.ID, i, at.State, to)
	}
	wasLive := at.State.Live()
	before, slots := t.reserved()
	at.State = to
	if wasLive && !to.Live() {
		t.Live--
		if m := a.members[t.Terms.Seller]; m != nil {
			m.Live--
		}
		after, left := t.reserved()
		k := PoolKey{t.Terms.Seller, t.Terms.Pool}
		p := a.pools[k]
		p.Reserved, p.Slots = p.Reserved.Minus(before.Minus(after)), p.Slots-(slots-left)
		if p.Shrunk && p.fits() {
			p.Shrunk = false
		}
		if p.Closed && p.Slots == 0 {
			delete(a.pools, k)
		}
	}
	if len(pcm.AttemptNext[to]) == 0 {
		t.Open--
	}
	return nil
}

// close archives a trade of which nothing is open.
func (a *applying) close(t *Trade) {
	if t.Open > 0 {
		return
	}
	t.ClosedAt = a.stamp
	a.fact(pcm.Fact{Closed: &pcm.Closed{Trade: t.ID, Job: t.Terms.Job, Paid: t.Paid}}, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	a.document(TradeKey(t.ID), t)
	delete(a.trades, t.ID)
	if t.Terms.Abroad() {
		a.barAgain(t)
		a.unspend(t)
	}
	if j := a.jobOf(t); j != nil {
		j.Trades--
		a.archive(j)
	}
}

// reject is the seller's veto, or its admission that it can't.
func (a *applying) reject(o *pcm.Op) (pcm.Spans, error) {
	op := o.Reject
	t, err := a.sold(op.Trade)
	if err != nil {
		return nil, err
	}
	if err := checkTasks(op.Tasks); err != nil {
		return nil, err
	}
	if op.Reason == "" || len(op.Reason) > MaxReason {
		return nil, pcm.Errorf(pcm.Invalid, "a rejection needs a reason of at most %d bytes", MaxReason)
	}
	skipped, err := t.each(op.Tasks.All, func(i int, at *Attempt) error {
		if err := a.move(t, i, at, pcm.AttemptRejected); err != nil {
			return err
		}
		at.Reason, at.Result, at.Charge = op.Reason, nil, 0 // of a disputed one as well: the seller gives in
		a.release(t, 1, 0)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(o, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	a.close(t)
	return skipped, nil
}

func (a *applying) start(o *pcm.Op) (pcm.Spans, error) {
	op := o.Start
	t, err := a.sold(op.Trade)
	if err != nil {
		return nil, err
	}
	if err := checkTasks(op.Tasks); err != nil {
		return nil, err
	}
	skipped, err := t.each(op.Tasks.All, func(i int, at *Attempt) error {
		if err := a.move(t, i, at, pcm.AttemptStarted); err != nil {
			return err
		}
		at.StartedAt = a.stamp
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(o, t.Terms.Job, t, a.driver(t))
	return skipped, nil
}

// mayPay tells whether the signer acts for the buyer of a trade.
func (a *applying) mayPay(t *Trade) error {
	if a.by.Account != t.Terms.Buyer && a.by.Peer != a.driver(t) {
		return pcm.Errorf(pcm.Forbidden, "%s is for its buyer %s or its driver to settle", t.ID, pcm.Short(t.Terms.Buyer))
	}
	if t.Terms.Abroad() && a.by.Account != t.Terms.Buyer && a.by.Account == t.SellerAccount {
		return pcm.Errorf(pcm.Forbidden, "peer %s drives %s for another account, and its own sells %s: only the buyer can settle it", pcm.Short(a.by.Peer), t.Terms.Job, t.ID)
	}
	return nil
}

// settle turns holds into balance: once for each attempt, after its task was decided.
func (a *applying) settle(o *pcm.Op) error {
	op := o.Settle
	t, err := a.openTrade(op.Trade)
	if err != nil {
		return err
	}
	if err := a.mayPay(t); err != nil {
		return err
	}
	if !op.Tasks.Valid(pcm.MaxTasks) {
		return pcm.Errorf(pcm.Invalid, "the settlement names no valid tasks")
	}
	var sum pcm.Micro
	for i := range op.Tasks.All {
		at := t.attempt(i)
		if at == nil || !slices.Contains(pcm.AttemptNext[at.State], pcm.AttemptSettled) {
			return pcm.Errorf(pcm.Conflict, "task %d of %s has nothing to settle", i, t.ID)
		}
		if at.State == pcm.AttemptDisputed && a.by.Account != t.Terms.Buyer {
			return pcm.Errorf(pcm.Forbidden, "only the buyer settles what is in dispute")
		}
		if err := a.decided(t, i); err != nil {
			return err
		}
		sum = pcm.AddMicro(sum, at.Charge)
	}
	if sum > op.Amount {
		return pcm.Errorf(pcm.Invalid, "the charges add up to %s, and at most %s is to be paid", sum, op.Amount)
	}
	for i := range op.Tasks.All {
		if err := a.move(t, i, t.attempt(i), pcm.AttemptSettled); err != nil {
			panic(err) // checked above
		}
	}
	a.release(t, op.Tasks.Len(), sum)
	a.event(o, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	a.close(t)
	return nil
}

func (a *applying) dispute(o *pcm.Op) error {
	op := o.Dispute
	t, err := a.openTrade(op.Trade)
	if err != nil {
		return err
	}
	if err := a.mayPay(t); err != nil {
		return err
	}
	if op.Reason == "" || len(op.Reason) > MaxReason || !op.Tasks.Valid(pcm.MaxTasks) {
		return pcm.Errorf(pcm.Invalid, "a dispute needs tasks and a reason of at most %d bytes", MaxReason)
	}
	for i := range op.Tasks.All {
		if at := t.attempt(i); at == nil || at.State != pcm.AttemptFinished {
			return pcm.Errorf(pcm.Conflict, "task %d of %s has nothing to dispute", i, t.ID)
		}
	}
	for i := range op.Tasks.All {
		at := t.attempt(i)
		if err := a.move(t, i, at, pcm.AttemptDisputed); err != nil {
			panic(err) // checked above
		}
		at.Reason, at.DisputedAt, at.Undelivered = op.Reason, a.stamp, op.Undelivered
	}
	a.soon(a.stamp + pcm.DisputeFor.Milliseconds())
	a.event(o, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	return nil
}

// stop notes that the buyer wants attempts ended; the seller then finishes them.
func (a *applying) stop(o *pcm.Op) (pcm.Spans, error) {
	op := o.Stop
	t, err := a.openTrade(op.Trade)
	if err != nil {
		return nil, err
	}
	if err := a.mayPay(t); err != nil {
		return nil, err
	}
	if err := checkTasks(op.Tasks); err != nil {
		return nil, err
	}
	if op.Reason == "" || len(op.Reason) > MaxReason {
		return nil, pcm.Errorf(pcm.Invalid, "a stop needs a reason of at most %d bytes", MaxReason)
	}
	skipped, err := t.each(op.Tasks.All, func(i int, at *Attempt) error {
		if !at.State.Live() || at.Stop != "" {
			return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s or stopping already", t.ID, i, at.State)
		}
		at.Stop, at.StopAt = op.Reason, a.stamp
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.soon(a.stamp + endGrace)
	a.event(o, t.Terms.Job, t, t.Terms.Seller)
	return skipped, nil
}
