package node

import (
	"bytes"
	"context"
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/rules"
)

// loadRules puts the rules in force as they are written now.
func (n *Node) loadRules() error {
	if n.cfg.Rules == nil {
		n.rules.Store(&rules.Set{})
		return nil
	}
	set, err := n.cfg.Rules()
	if err != nil {
		return err
	}
	n.rules.Store(&set)
	return nil
}

// ownRules are those in force.
func (n *Node) ownRules() rules.Set {
	if set := n.rules.Load(); set != nil {
		return *set
	}
	return rules.Set{}
}

// publicRules are those that travel in the offer.
func (n *Node) publicRules() []pcm.Rule { return n.ownRules().Public }

// tariffs are the prices at which this peer's rules sell a pool beside its usual one.
func (n *Node) tariffs(p pcm.Pool) (list []pcm.Price) {
	for _, percent := range n.ownRules().Percents(p.ID) {
		if t := p.Price.Percent(percent); t != p.Price && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list
}

// rulesFor are those of an offer's rules that are for a pool.
func rulesFor(all []pcm.Rule, id pcm.PoolID) (list []pcm.Rule) {
	for _, r := range all {
		if r.For(id) {
			list = append(list, r)
		}
	}
	return list
}

// rulesChanged tells whether others know other rules than those in force; s.mu is held.
func (s *selling) rulesChanged() bool {
	return !bytes.Equal(pcm.MustMarshal(s.rules), pcm.MustMarshal(s.n.publicRules()))
}

// declaredPrices are the usual prices of one offer's pools.
type declaredPrices struct {
	number uint64
	by     map[pcm.PoolID]pcm.Price
}

// maxPriced bounds the offers whose prices are remembered.
const maxPriced = 64

func (s *selling) notePrices(number uint64, pools []pcm.Pool) {
	d := declaredPrices{number, map[pcm.PoolID]pcm.Price{}}
	for _, p := range pools {
		d.by[p.ID] = p.Price
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.prices = append(s.prices, d); len(s.prices) > maxPriced {
		s.prices = slices.Delete(s.prices, 0, len(s.prices)-maxPriced)
	}
}

// noteBefore keeps the prices of offers that are about to be replaced: those of an
// earlier run, of which awards may have yet to be started.
func (s *selling) noteBefore(rows []ledger.Pool) {
	for _, row := range rows {
		if _, known := s.priced(nil, row.Offer, row.Pool.ID); !known {
			s.notePrices(row.Offer, []pcm.Pool{row.Pool})
		}
	}
}

// priced is the usual price of a pool in an offer: as the ledger has it, whose row of
// the pool that is, if any, or as one of the latest offers of this run had it.
func (s *selling) priced(row *ledger.Pool, number uint64, id pcm.PoolID) (pcm.Price, bool) {
	if row != nil && row.Offer == number {
		return row.Pool.Price, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.prices {
		if p, ok := d.by[id]; ok && d.number == number {
			return p, true
		}
	}
	return pcm.Price{}, false
}

// Rules lists the rules in force: those that travel in the offer come first.
func (n *Node) Rules(context.Context) ([]api.SaleRule, error) {
	list := []api.SaleRule{}
	set := n.ownRules()
	for _, r := range set.Public {
		list = append(list, api.SaleRule{Rule: r, Public: true})
	}
	for _, r := range set.Private {
		list = append(list, api.SaleRule{Rule: r})
	}
	return list, nil
}

// ReloadRules puts the rules in force that the configuration has now. With a fault
// in them, those before stay. What runs already goes on.
func (n *Node) ReloadRules(ctx context.Context) ([]api.SaleRule, error) {
	if err := n.loadRules(); err != nil {
		return nil, pcm.Errorf(pcm.ErrorCode(err), "the rules stay as they were: %w", err)
	}
	set := n.ownRules()
	n.audit.operator(ctx, "rules", api.AuditEntry{Reason: rulesNamed(set)})
	n.log.Info("the operator has had the rules read anew", "public", len(set.Public), "private", len(set.Private), "by", api.Caller(ctx))
	n.offer.check()
	return n.Rules(ctx)
}

// rulesNamed names rules for the audit log.
func rulesNamed(set rules.Set) string {
	text := "in force: "
	for i, r := range slices.Concat(set.Public, set.Private) {
		if i > 0 {
			text += ", "
		}
		text += r.Name
	}
	return clip(text)
}
