package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// operatorFile holds, in the data folder, what this peer's operator has set while
// it runs. It wins over the configuration, and outlives a restart.
const operatorFile = "operator.json"

// Bounds of the operator's settings.
const (
	operatorVersion = 1
	maxOperatorFile = 4 << 20
	maxPoolRules    = 256
	maxAccountRules = 4096
	maxNote         = 200
)

// operatorSettings is what stands in the file.
type operatorSettings struct {
	Version  int                     `json:"version"`
	Pools    map[pcm.PoolID]poolRule `json:"pools,omitempty"`
	Accounts map[string]accountRule  `json:"accounts,omitempty"` // by account or peer ID
}

// poolRule is what the operator wants of one pool.
type poolRule struct {
	Cordoned *cordon  `json:"cordoned,omitempty"`
	Cap      *poolCap `json:"cap,omitempty"`
	Price    *tariff  `json:"price,omitempty"`
}

func (r poolRule) empty() bool { return r.Cordoned == nil && r.Cap == nil && r.Price == nil }

// cordon keeps a pool out of the offers.
type cordon struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason,omitempty"`
	Drain  *drain    `json:"drain,omitempty"`
}

// drain is the end of what runs in a cordoned pool.
type drain struct {
	Until   time.Time `json:"until"`            // then what runs is stopped
	Drained time.Time `json:"drained,omitzero"` // since when nothing runs any more
}

// poolCap is the most that is sold of a pool; zero parts are not capped.
type poolCap struct {
	CPU    pcm.MilliCPU `json:"cpu,omitempty"`
	Memory pcm.Bytes    `json:"memory,omitempty"`
	GPU    int64        `json:"gpu,omitempty"`
	Slots  int          `json:"slots,omitempty"`
}

// tariff replaces parts of a price.
type tariff struct {
	Unit       string     `json:"unit,omitempty"`
	PerTask    *pcm.Micro `json:"per_task,omitempty"`
	PerCPUHour *pcm.Micro `json:"per_cpu_hour,omitempty"`
	PerGiBHour *pcm.Micro `json:"per_gib_hour,omitempty"`
	PerGPUHour *pcm.Micro `json:"per_gpu_hour,omitempty"`
}

// over is a price with the tariff's parts in place of its own.
func (t *tariff) over(p pcm.Price) pcm.Price {
	if t == nil {
		return p
	}
	p.Unit = orElse(t.Unit, p.Unit)
	for _, part := range []struct{ set, to *pcm.Micro }{
		{t.PerTask, &p.PerTask}, {t.PerCPUHour, &p.PerCPUHour}, {t.PerGiBHour, &p.PerGiBHour}, {t.PerGPUHour, &p.PerGPUHour},
	} {
		if part.set != nil {
			*part.to = *part.set
		}
	}
	return p
}

// within is a pool with no more than the cap.
func (c *poolCap) within(p pcm.Pool) pcm.Pool {
	if c == nil {
		return p
	}
	if c.CPU > 0 {
		p.Capacity.CPU = min(p.Capacity.CPU, c.CPU)
	}
	if c.Memory > 0 {
		p.Capacity.Memory = min(p.Capacity.Memory, c.Memory)
	}
	if c.GPU > 0 {
		p.Capacity.GPU = min(p.Capacity.GPU, c.GPU)
	}
	if c.Slots > 0 {
		p.Slots = min(p.Slots, c.Slots)
	}
	return p
}

// sighting is a pool as its adapter last described it, with the configured price.
type sighting struct {
	pool  pcm.Pool
	at    time.Time // when its back end was asked
	blind bool      // its back end can't be observed now
	since time.Time
	why   string
}

// operator keeps the operator's settings, and what they are about.
type operator struct {
	n    *Node
	path string
	wake chan struct{} // a drain has begun

	mu      sync.Mutex
	set     operatorSettings
	changes uint64 // of settings
	shown   uint64 // changes that the declared pools show
	seen    map[pcm.PoolID]sighting
	shows   map[string]bool     // adapters that have shown what they have
	dark    map[string]sighting // adapters that can't be observed, and have shown no pool yet
}

// openOperator reads the settings. A damaged file is refused: what an operator
// has forbidden must not be sold because a file can't be read.
func openOperator(n *Node) (*operator, error) {
	o := &operator{
		n: n, path: filepath.Join(n.cfg.Dir, operatorFile), wake: make(chan struct{}, 1),
		seen: map[pcm.PoolID]sighting{}, dark: map[string]sighting{},
	}
	var err error
	o.set, err = readOperator(o.path)
	return o, err
}

func readOperator(path string) (operatorSettings, error) {
	none := operatorSettings{Version: operatorVersion, Pools: map[pcm.PoolID]poolRule{}, Accounts: map[string]accountRule{}}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	var raw []byte
	if err == nil && info.Size() > maxOperatorFile {
		err = fmt.Errorf("it has %s, at most %s are read", pcm.Bytes(info.Size()), pcm.Bytes(maxOperatorFile))
	}
	if err == nil {
		raw, err = os.ReadFile(path)
	}
	set := none
	if err == nil {
		err = json.Unmarshal(raw, &set)
	}
	if err == nil {
		err = set.validate()
	}
	if err != nil {
		return none, pcm.Errorf(pcm.Internal, "can't use the operator's settings in %s: %w. They say what must not be sold, so this peer doesn't start without them: mend the file, or move it away and set anew what it said (pcm pool, pcm account)", path, err)
	}
	return set, nil
}

// validate checks the bounds.
func (s *operatorSettings) validate() error {
	if s.Version != operatorVersion {
		return fmt.Errorf("its version is %d, this program knows %d", s.Version, operatorVersion)
	}
	if len(s.Pools) > maxPoolRules || len(s.Accounts) > maxAccountRules {
		return fmt.Errorf("it names %d pools and %d accounts: at most %d and %d", len(s.Pools), len(s.Accounts), maxPoolRules, maxAccountRules)
	}
	if s.Pools == nil {
		s.Pools = map[pcm.PoolID]poolRule{}
	}
	if s.Accounts == nil {
		s.Accounts = map[string]accountRule{}
	}
	for id, r := range s.Pools {
		if !pcm.ValidName(string(id)) {
			return fmt.Errorf("%q is not the name of a pool", id)
		}
		if c := r.Cap; c != nil && (c.CPU < 0 || c.Memory < 0 || c.GPU < 0 || c.Slots < 0) {
			return fmt.Errorf("the cap of pool %s is below zero", id)
		}
		if err := r.Price.over(pcm.Price{Unit: pcm.DefaultUnit}).Validate(); err != nil {
			return fmt.Errorf("the price of pool %s: %w", id, err)
		}
	}
	for who, r := range s.Accounts {
		if !knownForm(who) || r.Rule != ruleAllow && r.Rule != ruleDeny {
			return fmt.Errorf("%q with rule %q is no rule for an account or peer", who, r.Rule)
		}
	}
	return nil
}

// change changes the settings: durably, or not at all.
func (o *operator) change(f func(*operatorSettings) error) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	next := operatorSettings{Version: operatorVersion, Pools: maps.Clone(o.set.Pools), Accounts: maps.Clone(o.set.Accounts)}
	if err := f(&next); err != nil {
		return err
	}
	maps.DeleteFunc(next.Pools, func(_ pcm.PoolID, r poolRule) bool { return r.empty() })
	if err := next.validate(); err != nil {
		return pcm.Errorf(pcm.Refused, "that can't be set: %w", err)
	}
	raw, err := json.MarshalIndent(next, "", "  ")
	if err == nil {
		err = writeFile(o.path, append(raw, '\n'))
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't keep the setting in %s, so it is not made: %w", o.path, err)
	}
	o.set = next
	o.changes++
	return nil
}

// saw notes what an adapter describes; its other pools are gone.
func (o *operator) saw(adapter string, pools []pcm.Pool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	delete(o.dark, adapter)
	if o.shows == nil {
		o.shows = map[string]bool{}
	}
	o.shows[adapter] = true
	maps.DeleteFunc(o.seen, func(_ pcm.PoolID, s sighting) bool { return s.pool.Adapter == adapter })
	for _, p := range pools {
		o.seen[p.ID] = sighting{pool: p, at: now}
	}
}

// shownPools are the pools that the adapters have shown, in order, and whether all
// adapters can be observed and have.
func (o *operator) shownPools() (ids []pcm.PoolID, whole bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	whole = len(o.dark) == 0
	for id, s := range o.seen {
		ids = append(ids, id)
		whole = whole && !s.blind
	}
	for _, sale := range o.n.cfg.Sales {
		whole = whole && o.shows[sale.Adapter.Name()]
	}
	slices.Sort(ids)
	return ids, whole
}

// lost notes that an adapter can't be observed.
func (o *operator) lost(adapter string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	found, now := false, time.Now()
	for id, s := range o.seen {
		if s.pool.Adapter != adapter {
			continue
		}
		found = true
		if !s.blind {
			s.blind, s.since = true, now
		}
		s.why = err.Error()
		o.seen[id] = s
	}
	if !found {
		s, ok := o.dark[adapter]
		if !ok {
			s = sighting{pool: pcm.Pool{ID: pcm.PoolID(adapter), Adapter: adapter}, blind: true, since: now}
		}
		s.why = err.Error()
		o.dark[adapter] = s
	}
}

// offer is a pool as it is to be sold; false if it isn't.
func (o *operator) offer(p pcm.Pool) (pcm.Pool, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.set.Pools[p.ID]
	p.Price = r.Price.over(p.Price)
	return r.Cap.within(p), r.Cordoned == nil
}

// generation counts the changes so far.
func (o *operator) generation() uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changes
}

// settled notes that what is declared shows the settings of a generation.
func (o *operator) settled(generation uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shown = max(o.shown, generation)
}

// declaredWithin bounds how long a change of settings waits until it is declared.
const declaredWithin = 10 * time.Second

// declare has the pools declared as they are set now. What is not declared in
// time is declared later: the cell may have no leader at the moment.
func (o *operator) declare(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, declaredWithin)
	defer cancel()
	want := o.generation()
	o.n.offer.check()
	for {
		o.mu.Lock()
		done := o.shown >= want
		o.mu.Unlock()
		if done {
			return true
		}
		if !pause(ctx, 10*time.Millisecond) {
			return false
		}
	}
}

// known are the names of the pools that can be set, for who mistypes one.
func (o *operator) known() []string {
	names := map[string]bool{}
	for id := range o.seen {
		names[string(id)] = true
	}
	for id := range o.set.Pools {
		names[string(id)] = true
	}
	return slices.Sorted(maps.Keys(names))
}
