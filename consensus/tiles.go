package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// Tiles are the Merkle tree over a cell's records, as https://c2sp.org/tlog-tiles
// cuts it: 256 hashes of one level, one above each other 8 levels apart. Full
// ones are kept in the archive once they are known, under "t", the level and the
// index (8 bytes, big-endian); a tile that is not there is made of the records.
const (
	tileWidth  = 256
	tileHeight = 8
	tileLevels = 7 // a cell never has 2^56 records
	hashSize   = 32
	tileBytes  = tileWidth * hashSize // of a full one
)

func tileKey(level int, n uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{'t', byte(level)}, n)
}

// Tile returns the first width hashes, 32 bytes each, of a tile of the tree over
// the records that were applied here: hash i of tile n of a level covers the 256^level
// records from (256n + i) × 256^level on. Errors: NotFound beyond the tree,
// Unavailable while its records are being fetched.
func (c *Cell) Tile(ctx context.Context, level int, n uint64, width int) ([]byte, error) {
	if level < 0 || level >= tileLevels || width < 1 || width > tileWidth || n > 1<<(62-tileHeight*(level+1)) {
		return nil, pcm.Errorf(pcm.NotFound, "%s has no tile %d/%d of width %d", pcm.Short(c.cfg.Cell), level, n, width)
	}
	if err := c.archive.settle(); err != nil {
		return nil, err
	}
	state := c.archive.current()
	span := uint64(1) << (tileHeight * level)
	if end := (n*tileWidth + uint64(width)) * span; end > state.Count {
		return nil, pcm.Errorf(pcm.NotFound, "tile %d/%d of width %d is beyond the %d records of %s", level, n, width, state.Count, pcm.Short(c.cfg.Cell))
	} else if g := state.Gap; g != nil && n*tileWidth*span < g.To && end > g.From {
		return nil, pcm.Errorf(pcm.Unavailable, "records %d to %d of %s are being fetched from other peers: retry later or ask another peer", g.From, g.To, pcm.Short(c.cfg.Cell))
	}
	return c.archive.tile(ctx, level, n, width)
}

// tile reads or makes a tile whose records are all here.
func (a *archive) tile(ctx context.Context, level int, n uint64, width int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "interrupted: %w", err)
	}
	var data []byte
	err := a.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(tileKey(level, n))
		if err == nil {
			data, err = item.ValueCopy(nil)
		}
		return err
	})
	switch {
	case err == nil && len(data) == tileBytes:
		return data[:width*hashSize], nil
	case err != nil && !errors.Is(err, badger.ErrKeyNotFound):
		return nil, pcm.Errorf(pcm.Internal, "tile %d/%d in %s can't be read: %w", level, n, a.dir, err)
	}
	data = data[:0]
	if level == 0 {
		err := a.records(n*tileWidth, n*tileWidth+uint64(width), func(_ uint64, r []byte) error {
			data = append(data, rfc6962.DefaultHasher.HashLeaf(r)...)
			return nil
		})
		return data, err
	}
	for i := range uint64(width) {
		below, err := a.tile(ctx, level-1, n*tileWidth+i, tileWidth)
		if err != nil {
			return nil, err
		}
		data = append(data, tileRoot(below)...)
	}
	return data, nil
}

// tileRoot is the root over a full tile.
func tileRoot(tile []byte) []byte {
	level := bytes.Clone(tile)
	for n := len(level) / hashSize; n > 1; n /= 2 {
		for i := range n / 2 {
			copy(level[i*hashSize:], rfc6962.DefaultHasher.HashChildren(level[2*i*hashSize:(2*i+1)*hashSize], level[(2*i+1)*hashSize:(2*i+2)*hashSize]))
		}
	}
	return level[:hashSize]
}

// compare calls f with the records of a full tile from a number on, and whether each is the one of its hash.
func (a *archive) compare(ctx context.Context, n, from uint64, f func(i uint64, record []byte, same bool) error) error {
	tile, err := a.tile(ctx, 0, n, tileWidth)
	if err != nil {
		return err
	}
	return a.records(max(from, n*tileWidth), (n+1)*tileWidth, func(i uint64, r []byte) error {
		at := i % tileWidth * hashSize
		return f(i, r, bytes.Equal(rfc6962.DefaultHasher.HashLeaf(r), tile[at:at+hashSize]))
	})
}

// SyncHistory makes the records that were applied before the call durable: a
// promise about them may be given.
func (c *Cell) SyncHistory() error {
	if !c.enter() {
		return errClosing
	}
	defer c.wg.Done()
	return c.archive.flush()
}

// enter keeps the cell open until wg.Done is called; false if it is closing.
func (c *Cell) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.wg.Add(1)
	return true
}

// Head is the number of records that were applied here, and the hash of their tree.
// All of them are committed: a signature under it can't be contradicted by another history.
func (c *Cell) Head() (size uint64, root [32]byte) {
	c.View(func() { size, root = c.fsm.machine.Root() })
	return size, root
}

// Voters are the peers that vote, as far as this peer knows.
func (c *Cell) Voters() []pcm.PeerID { return c.voters() }

// tilePause is how long records gather before it is looked whether tiles are full.
const tilePause = time.Second

// tileBatch bounds the tiles that are stored together, before the next look at what else is to do.
const tileBatch = 16

// keepTiles stores full tiles as the records grow. Those of a gap follow when it is closed.
func (c *Cell) keepTiles() {
	for c.ctx.Err() == nil {
		more := c.archive.nextWrite()
		c.storeAllTiles()
		select { // an idle cell wakes nobody
		case <-more:
		case <-c.ctx.Done():
			return
		}
		timer := time.NewTimer(tilePause)
		select {
		case <-timer.C:
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

func (c *Cell) storeAllTiles() {
	for c.ctx.Err() == nil {
		more, err := c.archive.storeTiles(c.ctx)
		if err != nil && c.ctx.Err() == nil {
			c.log.Warn("can't store tiles of the ledger", "cell", c.cfg.Cell, "error", err)
		}
		if !more || err != nil {
			return
		}
	}
}

// nextWrite is closed when something was written.
func (a *archive) nextWrite() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.written
}

// storeTiles stores the next tiles that are full; false if there is none left.
func (a *archive) storeTiles(ctx context.Context) (more bool, err error) {
	state := a.current()
	end := state.Count
	if g := state.Gap; g != nil {
		end = min(end, g.From)
	}
	from := state.Tiled / tileWidth
	full := min(int(end/tileWidth-from), tileBatch)
	if full <= 0 {
		return false, nil // also where tiles were fetched instead of records
	}
	hashes := make([]byte, 0, full*tileBytes)
	err = a.records(state.Tiled, state.Tiled+uint64(full*tileWidth), func(_ uint64, r []byte) error {
		hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(r)...)
		return ctx.Err()
	})
	if err != nil {
		return false, err
	}
	op, err := a.newTiling(ctx, from, slices.Collect(slices.Chunk(hashes, tileBytes)))
	if err != nil {
		return false, err
	}
	return true, a.do(&archiveOp{tiled: op})
}

// newTiling is of full tiles of level 0, the first of which has a number, and of those
// above that are full with them.
func (a *archive) newTiling(ctx context.Context, from uint64, page [][]byte) (*tiling, error) {
	t := &tiling{from: from, full: len(page)}
	for i, leaves := range page {
		if len(leaves) != tileBytes {
			return nil, pcm.Errorf(pcm.Invalid, "a tile has %d bytes, not %d", len(leaves), tileBytes)
		}
		at := from + uint64(i)
		t.tiles = append(t.tiles, storedTile{0, at, leaves})
		for level := 1; at%tileWidth == tileWidth-1; level++ { // the last one below: the tile above is full as well
			at /= tileWidth
			data, err := t.above(ctx, a, level, at)
			if err != nil {
				return nil, err
			}
			t.tiles = append(t.tiles, storedTile{level, at, data})
		}
	}
	return t, nil
}

// tiling is some full tiles to be stored. All tiles of level 0 below from are.
type tiling struct {
	from  uint64
	full  int // of level 0
	tiles []storedTile
}

type storedTile struct {
	level int
	n     uint64
	data  []byte
}

// above makes a full tile of those below it, also of those that wait with it.
func (t *tiling) above(ctx context.Context, a *archive, level int, n uint64) ([]byte, error) {
	var data []byte
	for i := n * tileWidth; i < (n+1)*tileWidth; i++ {
		var below []byte
		for _, s := range t.tiles {
			if s.level == level-1 && s.n == i {
				below = s.data
			}
		}
		if below == nil {
			var err error
			if below, err = a.tile(ctx, level-1, i, tileWidth); err != nil {
				return nil, err
			}
		}
		data = append(data, tileRoot(below)...)
	}
	return data, nil
}

// writeTiles is the writer's part.
func (a *archive) writeTiles(wb *badger.WriteBatch, state *archiveState, t *tiling) error {
	end := state.Count
	if state.Gap != nil {
		end = min(end, state.Gap.From)
	}
	if t.from*tileWidth != state.Tiled || (t.from+uint64(t.full))*tileWidth > end {
		return nil // its records are no longer taken for good
	}
	return t.write(wb, state)
}

func (t *tiling) write(wb *badger.WriteBatch, state *archiveState) error {
	for _, s := range t.tiles {
		if err := wb.Set(tileKey(s.level, s.n), s.data); err != nil {
			return err
		}
	}
	state.Tiled = max(state.Tiled, (t.from+uint64(t.full))*tileWidth)
	return nil
}

// pulledTiles stores tiles that were fetched in place of records that nobody has any more.
func (a *archive) pulledTiles(wb *badger.WriteBatch, state *archiveState, t *tiling) error {
	if t.from*tileWidth > state.Tiled {
		return errors.New("the tiles that were fetched don't follow on those that are here") // they were trimmed meanwhile
	}
	return t.write(wb, state)
}

// trimTiles drops the tiles whose records turned out to be wrong and are fetched anew.
func (a *archive) trimTiles(wb *badger.WriteBatch, state *archiveState) error {
	if state.Gap == nil {
		return nil
	}
	good := max(state.Gap.From, min(state.Gap.Next, state.Gap.Low))
	if good >= state.Tiled {
		return nil
	}
	keep := good / tileWidth * tileWidth
	for level, span := 0, uint64(tileWidth); level < tileLevels && span <= state.Tiled; level, span = level+1, span*tileWidth {
		for n := keep / span; n < state.Tiled/span; n++ {
			if err := wb.Delete(tileKey(level, n)); err != nil {
				return err
			}
		}
	}
	state.Tiled = keep
	return nil
}
