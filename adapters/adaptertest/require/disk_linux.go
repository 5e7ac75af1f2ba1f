package require

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"
)

// SmallDisk mounts a disk of a size, like 3m, over a folder until the test ends. Who may
// not mount one is told as by [Missing], of tmpfs.
func SmallDisk(t testing.TB, dir, size string) {
	t.Helper()
	err := syscall.Mount("pcm-test", dir, "tmpfs", 0, "size="+size)
	if errors.Is(err, fs.ErrPermission) {
		Missing(t, "tmpfs", err)
	}
	if err != nil {
		t.Fatalf("can't mount a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
