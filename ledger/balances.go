package ledger

import "github.com/jointcloud/pcm"

// maxMoney bounds every sum that the ledger adds up: a trillion units. Far below
// the largest integer, so that no sum of a few of them overflows.
const maxMoney pcm.Micro = 1e18

// mayOwe checks the credit that a seller gives.
func (a *applying) mayOwe(buyer pcm.AccountID, seller *Member, unit string, hold pcm.Micro) error {
	if buyer == seller.Account {
		return nil
	}
	var b Balance
	if have := a.balances[BalanceKey{buyer, seller.Account, unit}]; have != nil {
		b = *have
	}
	if total := pcm.AddMicro(max(b.Owed, 0), pcm.AddMicro(b.Held, hold)); total > seller.Credit {
		return pcm.Errorf(pcm.Refused, "peer %s gives account %s credit of %s %s: %s is owed, %s held, and these tasks may cost %s; settle up, or shorten time_limit", pcm.Short(seller.Peer), pcm.Short(buyer), seller.Credit, unit, b.Owed, b.Held, hold)
	}
	return nil
}

// hold reserves an amount of the buyer's credit for a trade. Trade within one
// account moves no money.
func (a *applying) hold(t *Trade, amount pcm.Micro) {
	if t.Terms.Buyer == t.SellerAccount || amount == 0 {
		return
	}
	k := BalanceKey{t.Terms.Buyer, t.SellerAccount, t.Terms.Price.Unit}
	b := a.balances[k]
	if b == nil {
		b = &Balance{}
		a.balances[k] = b
	}
	b.Held += amount
}

// release frees the holds of n attempts of a trade, of which paid becomes balance.
func (a *applying) release(t *Trade, n int, paid pcm.Micro) {
	freed := pcm.MulMicro(t.Terms.HoldEach(), n)
	t.Held -= freed
	t.Paid += paid
	if t.Terms.Buyer == t.SellerAccount || freed == 0 {
		return // what costs nothing may have no balance
	}
	k := BalanceKey{t.Terms.Buyer, t.SellerAccount, t.Terms.Price.Unit}
	b := a.balances[k]
	b.Held -= freed
	b.Owed += paid
	if *b == (Balance{}) {
		delete(a.balances, k)
	}
}
