package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// queryAccount asks a cell what the asking peer's account owes in it, and is owed.
const queryAccount = "account"

// accountAnswer are the balances of an account in one cell.
type accountAnswer struct {
	Balances []accountBalance `cbor:"1,keyasint,omitempty"`
}

type accountBalance struct {
	Buyer  pcm.AccountID `cbor:"1,keyasint"`
	Seller pcm.AccountID `cbor:"2,keyasint"`
	Unit   string        `cbor:"3,keyasint"`
	Owed   pcm.Micro     `cbor:"4,keyasint"`
	Held   pcm.Micro     `cbor:"5,keyasint"`
	Limit  pcm.Micro     `cbor:"6,keyasint"`
}

// Bounds of asking other cells for balances.
const (
	maxBalances     = 4096 // of one account in one cell
	maxBalanceCells = 32
	balanceWait     = 2 * time.Second
	balanceFresh    = 5 * time.Second
)

// balancesHere are the balances of this node's cell; of one account, or of all ("").
func (n *Node) balancesHere(account pcm.AccountID) (list []accountBalance) {
	n.cell.View(func() {
		limit := map[pcm.AccountID]pcm.Micro{}
		for _, m := range n.state.Members() {
			if l, ok := limit[m.Account]; !ok || m.Offer > 0 && m.Credit < l {
				limit[m.Account] = m.Credit
			}
		}
		for k, b := range n.state.Balances {
			if account == "" || k.Buyer == account || k.Seller == account {
				list = append(list, accountBalance{k.Buyer, k.Seller, k.Unit, b.Owed, b.Held, limit[k.Seller]})
			}
		}
	})
	return list
}

// answerAccount tells a peer of another cell of its account's balances.
func (n *Node) answerAccount(from pcm.PeerID) ([]byte, error) {
	p, ok := n.mesh.Passport(from)
	if !ok {
		return nil, pcm.Errorf(pcm.Forbidden, "the account of peer %s is not known here", pcm.Short(from))
	}
	list := n.balancesHere(p.Account)
	return pcm.Marshal(accountAnswer{list[:min(len(list), maxBalances)]})
}

// owedAbroad remembers what other cells have said: for a moment, so as not to ask
// for each look; of a cell that is silent, what it said last.
type owedAbroad struct {
	stale atomic.Bool // this peer has changed what is owed since

	mu   sync.Mutex
	at   time.Time
	rows map[pcm.CellID][]api.Balance
}

// list is all that is known. It needs the lock.
func (o *owedAbroad) list() (all []api.Balance) {
	for _, c := range sortedKeys(o.rows) {
		all = append(all, o.rows[c]...)
	}
	return all
}

// balancesAbroad are this account's balances in the other cells that are known.
func (n *Node) balancesAbroad(ctx context.Context) []api.Balance {
	n.owed.mu.Lock() // who comes meanwhile waits for the same answers
	defer n.owed.mu.Unlock()
	if !n.owed.stale.Swap(false) && time.Since(n.owed.at) < balanceFresh {
		return n.owed.list()
	}
	cells, _ := n.cellsTraded(n.account)
	cells = cells[:min(len(cells), maxBalanceCells)]
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, balanceWait)
	defer cancel()
	found := make([][]api.Balance, len(cells))
	errs := make([]error, len(cells))
	var wg sync.WaitGroup
	for i, cell := range cells {
		wg.Go(func() {
			var answer accountAnswer
			away, err := n.aways.to(cell)
			if err == nil {
				err = away.Query(ctx, queryAccount, nil, &answer)
			}
			if errs[i] = err; err != nil {
				n.log.Debug("another cell does not tell of balances", "cell", cell, "error", err)
				return
			}
			found[i] = n.believable(cell, answer)
		})
	}
	wg.Wait()
	if caller.Err() != nil { // it has gone: that says nothing of the cells
		n.owed.stale.Store(true)
		return n.owed.list()
	}
	rows := map[pcm.CellID][]api.Balance{}
	for i, cell := range cells {
		if rows[cell] = found[i]; errs[i] != nil {
			rows[cell] = n.owed.rows[cell]
		}
	}
	n.owed.at, n.owed.rows = time.Now(), rows
	return n.owed.list()
}

// believable are the rows of another cell's answer that can be true.
func (n *Node) believable(cell pcm.CellID, answer accountAnswer) (rows []api.Balance) {
	for _, b := range answer.Balances[:min(len(answer.Balances), maxBalances)] {
		other := b.Buyer
		if other == n.account {
			other = b.Seller
		}
		mine := b.Buyer == n.account || b.Seller == n.account
		if !mine || !strings.HasPrefix(string(other), "acc-") || len(other) > 64 || !pcm.Printable(string(other)) || !pcm.ValidName(b.Unit) || b.Owed < 0 || b.Held < 0 {
			continue
		}
		v := balanceView(cell, b)
		v.ID += "/" + string(cell) // the same accounts may trade here as well
		v.AsOf = time.Now().UTC()
		rows = append(rows, v)
	}
	return rows
}

func balanceView(cell pcm.CellID, b accountBalance) api.Balance {
	return api.Balance{
		ID: fmt.Sprintf("%s/%s/%s", b.Buyer, b.Seller, b.Unit), Cell: cell, Buyer: b.Buyer, Seller: b.Seller,
		Unit: b.Unit, Owed: b.Owed.String(), Held: b.Held.String(), Limit: b.Limit.String(),
	}
}

// Balances lists what accounts owe each other in this node's cell, and what this
// account owes and is owed in others.
func (n *Node) Balances(ctx context.Context) ([]api.Balance, error) {
	n.fresh(ctx)
	var list []api.Balance
	for _, b := range n.balancesHere("") {
		list = append(list, balanceView(n.id.Mesh.Cell, b))
	}
	return append(list, n.balancesAbroad(ctx)...), nil
}
