package slurm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/jointcloud/pcm/adapters"
)

// Files go into and out of the working folder by copies: a task that runs as
// our user could write through a link to what others share. What it left is
// opened through the folder's root, so that no link leads out.

// copyIn copies one input into work. Links inside it are kept if they stay
// inside; others, devices and pipes are left out.
func copyIn(ctx context.Context, in adapters.Mount, work string) error {
	info, err := os.Stat(in.Path)
	if err != nil {
		return fmt.Errorf("input %s is not ready here: %w", in.Target, errno(err))
	}
	to, err := os.OpenRoot(work)
	if err != nil {
		return err
	}
	defer to.Close()
	target := path.Clean(in.Target)
	if err := to.MkdirAll(path.Dir(target), 0o700); err != nil {
		return err
	}
	dir, name := in.Path, "."
	if !info.IsDir() {
		dir, name = filepath.Split(in.Path)
	}
	from, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer from.Close()
	if name != "." { // a file, also where the path is a link to it
		f, err := os.Open(in.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		return writeFile(to, target, f, info.Mode(), -1)
	}
	_, err = copyTree(ctx, from, ".", to, target, nil, -1)
	return err
}

// errOver says that a copy came to its bound.
var errOver = errors.New("over the bound")

// copyOut copies the declared outputs, inputs excepted, from a working folder to home, up to
// a little more than limit bytes: what is over it is for the supervisor to see.
func copyOut(ctx context.Context, t adapters.Task, from *os.Root, home string, limit int64) error {
	to, err := os.OpenRoot(home)
	if err != nil {
		return err
	}
	defer to.Close()
	var inputs []string
	for _, in := range t.Inputs {
		inputs = append(inputs, path.Clean(in.Target))
	}
	left := limit + 1
	for _, out := range t.Outputs {
		out = path.Clean(out)
		if _, err := from.Lstat(out); err != nil {
			continue // not there, or a way that leads out
		}
		if err := to.MkdirAll(path.Dir(out), 0o700); err != nil {
			return err
		}
		n, err := copyTree(ctx, from, out, to, out, inputs, left)
		if errors.Is(err, errOver) {
			return nil
		}
		if err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// copyTree copies a file or folder, but what is in skip, and counts its bytes.
// What has been copied already, as an output within another, stays.
func copyTree(ctx context.Context, from *os.Root, src string, to *os.Root, dst string, skip []string, limit int64) (int64, error) {
	var total int64
	err := fs.WalkDir(from.FS(), src, func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if slices.Contains(skip, name) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := path.Join(dst, strings.TrimPrefix(strings.TrimPrefix(name, src), "/"))
		if src == "." {
			target = path.Join(dst, name)
		}
		switch {
		case d.IsDir():
			if err := to.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case d.Type() == fs.ModeSymlink:
			link, err := from.Readlink(name)
			if err != nil {
				return err
			}
			if !filepath.IsAbs(link) && filepath.IsLocal(path.Join(path.Dir(name), link)) {
				if err := to.Symlink(link, target); err != nil && !errors.Is(err, fs.ErrExist) {
					return err
				}
			}
		case d.Type().IsRegular():
			// Without O_NONBLOCK opening what became a pipe would wait for its writer.
			f, err := from.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil || !info.Mode().IsRegular() {
				return err
			}
			left := int64(-1)
			if limit >= 0 {
				left = limit - total
			}
			total += info.Size()
			if err := writeFile(to, target, f, info.Mode(), left); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if limit >= 0 && total > limit {
				return errOver
			}
		}
		return nil
	})
	return total, err
}

func writeFile(to *os.Root, name string, from io.Reader, mode fs.FileMode, limit int64) error {
	f, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm()&0o500|0o600)
	if err != nil {
		return err
	}
	if limit >= 0 {
		from = io.LimitReader(from, limit)
	}
	_, err = io.Copy(f, from) // the kernel copies, or shares the blocks
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// errno leaves the path out of an error, which is the seller's own business.
func errno(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}
