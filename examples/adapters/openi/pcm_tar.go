package main

// Archives as tar has them: files and folders, and nothing else.

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const maxFiles = 100_000

// packed is a file or folder, and where it is to be.
type packed struct{ local, target string }

// pack writes files and folders as a tar, each under its target.
func pack(to io.Writer, all []packed) error {
	w := tar.NewWriter(to)
	for _, x := range all {
		if err := packOne(w, x.local, x.target); err != nil {
			return err
		}
	}
	return w.Close()
}

func packOne(w *tar.Writer, local, target string) error {
	return filepath.WalkDir(local, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(local, name)
		if err != nil {
			return err
		}
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() && !info.IsDir() {
			return nil
		}
		h := &tar.Header{Name: filepath.Join(target, rel), Mode: int64(info.Mode().Perm()), ModTime: info.ModTime(), Typeflag: tar.TypeDir}
		if !info.IsDir() {
			h.Typeflag, h.Size = tar.TypeReg, info.Size()
		} else {
			h.Name += "/"
		}
		if err := w.WriteHeader(h); err != nil || info.IsDir() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(w, io.LimitReader(f, info.Size()))
		return err
	})
}

// unpack takes the declared outputs out of a tar, within dir: of one that is cut off,
// what there is, before it fails.
func unpack(from io.Reader, dir string, declared []string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	r := tar.NewReader(from)
	links := map[string]string{}
	for n := 0; ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			return instead(root, links)
		}
		if err != nil {
			return err
		}
		if n > maxFiles {
			return fmt.Errorf("there are more than %d files", maxFiles)
		}
		name := filepath.Clean(h.Name)
		asked := false
		for _, d := range declared {
			d = filepath.Clean(d)
			asked = asked || d == "." || name == d || strings.HasPrefix(name, d+"/")
		}
		if !asked || !filepath.IsLocal(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			if err := makeAll(root, name); err != nil {
				return err
			}
		case tar.TypeSymlink:
			if to := filepath.Join(filepath.Dir(name), h.Linkname); !filepath.IsAbs(h.Linkname) && filepath.IsLocal(to) {
				links[name] = to
			}
		case tar.TypeReg:
			if err := makeAll(root, filepath.Dir(name)); err != nil {
				return err
			}
			f, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(h.Mode)&0o755|0o600)
			if err != nil {
				return err
			}
			_, err = io.Copy(f, r)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return err
			}
		}
	}
}

// instead puts files in the place of links to them.
func instead(root *os.Root, links map[string]string) error {
	for name, to := range links {
		info, err := root.Lstat(to)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		data, err := root.ReadFile(to)
		if err == nil {
			err = makeAll(root, filepath.Dir(name))
		}
		if err == nil {
			err = root.WriteFile(name, data, info.Mode().Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func makeAll(root *os.Root, name string) error {
	at := ""
	for _, part := range strings.Split(name, "/") {
		if at = filepath.Join(at, part); at == "." {
			continue
		}
		if err := root.Mkdir(at, 0o755); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}
