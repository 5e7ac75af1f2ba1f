package container

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// errDisk is the cause with which a task's context ends when it has filled its folder.
var errDisk = errors.New("the working folder is over its cap")

// diskEvery is how often a running task's folder is added up, at most.
const diskEvery = 500 * time.Millisecond

// disk is what the task may keep in its working folder. The image can't be
// written to, and /tmp is memory.
func (r *Runner) disk(t *supervisor.Run) pcm.Bytes {
	if t.Resources.Disk > 0 {
		return t.Resources.Disk
	}
	return r.cfg.Disk
}

// watchDisk ends a task whose working folder grows over the cap, declared as
// outputs or not. Files that no folder names any more don't show.
func (r *Runner) watchDisk(ctx context.Context, t *supervisor.Run, stop context.CancelCauseFunc) {
	for wait := diskEvery; ; {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		began := time.Now()
		if most := int64(r.disk(t)); occupied(t, most) > most {
			stop(errDisk)
			return
		}
		wait = max(diskEvery, 50*time.Since(began)) // many files take long to add up
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
		case err != nil: // gone meanwhile
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
