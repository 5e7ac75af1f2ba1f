package ledger_test

import (
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

func (m *model) award(by pcm.PeerID, t pcm.Terms) bool {
	if old := m.trades[t.Trade()]; old != nil {
		return old.open() && by == t.Driver && string(pcm.MustMarshal(old.Terms)) == string(pcm.MustMarshal(t))
	}
	j := m.jobs[t.Job]
	if !wellFormed(t) || t.Cell != m.cell || t.Driver != by || j == nil || j.ended != "" || j.stopping {
		return false
	}
	was, placed := j.placed[t.Trade()]
	if !placed || holdOf(was) != holdOf(t) || t.Buyer != j.buyer || t.Spec != j.Spec || t.Price.Unit != j.Unit || t.Step < 0 || t.Step >= len(j.tasks) || !t.Tasks.Valid(len(j.tasks[t.Step])) {
		return false
	}
	for i := range t.Tasks.All {
		if tk := j.tasks[t.Step][i]; tk.state != pcm.TaskPlaced || tk.trade != t.Trade() || tk.attempt != t.Attempt || tk.seller != t.Seller {
			return false
		}
	}
	k := ledger.PoolKey{Peer: t.Seller, Pool: t.Pool}
	s, p := m.members[t.Seller], m.pools[k]
	if s == nil || p == nil || !p.declared || p.offer != t.Offer || p.Price != t.Price && !slices.Contains(p.Tariffs, t.Price) || p.Adapter != t.Adapter || p.OwnOnly && s.account != t.Buyer || p.MaxTime > 0 && t.LimitMS > p.MaxTime || p.Largest != nil && !t.Each.Within(p.Most()) {
		return false
	}
	if r, slots := m.reserved(k); !r.Plus(t.Each.Times(t.Width)).Within(p.Capacity) || slots+t.Width > p.Slots {
		return false
	}
	if b := m.balance(m.key(t)); s.account != t.Buyer && b.Owed+b.Held+holdOf(t)*pcm.Micro(t.Tasks.Len()) > s.credit {
		return false
	}
	tr := &mTrade{Terms: t, at: m.now, attempts: map[int]*mAttempt{}}
	for i := range t.Tasks.All {
		tr.attempts[i] = &mAttempt{state: pcm.AttemptAwarded}
	}
	m.trades[t.Trade()] = tr
	return true
}

// seller applies what a seller says of its attempts.
func (m *model) seller(by pcm.PeerID, trade pcm.TradeID, tasks pcm.Spans, good bool, f func(*mTrade, *mAttempt, int) bool) verdict {
	t := m.trades[trade]
	if t == nil || !t.open() || t.Seller != by || !good || !walkable(tasks) {
		return verdict{}
	}
	return on(tasks, func(i int) bool { a := t.attempts[i]; return a != nil && f(t, a, i) })
}

func plausible(u pcm.Usage) bool {
	return u.WallMS >= 0 && u.CPUMS >= 0 && u.MaxMemory >= 0 && u.WallMS <= 10*365*24*3_600_000
}

// tasksOf are the tasks of results; none if two are for one task.
func tasksOf(rs []pcm.Result) pcm.Spans {
	var is []int
	for _, r := range rs {
		is = append(is, r.Index)
	}
	slices.Sort(is)
	if len(slices.Compact(slices.Clone(is))) != len(is) {
		return nil
	}
	return pcm.SpansOf(is)
}

func (m *model) finish(by pcm.PeerID, op *pcm.Finish) verdict {
	return m.seller(by, op.Trade, tasksOf(op.Results), true, func(t *mTrade, a *mAttempt, i int) bool {
		r := op.Results[slices.IndexFunc(op.Results, func(r pcm.Result) bool { return r.Index == i })]
		if !a.state.Live() || !plausible(r.Usage) || len(r.Reason) > 256 || r.ExitCode < 0 || r.ExitCode > 255 || (r.Outcome == pcm.OutcomeOK && r.ExitCode != 0) || strings.HasPrefix(string(r.Outcome), "un") {
			return false
		}
		if r.Outcome == pcm.OutcomeSeller || r.Outcome == pcm.OutcomeStopped && !a.stop {
			return set(&a.state, pcm.AttemptRejected)
		}
		a.result, a.used = &r, r.Usage
		left := int64(t.Width) * (m.now - t.at + 60_000)
		for _, other := range t.attempts {
			left -= other.counted
		}
		a.counted = min(r.Usage.WallMS, t.LimitMS, left)
		a.charge = chargeOf(t.Terms, pcm.Usage{WallMS: a.counted})
		return set(&a.state, pcm.AttemptFinished)
	})
}

// driven finds a job that a peer drives now.
func (m *model) driven(by pcm.PeerID, job pcm.JobID, term uint64) *mJob {
	if j := m.jobs[job]; j != nil && j.ended == "" && j.driver == by && j.term == term {
		return j
	}
	return nil
}

func (m *model) accept(by pcm.PeerID, op *pcm.Accept) (v verdict) {
	j, t := m.driven(by, op.Job, op.Term), m.trades[op.Trade]
	if j == nil || t == nil || !t.open() || t.Job != op.Job {
		return verdict{}
	}
	v = on(tasksOf(op.Results), func(i int) bool {
		r := op.Results[slices.IndexFunc(op.Results, func(r pcm.Result) bool { return r.Index == i })]
		a := t.attempts[i]
		if a == nil || a.result == nil || *a.result != r || j.tasks[t.Step][i].state != pcm.TaskPlaced || j.tasks[t.Step][i].trade != op.Trade {
			return false
		}
		j.spent += a.charge
		state := pcm.TaskFailed
		switch r.Outcome {
		case pcm.OutcomeOK:
			state = pcm.TaskDone
		case pcm.OutcomeStopped:
			state = pcm.TaskCancelled
		}
		return set(&j.tasks[t.Step][i].state, state)
	})
	if v.ok {
		j.endIfDone()
	}
	return v
}

func (m *model) abandon(by pcm.PeerID, op *pcm.Abandon) (v verdict) {
	j := m.driven(by, op.Job, op.Term)
	if j == nil || len(op.Reason) > 256 || op.Fault != pcm.FaultSeller && op.Fault != pcm.FaultTask || !walkable(op.Tasks) {
		return verdict{}
	}
	terms, ok := j.placed[op.Trade]
	if !ok || !op.Tasks.Valid(len(j.tasks[terms.Step])) {
		return verdict{}
	}
	v = on(op.Tasks, func(i int) bool {
		tk := &j.tasks[terms.Step][i]
		if tk.state != pcm.TaskPlaced || tk.trade != op.Trade {
			return false
		}
		a := &mAttempt{} // never awarded
		if t := m.trades[op.Trade]; t != nil && t.attempts[i] != nil {
			a = t.attempts[i]
		}
		switch {
		case a.state.Live():
			return false
		case op.Fault == pcm.FaultSeller:
			if a.state == pcm.AttemptFinished || a.state == pcm.AttemptSettled {
				return false
			}
		case a.result == nil || tk.failures >= j.Steps[terms.Step].Retries && !j.Steps[terms.Step].Service || j.stopping:
			return false
		default:
			tk.failures++
			j.spent += a.charge
		}
		if tk.state = pcm.TaskWaiting; j.stopping {
			tk.state = pcm.TaskCancelled
		}
		return true
	})
	if v.ok {
		j.endIfDone()
	}
	return v
}

func (m *model) buyerSide(by pcm.PeerID, me *mMember, t *mTrade) bool {
	return me.account == t.Buyer || by == m.jobs[t.Job].driver
}

func (m *model) pay(by pcm.PeerID, me *mMember, op *pcm.Settle) bool {
	t := m.trades[op.Trade]
	if t == nil || !t.open() || !m.buyerSide(by, me, t) || !op.Tasks.Valid(pcm.MaxTasks) {
		return false
	}
	var sum pcm.Micro
	for i := range op.Tasks.All {
		a := t.attempts[i]
		if a == nil || a.state != pcm.AttemptFinished && (a.state != pcm.AttemptDisputed || me.account != t.Buyer) {
			return false
		}
		if tk := m.jobs[t.Job].tasks[t.Step][i]; tk.state == pcm.TaskPlaced && tk.trade == op.Trade {
			return false
		}
		sum += a.charge
	}
	if sum > op.Amount {
		return false
	}
	for i := range op.Tasks.All {
		t.attempts[i].state = pcm.AttemptSettled
	}
	m.paid = append(m.paid, mPaid{m.key(t.Terms), sum})
	return true
}

func (m *model) dispute(by pcm.PeerID, me *mMember, op *pcm.Dispute) bool {
	t := m.trades[op.Trade]
	if t == nil || !t.open() || !m.buyerSide(by, me, t) || !op.Tasks.Valid(pcm.MaxTasks) || op.Reason == "" || len(op.Reason) > 256 {
		return false
	}
	for i := range op.Tasks.All {
		if a := t.attempts[i]; a == nil || a.state != pcm.AttemptFinished {
			return false
		}
	}
	for i := range op.Tasks.All {
		t.attempts[i].state, t.attempts[i].disputed = pcm.AttemptDisputed, m.now
	}
	return true
}
