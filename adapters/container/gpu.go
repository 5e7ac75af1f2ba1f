package container

import (
	"context"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/container"

	"github.com/jointcloud/pcm"
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
