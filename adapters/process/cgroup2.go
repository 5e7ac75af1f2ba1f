package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// selfLeaf is the group into which we move ourselves: version 2 lets only
// groups without processes of their own hand controllers down.
const selfLeaf = "pcm-node"

// cgroup2 limits by the unified hierarchy: controllers memory and, where there, pids and cpu.
type cgroup2 struct {
	base string
	has  []string
}

func newCgroup2(home, name string) (*cgroup2, error) {
	if home == "" {
		return nil, errors.New("not mounted")
	}
	if filepath.Base(home) == selfLeaf { // an earlier supervisor has moved the daemon, and so us
		home = filepath.Dir(home)
	}
	data, err := os.ReadFile(filepath.Join(home, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	available := strings.Fields(string(data))
	if !slices.Contains(available, "memory") {
		return nil, errors.New("the memory controller is not available")
	}
	base := filepath.Join(home, name)
	if err := os.Mkdir(base, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	c := &cgroup2{base: base}
	for _, kind := range []string{"memory", "pids", "cpu"} {
		if !slices.Contains(available, kind) {
			continue
		}
		if err := handDown(home, kind); err != nil {
			if kind == "memory" {
				return nil, err
			}
			continue
		}
		if err := put(base, "cgroup.subtree_control", "+"+kind); err != nil && kind == "memory" {
			return nil, err
		}
		c.has = append(c.has, kind)
	}
	return c, nil
}

// handDown enables a controller for the groups below home, moving processes of
// this program out of home if that is in the way. Others' are left alone.
func handDown(home, kind string) error {
	err := put(home, "cgroup.subtree_control", "+"+kind)
	if !errors.Is(err, syscall.EBUSY) {
		return err
	}
	me, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	leaf := filepath.Join(home, selfLeaf)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, pid := range append(procs(home), os.Getpid()) {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err == nil && strings.TrimSuffix(exe, " (deleted)") != strings.TrimSuffix(me, " (deleted)") {
			return fmt.Errorf("process %d shares our control group: run pcm in one of its own", pid)
		}
		if err := put(leaf, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return put(home, "cgroup.subtree_control", "+"+kind)
}

func (c *cgroup2) name() string { return "cgroup2" }
func (c *cgroup2) missing() []string {
	return slices.DeleteFunc([]string{"memory", "pids", "cpu"}, func(k string) bool { return slices.Contains(c.has, k) })
}
func (c *cgroup2) sweep() error { return sweepGroups([]string{c.base}) }
func (c *cgroup2) close() error { return dismantle([]string{c.base}) }

func (c *cgroup2) make(key string, r pcm.Resources, pids int) (group, error) {
	dir := filepath.Join(c.base, key)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	g := &group2{dir: dir}
	for _, kind := range c.has {
		if err := limit2(kind, dir, r, pids); err != nil {
			g.remove()
			return nil, err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		g.remove()
		return nil, err
	}
	g.fd = d
	return g, nil
}

func limit2(kind, dir string, r pcm.Resources, pids int) error {
	switch kind {
	case "memory":
		if r.Memory == 0 {
			return nil
		}
		if err := put(dir, "memory.max", strconv.FormatInt(int64(r.Memory), 10)); err != nil {
			return err
		}
		put(dir, "memory.swap.max", "0") // absent where there is no swap
		put(dir, "memory.oom.group", "1")
	case "pids":
		return put(dir, "pids.max", strconv.Itoa(pids))
	case "cpu":
		if r.CPU > 0 { // never more, and a share while others want the rest: a core is worth the default of 100
			put(dir, "cpu.max", strconv.FormatInt(cpuQuota(r.CPU), 10)+" "+strconv.Itoa(cpuPeriod))
			return put(dir, "cpu.weight", strconv.FormatInt(min(max(int64(r.CPU)/10, 1), 10000), 10))
		}
	}
	return nil
}

type group2 struct {
	dir string
	fd  *os.File
}

// start lets the kernel create the child inside the group.
func (g *group2) start(attr *os.ProcAttr, f func() (*os.Process, error)) (*os.Process, bool, error) {
	attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(g.fd.Fd())
	proc, err := f()
	return proc, true, err
}

func (g *group2) kill() bool {
	put(g.dir, "cgroup.kill", "1") // since Linux 5.14; one by one before
	return killGroup(g.dir)
}

func (g *group2) usage() use {
	return use{
		peak: pcm.Bytes(number(g.dir, "memory.peak")), oom: field(g.dir, "memory.events", "oom_kill") > 0,
		cpu: time.Duration(field(g.dir, "cpu.stat", "usage_usec")) * time.Microsecond,
	}
}

func (g *group2) folders() []string { return []string{g.dir} }
func (g *group2) procs() []int      { return procs(g.dir) }

func (g *group2) freeze(on bool) bool {
	word := "0"
	if on {
		word = "1"
	}
	return put(g.dir, "cgroup.freeze", word) == nil // since Linux 5.2
}

func (g *group2) tight() bool { return field(g.dir, "memory.events", "max") > 0 }

func (g *group2) remove() {
	if g.fd != nil {
		g.fd.Close()
	}
	removeGroups([]string{g.dir})
}
