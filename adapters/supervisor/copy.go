package supervisor

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

// CopyInput copies one input into a working folder, for runners whose tasks could
// otherwise write to what others share. Links inside it are kept if they stay
// inside; others, devices and pipes are left out.
func CopyInput(ctx context.Context, in adapters.Mount, work string) error {
	info, err := os.Stat(in.Path)
	if err != nil {
		return fmt.Errorf("input %s is not ready here: %w", in.Target, Errno(err))
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
	if !info.IsDir() {
		f, err := os.Open(in.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		return copyFile(to, target, f, info.Mode(), -1)
	}
	from, err := os.OpenRoot(in.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	_, err = CopyTree(ctx, from, ".", to, target, nil, -1)
	return err
}

// CopyTree copies a file or folder, but what is in skip, and counts its bytes.
// Over the limit the error is ErrOver. What has been copied already, as an output within another, stays.
func CopyTree(ctx context.Context, from *os.Root, src string, to *os.Root, dst string, skip []string, limit int64) (int64, error) {
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
			if err := copyFile(to, target, f, info.Mode(), left); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if limit >= 0 && total > limit {
				return ErrOver
			}
		}
		return nil
	})
	return total, err
}

func copyFile(to *os.Root, name string, from io.Reader, mode fs.FileMode, limit int64) error {
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

// Errno leaves the path out of an error, which is the seller's own business.
func Errno(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}
