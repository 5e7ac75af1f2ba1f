package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/records"
)

// archive keeps a cell's history: records by number in files that are only appended to,
// documents by key in Badger. It is written behind Apply by one goroutine: Raft's log is what makes an
// entry durable, and what the archive lost in a crash is applied again from there.
//
// Keys in Badger: "t" for tiles (see there); "b" for bases (see there); "d/" and the
// document's key; "m/state" for the archiveState. A document's value begins with the
// Raft index (8 bytes, big-endian) of the entry that wrote it.
//
// Records are in their files before the state that counts them is in Badger. After a
// crash either may be behind: what the state doesn't count is cut off, and the state is
// set back to what the files have.
type archive struct {
	store *store
	files *records.Files
	dir   string
	log   *slog.Logger
	fail  func(error) // called once when the store can't be written any more

	queue    chan *archiveOp
	reserved atomic.Uint64 // ops that were promised, in the order of Apply
	wrote    atomic.Uint64 // ops that were written
	hurry    chan struct{} // holds a token when somebody waits for what is queued
	closing  chan struct{} // closed when the archive is to end
	done     chan struct{} // closed when the writer has ended

	mu      sync.Mutex
	state   archiveState  // as written, but for Applied: entries without records and documents are written with the next that has some
	written chan struct{} // closed and replaced after each write
	broken  error
}

// archiveState says what the archive holds; it is written last of each batch.
type archiveState struct {
	Applied uint64 `cbor:"1,keyasint"`           // Raft index up to which it has been written
	Count   uint64 `cbor:"2,keyasint"`           // number of the next record
	Gap     *gap   `cbor:"3,keyasint,omitempty"` // records that are missing
	Tiled   uint64 `cbor:"4,keyasint,omitempty"` // records whose full tiles are stored: a multiple of 256
	Pruned  uint64 `cbor:"5,keyasint,omitempty"` // records below it are not to be read any more: a multiple of 256
	Left    uint64 `cbor:"6,keyasint,omitempty"` // records below it may have to be erased: a multiple of 256, at most Pruned
	Erased  uint64 `cbor:"7,keyasint,omitempty"` // records below it were
	Bases   []Base `cbor:"8,keyasint,omitempty"` // never changed in place
	Durable uint64 `cbor:"9,keyasint,omitempty"` // records below it are durable, but for those of the gap
	Form    int    `cbor:"10,keyasint,omitempty"`
}

// Forms of an archive.
const (
	formKeys  = iota // its records are in Badger, as releases before files wrote them
	formMoved        // they are in files, and perhaps still in Badger as well
	formFiles
)

// gap is the history from before a snapshot that this replica was given.
// Records below From are here and were checked; those in [From, Next) were
// pulled and are not checked yet.
type gap struct {
	From  uint64   `cbor:"1,keyasint"`
	To    uint64   `cbor:"2,keyasint"` // records below it make up Root
	Root  [32]byte `cbor:"3,keyasint"`
	Index uint64   `cbor:"4,keyasint"` // Raft index of the snapshot: documents up to it are missing too
	Next  uint64   `cbor:"5,keyasint"`
	After string   `cbor:"6,keyasint"` // documents up to this key were pulled
	Docs  bool     `cbor:"7,keyasint"` // all documents were pulled

	Low uint64 `cbor:"8,keyasint,omitempty"` // of records below it others have only the hashes: a multiple of 256
}

// archiveOp is one thing to write. A pull carries the gap that it belongs to,
// as it shall be afterwards.
type archiveOp struct {
	index   uint64 // of the Raft entry
	first   uint64
	records [][]byte
	docs    []pcm.Document

	reserved bool // readers wait for it

	open   *gap // a snapshot was restored: history is missing from here on
	pulled *gap
	pages  []storedDocument // pulled documents
	closed bool             // the gap was checked and is no more
	tiled  *tiling
	base   *pcm.BaseState
	pruned uint64     // not 0: records below it are not to be read any more
	erased uint64     // not 0: records below it are to be erased
	sync   bool       // make all durable before answering
	answer chan error // not nil: has room for one
}

type storedDocument struct {
	Key   string `cbor:"1,keyasint"`
	Index uint64 `cbor:"2,keyasint"`
	Value []byte `cbor:"3,keyasint"`
}

// Bounds of the archive.
const (
	archiveQueue = 64      // entries between Apply and the store; a full queue holds Apply up
	archiveBatch = 1 << 20 // bytes that one write takes together, more or less
	archiveWait  = 10 * time.Second
	archiveDelay = 20 * time.Millisecond // ops wait for more so long, unless somebody waits for them: a write costs the same for one and for many
)

var keyState = []byte("m/state")

func documentKey(key string) []byte { return append([]byte("d/"), key...) }

func openArchive(dir string, idle time.Duration, log *slog.Logger, fail func(error)) (a *archive, err error) {
	damaged := func(cause any) error {
		return pcm.Errorf(pcm.Internal, "the history in %s can't be opened (%v): %s", dir, cause, historyAdvice)
	}
	defer guard(func(cause any) { a, err = nil, damaged(cause) })()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't make %s: %w", dir, err)
	}
	if !hasRoom(dir) {
		return nil, noRoom(dir)
	}
	if err := checkTables(dir); err != nil {
		return nil, damaged(err)
	}
	if err := dropEmpty(dir); err != nil {
		return nil, damaged(err)
	}
	// Small: an idle archive shall cost a few MiB, and its figures are those of
	// one writer with values of some hundred bytes.
	opt := badger.DefaultOptions(dir).
		WithLogger(newRaftLogger(log)).
		WithSyncWrites(false).
		WithMetricsEnabled(false).
		WithDetectConflicts(false).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(2 << 20).
		WithMemTableSize(8 << 20).
		WithNumMemtables(2).
		WithBaseTableSize(4 << 20).
		WithBaseLevelSize(16 << 20).
		WithBlockSize(16 << 10). // every table's index is read when it is opened, and each compaction works block by block
		WithValueThreshold(256 << 10).
		WithValueLogFileSize(64 << 20).
		WithNumCompactors(2).
		WithNumLevelZeroTables(4).
		WithNumLevelZeroTablesStall(8).
		WithNumGoroutines(1).
		WithNumVersionsToKeep(1).
		WithChecksumVerificationMode(options.OnBlockRead)
	store, err := openStore(opt, idle, fail)
	if err != nil {
		return nil, damaged(err)
	}
	a = &archive{
		store: store, dir: dir, log: log, fail: fail, state: archiveState{Form: formFiles},
		queue: make(chan *archiveOp, archiveQueue), hurry: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{}), written: make(chan struct{}),
	}
	err = store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(keyState)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		a.state = archiveState{}
		return item.Value(func(v []byte) error { return pcm.Unmarshal(v, &a.state) })
	})
	if err == nil {
		err = a.openFiles()
	}
	if err != nil {
		store.close()
		if pcm.ErrorCode(err) == pcm.Unavailable {
			return nil, err
		}
		return nil, damaged(err)
	}
	go a.run()
	return a, nil
}

// reserve promises one op of Apply. Readers that come after it wait for it, so it is
// called while Apply still holds readers off; put follows without the lock.
func (a *archive) reserve() { a.reserved.Add(1) }

// put queues a reserved op. It blocks while the queue is full.
func (a *archive) put(op *archiveOp) { a.queue <- op }

// do queues an op and waits for it.
func (a *archive) do(op *archiveOp) error {
	op.answer = make(chan error, 1)
	a.put(op)
	return <-op.answer
}

// flush waits until all that was put is written and durable.
func (a *archive) flush() error { return a.do(&archiveOp{sync: true}) }

// close writes what waits and closes the store. Nobody puts any more.
func (a *archive) close() error {
	close(a.closing)
	close(a.queue)
	<-a.done
	var err error
	if a.broken == nil && hasRoom(a.dir) {
		err = a.files.Sync()
	}
	return errors.Join(err, a.files.Close(), a.store.close())
}

func (a *archive) run() {
	defer close(a.done)
	var batch []*archiveOp
	for op := range a.queue {
		batch = a.gather(append(batch[:0], op))
		err := awaitRoom(a.dir, a.closing, a.log)
		if err == nil && a.opens(batch) {
			err = awaitFiles(a.dir, a.closing, a.log)
		}
		if err == nil {
			err = a.write(batch)
		}
		a.mu.Lock()
		if err != nil && a.broken == nil {
			a.broken = pcm.Errorf(pcm.Internal, "can't write the history in %s: %w", a.dir, err)
			go a.fail(a.broken)
		}
		err = nil
		if a.broken != nil {
			err = a.broken
		}
		for _, op := range batch {
			if op.reserved {
				a.wrote.Add(1)
			}
		}
		close(a.written)
		a.written = make(chan struct{})
		a.mu.Unlock()
		for i, op := range batch {
			if op.answer != nil {
				op.answer <- err
			}
			batch[i] = nil
		}
	}
}

// opens tells whether the store has to be opened to write a batch.
func (a *archive) opens(batch []*archiveOp) bool {
	return !a.store.opened() && slices.ContainsFunc(batch, func(op *archiveOp) bool { return op.sync || op.writes() })
}

// gather takes what else is queued, and what comes within archiveDelay.
func (a *archive) gather(batch []*archiveOp) []*archiveOp {
	waited := batch[0].answer != nil
	size := batch[0].size()
	var late <-chan time.Time
	for size < archiveBatch && len(batch) < archiveQueue {
		var op *archiveOp
		select {
		case op = <-a.queue: // nil: it is closed
			if op == nil {
				return batch
			}
		default:
			if waited || len(batch) > archiveQueue/2 {
				return batch
			}
			if late == nil {
				timer := time.NewTimer(archiveDelay)
				defer timer.Stop()
				late = timer.C
			}
			select {
			case op = <-a.queue:
				if op == nil {
					return batch
				}
			case <-a.hurry:
				waited = true
				continue
			case <-late:
				return batch
			}
		}
		waited = waited || op.answer != nil
		batch, size = append(batch, op), size+op.size()
	}
	return batch
}

func (op *archiveOp) size() int {
	n := 64
	for _, r := range op.records {
		n += len(r)
	}
	for _, d := range op.docs {
		n += len(d.Value)
	}
	return n
}

// write stores a batch of ops; the state goes last, so that a crash in between
// leaves the older state.
func (a *archive) write(batch []*archiveOp) error {
	if a.broken != nil { // only this goroutine writes it
		return a.broken
	}
	a.mu.Lock()
	state := a.state
	a.mu.Unlock()
	if state.Gap != nil {
		g := *state.Gap
		state.Gap = &g
	}
	changed, sync := false, false
	for _, op := range batch {
		sync = sync || op.sync || op.open != nil || op.closed
		changed = changed || op.sync || op.writes()
		if !op.writes() { // don't open the store for the passing of time
			state.Applied = max(state.Applied, op.index)
		}
	}
	if changed {
		if err := a.store.use(func(db *badger.DB) error { return a.writeBatch(db, &state, batch, sync) }); err != nil {
			return err
		}
	}
	a.mu.Lock()
	a.state = state
	a.mu.Unlock()
	return nil
}

// writes tells whether an op changes anything but how far the archive is.
func (op *archiveOp) writes() bool {
	return len(op.records) > 0 || len(op.docs) > 0 || op.open != nil || op.pulled != nil || op.tiled != nil ||
		op.base != nil || op.pruned != 0 || op.erased != 0
}

func (a *archive) writeBatch(db *badger.DB, state *archiveState, batch []*archiveOp, sync bool) error {
	wb := db.NewWriteBatch()
	defer wb.Cancel()
	for i, op := range batch {
		if !op.writes() {
			continue
		}
		if err := a.writeOp(db, wb, state, op, batch[:i]); err != nil {
			return err
		}
	}
	if err := a.files.Write(); err != nil {
		return err
	}
	if sync {
		if err := a.files.Sync(); err != nil {
			return err
		}
		state.Durable = state.Count
	}
	if err := wb.Set(keyState, pcm.MustMarshal(*state)); err != nil {
		return err
	}
	if err := wb.Flush(); err != nil {
		return err
	}
	if sync {
		return db.Sync()
	}
	return nil
}

// writeOp writes an op; those before it in its batch can't be read from the store yet.
func (a *archive) writeOp(db *badger.DB, wb *badger.WriteBatch, state *archiveState, op *archiveOp, before []*archiveOp) error {
	switch {
	case op.tiled != nil && op.pulled == nil:
		return a.writeTiles(wb, state, op.tiled)
	case op.pruned != 0:
		return a.writePruned(wb, state, op.pruned)
	case op.erased != 0:
		return a.erase(state, op.erased)
	case op.base != nil && op.index == 0:
		return a.writeBase(wb, state, op.base)
	case op.open != nil:
		g := *op.open
		if state.Gap != nil { // an older gap that was never filled; what was pulled of it is checked with the rest
			g.From, g.Next, g.Low = state.Gap.From, state.Gap.Next, state.Gap.Low
		} else {
			g.From, g.Next = state.Count, state.Count
		}
		state.Gap, state.Count = &g, g.To
		a.files.Border(g.To)
		return a.trimTiles(wb, state)
	case op.pulled != nil:
		return a.writePulled(db, wb, state, op, before)
	}
	if len(op.records) > 0 && op.first > state.Count {
		return fmt.Errorf("record %d follows %d: records are missing in between", op.first, state.Count)
	}
	if known := state.Count - min(state.Count, op.first); known < uint64(len(op.records)) { // the others are applied again after a restart
		if err := a.files.Append(op.first+known, op.records[known:]); err != nil {
			return err
		}
	}
	if op.base != nil {
		if err := a.writeBase(wb, state, op.base); err != nil {
			return err
		}
	}
	for _, d := range op.docs {
		if err := wb.Set(documentKey(d.Key), documentValue(op.index, d.Value)); err != nil {
			return err
		}
	}
	state.Count = max(state.Count, op.first+uint64(len(op.records)))
	state.Applied = max(state.Applied, op.index)
	return nil
}

// writePulled writes what was fetched of the gap.
func (a *archive) writePulled(db *badger.DB, wb *badger.WriteBatch, state *archiveState, op *archiveOp, before []*archiveOp) error {
	g := state.Gap
	if g == nil || g.To != op.pulled.To || g.Root != op.pulled.Root || len(op.records) > 0 && op.first != g.Next {
		return nil // a newer snapshot came in between
	}
	if op.closed {
		a.files.Border(0)
		return a.closeGap(wb, state)
	}
	if op.tiled != nil {
		if err := a.pulledTiles(wb, state, op.tiled); err != nil {
			return err
		}
	}
	if len(op.records) > 0 {
		// What is left there of an earlier try is not wanted any more: that is durable since
		// the gap was opened, or begun anew.
		if err := a.files.Drop(op.first, g.To); err != nil {
			return err
		}
		if err := a.files.Append(op.first, op.records); err != nil {
			return err
		}
	}
	have, err := documentIndexes(db, op.pages)
	if err != nil {
		return err
	}
	if len(op.pages) > 0 {
		for _, b := range before {
			for _, d := range b.docs {
				have[d.Key] = max(have[d.Key], b.index)
			}
			if b.pulled == nil || b.pulled.To != g.To || b.pulled.Root != g.Root {
				continue // wasn't written either
			}
			for _, d := range b.pages {
				have[d.Key] = max(have[d.Key], d.Index)
			}
		}
	}
	for _, d := range op.pages {
		if have[d.Key] >= d.Index {
			continue
		}
		if err := wb.Set(documentKey(d.Key), documentValue(d.Index, d.Value)); err != nil {
			return err
		}
	}
	if op.pulled.Low > g.Low { // what is here of the records that nobody has any more
		state.Left = max(state.Left, min((g.Next+tileWidth-1)/tileWidth*tileWidth, op.pulled.Low))
	}
	*g = *op.pulled
	return a.trimTiles(wb, state)
}

func documentValue(index uint64, value []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(value)), index), value...)
}

// documentIndexes are the Raft indexes of those of some documents that are stored, by key. They are in
// the order of their keys, as what is stored is: one walk beside the other finds them, where a
// look for each would read tables at random.
func documentIndexes(db *badger.DB, page []storedDocument) (map[string]uint64, error) {
	have := make(map[string]uint64, len(page))
	err := db.View(func(txn *badger.Txn) error {
		opt := badger.DefaultIteratorOptions
		opt.PrefetchValues = false
		opt.Prefix = documentKey("")
		it := txn.NewIterator(opt)
		defer it.Close()
		for i, d := range page {
			key := documentKey(d.Key)
			if i > 0 && bytes.Compare(it.Item().Key(), key) < 0 {
				it.Next() // most of the time it is the next one
			}
			if i == 0 || it.Valid() && bytes.Compare(it.Item().Key(), key) < 0 {
				it.Seek(key)
			}
			if !it.Valid() {
				break
			}
			if !bytes.Equal(it.Item().Key(), key) {
				continue
			}
			err := it.Item().Value(func(v []byte) error {
				if len(v) >= 8 {
					have[d.Key] = binary.BigEndian.Uint64(v)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return have, err
}

// current is the state as written.
func (a *archive) current() archiveState {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state
	if s.Gap != nil {
		g := *s.Gap
		s.Gap = &g
	}
	return s
}

// settle waits until all that was applied before the call can be read.
func (a *archive) settle() error {
	want := a.reserved.Load()
	if a.wrote.Load() >= want {
		return nil
	}
	timer := time.NewTimer(archiveWait)
	defer timer.Stop()
	for {
		select {
		case a.hurry <- struct{}{}:
		default:
		}
		a.mu.Lock()
		ch, broken := a.written, a.broken
		a.mu.Unlock()
		if broken != nil {
			return broken
		}
		if a.wrote.Load() >= want {
			return nil
		}
		select {
		case <-ch:
		case <-timer.C:
			return pcm.Errorf(pcm.Busy, "the history in %s is more than %v behind: its disk is too slow", a.dir, archiveWait)
		}
	}
}
