package node

import (
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/placement"
)

// place plans where waiting tasks go: for each portion one command of Place and
// Award. It tells how long to wait before looking again if nothing can be done.
func (d *driver) place(most int) ([]step, time.Duration) {
	const idle = 30 * time.Second
	if d.model.stopping != "" || d.model.ended {
		return nil, idle
	}
	var round []step
	wait := idle
	why, blocked, active := "", false, len(d.trades)+len(d.abroad) > 0
	var sites []placement.Site
	for s := range d.model.steps {
		if d.model.steps[s].waiting == 0 {
			continue
		}
		service := d.model.steps[s].service != nil
		active = active || service
		waiting, next := d.waiting(s, time.Now())
		if next > 0 {
			wait = min(wait, next)
		}
		if len(waiting) == 0 {
			continue
		}
		switch ready, dead := d.needs(s); {
		case dead:
			blocked = true
			continue
		case !ready:
			continue
		}
		if sites == nil {
			sites = d.n.freshSites(d.model.buyer, d.abroadLevel())
		}
		active = true
		r, ranked, err := d.match(s, sites)
		if err != nil {
			why = err.Error()
			continue
		}
		strategy, err := placement.FindStrategy(d.held.spec.Strategy)
		if err != nil {
			why = err.Error()
			continue
		}
		placed := 0
		for _, attempt := range sortedKeys(waiting) {
			tasks := waiting[attempt]
			portions := strategy.Deal(len(tasks), ranked, func(c placement.Candidate) int {
				if n, ok := d.batch[placeKey{Peer: c.Peer, Pool: c.Pool.ID}]; ok {
					return n
				}
				return pcm.MaxBatch
			})
			for _, p := range portions {
				if len(round) >= most {
					break
				}
				if service { // none may wait for another one's end: that does not come
					p.Tasks = p.Width
				}
				if p.Away {
					round = append(round, d.placeAbroad(d.termsAbroad(r, s, attempt, tasks[:p.Tasks], p)))
				} else {
					round = append(round, d.award(d.terms(r, s, attempt, tasks[:p.Tasks], p)))
				}
				tasks = tasks[p.Tasks:]
				placed += p.Tasks
				takeRoom(sites, ranked, p, r.Each)
			}
		}
		if placed == 0 {
			why = placement.Why(ranked)
			// Room comes back by events; a site to avoid, or one that joins, by time.
			wait = min(wait, 500*time.Millisecond)
		}
	}
	d.setWhy(why)
	if blocked && !active && len(round) == 0 {
		return d.cancelRest(), wait
	}
	return round, wait
}

// needs tells whether the steps that step s needs are complete, or can't become so.
func (d *driver) needs(s int) (ready, dead bool) {
	ready = true
	for _, need := range d.held.spec.Steps[s].Needs {
		for i, other := range d.held.spec.Steps {
			if other.Name != need {
				continue
			}
			m := &d.model.steps[i]
			dead = dead || m.failed+m.cancelled > 0
			ready = ready && m.done == len(m.tasks)
		}
	}
	return ready && !dead, dead
}

// waiting are the waiting tasks of a step that are to be placed now, by the
// attempt that comes next, in order; and after what time more of them are, 0 if
// no time brings that.
func (d *driver) waiting(s int, now time.Time) (by map[int][]int, next time.Duration) {
	st := &d.model.steps[s]
	by = map[int][]int{}
	for i, tk := range st.tasks {
		if tk.state != pcm.TaskWaiting || st.parked(i) {
			continue
		}
		if rest := d.resting(s, i, now); rest > 0 {
			if next == 0 || rest < next {
				next = rest
			}
			continue
		}
		by[tk.attempt+1] = append(by[tk.attempt+1], i)
	}
	return by, next
}

// takeRoom takes a portion out of what is known to be free, for the rest of the round.
func takeRoom(sites []placement.Site, ranked []placement.Candidate, p placement.Portion, each pcm.Resources) {
	used := each.Times(p.Width)
	for i := range sites {
		if sites[i].Peer == p.Peer && sites[i].Pool.ID == p.Pool.ID {
			sites[i].Free, sites[i].Slots = sites[i].Free.Minus(used), sites[i].Slots-p.Width
			sites[i].Reserved, sites[i].Tasks = sites[i].Reserved.Plus(used), sites[i].Tasks+p.Width
		}
	}
	for i := range ranked {
		if c := &ranked[i]; c.Peer == p.Peer && c.Pool.ID == p.Pool.ID {
			c.Free, c.Slots = c.Free.Minus(used), c.Slots-p.Width
			if c.OK() {
				c.Room = c.Free.Fits(each, c.Slots)
			}
		}
	}
}

// terms writes down what is proposed to a seller.
func (d *driver) terms(r placement.Request, s, attempt int, tasks []int, p placement.Portion) pcm.Terms {
	d.model.fence++
	return pcm.Terms{
		Job: d.job, Step: s, Tasks: pcm.SpansOf(tasks), Attempt: attempt, Fence: d.model.fence,
		Buyer: d.model.buyer, Spec: d.held.digest, Driver: d.n.self, Cell: p.Cell, Seller: p.Peer, Pool: p.Pool.ID,
		Offer: p.Offer, Price: p.Pool.Price, Each: r.Each, Width: p.Width, LimitMS: r.Limit.Milliseconds(), Adapter: p.Pool.Adapter,
	}
}

// termsAbroad are terms for a seller in another cell.
func (d *driver) termsAbroad(r placement.Request, s, attempt int, tasks []int, p placement.Portion) pcm.Terms {
	t := d.terms(r, s, attempt, tasks, p)
	t.Home = d.n.id.Mesh.Cell
	if away, err := d.n.aways.to(p.Cell); err == nil {
		t.AwardBy = away.LogTime() + pcm.CommandWindow/2
	}
	return t
}
