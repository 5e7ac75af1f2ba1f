package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"github.com/jointcloud/pcm"
)

// cgroup1 limits by the version 1 hierarchies memory, pids and cpu, of which
// the first must be usable.
type cgroup1 struct {
	home  []string // our own groups, to which a spawning thread returns
	base  []string // parents of the tasks' groups, same order
	kinds []string
	bad   atomic.Int64 // threads that couldn't return
}

func newCgroup1(where map[string]string, name string) (*cgroup1, error) {
	c := &cgroup1{}
	for _, kind := range []string{"memory", "pids", "cpu"} {
		home := where[kind]
		err := errors.New("hierarchy " + kind + " is not mounted")
		if home != "" {
			base := filepath.Join(home, name)
			if err = os.Mkdir(base, 0o755); errors.Is(err, fs.ErrExist) {
				err = nil
			}
			if err == nil {
				var f *os.File // is it ours to use?
				if f, err = os.OpenFile(filepath.Join(base, "tasks"), os.O_WRONLY, 0); err == nil {
					f.Close()
				}
			}
			if err == nil {
				c.home, c.base, c.kinds = append(c.home, home), append(c.base, base), append(c.kinds, kind)
			}
		}
		if err != nil && kind == "memory" {
			return nil, err
		}
	}
	return c, nil
}

func (c *cgroup1) name() string { return "cgroup1" }
func (c *cgroup1) sweep() error { return sweepGroups(c.base) }
func (c *cgroup1) close() error { return dismantle(c.base) }

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
		// A share, not a ceiling: what nobody else uses is free to use.
		if r.CPU > 0 {
			return put(dir, "cpu.shares", strconv.FormatInt(min(max(int64(r.CPU)*1024/1000, 2), 262144), 10))
		}
	}
	return nil
}

type group1 struct {
	parent *cgroup1
	dirs   []string
}

// start moves this thread into the group, so that the child is born there, and back.
func (g *group1) start(_ *os.ProcAttr, f func() (*os.Process, error)) (proc *os.Process, err error) {
	defer func() {
		for _, home := range g.parent.home {
			if put(home, "tasks", "0") != nil {
				g.parent.bad.Add(1) // the next start takes the thread along; this group stays until then
			}
		}
	}()
	for _, dir := range g.dirs {
		if err := put(dir, "tasks", "0"); err != nil {
			return nil, err
		}
	}
	return f()
}

func (g *group1) kill() bool { return killGroup(g.dirs[0]) }

func (g *group1) usage() (pcm.Bytes, bool) {
	return pcm.Bytes(number(g.dirs[0], "memory.max_usage_in_bytes")), field(g.dirs[0], "memory.oom_control", "oom_kill") > 0
}

func (g *group1) remove() { removeGroups(g.dirs) }
