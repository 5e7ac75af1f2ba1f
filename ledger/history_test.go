package ledger_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

var rewriteGolden = flag.Bool("rewrite-golden", false, "write testdata/golden anew: only for a history that no release has written yet")

// history is a fixed story in which every kind of record is made.
func history() *cell {
	c := newCell()
	anna, bert, carl := c.enrolled("anna", "anna"), c.enrolled("bert", "bert"), c.enrolled("carl", "carl")
	must := func(a *actor, ops ...pcm.Op) {
		if r, _ := c.do(a, ops...); r.First() != nil {
			panic(r.First())
		}
	}
	c.sells(bert, 8)
	c.sells(carl, 8)
	inv := anna.key.Seal(pcm.DomainInvite, pcm.Invite{Mesh: c.genesis.Mesh, Root: c.genesis.Root, Cell: c.genesis.Cell, Issuer: anna.peer, Hash: pcm.DigestOf([]byte("x")), NotAfter: c.wall + 3_600_000})
	must(anna, pcm.Op{Burn: &pcm.Burn{Invite: inv, Peer: c.actor("dora", "dora").peer}})

	// Eight tasks at bert: two rejected, one lost after a while, one failed and tried again, the others paid.
	job := c.submits(anna, "history", 8, 1)
	t1 := c.terms(anna, bert, job, span(0, 8), 4)
	must(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: t1}}, pcm.Op{Award: &pcm.Award{Terms: t1}})
	must(bert, pcm.Op{Start: &pcm.Start{Trade: t1.Trade(), Tasks: span(0, 6)}}, pcm.Op{Reject: &pcm.Reject{Trade: t1.Trade(), Tasks: span(6, 8), Reason: "full"}})
	c.pass(5 * time.Second)
	must(bert, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}}, pcm.Op{Meter: &pcm.Meter{Trade: t1.Trade(), Index: 5, Usage: pcm.Usage{WallMS: 5000}}})
	results := good(span(0, 4), 4*time.Second)
	failed := pcm.Result{Index: 4, Outcome: pcm.OutcomeFailed, ExitCode: 3, Usage: pcm.Usage{WallMS: 1000}}
	must(bert, pcm.Op{Finish: &pcm.Finish{Trade: t1.Trade(), Results: append(slices.Clone(results), failed)}})
	must(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: t1.Trade(), Results: results}})
	must(anna, pcm.Op{Settle: &pcm.Settle{Trade: t1.Trade(), Tasks: span(0, 3), Amount: 3 * t1.Charge(results[0].Usage)}}, pcm.Op{Dispute: &pcm.Dispute{Trade: t1.Trade(), Tasks: span(3, 4), Reason: "hm"}})
	must(anna, pcm.Op{Settle: &pcm.Settle{Trade: t1.Trade(), Tasks: span(3, 4), Amount: t1.Charge(results[3].Usage)}})
	c.stamp += 3000
	c.apply(true) // a new leader
	c.pass(13 * time.Second)
	must(anna, pcm.Op{Abandon: &pcm.Abandon{Job: job, Term: 1, Trade: t1.Trade(), Tasks: span(5, 8), Fault: pcm.FaultSeller, Reason: "lost"}},
		pcm.Op{Abandon: &pcm.Abandon{Job: job, Term: 1, Trade: t1.Trade(), Tasks: span(4, 5), Fault: pcm.FaultTask, Reason: "exit 3"}})
	must(anna, pcm.Op{Settle: &pcm.Settle{Trade: t1.Trade(), Tasks: span(4, 5), Amount: t1.Charge(failed.Usage)}})

	// The rest at carl; the job is cancelled while it runs there.
	must(anna, pcm.Op{Drive: &pcm.Drive{Job: job, Term: 2}})
	t2 := c.terms(anna, carl, job, span(4, 7), 3)
	must(anna, pcm.Op{Place: &pcm.Place{Term: 2, Terms: t2}}, pcm.Op{Award: &pcm.Award{Terms: t2}})
	must(anna, pcm.Op{Cancel: &pcm.Cancel{Job: job, Reason: "enough"}}, pcm.Op{Stop: &pcm.Stop{Trade: t2.Trade(), Tasks: span(4, 7), Reason: "enough"}})
	stopped := good(span(4, 7), 2*time.Second)
	for i := range stopped {
		stopped[i].Outcome, stopped[i].ExitCode = pcm.OutcomeStopped, 143
	}
	must(carl, pcm.Op{Finish: &pcm.Finish{Trade: t2.Trade(), Results: stopped}})
	must(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 2, Trade: t2.Trade(), Results: stopped}}, pcm.Op{Settle: &pcm.Settle{Trade: t2.Trade(), Tasks: span(4, 7), Amount: 3 * t2.Charge(stopped[0].Usage)}})

	// Something stays open, and something was refused.
	open := c.submits(carl, "open", 3, 0)
	t3 := c.terms(carl, bert, open, span(0, 2), 1)
	must(carl, pcm.Op{Place: &pcm.Place{Term: 1, Terms: t3}}, pcm.Op{Award: &pcm.Award{Terms: t3}})
	c.do(anna, pcm.Op{Accept: &pcm.Accept{Job: open, Term: 1, Trade: t3.Trade(), Results: good(span(0, 1), 0)}})
	return c
}

// TestSameEntriesSameState holds that a state is a function of its entries: for
// entries applied again, for a restored state, and for many commands in one entry.
func TestSameEntriesSameState(t *testing.T) {
	c := history()
	c.mustAudit(t)
	want, err := c.state.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for restoreAt := range c.entries {
		s, n := ledger.New(c.genesis), 0
		for i, e := range c.entries {
			fx := s.Apply(uint64(i+1), e)
			for _, r := range fx.Records {
				if !bytes.Equal(r, c.records[n]) {
					t.Fatalf("record %d comes out otherwise", n)
				}
				n++
			}
			if i == restoreAt {
				data, err := s.Snapshot()
				if err != nil {
					t.Fatal(err)
				}
				s = ledger.New(c.genesis)
				if err := s.Restore(data); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, err := s.Digest(); err != nil || got != want || n != len(c.records) {
			t.Fatalf("restored after entry %d: digest %x, %d records; at first %x, %d (%v)", restoreAt, got, n, want, len(c.records), err)
		}
	}
}

// TestUnrecordedChangesNothing holds that what is not in the records does not
// decide anything later, or an honest ledger would not verify.
func TestUnrecordedChangesNothing(t *testing.T) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	renew := func(incarnation uint64) pcm.Op { return pcm.Op{Renew: &pcm.Renew{Incarnation: incarnation}} }
	c.do(anna, renew(5)) // nothing depends on it: anna neither sells nor drives
	r, _ := c.do(anna, pcm.Op{Submit: &pcm.Submit{Job: jobID("j"), Spec: pcm.DigestOf(nil), Steps: []pcm.Shape{{Count: 1}}, Unit: "credit", Takeover: "none"}}, renew(4))
	if len(r.Ops) != 2 || r.Ops[0].Err != nil || r.Ops[1].Err == nil {
		t.Fatalf("%+v", r)
	}
	c.mustAudit(t)
}

// TestGolden holds that entries of earlier releases come to the same state for
// ever: testdata/golden has the entries as they were written, with their digests.
func TestGolden(t *testing.T) {
	path := filepath.Join("testdata", "golden", "v1")
	if *rewriteGolden {
		c := history()
		var lines []string
		for _, e := range c.entries {
			lines = append(lines, hex.EncodeToString(pcm.MustMarshal(e)))
		}
		if err := os.WriteFile(path+".entries", []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".digests", []byte(golden(t, c.genesis, c.entries)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path + ".entries")
	if err != nil {
		t.Fatal(err)
	}
	var entries []pcm.Entry
	for _, line := range strings.Fields(string(text)) {
		raw, err := hex.DecodeString(line)
		if err != nil {
			t.Fatal(err)
		}
		var e pcm.Entry
		if err := pcm.Unmarshal(raw, &e); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	want, err := os.ReadFile(path + ".digests")
	if err != nil {
		t.Fatal(err)
	}
	if got := golden(t, newCell().genesis, entries); got != string(want) {
		t.Errorf("the history of %s comes out otherwise; ledgers written by that release would split a cell.\ngot:\n%swant:\n%s", path, got, want)
	}
}

// golden is the state digest after each entry and the Merkle root at the end, a line each.
func golden(t *testing.T, g ledger.Genesis, entries []pcm.Entry) string {
	var b strings.Builder
	s := ledger.New(g)
	for i, e := range entries {
		s.Apply(uint64(i+1), e)
		d, err := s.Digest()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%d %x\n", i+1, d)
	}
	n, root := s.Root()
	fmt.Fprintf(&b, "root of %d records: %x\n", n, root)
	return b.String()
}

// at finds the first record that has what is looked for.
func at(t *testing.T, records [][]byte, is func(pcm.Record, pcm.Command) bool) (int, pcm.Record) {
	t.Helper()
	for i := range records {
		if r, cmd := decoded(t, records[i]); is(r, cmd) {
			return i, r
		}
	}
	t.Fatal("the history has no such record")
	return 0, pcm.Record{}
}

func decoded(t *testing.T, leaf []byte) (r pcm.Record, cmd pcm.Command) {
	t.Helper()
	if err := pcm.Unmarshal(leaf, &r); err != nil {
		t.Fatal(err)
	}
	if r.Command != nil {
		if err := pcm.Unmarshal(r.Command.Payload, &cmd); err != nil {
			t.Fatal(err)
		}
	}
	return r, cmd
}

// TestTampering changes one thing in a good ledger: Verify names the first bad record.
func TestTampering(t *testing.T) {
	c := history()
	good := c.records
	if v, _ := verify(c.genesis, good); v.Bad != nil || v.Signatures != len(good)-2 {
		t.Fatalf("the ledger itself is bad, or not all of it is signed: %+v of %d", v, len(good))
	}
	last := len(good) - 1
	firstWith := func(kind string) (int, pcm.Record) {
		return at(t, good, func(_ pcm.Record, cmd pcm.Command) bool {
			return slices.ContainsFunc(cmd.Ops, func(o pcm.Op) bool { return o.Kind() == kind })
		})
	}
	lost, lostRecord := at(t, good, func(r pcm.Record, _ pcm.Command) bool { return len(r.Facts) > 0 && r.Facts[0].Lost != nil })
	term, termRecord := at(t, good, func(r pcm.Record, _ pcm.Command) bool { return r.NewTerm })
	settle, settleRecord := firstWith("settle")
	finish, finishRecord := firstWith("finish")
	bert := c.peers["bert"]

	// resign has bert sign a command that is not his.
	resign := func(r pcm.Record, change func(*pcm.Command)) []byte {
		_, cmd := decoded(t, pcm.MustMarshal(r))
		change(&cmd)
		signed := bert.key.Seal(pcm.DomainCommand, cmd)
		r.Command = &signed
		return pcm.MustMarshal(r)
	}
	// payAgain is a settlement of what was settled, under a new command ID.
	payAgain := func(n int, stamp int64) []byte {
		_, cmd := decoded(t, good[settle])
		cmd.ID[0]++
		cmd.Ops = cmd.Ops[:1]
		signed := c.peers["anna"].key.Seal(pcm.DomainCommand, cmd)
		r := settleRecord
		r.Number, r.Stamp, r.Command, r.Done = uint64(n), stamp, &signed, 1
		return pcm.MustMarshal(r)
	}
	changed := func(r pcm.Record, change func(*pcm.Record)) []byte {
		var copied pcm.Record
		if err := pcm.Unmarshal(pcm.MustMarshal(r), &copied); err != nil {
			t.Fatal(err)
		}
		change(&copied)
		return pcm.MustMarshal(copied)
	}
	with := func(n int, leaf []byte) [][]byte {
		rs := slices.Clone(good)
		rs[n] = leaf
		return rs
	}
	for _, forged := range []struct {
		name    string
		records [][]byte
		bad     int
		says    string
	}{
		{"a record is missing", slices.Delete(slices.Clone(good), 7, 8), 7, "numbered 8"},
		{"the first is missing", good[1:], 0, "numbered 1"},
		{"two are swapped", slices.Concat(good[:9], [][]byte{good[10], good[9]}, good[11:]), 9, "numbered 10"},
		{"one comes twice", slices.Insert(slices.Clone(good), 5, good[4]), 5, "numbered 4"},
		{"one is cut short", with(6, good[6][:len(good[6])-1]), 6, "decode"},
		{"one is empty", with(6, nil), 6, "decode"},
		{"one has more bytes", with(6, append(slices.Clone(good[6]), 0)), 6, "decode"},
		{"damaged after another fault", slices.Concat(good[:7], [][]byte{good[8], {0xff}}, good[9:]), 7, "numbered 8"},
		{"a signature of another", with(settle, resign(settleRecord, func(cmd *pcm.Command) {})), settle, "signed by somebody else"},
		{"another's command, well signed", with(settle, resign(settleRecord, func(cmd *pcm.Command) { cmd.Peer = bert.peer })), settle, "does not follow"},
		{"a signature of zeros", with(finish, changed(finishRecord, func(r *pcm.Record) { clear(r.Command.Sig) })), finish, "signature"},
		{"a command paid twice", slices.Insert(slices.Clone(good), settle+1, payAgain(settle+1, settleRecord.Stamp)), settle + 1, "does not follow"},
		{"a record of something refused", append(slices.Clone(good), payAgain(last+1, c.stamp)), last + 1, "no open trade"},
		{"more done than was", with(settle, changed(settleRecord, func(r *pcm.Record) { r.Done++ })), settle, "another record"},
		{"less done than was", with(settle, changed(settleRecord, func(r *pcm.Record) { r.Done-- })), settle, "another record"},
		{"another task is lost", with(lost, changed(lostRecord, func(r *pcm.Record) { r.Facts[0].Lost.Tasks = span(1, 2) })), lost, "another record"},
		{"nothing is lost", with(lost, changed(lostRecord, func(r *pcm.Record) { r.Facts = nil })), lost, "another record"},
		{"lost before its time", with(lost, changed(lostRecord, func(r *pcm.Record) { r.Stamp -= 5000 })), lost, "another record"},
		{"time goes back", with(lost, changed(lostRecord, func(r *pcm.Record) { r.Stamp = 1000 })), lost, "before that of an earlier"},
		{"no new term", with(term, changed(termRecord, func(r *pcm.Record) { r.NewTerm = false })), term, "another record"},
		{"a payment is announced that was none", with(lost, changed(lostRecord, func(r *pcm.Record) {
			r.Facts = append(r.Facts, pcm.Fact{Closed: &pcm.Closed{Trade: r.Facts[0].Lost.Trade, Paid: 1}})
		})), lost, "another record"},
	} {
		v, _ := verify(c.genesis, forged.records)
		switch {
		case v.Bad == nil:
			t.Errorf("%s: nothing is found", forged.name)
		case *v.Bad != uint64(forged.bad) || !strings.Contains(v.Problem, forged.says):
			t.Errorf("%s: record %d is named (%s), not %d (… %s …)", forged.name, *v.Bad, v.Problem, forged.bad, forged.says)
		}
	}
	v, _ := ledger.Verify(c.genesis, func(yield func([]byte, error) bool) {
		_ = yield(good[0], nil) && yield(good[1], nil) && yield(nil, errors.New("disk on fire"))
	})
	if v.Bad == nil || *v.Bad != 2 || !strings.Contains(v.Problem, "disk on fire") {
		t.Errorf("a record that can't be read: %+v", v)
	}
}

// TestFlippedBytes flips bytes all over the records: either Verify names that
// record, or the leader's stamps were changed, which show in the Merkle root.
func TestFlippedBytes(t *testing.T) {
	c := history()
	_, root := c.state.Root()
	named, stamps := 0, 0
	for n, leaf := range c.records {
		const step = 7 // each record begins at another one
		for i := n % step; i < len(leaf); i += step {
			rs := slices.Clone(c.records[:n+1])
			rs[n] = slices.Clone(leaf)
			rs[n][i] ^= 0x01
			switch v, _ := verify(c.genesis, rs); {
			case v.Bad != nil && *v.Bad == uint64(n):
				named++
			case v.Bad != nil:
				t.Fatalf("byte %d of record %d is flipped, record %d is named: %s", i, n, *v.Bad, v.Problem)
			default:
				stamps++
				was, is := mustRecord(t, leaf), mustRecord(t, rs[n])
				is.Index, is.Stamp, is.Wall = was.Index, was.Stamp, was.Wall
				if !bytes.Equal(pcm.MustMarshal(is), leaf) {
					t.Fatalf("byte %d of record %d is flipped, and nothing is found", i, n)
				}
				if v, _ := verify(c.genesis, append(rs, c.records[n+1:]...)); v.Root == root {
					t.Fatalf("byte %d of record %d is flipped, and the root is the same", i, n)
				}
			}
		}
	}
	t.Logf("%d flips named, %d in stamps", named, stamps)
	if named < 20*stamps {
		t.Errorf("only %d of %d flips were named", named, named+stamps)
	}
}

func mustRecord(t interface {
	Helper()
	Fatal(...any)
}, leaf []byte) (r pcm.Record) {
	t.Helper()
	if err := pcm.Unmarshal(leaf, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSameAsFindsDifferences holds that a state that doesn't follow from the records is told apart.
func TestSameAsFindsDifferences(t *testing.T) {
	c := history()
	for name, forge := range map[string]func(*ledger.State){
		"jobs":   func(s *ledger.State) { s.Jobs()[0].Paid++ },
		"trades": func(s *ledger.State) { s.Trades()[0].Terms.Width++ },
		"pools":  func(s *ledger.State) { p, _ := s.Pool(poolKeyOf(c, "bert")); p.Pool.Slots++ },
		"balances": func(s *ledger.State) {
			c.do(c.peers["bert"], pcm.Op{Reject: &pcm.Reject{Trade: s.Trades()[0].ID, Tasks: span(0, 1), Reason: "no"}})
		},
	} {
		_, replayed := verify(c.genesis, c.records)
		if err := c.state.SameAs(replayed); err != nil {
			t.Fatal(err)
		}
		forge(c.state)
		if err := c.state.SameAs(replayed); err == nil || name != "balances" && !strings.Contains(err.Error(), name) {
			t.Errorf("%s differ: %v", name, err)
		}
		c = history()
	}
}

func poolKeyOf(c *cell, who string) ledger.PoolKey {
	return ledger.PoolKey{Peer: c.peers[who].peer, Pool: "local"}
}
