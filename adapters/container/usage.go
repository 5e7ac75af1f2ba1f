package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// use is what a task used.
type use struct {
	cpuMS    int64
	peak     pcm.Bytes
	oomKills int64 // by the kernel for want of memory, where it says
}

func (u use) or(o use) use {
	return use{max(u.cpuMS, o.cpuMS), max(u.peak, o.peak), max(u.oomKills, o.oomKills)}
}

const cgroupRoot = "/sys/fs/cgroup"

// meter reads what containers use. Where this process may, each container gets a
// cgroup of ours around its own: that one is still there when the container has
// ended, and tells exactly. Elsewhere, as with the systemd driver, the engine is
// asked now and then: short tasks may end before that.
type meter struct {
	engine *engine
	own    atomic.Bool
	below  string        // name of the cgroup that holds ours
	asks   chan struct{} // bounds how many ask the engine at once
	trees  []string      // the hierarchies that tell about use: several with v1, one with v2
}

func newMeter(e *engine, home string) *meter {
	return &meter{engine: e, below: "pcm-container-" + home, asks: make(chan struct{}, 4), trees: hierarchies()}
}

// prepare finds out whether cgroups of our own can be had with this engine.
func (m *meter) prepare(about facts) {
	m.own.Store(about.driver == "cgroupfs" && os.Getuid() == 0 && len(m.trees) > 0)
}

// hierarchies are the roots of this machine's cgroups.
func hierarchies() []string {
	if _, err := os.Stat(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		return []string{cgroupRoot}
	}
	all, _ := filepath.Glob(filepath.Join(cgroupRoot, "*")) // the pattern is good
	return slices.DeleteFunc(all, func(p string) bool {
		_, err := os.Stat(filepath.Join(p, "cgroup.procs"))
		return err != nil
	})
}

// parent is the cgroup for an attempt, as the engine is told; "": the engine's own.
func (m *meter) parent(k adapters.Key) string {
	if !m.own.Load() {
		return ""
	}
	return "/" + m.below + "/" + k.String()
}

// read tells what the attempt has used so far.
func (m *meter) read(k adapters.Key) (u use) {
	if !m.own.Load() {
		return u
	}
	number := func(file, field string) int64 {
		var text string
		for _, c := range m.trees {
			if data, err := os.ReadFile(filepath.Join(c, m.parent(k), file)); err == nil {
				text = string(data)
				break
			}
		}
		if field != "" {
			_, rest, _ := strings.Cut("\n"+text, "\n"+field+" ")
			text, _, _ = strings.Cut(rest, "\n")
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(text), 10, 64) // 0 where there is none
		return n
	}
	u.cpuMS = max(number("cpuacct.usage", "")/1e6, number("cpu.stat", "usage_usec")/1000)
	u.peak = pcm.Bytes(max(number("memory.max_usage_in_bytes", ""), number("memory.peak", "")))
	u.oomKills = number("memory.events", "oom_kill")
	return u
}

// kill ends every process of the attempt, engine or not.
func (m *meter) kill(k adapters.Key) {
	if !m.own.Load() {
		return
	}
	for _, c := range m.trees {
		filepath.WalkDir(filepath.Join(c, m.parent(k)), func(p string, d fs.DirEntry, err error) error {
			// Podman's own process for the container has a cgroup beside it, and is spared.
			if err != nil || !d.IsDir() || d.Name() == "conmon" {
				return nil
			}
			data, _ := os.ReadFile(filepath.Join(p, "cgroup.procs")) // gone: killed
			for _, word := range strings.Fields(string(data)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 1 {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			return nil
		})
	}
}

// remove does away with the attempt's cgroup, which may take a moment to become empty.
func (m *meter) remove(k adapters.Key) {
	if !m.own.Load() {
		return
	}
	for try := range 20 {
		left := false
		for _, c := range m.trees {
			var dirs []string
			filepath.WalkDir(filepath.Join(c, m.parent(k)), func(p string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, p)
				}
				return nil
			})
			slices.Reverse(dirs)
			for _, d := range dirs {
				if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
					left = true
				}
			}
		}
		if !left {
			return
		}
		<-time.After(time.Duration(try) * 5 * time.Millisecond)
	}
}

// clean removes the cgroups that earlier supervisors left empty.
func (m *meter) clean() {
	for _, c := range m.trees {
		below, _ := filepath.Glob(filepath.Join(c, m.below, "*")) // the pattern is good
		for _, p := range below {
			os.Remove(p)
		}
		os.Remove(filepath.Join(c, m.below))
	}
}

// sampler looks at what a container uses now and then, until it is stopped.
type sampler struct {
	stop context.CancelFunc
	done sync.WaitGroup
	mu   sync.Mutex
	use  use
}

// sample tells used of it as well.
func (m *meter) sample(k adapters.Key, id string, used func(cpuMS int64, memory pcm.Bytes)) *sampler {
	ctx, cancel := context.WithCancel(context.Background())
	s := &sampler{stop: cancel}
	s.done.Go(func() {
		for wait := 50 * time.Millisecond; ; wait = min(wait*3, 5*time.Second) {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			if m.own.Load() {
				u := m.read(k)
				used(u.cpuMS, u.peak)
				continue
			}
			select {
			case m.asks <- struct{}{}:
			case <-ctx.Done():
				return
			}
			u, err := m.ask(ctx, id)
			<-m.asks
			if err == nil {
				s.mu.Lock()
				s.use = s.use.or(u)
				u = s.use
				s.mu.Unlock()
				used(u.cpuMS, u.peak)
			}
		}
	})
	return s
}

func (m *meter) ask(ctx context.Context, id string) (use, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	res, err := m.engine.ContainerStats(ctx, id, client.ContainerStatsOptions{})
	if err != nil {
		return use{}, err
	}
	defer res.Body.Close()
	var st container.StatsResponse
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		return use{}, fmt.Errorf("statistics can't be read: %w", err)
	}
	return use{cpuMS: int64(st.CPUStats.CPUUsage.TotalUsage / 1e6), peak: pcm.Bytes(max(st.MemoryStats.Usage, st.MemoryStats.MaxUsage))}, nil
}

// end stops it and tells what was seen.
func (s *sampler) end() use {
	s.stop()
	s.done.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use
}
