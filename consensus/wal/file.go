package wal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// careless tests don't wait for the disk.
var careless bool

// fdatasync makes what was written durable, and as much of the file's own data as it takes to read it.
func fdatasync(f *os.File) error {
	if careless {
		return nil
	}
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// allocate reserves space; where the file system can't, it comes with the writing.
func allocate(f *os.File, at, n int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, at, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
			return nil
		}
		return err
	}
}

// settle makes a file's content durable and has the cache forget it.
func settle(f *os.File) error {
	if careless {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // where it can't, the cache is right but for a failed fsync
	return nil
}

func fsync(f *os.File) error {
	if careless {
		return nil
	}
	return f.Sync()
}
