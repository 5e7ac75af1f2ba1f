package supervisor

import (
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// How long a queue waits.
const (
	Collect    = 250 * time.Millisecond // for the next task of a trade
	CollectAll = 8 * time.Second        // for all of them, on a machine that is slow to bring them
	Gather     = 250 * time.Millisecond // for room for more, when there is room for a few
)

// Queue collects attempts of one trade into the groups that a back end is given
// at once, and keeps the trade to its width. T is a runner's attempt.
type Queue[T comparable] struct {
	most   int                        // of a group
	keeps  bool                       // the back end itself keeps a group to the width that it is given with
	submit func(group []T, width int) // brings a group to the back end, in a goroutine of its own; width 0: the group may run whole
	work   func(func())               // begins one
	mu     sync.Mutex                 // held for no longer than a look
	trades map[pcm.TradeID]*trade[T]  // those of which something waits or is out
	early  map[adapters.Key]bool      // adopted: they count as out before their Run has come
}

// trade is what of one trade waits, and how much of it the back end has.
type trade[T any] struct {
	waiting []waiting[T]
	out     int         // submitted, not ended
	first   time.Time   // when the first of those came that are being collected; zero: none are
	timer   *time.Timer // until those that wait are submitted; nil: none set
}

type waiting[T any] struct {
	attempt T
	kind    string // those of one group have the same
	batch   int
	width   int
}

// NewQueue makes a queue for groups of at most so many. If keeps is false no group is
// larger than the trade's width. work begins what calls submit.
func NewQueue[T comparable](most int, keeps bool, work func(func()), submit func(group []T, width int)) *Queue[T] {
	return &Queue[T]{most: most, keeps: keeps, work: work, submit: submit, trades: map[pcm.TradeID]*trade[T]{}, early: map[adapters.Key]bool{}}
}

func (q *Queue[T]) of(id pcm.TradeID) *trade[T] {
	t := q.trades[id]
	if t == nil {
		t = &trade[T]{}
		q.trades[id] = t
	}
	return t
}

// Add has the attempt submitted, soon and together with others of its kind. Each that
// comes has them wait for the next: what misses its group is let out in small ones.
func (q *Queue[T]) Add(a T, t *adapters.Task, kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wait(a, t, kind)
}

// Again has an attempt submitted once more that counted as out. It comes with the
// others that were, and within their trade's width.
func (q *Queue[T]) Again(a T, t *adapters.Task, kind string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.of(t.Trade).out--
	q.wait(a, t, kind)
}

func (q *Queue[T]) wait(a T, task *adapters.Task, kind string) {
	t := q.of(task.Trade)
	t.waiting = append(t.waiting, waiting[T]{a, kind, task.Batch, task.Width})
	if t.first.IsZero() {
		t.first = time.Now()
	}
	wait := min(Collect, time.Until(t.first.Add(CollectAll)))
	if task.Batch <= 1 || len(t.waiting) >= min(task.Batch, q.most) || wait <= 0 {
		q.flush(t)
	} else {
		q.later(t, wait)
	}
}

// later submits what waits after some time, and no sooner. q.mu is held.
func (q *Queue[T]) later(t *trade[T], wait time.Duration) {
	if t.timer != nil {
		t.timer.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if t.timer == timer {
			q.flush(t)
		}
	})
	t.timer = timer
}

// Adopt counts an attempt that the back end has already, once. All are counted before
// the first one comes that it doesn't have.
func (q *Queue[T]) Adopt(k adapters.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.early[k] {
		q.early[k] = true
		q.of(k.Trade).out++
	}
}

// Done lets others of the trade follow one that was submitted, or gives up one that waits.
func (q *Queue[T]) Done(a T, task *adapters.Task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.early, task.Key)
	t := q.of(task.Trade)
	found := false
	for i, w := range t.waiting {
		if w.attempt == a {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			found = true
			break
		}
	}
	if !found {
		t.out--
	}
	if len(t.waiting) == 0 {
		if t.out <= 0 {
			delete(q.trades, task.Trade)
		}
		return
	}
	width := t.waiting[0].width
	switch free := width - t.out; {
	case !t.first.IsZero(): // more are about to come
	case width <= 0, t.out <= 0, free >= max(1, width/4):
		q.flush(t)
	case free > 0 && t.timer == nil:
		q.later(t, Gather)
	}
}

// flush submits as much as may be. No more than the trade's width run at once:
// where the back end keeps to it, the first group has it see to that; what follows
// while it runs is let out as room comes. q.mu is held.
func (q *Queue[T]) flush(t *trade[T]) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.first, t.timer = time.Time{}, nil
	for len(t.waiting) > 0 {
		n, width := min(len(t.waiting), q.most), t.waiting[0].width
		if width > 0 && (t.out > 0 || !q.keeps) {
			n = min(n, width-t.out)
			width = 0
		}
		if n <= 0 {
			return
		}
		group := make([]T, 0, n)
		for _, w := range t.waiting[:n] {
			if w.kind != t.waiting[0].kind {
				break
			}
			group = append(group, w.attempt)
		}
		t.waiting = t.waiting[len(group):]
		t.out += len(group)
		q.work(func() { q.submit(group, width) })
	}
}
