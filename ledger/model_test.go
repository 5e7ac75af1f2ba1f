package ledger_test

import (
	"cmp"
	"math/big"
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// model is a second, deliberately dumb ledger. It keeps everything for ever,
// counts nothing in advance and adds everything up anew for each question. It
// judges only whether an operation is good, and what is seen of the outcome.
type model struct {
	cell    pcm.CellID
	now     int64
	wall    int64
	elected int64  // when the last leader began
	record  uint64 // number of the record that the command makes, if it makes one
	nth     uint64 // of the operation in the command
	members map[pcm.PeerID]*mMember
	pools   map[ledger.PoolKey]*mPool
	jobs    map[pcm.JobID]*mJob
	trades  map[pcm.TradeID]*mTrade
	burned  map[pcm.Digest]pcm.PeerID
	paid    []mPaid

	netted   []pcm.NettingID
	settings map[string]*mSetting
	bases    []mBase
}

type mMember struct {
	account     pcm.AccountID
	expires     int64
	heard       int64
	incarnation uint64
	offer       uint64
	credit      pcm.Micro
	note        bool // has a note key
}

type mPool struct {
	pcm.Pool
	offer    uint64
	declared bool
}

type mJob struct {
	pcm.Submit
	submitter, driver pcm.PeerID
	buyer             pcm.AccountID
	term, fence       uint64
	at, driven        int64
	stopping          bool
	ended             pcm.JobState
	tasks             [][]mTask
	placed            map[pcm.TradeID]pcm.Terms
	spent             pcm.Micro
}

type mTask struct {
	state    pcm.TaskState
	attempt  int
	failures int
	trade    pcm.TradeID
	seller   pcm.PeerID
}

type mTrade struct {
	pcm.Terms
	at       int64
	attempts map[int]*mAttempt
}

type mAttempt struct {
	state    pcm.AttemptState
	started  int64
	counted  int64 // run time that is charged, ms
	asked    int64 // to stop
	charge   pcm.Micro
	result   *pcm.Result
	used     pcm.Usage
	stop     bool
	disputed int64
}

type mPaid struct {
	ledger.BalanceKey
	amount pcm.Micro
}

func newModel(c *cell) *model {
	return &model{
		cell: c.genesis.Cell, members: map[pcm.PeerID]*mMember{}, pools: map[ledger.PoolKey]*mPool{},
		jobs: map[pcm.JobID]*mJob{}, trades: map[pcm.TradeID]*mTrade{}, burned: map[pcm.Digest]pcm.PeerID{},
		settings: map[string]*mSetting{},
	}
}

func final(s pcm.AttemptState) bool {
	return s == pcm.AttemptRejected || s == pcm.AttemptLost || s == pcm.AttemptSettled
}

func (t *mTrade) count(is func(pcm.AttemptState) bool) (n int) {
	for _, a := range t.attempts {
		if is(a.state) {
			n++
		}
	}
	return n
}

func (t *mTrade) open() bool {
	return t.count(func(s pcm.AttemptState) bool { return !final(s) }) > 0
}

// cost is Price.Cost by the book: each part rounded up.
func cost(p pcm.Price, each pcm.Resources, ms int64) pcm.Micro {
	part := func(price pcm.Micro, quantity, per int64) *big.Int {
		n := new(big.Int).Mul(big.NewInt(int64(price)), big.NewInt(ms))
		n.Mul(n, big.NewInt(quantity))
		d := new(big.Int).Mul(big.NewInt(per), big.NewInt(3600*1000))
		return n.Add(n, new(big.Int).Sub(d, big.NewInt(1))).Div(n, d)
	}
	sum := big.NewInt(int64(p.PerTask))
	sum.Add(sum, part(p.PerCPUHour, int64(each.CPU), 1000))
	sum.Add(sum, part(p.PerGiBHour, int64(each.Memory>>20), 1024))
	sum.Add(sum, part(p.PerGPUHour, each.GPU, 1))
	return pcm.Micro(sum.Int64())
}

func holdOf(t pcm.Terms) pcm.Micro { return cost(t.Price, t.Each, t.LimitMS) }

func chargeOf(t pcm.Terms, u pcm.Usage) pcm.Micro {
	return min(holdOf(t), cost(t.Price, t.Each, u.WallMS))
}

// reserved adds up what live attempts take of a pool.
func (m *model) reserved(k ledger.PoolKey) (r pcm.Resources, slots int) {
	for _, t := range m.trades {
		if t.Seller == k.Peer && t.Pool == k.Pool {
			n := min(t.Width, t.count(pcm.AttemptState.Live))
			r, slots = r.Plus(t.Each.Times(n)), slots+n
		}
	}
	return r, slots
}

// balance adds up what a buyer owes a seller, and what is held.
func (m *model) balance(k ledger.BalanceKey) (b ledger.Balance) {
	for _, p := range m.paid {
		if p.BalanceKey == k {
			b.Owed += p.amount
		}
	}
	for _, t := range m.trades {
		if m.key(t.Terms) == k {
			b.Held += pcm.Micro(t.count(func(s pcm.AttemptState) bool { return !final(s) })) * holdOf(t.Terms)
		}
	}
	return b
}

func (m *model) key(t pcm.Terms) ledger.BalanceKey {
	return ledger.BalanceKey{Buyer: t.Buyer, Seller: m.members[t.Seller].account, Unit: t.Price.Unit}
}

func (j *mJob) held() (h pcm.Micro) {
	for _, step := range j.tasks {
		for _, tk := range step {
			if tk.state == pcm.TaskPlaced {
				h += holdOf(j.placed[tk.trade])
			}
		}
	}
	return h
}

// settle lets log time act.
func (m *model) settle(now, wall int64, newTerm bool) {
	m.now, m.wall = now, wall
	if newTerm {
		m.elected = now
		for _, p := range m.members {
			p.heard = now
		}
	}
	for _, t := range m.trades {
		for _, a := range t.attempts {
			if a.state == pcm.AttemptDisputed && now >= a.disputed+7*24*3_600_000 {
				a.state, a.result = pcm.AttemptLost, nil
			}
			if !a.state.Live() {
				continue
			}
			from, ran := max(t.at, m.members[t.Seller].heard, a.started), int64(0)
			if a.started > 0 {
				ran = from - a.started
			}
			if now >= from+min(10_000+ran/20, 3_600_000)+2_000 || now >= m.end(t, a) {
				a.state = pcm.AttemptLost
			}
		}
	}
	for _, j := range m.jobs {
		if j.LastMS > 0 && now >= j.at+j.LastMS && !j.stopping && j.ended == "" {
			m.halt(j)
		}
	}
}

// end is when an attempt is over at the latest.
func (m *model) end(t *mTrade, a *mAttempt) int64 {
	end := max(a.started+t.LimitMS, m.elected) + 60_000
	if a.started == 0 {
		all := t.at
		for n := 0; n < len(t.attempts); n += t.Width {
			all += t.LimitMS
		}
		end = max(all, m.elected) + 3_600_000
	}
	if a.stop {
		end = min(end, max(a.asked, m.elected)+60_000)
	}
	return end
}

func (m *model) halt(j *mJob) {
	j.stopping = true
	for _, step := range j.tasks {
		for i := range step {
			if step[i].state == pcm.TaskWaiting {
				step[i].state = pcm.TaskCancelled
			}
		}
	}
	j.endIfDone()
}

func (j *mJob) endIfDone() {
	n := map[pcm.TaskState]int{}
	for _, step := range j.tasks {
		for _, tk := range step {
			n[tk.state]++
		}
	}
	switch {
	case n[pcm.TaskWaiting]+n[pcm.TaskPlaced] > 0:
	case n[pcm.TaskFailed] > 0:
		j.ended = pcm.JobFailed
	case n[pcm.TaskCancelled] > 0:
		j.ended = pcm.JobCancelled
	default:
		j.ended = pcm.JobDone
	}
}

// verdict is what the model says of an operation: whether it takes effect, and
// on which of its tasks it doesn't.
type verdict struct {
	ok      bool
	skipped []int
}

// judge applies a command's operations until one is refused.
func (m *model) judge(by pcm.PeerID, ops []pcm.Op) (all []verdict) {
	var before *mJob // Place and Award in one command are one step
	for i, op := range ops {
		m.nth = uint64(i)
		if op.Place != nil && m.jobs[op.Place.Terms.Job] != nil {
			before = m.jobs[op.Place.Terms.Job].clone()
		}
		v := m.op(by, op)
		if all = append(all, v); !v.ok {
			if op.Award != nil && before != nil {
				m.jobs[before.Job] = before
			}
			return all
		}
		if op.Place == nil {
			before = nil
		}
	}
	return all
}

func (j *mJob) clone() *mJob {
	c := *j
	c.tasks = nil
	for _, step := range j.tasks {
		c.tasks = append(c.tasks, slices.Clone(step))
	}
	c.placed = map[pcm.TradeID]pcm.Terms{}
	for k, v := range j.placed {
		c.placed[k] = v
	}
	return &c
}

func (m *model) op(by pcm.PeerID, op pcm.Op) verdict {
	me := m.members[by]
	if op.Enroll != nil {
		return m.enroll(by, op.Enroll)
	}
	if me == nil || m.wall > me.expires+pcm.Skew.Milliseconds() {
		return verdict{}
	}
	yes := func(ok bool) verdict { return verdict{ok: ok} }
	switch {
	case op.Capacity != nil:
		return yes(m.capacity(by, me, op.Capacity))
	case op.Renew != nil:
		if op.Renew.Incarnation < me.incarnation {
			return verdict{}
		}
		me.incarnation, me.heard = op.Renew.Incarnation, m.now
		return yes(true)
	case op.Burn != nil:
		inv, err := pcm.OpenInvite(op.Burn.Invite)
		if err != nil || inv.Cell != m.cell || m.members[inv.Issuer] == nil {
			return verdict{}
		}
		if old, used := m.burned[inv.Hash]; used {
			return yes(old == op.Burn.Peer)
		}
		if m.wall > inv.NotAfter+pcm.Skew.Milliseconds() {
			return verdict{}
		}
		m.burned[inv.Hash] = op.Burn.Peer
		return yes(true)
	case op.Submit != nil:
		return yes(m.submit(by, me, op.Submit))
	case op.Drive != nil:
		return yes(m.drive(by, me, op.Drive))
	case op.Place != nil:
		return yes(m.place(by, me, op.Place))
	case op.Award != nil:
		return yes(m.award(by, op.Award.Terms))
	case op.Reject != nil:
		return m.seller(by, op.Reject.Trade, op.Reject.Tasks, op.Reject.Reason != "" && len(op.Reject.Reason) <= 256, func(_ *mTrade, a *mAttempt, _ int) bool {
			if !a.state.Live() && a.state != pcm.AttemptDisputed {
				return false
			}
			a.result = nil
			return set(&a.state, pcm.AttemptRejected)
		})
	case op.Start != nil:
		return m.seller(by, op.Start.Trade, op.Start.Tasks, true, func(_ *mTrade, a *mAttempt, _ int) bool {
			if a.state != pcm.AttemptAwarded {
				return false
			}
			a.started = m.now
			return set(&a.state, pcm.AttemptStarted)
		})
	case op.Meter != nil:
		return m.seller(by, op.Meter.Trade, span(op.Meter.Index, op.Meter.Index+1), true, func(_ *mTrade, a *mAttempt, i int) bool {
			u := op.Meter.Usage
			return a.state.Live() && plausible(u) && u.WallMS >= a.used.WallMS && u.CPUMS >= a.used.CPUMS && set(&a.used, u)
		})
	case op.Finish != nil:
		return m.finish(by, op.Finish)
	case op.Accept != nil:
		return m.accept(by, op.Accept)
	case op.Abandon != nil:
		return m.abandon(by, op.Abandon)
	case op.Settle != nil:
		return yes(m.pay(by, me, op.Settle))
	case op.Dispute != nil:
		return yes(m.dispute(by, me, op.Dispute))
	case op.Stop != nil:
		t := m.trades[op.Stop.Trade]
		if t == nil || !t.open() || !m.buyerSide(by, me, t) || !walkable(op.Stop.Tasks) || op.Stop.Reason == "" {
			return verdict{}
		}
		return on(op.Stop.Tasks, func(i int) bool {
			a := t.attempts[i]
			return a != nil && a.state.Live() && !a.stop && set(&a.stop, true) && set(&a.asked, m.now)
		})
	case op.Cancel != nil:
		j := m.jobs[op.Cancel.Job]
		if j == nil || j.ended != "" || me.account != j.buyer && by != j.driver {
			return verdict{}
		}
		m.halt(j)
		return yes(true)
	case op.NoteKey != nil: // the random test has peers speak for themselves
		me.note = len(op.NoteKey.Key) > 0
		return yes(true)
	case op.Upgrade != nil:
		return yes(me.note)
	case op.Base != nil:
		return yes(m.base(me, op.Base))
	case op.Set != nil:
		return yes(m.set(me, op.Set))
	case op.Net != nil:
		return yes(m.net(op.Net))
	case op.Resolve != nil:
		return yes(m.resolve(op.Resolve))
	case op.Scale != nil:
		j, s := m.jobs[op.Scale.Job], op.Scale
		if j == nil || j.ended != "" || j.stopping || me.account != j.buyer || s.Step < 0 || s.Step >= len(j.Steps) || !j.Steps[s.Step].Service || s.Count < 0 || s.Count > j.Steps[s.Step].Count {
			return verdict{}
		}
		j.Steps[s.Step].Scale = s.Count
		return yes(true)
	}
	return verdict{}
}

func set[T any](p *T, v T) bool { *p = v; return true }

func walkable(s pcm.Spans) bool { return s.Valid(pcm.MaxTasks) && s.Len() <= pcm.MaxBatch }

// on applies f to each task; it is good if any is.
func on(tasks pcm.Spans, f func(int) bool) (v verdict) {
	for i := range tasks.All {
		if f(i) {
			v.ok = true
		} else {
			v.skipped = append(v.skipped, i)
		}
	}
	return v
}

func (m *model) enroll(by pcm.PeerID, op *pcm.Enroll) verdict {
	var p pcm.Passport
	if err := pcm.Unmarshal(op.Passport.Payload, &p); err != nil || m.wall > p.NotAfter+pcm.Skew.Milliseconds() {
		return verdict{}
	}
	if m.members[by] == nil && p.Peer != by {
		return verdict{}
	}
	old := m.members[p.Peer]
	if old == nil {
		old = &mMember{account: p.Account, heard: m.now}
		m.members[p.Peer] = old
	}
	if old.account != p.Account {
		return verdict{}
	}
	old.expires = max(old.expires, p.NotAfter)
	return verdict{ok: true}
}

func (m *model) capacity(by pcm.PeerID, me *mMember, op *pcm.Capacity) bool {
	if op.Offer <= me.offer || op.Credit < 0 || op.Credit > 1e18 {
		return false
	}
	names := map[pcm.PoolID]int{}
	for _, p := range op.Pools {
		if names[p.ID]++; p.Validate() != nil || names[p.ID] > 1 {
			return false
		}
	}
	me.offer, me.credit = op.Offer, op.Credit
	for k, p := range m.pools {
		if k.Peer == by {
			p.declared = false
		}
	}
	for _, p := range op.Pools {
		m.pools[ledger.PoolKey{Peer: by, Pool: p.ID}] = &mPool{p, op.Offer, true}
	}
	return true
}

func (m *model) submit(by pcm.PeerID, me *mMember, op *pcm.Submit) bool {
	if j := m.jobs[op.Job]; j != nil {
		return j.submitter == by && j.Spec == op.Spec
	}
	n := 0
	for _, s := range op.Steps {
		if s.Count < 1 || s.Retries < 0 || s.Retries > 100 {
			return false
		}
		if s.Service && (s.Retries > 0 || s.Scale < 0 || s.Scale > s.Count) || !s.Service && s.Scale != 0 {
			return false
		}
		n += s.Count
	}
	if n < 1 || n > pcm.MaxTasks || op.Budget < 0 || op.LastMS < 0 || op.PayAfterMS < 0 || op.PayAfterMS > 7*24*3_600_000 || !slices.Contains([]pcm.Takeover{"account", "any", "none"}, op.Takeover) {
		return false
	}
	j := &mJob{Submit: *op, submitter: by, driver: by, buyer: me.account, term: 1, at: m.now, driven: m.now, fence: m.fence(), placed: map[pcm.TradeID]pcm.Terms{}}
	j.Steps = slices.Clone(op.Steps)
	for _, s := range op.Steps {
		step := make([]mTask, s.Count)
		for i := range step {
			step[i].state = pcm.TaskWaiting
		}
		j.tasks = append(j.tasks, step)
	}
	m.jobs[op.Job] = j
	return true
}

// fence is where the fencing tokens of a job begin, and what they may come to.
func (m *model) fence() uint64 { return (16*m.record + m.nth) << 16 }

func (m *model) drive(by pcm.PeerID, me *mMember, op *pcm.Drive) bool {
	j := m.jobs[op.Job]
	if j == nil || j.ended != "" || op.Term != j.term+1 {
		return false
	}
	if by != j.submitter {
		if j.Takeover == pcm.TakeoverNone || j.Takeover == pcm.TakeoverAccount && me.account != j.buyer {
			return false
		}
		if by != j.driver && m.now < max(j.driven, m.members[j.driver].heard)+12_000 {
			return false
		}
	}
	j.driver, j.term, j.driven = by, op.Term, m.now
	return true
}

func (m *model) place(by pcm.PeerID, me *mMember, op *pcm.Place) bool {
	t, j := op.Terms, m.jobs[op.Terms.Job]
	if j == nil || j.ended != "" || j.stopping || j.driver != by || j.term != op.Term {
		return false
	}
	if !wellFormed(t) || t.Buyer != j.buyer || t.Spec != j.Spec || t.Driver != by || t.Price.Unit != j.Unit || t.Fence <= j.fence || t.Fence > m.fence() {
		return false
	}
	if t.Step < 0 || t.Step >= len(j.tasks) || !t.Tasks.Valid(len(j.tasks[t.Step])) {
		return false
	}
	if s := m.members[t.Seller]; me.account != j.buyer && s != nil && s.account == me.account {
		return false
	}
	if s := j.Steps[t.Step]; s.Service && t.Tasks[len(t.Tasks)-1].Hi > s.Scale {
		return false
	}
	for i := range t.Tasks.All {
		if tk := j.tasks[t.Step][i]; tk.state != pcm.TaskWaiting || tk.attempt+1 != t.Attempt {
			return false
		}
	}
	if total := holdOf(t)*pcm.Micro(t.Tasks.Len()) + j.held() + j.spent; j.Budget > 0 && total > j.Budget {
		return false
	}
	j.fence, j.placed[t.Trade()] = t.Fence, t
	for i := range t.Tasks.All {
		tk := &j.tasks[t.Step][i]
		tk.state, tk.attempt, tk.trade, tk.seller = pcm.TaskPlaced, t.Attempt, t.Trade(), t.Seller
	}
	return true
}

func wellFormed(t pcm.Terms) bool {
	n := t.Tasks.Len()
	return n >= 1 && n <= pcm.MaxBatch && t.Width >= 1 && t.Width <= n && t.Attempt >= 1 && t.LimitMS >= 1 &&
		t.LimitMS <= pcm.MaxTimeLimit.Milliseconds() && t.Each.Validate() == nil && t.Price.Validate() == nil && len(t.Seller.Public()) > 0 && t.Cell.Valid()
}

// names of things in an order, so that random draws are repeatable.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	var ks []K
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}
