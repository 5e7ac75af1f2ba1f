package consensus

import (
	"log/slog"
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

// awaitRoom waits until the disk has room, or closing is closed.
func awaitRoom(dir string, closing <-chan struct{}, log *slog.Logger) error {
	if hasRoom(dir) {
		return nil
	}
	log.Error("the disk is full: the history waits until there is room", "dir", dir, "needs", pcm.Bytes(minRoom).String())
	tick := time.NewTicker(roomEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if hasRoom(dir) {
				log.Info("the disk has room again: the history goes on", "dir", dir)
				return nil
			}
		case <-closing:
			return noRoom(dir)
		}
	}
}
