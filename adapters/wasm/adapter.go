// Package wasm runs WebAssembly modules (WASI preview 1) with wazero, inside the
// supervisor: no process, no network, only the task's own folder, bounded memory.
// Compiled code is kept in memory and on disk, so that a small module starts in
// well under a millisecond.
//
// [New] is the daemon's side, [NewRunner] the supervisor's.
package wasm

import (
	"context"
	"io"
	"maps"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Name is the name of the adapter, its pool, its runner and its sandbox.
const Name = "wasm"

// Config says what the pool offers.
type Config struct {
	Capacity pcm.Resources // zero parts: all cores, 75 % of memory
	Slots    int           // attempts at once; default 64 for each core
	Labels   pcm.Labels
}

// Adapter is the daemon's side. It implements adapters.Adapter, adapters.Fencer and adapters.Copier.
type Adapter struct {
	*supervisor.Attempts
	cfg Config
}

var (
	_ adapters.Adapter = (*Adapter)(nil)
	_ adapters.Fencer  = (*Adapter)(nil)
	_ adapters.Copier  = (*Adapter)(nil)
)

// New makes the adapter; client leads to a supervisor that has this package's runner.
func New(cfg Config, client *supervisor.Client) *Adapter {
	cfg.Capacity, cfg.Slots = supervisor.MachineShare(cfg.Capacity, cfg.Slots)
	return &Adapter{Attempts: client.Attempts(Name), cfg: cfg}
}

// Name implements adapters.Adapter.
func (a *Adapter) Name() string { return Name }

// CopyOut implements adapters.Copier.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, path string, w io.Writer) error {
	return a.Pack(ctx, k, path, w)
}

// CopyIn implements adapters.Copier.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	return a.Unpack(ctx, k, folder, r)
}

// Pools describes this machine: one pool.
func (a *Adapter) Pools(ctx context.Context) ([]pcm.Pool, error) {
	facts, err := a.Facts(ctx)
	if err != nil {
		return nil, err
	}
	labels := pcm.Labels{"os": "wasi", "arch": "wasm"}
	maps.Copy(labels, a.cfg.Labels)
	maps.Copy(labels, facts.Labels)
	return []pcm.Pool{{
		ID: Name, Adapter: Name, Capacity: a.cfg.Capacity, Slots: a.cfg.Slots, Labels: labels, Features: adapters.Features(a, pcm.FeatureModule), Sandbox: facts.Sandbox,
	}}, nil
}
