package supervisor

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters"
)

// Step sees to an attempt that waits, as Run does to one that begins: it returns its
// end, or Waits again.
type Step func(ctx context.Context) Exit

// Waits is what Run and a Step return when there is nothing to do for an attempt for
// now: thousands may wait, and none has a goroutine then. The step is called when the
// runner has called the attempt's Wake, also before Waits was returned, when most is
// over (0: not for that), when the attempt is asked to stop, and when ctx ends. Calls for
// one attempt follow each other. A step may take its time: others don't wait for it.
func Waits(step Step, most time.Duration) Exit { return Exit{step: step, most: most} }

// Follow runs an attempt to its end for who has no supervisor.
func Follow(ctx context.Context, r Runner, t *Run) Exit {
	woken, stop := make(chan struct{}, 1), make(chan Stop, 1)
	wake := func() {
		select {
		case woken <- struct{}{}:
		default:
		}
	}
	stopping := t.Stopping
	t.Wake, t.Stopping = wake, stop
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case s := <-stopping:
			stop <- s
			wake()
		case <-over:
		}
	}()
	exit := r.Run(ctx, t)
	for exit.step != nil {
		var late <-chan time.Time
		if exit.most > 0 {
			late = time.After(exit.most)
		}
		select {
		case <-woken:
		case <-late:
		case <-ctx.Done():
		}
		exit = exit.step(ctx)
	}
	return exit
}

// turns calls the steps of attempts that wait. Few goroutines do that; where steps
// take long, so that nobody's turn comes, there are more.
type turns struct {
	take func(*handed) // a step; it ends with wait or over

	mu      sync.Mutex
	ready   [2][]*handed // whose turn has come: to be ended by force, others
	workers int
	taken   int  // turns, since progress was looked at
	looking bool // at progress
	due     deadlines
	timer   *time.Timer // for the first of due
	set     adapters.BootTime
}

// place is where an attempt stands in turns.
type place struct {
	step   Step
	state  placeState
	again  bool // woken while at work
	urgent bool
	told   bool              // of the end of its context
	at     adapters.BootTime // when its turn comes by itself; 0: it doesn't
	index  int               // in due
}

type placeState uint8

const (
	atWork placeState = iota
	waits
	isReady
	isOver
)

const (
	fewWorkers  = 8
	mostWorkers = 4096                  // a disk that hangs holds a thread of each, and Go has 10,000 at most
	lookAfter   = 50 * time.Millisecond // at how many steps were taken
	quick       = 10 * time.Millisecond // for a step; where they take longer on average there are more
)

func newTurns(take func(*handed)) *turns {
	t := &turns{take: take}
	t.timer = time.AfterFunc(time.Hour, t.late)
	t.timer.Stop()
	return t
}

// wake has an attempt's step called soon; of those to be ended by force, sooner.
func (t *turns) wake(h *handed, urgent bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	sooner := urgent && !h.place.urgent
	h.place.urgent = h.place.urgent || urgent
	switch h.place.state {
	case isReady:
		if sooner { // it stands in both lines then
			t.ready[0] = append(t.ready[0], h)
		}
	case atWork:
		h.place.again = true
	case waits:
		if h.place.at != 0 {
			heap.Remove(&t.due, h.place.index)
		}
		t.enqueue(h)
	}
}

// wait is called by who was at work at it.
func (t *turns) wait(h *handed, step Step, most time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := &h.place
	p.step, p.at = step, 0
	if h.ctx.Err() != nil && !p.told { // perhaps nobody wakes it any more
		p.told, p.again, p.urgent = true, true, true
	}
	if p.again {
		t.enqueue(h)
		return
	}
	p.state = waits
	if most > 0 {
		p.at = adapters.Now().Add(most)
		heap.Push(&t.due, h)
		t.arm()
	}
}

// over is called by who was at work at it, and has seen its end.
func (t *turns) over(h *handed) {
	t.mu.Lock()
	h.place = place{state: isOver}
	t.mu.Unlock()
}

// enqueue gives an attempt its turn. t.mu is held.
func (t *turns) enqueue(h *handed) {
	p := &h.place
	p.state, p.again, p.at = isReady, false, 0
	line := 1
	if p.urgent {
		line = 0
	}
	t.ready[line] = append(t.ready[line], h)
	if t.workers < fewWorkers {
		t.workers++
		go t.work()
	} else if !t.looking {
		t.looking, t.taken = true, 0
		time.AfterFunc(lookAfter, t.progress)
	}
}

// progress lets more work if those who do are held up: by a disk, say, and not by the cores.
func (t *turns) progress() {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := len(t.ready[0]) + len(t.ready[1])
	t.looking = left > 0
	if !t.looking {
		return
	}
	if t.taken < t.workers*int(lookAfter/quick) {
		for range min(max(t.workers, 1), left, mostWorkers-t.workers) {
			t.workers++
			go t.work()
		}
	}
	t.taken = 0
	time.AfterFunc(lookAfter, t.progress)
}

func (t *turns) work() {
	for {
		t.mu.Lock()
		line := 0
		if len(t.ready[0]) == 0 {
			line = 1
		}
		if len(t.ready[line]) == 0 {
			t.ready[line] = nil
			t.workers--
			t.mu.Unlock()
			return
		}
		h := t.ready[line][0]
		t.ready[line][0] = nil
		t.ready[line] = t.ready[line][1:]
		if h.place.state != isReady { // it had its turn, from the other line
			t.mu.Unlock()
			continue
		}
		t.taken++
		h.place.state, h.place.urgent = atWork, false
		t.mu.Unlock()
		t.take(h)
	}
}

// late gives those their turn who have waited long enough.
func (t *turns) late() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set = 0
	for now := adapters.Now(); len(t.due) > 0 && t.due[0].place.at <= now; {
		t.enqueue(heap.Pop(&t.due).(*handed))
	}
	t.arm()
}

// arm sets the timer. t.mu is held.
func (t *turns) arm() {
	if len(t.due) > 0 && (t.set == 0 || t.due[0].place.at < t.set) {
		t.set = t.due[0].place.at
		t.timer.Reset(max(0, time.Duration(t.set-adapters.Now())))
	}
}

// deadlines is a heap of attempts by when their turn comes.
type deadlines []*handed

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].place.at < d[j].place.at }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place.index, d[j].place.index = i, j
}
func (d *deadlines) Push(x any) {
	h := x.(*handed)
	h.place.index = len(*d)
	*d = append(*d, h)
}
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	h := (*d)[last]
	(*d)[last] = nil
	*d = (*d)[:last]
	return h
}
