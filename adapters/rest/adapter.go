// Package rest runs tasks on back ends that are not programmed but described: what
// to call, and what answers mean, stands in a file (package description). This
// package is the engine that follows it.
//
// A job is known by the attempt's key in its name, label or client token, as the
// description has it. Before anything is made at the back end a note is written
// of what is about to be made; it is removed when nothing is left there. A create
// whose answer was lost is not repeated before the job was looked for.
//
// [New] is the daemon's side, [NewRunner] the supervisor's, [Try] shows what a
// description does.
package rest

import (
	"context"
	"maps"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Adapter is the daemon's side. It implements adapters.Adapter, Fencer, Prober
// and Batcher.
type Adapter struct {
	*supervisor.Attempts
	b        *backend
	notes    notebook
	features []pcm.Feature
}

// Suspending is an adapter whose description says how jobs are suspended and
// resumed: it implements adapters.Suspender, too.
type Suspending struct{ *Adapter }

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Fencer    = (*Adapter)(nil)
	_ adapters.Prober    = (*Adapter)(nil)
	_ adapters.Batcher   = (*Adapter)(nil)
	_ adapters.Suspender = (*Suspending)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's
// runner of the same configuration. Nothing is sent.
func New(cfg Config, client *supervisor.Client) (adapters.Adapter, error) {
	b, err := open(context.Background(), cfg, nil)
	if err != nil {
		return nil, err
	}
	a := &Adapter{Attempts: client.Attempts(b.name), b: b, notes: notebook(cfg.notes(b.name))}
	if b.d.Suspend != nil && b.d.Resume != nil {
		s := &Suspending{a}
		a.features = adapters.Features(s, b.features()...)
		return s, nil
	}
	a.features = adapters.Features(a, b.features()...)
	return a, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return a.b.name }

// MaxBatch implements adapters.Batcher; 0: each job is made by a call of its own.
func (a *Adapter) MaxBatch() int {
	if m := a.b.d.Create.Many; m != nil {
		return m.Most
	}
	return 0
}

// Pools are those that the description finds, without what jobs have that were
// given up and have yet to end.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	if _, err := a.Facts(ctx); err != nil { // without its supervisor nothing runs
		return nil, err
	}
	away := a.notes.absence()
	if away == nil {
		return a.pools(ctx, a.b.refresh())
	}
	a.b.doubt() // those who watch jobs know it sooner
	err := pcm.Errorf(pcm.Unavailable, "%s can't be observed: %s", a.b.name, away)
	if away.Unread || !a.b.asksForPools() {
		return nil, err
	}
	if pools, asked := a.pools(ctx, 0); asked == nil {
		return pools, nil // it is back
	}
	return nil, err
}

// Probe implements adapters.Prober.
func (a *Adapter) Probe(ctx context.Context) ([]pcm.Pool, error) {
	if _, err := a.Facts(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	pools, err := a.pools(ctx, 0)
	if err == nil {
		if err = a.b.ping(ctx); err != nil {
			err = pcm.Errorf(pcm.Unavailable, "%s can't be observed: %w", a.b.name, err)
		}
	}
	if away := a.notes.absence(); err == nil && away != nil && a.Seen().Before(began) {
		err = pcm.Errorf(pcm.Unavailable, "%s can't be observed: %s", a.b.name, away)
	}
	if err != nil {
		a.b.doubt()
		return nil, err
	}
	return pools, nil
}

// Seen implements adapters.Prober.
func (a *Adapter) Seen() time.Time { a.b.mu.Lock(); defer a.b.mu.Unlock(); return a.b.seen }

// pools are what was seen no longer than age ago.
func (a *Adapter) pools(ctx context.Context, age time.Duration) ([]pcm.Pool, error) {
	ours, dying := a.census()
	places, err := a.b.places(ctx, ours, age)
	if err != nil {
		if pcm.ErrorCode(err) == pcm.Unavailable {
			return nil, err
		}
		return nil, pcm.Errorf(pcm.Unavailable, "%s can't be observed: %w", a.b.name, err)
	}
	var pools []pcm.Pool
	for _, p := range places {
		pool := p.pool
		pool.Features, pool.Labels = a.features, maps.Clone(pool.Labels) // what was seen stays as it is
		if n := min(dying[pool.ID], pool.Slots); n > 0 {
			pool.Slots -= n
			pool.Capacity = pool.Capacity.Minus(p.each.Times(n))
		}
		pools = append(pools, pool)
	}
	return pools, nil
}

// census counts, by pool, our jobs at the back end, and those of them that nobody wants.
func (a *Adapter) census() (ours, dying map[pcm.PoolID]int) {
	ours, dying = map[pcm.PoolID]int{}, map[pcm.PoolID]int{}
	for _, key := range a.notes.keys() {
		n := a.notes.load(key)
		if n == nil || n.Stage != made && n.Stage != making {
			continue
		}
		id, _ := n.Pool["id"].(string)
		ours[pcm.PoolID(id)]++
		if n.Dying {
			dying[pcm.PoolID(id)]++
		}
	}
	return ours, dying
}

// Suspend implements adapters.Suspender.
func (a *Suspending) Suspend(ctx context.Context, k adapters.Key) error { return a.Halt(ctx, k, true) }

// Resume implements adapters.Suspender.
func (a *Suspending) Resume(ctx context.Context, k adapters.Key) error { return a.Halt(ctx, k, false) }
