package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// exported is an archive in memory.
type exported struct {
	mu      sync.Mutex
	bundles map[uint64][][]byte
	fail    func(bundle uint64) error
}

func (x *exported) export(first uint64, bundles [][][]byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bundles == nil {
		x.bundles = map[uint64][][]byte{}
	}
	for i, b := range bundles {
		n := first + uint64(i)
		if x.fail != nil {
			if err := x.fail(n); err != nil {
				return err
			}
		}
		x.bundles[n] = b
	}
	return nil
}

// grow proposes commands until the cell has some records, the last of them a base, if there is to be one.
func (n *node) grow(t testing.TB, records int, based bool) {
	t.Helper()
	for n.count() < records {
		var batch []pcm.Signed
		for range min(200, records-n.count()) {
			_, s := n.command(n.cfg.Self)
			batch = append(batch, s)
		}
		if based && n.count()+len(batch) == records {
			_, batch[len(batch)-1] = n.command("base")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := n.Propose(ctx, batch...)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// all reads what a node has of the records, and what it has exported of the others.
func (x *exported) all(t testing.TB, n *node) (list [][]byte) {
	t.Helper()
	for i := uint64(0); i < n.Pruned()/tileWidth; i++ {
		x.mu.Lock()
		list = append(list, x.bundles[i]...)
		x.mu.Unlock()
	}
	if err := n.Records(n.Pruned(), n.RecordCount(), func(_ uint64, r []byte) error { list = append(list, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return list
}

func (n *node) complete() bool {
	ok, _, _ := n.History()
	return ok
}

// proven checks that a node has all tiles of the records, and at level 0 the hashes of those.
func (n *node) proven(t testing.TB, leaves [][]byte) {
	t.Helper()
	for level, hashes := 0, len(leaves); hashes > 0; level, hashes = level+1, hashes/tileWidth {
		for i := 0; i*tileWidth < hashes; i++ {
			w := min(tileWidth, hashes-i*tileWidth)
			got, err := n.Tile(t.Context(), level, uint64(i), w)
			if err != nil || !bytes.Equal(got, naiveTile(leaves, level, uint64(i), w)) {
				t.Fatalf("tile %d/%d: %v, or it differs", level, i, err)
			}
		}
	}
}

// forge has a node's store hold another value.
func (n *node) forge(t testing.TB, key, value []byte) {
	t.Helper()
	err := n.archive.store.use(func(db *badger.DB) error {
		return db.Update(func(txn *badger.Txn) error { return txn.Set(key, value) })
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forgeRecord has a node's files hold another record.
func (n *node) forgeRecord(t testing.TB, at uint64, record []byte) {
	t.Helper()
	f := n.archive.files
	list := [][]byte{record}
	err := n.archive.records(at+1, n.RecordCount(), func(_ uint64, r []byte) error { list = append(list, r); return nil })
	if err := errors.Join(err, f.Drop(at, math.MaxUint64), f.Append(at, list), f.Write()); err != nil {
		t.Fatal(err)
	}
}

// spoilRecord flips a bit of a record in a node's files.
func (n *node) spoilRecord(t testing.TB, at uint64) {
	t.Helper()
	record, err := n.Record(at)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(n.dir, dirHistory, dirRecords, "*.rec"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(data, record); i >= 0 {
			flip(t, path, int64(i))
			return
		}
	}
	t.Fatalf("record %d is in no file", at)
}

func removed(t testing.TB, n *node, size uint64) {
	t.Helper()
	if got := n.Pruned(); got != size {
		t.Fatalf("%d records are removed, want %d", got, size)
	}
	for _, at := range []uint64{0, size / 2, size - 1} {
		if _, err := n.Record(at); pcm.ErrorCode(err) != pcm.Unavailable {
			t.Errorf("record %d, removed: %v", at, err)
		}
		if err := n.archive.records(at, at+1, func(uint64, []byte) error { return nil }); err == nil {
			t.Errorf("record %d is still on disk", at)
		}
	}
	if _, err := n.Record(size); err != nil {
		t.Errorf("record %d, kept: %v", size, err)
	}
}

// What is removed was exported; proofs stay; a replica that comes later is complete
// without it, votes, and removes in its turn; so is a cell that is made of a snapshot file.
func TestRemovedRecordsLeaveAWholeHistory(t *testing.T) {
	b := &book{}
	a := found(t, b, snapshotOften)
	var x exported
	a.grow(t, 301, true)
	if n, err := a.Prune(t.Context(), 256, x.export); err != nil || n != 256 {
		t.Fatal(n, err)
	}
	removed(t, a, 256)
	if _, err := a.Prune(t.Context(), 512, x.export); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("without a base: %v", err)
	}
	a.grow(t, 900, true)
	a.grow(t, 1100, true)
	a.grow(t, 1150, false)
	if n, err := a.Prune(t.Context(), 899, x.export); err != nil || n != 512 {
		t.Fatal(n, err)
	}
	removed(t, a, 768)
	if n, err := a.Prune(t.Context(), 899, x.export); err != nil || n != 0 {
		t.Errorf("%d were removed again: %v", n, err)
	}
	leaves := x.all(t, a)
	if len(leaves) != 1150 {
		t.Fatalf("%d records are here or exported", len(leaves))
	}
	a.proven(t, leaves)
	bases := a.Bases()
	if len(bases) != 2 || bases[0].Size != 899 || bases[1].Size != 1099 {
		t.Fatalf("bases: %+v", bases)
	}
	state, err := a.BaseState(899)
	if err != nil || !bytes.Equal(state, bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 3, 0x83}, len(state)/8)) || len(state) <= basePortion {
		t.Errorf("the state of a base: %d bytes, %v", len(state), err)
	}
	if _, err := a.BaseState(300); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("a base that is superseded: %v", err)
	}

	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	var rest []*node
	for range 2 {
		rest = append(rest, a.admit(t, snapshotOften))
	}
	a.await("three voters", func() bool { return len(a.voters()) == 3 })
	for _, r := range rest {
		r.await("the history", func() bool { return r.complete() && r.RecordCount() == 1150 })
		removed(t, r, 768)
		r.proven(t, leaves)
		if got := r.Bases(); !slices.Equal(got, bases) {
			t.Errorf("bases of a replica: %+v, want %+v", got, bases)
		}
		if got, err := r.BaseState(899); err != nil || !bytes.Equal(got, state) {
			t.Errorf("the state of a base at a replica: %v", err)
		}
	}
	r := rest[0]
	if n, err := r.Prune(t.Context(), 1099, x.export); err != nil || n != 256 {
		t.Fatal(n, err)
	}
	removed(t, r, 1024)
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.await("the records", func() bool { return r.RecordCount() == 1150 })
	removed(t, r, 1024) // also after entries were applied again
	r.proven(t, leaves)

	var file bytes.Buffer
	info, err := r.Save(t.Context(), &file, rootOf)
	if err != nil || info.Pruned != 1024 || info.Records != 1150 {
		t.Fatalf("%+v, %v", info, err)
	}
	whole := file.Bytes()
	for at := 0; at < len(whole); at += max(1, len(whole)/97) {
		if _, _, err := ReadSaved(bytes.NewReader(whole[:at])); err == nil {
			t.Fatalf("a file that ends at %d of %d is read", at, len(whole))
		}
	}
	again := (&book{}).prepare(t, nil)
	again.dir = filepath.Join(t.TempDir(), "cell")
	again.cfg.Dir = again.dir
	if _, err := Rebuild(again.dir, testMesh, testCell, again.cfg.Self, "a test", bytes.NewReader(whole), rootOf, quiet()); err != nil {
		t.Fatal(err)
	}
	again.open()
	again.await("leadership", func() bool { return again.leads() > 0 })
	removed(t, again, 1024)
	again.proven(t, leaves)
	if got := again.Bases(); len(got) != 1 || got[0] != bases[1] {
		t.Errorf("bases after a rebuild: %+v", got)
	}
}

// A step of the removal that fails, or that a crash cuts off, is taken again: nothing
// goes that was not exported before.
func TestRemovalIsCutOff(t *testing.T) {
	n := found(t, &book{}, nil)
	n.grow(t, 400, true)
	n.grow(t, 5000, true)
	full := errors.New("no space left on device")
	x := exported{fail: func(b uint64) error {
		if b == 15 {
			return full
		}
		return nil
	}}
	if got, err := n.Prune(t.Context(), 4999, x.export); !errors.Is(err, full) || got != 0 || n.Pruned() != 0 {
		t.Fatalf("%d removed: %v", got, err)
	}
	if err := n.Records(0, 5000, func(uint64, []byte) error { return nil }); err != nil {
		t.Fatalf("after an export that failed: %v", err)
	}
	x.fail = nil
	if got, err := n.Prune(t.Context(), 16*256, x.export); err != nil || got != 16*256 {
		t.Fatalf("%d removed: %v", got, err)
	}
	removed(t, n, 16*256)
	// A crash between the two steps: no longer to be read, and still there.
	if err := n.archive.do(&archiveOp{pruned: 18 * 256, sync: true}); err != nil {
		t.Fatal(err)
	}
	if got := n.archive.current(); got.Pruned != 18*256 || got.Erased != 16*256 {
		t.Fatalf("%+v", got)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.open()
	n.await("the records", func() bool { return n.RecordCount() == 5000 })
	if got, err := n.Prune(t.Context(), 0, x.export); err != nil || got != 2*256 {
		t.Fatalf("%d removed: %v", got, err)
	}
	removed(t, n, 18*256)
	n.proven(t, x.all(t, n))
	if len(x.bundles) != 18 {
		t.Errorf("%d bundles were exported", len(x.bundles))
	}
	// What doesn't match its hash is not removed.
	n.spoilRecord(t, 18*256+3)
	if got, err := n.Prune(t.Context(), 4999, x.export); pcm.ErrorCode(err) != pcm.Internal || got != 0 {
		t.Errorf("%d removed of a damaged history: %v", got, err)
	}
}

// A replica that was away while others removed records takes their hashes, also in
// place of what it has removed or not itself, and believes none of a liar's.
func TestReplicaOfBeforeTheRemoval(t *testing.T) {
	nodes := three(t, snapshotOften)
	lead := leaderOf(t, nodes...)
	rest := others(nodes, lead)
	away, liar := rest[0], rest[1]
	lead.grow(t, 700, false)
	away.await("the records", func() bool { return away.RecordCount() == 700 })
	if err := away.close(); err != nil {
		t.Fatal(err)
	}
	lead.grow(t, 1700, true)
	lead.grow(t, 1800, false)
	var x exported
	liar.await("the records", func() bool { return liar.RecordCount() == 1800 })
	for _, n := range []*node{lead, liar} {
		if _, err := n.Prune(t.Context(), 1699, x.export); err != nil {
			t.Fatal(err)
		}
	}
	if err := lead.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	// The leader, who is asked first, lies about a tile.
	forged, err := lead.archive.newTiling(t.Context(), 4, [][]byte{bytes.Repeat([]byte{7}, tileBytes)})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range forged.tiles {
		lead.forge(t, tileKey(s.level, s.n), s.data)
	}
	away.connect()
	away.open()
	away.await("the history", func() bool { return away.complete() && away.RecordCount() == 1800 })
	leaves := x.all(t, liar)
	removedHere := away.Pruned()
	if removedHere != 1536 {
		t.Fatalf("%d records are removed", removedHere)
	}
	away.proven(t, leaves)
	// What it had of them goes only after it is exported, in whole bundles.
	var own exported
	if _, err := away.Prune(t.Context(), 0, own.export); err != nil {
		t.Fatal(err)
	}
	removed(t, away, 1536)
	for i := range uint64(2) {
		if !slices.EqualFunc(own.bundles[i], x.bundles[i], bytes.Equal) {
			t.Errorf("bundle %d of what was left was not exported", i)
		}
	}
}

// A base whose state is not the one that the ledger tells of is not taken.
func TestFalseBaseIsNotBelieved(t *testing.T) {
	b := &book{}
	a := found(t, b, snapshotOften)
	a.grow(t, 400, true)
	var x exported
	if _, err := a.Prune(t.Context(), 399, x.export); err != nil {
		t.Fatal(err)
	}
	a.forge(t, baseKey(399, 1), bytes.Repeat([]byte("x"), basePortion))
	if err := a.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	r := a.admit(t, snapshotOften)
	r.await("the records", func() bool { g := r.archive.current().Gap; return g != nil && g.Docs })
	err := r.history.fillFrom(a.cfg.Self)
	if pcm.ErrorCode(err) != pcm.Invalid || r.complete() {
		t.Errorf("complete: %v, %v", r.complete(), err)
	}
}

// The disk gets its room back.
func TestRemovalShrinksTheFolder(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.silent = true })
	size := func() (sum int64) {
		filepath.WalkDir(filepath.Join(n.dir, dirHistory), func(path string, d fs.DirEntry, err error) error {
			var st unix.Stat_t
			if err == nil && filepath.Ext(path) == ".rec" && unix.Stat(path, &st) == nil {
				sum += st.Blocks * 512
			}
			return nil
		})
		return sum
	}
	pad := bytes.Repeat([]byte("x"), 8<<10)
	const bundles = 40 // of 2 MiB
	for i := range bundles {
		op := &archiveOp{index: uint64(i + 1), first: uint64(i * tileWidth)}
		for j := range tileWidth {
			op.records = append(op.records, fmt.Appendf(pad[:len(pad):len(pad)], "%d", i*tileWidth+j))
		}
		if err := n.archive.do(op); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.archive.do(&archiveOp{base: &pcm.BaseState{Based: pcm.Based{Size: 35 * tileWidth}, State: []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	before := size()
	var x exported
	if _, err := n.Prune(t.Context(), 35*tileWidth, x.export); err != nil {
		t.Fatal(err)
	}
	if after := size(); after > before/2 {
		t.Errorf("the files have %d bytes, before %d", after, before)
	} else {
		t.Logf("%d bytes of files, before %d", after, before)
	}
}

// A peer that has removed less than the one asked before is asked for all records that it
// has: none is left out because its hash was fetched already.
func TestLessRemovedThanBefore(t *testing.T) {
	state := archiveState{Count: 20_000, Tiled: 5120}
	g := gap{From: 1000, To: 20_000, Next: 5120, Low: 10_240} // 5120 hashes came from a peer that has removed 10,240
	for _, pruned := range []uint64{0, 2560, 10_240, 12_800} {
		low, err := lowFor(g, state, pruned)
		if err != nil {
			t.Fatal(err)
		}
		next := g.lowered(low, state.Tiled)
		if again, err := lowFor(next, state, pruned); err != nil || again != low {
			t.Errorf("with %d removed, hashes are fetched up to %d, then up to %d: %v", pruned, low, again, err)
		}
		if from := max(next.Low, next.From); next.Next > from {
			t.Errorf("with %d removed, the records from %d on are needed and fetched from %d on", pruned, from, next.Next)
		}
	}
}
