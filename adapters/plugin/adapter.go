package plugin

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const nonBlocking = syscall.O_NONBLOCK

// roleNames are the roles that this host knows.
var roleNames = map[pluginpb.Role]string{
	pluginpb.Role_ROLE_SUSPEND: "suspend",
	pluginpb.Role_ROLE_EXEC:    "exec",
	pluginpb.Role_ROLE_COPY:    "copy",
	pluginpb.Role_ROLE_DIAL:    "dial",
	pluginpb.Role_ROLE_RANK:    "rank",
}

// features is what a role lets tasks' owners do.
var features = map[string]pcm.Feature{
	"suspend": pcm.FeatureSuspend, "exec": pcm.FeatureExec, "copy": pcm.FeatureCopy, "dial": pcm.FeatureService,
}

var poolFeatures = map[pluginpb.Feature]pcm.Feature{
	pluginpb.Feature_FEATURE_COMMAND: pcm.FeatureCommand,
	pluginpb.Feature_FEATURE_MODULE:  pcm.FeatureModule,
	pluginpb.Feature_FEATURE_IMAGE:   pcm.FeatureImage,
	pluginpb.Feature_FEATURE_NETWORK: pcm.FeatureNetwork,
}

// Adapter is the daemon's side. It implements adapters.Adapter, adapters.Fencer,
// and the roles, which answer with Refused where the plug-in lacks them.
type Adapter struct {
	*supervisor.Attempts
	cfg         Config
	allowOthers bool
	folders     folders
	log         *slog.Logger

	mu    sync.Mutex
	at    string // socket and process that link leads to
	link  *link
	facts facts
	odd   map[string]bool // faults of pools that were logged
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Fencer    = (*Adapter)(nil)
	_ adapters.Batcher   = (*Adapter)(nil)
	_ adapters.Suspender = (*Adapter)(nil)
	_ adapters.Execer    = (*Adapter)(nil)
	_ adapters.Copier    = (*Adapter)(nil)
	_ adapters.Dialer    = (*Adapter)(nil)
)

// New makes the adapter; client leads to a supervisor that has this plug-in's
// runner, with the same configuration. Pools whose plug-in names nothing that keeps
// tasks in are sold to others than the own account only if the site allows that.
func New(cfg Config, allowOthers bool, client *supervisor.Client) (*Adapter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	f, err := cfg.folders()
	if err != nil {
		return nil, err
	}
	return &Adapter{Attempts: client.Attempts(cfg.Name), cfg: cfg, allowOthers: allowOthers, folders: f, log: cfg.Logger, odd: map[string]bool{}}, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return a.cfg.Name }

// MaxBatch implements adapters.Batcher; 0: the plug-in's back end has no arrays, or it is not up.
func (a *Adapter) MaxBatch() int { a.mu.Lock(); defer a.mu.Unlock(); return a.facts.MaxBatch }

// await waits, for as long as a plug-in may take, while it is being started.
func (a *Adapter) await(ctx context.Context) (*link, facts, error) {
	limit := time.NewTimer(shortCall)
	defer limit.Stop()
	for {
		l, made, err := a.reach()
		if err == nil || !errors.Is(err, errStarting) {
			return l, made, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-limit.C:
			return nil, facts{}, err
		case <-ctx.Done():
			return nil, facts{}, err
		}
	}
}

var errStarting = errors.New("it is being started")

// reach is the way to the plug-in, if its host says that it is up.
func (a *Adapter) reach() (*link, facts, error) {
	s, err := loadState(a.folders.stateFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, facts{}, pcm.Errorf(pcm.Unavailable, "plug-in %s can't be used: %w", a.cfg.Name, errStarting)
	}
	if err != nil {
		return nil, facts{}, pcm.Errorf(pcm.Unavailable, "can't read the state of plug-in %s: %w", a.cfg.Name, err)
	}
	if s.Trouble == errStarting.Error() {
		return nil, facts{}, pcm.Errorf(pcm.Unavailable, "plug-in %s can't be used: %w", a.cfg.Name, errStarting)
	}
	if s.Trouble != "" {
		return nil, facts{}, pcm.Errorf(pcm.Unavailable, "plug-in %s can't be used: %s", a.cfg.Name, s.Trouble)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := s.Socket + " " + s.Nonce; a.at != at {
		if a.link != nil {
			a.link.close()
		}
		a.link, a.at = newLink(a.cfg.Name, s.Socket, s.UID), at
	}
	a.facts = s.Facts
	return a.link, s.Facts, nil
}

// Process is the plug-in's process, once its host says that it can be used; 0 until then.
func (a *Adapter) Process() int {
	s, err := loadState(a.folders.stateFile())
	if err != nil || s.Trouble != "" || s.PID <= 1 || born(s.PID) != s.Born {
		return 0
	}
	return s.PID
}

const maxPools = 64

// Pools asks the plug-in, and checks what it says.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	if _, err := a.Facts(ctx); err != nil { // starts supervisor and plug-in, if there are none
		return nil, err
	}
	l, made, err := a.await(ctx)
	if err != nil {
		return nil, err
	}
	res, err := call[pluginpb.PoolsRequest, pluginpb.PoolsResponse](ctx, l, "Pools", shortCall, &pluginpb.PoolsRequest{})
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "%s", pcm.AsError(err).Message)
	}
	if len(res.Pools) > maxPools {
		return nil, pcm.Errorf(pcm.Unavailable, "plug-in %s names %d pools: at most %d", a.cfg.Name, len(res.Pools), maxPools)
	}
	var pools []pcm.Pool
	var wrong error
	seen := map[pcm.PoolID]bool{}
	for _, raw := range res.Pools {
		p, err := a.pool(raw, made)
		if err == nil && seen[p.ID] {
			err = pcm.Errorf(pcm.Invalid, "it is named twice")
		}
		if err != nil {
			err = pcm.Errorf(pcm.Unavailable, "pool %s of plug-in %s is not offered: %s", pcm.Clean(raw.GetId(), 63), a.cfg.Name, pcm.AsError(err).Message)
			a.complain(err)
			if wrong == nil {
				wrong = err
			}
			continue
		}
		seen[p.ID] = true
		pools = append(pools, p)
	}
	a.withhold(pools)
	if len(pools) == 0 && wrong != nil {
		return nil, wrong
	}
	return pools, nil
}

// complain logs each fault once.
func (a *Adapter) complain(err error) {
	a.mu.Lock()
	first := !a.odd[err.Error()] && len(a.odd) < 100
	a.odd[err.Error()] = true
	a.mu.Unlock()
	if first {
		a.log.Warn("a plug-in describes a pool that can't be", "plugin", a.cfg.Name, "err", err)
	}
}

// poolID is how the site knows a pool of the plug-in.
func (c Config) poolID(id string) pcm.PoolID {
	if id == c.Name {
		return pcm.PoolID(id)
	}
	return pcm.PoolID(c.Name + "." + id)
}

// poolOf is how the plug-in knows it.
func (c Config) poolOf(id pcm.PoolID) string {
	if rest, ok := strings.CutPrefix(string(id), c.Name+"."); ok {
		return rest
	}
	return string(id)
}

// resources puts an amount into our words.
func resources(r *pluginpb.Resources) pcm.Resources {
	return pcm.Resources{CPU: pcm.MilliCPU(r.GetCpuMilli()), Memory: pcm.Bytes(r.GetMemoryBytes()), GPU: r.GetGpus(), Disk: pcm.Bytes(r.GetDiskBytes())}
}

// pool checks a pool and puts it into our words.
func (a *Adapter) pool(raw *pluginpb.Pool, made facts) (pcm.Pool, error) {
	if !pcm.ValidName(raw.GetId()) {
		return pcm.Pool{}, pcm.Errorf(pcm.Invalid, "%q is not a name of lower-case letters, digits, dots and dashes", pcm.Clean(raw.GetId(), 63))
	}
	p := pcm.Pool{
		ID: a.cfg.poolID(raw.Id), Adapter: a.cfg.Name, Slots: int(raw.Slots), MaxTime: raw.MaxTimeMs, Labels: pcm.Labels{}, Sandbox: raw.Sandbox,
		Capacity: resources(raw.GetCapacity()), NoFiles: raw.NoFiles,
	}
	if l := resources(raw.GetLargest()); l != (pcm.Resources{}) && l != p.Capacity {
		p.Largest = &l
	}
	maps.Copy(p.Labels, raw.Labels)
	if p.Sandbox == "" {
		p.Sandbox, p.OwnOnly = "none", !a.allowOthers
	}
	for _, f := range raw.Features {
		if known, ok := poolFeatures[f]; ok {
			p.Features = append(p.Features, known)
		}
	}
	if len(raw.Features) == 0 {
		p.Features = append(p.Features, pcm.FeatureCommand)
	}
	for _, role := range made.Roles {
		if f, ok := features[role]; ok {
			p.Features = append(p.Features, f)
		}
	}
	slices.Sort(p.Features)
	p.Features = slices.Compact(p.Features)
	if acc := raw.Accelerator; acc != nil && p.Capacity.GPU > 0 {
		p.Accelerator = &pcm.Accelerator{Vendor: acc.Vendor, Model: acc.Model, Memory: pcm.Bytes(acc.MemoryBytes)}
	}
	if p.Slots < 1 || p.Capacity.CPU < 0 || p.Capacity.Memory < 0 {
		return p, pcm.Errorf(pcm.Invalid, "it has %s and %d slots", p.Capacity, p.Slots)
	}
	priced := p
	priced.Price.Unit = pcm.DefaultUnit // the site sets the price
	return p, priced.Validate()
}

// withhold takes off what attempts hold that the plug-in did not end.
func (a *Adapter) withhold(pools []pcm.Pool) {
	for _, h := range loadHeld(a.folders.heldFile()) {
		for i := range pools {
			if p := &pools[i]; p.ID == h.Pool {
				c := p.Capacity.Minus(h.Each)
				p.Capacity = pcm.Resources{CPU: max(c.CPU, 0), Memory: max(c.Memory, 0), GPU: max(c.GPU, 0), Disk: max(c.Disk, 0)}
				p.Slots = max(p.Slots-1, 0)
			}
		}
	}
}
