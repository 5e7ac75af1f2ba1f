package node

import (
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/placement"
)

// awards are this peer's latest awards that its own copy of the ledger doesn't
// show yet: a follower hears of the result before it applies the entry.
type awards struct {
	mu   sync.Mutex
	list []latestAward
}

type latestAward struct {
	index uint64
	key   placeKey
	buyer pcm.AccountID
	used  pcm.Resources
	slots int
}

// maxAwards bounds the list; what is dropped is at worst asked for in vain.
const maxAwards = 1024

func (a *awards) add(index uint64, t pcm.Terms) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.list) >= maxAwards {
		a.list = a.list[1:]
	}
	a.list = append(a.list, latestAward{index, placeKey{Peer: t.Seller, Pool: t.Pool}, t.Buyer, t.Each.Times(t.Width), t.Width})
}

// after returns the awards that an index doesn't include, and forgets the others.
func (a *awards) after(index uint64) []latestAward {
	a.mu.Lock()
	defer a.mu.Unlock()
	kept := a.list[:0]
	for _, l := range a.list {
		if l.index > index {
			kept = append(kept, l)
		}
	}
	a.list = kept
	return append([]latestAward{}, kept...)
}

// freshSites are the sites with this peer's latest awards taken into account, as a
// buyer sees them; of other cells those whose rules are at a level, none if it is 0.
func (n *Node) freshSites(buyer pcm.AccountID, abroad int) []placement.Site {
	index := n.cell.Applied()
	sites := n.sites()
	if abroad > 0 {
		sites = append(sites, n.sitesAbroad(abroad)...)
	}
	for _, l := range n.awards.after(index) {
		for i := range sites {
			if s := &sites[i]; s.Peer == l.key.Peer && s.Pool.ID == l.key.Pool {
				s.Free, s.Slots = s.Free.Minus(l.used), s.Slots-l.slots
				if l.buyer == buyer {
					s.Reserved, s.Tasks = s.Reserved.Plus(l.used), s.Tasks+l.slots
				}
			}
		}
	}
	return sites
}
