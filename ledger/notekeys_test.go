package ledger_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// Note keys: one's own, replaced at will; another's is taken back only by who signs too.
func TestNoteKeys(t *testing.T) {
	c := newCell()
	anna, bert, carl := c.enrolled("anna", "anna"), c.enrolled("bert", "bert"), c.enrolled("carl", "carl")
	key := func(name string) []byte { return keyOf("note " + name).Public() }
	bind := func(by, of *actor, k []byte) error {
		r, _ := c.do(by, pcm.Op{NoteKey: &pcm.NoteKey{Peer: of.peer, Key: k}})
		return r.First()
	}
	for _, step := range []struct {
		what   string
		by, of *actor
		key    []byte
		want   pcm.Code
	}{
		{"anna binds", anna, anna, key("anna"), ""},
		{"the same again", anna, anna, key("anna"), ""},
		{"of bert", anna, bert, key("bert"), pcm.Unauthorized},
		{"anna's, taken by bert who signs nothing", bert, anna, nil, pcm.Unauthorized},
		{"anna's key for bert", bert, bert, key("anna"), pcm.Conflict},
		{"too short", bert, bert, key("bert")[1:], pcm.Invalid},
		{"bert binds", bert, bert, key("bert"), ""},
		{"anna binds another", anna, anna, key("anna 2"), ""},
		{"the first is free again", carl, carl, key("anna"), ""},
		{"anna takes bert's back", anna, bert, nil, ""},
		{"of a stranger", anna, c.actor("dora", "dora"), nil, pcm.NotFound},
		{"carl takes his own back", carl, carl, nil, ""},
	} {
		if err := bind(step.by, step.of, step.key); pcm.ErrorCode(err) != step.want {
			t.Errorf("%s: %v", step.what, err)
		}
	}
	got := c.state.NoteKeys()
	if len(got) != 1 || got[0].Peer != anna.peer || string(got[0].Key) != string(key("anna 2")) {
		t.Errorf("keys: %+v", got)
	}
	var refused error
	for i := 0; i < 50 && refused == nil; i++ {
		p := c.enrolled(fmt.Sprint("voter ", i), "anna")
		refused = bind(p, p, key(p.name))
	}
	if pcm.ErrorCode(refused) != pcm.Refused || len(c.state.NoteKeys()) != 32 {
		t.Errorf("%d keys are bound: %v", len(c.state.NoteKeys()), refused)
	}
	// They are in the snapshot, and follow from the records.
	data, err := c.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	restored := ledger.New(c.genesis)
	if err := restored.Restore(data); err != nil || len(restored.NoteKeys()) != 32 {
		t.Errorf("restored: %d keys, %v", len(restored.NoteKeys()), err)
	}
	c.mustAudit(t)
}

// However much expires at once, no record is over its bound; what is left expires
// with the entries that follow, and replaying the records comes to the same.
func TestRecordsStayWithinTheirBound(t *testing.T) {
	c := newCell()
	anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
	c.sells(bert, 2000)
	const trades = 300
	for i := range trades {
		job := c.submits(anna, fmt.Sprint("job ", i), 4, 0)
		terms := c.terms(anna, bert, job, pcm.Spans{{Lo: 0, Hi: 1}, {Lo: 2, Hi: 3}}, 2)
		if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	c.stamp += time.Minute.Milliseconds()
	entries := 0
	for c.state.Due(c.stamp) {
		if entries++; entries > trades {
			t.Fatal("it does not end")
		}
		// A command in the same entry must find what replaying finds.
		renew := c.command(anna, pcm.Op{Renew: &pcm.Renew{Incarnation: uint64(entries)}})
		c.apply(false, anna.key.Seal(pcm.DomainCommand, renew))
		c.stamp += 10
	}
	if entries < 2 {
		t.Errorf("all expired in %d entry: the bound is not tested", entries)
	}
	lost := 0
	for n, leaf := range c.records {
		if len(leaf) > pcm.MaxRecord {
			t.Errorf("record %d has %d bytes", n, len(leaf))
		}
		var r pcm.Record
		if err := pcm.Unmarshal(leaf, &r); err != nil {
			t.Fatal(err)
		}
		for _, f := range r.Facts {
			if f.Lost != nil {
				lost += f.Lost.Tasks.Len()
			}
		}
	}
	if lost != 2*trades {
		t.Errorf("%d attempts are lost, want %d", lost, 2*trades)
	}
	c.mustAudit(t)

	// The longest command that is taken, with the most that may follow.
	longest := c.command(anna, pcm.Op{Cancel: &pcm.Cancel{Job: jobID("none"), Reason: ""}})
	room := pcm.MaxCommand - len(pcm.MustMarshal(longest)) - 8
	longest.Ops[0].Cancel.Reason = strings.Repeat("x", room)
	signed := anna.key.Seal(pcm.DomainCommand, longest)
	if _, err := ledger.Check(signed); err != nil {
		t.Fatal(err)
	}
	r := pcm.Record{Number: 1 << 62, Index: 1 << 62, Stamp: 1 << 62, Wall: 1 << 62, NewTerm: true, Command: &signed, Done: pcm.MaxOps}
	for range pcm.MaxOps {
		r.Facts = append(r.Facts,
			pcm.Fact{Ended: &pcm.Ended{Job: jobID("a"), State: pcm.JobCancelled, Reason: strings.Repeat("x", 600)}},
			pcm.Fact{Closed: &pcm.Closed{Trade: pcm.NewTradeID(jobID("a"), 1), Job: jobID("a"), Paid: 1 << 62}})
	}
	if n := len(pcm.MustMarshal(r)); n > pcm.MaxRecord {
		t.Errorf("the longest record has %d bytes, at most %d fit the log", n, pcm.MaxRecord)
	}
}
