package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/placement"
)

// rooms are what other cells said last of the room that their sellers have, so that
// a driver need not ask in vain: each placement that is refused there costs two
// records here. Who looks gets what is known, and has it asked for anew.
type rooms struct {
	n  *Node
	mu sync.Mutex
	by map[pcm.CellID]*cellRoom
}

// cellRoom is the room of one cell.
type cellRoom struct {
	asking chan struct{} // closed when it has answered, or did not; nil: it isn't asked
	waited bool          // for an answer, since the last one
	at     time.Time     // of the last answer; zero: there was none
	tried  time.Time
	pools  map[placeKey]summaryPool
	level  int // of its ledger's rules
}

// Bounds of what is known of the room in other cells.
const (
	roomFresh = time.Second
	roomGood  = 15 * time.Second // longer ago, the cell counts as silent
	roomAgain = 2 * time.Second  // after a failure
	roomWait  = time.Second
	maxRooms  = 256

	mostSilent = 24 * time.Hour // of a seller; longer makes no difference
)

// levelAbroad is the level of the rules that both cells of a trade must be at.
var levelAbroad = (pcm.Op{Void: &pcm.Void{}}).Level()

func newRooms(n *Node) *rooms { return &rooms{n: n, by: map[pcm.CellID]*cellRoom{}} }

// look tells of a pool in another cell, whose rules must be at a level; why says why it can't be bought from just now.
func (r *rooms) look(cell pcm.CellID, k placeKey, offer uint64, need int) (p summaryPool, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.by[cell]
	if c == nil {
		if len(r.by) >= maxRooms {
			clear(r.by) // what is needed is asked for again
		}
		c = &cellRoom{}
		r.by[cell] = c
	}
	timed := false
	if away, err := r.n.aways.to(cell); err == nil {
		timed = away.LogTime() > 0
	}
	if !timed {
		c.at = time.Time{}
	}
	if c.asking == nil && time.Since(c.at) > roomFresh && time.Since(c.tried) > roomAgain {
		c.asking, c.tried = make(chan struct{}), time.Now()
		go r.ask(cell, c)
	}
	switch {
	case c.at.IsZero():
		return p, "its cell has not said yet what is free"
	case time.Since(c.at) > roomGood:
		return p, "its cell does not answer"
	case c.level < need:
		return p, fmt.Sprintf("its cell is at level %d of the ledger's rules, and trade across cells needs %d: its peers are yet to be updated", c.level, need)
	}
	p, ok := c.pools[k]
	switch {
	case !ok:
		return p, "its cell does not know the pool"
	case p.Offer != offer:
		return p, "its offer is changing"
	}
	// What it says of its sellers' silence was true when it answered, at best.
	p.SilentMS = min(max(0, p.SilentMS), mostSilent.Milliseconds()) + time.Since(c.at).Milliseconds()
	return p, ""
}

// ask asks a cell, and has those look again who wait for room.
func (r *rooms) ask(cell pcm.CellID, c *cellRoom) {
	ctx, cancel := context.WithTimeout(r.n.run, envoyPatience)
	defer cancel()
	s, err := r.n.summaryOf(ctx, cell)
	if away, gone := r.n.aways.to(cell); err == nil && gone == nil && away.LogTime() == 0 {
		_, err = away.Locate(ctx) // terms name a log time of that cell
	}
	r.mu.Lock()
	close(c.asking)
	c.asking = nil
	if err == nil {
		c.at, c.tried, c.waited = time.Now(), time.Time{}, false
		c.pools, c.level = map[placeKey]summaryPool{}, s.Level
		for _, p := range s.Pools {
			c.pools[placeKey{Peer: p.Peer, Pool: p.Pool}] = p
		}
	}
	r.mu.Unlock()
	if err != nil {
		r.n.log.Debug("another cell does not say what is free", "cell", cell, "error", err)
		return
	}
	r.n.drivers.nudgeAll()
}

// take takes out what was just placed there.
func (r *rooms) take(t pcm.Terms) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.by[t.Cell]; c != nil {
		k := placeKey{Peer: t.Seller, Pool: t.Pool}
		if p, ok := c.pools[k]; ok {
			p.Free, p.Slots = p.Free.Minus(t.Each.Times(t.Width)), p.Slots-t.Width
			c.pools[k] = p
		}
	}
}

// stale has a cell asked anew at the next look.
func (r *rooms) stale(cell pcm.CellID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.by[cell]; c != nil && !c.at.IsZero() && time.Since(c.at) > 100*time.Millisecond {
		c.at, c.tried = time.Now().Add(-roomFresh), time.Time{}
	}
}

// await waits a moment for cells that are being asked and of which nothing is known,
// so that what is first placed need not do without them; once for each.
func (r *rooms) await() {
	var asked []chan struct{}
	r.mu.Lock()
	for _, c := range r.by {
		if c.asking != nil && time.Since(c.at) > roomGood && !c.waited {
			c.waited = true
			asked = append(asked, c.asking)
		}
	}
	r.mu.Unlock()
	patience := time.After(roomWait)
	for _, done := range asked {
		select {
		case <-done:
		case <-patience:
			return
		case <-r.n.run.Done():
			return
		}
	}
}

// sitesAbroad are the pools of other cells, as offers and those cells tell of them, if
// the rules are at a level, here and there.
func (n *Node) sitesAbroad(need int) []placement.Site {
	var sites []placement.Site
	level := 0
	n.cell.View(func() { level = n.state.Level() })
	if level < need {
		return nil // not all peers of this cell know of trade across cells
	}
	rows := n.mesh.Offers()
	for _, row := range rows {
		if o := row.Offer; o.Cell != n.id.Mesh.Cell && o.Cell.Valid() && len(o.Pools) > 0 {
			n.rooms.look(o.Cell, placeKey{}, 0, need)
		}
	}
	n.rooms.await()
	for _, row := range rows {
		o := row.Offer
		if o.Cell == n.id.Mesh.Cell || !o.Cell.Valid() || o.Peer == n.self {
			continue
		}
		for _, pool := range o.Pools {
			p, why := n.rooms.look(o.Cell, placeKey{Peer: o.Peer, Pool: pool.ID}, o.Number, need)
			sites = append(sites, placement.Site{
				Peer: o.Peer, Name: o.Name, Account: o.Account, Cell: o.Cell, Labels: o.Labels, Rules: o.Rules, Credit: p.Credit,
				Offer: o.Number, Pool: pool, Free: p.Free, Slots: p.Slots, Away: true, Avoid: why,
				Silent: time.Duration(p.SilentMS) * time.Millisecond,
			})
		}
	}
	return sites
}
