package consensus

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// naiveTile is a tile by the book: MTH of RFC 6962, section 2.1, over the leaves that each hash covers.
func naiveTile(leaves [][]byte, level int, n uint64, width int) []byte {
	span := uint64(1)
	for range level {
		span *= tileWidth
	}
	var out []byte
	for i := range uint64(width) {
		at := (n*tileWidth + i) * span
		out = append(out, mth(leaves[at:at+span])...)
	}
	return out
}

func mth(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		return rfc6962.DefaultHasher.HashLeaf(leaves[0])
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return rfc6962.DefaultHasher.HashChildren(mth(leaves[:k]), mth(leaves[k:]))
}

// writeRecords appends records to the archive as entries of one record each would.
func writeRecords(t testing.TB, a *archive, first, count int) (leaves [][]byte) {
	t.Helper()
	for n := first; n < first+count; {
		op := &archiveOp{index: uint64(n + 1), first: uint64(n)}
		for ; n < first+count && len(op.records) < 1000; n++ {
			op.records = append(op.records, fmt.Appendf(nil, "record %d", n))
		}
		leaves = append(leaves, op.records...)
		if err := a.do(op); err != nil {
			t.Fatal(err)
		}
	}
	return leaves
}

// Stored tiles, and tiles that are made of records or of tiles below, are the
// same as those of a naive tree, at sizes around each border.
func TestTilesAreThoseOfTheTree(t *testing.T) {
	n := found(t, &book{}, nil)
	var leaves [][]byte
	for _, size := range []int{1, 2, 255, 256, 257, 1000, 65535, 65536, 65537, 66000} {
		leaves = append(leaves, writeRecords(t, n.archive, len(leaves), size-len(leaves))...)
		if size%2 == 0 { // else they are made when they are asked for
			for more := true; more; {
				var err error
				if more, err = n.archive.storeTiles(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if got := n.archive.current().Tiled; got < uint64(size)/tileWidth*tileWidth {
				t.Errorf("at %d records %d are in stored tiles", size, got)
			}
		}
		for level, hashes := 0, size; hashes > 0; level, hashes = level+1, hashes/tileWidth {
			for _, i := range []int{0, (hashes - 1) / tileWidth} {
				width := min(tileWidth, hashes-i*tileWidth)
				for _, w := range []int{1, (width + 1) / 2, width} {
					got, err := n.Tile(t.Context(), level, uint64(i), w)
					if err != nil {
						t.Fatalf("size %d, tile %d/%d.p/%d: %v", size, level, i, w, err)
					}
					if !bytes.Equal(got, naiveTile(leaves, level, uint64(i), w)) {
						t.Errorf("size %d: tile %d/%d.p/%d differs from the naive one", size, level, i, w)
					}
				}
				if width < tileWidth {
					if _, err := n.Tile(t.Context(), level, uint64(i), width+1); pcm.ErrorCode(err) != pcm.NotFound {
						t.Errorf("size %d: tile %d/%d.p/%d beyond the tree: %v", size, level, i, width+1, err)
					}
				}
			}
		}
	}
	for _, bad := range []struct {
		level int
		n     uint64
		width int
	}{{-1, 0, 1}, {8, 0, 1}, {0, 1 << 60, 1}, {6, 1 << 40, 256}, {6, 63, 256}, {0, 0, 0}, {0, 0, 257}} {
		if _, err := n.Tile(t.Context(), bad.level, bad.n, bad.width); pcm.ErrorCode(err) != pcm.NotFound {
			t.Errorf("tile %v: %v", bad, err)
		}
	}
}

// What was made of records that turn out to be false is forgotten with them.
func TestTilesOfFalseRecordsAreDropped(t *testing.T) {
	n := found(t, &book{}, nil)
	writeRecords(t, n.archive, 0, 600)
	if _, err := n.archive.storeTiles(t.Context()); err != nil {
		t.Fatal(err)
	}
	g := gap{From: 600, To: 700, Next: 600}
	if err := n.archive.do(&archiveOp{open: &g}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Tile(t.Context(), 0, 2, 180); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("a tile that is being fetched: %v", err)
	}
	if _, err := n.Tile(t.Context(), 0, 1, 256); err != nil {
		t.Errorf("a tile before the gap: %v", err)
	}
	again := g
	again.From, again.Next = 300, 300
	if err := n.archive.do(&archiveOp{pulled: &again}); err != nil {
		t.Fatal(err)
	}
	if got := n.archive.current().Tiled; got != 256 {
		t.Errorf("%d records are in stored tiles, 256 can be believed", got)
	}
	if _, err := n.Tile(t.Context(), 0, 1, 256); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("a tile of records that are fetched anew: %v", err)
	}
}

// BenchmarkTiles stores full tiles of records of 400 bytes; an operation is a tile of 256 records.
func BenchmarkTiles(b *testing.B) {
	n := found(b, &book{}, func(c *Config) { c.silent = true })
	n.cancel() // the cell stores no tiles by itself
	pad := bytes.Repeat([]byte("x"), 400)
	for i := range b.N {
		op := &archiveOp{index: uint64(i + 1), first: uint64(i * tileWidth)}
		for range tileWidth {
			op.records = append(op.records, pad)
		}
		if err := n.archive.do(op); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for more := true; more; {
		var err error
		if more, err = n.archive.storeTiles(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
