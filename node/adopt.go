package node

import (
	"context"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// How often what runs here is compared with the ledger without an occasion, and
// at most.
const (
	tidyEvery = 2 * time.Minute
	tidyPace  = time.Second
)

// nudgeTidy has what runs here compared with the ledger soon.
func (s *seller) nudgeTidy() {
	select {
	case s.untidy <- struct{}{}:
	default:
	}
}

// tidy compares what runs here with the ledger, on occasion and now and then,
// until ctx ends.
func (s *seller) tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for pause(ctx, tidyPace) {
		select {
		case <-tick.C:
		case <-s.untidy:
		case <-ctx.Done():
			return
		}
		s.resync()
	}
}

// openTrade is a trade of this seller as the ledger has it.
type openTrade struct {
	terms   pcm.Terms
	live    pcm.Spans
	started map[int]bool   // as reported
	stop    map[int]string // by the buyer's wish, with its reasons
	awarded adapters.BootTime
}

// resync brings what runs here in line with the ledger: after a start, when
// events were missed, and when something is left over. What the back ends have
// under our keys is adopted; what they have and nobody wants is ended and removed.
//
// The back ends and the seller's own table are read before the ledger, which is
// read up to date: what they show was awarded by then, so that what is not in
// the ledger has been closed.
func (s *seller) resync() {
	held, placed := s.mine()
	lists := map[string][]adapters.Status{}
	for name, a := range s.adapters {
		ctx, cancel := context.WithTimeout(s.n.run, 30*time.Second)
		list, err := a.List(ctx)
		cancel()
		if err != nil {
			if s.n.run.Err() == nil {
				s.n.log.Warn("can't ask a back end what runs there", "adapter", name, "error", err)
				s.nudgeTidy()
			}
			continue
		}
		lists[name] = list
	}
	ctx, cancel := context.WithTimeout(s.n.run, 10*time.Second)
	err := s.n.cell.Sync(ctx)
	cancel()
	if err != nil {
		if s.n.run.Err() == nil {
			s.n.log.Warn("can't compare what runs here with the ledger yet", "error", err)
			s.nudgeTidy()
		}
		return
	}
	trades := s.sold()
	for id := range held {
		if _, open := trades[id]; !open {
			s.end(id)
		}
	}
	known := map[pcm.TradeID]map[int]adapters.Status{}
	for name, list := range lists {
		for _, st := range list {
			switch o, open := trades[st.Trade]; {
			case !open:
				go s.clear(s.adapters[name], st)
			case st.Attempt == o.terms.Attempt && name == o.terms.Adapter && o.live.Has(st.Index):
				if known[st.Trade] == nil {
					known[st.Trade] = map[int]adapters.Status{}
				}
				known[st.Trade][st.Index] = st
			case st.State != adapters.Ended: // the cell has given it up
				go s.clear(s.adapters[name], st)
			}
		}
	}
	for id, o := range trades {
		if _, asked := lists[o.terms.Adapter]; !asked && s.adapters[o.terms.Adapter] != nil {
			continue // what it runs is not known: the trade is taken up when it is
		}
		s.adopt(id, o, known[id], placed[id])
	}
}

// mine is what the seller holds: its trades, and of each the runs that their back
// end has.
func (s *seller) mine() (map[pcm.TradeID]bool, map[pcm.TradeID]map[int]*run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, placed := map[pcm.TradeID]bool{}, map[pcm.TradeID]map[int]*run{}
	for id, x := range s.trades {
		held[id], placed[id] = true, map[int]*run{}
		for i, r := range x.running {
			if r.placed {
				placed[id][i] = r
			}
		}
	}
	return held, placed
}

// sold are this seller's open trades in the ledger.
func (s *seller) sold() map[pcm.TradeID]openTrade {
	trades := map[pcm.TradeID]openTrade{}
	now := s.n.cell.LogTime()
	s.n.cell.View(func() {
		for _, t := range s.n.state.Trades() {
			if t.Terms.Seller != s.n.self {
				continue
			}
			o := openTrade{terms: t.Terms, stop: map[int]string{}, started: map[int]bool{}}
			var live, undelivered []int
			for i, at := range t.All {
				if at.State == pcm.AttemptDisputed && at.Undelivered {
					undelivered = append(undelivered, i)
				}
				if at.State.Live() {
					live = append(live, i)
					o.started[i] = at.State == pcm.AttemptStarted
					if at.Stop != "" {
						o.stop[i] = at.Stop
					}
				}
			}
			if len(undelivered) > 0 {
				s.reports.giveIn(t.ID, pcm.SpansOf(undelivered))
			}
			o.live = pcm.SpansOf(live)
			o.awarded = adapters.Now().Add(-time.Duration(max(0, now-t.AwardedAt)) * time.Millisecond)
			trades[t.ID] = o
		}
	})
	return trades
}

// adopt takes a trade up that the ledger has open, or brings the one that is here
// in line with it: known is what its back end has of it, placed what this seller
// thought that it had, before it was asked.
func (s *seller) adopt(id pcm.TradeID, o openTrade, known map[int]adapters.Status, placed map[int]*run) {
	if o.live.Len() > 0 {
		s.begin(id, o.terms, o.live, known, o.awarded, 0)
	}
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return
	}
	var over, gone []int
	var ended []adapters.Status
	for _, i := range x.queue {
		if !o.live.Has(i) {
			over = append(over, i)
		}
	}
	for _, i := range sortedKeys(x.running) {
		st, here := known[i]
		switch {
		case !o.live.Has(i):
			over = append(over, i)
		case here && st.State == adapters.Ended:
			ended = append(ended, st)
		case here && !x.ended[i]:
			s.followed(id, x, st)
			if runs(st) && !o.started[i] {
				s.reports.started(id, i)
			}
		case !here && placed[i] != nil && placed[i] == x.running[i] && !x.ended[i]:
			gone = append(gone, i)
			x.ended[i] = true
		}
	}
	s.mu.Unlock()
	for _, st := range ended {
		go s.ended(st)
	}
	if len(over) > 0 {
		slices.Sort(over)
		s.lose(id, pcm.SpansOf(over), "the cell has given it up")
	}
	for _, i := range gone {
		s.done(id, x, pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: "its back end does not know it any more"})
	}
	for i, why := range o.stop {
		s.halt(id, pcm.Spans{{Lo: i, Hi: i + 1}}, why)
	}
}

// clear ends, or else removes, an attempt that is wanted no more.
func (s *seller) clear(a adapters.Adapter, st adapters.Status) {
	ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
	defer cancel()
	if st.State != adapters.Ended {
		// Its end comes back to ended, and from there to be removed.
		if err := a.Stop(ctx, st.Key, stopGrace, "it is no longer wanted"); err != nil && s.n.run.Err() == nil {
			s.n.log.Warn("can't stop a task that is no longer wanted", "attempt", st.Key, "error", err)
			s.nudgeTidy()
		}
		return
	}
	if err := a.Remove(ctx, st.Key); err != nil && s.n.run.Err() == nil {
		s.n.log.Warn("can't remove a task that is no longer wanted", "attempt", st.Key, "error", err)
	}
}
