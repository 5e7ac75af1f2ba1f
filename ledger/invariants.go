package ledger

import (
	"maps"
	"slices"

	"github.com/jointcloud/pcm"
)

// Check tests the invariants over the whole state. It returns the first that is
// broken: an error with code Internal, which means a bug or a forged ledger.
func (s *State) Check() error {
	broken := func(format string, args ...any) error { return pcm.Errorf(pcm.Internal, format, args...) }
	type use struct {
		r     pcm.Resources
		slots int
	}
	type taskKey struct {
		job  pcm.JobID
		step int
		task int
	}
	if s.base != nil && s.base.Size >= s.records {
		return broken("there is a base of %d records, and there are %d", s.base.Size, s.records)
	}
	reserved := map[PoolKey]use{}
	held := map[BalanceKey]pcm.Micro{}
	live := map[taskKey]pcm.TradeID{}
	liveAt := map[pcm.PeerID]int{}
	open := map[pcm.JobID]int{}
	for _, t := range s.Trades() {
		n, unsettled, final := 0, 0, 0
		var paid pcm.Micro
		for i, at := range t.All {
			if at.State.Live() {
				n++
				k := taskKey{t.Terms.Job, t.Terms.Step, i}
				if other, twice := live[k]; twice && !t.Terms.Abroad() { // else another cell judges its tasks
					return broken("task %d/%d of %s has two live attempts: in %s and in %s", t.Terms.Step, i, t.Terms.Job, other, t.ID)
				}
				if !t.Terms.Abroad() {
					live[k] = t.ID
				}
			}
			if len(pcm.AttemptNext[at.State]) == 0 {
				final++
			} else {
				unsettled++
			}
			if at.State == pcm.AttemptSettled && at.Result == nil {
				return broken("attempt %s/%d was paid without a result", t.ID, i)
			}
			if at.Charge < 0 || at.Charge > t.Terms.HoldEach() || at.Charge > 0 && at.Result == nil {
				return broken("attempt %s/%d is charged %s: more than is held, or for nothing", t.ID, i, at.Charge)
			}
			if at.State == pcm.AttemptSettled {
				paid += at.Charge
			}
		}
		if paid != t.Paid {
			return broken("%s counts %s as paid; its settled attempts cost %s", t.ID, t.Paid, paid)
		}
		if n != t.Live || unsettled != t.Open || t.Held != pcm.MulMicro(t.Terms.HoldEach(), unsettled) {
			return broken("%s counts %d live and %d open attempts and holds %s; there are %d and %d", t.ID, t.Live, t.Open, t.Held, n, unsettled)
		}
		r, slots := t.reserved()
		k := PoolKey{t.Terms.Seller, t.Terms.Pool}
		reserved[k] = use{reserved[k].r.Plus(r), reserved[k].slots + slots}
		liveAt[t.Terms.Seller] += n
		if !t.Terms.Abroad() {
			open[t.Terms.Job]++
		}
		if t.Terms.Buyer != t.SellerAccount {
			held[BalanceKey{t.Terms.Buyer, t.SellerAccount, t.Terms.Price.Unit}] += t.Held
		}
	}
	if err := s.checkDeputies(broken); err != nil {
		return err
	}
	for _, k := range slices.SortedFunc(maps.Keys(reserved), PoolKey.compare) {
		if s.pools[k] == nil && reserved[k].slots > 0 {
			return broken("pool %s of peer %s is gone while trades reserve it", k.Pool, k.Peer)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.pools), PoolKey.compare) {
		p := s.pools[k]
		if p.Reserved != reserved[k].r || p.Slots != reserved[k].slots {
			return broken("pool %s of peer %s counts %s in %d slots as reserved; its trades reserve %s in %d", k.Pool, k.Peer, p.Reserved, p.Slots, reserved[k].r, reserved[k].slots)
		}
		if !p.Shrunk && !p.fits() {
			return broken("pool %s of peer %s has %s reserved of %s declared", k.Pool, k.Peer, p.Reserved, p.Pool.Capacity)
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(held), BalanceKey.compare) {
		if held[k] > 0 && s.balances[k] == nil {
			return broken("a hold of %s %s by %s has no balance", held[k], k.Unit, k.Buyer)
		}
	}
	net := map[string]map[pcm.AccountID]pcm.Micro{}
	for k, b := range s.Balances {
		if b.Held != held[k] || b.Owed < 0 {
			return broken("balance of %s with %s: owed %s, held %s; open trades hold %s", k.Buyer, k.Seller, b.Owed, b.Held, held[k])
		}
		if net[k.Unit] == nil {
			net[k.Unit] = map[pcm.AccountID]pcm.Micro{}
		}
		net[k.Unit][k.Buyer] -= b.Owed
		net[k.Unit][k.Seller] += b.Owed
	}
	for _, unit := range slices.Sorted(maps.Keys(net)) {
		var sum pcm.Micro
		for _, account := range slices.Sorted(maps.Keys(net[unit])) {
			sum += net[unit][account]
		}
		if sum != 0 {
			return broken("balances in %s sum to %s, not to zero", unit, sum)
		}
	}
	drives, tasks := map[pcm.PeerID]int{}, map[pcm.PeerID]int{}
	for _, j := range s.Jobs() {
		if err := j.check(open[j.ID], broken); err != nil {
			return err
		}
		if j.EndedAt == 0 {
			drives[j.Driver]++
		}
		tasks[j.Submitter] += j.tasks()
	}
	for _, m := range s.Members() {
		if m.Live != liveAt[m.Peer] || m.Drives != drives[m.Peer] || m.Tasks != tasks[m.Peer] {
			return broken("peer %s counts %d live attempts, %d driven jobs and %d tasks; there are %d, %d and %d", m.Peer, m.Live, m.Drives, m.Tasks, liveAt[m.Peer], drives[m.Peer], tasks[m.Peer])
		}
	}
	return nil
}

// checkDeputies tests that drivers of other accounts keep within their mandates.
func (s *State) checkDeputies(broken func(string, ...any) error) error {
	bought := map[DeputyKey]pcm.Micro{}
	for _, t := range s.Trades() {
		if d := s.deputy(&t.Terms); d != nil && d.Mandate == t.Mandate {
			bought[deputyKeyOf(&t.Terms)] += pcm.MulMicro(t.Terms.HoldEach(), len(t.Attempts))
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(s.deputies), DeputyKey.compare) {
		if d := s.deputies[k]; d.Bought < bought[k] || d.Bought > d.Budget {
			return broken("the deputies for %s of %s count %s as bought of a budget of %s; their open trades may cost %s", k.Job, k.Home, d.Bought, d.Budget, bought[k])
		}
	}
	return nil
}

func (j *Job) check(open int, broken func(string, ...any) error) error {
	if j.Trades != open {
		return broken("%s counts %d open trades; there are %d", j.ID, j.Trades, open)
	}
	if j.Budget > 0 && pcm.AddMicro(j.Held, j.Paid) > j.Budget {
		return broken("%s has %s held and %s paid of a budget of %s", j.ID, j.Held, j.Paid, j.Budget)
	}
	var held pcm.Micro
	placed := 0
	for _, p := range j.Places {
		held += pcm.MulMicro(p.HoldEach, p.Open+p.Doubt)
		placed += p.Open
		if p.Terms != nil && (p.Open < 0 || p.Doubt < 0 || p.Open+p.Doubt+p.Due.Len() > p.Terms.Tasks.Len() || p.Counted > pcm.MulMicro(p.HoldEach, p.Due.Len())) {
			return broken("%s of %s, abroad, counts %d undecided and %d doubtful tasks and %s for %d; it has %d", p.Trade, j.ID, p.Open, p.Doubt, p.Counted, p.Due.Len(), p.Terms.Tasks.Len())
		}
	}
	if held != j.Held || placed != j.Counts()[pcm.TaskPlaced] {
		return broken("%s holds %s for %d placed tasks; its placements hold %s for %d", j.ID, j.Held, j.Counts()[pcm.TaskPlaced], held, placed)
	}
	for s := range j.Steps {
		if st := &j.Steps[s]; st.Scale < 0 || st.Scale > len(st.Tasks) || !st.Service && st.Scale != 0 {
			return broken("step %d of %s, with %d tasks, is scaled to %d", s, j.ID, len(st.Tasks), st.Scale)
		}
		for i := range j.Steps[s].Tasks {
			tk := &j.Steps[s].Tasks[i]
			if (tk.State == pcm.TaskDone) != (tk.Result != nil && tk.Result.Outcome == pcm.OutcomeOK) {
				return broken("task %d/%d of %s is %s, which its accepted result doesn't say", s, i, j.ID, tk.State)
			}
		}
	}
	return nil
}
