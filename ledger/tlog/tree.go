package tlog

import (
	"context"
	"errors"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"github.com/jointcloud/pcm"
)

// Reader brings the tiles of a log, as its server gives them: nothing of it is
// believed. The bytes are Width hashes of a tile, or a bundle of Width entries.
type Reader func(ctx context.Context, t Tile) ([]byte, error)

// Tree is a log of a known head. What it returns has been checked against the
// head's root.
type Tree struct {
	head Checkpoint
	read Reader
}

// NewTree reads a log whose head is known.
func NewTree(head Checkpoint, read Reader) *Tree { return &Tree{head: head, read: read} }

// Head is the head that the tree was made with.
func (t *Tree) Head() Checkpoint { return t.head }

// hashes reads authenticated hashes.
func (t *Tree) hashes(ctx context.Context) xtlog.HashReader {
	tree := xtlog.Tree{N: int64(t.head.Size), Hash: xtlog.Hash(t.head.Root)}
	return xtlog.TileHashReader(tree, &tileReader{ctx: ctx, read: t.read})
}

// tileReader reads tiles for golang.org/x/mod/sumdb/tlog, whose tiles of height
// 8 are those of C2SP but for their paths. It lives for one call.
type tileReader struct {
	ctx  context.Context
	read Reader
}

func (r *tileReader) Height() int                      { return Height }
func (r *tileReader) SaveTiles([]xtlog.Tile, [][]byte) {}

func (r *tileReader) ReadTiles(tiles []xtlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, x := range tiles {
		data, err := r.read(r.ctx, Tile{Level: x.L, Index: uint64(x.N), Width: x.W})
		if err != nil {
			return nil, err
		}
		out[i] = data
	}
	return out, nil
}

// readError makes an error of the tree one of ours: whoever reads the log has
// errors of its own already; what is left are tiles that don't fit the head.
func (t *Tree) readError(err error) error {
	var own *pcm.Error
	if err == nil || errors.As(err, &own) {
		return err
	}
	return pcm.Errorf(pcm.Invalid, "the tiles are not those of the checkpoint of %d entries: %w", t.head.Size, err)
}

// Root is the root of the first size entries: what the head of the log was then.
func (t *Tree) Root(ctx context.Context, size uint64) (root [HashSize]byte, err error) {
	switch {
	case size > t.head.Size:
		return root, pcm.Errorf(pcm.NotFound, "the log has %d entries, not %d", t.head.Size, size)
	case size == t.head.Size:
		return t.head.Root, nil
	case size == 0:
		return EmptyRoot, nil
	}
	h, err := xtlog.TreeHash(int64(size), t.hashes(ctx))
	return [HashSize]byte(h), t.readError(err)
}

// EmptyRoot is the root of no entries.
var EmptyRoot = func() [HashSize]byte {
	h, _ := xtlog.TreeHash(0, nil) // reads nothing
	return [HashSize]byte(h)
}()

// Extends tells whether the log of an older head is the beginning of this one.
// An error says that it could not be found out.
func (t *Tree) Extends(ctx context.Context, older Checkpoint) (bool, error) {
	if older.Origin != t.head.Origin {
		return false, pcm.Errorf(pcm.Invalid, "the checkpoints are of two logs, %s and %s", older.Origin, t.head.Origin)
	}
	root, err := t.Root(ctx, older.Size)
	return err == nil && root == older.Root, err
}

// Prove makes the proof that an entry is in the log.
func (t *Tree) Prove(ctx context.Context, index uint64) ([][HashSize]byte, error) {
	if index >= t.head.Size {
		return nil, pcm.Errorf(pcm.NotFound, "entry %d is not in the log of %d entries", index, t.head.Size)
	}
	proof, err := xtlog.ProveRecord(int64(t.head.Size), int64(index), t.hashes(ctx))
	if err != nil {
		return nil, t.readError(err)
	}
	out := make([][HashSize]byte, len(proof))
	for i, h := range proof {
		out[i] = h
	}
	return out, nil
}

// Entries reads a bundle: the entries from index Width × n on, as many as the
// log has of it. They are checked against the head.
func (t *Tree) Entries(ctx context.Context, n uint64) ([][]byte, error) {
	at := Tile{Entries: true, Index: n}
	at.Width = at.WidthIn(t.head.Size)
	if at.Width == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "bundle %d is beyond the log's %d entries", n, t.head.Size)
	}
	data, err := t.read(ctx, at)
	if err != nil {
		return nil, err
	}
	entries, err := SplitBundle(data, at.Width)
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%s: %w", at.Path(), err)
	}
	indexes := make([]int64, at.Width)
	for i := range indexes {
		indexes[i] = xtlog.StoredHashIndex(0, int64(n*Width)+int64(i))
	}
	hashes, err := t.hashes(ctx).ReadHashes(indexes)
	if err != nil {
		return nil, t.readError(err)
	}
	for i, e := range entries {
		if xtlog.RecordHash(e) != hashes[i] {
			return nil, pcm.Errorf(pcm.Invalid, "entry %d is not the one that the checkpoint covers", n*Width+uint64(i))
		}
	}
	return entries, nil
}
