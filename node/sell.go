package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// Validity of offers, and how often pools are looked at.
const (
	offerLife  = 24 * time.Hour
	offerCheck = 15 * time.Second
)

// selling states what this peer sells: to its cell, whose word binds, and by
// gossip, so that buyers know.
type selling struct {
	n      *Node
	mu     sync.Mutex
	pools  []pcm.Pool // as declared
	number uint64
	rules  []pcm.Rule       // as declared
	prices []declaredPrices // of the latest offers, the newest last
	again  chan struct{}
	off    bool             // sells nothing any more
	asked  bool             // by this peer's operator, to look now
	blind  map[string]blind // back ends that can't be observed, by adapter
	steady steady
}

func newSelling(n *Node) *selling {
	return &selling{n: n, again: make(chan struct{}, 1), blind: map[string]blind{}}
}

// run declares the pools, and again when they change.
func (s *selling) run(ctx context.Context) error {
	select {
	case <-s.n.member:
	case <-ctx.Done():
		return nil
	}
	s.listen(ctx)
	var published time.Time
	for {
		wait, current := offerCheck, true
		s.mu.Lock()
		asked := s.asked
		s.asked = false
		s.mu.Unlock()
		generation := s.n.operator.generation()
		pools := s.describe(ctx)
		s.mu.Lock()
		changed := s.number == 0 || s.rulesChanged() || s.steady.worth(s.pools, pools, time.Now(), asked)
		s.mu.Unlock()
		if changed || time.Since(published) > offerLife/2 {
			if err := s.declare(ctx, pools); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				s.n.log.Warn("can't declare what this peer sells", "error", err)
				current = false
				s.mu.Lock()
				s.asked = s.asked || asked
				s.mu.Unlock()
				if pcm.ErrorCode(err) != pcm.TooLarge { // that stays until the pools change
					wait = time.Second
				}
			} else {
				published = time.Now()
			}
		}
		if current {
			s.n.operator.settled(generation)
		}
		select {
		case <-time.After(wait):
		case <-s.again:
		case <-ctx.Done():
			return nil
		}
	}
}

// describe asks the adapters what they have. A back end that can't be observed
// sells nothing meanwhile.
func (s *selling) describe(ctx context.Context) []pcm.Pool {
	var pools []pcm.Pool
	if s.n.draining.Load() || s.isOff() || s.n.diskLow() != "" {
		return pools
	}
	for i, seen := range s.discover(ctx) {
		sale := s.n.cfg.Sales[i]
		if seen.err != nil {
			s.n.operator.lost(sale.Adapter.Name(), seen.err)
			continue
		}
		list := slices.Clone(seen.pools)
		for k := range list {
			p := &list[k]
			p.Price = sale.Price
			p.Features = s.n.cfg.Operations.offered(p.Features)
			s.n.cfg.Facts[p.ID].add(p)
		}
		s.n.operator.saw(sale.Adapter.Name(), list)
		for _, p := range list {
			p, offered := s.n.operator.offer(p)
			if !offered {
				continue
			}
			p.Tariffs = s.n.tariffs(p)
			if err := p.Validate(); err != nil {
				s.n.log.Warn("a pool is not valid and is not offered", "adapter", sale.Adapter.Name(), "error", err)
				continue
			}
			pools = append(pools, p)
		}
	}
	return pools
}

// declare commits the pools and publishes the offer that says the same.
func (s *selling) declare(ctx context.Context, pools []pcm.Pool) error {
	now := time.Now()
	s.mu.Lock()
	number := max(uint64(now.UnixMilli()), s.number+1)
	s.mu.Unlock()
	var before []ledger.Pool
	s.n.cell.View(func() {
		if m, ok := s.n.state.Member(s.n.self); ok {
			number = max(number, m.Offer+1)
		}
		for _, p := range pools {
			if row, ok := s.n.state.Pool(placeKey{Peer: s.n.self, Pool: p.ID}); ok {
				before = append(before, *row)
			}
		}
	})
	s.noteBefore(before)
	offer := pcm.Offer{
		Mesh: s.n.id.Mesh.Mesh, Cell: s.n.id.Mesh.Cell, Peer: s.n.self, Account: s.n.account, Name: s.n.cfg.Name,
		Number: number, IssuedAt: now.UnixMilli(), NotAfter: now.Add(offerLife).UnixMilli(), Labels: s.n.cfg.Labels, Pools: pools,
		Rules: s.n.publicRules(),
	}
	if err := offer.CheckSize(); err != nil {
		return err
	}
	s.notePrices(number, pools)
	try, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	if _, err := s.n.must(try, pcm.Op{Capacity: &pcm.Capacity{Offer: number, Pools: pools, Credit: s.n.cfg.Credit}}); err != nil {
		return err
	}
	s.mu.Lock()
	s.pools, s.number, s.rules = pools, number, offer.Rules
	s.mu.Unlock()
	return s.n.mesh.Publish(s.n.id.Peer.Seal(pcm.DomainOffer, offer))
}

// withdraw stops selling.
func (s *selling) withdraw(ctx context.Context) error {
	s.mu.Lock()
	s.off = true
	s.mu.Unlock()
	return s.declare(ctx, nil)
}

// resume sells again.
func (s *selling) resume() {
	s.mu.Lock()
	s.off = false
	s.mu.Unlock()
	s.check()
}

func (s *selling) isOff() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off
}

// declared are the pools as last declared.
func (s *selling) declared() []pcm.Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pools)
}

// check has the pools looked at now, and any change declared.
func (s *selling) check() {
	s.mu.Lock()
	s.asked = true
	s.mu.Unlock()
	s.look()
}

// look has the pools looked at now.
func (s *selling) look() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}
