package ledger_test

import (
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// mSetting is a setting by the book: its values so far, and who wants which next.
type mSetting struct {
	values []string
	wants  map[pcm.AccountID]string
}

func (m *model) setting(key string) *mSetting {
	s := m.settings[key]
	if s == nil {
		s = &mSetting{values: []string{pcm.DefaultSetting(key)}, wants: map[pcm.AccountID]string{}}
		m.settings[key] = s
	}
	return s
}

func (s *mSetting) now() string { return s.values[len(s.values)-1] }

// deciders are the accounts with a voter.
func (m *model) deciders() map[pcm.AccountID]bool {
	set := map[pcm.AccountID]bool{}
	for _, p := range m.members {
		if p.note {
			set[p.account] = true
		}
	}
	return set
}

func (m *model) set(me *mMember, op *pcm.Set) bool {
	deciders := m.deciders()
	if pcm.CheckSetting(op.Key, op.Value) != nil || !deciders[me.account] {
		return false
	}
	s := m.setting(op.Key)
	if op.Version != uint64(len(s.values)-1) {
		return false
	}
	if was, said := s.wants[me.account]; said && was == op.Value || !said && op.Value == s.now() {
		return true // says nothing new
	}
	if op.Value == s.now() {
		delete(s.wants, me.account)
	} else {
		s.wants[me.account] = op.Value
	}
	n := 0
	for who, v := range s.wants {
		switch {
		case !deciders[who]:
			delete(s.wants, who)
		case v == op.Value:
			n++
		}
	}
	if 2*n > len(deciders) {
		s.values, s.wants = append(s.values, op.Value), map[pcm.AccountID]string{}
	}
	return true
}

// net judges a netting by what the random test says of it besides.
func (m *model) net(op *pcm.Net) bool {
	n, err := pcm.OpenNetting(op.Netting)
	if err != nil || len(n.Lines) != 1 || n.Lines[0].Cell != m.cell {
		return false
	}
	if slices.Contains(m.netted, n.ID) {
		return true
	}
	ab, ba := ledger.BalanceKey{Buyer: n.A, Seller: n.B, Unit: n.Unit}, ledger.BalanceKey{Buyer: n.B, Seller: n.A, Unit: n.Unit}
	l := n.Lines[0]
	if m.wall > n.NotAfter+pcm.Skew.Milliseconds() || m.balance(ab).Owed < l.ByA || m.balance(ba).Owed < l.ByB {
		return false
	}
	m.netted = append(m.netted, n.ID)
	m.paid = append(m.paid, mPaid{ab, -l.ByA}, mPaid{ba, -l.ByB})
	return true
}

func (m *model) resolve(op *pcm.Resolve) bool {
	r, err := op.Open()
	if err != nil || r.NotAfter != 0 && m.wall > r.NotAfter+pcm.Skew.Milliseconds() {
		return false
	}
	t := m.trades[r.Trade]
	if t == nil || !t.open() || r.Buyer != t.Buyer || r.Seller != m.members[t.Seller].account || r.Amount > holdOf(t.Terms)*pcm.Micro(r.Tasks.Len()) {
		return false
	}
	for i := range r.Tasks.All {
		if a := t.attempts[i]; a == nil || a.state != pcm.AttemptDisputed {
			return false
		}
		if tk := m.jobs[t.Job].tasks[t.Step][i]; tk.state == pcm.TaskPlaced && tk.trade == r.Trade {
			return false
		}
	}
	n, k := r.Tasks.Len(), 0
	for i := range r.Tasks.All { // the k-th of n gets what brings the first k to k/n of it, rounded up
		a := t.attempts[i]
		a.state = pcm.AttemptSettled
		a.charge = r.Amount / pcm.Micro(n)
		if k++; int64(k) <= int64(r.Amount)%int64(n) {
			a.charge++
		}
	}
	m.paid = append(m.paid, mPaid{m.key(t.Terms), r.Amount})
	return true
}

// mBase is a base by the book.
type mBase struct {
	size uint64
	at   int64
}

// base judges a base: a voter's, first in its command, in time, of a cell that
// doesn't keep everything.
func (m *model) base(me *mMember, op *pcm.Base) bool {
	keep, _ := pcm.KeepFor(m.setting(pcm.SettingKeep).now())
	last := mBase{at: -1 << 60}
	if n := len(m.bases); n > 0 {
		last = m.bases[n-1]
	}
	if !me.note || keep == 0 || m.nth > 0 || op.Last != last.size || 4*(m.now-last.at) < keep.Milliseconds() {
		return false
	}
	m.bases = append(m.bases, mBase{m.record, m.now})
	return true
}
