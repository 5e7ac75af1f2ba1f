package node

import (
	"context"
	"errors"
	"io/fs"
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
	reports  *reports
}

// execution is one trade that runs here. The seller's lock guards it.
type execution struct {
	terms    pcm.Terms
	awarded  adapters.BootTime // no earlier than the award
	queue    []int             // not started, in order
	running  map[int]*run
	ended    map[int]bool // reported
	stopped  string       // why the buyer wants no more of it
	held     heldSpec
	mounts   []adapters.Mount
	module   string
	release  []func()
	prepared bool
	ctx      context.Context // ends when nothing more of the trade is to be done
	cancel   context.CancelFunc
}

// run is one attempt that runs here.
type run struct {
	since adapters.BootTime
}

func newSeller(n *Node) *seller {
	s := &seller{n: n, adapters: map[string]adapters.Adapter{}, trades: map[pcm.TradeID]*execution{}, reports: newReports()}
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
		late := time.Duration(s.n.cell.LogTime()-e.Stamp) * time.Millisecond
		s.begin(e.Trade, *e.Terms, nil, adapters.Now().Add(-max(0, min(late, time.Hour))))
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

// begin takes an award up. known are attempts that the back end already has.
func (s *seller) begin(id pcm.TradeID, t pcm.Terms, known map[int]adapters.Status, awarded adapters.BootTime) {
	s.mu.Lock()
	if s.trades[id] != nil {
		s.mu.Unlock()
		return
	}
	x := &execution{terms: t, awarded: awarded, running: map[int]*run{}, ended: map[int]bool{}}
	x.ctx, x.cancel = context.WithCancel(s.n.run)
	for i := range t.Tasks.All {
		x.queue = append(x.queue, i)
	}
	s.trades[id] = x
	s.mu.Unlock()
	go s.prepare(id, x, known)
}

// prepare gets everything ready that the trade's tasks need, then starts them.
func (s *seller) prepare(id pcm.TradeID, x *execution, known map[int]adapters.Status) {
	if err := s.ready(x); err != nil {
		if s.n.run.Err() != nil || x.ctx.Err() != nil {
			return
		}
		s.n.log.Warn("can't run a trade", "trade", id, "error", err)
		s.reject(id, x, clip(err.Error()))
		return
	}
	s.mu.Lock()
	x.prepared = true
	var ended []adapters.Status
	for i, st := range known {
		x.queue = slices.DeleteFunc(x.queue, func(q int) bool { return q == i })
		x.running[i] = &run{since: adapters.Now().Add(-st.Usage.Wall())}
		if st.State == adapters.Ended {
			ended = append(ended, st)
		}
	}
	s.mu.Unlock()
	for _, st := range ended {
		s.ended(st)
	}
	s.next(id, x)
}

// ready checks this peer's own rules and brings spec, inputs and module here.
func (s *seller) ready(x *execution) error {
	t := x.terms
	if s.adapters[t.Adapter] == nil {
		return pcm.Errorf(pcm.Refused, "adapter %s is no longer in use here", t.Adapter)
	}
	if s.n.draining.Load() {
		return pcm.Errorf(pcm.Unavailable, "this peer is going down and takes no new work")
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
	each, err := st.Shape()
	if err != nil {
		return err
	}
	if each != t.Each || st.Limit().Milliseconds() != t.LimitMS {
		return pcm.Errorf(pcm.Invalid, "the award reserves %s for %d ms, the spec asks for %s for %d ms", t.Each, t.LimitMS, each, st.Limit().Milliseconds())
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

// How long a seller looks for the spec of what was awarded to it, and how long it
// asks those who may have it before it looks who that is now: a driver that died
// is replaced meanwhile.
const (
	specWait = time.Minute
	specTry  = 4 * time.Second
)

// spec gets the spec of a trade's job.
func (s *seller) spec(x *execution) (heldSpec, error) {
	t := x.terms
	ctx, cancel := context.WithTimeout(x.ctx, specWait)
	defer cancel()
	for {
		try, stop := context.WithTimeout(ctx, specTry)
		h, err := s.n.specs.obtain(try, t.Job, t.Spec, s.sources(t)...)
		late := try.Err() != nil
		stop()
		if err == nil || ctx.Err() != nil || !late && pcm.ErrorCode(err) != pcm.Unavailable {
			return h, err
		}
		if !pause(ctx, 200*time.Millisecond) {
			return h, err
		}
	}
}

// inputs gets the inputs of a trade, as long as that takes; when those who have
// them can't be reached, it looks for some time who else has.
func (s *seller) inputs(x *execution, need []pcm.Digest) error {
	patience := time.Now().Add(specWait)
	for {
		err := s.n.files.FetchAll(x.ctx, need, s.sources(x.terms)...)
		if pcm.ErrorCode(err) != pcm.Unavailable || time.Now().After(patience) || !pause(x.ctx, time.Second) {
			return err
		}
	}
}

func tradeOwner(id pcm.TradeID) string { return "trade/" + string(id) }

// sources are the peers that may have a job's spec and inputs: the one that
// drives it now comes first.
func (s *seller) sources(t pcm.Terms) []pcm.PeerID {
	var all []pcm.PeerID
	s.n.cell.View(func() {
		if j, ok := s.n.state.Job(t.Job); ok {
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

// next starts what has room: at most Width attempts of a trade run at once.
func (s *seller) next(id pcm.TradeID, x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for x.prepared && x.stopped == "" && len(x.queue) > 0 && len(x.running) < x.terms.Width && x.ctx.Err() == nil {
		i := x.queue[0]
		x.queue = x.queue[1:]
		r := &run{since: adapters.Now()}
		x.running[i] = r
		go s.start(id, x, i)
	}
}

// start starts one attempt.
func (s *seller) start(id pcm.TradeID, x *execution, i int) {
	t := x.terms
	st := x.held.spec.Steps[t.Step]
	// The lease counts from the award or from the last renewal that was
	// committed since, by the boot clock, which nobody can set.
	deadline := max(x.awarded, s.n.renewedAt()).Add(pcm.LeaseFor(0))
	ctx, cancel := context.WithTimeout(x.ctx, time.Minute)
	defer cancel()
	err := s.adapters[t.Adapter].Start(ctx, adapters.Task{
		Key: adapters.Key{Trade: id, Index: i, Attempt: t.Attempt}, Job: t.Job, Fence: t.Fence, Count: st.Count,
		Command: st.Command, Module: x.module, Args: st.Args, Env: st.Env, Inputs: x.mounts, Outputs: st.Outputs,
		Resources: t.Each, Limit: time.Duration(t.LimitMS) * time.Millisecond, Deadline: deadline,
	})
	if err != nil {
		if s.n.run.Err() != nil {
			return
		}
		s.n.log.Warn("can't start a task", "trade", id, "task", i, "error", err)
		s.done(id, x, pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: clip(err.Error())})
		return
	}
	s.reports.started(id, i)
}

// watch follows what the adapters tell.
func (s *seller) watch(ctx context.Context) error {
	var wg sync.WaitGroup
	for _, a := range s.adapters {
		wg.Go(func() { s.watchOne(ctx, a) })
	}
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
					if st.State == adapters.Ended {
						go s.ended(st)
					}
				}
				for st := range changes {
					if st.State == adapters.Ended {
						go s.ended(st)
					}
				}
			}
		}
		if ctx.Err() == nil {
			s.n.log.Warn("lost sight of a back end", "adapter", a.Name(), "error", err)
			pause(ctx, time.Second)
		}
	}
}

// ended takes the end of an attempt in: its outputs are stored before it is reported.
func (s *seller) ended(st adapters.Status) {
	s.mu.Lock()
	x := s.trades[st.Trade]
	if x == nil || x.running[st.Index] == nil || x.ended[st.Index] || st.Attempt != x.terms.Attempt {
		s.mu.Unlock()
		return
	}
	x.ended[st.Index] = true
	s.mu.Unlock()
	r := pcm.Result{
		Index: st.Index, Outcome: st.Outcome, ExitCode: st.ExitCode, Usage: st.Usage, Reason: clip(st.Reason),
	}
	if r.Outcome != pcm.OutcomeSeller {
		out, err := s.collect(x, st.Key, r.Outcome != pcm.OutcomeOutput)
		if err != nil {
			s.n.log.Warn("can't keep the outputs of a task", "trade", st.Trade, "task", st.Index, "error", err)
			r = pcm.Result{Index: st.Index, Outcome: pcm.OutcomeSeller, Usage: st.Usage, Reason: clip("its outputs could not be kept: " + err.Error())}
		}
		r.Output = out
	}
	s.done(st.Trade, x, r)
}

// collect stores what an attempt left; "" if that is nothing. Of one that wrote
// more than it may, whole is false: only its streams are kept, which are cut at the cap.
func (s *seller) collect(x *execution, k adapters.Key, whole bool) (pcm.Digest, error) {
	ctx, cancel := context.WithTimeout(s.n.run, time.Hour)
	defer cancel()
	results, err := s.adapters[x.terms.Adapter].Results(ctx, k)
	if err != nil {
		return "", err
	}
	if !whole {
		results = streamsOnly{results}
	}
	if nothing(results) {
		return "", nil
	}
	d, stats, err := s.n.store.ImportFS(ctx, results, ".", tradeOwner(k.Trade))
	if err != nil {
		return "", err
	}
	for _, why := range stats.Skipped {
		s.n.log.Info("left out of a task's outputs", "trade", k.Trade, "task", k.Index, "what", why)
	}
	s.n.owners.add(jobOwner(x.terms.Job), d)
	if emptyOutput(d) {
		return "", nil
	}
	return d, nil
}

// streamsOnly shows results without the declared outputs.
type streamsOnly struct{ fs.FS }

func (s streamsOnly) Open(name string) (fs.File, error) {
	switch name {
	case ".", string(adapters.Stdout), string(adapters.Stderr):
		return s.FS.Open(name)
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// ReadDir lists the streams alone.
func (s streamsOnly) ReadDir(name string) ([]fs.DirEntry, error) {
	if name != "." {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	list, err := fs.ReadDir(s.FS, ".")
	return slices.DeleteFunc(list, func(e fs.DirEntry) bool { return e.IsDir() }), err
}

// nothing tells whether results are two empty streams and no outputs.
func nothing(results fs.FS) bool {
	if _, err := fs.Stat(results, "out"); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	for _, name := range []string{"stdout", "stderr"} {
		if info, err := fs.Stat(results, name); err == nil && info.Size() > 0 {
			return false
		}
	}
	return true
}

// done reports a result and makes room for the next attempt.
func (s *seller) done(id pcm.TradeID, x *execution, r pcm.Result) {
	s.mu.Lock()
	x.ended[r.Index] = true
	delete(x.running, r.Index)
	s.mu.Unlock()
	s.reports.finished(id, r)
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
		s.reports.finished(id, pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: reason})
	}
}

// halt ends attempts because the buyer asks.
func (s *seller) halt(id pcm.TradeID, tasks pcm.Spans, reason string) {
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return
	}
	var queued, running []int
	x.queue = slices.DeleteFunc(x.queue, func(i int) bool {
		if tasks.Has(i) {
			queued = append(queued, i)
			x.ended[i] = true
			return true
		}
		return false
	})
	for i := range x.running {
		if tasks.Has(i) {
			running = append(running, i)
		}
	}
	s.mu.Unlock()
	for _, i := range queued {
		s.reports.finished(id, pcm.Result{Index: i, Outcome: pcm.OutcomeStopped, Reason: clip(reason)})
	}
	for _, i := range running {
		go s.stopOne(x, adapters.Key{Trade: id, Index: i, Attempt: x.terms.Attempt}, reason)
	}
}

// stopGrace is how long a task has to end by itself when it is stopped.
const stopGrace = 5 * time.Second

func (s *seller) stopOne(x *execution, k adapters.Key, reason string) {
	ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
	defer cancel()
	if err := s.adapters[x.terms.Adapter].Stop(ctx, k, stopGrace, clip(reason)); err != nil {
		s.n.log.Warn("can't stop a task", "attempt", k, "error", err)
	}
}

// lose ends attempts that the cell has given up: their results will not be paid.
func (s *seller) lose(id pcm.TradeID, tasks pcm.Spans, reason string) {
	s.mu.Lock()
	x := s.trades[id]
	if x == nil {
		s.mu.Unlock()
		return
	}
	x.queue = slices.DeleteFunc(x.queue, tasks.Has)
	var running []int
	for i := range x.running {
		if tasks.Has(i) {
			x.ended[i] = true
			running = append(running, i)
		}
	}
	s.mu.Unlock()
	for _, i := range running {
		go s.stopOne(x, adapters.Key{Trade: id, Index: i, Attempt: x.terms.Attempt}, reason)
	}
}

// end cleans up after a trade that is closed.
func (s *seller) end(id pcm.TradeID) {
	s.mu.Lock()
	x := s.trades[id]
	delete(s.trades, id)
	s.mu.Unlock()
	if x == nil {
		return
	}
	x.cancel()
	go func() {
		for _, release := range x.release {
			release()
		}
		ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
		defer cancel()
		for i := range x.terms.Tasks.All {
			k := adapters.Key{Trade: id, Index: i, Attempt: x.terms.Attempt}
			if err := s.adapters[x.terms.Adapter].Remove(ctx, k); err != nil && ctx.Err() == nil {
				s.n.log.Info("can't remove a task that has ended yet", "attempt", k, "reason", err)
			}
		}
		s.n.unpin(tradeOwner(id))
	}()
}

// resync brings what runs here in line with the ledger: after a start, and when
// events were missed. What the back ends still run under our keys is adopted;
// what they run and nobody wants is ended and removed.
func (s *seller) resync() {
	type open struct {
		terms   pcm.Terms
		live    pcm.Spans
		stop    map[int]string
		awarded adapters.BootTime
	}
	trades := map[pcm.TradeID]open{}
	now := s.n.cell.LogTime()
	s.n.cell.View(func() {
		for _, t := range s.n.state.Trades() {
			if t.Terms.Seller != s.n.self {
				continue
			}
			o := open{terms: t.Terms, stop: map[int]string{}}
			var live, undelivered []int
			for i, at := range t.All {
				if at.State == pcm.AttemptDisputed && at.Undelivered {
					undelivered = append(undelivered, i)
				}
				if at.State.Live() {
					live = append(live, i)
					if at.Stop != "" {
						o.stop[i] = at.Stop
					}
				}
			}
			if len(undelivered) > 0 {
				s.reports.giveIn(t.ID, pcm.SpansOf(undelivered))
			}
			o.live = pcm.SpansOf(live)
			o.awarded = adapters.Now().Add(-time.Duration(max(0, now-t.AwardedAt)) * time.Millisecond)
			trades[t.ID] = o
		}
	})
	known := map[pcm.TradeID]map[int]adapters.Status{}
	for name, a := range s.adapters {
		ctx, cancel := context.WithTimeout(s.n.run, 30*time.Second)
		list, err := a.List(ctx)
		cancel()
		if err != nil {
			s.n.log.Warn("can't ask a back end what runs there", "adapter", name, "error", err)
			continue
		}
		for _, st := range list {
			o, ok := trades[st.Trade]
			if ok && st.Attempt == o.terms.Attempt && o.live.Has(st.Index) {
				if known[st.Trade] == nil {
					known[st.Trade] = map[int]adapters.Status{}
				}
				known[st.Trade][st.Index] = st
				continue
			}
			if !ok {
				go s.clear(a, st)
			}
		}
	}
	s.mu.Lock()
	var over []pcm.TradeID
	for id := range s.trades {
		if _, ok := trades[id]; !ok {
			over = append(over, id)
		}
	}
	s.mu.Unlock()
	for _, id := range over {
		s.end(id)
	}
	for id, o := range trades {
		if o.live.Len() > 0 {
			live := o.terms
			s.adopt(id, live, o.live, known[id], o.awarded)
			for i, why := range o.stop {
				s.halt(id, pcm.Spans{{Lo: i, Hi: i + 1}}, why)
			}
		}
	}
}

// adopt takes up a trade of before a restart: only what is still live of it.
func (s *seller) adopt(id pcm.TradeID, t pcm.Terms, live pcm.Spans, known map[int]adapters.Status, awarded adapters.BootTime) {
	s.begin(id, t, known, awarded)
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.trades[id]; x != nil {
		x.queue = slices.DeleteFunc(x.queue, func(i int) bool { return !live.Has(i) })
	}
}

// clear ends and removes an attempt of a trade that is no longer open.
func (s *seller) clear(a adapters.Adapter, st adapters.Status) {
	ctx, cancel := context.WithTimeout(s.n.run, time.Minute)
	defer cancel()
	if st.State != adapters.Ended {
		if err := a.Stop(ctx, st.Key, stopGrace, "its trade is closed"); err != nil {
			s.n.log.Warn("can't stop a task of a closed trade", "attempt", st.Key, "error", err)
			return
		}
	}
	if err := a.Remove(ctx, st.Key); err != nil {
		s.n.log.Info("can't remove a task of a closed trade yet", "attempt", st.Key, "reason", err)
	}
}

// leases are the deadlines of what runs here after a renewal that was sent at a moment.
func (s *seller) extend(ctx context.Context, sent adapters.BootTime) {
	by := map[string]map[adapters.Key]adapters.BootTime{}
	s.mu.Lock()
	for id, x := range s.trades {
		for i, r := range x.running {
			if by[x.terms.Adapter] == nil {
				by[x.terms.Adapter] = map[adapters.Key]adapters.BootTime{}
			}
			ran := time.Duration(sent - r.since)
			by[x.terms.Adapter][adapters.Key{Trade: id, Index: i, Attempt: x.terms.Attempt}] = sent.Add(pcm.LeaseFor(ran))
		}
	}
	s.mu.Unlock()
	for name, leases := range by {
		if f, ok := s.adapters[name].(adapters.Fencer); ok {
			if err := f.Extend(ctx, leases); err != nil {
				s.n.log.Warn("can't extend leases", "adapter", name, "tasks", len(leases), "error", err)
			}
		}
	}
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
