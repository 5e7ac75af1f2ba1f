package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// chunkBufs are buffers of ChunkSize.
var chunkBufs = sync.Pool{New: func() any { b := make([]byte, ChunkSize); return &b }}

// tree reads a manifest. The error is errMissing if it isn't here.
func (s *Store) tree(name sum) (Tree, error) {
	data, err := s.manifest(name)
	if err != nil {
		return Tree{}, err
	}
	return DecodeTree(data)
}

// manifest reads a manifest's verified bytes.
func (s *Store) manifest(name sum) ([]byte, error) {
	<-s.scanned
	data, err := s.readPacked(name)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = readBounded(s.blobPath(dirTrees, name), MaxManifest)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMissing
	}
	if err == nil && sha256.Sum256(data) != name {
		err = errors.New("its content doesn't match its name")
	}
	if err != nil {
		s.damaged(dirTrees, name, err)
		return nil, errMissing
	}
	return data, nil
}

// blobs visits every blob that the tree needs, lists before the chunks in them.
// A blob may come more than once. It tells whether all lists are here; chunks of
// lists that aren't are left out.
func (s *Store) blobs(t Tree, visit func(b sum, size int) error) (whole bool, err error) {
	whole = true
	var list []byte // made when needed
	for _, e := range t.Entries {
		for i := range int64(len(e.Chunks) / sumSize) {
			if err := visit(sum(e.Chunks[i*sumSize:]), e.chunkLen(i)); err != nil {
				return whole, err
			}
		}
		for l := range int64(len(e.Lists) / sumSize) {
			name, size := sum(e.Lists[l*sumSize:]), e.listLen(l)
			if err := visit(name, size); err != nil {
				return whole, err
			}
			if list == nil {
				list = make([]byte, ChunkSize)
			}
			sums, err := s.read(dirChunks, name, list[:size])
			if err != nil || len(sums) != size {
				whole = false
				continue
			}
			for i := range int64(size / sumSize) {
				if err := visit(sum(sums[i*sumSize:]), e.chunkLen(l*listSums+i)); err != nil {
					return whole, err
				}
			}
		}
	}
	return whole, nil
}

// listLen is the length of the file's l-th list.
func (e Entry) listLen(l int64) int { return int(min(listSums, e.chunks()-l*listSums)) * sumSize }

// Missing lists the blobs that the artifact still needs here: itself, if nothing
// of it is known. Presence is judged by name and size; damage shows on reading.
func (s *Store) Missing(d pcm.Digest) ([]pcm.Digest, error) {
	name, err := sumOf(d)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	info := s.trees[name]
	complete := info != nil && info.complete
	s.mu.Unlock()
	if complete {
		return nil, nil
	}
	t, err := s.tree(name)
	if errors.Is(err, errMissing) {
		return []pcm.Digest{d}, nil
	}
	if err != nil {
		return nil, err
	}
	var missing []pcm.Digest
	seen := map[sum]struct{}{}
	_, err = s.blobs(t, func(b sum, size int) error {
		if _, ok := seen[b]; ok {
			return nil
		}
		seen[b] = struct{}{}
		if !s.present(b, size) {
			missing = append(missing, b.digest())
		}
		return nil
	})
	if err == nil && len(missing) == 0 {
		s.mu.Lock()
		if info := s.trees[name]; info != nil {
			info.complete, info.plain = true, t.plain()
		}
		s.mu.Unlock()
	}
	return missing, err
}

// present tells whether a file of the blob's name and size is here.
func (s *Store) present(b sum, size int) bool {
	info, err := os.Lstat(s.blobPath(dirChunks, b))
	return err == nil && info.Size() == int64(size)
}

// Has tells whether the whole artifact is here.
func (s *Store) Has(d pcm.Digest) bool {
	missing, err := s.Missing(d)
	return err == nil && len(missing) == 0
}

// open reads a tree for a user of the store, and notes the use. The session is
// the caller's to end.
func (s *Store) open(d pcm.Digest) (Tree, *session, error) {
	name, err := sumOf(d)
	if err != nil {
		return Tree{}, nil, err
	}
	ses := s.begin(name)
	t, err := s.tree(name)
	if err != nil {
		ses.end(true)
		return Tree{}, nil, s.missing(d, "", err)
	}
	s.touch(name)
	return t, ses, nil
}

// missing makes the error of a read for its user.
func (s *Store) missing(d pcm.Digest, p string, err error) error {
	if !errors.Is(err, errMissing) {
		return err
	}
	what := "artifact " + pcm.Short(d)
	if p != "" {
		what = "part of " + p + " in " + what
	}
	return pcm.Errorf(pcm.NotFound, "%s is not here: it was never fetched whole, was collected, or was damaged on disk; fetch it again from a peer that has it", what)
}

// List tells what is in an artifact, sorted by path. The error has code NotFound
// if it isn't here.
func (s *Store) List(d pcm.Digest) ([]Entry, error) {
	t, ses, err := s.open(d)
	if err != nil {
		return nil, err
	}
	ses.end(true)
	return t.Entries, nil
}

// content reads one file chunk by chunk, each verified.
type content struct {
	s      *Store
	e      Entry
	list   []byte // the list that holds the sums around the last chunk read
	listAt int64
}

// chunk reads the i-th chunk into buf.
func (c *content) chunk(i int64, buf []byte) ([]byte, error) {
	if len(c.e.Inline) > 0 {
		return c.e.Inline, nil
	}
	sums := c.e.Chunks
	at := i
	if len(c.e.Lists) > 0 {
		l := i / listSums
		if c.list == nil || c.listAt != l {
			list, err := c.s.read(dirChunks, sum(c.e.Lists[l*sumSize:]), make([]byte, c.e.listLen(l)))
			if err != nil {
				return nil, err
			}
			if len(list) != c.e.listLen(l) {
				return nil, errMissing
			}
			c.list, c.listAt = list, l
		}
		sums, at = c.list, i%listSums
	}
	data, err := c.s.read(dirChunks, sum(sums[at*sumSize:]), buf[:c.e.chunkLen(i)])
	if err == nil && len(data) != c.e.chunkLen(i) {
		return nil, errMissing // a lie of the manifest: a chunk of another length
	}
	return data, err
}

// copy writes the whole file to w.
func (c *content) copy(ctx context.Context, w io.Writer) error {
	if len(c.e.Inline) > 0 {
		_, err := w.Write(c.e.Inline)
		return err
	}
	bp := chunkBufs.Get().(*[]byte)
	defer chunkBufs.Put(bp)
	for i := range c.e.chunks() {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := c.chunk(i, *bp)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// reader is what ReadFile returns.
type reader struct {
	content
	d    pcm.Digest
	ctx  context.Context // of the ReadFile call, which the reader belongs to
	ses  *session
	at   int64
	rest []byte
	buf  []byte
}

// ReadFile reads a file of an artifact from offset; path is "" for a single
// file. Each chunk is verified before any of it is returned. The error is
// NotFound if artifact or file isn't here, Invalid for folders, links and offsets
// below zero; an offset past the end reads nothing.
func (s *Store) ReadFile(ctx context.Context, d pcm.Digest, p string, offset int64) (io.ReadCloser, error) {
	t, ses, err := s.open(d)
	if err != nil {
		return nil, err
	}
	e, ok := t.find(p)
	switch {
	case !ok:
		err = pcm.Errorf(pcm.NotFound, "artifact %s has no file %.200q", pcm.Short(d), p)
	case e.Kind != File:
		err = pcm.Errorf(pcm.Invalid, "%.200q is a %s, not a file", p, e.Kind)
	case offset < 0:
		err = pcm.Errorf(pcm.Invalid, "offset %d is below zero", offset)
	}
	if err != nil {
		ses.end(true)
		return nil, err
	}
	return &reader{content: content{s: s, e: e}, d: d, ctx: ctx, ses: ses, at: min(offset, e.Size)}, nil
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(r.rest) == 0 {
		if r.at >= r.e.Size {
			return 0, io.EOF
		}
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		if r.buf == nil {
			r.buf = make([]byte, min(ChunkSize, r.e.Size))
		}
		data, err := r.chunk(r.at/ChunkSize, r.buf)
		if err != nil {
			return 0, r.s.missing(r.d, r.e.Path, err)
		}
		r.rest = data[r.at%ChunkSize:]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.at += int64(n)
	return n, nil
}

func (r *reader) Close() error {
	if r.ses != nil {
		r.ses.end(true)
		r.ses = nil
	}
	return nil
}

// Tar writes the artifact as a tar archive, all times zero; a single file is
// named "content". An error may come after part of the archive; its end is
// missing then, so that readers notice.
func (s *Store) Tar(ctx context.Context, d pcm.Digest, w io.Writer) error {
	t, ses, err := s.open(d)
	if err != nil {
		return err
	}
	defer ses.end(true)
	tw := tar.NewWriter(w)
	for _, e := range t.Entries {
		h := &tar.Header{Name: e.Path, Mode: int64(e.Mode()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
		if t.Single {
			h.Name = "content"
		}
		switch e.Kind {
		case Dir:
			h.Typeflag, h.Name = tar.TypeDir, path.Clean(e.Path)+"/"
		case Link:
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Target, 0o777
		default:
			h.Typeflag, h.Size = tar.TypeReg, e.Size
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if e.Kind == File {
			c := content{s: s, e: e}
			if err := c.copy(ctx, tw); err != nil {
				return s.missing(d, e.Path, err)
			}
		}
	}
	return tw.Close()
}

func readBounded(file string, bound int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > bound {
		return nil, errors.New("it is over its bound")
	}
	var b bytes.Buffer
	b.Grow(int(info.Size()) + bytes.MinRead)
	if _, err := b.ReadFrom(io.LimitReader(f, bound)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
