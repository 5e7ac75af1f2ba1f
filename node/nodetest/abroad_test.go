package nodetest_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/nodetest"
)

// overseas starts peers of which each founds a cell of its own in the first one's
// mesh, except those whose account another one has: they join its cell. It waits
// until the first peer can buy from all that sell.
func overseas(t *testing.T, specs ...nodetest.Spec) *nodetest.Mesh {
	t.Helper()
	m := nodetest.Empty(t)
	for i, s := range specs {
		p := m.Add(s)
		switch {
		case i == 0:
			p.Up()
		case s.Same != "":
			p.Up("--join", m.Peer(s.Same).Token())
		default:
			p.Up("--join", m.Peers[0].Token(), "--cell", "new:"+s.Name)
		}
	}
	first := m.Peers[0]
	nodetest.Eventually(t, "the first peer can buy from the others", func(ctx context.Context) error {
		x, err := first.ExplainSpec(ctx, api.Submission{Spec: nodetest.Command(1, "true")})
		if err != nil {
			return err
		}
		for _, other := range m.Peers {
			fits := slices.ContainsFunc(x.Steps[0].Candidates, func(c api.CandidateView) bool { return c.Name == other.Name && c.OK })
			if other.Sells() && !fits {
				return fmt.Errorf("%s is not among those that fit: %+v", other.Name, x.Steps[0].Candidates)
			}
		}
		return nil
	})
	return m
}

// sound has peers check their ledgers.
func sound(t *testing.T, peers ...*nodetest.Peer) {
	t.Helper()
	for _, p := range peers {
		nodetest.Eventually(t, p.Name+"'s ledger is good", func(ctx context.Context) error {
			v, err := p.Client.Verify(ctx)
			if err == nil && !v.OK {
				return nodetest.Final(fmt.Errorf("it is bad: %s", v.Problem))
			}
			return err
		})
	}
}

// A job is bought in another cell: results come home, and what it cost is owed there.
func TestAbroad(t *testing.T) {
	m := overseas(t, nodetest.Spec{Name: "home", Config: nodetest.Buyer}, nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2)})
	home, east := m.Peer("home"), m.Peer("east")
	j := home.Send(nodetest.Command(5, "echo far $PCM_INDEX"), "")
	done := home.Done(j.ID)
	if !strings.HasPrefix(done.Paid, "2.5") {
		t.Errorf("it cost %s, want 2.5 and a little for the time", done.Paid)
	}
	for _, tk := range home.JobTasks(j.ID) {
		if tk.SellerName != "east" {
			t.Errorf("task %d ran at %q", tk.Index, tk.SellerName)
		}
	}
	if out, err := os.ReadFile(filepath.Join(home.Get(j.ID), "run", "3", "stdout")); err != nil || !strings.HasPrefix(string(out), "far") {
		t.Errorf("the results hold %q, %v", out, err)
	}
	owed, err := east.Balances(t.Context())
	if err != nil || len(owed.Items) != 1 || owed.Items[0].Owed != done.Paid || owed.Items[0].Held != "0" {
		t.Errorf("the seller's cell has balances %+v, %v", owed.Items, err)
	}
	nodetest.Eventually(t, "the buyer sees what it owes in the other cell", func(ctx context.Context) error {
		mine, err := home.Balances(ctx)
		if err == nil && (len(mine.Items) != 1 || mine.Items[0].Owed != done.Paid || mine.Items[0].Cell != owed.Items[0].Cell) {
			err = fmt.Errorf("it sees %+v", mine.Items)
		}
		return err
	})
	// What is over stays to be seen, by the beginning of its ID.
	trades, err := home.Trades(t.Context(), api.Query{Job: j.ID})
	if err != nil || len(trades.Items) == 0 {
		t.Fatalf("the buyer sees the trades %+v, %v", trades.Items, err)
	}
	var paid pcm.Micro
	for _, tr := range trades.Items {
		p, _ := pcm.ParseMicro(tr.Paid)
		if paid += p; tr.State != "closed" || tr.Cell != owed.Items[0].Cell {
			t.Errorf("it sees %+v", tr)
		}
		if r := home.PCM("trade", "get", string(tr.ID)[:len("trd-")+8]); r.Code != 0 || !strings.Contains(r.Stdout, string(tr.ID)) || !strings.Contains(r.Stdout, string(tr.Cell)) {
			t.Errorf("pcm trade get: %+v", r)
		}
	}
	if paid.String() != done.Paid {
		t.Errorf("its trades cost %s, the job %s", paid, done.Paid)
	}
	sound(t, home, east)
}

// Two accounts owe each other in two cells. One netting, signed by both while one
// of the cells is silent, takes effect in each of them, once.
func TestAbroadNetting(t *testing.T) {
	site := func(name string) string { return nodetest.Bare("1", 2) + "labels:\n  site: " + name + "\n" }
	m := overseas(t,
		nodetest.Spec{Name: "anna", Config: site("anna")},
		nodetest.Spec{Name: "east", Config: site("east")},
	)
	anna, east := m.Peer("anna"), m.Peer("east")
	buys := func(who *nodetest.Peer, count int, site string) {
		t.Helper()
		spec := nodetest.Command(count, "true")
		spec.Steps[0].Labels = pcm.Labels{"site": site}
		who.Done(who.Send(spec, "").ID)
	}
	buys(anna, 3, "east")
	buys(east, 2, "anna")
	// Anna owes about 3 in east's cell, and is owed about 2 in her own. Now east is silent.
	defer east.Thaw()
	east.Freeze()
	if r := anna.PCM("account", "net", "propose", "east"); r.Code == 0 || !strings.Contains(r.Stderr, "east") || !strings.Contains(r.Stderr, "--partial") {
		t.Errorf("a netting without asking a silent cell: %+v", r)
	}
	east.Thaw()
	var offer api.Agreement
	nodetest.Eventually(t, "anna can propose", func(ctx context.Context) (err error) {
		offer, err = anna.ProposeNetting(ctx, api.NettingRequest{With: "east"})
		return err
	})
	if len(offer.Lines) != 2 || len(offer.Found) != 2 {
		t.Fatalf("the offer is %+v", offer)
	}
	var struck pcm.Micro
	for _, l := range offer.Lines {
		f, _ := pcm.ParseMicro(l.From)
		struck += f
	}
	owes := func(p *nodetest.Peer) (sum pcm.Micro) {
		t.Helper()
		l, err := p.Balances(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range l.Items {
			if b.Cell == cellOf(t, p) {
				o, _ := pcm.ParseMicro(b.Owed)
				sum += o
			}
		}
		return sum
	}
	atAnna, atEast := owes(anna), owes(east)
	if struck != min(atAnna, atEast) || struck < 2_000_000 {
		t.Errorf("%s is to be struck; %s is owed in one cell and %s in the other", struck, atAnna, atEast)
	}
	// East accepts while anna's cell is silent: its own has it, the other waits.
	defer anna.Thaw()
	anna.Freeze()
	if r := east.PCM("account", "net", "accept", offer.Line); r.Code != 0 || !strings.Contains(r.Stdout, "agreed") {
		t.Errorf("accepting while the other cell is silent: %+v", r)
	}
	if got := owes(east); got != atEast-struck {
		t.Errorf("in east's cell %s is owed, want %s less than %s", got, struck, atEast)
	}
	anna.Thaw()
	for _, p := range []*nodetest.Peer{anna, east} {
		nodetest.Eventually(t, p.Name+" knows that both cells have it", func(ctx context.Context) error {
			l, err := p.Agreements(ctx)
			if err == nil && (len(l.Items) != 1 || l.Items[0].State != api.AgreementDone) {
				err = fmt.Errorf("it shows %+v", l.Items)
			}
			return err
		})
	}
	// Brought once more, to both cells by both sides, it changes nothing.
	for _, p := range []*nodetest.Peer{anna, east} {
		if r := p.PCM("account", "net", "accept", offer.ID); r.Code != 0 {
			t.Errorf("once more at %s: %+v", p.Name, r)
		}
	}
	if a, e := owes(anna), owes(east); a != atAnna-struck || e != atEast-struck {
		t.Errorf("%s and %s are owed, want %s less than %s and %s", a, e, struck, atAnna, atEast)
	}
	sound(t, anna, east)
}

// The driver of a job that runs in another cell is killed; another peer of its
// account goes on with the attempt, and nothing runs twice.
func TestAbroadTakeover(t *testing.T) {
	m := overseas(t,
		nodetest.Spec{Name: "home", Config: nodetest.Buyer},
		nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2)},
		nodetest.Spec{Name: "heir", Config: nodetest.Buyer, Same: "home"},
	)
	home, east, heir := m.Peer("home"), m.Peer("east"), m.Peer("heir")
	proof := filepath.Join(m.Dir, "ran")
	gate := filepath.Join(m.Dir, "gate")
	spec := nodetest.Command(1, "echo once >> "+proof+"; while [ ! -e "+gate+" ]; do sleep 0.1; done; echo far")
	spec.Takeover = pcm.TakeoverAccount
	j := heir.Send(spec, "")
	heir.AwaitRunning(j.ID)
	nodetest.Eventually(t, "the other peer of the account knows the job", func(ctx context.Context) error {
		_, err := home.Job(ctx, string(j.ID))
		return err
	})
	heir.Kill()
	home.AwaitJob(j.ID, "driven by the other peer", func(j api.Job) bool { return j.DriverTerm > 1 })
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	home.Done(j.ID)
	if ran, err := os.ReadFile(proof); err != nil || string(ran) != "once\n" {
		t.Errorf("it ran %q, %v", ran, err)
	}
	sound(t, home, east)
}

// The seller's cell falls silent: the job goes on at home. When the cell is back,
// nothing of it is paid, and the job is settled.
func TestAbroadSilent(t *testing.T) {
	m := overseas(t,
		nodetest.Spec{Name: "home", Config: nodetest.Bare("5", 2)},
		nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2)},
	)
	home, east := m.Peer("home"), m.Peer("east")
	gate := filepath.Join(m.Dir, "gate")
	j := home.Send(nodetest.Command(1, "while [ ! -e "+gate+" ]; do sleep 0.1; done; echo done"), "")
	if task := home.AwaitRunning(j.ID); task.SellerName != "east" {
		t.Fatalf("it runs at %q, not in the other cell", task.SellerName)
	}
	defer east.Thaw()
	east.Freeze()
	nodetest.Eventually(t, "the job goes on at home", func(ctx context.Context) error {
		l, err := home.Tasks(ctx, string(j.ID), api.Query{})
		if err == nil && l.Items[0].SellerName != "home" {
			err = fmt.Errorf("its task is %+v", l.Items[0])
		}
		return err
	})
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	home.AwaitJob(j.ID, "done", func(j api.Job) bool { return j.State == pcm.JobDone })
	east.Thaw()
	if done := home.Done(j.ID); !strings.HasPrefix(done.Paid, "5.") {
		t.Errorf("it cost %s, want 5 and a little for the time: the attempt in the silent cell is not paid", done.Paid)
	}
	sound(t, home, east)
}

// The driver is killed between Place and Award: the other cell does not answer by
// then. When both are back, the driver learns what became of the award, and the
// task runs once.
func TestAbroadCrash(t *testing.T) {
	m := overseas(t, nodetest.Spec{Name: "home", Config: nodetest.Buyer}, nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2)})
	home, east := m.Peer("home"), m.Peer("east")
	proof := filepath.Join(m.Dir, "ran")
	defer east.Thaw()
	east.Freeze()
	j := home.Send(nodetest.Command(1, "echo once >> "+proof), "")
	placed := home.AwaitJob(j.ID, "placed, or told why not", func(j api.Job) bool { return j.Counts.Placed == 1 || j.Waiting != "" })
	home.Kill()
	east.Thaw()
	home.Up()
	done := home.Done(j.ID)
	if ran, err := os.ReadFile(proof); err != nil || string(ran) != "once\n" {
		t.Errorf("it ran %q, %v; before the crash it was %+v", ran, err, placed)
	}
	owed, err := east.Balances(t.Context())
	if err != nil || len(owed.Items) != 1 || owed.Items[0].Owed != done.Paid {
		t.Errorf("the seller's cell has balances %+v, %v; at home it cost %s", owed.Items, err, done.Paid)
	}
	sound(t, home, east)
}

// A trade between cells stands in two ledgers. One file proves both halves, to whoever
// has the keys of both cells.
func TestAbroadProof(t *testing.T) {
	m := overseas(t, nodetest.Spec{Name: "home", Config: nodetest.Buyer}, nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2) + listens})
	home, east := m.Peer("home"), m.Peer("east")
	j := home.Done(home.Send(nodetest.Command(1, "true"), "").ID)
	trades, err := home.Trades(t.Context(), api.Query{Job: j.ID})
	if err != nil || len(trades.Items) != 1 {
		t.Fatalf("%+v, %v", trades, err)
	}
	trade := string(trades.Items[0].ID)
	dir := t.TempDir()
	half, other, both, keys := filepath.Join(dir, "half"), filepath.Join(dir, "other"), filepath.Join(dir, "both"), map[string]string{}
	for _, p := range m.Peers {
		keys[p.Name] = filepath.Join(dir, p.Name+".keys")
		if err := os.WriteFile(keys[p.Name], []byte(p.PCM("ledger", "vkeys").Stdout), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r := home.PCM("ledger", "proof", trade, "-f", half); r.Code != 0 || !strings.Contains(r.Stderr, "--from URL") || !strings.Contains(r.Stderr, string(trades.Items[0].Cell)) {
		t.Errorf("a proof of home's records does not say where the others are: %+v", r)
	}
	if r := home.PCM("ledger", "proof", trade, "-f", both, "--from", logURL(t, east)); r.Code != 0 || !strings.Contains(r.Stderr, "the keys of both") {
		t.Errorf("a proof of both cells' records: %+v", r)
	}
	if r := east.PCM("ledger", "proof", trade, "-f", other); r.Code != 0 {
		t.Errorf("a proof of east's records: %+v", r)
	}
	check := func(what string, code int, wants []string, args ...string) {
		t.Helper()
		r := home.PCM(append([]string{"ledger", "verify-proof"}, args...)...)
		for _, want := range wants {
			if r.Code != code || !strings.Contains(r.Stdout, want) {
				t.Errorf("%s: no %q in %+v", what, want, r)
			}
		}
	}
	check("home's half", 0, []string{"place", "accept", "clear"}, half, "--vkey", keys["home"])
	check("both", 0, []string{"place", "clear", "award", "settle", string(cellOf(t, home)), string(cellOf(t, east))}, both, "--vkey", keys["home"], "--vkey", keys["east"])
	check("both, in two files", 0, []string{"place", "award", pcm.Short(cellOf(t, home)) + "   ", pcm.Short(cellOf(t, east)) + "   "}, half, other, "--vkey", keys["home"], "--vkey", keys["east"])
	check("both, in two files, with the keys of one", 1, []string{"NOT good"}, half, other, "--vkey", keys["home"])
	check("both, with the keys of one", 1, []string{"NOT good", "take those of that cell's voters"}, both, "--vkey", keys["home"])
	check("both, with the keys of the other", 1, []string{"NOT good"}, both, "--vkey", keys["east"])
}

// The submitter of a job that runs in another cell is killed, and nobody else of its
// account is there: a peer of another account, by the buyer's mandate, takes what
// finished, has the rest run, there too, and pays. The submitter comes back and sees it.
func TestAbroadMandate(t *testing.T) {
	m := nodetest.Empty(t)
	var voters []*nodetest.Peer
	for i, name := range []string{"anna", "carl", "dora"} {
		p := m.Add(nodetest.Spec{Name: name, Config: nodetest.Buyer})
		if voters = append(voters, p); i == 0 {
			p.Up()
		} else {
			p.Up("--join", voters[0].Token())
		}
	}
	m.AwaitWhole()
	anna, carl := voters[0], voters[1]
	east := m.Add(nodetest.Spec{Name: "east", Config: nodetest.Bare("0.5", 2)})
	east.Up("--join", anna.Token(), "--cell", "new:east")
	proof, gate := filepath.Join(m.Dir, "ran"), filepath.Join(m.Dir, "gate")
	spec := nodetest.Command(2, "echo $PCM_TASK_INDEX >> "+proof+"; while [ ! -e "+gate+" ]; do sleep 0.1; done; echo far")
	later := nodetest.Command(1, "echo then >> "+proof+"; echo further").Steps[0]
	later.Name, later.Needs = "later", []string{spec.Steps[0].Name}
	spec.Steps = append(spec.Steps, later)
	spec.Takeover, spec.Budget = pcm.TakeoverAny, "10"
	nodetest.Eventually(t, "anna can buy in the other cell", func(ctx context.Context) error {
		x, err := anna.ExplainSpec(ctx, api.Submission{Spec: spec})
		if err == nil && !slices.ContainsFunc(x.Steps[0].Candidates, func(c api.CandidateView) bool { return c.OK }) {
			err = fmt.Errorf("nobody fits: %+v", x.Steps[0].Candidates)
		}
		return err
	})
	j := anna.Send(spec, "")
	nodetest.Eventually(t, "both tasks run in the other cell", func(ctx context.Context) error {
		ran, err := os.ReadFile(proof)
		if err == nil && strings.Count(string(ran), "\n") < 2 {
			err = fmt.Errorf("there ran %q", ran)
		}
		return err
	})
	me := anna.PeerID()
	anna.Kill()
	driven := carl.AwaitJob(j.ID, "driven by another account", func(j api.Job) bool { return j.DriverTerm > 1 })
	if driven.Driver == me {
		t.Fatalf("it is driven by %s", driven.Driver)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	carl.AwaitJob(j.ID, "done", func(j api.Job) bool { return j.State == pcm.JobDone })
	if ran, err := os.ReadFile(proof); err != nil || len(ran) != len("0\n1\nthen\n") || !strings.HasSuffix(string(ran), "then\n") {
		t.Errorf("there ran %q, %v", ran, err)
	}
	nodetest.Eventually(t, "all is paid while the buyer is away", func(ctx context.Context) error {
		l, err := east.Balances(ctx)
		if err == nil && (len(l.Items) != 1 || l.Items[0].Held != "0" || !strings.HasPrefix(l.Items[0].Owed, "1.5")) {
			err = fmt.Errorf("the seller's cell has %+v", l.Items)
		}
		return err
	})
	anna.Up()
	done := anna.Done(j.ID)
	owed, err := east.Balances(t.Context())
	if err != nil || len(owed.Items) != 1 || owed.Items[0].Owed != done.Paid {
		t.Errorf("%+v is owed, %v; the job says that it cost %s", owed.Items, err, done.Paid)
	}
	if out, err := os.ReadFile(filepath.Join(anna.Get(j.ID), "later", "0", "stdout")); err != nil || string(out) != "further\n" {
		t.Errorf("the results hold %q, %v", out, err)
	}
	sound(t, append(voters, east)...)
}
