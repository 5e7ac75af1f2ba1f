package node

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// soon waits until a condition holds.
func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for !ok() {
		if !pause(ctx, 20*time.Millisecond) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// A full cell sends newcomers on: to found one, or to another with room; and who
// names a cell goes there, or is told why not before its token is used.
func TestFullCellSendsNewcomersOn(t *testing.T) {
	a := upHere(t, "a", nil)
	soon(t, "a decides on settings", func() bool { return len(deciders(a)) == 1 })
	if _, err := a.must(t.Context(), pcm.Op{Upgrade: &pcm.Upgrade{Level: pcm.LedgerLevel}}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.must(t.Context(), pcm.Op{Set: &pcm.Set{Key: pcm.SettingMaxMembers, Value: "1"}}); err != nil {
		t.Fatal(err)
	}
	b := upHere(t, "b", func(c *Config) { c.Join = invited(t, a) })
	if b.id.Mesh.CellName != "b" || b.id.Mesh.Cell == a.id.Mesh.Cell {
		t.Fatalf("b is in %s", b.id.Mesh.CellName)
	}
	east := b.id.Mesh.Cell
	soon(t, "a knows b's cell", func() bool { _, ok := a.cellRow(east); return ok })
	token := invited(t, a)
	_, err := Open(t.Context(), Config{
		Dir: t.TempDir(), Name: "nobody", Join: token, Cell: "a", Listen: []string{"/ip4/127.0.0.1/tcp/0"}, StoreQuota: 1 << 20, Logger: slog.New(slog.DiscardHandler),
	})
	if pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "b (cell-") {
		t.Fatalf("a newcomer to a full cell: %v", err)
	}
	c := upHere(t, "c", func(k *Config) { k.Join, k.Cell = token, "b" })
	d := upHere(t, "d", func(k *Config) { k.Join = invited(t, a) })
	for _, n := range []*Node{c, d} {
		if n.id.Mesh.Cell != east || n.id.Mesh.CellName != "b" || n.id.Mesh.Founded {
			t.Errorf("%s is in %+v", n.cfg.Name, n.id.Mesh)
		}
		n.cell.View(func() {
			if _, ok := n.state.Member(n.self); !ok {
				t.Errorf("%s does not see itself in its cell's ledger", n.cfg.Name)
			}
		})
	}
	if members := b.cell.Status().Members; len(members) != 3 {
		t.Errorf("b's cell has the members %v", members)
	}
	for _, n := range []*Node{a, b, c, d} {
		soon(t, n.cfg.Name+" shows both cells", func() bool {
			list, err := n.Cells(t.Context())
			if err != nil || len(list) != 2 || list[0].ID != n.id.Mesh.Cell || list[0].Away || !list[1].Away {
				return false
			}
			i := slices.IndexFunc(list, func(c api.Cell) bool { return c.ID == a.id.Mesh.Cell })
			return list[i].Size == 1 && list[i].MaxMembers == 1
		})
	}
	// The mesh's root key is missed by the other cell as well.
	if err := a.mayLeave(); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("the keeper of the root key may leave: %v", err)
	}
	// Others can't be brought into a cell by who may not invite.
	_, err = b.serveCellJoin(t.Context(), c.mesh.Own(), pcm.MustMarshal(cellJoinRequest{east, a.mesh.Signed()}))
	if pcm.ErrorCode(err) != pcm.Forbidden {
		t.Errorf("c brings a into b's cell: %v", err)
	}
	_, err = b.serveCellJoin(t.Context(), a.mesh.Own(), pcm.MustMarshal(cellJoinRequest{a.id.Mesh.Cell, a.mesh.Signed()}))
	if pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("b takes a peer into a's cell: %v", err)
	}
}

func deciders(n *Node) (list []pcm.AccountID) {
	n.cell.View(func() { list = n.state.Deciders() })
	return list
}

// TestOrdersInNames: what is refused of an order is said of the names that people know.
func TestOrdersInNames(t *testing.T) {
	n := upHere(t, "anna", nil)
	_, err := n.PromotePeer(t.Context(), "anna", "anna")
	if err == nil || !strings.Contains(err.Error(), "peer anna ("+pcm.Short(n.self)+") votes already") {
		t.Errorf("who votes takes a vote: %v", err)
	}
	err = n.inNames(pcm.Errorf(pcm.Busy, "wait for %s", pcm.Short(n.id.Mesh.Cell)))
	if want := "wait for cell " + n.id.Mesh.CellName + " (" + pcm.Short(n.id.Mesh.Cell) + ")"; pcm.ErrorCode(err) != pcm.Busy || err.Error() != want {
		t.Errorf("%v, not %s", err, want)
	}
}
