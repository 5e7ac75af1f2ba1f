package ledger_test

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// TestRandom drives the ledger and the model with the same random commands, good
// and bad. After each, both agree on what was taken and on all that is seen of
// it, and the invariants hold; every so often the whole of [cell.audit] does.
func TestRandom(t *testing.T) {
	// A history needs many steps before anything in it can be lost, disputed or paid.
	if f := flag.Lookup("rapid.steps"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("250"); err != nil {
			t.Fatal(err)
		}
		defer f.Value.Set(f.DefValue)
	}
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		r := newRandom(rt, seen)
		rt.Repeat(map[string]func(*rapid.T){
			"":         r.compare,
			"enroll":   r.enroll,
			"capacity": r.capacity,
			"submit":   r.submit,
			"buy":      r.buy,
			"buy more": r.buy,
			"place":    r.place,
			"award":    r.award,
			"start":    r.sellerSays,
			"seller":   r.sellerSays,
			"end":      r.finish,
			"finish":   r.finish,
			"accept":   r.accept,
			"abandon":  r.abandon,
			"settle":   r.settle,
			"dispute":  r.dispute,
			"renew":    r.renew,
			"drive":    r.drive,
			"stop":     r.stop,
			"cancel":   r.cancel,
			"burn":     r.burn,
			"time":     r.time,
			"leader":   r.leader,
			"snapshot": r.snapshot,
			"repeat":   r.again,
		})
		r.mustAudit(rt)
	})
	// The test is worth something only if it came by everything, good and bad.
	for _, kind := range []string{
		"enroll", "capacity", "renew", "submit", "drive", "place", "award", "reject", "start", "meter", "finish",
		"accept", "abandon", "settle", "dispute", "stop", "cancel", "burn",
	} {
		if seen[kind+" true"] == 0 || seen[kind+" false"] == 0 && kind != "submit" {
			t.Errorf("%s was taken %d times and refused %d times: no good test of it", kind, seen[kind+" true"], seen[kind+" false"])
		}
	}
	for _, fact := range []string{"lost", "ended", "closed", "overdue"} {
		if seen[fact] == 0 {
			t.Errorf("nothing was ever %s", fact)
		}
	}
	t.Log(seen)
}

type random struct {
	*cell
	model  *model
	actors []*actor
	sealed []pcm.Signed
	got    [][]byte // encoded results of sealed
	terms  []pcm.Terms
	steps  int
	names  int
	seen   map[string]int
}

func newRandom(t *rapid.T, seen map[string]int) *random {
	r := &random{cell: newCell(), seen: seen}
	r.model = newModel(r.cell)
	for _, who := range [][2]string{{"anna", "anna"}, {"abel", "anna"}, {"bert", "bert"}, {"carl", "carl"}} {
		r.actors = append(r.actors, r.actor(who[0], who[1]))
	}
	for _, a := range r.actors[:2+r.n(t, "enrolled at first", 3)] {
		r.run(t, a, pcm.Op{Enroll: &pcm.Enroll{Passport: a.passport}})
	}
	for _, a := range r.actors[1:3] {
		r.run(t, a, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{pool(4)}, Credit: 2_000_000}})
	}
	return r
}

func (r *random) n(t *rapid.T, label string, below int) int {
	return rapid.IntRange(0, below-1).Draw(t, label)
}

// rarely is true one time in n.
func (r *random) rarely(t *rapid.T, label string, n int) bool { return r.n(t, label, n) == n-1 }

func (r *random) anyone(t *rapid.T) *actor { return r.actors[r.n(t, "who", len(r.actors))] }

// mostly is the actor of a peer, or now and then another.
func (r *random) mostly(t *rapid.T, id pcm.PeerID) *actor {
	i := slices.IndexFunc(r.actors, func(a *actor) bool { return a.peer == id })
	if i < 0 || r.rarely(t, "somebody else", 10) {
		return r.anyone(t)
	}
	return r.actors[i]
}

// run applies a command to both and compares the verdicts.
func (r *random) run(t *rapid.T, a *actor, ops ...pcm.Op) {
	signed := a.key.Seal(pcm.DomainCommand, r.command(a, ops...))
	r.model.settle(r.stamp, r.wall, false)
	want := r.model.judge(a.peer, ops)
	fx := r.apply(false, signed)
	r.facts(fx)
	got := fx.Results[0]
	if got.Err == nil && r.model.members[a.peer] != nil { // else it isn't remembered: it may be good later
		r.sealed, r.got = append(r.sealed, signed), append(r.got, pcm.MustMarshal(got))
	}
	if got.Err != nil { // refused as a whole: nothing of it was tried
		if want[0].ok {
			t.Fatalf("%s by %s is refused, the model takes it: %s", ops[0].Kind(), a.name, got.Err)
		}
		return
	}
	if len(got.Ops) != len(want) {
		t.Fatalf("%d operations of %s were tried, %d by the model: %v", len(got.Ops), a.name, len(want), got.First())
	}
	for i, v := range want {
		o := got.Ops[i]
		r.seen[fmt.Sprint(ops[i].Kind(), " ", v.ok)]++
		if (o.Err == nil) != v.ok {
			t.Fatalf("%s by %s: taken is %v, in the model %v: %v", ops[i].Kind(), a.name, o.Err == nil, v.ok, o.Err)
		}
		if v.ok && !slices.Equal(o.Skipped, pcm.SpansOf(v.skipped)) {
			t.Fatalf("%s by %s skips %v, in the model %v", ops[i].Kind(), a.name, o.Skipped, v.skipped)
		}
	}
}

func (r *random) facts(fx pcm.Effects) {
	for _, e := range fx.Events {
		switch f := e.Fact; {
		case f == nil:
		case f.Lost != nil:
			r.seen["lost"]++
		case f.Ended != nil:
			r.seen["ended"]++
		case f.Closed != nil:
			r.seen["closed"]++
		case f.Overdue != nil:
			r.seen["overdue"]++
		}
	}
}

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
		s.Steps = append(s.Steps, pcm.Shape{Count: 1 + r.n(t, "count", 4), Retries: r.n(t, "retries", 3)})
	}
	if r.rarely(t, "budget", 3) {
		s.Budget = pcm.Micro(r.n(t, "of", 20)) * 100_000
	}
	if r.rarely(t, "deadline", 5) {
		s.LastMS = int64(r.n(t, "after", 30_000))
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
	if p := r.model.pools[ledger.PoolKey{Peer: seller.peer, Pool: "local"}]; p != nil {
		terms.Offer, terms.Price = p.offer, p.Price
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
			sum += chargeOf(tr.Terms, a.result.Usage)
		}
	}
	if r.rarely(t, "wrong sum", 12) {
		sum++
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

func (r *random) time(t *rapid.T) {
	r.facts(r.pass(time.Duration(r.n(t, "ms", 9000)) * time.Millisecond))
	r.model.settle(r.stamp, r.wall, false)
}

func (r *random) leader(t *rapid.T) {
	r.stamp += int64(r.n(t, "ms", 14_000))
	r.facts(r.apply(true))
	r.model.settle(r.stamp, r.wall, true)
}

// snapshot goes on with a state that was restored.
func (r *random) snapshot(t *rapid.T) {
	data, err := r.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r.state = ledger.New(r.genesis)
	if err := r.state.Restore(data); err != nil {
		t.Fatal(err)
	}
}

// again applies a copy of an earlier command: its answer is the same or a
// refusal by time, and nothing follows.
func (r *random) again(t *rapid.T) {
	i := len(r.sealed) - 1 - r.n(t, "back", min(len(r.sealed), 12))
	before, _ := r.state.Root()
	fx := r.apply(false, r.sealed[i])
	if after, _ := r.state.Root(); after != before || len(fx.Events) > 0 {
		t.Fatalf("a copy of a command had an effect")
	}
	var cmd pcm.Command
	if err := pcm.Unmarshal(r.sealed[i].Payload, &cmd); err != nil {
		t.Fatal(err)
	}
	switch res := fx.Results[0]; {
	case res.Err != nil && (res.Err.Code == pcm.Conflict || res.Err.Code == pcm.Unauthorized) && r.stamp > cmd.NotAfter:
	case string(pcm.MustMarshal(res)) != string(r.got[i]):
		t.Fatalf("a copy of a command was answered otherwise: %v", res.First())
	}
}

// compare holds the state against the model.
func (r *random) compare(t *rapid.T) {
	if err := r.state.Check(); err != nil {
		t.Fatal(err)
	}
	m := r.model
	for id, want := range m.jobs {
		j, _ := r.job(id)
		if j == nil {
			t.Fatalf("%s is gone", want.Name)
		}
		state := pcm.JobOpen
		if want.ended != "" {
			state = want.ended
		}
		if j.State != state || j.Driver != want.driver || j.Term != want.term || j.Stopping != want.stopping || j.Fence != want.fence || j.Held != want.held() || j.Paid != want.spent {
			t.Fatalf("%s is %s, held %s, paid %s, fence %d; in the model %s, %s, %s, %d", want.Name, j.State, j.Held, j.Paid, j.Fence, state, want.held(), want.spent, want.fence)
		}
		for s, step := range want.tasks {
			for i, tk := range step {
				if got := j.Steps[s].Tasks[i]; got.State != tk.state || got.Attempt != tk.attempt || got.Failures != tk.failures {
					t.Fatalf("task %d/%d of %s is %s after %d attempts, in the model %s after %d", s, i, want.Name, got.State, got.Attempt, tk.state, tk.attempt)
				}
			}
		}
	}
	owed := map[ledger.BalanceKey]bool{}
	for id, want := range m.trades {
		tr, archived := r.trade(id)
		if tr == nil || archived == want.open() {
			t.Fatalf("%s is open: %v; archived: %v", id, want.open(), archived)
		}
		for i, a := range want.attempts {
			if got := tr.Attempt(i); got.State != a.state || (got.Stop != "") != a.stop || got.Metered != a.used {
				t.Fatalf("attempt %s/%d is %s, in the model %s", id, i, got.State, a.state)
			}
		}
		if k := m.key(want.Terms); k.Buyer != k.Seller {
			owed[k] = true
		}
	}
	for k, b := range r.state.Balances {
		if m.balance(k) != b {
			t.Fatalf("balance is %v, in the model %v", b, m.balance(k))
		}
		delete(owed, k)
	}
	for k := range owed {
		if b := m.balance(k); b != (ledger.Balance{}) {
			t.Fatalf("no balance, in the model %v", b)
		}
	}
	for k, want := range m.pools {
		reserved, slots := m.reserved(k)
		p, ok := r.state.Pool(k)
		if ok != (want.declared || slots > 0) || ok && (p.Reserved != reserved || p.Slots != slots || p.Closed == want.declared) {
			t.Fatalf("pool %s: %+v; in the model %s in %d slots are reserved, declared: %v", k.Pool, p, reserved, slots, want.declared)
		}
	}
	if r.steps++; r.steps%20 == 0 {
		r.mustAudit(t)
	}
}
