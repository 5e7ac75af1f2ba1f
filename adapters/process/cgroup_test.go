package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest"
)

func TestLocate(t *testing.T) {
	for name, c := range map[string]struct {
		mounts, self string
		want         map[string]string
	}{
		"version 2": {
			"30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/user.slice/app.scope\n",
			map[string]string{"": "/sys/fs/cgroup/user.slice/app.scope"},
		},
		"hybrid": {
			"31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
			"4:memory:/a/b\n3:cpu,cpuacct:/\n2:name=systemd:/x\n0::/c\n",
			map[string]string{"memory": "/sys/fs/cgroup/memory/a/b", "cpu": "/sys/fs/cgroup/cpu,cpuacct", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct", "": "/sys/fs/cgroup/unified/c"},
		},
		"container that sees only its own part": {
			"31 30 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
			"4:memory:/docker/abc/job\n",
			map[string]string{"memory": "/sys/fs/cgroup/memory/job"},
		},
		"outside of what is mounted": {
			"31 30 0:27 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			"4:memory:/other\n",
			map[string]string{"memory": "/sys/fs/cgroup/memory"},
		},
		"none": {"22 1 0:20 / /proc rw - proc proc rw\nshort\n - \n", "0::/\nnonsense\n", map[string]string{}},
	} {
		if got := locate(c.mounts, c.self); !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, expected %v", name, got, c.want)
		}
	}
}

// tree makes files as the kernel would in a new group.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func contents(t *testing.T, dir string, files ...string) string {
	t.Helper()
	var all []string
	for _, f := range files {
		data, err := os.ReadFile(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, strings.TrimSpace(string(data)))
	}
	return strings.Join(all, " ")
}

// The files of version 2, which many a machine with version 1 can't try out.
func TestLimits2(t *testing.T) {
	dir := tree(t, map[string]string{
		"memory.max": "", "memory.swap.max": "", "memory.oom.group": "", "pids.max": "", "cpu.weight": "", "cpu.max": "", "cpu.stat": "usage_usec 7000\n", "cgroup.freeze": "", "cgroup.kill": "",
		"memory.peak": "4096\n", "memory.events": "low 0\noom 1\noom_kill 2\n", "cgroup.procs": "",
	})
	r := pcm.Resources{CPU: 2500, Memory: 64 << 20}
	for _, kind := range []string{"memory", "pids", "cpu"} {
		if err := limit2(kind, dir, r, 99); err != nil {
			t.Fatal(err)
		}
	}
	if got := contents(t, dir, "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.weight", "cpu.max"); got != "67108864 0 1 99 250 250000 100000" {
		t.Errorf("limits %s", got)
	}
	g := &group2{dir: dir}
	if u := g.usage(); u != (use{4096, 7 * time.Millisecond, true}) {
		t.Errorf("usage %+v", u)
	}
	if !g.freeze(true) || contents(t, dir, "cgroup.freeze") != "1" || !g.freeze(false) || contents(t, dir, "cgroup.freeze") != "0" {
		t.Error("can't be frozen")
	}
	if !g.kill() || contents(t, dir, "cgroup.kill") != "1" {
		t.Error("not killed")
	}
}

func TestFindCgroup2(t *testing.T) {
	home := tree(t, map[string]string{"cgroup.controllers": "cpu io memory pids\n", "cgroup.subtree_control": "", "cgroup.procs": ""})
	base := filepath.Join(home, "pcm-x")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(base, "cgroup.subtree_control"), nil, 0o600)
	c, err := newCgroup2(home, "pcm-x")
	if err != nil || strings.Join(c.has, " ") != "memory pids cpu" {
		t.Fatalf("%+v, %v", c, err)
	}
	if _, err := newCgroup2(tree(t, map[string]string{"cgroup.controllers": "hugetlb\n"}), "x"); err == nil || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without the memory controller: %v", err)
	}
	if _, err := newCgroup2("", "x"); err == nil {
		t.Error("without a hierarchy")
	}
}

// Version 1 against the real kernel.
func TestLimits1(t *testing.T) {
	l, err := findCgroups(t.TempDir())
	one, ok := l.(*cgroup1)
	if !ok {
		t.Skipf("NO CGROUPS OF VERSION 1 HERE (%v): NOT tested", err)
	}
	defer func() {
		if err := one.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(one.base[0]); err == nil {
			t.Error("the parent of all groups is still there")
		}
	}()
	g, err := one.make("k", pcm.Resources{CPU: 250, Memory: 64 << 20}, 77)
	if err != nil {
		t.Fatal(err)
	}
	defer g.remove()
	for i, kind := range one.kinds {
		dir := g.(*group1).dirs[i]
		switch kind {
		case "memory":
			if n := number(dir, "memory.limit_in_bytes"); n != 64<<20 {
				t.Errorf("memory %d", n)
			}
		case "pids":
			if n := number(dir, "pids.max"); n != 77 {
				t.Errorf("pids %d", n)
			}
		case "cpu":
			if n := number(dir, "cpu.shares"); n != 256 {
				t.Errorf("shares %d", n)
			}
			if n := number(dir, "cpu.cfs_quota_us"); n != 25_000 {
				t.Errorf("quota %d", n)
			}
		}
	}
	if err := one.sweep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(g.(*group1).dirs[0]); err == nil {
		t.Error("a swept group is still there")
	}
}

// runner makes a runner with the limits of this machine, in this process.
func runner(t *testing.T) *Runner {
	t.Helper()
	r, err := NewRunner(RunnerConfig{Dir: t.TempDir(), Sandbox: SandboxNone})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Sweep(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// startIn starts a program in a group of its own and takes it to its end.
func startIn(t *testing.T, r *Runner, grp group, program string, args ...string) error {
	t.Helper()
	s := &spec{path: program, argv: append([]string{program}, args...), dir: "/", program: program}
	c, err := r.start(s, nil, nil, grp)
	if err != nil {
		return err
	}
	_, err = c.proc.Wait()
	c.born.Done()
	return err
}

// threadsIn lists the threads of this process whose groups have name in their path.
func threadsIn(name string) (tids []string) {
	files, _ := filepath.Glob("/proc/self/task/*/cgroup")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.Contains(string(data), name) {
			tids = append(tids, filepath.Base(filepath.Dir(f)))
		}
	}
	return tids
}

// A start that fails in its group leaves none of our threads there: what the
// kernel refuses for a group that is full must not be needed to leave it.
func TestFailedStarts(t *testing.T) {
	needs(t, plain)
	r := runner(t)
	for i := range 4 * spawners {
		for name, c := range map[string]struct {
			memory  pcm.Bytes
			program string
			good    bool
			tight   bool
		}{
			"tight": {1, "/bin/true", false, true},
			"none":  {64 << 20, "/no/such/program", false, false},
			"good":  {64 << 20, "/bin/true", true, false},
		} {
			key := fmt.Sprintf("%s-%d", name, i)
			grp, err := r.limit.make(key, pcm.Resources{Memory: c.memory}, 99)
			if err != nil {
				t.Fatal(err)
			}
			err = startIn(t, r, grp, c.program)
			if (err == nil) != c.good {
				t.Errorf("%s: %v", key, err)
			}
			if tight := grp.tight(); tight != c.tight {
				t.Errorf("%s: tight is %v", key, tight)
			}
			if tids := threadsIn(key); len(tids) > 0 {
				t.Fatalf("%s: threads %v are left in its group", key, tids)
			}
			grp.remove()
		}
	}
}

// stuck is a group that its starting thread can't leave.
type stuck struct {
	rlimited
	tid  int
	main bool
}

func (g *stuck) start(_ *os.ProcAttr, f func() (*os.Process, error)) (*os.Process, bool, error) {
	g.tid, g.main = syscall.Gettid(), syscall.Gettid() == os.Getpid()
	proc, err := f()
	return proc, false, err
}

// A thread that is stuck starts nothing more and ends after its last child, not
// before: that child would be killed.
func TestStuckThreads(t *testing.T) {
	r := runner(t)
	seen := map[int]bool{}
	gone := func(tid int) bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
		return errors.Is(err, fs.ErrNotExist)
	}
	await := func(what string, f func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !f(); <-time.After(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	for range 3 * spawners {
		g := &stuck{}
		if err := startIn(t, r, g, "/no/such/program"); err == nil {
			t.Fatal("started")
		}
		if g.main {
			t.Error("the main thread starts tasks")
		}
		await("the end of a thread without children", func() bool { return gone(g.tid) })
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	g := &stuck{}
	c, err := r.start(&spec{path: "/bin/sleep", argv: []string{"sleep", "300"}, dir: "/", program: "sleep"}, out, nil, g)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * spawners {
		other := &stuck{}
		if err := startIn(t, r, other, "/bin/true"); err != nil {
			t.Fatal(err)
		}
		seen[other.tid] = true
	}
	if seen[g.tid] || gone(g.tid) {
		t.Errorf("the stuck thread is used again (%v) or gone (%v)", seen[g.tid], gone(g.tid))
	}
	if err := c.proc.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("its child: %v", err)
	}
	out.Close()
	c.proc.Kill()
	state, err := c.proc.Wait()
	if err != nil || state.Success() {
		t.Errorf("%v, %v", state, err)
	}
	c.born.Done()
	await("the end of the thread after its child", func() bool { return gone(g.tid) })
}

func TestLeastMemory(t *testing.T) {
	r := runner(t)
	task := adaptertest.NewTask()
	task.Command = []string{"true"}
	for memory, good := range map[pcm.Bytes]bool{0: true, 1: false, 512: false, pcm.MinMemory - 1: false, pcm.MinMemory: true} {
		task.Resources.Memory = memory
		if err := r.Check(task); (err == nil) != good || !good && pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("memory %d: %v", memory, err)
		}
	}
}

func TestRunnerConfig(t *testing.T) {
	if _, err := NewRunner(RunnerConfig{Dir: t.TempDir(), Sandbox: "jail"}); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("an unknown sandbox: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := NewRunner(RunnerConfig{Dir: t.TempDir(), Sandbox: SandboxBubblewrap}); pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "bwrap") {
		t.Errorf("no bubblewrap: %v", err)
	}
	r, err := NewRunner(RunnerConfig{Dir: t.TempDir()})
	if err != nil || r.Facts().Sandbox == SandboxBubblewrap {
		t.Errorf("auto without bubblewrap: %v", err)
	}
}
