package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/mesh"
	"github.com/jointcloud/pcm/node/api"
)

// What the leader of a cell tells the mesh of it, and when.
const (
	describeLook  = 3 * time.Second  // between looks at whether there is news
	describeGap   = 10 * time.Second // least time between two descriptors, but for a new leader's first
	describeEvery = 5 * time.Minute  // without news, in a mesh of few cells
	describeShare = time.Second      // for each cell of the mesh: so all cells together tell once a second at most
	describeLives = 6                // intervals for which a descriptor holds
)

// describe tells the mesh of this node's cell as long as this node leads it.
func (n *Node) describe(ctx context.Context) error {
	var last pcm.Descriptor // that this peer published in this term; zero: none
	var at time.Time
	for {
		n.trustOwn()
		switch {
		case !n.cell.Leads():
			last = pcm.Descriptor{}
		default:
			cells := n.mesh.Cells()
			d, ok := n.descriptor(time.Now(), describeInterval(len(cells)))
			if !ok || !worthTelling(last, d, time.Since(at), describeInterval(len(cells))) {
				break
			}
			if err := n.mesh.PublishCell(n.id.Peer.Seal(pcm.DomainCell, d)); err != nil {
				n.log.Warn("can't tell the mesh of this cell", "reason", err)
				break
			}
			last, at = d, time.Now()
		}
		if !pause(ctx, describeLook) {
			return nil
		}
	}
}

// describeInterval is how often a cell without news is told of, in a mesh of so many.
func describeInterval(cells int) time.Duration {
	return max(describeEvery, time.Duration(cells)*describeShare)
}

// worthTelling tells whether a descriptor says enough that the last one doesn't.
func worthTelling(last, d pcm.Descriptor, since, interval time.Duration) bool {
	switch {
	case last.Number == 0 || last.Term != d.Term:
		return true
	case since < describeGap:
		return false
	case since >= interval:
		return true
	case last.Open != d.Open || last.MaxMembers != d.MaxMembers || (last.Room() == 0) != (d.Room() == 0):
		return true
	}
	grown := max(d.Members-last.Members, last.Members-d.Members)
	if grown*10 > last.Members {
		return true
	}
	return !slices.EqualFunc(last.Voters, d.Voters, func(a, b pcm.DescribedPeer) bool {
		return a.Peer == b.Peer && a.Account == b.Account && slices.Equal(a.Addrs, b.Addrs)
	})
}

// descriptor is what this node, its leader, says of its cell; false as long as the
// ledger doesn't know this peer.
func (n *Node) descriptor(now time.Time, interval time.Duration) (pcm.Descriptor, bool) {
	st := n.cell.Status()
	most, open := n.limits()
	d := pcm.Descriptor{
		Mesh: n.id.Mesh.Mesh, Cell: n.id.Mesh.Cell, Name: n.id.Mesh.CellName, Number: uint64(now.UnixMilli()), Leader: n.self, Term: st.Term,
		Members: len(st.Members), MaxMembers: most, Open: open,
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(describeLives * interval).UnixMilli(),
	}
	n.cell.View(func() {
		for _, m := range st.Members {
			if m.Role != consensus.RoleVoter && m.Role != consensus.RoleLeader {
				continue
			}
			if known, ok := n.state.Member(m.Peer); ok {
				d.Voters = append(d.Voters, pcm.DescribedPeer{Peer: m.Peer, Account: known.Account})
			}
		}
	})
	for i, v := range d.Voters {
		d.Voters[i].Addrs = n.mesh.AddrsOf(v.Peer)
	}
	d.Clip()
	slices.SortFunc(d.Voters, func(a, b pcm.DescribedPeer) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
	return d, d.Votes(n.self)
}

// limits are how many peers this node's cell takes, and whether it takes any.
func (n *Node) limits() (most int, open bool) {
	n.cell.View(func() { most, open = n.state.MaxMembers(), n.state.Open() })
	if most == 0 {
		most = consensus.MaxMembers
	}
	return min(most, consensus.MaxMembers), open
}

// trustOwn takes Raft's messages from voters that a voter whom this peer's
// configuration knows names: this peer may have been away while they were replaced.
func (n *Node) trustOwn() {
	row, ok := n.cellRow(n.id.Mesh.Cell)
	if !ok || row.Source == n.self || !slices.Contains(n.voters(), row.Descriptor.Leader) {
		return
	}
	for _, v := range row.Descriptor.Voters {
		n.cell.Trust(v.Peer)
	}
}

// cellRow is what the mesh says of a cell.
func (n *Node) cellRow(cell pcm.CellID) (mesh.CellRow, bool) {
	rows := n.mesh.Cells()
	i := slices.IndexFunc(rows, func(r mesh.CellRow) bool { return r.Descriptor.Cell == cell })
	if i < 0 {
		return mesh.CellRow{}, false
	}
	return rows[i], true
}

// cellName is what people call a cell.
func (n *Node) cellName(cell pcm.CellID) string {
	if cell == n.id.Mesh.Cell {
		return n.id.Mesh.CellName
	}
	if row, ok := n.cellRow(cell); ok && row.Descriptor.Name != "" {
		return row.Descriptor.Name + " (" + pcm.Short(cell) + ")"
	}
	return pcm.Short(cell)
}

// otherCells are the cells of the mesh that this node is not in.
func (n *Node) otherCells() []pcm.Descriptor {
	var list []pcm.Descriptor
	for _, r := range n.mesh.Cells() {
		if r.Descriptor.Cell != n.id.Mesh.Cell {
			list = append(list, r.Descriptor)
		}
	}
	return list
}

// peersOf are the peers of another cell that may be asked about it: its leader and
// voters by its descriptor. Who only sells there is not: anybody may say so in an offer.
func (n *Node) peersOf(cell pcm.CellID) []pcm.PeerID {
	row, ok := n.cellRow(cell)
	if !ok {
		return nil
	}
	ids := []pcm.PeerID{row.Descriptor.Leader}
	for _, v := range row.Descriptor.Voters {
		ids = append(ids, v.Peer)
	}
	return ids
}

// awayCells are views of the cells that this node is not in, as they told of themselves.
func (n *Node) awayCells() []api.Cell {
	names, alive := map[pcm.PeerID]string{}, map[pcm.PeerID]bool{}
	for _, p := range n.mesh.Peers() {
		names[p.Passport.Peer], alive[p.Passport.Peer] = p.Passport.Name, p.Connected
	}
	var list []api.Cell
	for _, row := range n.mesh.Cells() {
		d := row.Descriptor
		if d.Cell == n.id.Mesh.Cell {
			continue
		}
		c := api.Cell{
			ID: d.Cell, Name: d.Name, Away: true, Leader: d.Leader, Term: d.Term, Size: d.Members, MaxMembers: d.MaxMembers, Open: d.Open,
			Source: row.Source, AgeMS: max(0, time.Since(row.ReceivedAt).Milliseconds()), NotAfter: time.UnixMilli(d.NotAfter).UTC(),
			Silent: d.Silent(time.Now()), Members: []api.CellMember{},
		}
		for _, v := range d.Voters {
			role := consensus.RoleVoter
			if v.Peer == d.Leader {
				role = consensus.RoleLeader
			}
			c.Members = append(c.Members, api.CellMember{ID: v.Peer, Name: names[v.Peer], Role: string(role), Alive: alive[v.Peer]})
		}
		list = append(list, c)
	}
	return list
}
