package nodetest

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/mesh"
	"github.com/jointcloud/pcm/node/api"
)

// Two cells in one mesh: a newcomer founds the second one, another joins it by its
// name. Every peer shows both, and each cell goes on with its own work and ledger.
func TestTwoCells(t *testing.T) {
	m := New(t, Spec{Name: "anna", Config: Seller("0.001")})
	anna := m.Peer("anna")
	carl := m.Add(Spec{Name: "carl", Config: Seller("0.001")})
	carl.Up("--join", anna.Token(), "--cell", "new:east")
	for _, p := range m.Peers {
		Eventually(t, p.Name+"'s cell has the rules of this release", func(context.Context) error {
			if r := p.PCM("ledger", "records", "--limit", "0"); !strings.Contains(r.Stdout, "upgrade") {
				return fmt.Errorf("its records are %s", r.Stdout)
			}
			return nil
		})
	}
	// A release that doesn't speak the rules of a cell is refused before its token is used.
	token := anna.Token()
	older := func(cell string) error {
		_, err := mesh.Join(t.Context(), mesh.JoinConfig{
			Key: pcm.NewKey(), Account: pcm.NewKey(), Name: "old", Token: token, Cell: cell, Level: pcm.LedgerLevel - 1, Logger: slog.New(slog.DiscardHandler),
		})
		return err
	}
	if err := older(""); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "update it") {
		t.Errorf("an older release joins: %v", err)
	}
	// Nor into another cell, whose level the inviter asks for; it may have to wait to hear of that cell.
	if err := older("east"); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "cell east is at level") {
		t.Errorf("an older release joins the other cell: %v", err)
	}
	// A cell that nobody knows is refused before the token is used.
	dora := m.Add(Spec{Name: "dora", Config: Buyer})
	if r := dora.PCM("up", "--config", dora.Config, "--name", "dora", "--api", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0", "--join", token, "--cell", "nowhere"); r.Code != 3 || !strings.Contains(r.Stderr, "new:nowhere") {
		t.Fatalf("joining a cell that isn't there: %+v", r)
	}
	dora.Up("--join", token, "--cell", "east")
	for _, p := range m.Peers {
		Eventually(t, p.Name+" knows both cells", func(ctx context.Context) error {
			if err := knows(ctx, p, "anna", 1); err != nil {
				return err
			}
			return knows(ctx, p, "east", 2)
		})
		if r := p.PCM("cell", "list"); r.Code != 0 || !strings.Contains(r.Stdout, "east") || !strings.Contains(r.Stdout, "anna") {
			t.Errorf("pcm cell list at %s: %+v", p.Name, r)
		}
	}
	dora.Done(dora.Send(Command(3, "echo east"), "").ID)
	anna.Done(anna.Send(Command(2, "echo anna"), "").ID)
	Eventually(t, "carl and dora have the same good ledger", func(ctx context.Context) error {
		verdicts := map[string]api.Verdict{}
		for _, p := range []*Peer{carl, dora} {
			v, err := p.Client.Verify(ctx)
			if err != nil {
				return err
			}
			if !v.OK {
				return Final(fmt.Errorf("%s finds its ledger bad: %s", p.Name, v.Problem))
			}
			verdicts[v.Root] = v
		}
		if len(verdicts) != 1 {
			return fmt.Errorf("they differ: %v", verdicts)
		}
		return nil
	})
	if v, err := anna.Client.Verify(t.Context()); err != nil || !v.OK {
		t.Errorf("anna's ledger: %+v %v", v, err)
	}
}

// A newcomer without a wish is not sent to a cell that has died, though what it told
// of itself still holds.
func TestNewcomerPassesOverDeadCell(t *testing.T) {
	m := New(t, Spec{Name: "anna", Config: Seller("0.001")})
	anna := m.Peer("anna")
	carl := m.Add(Spec{Name: "carl", Config: Buyer})
	carl.Up("--join", anna.Token(), "--cell", "new:east")
	Eventually(t, "anna knows carl's cell", func(ctx context.Context) error { return knows(ctx, anna, "east", 1) })
	carl.Kill()
	if r := anna.PCM("cell", "set", "open", "no"); r.Code != 0 {
		t.Fatalf("closing anna's cell: %+v", r)
	}
	dora := m.Add(Spec{Name: "dora", Config: Buyer})
	dora.Up("--join", anna.Token())
	if err := knows(t.Context(), dora, "dora", 1); err != nil {
		t.Error(err)
	}
	if err := knows(t.Context(), anna, "east", 1); err != nil {
		t.Errorf("the dead cell was forgotten, so nothing was passed over: %v", err)
	}
}

// knows tells why a peer doesn't show a cell of so many members.
func knows(ctx context.Context, p *Peer, name string, size int) error {
	cells, err := p.Cells(ctx)
	if err != nil {
		return err
	}
	for _, c := range cells.Items {
		if c.Name == name && c.Size == size && c.Leader != "" {
			return nil
		}
	}
	return fmt.Errorf("%s shows the cells %+v", p.Name, cells.Items)
}
