package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// Bounds of draining a pool.
const (
	defaultDrain = 10 * time.Minute
	maxDrain     = 30 * 24 * time.Hour
	drainEvery   = 500 * time.Millisecond
)

// Pools lists the pools of this peer, offered or not.
func (n *Node) Pools(ctx context.Context) ([]api.OwnPool, error) {
	n.fresh(ctx)
	o := n.operator
	o.mu.Lock()
	var list []api.OwnPool
	for id, s := range o.seen {
		list = append(list, poolView(s, o.set.Pools[id]))
	}
	for adapter, s := range o.dark {
		if _, also := o.seen[pcm.PoolID(adapter)]; !also {
			list = append(list, poolView(s, o.set.Pools[s.pool.ID]))
		}
	}
	for id, r := range o.set.Pools {
		_, seen := o.seen[id]
		if _, dark := o.dark[string(id)]; !seen && !dark {
			list = append(list, poolView(sighting{pool: pcm.Pool{ID: id, Price: pcm.Price{Unit: pcm.DefaultUnit}}, blind: true}, r))
		}
	}
	o.mu.Unlock()
	withheld := ""
	switch {
	case n.draining.Load():
		withheld = "this peer is going down"
	case n.diskLow() != "":
		withheld = "the disk is nearly full: " + n.diskLow()
	}
	for i := range list {
		p := &list[i]
		if withheld != "" && p.State == api.PoolOffered {
			p.State, p.Reason = api.PoolWithheld, withheld
		}
		p.Running, p.Waiting = n.seller.inPool(p.ID)
		for _, sale := range n.cfg.Sales {
			if a, ok := sale.Adapter.(adapters.Prober); ok && sale.Adapter.Name() == p.Adapter {
				p.Seen = a.Seen().UTC() // what it shows may be older than the look at it
			}
		}
	}
	n.cell.View(func() {
		for i := range list {
			if lp, ok := n.state.Pool(ledger.PoolKey{Peer: n.self, Pool: list[i].ID}); ok {
				list[i].Reserved, list[i].ReservedSlots = lp.Reserved, lp.Slots
			}
		}
	})
	slices.SortFunc(list, func(a, b api.OwnPool) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list, nil
}

func poolView(s sighting, r poolRule) api.OwnPool {
	p := s.pool
	v := api.OwnPool{
		ID: p.ID, Adapter: p.Adapter, Class: p.Class, Capacity: p.Capacity, Largest: p.Largest, Slots: p.Slots, State: api.PoolOffered,
		Price: priceView(r.Price.over(p.Price)), PriceSet: r.Price != nil,
		Labels: p.Labels, Features: p.Features, Sandbox: p.Sandbox, OwnOnly: p.OwnOnly, NoFiles: p.NoFiles,
	}
	if !s.at.IsZero() {
		v.Seen = s.at.UTC()
	}
	if r.Cap != nil {
		capped := r.Cap.within(p)
		v.Cap = &api.PoolCap{Slots: capped.Slots, Capacity: capped.Capacity}
	}
	if s.blind {
		v.State, v.Reason, v.Since = api.PoolUnobservable, orElse(s.why, "no back end has shown it since this peer started"), s.since.UTC()
	}
	if c := r.Cordoned; c != nil {
		v.State, v.Since = api.PoolCordoned, c.Since.UTC()
		v.Reason = orElse(c.Reason, "by its operator")
		if s.blind && s.why != "" {
			v.Reason += "; its back end can't be observed: " + s.why
		}
		switch {
		case c.Drain == nil:
		case c.Drain.Drained.IsZero():
			v.State, v.DrainUntil = api.PoolDraining, c.Drain.Until.UTC()
		default:
			v.State, v.Since = api.PoolDrained, c.Drain.Drained.UTC()
		}
	}
	return v
}

// Pool is one pool of this peer.
func (n *Node) Pool(ctx context.Context, id pcm.PoolID) (api.OwnPool, error) {
	all, err := n.Pools(ctx)
	if err != nil {
		return api.OwnPool{}, err
	}
	for _, p := range all {
		if p.ID == id {
			return p, nil
		}
	}
	n.operator.mu.Lock()
	defer n.operator.mu.Unlock()
	return api.OwnPool{}, n.operator.noPool(id)
}

// noPool says that there is no such pool, and which was probably meant.
func (o *operator) noPool(id pcm.PoolID) error {
	known := o.known()
	switch near := pcm.Nearest(string(id), known); {
	case near != "":
		return pcm.Errorf(pcm.NotFound, "this peer has no pool %q; did you mean %q?", id, near)
	case len(known) > 0:
		return pcm.Errorf(pcm.NotFound, "this peer has no pool %q; its pools: %s", id, strings.Join(known, ", "))
	}
	return pcm.Errorf(pcm.NotFound, "this peer has no pool %q: it sells nothing; see 'adapters' in the configuration", id)
}

// setPool changes the rule of one pool, writes down who did it, and has it declared.
func (n *Node) setPool(ctx context.Context, id pcm.PoolID, event, what string, f func(p pcm.Pool, r *poolRule) error) (api.OwnPool, error) {
	o := n.operator
	err := o.change(func(s *operatorSettings) error {
		r, ruled := s.Pools[id]
		seen, ok := o.seen[id]
		if !ok {
			seen, ok = o.dark[string(id)]
		}
		if !ok && !ruled {
			return o.noPool(id)
		}
		if err := f(seen.pool, &r); err != nil {
			return err
		}
		s.Pools[id] = r
		return nil
	})
	if err != nil {
		return api.OwnPool{}, err
	}
	n.audit.operator(ctx, event, api.AuditEntry{Pool: id, Reason: what})
	n.log.Info("the operator has set a pool", "pool", id, "what", event, "detail", what, "by", api.Caller(ctx))
	if !o.declare(ctx) {
		n.log.Warn("what the operator has set is kept, but could not be declared yet", "pool", id)
	}
	return n.Pool(ctx, id)
}

// CordonPool takes a pool out of the offers; what runs there goes on.
func (n *Node) CordonPool(ctx context.Context, id pcm.PoolID, reason string) (api.OwnPool, error) {
	if err := checkNote("reason", reason); err != nil {
		return api.OwnPool{}, err
	}
	return n.setPool(ctx, id, "cordon", reason, func(_ pcm.Pool, r *poolRule) error {
		since := time.Now()
		if r.Cordoned != nil { // a drain ends by this, and the pool stays cordoned
			since = r.Cordoned.Since
		}
		r.Cordoned = &cordon{Since: since, Reason: reason}
		return nil
	})
}

// UncordonPool offers a pool again.
func (n *Node) UncordonPool(ctx context.Context, id pcm.PoolID) (api.OwnPool, error) {
	return n.setPool(ctx, id, "uncordon", "", func(_ pcm.Pool, r *poolRule) error {
		r.Cordoned = nil
		return nil
	})
}

// DrainPool cordons a pool, gives back what waits there, and stops what still
// runs after timeout.
func (n *Node) DrainPool(ctx context.Context, id pcm.PoolID, timeout *time.Duration, reason string) (api.OwnPool, error) {
	if err := checkNote("reason", reason); err != nil {
		return api.OwnPool{}, err
	}
	d := defaultDrain
	if timeout != nil {
		d = *timeout
	}
	if d < 0 || d > maxDrain {
		return api.OwnPool{}, pcm.Errorf(pcm.Invalid, "a timeout of %s is out of range: 0s (stop at once) to %s", d, maxDrain)
	}
	v, err := n.setPool(ctx, id, "drain", orElse(reason, "timeout "+d.String()), func(_ pcm.Pool, r *poolRule) error {
		now := time.Now()
		since := now
		if r.Cordoned != nil {
			since = r.Cordoned.Since
		}
		r.Cordoned = &cordon{Since: since, Reason: reason, Drain: &drain{Until: now.Add(d)}}
		return nil
	})
	select {
	case n.operator.wake <- struct{}{}:
	default:
	}
	return v, err
}

// CapPool bounds what is sold of a pool; a zero cap takes the bound away.
func (n *Node) CapPool(ctx context.Context, id pcm.PoolID, c api.CapRequest) (api.OwnPool, error) {
	var want poolCap
	var parts []string
	var err error
	if c.CPU != "" {
		if want.CPU, err = pcm.ParseMilliCPU(c.CPU); err != nil {
			return api.OwnPool{}, err
		}
		parts = append(parts, "cpu="+c.CPU)
	}
	if c.Memory != "" {
		if want.Memory, err = pcm.ParseBytes(c.Memory); err != nil {
			return api.OwnPool{}, err
		}
		if err := (pcm.Resources{Memory: want.Memory}).CheckMemory(); err != nil {
			return api.OwnPool{}, err
		}
		parts = append(parts, "memory="+c.Memory)
	}
	for _, k := range []struct {
		name string
		v    *int64
	}{{"gpu", c.GPU}, {"slots", c.Slots}} {
		if k.v == nil {
			continue
		}
		if *k.v < 1 || *k.v > 1<<20 {
			return api.OwnPool{}, pcm.Errorf(pcm.Invalid, "%s=%d is out of range: 1 to %d; to sell nothing of the pool, use 'pcm pool cordon'", k.name, *k.v, 1<<20)
		}
		parts = append(parts, fmt.Sprintf("%s=%d", k.name, *k.v))
	}
	if c.CPU != "" && want.CPU == 0 || c.Memory != "" && want.Memory == 0 {
		return api.OwnPool{}, pcm.Errorf(pcm.Invalid, "a cap of 0 sells nothing: use 'pcm pool cordon %s' for that", id)
	}
	if c.GPU != nil {
		want.GPU = *c.GPU
	}
	if c.Slots != nil {
		want.Slots = int(*c.Slots)
	}
	return n.setPool(ctx, id, "cap", orElse(strings.Join(parts, ","), "none"), func(_ pcm.Pool, r *poolRule) error {
		r.Cap = &want
		if want == (poolCap{}) {
			r.Cap = nil
		}
		return nil
	})
}

// PricePool sets parts of a pool's price, for new trades; none: the configured price again.
func (n *Node) PricePool(ctx context.Context, id pcm.PoolID, p api.PriceRequest) (api.OwnPool, error) {
	want := tariff{Unit: p.Unit}
	var parts []string
	if p.Unit != "" {
		parts = append(parts, "unit="+p.Unit)
	}
	for _, k := range []struct {
		name, text string
		to         **pcm.Micro
	}{{"per_task", p.PerTask, &want.PerTask}, {"per_cpu_hour", p.PerCPUHour, &want.PerCPUHour}, {"per_gib_hour", p.PerGiBHour, &want.PerGiBHour}, {"per_gpu_hour", p.PerGPUHour, &want.PerGPUHour}} {
		if k.text == "" {
			continue
		}
		m, err := pcm.ParseMicro(k.text)
		if err != nil {
			return api.OwnPool{}, pcm.Errorf(pcm.Invalid, "%s: %w", k.name, err)
		}
		*k.to = &m
		parts = append(parts, k.name+"="+m.String())
	}
	return n.setPool(ctx, id, "price", orElse(strings.Join(parts, ","), "default"), func(pool pcm.Pool, r *poolRule) error {
		if want == (tariff{}) {
			r.Price = nil
			return nil
		}
		merged := want
		if old := r.Price; old != nil { // what is not named stays as it was set
			merged.Unit = orElse(want.Unit, old.Unit)
			for _, part := range []struct {
				now **pcm.Micro
				was *pcm.Micro
			}{{&merged.PerTask, old.PerTask}, {&merged.PerCPUHour, old.PerCPUHour}, {&merged.PerGiBHour, old.PerGiBHour}, {&merged.PerGPUHour, old.PerGPUHour}} {
				if *part.now == nil {
					*part.now = part.was
				}
			}
		}
		base := pool.Price
		base.Unit = orElse(base.Unit, pcm.DefaultUnit)
		if err := merged.over(base).Validate(); err != nil {
			return err
		}
		r.Price = &merged
		return nil
	})
}

// checkNote checks what an operator writes for people to read.
func checkNote(what, s string) error {
	if len(s) > maxNote || !pcm.Printable(s) {
		return pcm.Errorf(pcm.Invalid, "the %s is not one line of at most %d bytes", what, maxNote)
	}
	return nil
}

// drainPools ends what runs in pools that are drained, until ctx ends. A drain
// goes on after a restart.
func (n *Node) drainPools(ctx context.Context) error {
	select {
	case <-n.member:
	case <-ctx.Done():
		return nil
	}
	for {
		if n.drainOnce(time.Now()) {
			if !pause(ctx, drainEvery) {
				return nil
			}
			continue
		}
		select {
		case <-n.operator.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// drainOnce takes each drain a step further; it tells whether there are any.
func (n *Node) drainOnce(now time.Time) bool {
	o := n.operator
	o.mu.Lock()
	drains, shown := map[pcm.PoolID]cordon{}, o.shown == o.changes
	for id, r := range o.set.Pools {
		if r.Cordoned != nil && r.Cordoned.Drain != nil && r.Cordoned.Drain.Drained.IsZero() {
			drains[id] = *r.Cordoned
		}
	}
	o.mu.Unlock()
	for id, c := range drains {
		why := "its pool " + string(id) + " is drained"
		if c.Reason != "" {
			why += ": " + c.Reason
		}
		n.seller.giveBack(id, clip(why))
		over := !now.Before(c.Drain.Until)
		if over {
			n.seller.killPool(id, clip(why))
		}
		if running, waiting := n.seller.inPool(id); !shown || running+waiting > 0 || n.reservedIn(id) > 0 {
			continue
		}
		err := o.change(func(s *operatorSettings) error {
			r := s.Pools[id]
			if r.Cordoned == nil || r.Cordoned.Drain == nil || !r.Cordoned.Drain.Until.Equal(c.Drain.Until) {
				return nil // set anew meanwhile
			}
			done := *r.Cordoned
			done.Drain = &drain{Until: c.Drain.Until, Drained: now}
			r.Cordoned = &done
			s.Pools[id] = r
			return nil
		})
		if err != nil {
			n.log.Warn("can't note that a pool is drained", "pool", id, "error", err)
			continue
		}
		n.offer.check()
		n.log.Info("a pool is drained", "pool", id)
	}
	return len(drains) > 0
}

// reservedIn counts the slots that trades hold in a pool of this peer.
func (n *Node) reservedIn(id pcm.PoolID) (slots int) {
	n.cell.View(func() {
		if p, ok := n.state.Pool(ledger.PoolKey{Peer: n.self, Pool: id}); ok {
			slots = p.Slots
		}
	})
	return slots
}

// drainingPool says that a pool is drained, to who comes too late.
func (o *operator) drainingPool(id pcm.PoolID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if c := o.set.Pools[id].Cordoned; c != nil && c.Drain != nil {
		return pcm.Errorf(pcm.Refused, "its pool %s is drained: %s", id, orElse(c.Reason, "it takes nothing new"))
	}
	return nil
}
