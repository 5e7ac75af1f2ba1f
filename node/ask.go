package node

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/placement"
)

// protoAsk asks a seller whether it would run tasks of a step, without placing any.
const protoAsk protocol.ID = "/pcm/ask/1.0.0"

// Bounds of questions.
const (
	maxAsk      = 256 << 10
	maxAskPools = 16
	maxAsked    = 32              // sellers for one step
	askWait     = 3 * time.Second // for all of them together
	askPace     = 100 * time.Millisecond
	askBurst    = 20
)

// askRequest is about one step. What no rule may see is left out: arguments, values of
// the environment, contents of inputs.
type askRequest struct {
	Job   pcm.JobID    `cbor:"1,keyasint,omitempty"` // if it is submitted: the driver asks for its buyer
	Spec  pcm.Spec     `cbor:"2,keyasint"`           // with that step alone
	Pools []pcm.PoolID `cbor:"3,keyasint"`
}

// askAnswer has what hinders each pool, in the order of the question; "": nothing now.
type askAnswer struct {
	Why []string `cbor:"1,keyasint"`
}

// question makes the request for a step.
func question(job pcm.JobID, h heldSpec, step int, pools []pcm.PoolID) askRequest {
	st := h.spec.Steps[step]
	if len(st.Command) > 1 {
		st.Command = st.Command[:1]
	}
	st.Args, st.Needs, st.Env, st.Inputs, st.ModuleAt = nil, nil, maps.Clone(st.Env), slices.Clone(st.Inputs), ""
	for i := range st.Inputs {
		st.Inputs[i].Digest = ""
	}
	for k := range st.Env {
		st.Env[k] = ""
	}
	if st.Service != nil && st.Service.Health != nil {
		svc, health := *st.Service, *st.Service.Health
		if len(health.Command) > 1 {
			health.Command = health.Command[:1]
		}
		svc.Health, st.Service = &health, &svc
	}
	s := h.spec
	s.Budget, s.Steps = budgetUnit(s), []pcm.Step{st}
	return askRequest{Job: job, Spec: s, Pools: pools}
}

// budgetUnit is a budget that names the unit in which the spec pays, and no more.
func budgetUnit(s pcm.Spec) string {
	if _, unit, err := s.BudgetAmount(); err == nil && s.Budget != "" {
		return "1 " + unit
	}
	return ""
}

// askPaces bounds how often each peer may ask.
type askPaces struct {
	mu sync.Mutex
	by map[pcm.PeerID]time.Time // until when what it has asked so far takes
}

// may takes one question in, if the peer has not asked too much of late.
func (a *askPaces) may(from pcm.PeerID, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.by == nil {
		a.by = map[pcm.PeerID]time.Time{}
	}
	maps.DeleteFunc(a.by, func(_ pcm.PeerID, t time.Time) bool { return t.Before(now) })
	until := a.by[from]
	if until.IsZero() {
		until = now
	}
	if until.Sub(now) > askBurst*askPace || len(a.by) > maxDenials {
		return false
	}
	a.by[from] = until.Add(askPace)
	return true
}

// serveAsk answers as the seller would, were the tasks awarded now.
func (n *Node) serveAsk(_ context.Context, from pcm.Passport, raw []byte) ([]byte, error) {
	if !n.asking.may(from.Peer, time.Now()) {
		return nil, pcm.Errorf(pcm.Busy, "peer %s has asked too often: at most %d questions a second", pcm.Short(from.Peer), time.Second/askPace)
	}
	var r askRequest
	if err := pcm.Unmarshal(raw, &r); err != nil {
		return nil, err
	}
	if faults := r.Spec.Normalize(); len(faults) > 0 {
		return nil, faults[0]
	}
	if len(r.Spec.Steps) != 1 || len(r.Pools) == 0 || len(r.Pools) > maxAskPools {
		return nil, pcm.Errorf(pcm.Invalid, "a question is about one step and 1 to %d pools", maxAskPools)
	}
	buyer := from.Account
	if r.Job != "" {
		n.cell.View(func() {
			if j, ok := n.state.Job(r.Job); ok && j.Driver == from.Peer {
				buyer = j.Buyer
			}
		})
	}
	return pcm.Marshal(n.answer(r, buyer, from))
}

// answer is what this seller says to a question.
func (n *Node) answer(r askRequest, buyer pcm.AccountID, driver pcm.Passport) askAnswer {
	a := askAnswer{Why: make([]string, len(r.Pools))}
	h := heldSpec{spec: r.Spec}
	in := inquiry{held: h, buyer: buyer, with: driver}
	_, in.unit, _ = r.Spec.BudgetAmount() // Normalize has read it
	set := n.ownRules()
	if len(set.Public)+len(set.Private) > 0 {
		n.cell.View(func() { in.account = n.accountOf(buyer, anyTrade) })
	}
	for i, id := range r.Pools {
		t := pcm.Terms{Buyer: buyer, Driver: driver.Peer, Pool: id}
		if err := n.seller.mayAward(t, driver.Account); err != nil {
			a.Why[i] = clip(err.Error())
			continue
		}
		v, err := n.verdict(set, in, id)
		switch {
		case err != nil:
			a.Why[i] = clip(err.Error())
		case v.Refused != "":
			a.Why[i] = clip(ruleMark + v.Refused)
		}
	}
	return a
}

// ask asks one seller.
func (n *Node) ask(ctx context.Context, seller pcm.PeerID, r askRequest) ([]string, error) {
	if seller == n.self {
		return n.answer(r, n.buyerOf(r.Job), n.described(n.self)).Why, nil
	}
	raw, err := pcm.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(raw) > maxAsk {
		return nil, pcm.Errorf(pcm.TooLarge, "the step is too large to ask about: it has %d bytes, over the bound of %d", len(raw), maxAsk)
	}
	if raw, err = n.mesh.Call(ctx, seller, protoAsk, raw); err != nil {
		return nil, err
	}
	var a askAnswer
	if err := pcm.Unmarshal(raw, &a); err != nil {
		return nil, err
	}
	if len(a.Why) != len(r.Pools) {
		return nil, pcm.Errorf(pcm.Invalid, "peer %s answers for %d of %d pools", pcm.Short(seller), len(a.Why), len(r.Pools))
	}
	for i, why := range a.Why {
		if !pcm.Printable(why) {
			why = "it gives a reason that can't be shown"
		}
		a.Why[i] = clip(why)
	}
	return a.Why, nil
}

// buyerOf is the buyer of an open job; for others, this peer's account.
func (n *Node) buyerOf(job pcm.JobID) pcm.AccountID {
	buyer := n.account
	n.cell.View(func() {
		if j, ok := n.state.Job(job); ok {
			buyer = j.Buyer
		}
	})
	return buyer
}

// askSellers asks those that fit a step what their offers don't tell: whom they deny,
// what else hinders them now, and their private rules. Who refuses fits no longer;
// who doesn't answer is noted.
func (n *Node) askSellers(ctx context.Context, job pcm.JobID, h heldSpec, step int, ranked []placement.Candidate) {
	ctx, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	by := map[pcm.PeerID][]int{}
	for i, c := range ranked {
		if c.OK() && (by[c.Peer] != nil || len(by) < maxAsked) && len(by[c.Peer]) < maxAskPools {
			by[c.Peer] = append(by[c.Peer], i)
		}
	}
	var wg sync.WaitGroup
	for seller, at := range by {
		wg.Go(func() {
			var pools []pcm.PoolID
			for _, i := range at {
				pools = append(pools, ranked[i].Pool.ID)
			}
			why, err := n.ask(ctx, seller, question(job, h, step, pools))
			for k, i := range at { // no two goroutines have a candidate in common
				c := &ranked[i]
				switch {
				case err != nil && c.Reason == "":
					c.Reason = "not asked: " + clip(err.Error())
				case err == nil && why[k] != "":
					c.Filter, c.Reason, c.Room = "seller", why[k], 0
				}
			}
		})
	}
	wg.Wait()
	slices.SortStableFunc(ranked, func(a, b placement.Candidate) int {
		switch {
		case a.OK() == b.OK():
			return 0
		case a.OK():
			return -1
		}
		return 1
	})
}

// forgive asks sellers again that have refused an account, so that one that sells to
// it again is found before the denial ends of itself. It asks each at most every
// forgiveEvery, and while there is a job of the account to place only.
func (d *driver) forgive(seller pcm.PeerID, step int, pool pcm.PoolID) {
	if !d.n.denials.again(seller, d.model.buyer, time.Now()) {
		return
	}
	buyer := d.model.buyer
	r := question(d.job, d.held, step, []pcm.PoolID{pool})
	go func() {
		ctx, cancel := context.WithTimeout(d.n.run, askWait)
		defer cancel()
		why, err := d.n.ask(ctx, seller, r)
		if err == nil && !strings.HasPrefix(why[0], deniedMark) {
			d.n.denials.lift(seller, buyer)
			d.nudge()
		}
	}()
}
