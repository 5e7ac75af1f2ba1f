package ledger_test

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"iter"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// founded is when the cells of these tests begin: a fixed wall clock.
var founded = time.Date(2026, 1, 5, 8, 0, 0, 0, time.UTC)

// cell is one cell under test with all that it has recorded. Everything in it
// follows from names, so that a history always comes out the same.
type cell struct {
	genesis ledger.Genesis
	root    pcm.Key
	state   *ledger.State
	index   uint64
	stamp   int64 // log time, ms
	wall    int64 // Unix ms
	records [][]byte
	docs    map[string][]byte
	peers   map[string]*actor
	ids     int
	bases   []*pcm.BaseState
	entries []pcm.Entry // all that was applied, in order: index 1, 2, …
}

// actor is a peer with the keys of its account.
type actor struct {
	name     string
	key      pcm.Key
	peer     pcm.PeerID
	account  pcm.Key
	buyer    pcm.AccountID
	passport pcm.Signed
}

func keyOf(name string) pcm.Key {
	seed := sha256.Sum256([]byte(name))
	k, err := pcm.KeyFromSeed(seed[:])
	if err != nil {
		panic(err)
	}
	return k
}

var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// idOf makes an ID of 16 characters out of a name.
func idOf(prefix, name string) string {
	sum := sha256.Sum256([]byte(name))
	return prefix + letters.EncodeToString(sum[:10])
}

func jobID(name string) pcm.JobID { return pcm.JobID(idOf("job-", name)) }

func newCell() *cell { return newCellNamed("home") }

func newCellNamed(name string) *cell {
	root := keyOf("root")
	g := ledger.Genesis{Mesh: pcm.NewMeshID(root.Public()), Root: root.Public(), Cell: pcm.CellID(idOf("cell-", name)), Name: name}
	return &cell{
		genesis: g, root: root, state: ledger.New(g), wall: founded.UnixMilli(), stamp: 1000,
		docs: map[string][]byte{}, peers: map[string]*actor{},
	}
}

// actor makes a peer and its passport; it enrols nobody.
func (c *cell) actor(name, account string) *actor {
	a := &actor{name: name, key: keyOf("peer " + name), account: keyOf("account " + account)}
	a.peer, a.buyer = a.key.Peer(), a.account.Account()
	c.renewPassport(a)
	c.peers[name] = a
	return a
}

func (c *cell) renewPassport(a *actor) {
	p, err := pcm.IssuePassport(c.root, c.root.Public(), pcm.Signed{}, pcm.Passport{
		Mesh: c.genesis.Mesh, Peer: a.peer, Account: a.buyer, Name: a.name,
		AccountBy: pcm.SignJoin(a.account, c.genesis.Mesh, a.peer),
	}, time.UnixMilli(c.wall))
	if err != nil {
		panic(err)
	}
	a.passport = p
}

// enrolled makes a peer and enrols it.
func (c *cell) enrolled(name, account string) *actor {
	a := c.actor(name, account)
	if r, _ := c.do(a, pcm.Op{Enroll: &pcm.Enroll{Passport: a.passport}}); r.First() != nil {
		panic(r.First())
	}
	return a
}

// command is what an actor would sign now.
func (c *cell) command(a *actor, ops ...pcm.Op) pcm.Command {
	c.ids++
	sum := sha256.Sum256(fmt.Append(nil, "command ", c.ids))
	return pcm.Command{
		Version: pcm.CommandVersion, ID: pcm.CommandID(sum[:16]), Mesh: c.genesis.Mesh, Cell: c.genesis.Cell,
		Peer: a.peer, NotAfter: c.stamp + 60_000, Ops: ops,
	}
}

// apply brings the cell one entry further and keeps what comes out.
func (c *cell) apply(newTerm bool, commands ...pcm.Signed) pcm.Effects {
	c.index++
	e := pcm.Entry{Version: pcm.EntryVersion, Stamp: c.stamp, Wall: c.wall, NewTerm: newTerm, Commands: commands}
	c.entries = append(c.entries, e)
	fx := c.state.Apply(c.index, e)
	if fx.First != uint64(len(c.records)) {
		panic(fmt.Sprintf("records from %d on are appended to %d", fx.First, len(c.records)))
	}
	c.records = append(c.records, fx.Records...)
	if fx.Base != nil {
		c.bases = append(c.bases, fx.Base)
	}
	for _, d := range fx.Documents {
		if c.docs[d.Key] != nil {
			panic("archived twice: " + d.Key)
		}
		c.docs[d.Key] = d.Value
	}
	return fx
}

// do has one command of one actor applied in an entry of its own.
func (c *cell) do(a *actor, ops ...pcm.Op) (pcm.CommandResult, pcm.Effects) {
	fx := c.apply(false, a.key.Seal(pcm.DomainCommand, c.command(a, ops...)))
	return fx.Results[0], fx
}

// pass lets log time and wall time go by, and ticks.
func (c *cell) pass(d time.Duration) pcm.Effects {
	c.stamp += d.Milliseconds()
	c.wall += d.Milliseconds()
	return c.apply(false)
}

// job looks a job up among the open and the archived ones.
func (c *cell) job(id pcm.JobID) (j *ledger.Job, archived bool) {
	if j, ok := c.state.Job(id); ok {
		return j, false
	}
	if doc, ok := c.docs[ledger.JobKey(id)]; ok {
		j = new(ledger.Job)
		if err := pcm.UnmarshalLarge(doc, j); err != nil {
			panic(err)
		}
		return j, true
	}
	return nil, false
}

// trade looks a trade up among the open and the archived ones.
func (c *cell) trade(id pcm.TradeID) (t *ledger.Trade, archived bool) {
	if t, ok := c.state.Trade(id); ok {
		return t, false
	}
	if doc, ok := c.docs[ledger.TradeKey(id)]; ok {
		t = new(ledger.Trade)
		if err := pcm.UnmarshalLarge(doc, t); err != nil {
			panic(err)
		}
		return t, true
	}
	return nil, false
}

// audit checks all that must hold at any moment: the invariants, that a
// snapshot brings the same state back, and that the records, replayed, do.
func (c *cell) audit() error {
	if err := c.state.Check(); err != nil {
		return err
	}
	snap, err := c.state.Snapshot()
	if err != nil {
		return err
	}
	again := ledger.New(c.genesis)
	if err := again.Restore(snap); err != nil {
		return err
	}
	if other, err := again.Snapshot(); err != nil || string(other) != string(snap) {
		return fmt.Errorf("a restored state has another snapshot (%v)", err)
	}
	v, replayed := verify(c.genesis, c.records)
	if v.Bad != nil {
		return fmt.Errorf("record %d of %d: %s", *v.Bad, len(c.records), v.Problem)
	}
	if n, root := c.state.Root(); v.Records != n || v.Root != root {
		return fmt.Errorf("replaying gives %d records with root %x, the state has %d with %x", v.Records, v.Root, n, root)
	}
	if err := c.state.SameAs(replayed); err != nil {
		return err
	}
	// From the last bases on, the records verify without those before, and come to the same.
	for _, b := range c.bases[max(0, len(c.bases)-3):] {
		s, err := ledger.OpenBase(c.genesis, c.records[b.Size], b.State)
		if err != nil {
			return err
		}
		v, replayed := s.Verify(each(c.records[b.Size:]))
		if v.Bad != nil {
			return fmt.Errorf("from the base of %d on, record %d of %d: %s", b.Size, *v.Bad, len(c.records), v.Problem)
		}
		if n, root := c.state.Root(); v.Records != n || v.Root != root {
			return fmt.Errorf("replaying from the base of %d gives %d records with root %x, the state has %d with %x", b.Size, v.Records, v.Root, n, root)
		}
		if err := c.state.SameAs(replayed); err != nil {
			return fmt.Errorf("from the base of %d on: %w", b.Size, err)
		}
	}
	return nil
}

func each(records [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func verify(g ledger.Genesis, records [][]byte) (ledger.Verdict, *ledger.State) {
	g.Name = "" // no record tells it
	return ledger.Verify(g, each(records))
}

func (c *cell) mustAudit(t interface {
	Helper()
	Fatalf(string, ...any)
}) {
	t.Helper()
	if err := c.audit(); err != nil {
		t.Fatalf("audit: %v", err)
	}
}

// medium is the shape that tasks have here unless a test says otherwise.
var medium = pcm.Resources{CPU: 1000, Memory: 1 << 30}

// price is 0.1 for each task and 0.001 for each second of one core.
var price = pcm.Price{Unit: pcm.DefaultUnit, PerTask: 100_000, PerCPUHour: 3_600_000}

// pool is a pool of n medium slots.
func pool(n int) pcm.Pool {
	return pcm.Pool{ID: "local", Adapter: "process", Capacity: medium.Times(n), Slots: n, Price: price}
}

// capacity has an actor sell n medium slots under offer 1, 2, ….
func (c *cell) sells(a *actor, n int) {
	m, _ := c.state.Member(a.peer)
	r, _ := c.do(a, pcm.Op{Capacity: &pcm.Capacity{Offer: m.Offer + 1, Pools: []pcm.Pool{pool(n)}, Credit: 1_000_000_000}})
	if r.First() != nil {
		panic(r.First())
	}
}

// submits has an actor open a job of one step.
func (c *cell) submits(a *actor, name string, count, retries int) pcm.JobID {
	id := jobID(name)
	r, _ := c.do(a, pcm.Op{Submit: &pcm.Submit{
		Job: id, Name: name, Spec: pcm.DigestOf([]byte(name)), Steps: []pcm.Shape{{Count: count, Retries: retries}},
		Unit: pcm.DefaultUnit, Takeover: pcm.TakeoverAccount,
	}})
	if r.First() != nil {
		panic(r.First())
	}
	return id
}

// terms for some tasks of a job's first step, as its driver would draw them up now.
func (c *cell) terms(driver, seller *actor, job pcm.JobID, tasks pcm.Spans, width int) pcm.Terms {
	j, _ := c.job(job)
	t := pcm.Terms{
		Job: job, Tasks: tasks, Driver: driver.peer, Cell: c.genesis.Cell, Seller: seller.peer, Pool: "local",
		Price: price, Each: medium, Width: width, LimitMS: 100_000, Adapter: "process", Attempt: 1,
	}
	if j != nil {
		t.Buyer, t.Spec, t.Fence = j.Buyer, j.Spec, j.Fence+1
		if i := tasks[0].Lo; i < len(j.Steps[0].Tasks) {
			t.Attempt = j.Steps[0].Tasks[i].Attempt + 1
		}
	}
	if p, ok := c.state.Pool(ledger.PoolKey{Peer: seller.peer, Pool: "local"}); ok {
		t.Offer, t.Price, t.Adapter = p.Offer, p.Pool.Price, p.Pool.Adapter
	}
	return t
}

// buys has an actor buy one task of a new job from another.
func (c *cell) buys(t testing.TB, by, from *actor, name string) pcm.Terms {
	t.Helper()
	terms := c.terms(by, from, c.submits(by, name, 1, 0), span(0, 1), 1)
	if r, _ := c.do(by, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}); r.First() != nil {
		t.Fatal(r.First())
	}
	return terms
}

// owes has an actor buy a task from another and settle it.
func (c *cell) owes(t testing.TB, by, to *actor, name string) {
	t.Helper()
	terms := c.buys(t, by, to, name)
	id, done := terms.Trade(), good(span(0, 1), 100e9)
	c.do(to, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: done}})
	r, _ := c.do(by, pcm.Op{Accept: &pcm.Accept{Job: terms.Job, Term: 1, Trade: id, Results: done}}, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: span(0, 1), Amount: 1e9}})
	if r.First() != nil {
		t.Fatal(r.First())
	}
}

func span(lo, hi int) pcm.Spans { return pcm.Spans{{Lo: lo, Hi: hi}} }

// good are results of tasks that went well and ran for d.
func good(tasks pcm.Spans, d time.Duration) []pcm.Result {
	var rs []pcm.Result
	for i := range tasks.All {
		rs = append(rs, pcm.Result{Index: i, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: d.Milliseconds(), CPUMS: d.Milliseconds() / 2}, Output: pcm.DigestOf(fmt.Append(nil, i))})
	}
	return rs
}
