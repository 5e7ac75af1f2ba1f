package kubernetes

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
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

// place gives the one array that all the tasks make, if they are alike and their indexes
// follow on each other. Else each has a Job of its own, and a gate keeps the width.
func (g *batch) place(t adapters.Task) array {
	alike := shape(t)
	first, last := t.Index, t.Index
	for _, o := range g.tasks {
		first, last = min(first, o.Index), max(last, o.Index)
		if shape(o) != alike {
			return array{first: t.Key, n: 1, width: t.Width}
		}
	}
	n := len(g.tasks)
	if n < 2 || n < t.Batch && t.Width < t.Batch || last-first+1 != n {
		return array{first: t.Key, n: 1, width: t.Width}
	}
	k := t.Key
	k.Index = first
	return array{first: k, n: n, width: max(1, min(t.Width, n))}
}

// gates keep tasks of one trade that have Jobs of their own to their width.
type gates struct {
	mu  sync.Mutex
	all map[batchKey]*gate
}

// gate counts those inside.
type gate struct {
	users, inside int
	freed         chan struct{} // closed and replaced when one leaves
}

func newGates() *gates { return &gates{all: map[batchKey]*gate{}} }

// enter waits for a place; one that is inside already comes without. leave must be
// called if ok.
func (g *gates) enter(ctx context.Context, t *supervisor.Run, inside bool) (leave func(), ok bool) {
	k := batchKey{t.Trade, t.Attempt}
	g.mu.Lock()
	defer g.mu.Unlock()
	one := g.all[k]
	if one == nil {
		one = &gate{freed: make(chan struct{})}
		g.all[k] = one
	}
	one.users++
	gone := func() {
		if one.users--; one.users == 0 {
			delete(g.all, k)
		}
	}
	for !inside && one.inside >= max(t.Width, 1) {
		freed := one.freed
		g.mu.Unlock()
		select {
		case <-freed:
			ok = true
		case <-t.Stopping:
			ok = false
		case <-ctx.Done():
			ok = false
		}
		g.mu.Lock()
		if !ok {
			gone()
			return nil, false
		}
	}
	one.inside++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		one.inside--
		close(one.freed)
		one.freed = make(chan struct{})
		gone()
	}, true
}
