package ledger_test

import (
	"fmt"
	"testing"

	"github.com/jointcloud/pcm"
)

// A netting takes effect whatever ID two other accounts have used before.
func TestNettingIDOfOthers(t *testing.T) {
	c, anna := raised()
	bert, mal, eve := c.enrolled("bert", "bert"), c.enrolled("mal", "mal"), c.enrolled("eve", "eve")
	c.sells(bert, 4)
	c.sells(eve, 4)
	owes := func(b, s *actor) {
		job := c.submits(b, string(rune('a'+c.index)), 1, 0)
		terms := c.terms(b, s, job, span(0, 1), 1)
		id, done := terms.Trade(), good(span(0, 1), 100e9)
		c.do(b, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
		c.do(s, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: done}})
		c.do(b, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: done}}, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: span(0, 1), Amount: 1e9}})
	}
	owes(anna, bert)
	owes(mal, eve)
	net := func(a, b *actor, by pcm.Micro) pcm.Op {
		n := pcm.Netting{Mesh: c.genesis.Mesh, ID: pcm.NettingID(idOf("net-", "same")), A: a.buyer, B: b.buyer, Unit: pcm.DefaultUnit,
			Lines: []pcm.NettingLine{{Cell: c.genesis.Cell, ByA: by}}, NotAfter: c.wall + 3_600_000}
		return pcm.Op{Net: &pcm.Net{Netting: n.Offer(a.account).Accept(pcm.DomainNetting, b.account)}}
	}
	owed := func() (sum pcm.Micro) {
		for _, b := range c.state.Balances {
			sum += b.Owed
		}
		return
	}
	c.do(mal, net(mal, eve, 1))
	before := owed()
	r, _ := c.do(anna, net(anna, bert, 1000))
	if struck := before - owed(); r.First() != nil || struck != 1000 {
		t.Errorf("%s of 1000 micro-units were struck: %v", struck, r.First())
	}
}

// Accounts that net without end keep each other from it, and nobody else; what has
// expired makes room again.
func TestNettingQuota(t *testing.T) {
	c, anna := raised()
	name := 0
	owes := func(b, s *actor) {
		t.Helper()
		name++
		job := c.submits(b, fmt.Sprint("job ", name), 1, 0)
		terms := c.terms(b, s, job, span(0, 1), 1)
		id, done := terms.Trade(), good(span(0, 1), 100e9)
		c.do(b, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
		c.do(s, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: done}})
		if r, _ := c.do(b, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: done}}, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: span(0, 1), Amount: 1e9}}); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	net := func(a, b *actor) error {
		name++
		n := pcm.Netting{Mesh: c.genesis.Mesh, ID: pcm.NettingID(idOf("net-", fmt.Sprint(name))), A: a.buyer, B: b.buyer, Unit: pcm.DefaultUnit,
			Lines: []pcm.NettingLine{{Cell: c.genesis.Cell, ByA: 1}}, NotAfter: c.wall + 3_600_000}
		r, _ := c.do(anna, pcm.Op{Net: &pcm.Net{Netting: n.Offer(a.account).Accept(pcm.DomainNetting, b.account)}})
		return r.First()
	}
	fill := func(a, b *actor) (n int) {
		t.Helper()
		for ; ; n++ {
			if err := net(a, b); err != nil {
				if pcm.ErrorCode(err) != pcm.Busy {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	mal := c.enrolled("mal", "mal")
	var friends []*actor
	for i := range 12 {
		f := c.enrolled(fmt.Sprint("friend", i), fmt.Sprint("friend", i))
		c.sells(f, 4)
		owes(mal, f)
		friends = append(friends, f)
	}
	owes(anna, friends[0])
	total := 0
	for i, f := range friends {
		n := fill(mal, f)
		if i == 0 && (n < 10 || n > 100) {
			t.Errorf("two accounts can net %d times", n)
		}
		total += n
	}
	if total < 100 || total > 1000 {
		t.Errorf("one account can net %d times", total)
	}
	if err := net(anna, friends[0]); err != nil {
		t.Errorf("another account is kept from netting: %v", err)
	}
	c.mustAudit(t)
	c.wall += 3_600_000 + 3*pcm.Skew.Milliseconds()
	if err := net(mal, friends[0]); err != nil {
		t.Errorf("what has expired makes no room: %v", err)
	}
	c.mustAudit(t)
}

// What a refused netting comes upon is as it was: no record tells of it, so that whoever
// replays them must come to the same.
func TestNettingRefusedLeavesNothing(t *testing.T) {
	c, anna := raised()
	bert, carl := c.enrolled("bert", "bert"), c.enrolled("carl", "carl")
	c.sells(bert, 4)
	for _, b := range []*actor{anna, carl} {
		job := c.submits(b, "job "+b.name, 1, 0)
		terms := c.terms(b, bert, job, span(0, 1), 1)
		id, done := terms.Trade(), good(span(0, 1), 100e9)
		c.do(b, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}})
		c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: done}})
		if r, _ := c.do(b, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: done}}, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: span(0, 1), Amount: 1e9}}); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	name := 0
	net := func(a, b *actor, valid int64) error {
		name++
		n := pcm.Netting{Mesh: c.genesis.Mesh, ID: pcm.NettingID(idOf("net-", fmt.Sprint(name))), A: a.buyer, B: b.buyer, Unit: pcm.DefaultUnit,
			Lines: []pcm.NettingLine{{Cell: c.genesis.Cell, ByA: 1}}, NotAfter: c.wall + valid}
		r, _ := c.do(anna, pcm.Op{Net: &pcm.Net{Netting: n.Offer(a.account).Accept(pcm.DomainNetting, b.account)}})
		return r.First()
	}
	if err := net(carl, bert, 1000); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 1000 {
		if err = net(anna, bert, 24*3_600_000); err != nil {
			break
		}
	}
	if pcm.ErrorCode(err) != pcm.Busy {
		t.Fatalf("nettings of two accounts have no end: %v", err)
	}
	c.wall += 3_600_000 // the first one has expired, the others have not
	if err := net(anna, bert, 24*3_600_000); pcm.ErrorCode(err) != pcm.Busy {
		t.Fatalf("the two may net again: %v", err)
	}
	c.mustAudit(t)
}
