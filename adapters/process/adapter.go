// Package process runs tasks as processes of this machine, under its
// supervisor: each in a session and process group of its own, with a clean
// environment, its own working folder, bounded memory, processor time, files and
// number of processes, in a sandbox that sees neither the host's
// files nor its network: that of bubblewrap where it is installed, else its own.
//
// [New] is the daemon's side, [NewRunner] the supervisor's.
package process

import (
	"context"
	"maps"
	"runtime"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Name is the name of the adapter, its pool and its runner.
const Name = "process"

// Config says what the pool offers.
type Config struct {
	Capacity         pcm.Resources // zero parts: all cores, 75 % of memory
	Slots            int           // attempts at once; default 64 for each core
	Network          bool          // tasks that ask for it get the network; as in RunnerConfig
	AllowUnsandboxed bool          // sell to other accounts also where there is no sandbox, or one that can't hold all
	Labels           pcm.Labels    // beside os, arch and limits
}

// Adapter is the daemon's side. It implements adapters.Adapter,
// adapters.Fencer and the roles for running attempts.
type Adapter struct {
	*supervisor.Attempts
	cfg  Config
	gate chan struct{} // held by what enters sandboxes
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Fencer  = (*Adapter)(nil)

	_ adapters.Suspender = (*Adapter)(nil)
	_ adapters.Execer    = (*Adapter)(nil)
	_ adapters.Copier    = (*Adapter)(nil)
	_ adapters.Dialer    = (*Adapter)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's runner.
func New(cfg Config, client *supervisor.Client) *Adapter {
	cfg.Capacity, cfg.Slots = supervisor.MachineShare(cfg.Capacity, cfg.Slots)
	return &Adapter{Attempts: client.Attempts(Name), cfg: cfg, gate: make(chan struct{}, maxEntries)}
}

// maxEntries is how many commands and connections at once go into sandboxes.
const maxEntries = 128

// enter takes a place among these; leave gives it back.
func (a *Adapter) enter() (leave func(), err error) {
	select {
	case a.gate <- struct{}{}:
		return func() { <-a.gate }, nil
	default:
		return nil, pcm.Errorf(pcm.Busy, "%d commands and connections go into running tasks here: no more at once", maxEntries)
	}
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return Name }

// Pools describes this machine: one pool.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	facts, err := a.Facts(ctx)
	if err != nil {
		return nil, err
	}
	labels := pcm.Labels{"os": runtime.GOOS, "arch": runtime.GOARCH}
	maps.Copy(labels, a.cfg.Labels)
	maps.Copy(labels, facts.Labels)
	features := []pcm.Feature{pcm.FeatureCommand}
	if a.cfg.Network {
		features = append(features, pcm.FeatureNetwork)
	}
	capacity := a.cfg.Capacity
	capacity.GPU = facts.GPU
	return []pcm.Pool{{
		ID: Name, Adapter: Name, Capacity: capacity, Accelerator: facts.Accelerator, Slots: a.cfg.Slots, Labels: labels,
		Features: adapters.Features(a, features...), Sandbox: facts.Sandbox, OwnOnly: Weak(facts) && !a.cfg.AllowUnsandboxed,
	}}, nil
}

// Weak tells whether programs of others are not to be let in: where nothing keeps
// them in, or neither namespaces nor control groups hold all of their processes.
// Those could outlive their task, and use all that the machine has.
func Weak(f supervisor.Facts) bool {
	return f.Sandbox == SandboxNone || f.Labels["namespaces"] == "no" && f.Labels["limits"] == rlimits{}.name()
}
