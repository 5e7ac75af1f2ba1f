package main

import (
	"context"
	"maps"
	"os"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/process"
	"github.com/jointcloud/pcm/adapters/wasm"
	"github.com/jointcloud/pcm/node"
)

// openNode makes the node that 'pcm up' runs. A variable, so that tests of the
// command line can put another in its place.
var openNode = func(ctx context.Context, cfg Config, s surroundings) (daemon, error) {
	nc, err := nodeConfig(cfg, s)
	if err != nil {
		return nil, err
	}
	return node.Open(ctx, nc)
}

// nodeConfig is the configuration as the node takes it.
func nodeConfig(cfg Config, s surroundings) (node.Config, error) {
	var none node.Config
	credit, err := pcm.ParseMicro(string(cfg.CreditLimit))
	if err != nil {
		return none, err
	}
	quota, err := pcm.ParseBytes(cfg.Store.Quota)
	if err != nil {
		return none, err
	}
	reserve, err := pcm.ParseBytes(cfg.Store.Reserve)
	if err != nil {
		return none, err
	}
	sales, err := sales(cfg, s)
	if err != nil {
		return none, err
	}
	facts, err := cfg.poolFacts()
	if err != nil {
		return none, err
	}
	labels := maps.Clone(cfg.Labels)
	if !cfg.Cell.VoterEligible {
		if labels == nil {
			labels = pcm.Labels{}
		}
		labels["voter"] = "no" // on the passport, so that every leader knows
	}
	return node.Config{
		Dir: cfg.Data, Name: cfg.Name, Version: s.Version, Labels: labels, AccountKey: cfg.AccountKey, LedgerArchive: cfg.LedgerArchive,
		Join: cfg.Join, Cell: cfg.Cell.Join, Listen: cfg.Listen, Announce: cfg.Announce, Bootstrap: cfg.Bootstrap, MDNS: cfg.MDNS, PortMap: cfg.PortMap,
		Operations: node.Operations{
			Exec: node.Permit(cfg.Operations.Exec), Copy: node.Permit(cfg.Operations.Copy),
			Suspend: node.Permit(cfg.Operations.Suspend), Service: node.Permit(cfg.Operations.Service),
		},
		Sales: sales, Facts: facts, Rules: s.Rules, Credit: credit, StoreQuota: quota, StoreReserve: reserve, Profile: cfg.Cell.Profile,
		API: func() []string { return s.API }, Logger: s.Logger,
	}, nil
}

// sales are the adapters that are enabled, with their prices.
func sales(cfg Config, s surroundings) ([]node.Sale, error) {
	p, w := cfg.Adapters.Process, cfg.Adapters.Wasm
	cluster := cfg.Adapters.Slurm
	if !p.Enabled && !w.Enabled && !cluster.Enabled && !cfg.Adapters.Container.Enabled && !cfg.Adapters.Kubernetes.Enabled && len(cfg.Adapters.Plugins) == 0 && len(cfg.Adapters.Described) == 0 {
		return nil, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't find this program's own file: %w", err)
	}
	own, err := instance(cfg.Data)
	if err != nil {
		return nil, err
	}
	client, err := supervisorClient(cfg, own, self, s.Version, s.Logger)
	if err != nil {
		return nil, err
	}
	var list []node.Sale
	if p.Enabled {
		capacity, err := p.Capacity.resources()
		if err != nil {
			return nil, err
		}
		price, err := p.Price.pcm()
		if err != nil {
			return nil, err
		}
		list = append(list, node.Sale{Price: price, Adapter: process.New(process.Config{
			Capacity: capacity, Slots: p.Slots, AllowUnsandboxed: p.AllowUnsandboxed, Network: p.Network,
		}, client)})
	}
	if w.Enabled {
		capacity, err := w.Capacity.resources()
		if err != nil {
			return nil, err
		}
		price, err := w.Price.pcm()
		if err != nil {
			return nil, err
		}
		list = append(list, node.Sale{Price: price, Adapter: wasm.New(wasm.Config{Capacity: capacity, Slots: w.Slots}, client)})
	}
	if cluster.Enabled {
		sale, err := cluster.sale(cfg.Data, own, client)
		if err != nil {
			return nil, err
		}
		list = append(list, sale)
	}
	if k := cfg.Adapters.Kubernetes; k.Enabled {
		sale, err := k.sale(own, client, s.Logger)
		if err != nil {
			return nil, err
		}
		list = append(list, sale)
	}
	if c := cfg.Adapters.Container; c.Enabled {
		sale, err := c.sale(tasksDir(cfg), client)
		if err != nil {
			return nil, err
		}
		list = append(list, sale)
	}
	plugins, err := pluginSales(cfg.Adapters.Plugins, tasksDir(cfg), own, s.Version, client, s.Logger)
	if err != nil {
		return nil, err
	}
	described, err := describedSales(cfg.Adapters.Described, tasksDir(cfg), own, client)
	if err != nil {
		return nil, err
	}
	return append(append(list, plugins...), described...), nil
}
