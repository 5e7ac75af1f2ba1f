package consensus

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/frames"
	"github.com/jointcloud/pcm/consensus/records"
)

// dirRecords is where in the history the records are.
const dirRecords = "records"

// openFiles opens the files of the records, and sets the state back to what they have.
func (a *archive) openFiles() (err error) {
	dir := filepath.Join(a.dir, dirRecords)
	if a.state.Form == formKeys {
		if err := a.moveRecords(dir); err != nil {
			return err
		}
	}
	if a.state.Form == formMoved {
		if err := a.dropRecordKeys(); err != nil {
			return err
		}
	}
	spans := a.state.spans()
	if a.files, err = records.Open(dir, spans); err != nil {
		return err
	}
	a.state.setBack(spans)
	if g := a.state.Gap; g != nil {
		a.files.Border(g.To)
	}
	return nil
}

// spans are the records that there are to be: those that are kept, of a gap what was
// pulled, and what was applied since. Of those that were removed, and of the gap from an
// earlier try, some may be left.
func (s *archiveState) spans() []records.Span {
	removed := records.Span{To: s.Pruned, Holes: true}
	g := s.Gap
	if g == nil {
		return []records.Span{removed, {From: s.Pruned, To: s.Count, Durable: s.Durable}}
	}
	kept := records.Span{From: s.Pruned, To: g.From, Durable: g.From}
	since := records.Span{From: g.To, To: s.Count, Durable: s.Durable}
	if g.Low == 0 {
		kept.To = g.Next
		return []records.Span{removed, kept, {From: g.Next, To: g.To, Holes: true}, since}
	}
	low := min(g.Low, g.To)
	pulled := records.Span{From: low, To: max(low, min(g.Next, g.To))}
	return []records.Span{removed, kept, {From: g.From, To: low, Holes: true}, pulled, {From: pulled.To, To: g.To, Holes: true}, since}
}

// setBack takes in what was found of them.
func (s *archiveState) setBack(found []records.Span) {
	s.Count = found[len(found)-1].To
	g := s.Gap
	switch {
	case g == nil:
		s.Tiled = min(s.Tiled, max(s.Count, s.Pruned)/tileWidth*tileWidth)
	case g.Low == 0:
		g.Next = found[1].To
	case g.Next > g.Low:
		g.Next = found[3].To
	}
}

// oldRecordKey is where the record with a number was in Badger.
func oldRecordKey(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{'r'}, n) }

// moveRecords copies to files what Badger has of records. Only when all is durable there does
// the state say so; a crash in between has it begin anew. A release that knows no such
// files doesn't know that state either, and stops.
func (a *archive) moveRecords(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return notMoved(dir, err)
	}
	if a.state.Count > 0 {
		if err := roomToMove(a.dir); err != nil {
			return err
		}
		a.log.Info("records are moved to files, once", "dir", dir, "records", a.state.Count)
	}
	files, err := records.Open(dir, nil)
	if err != nil {
		return notMoved(dir, err)
	}
	defer files.Close()
	if err := a.store.view(func(txn *badger.Txn) error { return copyRecords(txn, files, dir) }); err != nil {
		return err
	}
	if err := files.Sync(); err != nil {
		return notMoved(dir, err)
	}
	a.state.Form, a.state.Durable = formMoved, a.state.Count
	return a.saveState()
}

func notMoved(dir string, err error) error {
	return pcm.Errorf(pcm.Unavailable, "can't move the records to %s: %w: nothing was changed; look at the disk, and start again", dir, err)
}

// copyRecords appends all records that Badger has.
func copyRecords(txn *badger.Txn, files *records.Files, dir string) error {
	opt := badger.DefaultIteratorOptions
	opt.Prefix = []byte{'r'}
	it := txn.NewIterator(opt)
	defer it.Close()
	var first uint64
	var page [][]byte
	flush := func() error {
		if err := files.Append(first, page); err != nil {
			return notMoved(dir, err)
		}
		first, page = first+uint64(len(page)), page[:0]
		return nil
	}
	for it.Rewind(); it.Valid(); it.Next() {
		key := it.Item().Key()
		if len(key) != 9 {
			return fmt.Errorf("key %x is none of a record", key)
		}
		n := binary.BigEndian.Uint64(key[1:])
		if n != first+uint64(len(page)) || len(page) == pageRecords {
			if err := flush(); err != nil {
				return err
			}
			first = n
		}
		v, err := it.Item().ValueCopy(nil)
		if err != nil {
			return fmt.Errorf("record %d can't be read: %w", n, err)
		}
		page = append(page, v)
	}
	return flush()
}

// dropRecordKeys removes from Badger what was moved.
func (a *archive) dropRecordKeys() error {
	if err := a.store.use(func(db *badger.DB) error { return db.DropPrefix([]byte{'r'}) }); err != nil {
		return err
	}
	a.state.Form = formFiles
	return a.saveState()
}

// saveState makes the state durable, before the writer runs.
func (a *archive) saveState() error {
	return a.store.use(func(db *badger.DB) error {
		err := db.Update(func(txn *badger.Txn) error { return txn.Set(keyState, pcm.MustMarshal(a.state)) })
		if err == nil {
			err = db.Sync()
		}
		return err
	})
}

// roomToMove tells whether a folder's disk has room for once more what is in it.
func roomToMove(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return nil // the write itself will tell
	}
	need := int64(minRoom)
	tables, err := frames.Glob(dir, "*.sst")
	if err != nil {
		return err
	}
	for _, path := range tables {
		if info, err := os.Stat(path); err == nil {
			need += info.Size()
		}
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return pcm.Errorf(pcm.Unavailable, "this release moves the records in %s to files, which needs %s once; its disk has %s free: make room and start again, nothing was changed", dir, pcm.Bytes(need), pcm.Bytes(free))
	}
	return nil
}
