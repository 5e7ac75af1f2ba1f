package process

import (
	"bufio"
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

// findCgroups finds a part of the control group tree that we may use: version 2
// where it has the controllers, else version 1. All groups stand below one that
// is named after dir.
func findCgroups(dir string) (limiter, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	name := "pcm-" + string(pcm.DigestOf([]byte(dir)))[:12]
	where := locate(string(mounts), string(self))
	two, err2 := newCgroup2(where[""], name)
	if err2 == nil {
		return two, nil
	}
	one, err1 := newCgroup1(where, name)
	if err1 == nil {
		return one, nil
	}
	return nil, fmt.Errorf("version 2: %w; version 1: %w", err2, err1)
}

// locate gives the folder of our own group in each hierarchy: by controller for
// version 1, under "" for version 2. Formats: proc_pid_mountinfo(5), cgroups(7).
func locate(mountinfo, self string) map[string]string {
	ours := map[string]string{}
	for line := range strings.Lines(self) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				ours[c] = f[2]
			}
		}
	}
	where := map[string]string{}
	scan := bufio.NewScanner(strings.NewReader(mountinfo))
	for scan.Scan() {
		before, after, ok := strings.Cut(scan.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 {
			continue
		}
		root, point := f[3], f[4]
		var controllers []string
		switch g[0] {
		case "cgroup2":
			controllers = []string{""}
		case "cgroup":
			controllers = strings.Split(g[2], ",")
		}
		for _, c := range controllers {
			path, ok := ours[c]
			if !ok || where[c] != "" {
				continue
			}
			rel, err := filepath.Rel(root, path)
			if err != nil || !filepath.IsLocal(rel) {
				rel = "." // our group is above what is mounted: the mount's root is ours then
			}
			where[c] = filepath.Join(point, rel)
		}
	}
	return where
}

// procs reads the process IDs in a group, our own excepted: in version 1 our
// spawning thread may be inside for a moment.
func procs(dir string) []int {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for f := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil && pid != os.Getpid() && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killGroup kills until nobody is left in dir, for at most two seconds.
func killGroup(dir string) bool {
	wait := 100 * time.Microsecond
	for end := time.Now().Add(2 * time.Second); ; {
		pids := procs(dir)
		if len(pids) == 0 {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		for _, pid := range pids {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		time.Sleep(wait)
		wait = min(2*wait, 20*time.Millisecond)
	}
}

// removeGroups removes empty groups. The kernel may need a moment to see that
// they are empty; what stays is swept at the next start.
func removeGroups(dirs []string) {
	left := slices.DeleteFunc(slices.Clone(dirs), rmdir)
	if len(left) == 0 {
		return
	}
	go func() {
		for wait := time.Millisecond; wait < 2*time.Second && len(left) > 0; wait *= 2 {
			time.Sleep(wait)
			left = slices.DeleteFunc(left, rmdir)
		}
	}()
}

func rmdir(dir string) bool {
	err := syscall.Rmdir(dir)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}

func put(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

func number(dir, file string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	return n
}

// field reads "name N" from a file of such lines.
func field(dir, file, name string) int64 {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == name {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}

// sweepGroups kills and removes the groups below each dir.
func sweepGroups(dirs []string) error {
	var faults []error
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, e := range entries {
			if sub := filepath.Join(dir, e.Name()); e.IsDir() && e.Name() != selfLeaf {
				if !killGroup(sub) {
					faults = append(faults, fmt.Errorf("processes in %s can't be killed", sub))
				}
				removeGroups([]string{sub})
			}
		}
	}
	return errors.Join(faults...)
}

// dismantle removes the parents of the tasks' groups, for at most a second.
func dismantle(bases []string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		for _, base := range bases {
			entries, _ := os.ReadDir(base)
			for _, e := range entries {
				if e.IsDir() {
					rmdir(filepath.Join(base, e.Name()))
				}
			}
		}
		bases = slices.DeleteFunc(slices.Clone(bases), rmdir)
		if len(bases) == 0 {
			return nil
		}
		if wait > time.Second/2 {
			return fmt.Errorf("control groups are still in use: %s", strings.Join(bases, ", "))
		}
		time.Sleep(wait)
	}
}
