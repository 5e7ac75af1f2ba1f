package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// TestDealsAbroad has a buyer in one cell dispute, pay and agree about a trade in
// another, from its own peer, and see it before and after it is over.
func TestDealsAbroad(t *testing.T) {
	a := upHere(t, "anna", nil)
	b := upHere(t, "bert", func(c *Config) { c.Join, c.Cell = invited(t, a), "new:east" })
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	home, east := a.id.Mesh.Cell, b.id.Mesh.Cell
	for _, n := range []*Node{a, b} {
		until(t, "the level of this release", func() (ok bool) {
			n.cell.View(func() { ok = n.state.Level() == pcm.LedgerLevel })
			return ok
		})
	}
	until(t, "each cell known in the other", func() bool {
		_, there := a.cellRow(east)
		_, here := b.cellRow(home)
		return there && here
	})
	desk, shop := ghostOf(t, a, a, "desk"), ghostOf(t, a, b, "shop")
	commit := func(in *Node, by ghost, ops ...pcm.Op) {
		t.Helper()
		rs, err := in.cell.Propose(ctx, by.says(in, append([]pcm.Op{{Enroll: &pcm.Enroll{Passport: by.passport}}}, ops...)...))
		if err == nil {
			err = rs[0].First()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	each := pcm.Resources{CPU: 1000, Memory: 1 << 30}
	price := pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000}
	job := pcm.NewJobID()
	commit(b, shop, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Credit: 1e9, Pools: []pcm.Pool{{ID: "local", Adapter: "process", Capacity: each.Times(4), Slots: 4, Price: price}}}})
	commit(a, desk, pcm.Op{Submit: &pcm.Submit{Job: job, Name: "doubt", Spec: pcm.DigestOf([]byte("x")), Steps: []pcm.Shape{{Count: 3}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverNone}})
	terms := pcm.Terms{
		Job: job, Tasks: pcm.Spans{{Lo: 0, Hi: 3}}, Attempt: 1, Buyer: a.account, Spec: pcm.DigestOf([]byte("x")), Driver: desk.key.Peer(), Cell: east, Home: home,
		AwardBy: b.cell.LogTime() + 60_000,
		Seller:  shop.key.Peer(), Pool: "local", Offer: 1, Price: price, Each: each, Width: 3, LimitMS: 100_000, Adapter: "process",
	}
	a.fresh(ctx)
	a.cell.View(func() {
		j, _ := a.state.Job(job)
		terms.Fence = j.Fence + 1
	})
	id := terms.Trade()
	results := []pcm.Result{{Index: 0, Outcome: pcm.OutcomeOK}, {Index: 1, Outcome: pcm.OutcomeOK}, {Index: 2, Outcome: pcm.OutcomeOK}}
	commit(a, desk, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}})
	a.fresh(ctx)
	if _, err := a.DisputeTrade(ctx, id, api.TasksRequest{Reason: "x"}); pcm.ErrorCode(err) != pcm.NotFound || !strings.Contains(err.Error(), "not awarded yet") {
		t.Errorf("what is not awarded yet is disputed: %v", err)
	}
	commit(b, desk, pcm.Op{Award: &pcm.Award{Terms: terms}})
	commit(b, shop, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: results}})

	shown := func(n *Node) (v api.Trade) {
		t.Helper()
		all, err := n.Trades(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range all {
			if tr.ID == id {
				v = tr
			}
		}
		return v
	}
	if v := shown(a); v.Source != api.TradeOfCell || v.Cell != east || v.States[pcm.AttemptFinished] != 3 || v.SellerAccount != b.account {
		t.Errorf("the open trade is shown as %+v", v)
	}
	if tr, err := a.DisputeTrade(ctx, id, api.TasksRequest{Reason: "the outputs are empty"}); err != nil || tr.States[pcm.AttemptDisputed] != 3 || tr.Cell != east {
		t.Fatalf("%+v: %v", tr, err)
	}
	if _, err := a.GiveIn(ctx, id, api.TasksRequest{}); pcm.ErrorCode(err) != pcm.Forbidden {
		t.Errorf("the buyer gives in for its seller: %v", err)
	}
	commit(a, desk, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: results}})
	if tr, err := a.PayTrade(ctx, id, api.TasksRequest{Tasks: "0"}); err != nil || tr.States[pcm.AttemptSettled] != 1 || tr.Paid != "0.1" {
		t.Fatalf("%+v: %v", tr, err)
	}
	// Two offers to end the rest: one by each side, each accepted by the other.
	if _, err := a.ProposeResolution(ctx, id, api.ResolutionRequest{Tasks: "1", Amount: "0.05", ValidFor: "200h"}); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("an offer that outlives its dispute: %v", err)
	}
	res, err := a.ProposeResolution(ctx, id, api.ResolutionRequest{Tasks: "1", Amount: "0.05"})
	if err != nil || res.State != api.AgreementOffered || res.Cell != east || res.Unit != pcm.DefaultUnit || res.Until.IsZero() {
		t.Fatalf("%+v: %v", res, err)
	}
	if g, err := b.Agree(ctx, askedFor(t, b, api.AgreeResolution)); err != nil || g.State != api.AgreementDone {
		t.Fatalf("%+v: %v", g, err)
	}
	if _, err := b.ProposeResolution(ctx, id, api.ResolutionRequest{Tasks: "2", Amount: "0.02"}); err != nil {
		t.Fatal(err)
	}
	if g, err := a.Agree(ctx, askedFor(t, a, api.AgreeResolution)); err != nil || g.State != api.AgreementDone {
		t.Fatalf("%+v: %v", g, err)
	}
	until(t, "both offers to be done at both", func() bool {
		for _, n := range []*Node{a, b} {
			all, err := n.Agreements(ctx)
			if err != nil || len(all) != 2 || all[0].State != api.AgreementDone || all[1].State != api.AgreementDone {
				return false
			}
		}
		return true
	})
	// It is over there and here, and stays to be seen.
	if v := shown(a); v.State != "closed" || v.Paid != "0.17" {
		t.Errorf("the closed trade is shown as %+v", v)
	}
	commit(a, desk, pcm.Op{Clear: &pcm.Clear{Job: job, Trade: id, Paid: 170_000}})
	a.fresh(ctx)
	a.bought = newBought(a) // as after a restart
	if v := shown(a); v.Source != api.TradeOfCell || v.State != "closed" || v.Paid != "0.17" || v.States[pcm.AttemptSettled] != 3 || v.Cell != east || v.Job != job {
		t.Errorf("the cleared trade is shown as %+v", v)
	}
	if _, err := a.PayTrade(ctx, id, api.TasksRequest{}); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("a closed trade is paid: %v", err)
	}
	// Another account of the home cell sees that there was a trade, as home has it.
	other := &bought{n: a, closed: map[pcm.TradeID]api.Trade{}, silent: map[pcm.CellID]time.Time{east: time.Now()}}
	a.bought = other
	if v := shown(a); v.Source != api.TradeOfHome || v.State != "closed" || v.Paid != "0.17" || v.Cell != east {
		t.Errorf("with its cell silent, the trade is shown as %+v", v)
	}
	all, err := a.Balances(ctx)
	if err != nil || len(all) != 1 || all[0].Cell != east || all[0].Owed != "0.17" || all[0].AsOf.IsZero() {
		t.Errorf("balances: %+v, %v", all, err)
	}

	// The debt in the other cell is struck from here, by the other peer's name: first it is
	// looked at, and only what was seen is signed.
	ask := api.NettingRequest{With: "bert", Paid: "all", DryRun: true}
	before, err := a.Agreements(ctx)
	if err != nil {
		t.Fatal(err)
	}
	look, err := a.ProposeNetting(ctx, ask)
	if err != nil || look.State != api.AgreementLooked || look.ID != "" || look.Line != "" || look.Rest != "0.17" || len(look.Lines) != 1 {
		t.Fatalf("%+v: %v", look, err)
	}
	ask.DryRun, ask.Expect = false, []api.AgreementLine{{Cell: east, From: "0.18", To: "0"}}
	if _, err := a.ProposeNetting(ctx, ask); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("what nobody has seen was signed: %v", err)
	}
	if after, err := a.Agreements(ctx); err != nil || len(after) != len(before) {
		t.Errorf("looking has left offers: %+v, %v", after, err)
	}
	if f := a.foundView([]debts{{Cell: pcm.CellID("cell-" + strings.Repeat("c", 16)), AB: 5}, {Cell: east, AB: 5}}); len(f) != 2 || !f[0].Unseen || f[1].Unseen {
		t.Errorf("whose word a debt is does not show: %+v", f)
	}
	ask.Expect = look.Lines
	g, err := a.ProposeNetting(ctx, ask)
	if err != nil || len(g.Lines) != 1 || g.Lines[0].Cell != east || g.Lines[0].From != "0.17" {
		t.Fatalf("%+v: %v", g, err)
	}
	found := map[pcm.CellID]api.AgreementDebt{}
	for _, f := range g.Found {
		found[f.Cell] = f
	}
	if f := found[east]; len(found) != 2 || f.From != "0.17" || f.To != "0" || f.Silent != "" || f.Name != "east" {
		t.Errorf("it was found that %+v", g.Found)
	}
	if _, err := a.Balances(ctx); err != nil {
		t.Fatal(err)
	}
	a.owed.mu.Lock()
	a.owed.at = time.Now().Add(time.Hour) // as if they had just been asked for
	a.owed.mu.Unlock()
	if got, err := b.Agree(ctx, askedFor(t, b, api.AgreeNetting)); err != nil || got.State != api.AgreementDone {
		t.Fatalf("%+v: %v", got, err)
	}
	b.fresh(ctx)
	b.cell.View(func() {
		if owed := b.state.BalanceOf(ledger.BalanceKey{Buyer: a.account, Seller: b.account, Unit: pcm.DefaultUnit}).Owed; owed != 0 {
			t.Errorf("%s is owed after all was struck", owed)
		}
	})
	until(t, "balances that are asked for anew, as something was struck", func() bool {
		all, err := a.Balances(ctx)
		return err == nil && !slices.ContainsFunc(all, func(b api.Balance) bool { return b.Cell == east && b.Owed != "0" })
	})
}

// TestDealInSeveralCells: a cell that refuses, or is silent, keeps no other from an agreement.
func TestDealInSeveralCells(t *testing.T) {
	east, west, north := pcm.CellID("cell-east"), pcm.CellID("cell-north"), pcm.CellID("cell-west")
	k := &deal{Domain: pcm.DomainNetting, Agreed: pcm.Agreed{Second: []byte{1}}}
	k.net.NotAfter = time.Now().Add(time.Hour).UnixMilli()
	for _, c := range []pcm.CellID{east, west, north} {
		k.net.Lines = append(k.net.Lines, pcm.NettingLine{Cell: c, ByA: 1})
	}
	name := func(c pcm.CellID) string { return string(c) }
	state := func() string { return k.state("", time.Now()) }
	silent, bad := pcm.Errorf(pcm.Unavailable, "no answer"), pcm.Errorf(pcm.Conflict, "owes less")
	k.learn([]pcm.CellID{east, west, north}, []error{nil, silent, bad}, name)
	if state() != api.AgreementAgreed || !k.In[east] || k.Refused[north] == "" || !strings.Contains(k.Text, "waits for cell-north") || !strings.Contains(k.Text, "owes less") {
		t.Fatalf("it is %s: %+v", state(), k)
	}
	k.learn([]pcm.CellID{west}, []error{silent}, name)
	if state() != api.AgreementAgreed || !strings.Contains(k.Text, "owes less") {
		t.Fatalf("it is %s: %+v", state(), k)
	}
	k.learn([]pcm.CellID{west}, []error{nil}, name)
	if state() != api.AgreementOver || !strings.Contains(k.Over, "owes less") {
		t.Fatalf("it is %s: %+v", state(), k)
	}
}

// TestToldOfBought: what another cell tells of a trade is shown and acted on only if
// it can be of the trade that home knows.
func TestToldOfBought(t *testing.T) {
	seller := pcm.NewKey()
	account := pcm.NewKey().Account()
	terms := pcm.Terms{
		Job: "job-aaaaaaaaaaaaaaaa", Tasks: pcm.SpansOf([]int{4}), Home: "cell-aaaaaaaaaaaaaaaa", Cell: "cell-bbbbbbbbbbbbbbbb", Width: 1, LimitMS: 1000,
		Seller: seller.Peer(), Price: pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100},
	}
	id := terms.Trade()
	good := func() *ledger.Trade {
		return &ledger.Trade{ID: id, Terms: terms, SellerAccount: account, Held: 100, Attempts: []ledger.Attempt{{
			State: pcm.AttemptDisputed, Result: &pcm.Result{Index: 4, Outcome: pcm.OutcomeOK}, Charge: 100, Reason: "hm",
		}}}
	}
	for _, known := range []pcm.AccountID{"", account} {
		if err := toldOfBought(id, terms, known, good()); err != nil {
			t.Errorf("a plain answer is refused: %v", err)
		}
	}
	for name, lie := range map[string]func(*ledger.Trade){
		"another trade":       func(v *ledger.Trade) { v.ID = "trd-aaaaaaaaaaaaaaaa" },
		"another price":       func(v *ledger.Trade) { v.Terms.Price.PerTask++ },
		"another account":     func(v *ledger.Trade) { v.SellerAccount = pcm.NewKey().Account() },
		"no account":          func(v *ledger.Trade) { v.SellerAccount = "acc-\x1b[2J" },
		"a charge over all":   func(v *ledger.Trade) { v.Attempts[0].Charge = 101 },
		"a charge below zero": func(v *ledger.Trade) { v.Attempts[0].Charge = -1 },
		"a cost over all":     func(v *ledger.Trade) { v.Paid = 101 },
		"a hold below zero":   func(v *ledger.Trade) { v.Held = -1 },
		"an endless reason":   func(v *ledger.Trade) { v.Attempts[0].Reason = strings.Repeat("x", 1000) },
		"an unknown state":    func(v *ledger.Trade) { v.Attempts[0].State = "splendid" },
		"too few attempts":    func(v *ledger.Trade) { v.Attempts = nil },
	} {
		v := good()
		if lie(v); toldOfBought(id, terms, account, v) == nil {
			t.Errorf("an answer with %s is taken", name)
		}
	}

	// A lie about one trade silences the cell about no other.
	other := terms
	other.Tasks, other.Fence = pcm.SpansOf([]int{5}), terms.Fence+1
	truth := good()
	truth.ID, truth.Terms, truth.Attempts[0].Result.Index = other.Trade(), other, 5
	lie := good()
	lie.Paid = 101
	seen := map[pcm.TradeID]*ledger.Trade{id: lie, other.Trade(): truth}
	wrong, err := keepPlausible(map[pcm.TradeID]pcm.Terms{id: terms, other.Trade(): other}, seen, func(pcm.PeerID) pcm.AccountID { return account })
	if wrong != 1 || err == nil || len(seen) != 1 || seen[other.Trade()] != truth {
		t.Errorf("%d are wrong (%v), and %v are left", wrong, err, seen)
	}
}

// TestImpatientLooker: who asks and goes away says nothing of the cells that were asked.
func TestImpatientLooker(t *testing.T) {
	n := upHere(t, "anna", nil)
	gone, leave := context.WithCancel(t.Context())
	leave()
	terms := pcm.Terms{Job: pcm.NewJobID(), Tasks: pcm.SpansOf([]int{0}), Cell: pcm.CellID("cell-" + strings.Repeat("a", 16)), Home: n.id.Mesh.Cell, Width: 1}
	n.bought.askAll(gone, map[pcm.CellID]map[pcm.TradeID]pcm.Terms{terms.Cell: {terms.Trade(): terms}})
	n.balancesAbroad(gone)
	if len(n.bought.silent) > 0 || !n.owed.at.IsZero() {
		t.Errorf("for a while %v count as silent, and balances as asked for at %s", n.bought.silent, n.owed.at)
	}
}
