package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/jointcloud/pcm"
)

// raise takes the cell to the rules of the older release, if its peers are of one, and
// to those of this release once all of them have been updated. It closes raised as soon
// as there can be trade between cells. What is above the cell's level must be refused.
func (c *clients) raise(ctx context.Context, rng *rand.Rand, keeper *actor, older bool, updated <-chan struct{}) {
	key := keyOf("note key of " + string(keeper.peer)).Public()
	to := func(level int) bool {
		r, ok := c.propose(ctx, rng, "upgrade", keeper,
			pcm.Op{NoteKey: &pcm.NoteKey{Peer: keeper.peer, Key: key}}, pcm.Op{Upgrade: &pcm.Upgrade{Level: level}})
		done := ok && r.First() == nil
		if !done && ctx.Err() == nil {
			c.violated(isBack, "all peers speak level %d of the rules, and the cell can't be raised to it: %v", level, r.First())
		}
		return done
	}
	raised := false
	if older {
		r, ok := c.propose(ctx, rng, "forbidden", keeper, pcm.Op{Set: &pcm.Set{Key: pcm.SettingOpen, Value: "no"}})
		if ok && r.First() == nil {
			c.violated(isRefused, "an operation took effect that is above the level of the cell")
		}
		c.tried("an operation above the level of the cell")
		if pcm.LedgerLevel-1 >= abroadLevel {
			if !to(pcm.LedgerLevel - 1) {
				return
			}
			raised = true
			close(c.raised)
		}
	}
	select {
	case <-updated:
	case <-ctx.Done():
		return
	}
	if to(pcm.LedgerLevel) && !raised {
		close(c.raised)
	}
}

// abroadLevel is the level of the rules from which on there is trade between cells.
const abroadLevel = 2

// A driver without an answer knows no more about a trade in another cell than a new one.
// What it then does depends on what became of the award.
type fate int

const (
	sold    fate = iota // the trade is open
	barred              // no award of it can take effect any more
	unknown             // nobody answered
)

// buyAbroad takes one job from its submission in c, through a trade in the cell o, to
// what it has cost in c. Now and then the driver forgets whether it has awarded.
func (c *clients) buyAbroad(ctx context.Context, rng *rand.Rand, o *clients, b *actor, sellers []*actor, n int) {
	digest := pcm.DigestOf(fmt.Append(nil, c.seed, c.cell.name, "abroad", b.peer, n))
	job, count := pcm.NewJobID(), 1+rng.IntN(3)
	tasks := pcm.Spans{{Lo: 0, Hi: count}}
	do := func(in *clients, what string, a *actor, op pcm.Op) (pcm.CommandResult, bool) {
		r, ok := in.propose(ctx, rng, what, a, op)
		return r, ok && r.First() == nil
	}
	done := false
	defer func() {
		if !done {
			c.given.Add(1)
			c.propose(ctx, rng, "cancel", b, pcm.Op{Cancel: &pcm.Cancel{Job: job, Reason: "given up"}})
		}
	}()
	r, ok := do(c, "submit", b, pcm.Op{Submit: &pcm.Submit{
		Job: job, Name: "abroad", Spec: digest, Steps: []pcm.Shape{{Count: count}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAccount,
	}})
	if !ok {
		return
	}
	fence := r.Ops[0].Fence
	for range 3 {
		fence++
		s := sellers[rng.IntN(len(sellers))]
		terms := pcm.Terms{
			Job: job, Tasks: tasks, Attempt: 1, Fence: fence, Buyer: b.account.Account(), Spec: digest, Driver: b.peer,
			Cell: o.cell.genesis.Cell, Seller: s.peer, Pool: "local", Offer: s.offer.Load(), Price: price, Each: each, Width: count,
			LimitMS: 100_000, Adapter: "process", Home: c.cell.genesis.Cell, AwardBy: o.cell.now() + pcm.CommandWindow/2,
		}
		if _, ok := do(c, "place abroad", b, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}); !ok {
			return
		}
		switch o.awardAbroad(ctx, rng, b, terms) {
		case sold:
			c.abroad.Add(int64(count))
			done = c.payAbroad(ctx, rng, o, b, s, terms)
			return
		case barred:
			if _, ok := do(c, "abandon", b, pcm.Op{Abandon: &pcm.Abandon{
				Job: job, Term: 1, Trade: terms.Trade(), Tasks: tasks, Fault: pcm.FaultSeller, Reason: "never sold", Over: true, Unsold: true,
			}}); !ok {
				return
			}
			if _, ok := do(c, "clear", b, pcm.Op{Clear: &pcm.Clear{Job: job, Trade: terms.Trade()}}); !ok {
				return
			}
		case unknown:
			return
		}
	}
}

// awardAbroad awards terms in the seller's cell, which is this one. Sometimes the driver
// forgets about that at once, and asks what became of it, as one that has just started.
func (o *clients) awardAbroad(ctx context.Context, rng *rand.Rand, b *actor, terms pcm.Terms) fate {
	award := pcm.Op{Award: &pcm.Award{Terms: terms}}
	if rng.IntN(3) > 0 {
		r, ok := o.propose(ctx, rng, "award abroad", b, award)
		switch {
		case ok && r.First() == nil:
			o.bought.Add(int64(terms.Tasks.Len()))
			return sold
		case ok:
			return o.ask(ctx, rng, b, terms)
		}
		return o.ask(ctx, rng, b, terms)
	}
	awarded := make(chan bool, 1)
	own := rand.New(rand.NewPCG(rng.Uint64(), 0))
	go func() {
		r, ok := o.propose(ctx, own, "award abroad", b, award)
		awarded <- ok && r.First() == nil
	}()
	got := o.ask(ctx, rng, b, terms)
	o.tried("whether an award in the other cell has taken effect, while it was under way")
	took := <-awarded
	switch {
	case took && got == barred:
		o.violated(isAgreed, "%s was awarded after it was void", terms.Trade())
	case took:
		o.bought.Add(int64(terms.Tasks.Len()))
	}
	if got == barred && rng.IntN(2) == 0 {
		if r, ok := o.propose(ctx, rng, "forbidden", b, award); ok && r.First() == nil {
			o.violated(isRefused, "%s was awarded, and is void", terms.Trade())
		}
		o.tried("an award that is void")
	}
	return got
}

// ask finds out what became of an award in this cell, and bars it if it was not made.
func (o *clients) ask(ctx context.Context, rng *rand.Rand, b *actor, terms pcm.Terms) fate {
	r, ok := o.propose(ctx, rng, "void", b, pcm.Op{Void: &pcm.Void{Terms: terms}})
	switch {
	case !ok:
		return unknown
	case r.First() == nil:
		return barred
	case strings.Contains(r.First().Error(), "was awarded and is open"):
		return sold
	}
	return unknown
}

// payAbroad takes an awarded trade in the cell o to its end; c has the job.
func (c *clients) payAbroad(ctx context.Context, rng *rand.Rand, o *clients, b, s *actor, terms pcm.Terms) bool {
	trade, count := terms.Trade(), terms.Tasks.Len()
	var results []pcm.Result
	for i := range count {
		results = append(results, pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: 1, CPUMS: 1}, Output: pcm.DigestOf(fmt.Append(nil, trade, i))})
	}
	do := func(in *clients, what string, a *actor, op pcm.Op) bool {
		r, ok := in.propose(ctx, rng, what, a, op)
		return ok && r.First() == nil
	}
	if !do(o, "start", s, pcm.Op{Start: &pcm.Start{Trade: trade, Tasks: terms.Tasks}}) ||
		!do(o, "finish", s, pcm.Op{Finish: &pcm.Finish{Trade: trade, Results: results}}) {
		return false
	}
	accept := pcm.Op{Accept: &pcm.Accept{Job: terms.Job, Term: 1, Trade: trade, Results: results}}
	if !do(c, "accept abroad", b, accept) {
		return false
	}
	if rng.IntN(8) == 0 { // the job may have ended with it
		if r, ok := c.propose(ctx, rng, "forbidden", b, accept); ok && r.First() == nil {
			c.violated(isRefused, "results of %s were accepted twice", trade)
		}
		c.tried("a second acceptance of what was bought in the other cell")
	}
	most := pcm.MulMicro(price.PerTask, count)
	if !o.settle(ctx, rng, b, s, pcm.Op{Settle: &pcm.Settle{Trade: trade, Tasks: terms.Tasks, Amount: most}}, count, rng.IntN(8) == 0) {
		return false
	}
	if rng.IntN(3) == 0 {
		over := pcm.Op{Clear: &pcm.Clear{Job: terms.Job, Trade: trade, Paid: most + 1_000_000_000}}
		if r, ok := c.propose(ctx, rng, "forbidden", b, over); ok && r.First() == nil {
			c.violated(isRefused, "%s was cleared with more than was set aside for it", trade)
		}
		c.tried("to clear more than was set aside")
	}
	if !do(c, "clear", b, pcm.Op{Clear: &pcm.Clear{Job: terms.Job, Trade: trade, Paid: most}}) {
		return false
	}
	c.settled.Add(1)
	return true
}

// half is what one cell's records say of trades that have a side in two.
type half struct {
	placed   map[pcm.TradeID]pcm.Terms // with the job: what it set aside for
	accepted map[pcm.TradeID]pcm.Spans
	cleared  map[pcm.TradeID]pcm.Micro
	awarded  map[pcm.TradeID]pcm.Terms // with the seller
	void     map[pcm.TradeID]bool
	settled  map[pcm.TradeID]pcm.Spans
	closed   map[pcm.TradeID]pcm.Micro
}

// halfOf reads records. What one that can't be read says is missing; that is told elsewhere.
func halfOf(records []pcm.Record) half {
	h := half{
		map[pcm.TradeID]pcm.Terms{}, map[pcm.TradeID]pcm.Spans{}, map[pcm.TradeID]pcm.Micro{},
		map[pcm.TradeID]pcm.Terms{}, map[pcm.TradeID]bool{}, map[pcm.TradeID]pcm.Spans{}, map[pcm.TradeID]pcm.Micro{},
	}
	for _, r := range records {
		for _, f := range r.Facts {
			if f.Closed != nil {
				h.closed[f.Closed.Trade] = f.Closed.Paid
			}
		}
		var cmd pcm.Command
		if r.Command == nil || pcm.Unmarshal(r.Command.Payload, &cmd) != nil {
			continue
		}
		for _, op := range cmd.Ops[:min(r.Done, len(cmd.Ops))] {
			switch {
			case op.Place != nil && op.Place.Terms.Abroad():
				h.placed[op.Place.Terms.Trade()] = op.Place.Terms
			case op.Award != nil && op.Award.Terms.Abroad():
				h.awarded[op.Award.Terms.Trade()] = op.Award.Terms
			case op.Void != nil:
				h.void[op.Void.Terms.Trade()] = true
			case op.Accept != nil:
				for _, res := range op.Accept.Results {
					h.accepted[op.Accept.Trade] = h.accepted[op.Accept.Trade].With(res.Index)
				}
			case op.Settle != nil:
				for i := range op.Settle.Tasks.All {
					h.settled[op.Settle.Trade] = h.settled[op.Settle.Trade].With(i)
				}
			case op.Clear != nil:
				h.cleared[op.Clear.Trade] = op.Clear.Paid
			}
		}
	}
	return h
}

// agree holds the ledgers of all cells against each other: what was awarded abroad was
// placed at home first; what was paid was accepted, and each task once; and what a job
// says that a trade has cost is what its seller's cell has charged.
func agree(ledgers map[pcm.CellID][]pcm.Record) (trades int, found problems) {
	halves := map[pcm.CellID]half{}
	for id, records := range ledgers {
		halves[id] = halfOf(records)
	}
	type task struct {
		job   pcm.JobID
		index int
	}
	paid := map[task]pcm.TradeID{}
	for _, id := range sortedKeys(halves) {
		seller := halves[id]
		for _, trade := range sortedKeys(seller.awarded) {
			trades++
			terms := seller.awarded[trade]
			home := halves[terms.Home]
			if home.placed[trade].Trade() != trade {
				found.add(isAgreed, "%s was awarded, and %s has not placed it", trade, pcm.Short(terms.Home))
			}
			if seller.void[trade] {
				found.add(isAgreed, "%s was awarded, and made void", trade)
			}
			for i := range seller.settled[trade].All {
				if !home.accepted[trade].Has(i) {
					found.add(isAgreed, "task %d of %s was paid, and not accepted", i, trade)
				}
				k := task{terms.Job, i}
				if other, ok := paid[k]; ok {
					found.add(isOnce, "task %d of %s was paid with %s and with %s", i, terms.Job, other, trade)
				}
				paid[k] = trade
			}
		}
		for _, trade := range sortedKeys(seller.cleared) { // here as the home of the job
			cost, terms := seller.cleared[trade], seller.placed[trade]
			there := halves[terms.Cell]
			if got, ok := there.closed[trade]; cost != got || !ok && cost > 0 {
				found.add(isAgreed, "%s has cost %s, as its job's cell says; its seller's says %s", trade, cost, got)
			}
		}
	}
	return trades, found
}
