package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// abroadJob is what a trade abroad has to know of the driver's job.
func (d *driver) abroadJob(t *abroadTrade) abroadJob {
	return abroadJob{
		id: d.job, term: d.term, unpaid: d.model.unpaid,
		undecided: func(i int) bool { return d.placed(t.id, t.terms.Step, i) },
		unwanted: func(i int) string {
			if st := &d.model.steps[t.terms.Step]; d.model.stopping == "" && st.parked(i) {
				return fmt.Sprintf("scaled to %d", st.scale)
			}
			return d.model.stopping
		},
		goesOn: func(i int, r pcm.Result) (string, bool) { return d.goesOn(t.terms.Step, i, r) },
	}
}

// readAbroad takes the placements abroad of the ledger's job into the model.
func (d *driver) readAbroad(j *ledger.Job) {
	old := d.abroad
	d.abroad = map[pcm.TradeID]*abroadTrade{}
	for k := range j.Places {
		if p := &j.Places[k]; p.Terms != nil {
			placed := p.PlacedAt
			if placed == 0 { // below level 3
				placed = j.SubmittedAt
			}
			d.abroad[p.Trade] = readAbroad(p, old[p.Trade], age(placed, d.n.cell.LogTime(), time.Now()))
			d.abroad[p.Trade].own = d.foreign()
			d.mu.Lock()
			d.shares[p.Terms.Seller] = true
			d.mu.Unlock()
		}
	}
}

// foreign is this peer's account, if it drives for a buyer of another one; else "".
func (d *driver) foreign() pcm.AccountID {
	if d.model.buyer == d.n.account {
		return ""
	}
	return d.n.account
}

// abroadLevel is the level of the rules from which on it can buy in other cells; 0: it
// can't.
func (d *driver) abroadLevel() int {
	switch {
	case d.foreign() == "":
		return levelAbroad
	case d.deputy == nil || !d.deputy.mayBuy():
		return 0
	}
	return levelMandate
}

// placeAbroad makes the command that places tasks at a seller of another cell. The
// award there is the envoy's errand, once the placement is committed here.
func (d *driver) placeAbroad(t pcm.Terms) step {
	d.mu.Lock()
	d.shares[t.Seller] = true
	d.mu.Unlock()
	return step{
		ops: []pcm.Op{{Place: &pcm.Place{Term: d.term, Terms: t}}},
		then: func(r pcm.CommandResult) bool {
			if err := pcm.AsError(r.First()); err != nil {
				if err.Code == pcm.Busy {
					d.avoidFor(t, 5*time.Second, err.Message)
					return false
				}
				return d.placeRefused(t, r)
			}
			d.sendSpec(t.Seller)
			at := newAbroadTrade(t.Trade(), t)
			at.fresh, at.own = true, d.foreign()
			d.abroad[at.id] = at
			for i := range t.Tasks.All {
				d.set(t.Step, i, pcm.TaskPlaced)
				tk := &d.model.steps[t.Step].tasks[i]
				tk.attempt, tk.trade = t.Attempt, at.id
			}
			d.n.rooms.take(t)
			return false
		},
	}
}

// envoys hands each cell abroad what is to be done there, and lets go of those where
// nothing is left to do.
func (d *driver) sendEnvoys() {
	errands, watched := map[pcm.CellID][]errand{}, map[pcm.CellID][]pcm.TradeID{}
	now := time.Now()
	for _, id := range sortedKeys(d.abroad) {
		t := d.abroad[id]
		cell := t.terms.Cell
		if len(watched[cell]) == maxWatched {
			continue // those after them come when some are over
		}
		watched[cell] = append(watched[cell], id)
		if ops := t.there(d.abroadJob(t), now); len(ops) > 0 && len(errands[cell]) < maxRound {
			errands[cell] = append(errands[cell], errand{id, ops})
		}
	}
	for _, cell := range sortedKeys(d.envoys) {
		if len(watched[cell]) == 0 {
			d.envoys[cell].stop()
			delete(d.envoys, cell)
		}
	}
	for cell := range watched {
		e := d.envoys[cell]
		if e == nil {
			e = d.n.newEnvoy(d.n.run, d.job, cell, d.deputy, d.hearFrom)
			d.envoys[cell] = e
		}
		e.want(errands[cell], watched[cell])
	}
}

// maxWatched bounds the trades in one other cell that a driver looks after at a time.
const maxWatched = 256

func (d *driver) recallEnvoys() {
	for _, e := range d.envoys {
		e.stop()
	}
	clear(d.envoys)
}

// hearFrom takes what an envoy tells.
func (d *driver) hearFrom(news tidings) {
	d.mu.Lock()
	d.news = append(d.news, news)
	d.mu.Unlock()
	d.nudge()
}

// hear takes tidings into the model.
func (d *driver) hear(news tidings) {
	if d.envoys[news.from.cell] != news.from {
		return // one that was recalled
	}
	news.from.heard = news.cycle
	for _, id := range sortedKeys(news.results) {
		if t := d.abroad[id]; t != nil {
			d.hearResult(t, news.results[id])
		}
	}
	for _, id := range sortedKeys(news.seen) {
		if t := d.abroad[id]; t != nil {
			d.hearTrade(t, news.seen[id], news.stamp)
		}
	}
}

// hearResult takes in what became of an errand.
func (d *driver) hearResult(t *abroadTrade, r errandResult) {
	k := placeKey{Peer: t.terms.Seller, Pool: t.terms.Pool}
	refused := t.learnResult(r)
	switch {
	case refused == nil && t.awarded:
		delete(d.batch, k)
		delete(d.turned, k)
	case refused != nil && r.ops[0].Award != nil:
		d.refusedAbroad(t.terms, refused)
	case refused != nil:
		d.n.log.Debug("a command of the driver was refused in another cell", "job", d.job, "trade", t.id, "op", r.ops[0].Kind(), "reason", refused)
	}
}

// refusedAbroad: another cell's ledger said no. Each such try has cost a record here, so
// the site is left alone for longer each time.
func (d *driver) refusedAbroad(t pcm.Terms, err *pcm.Error) {
	k := placeKey{Peer: t.Seller, Pool: t.Pool}
	d.turned[k]++
	d.n.log.Info("a seller in another cell can't be had", "job", d.job, "seller", pcm.Short(t.Seller), "cell", t.Cell, "reason", err.Message)
	if n := t.Tasks.Len(); n > 1 && err.Code != pcm.Conflict {
		d.batch[k] = n / 2
	}
	d.avoidFor(t, min(100*time.Millisecond<<min(d.turned[k], 10), time.Minute), err.Message)
	d.n.rooms.stale(t.Cell)
}

// hearTrade takes in how a trade stands in its cell.
func (d *driver) hearTrade(t *abroadTrade, v *ledger.Trade, stamp int64) {
	before := t.seen
	if err := t.learnTrade(v, stamp); err != nil {
		d.n.log.Warn("another cell tells what can't be", "job", d.job, "trade", t.id, "error", err)
		return
	}
	if v == nil {
		return
	}
	d.mu.Lock()
	d.told[t.id] = v
	d.mu.Unlock()
	j := d.abroadJob(t)
	for i, at := range v.All {
		if before != nil && before.Attempt(i).State == at.State || !j.undecided(i) {
			continue
		}
		switch at.State {
		case pcm.AttemptRejected:
			how := 5 * time.Second
			if strings.HasPrefix(at.Reason, ruleMark) {
				how = ruledFor
			}
			d.avoidFor(t.terms, how, "could not run a task: "+at.Reason)
			d.n.denials.learn(t.terms, at.Reason, time.Now())
		case pcm.AttemptLost:
			d.avoidFor(t.terms, time.Minute, "lost a task: "+at.Reason)
		}
	}
	d.fetchAbroad(t, j)
}

// fetchAbroad begins to fetch the outputs of what has finished.
func (d *driver) fetchAbroad(t *abroadTrade, j abroadJob) {
	results := t.wants(j)
	if len(results) == 0 {
		return
	}
	for _, r := range results {
		t.fetching[r.Index] = true
	}
	seller, id := t.terms.Seller, t.id
	go func() {
		err := d.bring(seller, results)
		d.mu.Lock()
		d.arrived = append(d.arrived, arrival{id, results, err})
		d.mu.Unlock()
		d.nudge()
	}()
}

// arrive takes in that outputs are here, or can't be had.
func (t *abroadTrade) arrive(a arrival) {
	for _, r := range a.results {
		delete(t.fetching, r.Index)
		if a.err != nil {
			t.spoiled[r.Index] = clip(fmt.Sprintf("its outputs can't be had from the seller: %v", a.err))
		} else {
			t.ready[r.Index] = true
		}
	}
}

// abroadGrace is how much longer than its attempts can take a trade may be undecided
// in another cell: longer than the graces that a cell gives, so only one that lies, or
// decides nothing, is given up by it.
const abroadGrace = 2 * time.Hour

// silent says why the cell of a trade counts as gone; "" if it doesn't yet. Lease and
// margin are waited for since it was heard of: by then, a seller that can't reach it
// either has ended what it runs.
func (d *driver) silent(t *abroadTrade, now time.Time) string {
	rounds := (t.terms.Tasks.Len() + t.terms.Width - 1) / t.terms.Width
	if most := time.Duration(int64(rounds)*t.terms.LimitMS)*time.Millisecond + abroadGrace; t.ran(now) > most {
		return fmt.Sprintf("its cell, %s, has not ended it in the %s that the trade can take", pcm.Short(t.terms.Cell), most)
	}
	heard, barred := d.began, d.envoys[t.terms.Cell].barred()
	if t.own != "" && d.deputy == nil {
		barred = "the job's mandate is not here"
	}
	if away, err := d.n.aways.to(t.terms.Cell); err == nil && away.Heard().After(heard) && barred == "" {
		heard = away.Heard()
	}
	if t.since.After(heard) {
		heard = t.since
	}
	quiet := now.Sub(heard)
	if quiet <= pcm.LeaseFor(t.ran(now))+pcm.LeaseMargin {
		return ""
	}
	if barred != "" {
		return fmt.Sprintf("its cell, %s, doesn't let this peer act for the buyer: %s", pcm.Short(t.terms.Cell), barred)
	}
	return fmt.Sprintf("nothing was heard of its cell, %s, for %s", pcm.Short(t.terms.Cell), quiet.Round(time.Second))
}

// decideAbroad makes the commands, for the job's own cell, that its trades in other
// cells call for.
func (d *driver) decideAbroad() []step {
	var round []step
	now := time.Now()
	for _, id := range sortedKeys(d.abroad) {
		if len(round) >= maxRound/2 {
			break
		}
		t := d.abroad[id]
		silent := d.silent(t, now)
		ops := t.home(d.abroadJob(t), silent)
		if t.own != "" {
			if ops = d.warrant(t, ops, now); t.left(d.abroadJob(t), now) {
				delete(d.abroad, id)
			}
		}
		if len(ops) == 0 {
			continue
		}
		if silent != "" && !t.over() {
			d.n.log.Warn("gives attempts up that are in a silent cell", "job", d.job, "trade", id, "reason", silent)
			d.avoidFor(t.terms, time.Minute, silent)
		}
		round = append(round, step{ops: ops, then: func(r pcm.CommandResult) bool { return d.decidedAbroad(t, ops, r) }})
	}
	return round
}

// decidedAbroad takes the result of such a command into the model.
func (d *driver) decidedAbroad(t *abroadTrade, ops []pcm.Op, r pcm.CommandResult) (surprise bool) {
	if r.First() != nil || slices.ContainsFunc(r.Ops, func(o pcm.OpResult) bool { return len(o.Skipped) > 0 }) {
		return true
	}
	s := t.terms.Step
	st := &d.model.steps[s]
	owe := func(list []pcm.Result) {
		for _, res := range list {
			t.due[res.Index] = true
			t.counted = pcm.AddMicro(t.counted, t.terms.Charge(res.Usage))
		}
	}
	for _, op := range ops {
		switch {
		case op.Accept != nil:
			owe(op.Accept.Results)
			for _, res := range op.Accept.Results {
				d.set(s, res.Index, decided(res.Outcome))
			}
		case op.Abandon != nil:
			state := pcm.TaskWaiting
			if d.model.stopping != "" {
				state = pcm.TaskCancelled
			}
			for i := range op.Abandon.Tasks.All {
				d.set(s, i, state)
				switch {
				case op.Abandon.Unsold:
					st.tasks[i].attempt--
				case st.service == nil && st.tasks[i].attempt >= pcm.MaxAttempts:
					return true
				}
			}
			owe(op.Abandon.Results)
			for _, res := range op.Abandon.Results {
				st.tasks[res.Index].failures++
				d.rest(s, res.Index, res, time.Since(t.since), time.Now())
			}
			if op.Abandon.Fault == pcm.FaultSeller && !op.Abandon.Over {
				t.doubt += op.Abandon.Tasks.Len()
			}
		case op.Clear != nil:
			delete(d.abroad, t.id)
			if t.seen != nil {
				d.n.bought.view(t.seen, t.terms.Cell, d.n.names()) // who looks later finds it remembered
			}
			d.mu.Lock()
			delete(d.told, t.id)
			d.mu.Unlock()
		}
	}
	return false
}

// openAbroad tells whether tasks of the job are undecided in other cells.
func (d *driver) openAbroad() bool {
	for _, t := range d.abroad {
		if t.open(d.abroadJob(t)) {
			return true
		}
	}
	return false
}

func (ds *drivers) toldOf(job pcm.JobID, trade pcm.TradeID) *ledger.Trade {
	ds.mu.Lock()
	d := ds.jobs[job]
	ds.mu.Unlock()
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.told[trade]
}
