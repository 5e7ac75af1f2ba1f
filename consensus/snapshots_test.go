package consensus

import (
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
