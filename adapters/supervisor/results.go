package supervisor

import (
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jointcloud/pcm/adapters"
)

// results shows what an ended attempt left: "stdout", "stderr" and, below
// "out", the declared outputs that exist. It holds regular files and folders
// only. A link to a file inside the working folder shows as that file; other
// links, devices and pipes don't show. Inputs are no outputs, wherever they stand.
type results struct {
	folder  folder
	outputs []string // clean, relative to work
	inputs  []string
}

func newResults(f folder, t *task) *results {
	r := &results{folder: f}
	for _, out := range t.Outputs {
		r.outputs = append(r.outputs, path.Clean(out))
	}
	for _, in := range t.Inputs {
		r.inputs = append(r.inputs, path.Clean(in.Target))
	}
	return r
}

// Open implements fs.FS.
func (r *results) Open(name string) (fs.File, error) {
	f, err := r.open(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

func (r *results) open(name string) (fs.File, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	switch name {
	case ".":
		entries := []fs.DirEntry{folderEntry("out")}
		for _, s := range []adapters.StreamName{adapters.Stderr, adapters.Stdout} {
			info, err := r.streamInfo(s)
			if err != nil {
				return nil, err
			}
			entries = append(entries, fs.FileInfoToDirEntry(info))
		}
		return &listing{name: ".", entries: entries}, nil
	case string(adapters.Stdout), string(adapters.Stderr):
		return r.openStream(adapters.StreamName(name))
	case "out":
		return r.openOut(".")
	}
	if rest, ok := strings.CutPrefix(name, "out/"); ok {
		return r.openOut(rest)
	}
	return nil, fs.ErrNotExist
}

// streamInfo describes a stream; one without a byte has no file.
func (r *results) streamInfo(s adapters.StreamName) (fs.FileInfo, error) {
	info, err := os.Lstat(r.folder.stream(s))
	if os.IsNotExist(err) {
		return emptyInfo(s), nil
	}
	return info, err
}

func (r *results) openStream(s adapters.StreamName) (fs.File, error) {
	f, err := os.Open(r.folder.stream(s))
	if os.IsNotExist(err) {
		return emptyFile{emptyInfo(s)}, nil
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// openOut opens a path below the working folder, if a declared output covers it
// or lies below it.
func (r *results) openOut(name string) (fs.File, error) {
	if covered(r.inputs, name) {
		return nil, fs.ErrNotExist
	}
	root, err := os.OpenRoot(r.folder.work())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if covered(r.outputs, name) {
		return r.openReal(root, name)
	}
	var next []string // elements on the way to declared outputs that exist
	for _, out := range r.outputs {
		rest := out
		if name != "." {
			var ok bool
			if rest, ok = strings.CutPrefix(out, name+"/"); !ok {
				continue
			}
		}
		if info, err := root.Stat(out); err == nil && shows(info) && !covered(r.inputs, out) {
			first, _, _ := strings.Cut(rest, "/")
			next = append(next, first)
		}
	}
	if len(next) == 0 && name != "." {
		return nil, fs.ErrNotExist
	}
	slices.Sort(next)
	l := &listing{name: path.Base(path.Join("out", name))}
	for _, n := range slices.Compact(next) {
		full := path.Join(name, n)
		if !covered(r.outputs, full) {
			l.entries = append(l.entries, folderEntry(n))
		} else if info, err := root.Stat(full); err == nil {
			l.entries = append(l.entries, fs.FileInfoToDirEntry(named{info, n}))
		}
	}
	return l, nil
}

func (r *results) openReal(root *os.Root, name string) (fs.File, error) {
	// Without O_NONBLOCK opening a pipe would wait for its writer.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if os.IsPermission(err) {
			return nil, err
		}
		return nil, fs.ErrNotExist // also a way that leads out
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		return &realFolder{File: f, results: r, name: name}, nil
	}
	if err == nil && shows(info) {
		return f, nil
	}
	f.Close()
	if err == nil {
		err = fs.ErrNotExist
	}
	return nil, err
}

func shows(info fs.FileInfo) bool { return info.Mode().IsRegular() || info.IsDir() }

// realFolder is a folder that the task left.
type realFolder struct {
	*os.File
	results *results
	name    string
}

// ReadDir implements fs.ReadDirFile; entries that don't show are left out.
func (d *realFolder) ReadDir(n int) ([]fs.DirEntry, error) {
	root, err := os.OpenRoot(d.results.folder.work())
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for {
		entries, err := d.File.ReadDir(n)
		kept := entries[:0]
		for _, e := range entries {
			if full := path.Join(d.name, e.Name()); !covered(d.results.inputs, full) {
				if e := d.resolve(root, full, e); e != nil {
					kept = append(kept, e)
				}
			}
		}
		if err != nil || n <= 0 || len(kept) > 0 {
			return kept, err
		}
	}
}

// resolve shows a link to a file as that file. Links to folders could lead in
// circles: they don't show.
func (d *realFolder) resolve(root *os.Root, full string, e fs.DirEntry) fs.DirEntry {
	switch {
	case e.Type().IsRegular() || e.IsDir():
		return e
	case e.Type() == fs.ModeSymlink:
		if info, err := root.Stat(full); err == nil && info.Mode().IsRegular() {
			return fs.FileInfoToDirEntry(named{info, e.Name()})
		}
	}
	return nil
}

// listing is a folder that is not on disk.
type listing struct {
	name    string
	entries []fs.DirEntry
	next    int
}

func (l *listing) Stat() (fs.FileInfo, error) { return folderEntry(l.name), nil }
func (l *listing) Close() error               { return nil }
func (l *listing) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: l.name, Err: syscall.EISDIR}
}

// ReadDir implements fs.ReadDirFile.
func (l *listing) ReadDir(n int) ([]fs.DirEntry, error) {
	rest := l.entries[l.next:]
	if n > 0 {
		if len(rest) == 0 {
			return nil, io.EOF
		}
		rest = rest[:min(n, len(rest))]
	}
	l.next += len(rest)
	return slices.Clone(rest), nil
}

// folderEntry is the name of a folder that is not on disk.
type folderEntry string

func (f folderEntry) Name() string               { return string(f) }
func (f folderEntry) IsDir() bool                { return true }
func (f folderEntry) Type() fs.FileMode          { return fs.ModeDir }
func (f folderEntry) Info() (fs.FileInfo, error) { return f, nil }
func (f folderEntry) Size() int64                { return 0 }
func (f folderEntry) Mode() fs.FileMode          { return fs.ModeDir | 0o700 }
func (f folderEntry) ModTime() time.Time         { return time.Time{} }
func (f folderEntry) Sys() any                   { return nil }

// named is a file's description under another name.
type named struct {
	fs.FileInfo
	name string
}

func (n named) Name() string { return n.name }

// emptyInfo describes a stream without a byte.
type emptyInfo adapters.StreamName

func (e emptyInfo) Name() string       { return string(e) }
func (e emptyInfo) Size() int64        { return 0 }
func (e emptyInfo) Mode() fs.FileMode  { return 0o600 }
func (e emptyInfo) ModTime() time.Time { return time.Time{} }
func (e emptyInfo) IsDir() bool        { return false }
func (e emptyInfo) Sys() any           { return nil }

type emptyFile struct{ info emptyInfo }

func (e emptyFile) Stat() (fs.FileInfo, error) { return e.info, nil }
func (e emptyFile) Read([]byte) (int, error)   { return 0, io.EOF }
func (e emptyFile) Close() error               { return nil }
