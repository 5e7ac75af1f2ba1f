package node

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// foreignTrade is a job with two tasks placed in the other cell by carl, of another account
// than the buyer's, before any award.
func foreignTrade(t *testing.T) (w *twoCells, carl *simPeer, terms pcm.Terms) {
	w = newTwoCells(t, 1)
	carl = w.buyer[2]
	w.must(w.home, carl, pcm.Op{Enroll: &pcm.Enroll{Passport: carl.passport}})
	w.pass(13_000)
	w.must(w.home, carl, pcm.Op{Drive: &pcm.Drive{Job: w.job, Term: 2}})
	w.driver, w.term, w.shown = 2, 2, false
	for len(w.trades) == 0 {
		w.place()
	}
	for _, tr := range w.trades {
		terms = tr.terms
	}
	return w, carl, terms
}

// A voter attests what its ledger says, and nothing else.
func TestAttestsWhatIs(t *testing.T) {
	w, carl, terms := foreignTrade(t)
	good := pcm.Attestation{
		Mesh: w.home.genesis.Mesh, Home: w.home.genesis.Cell, Mandate: pcm.DigestOf(w.mandate.Payload), Job: w.job, Term: 2, Driver: carl.id,
		Terms: pcm.DigestOf(pcm.MustMarshal(terms)),
	}
	if err := trueOf(w.home.state, good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*pcm.Attestation){
		"another driver":      func(at *pcm.Attestation) { at.Driver = w.buyer[0].id },
		"a term that is over": func(at *pcm.Attestation) { at.Term = 1 },
		"the next term":       func(at *pcm.Attestation) { at.Term = 3 },
		"another job":         func(at *pcm.Attestation) { at.Job = "job-bbbbbbbbbbbbbbbb" },
		"another mandate":     func(at *pcm.Attestation) { at.Mandate = pcm.DigestOf([]byte("another")) },
		"no mandate":          func(at *pcm.Attestation) { at.Mandate = "" },
		"terms not placed": func(at *pcm.Attestation) {
			other := terms
			other.LimitMS++
			at.Terms = pcm.DigestOf(pcm.MustMarshal(other))
		},
	} {
		at := good
		change(&at)
		if trueOf(w.home.state, at) == nil {
			t.Errorf("it attests %s", what)
		}
	}
	// What was given up is placed no more.
	w.must(w.home, carl, pcm.Op{Abandon: &pcm.Abandon{Job: w.job, Term: 2, Trade: terms.Trade(), Tasks: terms.Tasks, Fault: pcm.FaultSeller, Reason: "silent"}})
	if trueOf(w.home.state, good) == nil {
		t.Error("it attests terms whose tasks were given up")
	}
}

func digest(t pcm.Terms) pcm.Digest { return pcm.DigestOf(pcm.MustMarshal(t)) }

// A seller signs what its ledger says of a trade, and nothing else.
func TestReceiptSaysWhatIs(t *testing.T) {
	w, carl, terms := foreignTrade(t)
	r := pcm.Receipt{Mesh: w.away.genesis.Mesh, Cell: w.away.genesis.Cell, Trade: terms.Trade(), Free: terms.Tasks, Unsold: true, Terms: digest(terms)}
	told := func() *ledger.Trade { tr, _ := w.away.state.Trade(terms.Trade()); return tr }
	early := terms // the same ID
	early.AwardBy = 1
	if trueReceipt(w.away.state, nil, &early, r) == nil {
		t.Error("for terms whose time is over, it signs that those are not sold whose time is not")
	}
	signs := func(r pcm.Receipt) bool { return trueReceipt(w.away.state, told(), &terms, r) == nil }
	if signs(r) {
		t.Error("it signs that a trade was never sold that still can be")
	}
	w.must(w.away, carl, pcm.Op{Enroll: &pcm.Enroll{Passport: carl.passport}}, pcm.Op{Succeed: &pcm.Succeed{Job: w.job, Home: terms.Home, Term: 2, Mandate: &w.mandate, Attest: w.attest("")}})
	soon := terms
	soon.AwardBy = w.away.stamp + 1_000
	w.must(w.away, carl, pcm.Op{Void: &pcm.Void{Terms: soon}})
	if signs(r) {
		t.Error("it signs that a trade is never to be sold that is void for a moment")
	}
	w.pass(1_001)
	award := w.attested([]pcm.Op{{Award: &pcm.Award{Terms: terms}}})
	w.must(w.away, carl, award...)
	i := terms.Tasks[0].Lo
	result := pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: 5}}
	of := pcm.Receipt{Mesh: r.Mesh, Cell: r.Cell, Trade: r.Trade, Results: []pcm.Result{result}}
	free := pcm.Receipt{Mesh: r.Mesh, Cell: r.Cell, Trade: r.Trade, Free: pcm.Spans{{Lo: i, Hi: i + 1}}}
	if signs(r) || signs(of) || signs(free) {
		t.Error("it signs something of what was awarded and has not ended")
	}
	w.must(w.away, w.sells, pcm.Op{Finish: &pcm.Finish{Trade: terms.Trade(), Results: []pcm.Result{result}}})
	if !signs(of) || signs(free) || signs(r) {
		t.Error("it doesn't sign what it finished with, or something else")
	}
	of.Results[0].Usage.WallMS++
	if signs(of) {
		t.Error("it signs another result than it finished with")
	}
	// Void for as long as the terms say, though it was for less long before.
	third := terms
	third.Fence, third.AwardBy = terms.Fence+2, w.away.stamp+30_000
	brief := third
	brief.AwardBy = w.away.stamp + 1_000
	w.must(w.away, carl, pcm.Op{Void: &pcm.Void{Terms: brief}})
	w.must(w.away, carl, pcm.Op{Void: &pcm.Void{Terms: third}})
	w.pass(2_000)
	if err := trueReceipt(w.away.state, nil, &third, pcm.Receipt{Trade: third.Trade(), Free: third.Tasks, Unsold: true, Terms: digest(third)}); err != nil {
		t.Error(err)
	}
	// A trade that nobody bought, and its time is over: it can't be any more.
	other := terms
	other.Fence++
	r.Trade, r.Terms = other.Trade(), digest(other)
	if trueReceipt(w.away.state, nil, &terms, r) == nil {
		t.Error("it signs for terms of another trade")
	}
	w.pass(other.AwardBy + 1 - w.away.stamp)
	if err := trueReceipt(w.away.state, nil, &other, r); err != nil {
		t.Error(err)
	}
}

// What a seller doesn't sign for long is given up, and stays set aside.
func TestWithoutReceipt(t *testing.T) {
	d := &driver{n: &Node{id: &identity{}}}
	tr := &abroadTrade{own: "acc-x"}
	now := time.Now()
	ops := []pcm.Op{
		{Accept: &pcm.Accept{Job: "job-x", Term: 4, Trade: "trd-x", Results: []pcm.Result{{Index: 3, Outcome: pcm.OutcomeOK}, {Index: 1, Outcome: pcm.OutcomeOK}}}},
		{Abandon: &pcm.Abandon{Job: "job-x", Term: 4, Trade: "trd-x", Tasks: pcm.Spans{{Lo: 5, Hi: 6}}, Fault: pcm.FaultSeller, Over: true, Unsold: true}},
	}
	tr.takeWarrants(warranted{err: pcm.Errorf(pcm.Unavailable, "it is down")}, now)
	if got := d.warrant(tr, ops, now); len(got) > 0 {
		t.Fatalf("just after a failure there is %+v", got)
	}
	got := d.warrant(tr, ops, now.Add(receiptGives+time.Second))
	if len(got) != 2 || got[0].Abandon == nil || got[0].Abandon.Tasks.String() != "1,3" || got[1].Abandon.Tasks.String() != "5" {
		t.Fatalf("without a receipt for long there is %+v", got)
	}
	for _, op := range got {
		if _, needed := pcm.ReceiptOf(op, "", &pcm.Terms{}); needed || op.Abandon.Fault != pcm.FaultSeller || op.Abandon.Term != 4 || op.Abandon.Reason == "" && op.Abandon.Tasks.Has(1) {
			t.Errorf("it still needs a receipt, or says nothing: %+v", op.Abandon)
		}
	}
	// What was signed goes first, and the failure is over.
	tr.takeWarrants(warranted{ops: ops[:1]}, now)
	if got := d.warrant(tr, ops, now.Add(receiptGives+time.Second)); len(got) != 1 || got[0].Accept == nil {
		t.Errorf("what was signed is not proposed: %+v", got)
	}
}
