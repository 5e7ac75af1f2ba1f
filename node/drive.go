package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// drivers are the jobs that this peer drives.
type drivers struct {
	n    *Node
	mu   sync.Mutex
	jobs map[pcm.JobID]*driver
	wg   sync.WaitGroup
}

func newDrivers(n *Node) *drivers { return &drivers{n: n, jobs: map[pcm.JobID]*driver{}} }

// driver plans one job for one term. What it knows of the job is a model: read
// from the ledger when the term begins, carried on by the events and by the
// results of its own proposals, and read anew whenever a result surprises it.
// All but the inbox belongs to the goroutine of run.
type driver struct {
	n    *Node
	job  pcm.JobID
	held heldSpec
	term uint64

	mu      sync.Mutex
	inbox   []pcm.Event
	arrived []arrival // results whose outputs are here, or can't be had
	news    []tidings // of other cells

	warranted []warranted // what sellers in other cells have signed, or not

	told   map[pcm.TradeID]*ledger.Trade // trades as other cells told them last; not to be changed
	shares map[pcm.PeerID]bool           // sellers, who may read the job's inputs
	noRoom string                        // why results can't be fetched: this peer's own store is full
	why    string                        // why tasks wait
	wake   chan struct{}

	index    uint64 // Raft index up to which the model stands
	model    jobModel
	trades   map[pcm.TradeID]*tradeModel
	avoid    map[placeKey]avoidance
	batch    map[placeKey]int // bound on a portion, where credit is short
	specSent map[pcm.PeerID]bool
	restarts map[pcm.TaskRef]restart // of services

	began  time.Time
	abroad map[pcm.TradeID]*abroadTrade
	envoys map[pcm.CellID]*envoy
	deputy *deputy          // with which it acts in other cells; nil: by itself
	turned map[placeKey]int // how often a site abroad has refused, one time after another
}

// jobModel is what a driver knows of its job.
type jobModel struct {
	buyer    pcm.AccountID
	unit     string
	fence    uint64
	stopping string // why it was cancelled; "" if it was not
	ended    bool
	unpaid   bool // it is not yet time to pay for it: until then its buyer may dispute
	steps    []stepModel
}

type stepModel struct {
	retries   int
	tasks     []taskModel
	waiting   int
	failed    int
	cancelled int
	done      int

	service *pcm.Service // nil: none
	scale   int          // of a service: tasks below this index are to run
}

type taskModel struct {
	state    pcm.TaskState
	attempt  int
	failures int
	trade    pcm.TradeID
}

// tradeModel is what a driver knows of one of the job's open trades.
type tradeModel struct {
	terms    pcm.Terms
	since    time.Time          // when this peer proposed or learned of it
	live     map[int]bool       // attempts that may run
	ready    []pcm.Result       // finished, outputs here: to be decided
	failed   map[int]string     // rejected or lost: to be abandoned, with reasons
	spoiled  map[int]string     // finished, outputs not to be had: to be disputed and abandoned
	unpaid   map[int]pcm.Result // decided, to be settled
	fetching int
	stopSent bool
	asked    map[int]bool // asked to stop, one by one
}

type arrival struct {
	trade   pcm.TradeID
	results []pcm.Result
	err     error
}

func newDriver(n *Node, job pcm.JobID, h heldSpec) *driver {
	return &driver{
		n: n, job: job, held: h, wake: make(chan struct{}, 1), shares: map[pcm.PeerID]bool{},
		trades: map[pcm.TradeID]*tradeModel{}, avoid: map[placeKey]avoidance{}, batch: map[placeKey]int{},
		specSent: map[pcm.PeerID]bool{}, restarts: map[pcm.TaskRef]restart{},
		began: time.Now(), abroad: map[pcm.TradeID]*abroadTrade{}, told: map[pcm.TradeID]*ledger.Trade{}, envoys: map[pcm.CellID]*envoy{}, turned: map[placeKey]int{},
	}
}

// prepare makes a driver before its job is committed, so that no event is missed.
func (ds *drivers) prepare(job pcm.JobID, h heldSpec) (*driver, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if ds.jobs[job] != nil {
		return nil, pcm.Errorf(pcm.Conflict, "%s is being submitted or driven here already", job)
	}
	d := newDriver(ds.n, job, h)
	ds.jobs[job] = d
	return d, nil
}

func (ds *drivers) cancelPrepared(job pcm.JobID) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	delete(ds.jobs, job)
}

// begin lets a driver work from a fresh job on.
func (ds *drivers) begin(d *driver, term, index, fence uint64) {
	d.term, d.index = term, index
	d.model = jobModel{buyer: ds.n.account, unit: pcm.DefaultUnit, fence: fence, unpaid: d.held.spec.PayAfter != ""}
	if _, unit, err := d.held.spec.BudgetAmount(); err == nil {
		d.model.unit = unit
	}
	for _, st := range d.held.spec.Steps {
		s := stepModel{retries: st.Retries, tasks: make([]taskModel, st.Count), waiting: st.Count, service: st.Service, scale: st.Outline().Scale}
		for i := range s.tasks {
			s.tasks[i].state = pcm.TaskWaiting
		}
		d.model.steps = append(d.model.steps, s)
	}
	ds.start(d)
}

func (ds *drivers) start(d *driver) {
	if ds.n.run.Err() != nil {
		return
	}
	ds.wg.Go(func() {
		d.run(ds.n.run)
		ds.mu.Lock()
		defer ds.mu.Unlock()
		if ds.jobs[d.job] == d {
			delete(ds.jobs, d.job)
		}
	})
}

// take takes a job over in a new term and drives it.
func (ds *drivers) take(ctx context.Context, job pcm.JobID, term uint64) {
	h, ok := ds.n.specs.get(job)
	if !ok {
		return
	}
	var misfit error
	ds.n.cell.View(func() {
		if j, open := ds.n.state.Job(job); open {
			misfit = h.fits(j)
		}
	})
	if misfit != nil {
		ds.n.log.Warn("the spec that was left here for a job is not its spec: it is dropped", "job", job, "reason", misfit)
		ds.n.specs.drop(job)
		ds.n.unpin(jobOwner(job))
		return
	}
	ds.mu.Lock()
	if ds.jobs[job] != nil {
		ds.mu.Unlock()
		return
	}
	d := newDriver(ds.n, job, h)
	ds.jobs[job] = d
	ds.mu.Unlock()
	result, err := ds.n.must(ctx, pcm.Op{Drive: &pcm.Drive{Job: job, Term: term}})
	if err == nil {
		d.term = term
		err = d.load(ctx, result.Index)
	}
	if err != nil {
		ds.cancelPrepared(job)
		if ctx.Err() == nil {
			ds.n.log.Info("did not take a job over", "job", job, "reason", err)
		}
		return
	}
	ds.n.log.Info("drives a job", "job", job, "term", term)
	ds.start(d)
}

// observe hands an event to the driver of its job.
func (ds *drivers) observe(e *pcm.Event) {
	if e.Job == "" {
		return
	}
	ds.mu.Lock()
	d := ds.jobs[e.Job]
	ds.mu.Unlock()
	if d == nil {
		return
	}
	d.mu.Lock()
	d.inbox = append(d.inbox, *e)
	d.mu.Unlock()
	d.nudge()
}

func (d *driver) setWhy(why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.why = why
}

func (d *driver) nudge() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// nudgeAll lets every driver look for places again.
func (ds *drivers) nudgeAll() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, d := range ds.jobs {
		d.nudge()
	}
}

// resync makes every driver read the ledger anew.
func (ds *drivers) resync() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, d := range ds.jobs {
		d.mu.Lock()
		d.inbox = append(d.inbox, pcm.Event{Job: d.job}) // an event without content: see absorb
		d.mu.Unlock()
		d.nudge()
	}
}

// wait waits for the drivers to end, after the node's context has.
func (ds *drivers) wait(ctx context.Context) {
	done := make(chan struct{})
	go func() { ds.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// mayShare tells whether a peer has to do with a job that is driven here.
func (ds *drivers) mayShare(job pcm.JobID, from pcm.Passport) bool {
	ds.mu.Lock()
	d := ds.jobs[job]
	ds.mu.Unlock()
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.held.spec.Takeover
	return d.shares[from.Peer] || t == pcm.TakeoverAny || t == pcm.TakeoverAccount && from.Account == ds.n.account
}

// why tells why tasks of a job that is driven here wait.
func (ds *drivers) why(job pcm.JobID) string {
	ds.mu.Lock()
	d := ds.jobs[job]
	ds.mu.Unlock()
	if d == nil {
		return ""
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return orElse(d.noRoom, d.why)
}

// takeOver looks for jobs whose driver is gone: this peer's own from before a
// restart, and those of others that it may drive and has the spec of.
func (n *Node) takeOver(ctx context.Context) error {
	select {
	case <-n.member:
	case <-ctx.Done():
		return nil
	}
	for pause(ctx, 500*time.Millisecond) {
		now := n.cell.LogTime()
		type orphan struct {
			job  pcm.JobID
			term uint64
		}
		var orphans []orphan
		n.cell.View(func() {
			me, ok := n.state.Member(n.self)
			if !ok {
				return
			}
			for _, j := range n.state.Jobs() {
				if j.EndedAt == 0 && j.MayDrive(n.self, me.Account) == nil &&
					(j.Driver == n.self || now >= n.state.DriverSilentAt(j)) {
					orphans = append(orphans, orphan{j.ID, j.Term + 1})
				}
			}
		})
		for _, o := range orphans {
			n.drivers.take(ctx, o.job, o.term)
		}
		n.settleEnded(ctx)
		n.clearEnded()
	}
	return nil
}

// load reads the model from the ledger as of a Raft index or later.
func (d *driver) load(ctx context.Context, index uint64) error {
	if err := d.n.cell.WaitApplied(ctx, index); err != nil {
		return err
	}
	var err error
	var snapshot ledger.Job
	d.n.cell.View(func() {
		j, ok := d.n.state.Job(d.job)
		if !ok {
			d.model.ended = true
			d.trades = map[pcm.TradeID]*tradeModel{}
			d.abroad = map[pcm.TradeID]*abroadTrade{}
			return
		}
		if j.EndedAt == 0 && (j.Driver != d.n.self || j.Term != d.term) {
			err = pcm.Errorf(pcm.Conflict, "%s is driven by peer %s in term %d now", d.job, pcm.Short(j.Driver), j.Term)
			return
		}
		if err = d.held.fits(j); err != nil && j.EndedAt == 0 { // of one that has ended nothing is planned
			return
		}
		err = nil
		d.index = max(index, d.n.cell.Applied())
		d.read(j)
		snapshot = *j
	})
	if err == nil && d.deputy == nil && snapshot.ID != "" {
		var without error
		if d.deputy, without = d.n.deputyFor(&snapshot, d.term); without != nil { // it drives on at home
			d.n.log.Error("can't act in other cells for a job's buyer", "job", d.job, "error", without)
		}
	}
	if err == nil {
		d.fetchAll(ctx)
	}
	return err
}

// read fills the model from the ledger's job; within View.
func (d *driver) read(j *ledger.Job) {
	old := d.trades
	d.trades = map[pcm.TradeID]*tradeModel{}
	d.model = jobModel{buyer: j.Buyer, unit: j.Unit, fence: j.Fence, ended: j.EndedAt != 0, unpaid: d.n.untilPay(j) > 0}
	if j.Stopping {
		d.model.stopping = orElse(j.Reason, "cancelled")
	}
	for n, st := range j.Steps {
		s := stepModel{retries: st.Retries, tasks: make([]taskModel, len(st.Tasks)), scale: st.Scale}
		if n < len(d.held.spec.Steps) {
			s.service = d.held.spec.Steps[n].Service
		}
		for i := range st.Tasks {
			tk := &st.Tasks[i]
			s.tasks[i] = taskModel{tk.State, tk.Attempt, tk.Failures, tk.Trade}
			s.count(tk.State, +1)
		}
		d.model.steps = append(d.model.steps, s)
	}
	d.readAbroad(j)
	open, now := map[pcm.TradeID]bool{}, d.n.cell.LogTime()
	for id := range d.abroad {
		open[id] = true
	}
	for _, t := range d.n.state.Trades() {
		if t.Terms.Job != d.job || t.Terms.Abroad() {
			continue
		}
		open[t.ID] = true
		m := newTradeModel(t.Terms)
		m.since = m.since.Add(-age(t.AwardedAt, now, m.since))
		if o := old[t.ID]; o != nil {
			m.since = o.since
		}
		unstopped := false
		for i, at := range t.All {
			undecided := d.placed(t.ID, t.Terms.Step, i)
			switch {
			case at.State.Live():
				m.live[i] = true
				unstopped = unstopped || at.Stop == ""
				m.asked[i] = at.Stop != ""
			case at.State == pcm.AttemptFinished && undecided:
				m.ready = append(m.ready, *at.Result) // fetchAll sees to the outputs
			case at.State == pcm.AttemptFinished:
				m.unpaid[i] = *at.Result
			case at.State == pcm.AttemptDisputed && undecided:
				m.failed[i] = orElse(at.Reason, "its result is disputed")
			case undecided:
				m.failed[i] = orElse(at.Reason, string(at.State))
			}
		}
		m.stopSent = !unstopped
		d.trades[t.ID] = m
	}
	// Placed with a trade that isn't open: never awarded, or all of it is over.
	for s := range d.model.steps {
		for i, tk := range d.model.steps[s].tasks {
			if tk.state != pcm.TaskPlaced || open[tk.trade] {
				continue
			}
			m := d.trades[tk.trade]
			if m == nil {
				m = newTradeModel(pcm.Terms{Job: d.job, Step: s, Attempt: tk.attempt})
				d.trades[tk.trade] = m
			}
			m.failed[i] = "it was not awarded, or its seller gave it up"
		}
	}
}

func newTradeModel(t pcm.Terms) *tradeModel {
	return &tradeModel{
		terms: t, since: time.Now(), live: map[int]bool{}, failed: map[int]string{},
		spoiled: map[int]string{}, unpaid: map[int]pcm.Result{}, asked: map[int]bool{},
	}
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// count keeps the step's counters.
func (s *stepModel) count(state pcm.TaskState, by int) {
	switch state {
	case pcm.TaskWaiting:
		s.waiting += by
	case pcm.TaskFailed:
		s.failed += by
	case pcm.TaskCancelled:
		s.cancelled += by
	case pcm.TaskDone:
		s.done += by
	}
}

// set changes a task's state in the model.
func (d *driver) set(step, i int, state pcm.TaskState) {
	s := &d.model.steps[step]
	s.count(s.tasks[i].state, -1)
	s.tasks[i].state = state
	s.count(state, +1)
}

// placed tells whether a task is placed with the given trade.
func (d *driver) placed(trade pcm.TradeID, step, i int) bool {
	if step < 0 || step >= len(d.model.steps) || i < 0 || i >= len(d.model.steps[step].tasks) {
		return false
	}
	tk := &d.model.steps[step].tasks[i]
	return tk.state == pcm.TaskPlaced && tk.trade == trade
}

// run drives the job until it has ended and all is settled, or until the driver
// is deposed. Each round does all that can be done now, in one proposal.
func (d *driver) run(ctx context.Context) {
	log := d.n.log.With("job", d.job, "term", d.term)
	d.fetchAll(ctx)
	defer d.recallEnvoys()
	var proposed time.Time
	for ctx.Err() == nil {
		if deposed := d.absorb(ctx); deposed {
			log.Info("another peer drives the job now")
			return
		}
		if live := d.liveAttempts(); live > 0 && time.Since(proposed) < paceFor(live) {
			d.sleep(ctx, paceFor(live)-time.Since(proposed)) // more results will come soon: they go along
			continue
		}
		d.sendEnvoys()
		unpaid, err := d.awaitPay(ctx)
		if err != nil {
			log.Info("ends driving", "reason", err)
			return
		}
		round := d.decide()
		round = append(round, d.decideAbroad()...)
		round = append(round, d.halt()...)
		round = append(round, d.shrink()...)
		wait := 30 * time.Second
		if len(round) < maxRound {
			var places []step
			places, wait = d.place(maxRound - len(round))
			round = append(round, places...)
		}
		if len(round) == 0 {
			if d.model.ended && len(d.trades)+len(d.abroad) == 0 {
				d.n.jobEnded(d.job)
				return
			}
			if d.openAbroad() {
				wait = min(wait, time.Second) // silence makes no noise
			}
			if unpaid > 0 {
				wait = min(wait, unpaid)
			}
			d.sleep(ctx, wait)
			continue
		}
		proposed = time.Now()
		if err := d.propose(ctx, round); err != nil && ctx.Err() == nil {
			log.Warn("can't get on with the job", "error", err)
			d.setWhy("its driver can't get on: " + err.Error())
			pause(ctx, time.Second)
			// What became of the proposal is unknown: the ledger knows.
			if err := d.reload(ctx); err != nil {
				log.Info("ends driving", "reason", err)
				return
			}
		}
	}
}

// sleep waits until there is news for this driver, for d at most.
func (d *driver) sleep(ctx context.Context, most time.Duration) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-d.wake:
	case <-t.C:
	case <-ctx.Done():
	}
}

// liveAttempts counts the attempts that may run.
func (d *driver) liveAttempts() int {
	n := 0
	for _, m := range d.trades {
		n += len(m.live)
	}
	return n
}

// maxRound bounds the commands of one round.
const maxRound = 64

// step is one command of a round, and what its result means.
type step struct {
	ops  []pcm.Op
	then func(pcm.CommandResult) (surprise bool)
}

// propose commits the commands of a round and applies the results to the model.
func (d *driver) propose(ctx context.Context, round []step) error {
	commands := make([][]pcm.Op, len(round))
	for i, s := range round {
		commands[i] = s.ops
	}
	try, cancel := context.WithTimeout(ctx, commandValidity)
	defer cancel()
	results, err := d.n.commit(try, commands)
	if err != nil {
		return err
	}
	surprise := false
	var index uint64
	for i, r := range results {
		if r.Err != nil { // the command as a whole: the cell is too busy, or knows this peer no more
			return r.Err
		}
		index = max(index, r.Index)
		if round[i].then(r) {
			surprise = true
			d.n.log.Debug("a command of the driver was refused", "job", d.job, "op", round[i].ops[0].Kind(), "reason", r.First())
		}
	}
	if surprise {
		return d.load(ctx, index)
	}
	return nil
}

// reload reads the model anew, from a state that includes all that is committed now.
func (d *driver) reload(ctx context.Context) error {
	try, cancel := context.WithTimeout(ctx, commandValidity)
	defer cancel()
	for {
		err := d.n.cell.Sync(try)
		if err == nil {
			return d.load(try, 0)
		}
		if !pause(try, time.Second) {
			return err
		}
	}
}

// absorb takes events into the model. It tells whether the driver is deposed.
func (d *driver) absorb(ctx context.Context) (deposed bool) {
	d.mu.Lock()
	events, arrived, news, signed := d.inbox, d.arrived, d.news, d.warranted
	d.inbox, d.arrived, d.news, d.warranted = nil, nil, nil, nil
	d.mu.Unlock()
	for i := range events {
		e := &events[i]
		switch {
		case e.Op == nil && e.Fact == nil: // events were missed
			if err := d.load(ctx, 0); err != nil {
				return pcm.ErrorCode(err) == pcm.Conflict
			}
			continue
		case e.Index <= d.index: // the model has it
			continue
		}
		if e.Op != nil && e.Op.Drive != nil && (e.Op.Drive.Term > d.term) {
			return true
		}
		d.learn(ctx, e)
	}
	for _, a := range arrived {
		if t := d.abroad[a.trade]; t != nil {
			t.arrive(a)
		} else {
			d.arrive(a)
		}
	}
	for _, t := range news {
		d.hear(t)
	}
	for _, w := range signed {
		if t := d.abroad[w.trade]; t != nil {
			t.takeWarrants(w, time.Now())
		}
	}
	return false
}

// learn takes one event into the model.
func (d *driver) learn(ctx context.Context, e *pcm.Event) {
	switch {
	case e.Op != nil && e.Op.Cancel != nil:
		d.stopping(orElse(e.Op.Cancel.Reason, "cancelled"))
	case e.Op != nil && e.Op.Scale != nil:
		d.rescale(e.Op.Scale)
	case e.Fact != nil && e.Fact.Overdue != nil:
		d.stopping("its deadline is over")
	case e.Fact != nil && e.Fact.Ended != nil:
		d.model.ended = true
	case e.Fact != nil && e.Fact.Closed != nil:
		if m := d.trades[e.Trade]; m != nil && len(m.failed) == 0 && len(m.ready) == 0 && m.fetching == 0 {
			delete(d.trades, e.Trade)
		}
	case e.Trade != "":
		m := d.trades[e.Trade]
		if m == nil {
			return
		}
		switch {
		case e.Op != nil && e.Op.Finish != nil:
			d.finished(ctx, e.Trade, m, e.Op.Finish.Results)
		case e.Op != nil && e.Op.Reject != nil:
			d.broken(m, e.Op.Reject.Tasks, e.Op.Reject.Reason)
			d.avoidFor(m.terms, 5*time.Second, "rejected a task: "+e.Op.Reject.Reason)
		case e.Op != nil && e.Op.Dispute != nil: // by a person, who has the time to
			dropTasks(m.unpaid, e.Op.Dispute.Tasks)
		case e.Op != nil && e.Op.Settle != nil:
			dropTasks(m.unpaid, e.Op.Settle.Tasks)
		case e.Fact != nil && e.Fact.Lost != nil:
			d.broken(m, e.Fact.Lost.Tasks, e.Fact.Lost.Reason)
			d.avoidFor(m.terms, time.Minute, "lost a task: "+e.Fact.Lost.Reason)
		}
	}
}

// stopping notes that the job was cancelled.
func (d *driver) stopping(why string) {
	if d.model.stopping != "" {
		return
	}
	d.model.stopping = why
	for s := range d.model.steps {
		for i := range d.model.steps[s].tasks {
			if d.model.steps[s].tasks[i].state == pcm.TaskWaiting {
				d.set(s, i, pcm.TaskCancelled)
			}
		}
	}
}

// broken notes attempts without a result.
func (d *driver) broken(m *tradeModel, tasks pcm.Spans, reason string) {
	for i := range tasks.All {
		if m.live[i] {
			delete(m.live, i)
			m.failed[i] = reason
		}
	}
}

// halt ends what runs of a job that was cancelled.
func (d *driver) halt() []step {
	if d.model.stopping == "" {
		return nil
	}
	var round []step
	for _, id := range sortedKeys(d.trades) {
		m := d.trades[id]
		if m.stopSent || len(m.live) == 0 {
			continue
		}
		round = append(round, step{
			ops: []pcm.Op{{Stop: &pcm.Stop{Trade: id, Tasks: pcm.SpansOf(sortedKeys(m.live)), Reason: clip(d.model.stopping)}}},
			then: func(r pcm.CommandResult) bool {
				m.stopSent = r.Err == nil // what had ended meanwhile needs no stop
				return false
			},
		})
	}
	return round
}

// cancelRest cancels a job of which nothing can go on, because a step that
// others need has failed.
func (d *driver) cancelRest() []step {
	failed := ""
	for s := range d.model.steps {
		if m := &d.model.steps[s]; m.failed+m.cancelled > 0 && failed == "" {
			failed = d.held.spec.Steps[s].Name
		}
	}
	why := clip("step " + failed + " did not succeed, and what waits needs it")
	return []step{{
		ops: []pcm.Op{{Cancel: &pcm.Cancel{Job: d.job, Reason: why}}},
		then: func(r pcm.CommandResult) bool {
			d.stopping(why)
			return r.First() != nil
		},
	}}
}

// clip makes a reason one that commands can hold: UTF-8, or nobody could read the
// command, and of bounded length. What tasks and back ends say may be neither.
func clip(reason string) string {
	const most = ledger.MaxReason
	reason = strings.ToValidUTF8(reason, "?")
	if len(reason) <= most {
		return reason
	}
	cut := most - len("…")
	for cut > 0 && reason[cut]&0xC0 == 0x80 { // not within a character
		cut--
	}
	return reason[:cut] + "…"
}

func sortedKeys[K interface{ ~string | ~int }, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
