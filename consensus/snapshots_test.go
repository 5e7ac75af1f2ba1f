package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/jointcloud/pcm"
)

// However many commands come, and however many entries they share, a restart has
// few of them to apply again, and little of the log to read.
func TestBacklogIsBounded(t *testing.T) {
	for _, c := range []struct{ each, bytes, size int }{{1, 600, 0}, {512, 200 << 10, 0}, {512, 1 << 20, 0}, {512, 200 << 10, 64 << 20}, {0, 40, 0}} {
		b := newBacklog()
		b.taken(c.size)
		e := pcm.Entry{Commands: make([]pcm.Signed, c.each)}
		n := 0
		for len(b.due) == 0 && n < 1_000_000 {
			b.applied(e, c.bytes)
			n++
		}
		most := snapshotCommands + c.size/snapshotShare
		if n*c.each > most+c.each && n*c.bytes > snapshotBytes+c.bytes {
			t.Errorf("%+v: due after %d entries", c, n)
		}
		if keep := int(b.trailing()); keep < trailingLeast || keep > trailingMost || keep > trailingLeast && keep*c.bytes > trailingBytes {
			t.Errorf("%+v: %d entries of %d bytes are kept", c, keep, c.bytes)
		}
		b.taken(1)
		if b.commands.Load() != 0 || b.trailing() != trailingMost {
			t.Errorf("%+v: a snapshot changed nothing", c)
		}
	}
}

// Whoever comes back from far behind is given one snapshot: what is committed while it takes that over
// stays in the log, however often others take snapshots of their own meanwhile.
func TestNoSnapshotLoop(t *testing.T) {
	nodes := three(t, snapshotOften)
	leader := leaderOf(t, nodes...)
	lost := others(nodes, leader)[0]
	lost.kill()
	leader.await("the loss", func() bool { leader.members.wake(); return leader.members.silent(lost.cfg.Self) })
	some := func(behind uint64) {
		for range 20 {
			leader.propose(t, leader.cfg.Self)
		}
		leader.await("word of the others", func() bool { leader.members.wake(); return leader.members.behind() <= behind })
		if err := leader.snapshot(); err != nil {
			t.Fatal(err)
		}
	}
	some(0)
	if first, err := leader.logs.FirstIndex(); err != nil || first <= lost.raft.LastIndex()+1 {
		t.Fatalf("the log begins with entry %d (%v): no snapshot is needed, nothing is tested", first, err)
	}
	lost.connect()
	held, taken := make(chan struct{}), make(chan struct{}, 16)
	lost.restoring = func() {
		taken <- struct{}{}
		<-held
	}
	lost.open()
	release := sync.OnceFunc(func() { close(held) })
	t.Cleanup(release) // ahead of what closes it
	<-taken
	leader.await("its answer", func() bool { leader.members.wake(); return !leader.members.silent(lost.cfg.Self) })
	for range 5 {
		some(1 << 40)
	}
	release()
	lost.await("all records", func() bool {
		complete, _, _ := lost.History()
		return complete && lost.count() == leader.count()
	})
	if n := len(taken); n > 0 {
		t.Errorf("it has taken over %d more snapshots", n)
	}
	some(0)
	if first, err := leader.logs.FirstIndex(); err != nil || first+10 < leader.raft.LastIndex() {
		t.Errorf("the log still begins with entry %d (%v) and ends with %d", first, err, leader.raft.LastIndex())
	}
}

func (m *members) silent(id pcm.PeerID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.health[id]
	return h == nil || !h.answers
}

// A peer that ends in order starts from a snapshot, even if Raft has not asked for one.
func TestSnapshotAtEnd(t *testing.T) {
	n := found(t, &book{}, nil)
	for range closingCommands/pcm.MaxEntryCommands + 1 {
		cmds := make([]pcm.Signed, pcm.MaxEntryCommands)
		for i := range cmds {
			_, cmds[i] = n.command(n.cfg.Self)
		}
		if _, err := n.Propose(t.Context(), cmds...); err != nil {
			t.Fatal(err)
		}
	}
	want := n.digest()
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.connect()
	n.open()
	n.await("the state", func() bool { return n.digest() == want })
	if len(n.m.stamps) > 3 {
		t.Errorf("%d entries were applied again", len(n.m.stamps))
	}
}

// What Raft says of a snapshot is held against a checksum: with another index, entries
// would never be applied here, and nobody would know.
func TestChangedMeta(t *testing.T) {
	n := found(t, &book{}, nil)
	for range 12 {
		n.propose(t, n.cfg.Self)
	}
	n.closeSnapshotted(t)
	path := largest(t, filepath.Join(n.dir, dirSnapshots, "*", fileMeta))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := regexp.MustCompile(`"Index":1(\d)`).ReplaceAll(whole, []byte(`"Index":3$1`))
	if bytes.Equal(changed, whole) {
		t.Fatalf("no index in %s", whole)
	}
	for name, harm := range map[string]func() error{
		"another index": func() error { return os.WriteFile(path, changed, 0o600) },
		"gone":          func() error { return os.Remove(path) },
	} {
		if err := harm(); err != nil {
			t.Fatal(err)
		}
		n.connect()
		n.cfg.Machine = newTally()
		c, err := Open(n.cfg)
		if err == nil {
			c.Close(t.Context())
		}
		if pcm.ErrorCode(err) != pcm.Internal || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	sum := filepath.Join(filepath.Dir(path), fileSum)
	if err := os.Remove(sum); err != nil { // an older release wrote none
		t.Fatal(err)
	}
	half := filepath.Join(n.dir, dirSnapshots, "1-2-1700000000000") // it was being removed
	if err := os.Mkdir(half, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, fileSum), []byte("rest"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.connect()
	n.open()
	if got := n.count(); got != 12 {
		t.Errorf("%d records", got)
	}
	if have, err := os.ReadFile(sum); err != nil || crc32.Checksum(whole, crc32.MakeTable(crc32.Castagnoli)) != binary.LittleEndian.Uint32(have) {
		t.Errorf("the checksum is %x: %v", have, err)
	}
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a snapshot is still there: %v", err)
	}
}
