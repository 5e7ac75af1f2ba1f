package supervisor

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Bounds of what is copied into a task's folder at once. Its size is bounded by
// whatever bounds the folder.
const (
	maxCopied = 100_000 // files and folders
	maxName   = 4096
)

// Folder is where the attempt lives on this machine: its working folder is "work" in it.
func (a *Attempts) Folder(k adapters.Key) string {
	return string(folderOf(a.client.cfg.Dir, k.String()))
}

// Pack writes a file or folder of a running attempt's working folder to w, as a tar
// stream: its entries are named from the last element of name on. Links are
// packed as such; what is neither file, folder nor link is left out.
func (a *Attempts) Pack(ctx context.Context, k adapters.Key, name string, w io.Writer) error {
	root, clean, err := a.open(k, name)
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Lstat(clean)
	if err != nil {
		return copyError(name, err)
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return pcm.Errorf(pcm.Refused, "%q is neither a file nor a folder: only these are copied", name)
	}
	base := path.Base(clean)
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), clean, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if p != clean && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
				return nil // the task has taken it away meanwhile
			}
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		in := base
		if rel, _ := filepath.Rel(clean, p); rel != "." {
			in = path.Join(base, rel)
		}
		return pack(tw, root, p, in, d.Type())
	})
	if err == nil {
		err = tw.Close()
	}
	return copyError(name, err)
}

func pack(tw *tar.Writer, root *os.Root, p, in string, kind fs.FileMode) error {
	h := &tar.Header{Name: in, Format: tar.FormatPAX}
	switch {
	case kind.IsDir():
		info, err := root.Lstat(p)
		if err != nil {
			return nil
		}
		h.Typeflag, h.Name, h.Mode, h.ModTime = tar.TypeDir, in+"/", int64(info.Mode().Perm()), info.ModTime()
		return tw.WriteHeader(h)
	case kind&fs.ModeSymlink != 0:
		to, err := root.Readlink(p)
		if err != nil || filepath.IsAbs(to) || !filepath.IsLocal(path.Join(path.Dir(p), to)) {
			return nil // it leads outside
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, to, 0o777
		return tw.WriteHeader(h)
	case !kind.IsRegular():
		return nil
	}
	f, err := root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	h.Typeflag, h.Mode, h.ModTime, h.Size = tar.TypeReg, int64(info.Mode().Perm()), info.ModTime(), info.Size()
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	// It may grow or shrink meanwhile: the stream keeps to what it said.
	n, err := io.Copy(tw, io.LimitReader(f, h.Size))
	if err == nil && n < h.Size {
		_, err = io.CopyN(tw, zeros{}, h.Size-n)
	}
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Unpack unpacks a tar stream into a folder of a running attempt's working folder,
// which is made if it is missing. Whatever would come to lie outside, or leads
// there, is refused, and with it the rest.
func (a *Attempts) Unpack(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	work, clean, err := a.open(k, folder)
	if err != nil {
		return err
	}
	defer work.Close()
	if err := work.MkdirAll(clean, 0o755); err != nil {
		return copyError(folder, err)
	}
	root, err := work.OpenRoot(clean)
	if err != nil {
		return copyError(folder, err)
	}
	defer root.Close()
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "copying to %s was cut short: %w", folder, context.Cause(ctx))
		}
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return pcm.Errorf(pcm.Invalid, "what is to be copied to %s is not a tar stream: %w", folder, err)
		}
		if n >= maxCopied {
			return pcm.Errorf(pcm.TooLarge, "more than %d files are to be copied to %s at once", maxCopied, folder)
		}
		if err := unpack(root, h, tr); err != nil {
			return err
		}
	}
}

func unpack(root *os.Root, h *tar.Header, r io.Reader) error {
	name := strings.TrimPrefix(path.Clean(h.Name), "./")
	if len(h.Name) > maxName || !local(name) {
		return pcm.Errorf(pcm.Refused, "%.200q leads out of the folder", h.Name)
	}
	if name != "." {
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return copyError(h.Name, err)
		}
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		return copyError(h.Name, root.MkdirAll(name, mode|0o700))
	case tar.TypeSymlink:
		if filepath.IsAbs(h.Linkname) || !filepath.IsLocal(path.Join(path.Dir(name), h.Linkname)) {
			return pcm.Errorf(pcm.Refused, "link %.200q leads out of the folder", h.Name)
		}
		root.Remove(name)
		return copyError(h.Name, root.Symlink(h.Linkname, name))
	case tar.TypeReg:
		// Not into what is there: that may be a pipe, or a program that runs.
		if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return copyError(h.Name, err)
		}
		// It shows under its name when it is whole.
		part := path.Join(path.Dir(name), ".pcm-copy-"+path.Base(name))
		root.Remove(part)
		f, err := root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode|0o600)
		if err != nil {
			return copyError(h.Name, err)
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = root.Rename(part, name)
		}
		if err != nil {
			root.Remove(part)
		}
		return copyError(h.Name, err)
	}
	return nil // devices, pipes and hard links are left out
}

// open opens the working folder of an attempt, and cleans a path within it.
func (a *Attempts) open(k adapters.Key, name string) (*os.Root, string, error) {
	clean := path.Clean(name)
	if name == "" || !local(clean) {
		return nil, "", pcm.Errorf(pcm.Invalid, "path %.200q leads out of the task's working folder: give a relative path without ..", name)
	}
	f := folderOf(a.client.cfg.Dir, k.String())
	if f.ended() {
		return nil, "", pcm.Errorf(pcm.Conflict, "attempt %s has ended: what it left is among its results", k)
	}
	root, err := os.OpenRoot(f.work())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", pcm.Errorf(pcm.NotFound, "no attempt %s here", k)
	}
	if err != nil {
		return nil, "", pcm.Errorf(pcm.Unavailable, "can't open the working folder of attempt %s: %w", k, err)
	}
	return root, clean, nil
}

// copyError says what a fault at a path in a task's folder means.
func copyError(name string, err error) error {
	var known *pcm.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, fs.ErrNotExist):
		return pcm.Errorf(pcm.NotFound, "the task has no %.200q", name)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist):
		return pcm.Errorf(pcm.Refused, "%.200q can't be copied: %w", name, err)
	case strings.Contains(err.Error(), "escapes"):
		return pcm.Errorf(pcm.Refused, "%.200q leads out of the task's working folder", name)
	}
	return pcm.Errorf(pcm.Unavailable, "%.200q can't be copied: %w", name, err)
}
