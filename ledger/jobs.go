package ledger

import (
	"fmt"
	"slices"

	"github.com/jointcloud/pcm"
)

// Bounds of what is open in a cell: a task takes some 100 bytes on every
// replica until its job is archived.
const (
	maxJobs      = 100_000
	maxTasks     = 1_000_000 // in all open jobs
	maxTasksEach = 200_000   // in the open jobs that one peer has submitted
)

// maxLastMS bounds a job's deadline: ten years.
const maxLastMS = int64(10 * 365 * 24 * 3600 * 1000)

// maxHistory bounds the lines kept of a task's earlier attempts.
const maxHistory = 8

// Job is a job as its buyer's cell sees it.
type Job struct {
	ID          pcm.JobID     `cbor:"1,keyasint"`
	Name        string        `cbor:"2,keyasint"`
	Buyer       pcm.AccountID `cbor:"3,keyasint"`
	Submitter   pcm.PeerID    `cbor:"4,keyasint"`
	Spec        pcm.Digest    `cbor:"5,keyasint"`
	Takeover    pcm.Takeover  `cbor:"6,keyasint"`
	Unit        string        `cbor:"7,keyasint"`
	Budget      pcm.Micro     `cbor:"8,keyasint"` // 0: none
	Held        pcm.Micro     `cbor:"9,keyasint"`
	Paid        pcm.Micro     `cbor:"10,keyasint"`
	SubmittedAt int64         `cbor:"11,keyasint"` // log time, ms
	EndedAt     int64         `cbor:"12,keyasint"` // 0: open
	OverdueAt   int64         `cbor:"13,keyasint"` // 0: no deadline
	State       pcm.JobState  `cbor:"14,keyasint"`
	Reason      string        `cbor:"15,keyasint,omitempty"`
	Stopping    bool          `cbor:"16,keyasint"` // cancelled: no task may be placed
	Driver      pcm.PeerID    `cbor:"17,keyasint"`
	Term        uint64        `cbor:"18,keyasint"`
	DrivenAt    int64         `cbor:"19,keyasint"` // when the term began, log time
	Fence       uint64        `cbor:"20,keyasint"` // of the last Place
	Steps       []Step        `cbor:"21,keyasint"`
	Trades      int           `cbor:"22,keyasint"`           // open ones
	Places      []Placement   `cbor:"23,keyasint,omitempty"` // with undecided tasks, oldest first
	PayAfterMS  int64         `cbor:"24,keyasint,omitempty"` // what it has cost is paid so long after its end
	Mandate     pcm.Digest    `cbor:"25,keyasint,omitempty"` // of the one for drivers of other accounts in other cells
}

// Placement is what the buyer's cell keeps of a Place while a task of it is undecided.
type Placement struct {
	Trade    pcm.TradeID `cbor:"1,keyasint"`
	Step     int         `cbor:"2,keyasint"`
	HoldEach pcm.Micro   `cbor:"3,keyasint"`
	Open     int         `cbor:"4,keyasint"` // undecided tasks
	Awarded  bool        `cbor:"5,keyasint"` // once; a trade that has closed is not opened again

	// Of a trade abroad, kept until it is cleared:
	Terms     *pcm.Terms `cbor:"6,keyasint,omitempty"`  // nil: the trade is in this cell
	Due       pcm.Spans  `cbor:"7,keyasint,omitempty"`  // tasks with a result that is to be paid
	Counted   pcm.Micro  `cbor:"8,keyasint,omitempty"`  // what they cost as far as this cell can know
	Doubt     int        `cbor:"9,keyasint,omitempty"`  // tasks given up of which it is open what they cost: still held for
	DecidedAt int64      `cbor:"10,keyasint,omitempty"` // log time at which the last task was decided, ms
	PlacedAt  int64      `cbor:"11,keyasint,omitempty"` // log time, ms; 0: below level 3
	Unsold    bool       `cbor:"12,keyasint,omitempty"` // it was never awarded
}

// Step is a step of a job.
type Step struct {
	Retries int    `cbor:"1,keyasint"`
	Tasks   []Task `cbor:"2,keyasint"`
	Service bool   `cbor:"3,keyasint,omitempty"`
	Scale   int    `cbor:"4,keyasint,omitempty"` // of a service: tasks below this index are to run
}

// Task is a task of a job.
type Task struct {
	State    pcm.TaskState `cbor:"1,keyasint"`
	Attempt  int           `cbor:"2,keyasint"` // of the current or last try; 0 before the first
	Failures int           `cbor:"3,keyasint"` // tries that ended by the task's own fault
	Trade    pcm.TradeID   `cbor:"4,keyasint,omitempty"`
	Seller   pcm.PeerID    `cbor:"5,keyasint,omitempty"`
	Result   *pcm.Result   `cbor:"6,keyasint,omitempty"` // accepted
	Reason   string        `cbor:"7,keyasint,omitempty"` // why it waits again, failed or was cancelled
	History  []string      `cbor:"8,keyasint,omitempty"` // earlier attempts
}

// tasks is the number of its tasks.
func (j *Job) tasks() (n int) {
	for _, st := range j.Steps {
		n += len(st.Tasks)
	}
	return n
}

// Counts counts the tasks by state.
func (j *Job) Counts() map[pcm.TaskState]int {
	n := map[pcm.TaskState]int{}
	for _, st := range j.Steps {
		for i := range st.Tasks {
			n[st.Tasks[i].State]++
		}
	}
	return n
}

// Settled tells whether the job has ended and nothing of it is open.
func (j *Job) Settled() bool { return j.EndedAt != 0 && j.Trades == 0 && len(j.Places) == 0 }

// PayAt is the log time, in ms, from which on its driver pays for what it has cost. The ledger
// takes payments, and disputes, before that as well: when to pay is the buyer's own affair.
func (j *Job) PayAt() int64 {
	switch {
	case j.PayAfterMS == 0:
		return 0
	case j.EndedAt == 0:
		return never
	}
	return j.EndedAt + j.PayAfterMS
}

func (a *applying) submit(o *pcm.Op) (bool, error) {
	op := o.Submit
	if j, ok := a.jobs[op.Job]; ok {
		if j.Submitter == a.by.Peer && j.Spec == op.Spec {
			return false, nil
		}
		return false, pcm.Errorf(pcm.Conflict, "%s exists: another job was submitted under this ID", op.Job)
	}
	if !op.Job.Valid() || !op.Spec.Valid() || len(op.Name) > 63 || !pcm.ValidName(op.Unit) || op.Budget < 0 || op.Budget > maxMoney || op.LastMS < 0 || op.LastMS > maxLastMS {
		return false, pcm.Errorf(pcm.Invalid, "submission of %q is malformed", op.Job)
	}
	if op.PayAfterMS < 0 || op.PayAfterMS > pcm.MaxPayAfter.Milliseconds() {
		return false, pcm.Errorf(pcm.Invalid, "a job is paid at most %s after its end", pcm.MaxPayAfter)
	}
	if op.Takeover != pcm.TakeoverAccount && op.Takeover != pcm.TakeoverAny && op.Takeover != pcm.TakeoverNone {
		return false, pcm.Errorf(pcm.Invalid, "takeover %q is not account, any or none", op.Takeover)
	}
	if len(op.Steps) == 0 || len(op.Steps) > pcm.MaxSteps {
		return false, pcm.Errorf(pcm.Invalid, "a job has 1 to %d steps, this one %d", pcm.MaxSteps, len(op.Steps))
	}
	total := 0
	for _, st := range op.Steps {
		if err := checkShape(st); err != nil {
			return false, err
		}
		total += st.Count
	}
	if total > pcm.MaxTasks {
		return false, pcm.Errorf(pcm.Invalid, "%d tasks are too many: at most %d in one job", total, pcm.MaxTasks)
	}
	mandate, err := a.checkMandate(op)
	if err != nil {
		return false, err
	}
	if len(a.jobs) >= maxJobs {
		return false, pcm.Errorf(pcm.Busy, "%s has %d open jobs, which is its bound", pcm.Short(a.genesis.Cell), len(a.jobs))
	}
	if a.by.Tasks+total > maxTasksEach {
		return false, pcm.Errorf(pcm.Busy, "the open jobs of peer %s have %d tasks, and this one %d: at most %d together; let some end first", pcm.Short(a.by.Peer), a.by.Tasks, total, maxTasksEach)
	}
	if a.tasks+total > maxTasks {
		return false, pcm.Errorf(pcm.Busy, "the open jobs of %s have %d tasks, and this one %d: at most %d together; retry when some have ended", pcm.Short(a.genesis.Cell), a.tasks, total, maxTasks)
	}
	j := &Job{
		ID: op.Job, Name: op.Name, Buyer: a.by.Account, Submitter: a.by.Peer, Spec: op.Spec,
		Takeover: op.Takeover, Unit: op.Unit, Budget: op.Budget, SubmittedAt: a.stamp,
		State: pcm.JobOpen, Driver: a.by.Peer, Term: 1, DrivenAt: a.stamp, Fence: a.fence(), PayAfterMS: op.PayAfterMS, Mandate: mandate,
	}
	if mandate != "" {
		a.document(MandateKey(j.ID), op.Mandate)
	}
	for _, st := range op.Steps {
		tasks := make([]Task, st.Count)
		for i := range tasks {
			tasks[i].State = pcm.TaskWaiting
		}
		j.Steps = append(j.Steps, Step{Retries: st.Retries, Tasks: tasks, Service: st.Service, Scale: st.Scale})
	}
	if op.LastMS > 0 {
		j.OverdueAt = a.stamp + op.LastMS
		a.soon(j.OverdueAt)
	}
	a.by.Drives++
	a.by.Tasks += total
	a.tasks += total
	a.jobs[j.ID] = j
	a.event(o, j.ID, nil, a.by.Peer)
	return true, nil
}

// fence is the fencing token that the jobs submitted by this operation begin
// with, and that bounds those which it places. It grows with each operation that
// takes effect. So the ID of a job that was archived and forgotten may be used
// again, and still none of its trades' IDs comes twice: the new job is another
// purchase, signed anew, and no copy of the old one. Its document takes the place
// of the old one's; the records tell of both.
func (a *applying) fence() uint64 {
	return (a.records*pcm.MaxOps + uint64(a.nth)) * fencesEach
}

// fencesEach is how many tokens a driver may use up for each operation that takes
// effect: it also counts on for placements that are refused.
const fencesEach = 1 << 16

// openJob looks up a job that can still change.
func (a *applying) openJob(id pcm.JobID) (*Job, error) {
	j, ok := a.jobs[id]
	if !ok {
		return nil, pcm.Errorf(pcm.NotFound, "no open job %s in %s", id, pcm.Short(a.genesis.Cell))
	}
	if j.EndedAt != 0 {
		return nil, pcm.Errorf(pcm.Conflict, "%s has ended: %s", id, j.State)
	}
	return j, nil
}

// driven looks up an open job that the signer drives in the given term.
func (a *applying) driven(id pcm.JobID, term uint64) (*Job, error) {
	j, err := a.openJob(id)
	if err != nil {
		return nil, err
	}
	if j.Driver != a.by.Peer || j.Term != term {
		return nil, pcm.Errorf(pcm.Conflict, "%s is driven by peer %s in term %d, not by %s in term %d", id, pcm.Short(j.Driver), j.Term, pcm.Short(a.by.Peer), term)
	}
	return j, nil
}

// DriverSilentAt is the log time from which the job's driver counts as gone.
func (s *State) DriverSilentAt(j *Job) int64 {
	at := j.DrivenAt
	if m := s.members[j.Driver]; m != nil {
		at = max(at, m.RenewedAt)
	}
	return at + (pcm.DriverLease + pcm.LeaseMargin).Milliseconds()
}

// MayDrive tells whether a peer of an account may drive the job at all.
func (j *Job) MayDrive(peer pcm.PeerID, account pcm.AccountID) error {
	switch {
	case peer == j.Submitter:
	case j.Takeover == pcm.TakeoverNone:
		return pcm.Errorf(pcm.Forbidden, "%s allows no takeover", j.ID)
	case account != j.Buyer && j.Takeover != pcm.TakeoverAny:
		return pcm.Errorf(pcm.Forbidden, "%s may be taken over by peers of its own account only", j.ID)
	case account != j.Buyer && j.abroad() > 0 && j.Mandate == "":
		return pcm.Errorf(pcm.Forbidden, "%s has work in other cells, which only peers of its own account can go on with", j.ID)
	}
	return nil
}

func (a *applying) drive(o *pcm.Op) error {
	op := o.Drive
	j, err := a.openJob(op.Job)
	if err != nil {
		return err
	}
	if err := j.MayDrive(a.by.Peer, a.by.Account); err != nil {
		return err
	}
	if op.Term != j.Term+1 {
		return pcm.Errorf(pcm.Conflict, "%s is in term %d: the next is %d, not %d", j.ID, j.Term, j.Term+1, op.Term)
	}
	if a.by.Peer != j.Driver && a.by.Peer != j.Submitter && a.stamp < a.DriverSilentAt(j) {
		return pcm.Errorf(pcm.Conflict, "%s is driven by peer %s, whose lease holds", j.ID, pcm.Short(j.Driver))
	}
	old := j.Driver
	if m := a.members[old]; m != nil {
		m.Drives--
	}
	a.by.Drives++
	j.Driver, j.Term, j.DrivenAt = a.by.Peer, op.Term, a.stamp
	a.event(o, j.ID, nil, old, j.Driver, j.Submitter)
	return nil
}

func (a *applying) place(o *pcm.Op) (bool, error) {
	op := o.Place
	t := &op.Terms
	j, err := a.driven(t.Job, op.Term)
	if err != nil {
		return false, err
	}
	if j.Stopping {
		return false, pcm.Errorf(pcm.Conflict, "%s was cancelled: %s", j.ID, j.Reason)
	}
	if err := checkTerms(t); err != nil {
		return false, err
	}
	if t.Buyer != j.Buyer || t.Spec != j.Spec || t.Driver != a.by.Peer || t.Price.Unit != j.Unit {
		return false, pcm.Errorf(pcm.Invalid, "the terms name another buyer, spec, driver or unit than %s has", j.ID)
	}
	if err := a.mayPlaceAbroad(j, t); err != nil {
		return false, err
	}
	if t.Fence <= j.Fence {
		return false, pcm.Errorf(pcm.Conflict, "fencing token %d of %s is used: the last one is %d", t.Fence, j.ID, j.Fence)
	}
	if t.Fence > a.fence() {
		return false, pcm.Errorf(pcm.Invalid, "fencing token %d of %s is too high: the last one is %d, the next %d", t.Fence, j.ID, j.Fence, j.Fence+1)
	}
	if t.Step < 0 || t.Step >= len(j.Steps) || !t.Tasks.Valid(len(j.Steps[t.Step].Tasks)) {
		return false, pcm.Errorf(pcm.Invalid, "the terms name tasks that %s doesn't have", j.ID)
	}
	// A driver of another account may not sell to its own.
	if a.by.Account != j.Buyer && a.account(t.Seller) == a.by.Account {
		return false, pcm.Errorf(pcm.Forbidden, "peer %s drives %s for another account and may not sell to it itself", pcm.Short(a.by.Peer), j.ID)
	}
	st := &j.Steps[t.Step]
	if t.Attempt > st.mostAttempts() {
		return false, pcm.Errorf(pcm.Invalid, "attempt %d is out of range: 1 to %d", t.Attempt, st.mostAttempts())
	}
	tasks := st.Tasks
	for i := range t.Tasks.All {
		if st.Parked(i) {
			return false, pcm.Errorf(pcm.Conflict, "step %d is scaled to %d: task %d is not to run", t.Step, st.Scale, i)
		}
		if tasks[i].State != pcm.TaskWaiting || tasks[i].Attempt+1 != t.Attempt {
			return false, pcm.Errorf(pcm.Conflict, "task %d/%d is %s after %d attempts: attempt %d can't be placed", t.Step, i, tasks[i].State, tasks[i].Attempt, t.Attempt)
		}
	}
	hold := pcm.MulMicro(t.HoldEach(), t.Tasks.Len())
	total := pcm.AddMicro(hold, pcm.AddMicro(j.Held, j.Paid))
	if total > maxMoney {
		return false, pcm.Errorf(pcm.Refused, "these tasks may cost %s %s, and %s with what %s holds and paid: at most %s can be accounted for; shorten time_limit", hold, j.Unit, total, j.ID, maxMoney)
	}
	if j.Budget > 0 && total > j.Budget {
		return false, pcm.Errorf(pcm.Refused, "the budget of %s is %s %s: %s is paid, %s held, and these tasks may cost %s", j.ID, j.Budget, j.Unit, j.Paid, j.Held, hold)
	}
	a.placed = &placed{job: j, step: t.Step, fence: j.Fence, hold: hold, tasks: t.Tasks, before: make([]Task, 0, t.Tasks.Len())}
	for i := range t.Tasks.All {
		tk := &tasks[i]
		a.placed.before = append(a.placed.before, *tk)
		tk.State, tk.Attempt, tk.Trade, tk.Seller, tk.Reason = pcm.TaskPlaced, t.Attempt, t.Trade(), t.Seller, ""
	}
	j.Fence = t.Fence
	j.Held += hold
	p := Placement{Trade: t.Trade(), Step: t.Step, HoldEach: t.HoldEach(), Open: t.Tasks.Len()}
	if t.Abroad() {
		terms := *t
		terms.Tasks = slices.Clone(t.Tasks)
		p.Terms = &terms
		a.abroad++
		if a.Level() >= 3 {
			p.PlacedAt = a.stamp
		}
	}
	j.Places = append(j.Places, p)
	return true, nil
}

// placed is a placement that may have to be taken back.
type placed struct {
	job    *Job
	step   int
	fence  uint64 // of the placement before
	hold   pcm.Micro
	tasks  pcm.Spans
	before []Task // what tasks were
}

// unplace takes back the placement that the op before made. Nothing of it is
// left, not even its fencing token: what is not recorded must not have been.
func (a *applying) unplace() {
	p, n := a.placed, 0
	for i := range p.tasks.All {
		p.job.Steps[p.step].Tasks[i] = p.before[n]
		n++
	}
	p.job.Fence = p.fence
	p.job.Held -= p.hold
	if p.job.Places[len(p.job.Places)-1].Terms != nil {
		a.abroad--
	}
	p.job.Places = p.job.Places[:len(p.job.Places)-1]
}

// checkTerms checks what can be known of terms without any state.
func checkTerms(t *pcm.Terms) error {
	if n := t.Tasks.Len(); n < 1 || n > pcm.MaxBatch || t.Width < 1 || t.Width > n {
		return pcm.Errorf(pcm.Invalid, "a trade has 1 to %d tasks of which at least one runs at a time; these terms have %d and %d", pcm.MaxBatch, n, t.Width)
	}
	if t.Attempt < 1 || t.Attempt > pcm.MaxServiceTries || t.LimitMS < 1 || t.LimitMS > pcm.MaxTimeLimit.Milliseconds() {
		return pcm.Errorf(pcm.Invalid, "attempt %d or time limit %d ms is out of range", t.Attempt, t.LimitMS)
	}
	if len(t.Seller.Public()) == 0 {
		return pcm.Errorf(pcm.Invalid, "the terms name no seller: %.80q is not a peer ID", t.Seller)
	}
	if !t.Cell.Valid() || !pcm.ValidName(string(t.Pool)) || !pcm.ValidName(t.Adapter) || !t.Spec.Valid() {
		return pcm.Errorf(pcm.Invalid, "the terms are malformed")
	}
	if err := t.Each.Validate(); err != nil {
		return err
	}
	if t.Abroad() && (!t.Home.Valid() || t.Home == t.Cell || t.AwardBy <= 0) || !t.Abroad() && t.AwardBy != 0 {
		return pcm.Errorf(pcm.Invalid, "terms of a trade abroad name another cell as the buyer's and until when it may be awarded; these name %.40q and %d", t.Home, t.AwardBy)
	}
	return t.Price.Validate()
}

// placedBy looks up a task that is placed by the given trade.
func (j *Job) placedBy(trade pcm.TradeID, step, index int) (*Task, error) {
	if step < 0 || step >= len(j.Steps) || index < 0 || index >= len(j.Steps[step].Tasks) {
		return nil, pcm.Errorf(pcm.Invalid, "%s has no task %d/%d", j.ID, step, index)
	}
	tk := &j.Steps[step].Tasks[index]
	if tk.State != pcm.TaskPlaced || tk.Trade != trade {
		return nil, pcm.Errorf(pcm.Conflict, "task %d/%d is %s with attempt %d of %s: %s has no say any more", step, index, tk.State, tk.Attempt, pcm.Short(tk.Trade), pcm.Short(trade))
	}
	return tk, nil
}

// accept takes results: the first accepted result of a task is the only one.
func (a *applying) accept(o *pcm.Op) (pcm.Spans, error) {
	op := o.Accept
	j, err := a.driven(op.Job, op.Term)
	if err != nil {
		return nil, err
	}
	if p := j.placedAbroad(op.Trade); p != nil {
		return a.acceptAbroad(o, j, p)
	}
	t, err := a.openTrade(op.Trade)
	if err != nil {
		return nil, err
	}
	if t.Terms.Job != j.ID || t.Terms.Abroad() {
		return nil, pcm.Errorf(pcm.Invalid, "%s is not of %s", t.ID, j.ID)
	}
	results, err := byIndex(op.Results)
	if err != nil {
		return nil, err
	}
	skipped, err := t.each(indexesOf(op.Results), func(i int, at *Attempt) error {
		tk, err := j.placedBy(t.ID, t.Terms.Step, i)
		if err != nil {
			return err
		}
		r := results[i]
		// One in dispute as well: what a result costs is another question than whether it counts.
		if at.Result == nil || *at.Result != *r {
			return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s: the result is not the one that its seller finished with", t.ID, i, at.State)
		}
		a.decide(j, t.ID, at.Charge)
		tk.take(r)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(o, j.ID, t, t.Terms.Seller, j.Driver, j.Submitter)
	a.endIfDone(j)
	return skipped, nil
}

// take makes a result the task's own.
func (tk *Task) take(r *pcm.Result) {
	result := *r
	tk.Result, tk.State, tk.Reason = &result, pcm.TaskDone, r.Reason
	if r.Outcome != pcm.OutcomeOK {
		tk.State = pcm.TaskFailed
	}
	if r.Outcome == pcm.OutcomeStopped {
		tk.State = pcm.TaskCancelled
	}
}

// abandon gives attempts up.
func (a *applying) abandon(o *pcm.Op) (pcm.Spans, error) {
	op := o.Abandon
	j, err := a.driven(op.Job, op.Term)
	if err != nil {
		return nil, err
	}
	if len(op.Reason) > 256 || op.Fault != pcm.FaultSeller && op.Fault != pcm.FaultTask {
		return nil, pcm.Errorf(pcm.Invalid, "abandonment of %s needs a fault (task or seller) and a reason of at most 256 bytes", op.Trade)
	}
	at := slices.IndexFunc(j.Places, func(p Placement) bool { return p.Trade == op.Trade })
	if at < 0 {
		return nil, pcm.Errorf(pcm.Conflict, "no task of %s is placed with %s", j.ID, op.Trade)
	}
	step := j.Places[at].Step
	if err := checkTasks(op.Tasks); err != nil {
		return nil, err
	}
	if !op.Tasks.Valid(len(j.Steps[step].Tasks)) {
		return nil, pcm.Errorf(pcm.Invalid, "the abandonment names tasks that %s doesn't have", j.ID)
	}
	if j.Places[at].Terms != nil {
		return a.abandonAbroad(o, j, &j.Places[at])
	}
	t := a.trades[op.Trade] // nil: it was never awarded, or all of it is closed
	skipped, err := each(op.Tasks.All, func(i int) error { return a.abandonOne(j, t, step, i, op) })
	if err != nil {
		return nil, err
	}
	a.event(o, j.ID, t, j.Driver, j.Submitter)
	a.endIfDone(j)
	return skipped, nil
}

func (a *applying) abandonOne(j *Job, t *Trade, step, i int, op *pcm.Abandon) error {
	tk, err := j.placedBy(op.Trade, step, i)
	if err != nil {
		return err
	}
	var attempt *Attempt
	if t != nil {
		attempt = t.attempt(i)
	}
	var charge pcm.Micro
	switch {
	case attempt != nil && attempt.State.Live():
		return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s: stop it first", t.ID, i, attempt.State)
	case attempt != nil && attempt.Result != nil && op.Fault == pcm.FaultSeller:
		if attempt.State != pcm.AttemptDisputed {
			return pcm.Errorf(pcm.Conflict, "attempt %s/%d has finished: dispute it before its seller is blamed", t.ID, i)
		}
	case attempt != nil && attempt.Result != nil:
		charge = attempt.Charge
	case op.Fault == pcm.FaultTask:
		return pcm.Errorf(pcm.Conflict, "task %d/%d has no result that could be its own failure", step, i)
	}
	if err := j.retries(tk, step, i, op.Fault); err != nil {
		return err
	}
	a.decide(j, op.Trade, charge)
	j.again(tk, step, op.Reason)
	return nil
}

// retries counts a task's own failure, if it may be tried again after that.
func (j *Job) retries(tk *Task, step, i int, fault pcm.Fault) error {
	if fault == pcm.FaultTask {
		if !j.Steps[step].retryLeft(tk) || j.Stopping {
			return pcm.Errorf(pcm.Conflict, "task %d/%d has no retry left: accept its result", step, i)
		}
		tk.Failures++
	}
	return nil
}

// again has a task whose attempt was given up wait for the next one, if there may be one.
func (j *Job) again(tk *Task, step int, reason string) {
	if len(tk.History) < maxHistory {
		tk.History = append(tk.History, fmt.Sprintf("attempt %d at %s: %s", tk.Attempt, pcm.Short(tk.Seller), reason))
	}
	tk.State, tk.Reason = pcm.TaskWaiting, reason
	switch {
	case j.Stopping:
		tk.State = pcm.TaskCancelled
	case tk.Attempt >= j.Steps[step].mostAttempts():
		tk.State, tk.Reason = pcm.TaskFailed, fmt.Sprintf("given up after %d attempts; the last: %s", tk.Attempt, reason)
	}
}

// decide turns the budget held for one placed task into what it cost.
func (a *applying) decide(j *Job, trade pcm.TradeID, charge pcm.Micro) {
	at := slices.IndexFunc(j.Places, func(p Placement) bool { return p.Trade == trade })
	p := &j.Places[at] // the task is placed, so its placement is there
	j.Held -= p.HoldEach
	j.Paid += charge
	if p.Open--; p.Open == 0 {
		j.Places = slices.Delete(j.Places, at, at+1)
	}
}

// cancel ends what waits, and bars new places.
func (a *applying) cancel(o *pcm.Op) error {
	op := o.Cancel
	j, err := a.openJob(op.Job)
	if err != nil {
		return err
	}
	if a.by.Account != j.Buyer && a.by.Peer != j.Driver {
		return pcm.Errorf(pcm.Forbidden, "%s belongs to account %s", j.ID, pcm.Short(j.Buyer))
	}
	if len(op.Reason) > 256 {
		return pcm.Errorf(pcm.Invalid, "a reason has at most 256 bytes")
	}
	a.event(o, j.ID, nil, j.Driver, j.Submitter)
	a.halt(j, op.Reason)
	return nil
}

// halt cancels what waits and lets the driver see to what runs.
func (a *applying) halt(j *Job, reason string) {
	j.Stopping = true
	if j.Reason == "" {
		j.Reason = reason
	}
	for s := range j.Steps {
		for i := range j.Steps[s].Tasks {
			if tk := &j.Steps[s].Tasks[i]; tk.State == pcm.TaskWaiting {
				tk.State, tk.Reason = pcm.TaskCancelled, reason
			}
		}
	}
	a.endIfDone(j)
}

// endIfDone ends a job whose tasks have all reached their last state.
func (a *applying) endIfDone(j *Job) {
	if j.EndedAt != 0 {
		return
	}
	state := pcm.JobDone
	for s := range j.Steps {
		for i := range j.Steps[s].Tasks {
			switch tk := &j.Steps[s].Tasks[i]; {
			case !tk.State.Final():
				return
			case tk.State == pcm.TaskFailed:
				state = pcm.JobFailed
			case tk.State == pcm.TaskCancelled && state == pcm.JobDone:
				state = pcm.JobCancelled
			}
		}
	}
	j.State, j.EndedAt = state, a.stamp
	if m := a.members[j.Driver]; m != nil {
		m.Drives--
	}
	a.fact(pcm.Fact{Ended: &pcm.Ended{Job: j.ID, State: state, Reason: j.Reason}}, j.ID, nil, j.Driver, j.Submitter)
	a.archive(j)
}

// archive moves a job out of the hot state when nothing of it is open.
func (a *applying) archive(j *Job) {
	if !j.Settled() {
		return
	}
	a.document(JobKey(j.ID), j)
	delete(a.jobs, j.ID)
	a.tasks -= j.tasks()
	if m := a.members[j.Submitter]; m != nil {
		m.Tasks -= j.tasks()
	}
}

// JobKey is the document key of an archived job.
func JobKey(id pcm.JobID) string { return "job/" + string(id) }

// TradeKey is the document key of a closed trade.
func TradeKey(id pcm.TradeID) string { return "trade/" + string(id) }
