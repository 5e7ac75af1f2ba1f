package node

import (
	"context"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// inLedger are those of a trade's tasks whose attempts may run as far as the ledger
// here knows. Events can come before their entries, and long after them: a ledger
// that has not come to the award, at a Raft index, speaks against none; one that has,
// and doesn't have the trade, has seen it closed.
func (s *seller) inLedger(id pcm.TradeID, index uint64, tasks pcm.Spans) pcm.Spans {
	if s.n.cell.Applied() < index {
		return tasks
	}
	var live []int
	s.n.cell.View(func() {
		t, open := s.n.state.Trade(id)
		if !open {
			return
		}
		for i := range tasks.All {
			if at := t.Attempt(i); at != nil && at.State.Live() {
				live = append(live, i)
			}
		}
	})
	return pcm.SpansOf(live)
}

// grant is until when an attempt may run, asked directly before it starts; ok is
// false if the ledger has its end already. The lease counts from the award or from
// the last renewal that was committed since, by the boot clock, which nobody can set.
// A renewal speaks only for what it left alive: the ledger here must have come to it.
// Error: Unavailable when ctx ends before.
func (s *seller) grant(ctx context.Context, id pcm.TradeID, x *execution, i int) (deadline adapters.BootTime, ok bool, err error) {
	from := x.awarded
	if renewed := s.n.renewedAt(); renewed > from {
		if err := s.applied(ctx, s.n.renewalIndex.Load()); err != nil {
			return 0, true, err
		}
		from = renewed
	}
	ok = s.live(id, x.index, pcm.Spans{{Lo: i, Hi: i + 1}}).Has(i)
	return from.Add(pcm.LeaseFor(0)), ok, nil
}
