package rest

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

const maxEntries = 1 << 20 // of an archive

// packed is an archive in a file of its own.
type packed struct {
	file *os.File
	size int64
}

func (p *packed) close() {
	p.file.Close()
	os.Remove(p.file.Name())
}

// archive packs an input, under its target. Links are packed as such.
func (a *attempt) archive(local, target string) (*packed, error) {
	f, err := os.CreateTemp(filepath.Dir(a.Work), "input-*")
	if err != nil {
		return nil, err
	}
	p := &packed{file: f}
	if err := pack(f, local, target); err != nil {
		p.close()
		return nil, err
	}
	if p.size, err = f.Seek(0, io.SeekEnd); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func pack(w io.Writer, local, target string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(local, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := os.Lstat(p)
		if p == local {
			info, err = os.Stat(p) // what the input is, not how it is reached
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(local, p)
		if err != nil {
			return err
		}
		link := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		case !info.Mode().IsRegular() && !info.IsDir():
			return nil
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name = path.Join(target, filepath.ToSlash(rel))
		h.Uid, h.Gid, h.Uname, h.Gname, h.Format = 0, 0, "", "", tar.FormatPAX
		h.Mode = int64(info.Mode().Perm() | 0o400)
		if info.IsDir() {
			h.Name += "/"
			h.Mode |= 0o700
		}
		if err := out.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(out, f)
		return err
	})
	return errors.Join(err, out.Close())
}

// unpack brings outputs into the working folder. Names that lead out of it are
// refused; what stands where an input does is passed over, and so are devices and pipes.
func unpack(r io.Reader, work string, t adapters.Task) error {
	root, err := os.OpenRoot(work)
	if err != nil {
		return err
	}
	defer root.Close()
	left := int64(t.OutputCap)
	if left <= 0 {
		left = 1 << 50
	}
	in := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return pcm.Errorf(pcm.Refused, "the archive of its outputs can't be read: %w", err)
		}
		if n >= maxEntries {
			return pcm.Errorf(pcm.TooLarge, "the archive of its outputs has more than %d entries", maxEntries)
		}
		name := path.Clean(h.Name)
		if name == "." {
			continue
		}
		if !filepath.IsLocal(name) || strings.ContainsAny(name, "\\\x00") {
			return pcm.Errorf(pcm.Refused, "the archive of its outputs names %.80q, which is not below its working folder", h.Name)
		}
		if isInput(name, t) {
			continue
		}
		if h.Typeflag == tar.TypeReg {
			if left -= h.Size; left < 0 {
				return pcm.Errorf(pcm.TooLarge, "its outputs are over the cap of %s", t.OutputCap)
			}
		}
		if err := putEntry(root, name, h, in); err != nil {
			return err
		}
	}
}

func isInput(name string, t adapters.Task) bool {
	for _, in := range t.Inputs {
		target := path.Clean(in.Target)
		if name == target || strings.HasPrefix(name, target+"/") {
			return true
		}
	}
	return false
}

// putEntry puts one entry in its place. What a link of before would lead out stays out.
func putEntry(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeSymlink && h.Typeflag != tar.TypeLink {
		return nil
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return nil // below a link that leads out, or a file: no output
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o700); err != nil {
			return nil
		}
	case tar.TypeSymlink:
		if err := root.Symlink(h.Linkname, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("can't make the link %s: %w", name, err)
		}
	case tar.TypeLink: // a file that the task has under two names: to one of before
		was := path.Clean(h.Linkname)
		if info, err := root.Lstat(was); err != nil || !info.Mode().IsRegular() {
			return nil
		}
		if err := root.Link(was, name); err != nil && !errors.Is(err, fs.ErrExist) {
			return pcm.Errorf(pcm.Unavailable, "can't make output %s: %w", name, err)
		}
	default:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600|fs.FileMode(h.Mode&0o100))
		if err != nil {
			return nil // it is there, or leads out
		}
		_, err = io.Copy(f, r)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't write output %s: %w", name, err)
		}
	}
	return nil
}
