package consensus

import (
	"errors"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// minRoom is the free disk space that the archive needs to write: Badger writes
// to mapped files, and such a write on a full disk is a fault that ends the
// process. It holds a table, a memtable and what compaction makes of them.
const minRoom = 32 << 20

const roomEvery = 500 * time.Millisecond

// hasRoom tells whether a folder's disk has room for the archive to write.
func hasRoom(dir string) bool {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return true // the write itself will tell
	}
	return st.Bavail*uint64(st.Bsize) >= minRoom
}

func noRoom(dir string) error {
	return pcm.Errorf(pcm.Unavailable, "the disk of %s has less than %s free: make room; what is not in the history yet is in Raft's log", dir, pcm.Bytes(minRoom))
}

// minFiles is how many files there are more or less in a store that is closed while it is idle.
const minFiles = storeTables + 16

// hasFiles tells whether this process may open so many.
func hasFiles() bool {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for range minFiles {
		fd, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE)
		}
		fds = append(fds, fd)
	}
	return true
}

// awaitFiles waits until this process may open the files of a store, or closing is closed.
func awaitFiles(dir string, closing <-chan struct{}, log *slog.Logger) error {
	return awaitFor(hasFiles, closing, func() {
		log.Error("too many files are open: the history waits until some are closed; allow this process more (LimitNOFILE in its systemd unit, ulimit -n)", "dir", dir, "needs", minFiles)
	}, func() { log.Info("files can be opened again: the history goes on", "dir", dir) }, func() error {
		return pcm.Errorf(pcm.Unavailable, "too many files are open to open those in %s: allow this process more; what is not in the history yet is in Raft's log", dir)
	})
}

// awaitRoom waits until the disk has room, or closing is closed.
func awaitRoom(dir string, closing <-chan struct{}, log *slog.Logger) error {
	return awaitFor(func() bool { return hasRoom(dir) }, closing, func() {
		log.Error("the disk is full: the history waits until there is room", "dir", dir, "needs", pcm.Bytes(minRoom).String())
	}, func() { log.Info("the disk has room again: the history goes on", "dir", dir) }, func() error { return noRoom(dir) })
}

// awaitFor waits until ok, and tells when that begins and ends; or until closing is closed, which is an error.
func awaitFor(ok func() bool, closing <-chan struct{}, begins, ends func(), failed func() error) error {
	if ok() {
		return nil
	}
	begins()
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if ok() {
				ends()
				return nil
			}
		case <-closing:
			return failed()
		}
	}
}
