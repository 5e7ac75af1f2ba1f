package frames

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Careless tests don't wait for the disk.
var Careless bool

// Datasync makes what was written durable, and as much of the file's own data as it takes to read it.
func Datasync(f *os.File) error {
	if Careless {
		return nil
	}
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Allocate reserves space; where the file system can't, it comes with the writing.
func Allocate(f *os.File, at, n int64) error {
	err := fallocate(f, 0, at, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// Erase makes zeros of a part of a file, and gives its space back where the file system can.
func Erase(f *os.File, at, n int64) error {
	if fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, n) == nil {
		return nil
	}
	zeros := make([]byte, min(n, 256<<10))
	for n > 0 {
		part := zeros[:min(n, int64(len(zeros)))]
		if _, err := f.WriteAt(part, at); err != nil {
			return err
		}
		at, n = at+int64(len(part)), n-int64(len(part))
	}
	return nil
}

func fallocate(f *os.File, mode uint32, at, n int64) error {
	for {
		if err := unix.Fallocate(int(f.Fd()), mode, at, n); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Settle makes a file's content durable and has the cache forget it: what this process
// reads then is on the disk, whoever wrote it and ended before its fsync, or at a failed
// one, after which the cache may hold what the disk does not.
func Settle(f *os.File) error {
	if Careless {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // where it can't, the cache is right but for a failed fsync
	return nil
}

// Sync makes a file durable.
func Sync(f *os.File) error {
	if Careless {
		return nil
	}
	return f.Sync()
}

// SyncDir makes the names in a folder durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return Sync(d)
}

// Create makes a segment's file. It has its name once its header is durable, so that
// one that was cut short is never taken for one that was just begun.
func Create(path string, header []byte) (_ *os.File, err error) {
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(header, 0); err == nil {
		err = Sync(f)
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		os.Remove(f.Name())
		os.Remove(path)
		return nil, err
	}
	return f, nil
}

// Path is where the segment with a number is.
func Path(dir string, n uint64, suffix string) string {
	return filepath.Join(dir, fmt.Sprintf("%016x%s", n, suffix))
}

// Glob tells the paths of what matches a pattern in a folder, whatever the folder's own path looks like.
func Glob(dir, pattern string) ([]string, error) {
	list, err := fs.Glob(os.DirFS(dir), pattern)
	for i, name := range list {
		list[i] = filepath.Join(dir, name)
	}
	return list, err
}

// List tells the numbers of a folder's segments, in their order.
func List(dir, suffix string) (list []uint64, err error) {
	files, err := os.ReadDir(dir)
	for _, f := range files {
		var n uint64
		name, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || len(name) != 16 {
			continue
		}
		if _, err := fmt.Sscanf(name, "%016x", &n); err == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, err
}
