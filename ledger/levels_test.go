package ledger_test

import (
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// raised is a cell whose founder has raised it to this release's level.
func raised() (*cell, *actor) { return raisedTo(pcm.LedgerLevel) }

func raisedTo(level int) (*cell, *actor) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	if r, _ := c.do(anna, noteKeyOf(anna, false), pcm.Op{Upgrade: &pcm.Upgrade{Level: level}}); r.First() != nil {
		panic(r.First())
	}
	return c, anna
}

// TestOlderRelease holds what a release does that speaks a lower level: it refuses
// what all others refuse, and stops at the entry that raises the cell above it.
func TestOlderRelease(t *testing.T) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	c.do(anna, pcm.Op{Set: &pcm.Set{Key: pcm.SettingOpen, Value: "no"}}) // not yet
	c.do(anna, noteKeyOf(anna, false))
	old := ledger.New(c.genesis).Speaks(1)
	for i, e := range c.entries {
		if fx := old.Apply(uint64(i+1), e); fx.Halt != nil {
			t.Fatalf("entry %d: %v", i+1, fx.Halt)
		}
	}
	a, _ := old.Digest()
	if b, _ := c.state.Digest(); a != b {
		t.Fatal("the two releases hold different states below the level that both speak")
	}
	// Who is no voter can't stop anybody.
	bert := c.enrolled("bert", "bert")
	up := pcm.Op{Upgrade: &pcm.Upgrade{Level: pcm.LedgerLevel}}
	if r, _ := c.do(bert, up); r.First() == nil {
		t.Fatal("a peer that is no voter has raised the level")
	}
	if r, _ := c.do(anna, up); r.First() != nil {
		t.Fatal(r.First())
	}
	var halt error
	for i, e := range c.entries[3:] {
		if halt != nil {
			t.Fatal("the older release goes on after it had to stop")
		}
		halt = old.Apply(uint64(i+4), e).Halt
	}
	if halt == nil || !strings.Contains(halt.Error(), "update this peer") {
		t.Fatalf("the older release follows: %v", halt)
	}
	snap, err := c.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if err := ledger.New(c.genesis).Speaks(1).Restore(snap); err == nil || !strings.Contains(err.Error(), "update this peer") {
		t.Fatalf("the older release takes a snapshot of a newer level: %v", err)
	}
}

// TestNettingOnce holds that a netting has effect once, also after the cell has
// forgotten it and whatever the leader's clock says then.
func TestNettingOnce(t *testing.T) {
	c, anna := raisedTo(2) // below the quota: two accounts can fill the memory
	bert := c.enrolled("bert", "bert")
	c.sells(bert, 4)
	c.owes(t, anna, bert, "a")
	c.owes(t, anna, bert, "b")
	netting := func(name string, by pcm.Micro, hours int64) pcm.Op {
		n := pcm.Netting{
			Mesh: c.genesis.Mesh, ID: pcm.NettingID(idOf("net-", name)), A: anna.buyer, B: bert.buyer, Unit: pcm.DefaultUnit,
			Lines: []pcm.NettingLine{{Cell: c.genesis.Cell, ByA: by}}, NotAfter: c.wall + hours*3_600_000,
		}
		return pcm.Op{Net: &pcm.Net{Netting: n.Offer(anna.account).Accept(pcm.DomainNetting, bert.account)}}
	}
	owed := func() (sum pcm.Micro) {
		for _, b := range c.state.Balances {
			sum += b.Owed
		}
		return sum
	}
	before, first := owed(), netting("first", 7, 1)
	if r, _ := c.do(anna, first); r.First() != nil || owed() != before-7 {
		t.Fatal(r.First(), owed())
	}
	many := 0
	for ; ; many++ {
		r, _ := c.do(bert, netting("n"+string(rune('a'+many%26))+strings.Repeat("x", many/26), 1, 2))
		if r.First() == nil {
			continue
		}
		if pcm.ErrorCode(r.First()) != pcm.Busy {
			t.Fatal(r.First())
		}
		break
	}
	if many < 1000 {
		t.Fatalf("after %d nettings no more are taken", many)
	}
	c.wall += 3_600_000 * 3 / 2 // past the first one's end, and not the others'
	last := netting("last", 1, 2)
	if r, _ := c.do(bert, last); r.First() != nil {
		t.Fatal(r.First())
	}
	c.wall -= 3_600_000 * 3 / 2 // the next leader's clock is behind
	left := owed()
	for _, op := range []pcm.Op{first, last} {
		c.do(bert, op)
	}
	if owed() != left {
		t.Fatalf("a netting took effect twice: %s was owed, now %s", left, owed())
	}
	c.mustAudit(t)
}
