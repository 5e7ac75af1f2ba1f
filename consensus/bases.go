package consensus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/dgraph-io/badger/v4"

	"github.com/jointcloud/pcm"
)

// Base is a state from which the records can be verified without those before.
// Each replica keeps the states of those that are not superseded: under "b", the
// number of records before it and the portion (8 and 4 bytes, big-endian).
type Base struct {
	Size  uint64 `cbor:"1,keyasint"` // records before it
	Stamp int64  `cbor:"2,keyasint"` // log time when it was made, ms
	Bytes int    `cbor:"3,keyasint"` // of the encoded state
}

// Bounds of bases.
const (
	maxBases    = 16       // beyond, the oldest but one is dropped: less often records can be removed then
	basePortion = 64 << 10 // bytes under one key
)

func baseKey(size uint64, portion int) []byte {
	key := binary.BigEndian.AppendUint64([]byte{'b'}, size)
	return binary.BigEndian.AppendUint32(key, uint32(portion))
}

// Bases are those whose states are here, oldest first.
func (c *Cell) Bases() []Base {
	c.archive.settle() // on an error they are those of before
	return slices.Clone(c.archive.current().Bases)
}

// Pruned is the number of records whose content was removed here, from the first
// one on: a multiple of 256. Their hashes are here.
func (c *Cell) Pruned() uint64 { return c.archive.current().Pruned }

// BaseState is the encoded state of a base. Error: NotFound.
func (c *Cell) BaseState(size uint64) ([]byte, error) {
	if err := c.archive.settle(); err != nil {
		return nil, err
	}
	state := c.archive.current()
	i := slices.IndexFunc(state.Bases, func(b Base) bool { return b.Size == size })
	if i < 0 {
		return nil, pcm.Errorf(pcm.NotFound, "there is no base of %d records here", size)
	}
	return c.archive.baseState(state.Bases[i])
}

func (a *archive) baseState(b Base) ([]byte, error) {
	out := make([]byte, 0, b.Bytes)
	err := a.store.view(func(txn *badger.Txn) error {
		for i := 0; len(out) < b.Bytes; i++ {
			item, err := txn.Get(baseKey(b.Size, i))
			if err != nil {
				return err
			}
			if err := item.Value(func(v []byte) error { out = append(out, v...); return nil }); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || len(out) != b.Bytes {
		return nil, pcm.Errorf(pcm.Internal, "the state of the base of %d records in %s can't be read: %v", b.Size, a.dir, err)
	}
	return out, nil
}

// writeBase is the writer's part.
func (a *archive) writeBase(wb *badger.WriteBatch, state *archiveState, b *pcm.BaseState) error {
	if b.Size < state.Pruned || slices.ContainsFunc(state.Bases, func(o Base) bool { return o.Size == b.Size }) {
		return nil // applied again after a restart
	}
	i := 0
	for part := range slices.Chunk(b.State, basePortion) {
		if err := wb.Set(baseKey(b.Size, i), part); err != nil {
			return err
		}
		i++
	}
	bases := append(slices.Clone(state.Bases), Base{b.Size, b.Stamp, len(b.State)})
	slices.SortFunc(bases, func(x, y Base) int { return int(int64(x.Size) - int64(y.Size)) })
	state.Bases = bases
	if len(bases) > maxBases {
		return a.dropBases(wb, state, func(o Base) bool { return o.Size == bases[1].Size })
	}
	return nil
}

func (a *archive) dropBases(wb *badger.WriteBatch, state *archiveState, which func(Base) bool) error {
	var left []Base
	for _, b := range state.Bases {
		if !which(b) {
			left = append(left, b)
			continue
		}
		for i := 0; i*basePortion < b.Bytes; i++ {
			if err := wb.Delete(baseKey(b.Size, i)); err != nil {
				return err
			}
		}
	}
	state.Bases = left
	return nil
}

// checkBase holds the state of a base against the record that tells of it.
func (a *archive) checkBase(size uint64, encoded []byte) (*pcm.BaseState, error) {
	b := &pcm.BaseState{State: encoded}
	err := a.records(size, size+1, func(_ uint64, record []byte) error {
		based, ok := pcm.BaseOf(record)
		if sum := sha256.Sum256(encoded); !ok || !bytes.Equal(based.Digest, sum[:]) {
			return pcm.Errorf(pcm.Invalid, "the state of the base of %d records is not the one that the ledger tells of", size)
		}
		var r pcm.Record
		b.Based = based
		err := pcm.Unmarshal(record, &r)
		b.Stamp = r.Stamp
		return err
	})
	return b, err
}
