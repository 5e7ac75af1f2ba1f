package consensus

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// A snapshot file is all that a cell is: its hot state at one entry of the log,
// and the history up to it. It begins with savedMagic; frames follow, each its
// length and its CBOR: the SavedInfo, the state in portions, the tiles of records
// that were removed, the records in order, the documents, the bases each with its state
// in portions, and at last the SHA-256 of everything before.
const savedMagic = "pcm cell snapshot file 1\n"

// SavedInfo says what a snapshot file is of.
type SavedInfo struct {
	Version int          `cbor:"1,keyasint"`
	Mesh    pcm.MeshID   `cbor:"2,keyasint"`
	Cell    pcm.CellID   `cbor:"3,keyasint"`
	Peer    pcm.PeerID   `cbor:"4,keyasint"` // that wrote it
	Index   uint64       `cbor:"5,keyasint"` // of the last entry in it
	Term    uint64       `cbor:"6,keyasint"`
	Records uint64       `cbor:"7,keyasint"`
	Root    [32]byte     `cbor:"8,keyasint"` // of the records' Merkle tree
	Voters  []pcm.PeerID `cbor:"9,keyasint"`
	At      int64        `cbor:"10,keyasint"` // wall clock, ms
	State   int          `cbor:"11,keyasint"` // bytes

	Pruned uint64 `cbor:"12,keyasint,omitempty"` // of records below it the file has only the hashes: a multiple of 256
}

// Versions of snapshot files: the second one has bases, and may lack records.
const (
	savedPlain = 1
	savedBased = 2
)

type savedFrame struct {
	Info      *SavedInfo       `cbor:"1,keyasint,omitempty"`
	State     []byte           `cbor:"2,keyasint,omitempty"`
	Records   [][]byte         `cbor:"3,keyasint,omitempty"`
	Documents []storedDocument `cbor:"4,keyasint,omitempty"`
	Sum       []byte           `cbor:"5,keyasint,omitempty"`
	Tiles     [][]byte         `cbor:"6,keyasint,omitempty"` // of level 0
	Base      *Base            `cbor:"7,keyasint,omitempty"`
	Part      []byte           `cbor:"8,keyasint,omitempty"` // of the state of the last Base
}

// savedPart is a page of a snapshot file: one of its fields is set, or both of the last two.
type savedPart struct {
	tiles     [][]byte
	records   [][]byte
	documents []storedDocument
	base      *Base
	state     []byte // of the base, whole
}

// RootOf tells how many records belong to an encoded state of the machine, and
// their Merkle root.
type RootOf func(state []byte) (records uint64, root [32]byte, err error)

// Save writes a snapshot file. This peer's history must be complete.
func (c *Cell) Save(ctx context.Context, w io.Writer, of RootOf) (SavedInfo, error) {
	c.pruning.Lock()
	defer c.pruning.Unlock()
	info := SavedInfo{Version: savedPlain, Mesh: c.cfg.Mesh, Cell: c.cfg.Cell, Peer: c.cfg.Self, Voters: c.voters(), At: c.cfg.Now().UnixMilli()}
	if c.archive.current().Gap != nil {
		return info, pcm.Errorf(pcm.Unavailable, "the history of this peer is not complete yet: save the snapshot on another one, or wait")
	}
	meta, data, err := c.takeSnapshot(ctx)
	if err != nil {
		return info, err
	}
	_, state, err := c.fsm.openSnapshot(data)
	if err != nil {
		return info, err
	}
	info.Index, info.Term, info.State = meta.Index, meta.Term, len(state)
	if info.Records, info.Root, err = of(state); err != nil {
		return info, err
	}
	var bases []Base
	for _, b := range c.Bases() {
		if b.Size < info.Records {
			bases, info.Version = append(bases, b), savedBased
		}
	}
	info.Pruned = c.Pruned()
	sum := sha256.New()
	buf := bufio.NewWriterSize(w, 256<<10)
	out := bufio.NewWriterSize(io.MultiWriter(buf, sum), 64<<10)
	if _, err := out.WriteString(savedMagic); err != nil {
		return info, err
	}
	if err := writeFrame(out, savedFrame{Info: &info}); err != nil {
		return info, err
	}
	for part := range slices.Chunk(state, pageBytes) {
		if err := writeFrame(out, savedFrame{State: part}); err != nil {
			return info, err
		}
	}
	if err := c.saveHistory(ctx, out, info.Pruned, info.Records); err != nil {
		return info, err
	}
	for _, b := range bases {
		state, err := c.archive.baseState(b)
		if err == nil {
			err = writeFrame(out, savedFrame{Base: &b})
		}
		for part := range slices.Chunk(state, pageBytes) {
			if err == nil {
				err = writeFrame(out, savedFrame{Part: part})
			}
		}
		if err != nil {
			return info, err
		}
	}
	if err := out.Flush(); err != nil {
		return info, err
	}
	if err := writeFrame(buf, savedFrame{Sum: sum.Sum(nil)}); err != nil {
		return info, err
	}
	return info, buf.Flush()
}

// takeSnapshot has Raft take one now, or returns the last if nothing came since.
func (c *Cell) takeSnapshot(ctx context.Context) (*raft.SnapshotMeta, []byte, error) {
	f := c.raft.Snapshot()
	err := wait(ctx, f)
	var meta *raft.SnapshotMeta
	var rc io.ReadCloser
	switch {
	case errors.Is(err, raft.ErrNothingNewToSnapshot):
		var list []*raft.SnapshotMeta
		if list, err = c.snaps.List(); err == nil && len(list) == 0 {
			return nil, nil, pcm.Errorf(pcm.Unavailable, "the cell has nothing yet that could be saved")
		}
		if err == nil {
			meta, rc, err = c.snaps.Open(list[0].ID)
		}
	case err == nil:
		meta, rc, err = f.Open()
	}
	if err != nil {
		return nil, nil, pcm.Errorf(pcm.Unavailable, "a snapshot can't be taken now: %w", err)
	}
	defer rc.Close()
	data, err := io.ReadAll(io.LimitReader(rc, maxSnapshot+1))
	return meta, data, err
}

func (c *Cell) saveHistory(ctx context.Context, out *bufio.Writer, pruned, records uint64) error {
	if err := c.archive.settle(); err != nil {
		return err
	}
	for n := uint64(0); n < pruned/tileWidth; n++ {
		tile, err := c.archive.tile(ctx, 0, n, tileWidth)
		if err == nil {
			err = writeFrame(out, savedFrame{Tiles: [][]byte{tile}})
		}
		if err != nil {
			return err
		}
	}
	for from := pruned; from < records; {
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
		}
		var page [][]byte
		size := 0
		err := c.Records(from, min(records, from+pageRecords), func(_ uint64, r []byte) error {
			if size += len(r); len(page) > 0 && size > pageBytes {
				return errPageFull
			}
			page = append(page, bytes.Clone(r))
			return nil
		})
		if err != nil && !errors.Is(err, errPageFull) {
			return err
		}
		from += uint64(len(page))
		if err := writeFrame(out, savedFrame{Records: page}); err != nil {
			return err
		}
	}
	for q, more := (DocumentQuery{Limit: 1000}), true; more; {
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
		}
		var page []storedDocument
		var err error
		if page, more, err = c.archive.documents(q, pageBytes); err != nil {
			return err
		}
		if len(page) == 0 {
			return nil
		}
		q.After = page[len(page)-1].Key
		if err := writeFrame(out, savedFrame{Documents: page}); err != nil {
			return err
		}
	}
	return nil
}

// hashed reads and hashes what is read.
type hashed struct {
	r   *bufio.Reader
	sum hash.Hash
}

func (h *hashed) Read(b []byte) (int, error) {
	n, err := h.r.Read(b)
	h.sum.Write(b[:n])
	return n, err
}

// ReadSaved reads a snapshot file to its end and checks its sum.
func ReadSaved(r io.Reader) (SavedInfo, []byte, error) {
	return readSaved(r, func(SavedInfo, savedPart) error { return nil })
}

// readSaved does, and gives each page to each in order, with what the file is of.
func readSaved(r io.Reader, each func(SavedInfo, savedPart) error) (info SavedInfo, state []byte, err error) {
	damaged := func(cause any) error {
		return pcm.Errorf(pcm.Invalid, "the snapshot file is damaged, cut short, or none: %v", cause)
	}
	h := &hashed{bufio.NewReaderSize(r, 256<<10), sha256.New()}
	magic := make([]byte, len(savedMagic))
	if _, err := io.ReadFull(h, magic); err != nil || string(magic) != savedMagic {
		return info, nil, damaged("it does not begin like one")
	}
	records, pruned := uint64(0), uint64(0)
	var base *Base
	var part []byte
	for n := 0; ; n++ {
		want := h.sum.Sum(nil)
		var f savedFrame
		if err := readFrame(h, &f); err != nil {
			return info, nil, damaged(err)
		}
		switch {
		case n == 0:
			if f.Info == nil || f.Info.Version < savedPlain || f.Info.Version > savedBased || f.Info.Cell == "" || f.Info.State < 0 || f.Info.State > maxSnapshot ||
				f.Info.Pruned > f.Info.Records || f.Info.Pruned%tileWidth != 0 {
				return info, nil, damaged("it does not say what it is of, or is of a newer release")
			}
			info = *f.Info
			records = info.Pruned
		case len(f.State) > 0:
			if state = append(state, f.State...); len(state) > info.State {
				return info, nil, damaged("its state is longer than it says")
			}
		case len(f.Records) > 0 || len(f.Documents) > 0:
			if err := each(info, savedPart{records: f.Records, documents: f.Documents}); err != nil {
				return info, nil, err
			}
			records += uint64(len(f.Records))
		case len(f.Tiles) > 0:
			if err := each(info, savedPart{tiles: f.Tiles}); err != nil {
				return info, nil, err
			}
			pruned += uint64(len(f.Tiles)) * tileWidth
		case f.Base != nil:
			if base, part = f.Base, nil; base.Bytes < 1 || base.Bytes > maxSnapshot {
				return info, nil, damaged("it has a base of no good size")
			}
		case len(f.Part) > 0 && base != nil:
			if part = append(part, f.Part...); len(part) < base.Bytes {
				continue
			}
			if err := each(info, savedPart{base: base, state: part}); err != nil {
				return info, nil, err
			}
			base = nil
		case len(f.Sum) > 0:
			switch {
			case !bytes.Equal(f.Sum, want):
				return info, nil, damaged("its checksum does not match")
			case len(state) != info.State || records != info.Records || pruned != info.Pruned || base != nil:
				return info, nil, damaged("parts of it are missing")
			}
			return info, state, nil
		default:
			return info, nil, damaged("a part of it is unknown")
		}
	}
}

// Rebuild makes a cell's folder from a snapshot file, with self as the one voter.
// The folder must not be there. What the cell did after the snapshot is lost; that
// it was rebuilt is to be told in its ledger (see [Cell.Recovered]).
func Rebuild(dir string, mesh pcm.MeshID, cell pcm.CellID, self pcm.PeerID, reason string, r io.Reader, of RootOf, log *slog.Logger) (info SavedInfo, err error) {
	if _, err := os.Stat(dir); err == nil {
		return info, pcm.Errorf(pcm.Conflict, "%s is there already: move it away first", dir)
	}
	tmp := dir + ".rebuilding"
	if err := os.RemoveAll(tmp); err != nil {
		return info, pcm.Errorf(pcm.Internal, "can't remove %s, left from before: %w", tmp, err)
	}
	defer os.RemoveAll(tmp)
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return info, pcm.Errorf(pcm.Internal, "can't make %s: %w", tmp, err)
	}
	info, state, err := rebuildHistory(filepath.Join(tmp, dirHistory), r, of, log)
	if err != nil {
		return info, err
	}
	if info.Mesh != mesh || info.Cell != cell {
		return info, pcm.Errorf(pcm.Conflict, "the snapshot is of %s of %s, the data folder belongs to %s of %s", info.Cell, info.Mesh, cell, mesh)
	}
	if err := rebuildRaft(tmp, info, self, state, log); err != nil {
		return info, err
	}
	lost := slices.DeleteFunc(slices.Clone(info.Voters), func(id pcm.PeerID) bool { return id == self })
	for name, v := range map[string]any{
		fileIdentity:  identity{1, mesh, cell, self},
		fileRecovered: Recovery{Lost: lost, Reason: reason, Way: ByFile, At: time.Now().UnixMilli(), Index: info.Index, Term: info.Term},
	} {
		if err := writeFile(filepath.Join(tmp, name), pcm.MustMarshal(v)); err != nil {
			return info, err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		return info, pcm.Errorf(pcm.Internal, "can't make %s: %w", dir, err)
	}
	return info, nil
}

// rebuildHistory stores the history and checks it against the state, as a replica
// does that fetches it from others.
func rebuildHistory(dir string, r io.Reader, of RootOf, log *slog.Logger) (info SavedInfo, state []byte, err error) {
	a, err := openArchive(dir, storeIdle, log, func(error) {})
	if err != nil {
		return info, nil, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	ctx := context.Background()
	var g *gap
	info, state, err = readSaved(r, func(info SavedInfo, part savedPart) error {
		if g == nil {
			g = &gap{To: info.Records, Root: info.Root, Index: info.Index, Low: info.Pruned} // nothing of it is here yet
			if err := a.do(&archiveOp{open: g}); err != nil {
				return err
			}
		}
		if part.base != nil {
			base, err := a.checkBase(part.base.Size, part.state)
			if err != nil {
				return err
			}
			return a.do(&archiveOp{base: base})
		}
		op := &archiveOp{first: g.Next, records: part.records, pages: part.documents}
		if len(part.tiles) > 0 {
			if op.tiled, err = a.newTiling(ctx, g.Next/tileWidth, part.tiles); err != nil {
				return err
			}
		}
		next := *g
		next.Next += uint64(len(part.records)) + uint64(len(part.tiles))*tileWidth
		op.pulled, g = &next, &next
		return a.do(op)
	})
	if err != nil {
		return info, nil, err
	}
	records, root, err := of(state)
	if err != nil {
		return info, nil, err
	}
	have, err := a.root(ctx, info.Pruned, merkle.NewEmptyRange(info.Records))
	if err != nil {
		return info, nil, err
	}
	if records != info.Records || root != info.Root || have != root {
		return info, nil, pcm.Errorf(pcm.Invalid, "the snapshot's records (root %x) are not those of its state (%d records, root %x)", have, records, root)
	}
	if g != nil {
		if err := a.do(&archiveOp{pulled: g, closed: true}); err != nil {
			return info, nil, err
		}
	}
	return info, state, a.do(&archiveOp{index: info.Index, sync: true})
}

// rebuildRaft writes Raft's snapshot, with this peer as the one voter, and its term.
func rebuildRaft(dir string, info SavedInfo, self pcm.PeerID, state []byte, log *slog.Logger) error {
	snaps, err := newSnapshots(dir, 1, newRaftLogger(log))
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't use %s: %w", dir, err)
	}
	addr, trans := raft.NewInmemTransport(raft.ServerAddress(self))
	defer trans.Close()
	sink, err := snaps.Create(1, info.Index, info.Term, raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(self), Address: addr}}}, info.Index, trans)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write a snapshot in %s: %w", dir, err)
	}
	head := binary.BigEndian.AppendUint64([]byte(snapshotMagic), info.Index)
	head = binary.BigEndian.AppendUint16(head, uint16(len(info.Cell)))
	for _, part := range [][]byte{head, []byte(info.Cell), state} {
		if _, err := sink.Write(part); err != nil {
			sink.Cancel()
			return pcm.Errorf(pcm.Internal, "can't write a snapshot in %s: %w", dir, err)
		}
	}
	if err := sink.Close(); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write a snapshot in %s: %w", dir, err)
	}
	bolt, err := openLog(filepath.Join(dir, fileLog))
	if err != nil {
		return err
	}
	err = bolt.SetUint64(keyCurrentTerm, info.Term+1)
	return errors.Join(err, bolt.Close())
}
