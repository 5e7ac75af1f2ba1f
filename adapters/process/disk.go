package process

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm/adapters/supervisor"
)

// errDisk is the cause with which a task's context ends when it has filled its folder.
var errDisk = errors.New("the working folder is over its cap")

// diskEvery is how often a running task's folder is added up, at most.
const diskEvery = 500 * time.Millisecond

// scarce is what is left of a file system when files without a name are looked for as well.
const scarce = 4 << 30

// watchDisk ends a task whose working folder grows over the cap, declared as
// outputs or not. A single file is bounded by the kernel (RLIMIT_FSIZE).
func (r *Runner) watchDisk(ctx context.Context, t *supervisor.Run, pid int, stop context.CancelCauseFunc) {
	var p pace
	for wait := diskEvery; ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		free := int64(-1)
		var st unix.Statfs_t
		if unix.Statfs(t.Work, &st) == nil {
			free = int64(st.Bavail) * st.Bsize
		}
		if !p.due(began, free) {
			continue
		}
		most := int64(r.disk(t))
		used := occupied(t, most)
		if used <= most && free >= 0 && free < scarce {
			used += nameless(t.Work, append(descendants(pid), pid))
		}
		if used > most {
			stop(errDisk)
			return
		}
		took := time.Since(began)
		p = pace{next: began.Add(50 * took), free: free, left: most - used}
		wait = max(diskEvery, took)
	}
}

// pace says when a folder is to be added up again: the longer that takes, the
// more seldom, but not while so much of the file system goes that the task could
// be over its cap.
type pace struct {
	next time.Time
	free int64 // of the file system, when it was added up
	left int64 // of the cap
}

func (p pace) due(now time.Time, free int64) bool {
	return !now.Before(p.next) || p.free-free >= p.left
}

// occupied adds up what the task keeps in its folder, inputs excepted, until it is over limit.
func occupied(t *supervisor.Run, limit int64) (sum int64) {
	inputs := map[string]bool{}
	for _, in := range t.Inputs {
		inputs[path.Clean(in.Target)] = true
	}
	root, err := os.OpenRoot(t.Work) // which never follows a link out
	if err != nil {
		return 0
	}
	defer root.Close()
	opened := map[string]bool{}
	var add fs.WalkDirFunc
	add = func(name string, d fs.DirEntry, err error) error {
		switch {
		case inputs[name] && d != nil && d.IsDir():
			return fs.SkipDir
		case inputs[name]:
			return nil
		case errors.Is(err, fs.ErrPermission) && d != nil && d.IsDir() && !opened[name]: // the task can't hide what it keeps
			info, err := root.Lstat(name)
			if err != nil || root.Chmod(name, info.Mode().Perm()|0o700) != nil {
				return nil
			}
			opened[name] = true
			fs.WalkDir(root.FS(), name, add)
			root.Chmod(name, info.Mode().Perm())
			if sum > limit {
				return fs.SkipAll
			}
			return nil
		case err != nil: // gone meanwhile
			return nil
		}
		sum += 512 // a name takes room, too
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
		if sum > limit {
			return fs.SkipAll
		}
		return nil
	}
	fs.WalkDir(root.FS(), ".", add)
	return sum
}

// nameless adds up the files that the processes hold open on the file system of
// work and that no folder names any more.
func nameless(work string, pids []int) (sum int64) {
	var at syscall.Stat_t
	if syscall.Stat(work, &at) != nil {
		return 0
	}
	seen := map[uint64]bool{}
	for _, pid := range pids {
		open, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
		for _, fd := range open {
			var st syscall.Stat_t
			if syscall.Stat(fd, &st) == nil && st.Nlink == 0 && st.Dev == at.Dev && st.Mode&syscall.S_IFMT == syscall.S_IFREG && !seen[st.Ino] {
				seen[st.Ino] = true
				sum += st.Blocks * 512
			}
		}
	}
	return sum
}
