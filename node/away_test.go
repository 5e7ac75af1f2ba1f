package node

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/mesh"
)

// upHere runs a peer in this process until the test ends; change may complete its configuration.
func upHere(t *testing.T, name string, change func(*Config)) *Node {
	t.Helper()
	cfg := Config{
		Dir: t.TempDir(), Name: name, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, StoreQuota: 1 << 20, Logger: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	n, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s ended: %v", name, err)
		}
	})
	ready, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	select {
	case <-n.member:
	case <-ready.Done():
		t.Fatalf("%s is not a member: %s", name, n.notReady())
	}
	return n
}

// invited is a token of a peer.
func invited(t *testing.T, by *Node) string {
	t.Helper()
	inv, err := by.Invite(t.Context(), time.Hour, false)
	if err != nil {
		t.Fatal(err)
	}
	return inv.Token
}

// A newcomer founds a cell of its own in the mesh, and speaks to its inviter's
// cell as a client: it makes itself known there, and asks.
func TestCellOfItsOwn(t *testing.T) {
	a := upHere(t, "a", nil)
	b := upHere(t, "b", func(c *Config) { c.Join, c.Cell = invited(t, a), "new:east" })
	if b.id.Mesh.Mesh != a.id.Mesh.Mesh || b.id.Mesh.Cell == a.id.Mesh.Cell || b.id.Mesh.CellName != "east" {
		t.Fatalf("b is in %+v, a in %+v", b.id.Mesh, a.id.Mesh)
	}
	if members := len(a.cell.Status().Members); members != 1 {
		t.Errorf("a's cell has %d members", members)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	home := a.id.Mesh.Cell
	b.aways.peers = func(pcm.CellID) []pcm.PeerID { return []pcm.PeerID{a.self} }
	r, err := b.proposeIn(ctx, home, pcm.Op{Enroll: &pcm.Enroll{Passport: b.mesh.Signed()}}, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
	if err != nil || r.First() != nil {
		t.Fatalf("enrolling: %+v %v", r, err)
	}
	s, err := b.summaryOf(ctx, home)
	if err != nil || s.Name != a.id.Mesh.CellName || s.Records == 0 || s.Stamp == 0 {
		t.Errorf("summary %+v: %v", s, err)
	}
	trades, _, err := b.tradesIn(ctx, home, []pcm.TradeID{pcm.NewTradeID(pcm.NewJobID(), 1)})
	if err != nil || len(trades) != 0 {
		t.Errorf("trades %v: %v", trades, err)
	}
	a.cell.View(func() {
		if m, ok := a.state.Member(b.self); !ok || m.Incarnation != 1 {
			t.Errorf("a's cell knows of b: %+v", m)
		}
	})
}

// Who says in an offer that it is of a cell is not asked about it: anybody may say so.
func TestSellersAreNotAskedAboutCells(t *testing.T) {
	a := upHere(t, "a", nil)
	b := upHere(t, "b", func(c *Config) { c.Join, c.Cell = invited(t, a), "new:east" })
	now, home := time.Now(), a.id.Mesh.Cell
	offer := pcm.Offer{
		Mesh: b.id.Mesh.Mesh, Cell: home, Peer: b.self, Account: b.account, Name: "b", Number: uint64(now.Add(time.Hour).UnixMilli()),
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(),
	}
	if err := b.mesh.Publish(b.id.Peer.Seal(pcm.DomainOffer, offer)); err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(b.mesh.Offers(), func(r mesh.Row) bool { return r.Offer.Cell == home && r.Offer.Peer == b.self }) {
		t.Fatal("the offer is not in the book")
	}
	if ids := b.peersOf(pcm.NewCellID()); ids != nil {
		t.Errorf("asked about a cell that nobody has told of: %v", ids)
	}
	for deadline := time.After(time.Minute); len(b.peersOf(home)) == 0; {
		changed := b.mesh.CellsChanged()
		if len(b.peersOf(home)) > 0 {
			break
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatal("b was not told of a's cell")
		}
	}
	if ids := b.peersOf(home); slices.ContainsFunc(ids, func(id pcm.PeerID) bool { return id != a.self }) {
		t.Errorf("asked about a's cell: %v", ids)
	}
}

func TestFoundingName(t *testing.T) {
	for _, c := range []struct {
		wish, want string
		code       pcm.Code
	}{
		{"", "peer", ""},
		{"new:", "peer", ""},
		{"new:east", "east", ""},
		{"new:East!", "", pcm.Invalid},
		{"east", "", pcm.Invalid},
	} {
		if got, err := foundingName(c.wish, "peer"); got != c.want || pcm.ErrorCode(err) != c.code {
			t.Errorf("%q: %q, %v", c.wish, got, err)
		}
	}
}
