package wasm

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	experimental "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
)

// root is all that a module sees of the file system: its working folder as "/",
// with its inputs, read-only, at their places. wazero's own DirFS follows links
// out of the folder, and a module can make such links; here every step of a path
// is resolved below the folder by os.Root. A link in the working folder that
// leads to an input finds only the input's empty place.
type root struct {
	experimental.UnimplementedFS
	work   *os.Root
	inputs []input
}

// input is one mounted input.
type input struct {
	target string   // clean, relative to the working folder
	path   string   // of a file; see dir
	dir    *os.Root // nil if it is a file
}

func newRoot(work string, mounts []adapters.Mount) (r *root, err error) {
	r = &root{}
	if r.work, err = os.OpenRoot(work); err != nil {
		return nil, err
	}
	for _, m := range mounts {
		in := input{target: path.Clean(m.Target), path: m.Path}
		info, err := os.Stat(m.Path)
		if err == nil && info.IsDir() {
			in.dir, err = os.OpenRoot(m.Path)
		}
		if err == nil {
			err = r.place(in)
		}
		if err != nil {
			r.close()
			return nil, pcm.Errorf(pcm.Unavailable, "input %s is not ready here: %w", m.Target, err)
		}
		r.inputs = append(r.inputs, in)
	}
	return r, nil
}

// place makes the input's name show in its parent folder.
func (r *root) place(in input) error {
	if in.dir != nil {
		return r.work.MkdirAll(in.target, 0o700)
	}
	if err := r.work.MkdirAll(path.Dir(in.target), 0o700); err != nil {
		return err
	}
	f, err := r.work.OpenFile(in.target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (r *root) close() {
	for _, in := range r.inputs {
		if in.dir != nil {
			in.dir.Close()
		}
	}
	r.work.Close()
}

// route cleans a path and finds what it is in: an input, or nil for the working folder.
func (r *root) route(p string) (in *input, rest string) {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	if p == "" {
		p = "."
	}
	for i := range r.inputs {
		in := &r.inputs[i]
		if p == in.target {
			return in, "."
		}
		if strings.HasPrefix(p, in.target) && p[len(in.target)] == '/' {
			return in, p[len(in.target)+1:]
		}
	}
	return nil, p
}

// OpenFile implements experimental.FS.
func (r *root) OpenFile(name string, flag experimental.Oflag, perm fs.FileMode) (experimental.File, experimental.Errno) {
	osFlag := osFlags(flag)
	if strings.HasSuffix(name, "/") {
		osFlag |= syscall.O_DIRECTORY
	}
	in, rest := r.route(name)
	readOnly := in != nil
	if readOnly && flag&(experimental.O_RDWR|experimental.O_WRONLY|experimental.O_CREAT|experimental.O_TRUNC|experimental.O_APPEND) != 0 {
		return nil, experimental.EROFS
	}
	dir := r.work
	if readOnly {
		dir = in.dir
	}
	if dir == nil { // an input that is a file
		if rest != "." {
			return nil, experimental.ENOTDIR
		}
		f, err := os.OpenFile(in.path, os.O_RDONLY|osFlag&syscall.O_DIRECTORY|syscall.O_NONBLOCK, 0)
		return opened(f, err, flag)
	}
	if flag&experimental.O_NOFOLLOW != 0 {
		if info, err := dir.Lstat(rest); err == nil && info.Mode().Type() == fs.ModeSymlink {
			return nil, experimental.ELOOP
		}
	}
	// A folder is for its owner to use, whatever mask the module thinks it has.
	f, err := dir.OpenFile(rest, osFlag|syscall.O_NONBLOCK, perm&0o777|0o600)
	return opened(f, err, flag)
}

// opened takes regular files and folders only: others could block for ever.
func opened(f *os.File, err error, flag experimental.Oflag) (experimental.File, experimental.Errno) {
	if err != nil {
		return nil, errnoOf(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = syscall.EACCES
	}
	if err != nil {
		f.Close()
		return nil, errnoOf(err)
	}
	return &file{f: f, dir: info.IsDir(), append: flag&experimental.O_APPEND != 0}, 0
}

func osFlags(flag experimental.Oflag) int {
	f := os.O_RDONLY
	switch {
	case flag&experimental.O_RDWR != 0:
		f = os.O_RDWR
	case flag&experimental.O_WRONLY != 0:
		f = os.O_WRONLY
	}
	for from, to := range map[experimental.Oflag]int{
		experimental.O_APPEND: os.O_APPEND, experimental.O_CREAT: os.O_CREATE, experimental.O_EXCL: os.O_EXCL,
		experimental.O_TRUNC: os.O_TRUNC, experimental.O_SYNC: os.O_SYNC, experimental.O_DSYNC: syscall.O_DSYNC,
		experimental.O_DIRECTORY: syscall.O_DIRECTORY,
	} {
		if flag&from != 0 {
			f |= to
		}
	}
	return f
}

// Stat implements experimental.FS.
func (r *root) Stat(name string) (sys.Stat_t, experimental.Errno) {
	return r.stat(name, (*os.Root).Stat)
}

// Lstat implements experimental.FS.
func (r *root) Lstat(name string) (sys.Stat_t, experimental.Errno) {
	return r.stat(name, (*os.Root).Lstat)
}

func (r *root) stat(name string, how func(*os.Root, string) (fs.FileInfo, error)) (sys.Stat_t, experimental.Errno) {
	in, rest := r.route(name)
	var info fs.FileInfo
	var err error
	switch {
	case in == nil:
		info, err = how(r.work, rest)
	case in.dir != nil:
		info, err = how(in.dir, rest)
	case rest == ".":
		info, err = os.Stat(in.path)
	default:
		err = syscall.ENOTDIR
	}
	if err == nil && strings.HasSuffix(name, "/") && !info.IsDir() && info.Mode().Type() != fs.ModeSymlink {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return sys.Stat_t{}, errnoOf(err)
	}
	return sys.NewStat_t(info), 0
}

// change runs a change of the working folder; inputs refuse it.
func (r *root) change(name string, f func(rest string) error) experimental.Errno {
	in, rest := r.route(name)
	if in != nil {
		return experimental.EROFS
	}
	return errnoOf(f(rest))
}

// Mkdir implements experimental.FS.
func (r *root) Mkdir(name string, perm fs.FileMode) experimental.Errno {
	return r.change(name, func(p string) error { return r.work.Mkdir(p, perm&0o777|0o700) })
}

// Chmod implements experimental.FS.
func (r *root) Chmod(name string, perm fs.FileMode) experimental.Errno {
	return r.change(name, func(p string) error { return r.work.Chmod(p, perm&0o777) })
}

// Rename implements experimental.FS.
func (r *root) Rename(from, to string) experimental.Errno {
	return r.change(from, func(p string) error {
		if errno := r.change(to, func(q string) error { return r.work.Rename(p, q) }); errno != 0 {
			return errno
		}
		return nil
	})
}

// Rmdir implements experimental.FS.
func (r *root) Rmdir(name string) experimental.Errno {
	return r.change(name, func(p string) error { return r.delete(p, true) })
}

// Unlink implements experimental.FS.
func (r *root) Unlink(name string) experimental.Errno {
	return r.change(name, func(p string) error { return r.delete(p, false) })
}

func (r *root) delete(p string, dir bool) error {
	info, err := r.work.Lstat(p)
	switch {
	case err != nil:
		return err
	case dir && !info.IsDir():
		return syscall.ENOTDIR
	case !dir && info.IsDir():
		return syscall.EISDIR
	}
	return r.work.Remove(p)
}

// Link implements experimental.FS.
func (r *root) Link(from, to string) experimental.Errno {
	return r.change(from, func(p string) error {
		if errno := r.change(to, func(q string) error { return r.work.Link(p, q) }); errno != 0 {
			return errno
		}
		return nil
	})
}

// Symlink implements experimental.FS.
func (r *root) Symlink(to, name string) experimental.Errno {
	if path.IsAbs(to) { // as WASI wants it
		return experimental.EPERM
	}
	return r.change(name, func(p string) error { return r.work.Symlink(to, p) })
}

// Readlink implements experimental.FS.
func (r *root) Readlink(name string) (string, experimental.Errno) {
	in, rest := r.route(name)
	dir := r.work
	if in != nil {
		dir = in.dir
	}
	if dir == nil {
		return "", experimental.EINVAL
	}
	to, err := dir.Readlink(rest)
	return to, errnoOf(err)
}

// Utimens implements experimental.FS.
func (r *root) Utimens(name string, atim, mtim int64) experimental.Errno {
	return r.change(name, func(p string) error {
		info, err := r.work.Stat(p)
		if err != nil {
			return err
		}
		return r.work.Chtimes(p, moment(atim, info), moment(mtim, info))
	})
}

// moment reads a time as WASI's host functions give it; one that is to stay is
// replaced by the time of the last change.
func moment(ns int64, info fs.FileInfo) time.Time {
	if ns == experimental.UTIME_OMIT {
		return info.ModTime()
	}
	return time.Unix(0, ns)
}

func errnoOf(err error) experimental.Errno {
	if err == nil {
		return 0
	}
	var e experimental.Errno
	if errors.As(err, &e) {
		return e
	}
	var se syscall.Errno
	if !errors.As(err, &se) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, fs.ErrClosed) {
		return experimental.EPERM // os.Root's word for a path that leads out
	}
	if se == syscall.ENOSPC || se == syscall.EDQUOT {
		return experimental.EIO
	}
	return experimental.UnwrapOSError(err)
}
