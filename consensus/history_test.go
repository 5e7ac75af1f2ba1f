package consensus

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/wal"
)

// snapshotOften makes Raft keep so little of its log that a newcomer needs a snapshot.
func snapshotOften(c *Config) {
	tune := c.tune
	c.tune = func(rc *raft.Config) {
		tune(rc)
		rc.TrailingLogs = 1
	}
}

func fillAndSnapshot(t *testing.T, n *node, records int) {
	t.Helper()
	for range records {
		n.propose(t, n.cfg.Self)
	}
	if err := n.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
}

func TestNewReplicaPullsAndChecksHistory(t *testing.T) {
	b := &book{}
	a := found(t, b, snapshotOften)
	fillAndSnapshot(t, a, 50)
	a.propose(t, a.cfg.Self)
	r := a.admit(t, snapshotOften)
	r.await("the whole history", func() bool {
		complete, _, _ := r.History()
		return complete && r.RecordCount() == 51
	})
	want := a.ids(t)
	if got := r.ids(t); !slices.Equal(got, want) {
		t.Errorf("records of the replica: %v", got)
	}
	for _, id := range want {
		if _, err := r.Document("cmd/" + id.String()); err != nil {
			t.Error(err)
		}
	}
	// The history survives a restart of the replica, from its own snapshot.
	r.closeSnapshotted(t)
	r.open()
	if complete, _, _ := r.History(); !complete {
		t.Error("the history is incomplete after a restart")
	}
	if got := r.ids(t); !slices.Equal(got, want) {
		t.Errorf("records after a restart: %v", got)
	}
}

// One peer serves false records: they don't match the root, and are fetched
// anew from another.
func TestFalseHistoryIsNotBelieved(t *testing.T) {
	nodes := three(t, snapshotOften)
	lead := leaderOf(t, nodes...)
	fillAndSnapshot(t, lead, 30)
	lead.forgeRecord(t, 7, []byte("forged"))
	r := lead.admit(t, snapshotOften)
	r.await("the true history", func() bool {
		complete, _, _ := r.History()
		return complete && r.RecordCount() == 30
	})
	rec, err := r.Record(7)
	if err != nil || string(rec) == "forged" {
		t.Errorf("record 7 is %q, %v", rec, err)
	}
	if got, want := r.ids(t), nodes[1].ids(t); nodes[1] != lead && !slices.Equal(got, want) {
		t.Errorf("records %v, want %v", got, want)
	}
}

// A replica whose history is being fetched says so, and is not made a voter.
func TestIncompleteReplicaIsNoVoter(t *testing.T) {
	b := &book{}
	a := found(t, b, snapshotOften)
	fillAndSnapshot(t, a, 20)
	// The founder's own history has lost a record: nobody can have it complete.
	a.spoilRecord(t, 3)
	var rest []*node
	for range 2 {
		rest = append(rest, a.admit(t, snapshotOften))
	}
	for _, r := range rest {
		r.await("the snapshot", func() bool { _, _, to := r.History(); return r.count() == 20 && to > 0 })
		if complete, from, to := r.History(); complete || from > 3 || to != 20 {
			t.Errorf("history: complete %v, missing %d to %d", complete, from, to)
		}
		if _, err := r.Record(5); pcm.ErrorCode(err) != pcm.Unavailable {
			t.Errorf("a record of the gap: %v", err)
		}
	}
	rounds := func() uint64 {
		a.members.mu.Lock()
		defer a.members.mu.Unlock()
		return a.members.rounds
	}
	from := rounds()
	a.await("several rounds", func() bool { a.members.wake(); return rounds() > from+5 })
	if v := a.voters(); len(v) != 1 {
		t.Errorf("voters: %v", v)
	}
}

func TestLostHistoryIsFetchedAgain(t *testing.T) {
	nodes := three(t, snapshotOften)
	lead := leaderOf(t, nodes...)
	for range 20 {
		lead.propose(t, lead.cfg.Self)
	}
	var r *node
	for _, n := range nodes {
		if n != lead {
			r = n
		}
	}
	r.await("the records", func() bool { return r.count() == 20 })
	r.closeSnapshotted(t)
	if err := os.RemoveAll(filepath.Join(r.dir, dirHistory)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.await("the history", func() bool {
		complete, _, _ := r.History()
		return complete && r.RecordCount() == 20
	})
	if got := r.ids(t); !slices.Equal(got, lead.ids(t)) {
		t.Errorf("records: %v", got)
	}
}

func TestDamagedFiles(t *testing.T) {
	made := map[string]*node{} // a folder by the store of its log
	for _, store := range []string{StoreWAL, StoreBolt} {
		n := found(t, &book{}, func(c *Config) { c.LogStore = store })
		for range 300 {
			n.propose(t, n.cfg.Self)
		}
		if err := n.close(); err != nil {
			t.Fatal(err)
		}
		made[store] = n
	}
	segment := func(t *testing.T, dir string) string { return largest(t, filepath.Join(dir, dirLog, "*.wal")) }
	log := func(dir string) string { return filepath.Join(dir, fileLog) }
	table := func(t *testing.T, dir string) string { return largest(t, filepath.Join(dir, dirHistory, "*.sst")) }
	for name, c := range map[string]struct {
		harm func(t *testing.T, dir string)
		says []string // the error names the file and what to do
	}{
		"bolt cut short": {func(t *testing.T, dir string) {
			if err := os.Truncate(log(dir), 20_000); err != nil {
				t.Fatal(err)
			}
		}, []string{fileLog, "cut short", "backup"}},
		"bolt cut to one byte": {func(t *testing.T, dir string) {
			if err := os.Truncate(log(dir), 1); err != nil {
				t.Fatal(err)
			}
		}, []string{fileLog, "damaged", "backup"}},
		"bolt meta pages": {func(t *testing.T, dir string) {
			flip(t, log(dir), 16)
			flip(t, log(dir), int64(os.Getpagesize())+16)
		}, []string{fileLog, "meta", "backup"}},
		"bolt pages": {func(t *testing.T, dir string) {
			info, err := os.Stat(log(dir))
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(2 * os.Getpagesize()); at+64 <= info.Size(); at += int64(os.Getpagesize()) {
				flip(t, log(dir), at)
			}
		}, []string{fileLog, "backup"}},
		"bolt gone": {func(t *testing.T, dir string) {
			if err := os.Remove(log(dir)); err != nil {
				t.Fatal(err)
			}
		}, []string{fileLog, "lost", "backup"}},
		"votes gone": {func(t *testing.T, dir string) {
			if err := os.Remove(log(dir)); err != nil {
				t.Fatal(err)
			}
		}, []string{dirLog, fileLog, "lost", "backup"}},
		"log gone": {func(t *testing.T, dir string) {
			if err := os.RemoveAll(filepath.Join(dir, dirLog)); err != nil {
				t.Fatal(err)
			}
		}, []string{dirLog, "lost", "backup"}},
		"log empty": {func(t *testing.T, dir string) {
			if err := os.Remove(segment(t, dir)); err != nil {
				t.Fatal(err)
			}
		}, []string{dirLog, "lost", "backup"}},
		"log cut short": {func(t *testing.T, dir string) {
			if err := os.Truncate(segment(t, dir), 20_000); err != nil {
				t.Fatal(err)
			}
		}, []string{dirLog, "lost", "backup"}},
		"log pages": {func(t *testing.T, dir string) { flip(t, segment(t, dir), 40_000) },
			[]string{dirLog, ".wal is damaged", "backup"}},
		"table cut short": {func(t *testing.T, dir string) {
			if err := os.Truncate(table(t, dir), 100); err != nil {
				t.Fatal(err)
			}
		}, []string{dirHistory, "move that folder away"}},
		"table gone": {func(t *testing.T, dir string) {
			if err := os.Remove(table(t, dir)); err != nil {
				t.Fatal(err)
			}
		}, []string{dirHistory, "move that folder away"}},
		"manifest": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, dirHistory, "MANIFEST"), 0) },
			[]string{dirHistory, "move that folder away"}},
		"identity": {func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, fileIdentity), []byte("??"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{fileIdentity, "backup"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, whole := t.TempDir(), made[StoreWAL]
			if strings.HasPrefix(name, "bolt") {
				whole = made[StoreBolt]
			}
			if err := os.CopyFS(dir, os.DirFS(whole.dir)); err != nil {
				t.Fatal(err)
			}
			c.harm(t, dir)
			cfg := whole.cfg
			cfg.Dir, cfg.Machine = dir, newTally()
			cell, err := Open(cfg)
			if err == nil {
				cell.Close(t.Context())
				t.Fatal("opened without an error")
			}
			if pcm.ErrorCode(err) != pcm.Internal {
				t.Errorf("code %q", pcm.ErrorCode(err))
			}
			for _, s := range append(c.says, dir) {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("the error doesn't say %q: %v", s, err)
				}
			}
		})
	}
}

// A folder whose log is in bbolt goes on with a wal and all that it had, also if it
// ended in the middle of the move; bbolt's log is then empty.
func TestMoveLog(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.LogStore = StoreBolt })
	for range 200 {
		n.propose(t, n.cfg.Self)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(n.dir, dirHistory)); err != nil { // all must come from the log
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(n.dir, dirLog), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, dirLog, "0000000000000001.wal"), []byte("interrupted"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.connect()
	n.cfg.LogStore = StoreWAL
	n.open()
	n.await("the records", func() bool { return n.RecordCount() == 200 })
	n.propose(t, n.cfg.Self)
	if last, err := n.bolt.LastIndex(); err != nil || last != 0 {
		t.Errorf("bbolt still has a log up to %d: %v", last, err)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.connect()
	n.cfg.LogStore, n.cfg.Machine = StoreBolt, newTally()
	if c, err := Open(n.cfg); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("the log was looked for in bbolt again: %v", err)
		if err == nil {
			c.Close(t.Context())
		}
	}
	n.connect()
	n.cfg.LogStore = StoreWAL
	n.open()
	if got := n.RecordCount(); got != 201 {
		t.Errorf("%d records", got)
	}
}

// After a write to the log that failed, a peer acknowledges nothing more, and says so.
func TestFailedWrite(t *testing.T) {
	failed := make(chan error, 1)
	n := found(t, &book{}, func(c *Config) { c.OnFailure = func(err error) { failed <- err } })
	n.propose(t, n.cfg.Self)
	n.wal.Close()
	_, s := n.command(n.cfg.Self)
	if r, err := n.Propose(t.Context(), s); err == nil {
		t.Fatalf("it was acknowledged: %v", r)
	}
	if err := <-failed; !strings.Contains(err.Error(), "acknowledge nothing") || n.Err() == nil {
		t.Errorf("the failure: %v", err)
	}
}

// A power cut may leave names of files without their content: that is no damage.
func TestEmptyFiles(t *testing.T) {
	n := found(t, &book{}, nil)
	n.propose(t, n.cfg.Self)
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00077.mem", "000077.vlog"} {
		if err := os.WriteFile(filepath.Join(n.dir, dirHistory, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.connect()
	n.open()
	if got := n.RecordCount(); got != 1 {
		t.Errorf("%d records", got)
	}
}

// What a replica can't take in stops it, loudly, and the state stays as it was.
func TestReplicaHalts(t *testing.T) {
	key := pcm.NewKey()
	forged := key.Seal(pcm.DomainCommand, pcm.Command{Version: 1, Ops: []pcm.Op{{Cancel: &pcm.Cancel{}}}})
	forged.Sig[0] ^= 1
	bad := key.Seal(pcm.DomainCommand, pcm.Command{Version: 1, Ops: []pcm.Op{{Cancel: &pcm.Cancel{Reason: "panic"}}}})
	for name, c := range map[string]struct {
		data []byte
		cell pcm.CellID
		says string
	}{
		"malformed entry":      {[]byte("junk"), testCell, "malformed"},
		"newer version":        {pcm.MustMarshal(pcm.Entry{Version: pcm.EntryVersion + 1}), testCell, "update this peer"},
		"another cell":         {pcm.MustMarshal(pcm.Entry{Version: 1}), "cell-other", "cell-other"},
		"invalid signature":    {pcm.MustMarshal(pcm.Entry{Version: 1, Commands: []pcm.Signed{forged}}), testCell, "invalid signature"},
		"panic of the machine": {pcm.MustMarshal(pcm.Entry{Version: 1, Commands: []pcm.Signed{bad}}), testCell, "panicked"},
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			n := found(t, &book{}, func(c *Config) { c.OnFailure = func(err error) { failed <- err } })
			n.propose(t, n.cfg.Self)
			n.raft.ApplyLog(raft.Log{Data: c.data, Extensions: []byte(c.cell)}, 0)
			err := <-failed
			if pcm.ErrorCode(err) != pcm.Internal || !strings.Contains(err.Error(), c.says) {
				t.Errorf("failure: %v", err)
			}
			if err := n.Run(context.Background()); err == nil {
				t.Error("Run returned no error")
			}
			_, s := n.command(n.cfg.Self)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := n.Propose(ctx, s); pcm.ErrorCode(err) != pcm.Internal {
				t.Errorf("propose afterwards: %v", err)
			}
			if ok, why := n.Ready(); ok || why == "" {
				t.Error("the cell still calls itself ready")
			}
			if got := n.count(); got != 1 {
				t.Errorf("%d records, want the one of before", got)
			}
		})
	}
}

func TestSnapshotOfAnotherCell(t *testing.T) {
	n := found(t, &book{}, nil)
	other := &fsm{c: &Cell{cfg: Config{Cell: "cell-other"}}}
	snap, err := n.fsm.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s := snap.(*fsmSnapshot)
	data := append(slices.Clone(s.head), s.state...)
	if _, _, err := other.openSnapshot(data); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("snapshot of another cell: %v", err)
	}
	for _, cut := range []int{0, 5, len(snapshotMagic), len(s.head) - 1} {
		if _, _, err := n.fsm.openSnapshot(data[:cut]); pcm.ErrorCode(err) != pcm.Internal {
			t.Errorf("snapshot cut to %d bytes: %v", cut, err)
		}
	}
	if _, state, err := n.fsm.openSnapshot(data); err != nil || string(state) != string(s.state) {
		t.Errorf("own snapshot: %v", err)
	}
}

// A copy of the folder of a running cell is what kill -9 leaves behind: what
// was acknowledged is all there.
func TestCrashLosesNothing(t *testing.T) {
	n := found(t, &book{}, snapshotOften)
	fillAndSnapshot(t, n, 40)
	for range 40 {
		n.propose(t, n.cfg.Self)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(n.dir)); err != nil {
		t.Fatal(err)
	}
	want := n.ids(t)
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.dir, n.cfg.Dir = dir, dir
	n.open()
	n.await("all to be applied again", func() bool { return n.count() == 80 })
	if got := n.ids(t); !slices.Equal(got, want) {
		t.Errorf("records after the crash: %d, want %d, in order", len(got), len(want))
	}
	if complete, from, to := n.History(); !complete {
		t.Errorf("records %d to %d are missing", from, to)
	}
}

// TestLostVotesBehindSnapshot: a folder whose votes are gone is not opened, also
// where a snapshot holds all that was applied: the peer could vote a second time.
func TestLostVotesBehindSnapshot(t *testing.T) {
	for _, store := range []string{StoreWAL, StoreBolt} {
		t.Run(store, func(t *testing.T) {
			n := found(t, &book{}, func(c *Config) { c.LogStore = store })
			n.propose(t, n.cfg.Self)
			n.closeSnapshotted(t)
			if err := errors.Join(os.Remove(filepath.Join(n.dir, fileLog)), os.RemoveAll(filepath.Join(n.dir, dirLog))); err != nil {
				t.Fatal(err)
			}
			n.connect()
			n.cfg.Machine = newTally()
			c, err := Open(n.cfg)
			if err == nil {
				c.Close(t.Context())
			}
			if pcm.ErrorCode(err) != pcm.Internal || !strings.Contains(err.Error(), "knows no vote") {
				t.Errorf("opened without its votes: %v", err)
			}
		})
	}
}

// A crash between a snapshot that was taken over and the removal of the log that it
// replaces leaves a log that ends ahead of it: the peer goes on from the snapshot.
func TestLogAheadOfSnapshotIsDropped(t *testing.T) {
	n := found(t, &book{}, nil)
	for range 3 {
		n.propose(t, n.cfg.Self)
	}
	n.closeSnapshotted(t)
	log, err := wal.Open(filepath.Join(n.dir, dirLog))
	if err != nil {
		t.Fatal(err)
	}
	last, err := log.LastIndex()
	if err == nil {
		err = log.DeleteRange(last-1, last)
	}
	if err := errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	n.connect()
	n.open()
	n.propose(t, n.cfg.Self)
}

// A second snapshot while history is being fetched costs no record that is here already:
// what was pulled is checked with the rest. Documents may be newer by then, and begin anew.
func TestSecondSnapshotKeepsWhatWasPulled(t *testing.T) {
	n := found(t, &book{}, nil)
	writeRecords(t, n.archive, 0, 600)
	a := n.archive
	if err := a.do(&archiveOp{open: &gap{To: 700, Root: [32]byte{1}, Index: 1_000}}); err != nil {
		t.Fatal(err)
	}
	g := *a.current().Gap
	g.Next, g.After = 650, "job/m"
	if err := a.do(&archiveOp{pulled: &g, first: 600, records: make([][]byte, 50)}); err != nil {
		t.Fatal(err)
	}
	if err := a.do(&archiveOp{open: &gap{To: 900, Root: [32]byte{2}, Index: 2_000}}); err != nil {
		t.Fatal(err)
	}
	want := gap{From: 600, Next: 650, To: 900, Root: [32]byte{2}, Index: 2_000}
	if got := *a.current().Gap; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// What is stored of a page of documents is found beside others, missing ones and later ones.
func TestDocumentIndexes(t *testing.T) {
	n := found(t, &book{}, nil)
	a := n.archive
	for i, key := range []string{"job/a", "job/b1", "job/b2", "job/b3", "job/c", "job/e"} {
		if err := a.do(&archiveOp{index: uint64(100 + i), docs: []pcm.Document{{Key: key, Value: []byte(key)}}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		keys []string
		want map[string]uint64
	}{
		{[]string{"job/a", "job/b0", "job/c", "job/d", "job/e", "job/f", "job/g"}, map[string]uint64{"job/a": 100, "job/c": 104, "job/e": 105}},
		{[]string{"a", "job/a", "job/b1", "job/b2"}, map[string]uint64{"job/a": 100, "job/b1": 101, "job/b2": 102}},
		{[]string{"z"}, map[string]uint64{}},
		{nil, map[string]uint64{}},
	} {
		var page []storedDocument
		for _, k := range c.keys {
			page = append(page, storedDocument{Key: k})
		}
		var got map[string]uint64
		err := a.store.use(func(db *badger.DB) (err error) {
			got, err = documentIndexes(db, page)
			return err
		})
		if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v; %v", c.keys, got, c.want, err)
		}
	}
}
