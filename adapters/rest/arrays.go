package rest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
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
