package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// A trade in another cell is that cell's to tell of. What home has of it, the
// placement and then a document, says that there is one, and in which cell.

// Bounds of asking other cells for trades that are to be shown.
const (
	boughtWait  = 2 * time.Second
	boughtAgain = 5 * time.Second // after a cell that did not answer
	maxBought   = 4096            // closed trades that are remembered: they never change
)

// bought remembers what other cells have told of trades, for those who look.
type bought struct {
	n      *Node
	mu     sync.Mutex
	closed map[pcm.TradeID]api.Trade
	silent map[pcm.CellID]time.Time
}

func newBought(n *Node) *bought {
	return &bought{n: n, closed: map[pcm.TradeID]api.Trade{}, silent: map[pcm.CellID]time.Time{}}
}

// view is a trade as its cell has told of it just now. One that has closed is remembered.
func (b *bought) view(t *ledger.Trade, cell pcm.CellID, names map[pcm.PeerID]string) api.Trade {
	v := tradeView(t, cell, names)
	v.Source = api.TradeOfCell
	if v.State != "closed" {
		return v
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.closed) >= maxBought {
		clear(b.closed) // what is needed is asked for again
	}
	b.closed[v.ID] = v
	return v
}

// told is a closed trade as its cell has told of it.
func (b *bought) told(id pcm.TradeID) (api.Trade, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, ok := b.closed[id]
	t.States = maps.Clone(t.States)
	return t, ok
}

// ask has a cell tell of some trades, given their terms. One that was silent just
// now is not asked.
func (b *bought) ask(ctx context.Context, cell pcm.CellID, terms map[pcm.TradeID]pcm.Terms) map[pcm.TradeID]*ledger.Trade {
	b.mu.Lock()
	shy := time.Since(b.silent[cell]) < boughtAgain
	b.mu.Unlock()
	if shy {
		return nil
	}
	seen, err := b.n.tradesAbroadAs(ctx, cell, terms)
	b.mu.Lock()
	defer b.mu.Unlock()
	if err == nil {
		delete(b.silent, cell)
		return seen
	}
	if ctx.Err() == context.Canceled { // nobody waits for its answer any more: that is not its silence
		return nil
	}
	if len(b.silent) >= maxAway {
		clear(b.silent)
	}
	b.silent[cell] = time.Now()
	b.n.log.Debug("another cell does not tell of trades", "cell", cell, "error", err)
	return nil
}

// tradesAbroadAs asks another cell for trades, and believes only what can be of
// trades on these terms. What can't is left out, as if the cell had not told of it; it
// is an error if nothing else was told.
func (n *Node) tradesAbroadAs(ctx context.Context, cell pcm.CellID, terms map[pcm.TradeID]pcm.Terms) (map[pcm.TradeID]*ledger.Trade, error) {
	seen, _, err := n.tradesIn(ctx, cell, sortedKeys(terms))
	if err != nil {
		return nil, err
	}
	wrong, err := keepPlausible(terms, seen, func(p pcm.PeerID) pcm.AccountID {
		seller, _ := n.mesh.Passport(p)
		return seller.Account
	})
	if err != nil && len(seen) > 0 {
		n.log.Warn("another cell tells of trades what can't be; they are shown as this cell has them", "cell", cell, "trades", wrong, "first", err)
		err = nil
	}
	return seen, err
}

// keepPlausible leaves in an answer what can be of trades on these terms. It tells how many
// are out, and what is wrong with the first.
func keepPlausible(terms map[pcm.TradeID]pcm.Terms, seen map[pcm.TradeID]*ledger.Trade, account func(pcm.PeerID) pcm.AccountID) (wrong int, first error) {
	for _, id := range sortedKeys(seen) {
		err := toldOfBought(id, terms[id], account(terms[id].Seller), seen[id])
		if err == nil {
			continue
		}
		delete(seen, id)
		if wrong++; first == nil {
			first = err
		}
	}
	return wrong, first
}

// toldOfBought checks what another cell tells of a trade on terms that home knows;
// seller is the account of the seller's passport, "" if it isn't known.
func toldOfBought(id pcm.TradeID, terms pcm.Terms, seller pcm.AccountID, v *ledger.Trade) error {
	if err := newAbroadTrade(id, terms).plausible(v); err != nil {
		return err
	}
	cell := pcm.Short(terms.Cell)
	if len(v.SellerAccount.Public()) == 0 || seller != "" && seller != v.SellerAccount {
		return pcm.Errorf(pcm.Invalid, "%s says that %s is sold by account %.64q; the passport of peer %s names account %s", cell, id, v.SellerAccount, pcm.Short(terms.Seller), pcm.Short(seller))
	}
	most := pcm.MulMicro(terms.HoldEach(), terms.Tasks.Len())
	if v.Held < 0 || v.Held > most || v.Paid > most {
		return pcm.Errorf(pcm.Invalid, "%s says that %s holds %s and has cost %s; these terms come to %s at most", cell, id, v.Held, v.Paid, most)
	}
	for i, at := range v.All {
		if at.Charge < 0 || at.Charge > terms.HoldEach() {
			return pcm.Errorf(pcm.Invalid, "%s says that task %d of %s costs %s; at most %s can be asked for it", cell, i, id, at.Charge, terms.HoldEach())
		}
		if len(at.Reason) > ledger.MaxReason || len(at.Stop) > ledger.MaxReason {
			return pcm.Errorf(pcm.Invalid, "%s gives an endless reason for task %d of %s", cell, i, id)
		}
	}
	return nil
}

// placedView is a trade in another cell as its placement tells of it.
func placedView(p *ledger.Placement, names map[pcm.PeerID]string) api.Trade {
	v := tradeView(&ledger.Trade{
		ID: p.Trade, Terms: *p.Terms, Held: pcm.MulMicro(p.HoldEach, p.Open+p.Doubt), Paid: p.Counted, AwardedAt: p.PlacedAt,
	}, p.Terms.Cell, names)
	v.Source = api.TradeOfHome
	return v
}

// boughtView is a trade in another cell that is over for the job's own.
func boughtView(id pcm.TradeID, k *ledger.Bought, names map[pcm.PeerID]string) api.Trade {
	v := tradeView(&ledger.Trade{ID: id, Terms: k.Terms, Paid: k.Paid, AwardedAt: k.PlacedAt, ClosedAt: k.ClearedAt}, k.Terms.Cell, names)
	if n := k.Due.Len(); n > 0 {
		v.States[pcm.AttemptSettled] = n
	}
	v.Source = api.TradeOfHome
	return v
}

// tradesAbroad are the trades in other cells of the jobs of this one: this
// account's as their cell tells of them, if it does; else as home has them.
func (n *Node) tradesAbroad(ctx context.Context, names map[pcm.PeerID]string) ([]api.Trade, error) {
	var list []api.Trade
	asked := map[pcm.CellID]map[pcm.TradeID]pcm.Terms{}
	ask := func(id pcm.TradeID, t *pcm.Terms) {
		if t.Buyer != n.account && t.Driver != n.self { // it tells others nothing
			return
		}
		of := asked[t.Cell]
		if of == nil {
			of = map[pcm.TradeID]pcm.Terms{}
			asked[t.Cell] = of
		}
		if len(of) < maxAskedTrades {
			of[id] = *t
		}
	}
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			for k := range j.Places {
				p := &j.Places[k]
				if p.Terms == nil {
					continue
				}
				if t := n.drivers.toldOf(j.ID, p.Trade); t != nil {
					list = append(list, n.bought.view(t, p.Terms.Cell, names))
					continue
				}
				list = append(list, placedView(p, names))
				terms := *p.Terms
				terms.Tasks = slices.Clone(terms.Tasks)
				ask(p.Trade, &terms)
			}
		}
	})
	old, err := archived(n, boughtKeys, boughtAt)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(old, func(a, b *ledger.Bought) int { return int(b.ClearedAt - a.ClearedAt) }) // the newest are asked for first
	for _, k := range old {
		id := k.Terms.Trade()
		v, ok := n.bought.told(id)
		if !ok {
			v = boughtView(id, k, names)
			ask(id, &k.Terms)
		}
		list = append(list, v)
	}
	seen := n.bought.askAll(ctx, asked)
	for i := range list {
		if t := seen[list[i].ID]; t != nil {
			list[i] = n.bought.view(t, list[i].Cell, names)
		}
	}
	return list, nil
}

// boughtKeys is what the keys of documents about such trades begin with.
var boughtKeys = ledger.BoughtKey("")

func boughtAt(k *ledger.Bought) int64 { return k.ClearedAt }

// askAll asks cells at once.
func (b *bought) askAll(ctx context.Context, asked map[pcm.CellID]map[pcm.TradeID]pcm.Terms) map[pcm.TradeID]*ledger.Trade {
	ctx, cancel := context.WithTimeout(ctx, boughtWait)
	defer cancel()
	all := map[pcm.TradeID]*ledger.Trade{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	cells := sortedKeys(asked)
	for _, cell := range cells[:min(len(cells), maxAway/2)] {
		wg.Go(func() {
			seen := b.ask(ctx, cell, asked[cell])
			mu.Lock()
			defer mu.Unlock()
			maps.Copy(all, seen)
		})
	}
	wg.Wait()
	return all
}

// termsAbroad are the terms of a trade of this cell's jobs in another one.
func (n *Node) termsAbroad(id pcm.TradeID) (t pcm.Terms, found bool) {
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			for k := range j.Places {
				if p := &j.Places[k]; p.Trade == id && p.Terms != nil {
					t, found = *p.Terms, true
					t.Tasks = slices.Clone(t.Tasks)
					return
				}
			}
		}
	})
	if found {
		return t, true
	}
	doc, err := n.cell.Document(ledger.BoughtKey(id))
	if err != nil {
		return t, false
	}
	var k ledger.Bought
	if err := pcm.UnmarshalLarge(doc, &k); err != nil {
		n.log.Warn("what is kept of a trade in another cell can't be read", "trade", id, "error", err)
		return t, false
	}
	return k.Terms, true
}

// tradeAnywhere is a trade of this node's cell, or one of its jobs in another.
func (n *Node) tradeAnywhere(ctx context.Context, id pcm.TradeID) (t *ledger.Trade, cell pcm.CellID, err error) {
	cell = n.id.Mesh.Cell
	if t, err = n.tradeHere(id); pcm.ErrorCode(err) != pcm.NotFound {
		return t, cell, err
	}
	terms, found := n.termsAbroad(id)
	if !found {
		return nil, cell, err
	}
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	seen, err := n.tradesAbroadAs(ctx, terms.Cell, map[pcm.TradeID]pcm.Terms{id: terms})
	if err != nil {
		return nil, terms.Cell, err
	}
	if seen[id] == nil {
		return nil, terms.Cell, pcm.Errorf(pcm.NotFound, "%s is placed in %s, which does not know it: it is not awarded yet, or was refused", id, n.cellName(terms.Cell))
	}
	return seen[id], terms.Cell, nil
}

// unitOf is the unit of a trade's price; "" if it isn't known here.
func (n *Node) unitOf(id pcm.TradeID) string {
	if t, err := n.tradeHere(id); err == nil {
		return t.Terms.Price.Unit
	}
	t, _ := n.termsAbroad(id)
	return t.Price.Unit
}
