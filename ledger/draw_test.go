package ledger_test

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

func (r *random) enroll(t *rapid.T) {
	if len(r.model.members) == len(r.actors) && !r.rarely(t, "really", 4) {
		return
	}
	a, other := r.anyone(t), r.anyone(t)
	if r.rarely(t, "a month passes", 30) {
		r.wall += (31 * 24 * time.Hour).Milliseconds()
	}
	if r.n(t, "renewed", 2) == 0 {
		r.renewPassport(a)
	}
	if r.n(t, "own", 4) > 0 {
		other = a
	}
	r.run(t, a, pcm.Op{Enroll: &pcm.Enroll{Passport: other.passport}})
}

func (r *random) capacity(t *rapid.T) {
	if !r.rarely(t, "really", 4) {
		return
	}
	a := r.anyone(t)
	c := &pcm.Capacity{Offer: uint64(r.n(t, "offer", 2)), Credit: pcm.Micro(r.n(t, "credit", 30)) * 100_000}
	if m := r.model.members[a.peer]; m != nil {
		c.Offer += m.offer
	}
	if r.n(t, "local", 4) > 0 {
		p := pool(r.n(t, "slots", 6))
		p.Price.PerTask = pcm.Micro(r.n(t, "price", 3)) * 100_000
		if p.Price.PerTask == 0 {
			p.Price = pcm.Price{Unit: pcm.DefaultUnit}
		}
		if r.rarely(t, "accelerators", 3) {
			p.Capacity.GPU, p.Price.PerGPUHour = int64(r.n(t, "gpus", 5)), pcm.Micro(r.n(t, "gpu price", 3))*7_777_777
		}
		for range r.n(t, "tariffs", 3) {
			p.Tariffs = append(p.Tariffs, p.Price.Percent(r.n(t, "percent", 200)))
		}
		p.OwnOnly = r.rarely(t, "own only", 6)
		c.Pools = append(c.Pools, p)
	}
	if r.rarely(t, "other", 3) {
		p := pool(3)
		p.ID, p.MaxTime = "other", 50_000
		c.Pools = append(c.Pools, p)
	}
	if r.rarely(t, "twice", 20) && len(c.Pools) > 0 {
		c.Pools = append(c.Pools, c.Pools[0])
	}
	r.run(t, a, pcm.Op{Capacity: c})
}

func (r *random) submit(t *rapid.T) {
	r.names++
	name := fmt.Sprint("job ", r.names)
	s := &pcm.Submit{
		Job: jobID(name), Name: name, Spec: pcm.DigestOf([]byte(name)), Unit: pcm.DefaultUnit,
		Takeover: []pcm.Takeover{"account", "any", "any", "none"}[r.n(t, "takeover", 4)],
	}
	for range 1 + r.n(t, "steps", 2) {
		st := pcm.Shape{Count: 1 + r.n(t, "count", 4), Retries: r.n(t, "retries", 3)}
		if r.rarely(t, "service", 3) {
			st.Service, st.Retries, st.Scale = true, 0, r.n(t, "scale", st.Count+1)
		}
		if r.rarely(t, "odd scale", 20) {
			st.Scale += st.Count
		}
		s.Steps = append(s.Steps, st)
	}
	if r.rarely(t, "budget", 3) {
		s.Budget = pcm.Micro(r.n(t, "of", 20)) * 100_000
	}
	if r.rarely(t, "deadline", 5) {
		s.LastMS = int64(r.n(t, "after", 30_000))
	}
	if r.rarely(t, "pay after", 5) {
		s.PayAfterMS = int64(r.n(t, "pay", 3)) * 4 * 24 * 3_600_000
	}
	r.run(t, r.anyone(t), pcm.Op{Submit: s})
}

// someJob is mostly one that is open.
func (r *random) someJob(t *rapid.T) *mJob {
	var open, all []*mJob
	for _, id := range sortedKeys(r.model.jobs) {
		j := r.model.jobs[id]
		if all = append(all, j); j.ended == "" {
			open = append(open, j)
		}
	}
	if len(open) > 0 && !r.rarely(t, "any job", 12) {
		return open[r.n(t, "job", len(open))]
	}
	if len(all) == 0 {
		return nil
	}
	return all[r.n(t, "job", len(all))]
}

// someTrade is mostly one of those for which the condition holds.
func (r *random) someTrade(t *rapid.T, is func(*mTrade) bool) *mTrade {
	var good, all []*mTrade
	for _, id := range sortedKeys(r.model.trades) {
		tr := r.model.trades[id]
		if all = append(all, tr); is(tr) {
			good = append(good, tr)
		}
	}
	if len(good) > 0 && !r.rarely(t, "any trade", 10) {
		return good[r.n(t, "trade", len(good))]
	}
	if len(all) == 0 {
		return nil
	}
	return all[r.n(t, "trade", len(all))]
}

func (r *random) someTasks(t *rapid.T, of pcm.Spans) pcm.Spans {
	var some []int
	for i := range of.All {
		if r.n(t, "task", 3) > 0 {
			some = append(some, i)
		}
	}
	switch r.n(t, "also", 24) {
	case 0:
		some = append(some, 7)
	case 1:
		return pcm.Spans{{Lo: 3, Hi: 1}}
	}
	if len(some) == 0 {
		return of
	}
	return pcm.SpansOf(some)
}

// draw makes terms for tasks of a job that wait, mostly good ones.
func (r *random) draw(t *rapid.T) (*mJob, *actor, pcm.Terms) {
	j := r.someJob(t)
	if j == nil {
		return nil, nil, pcm.Terms{}
	}
	driver, seller := r.mostly(t, j.driver), r.actors[1+r.n(t, "seller", len(r.actors)-1)]
	step := r.n(t, "step", len(j.tasks))
	var waiting []int
	attempt := 1
	for i, tk := range j.tasks[step] {
		if tk.state == pcm.TaskWaiting && (len(waiting) == 0 || tk.attempt+1 == attempt) {
			waiting, attempt = append(waiting, i), tk.attempt+1
		}
	}
	if len(waiting) == 0 {
		waiting = []int{0}
	}
	terms := pcm.Terms{
		Job: j.Job, Step: step, Tasks: pcm.SpansOf(waiting), Attempt: attempt, Fence: j.fence + 1, Buyer: j.buyer,
		Spec: j.Spec, Driver: driver.peer, Cell: r.genesis.Cell, Seller: seller.peer, Pool: "local", Price: price,
		Each: medium, Width: 1 + r.n(t, "width", len(waiting)), LimitMS: 100_000, Adapter: "process",
	}
	if r.rarely(t, "short", 2) {
		terms.LimitMS = 2_000
	}
	if p := r.model.pools[ledger.PoolKey{Peer: seller.peer, Pool: "local"}]; p != nil {
		terms.Offer, terms.Price = p.offer, p.Price
		if n := len(p.Tariffs); n > 0 && r.rarely(t, "at a tariff", 2) {
			terms.Price = p.Tariffs[r.n(t, "tariff", n)]
		}
	}
	if r.rarely(t, "accelerator", 4) {
		terms.Each.GPU = int64(1 + r.n(t, "gpus", 2))
	}
	switch r.n(t, "flaw", 26) {
	case 0:
		terms.Fence = j.fence
	case 1:
		terms.Attempt++
	case 2:
		terms.Price.PerTask++
	case 3:
		terms.Offer++
	case 4:
		terms.Pool = "other"
	case 5:
		terms.Width = len(waiting) + 1
	case 6:
		terms.Buyer = r.anyone(t).buyer
	case 7:
		terms.Driver = r.anyone(t).peer
	case 8:
		terms.Tasks = pcm.Spans{{Lo: 0, Hi: 9}}
	case 9:
		terms.LimitMS = 0
	case 10:
		terms.Step = 2
	case 11:
		terms.Seller = "nobody"
	case 12:
		terms.Each.CPU = 3500
	case 13:
		terms.Fence += 1 << 40
	}
	return j, driver, terms
}

func (r *random) buy(t *rapid.T) {
	j, driver, terms := r.draw(t)
	if j == nil {
		return
	}
	term := j.term
	if r.rarely(t, "old term", 20) {
		term--
	}
	r.terms = append(r.terms, terms)
	r.run(t, driver, pcm.Op{Place: &pcm.Place{Term: term, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
}

func (r *random) place(t *rapid.T) {
	j, driver, terms := r.draw(t)
	if j == nil {
		return
	}
	r.terms = append(r.terms, terms)
	r.run(t, driver, pcm.Op{Place: &pcm.Place{Term: j.term, Terms: terms}})
}

// award awards what was drawn up before, mostly what was placed last.
func (r *random) award(t *rapid.T) {
	if len(r.terms) == 0 {
		return
	}
	terms := r.terms[len(r.terms)-1-r.n(t, "back", min(len(r.terms), 4))]
	if r.rarely(t, "wider", 12) {
		terms.Width++
	}
	if r.rarely(t, "dearer", 12) {
		terms.Price.PerTask++
	}
	r.run(t, r.mostly(t, terms.Driver), pcm.Op{Award: &pcm.Award{Terms: terms}})
}

func (r *random) live(tr *mTrade) bool { return tr.count(pcm.AttemptState.Live) > 0 }

func (r *random) sellerSays(t *rapid.T) {
	tr := r.someTrade(t, r.live)
	if tr == nil {
		return
	}
	a, tasks, id := r.mostly(t, tr.Seller), r.someTasks(t, tr.Tasks), tr.Trade()
	switch r.n(t, "word", 6) {
	case 0:
		reason := "full"
		if r.rarely(t, "no reason", 8) {
			reason = ""
		}
		r.run(t, a, pcm.Op{Reject: &pcm.Reject{Trade: id, Tasks: tasks, Reason: reason}})
	case 1:
		r.run(t, a, pcm.Op{Meter: &pcm.Meter{Trade: id, Index: tasks[0].Lo, Usage: r.usage(t)}})
	default:
		r.run(t, a, pcm.Op{Start: &pcm.Start{Trade: id, Tasks: tasks}})
	}
}

func (r *random) usage(t *rapid.T) pcm.Usage {
	ms := int64(r.n(t, "ran", 40_000))
	if r.rarely(t, "odd use", 15) {
		ms = []int64{-1, 10_000_000}[r.n(t, "odd", 2)]
	}
	return pcm.Usage{WallMS: ms, CPUMS: ms / 2}
}

func (r *random) finish(t *rapid.T) {
	tr := r.someTrade(t, r.live)
	if tr == nil {
		return
	}
	var rs []pcm.Result
	for i := range r.someTasks(t, tr.Tasks).All {
		res := pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: r.usage(t), Output: pcm.DigestOf(fmt.Append(nil, r.steps, i))}
		switch r.n(t, "outcome", 10) {
		case 0, 1, 2:
			res.Outcome, res.ExitCode = pcm.OutcomeFailed, 1
		case 3:
			res.Outcome = pcm.OutcomeSeller
		case 4:
			res.Outcome = pcm.OutcomeStopped
		case 5:
			res.ExitCode = 1
		case 6:
			res.Outcome = "unheard of"
		}
		rs = append(rs, res)
	}
	if len(rs) > 0 && r.rarely(t, "double", 12) {
		rs = append(rs, rs[0])
	}
	r.run(t, r.mostly(t, tr.Seller), pcm.Op{Finish: &pcm.Finish{Trade: tr.Trade(), Results: rs}})
}

func (r *random) finished(tr *mTrade) bool {
	return tr.count(func(s pcm.AttemptState) bool { return s == pcm.AttemptFinished || s == pcm.AttemptDisputed }) > 0
}

func (r *random) accept(t *rapid.T) {
	tr := r.someTrade(t, r.finished)
	if tr == nil {
		return
	}
	j := r.model.jobs[tr.Job]
	var rs []pcm.Result
	for i := range r.someTasks(t, tr.Tasks).All {
		if a := tr.attempts[i]; a != nil && a.result != nil {
			res := *a.result
			if r.rarely(t, "altered", 15) {
				res.Usage.CPUMS++
			}
			rs = append(rs, res)
		} else if r.rarely(t, "invented", 3) {
			rs = append(rs, pcm.Result{Index: i, Outcome: pcm.OutcomeOK})
		}
	}
	r.run(t, r.mostly(t, j.driver), pcm.Op{Accept: &pcm.Accept{Job: j.Job, Term: j.term - uint64(r.n(t, "old term", 20)/19), Trade: tr.Trade(), Results: rs}})
}

func (r *random) abandon(t *rapid.T) {
	j := r.someJob(t)
	if j == nil || len(j.placed) == 0 {
		return
	}
	ids := sortedKeys(j.placed)
	id := ids[r.n(t, "placement", len(ids))]
	r.run(t, r.mostly(t, j.driver), pcm.Op{Abandon: &pcm.Abandon{
		Job: j.Job, Term: j.term, Trade: id, Tasks: r.someTasks(t, j.placed[id].Tasks),
		Fault: []pcm.Fault{pcm.FaultSeller, pcm.FaultTask, pcm.FaultTask, "nobody"}[r.n(t, "fault", 4)], Reason: "so",
	}})
}

func (r *random) settle(t *rapid.T) {
	tr := r.someTrade(t, r.finished)
	if tr == nil {
		return
	}
	var due []int
	var sum pcm.Micro
	for i := range r.someTasks(t, tr.Tasks).All {
		a := tr.attempts[i]
		if a == nil || a.result == nil || a.state != pcm.AttemptFinished && a.state != pcm.AttemptDisputed {
			if !r.rarely(t, "not due", 8) {
				continue
			}
		}
		if due = append(due, i); a != nil && a.result != nil {
			sum += a.charge
		}
	}
	switch r.n(t, "other sum", 12) {
	case 0:
		sum++
	case 1:
		sum--
	}
	by := r.mostly(t, r.model.jobs[tr.Job].driver)
	r.run(t, by, pcm.Op{Settle: &pcm.Settle{Trade: tr.Trade(), Tasks: pcm.SpansOf(due), Amount: sum}})
}

func (r *random) dispute(t *rapid.T) {
	tr := r.someTrade(t, r.finished)
	if tr == nil || !r.rarely(t, "really", 3) {
		return
	}
	r.run(t, r.mostly(t, r.model.jobs[tr.Job].driver), pcm.Op{Dispute: &pcm.Dispute{Trade: tr.Trade(), Tasks: r.someTasks(t, tr.Tasks), Reason: "no"}})
}

func (r *random) renew(t *rapid.T) {
	a := r.anyone(t)
	inc := uint64(r.n(t, "ahead", 2))
	if m := r.model.members[a.peer]; m != nil {
		inc += m.incarnation
	}
	if r.rarely(t, "older", 6) {
		inc = 0
	}
	r.run(t, a, pcm.Op{Renew: &pcm.Renew{Incarnation: inc}})
}

func (r *random) drive(t *rapid.T) {
	if j := r.someJob(t); j != nil {
		r.run(t, r.anyone(t), pcm.Op{Drive: &pcm.Drive{Job: j.Job, Term: j.term + 1 - uint64(r.n(t, "same term", 8)/7)}})
	}
}

func (r *random) stop(t *rapid.T) {
	if tr := r.someTrade(t, r.live); tr != nil {
		r.run(t, r.mostly(t, r.model.jobs[tr.Job].driver), pcm.Op{Stop: &pcm.Stop{Trade: tr.Trade(), Tasks: r.someTasks(t, tr.Tasks), Reason: "enough"}})
	}
}

func (r *random) cancel(t *rapid.T) {
	if j := r.someJob(t); j != nil && r.rarely(t, "really", 4) {
		r.run(t, r.mostly(t, j.submitter), pcm.Op{Cancel: &pcm.Cancel{Job: j.Job, Reason: "enough"}})
	}
}

func (r *random) scale(t *rapid.T) {
	if j := r.someJob(t); j != nil {
		step := r.n(t, "step", len(j.tasks))
		s := &pcm.Scale{Job: j.Job, Step: step, Count: r.n(t, "to", len(j.tasks[step])+2)}
		if r.rarely(t, "flaw", 12) {
			s.Step, s.Count = s.Step+1, s.Count-1
		}
		r.run(t, r.mostly(t, j.submitter), pcm.Op{Scale: s})
	}
}

func (r *random) burn(t *rapid.T) {
	if !r.rarely(t, "really", 4) {
		return
	}
	issuer := r.anyone(t)
	inv := pcm.Invite{
		Mesh: r.genesis.Mesh, Root: r.genesis.Root, Cell: r.genesis.Cell, Issuer: issuer.peer,
		Hash: pcm.DigestOf(fmt.Append(nil, "secret ", r.n(t, "token", 3))), NotAfter: r.wall + int64(r.n(t, "valid", 2)-1)*600_000 + 600_000,
	}
	if r.rarely(t, "expired", 4) {
		inv.NotAfter = r.wall - 600_000
	}
	r.run(t, r.anyone(t), pcm.Op{Burn: &pcm.Burn{Invite: issuer.key.Seal(pcm.DomainInvite, inv), Peer: r.anyone(t).peer}})
}
