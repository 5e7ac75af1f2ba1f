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
	sound(t, home, east)
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
