package ledger_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// foreignWorld is a job's cell and a seller's, with drivers of other accounts than the
// buyer's who try everything. One of three attesters signs whatever it is asked to, and one
// of two sellers, of a driver's own account, does too; the others are honest.
type foreignWorld struct {
	t          *testing.T
	r          *rand.Rand
	home, away *cell
	anna       *actor
	foreign    []*actor // carl, who lies, and emil
	carl, dora *actor
	bert, cleo *actor
	job        pcm.JobID
	mandate    pcm.Signed
	budget     pcm.Micro

	driven   map[string]bool                // by peer and term, ever
	placed   map[pcm.Digest]bool            // terms, ever
	known    []pcm.Terms                    // placed, or made up
	attested []*pcm.Attested                // all that quorums have signed, to be shown again
	holder   pcm.PeerID                     // who acts in the seller's cell; "": nobody but the buyer
	term     uint64                         // in which
	ended    map[pcm.TradeID]map[int]string // how honest sellers ended attempts
	seen     map[string]int
}

func newForeignWorld(t *testing.T, seed uint64, seen map[string]int) *foreignWorld {
	w := &foreignWorld{
		t: t, r: rand.New(rand.NewPCG(seed, 3)), home: newCellNamed("home"), away: newCellNamed("away"), budget: 2_000_000,
		driven: map[string]bool{}, placed: map[pcm.Digest]bool{}, ended: map[pcm.TradeID]map[int]string{}, seen: seen,
	}
	w.away.stamp = 700_000
	for _, c := range []*cell{w.home, w.away} {
		for _, who := range [][2]string{{"anna", "anna"}, {"carl", "carl"}, {"dora", "dora"}, {"emil", "emil"}, {"bert", "bert"}, {"cleo", "carl"}} {
			c.enrolled(who[0], who[1])
		}
		a := c.peers["anna"]
		c.do(a, noteKeyOf(a, false), pcm.Op{Upgrade: &pcm.Upgrade{Level: pcm.LedgerLevel}})
	}
	p := w.home.peers
	w.anna, w.carl, w.dora, w.bert, w.cleo = p["anna"], p["carl"], p["dora"], p["bert"], p["cleo"]
	w.foreign = []*actor{w.carl, p["emil"]}
	w.away.sells(w.bert, 6)
	w.away.sells(w.cleo, 6)
	w.job = jobID("far")
	sub := &pcm.Submit{
		Job: w.job, Name: "far", Spec: pcm.DigestOf([]byte("far")), Steps: []pcm.Shape{{Count: 30, Retries: 1}},
		Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAny, Budget: w.budget,
	}
	var err error
	if w.mandate, err = pcm.NewMandate(w.anna.key, pcm.Mandate{
		Mesh: w.home.genesis.Mesh, Home: w.home.genesis.Cell, Job: w.job, Spec: sub.Spec, Buyer: w.anna.buyer, Unit: sub.Unit, Budget: w.budget, Passport: w.anna.passport,
	}, []pcm.PeerID{w.anna.peer, w.carl.peer, w.dora.peer}, time.UnixMilli(w.home.wall)); err != nil {
		t.Fatal(err)
	}
	sub.Mandate = &w.mandate
	if r, _ := w.home.do(w.anna, pcm.Op{Submit: sub}); r.First() != nil {
		t.Fatal(r.First())
	}
	w.driven[driving(w.anna.peer, 1)] = true
	return w
}

func driving(peer pcm.PeerID, term uint64) string { return fmt.Sprint(peer, " ", term) }

func (w *foreignWorld) chance(percent int) bool { return w.r.IntN(100) < percent }

func (w *foreignWorld) any(of ...*actor) *actor { return of[w.r.IntN(len(of))] }

func (w *foreignWorld) now() *ledger.Job { j, _ := w.home.job(w.job); return j }

// attest collects signatures: carl signs all, dora what is true, anna's peer is away, and
// now and then a signature is forged. Or it shows again what was signed before.
func (w *foreignWorld) attest(by *actor, term uint64, terms *pcm.Terms) *pcm.Attested {
	if len(w.attested) > 0 && w.chance(15) {
		return w.attested[w.r.IntN(len(w.attested))]
	}
	at := pcm.Attestation{
		Mesh: w.home.genesis.Mesh, Home: w.home.genesis.Cell, Mandate: pcm.DigestOf(w.mandate.Payload), Job: w.job, Term: term,
		Driver: by.peer, NotAfter: w.home.wall + 300_000,
	}
	j := w.now()
	honest := j.Driver == by.peer && j.Term == term
	if terms != nil {
		at.Terms = pcm.DigestOf(pcm.MustMarshal(*terms))
		honest = honest && w.placed[at.Terms]
	}
	m, err := pcm.OpenMandate(w.mandate)
	if err != nil {
		w.t.Fatal(err)
	}
	a := &pcm.Attested{Payload: pcm.MustMarshal(at), Sigs: make([][]byte, 3)}
	a.Sigs[slices.Index(m.Attesters, w.carl.peer)] = w.carl.key.Sign(pcm.DomainAttest, a.Payload)
	switch dora := slices.Index(m.Attesters, w.dora.peer); {
	case honest && w.chance(90):
		a.Sigs[dora] = w.dora.key.Sign(pcm.DomainAttest, a.Payload)
		w.attested = append(w.attested, a)
	case w.chance(30):
		a.Sigs[dora] = w.carl.key.Sign(pcm.DomainAttest, a.Payload)
	case w.chance(30): // twice the same
		a.Sigs[dora] = a.Sigs[slices.Index(m.Attesters, w.carl.peer)]
	}
	return a
}

// try has a command applied and tells whether its operation was taken.
func (w *foreignWorld) try(c *cell, by *actor, op pcm.Op) bool {
	r, _ := c.do(by, op)
	w.seen[fmt.Sprint(op.Kind(), " ", by.buyer != w.anna.buyer, " ", r.First() == nil)]++
	return r.First() == nil
}

func (w *foreignWorld) step() {
	all := append([]*actor{w.anna}, w.foreign...)
	switch k := w.r.IntN(30); {
	case k == 0: // another driver
		if w.chance(50) {
			w.pass(13_000)
		}
		by, term := w.any(all...), w.now().Term+1
		if w.try(w.home, by, pcm.Op{Drive: &pcm.Drive{Job: w.job, Term: term}}) {
			w.driven[driving(by.peer, term)] = true
		}
	case k <= 3:
		w.succeed(w.mostly(w.now().Driver, all))
	case k <= 7:
		w.place()
	case k <= 12:
		w.award()
	case k <= 18:
		w.sellers()
	case k <= 22:
		w.act(w.mostly(w.holder, all))
	case k <= 26:
		w.decide()
	default:
		w.pass(w.r.Int64N(5_000))
		for _, s := range []*actor{w.bert, w.cleo} {
			w.away.do(s, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
		}
	}
}

// mostly is the actor of a peer, or now and then another.
func (w *foreignWorld) mostly(peer pcm.PeerID, all []*actor) *actor {
	if i := slices.IndexFunc(all, func(a *actor) bool { return a.peer == peer }); i >= 0 && w.chance(75) {
		return all[i]
	}
	return w.any(all...)
}

func (w *foreignWorld) pass(ms int64) {
	w.home.pass(time.Duration(ms) * time.Millisecond)
	w.away.pass(time.Duration(ms) * time.Millisecond)
}

func (w *foreignWorld) succeed(by *actor) {
	term := w.now().Term
	if w.chance(30) {
		term += 1 - uint64(w.r.IntN(3))
	}
	op := &pcm.Succeed{Job: w.job, Home: w.home.genesis.Cell, Term: term}
	if by != w.anna {
		op.Mandate, op.Attest = &w.mandate, w.attest(by, term, nil)
	}
	if !w.try(w.away, by, pcm.Op{Succeed: op}) {
		return
	}
	switch {
	case by == w.anna && w.holder == "":
		return // there was nobody to recall
	case by != w.anna && !w.driven[driving(by.peer, term)]:
		w.t.Fatalf("%s acts for the buyer in term %d, in which it never drove", by.name, term)
	case term < w.term:
		w.t.Fatalf("%s acts for the buyer in term %d, after %d", by.name, term, w.term)
	}
	w.holder, w.term = by.peer, term
}

func (w *foreignWorld) place() {
	j := w.now()
	if j.Driver == w.anna.peer { // the budget is for the others to spend here
		return
	}
	var tasks []int
	attempt := 0
	for i := range j.Steps[0].Tasks {
		if tk := &j.Steps[0].Tasks[i]; tk.State == pcm.TaskWaiting && (attempt == 0 || tk.Attempt+1 == attempt) && len(tasks) <= w.r.IntN(3) {
			attempt, tasks = tk.Attempt+1, append(tasks, i)
		}
	}
	if len(tasks) == 0 {
		return
	}
	by := w.foreign[slices.IndexFunc(w.foreign, func(a *actor) bool { return a.peer == j.Driver })]
	t := w.home.terms(by, w.any(w.bert, w.bert, w.bert, w.cleo), w.job, pcm.SpansOf(tasks), len(tasks))
	t.Home, t.Cell, t.AwardBy, t.Offer = w.home.genesis.Cell, w.away.genesis.Cell, w.away.stamp+60_000, 1
	w.known = append(w.known, t)
	if w.try(w.home, by, pcm.Op{Place: &pcm.Place{Term: j.Term, Terms: t}}) {
		w.placed[pcm.DigestOf(pcm.MustMarshal(t))] = true
	}
}

func (w *foreignWorld) award() {
	if len(w.known) == 0 {
		return
	}
	t := w.known[len(w.known)-1-w.r.IntN(min(4, len(w.known)))]
	by := w.any(w.foreign...)
	if w.chance(80) {
		by = w.foreign[slices.IndexFunc(w.foreign, func(a *actor) bool { return a.peer == t.Driver })]
	}
	if w.chance(15) { // what was never placed
		switch t.Driver = by.peer; w.r.IntN(3) {
		case 0:
			t.Fence += 1000
		case 1:
			t.LimitMS *= 2
		}
	}
	term := w.now().Term - uint64(w.r.IntN(5)/4)
	_, again := w.away.state.Trade(t.Trade()) // then nothing follows
	if w.try(w.away, by, pcm.Op{Award: &pcm.Award{Terms: t, Attest: w.attest(by, term, &t)}}) && !again {
		tr, _ := w.away.trade(t.Trade())
		if w.holder != by.peer || tr.SellerAccount == by.buyer || !w.placed[pcm.DigestOf(pcm.MustMarshal(t))] {
			w.t.Fatalf("%s, who may not, bought %+v", by.name, t)
		}
	}
}

// sellers have attempts end.
func (w *foreignWorld) sellers() {
	for _, tr := range w.away.state.Trades() {
		by := w.bert
		if tr.Terms.Seller == w.cleo.peer {
			by = w.cleo
		}
		for i, at := range tr.All {
			if !at.State.Live() || w.chance(60) {
				continue
			}
			if w.ended[tr.ID] == nil {
				w.ended[tr.ID] = map[int]string{}
			}
			res := good(span(i, i+1), time.Duration(1+w.r.IntN(90))*time.Second)
			if w.chance(25) {
				res[0].Outcome, res[0].ExitCode = pcm.OutcomeFailed, 1
			}
			op := pcm.Op{Finish: &pcm.Finish{Trade: tr.ID, Results: res}}
			w.ended[tr.ID][i] = string(pcm.MustMarshal(res[0]))
			if w.chance(30) {
				op = pcm.Op{Reject: &pcm.Reject{Trade: tr.ID, Tasks: span(i, i+1), Reason: "no"}}
				w.ended[tr.ID][i] = "rejected"
			}
			w.try(w.away, by, op)
			return
		}
	}
}

// act has somebody do, in the seller's cell, what is for the buyer's side to do.
func (w *foreignWorld) act(by *actor) {
	if len(w.known) == 0 {
		return
	}
	t := w.known[w.r.IntN(len(w.known))]
	if open := w.away.state.Trades(); len(open) > 0 && w.chance(85) {
		t = open[w.r.IntN(len(open))].Terms
	}
	one := span(t.Tasks[0].Lo, t.Tasks[0].Lo+1)
	op := []pcm.Op{
		{Settle: &pcm.Settle{Trade: t.Trade(), Tasks: one, Amount: 1_000_000}}, {Settle: &pcm.Settle{Trade: t.Trade(), Tasks: t.Tasks, Amount: 9_000_000}},
		{Stop: &pcm.Stop{Trade: t.Trade(), Tasks: one, Reason: "so"}},
		{Dispute: &pcm.Dispute{Trade: t.Trade(), Tasks: one, Reason: "no"}},
		{Void: &pcm.Void{Terms: t}},
	}[w.r.IntN(5)]
	tr, _ := w.away.trade(t.Trade())
	disputed := tr != nil && tr.Attempt(one[0].Lo) != nil && tr.Attempt(one[0].Lo).State == pcm.AttemptDisputed
	if w.try(w.away, by, op) && by != w.anna {
		if by.peer != w.holder || op.Void == nil && tr.SellerAccount == by.buyer || op.Settle != nil && disputed {
			w.t.Fatalf("%s may not %s", by.name, op.Kind())
		}
	}
}

// decide has the job's driver decide tasks at home, with what a seller signs: bert what is
// so, cleo anything.
func (w *foreignWorld) decide() {
	j := w.now()
	if len(j.Places) == 0 {
		return
	}
	p := j.Places[w.r.IntN(len(j.Places))]
	i := p.Terms.Tasks[0].Lo
	for k := range p.Terms.Tasks.All { // mostly one that has ended
		if tk := j.Steps[0].Tasks[k]; w.ended[p.Trade][k] != "" && tk.State == pcm.TaskPlaced && tk.Trade == p.Trade && w.chance(80) {
			i = k
		}
	}
	by := w.any(append([]*actor{w.anna}, w.foreign...)...)
	for _, a := range w.foreign {
		if a.peer == j.Driver && w.chance(80) {
			by = a
		}
	}
	ended := w.ended[p.Trade][i]
	res := good(span(i, i+1), time.Second)[0]
	if ended != "" && ended != "rejected" && w.chance(80) {
		if err := pcm.Unmarshal([]byte(ended), &res); err != nil {
			w.t.Fatal(err)
		}
	}
	over := &pcm.Abandon{Job: w.job, Term: j.Term, Trade: p.Trade, Tasks: span(i, i+1), Fault: pcm.FaultSeller, Over: true}
	op := []pcm.Op{
		{Accept: &pcm.Accept{Job: w.job, Term: j.Term, Trade: p.Trade, Results: []pcm.Result{res}}},
		{Abandon: &pcm.Abandon{Job: w.job, Term: j.Term, Trade: p.Trade, Tasks: span(i, i+1), Fault: pcm.FaultTask, Results: []pcm.Result{res}}},
		{Abandon: over},
		{Clear: &pcm.Clear{Job: w.job, Trade: p.Trade}},
	}[w.r.IntN(4)]
	if r, needed := pcm.ReceiptOf(op, w.home.genesis.Mesh, p.Terms); needed {
		same := len(r.Results) == 0 && ended == "rejected" || len(r.Results) == 1 && ended == string(pcm.MustMarshal(res))
		signer := w.bert // whoever is asked, the seller of this trade must have signed
		if cleo := p.Terms.Seller == w.cleo.peer; cleo || !same {
			signer = w.cleo
		}
		sig := r.Sign(signer.key)
		if op.Accept != nil {
			op.Accept.Receipt = sig
		} else {
			op.Abandon.Receipt = sig
		}
	}
	if !w.try(w.home, by, op) || by == w.anna {
		return
	}
	switch {
	case op.Clear != nil:
		w.t.Fatalf("%s says what a trade has cost", by.name)
	case p.Terms.Seller == w.cleo.peer: // signs what she likes
	case len(op.Kind()) > 0 && op.Accept != nil && ended != string(pcm.MustMarshal(res)), op.Abandon != nil && op.Abandon.Over && ended != "rejected":
		w.t.Fatalf("home believes %s something that bert has not signed: %s", by.name, op.Kind())
	}
}

// check recomputes what must hold in both cells.
func (w *foreignWorld) check() {
	for _, c := range []*cell{w.home, w.away} {
		if err := c.state.Check(); err != nil {
			w.t.Fatal(err)
		}
	}
	var spent pcm.Micro
	count := func(tr *ledger.Trade) {
		if tr.Mandate == "" {
			return
		}
		if spent += tr.Paid; tr.ClosedAt == 0 {
			spent += pcm.MulMicro(tr.Terms.HoldEach(), len(tr.Attempts)) - tr.Paid
		}
	}
	for _, tr := range w.away.state.Trades() {
		count(tr)
	}
	for _, key := range slices.Sorted(maps.Keys(w.away.docs)) {
		if len(key) > 6 && key[:6] == "trade/" {
			tr := new(ledger.Trade)
			if err := pcm.UnmarshalLarge(w.away.docs[key], tr); err != nil {
				w.t.Fatal(err)
			}
			count(tr)
		}
	}
	if spent > w.budget {
		w.t.Fatalf("drivers of other accounts have spent %s of %s", spent, w.budget)
	}
	if j := w.now(); w.driven[driving(j.Driver, j.Term)] == false {
		w.t.Fatalf("%s drives in term %d", j.Driver, j.Term)
	}
}

// TestForeignDrivers plays that at random: whatever they try, they act for the buyer only
// in terms in which they drive, buy only what is placed, never from themselves or beyond the
// mandate, and have home believe nothing that an honest seller has not signed.
func TestForeignDrivers(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(25) {
		w := newForeignWorld(t, seed, seen)
		for range 400 {
			w.step()
			w.check()
		}
		w.home.mustAudit(t)
		w.away.mustAudit(t)
	}
	t.Log(seen)
	for _, kind := range []string{"succeed", "award", "settle", "stop", "void", "accept", "abandon", "place", "drive"} {
		if seen[kind+" true true"] < 5 || seen[kind+" true false"] < 5 && kind != "place" {
			t.Errorf("%s by drivers of other accounts was taken %d times and refused %d times: no good test of it", kind, seen[kind+" true true"], seen[kind+" true false"])
		}
	}
	if seen["clear true true"] > 0 || seen["clear true false"] == 0 {
		t.Error("clear by drivers of other accounts")
	}
}

// mandateOf signs a mandate of an actor's for a job that is at home elsewhere, with one attester.
func (c *cell) mandateOf(a, attester *actor, name string) (pcm.Mandate, pcm.Signed) {
	m := pcm.Mandate{
		Mesh: c.genesis.Mesh, Home: pcm.CellID(idOf("cell-", "elsewhere")), Job: jobID(name), Spec: pcm.DigestOf([]byte(name)), Buyer: a.buyer,
		Unit: pcm.DefaultUnit, Budget: 1_000_000, Passport: a.passport, Attesters: []pcm.PeerID{attester.peer}, NotAfter: c.wall + pcm.MandateFor.Milliseconds(),
	}
	return m, a.key.Seal(pcm.DomainMandate, m)
}

// succession is the operation by which an actor acts by a mandate in term 2.
func (c *cell) succession(by, attester *actor, m pcm.Mandate, signed pcm.Signed, change func(*pcm.Attestation)) pcm.Op {
	at := pcm.Attestation{Mesh: m.Mesh, Home: m.Home, Mandate: pcm.DigestOf(signed.Payload), Job: m.Job, Term: 2, Driver: by.peer, NotAfter: c.wall + 60_000}
	if change != nil {
		change(&at)
	}
	payload := pcm.MustMarshal(at)
	return pcm.Op{Succeed: &pcm.Succeed{
		Job: m.Job, Home: m.Home, Term: 2, Mandate: &signed,
		Attest: &pcm.Attested{Payload: payload, Sigs: [][]byte{attester.key.Sign(pcm.DomainAttest, payload)}},
	}}
}

// TestExtremeMandates puts extreme values into every place of a mandate and of what is
// attested for it, all of it well signed: nothing panics, no invariant breaks, and what is
// attested of another driver, job or time has no effect.
func TestExtremeMandates(t *testing.T) {
	c, anna := raised()
	carl, dora := c.enrolled("carl", "carl"), c.enrolled("dora", "dora")
	before, err := c.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	tried, taken := 0, 0
	try := func(what string, op pcm.Op) (ok bool) {
		e := pcm.Entry{Version: pcm.EntryVersion, Stamp: c.stamp, Wall: c.wall, Commands: []pcm.Signed{carl.key.Seal(pcm.DomainCommand, c.command(carl, op))}}
		if tried++; survives(t, what, c.genesis, before, e) {
			taken++
			return true
		}
		return false
	}
	good, signed := c.mandateOf(anna, dora, "far")
	if !try("the mandate itself", c.succession(carl, dora, good, signed, nil)) {
		t.Fatal("a good mandate is refused")
	}
	for n := range leavesOf("", reflect.ValueOf(&good)) {
		for x := range 9 {
			m := good
			m.Attesters = slices.Clone(good.Attesters)
			l := leavesOf("", reflect.ValueOf(&m))[n]
			values := extremes(l.v)
			if x >= len(values) {
				break
			}
			l.v.Set(values[x])
			try(fmt.Sprintf("a mandate with %s = %.40v", l.path, values[x]), c.succession(carl, dora, m, anna.key.Seal(pcm.DomainMandate, m), nil))
		}
	}
	ofMandates := taken
	at := pcm.Attestation{}
	for n := range leavesOf("", reflect.ValueOf(&at)) {
		for x := range 9 {
			same := false
			op := c.succession(carl, dora, good, signed, func(at *pcm.Attestation) {
				l := leavesOf("", reflect.ValueOf(at))[n]
				if values := extremes(l.v); x < len(values) {
					was := l.v.Interface()
					l.v.Set(values[x])
					same = l.v.Interface() == was
				} else {
					same = true
				}
			})
			if try("an attestation", op) && !same {
				t.Errorf("an attestation was taken with another value in place %d", n)
			}
		}
	}
	t.Logf("%d values, of which %d mandates were taken", tried, ofMandates)
	if tried < 100 || ofMandates > tried/4 {
		t.Errorf("of %d extreme values %d mandates were taken: that is no good test", tried, ofMandates)
	}
}

// TestManyMandates holds that a buyer's mandates are bounded, keep nobody else from
// theirs, make room when they have expired, and never begin anew after that.
func TestManyMandates(t *testing.T) {
	c, anna := raised()
	carl, dora, emil := c.enrolled("carl", "carl"), c.enrolled("dora", "dora"), c.enrolled("emil", "emil")
	try := func(op pcm.Op) error {
		r, _ := c.do(carl, op)
		return r.First()
	}
	first, firstSigned := c.mandateOf(anna, dora, "job 0")
	n := 0
	for ; n < 1000; n++ {
		m, signed := c.mandateOf(anna, dora, fmt.Sprint("job ", n))
		err := try(c.succession(carl, dora, m, signed, nil))
		if pcm.ErrorCode(err) == pcm.Busy {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n < 100 || n == 1000 {
		t.Fatalf("one account can have %d mandates", n)
	}
	if m, signed := c.mandateOf(emil, dora, "another"); try(c.succession(carl, dora, m, signed, nil)) != nil {
		t.Error("another account is kept from its mandate")
	}
	c.mustAudit(t)
	now := c.wall
	c.wall += (pcm.MandateFor + 3*pcm.Skew).Milliseconds()
	for _, a := range []*actor{anna, carl, dora, emil} {
		c.renewPassport(a)
		if r, _ := c.do(a, pcm.Op{Enroll: &pcm.Enroll{Passport: a.passport}}); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	full, _ := c.state.Snapshot()
	m, signed := c.mandateOf(anna, dora, "later")
	if err := try(c.succession(carl, dora, m, signed, nil)); err != nil {
		t.Fatalf("what has expired makes no room: %v", err)
	}
	if left, _ := c.state.Snapshot(); len(left) > len(full)/2 {
		t.Errorf("what has expired is remembered: %d bytes of %d", len(left), len(full))
	}
	c.mustAudit(t)
	c.wall = now // the next leader's clock is behind
	if err := try(c.succession(carl, dora, first, firstSigned, nil)); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("a mandate that was forgotten begins anew: %v", err)
	}
	c.mustAudit(t)
}
