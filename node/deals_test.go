package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// ghost is a peer without a daemon, of a running node's account.
type ghost struct {
	key      pcm.Key
	passport pcm.Signed
}

func ghostOf(t *testing.T, root, of *Node, name string) ghost {
	t.Helper()
	g := ghost{key: pcm.NewKey()}
	var err error
	g.passport, err = pcm.IssuePassport(*root.id.Root, root.id.Root.Public(), pcm.Signed{}, pcm.Passport{
		Mesh: root.id.Mesh.Mesh, Peer: g.key.Peer(), Account: of.account, Name: name,
		AccountBy: pcm.SignJoin(of.id.Account, root.id.Mesh.Mesh, g.key.Peer()),
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// says is a command of a ghost.
func (g ghost) says(n *Node, ops ...pcm.Op) pcm.Signed {
	return g.key.Seal(pcm.DomainCommand, pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: n.id.Mesh.Mesh, Cell: n.id.Mesh.Cell,
		Peer: g.key.Peer(), NotAfter: n.cell.LogTime() + commandValidity.Milliseconds(), Ops: ops,
	})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); <-time.After(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// askedFor waits until a node is asked to accept an offer of a kind, and returns its ID.
func askedFor(t *testing.T, n *Node, kind string) (id string) {
	t.Helper()
	until(t, "an offer of "+kind, func() bool {
		all, err := n.Agreements(t.Context())
		for _, g := range all {
			if err == nil && g.Kind == kind && g.State == api.AgreementAsked {
				id = g.ID
			}
		}
		return id != ""
	})
	return id
}

// TestDeals takes a dispute to an end that both sides sign, and strikes the debt
// that comes of it, with each side at its own peer.
func TestDeals(t *testing.T) {
	a := upHere(t, "anna", nil)
	b := upHere(t, "bert", func(c *Config) { c.Join = invited(t, a) })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	level := func(n *Node) (l int) { n.cell.View(func() { l = n.state.Level() }); return l }
	for _, n := range []*Node{a, b} {
		until(t, "the level of this release", func() bool { return level(n) == pcm.LedgerLevel })
	}

	// Settings: the only voter decides, others have no say.
	if s, err := a.SetCell(ctx, pcm.SettingMaxMembers, "50"); err != nil || s.Value != "50" || s.Version != 1 {
		t.Fatalf("%+v: %v", s, err)
	}
	until(t, "the setting at the other peer", func() bool {
		all, err := b.CellSettings(ctx)
		return err == nil && len(all) == len(pcm.Settings) && all[1].ID == pcm.SettingMaxMembers && all[1].Value == "50"
	})
	if _, err := a.SetCell(ctx, "max_member", "50"); pcm.ErrorCode(err) != pcm.Invalid || !strings.Contains(err.Error(), "did you mean max_members?") {
		t.Errorf("an unknown setting: %v", err)
	}

	desk, shop := ghostOf(t, a, a, "desk"), ghostOf(t, a, b, "shop")
	commit := func(commands ...pcm.Signed) {
		t.Helper()
		rs, err := a.cell.Propose(ctx, commands...)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rs {
			if r.First() != nil {
				t.Fatal(r.First())
			}
		}
	}
	each := pcm.Resources{CPU: 1000, Memory: 1 << 30}
	price := pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000}
	job := pcm.NewJobID()
	commit(
		shop.says(a, pcm.Op{Enroll: &pcm.Enroll{Passport: shop.passport}}, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Credit: 1e9, Pools: []pcm.Pool{{ID: "local", Adapter: "process", Capacity: each.Times(4), Slots: 4, Price: price}}}}),
		desk.says(a, pcm.Op{Enroll: &pcm.Enroll{Passport: desk.passport}}, pcm.Op{Submit: &pcm.Submit{Job: job, Name: "doubt", Spec: pcm.DigestOf([]byte("x")), Steps: []pcm.Shape{{Count: 2}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverNone}}),
	)
	terms := pcm.Terms{
		Job: job, Tasks: pcm.Spans{{Lo: 0, Hi: 2}}, Attempt: 1, Buyer: a.account, Spec: pcm.DigestOf([]byte("x")), Driver: desk.key.Peer(), Cell: a.id.Mesh.Cell,
		Seller: shop.key.Peer(), Pool: "local", Offer: 1, Price: price, Each: each, Width: 2, LimitMS: 100_000, Adapter: "process",
	}
	a.fresh(ctx)
	a.cell.View(func() {
		j, _ := a.state.Job(job)
		terms.Fence = j.Fence + 1
	})
	id := terms.Trade()
	results := []pcm.Result{{Index: 0, Outcome: pcm.OutcomeOK}, {Index: 1, Outcome: pcm.OutcomeOK}}
	commit(
		desk.says(a, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}),
		shop.says(a, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: results}}),
	)
	knows := func(n *Node, state pcm.AttemptState) func() bool {
		return func() (all bool) {
			n.cell.View(func() {
				tr, ok := n.state.Trade(id)
				all = ok && tr.Attempt(0).State == state && tr.Attempt(1).State == state
			})
			return all
		}
	}
	until(t, "the results at the seller's peer", knows(b, pcm.AttemptFinished))
	if _, err := b.DisputeTrade(ctx, id, api.TasksRequest{Reason: "x"}); pcm.ErrorCode(err) != pcm.Forbidden {
		t.Errorf("the seller disputes: %v", err)
	}
	if _, err := a.ProposeResolution(ctx, id, api.ResolutionRequest{Amount: "0.1"}); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("what is in no dispute is to be resolved: %v", err)
	}
	if tr, err := a.DisputeTrade(ctx, id, api.TasksRequest{Reason: "the outputs are empty"}); err != nil || tr.States[pcm.AttemptDisputed] != 2 {
		t.Fatalf("%+v: %v", tr, err)
	}
	commit(desk.says(a, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: results}}))
	until(t, "the dispute at the seller's peer", knows(b, pcm.AttemptDisputed))
	if _, err := b.ProposeResolution(ctx, id, api.ResolutionRequest{Amount: "0.3"}); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("more than is held: %v", err)
	}
	res, err := b.ProposeResolution(ctx, id, api.ResolutionRequest{Amount: "0.05", Note: "half of it was good"})
	if err != nil || res.State != api.AgreementOffered || res.Tasks != "0-1" {
		t.Fatalf("%+v: %v", res, err)
	}
	if _, err := b.Agree(ctx, res.ID); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("its own offer is accepted: %v", err)
	}
	// It reached the buyer's peer by itself; the line alone would do as well.
	if got := askedFor(t, a, api.AgreeResolution); got != res.ID {
		t.Fatalf("the buyer is asked for %s, the seller offered %s", got, res.ID)
	}
	if g, err := a.Agree(ctx, res.Line); err != nil || g.State != api.AgreementDone {
		t.Fatalf("%+v: %v", g, err)
	}
	owed := func(n *Node) (sum pcm.Micro) {
		n.cell.View(func() {
			sum = n.state.BalanceOf(ledger.BalanceKey{Buyer: a.account, Seller: b.account, Unit: pcm.DefaultUnit}).Owed
		})
		return sum
	}
	until(t, "the debt at both", func() bool { return owed(a) == 50_000 && owed(b) == 50_000 })

	// Now the debt: the creditor offers to strike what was paid.
	if _, err := b.ProposeNetting(ctx, api.NettingRequest{With: "anna", Paid: "0.06"}); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("more was paid than is owed: %v", err)
	}
	if _, err := b.ProposeNetting(ctx, api.NettingRequest{With: "anna"}); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("nothing to set off: %v", err)
	}
	if g, err := b.ProposeNetting(ctx, api.NettingRequest{With: "anna", Paid: "0.02"}); err != nil || g.Rest != "0.02" || g.Payer != a.account {
		t.Fatalf("%+v: %v", g, err)
	}
	if g, err := a.Agree(ctx, askedFor(t, a, api.AgreeNetting)); err != nil || g.State != api.AgreementDone {
		t.Fatalf("%+v: %v", g, err)
	}
	until(t, "a smaller debt", func() bool { return owed(a) == 30_000 && owed(b) == 30_000 })
	g, err := a.ProposeNetting(ctx, api.NettingRequest{With: string(b.account), Paid: "all"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Agree(ctx, g.ID); err != nil || got.State != api.AgreementDone {
		t.Fatalf("%+v: %v", got, err)
	}
	until(t, "no debt", func() bool { return owed(a) == 0 && owed(b) == 0 })
	until(t, "the offer to be done at who made it", func() bool {
		all, err := a.Agreements(ctx)
		return err == nil && all[0].ID == g.ID && all[0].State == api.AgreementDone
	})
	if v, err := a.Verify(ctx); err != nil || !v.OK {
		t.Errorf("the ledger: %+v: %v", v, err)
	}
	// What was said is there after a restart.
	again, err := openDeals(a)
	if err != nil || len(again.list) != 3 {
		t.Errorf("%d offers are read back: %v", len(again.list), err)
	}
}

// TestStrikes holds that a netting never strikes more than is owed in any cell, and
// leaves one side owing nothing when all is paid.
func TestStrikes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []debts
		var ab, ba pcm.Micro
		for _, d := range rapid.SliceOfN(rapid.IntRange(0, 99), 2, 8).Draw(t, "debts") {
			x := debts{Cell: pcm.NewCellID(), AB: pcm.Micro(d / 10), BA: pcm.Micro(d % 10)}
			all, ab, ba = append(all, x), ab+x.AB, ba+x.BA
		}
		left := max(ab, ba) - min(ab, ba)
		paid, everything := pcm.Micro(rapid.IntRange(0, int(left)+1).Draw(t, "paid")), rapid.Bool().Draw(t, "all")
		lines, err := strikes(all, paid, everything)
		if everything {
			paid = left
		}
		if bad := paid > left || min(ab, ba)+paid == 0; bad != (err != nil) {
			t.Fatalf("%v for %s of %v", err, paid, all)
		}
		if err != nil {
			if paid == 0 && strings.Contains(err.Error(), "--paid") != (left > 0) { // where nothing is owed, nothing was paid
				t.Fatalf("%s and %s are owed: %v", ab, ba, err)
			}
			return
		}
		var byA, byB pcm.Micro
		for _, l := range lines {
			for _, d := range all {
				if d.Cell == l.Cell && (l.ByA > d.AB || l.ByB > d.BA) {
					t.Fatalf("%+v strikes more than %+v", l, d)
				}
			}
			byA, byB = byA+l.ByA, byB+l.ByB
		}
		if min(byA, byB) != min(ab, ba) || max(byA, byB)-min(byA, byB) != paid {
			t.Fatalf("%s and %s are struck of %s and %s, with %s paid", byA, byB, ab, ba, paid)
		}
	})
}
