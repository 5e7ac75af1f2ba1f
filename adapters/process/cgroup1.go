package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// cgroup1 limits by the version 1 hierarchies, of which that of memory must be
// usable.
type cgroup1 struct {
	// home are the lists of threads of our own groups, to which a spawning thread
	// returns. They are held open: a thread inside a group that is full can't
	// open anything, for the kernel charges what that takes to the group.
	home  []*os.File
	base  []string // parents of the tasks' groups, same order
	kinds []string
	lacks []string // kinds that can't be used
}

func newCgroup1(where map[string]string, name string) (*cgroup1, error) {
	c := &cgroup1{}
	for _, kind := range []string{"memory", "pids", "cpu", "cpuacct", "freezer"} {
		home := where[kind]
		err := errors.New("hierarchy " + kind + " is not mounted")
		if home != "" && slices.Contains(c.base, filepath.Join(home, name)) {
			continue // mounted together with one before: cpu,cpuacct
		}
		if home != "" {
			base := filepath.Join(home, name)
			if err = os.Mkdir(base, 0o755); errors.Is(err, fs.ErrExist) {
				err = nil
			}
			if err == nil {
				var f *os.File // is it ours to use?
				if f, err = openTasks(base); err == nil {
					f.Close()
				}
			}
			var f *os.File
			if err == nil {
				f, err = openTasks(home)
			}
			if err == nil {
				c.home, c.base, c.kinds = append(c.home, f), append(c.base, base), append(c.kinds, kind)
			}
		}
		if err != nil && kind == "memory" {
			return nil, err
		}
		if err != nil {
			c.lacks = append(c.lacks, kind)
		}
	}
	return c, nil
}

func (c *cgroup1) name() string      { return "cgroup1" }
func (c *cgroup1) missing() []string { return c.lacks }
func (c *cgroup1) sweep() error      { return sweepGroups(c.base) }

func (c *cgroup1) close() error {
	for _, f := range c.home {
		f.Close()
	}
	return dismantle(c.base)
}

func openTasks(dir string) (*os.File, error) {
	return os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
}

func (c *cgroup1) make(key string, r pcm.Resources, pids int) (group, error) {
	g := &group1{parent: c}
	for i, kind := range c.kinds {
		dir := filepath.Join(c.base[i], key)
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, fs.ErrExist) { // left by an attempt of the same key that was removed
			err = nil
		}
		if err == nil {
			g.dirs = append(g.dirs, dir)
			err = limit1(kind, dir, r, pids)
		}
		if err != nil {
			g.remove()
			return nil, err
		}
	}
	return g, nil
}

func limit1(kind, dir string, r pcm.Resources, pids int) error {
	switch kind {
	case "memory":
		if r.Memory == 0 {
			return nil
		}
		n := strconv.FormatInt(int64(r.Memory), 10)
		if err := put(dir, "memory.limit_in_bytes", n); err != nil {
			return err
		}
		put(dir, "memory.memsw.limit_in_bytes", n) // where swap is accounted for: none of it
	case "pids":
		return put(dir, "pids.max", strconv.Itoa(pids))
	case "cpu":
		if r.CPU > 0 {
			// A share while others want the rest, and never more than that.
			put(dir, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod))
			put(dir, "cpu.cfs_quota_us", strconv.FormatInt(cpuQuota(r.CPU), 10))
			return put(dir, "cpu.shares", strconv.FormatInt(min(max(int64(r.CPU)*1024/1000, 2), 262144), 10))
		}
	}
	return nil
}

type group1 struct {
	parent *cgroup1
	dirs   []string
}

// start moves this thread into the group, so that the child is born there, and
// back. The group of memory is the last to be entered and the first to be left.
func (g *group1) start(_ *os.ProcAttr, f func() (*os.Process, error)) (proc *os.Process, home bool, err error) {
	into := make([]*os.File, len(g.dirs))
	defer func() {
		for _, f := range into {
			f.Close()
		}
	}()
	for i, dir := range g.dirs {
		if into[i], err = openTasks(dir); err != nil {
			return nil, true, err
		}
	}
	for i := len(into) - 1; i >= 0 && err == nil; i-- {
		err = enter(into[i], "0")
	}
	if err == nil {
		proc, err = f()
	}
	return proc, g.parent.bring(), err
}

// bring brings this thread home. If it can't go by itself, another fetches it.
func (c *cgroup1) bring() bool {
	home := true
	tid := strconv.Itoa(syscall.Gettid())
	for _, f := range c.home {
		if enter(f, "0") == nil {
			continue
		}
		fetched := make(chan bool)
		go func() { fetched <- enter(f, tid) == nil }()
		home = <-fetched && home
	}
	return home
}

// enter moves a thread, "0" being the caller, into the group of a list of threads.
func enter(tasks *os.File, tid string) error {
	_, err := tasks.WriteAt([]byte(tid), 0)
	return err
}

func (g *group1) kill() bool {
	g.freeze(false) // the frozen die only when they are thawed
	return killGroup(g.dirs[0])
}

func (g *group1) usage() use {
	u := use{peak: pcm.Bytes(number(g.dirs[0], "memory.max_usage_in_bytes")), oom: field(g.dirs[0], "memory.oom_control", "oom_kill") > 0}
	for _, dir := range g.dirs {
		if ns := number(dir, "cpuacct.usage"); ns > 0 {
			u.cpu = time.Duration(ns)
		}
	}
	return u
}

func (g *group1) folders() []string { return g.dirs }
func (g *group1) procs() []int      { return procs(g.dirs[0]) }

func (g *group1) freeze(on bool) bool {
	word := "THAWED"
	if on {
		word = "FROZEN"
	}
	for _, dir := range g.dirs {
		if put(dir, "freezer.state", word) == nil {
			return true
		}
	}
	return false
}

// tight goes by the peak as well: where swap is accounted for, kernels count no
// failures. They charge by up to 64 pages at once.
func (g *group1) tight() bool {
	dir := g.dirs[0]
	return number(dir, "memory.failcnt") > 0 || number(dir, "memory.max_usage_in_bytes")+64<<12 > number(dir, "memory.limit_in_bytes")
}

func (g *group1) remove() { removeGroups(g.dirs) }
