package node

import (
	"fmt"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/placement"
)

// placeKey names a pool of the mesh.
type placeKey = ledger.PoolKey

// avoidance says until when a site is not asked again, and why.
type avoidance struct {
	until time.Time
	why   string
}

// sites are the pools that can be bought from: what the offer book says of
// them, and what the cell's ledger knows of their room and their seller's life.
// Those of other cells are not among them: see sitesAbroad.
func (n *Node) sites() []placement.Site {
	rows := n.mesh.Offers()
	now := n.cell.LogTime()
	var sites []placement.Site
	n.cell.View(func() {
		for _, row := range rows {
			o := row.Offer
			if o.Cell != n.id.Mesh.Cell {
				continue
			}
			m, ok := n.state.Member(o.Peer)
			if !ok {
				continue
			}
			for _, pool := range o.Pools {
				p, ok := n.state.Pool(ledger.PoolKey{Peer: o.Peer, Pool: pool.ID})
				if !ok {
					continue
				}
				// Where ledger and gossip differ, the ledger counts: it is the judge.
				free, slots := p.Free()
				sites = append(sites, placement.Site{
					Peer: o.Peer, Name: m.Name, Account: m.Account, Cell: o.Cell, Labels: m.Labels, Rules: o.Rules, Credit: m.Credit,
					Offer: p.Offer, Pool: p.Pool, Free: free, Slots: slots,
					Silent: time.Duration(now-m.RenewedAt) * time.Millisecond,
				})
			}
		}
	})
	return sites
}

// request is what a step asks for.
func request(h heldSpec, step int, buyer, driver pcm.AccountID, unit string) (placement.Request, error) {
	st := h.spec.Steps[step]
	each, err := st.Shape()
	if err != nil {
		return placement.Request{}, err
	}
	return placement.Request{
		Step: st, Each: each, Limit: st.Limit(), Buyer: buyer, Driver: driver, Unit: unit, Strategy: h.spec.Strategy,
	}, nil
}

// match ranks the sites for one step of the driver's job.
func (d *driver) match(s int, sites []placement.Site) (placement.Request, []placement.Candidate, error) {
	r, err := request(d.held, s, d.model.buyer, d.n.account, d.model.unit)
	if err != nil {
		return r, nil, err
	}
	r.Judge = d.n.judge(d.held, s, d.model.buyer, d.n.self)
	now := time.Now()
	for i := range sites {
		k := placeKey{Peer: sites[i].Peer, Pool: sites[i].Pool.ID}
		if !sites[i].Away {
			sites[i].Avoid = ""
		}
		if a, ok := d.avoid[k]; ok {
			if now.Before(a.until) {
				sites[i].Avoid = fmt.Sprintf("%s; asked again %s", a.why, in(a.until.Sub(now)))
			} else {
				delete(d.avoid, k)
			}
		}
		if a, ok := d.n.denials.of(k.Peer, d.model.buyer, now); ok {
			sites[i].Avoid = fmt.Sprintf("%s; asked again %s", a.why, in(a.until.Sub(now)))
			d.forgive(k.Peer, s, k.Pool)
		}
	}
	ranked, _, err := d.n.rank(d.n.run, r, d.job, d.model.steps[s].waiting, sites)
	return r, ranked, err
}

// in says when something happens that is d away: "now" or "in 3s".
func in(d time.Duration) string {
	if d < time.Second {
		return "now"
	}
	return "in " + d.Round(time.Second).String()
}

// avoidFor keeps the driver from asking a site again for some time.
func (d *driver) avoidFor(t pcm.Terms, how time.Duration, why string) {
	d.avoid[placeKey{Peer: t.Seller, Pool: t.Pool}] = avoidance{time.Now().Add(how), why}
}
