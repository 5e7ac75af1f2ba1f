package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/frames"
)

// archiveIn opens the archive in a folder.
func archiveIn(t testing.TB, dir string) *archive {
	t.Helper()
	a, err := openArchive(dir, storeIdle, slog.New(slog.DiscardHandler), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// copyOf is a folder as a kill leaves it.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "history")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// mixed has the records of one folder and all else of another.
func mixed(t testing.TB, files, rest string) string {
	t.Helper()
	dir := copyOf(t, rest)
	err := os.RemoveAll(filepath.Join(dir, dirRecords))
	if err == nil {
		err = os.CopyFS(filepath.Join(dir, dirRecords), os.DirFS(filepath.Join(files, dirRecords)))
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// holds checks that an archive has some records and no others.
func (a *archive) holds(t testing.TB, from uint64, want [][]byte) {
	t.Helper()
	var got [][]byte
	if err := a.records(from, from+uint64(len(want)), func(_ uint64, r []byte) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("the records from %d on are not what was written", from)
	}
	if err := a.records(from+uint64(len(want)), from+uint64(len(want))+1, func(uint64, []byte) error { return nil }); pcm.ErrorCode(err) != pcm.Internal {
		t.Fatalf("a record behind the last one: %v", err)
	}
}

// When the power goes, the files of records or Badger may be behind the other. The
// archive goes on from where both are, if it is not behind what was durable.
func TestEitherStoreIsBehind(t *testing.T) {
	live := filepath.Join(t.TempDir(), "history")
	a := archiveIn(t, live)
	leaves := writeRecords(t, a, 0, 600)
	if _, err := a.storeTiles(t.Context()); err != nil {
		t.Fatal(err)
	}
	early := copyOf(t, live)
	leaves = append(leaves, writeRecords(t, a, 600, 300)...)
	if _, err := a.storeTiles(t.Context()); err != nil {
		t.Fatal(err)
	}
	late := copyOf(t, live)
	if err := a.flush(); err != nil {
		t.Fatal(err)
	}
	flushed := copyOf(t, live)
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"the files": mixed(t, early, late), "Badger": mixed(t, late, early)} {
		a := archiveIn(t, dir)
		if got := a.current(); got.Count != 600 || got.Tiled > 512 {
			t.Errorf("%s are behind: %+v", name, got)
		}
		a.holds(t, 0, leaves[:600])
		writeRecords(t, a, 550, 350) // entries are applied again
		a.holds(t, 0, leaves)
		if _, err := a.storeTiles(t.Context()); err != nil {
			t.Error(err)
		}
		for n := range uint64(3) {
			if got, err := a.tile(t.Context(), 0, n, tileWidth); err != nil || !bytes.Equal(got, naiveTile(leaves, 0, n, tileWidth)) {
				t.Errorf("%s were behind: tile %d: %v", name, n, err)
			}
		}
		if err := a.close(); err != nil {
			t.Error(err)
		}
		a = archiveIn(t, dir)
		if got := a.current().Count; got != 900 {
			t.Errorf("%d records after another start", got)
		}
		a.close()
	}
	dir := mixed(t, late, flushed)
	if err := os.Truncate(largest(t, filepath.Join(dir, dirRecords, "*.rec")), 3000); err != nil {
		t.Fatal(err)
	}
	_, err := openArchive(dir, storeIdle, slog.New(slog.DiscardHandler), nil)
	var damaged *frames.DamagedError
	if pcm.ErrorCode(err) != pcm.Internal || !errors.As(err, &damaged) && !strings.Contains(err.Error(), ".rec is damaged") || !strings.Contains(err.Error(), "move that folder away") {
		t.Errorf("durable records are gone: %v", err)
	}
}

// While a gap is filled, records are appended at two places; a kill at any moment leaves what
// was pulled from its beginning, and what was applied. A second try takes nothing from the first.
func TestPullBesideApply(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "history")
	a := archiveIn(t, dir)
	leaves := writeRecords(t, a, 0, 100)
	for n := 100; n < 2000; n++ {
		leaves = append(leaves, fmt.Appendf(nil, "record %d", n))
	}
	const to = 1000
	if err := a.do(&archiveOp{open: &gap{To: to, Root: [32]byte{1}, Index: 5_000}}); err != nil {
		t.Fatal(err)
	}
	pull := func(a *archive, list [][]byte) {
		t.Helper()
		g := *a.current().Gap
		first := g.Next
		g.Next += uint64(len(list))
		if err := a.do(&archiveOp{pulled: &g, first: first, records: list}); err != nil {
			t.Fatal(err)
		}
	}
	apply := func(a *archive, n uint64) {
		t.Helper()
		first := a.current().Count
		if err := a.do(&archiveOp{index: first + 5_000, first: first, records: leaves[first : first+n]}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(a *archive) {
		t.Helper()
		state := a.current()
		a.holds(t, 0, leaves[:state.Gap.Next])
		a.holds(t, to, leaves[to:state.Count])
	}
	for i := range uint64(6) {
		pull(a, leaves[100+i*100:200+i*100])
		apply(a, 50+i)
		check(a)
		before := a.current()
		b := archiveIn(t, copyOf(t, dir))
		if got := b.current(); got.Count != before.Count || *got.Gap != *before.Gap {
			t.Fatalf("%+v after a kill, was %+v", got, before)
		}
		check(b)
		pull(b, leaves[before.Gap.Next:to])
		apply(b, 10)
		check2 := b.current()
		b.holds(t, 0, leaves[:check2.Count])
		if err := b.close(); err != nil {
			t.Fatal(err)
		}
	}
	// What was pulled was false: all is pulled anew, also across a kill in between.
	again := *a.current().Gap
	again.From, again.Next = 0, 0
	if err := a.do(&archiveOp{pulled: &again, sync: true}); err != nil {
		t.Fatal(err)
	}
	pull(a, leaves[:50])
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	a = archiveIn(t, dir)
	defer a.close()
	if got := a.current(); got.Gap.Next != 50 {
		t.Fatalf("%+v", got.Gap)
	}
	pull(a, leaves[50:120])
	check(a)
	pull(a, leaves[120:to])
	g := *a.current().Gap
	if err := a.do(&archiveOp{pulled: &g, closed: true}); err != nil {
		t.Fatal(err)
	}
	state := a.current()
	if state.Gap != nil || state.Durable != state.Count {
		t.Fatalf("%+v", state)
	}
	a.holds(t, 0, leaves[:state.Count])
}

// keysOf is how many records a folder has in Badger.
func keysOf(t testing.TB, a *archive) (n int) {
	t.Helper()
	err := a.store.view(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{'r'}})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A folder of a release that kept records in Badger has them in files when it is opened,
// also if a kill came at any moment of the move.
func TestMoveRecords(t *testing.T) {
	var leaves [][]byte
	for n := range 9000 {
		leaves = append(leaves, fmt.Appendf(nil, "record %d", n))
	}
	for name, state := range map[string]archiveState{
		"whole":   {Applied: 9000, Count: 9000},
		"a gap":   {Applied: 9000, Count: 9000, Gap: &gap{From: 100, Next: 5500, To: 6000, Index: 10}},
		"removed": {Applied: 9000, Count: 9000, Tiled: 8960, Pruned: 512, Left: 512, Erased: 256},
		"none":    {Applied: 10},
	} {
		t.Run(name, func(t *testing.T) {
			old := filepath.Join(t.TempDir(), "history")
			a := archiveIn(t, old)
			has := func(n uint64) bool {
				return n >= state.Erased && n < state.Count && (state.Gap == nil || n < state.Gap.Next || n >= state.Gap.To)
			}
			keys := 0
			err := a.store.use(func(db *badger.DB) error {
				wb := db.NewWriteBatch()
				defer wb.Cancel()
				for n := range uint64(len(leaves)) {
					if !has(n) {
						continue
					}
					keys++
					if err := wb.Set(oldRecordKey(n), leaves[n]); err != nil {
						return err
					}
				}
				return errors.Join(wb.Set(keyState, pcm.MustMarshal(state)), wb.Flush())
			})
			if err := errors.Join(err, a.close(), os.RemoveAll(filepath.Join(old, dirRecords))); err != nil {
				t.Fatal(err)
			}
			moved := func(dir string) {
				t.Helper()
				a := archiveIn(t, dir)
				defer a.close()
				got := a.current()
				if n := keysOf(t, a); n > 0 || got.Form != formFiles {
					t.Errorf("%d records are in Badger, form %d", n, got.Form)
				}
				if got.Count != state.Count || got.Pruned != state.Pruned || got.Gap == nil != (state.Gap == nil) {
					t.Errorf("%+v, was %+v", got, state)
				}
				for n := range uint64(len(leaves)) {
					err := a.records(n, n+1, func(_ uint64, r []byte) error {
						if !bytes.Equal(r, leaves[n]) {
							t.Errorf("record %d is another one", n)
						}
						return nil
					})
					if (err == nil) != has(n) {
						t.Fatalf("record %d: %v", n, err)
					}
				}
			}
			// A kill while records were copied.
			cut := copyOf(t, old)
			if err := os.MkdirAll(filepath.Join(cut, dirRecords), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"0000000000000000.rec", "0000000000000400.rec.new"} {
				if err := os.WriteFile(filepath.Join(cut, dirRecords, name), []byte("interrupted"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			moved(cut)
			moved(cut) // only once
			// A kill before they were dropped from Badger.
			a = archiveIn(t, copyOf(t, old))
			late := copyOf(t, a.dir)
			if err := a.close(); err != nil {
				t.Fatal(err)
			}
			late = mixed(t, late, old)
			opt := badger.DefaultOptions(late).WithLogger(nil)
			db, err := badger.Open(opt)
			if err != nil {
				t.Fatal(err)
			}
			half := state
			half.Form, half.Durable = formMoved, state.Count
			err = db.Update(func(txn *badger.Txn) error { return txn.Set(keyState, pcm.MustMarshal(half)) })
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
			moved(late)
		})
	}
}

// Records that a cell's folder once had and has no more are told of when it is opened.
func TestDamagedRecords(t *testing.T) {
	n := found(t, &book{}, nil)
	for range 100 {
		n.propose(t, n.cfg.Self)
	}
	n.closeSnapshotted(t)
	file := func(t *testing.T, dir string) string {
		return largest(t, filepath.Join(dir, dirHistory, dirRecords, "*.rec"))
	}
	for name, harm := range map[string]func(t *testing.T, dir string) error{
		"cut short": func(t *testing.T, dir string) error { return os.Truncate(file(t, dir), 5000) },
		"gone":      func(t *testing.T, dir string) error { return os.RemoveAll(filepath.Join(dir, dirHistory, dirRecords)) },
		"bits":      func(t *testing.T, dir string) error { flip(t, file(t, dir), 5000); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(n.dir)); err != nil {
				t.Fatal(err)
			}
			if err := harm(t, dir); err != nil {
				t.Fatal(err)
			}
			cfg := n.cfg
			cfg.Dir, cfg.Machine = dir, newTally()
			cell, err := Open(cfg)
			if err == nil {
				cell.Close(t.Context())
				t.Fatal("opened without an error")
			}
			for _, s := range []string{filepath.Join(dir, dirHistory, dirRecords), "is damaged", "move that folder away"} {
				if pcm.ErrorCode(err) != pcm.Internal || !strings.Contains(err.Error(), s) {
					t.Errorf("the error doesn't say %q: %v", s, err)
				}
			}
		})
	}
}
