package rest

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const (
	assembly = 10 * time.Second // how long the first one waits whose files are there for the others
	maxEach  = 8 << 20          // bytes that a call says of its tasks; what is beyond comes with the next
)

// arrays makes the jobs of tasks of one trade that come together by one call. What the
// call leaves open is looked for, and made, by each attempt for itself: its note says
// where in which array it may be.
type arrays struct {
	r     *Runner
	queue *supervisor.Queue[*attempt]
}

// newArrays is nil where the description has no such call.
func newArrays(r *Runner) *arrays {
	m := r.b.d.Create.Many
	if m == nil {
		return nil
	}
	s := &arrays{r: r}
	s.queue = supervisor.NewQueue(m.Most, reads(&m.Request, "array.width"), r.work.Go, s.assemble)
	return s
}

// seat is an attempt's place among those of its trade. It is of the attempt's own
// goroutine but for what says otherwise.
type seat struct {
	counted  bool // the queue knows the attempt: who comes once more had been let in
	single   bool // it is let in by itself
	g        *group
	admitted chan *group // told of its group; capacity 1

	mu   sync.Mutex
	left bool // it doesn't wait any more
}

// group is attempts whose jobs are to be made by one call.
type group struct {
	s     *arrays
	width int // that the back end is to keep to; 0: all may run at once
	kept  chan struct{}

	mu       sync.Mutex
	expected map[*attempt]bool // those that have yet to come
	ready    map[*attempt]chan outcome
	full     chan struct{} // closed when all have come that will
	closed   bool          // who comes now is too late
	timer    *time.Timer
}

// outcome is what became of one attempt of a group.
type outcome struct {
	id     string
	alone  bool  // nothing was made, and there is nobody to make it with
	again  bool  // nothing was made, and it is to be let in again
	single bool  // … by itself
	err    error // why there is no id
}

// enter waits until the attempt is let in, among those of its trade that may run at once.
func (s *arrays) enter(ctx context.Context, a *attempt) error {
	if s == nil || a.Batch < 2 || a.seat.g != nil {
		return nil
	}
	a.seat.admitted = make(chan *group, 1)
	kind := alike(a.Task)
	// What was called by itself, and may yet come, is found only by its own name.
	if a.seat.single = a.seat.single || a.n.Alone || a.n.Doubt; a.seat.single {
		kind = a.key
	}
	if a.seat.counted {
		s.queue.Again(a, &a.Task, kind)
	} else {
		s.queue.Add(a, &a.Task, kind)
	}
	a.seat.counted = true
	select {
	case a.seat.g = <-a.seat.admitted:
		return nil
	case <-time.After(2 * supervisor.Collect):
		a.Report(adapters.Pending, "queued", fmt.Sprintf("it waits until others of its job have ended, of which %d may run at once", a.Width))
	case <-ctx.Done():
	}
	select {
	case a.seat.g = <-a.seat.admitted:
		return nil
	case <-ctx.Done():
		a.seat.mu.Lock()
		a.seat.left = true
		a.seat.mu.Unlock()
		select {
		case g := <-a.seat.admitted:
			g.leave(a)
		default:
		}
		return ctx.Err()
	}
}

// adopt counts an attempt that the back end has, or may have.
func (s *arrays) adopt(n *note) bool {
	if s == nil || n.Task.Batch < 2 || n.Stage == fresh {
		return false
	}
	s.queue.Adopt(n.Task.Key)
	return true
}

// done lets others follow an attempt that has ended, or waits no more.
func (s *arrays) done(a *attempt) {
	if s == nil {
		return
	}
	if a.seat.g != nil {
		a.seat.g.leave(a)
	}
	if a.seat.counted {
		s.queue.Done(a, &a.Task)
	}
}

// alike is the same for tasks that one call can be of.
func alike(t adapters.Task) string {
	return fmt.Sprintf("%q %q %d %d %q %v %d %v %v %d", t.Job, t.Pool, t.Count, t.Attempt, t.Image, t.Network, t.Port, t.Resources, t.Limit, t.OutputCap)
}

// assemble waits until the attempts of a group have all that their jobs need, and
// makes these.
func (s *arrays) assemble(members []*attempt, width int) {
	g := &group{s: s, width: width, kept: make(chan struct{}), expected: map[*attempt]bool{}, ready: map[*attempt]chan outcome{}, full: make(chan struct{})}
	for _, a := range members {
		g.expected[a] = true
	}
	for _, a := range members {
		a.seat.admitted <- g
		a.seat.mu.Lock()
		left := a.seat.left
		a.seat.mu.Unlock()
		if left {
			g.leave(a)
		}
	}
	select {
	case <-g.full:
	case <-s.r.ctx.Done():
	}
	g.mu.Lock()
	g.closed = true
	ready := slices.SortedFunc(maps.Keys(g.ready), func(a, b *attempt) int { return a.Index - b.Index })
	g.mu.Unlock()
	g.make(s.r.ctx, ready)
}

// bySelf is for who can't be made with others. It is let in again: where the back end
// keeps to a width, there may be more of its trade than that by now.
func bySelf(why string) outcome {
	return outcome{again: true, single: true, err: &waits{word: "queued", reason: why + ": it is created by itself"}}
}

// leave is for who doesn't come.
func (g *group) leave(a *attempt) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.expected, a)
	if !g.closed {
		delete(g.ready, a)
		g.complete()
	}
}

// complete closes the group when nobody is missing. g.mu is held.
func (g *group) complete() {
	if len(g.expected) == 0 && !g.closed {
		g.closed = true
		close(g.full)
		if g.timer != nil {
			g.timer.Stop()
		}
	}
}

// join has the attempt's job made with the others'. Its note is the group's until join
// returns.
func (g *group) join(ctx context.Context, a *attempt) outcome {
	told := make(chan outcome, 1)
	g.mu.Lock()
	if !g.expected[a] || g.closed {
		g.mu.Unlock()
		return bySelf("the others of its call were made without it")
	}
	delete(g.expected, a)
	g.ready[a] = told
	if g.complete(); g.timer == nil && !g.closed {
		g.timer = time.AfterFunc(assembly, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			clear(g.expected)
			g.complete()
		})
	}
	g.mu.Unlock()
	select {
	case o := <-told:
		return o
	case <-ctx.Done():
	}
	g.mu.Lock()
	early := !g.closed
	if early {
		delete(g.ready, a)
		g.complete()
	}
	g.mu.Unlock()
	if early {
		return outcome{again: true, err: ctx.Err()}
	}
	// The call is on its way, or about to be: who knows what it makes can end it.
	<-g.kept
	wait := time.NewTimer(callTime)
	defer wait.Stop()
	select {
	case o := <-told:
		return o
	case <-wait.C:
		return outcome{err: pcm.Errorf(pcm.Unavailable, "the call for its job and others is not answered yet")}
	}
}

// tell gives the outcome to one of those that are ready.
func (g *group) tell(a *attempt, o outcome) { g.ready[a] <- o }

// make makes the jobs of those that are ready, which are of this goroutine until kept
// is closed.
func (g *group) make(ctx context.Context, ready []*attempt) {
	defer func() {
		for _, told := range g.ready { // each has been told, but where this was given up
			select {
			case told <- outcome{again: true, err: pcm.Errorf(pcm.Busy, "it was not called")}:
			default:
			}
		}
	}()
	var once sync.Once
	kept := func() { once.Do(func() { close(g.kept) }) }
	defer kept()
	s := g.s
	var c *manyCall
	for {
		if len(ready) == 0 || ctx.Err() != nil {
			return
		}
		if len(ready) == 1 {
			g.tell(ready[0], outcome{alone: true})
			return
		}
		notes := make([]*note, len(ready))
		for i, a := range ready {
			notes[i] = a.n
		}
		var n int
		var err error
		c, n, err = s.r.b.many(ctx, notes, g.width)
		switch {
		case err == nil && n < len(ready): // the others come with the next
			for _, a := range ready[n:] {
				g.tell(a, outcome{again: true, err: &waits{word: "queued", reason: "its job comes with the next call"}})
			}
			ready = ready[:n]
			continue
		case err != nil && n < len(ready): // of one
			g.tell(ready[n], outcome{again: true, err: err})
			ready = slices.Delete(ready, n, n+1)
			continue
		case err != nil:
			s.r.log.Warn("can't say what many jobs are: each is created by itself", "trade", ready[0].Trade, "err", err)
			for _, a := range ready {
				g.tell(a, bySelf("what it is can't be said together with others"))
			}
			return
		}
		break
	}
	asked := time.Now()
	for i, a := range ready {
		a.n.Stage, a.n.Asked, a.n.Array = making, asked, c.places[i]
	}
	if err := s.r.notes.keep(c.notes...); err != nil {
		for _, a := range ready {
			a.n.Stage, a.n.Array = fresh, nil
			g.tell(a, outcome{again: true, err: err})
		}
		return
	}
	kept()
	for i, o := range s.create(ctx, c) {
		g.tell(ready[i], o)
	}
}

// manyCall is one call for the jobs of several tasks. It has all that is needed of
// their notes, which others may have by now.
type manyCall struct {
	notes  []*note // of before the call only
	keys   []adapters.Key
	names  []string
	places []*description.Array
	each   []map[string]any // variables of each task
	vars   map[string]any   // of what is the same for all
	req    client.Request
}

// many renders the call for tasks. It takes the first n of them, so many as one call
// may speak of. Where an error is of one of the tasks, n is its place.
func (b *backend) many(ctx context.Context, notes []*note, width int) (c *manyCall, n int, err error) {
	m := b.d.Create.Many
	c = &manyCall{notes: notes}
	sum := sha256.New()
	for _, n := range notes {
		fmt.Fprintln(sum, n.Task.Key)
		c.keys = append(c.keys, n.Task.Key)
		c.names = append(c.names, jobName(b.cfg.Instance, n.Task.Key))
	}
	name := owner(b.cfg.Instance) + "-x" + strings.ToLower(base32.StdEncoding.EncodeToString(sum.Sum(nil)[:15]))
	if width <= 0 {
		width = len(notes)
	}
	array := map[string]any{"name": name, "count": int64(len(notes)), "width": int64(min(width, len(notes)))}
	each, size := []any{}, 0
	for i, n := range notes {
		at := &description.Array{Name: name, Index: i, Count: len(notes)}
		own := *n
		own.Array, own.Alone = at, false
		vars := b.vars(&own)
		vars["array"] = array
		v, err := m.Each.Render(ctx, vars)
		if err != nil {
			return nil, i, pcm.Errorf(pcm.Invalid, "create.many.each: %w", err)
		}
		if size += len(expr.Text(v)); size > maxEach && i > 0 {
			return c, i, nil
		}
		each = append(each, v)
		c.places, c.each = append(c.places, at), append(c.each, vars)
	}
	c.vars = maps.Clone(c.each[0])
	all := maps.Clone(array)
	all["each"] = each
	c.vars["array"] = all
	c.req, err = b.request(ctx, &m.Request, c.vars)
	return c, len(notes), err
}

// create makes the call, and says what became of each task.
func (s *arrays) create(ctx context.Context, c *manyCall) []outcome {
	b, m := s.r.b, s.r.b.d.Create.Many
	all := make([]outcome, len(c.keys))
	every := func(o outcome) []outcome {
		for i := range all {
			all[i] = o
		}
		return all
	}
	patient, cancel := patiently(ctx)
	defer cancel()
	said, err := b.send(patient, &m.Call, c.req, c.vars)
	var items []any
	switch {
	case err == nil && m.Items.Given():
		v, ierr := m.Items.Eval(ctx, said.in(c.vars))
		list, ok := v.([]any)
		if ierr != nil || !ok {
			s.r.log.Warn("the answer to a call for many jobs is not as described", "trade", c.keys[0].Trade, "err", ierr)
		}
		items = list
	case err == nil:
	case said != nil && slices.Contains(b.d.Create.Exists, said.status):
		// There is one of this name: ours.
	case said != nil && b.d.Create.Full.Given() && truth(ctx, b.d.Create.Full, said.in(c.vars)):
		return every(outcome{again: true, err: &waits{word: "full", reason: "its back end has no room: " + err.Error(), err: err}})
	case isUnsent(err) && (isAway(err) || pcm.ErrorCode(err) == pcm.Refused):
		return every(outcome{again: true, err: err})
	case isUnsent(err):
		s.r.log.Warn("a call for many jobs was refused: each is created by itself", "trade", c.keys[0].Trade, "tasks", len(all), "err", err)
		return every(bySelf("its back end does not take it with others: " + err.Error()))
	}
	why := &waits{word: "unknown", reason: "its back end took it, and did not say under which name: it is looked for"}
	if err != nil {
		why = &waits{word: "unreachable", reason: "its back end did not say whether it took it: " + err.Error(), err: err}
	}
	every(outcome{err: why})
	vars := c.vars
	if said != nil {
		vars = said.in(vars)
	}
	switch {
	case m.Items.Given() && items != nil:
		s.match(ctx, c, vars, items, all)
	case err == nil && !m.Items.Given() && m.List == nil:
		s.count(ctx, c, said, all)
	}
	s.list(ctx, c, vars, all)
	return all
}

// count is for answers from which the name of each job is computed.
func (s *arrays) count(ctx context.Context, c *manyCall, said *answer, all []outcome) {
	ids := make([]string, len(all))
	for i := range all {
		if v, err := s.r.b.d.Create.Many.ID.Eval(ctx, said.in(c.each[i])); err == nil {
			ids[i] = expr.Text(v)
		}
	}
	s.believe(c, ids, all)
}

// match reads what items say, each of one task. What makes no sense is passed over:
// of whom it speaks nobody is told anything.
func (s *arrays) match(ctx context.Context, c *manyCall, vars map[string]any, items []any, all []outcome) {
	m := s.r.b.d.Create.Many
	places := map[string]int{}
	for i, n := range c.names {
		places[n] = i
	}
	ids, refused, twice, strange := make([]string, len(all)), make([]error, len(all)), make([]bool, len(all)), 0
	for _, item := range items[:min(len(items), maxItems)] {
		at := maps.Clone(vars)
		at["item"] = item
		i, ok := -1, false
		if m.Name.Given() {
			if v, err := m.Name.Eval(ctx, at); err == nil {
				i, ok = places[expr.Text(v)]
			}
		} else if v, err := m.Index.Eval(ctx, at); err == nil {
			n, whole := whole(v)
			i, ok = int(n), whole && n < int64(len(all))
		}
		if !ok {
			strange++
			continue
		}
		maps.Copy(at, c.each[i])
		at["array"] = vars["array"]
		var err error
		switch why, no := s.refused(ctx, at); {
		case m.Full.Given() && truth(ctx, m.Full, at):
			err = &waits{word: "full", reason: "its back end has no room: " + why}
		case no:
			err = pcm.Errorf(pcm.Invalid, "%s: %s", s.r.b.name, why)
		}
		id := ""
		if err == nil {
			if v, eerr := m.ID.Eval(ctx, at); eerr == nil {
				id = expr.Text(v)
			}
		}
		twice[i] = twice[i] || refused[i] != nil && id != "" || ids[i] != "" && (err != nil || id != ids[i])
		if ids[i] == "" && refused[i] == nil {
			ids[i], refused[i] = id, err
		}
	}
	for i := range all {
		switch {
		case twice[i]:
			ids[i] = "" // who has two names is looked for
			strange++
		case refused[i] != nil:
			all[i] = outcome{again: true, err: refused[i]}
		}
	}
	if strange > 0 {
		s.r.log.Warn("of what the back end says of many jobs some makes no sense", "trade", c.keys[0].Trade, "items", len(items), "senseless", strange)
	}
	s.believe(c, ids, all)
}

// refused tells whether an item says that its task is refused, and why.
func (s *arrays) refused(ctx context.Context, at map[string]any) (why string, no bool) {
	m := s.r.b.d.Create.Many
	if !m.Refused.Given() {
		return "", false
	}
	v, err := m.Refused.Eval(ctx, at)
	if err != nil || v == nil || v == false || v == "" {
		return "", false
	}
	if v == true {
		return "no reason is given", true
	}
	return s.r.b.clean(expr.Text(v), maxReason), true
}

// believe takes over names of jobs: each that is nobody else's.
func (s *arrays) believe(c *manyCall, ids []string, all []outcome) {
	times := map[string]int{}
	for _, id := range ids {
		times[id]++
	}
	taken := s.r.poller.ids()
	for _, o := range all {
		if o.id != "" && !slices.Contains(ids, o.id) {
			taken[o.id] = true
		}
	}
	for i, id := range ids {
		switch {
		case id == "" || len(id) > 1024 || all[i].again:
		case times[id] > 1 || taken[id]:
			s.r.log.Warn("the back end gives the name of another job: it is looked for", "attempt", c.keys[i], "job", s.r.b.clean(id, 80))
		default:
			all[i] = outcome{id: id}
		}
	}
}

// list asks which jobs there are of those of which the answer didn't tell.
func (s *arrays) list(ctx context.Context, c *manyCall, vars map[string]any, all []outcome) {
	b, m := s.r.b, s.r.b.d.Create.Many
	open := func() bool {
		return slices.ContainsFunc(all, func(o outcome) bool { return o.id == "" && !o.again })
	}
	for try := 0; try < looks && m.List != nil && open(); try++ {
		if try > 0 && !pause(ctx, max(b.poll, time.Second)) {
			return
		}
		var items []any
		err := b.list(ctx, m.List, vars, func(item any) bool {
			items = append(items, item)
			return len(items) >= maxItems
		})
		if err != nil && !isAbsent(err) {
			s.r.log.Warn("can't list the jobs of a call for many", "trade", c.keys[0].Trade, "err", err)
			continue
		}
		found := slices.Clone(all)
		s.match(ctx, c, vars, items, found)
		for i, o := range found {
			if all[i].id == "" && !all[i].again && o.id != "" {
				all[i] = o
			}
		}
	}
}

// ids are the names of all jobs that are followed.
func (p *poller) ids() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]bool, len(p.tracks))
	for t := range p.tracks {
		all[t.id] = true
	}
	return all
}
