package ledger_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// TestManyTasks holds that the open tasks of a peer and of a cell are bounded: a
// short command makes many of them.
func TestManyTasks(t *testing.T) {
	c := newCell()
	submit := func(a *actor, name string, count int) error {
		r, _ := c.do(a, pcm.Op{Submit: &pcm.Submit{
			Job: jobID(name), Name: "many", Spec: pcm.DigestOf([]byte(name)), Steps: []pcm.Shape{{Count: count}},
			Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAccount,
		}})
		return r.First()
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	anna := c.enrolled("anna", "anna")
	must(submit(anna, "a1", pcm.MaxTasks))
	must(submit(anna, "a2", pcm.MaxTasks))
	if err := submit(anna, "a3", 1); pcm.ErrorCode(err) != pcm.Busy || !strings.Contains(err.Error(), "200000 tasks") {
		t.Errorf("200,001 tasks of one peer: %v", err)
	}
	must(submit(anna, "a2", pcm.MaxTasks)) // repeated: nothing is added
	for i := range 4 {
		a := c.enrolled(fmt.Sprint("peer", i), "others")
		for n := range 2 {
			must(submit(a, fmt.Sprint("b", i, n), pcm.MaxTasks))
		}
	}
	last := c.enrolled("last", "last")
	if err := submit(last, "l1", 1); pcm.ErrorCode(err) != pcm.Busy || !strings.Contains(err.Error(), "1000000 tasks") {
		t.Errorf("1,000,001 tasks of a cell: %v", err)
	}
	// A job that has ended and is settled makes room, for its peer and for all; after a restore as well.
	if r, _ := c.do(anna, pcm.Op{Cancel: &pcm.Cancel{Job: jobID("a1"), Reason: "enough"}}); r.First() != nil {
		t.Fatal(r.First())
	}
	data, err := c.state.Snapshot()
	must(err)
	must(c.state.Restore(data))
	must(submit(anna, "a4", pcm.MaxTasks-1))
	must(submit(last, "l2", 1))
	if err := submit(last, "l3", 1); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("1,000,001 tasks of a cell, again: %v", err)
	}
	must(c.state.Check())
}

// TestBilledTwice has a seller of one slot say of each of 90 tasks that it ran
// ever since the award: all together cost the time that has passed, and a minute.
func TestBilledTwice(t *testing.T) {
	c := newCell()
	anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
	c.sells(bert, 1)
	job := c.submits(anna, "billed", 90, 0)
	terms := c.terms(anna, bert, job, span(0, 90), 1)
	must := func(a *actor, ops ...pcm.Op) {
		t.Helper()
		if r, _ := c.do(a, ops...); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	must(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
	var most pcm.Micro
	for i := range 90 {
		c.pass(time.Second)
		results := good(span(i, i+1), time.Duration(i+1)*time.Second)
		must(bert, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}}, pcm.Op{Finish: &pcm.Finish{Trade: terms.Trade(), Results: results}})
		must(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: terms.Trade(), Results: results}})
		most += terms.Charge(results[0].Usage)
	}
	must(anna, pcm.Op{Settle: &pcm.Settle{Trade: terms.Trade(), Tasks: span(0, 90), Amount: most}})
	tr, archived := c.trade(terms.Trade())
	j, _ := c.job(job)
	// 0.1 for each task, and 0.001 for each of 90 + 60 seconds.
	if want := pcm.Micro(90*100_000 + 150*1000); !archived || tr.Paid != want || j.Paid != want || tr.WallMS != 150_000 {
		t.Errorf("paid %s for %d ms, by the job %s, want %s", tr.Paid, tr.WallMS, j.Paid, want)
	}
	c.mustAudit(t)
}

// TestStopEvent holds that the driver hears of a stop that nobody asked for as
// of the seller's fault, while the record keeps what the seller signed.
func TestStopEvent(t *testing.T) {
	c := newCell()
	anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
	c.sells(bert, 2)
	job := c.submits(anna, "events", 2, 0)
	terms := c.terms(anna, bert, job, span(0, 2), 2)
	c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
	c.do(anna, pcm.Op{Stop: &pcm.Stop{Trade: terms.Trade(), Tasks: span(1, 2), Reason: "enough"}})
	results := good(span(0, 2), time.Second)
	for i := range results {
		results[i].Outcome, results[i].ExitCode = pcm.OutcomeStopped, 143
	}
	r, fx := c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: terms.Trade(), Results: results}})
	if r.First() != nil {
		t.Fatal(r.First())
	}
	told := fx.Events[0].Op.Finish.Results
	if told[0].Outcome != pcm.OutcomeSeller || told[0].Reason == "" || told[1].Outcome != pcm.OutcomeStopped {
		t.Errorf("the event says %+v", told)
	}
	if _, cmd := decoded(t, fx.Records[0]); cmd.Ops[0].Finish.Results[0].Outcome != pcm.OutcomeStopped {
		t.Error("the record doesn't say what the seller signed")
	}
	c.mustAudit(t)
}

// TestFullOfTokens fills the memory for used tokens, half of them valid for an
// hour and half for a day: a refused Burn forgets nothing, as no record tells of
// it, and one that is taken forgets what has expired.
func TestFullOfTokens(t *testing.T) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	peer, other := c.actor("dora", "dora").peer, c.actor("emil", "emil").peer
	invite := func(name string, notAfter int64) pcm.Signed {
		return anna.key.Seal(pcm.DomainInvite, pcm.Invite{
			Mesh: c.genesis.Mesh, Root: c.genesis.Root, Cell: c.genesis.Cell, Issuer: anna.peer,
			Hash: pcm.DigestOf([]byte(name)), NotAfter: notAfter,
		})
	}
	burn := func(name string, by pcm.PeerID, notAfter int64) error {
		r, _ := c.do(anna, pcm.Op{Burn: &pcm.Burn{Invite: invite(name, notAfter), Peer: by}})
		return r.First()
	}
	hour, day := c.wall+time.Hour.Milliseconds(), c.wall+24*time.Hour.Milliseconds()
	fillTokens(t, c, peer, hour, day)
	full, _ := c.state.Digest()
	if err := burn("new", peer, day); pcm.ErrorCode(err) != pcm.Busy {
		t.Fatalf("one token more than can be remembered: %v", err)
	}
	if err := burn("1", peer, day); err != nil {
		t.Errorf("a token that this peer used, again: %v", err)
	}
	c.wall += 2 * time.Hour.Milliseconds()
	if err := burn("1", other, day); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("a token that another peer used: %v", err)
	}
	if err := burn("0", other, hour); err == nil || !strings.Contains(err.Error(), "another peer") {
		t.Errorf("refused Burns had the cell forget a token: %v", err)
	}
	if err := burn("new", peer, day); err != nil {
		t.Errorf("there is room now: %v", err)
	}
	if err := burn("0", other, hour); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("a token that has expired is remembered: %v", err)
	}
	if err := burn("1", other, day); err == nil || !strings.Contains(err.Error(), "another peer") {
		t.Errorf("a token that is still valid is forgotten: %v", err)
	}
	if now, _ := c.state.Digest(); now == full {
		t.Error("nothing has changed")
	}
}

// fillTokens restores the cell with 100,000 used tokens, every other one of
// which is valid until a and the rest until b. To sign them all would take long.
func fillTokens(t *testing.T, c *cell, peer pcm.PeerID, a, b int64) {
	t.Helper()
	data, err := c.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var parts map[int]any
	if err := pcm.UnmarshalLarge(data, &parts); err != nil {
		t.Fatal(err)
	}
	used := make([]any, 100_000)
	for i := range used {
		until := a
		if i%2 == 1 {
			until = b
		}
		used[i] = map[int]any{1: string(pcm.DigestOf(fmt.Append(nil, i))), 2: map[int]any{1: string(peer), 2: until}}
	}
	parts[12] = used
	if err := c.state.Restore(pcm.MustMarshal(parts)); err != nil {
		t.Fatal(err)
	}
}
