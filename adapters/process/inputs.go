package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm/adapters"
)

// copyInput copies an input into the working folder: without a sandbox a task
// could otherwise write to what others share. Links inside it are kept if they
// stay inside; others, devices and pipes are left out.
func copyInput(ctx context.Context, in adapters.Mount, work string) error {
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
	if !info.IsDir() {
		f, err := os.Open(in.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		return copyFile(to, target, f, info)
	}
	from, err := os.OpenRoot(in.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	return fs.WalkDir(from.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		dst := path.Join(target, name)
		switch {
		case d.IsDir():
			if err := to.Mkdir(dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case d.Type() == fs.ModeSymlink:
			link, err := from.Readlink(name)
			if err != nil {
				return err
			}
			if !filepath.IsAbs(link) && staysInside(path.Join(path.Dir(name), link)) {
				return to.Symlink(link, dst)
			}
		case d.Type().IsRegular():
			f, err := from.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			return copyFile(to, dst, f, info)
		}
		return nil
	})
}

func staysInside(p string) bool { return p != ".." && !strings.HasPrefix(p, "../") }

func copyFile(to *os.Root, name string, from *os.File, info fs.FileInfo) error {
	f, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm()&0o500|0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from) // the kernel copies, or shares the blocks
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
