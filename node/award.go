package node

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
)

// award makes the command that places tasks and binds their seller. Both ops
// are in one command, hence one entry, since the seller's cell is the buyer's;
// a refused award leaves no placement behind.
func (d *driver) award(t pcm.Terms) step {
	d.mu.Lock()
	d.shares[t.Seller] = true
	d.mu.Unlock()
	d.sendSpec(t.Seller)
	proposed := time.Now()
	return step{
		ops: []pcm.Op{{Place: &pcm.Place{Term: d.term, Terms: t}}, {Award: &pcm.Award{Terms: t}}},
		then: func(r pcm.CommandResult) bool {
			if r.Err != nil || len(r.Ops) < 2 {
				return d.placeRefused(t, r)
			}
			if refusal := r.Ops[1].Err; refusal != nil {
				d.awardRefused(t, refusal)
				return false
			}
			m := newTradeModel(t)
			m.since = proposed
			for i := range t.Tasks.All {
				d.set(t.Step, i, pcm.TaskPlaced)
				tk := &d.model.steps[t.Step].tasks[i]
				tk.attempt, tk.trade = t.Attempt, t.Trade()
				m.live[i] = true
			}
			d.trades[t.Trade()] = m
			d.n.awards.add(r.Index, t)
			delete(d.batch, placeKey{Peer: t.Seller, Pool: t.Pool})
			return false
		},
	}
}

// placeRefused: the buyer's cell said no. A budget that is too small for this
// portion may do for a smaller one; all else means that the model is wrong.
func (d *driver) placeRefused(t pcm.Terms, r pcm.CommandResult) (surprise bool) {
	err := pcm.AsError(r.First())
	if err.Code != pcm.Refused {
		return true
	}
	d.awardRefused(t, err)
	return false
}

// awardRefused: the seller's cell said no. Room that another took comes back
// soon; short credit may do for fewer tasks; for anything else the site is left
// alone for a while.
func (d *driver) awardRefused(t pcm.Terms, err *pcm.Error) {
	k := placeKey{Peer: t.Seller, Pool: t.Pool}
	n := t.Tasks.Len()
	switch {
	case err.Code == pcm.Conflict: // the offer has changed: the new one will be seen
		d.avoidFor(t, 100*time.Millisecond, err.Message)
	case n > 1:
		d.batch[k] = n / 2
		d.avoidFor(t, 20*time.Millisecond, err.Message)
	default:
		d.avoidFor(t, time.Second, err.Message)
	}
}

// sendSpec gives the seller the spec ahead of the award, so that it need not ask.
func (d *driver) sendSpec(to pcm.PeerID) {
	if to == d.n.self || d.specSent[to] {
		return
	}
	d.specSent[to] = true
	go func() {
		ctx, cancel := context.WithTimeout(d.n.run, 10*time.Second)
		defer cancel()
		if err := d.n.specs.send(ctx, to, d.job, d.held, false); err != nil {
			d.n.log.Debug("the seller will have to ask for the spec", "job", d.job, "seller", pcm.Short(to), "error", err)
		}
	}()
}
