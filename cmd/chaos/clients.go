package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
)

// ack is a command that was answered.
type ack struct {
	what  string
	index uint64
	done  int   // ops that took effect
	err   error // the first refusal
}

// clients are buyers and sellers of one cell, and those who write and read single
// values. Their keys are of this process; commands go through any peer of the cell,
// and again through another one until there is an answer.
type clients struct {
	cell    *testCell
	seed    uint64
	probes  []int           // what traders try that must be refused; nil: anything
	away    *consensus.Away // for those who are of no cell; nil: there are none
	heads   *checkpoints
	sellers []*actor
	values  []*actor      // whose offers are written and read as single values; set when run begins
	raised  chan struct{} // closed when the cell's rules know trade between cells

	mu         sync.Mutex
	acks       map[pcm.CommandID]ack
	unknown    map[pcm.CommandID]string // never answered
	paid       map[payment]span         // what settlements that were answered came to
	violations problems
	history    []operation
	checks     map[string]int // probes by kind

	acked   atomic.Int64
	tries   atomic.Int64 // proposals, each time that one was sent
	failed  atomic.Int64 // those without an answer
	reads   atomic.Int64
	settled atomic.Int64 // jobs that went all the way
	given   atomic.Int64 // jobs that were given up
	bought  atomic.Int64 // attempts that were awarded
	outside atomic.Int64 // commands that were answered to a peer that is of no cell
	abroad  atomic.Int64 // attempts that were bought in the other cell
}

type payment struct{ buyer, seller pcm.AccountID }

// span is what was paid at least and at most.
type span struct{ least, most pcm.Micro }

// actor is a peer with the key of its account.
type actor struct {
	key     pcm.Key
	account pcm.Key
	peer    pcm.PeerID
	offer   atomic.Uint64
}

func (c *clients) actor(name string) *actor {
	name = fmt.Sprintf("%d %s %s", c.seed, c.cell.name, name)
	a := &actor{key: keyOf("peer " + name), account: keyOf("account " + name)}
	a.peer = a.key.Peer()
	return a
}

func newClients(cell *testCell, seed uint64) *clients {
	c := &clients{
		cell: cell, seed: seed, acks: map[pcm.CommandID]ack{}, unknown: map[pcm.CommandID]string{},
		paid: map[payment]span{}, checks: map[string]int{}, heads: newCheckpoints(), raised: make(chan struct{}),
	}
	for i := range 4 {
		c.sellers = append(c.sellers, c.actor(fmt.Sprint("seller ", i)))
	}
	return c
}

func (c *clients) violated(of promise, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.violations.add(of, format, args...)
}

// Bounds of a command's life, in log time.
const (
	lifetime = 40 * time.Second
	tryFor   = 3 * time.Second
)

// broken tells whether a promise was broken already.
func (c *clients) broken() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.violations) > 0
}

// found are the promises that were seen broken so far.
func (c *clients) found() problems {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.violations)
}

// sign makes a command.
func (c *clients) sign(a *actor, ops ...pcm.Op) (pcm.CommandID, int64, pcm.Signed) {
	id := pcm.NewCommandID()
	until := c.cell.now() + lifetime.Milliseconds()
	return id, until, a.key.Seal(pcm.DomainCommand, pcm.Command{
		Version: pcm.CommandVersion, ID: id, Mesh: c.cell.genesis.Mesh, Cell: c.cell.genesis.Cell,
		Peer: a.peer, NotAfter: until, Ops: ops,
	})
}

// propose has a command applied. It is false if the outcome stays unknown.
func (c *clients) propose(ctx context.Context, rng *rand.Rand, what string, a *actor, ops ...pcm.Op) (pcm.CommandResult, bool) {
	id, until, signed := c.sign(a, ops...)
	r, ok := c.send(ctx, rng, signed, until)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		c.unknown[id] = what
		return r, false
	}
	k := ack{what: what, index: r.Index, err: r.First()}
	for _, o := range r.Ops {
		if o.Err == nil {
			k.done++
		}
	}
	if n := len(ops); k.err != nil && n > 1 && ops[n-1].Award != nil && len(r.Ops) == n {
		k.done-- // its placement is undone with it
	}
	c.acks[id] = k
	c.acked.Add(1)
	return r, true
}

// send sends a command until it is answered, or can't take effect any more.
func (c *clients) send(ctx context.Context, rng *rand.Rand, signed pcm.Signed, until int64) (pcm.CommandResult, bool) {
	unsure := false
	for ctx.Err() == nil {
		c.tries.Add(1)
		rs, err := c.try(ctx, rng, signed)
		if err == nil {
			if len(rs) != 1 {
				c.violated(isTold, "one command was answered with %d results", len(rs))
				return pcm.CommandResult{}, false
			}
			if unsure && rs[0].Err != nil && strings.Contains(rs[0].Err.Message, "valid until") {
				return rs[0], false // an earlier try may have been in time
			}
			return rs[0], true
		}
		unsure = true
		c.failed.Add(1)
		if c.cell.now() > until+5000 {
			break
		}
		select {
		case <-time.After(time.Duration(10+rng.IntN(40)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return pcm.CommandResult{}, false
}

// fromOutside is how many tries there are for each that is made as a peer that is of no cell.
const fromOutside = 8

// try sends a command once, through some peer or as one that is of no cell.
func (c *clients) try(ctx context.Context, rng *rand.Rand, signed pcm.Signed) ([]pcm.CommandResult, error) {
	if c.away != nil && rng.IntN(fromOutside) == 0 {
		try, cancel := context.WithTimeout(ctx, tryFor)
		defer cancel()
		rs, err := c.away.Propose(try, signed)
		if err == nil {
			c.cell.hear(c.away.LogTime())
			c.outside.Add(1)
		}
		return rs, err
	}
	p := c.somebody(ctx, rng)
	if p == nil {
		return nil, ctx.Err()
	}
	var out Answer
	if err := p.call("Propose", Proposal{pcm.MustMarshal([]pcm.Signed{signed}), tryFor}, &out, 2*tryFor); err != nil {
		return nil, err
	}
	c.cell.hear(out.LogTime)
	if out.Error != "" {
		return nil, errors.New(out.Error)
	}
	var rs []pcm.CommandResult
	err := pcm.UnmarshalLarge(out.Results, &rs)
	return rs, err
}

// read reads what stands at a value once; false without an answer.
func (c *clients) read(ctx context.Context, rng *rand.Rand, of pcm.PeerID) (offer uint64, ok bool) {
	if c.away != nil && rng.IntN(fromOutside) == 0 {
		try, cancel := context.WithTimeout(ctx, tryFor)
		defer cancel()
		ok = c.away.Query(try, methodOffer, of, &offer) == nil
		return offer, ok
	}
	p := c.somebody(ctx, rng)
	if p == nil {
		return 0, false
	}
	var out Reading
	err := p.call("Read", Query{Peer: of, For: tryFor}, &out, 2*tryFor)
	c.cell.hear(out.LogTime)
	return out.Offer, err == nil && out.Error == ""
}

// somebody is a peer that runs; nil when ctx ends.
func (c *clients) somebody(ctx context.Context, rng *rand.Rand) *proc {
	for ctx.Err() == nil {
		if ps := c.cell.running(); len(ps) > 0 {
			return ps[rng.IntN(len(ps))]
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return nil
}

// enrol makes actors known to the cell.
func (c *clients) enrol(ctx context.Context, rng *rand.Rand, actors ...*actor) error {
	for _, a := range actors {
		passport, err := pcm.IssuePassport(c.cell.root, c.cell.root.Public(), pcm.Signed{}, pcm.Passport{
			Mesh: c.cell.genesis.Mesh, Peer: a.peer, Account: a.account.Account(), Name: "actor",
			AccountBy: pcm.SignJoin(a.account, c.cell.genesis.Mesh, a.peer),
		}, time.Now())
		if err != nil {
			return err
		}
		r, ok := c.propose(ctx, rng, "enroll", a, pcm.Op{Enroll: &pcm.Enroll{Passport: passport}})
		if !ok || r.First() != nil {
			return fmt.Errorf("can't enrol: %v", r.First())
		}
	}
	return nil
}

var (
	each  = pcm.Resources{CPU: 1000, Memory: 1 << 30}
	price = pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000}
)

const slots = 256

// sells declares the pool of a seller.
func (c *clients) sells(ctx context.Context, rng *rand.Rand, a *actor) error {
	offer := a.offer.Add(1)
	pool := pcm.Pool{ID: "local", Adapter: "process", Capacity: each.Times(slots), Slots: slots, Price: price}
	r, ok := c.propose(ctx, rng, "capacity", a, pcm.Op{Capacity: &pcm.Capacity{Offer: offer, Pools: []pcm.Pool{pool}, Credit: 1_000_000_000_000}})
	if !ok || r.First() != nil {
		return fmt.Errorf("can't declare a pool: %v", r.First())
	}
	return nil
}

// market is what the clients of two cells know of each other.
type market struct {
	other   *clients        // of the cell where these clients buy too; nil: there is none
	ready   chan struct{}   // closed when the actors are known to the cell
	updated <-chan struct{} // closed when all peers of the cell are of this release
	older   bool            // they are not so from the start
	abroad  int             // who buy in the other cell
}

// run trades and reads until ctx ends.
func (c *clients) run(ctx context.Context, traders, registers int, m market) error {
	rng := rand.New(rand.NewPCG(c.seed, 7))
	var buyers, values, travellers []*actor
	sellers := c.sellers
	keeper := c.actor("keeper")
	for i := range m.abroad {
		travellers = append(travellers, c.actor(fmt.Sprint("traveller ", i)))
	}
	for i := range traders {
		buyers = append(buyers, c.actor(fmt.Sprint("buyer ", i)))
	}
	for i := range registers {
		values = append(values, c.actor(fmt.Sprint("value ", i)))
	}
	stranger := c.actor("stranger")
	if err := c.enrol(ctx, rng, slices.Concat(sellers, buyers, values, travellers, []*actor{stranger, keeper})...); err != nil {
		return err
	}
	for _, s := range sellers {
		if err := c.sells(ctx, rng, s); err != nil {
			return err
		}
	}
	close(m.ready)
	var wg sync.WaitGroup
	wg.Go(func() { c.raise(ctx, rand.New(rand.NewPCG(c.seed, 8)), keeper, m.older, m.updated) })
	for i, b := range travellers {
		rng := rand.New(rand.NewPCG(c.seed, uint64(4000+i)))
		wg.Go(func() {
			for _, raised := range []chan struct{}{c.raised, m.other.raised} {
				select {
				case <-raised:
				case <-ctx.Done():
					return
				}
			}
			if err := m.other.enrol(ctx, rng, b); err != nil {
				if ctx.Err() == nil {
					c.violated(isBack, "%v", err)
				}
				return
			}
			for n := 0; ctx.Err() == nil; n++ {
				c.buyAbroad(ctx, rng, m.other, b, m.other.sellers, n)
			}
		})
	}
	wg.Go(func() { c.audit(ctx) })
	for i, s := range sellers {
		rng := rand.New(rand.NewPCG(c.seed, uint64(1000+i)))
		wg.Go(func() { c.renew(ctx, rng, s) })
	}
	for i, b := range buyers {
		rng := rand.New(rand.NewPCG(c.seed, uint64(2000+i)))
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				c.trade(ctx, rng, b, sellers[rng.IntN(len(sellers))], stranger, n)
			}
		})
	}
	c.values = values
	for i, v := range values {
		for j := range valueClients {
			rng := rand.New(rand.NewPCG(c.seed, uint64(3000+10*i+j)))
			wg.Go(func() { c.register(ctx, rng, v, i, valueClients*i+j) })
		}
	}
	wg.Wait()
	return nil
}

// renew keeps the leases of a seller's attempts.
func (c *clients) renew(ctx context.Context, rng *rand.Rand, s *actor) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		c.propose(ctx, rng, "renew", s, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
	}
}

// valueClients is how many write and read each single value.
const valueClients = 3

// register writes ever higher numbers to one value, beside others, and reads it.
func (c *clients) register(ctx context.Context, rng *rand.Rand, v *actor, key, client int) {
	for ctx.Err() == nil {
		op := operation{key: key, client: client, call: elapsed()}
		if rng.IntN(2) == 0 {
			op.write, op.value = true, v.offer.Add(1)
			r, ok := c.propose(ctx, rng, "capacity", v, pcm.Op{Capacity: &pcm.Capacity{Offer: op.value}})
			op.unknown, op.refused = !ok, r.First() != nil
			if r.Err != nil { // refused for another reason than the value's
				op.unknown = true
			}
		} else {
			var ok bool
			if op.value, ok = c.read(ctx, rng, v.peer); !ok {
				continue // a read without an answer says nothing
			}
			c.reads.Add(1)
		}
		op.ret = elapsed()
		c.mu.Lock()
		c.history = append(c.history, op)
		c.mu.Unlock()
		select {
		case <-time.After(time.Duration(20+rng.IntN(60)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
