package wasm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	experimental "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
	"golang.org/x/sys/unix"
)

// file is an open file or folder of a module.
type file struct {
	experimental.UnimplementedFile
	f      *os.File
	dir    bool
	append bool
	stat   *sys.Stat_t // what doesn't change: device and inode
}

func (f *file) identity() (*sys.Stat_t, experimental.Errno) {
	if f.stat == nil {
		st, errno := f.Stat()
		if errno != 0 {
			return &sys.Stat_t{}, errno
		}
		f.stat = &st
	}
	return f.stat, 0
}

// Dev implements experimental.File.
func (f *file) Dev() (uint64, experimental.Errno) {
	st, errno := f.identity()
	return st.Dev, errno
}

// Ino implements experimental.File.
func (f *file) Ino() (sys.Inode, experimental.Errno) {
	st, errno := f.identity()
	return st.Ino, errno
}

// IsDir implements experimental.File.
func (f *file) IsDir() (bool, experimental.Errno) { return f.dir, 0 }

// IsAppend implements experimental.File.
func (f *file) IsAppend() bool { return f.append }

// SetAppend implements experimental.File.
func (f *file) SetAppend(enable bool) experimental.Errno {
	if f.dir {
		return experimental.EISDIR
	}
	flags, err := unix.FcntlInt(f.f.Fd(), unix.F_GETFL, 0)
	if err == nil {
		flags &^= unix.O_APPEND
		if enable {
			flags |= unix.O_APPEND
		}
		_, err = unix.FcntlInt(f.f.Fd(), unix.F_SETFL, flags)
	}
	if err == nil {
		f.append = enable
	}
	return errnoOf(err)
}

// Stat implements experimental.File.
func (f *file) Stat() (sys.Stat_t, experimental.Errno) {
	info, err := f.f.Stat()
	if err != nil {
		return sys.Stat_t{}, f.fault(err)
	}
	return sys.NewStat_t(info), 0
}

// fault is the error of an operation on an open file.
func (f *file) fault(err error) experimental.Errno {
	var se syscall.Errno
	switch {
	case err == nil:
		return 0
	case errors.Is(err, fs.ErrClosed):
		return experimental.EBADF
	case errors.As(err, &se) && se != syscall.ENOSPC && se != syscall.EDQUOT:
		return experimental.UnwrapOSError(err)
	}
	return experimental.EIO
}

// Read implements experimental.File.
func (f *file) Read(buf []byte) (int, experimental.Errno) {
	if f.dir {
		return 0, experimental.EISDIR
	}
	if len(buf) == 0 {
		return 0, 0
	}
	n, err := f.f.Read(buf)
	if err == io.EOF {
		err = nil
	}
	return n, f.fault(err)
}

// Pread implements experimental.File.
func (f *file) Pread(buf []byte, off int64) (int, experimental.Errno) {
	if f.dir {
		return 0, experimental.EISDIR
	}
	if off < 0 {
		return 0, experimental.EINVAL
	}
	n, err := f.f.ReadAt(buf, off)
	if err == io.EOF {
		err = nil
	}
	return n, f.fault(err)
}

// position is an offset in a file. The alias keeps vet from taking Seek for a
// misspelt io.Seeker.
type position = int64

// Seek implements experimental.File.
func (f *file) Seek(offset position, whence int) (position, experimental.Errno) {
	if uint(whence) > io.SeekEnd {
		return 0, experimental.EINVAL
	}
	if f.dir && (offset != 0 || whence != io.SeekStart) {
		return 0, experimental.EISDIR
	}
	n, err := f.f.Seek(offset, whence)
	return n, f.fault(err)
}

// Readdir implements experimental.File.
func (f *file) Readdir(n int) ([]experimental.Dirent, experimental.Errno) {
	if !f.dir {
		return nil, experimental.EBADF
	}
	entries, err := f.f.ReadDir(n)
	if err == io.EOF {
		err = nil
	}
	list := make([]experimental.Dirent, 0, len(entries))
	for _, e := range entries {
		d := experimental.Dirent{Name: e.Name(), Type: e.Type()}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				d.Ino = st.Ino
			}
		}
		list = append(list, d)
	}
	return list, f.fault(err)
}

// Write implements experimental.File.
func (f *file) Write(buf []byte) (int, experimental.Errno) {
	if f.dir {
		return 0, experimental.EISDIR
	}
	if len(buf) == 0 {
		return 0, 0
	}
	n, err := f.f.Write(buf)
	return n, f.fault(err)
}

// Pwrite implements experimental.File.
func (f *file) Pwrite(buf []byte, off int64) (int, experimental.Errno) {
	if f.dir {
		return 0, experimental.EISDIR
	}
	if off < 0 {
		return 0, experimental.EINVAL
	}
	done := 0
	for done < len(buf) {
		n, err := unix.Pwrite(int(f.f.Fd()), buf[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return done, errnoOf(err)
		}
		done += n
	}
	return done, 0
}

// Truncate implements experimental.File.
func (f *file) Truncate(size int64) experimental.Errno {
	if f.dir {
		return experimental.EISDIR
	}
	if size < 0 {
		return experimental.EINVAL
	}
	return f.fault(f.f.Truncate(size))
}

// Sync implements experimental.File. The task's folder doesn't outlive a crash
// of the machine, so there is nothing to wait for the disk for.
func (f *file) Sync() experimental.Errno { return 0 }

// Datasync implements experimental.File.
func (f *file) Datasync() experimental.Errno { return 0 }

// Utimens implements experimental.File.
func (f *file) Utimens(atim, mtim int64) experimental.Errno {
	ts := make([]unix.Timespec, 2)
	for i, ns := range []int64{atim, mtim} {
		if ns == experimental.UTIME_OMIT {
			ts[i] = unix.Timespec{Nsec: unix.UTIME_OMIT}
		} else {
			ts[i] = unix.NsecToTimespec(ns)
		}
	}
	return errnoOf(unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.f.Fd()), ts, 0))
}

// Close implements experimental.File.
func (f *file) Close() experimental.Errno {
	f.f.Close() // closing twice is no fault
	return 0
}
