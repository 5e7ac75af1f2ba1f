// Package container runs tasks as containers of a Docker or Podman engine on this
// machine: one container for each attempt, named after it, without network,
// capabilities or a way to gain any, on a read-only image, with the attempt's
// working folder at /work and its inputs mounted read-only into that.
//
// [New] is the daemon's side, [NewRunner] the supervisor's. Both speak the Docker
// Engine API over the engine's socket.
package container

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Name is the name of the adapter, its pool, its runner and its sandbox.
const Name = "container"

// Config says what the pool offers.
type Config struct {
	Runner   RunnerConfig  // what the supervisor's runner is told as well; Dir included
	Capacity pcm.Resources // zero parts: the engine's cores, 75 % of its memory, the accelerators named
	Slots    int           // attempts at once; default 64 for each core
	OwnOnly  bool          // sell to the own account only
	Labels   pcm.Labels
}

// Adapter is the daemon's side. It implements adapters.Adapter, adapters.Fencer
// and the roles of adapters/role.go.
type Adapter struct {
	*supervisor.Attempts
	cfg    Config
	engine *engine
	owner  owner
}

var (
	_ adapters.Adapter   = (*Adapter)(nil)
	_ adapters.Fencer    = (*Adapter)(nil)
	_ adapters.Suspender = (*Adapter)(nil)
	_ adapters.Execer    = (*Adapter)(nil)
	_ adapters.Copier    = (*Adapter)(nil)
	_ adapters.Dialer    = (*Adapter)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's runner.
func New(cfg Config, client *supervisor.Client) (*Adapter, error) {
	e, err := openEngine(cfg.Runner.Socket)
	if err != nil {
		return nil, err
	}
	o, err := newOwner(cfg.Runner.User)
	if err != nil {
		return nil, err
	}
	if _, err := newImages(e, cfg.Runner); err != nil {
		return nil, err
	}
	if _, err := newGPUs(cfg.Runner.GPUs, cfg.Runner.GPUDevices); err != nil {
		return nil, err
	}
	return &Adapter{Attempts: client.Attempts(Name), cfg: cfg, engine: e, owner: o}, nil
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return Name }

// Pools describes what the engine has: one pool.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	runner, err := a.Facts(ctx)
	if err != nil {
		return nil, err
	}
	f, err := a.engine.current(ctx)
	if err != nil {
		return nil, err
	}
	capacity := pcm.Resources{
		CPU:    cmp.Or(a.cfg.Capacity.CPU, pcm.MilliCPU(f.cpus)*1000),
		Memory: cmp.Or(a.cfg.Capacity.Memory, f.memory/4*3),
		GPU:    int64(len(a.cfg.Runner.GPUs)),
	}
	labels := pcm.Labels{
		"os": f.os, "arch": f.arch, "engine": f.name, "engine-version": f.version, "runtime": cmp.Or(a.cfg.Runner.Runtime, f.runtime), "limits": "cgroup-" + f.cgroups,
	}
	maps.Copy(labels, a.cfg.Labels)
	maps.DeleteFunc(labels, func(_, v string) bool { return v == "" || len(v) > 63 || !pcm.Printable(v) }) // the engine is not trusted to be brief
	features := adapters.Features(a)
	if !canEnter() {
		features = slices.DeleteFunc(features, func(f pcm.Feature) bool { return f == pcm.FeatureService })
	}
	if a.cfg.Runner.DefaultImage != "" {
		features = append(features, pcm.FeatureCommand)
	}
	if a.cfg.Runner.DefaultImage != "" || len(a.cfg.Runner.Images) > 0 {
		features = append(features, pcm.FeatureImage)
	}
	if a.cfg.Runner.Network != "" {
		features = append(features, pcm.FeatureNetwork)
	}
	slices.Sort(features)
	return []pcm.Pool{{
		ID: Name, Adapter: Name, Capacity: capacity, Accelerator: runner.Accelerator, Slots: cmp.Or(a.cfg.Slots, 64*max(f.cpus, 1)), Labels: labels,
		Features: features, Sandbox: runner.Sandbox, OwnOnly: a.cfg.OwnOnly,
	}}, nil
}
