package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// seller runs what was awarded to this peer. It reacts to committed awards
// only; all that it does is idempotent by trade, task and attempt.
type seller struct {
	n        *Node
	adapters map[string]adapters.Adapter // by name
	mu       sync.Mutex
	trades   map[pcm.TradeID]*execution
	turns    map[string]chan struct{} // of starts, by adapter
	reports  *reports
	untidy   chan struct{} // something is left that may have to be removed, or taken up
	sessions sessions

	live    func(id pcm.TradeID, index uint64, tasks pcm.Spans) pcm.Spans // see inLedger
	applied func(ctx context.Context, index uint64) error                 // waits until the ledger here has come to an index
}

// execution is one trade that runs here. The seller's lock guards it, but for
// what prepare makes: that is fixed once prepared is set.
type execution struct {
	terms   pcm.Terms
	awarded adapters.BootTime // no earlier than the award
	index   uint64            // of the award's Raft entry; 0 if the ledger here is past it
	queue   []int             // not started, in order
	running map[int]*run      // started, or about to be; until their result is reported
	ended   map[int]bool      // reported, or about to be; or no longer wanted
	stop    map[int]string    // to be stopped, and why; whoever starts an attempt looks here
	kill    map[int]string    // of those, what this peer's operator ends, and why

	held     heldSpec
	mounts   []adapters.Mount
	module   string
	release  []func()
	prepared bool
	idle     chan struct{}   // closed when prepare has returned
	ctx      context.Context // ends when nothing more of the trade is to be done
	cancel   context.CancelFunc
}

// run is one attempt that runs here.
type run struct {
	began  bool              // to run; before, it is on its way, or waits at the back end
	since  adapters.BootTime // when it began; before the machine's boot, if that was elsewhere
	placed bool              // the back end has it
	status adapters.Status   // as the back end told it last, or why it is on its way
	vitals *vitals           // of a service whose health is checked
}

// adopted is an attempt that the back end has already.
func adopted(st adapters.Status) *run {
	r := &run{placed: true, status: st}
	if runs(st) {
		r.began, r.since = true, adapters.Now().Add(-st.Usage.Wall())
	}
	return r
}

func (x *execution) key(i int) adapters.Key {
	return adapters.Key{Trade: x.terms.Trade(), Index: i, Attempt: x.terms.Attempt}
}

func newSeller(n *Node) *seller {
	s := &seller{
		n: n, adapters: map[string]adapters.Adapter{}, trades: map[pcm.TradeID]*execution{}, reports: newReports(),
		turns: map[string]chan struct{}{}, untidy: make(chan struct{}, 1), sessions: sessions{by: map[adapters.Key]int{}},
	}
	s.live = s.inLedger
	s.applied = func(ctx context.Context, index uint64) error { return n.cell.WaitApplied(ctx, index) }
	for _, sale := range n.cfg.Sales {
		s.adapters[sale.Adapter.Name()] = sale.Adapter
	}
	return s
}

// observe reacts to what was committed.
func (s *seller) observe(e *pcm.Event) {
	if e.Terms == nil || e.Terms.Seller != s.n.self {
		return
	}
	switch {
	case e.Op != nil && e.Op.Award != nil:
		// After a start the event may be of an award whose attempts have ended since.
		if live := s.live(e.Trade, e.Index, e.Terms.Tasks); live.Len() > 0 {
			late := time.Duration(s.n.cell.LogTime()-e.Stamp) * time.Millisecond
			s.begin(e.Trade, *e.Terms, live, nil, adapters.Now().Add(-max(0, min(late, time.Hour))), e.Index)
		}
	case e.Op != nil && e.Op.Finish != nil: // of what ran before a start of this peer, too
		s.finished(e.Trade, e.Op.Finish.Results)
	case e.Op != nil && e.Op.Stop != nil:
		s.halt(e.Trade, e.Op.Stop.Tasks, e.Op.Stop.Reason)
	case e.Op != nil && e.Op.Dispute != nil && e.Op.Dispute.Undelivered:
		s.reports.giveIn(e.Trade, e.Op.Dispute.Tasks)
	case e.Fact != nil && e.Fact.Lost != nil:
		s.lose(e.Trade, e.Fact.Lost.Tasks, e.Fact.Lost.Reason)
	case e.Fact != nil && e.Fact.Closed != nil:
		s.end(e.Trade)
	}
}

// begin takes a trade up: the attempts of it that are live in the ledger. Those
// that its back end has already, known, run or have ended there, whatever
// becomes of the preparations for the others. index is of the award, 0 if live is
// from the ledger.
func (s *seller) begin(id pcm.TradeID, t pcm.Terms, live pcm.Spans, known map[int]adapters.Status, awarded adapters.BootTime, index uint64) {
	s.mu.Lock()
	if s.trades[id] != nil {
		s.mu.Unlock()
		return
	}
	x := &execution{
		terms: t, awarded: awarded, index: index, running: map[int]*run{}, ended: map[int]bool{}, stop: map[int]string{},
		idle: make(chan struct{}),
	}
	x.ctx, x.cancel = context.WithCancel(s.n.run)
	var ended []adapters.Status
	for i := range live.All {
		st, ok := known[i]
		if !ok {
			x.queue = append(x.queue, i)
			continue
		}
		x.running[i] = adopted(st)
		if st.State == adapters.Ended {
			ended = append(ended, st)
		}
	}
	s.trades[id] = x
	s.mu.Unlock()
	s.noteTrade(x, live, known)
	for _, st := range ended {
		go s.ended(st)
	}
	go s.prepare(id, x)
}

// prepare gets everything ready that the trade's tasks need, then starts them. If
// it can't, it rejects what has not started; what runs goes on.
func (s *seller) prepare(id pcm.TradeID, x *execution) {
	defer close(x.idle)
	err := s.veto(x)
	if err != nil && s.holds(x) {
		s.reject(id, x, clip(err.Error())) // what runs goes on, and must be known as well as before
		err = nil
	}
	if err == nil {
		err = s.ready(x)
	}
	if err != nil {
		if s.n.run.Err() != nil || x.ctx.Err() != nil {
			return
		}
		s.n.log.Warn("can't prepare a trade", "trade", id, "error", err)
		s.reject(id, x, clip(err.Error()))
		return
	}
	s.mu.Lock()
	x.prepared = true
	s.mu.Unlock()
	s.next(id, x)
}

// veto is this peer's own rule about what is new.
func (s *seller) veto(x *execution) error {
	var drives pcm.AccountID
	s.n.cell.View(func() {
		if m, ok := s.n.state.Member(x.terms.Driver); ok {
			drives = m.Account
		}
	})
	return s.mayAward(x.terms, drives)
}

// mayAward refuses what this peer's operator doesn't want to run. drives is the
// account of the driver.
func (s *seller) mayAward(t pcm.Terms, drives pcm.AccountID) error {
	if s.n.draining.Load() {
		return pcm.Errorf(pcm.Unavailable, "this peer is going down and takes no new work")
	}
	if err := s.n.operator.mayBuy(t, drives); err != nil {
		return err
	}
	return s.n.operator.drainingPool(t.Pool)
}

// holds tells whether something of a trade runs here.
func (s *seller) holds(x *execution) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(x.running) > 0
}

// ready brings spec, inputs and module here, and checks the award by them.
func (s *seller) ready(x *execution) error {
	t := x.terms
	if s.adapters[t.Adapter] == nil {
		return pcm.Errorf(pcm.Refused, "adapter %s is no longer in use here", t.Adapter)
	}
	h, err := s.spec(x)
	if err != nil {
		return err
	}
	if t.Step >= len(h.spec.Steps) {
		return pcm.Errorf(pcm.Invalid, "the spec has no step %d", t.Step)
	}
	x.held = h
	st := h.spec.Steps[t.Step]
	if st.Service != nil {
		if err := s.n.cfg.Operations.allows(pcm.FeatureService, t.Buyer == s.n.account); err != nil {
			return err
		}
	}
	each, err := st.Shape()
	if err != nil {
		return err
	}
	if each != t.Each || st.Limit().Milliseconds() != t.LimitMS {
		return pcm.Errorf(pcm.Invalid, "the award reserves %s for %d ms, the spec asks for %s for %d ms", t.Each, t.LimitMS, each, st.Limit().Milliseconds())
	}
	if err := s.meets(st, t.Pool); err != nil {
		return err
	}
	if err := s.ruled(t, h); err != nil {
		return err
	}
	var need []pcm.Digest
	if st.ModuleAt != "" {
		need = append(need, st.ModuleAt)
	}
	for _, in := range st.Inputs {
		need = append(need, in.Digest)
	}
	if len(need) == 0 {
		return nil
	}
	if err := s.n.pin(tradeOwner(t.Trade()), need...); err != nil {
		return err
	}
	if err := s.inputs(x, need); err != nil {
		return pcm.Errorf(pcm.ErrorCode(err), "can't get the inputs: %w", err)
	}
	if st.ModuleAt != "" {
		path, release, err := s.n.store.Materialized(x.ctx, st.ModuleAt)
		if err != nil {
			return err
		}
		x.module, x.release = path, append(x.release, release)
	}
	for _, in := range st.Inputs {
		path, release, err := s.n.store.Materialized(x.ctx, in.Digest)
		if err != nil {
			return err
		}
		x.mounts, x.release = append(x.mounts, adapters.Mount{Path: path, Target: in.Target}), append(x.release, release)
	}
	return nil
}

// meets refuses a step that demands what the pool is not. The driver saw to that
// by the offer; another's driver need not have.
func (s *seller) meets(st pcm.Step, id pcm.PoolID) error {
	var pool pcm.Pool
	s.n.cell.View(func() {
		if p, ok := s.n.state.Pool(placeKey{Peer: s.n.self, Pool: id}); ok {
			pool = p.Pool
		}
	})
	return lacks(st, pool)
}

func lacks(st pcm.Step, pool pcm.Pool) error {
	d, err := st.Demand(pool.Class)
	if err != nil {
		return err
	}
	for _, f := range st.Wants() {
		if !pool.Has(f) {
			return pcm.Errorf(pcm.Refused, "pool %s doesn't offer %s, which the task asks for", pool.ID, f)
		}
	}
	if why := d.Misses(pool); why != "" {
		return pcm.Errorf(pcm.Refused, "pool %s: %s", pool.ID, why)
	}
	return nil
}

// How long a seller looks for the spec of what was awarded to it, and how long it
// asks those who may have it before it looks who that is now: a driver that died
// is replaced meanwhile.
const (
	specWait = time.Minute
	specTry  = 4 * time.Second
)

// spec gets the spec of a trade's job. Those who have it may refuse it for a
// while: after a restart their copy of the ledger is behind, and doesn't show
// that this peer sells to the job.
func (s *seller) spec(x *execution) (heldSpec, error) {
	t := x.terms
	ctx, cancel := context.WithTimeout(x.ctx, specWait)
	defer cancel()
	var last error
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, specTry) {
		try, stop := context.WithTimeout(ctx, specTry)
		h, err := s.n.specs.obtain(try, t.Job, t.Spec, s.sources(t)...)
		late := try.Err() != nil
		stop()
		if err == nil {
			return h, nil
		}
		if last == nil || !late {
			last = err
		}
		if code := pcm.ErrorCode(err); !late && (code == pcm.Invalid || code == pcm.TooLarge) || !pause(ctx, wait) {
			return h, last
		}
	}
}

// inputs gets the inputs of a trade, as long as that takes; when those who have
// them can't be reached, it looks for some time who else has.
func (s *seller) inputs(x *execution, need []pcm.Digest) error {
	patience := time.Now().Add(specWait)
	for {
		err := s.n.files.FetchAll(x.ctx, need, s.sources(x.terms)...)
		switch pcm.ErrorCode(err) {
		case pcm.Unavailable, pcm.Forbidden, pcm.NotFound:
		default:
			return err
		}
		if time.Now().After(patience) || !pause(x.ctx, time.Second) {
			return err
		}
	}
}

// sources are the peers that may have a job's spec and inputs: the one that
// drives it now comes first. Of a job in another cell it is not known who that is:
// other peers of the buyer are asked too.
func (s *seller) sources(t pcm.Terms) []pcm.PeerID {
	var all []pcm.PeerID
	s.n.cell.View(func() {
		if t.Abroad() {
			all = append(all, t.Driver)
			for _, m := range s.n.state.Members() {
				if m.Account == t.Buyer && len(all) < 8 {
					all = append(all, m.Peer)
				}
			}
		} else if j, ok := s.n.state.Job(t.Job); ok {
			all = append(all, j.Driver, j.Submitter)
		}
	})
	var list []pcm.PeerID
	for _, p := range append(all, t.Driver) {
		if p != s.n.self && !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	return list
}

// watch follows what the adapters tell, and tidies up what is left over.
func (s *seller) watch(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, a := range s.adapters {
		wg.Go(func() { s.watchOne(ctx, a) })
	}
	wg.Go(func() { s.tidy(ctx) })
	wg.Wait()
	return nil
}

func (s *seller) watchOne(ctx context.Context, a adapters.Adapter) {
	for ctx.Err() == nil {
		changes, err := a.Watch(ctx)
		if err == nil {
			// What changed before the watch began is in the list.
			var list []adapters.Status
			if list, err = a.List(ctx); err == nil {
				for _, st := range list {
					s.changed(st)
				}
				for st := range changes {
					s.changed(st)
				}
			}
		}
		if ctx.Err() == nil {
			s.n.log.Warn("lost sight of a back end", "adapter", a.Name(), "error", err)
			pause(ctx, time.Second)
		}
	}
}

// changed takes in what a back end tells of an attempt.
func (s *seller) changed(st adapters.Status) {
	if st.State == adapters.Ended {
		go s.ended(st)
		return
	}
	s.follow(st)
}

// ended takes the end of an attempt in: its outputs are stored before it is reported.
func (s *seller) ended(st adapters.Status) {
	s.mu.Lock()
	x := s.trades[st.Trade]
	if x == nil || st.Attempt != x.terms.Attempt || x.ended[st.Index] && x.running[st.Index] == nil {
		s.mu.Unlock()
		// Its trade is over, or it was given up. If neither is so, its trade is yet to be taken up.
		s.nudgeTidy()
		return
	}
	if q := slices.Index(x.queue, st.Index); q >= 0 { // from before a restart, when the back end could not be asked
		x.queue = slices.Delete(x.queue, q, q+1)
		x.running[st.Index] = adopted(st)
	}
	if x.running[st.Index] == nil || x.ended[st.Index] {
		s.mu.Unlock()
		return
	}
	x.ended[st.Index] = true
	sick := x.running[st.Index].sickness()
	s.mu.Unlock()
	r := pcm.Result{
		Index: st.Index, Outcome: st.Outcome, ExitCode: st.ExitCode, Usage: st.Usage, Reason: clip(st.Reason),
	}
	if sick != "" && r.Outcome != pcm.OutcomeSeller { // this peer has stopped it, for a fault of its own
		r.Outcome, r.Reason = pcm.OutcomeFailed, clip(sick)
	}
	if r.Outcome != pcm.OutcomeSeller {
		out, err := s.collect(x, st.Key, r.Outcome != pcm.OutcomeOutput)
		if err != nil {
			s.n.log.Warn("can't keep the outputs of a task", "trade", st.Trade, "task", st.Index, "error", err)
			r = pcm.Result{Index: st.Index, Outcome: pcm.OutcomeSeller, Usage: st.Usage, Reason: clip("its outputs could not be kept: " + err.Error())}
		}
		r.Output = out
		if r.Outcome == pcm.OutcomeOK {
			r.Reason = clip(orElse(s.missing(x, st.Key), r.Reason))
		}
	}
	s.done(st.Trade, x, r)
}

// done reports a result, unless the cell has given the attempt up meanwhile, and
// makes room for the next one.
func (s *seller) done(id pcm.TradeID, x *execution, r pcm.Result) {
	s.mu.Lock()
	r = x.killed(r)
	wanted := x.running[r.Index] != nil
	x.ended[r.Index] = true
	delete(x.running, r.Index)
	s.mu.Unlock()
	if wanted {
		s.note(x, "ended", r)
		s.reports.finished(id, r)
	}
	s.next(id, x)
}

// reject vetoes all of a trade that has not started.
func (s *seller) reject(id pcm.TradeID, x *execution, reason string) {
	s.mu.Lock()
	queue := x.queue
	x.queue = nil
	for _, i := range queue {
		x.ended[i] = true
	}
	s.mu.Unlock()
	for _, i := range queue {
		r := pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: reason}
		s.note(x, "refused", r)
		s.reports.finished(id, r)
	}
}

// extend moves the deadlines of what runs here after a renewal that was sent at a
// moment and committed.
func (s *seller) extend(ctx context.Context, sent adapters.BootTime) {
	by := map[string]map[adapters.Key]adapters.BootTime{}
	s.mu.Lock()
	for id, x := range s.trades {
		for i, r := range x.running {
			if by[x.terms.Adapter] == nil {
				by[x.terms.Adapter] = map[adapters.Key]adapters.BootTime{}
			}
			var ran time.Duration // as the ledger has it: what waits has not started
			if r.began {
				ran = max(0, time.Duration(sent-r.since))
			}
			by[x.terms.Adapter][adapters.Key{Trade: id, Index: i, Attempt: x.terms.Attempt}] = sent.Add(pcm.LeaseFor(ran))
		}
	}
	s.mu.Unlock()
	// A back end that hangs keeps neither others nor the next renewal waiting.
	ctx, cancel := context.WithTimeout(ctx, pcm.RenewEvery)
	defer cancel()
	var wg sync.WaitGroup
	for name, leases := range by {
		if f, ok := s.adapters[name].(adapters.Fencer); ok {
			wg.Go(func() {
				if err := f.Extend(ctx, leases); err != nil {
					s.n.log.Warn("can't extend leases", "adapter", name, "tasks", len(leases), "error", err)
				}
			})
		}
	}
	wg.Wait()
}

// termsOf are those of an open trade of this seller.
func (s *seller) termsOf(id pcm.TradeID) (terms pcm.Terms, ok bool) {
	s.mu.Lock()
	x := s.trades[id]
	s.mu.Unlock()
	if x != nil {
		return x.terms, true
	}
	// Not yet taken up after a restart, or about to be closed.
	s.n.cell.View(func() {
		if t, open := s.n.state.Trade(id); open {
			terms, ok = t.Terms, true
		}
	})
	return terms, ok
}

// busy counts the attempts that run or wait here.
func (s *seller) busy() (running, queued int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.trades {
		running += len(x.running)
		queued += len(x.queue)
	}
	return running, queued
}
