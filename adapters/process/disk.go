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
	for wait := diskEvery; ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		most := int64(r.disk(t))
		used := occupied(t, most)
		var st unix.Statfs_t
		if used <= most && unix.Statfs(t.Work, &st) == nil && int64(st.Bavail)*st.Bsize < scarce {
			used += nameless(t.Work, append(descendants(pid), pid))
		}
		if used > most {
			stop(errDisk)
			return
		}
		wait = max(diskEvery, 50*time.Since(began))
	}
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
	fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil: // gone meanwhile, or closed to us
			return nil
		case inputs[name] && d.IsDir():
			return fs.SkipDir
		case inputs[name]:
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
	})
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
