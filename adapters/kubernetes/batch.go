package kubernetes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// batches collects tasks of a trade that are started together.
type batches struct {
	mu   sync.Mutex
	open map[batchKey]*batch
}

type batchKey struct {
	trade   pcm.TradeID
	attempt int
}

// batch is a group that comes together.
type batch struct {
	tasks []adapters.Task
	full  chan struct{} // closed when all have come, or the time is over
	timer *time.Timer
	most  time.Time
	once  sync.Once
}

// How long a batch waits for the next one that belongs to it, and in all.
const (
	gather     = 250 * time.Millisecond
	gatherMost = 3 * time.Second
)

func newBatches() *batches { return &batches{open: map[batchKey]*batch{}} }

// join waits for the others and says in which array the task is.
func (b *batches) join(ctx context.Context, t adapters.Task) (array, error) {
	alone := array{first: t.Key, n: 1, width: 1}
	if t.Batch < 2 {
		return alone, nil
	}
	k := batchKey{t.Trade, t.Attempt}
	b.mu.Lock()
	g := b.open[k]
	if g == nil {
		g = &batch{full: make(chan struct{}), most: time.Now().Add(gatherMost)}
		b.open[k] = g
		g.timer = time.AfterFunc(gather, func() { b.close(k, g) })
	} else if g.timer.Stop() {
		g.timer.Reset(min(gather, time.Until(g.most)))
	}
	g.tasks = append(g.tasks, t)
	all := len(g.tasks) >= min(t.Batch, pcm.MaxBatch)
	b.mu.Unlock()
	if all {
		b.close(k, g)
	}
	select {
	case <-g.full:
	case <-ctx.Done():
		// Its place in the array stays; nothing is run in it.
		<-g.full
	}
	return g.place(t), nil
}

func (b *batches) close(k batchKey, g *batch) {
	b.mu.Lock()
	if b.open[k] == g {
		delete(b.open, k)
	}
	b.mu.Unlock()
	g.once.Do(func() { close(g.full) })
}

// shape is all of a task that must be the same in one Job.
func shape(t adapters.Task) string {
	targets := make([]string, len(t.Inputs))
	for i, in := range t.Inputs {
		targets[i] = in.Target
	}
	return fmt.Sprintf("%q %q %q %q %q %v %v %v %v %d", t.Command, t.Args, t.Env, targets, t.Outputs, t.Image, t.Resources, t.Network, t.Limit, t.Count)
}

// place finds the run of consecutive indexes that the task is in, among those
// that have its shape.
func (g *batch) place(t adapters.Task) array {
	have := map[int]bool{}
	for _, o := range g.tasks {
		if shape(o) == shape(t) {
			have[o.Index] = true
		}
	}
	first, last := t.Index, t.Index
	for have[first-1] {
		first--
	}
	for have[last+1] {
		last++
	}
	k := t.Key
	k.Index = first
	n := last - first + 1
	return array{first: k, n: n, width: max(1, min(t.Width*n/max(len(g.tasks), t.Batch), n))}
}
