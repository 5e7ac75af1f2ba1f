package process

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// terminate asks the task to end. A sandbox's own processes are spared: they
// would take the task down with them at once.
func (c *child) terminate(s *spec) {
	if !s.boxed {
		syscall.Kill(-c.proc.Pid, syscall.SIGTERM)
		return
	}
	tree := inside(c.proc.Pid, s.wrappers)
	if len(tree) == 0 { // the task has not been started yet
		syscall.Kill(-c.proc.Pid, syscall.SIGKILL)
	}
	for _, pid := range tree {
		syscall.Kill(pid, syscall.SIGTERM)
	}
}

// killAll kills the task and all that it started: its process group, its
// cgroup and, where neither need hold everything, whatever bears its mark.
// It is called before and after the main process was waited for.
func (c *child) killAll(dir, key string, boxed bool) {
	syscall.Kill(-c.proc.Pid, syscall.SIGKILL)
	held := c.group.kill()
	if boxed || held {
		return // a PID namespace, or a cgroup, let nothing escape
	}
	for range 100 {
		if killMarked(dir, map[string]bool{key: true}) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// killMarked kills the processes that carry PCM_ATTEMPT=KEY for one of the keys
// and whose home is below dir, or which wrap such a task. It says how many it found.
func killMarked(dir string, keys map[string]bool) int {
	found := 0
	home := []byte("HOME=" + filepath.Join(dir, "tasks") + "/")
	for _, pid := range processes() {
		env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil || pid == os.Getpid() {
			continue
		}
		marked, ours := false, false
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if k, ok := bytes.CutPrefix(v, []byte("PCM_ATTEMPT=")); ok {
				marked = keys[string(k)]
			}
			ours = ours || bytes.HasPrefix(v, home)
		}
		if marked && ours && syscall.Kill(pid, syscall.SIGKILL) == nil {
			found++
		}
	}
	return found
}

func processes() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// parentOf gives a process's parent; 0 if there is no such process.
func parentOf(pid int) int {
	fields := statOf(pid)
	if len(fields) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(fields[1])
	return ppid
}

// inside lists the processes of a sandbox but for its own: pid and the wrappers
// that stand, one below the other, between it and the task. Parents come first.
func inside(pid, wrappers int) []int {
	all := descendants(pid)
	return all[min(wrappers, len(all)):]
}

// descendants lists all below pid, pid excepted.
func descendants(pid int) []int {
	kids := map[int][]int{}
	for _, p := range processes() {
		if pp := parentOf(p); pp != 0 {
			kids[pp] = append(kids[pp], p)
		}
	}
	var all []int
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		all = append(all, kids[queue[0]]...)
		queue = append(queue, kids[queue[0]]...)
	}
	return all
}

func soon() time.Time { return time.Now().Add(time.Second) }
