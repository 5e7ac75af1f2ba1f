package artifact

import (
	"context"
	"crypto/sha256"
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

	"github.com/jointcloud/pcm"
)

// Stats tells what an import did.
type Stats struct {
	Files   int       // files, folders and links
	Bytes   pcm.Bytes // content of all files
	New     pcm.Bytes // of it, what the store didn't have in chunks before; manifests not counted
	Skipped []string  // what ImportFS left out, with reasons; at most 100
}

const maxSkipped = 100

// Import stores the file or folder at p and makes it durable. It is pinned for
// owners before it could be collected.
//
// Refused, with the path named: links that lead out of the folder (a link as p
// itself may point within its own folder only), devices, sockets and pipes, names
// that aren't UTF-8 (all Invalid), a file that changes while it is read
// (Conflict), no room (Refused), a folder with too many entries (TooLarge). A p
// that isn't there is NotFound. What an import that failed had stored is deleted.
func (s *Store) Import(ctx context.Context, p string, owners ...string) (pcm.Digest, Stats, error) {
	info, err := os.Lstat(p)
	if err != nil {
		return "", Stats{}, pathError(p, err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		if p, info, err = followInside(p); err != nil {
			return "", Stats{}, err
		}
	}
	im := importer{strict: true, name: p}
	var digest pcm.Digest
	switch {
	case info.IsDir():
		root, err := os.OpenRoot(p)
		if err != nil {
			return "", Stats{}, pathError(p, err)
		}
		defer root.Close()
		im.fsys = root.FS()
		digest, err = s.run(ctx, &im, ".", owners)
		if err != nil {
			return "", im.stats, err
		}
	case info.Mode().IsRegular():
		im.single = true
		root, err := os.OpenRoot(filepath.Dir(p))
		if err != nil {
			return "", Stats{}, pathError(p, err)
		}
		defer root.Close()
		im.fsys, im.name = root.FS(), filepath.Dir(p)
		digest, err = s.run(ctx, &im, filepath.Base(p), owners)
		if err != nil {
			return "", im.stats, err
		}
	default:
		return "", Stats{}, pcm.Errorf(pcm.Invalid, "%s is a %s: only files and folders can travel", p, kindOf(info.Mode()))
	}
	return digest, im.stats, s.Sync()
}

// followInside follows the link p, which may not lead out of its folder.
func followInside(p string) (string, fs.FileInfo, error) {
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return "", nil, pathError(p, err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(p))
	if err != nil {
		return "", nil, pathError(p, err)
	}
	if rel, err := filepath.Rel(dir, real); err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return "", nil, pcm.Errorf(pcm.Invalid, "%s is a link that leads out of its folder, to %s: name that path itself if it is what you mean", p, real)
	}
	info, err := os.Lstat(real)
	if err != nil {
		return "", nil, pathError(p, err)
	}
	return real, info, nil
}

// ImportFS stores the tree under root of fsys, e.g. the results of a task. It
// doesn't trust what it finds: links that lead out of the tree, devices and the
// like are left out and listed in Stats.Skipped; nothing is followed. An empty tree
// gives [Empty]. It is not durable before the next [Store.Sync].
func (s *Store) ImportFS(ctx context.Context, fsys fs.FS, root string, owners ...string) (pcm.Digest, Stats, error) {
	im := importer{fsys: fsys, name: root}
	info, err := fs.Stat(fsys, root)
	if err != nil {
		return "", im.stats, pathError(root, err)
	}
	im.single = info.Mode().IsRegular()
	digest, err := s.run(ctx, &im, root, owners)
	return digest, im.stats, err
}

// importer reads one tree into the store.
type importer struct {
	fsys   fs.FS
	name   string // of the tree on this machine, for messages
	strict bool   // refuse what can't travel, rather than leave it out
	single bool
	buf    []byte // of ChunkSize, made when the first large file is met
	inline int    // bytes in the manifest so far
	ses    *session
	tree   Tree
	links  []int // indexes of links
	stats  Stats
}

// run imports root of the importer's file system.
func (s *Store) run(ctx context.Context, im *importer, root string, owners []string) (digest pcm.Digest, err error) {
	im.ses = s.begin()
	defer func() { im.ses.end(err == nil) }()
	im.tree = Tree{Version: treeVersion, Single: im.single, Entries: []Entry{}}
	if im.single {
		err = im.file(ctx, root, ".")
	} else {
		err = fs.WalkDir(im.fsys, root, func(p string, d fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				if p == root || im.strict || ctx.Err() != nil {
					return pathError(im.full(p), err)
				}
				im.skip(p, err)
				return nil
			}
			if p == root {
				return nil
			}
			return im.visit(ctx, p, relative(root, p), d)
		})
	}
	if err != nil {
		return "", err
	}
	if err := im.checkLinks(); err != nil {
		return "", err
	}
	slices.SortFunc(im.tree.Entries, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	data, err := im.tree.encode()
	if err != nil {
		return "", err
	}
	name := sum(sha256.Sum256(data))
	if err := im.ses.putTree(name, im.tree, data, true); err != nil {
		return "", err
	}
	for _, o := range owners {
		if err := s.Pin(o, name.digest()); err != nil {
			return "", err
		}
	}
	im.stats.Files = len(im.tree.Entries)
	im.stats.Bytes = im.tree.Size()
	im.stats.New = pcm.Bytes(im.ses.fresh)
	return name.digest(), nil
}

func relative(root, p string) string {
	if root == "." {
		return p
	}
	return strings.TrimPrefix(p, root+"/")
}

func (im *importer) full(p string) string {
	if !im.strict {
		return p
	}
	return filepath.Join(im.name, filepath.FromSlash(p))
}

// refuse ends a strict import; another leaves p out.
func (im *importer) refuse(p string, format string, args ...any) error {
	err := pcm.Errorf(pcm.Invalid, "%s "+format, append([]any{im.full(p)}, args...)...)
	if im.strict {
		return err
	}
	im.skip(p, err)
	return nil
}

func (im *importer) skip(p string, err error) {
	if len(im.stats.Skipped) < maxSkipped {
		im.stats.Skipped = append(im.stats.Skipped, fmt.Sprintf("%.300s: %.300s", p, err))
	}
}

func (im *importer) visit(ctx context.Context, p, rel string, d fs.DirEntry) error {
	if err := checkPath(rel); err != nil {
		err := im.refuse(p, "has a name that can't travel: %w", err)
		if err == nil && d.IsDir() {
			return fs.SkipDir
		}
		return err
	}
	if len(im.tree.Entries) >= MaxEntries {
		return pcm.Errorf(pcm.TooLarge, "%s has more than %d files and folders: pack it into one archive", im.name, MaxEntries)
	}
	switch mode := d.Type(); {
	case mode.IsDir():
		im.tree.Entries = append(im.tree.Entries, Entry{Path: rel, Kind: Dir})
		return nil
	case mode&fs.ModeSymlink != 0:
		target, err := fs.ReadLink(im.fsys, p)
		if err != nil {
			return im.refuse(p, "is a link that can't be read: %w", err)
		}
		im.links = append(im.links, len(im.tree.Entries))
		im.tree.Entries = append(im.tree.Entries, Entry{Path: rel, Kind: Link, Target: filepath.ToSlash(target)})
		return nil
	case mode.IsRegular():
		return im.file(ctx, p, rel)
	default:
		return im.refuse(p, "is a %s: only files, folders and links within the folder can travel", kindOf(mode))
	}
}

// checkLinks drops or refuses links that lead out, once the whole tree is known.
func (im *importer) checkLinks() error {
	kinds := map[string]Kind{}
	for _, e := range im.tree.Entries {
		kinds[e.Path] = e.Kind
	}
	var out []string
	for _, i := range im.links {
		e := im.tree.Entries[i]
		if err := checkLink(e.Path, e.Target, func(p string) Kind { return kinds[p] }); err != nil {
			if im.strict {
				return pcm.Errorf(pcm.Invalid, "%s: %w", im.full(e.Path), err)
			}
			im.skip(e.Path, err)
			out = append(out, e.Path)
		}
	}
	im.tree.Entries = slices.DeleteFunc(im.tree.Entries, func(e Entry) bool { return e.Kind == Link && slices.Contains(out, e.Path) })
	return nil
}

// file stores one file's content and adds its entry. What it reads must be what
// stood there from beginning to end.
func (im *importer) file(ctx context.Context, p, rel string) error {
	f, err := im.fsys.Open(p)
	if err != nil {
		if im.strict || im.single {
			return pathError(im.full(p), err)
		}
		im.skip(p, err)
		return nil
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return pathError(im.full(p), err)
	}
	if !before.Mode().IsRegular() {
		return im.refuse(p, "is no longer a plain file: it changed while it was read")
	}
	e := Entry{Path: rel, Kind: File, Exec: before.Mode()&0o100 != 0, Size: before.Size()}
	if e.Size > maxTreeBytes {
		return pcm.Errorf(pcm.TooLarge, "%s has %s, the bound is %s", im.full(p), pcm.Bytes(e.Size), pcm.Bytes(maxTreeBytes))
	}
	if e.Size <= inlineFile && im.inline+int(e.Size) <= inlineTree {
		e.Inline = make([]byte, e.Size)
		if err := im.fill(p, f, e.Inline); err != nil {
			return err
		}
		im.inline += int(e.Size)
		if e.Size == 0 {
			e.Inline = nil
		}
	} else if err := im.chunks(ctx, p, f, &e); err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return pathError(im.full(p), err)
	}
	if after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) || !atEnd(f) {
		return im.changed(p)
	}
	im.tree.Entries = append(im.tree.Entries, e)
	return nil
}

func (im *importer) changed(p string) error {
	return pcm.Errorf(pcm.Conflict, "%s changed while it was read: try again when nothing writes to it", im.full(p))
}

func atEnd(f io.Reader) bool {
	var b [1]byte
	n, err := f.Read(b[:])
	return n == 0 && err == io.EOF
}

func (im *importer) fill(p string, f io.Reader, buf []byte) error {
	if _, err := io.ReadFull(f, buf); err == io.EOF || err == io.ErrUnexpectedEOF {
		if len(buf) == 0 {
			return nil
		}
		return im.changed(p)
	} else if err != nil {
		return pathError(im.full(p), err)
	}
	return nil
}

func (im *importer) chunks(ctx context.Context, p string, f io.Reader, e *Entry) error {
	if im.buf == nil {
		im.buf = make([]byte, ChunkSize)
	}
	var sums []byte
	for i := range e.chunks() {
		if err := ctx.Err(); err != nil {
			return pathError(im.full(p), err)
		}
		buf := im.buf[:e.chunkLen(i)]
		if err := im.fill(p, f, buf); err != nil {
			return err
		}
		name := sum(sha256.Sum256(buf))
		if err := im.ses.put(name, buf); err != nil {
			return err
		}
		sums = append(sums, name[:]...)
	}
	if e.chunks() <= directChunks {
		e.Chunks = sums
		return nil
	}
	for list := range slices.Chunk(sums, listSums*sumSize) {
		name := sum(sha256.Sum256(list))
		if err := im.ses.put(name, list); err != nil {
			return err
		}
		e.Lists = append(e.Lists, name[:]...)
	}
	return nil
}

// pathError says what is wrong with a path that a user named.
func pathError(p string, err error) error {
	var pe *fs.PathError
	why := err
	if errors.As(err, &pe) {
		why = pe.Err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return pcm.Errorf(pcm.Unavailable, "%s: reading was given up: %w", p, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return pcm.Errorf(pcm.NotFound, "%s does not exist: %w", p, why)
	case errors.Is(err, fs.ErrPermission):
		return pcm.Errorf(pcm.Forbidden, "%s may not be read: %w", p, why)
	case errors.Is(err, syscall.ELOOP):
		return pcm.Errorf(pcm.Invalid, "%s is a link that leads in a circle: %w", p, why)
	case errors.Is(err, fs.ErrInvalid):
		return pcm.Errorf(pcm.Invalid, "%q has a name that can't travel: %w", path.Clean(p), why)
	}
	return pcm.Errorf(pcm.Internal, "can't read %s: %w", p, why)
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeNamedPipe != 0:
		return "named pipe"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeSymlink != 0:
		return "link"
	}
	return "special file"
}
