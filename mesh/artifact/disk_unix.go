//go:build linux || darwin || freebsd

package artifact

import (
	"math"

	"golang.org/x/sys/unix"
)

// freeBytes is the space that an unprivileged writer still has where dir lies.
func freeBytes(dir string) int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return math.MaxInt64 // unknown: a write will tell
	}
	return int64(st.Bavail) * int64(st.Bsize)
}
