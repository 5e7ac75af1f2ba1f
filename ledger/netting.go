package ledger

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// Bounds of the nettings that a cell remembers, so as not to apply one twice: of
// all accounts, of one account, and of the same two, so that none of them can keep
// the others from netting.
const (
	maxNettings     = 4096
	maxNettingsEach = 256
	maxNettingsPair = 32
)

// parties are the accounts of a netting, by name.
type parties struct {
	A pcm.AccountID `cbor:"1,keyasint"`
	B pcm.AccountID `cbor:"2,keyasint"`
}

func partiesOf(n *pcm.Netting) parties { return parties{min(n.A, n.B), max(n.A, n.B)} }

// net strikes what two accounts owe each other here, once.
func (a *applying) net(op *pcm.Net) (bool, error) {
	n, err := pcm.OpenNetting(op.Netting)
	if err != nil {
		return false, err
	}
	l, ok := n.Line(a.genesis.Cell)
	switch _, done := a.nettings[n.Key()]; {
	case n.Mesh != a.genesis.Mesh || !ok:
		return false, pcm.Errorf(pcm.Refused, "%s is not for %s of %s", n.ID, pcm.Short(a.genesis.Cell), pcm.Short(a.genesis.Mesh))
	case done:
		return false, nil
	case a.entry.Wall > n.NotAfter+pcm.Skew.Milliseconds() || n.NotAfter <= a.netFloor:
		return false, pcm.Errorf(pcm.Refused, "%s could be applied until %s: agree on a new one", n.ID, time.UnixMilli(n.NotAfter).UTC().Format(time.RFC3339))
	case n.NotAfter > a.entry.Wall+pcm.MaxNettingLifetime+pcm.Skew.Milliseconds():
		return false, pcm.Errorf(pcm.Refused, "%s is valid for more than %d days from now: agree on a shorter time", n.ID, pcm.MaxNettingLifetime/(24*3600*1000))
	}
	ab, ba := BalanceKey{n.A, n.B, n.Unit}, BalanceKey{n.B, n.A, n.Unit}
	for _, s := range []struct {
		key BalanceKey
		by  pcm.Micro
	}{{ab, l.ByA}, {ba, l.ByB}} {
		var owed pcm.Micro
		if b := a.balances[s.key]; b != nil {
			owed = b.Owed
		}
		if s.by > owed {
			return false, pcm.Errorf(pcm.Conflict, "%s strikes %s %s of what account %s owes %s here, which is %s: agree on a new one", n.ID, s.by, n.Unit, pcm.Short(s.key.Buyer), pcm.Short(s.key.Seller), owed)
		}
	}
	if a.Level() >= 3 {
		if err := a.overQuota(partiesOf(&n)); err != nil {
			return false, err
		}
	}
	if len(a.nettings) >= maxNettings && !a.sweepNettings() {
		return false, pcm.Errorf(pcm.Busy, "%d nettings are still within their validity in %s: retry when some have expired", len(a.nettings), pcm.Short(a.genesis.Cell))
	}
	if a.Level() >= 3 {
		a.netters[n.Key()] = partiesOf(&n)
	}
	a.nettings[n.Key()] = n.NotAfter
	a.strike(ab, l.ByA)
	a.strike(ba, l.ByB)
	return true, nil
}

// BalanceOf is what a buyer owes a seller, and what is held.
func (s *State) BalanceOf(k BalanceKey) Balance {
	if b := s.balances[k]; b != nil {
		return *b
	}
	return Balance{}
}

// strike takes an amount off what is owed.
func (a *applying) strike(k BalanceKey, by pcm.Micro) {
	b := a.balances[k]
	if b == nil || by == 0 {
		return
	}
	if b.Owed -= by; *b == (Balance{}) {
		delete(a.balances, k)
	}
}

// overQuota tells why two accounts can't net once more just now. What was applied
// below level 3 counts for nobody. It forgets nothing: a refusal leaves no record
// from which that would follow.
func (a *applying) overQuota(p parties) error {
	var pair int
	var each [2]int
	for _, id := range slices.SortedFunc(maps.Keys(a.netters), cmp.Compare[pcm.NettingID]) {
		if a.pastNetting(a.nettings[id]) {
			continue
		}
		o := a.netters[id]
		if o == p {
			pair++
		}
		for i, who := range []pcm.AccountID{p.A, p.B} {
			if o.A == who || o.B == who {
				each[i]++
			}
		}
	}
	if pair >= maxNettingsPair {
		return pcm.Errorf(pcm.Busy, "account %s and account %s have %d nettings within their validity in %s, which is the bound for two accounts: retry when some have expired, or net more at a time", pcm.Short(p.A), pcm.Short(p.B), pair, pcm.Short(a.genesis.Cell))
	}
	for i, who := range []pcm.AccountID{p.A, p.B} {
		if each[i] >= maxNettingsEach {
			return pcm.Errorf(pcm.Busy, "account %s has %d nettings within their validity in %s, which is the bound for one account: retry when some have expired", pcm.Short(who), each[i], pcm.Short(a.genesis.Cell))
		}
	}
	return nil
}

// sweepNettings forgets nettings that would be refused by time, and from then on
// refuses all that are no younger, whatever the clock says: none is applied twice.
// It tells whether there is room now; if not, nothing is forgotten.
func (a *applying) sweepNettings() bool {
	n, floor := 0, a.netFloor
	for _, id := range slices.SortedFunc(maps.Keys(a.nettings), cmp.Compare[pcm.NettingID]) {
		if at := a.nettings[id]; a.pastNetting(at) {
			n, floor = n+1, max(floor, at)
		}
	}
	if len(a.nettings)-n >= maxNettings {
		return false
	}
	maps.DeleteFunc(a.nettings, func(_ pcm.NettingID, at int64) bool { return a.pastNetting(at) })
	maps.DeleteFunc(a.netters, func(id pcm.NettingID, _ parties) bool { _, left := a.nettings[id]; return !left })
	a.netFloor = floor
	return true
}

// pastNetting tells whether a netting would be refused by time.
func (a *applying) pastNetting(notAfter int64) bool {
	return a.entry.Wall > notAfter+2*pcm.Skew.Milliseconds()
}

// resolve ends a dispute as both sides have agreed.
func (a *applying) resolve(o *pcm.Op) error {
	r, err := o.Resolve.Open()
	if err != nil {
		return err
	}
	if r.Mesh != a.genesis.Mesh || r.Cell != a.genesis.Cell {
		return pcm.Errorf(pcm.Refused, "the resolution of %s is for %s, this is %s", r.Trade, pcm.Short(r.Cell), pcm.Short(a.genesis.Cell))
	}
	if r.NotAfter != 0 && a.entry.Wall > r.NotAfter+pcm.Skew.Milliseconds() {
		return pcm.Errorf(pcm.Refused, "the resolution of %s could be applied until %s: agree on a new one", r.Trade, time.UnixMilli(r.NotAfter).UTC().Format(time.RFC3339))
	}
	t, err := a.openTrade(r.Trade)
	if err != nil {
		return err
	}
	if r.Buyer != t.Terms.Buyer || r.Seller != t.SellerAccount {
		return pcm.Errorf(pcm.Unauthorized, "%s is between account %s and account %s: those have to sign", t.ID, pcm.Short(t.Terms.Buyer), pcm.Short(t.SellerAccount))
	}
	n := r.Tasks.Len()
	if held := pcm.MulMicro(t.Terms.HoldEach(), n); r.Amount > held {
		return pcm.Errorf(pcm.Invalid, "%s %s is more than the %s that is held for these tasks of %s", r.Amount, t.Terms.Price.Unit, held, t.ID)
	}
	for i := range r.Tasks.All {
		if at := t.attempt(i); at == nil || at.State != pcm.AttemptDisputed {
			return pcm.Errorf(pcm.Conflict, "task %d of %s is not in dispute", i, t.ID)
		}
		if err := a.decided(t, i); err != nil {
			return err
		}
	}
	// The amount is shared out evenly; what doesn't divide goes to the first ones.
	share, rest := r.Amount/pcm.Micro(n), r.Amount%pcm.Micro(n)
	for i := range r.Tasks.All {
		at := t.attempt(i)
		if err := a.move(t, i, at, pcm.AttemptSettled); err != nil {
			panic(err) // checked above
		}
		if at.Charge = share; rest > 0 {
			at.Charge, rest = share+1, rest-1
		}
	}
	a.release(t, n, r.Amount)
	a.event(o, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	a.close(t)
	return nil
}

// decided tells whether the buyer's side has done with a task of a trade: nothing
// is paid for one of which it is open whether its result counts.
func (a *applying) decided(t *Trade, i int) error {
	if j := a.jobOf(t); j != nil {
		if _, err := j.placedBy(t.ID, t.Terms.Step, i); err == nil {
			return pcm.Errorf(pcm.Conflict, "task %d/%d is undecided: accept or abandon attempt %d first", t.Terms.Step, i, t.Terms.Attempt)
		}
	}
	return nil
}
