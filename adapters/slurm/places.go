package slurm

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// place is where tasks of one pool run: a partition, or its nodes with one type
// of GPU, where it has several.
type place struct {
	id        pcm.PoolID
	partition string
	gpu       string // type that tasks with GPUs ask for; "": any
	maxTime   time.Duration
	nodes     []node
}

// findPlaces makes pools of what is to be sold. Nodes that are down count here:
// pools keep their names.
func findPlaces(cfg Config, parts []partition, nodes []node) []place {
	var all []place
	taken := map[pcm.PoolID]bool{}
	for _, p := range parts {
		if !p.Up || !cfg.sold(p.Name) {
			continue
		}
		byGPU := map[string][]node{}
		for _, n := range nodes {
			if slices.Contains(n.Partitions, p.Name) {
				t := n.gpuType()
				byGPU[t] = append(byGPU[t], n)
			}
		}
		for _, t := range slices.Sorted(maps.Keys(byGPU)) {
			pl := place{id: poolID(p.Name, t), partition: p.Name, gpu: t, maxTime: p.MaxTime, nodes: byGPU[t]}
			if len(byGPU) == 1 {
				pl.id = poolID(p.Name, "")
			}
			if !taken[pl.id] && pcm.ValidName(string(pl.id)) {
				taken[pl.id] = true
				all = append(all, pl)
			}
		}
	}
	return all
}

// gpuType is the type of GPU that the node has most of; "" for none, or without a type.
func (n node) gpuType() string {
	best := ""
	for _, t := range slices.Sorted(maps.Keys(n.GPUs)) {
		if t != "" && plainWord.MatchString(t) && (best == "" || n.GPUs[t] > n.GPUs[best]) {
			best = t
		}
	}
	return best
}

// places remembers which pool is which place.
type places struct {
	cfg  Config
	link transport

	mu    sync.Mutex
	known map[pcm.PoolID]place
	at    time.Time
}

// resolve finds the place of a pool. An attempt that names none runs where the
// cluster would put it, or in the first partition that is sold.
func (r *Runner) resolve(ctx context.Context, id pcm.PoolID) (place, error) {
	if id == "" {
		if len(r.cfg.Partitions) > 0 {
			return place{partition: r.cfg.Partitions[0]}, nil
		}
		return place{}, nil
	}
	p := &r.places
	p.mu.Lock()
	pl, ok := p.known[id]
	fresh := time.Since(p.at) < time.Minute
	p.mu.Unlock()
	if ok {
		return pl, nil
	}
	if !fresh {
		if err := p.read(ctx); err != nil {
			return place{}, err
		}
		p.mu.Lock()
		pl, ok = p.known[id]
		p.mu.Unlock()
	}
	if !ok {
		return place{}, pcm.Errorf(pcm.Refused, "there is no partition for pool %s: is it still up, and among those that are sold?", id)
	}
	return pl, nil
}

func (p *places) read(ctx context.Context) error {
	parts, err := p.link.partitions(ctx)
	if err != nil {
		return err
	}
	nodes, err := p.link.nodes(ctx)
	if err != nil {
		return err
	}
	known := map[pcm.PoolID]place{}
	for _, pl := range findPlaces(p.cfg, parts, nodes) {
		pl.nodes = nil
		known[pl.id] = pl
	}
	p.mu.Lock()
	p.known, p.at = known, time.Now()
	p.mu.Unlock()
	return nil
}

// machine is Go's name for an architecture of which uname has its own.
func machine(arch string) string {
	switch a := strings.ToLower(arch); a {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	default:
		return a
	}
}
