package container

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// gpus hands the accelerators out, each to one task at a time.
type gpus struct {
	common []string // devices that every task with an accelerator gets

	mu     sync.Mutex
	free   []string
	change chan struct{} // closed and replaced when some become free
}

// nvidia is the prefix of accelerators that the engine's NVIDIA driver gives;
// the others are device files.
const nvidia = "nvidia:"

func newGPUs(all, common []string) (*gpus, error) {
	for i, d := range append(slices.Clone(all), common...) {
		id, isNVIDIA := strings.CutPrefix(d, nvidia)
		if isNVIDIA && (id == "" || i >= len(all)) || !isNVIDIA && !strings.HasPrefix(d, "/dev/") && !path.IsAbs(d) {
			return nil, pcm.Errorf(pcm.Invalid, "accelerator %q is neither nvidia:ID nor the path of a device like /dev/davinci0", d)
		}
	}
	return &gpus{common: common, free: slices.Clone(all), change: make(chan struct{})}, nil
}

// take waits until n are free. It returns ctx's error if that is done before.
func (g *gpus) take(ctx context.Context, n int, wait func()) ([]string, error) {
	if n == 0 {
		return nil, nil
	}
	for {
		g.mu.Lock()
		if len(g.free) >= n {
			mine := slices.Clone(g.free[:n])
			g.free = g.free[n:]
			g.mu.Unlock()
			return mine, nil
		}
		change := g.change
		g.mu.Unlock()
		wait()
		select {
		case <-change:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// hold takes those that a task has already.
func (g *gpus) hold(mine []string) {
	g.mu.Lock()
	g.free = slices.DeleteFunc(g.free, func(d string) bool { return slices.Contains(mine, d) })
	g.mu.Unlock()
}

func (g *gpus) back(mine []string) {
	if len(mine) == 0 {
		return
	}
	g.mu.Lock()
	g.free = append(g.free, mine...)
	close(g.change)
	g.change = make(chan struct{})
	g.mu.Unlock()
}

// give puts the devices into a container.
func (g *gpus) give(host *container.HostConfig, cfg *container.Config, mine []string) {
	if len(mine) == 0 {
		return
	}
	device := func(p string) {
		host.Devices = append(host.Devices, container.DeviceMapping{PathOnHost: p, PathInContainer: "/dev/" + path.Base(p), CgroupPermissions: "rw"})
	}
	var ids, ascend []string
	for _, d := range mine {
		if id, ok := strings.CutPrefix(d, nvidia); ok {
			ids = append(ids, id)
			continue
		}
		device(d)
		if n, ok := strings.CutPrefix(path.Base(d), "davinci"); ok {
			ascend = append(ascend, n)
		}
	}
	for _, d := range g.common {
		device(d)
	}
	if len(ids) > 0 {
		host.DeviceRequests = []container.DeviceRequest{{Driver: "nvidia", DeviceIDs: ids, Capabilities: [][]string{{"gpu"}}}}
	}
	if len(ascend) > 0 {
		cfg.Env = append(cfg.Env, "ASCEND_VISIBLE_DEVICES="+strings.Join(ascend, ","))
	}
}

// Split parts the accelerators of this machine in those that a configuration gives
// to containers, and the rest, most numerous kind first. What it names and can't be found is in neither.
func Split(named []string, all []adapters.Devices) (mine, rest []adapters.Devices) {
	for _, kind := range all {
		m, r := kind, kind
		m.Each, r.Each = nil, nil
		for i, d := range kind.Each {
			if slices.ContainsFunc(named, func(name string) bool { return isDevice(name, kind, d, i, all) }) {
				m.Each = append(m.Each, d)
			} else {
				r.Each = append(r.Each, d)
			}
		}
		if len(m.Each) > 0 {
			mine = append(mine, m)
		}
		if len(r.Each) > 0 {
			rest = append(rest, r)
		}
	}
	slices.SortStableFunc(rest, func(a, b adapters.Devices) int { return len(b.Each) - len(a.Each) })
	return mine, rest
}

// isDevice tells whether a name of the configuration is device d, the i-th of its
// kind. NVIDIA's indexes count the GPUs of all kinds: they tell where there is one.
func isDevice(name string, kind adapters.Devices, d adapters.Device, i int, all []adapters.Devices) bool {
	id, ok := strings.CutPrefix(name, nvidia)
	if !ok {
		return slices.Contains(d.Nodes, name)
	}
	if kind.Accelerator.Vendor != "nvidia" {
		return false
	}
	if strings.EqualFold(id, d.ID) {
		return true
	}
	kinds := 0
	for _, k := range all {
		if k.Accelerator.Vendor == "nvidia" {
			kinds++
		}
	}
	return kinds == 1 && kind.Accelerator.Slice == "" && id == strconv.Itoa(i)
}

// alike is what all that are named are; nil if that can't be told, or they differ.
func alike(named []string, all []adapters.Devices) *pcm.Accelerator {
	mine, _ := Split(named, all)
	if len(mine) != 1 || len(mine[0].Each) != len(named) || mine[0].Accelerator.Validate() != nil {
		return nil
	}
	return &mine[0].Accelerator
}
