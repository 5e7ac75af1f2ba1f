// Package slurm runs tasks as batch jobs of a Slurm cluster, by Slurm's own
// commands or by slurmrestd.
//
// A job is known by the attempt's key in its name, and by a comment that names
// the node that made it; its number is only a hint, since Slurm gives numbers
// again after its controller has crashed. The folder that login and compute nodes
// share carries what the two tell each other: see wrapper. An attempt runs once,
// whatever the controller forgets or repeats: who makes its start file runs it.
//
// [New] is the daemon's side, [NewRunner] the supervisor's.
package slurm

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Adapter is the daemon's side. It implements adapters.Adapter, Fencer, Batcher,
// Copier and Dialer.
type Adapter struct {
	*supervisor.Attempts
	cfg      Config
	link     transport
	spool    spool
	features []pcm.Feature

	mu      sync.Mutex
	owner   string
	version string
}

// Commanded is an adapter that reaches Slurm by its commands, which can do more
// than slurmrestd: it implements adapters.Execer and adapters.Suspender, too.
type Commanded struct{ *Adapter }

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Fencer    = (*Adapter)(nil)
	_ adapters.Batcher   = (*Adapter)(nil)
	_ adapters.Copier    = (*Adapter)(nil)
	_ adapters.Dialer    = (*Adapter)(nil)
	_ adapters.Suspender = (*Commanded)(nil)
	_ adapters.Execer    = (*Commanded)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's runner.
func New(cfg Config, client *supervisor.Client) (adapters.Adapter, error) {
	cfg.defaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	link, err := dial(cfg)
	if err != nil {
		return nil, err
	}
	a := &Adapter{Attempts: client.Attempts(Name), cfg: cfg, link: link, spool: spool(cfg.root())}
	can := []pcm.Feature{pcm.FeatureCommand, pcm.FeatureNetwork}
	if cfg.URL != "" {
		a.features = adapters.Features(a, can...)
		return a, nil
	}
	c := &Commanded{a}
	a.features = adapters.Features(c, can...)
	return c, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return Name }

// MaxBatch implements adapters.Batcher.
func (a *Adapter) MaxBatch() int { return maxArray }

// Pools makes one of each partition that is sold: what is free on its nodes, and
// what our own jobs have of them.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	if _, err := a.Facts(ctx); err != nil { // without its supervisor nothing runs
		return nil, err
	}
	owner, version, err := a.identity(ctx)
	if err != nil {
		return nil, err
	}
	parts, err := a.link.partitions(ctx)
	if err != nil {
		return nil, unobservable(err)
	}
	nodes, err := a.link.nodes(ctx)
	if err != nil {
		return nil, unobservable(err)
	}
	jobs, err := a.link.jobs(ctx)
	if err != nil {
		return nil, unobservable(err)
	}
	jobs = slices.DeleteFunc(jobs, func(j job) bool {
		return j.Comment != owner || !strings.HasPrefix(j.Name, "pcm.") || states.Of(j.State).State != adapters.Running
	})
	var pools []pcm.Pool
	for _, pl := range findPlaces(a.cfg, parts, nodes) {
		pools = append(pools, a.pool(pl, jobs, version))
	}
	return pools, nil
}

// unobservable makes of any failure that the back end can't be observed.
func unobservable(err error) error {
	if pcm.ErrorCode(err) == pcm.Unavailable {
		return err
	}
	return pcm.Errorf(pcm.Unavailable, "Slurm can't be observed: %w", err)
}

func (a *Adapter) identity(ctx context.Context) (owner, version string, err error) {
	a.mu.Lock()
	owner, version = a.owner, a.version
	a.mu.Unlock()
	if owner == "" {
		if owner, err = a.spool.owner(); err != nil {
			return "", "", err
		}
	}
	if version == "" {
		if version, err = a.link.version(ctx); err != nil {
			return "", "", unobservable(err)
		}
	}
	a.mu.Lock()
	a.owner, a.version = owner, version
	a.mu.Unlock()
	return owner, version, nil
}

// pool describes one place. jobs are ours that run.
func (a *Adapter) pool(pl place, jobs []job, version string) pcm.Pool {
	p := pcm.Pool{
		ID: pl.id, Adapter: Name, Slots: a.cfg.Slots, Sandbox: Name, OwnOnly: !a.cfg.AllowOthers,
		MaxTime: pl.maxTime.Milliseconds(), Features: a.features,
		Labels: pcm.Labels{"os": "linux", "partition": label(pl.partition), "slurm": label(version)},
	}
	here, arch, features := map[string]*pcm.Resources{}, "", "" // what we may have of each node
	for i, n := range pl.nodes {
		has := &pcm.Resources{}
		here[n.Name] = has
		if i == 0 {
			arch, features = n.Arch, n.Features
		}
		if n.Arch != arch {
			arch = ""
		}
		if n.Features != features {
			features = ""
		}
		if !n.usable() {
			continue
		}
		has.CPU = pcm.MilliCPU(max(n.CPUs-n.Allocated, 0)) * 1000
		has.Memory = max(n.Memory-n.Used, 0)
		if pl.gpu != "" {
			has.GPU = max(n.GPUs[pl.gpu]-n.GPUsUsed[pl.gpu], 0)
		} else {
			has.GPU = max(sum(n.GPUs)-sum(n.GPUsUsed), 0)
		}
	}
	for _, j := range jobs {
		if has := here[j.Node]; has != nil && j.Partition == pl.partition {
			*has = has.Plus(pcm.Resources{CPU: pcm.MilliCPU(j.CPUs) * 1000, Memory: j.Memory, GPU: j.GPUs})
		}
	}
	var largest pcm.Resources
	for _, has := range here {
		p.Capacity = p.Capacity.Plus(*has)
		largest = pcm.Resources{CPU: max(largest.CPU, has.CPU), Memory: max(largest.Memory, has.Memory), GPU: max(largest.GPU, has.GPU)}
	}
	if len(here) > 1 {
		p.Largest = &largest
	}
	if arch != "" {
		p.Labels["arch"] = label(machine(arch))
	}
	if features != "" {
		p.Labels["features"] = label(features)
	}
	if pl.gpu != "" {
		p.Labels["gpu"] = label(pl.gpu)
		if acc, _ := adapters.AcceleratorOf(adapters.NameGres, "gpu:"+pl.gpu); acc.Validate() == nil {
			p.Accelerator = &acc
		}
	}
	for k, v := range a.cfg.Labels {
		p.Labels[k] = v
	}
	return p
}

// label cuts what Slurm says to what a label holds.
func label(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 63)]
}
