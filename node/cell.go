package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/node/api"
)

// cellOrderTime bounds what an operator asks of the cell: a change of leader may
// come in between.
const cellOrderTime = 25 * time.Second

// CellHealth is how the peers of the cell are, as its leader sees them; without a
// leader, who they are.
func (n *Node) CellHealth(ctx context.Context) (api.CellHealth, error) {
	names := n.names()
	v := api.CellHealth{ID: n.id.Mesh.Cell, Name: n.id.Mesh.CellName, Members: []api.PeerHealth{}}
	ask, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	h, err := n.cell.Health(ask)
	if err != nil {
		st := n.cell.Status()
		connected := map[pcm.PeerID]bool{n.self: true}
		for _, p := range n.mesh.Peers() {
			connected[p.Passport.Peer] = p.Connected
		}
		v.Leader = st.Leader
		v.Plan = "nothing can be decided now: " + err.Error()
		if len(st.Members) == 0 {
			v.Plan = "not known here: this peer has heard nothing of the cell yet"
		}
		for _, m := range st.Members {
			v.Members = append(v.Members, api.PeerHealth{ID: m.Peer, Name: names[m.Peer], Role: string(m.Role), Answers: connected[m.Peer], Eligible: true})
		}
		return v, nil
	}
	v.Leader, v.MaxVoters, v.Plan = h.Leader, h.MaxVoters, orElse(h.Plan, "the leader has just begun")
	for _, m := range h.Members {
		v.Members = append(v.Members, api.PeerHealth{
			ID: m.Peer, Name: names[m.Peer], Role: string(m.Role), Answers: m.Answers, SilentMS: m.SilentMS, Applied: m.Applied, Last: m.Last,
			Complete: m.Complete, Ready: m.Ready, CaughtMS: m.CaughtMS, Eligible: m.Eligible, Held: m.Held, Forgot: m.Forgot, Account: m.Owner, Site: m.Site,
		})
	}
	slices.SortFunc(v.Members, func(a, b api.PeerHealth) int {
		rank := map[string]int{string(consensus.RoleLeader): 0, string(consensus.RoleVoter): 1}
		ra, rb := 2, 2
		if r, ok := rank[a.Role]; ok {
			ra = r
		}
		if r, ok := rank[b.Role]; ok {
			rb = r
		}
		if ra != rb {
			return ra - rb
		}
		return strings.Compare(a.Name+string(a.ID), b.Name+string(b.ID))
	})
	return v, nil
}

// cellPeer finds the peer that a person meant: by its ID, the short form of it,
// an unambiguous beginning of either, or its name. Peers that the ledger knows
// count as well as those of the cell: one that was removed may be taken in again.
func (n *Node) cellPeer(typed string) (pcm.PeerID, error) {
	var found []pcm.PeerID
	var words []string
	names := n.names()
	for _, m := range n.cell.Status().Members {
		if _, ok := names[m.Peer]; !ok {
			names[m.Peer] = ""
		}
	}
	for id, name := range names {
		if string(id) == typed {
			return id, nil
		}
		words = append(words, name, pcm.Short(id))
		if api.MayMean(typed, id, name) {
			found = append(found, id)
		}
	}
	switch len(found) {
	case 0:
		hint := ""
		if near := pcm.Nearest(typed, words); near != "" {
			hint = "; did you mean " + near + "?"
		}
		return "", pcm.Errorf(pcm.NotFound, "no peer of %s is called %q, and none has an ID like that%s; see 'pcm cell members'", n.id.Mesh.CellName, typed, hint)
	case 1:
		return found[0], nil
	}
	var list []string
	for _, id := range found {
		list = append(list, string(id))
	}
	slices.Sort(list)
	return "", pcm.Errorf(pcm.Invalid, "%q could be any of %d: %s; give the whole ID", typed, len(found), strings.Join(list[:min(len(list), 8)], ", "))
}

// orderCell does something about a peer of the cell, notes who wanted it, and
// shows the cell then.
func (n *Node) orderCell(ctx context.Context, event, typed string, do func(context.Context, pcm.PeerID) error) (api.CellHealth, error) {
	var id pcm.PeerID
	if typed != "" {
		var err error
		if id, err = n.cellPeer(typed); err != nil {
			return api.CellHealth{}, err
		}
	}
	try, cancel := context.WithTimeout(ctx, cellOrderTime)
	defer cancel()
	if err := do(try, id); err != nil {
		return api.CellHealth{}, n.inNames(err)
	}
	n.audit.operator(ctx, event, api.AuditEntry{Subject: string(id)})
	n.log.Info("the operator changed the cell", "event", event, "peer", pcm.Short(id))
	return n.settledHealth(try)
}

// settledHealth is how the cell is once it has a leader that answers; what was
// done may have ended the term of the one before. If none does in time, it says so.
func (n *Node) settledHealth(ctx context.Context) (api.CellHealth, error) {
	for {
		v, err := n.CellHealth(ctx)
		if err != nil || v.MaxVoters > 0 || !pause(ctx, 50*time.Millisecond) {
			return v, err
		}
	}
}

// inNames says the names of the cell and of its peers in an error whose writer
// knew their IDs alone.
func (n *Node) inNames(err error) error {
	e, ok := errors.AsType[*pcm.Error](err)
	if !ok {
		return err
	}
	pairs := []string{pcm.Short(n.id.Mesh.Cell), fmt.Sprintf("cell %s (%s)", n.id.Mesh.CellName, pcm.Short(n.id.Mesh.Cell))}
	for id, name := range n.names() {
		if name != "" {
			pairs = append(pairs, "peer "+pcm.Short(id), fmt.Sprintf("peer %s (%s)", name, pcm.Short(id)))
		}
	}
	return pcm.Errorf(e.Code, "%s", strings.NewReplacer(pairs...).Replace(e.Error()))
}

// TransferLeader hands leadership to a voter; "": the one that is furthest.
func (n *Node) TransferLeader(ctx context.Context, to string) (api.CellHealth, error) {
	return n.orderCell(ctx, "transfer-leader", to, n.cell.TransferLeadership)
}

// PromotePeer makes a replica a voter, in place of another one unless that is "".
func (n *Node) PromotePeer(ctx context.Context, who, instead string) (api.CellHealth, error) {
	var other pcm.PeerID
	if instead != "" {
		var err error
		if other, err = n.cellPeer(instead); err != nil {
			return api.CellHealth{}, err
		}
	}
	return n.orderCell(ctx, "promote", who, func(ctx context.Context, id pcm.PeerID) error { return n.cell.Promote(ctx, id, other) })
}

// DemotePeer makes a voter a replica.
func (n *Node) DemotePeer(ctx context.Context, who string, force bool) (api.CellHealth, error) {
	return n.orderCell(ctx, "demote", who, func(ctx context.Context, id pcm.PeerID) error { return n.cell.Demote(ctx, id, force) })
}

// AddPeer takes a peer that the ledger knows into the cell.
func (n *Node) AddPeer(ctx context.Context, who string) (api.CellHealth, error) {
	return n.orderCell(ctx, "add", who, func(ctx context.Context, id pcm.PeerID) error {
		if err := n.followsHere(ctx, id); err != nil {
			return err
		}
		return n.cell.AddReplica(ctx, id)
	})
}

// RemovePeer takes a peer out of the cell. Its own part goes on without news.
func (n *Node) RemovePeer(ctx context.Context, who string) (api.CellHealth, error) {
	return n.orderCell(ctx, "remove", who, func(ctx context.Context, id pcm.PeerID) error {
		if id == n.self {
			return pcm.Errorf(pcm.Refused, "this is the peer itself: 'pcm leave' gives its membership up in good order")
		}
		return n.cell.Remove(ctx, id)
	})
}
