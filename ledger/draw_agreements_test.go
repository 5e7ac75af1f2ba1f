package ledger_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// notekey makes a peer a voter, or has it be none any more.
func (r *random) notekey(t *rapid.T) {
	if r.rarely(t, "really", 3) {
		a := r.anyone(t)
		r.run(t, a, noteKeyOf(a, r.rarely(t, "no more", 3)))
	}
}

func (r *random) upgrade(t *rapid.T) {
	if r.rarely(t, "really", 4) {
		r.run(t, r.anyone(t), pcm.Op{Upgrade: &pcm.Upgrade{Level: r.n(t, "level", pcm.LedgerLevel+1)}})
	}
}

func (r *random) set(t *rapid.T) {
	s := &pcm.Set{Key: []string{pcm.SettingOpen, pcm.SettingMaxVoters, pcm.SettingKeep, "max_voter"}[min(3, r.n(t, "key", 16)/5)]}
	switch values := [][]string{{"yes", "no"}, {"1", "3", "5", "7"}, {"all", "20s", "1m", "60s"}}; s.Key {
	case pcm.SettingOpen:
		s.Value = values[0][r.n(t, "value", 2)]
	case pcm.SettingKeep:
		s.Value = values[2][r.n(t, "value", 4)]
	default:
		s.Value = values[1][r.n(t, "value", 4)]
	}
	s.Version = uint64(len(r.model.setting(s.Key).values) - 1)
	if r.rarely(t, "of another version", 8) {
		s.Version++
	}
	r.run(t, r.anyone(t), pcm.Op{Set: s})
}

// base makes one, mostly as it should be, in a cell that doesn't keep everything.
func (r *random) base(t *rapid.T) {
	if len(r.model.settings) == 0 || r.model.setting(pcm.SettingKeep).now() == "all" {
		a := r.actors[0]
		for _, b := range r.actors { // have the voters agree
			if m := r.model.members[b.peer]; m != nil && m.note {
				a = b
				s := &pcm.Set{Key: pcm.SettingKeep, Value: "20s", Version: uint64(len(r.model.setting(pcm.SettingKeep).values) - 1)}
				r.run(t, b, pcm.Op{Set: s})
			}
		}
		if r.model.setting(pcm.SettingKeep).now() == "all" && !r.rarely(t, "all the same", 4) {
			return
		}
		r.run(t, a, pcm.Op{Base: &pcm.Base{}})
		return
	}
	op := &pcm.Base{Last: r.state.Base().Size}
	if r.rarely(t, "on another one", 8) {
		op.Last++
	}
	ops := []pcm.Op{{Base: op}}
	if r.rarely(t, "not the first", 8) {
		ops = append([]pcm.Op{{Renew: &pcm.Renew{Incarnation: 4}}}, ops...)
	}
	r.run(t, r.anyone(t), ops...)
}

// net nets two accounts that owe something, mostly no more than that.
func (r *random) net(t *rapid.T) {
	a, b := r.anyone(t), r.anyone(t)
	var keys []ledger.BalanceKey
	for k, v := range r.state.Balances {
		if v.Owed > 0 {
			keys = append(keys, k)
		}
	}
	if len(keys) > 0 {
		k := keys[r.n(t, "balance", len(keys))]
		for _, x := range r.actors {
			if x.buyer == k.Buyer {
				a = x
			}
			if x.buyer == k.Seller {
				b = x
			}
		}
	}
	amount := func(from, to *actor) pcm.Micro {
		owed := r.model.balance(ledger.BalanceKey{Buyer: from.buyer, Seller: to.buyer, Unit: pcm.DefaultUnit}).Owed
		if r.rarely(t, "too much", 8) {
			return owed + 1
		}
		return owed * pcm.Micro(r.n(t, "quarters", 5)) / 4
	}
	r.names++
	n := pcm.Netting{
		Mesh: r.genesis.Mesh, ID: pcm.NettingID(idOf("net-", fmt.Sprint("netting ", r.names))), A: a.buyer, B: b.buyer, Unit: pcm.DefaultUnit,
		Lines:    []pcm.NettingLine{{Cell: r.genesis.Cell, ByA: amount(a, b), ByB: amount(b, a)}},
		NotAfter: r.wall + int64(r.n(t, "valid", 4))*time.Hour.Milliseconds(),
	}
	if r.rarely(t, "elsewhere", 12) {
		n.Lines[0].Cell = pcm.CellID(idOf("cell-", "away"))
	}
	agreed := n.Offer(a.account).Accept(pcm.DomainNetting, b.account)
	if r.rarely(t, "forged", 10) {
		agreed = agreed.Accept(pcm.DomainNetting, r.anyone(t).account)
	}
	if len(r.nettings) > 0 && r.rarely(t, "once more", 4) {
		agreed = r.nettings[r.n(t, "which", len(r.nettings))]
	}
	r.nettings = append(r.nettings, agreed)
	r.run(t, r.anyone(t), pcm.Op{Net: &pcm.Net{Netting: agreed}})
}

func (r *random) resolve(t *rapid.T) {
	tr := r.someTrade(t, func(tr *mTrade) bool {
		return tr.count(func(s pcm.AttemptState) bool { return s == pcm.AttemptDisputed }) > 0
	})
	if tr == nil {
		return
	}
	var tasks []int
	for i := range tr.Tasks.All {
		if tr.attempts[i].state == pcm.AttemptDisputed && r.n(t, "task", 4) > 0 || r.rarely(t, "any task", 20) {
			tasks = append(tasks, i)
		}
	}
	buyer, seller := r.anyone(t), r.anyone(t)
	for _, x := range r.actors {
		if x.buyer == tr.Buyer && !r.rarely(t, "other buyer", 20) {
			buyer = x
		}
		if x.peer == tr.Seller && !r.rarely(t, "other seller", 20) {
			seller = x
		}
	}
	res := pcm.Resolution{
		Mesh: r.genesis.Mesh, Cell: r.genesis.Cell, Trade: tr.Trade(), Tasks: pcm.SpansOf(tasks), Buyer: buyer.buyer, Seller: seller.buyer,
		Amount: holdOf(tr.Terms) * pcm.Micro(len(tasks)) * pcm.Micro(r.n(t, "thirds", 4)) / 3, BySeller: r.n(t, "by", 2) == 1,
	}
	if r.rarely(t, "too much", 12) {
		res.Amount = holdOf(tr.Terms)*pcm.Micro(len(tasks)) + 1
	}
	if r.rarely(t, "ends", 2) {
		res.NotAfter = r.wall + int64(r.n(t, "valid", 4)-1)*time.Hour.Milliseconds()
	}
	first, second := buyer, seller
	if res.BySeller {
		first, second = seller, buyer
	}
	if r.rarely(t, "forged", 12) {
		second = r.anyone(t)
	}
	agreed := res.Offer(first.account).Accept(pcm.DomainResolution, second.account)
	r.run(t, r.anyone(t), pcm.Op{Resolve: pcm.ResolveAs(res, agreed)})
}
