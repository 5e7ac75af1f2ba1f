package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
)

// What traders try that must be refused, or must have no effect.
const (
	earlyAward = iota
	oldPlace
	othersFinish
	earlySettle
	oldAccept
	othersAccept
	acceptTwice
	othersSettle
	sendTwice
	settleTwice
	badSignature
	lateCommand
	otherCell
	allProbes = 24 // nearly half of all trades try nothing
)

func (c *clients) probe(rng *rand.Rand) int {
	if len(c.probes) > 0 {
		return c.probes[rng.IntN(len(c.probes))]
	}
	return rng.IntN(allProbes)
}

// trade takes one job from its submission to its settlement, with attempts at what
// must be refused in between.
func (c *clients) trade(ctx context.Context, rng *rand.Rand, b, s, stranger *actor, n int) {
	name := fmt.Sprintf("%d %s %s %d", c.seed, c.cell.name, b.peer, n)
	digest := pcm.DigestOf([]byte(name))
	job := pcm.NewJobID()
	count := 1 + rng.IntN(4)
	tasks := pcm.Spans{{Lo: 0, Hi: count}}
	term := uint64(1)
	awarded := false
	var trade pcm.TradeID
	// do proposes what must take effect; false ends the trade.
	do := func(what string, a *actor, ops ...pcm.Op) (pcm.CommandResult, bool) {
		r, ok := c.propose(ctx, rng, what, a, ops...)
		return r, ok && r.First() == nil
	}
	// never proposes what must not take effect.
	never := func(what string, a *actor, op pcm.Op) {
		r, ok := c.propose(ctx, rng, "forbidden", a, op)
		if ok && r.First() == nil {
			c.violated(isRefused, "%s: %s took effect", job, what)
		}
		c.tried(what)
	}
	done := false
	defer func() {
		if done {
			c.settled.Add(1)
			return
		}
		c.given.Add(1)
		c.propose(ctx, rng, "cancel", b, pcm.Op{Cancel: &pcm.Cancel{Job: job, Reason: "given up"}})
		if awarded {
			c.propose(ctx, rng, "reject", s, pcm.Op{Reject: &pcm.Reject{Trade: trade, Tasks: tasks, Reason: "given up"}})
		}
	}()
	r, ok := do("submit", b, pcm.Op{Submit: &pcm.Submit{
		Job: job, Name: "chaos", Spec: digest, Steps: []pcm.Shape{{Count: count}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAccount,
	}})
	if !ok {
		return
	}
	terms := pcm.Terms{
		Job: job, Tasks: tasks, Attempt: 1, Fence: r.Ops[0].Fence + 1, Buyer: b.account.Account(), Spec: digest, Driver: b.peer,
		Cell: c.cell.genesis.Cell, Seller: s.peer, Pool: "local", Offer: s.offer.Load(), Price: price, Each: each, Width: count,
		LimitMS: 100_000, Adapter: "process",
	}
	trade = terms.Trade()
	kind := c.probe(rng)
	if kind == earlyAward {
		never("an award without a placement", b, pcm.Op{Award: &pcm.Award{Terms: terms}})
	}
	if kind == oldPlace {
		if _, ok := do("drive", b, pcm.Op{Drive: &pcm.Drive{Job: job, Term: 2}}); !ok {
			return
		}
		term = 2
		never("a placement of a driver whose term is over", b, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}})
	}
	if _, ok = do("place and award", b, pcm.Op{Place: &pcm.Place{Term: term, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}); !ok {
		return
	}
	awarded = true
	c.bought.Add(int64(count))
	if _, ok = do("start", s, pcm.Op{Start: &pcm.Start{Trade: trade, Tasks: tasks}}); !ok {
		return
	}
	var results []pcm.Result
	for i := range count {
		results = append(results, pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: 1, CPUMS: 1}, Output: pcm.DigestOf(fmt.Append(nil, name, i))})
	}
	if kind == othersFinish {
		never("a result that is not the seller's", b, pcm.Op{Finish: &pcm.Finish{Trade: trade, Results: results}})
	}
	if _, ok = do("finish", s, pcm.Op{Finish: &pcm.Finish{Trade: trade, Results: results}}); !ok {
		return
	}
	if kind == earlySettle {
		never("a settlement ahead of the acceptance", b, pcm.Op{Settle: &pcm.Settle{Trade: trade, Tasks: tasks, Amount: 1_000_000}})
	}
	accept := pcm.Op{Accept: &pcm.Accept{Job: job, Term: term, Trade: trade, Results: results}}
	if kind == oldAccept && term == 1 {
		if _, ok := do("drive", b, pcm.Op{Drive: &pcm.Drive{Job: job, Term: 2}}); !ok {
			return
		}
		never("an acceptance by a driver whose term is over", b, accept)
		term = 2
		accept.Accept = &pcm.Accept{Job: job, Term: term, Trade: trade, Results: results}
	}
	if kind == othersAccept {
		never("an acceptance by a stranger", stranger, accept)
	}
	if kind == acceptTwice && count > 1 {
		one := pcm.Op{Accept: &pcm.Accept{Job: job, Term: term, Trade: trade, Results: results[:1]}}
		if _, ok = do("accept", b, one); !ok {
			return
		}
		never("a second acceptance", b, one)
		accept.Accept.Results = results[1:]
	}
	if _, ok = do("accept", b, accept); !ok {
		return
	}
	settle := pcm.Op{Settle: &pcm.Settle{Trade: trade, Tasks: tasks, Amount: pcm.MulMicro(price.PerTask, count)}}
	if kind == othersSettle {
		never("a settlement of what a stranger owes nothing for", stranger, settle)
	}
	c.settle(ctx, rng, b, s, settle, count, kind == sendTwice)
	if kind == settleTwice {
		never("a second settlement", b, settle)
	}
	switch kind {
	case badSignature, lateCommand, otherCell:
		c.forged(ctx, rng, b, kind)
	}
	done = true
}

// tried counts an attempt at what must be refused.
func (c *clients) tried(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.checks[what]++
}

// settle pays; with again, the very same command is sent once more after its answer. It
// tells whether it is known to have taken effect.
func (c *clients) settle(ctx context.Context, rng *rand.Rand, b, s *actor, op pcm.Op, count int, again bool) bool {
	id, until, signed := c.sign(b, op)
	r, ok := c.send(ctx, rng, signed, until)
	c.mu.Lock()
	if ok {
		k := ack{what: "settle", index: r.Index, err: r.First()}
		if k.err == nil {
			k.done = 1
		}
		c.acks[id] = k
		c.acked.Add(1)
	} else {
		c.unknown[id] = "settle"
	}
	key := payment{b.account.Account(), s.account.Account()}
	sum := c.paid[key]
	if !ok || r.First() == nil {
		sum.most += pcm.MulMicro(price.PerTask, count)
	}
	if ok && r.First() == nil {
		sum.least += pcm.MulMicro(price.PerTask, count)
	}
	c.paid[key] = sum
	c.mu.Unlock()
	paid := ok && r.First() == nil
	if !ok || !again {
		return paid
	}
	c.tried("the same command again")
	r2, ok := c.send(ctx, rng, signed, until)
	late := r2.Err != nil && strings.Contains(r2.Err.Message, "valid until")
	if ok && !late && (r2.Index != r.Index || fmt.Sprint(r2.First()) != fmt.Sprint(r.First())) {
		c.violated(isOnce, "command %s was answered by entry %d (%v), then by entry %d (%v)", id, r.Index, r.First(), r2.Index, r2.First())
	}
	return paid
}

// forged sends a command that no cell may take, whoever signs it.
func (c *clients) forged(ctx context.Context, rng *rand.Rand, a *actor, kind int) {
	now := c.cell.now()
	cmd := pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: c.cell.genesis.Mesh, Cell: c.cell.genesis.Cell, Peer: a.peer,
		NotAfter: now + lifetime.Milliseconds(),
		Ops: []pcm.Op{{Submit: &pcm.Submit{
			Job: pcm.NewJobID(), Name: "forged", Spec: pcm.DigestOf([]byte(a.peer)), Steps: []pcm.Shape{{Count: 1}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverNone,
		}}},
	}
	what := ""
	switch kind {
	case badSignature:
		what = "a command with a bad signature"
	case lateCommand:
		what, cmd.NotAfter = "a command whose time is over", 1
	case otherCell:
		what, cmd.Cell = "a command for another cell", "cell-anotheranotherx"
	}
	signed := a.key.Seal(pcm.DomainCommand, cmd)
	if kind == badSignature {
		signed.Sig = slices.Clone(signed.Sig)
		signed.Sig[rng.IntN(len(signed.Sig))] ^= 4
	}
	r, ok := c.send(ctx, rng, signed, now+lifetime.Milliseconds())
	if ok && r.First() == nil {
		c.violated(isRefused, "%s took effect", what)
	}
	c.tried(what)
}
