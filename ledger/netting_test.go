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
	c.owes(t, anna, bert, "a")
	c.owes(t, mal, eve, "b")
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

// nets has somebody bring a netting of two actors by which the first owes a micro-unit less; valid is for how long it is, ms.
func (c *cell) nets(a, b, by *actor, valid int64) error {
	n := pcm.Netting{Mesh: c.genesis.Mesh, ID: pcm.NettingID(idOf("net-", fmt.Sprint(c.index))), A: a.buyer, B: b.buyer, Unit: pcm.DefaultUnit,
		Lines: []pcm.NettingLine{{Cell: c.genesis.Cell, ByA: 1}}, NotAfter: c.wall + valid}
	r, _ := c.do(by, pcm.Op{Net: &pcm.Net{Netting: n.Offer(a.account).Accept(pcm.DomainNetting, b.account)}})
	return r.First()
}

// Accounts that net without end keep each other from it, and nobody else; what has
// expired makes room again.
func TestNettingQuota(t *testing.T) {
	c, anna := raised()
	fill := func(a, b *actor) (n int) {
		t.Helper()
		for ; ; n++ {
			if err := c.nets(a, b, anna, 3_600_000); err != nil {
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
		c.owes(t, mal, f, fmt.Sprint("job ", i))
		friends = append(friends, f)
	}
	c.owes(t, anna, friends[0], "another job")
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
	if err := c.nets(anna, friends[0], anna, 3_600_000); err != nil {
		t.Errorf("another account is kept from netting: %v", err)
	}
	c.mustAudit(t)
	c.wall += 3_600_000 + 3*pcm.Skew.Milliseconds()
	if err := c.nets(mal, friends[0], anna, 3_600_000); err != nil {
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
	c.owes(t, anna, bert, "job anna")
	c.owes(t, carl, bert, "job carl")
	if err := c.nets(carl, bert, anna, 1000); err != nil {
		t.Fatal(err)
	}
	var err error
	for range 1000 {
		if err = c.nets(anna, bert, anna, 24*3_600_000); err != nil {
			break
		}
	}
	if pcm.ErrorCode(err) != pcm.Busy {
		t.Fatalf("nettings of two accounts have no end: %v", err)
	}
	c.wall += 3_600_000 // the first one has expired, the others have not
	if err := c.nets(anna, bert, anna, 24*3_600_000); pcm.ErrorCode(err) != pcm.Busy {
		t.Fatalf("the two may net again: %v", err)
	}
	c.mustAudit(t)
}
