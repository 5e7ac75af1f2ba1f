package node

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// twoCells is a job's cell and a seller's, with a network between them that delays,
// loses and forgets, a seller that works, and drivers that die between any two steps.
type twoCells struct {
	t     *testing.T
	r     *rand.Rand
	root  pcm.Key
	home  *simCell
	away  *simCell
	wall  int64
	buyer [3]*simPeer // those who may drive: two of one account, and one of another
	sells *simPeer
	dora  *simPeer // who attests, and does nothing else
	job   pcm.JobID

	driver  int // which of buyer drives
	term    uint64
	trades  map[pcm.TradeID]*abroadTrade // as the driver knows them
	flying  []flyingCommand              // on their way to the other cell
	placed  int
	crashes int
	given   int // attempts given up for silence
	voided  int
	unsold  int

	mandate  pcm.Signed
	shown    bool // the driver acts in the other cell
	foreign  int  // rounds of a driver of another account in which it had something to do
	mandated int  // trades that such a one has bought
}

type simPeer struct {
	key      pcm.Key
	id       pcm.PeerID
	account  pcm.AccountID
	passport pcm.Signed
}

type simCell struct {
	genesis ledger.Genesis
	state   *ledger.State
	index   uint64
	stamp   int64
	records [][]byte
	docs    map[string][]byte
	ids     int
}

// flyingCommand is a command on its way, of a driver that may be gone by the time it arrives.
type flyingCommand struct {
	trade  pcm.TradeID
	signed pcm.Signed
	ops    []pcm.Op
	knows  *abroadTrade // who waits for the answer; a driver that crashed does no more
}

func simKey(name string) pcm.Key {
	seed := sha256.Sum256([]byte(name))
	k, err := pcm.KeyFromSeed(seed[:])
	if err != nil {
		panic(err)
	}
	return k
}

func newTwoCells(t *testing.T, seed uint64) *twoCells {
	w := &twoCells{
		t: t, r: rand.New(rand.NewPCG(seed, 7)), root: simKey("root"), wall: time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC).UnixMilli(),
		trades: map[pcm.TradeID]*abroadTrade{}, term: 1, job: pcm.JobID("job-" + "aaaaaaaaaaaaaaaa"),
	}
	cell := func(id pcm.CellID, stamp int64) *simCell {
		g := ledger.Genesis{Mesh: pcm.NewMeshID(w.root.Public()), Root: w.root.Public(), Cell: id, Name: "sim"}
		return &simCell{genesis: g, state: ledger.New(g), stamp: stamp, docs: map[string][]byte{}}
	}
	w.home, w.away = cell("cell-aaaaaaaaaaaaaaaa", 1000), cell("cell-bbbbbbbbbbbbbbbb", 700_000)
	peer := func(name, account string) *simPeer {
		p := &simPeer{key: simKey("peer " + name)}
		owner := simKey("account " + account)
		p.id, p.account = p.key.Peer(), owner.Account()
		var err error
		p.passport, err = pcm.IssuePassport(w.root, w.root.Public(), pcm.Signed{}, pcm.Passport{
			Mesh: w.home.genesis.Mesh, Peer: p.id, Account: p.account, Name: name, AccountBy: pcm.SignJoin(owner, w.home.genesis.Mesh, p.id),
		}, time.UnixMilli(w.wall))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	w.buyer = [3]*simPeer{peer("anna", "anna"), peer("abel", "anna"), peer("carl", "carl")}
	w.sells, w.dora = peer("bert", "bert"), peer("dora", "dora")
	for _, p := range w.buyer {
		w.must(w.home, p, pcm.Op{Enroll: &pcm.Enroll{Passport: p.passport}})
		w.must(w.away, p, pcm.Op{Enroll: &pcm.Enroll{Passport: p.passport}})
	}
	w.must(w.away, w.sells, pcm.Op{Enroll: &pcm.Enroll{Passport: w.sells.passport}})
	w.raise(w.home, w.buyer[0])
	w.raise(w.away, w.sells)
	each := pcm.Resources{CPU: 1000, Memory: 1 << 30}
	w.must(w.away, w.sells, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Credit: 1_000_000_000, Pools: []pcm.Pool{{
		ID: "local", Adapter: "process", Capacity: each.Times(3), Slots: 3, Price: pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000, PerCPUHour: 3_600_000},
	}}}})
	sub := &pcm.Submit{
		Job: w.job, Name: "far", Spec: pcm.DigestOf([]byte("far")), Steps: []pcm.Shape{{Count: 6, Retries: 2}}, Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAny, Budget: 2_500_000,
	}
	var err error
	if w.mandate, err = pcm.NewMandate(w.buyer[0].key, pcm.Mandate{
		Mesh: w.home.genesis.Mesh, Home: w.home.genesis.Cell, Job: w.job, Spec: sub.Spec, Buyer: w.buyer[0].account, Unit: sub.Unit, Budget: sub.Budget, Passport: w.buyer[0].passport,
	}, []pcm.PeerID{w.buyer[0].id, w.buyer[2].id, w.dora.id}, time.UnixMilli(w.wall)); err != nil {
		t.Fatal(err)
	}
	sub.Mandate = &w.mandate
	w.must(w.home, w.buyer[0], pcm.Op{Submit: sub})
	w.shown = true
	return w
}

// raise brings a cell to the level that trade across cells needs.
func (w *twoCells) raise(c *simCell, p *simPeer) {
	w.must(c, p, pcm.Op{NoteKey: &pcm.NoteKey{Peer: p.id, Key: simKey("note " + string(p.id)).Public()}})
	w.must(c, p, pcm.Op{Upgrade: &pcm.Upgrade{Level: pcm.LedgerLevel}})
}

func (w *twoCells) seal(c *simCell, p *simPeer, ops ...pcm.Op) pcm.Signed {
	w.home.ids++
	sum := sha256.Sum256(fmt.Append(nil, "command ", w.home.ids))
	return p.key.Seal(pcm.DomainCommand, pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.CommandID(sum[:16]), Mesh: c.genesis.Mesh, Cell: c.genesis.Cell, Peer: p.id, NotAfter: c.stamp + 60_000, Ops: ops,
	})
}

// apply brings a cell one entry further; nothing signed: time passes.
func (w *twoCells) apply(c *simCell, commands ...pcm.Signed) []pcm.CommandResult {
	c.index++
	fx := c.state.Apply(c.index, pcm.Entry{Version: pcm.EntryVersion, Stamp: c.stamp, Wall: w.wall, Commands: commands})
	c.records = append(c.records, fx.Records...)
	for _, d := range fx.Documents {
		if c.docs[d.Key] != nil {
			w.t.Fatalf("%s is archived twice", d.Key)
		}
		c.docs[d.Key] = d.Value
	}
	if err := c.state.Check(); err != nil {
		w.t.Fatal(err)
	}
	return fx.Results
}

func (w *twoCells) do(c *simCell, p *simPeer, ops ...pcm.Op) pcm.CommandResult {
	return w.apply(c, w.seal(c, p, ops...))[0]
}

func (w *twoCells) must(c *simCell, p *simPeer, ops ...pcm.Op) {
	w.t.Helper()
	if err := w.do(c, p, ops...).First(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *twoCells) chance(percent int) bool { return w.r.IntN(100) < percent }

// jobNow is the job as the driver reads it; nil when it is archived.
func (w *twoCells) jobNow() *ledger.Job {
	j, _ := w.home.state.Job(w.job)
	return j
}

func (w *twoCells) abroadJob(t *abroadTrade) abroadJob {
	return abroadJob{
		id: w.job, term: w.term,
		undecided: func(i int) bool {
			j := w.jobNow()
			return j != nil && j.Steps[0].Tasks[i].State == pcm.TaskPlaced && j.Steps[0].Tasks[i].Trade == t.id
		},
		unwanted: func(int) string {
			if j := w.jobNow(); j != nil && j.Stopping {
				return "cancelled"
			}
			return ""
		},
		goesOn: func(i int, r pcm.Result) (string, bool) {
			j := w.jobNow()
			return failure(r), !j.Stopping && r.Outcome == pcm.OutcomeFailed && j.Steps[0].Tasks[i].Failures < j.Steps[0].Retries
		},
	}
}

// see takes how a trade stands in its cell into what the driver knows.
func (w *twoCells) see(t *abroadTrade) {
	var v *ledger.Trade
	if open, ok := w.away.state.Trade(t.id); ok {
		v = new(ledger.Trade)
		if err := pcm.UnmarshalLarge(pcm.MustMarshal(open), v); err != nil {
			w.t.Fatal(err)
		}
	} else if doc := w.away.docs[ledger.TradeKey(t.id)]; doc != nil {
		v = new(ledger.Trade)
		if err := pcm.UnmarshalLarge(doc, v); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := t.learnTrade(v, w.away.state.Stamp()); err != nil {
		w.t.Fatal(err)
	}
	for _, r := range t.wants(w.abroadJob(t)) { // outputs come, or can't be had
		if w.chance(80) {
			t.ready[r.Index] = true
		} else if w.chance(20) {
			t.spoiled[r.Index] = "its outputs can't be had"
		}
	}
}

// place has the driver buy some waiting tasks.
func (w *twoCells) place() {
	j := w.jobNow()
	if j == nil || j.EndedAt != 0 || j.Stopping {
		return
	}
	attempt := 0
	var tasks []int
	for i := range j.Steps[0].Tasks {
		tk := &j.Steps[0].Tasks[i]
		if tk.State == pcm.TaskWaiting && (attempt == 0 || tk.Attempt+1 == attempt) && len(tasks) < 1+w.r.IntN(3) {
			attempt = tk.Attempt + 1
			tasks = append(tasks, i)
		}
	}
	if len(tasks) == 0 {
		return
	}
	terms := pcm.Terms{
		Job: w.job, Tasks: pcm.SpansOf(tasks), Attempt: attempt, Fence: j.Fence + 1, Buyer: j.Buyer, Spec: j.Spec, Driver: w.buyer[w.driver].id,
		Home: w.home.genesis.Cell, Cell: w.away.genesis.Cell, AwardBy: w.away.stamp + 60_000, Seller: w.sells.id, Pool: "local", Offer: 1,
		Price: pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000, PerCPUHour: 3_600_000}, Each: pcm.Resources{CPU: 1000, Memory: 1 << 30},
		Width: len(tasks), LimitMS: 100_000, Adapter: "process",
	}
	if r := w.do(w.home, w.buyer[w.driver], pcm.Op{Place: &pcm.Place{Term: w.term, Terms: terms}}); r.First() == nil {
		w.placed++
		t := newAbroadTrade(terms.Trade(), terms)
		t.fresh, t.own = true, w.own()
		w.trades[t.id] = t
	}
}

// drive is one round of the driver: what it wants to be done there flies off, what is to
// be committed at home is.
func (w *twoCells) drive(silence bool) {
	w.show()
	for _, id := range sortedKeys(w.trades) {
		t := w.trades[id]
		j := w.abroadJob(t)
		asked := slices.ContainsFunc(w.flying, func(f flyingCommand) bool { return f.knows == t })
		if ops := w.attested(t.there(j, time.Now().Add(24*time.Hour))); len(ops) > 0 && !asked && w.shown {
			w.flying = append(w.flying, flyingCommand{id, w.seal(w.away, w.buyer[w.driver], ops...), ops, t})
		}
		silent := ""
		if silence && w.chance(10) {
			silent = "nothing was heard of it"
		}
		ops := w.warranted(t, t.home(j, silent), silent)
		if t.left(j, time.Now().Add(24*time.Hour)) {
			delete(w.trades, id)
		}
		if len(ops) == 0 {
			continue
		}
		r := w.do(w.home, w.buyer[w.driver], ops...)
		if err := r.First(); err != nil {
			w.t.Fatalf("home refuses what the driver of the current term decides: %v", err)
		}
		for _, op := range ops {
			switch {
			case op.Clear != nil:
				delete(w.trades, id)
			case op.Abandon != nil && op.Abandon.Unsold:
				w.unsold++
			case op.Abandon != nil && silent != "" && !op.Abandon.Over:
				w.given++
			}
		}
		w.reread()
	}
}

// own is the driver's account, if it is not the buyer's.
func (w *twoCells) own() pcm.AccountID {
	if a := w.buyer[w.driver].account; a != w.buyer[0].account {
		return a
	}
	return ""
}

// attest is what the voters of the job's cell sign for the driver; nil if it isn't so.
func (w *twoCells) attest(terms pcm.Digest) *pcm.Attested {
	at := pcm.Attestation{
		Mesh: w.home.genesis.Mesh, Home: w.home.genesis.Cell, Mandate: pcm.DigestOf(w.mandate.Payload), Job: w.job, Term: w.term,
		Driver: w.buyer[w.driver].id, Terms: terms, NotAfter: w.wall + 60_000,
	}
	if trueOf(w.home.state, at) != nil {
		return nil
	}
	m, err := pcm.OpenMandate(w.mandate)
	if err != nil {
		w.t.Fatal(err)
	}
	out := &pcm.Attested{Payload: pcm.MustMarshal(at), Sigs: make([][]byte, len(m.Attesters))}
	for i, peer := range m.Attesters {
		for _, p := range []*simPeer{w.buyer[2], w.dora} {
			if p.id == peer {
				out.Sigs[i] = p.key.Sign(pcm.DomainAttest, out.Payload)
			}
		}
	}
	return out
}

// show has the driver act in the other cell; that may get lost.
func (w *twoCells) show() {
	if w.shown || w.chance(30) {
		return
	}
	op := &pcm.Succeed{Job: w.job, Home: w.home.genesis.Cell, Term: w.term}
	if w.own() != "" {
		op.Mandate, op.Attest = &w.mandate, w.attest("")
		if op.Attest == nil {
			return // the job is over at home
		}
	}
	r := w.do(w.away, w.buyer[w.driver], pcm.Op{Enroll: &pcm.Enroll{Passport: w.buyer[w.driver].passport}}, pcm.Op{Succeed: op})
	if err := r.First(); err != nil {
		w.t.Fatalf("the other cell refuses the driver of the current term: %v", err)
	}
	w.shown = true
}

func (w *twoCells) attested(ops []pcm.Op) []pcm.Op {
	if len(ops) == 0 || w.own() == "" || ops[0].Award == nil {
		return ops
	}
	at := w.attest(pcm.DigestOf(pcm.MustMarshal(ops[0].Award.Terms)))
	if at == nil {
		return nil
	}
	return []pcm.Op{{Award: &pcm.Award{Terms: ops[0].Award.Terms, Attest: at}}}
}

// warranted is what the driver can have committed at home: a driver of another account
// needs the seller's signature, which it may not get.
func (w *twoCells) warranted(t *abroadTrade, ops []pcm.Op, silent string) (out []pcm.Op) {
	if w.own() == "" {
		return ops
	}
	for _, op := range ops {
		r, needed := pcm.ReceiptOf(op, w.home.genesis.Mesh, &t.terms)
		if needed {
			var v *ledger.Trade
			if open, ok := w.away.state.Trade(t.id); ok {
				v = open
			} else if doc := w.away.docs[ledger.TradeKey(t.id)]; doc != nil {
				v = new(ledger.Trade)
				if err := pcm.UnmarshalLarge(doc, v); err != nil {
					w.t.Fatal(err)
				}
			}
			switch err := trueReceipt(w.away.state, v, &t.terms, r); {
			case err == nil && silent == "":
				receiptFor(&op, r.Sign(w.sells.key))
			case silent != "":
				op = unwarranted(op, fmt.Errorf("%s", silent))
			default:
				continue
			}
		}
		w.foreign++
		out = append(out, op)
	}
	return out
}

// reread brings what the driver knows in line with its home, as load does.
func (w *twoCells) reread() {
	old := w.trades
	w.trades = map[pcm.TradeID]*abroadTrade{}
	if j := w.jobNow(); j != nil {
		for k := range j.Places {
			t := readAbroad(&j.Places[k], old[j.Places[k].Trade], 0)
			t.own = w.own()
			w.trades[t.id] = t
		}
	}
}

// crash has the driver forget all, and perhaps another one take over.
func (w *twoCells) crash() {
	w.crashes++
	j := w.jobNow()
	if j == nil {
		return
	}
	if j.EndedAt == 0 {
		next := w.driver
		if w.chance(66) {
			next = w.r.IntN(len(w.buyer))
			w.pass(13_000)
		}
		if r := w.do(w.home, w.buyer[next], pcm.Op{Drive: &pcm.Drive{Job: w.job, Term: w.term + 1}}); r.First() == nil {
			w.driver, w.term = next, w.term+1
		}
	} else {
		w.driver = w.r.IntN(2) // what is left is for the buyer
	}
	w.shown = false
	w.trades = map[pcm.TradeID]*abroadTrade{}
	w.reread()
}

// arrive has a command in flight, any of them, arrive in the other cell. Its answer may
// get lost, or it may itself.
func (w *twoCells) arrive(lossy bool) {
	if len(w.flying) == 0 {
		return
	}
	at := w.r.IntN(len(w.flying))
	f := w.flying[at]
	w.flying = slices.Delete(w.flying, at, at+1)
	knows := f.knows
	res := errandResult{ops: f.ops, err: fmt.Errorf("no answer")}
	if lossy && w.chance(20) { // lost, or it comes much later
		if w.chance(50) {
			f.knows = nil
			w.flying = append(w.flying, f)
		}
	} else {
		r := w.apply(w.away, f.signed)[0]
		if !lossy || w.chance(80) {
			res = errandResult{ops: f.ops, result: r}
		}
		if f.ops[0].Void != nil && r.First() == nil {
			w.voided++
		}
	}
	if t := w.trades[f.trade]; t != nil && t == knows {
		t.learnResult(res)
	}
}

// pass lets time pass in both cells, with the seller renewing if it lives.
func (w *twoCells) pass(ms int64) {
	w.wall += ms
	w.home.stamp, w.away.stamp = w.home.stamp+ms, w.away.stamp+ms
	w.apply(w.home)
	w.apply(w.away)
}

// work has the seller do something.
func (w *twoCells) work(faults bool) {
	for _, tr := range w.away.state.Trades() {
		for i, at := range tr.All {
			one := pcm.Spans{{Lo: i, Hi: i + 1}}
			switch {
			case at.State == pcm.AttemptDisputed && at.Undelivered:
				w.do(w.away, w.sells, pcm.Op{Reject: &pcm.Reject{Trade: tr.ID, Tasks: one, Reason: "I give in"}})
			case !at.State.Live() || w.chance(50):
				continue
			case at.Stop != "":
				w.do(w.away, w.sells, pcm.Op{Finish: &pcm.Finish{Trade: tr.ID, Results: []pcm.Result{{Index: i, Outcome: pcm.OutcomeStopped, Usage: pcm.Usage{WallMS: 500}}}}})
			case faults && w.chance(10):
				w.do(w.away, w.sells, pcm.Op{Reject: &pcm.Reject{Trade: tr.ID, Tasks: one, Reason: "I don't want it"}})
			case at.State == pcm.AttemptAwarded && w.chance(50):
				w.do(w.away, w.sells, pcm.Op{Start: &pcm.Start{Trade: tr.ID, Tasks: one}})
			default:
				r := pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: 1 + w.r.Int64N(20_000)}, Output: pcm.DigestOf(fmt.Append(nil, tr.ID, i))}
				if faults && w.chance(20) {
					r.Outcome, r.ExitCode = pcm.OutcomeFailed, 1
				}
				w.do(w.away, w.sells, pcm.Op{Finish: &pcm.Finish{Trade: tr.ID, Results: []pcm.Result{r}}})
			}
			return
		}
	}
}

// TestAbroadRandom has drivers, of the buyer's account and of another one by its mandate, buy
// in another cell while commands and answers are lost or late, drivers crash between any two steps, and cells are thought silent that are
// not. In the end the job is over at home with one result for each task, nothing is open
// in the other cell, what was paid there is what home has counted, and both ledgers verify.
func TestAbroadRandom(t *testing.T) {
	var crashes, given, voided, unsold, foreign, mandated int
	for seed := range uint64(50) {
		w := newTwoCells(t, seed)
		steps := 0
		for ; steps < 300; steps++ {
			if steps == 150 && seed%5 == 0 {
				if j := w.jobNow(); j != nil && j.EndedAt == 0 {
					w.do(w.home, w.buyer[0], pcm.Op{Cancel: &pcm.Cancel{Job: w.job, Reason: "no more of it"}})
				}
			}
			switch w.r.IntN(10) {
			case 0:
				w.place()
			case 1, 2:
				w.drive(true)
			case 3, 4:
				w.arrive(true)
			case 5:
				for _, id := range sortedKeys(w.trades) {
					if w.chance(50) {
						w.see(w.trades[id])
					}
				}
			case 6, 7:
				w.work(true)
			case 8:
				w.pass(w.r.Int64N(3000))
				if w.chance(90) {
					w.do(w.away, w.sells, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
				}
			case 9:
				if w.chance(20) {
					w.crash()
				}
			}
		}
		for ; w.jobNow() != nil || len(w.flying) > 0; steps++ { // all is well again
			if steps > 5000 {
				t.Fatalf("seed %d: the job does not end: %s, %d trades, %d on their way", seed, pcm.MustMarshal(w.jobNow()), len(w.trades), len(w.flying))
			}
			if j := w.jobNow(); j != nil && w.own() != "" && (j.EndedAt != 0 || steps%400 == 399) {
				w.crash() // the buyer is back
				continue
			}
			w.place()
			w.drive(false)
			w.arrive(false)
			for _, id := range sortedKeys(w.trades) {
				w.see(w.trades[id])
			}
			w.work(false)
			if w.pass(500); steps%4 == 0 {
				w.do(w.away, w.sells, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
			}
		}
		w.check(seed)
		crashes, given, voided, unsold = crashes+w.crashes, given+w.given, voided+w.voided, unsold+w.unsold
		foreign, mandated = foreign+w.foreign, mandated+w.mandated
	}
	t.Logf("%d crashes, %d attempts given up, %d awards made void, %d never sold, %d decisions and %d trades of drivers of another account", crashes, given, voided, unsold, foreign, mandated)
	if crashes < 30 || given < 30 || voided < 20 || unsold < 10 || foreign < 30 || mandated < 20 {
		t.Errorf("too little happened for a good test")
	}
}

func (w *twoCells) check(seed uint64) {
	w.t.Helper()
	j := new(ledger.Job)
	if err := pcm.UnmarshalLarge(w.home.docs[ledger.JobKey(w.job)], j); err != nil {
		w.t.Fatal(err)
	}
	for i := range j.Steps[0].Tasks {
		tk := &j.Steps[0].Tasks[i]
		if !tk.State.Final() || tk.State == pcm.TaskDone && tk.Result == nil {
			w.t.Errorf("seed %d: task %d is %s with result %v", seed, i, tk.State, tk.Result)
		}
	}
	if n := len(w.away.state.Trades()); n > 0 {
		w.t.Errorf("seed %d: %d trades are open in the other cell", seed, n)
	}
	var owed, paid pcm.Micro
	for _, b := range w.away.state.Balances {
		owed += b.Owed
		if b.Held != 0 {
			w.t.Errorf("seed %d: %s is held in the other cell", seed, b.Held)
		}
	}
	accepted := map[int]int{} // results of the task that were paid as done
	for key, doc := range w.away.docs {
		tr := new(ledger.Trade)
		if len(key) < 6 || key[:6] != "trade/" {
			continue
		}
		if err := pcm.UnmarshalLarge(doc, tr); err != nil {
			w.t.Fatal(err)
		}
		paid += tr.Paid
		if tr.Mandate != "" {
			w.mandated++
		}
		for i, at := range tr.All {
			if at.State == pcm.AttemptSettled && at.Result.Outcome == pcm.OutcomeOK {
				if accepted[i]++; accepted[i] > 1 {
					w.t.Errorf("seed %d: two results of task %d were paid as good", seed, i)
				}
				if tk := &j.Steps[0].Tasks[i]; tk.Result == nil || *tk.Result != *at.Result {
					w.t.Errorf("seed %d: a result of task %d was paid that was not accepted", seed, i)
				}
			}
		}
	}
	if owed != paid || j.Paid != paid || j.Held != 0 {
		w.t.Errorf("seed %d: owed %s, paid in trades %s, counted at home %s, held %s", seed, owed, paid, j.Paid, j.Held)
	}
	for _, c := range []*simCell{w.home, w.away} {
		v, replayed := ledger.Verify(c.genesis, func(yield func([]byte, error) bool) {
			for _, r := range c.records {
				if !yield(r, nil) {
					return
				}
			}
		})
		if v.Bad != nil {
			w.t.Errorf("seed %d: record %d: %s", seed, *v.Bad, v.Problem)
		} else if err := c.state.SameAs(replayed); err != nil {
			w.t.Errorf("seed %d: %v", seed, err)
		}
	}
}
