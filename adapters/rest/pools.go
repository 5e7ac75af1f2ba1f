package rest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

const (
	maxPools = 64       // of an offer
	maxItem  = 64 << 10 // bytes of a pool's item: each attempt's note holds it
)

// place is a pool, and the item that the back end has for it.
type place struct {
	pool pcm.Pool
	each pcm.Resources // of one task at most
	item any
}

// small tells whether a task that needs r has no room there, ever. The disk of a
// place that says nothing of it is what the site says.
func (p place) small(r pcm.Resources) bool {
	if p.each.Disk == 0 {
		r.Disk = 0
	}
	return !r.Within(p.each)
}

// look learns what the back end has. ours counts our jobs by pool.
func (b *backend) look(ctx context.Context, ours map[pcm.PoolID]int) ([]place, error) {
	p := &b.d.Pools
	vars := map[string]any{"settings": b.settings, "more": map[string]any{}}
	more := vars["more"].(map[string]any)
	for i := range p.More {
		m := &p.More[i]
		said, err := b.call(ctx, &m.Call, vars)
		if err != nil {
			return nil, err
		}
		more[m.Name] = said.body
		if m.Find.Given() {
			if more[m.Name], err = m.Find.Eval(ctx, said.in(vars)); err != nil {
				return nil, pcm.Errorf(pcm.Unavailable, "the answer to %s is not as described: %w", m.Name, err)
			}
		}
	}
	items := slices.Clone(p.Fixed)
	for i := range items {
		items[i] = plainOf(items[i])
	}
	if p.List != nil {
		err := b.list(ctx, p.List, vars, func(item any) bool {
			items = append(items, item)
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	var all []place
	var fault error
	faults, beyond := 0, 0
	ids := map[pcm.PoolID]bool{}
	for _, item := range items {
		at := maps.Clone(vars)
		at["item"] = item
		if p.Where.Given() && !truth(ctx, p.Where, at) {
			continue
		}
		pl, err := b.pool(ctx, &p.Pool, at, ours)
		if err == nil && len(expr.Text(item)) > maxItem {
			err = pcm.Errorf(pcm.TooLarge, "the item of pool %s has over %d bytes", pl.pool.ID, maxItem)
		}
		if err != nil {
			fault = err
			faults++
			continue
		}
		if ids[pl.pool.ID] {
			continue
		}
		if len(all) >= maxPools {
			beyond++
			continue
		}
		ids[pl.pool.ID] = true
		pl.item = item
		all = append(all, pl)
	}
	if len(all) == 0 && fault != nil {
		return nil, fault
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.flaw = nil; {
	case faults > 0:
		b.flaw = pcm.Errorf(pcm.Invalid, "%d items are left out of %d: %w", faults, len(items), fault)
	case beyond > 0:
		b.flaw = pcm.Errorf(pcm.TooLarge, "%d pools are left out: an offer has at most %d; choose with pools.where", beyond, maxPools)
	}
	return all, nil
}

// pool maps an item.
func (b *backend) pool(ctx context.Context, m *description.Pool, vars map[string]any, ours map[pcm.PoolID]int) (place, error) {
	var pl place
	var fault error
	get := func(name string, t description.Template) any {
		v, err := t.Render(ctx, vars)
		if err != nil && fault == nil {
			fault = pcm.Errorf(pcm.Invalid, "%s: %w", name, err)
		}
		return v
	}
	vars["ours"] = int64(0)
	id := nameOf(expr.Text(get("id", m.ID)))
	if id != "" && b.name != b.d.Name {
		id = nameOf(b.name + "." + id) // two of one description have pools of the same names
	}
	if fault != nil || id == "" {
		return pl, pcm.Errorf(pcm.Unavailable, "a pool of %s is not as described: it has no id: %v", b.name, fault)
	}
	vars["ours"] = int64(ours[pcm.PoolID(id)])
	bytes := func(name string, t description.Template) pcm.Bytes {
		v := get(name, t)
		if v == nil {
			return 0
		}
		n, err := pcm.ParseBytes(expr.Text(v))
		if err != nil && fault == nil {
			fault = err
		}
		return n
	}
	count := func(name string, t description.Template, otherwise int64) int64 {
		v := get(name, t)
		if v == nil || v == "" {
			return otherwise
		}
		n, ok := number64(v)
		if s, text := v.(string); text {
			var err error
			n, err = strconv.ParseInt(strings.TrimSpace(s), 10, 64)
			ok = err == nil
		}
		if (!ok || n < 0 || n > 1<<40) && fault == nil {
			fault = pcm.Errorf(pcm.Invalid, "%s is %.40q: not a number of things", name, expr.Text(v))
		}
		return n
	}
	var err error
	if pl.each.CPU, err = pcm.ParseMilliCPU(expr.Text(get("cpu", m.CPU))); err != nil && fault == nil {
		fault = err
	}
	pl.each.Memory, pl.each.Disk, pl.each.GPU = bytes("memory", m.Memory), bytes("disk", m.Disk), count("gpu", m.GPU, 0)
	slots := min(count("slots", m.Slots, 1), 1<<20)
	if most := int64(b.d.Limits.MaxJobs); most > 0 {
		slots = min(slots, most)
	}
	if fault == nil {
		fault = pl.each.Validate()
	}
	if fault != nil {
		return pl, pcm.Errorf(pcm.Unavailable, "pool %s of %s is not as described: %w", id, b.name, fault)
	}
	pl.pool = pcm.Pool{
		ID: pcm.PoolID(id), Adapter: b.name, Capacity: pl.each.Times(int(slots)), Slots: int(slots), Sandbox: b.sandbox(), OwnOnly: b.sandbox() == "none",
		NoFiles: b.d.Data == nil,
		Labels:  pcm.Labels{},
	}
	if slots > 1 { // else its capacity says it
		each := pl.each
		pl.pool.Largest = &each
	}
	if class := nameOf(expr.Text(get("class", m.Class))); class != "" {
		pl.pool.Class = class
	}
	if v := get("max_time", m.MaxTime); v != nil {
		pl.pool.MaxTime = milliseconds(v)
	}
	for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
		if v := b.clean(expr.Text(get("label "+k, m.Labels[k])), 60); v != "" {
			pl.pool.Labels[k] = v
		}
	}
	maps.Copy(pl.pool.Labels, b.cfg.Labels)
	if pl.each.GPU > 0 && len(m.Accelerator) > 0 {
		facts := map[string]string{}
		for k, t := range m.Accelerator {
			facts[k] = expr.Text(get("accelerator "+k, t))
		}
		pl.pool.Accelerator = accelerator(facts)
	}
	for _, t := range m.Software {
		name, version, _ := strings.Cut(expr.Text(get("software", t)), "=")
		if name = nameOf(name); name != "" && len(pl.pool.Software) < pcm.MaxSoftware {
			if pl.pool.Software == nil {
				pl.pool.Software = pcm.Software{}
			}
			pl.pool.Software[name] = strings.TrimPrefix(version, "=")
		}
	}
	if fault == nil {
		p := pl.pool
		p.Price.Unit = pcm.DefaultUnit // the seller sets the price
		fault = p.Validate()
	}
	if fault != nil {
		return pl, pcm.Errorf(pcm.Unavailable, "pool %s of %s is not as described: %w", id, b.name, fault)
	}
	return pl, nil
}

// accelerator is what a description says of one, by its product's name where
// there is one.
func accelerator(facts map[string]string) *pcm.Accelerator {
	var a pcm.Accelerator
	for _, kind := range []adapters.NameKind{adapters.NameProduct, adapters.NameKubernetes, adapters.NameGres, adapters.NamePCI} {
		if name := facts[string(kind)]; name != "" {
			a, _ = adapters.AcceleratorOf(kind, name)
		}
	}
	if v := nameOf(facts["vendor"]); v != "" {
		a.Vendor = v
	}
	if v := nameOf(facts["model"]); v != "" {
		if known, ok := adapters.AcceleratorOf(adapters.NameProduct, facts["model"]); ok && a.Model == "" {
			a = known
		} else {
			a.Model = v
		}
	}
	if m, err := pcm.ParseBytes(facts["memory"]); err == nil && m > 0 {
		a.Memory = m
	}
	if a.Validate() != nil {
		return nil
	}
	return &a
}

// nameOf makes a name of ours of one of the back end's.
func nameOf(s string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(s) {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '-':
			b.WriteRune(r)
		default:
			b.WriteByte('-')
		}
	}
	name := strings.Trim(b.String(), "-.")
	for len(name) > 0 && !pcm.ValidName(name) {
		name = strings.Trim(name[:len(name)-1], "-.")
	}
	return name
}

// milliseconds is a time in seconds, or a text with its unit.
func milliseconds(v any) int64 {
	if n, ok := number64(v); ok && n > 0 && n < 1<<40 {
		return n * 1000
	}
	if d, err := time.ParseDuration(expr.Text(v)); err == nil && d > 0 {
		return d.Milliseconds()
	}
	if n, err := strconv.ParseInt(expr.Text(v), 10, 40); err == nil && n > 0 {
		return n * 1000
	}
	return 0
}

// refresh is how long what was seen of pools is believed.
func (b *backend) refresh() time.Duration {
	return cmp.Or(b.cfg.Refresh, time.Duration(b.d.Limits.Refresh), defaultRefresh)
}

// places is look, no older than refresh says.
func (b *backend) places(ctx context.Context, ours map[pcm.PoolID]int, age time.Duration) ([]place, error) {
	asked := time.Now()
	known := func() (pools []place, yes bool, err error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if !b.pooled.IsZero() && (time.Since(b.pooled) < age || b.pooled.After(asked)) {
			return b.pools, true, nil
		}
		return nil, b.missed.After(asked), b.fault
	}
	if pools, yes, err := known(); yes {
		return pools, err
	}
	// Many attempts may begin at once: one looks for all of them.
	select {
	case b.looking <- struct{}{}:
		defer func() { <-b.looking }()
	case <-ctx.Done():
		return nil, pcm.Errorf(pcm.Unavailable, "the pools of %s are being looked for, and there was no time to wait", b.name)
	}
	if pools, yes, err := known(); yes {
		return pools, err
	}
	began := time.Now()
	pools, err := b.look(ctx, ours)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err == nil:
		b.pools, b.pooled = pools, began
		if b.asksForPools() {
			b.seen = began
		}
	case ctx.Err() == nil: // of the back end, not of who asks
		b.missed, b.fault = began, err
	}
	return pools, err
}

// asksForPools tells whether pools come from the back end, and not from the description alone.
func (b *backend) asksForPools() bool { return b.d.Pools.List != nil || len(b.d.Pools.More) > 0 }

// ping has the back end answer something, where its pools need no call. Where
// nothing is known that could be asked, nothing is.
func (b *backend) ping(ctx context.Context) error {
	if b.asksForPools() || b.d.Watch.List == nil {
		return nil
	}
	began := time.Now()
	err := b.list(ctx, b.d.Watch.List, map[string]any{"settings": b.settings}, func(any) bool { return true })
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.seen = began
	b.mu.Unlock()
	return nil
}

// doubt has what was seen of pools count no more.
func (b *backend) doubt() {
	b.mu.Lock()
	b.pooled = time.Time{}
	b.mu.Unlock()
}

// placeOf is what pool stands for in calls for a task.
func (b *backend) placeOf(ctx context.Context, t adapters.Task) (map[string]any, error) {
	for _, age := range []time.Duration{10 * time.Minute, 0} { // what a pool is changes seldom
		pools, err := b.places(ctx, nil, age)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(pools, func(p place) bool {
			return p.pool.ID == t.Pool || t.Pool == "" && t.Resources.Within(p.each)
		})
		if at < 0 && t.Pool == "" && len(pools) > 0 {
			at = 0
		}
		switch {
		case at >= 0 && t.Pool != "" && pools[at].small(t.Resources):
			if age > 0 {
				continue // it may have grown
			}
			return nil, pcm.Errorf(pcm.TooLarge, "a task of pool %s has at most %s, this one needs %s", pools[at].pool.ID, pools[at].each, t.Resources)
		case at >= 0:
			return map[string]any{"id": string(pools[at].pool.ID), "native": pools[at].item}, nil
		}
	}
	return nil, pcm.Errorf(pcm.NotFound, "it has no pool %s any more", t.Pool)
}
