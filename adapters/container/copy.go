package container

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Bounds of one copy.
const (
	maxCopied  = 64 << 30 // bytes
	maxEntries = 1 << 20
)

// workplace is the working folder of an attempt that runs. It is reached on this
// machine, not through the engine, which would follow links as root.
type workplace struct {
	*os.Root
	inputs []string // mounted over it: not to be seen from here
}

func (a *Adapter) workplace(ctx context.Context, k adapters.Key) (*workplace, error) {
	c, err := a.running(ctx, k)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Join(a.cfg.Runner.Dir, "tasks", k.String(), "work"))
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't open the working folder of attempt %s: %w", k, err)
	}
	return &workplace{root, inputsOf(c)}, nil
}

func inputsOf(c container.InspectResponse) (inputs []string) {
	for _, m := range c.Mounts {
		if in, ok := strings.CutPrefix(m.Destination, workFolder+"/"); ok {
			inputs = append(inputs, path.Clean(in))
		}
	}
	return inputs
}

// isInput tells whether name is an input or lies in one.
func (w *workplace) isInput(name string) bool {
	return slices.ContainsFunc(w.inputs, func(in string) bool { return name == in || strings.HasPrefix(name, in+"/") })
}

// local cleans a path that must stay in the folder.
func local(p string) (string, error) {
	clean := path.Clean(strings.TrimSuffix(p, "/"))
	if p == "" || strings.ContainsAny(p, "\x00\\") || !filepath.IsLocal(clean) {
		return "", pcm.Errorf(pcm.Invalid, "path %q does not lie in the task's working folder: give a relative one without ..", p)
	}
	return clean, nil
}

// CopyOut implements adapters.Copier. Inputs are not copied.
func (a *Adapter) CopyOut(ctx context.Context, k adapters.Key, name string, w io.Writer) error {
	name, err := local(name)
	if err != nil {
		return err
	}
	at, err := a.workplace(ctx, k)
	if err != nil {
		return err
	}
	defer at.Close()
	info, err := at.Lstat(name)
	if err != nil || at.isInput(name) {
		return pcm.Errorf(pcm.NotFound, "attempt %s has no file or folder %q of its own in its working folder", k, name)
	}
	out := tar.NewWriter(w)
	if info.Mode().Type() == fs.ModeSymlink { // which a walk would follow
		if _, err = at.pack(out, name, path.Base(name), maxCopied); err == nil {
			err = out.Close()
		}
		return copyFault(k, err)
	}
	left, entries := int64(maxCopied), 0
	err = fs.WalkDir(at.FS(), name, func(p string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // the task has removed it meanwhile
		case err != nil:
			return err
		case at.isInput(p):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if entries++; entries > maxEntries {
			return pcm.Errorf(pcm.TooLarge, "%q holds more than %d files: copy parts of it", name, maxEntries)
		}
		n, err := at.pack(out, p, entryName(name, p), left)
		if left -= n; left <= 0 {
			return pcm.Errorf(pcm.TooLarge, "%q holds more than %s: copy parts of it", name, pcm.Bytes(maxCopied))
		}
		return err
	})
	if err == nil {
		err = out.Close()
	}
	return copyFault(k, err)
}

// entryName is the name of p in an archive of name, in which it lies.
func entryName(name, p string) string {
	if name == "." {
		return p
	}
	return path.Join(path.Base(name), strings.TrimPrefix(p, name))
}

// pack writes one entry: a folder, a file, or a link that stays inside.
func (w *workplace) pack(out *tar.Writer, p, as string, limit int64) (int64, error) {
	info, err := w.Lstat(p)
	if err != nil {
		return 0, nil // gone meanwhile
	}
	h := &tar.Header{Name: as, Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}
	switch {
	case info.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, as+"/"
	case info.Mode().Type() == fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = w.Readlink(p); err != nil || !staysInside(p, h.Linkname) {
			return 0, nil
		}
	case info.Mode().IsRegular():
		f, err := w.Open(p)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
			return 0, err // another file by now
		}
		h.Typeflag, h.Size = tar.TypeReg, min(info.Size(), limit)
		if err := out.WriteHeader(h); err != nil {
			return 0, err
		}
		n, err := io.CopyN(out, f, h.Size)
		if errors.Is(err, io.EOF) { // it shrinks while it is read: what is missing reads as zeros
			_, err = io.CopyN(out, zeros{}, h.Size-n)
		}
		return h.Size, err
	default:
		return 0, nil // pipes, sockets
	}
	return 0, out.WriteHeader(h)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// staysInside tells whether a link at p leads to a place in the folder.
func staysInside(p, link string) bool {
	return link != "" && !path.IsAbs(link) && filepath.IsLocal(path.Join(path.Dir(p), link))
}

// CopyIn implements adapters.Copier.
func (a *Adapter) CopyIn(ctx context.Context, k adapters.Key, folder string, r io.Reader) error {
	folder, err := local(folder)
	if err != nil {
		return err
	}
	at, err := a.workplace(ctx, k)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := at.folder(folder, a.owner); err != nil {
		return copyFault(k, err)
	}
	in := tar.NewReader(io.LimitReader(r, maxCopied))
	for range maxEntries {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if err == nil {
			err = at.unpack(in, h, folder, a.owner)
		}
		if err != nil {
			return copyFault(k, err)
		}
	}
	return pcm.Errorf(pcm.TooLarge, "more than %d files: copy them in parts", maxEntries)
}

// folder makes a folder and those above it, all the task's own.
func (w *workplace) folder(name string, o owner) error {
	if w.isInput(name) {
		return pcm.Errorf(pcm.Refused, "%q is an input of the task, which nobody may change", name)
	}
	for i := range len(name) + 1 {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if err := w.Mkdir(name[:i], 0o755); err == nil {
			if err := w.own(name[:i], o); err != nil {
				return err
			}
		} else if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	info, err := w.Stat(name)
	if err == nil && !info.IsDir() {
		return pcm.Errorf(pcm.Conflict, "%q is a file, not a folder", name)
	}
	return err
}

func (w *workplace) own(name string, o owner) error {
	if os.Getuid() != 0 {
		return nil
	}
	return w.Lchown(name, o.uid, o.gid)
}

// unpack makes one entry.
func (w *workplace) unpack(in *tar.Reader, h *tar.Header, folder string, o owner) error {
	clean, err := local(h.Name)
	if err != nil {
		return err
	}
	name := path.Join(folder, clean)
	if h.Typeflag == tar.TypeDir {
		return w.folder(name, o)
	}
	if err := w.folder(path.Dir(name), o); err != nil {
		return err
	}
	if w.isInput(name) {
		return pcm.Errorf(pcm.Refused, "%q is an input of the task, which nobody may change", name)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		// A new file in the place of the old, so that a link there is not followed.
		if err := w.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f, err := w.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(h.Mode).Perm()|0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		return w.own(name, o)
	case tar.TypeSymlink:
		if !staysInside(name, h.Linkname) {
			return pcm.Errorf(pcm.Refused, "link %q leads out of the task's working folder, to %q", h.Name, h.Linkname)
		}
		if err := w.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := w.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return w.own(name, o)
	case tar.TypeXGlobalHeader:
		return nil
	}
	return pcm.Errorf(pcm.Refused, "%q is neither a file nor a folder nor a link", h.Name)
}

func copyFault(k adapters.Key, err error) error {
	var ours *pcm.Error
	switch {
	case err == nil || errors.As(err, &ours):
		return err
	case errors.Is(err, tar.ErrHeader), errors.Is(err, io.ErrUnexpectedEOF):
		return pcm.Errorf(pcm.Invalid, "what was sent to attempt %s is not a whole tar archive: %w", k, err)
	}
	return pcm.Errorf(pcm.Unavailable, "copying with attempt %s: %w", k, err)
}
