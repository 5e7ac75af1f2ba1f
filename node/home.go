package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/mesh"
)

// newCell begins the wish for a cell that is to be founded: "new:NAME".
const newCell = "new:"

// foundingName is how a cell is called that a peer founds.
func foundingName(wish, otherwise string) (string, error) {
	name, isNew := strings.CutPrefix(wish, newCell)
	switch {
	case wish != "" && !isNew:
		return "", pcm.Errorf(pcm.Invalid, "cell %q: this peer founds a mesh, and its first cell: name it with new:%s, or join a mesh with --join TOKEN", wish, wish)
	case name == "":
		return otherwise, nil
	case !pcm.ValidName(name):
		return "", pcm.Errorf(pcm.Invalid, "cell %q: %q is not a name: 1 to 63 lower-case letters, digits, dots and dashes", wish, name)
	}
	return name, nil
}

// home is where a newcomer may go.
type home struct {
	cell pcm.CellID // "": one that it founds
	name string
}

// homesFor decides where a newcomer goes that redeems a token here: the first of
// the homes whose cell takes it.
func (n *Node) homesFor(req mesh.JoinRequest) ([]home, error) {
	most, open := n.limits()
	members := n.cell.Status().Members
	own := pcm.Descriptor{Cell: n.id.Mesh.Cell, Name: n.id.Mesh.CellName, Members: len(members), MaxMembers: most, Open: open}
	if slices.ContainsFunc(members, func(m consensus.Member) bool { return m.Peer == req.Peer }) {
		return []home{{own.Cell, own.Name}}, nil // it was let in before and asks again
	}
	return homesAmong(req.Cell, req.Name, own, n.otherCells(), time.Now())
}

// A cell that was just founded is not known everywhere yet: the inviter asks its
// neighbours, and waits a moment.
const (
	cellWait  = 6 * time.Second
	cellRetry = time.Second
)

// homesOf is homesFor, with patience for a cell that is not known here yet.
func (n *Node) homesOf(ctx context.Context, req mesh.JoinRequest) ([]home, error) {
	ctx, cancel := context.WithTimeout(ctx, cellWait)
	defer cancel()
	for {
		changed := n.mesh.CellsChanged()
		homes, err := n.homesFor(req)
		if pcm.ErrorCode(err) != pcm.NotFound {
			return homes, err
		}
		n.mesh.AskCells(ctx)
		retry := time.NewTimer(cellRetry)
		select {
		case <-changed:
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return homes, err
		}
		retry.Stop()
	}
}

// maxHomes is how many other cells are asked to take a newcomer that has no wish.
const maxHomes = 3

// homesAmong decides where a newcomer goes: where it wishes, if there is room; else
// into its inviter's cell, into one of the roomiest other ones, those first whose
// leaders were heard of lately, or into one of its own.
func homesAmong(wish, newcomer string, own pcm.Descriptor, others []pcm.Descriptor, now time.Time) ([]home, error) {
	all := append([]pcm.Descriptor{own}, others...)
	if strings.HasPrefix(wish, newCell) {
		name, err := foundingName(wish, newcomer)
		if err == nil && slices.ContainsFunc(all, func(d pcm.Descriptor) bool { return d.Name == name }) {
			err = pcm.Errorf(pcm.Conflict, "the mesh has a cell %s: join it with --cell %s, or give the new one another name", name, name)
		}
		return []home{{name: name}}, err
	}
	if wish == "" {
		if own.Room() > 0 {
			return []home{{own.Cell, own.Name}}, nil
		}
		var homes []home
		roomy := withRoom(others, now)
		for _, d := range roomy[:min(len(roomy), maxHomes)] {
			homes = append(homes, home{d.Cell, d.Name})
		}
		return append(homes, home{name: newcomer}), nil
	}
	var found []pcm.Descriptor
	for _, d := range all {
		if d.Name == wish || pcm.Short(d.Cell) == wish || string(d.Cell) == wish {
			found = append(found, d)
		}
	}
	switch {
	case len(found) == 0:
		return nil, pcm.Errorf(pcm.NotFound, "the mesh has no cell %s, as far as the inviting peer knows; it knows %s, and its neighbours no more; try again in a minute if it was just founded, or found it with --cell new:%s", wish, cellList(all), wish)
	case len(found) > 1:
		return nil, pcm.Errorf(pcm.Conflict, "%d cells are called %s: name the one by its ID: %s", len(found), wish, cellList(found))
	case found[0].Room() == 0:
		return nil, noRoomIn(found[0], all, now)
	}
	return []home{{found[0].Cell, found[0].Name}}, nil
}

// noRoomIn says why a cell takes nobody, and which cells do.
func noRoomIn(d pcm.Descriptor, all []pcm.Descriptor, now time.Time) error {
	why := "takes no newcomers"
	if d.Open {
		why = fmt.Sprintf("has %d members, and takes %d at most", d.Members, d.MaxMembers)
	}
	where := "no cell has: found one with --cell new:NAME"
	if roomy := withRoom(all, now); len(roomy) > 0 {
		where = cellList(roomy) + " have (--cell NAME), or found one with --cell new:NAME"
	}
	return pcm.Errorf(pcm.Refused, "cell %s (%s) has no room: it %s; %s", d.Name, pcm.Short(d.Cell), why, where)
}

// withRoom are the cells that take newcomers, the roomiest first, and those last
// whose leaders are silent.
func withRoom(cells []pcm.Descriptor, now time.Time) []pcm.Descriptor {
	roomy := slices.DeleteFunc(slices.Clone(cells), func(d pcm.Descriptor) bool { return d.Room() == 0 })
	slices.SortStableFunc(roomy, func(a, b pcm.Descriptor) int {
		if silent := a.Silent(now); silent != b.Silent(now) {
			if silent {
				return 1
			}
			return -1
		}
		if a.Room() != b.Room() {
			return b.Room() - a.Room()
		}
		return strings.Compare(string(a.Cell), string(b.Cell))
	})
	return roomy
}

// cellList names some cells, for people.
func cellList(cells []pcm.Descriptor) string {
	var names []string
	for _, d := range cells {
		if len(names) == 8 {
			names = append(names, "…")
			break
		}
		names = append(names, fmt.Sprintf("%s (%s)", d.Name, pcm.Short(d.Cell)))
	}
	return strings.Join(names, ", ")
}

// locateTime is how long another cell has to say who leads it, before a newcomer
// is brought to the next one.
const locateTime = 4 * time.Second

// settleIn sees to it that one of the cells takes the newcomer in: those that don't
// say who leads them, or refuse, are passed over for the next. One that was asked
// and doesn't answer may have taken it in: then the newcomer has to ask again.
func (n *Node) settleIn(ctx context.Context, homes []home, newcomer pcm.PeerID, passport pcm.Signed) (mesh.JoinReply, error) {
	for _, h := range homes[:len(homes)-1] {
		err := n.locate(ctx, h.cell)
		if err == nil {
			var reply mesh.JoinReply
			reply, err = n.settleInto(ctx, h, newcomer, passport)
			if code := pcm.ErrorCode(err); err == nil || code == pcm.Unavailable || code == pcm.Busy {
				return reply, err
			}
		}
		n.log.Info("a cell does not take a newcomer in; another one is asked", "newcomer", pcm.Short(newcomer), "cell", pcm.Short(h.cell), "name", h.name, "error", err)
	}
	return n.settleInto(ctx, homes[len(homes)-1], newcomer, passport)
}

// locate tells why another cell does not say who leads it.
func (n *Node) locate(ctx context.Context, cell pcm.CellID) error {
	away, err := n.aways.to(cell)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, locateTime)
	defer cancel()
	_, err = away.Locate(ctx)
	return err
}

// settleInto sees to it that a cell takes the newcomer in.
func (n *Node) settleInto(ctx context.Context, h home, newcomer pcm.PeerID, passport pcm.Signed) (mesh.JoinReply, error) {
	reply := mesh.JoinReply{Cell: h.cell, CellName: h.name, Peers: n.knownAddrs()}
	switch h.cell {
	case "":
		reply.Found = true
		return reply, nil
	case n.id.Mesh.Cell:
		if err := n.cell.AddReplica(ctx, newcomer); err != nil {
			return reply, err
		}
		reply.Voters = n.voters()
		return reply, nil
	}
	there, err := n.askIn(ctx, h.cell, passport)
	if err != nil {
		return reply, err
	}
	reply.CellName, reply.Voters = there.Name, there.Voters
	for _, a := range there.Peers { // those of its cell first
		if !slices.Contains(reply.Peers, a) {
			reply.Peers = append(reply.Peers, a)
		}
	}
	return reply, nil
}

// protoCellJoin asks a peer of another cell to take a peer with a passport in.
const protoCellJoin = "/pcm/cell-join/1.0.0"

const (
	maxCellJoin   = 64 << 10
	cellJoinTries = 4
	cellJoinTime  = 8 * time.Second // for each
)

type cellJoinRequest struct {
	Cell     pcm.CellID `cbor:"1,keyasint"`
	Passport pcm.Signed `cbor:"2,keyasint"` // of who is to be taken in
}

type cellJoinReply struct {
	Name   string       `cbor:"1,keyasint"`
	Voters []pcm.PeerID `cbor:"2,keyasint"`
	Peers  []string     `cbor:"3,keyasint"` // multiaddrs with /p2p/
}

// askIn asks another cell to take a newcomer in.
func (n *Node) askIn(ctx context.Context, cell pcm.CellID, passport pcm.Signed) (cellJoinReply, error) {
	row, ok := n.cellRow(cell)
	if !ok {
		return cellJoinReply{}, pcm.Errorf(pcm.Unavailable, "nothing is known of %s any more: try again, or go elsewhere", pcm.Short(cell))
	}
	ask := []pcm.PeerID{row.Descriptor.Leader}
	for _, v := range row.Descriptor.Voters {
		if v.Peer != row.Descriptor.Leader {
			ask = append(ask, v.Peer)
		}
	}
	var last error
	for _, peer := range ask[:min(len(ask), cellJoinTries)] {
		try, cancel := context.WithTimeout(ctx, cellJoinTime)
		raw, err := n.mesh.Call(try, peer, protoCellJoin, pcm.MustMarshal(cellJoinRequest{cell, passport}))
		cancel()
		if err == nil {
			var reply cellJoinReply
			if err = pcm.Unmarshal(raw, &reply); err == nil && len(reply.Voters) <= 16 && len(reply.Peers) <= 64 && pcm.Printable(reply.Name) {
				return reply, nil
			}
			err = orErr(err, pcm.Errorf(pcm.Unavailable, "peer %s gave an answer over its bounds", pcm.Short(peer)))
		}
		if code := pcm.ErrorCode(err); code != pcm.Unavailable && code != pcm.Busy && code != pcm.NotFound {
			return cellJoinReply{}, err
		}
		last = err
	}
	return cellJoinReply{}, pcm.Errorf(pcm.Unavailable, "no voter of %s (%s) could take the newcomer in; the last one asked: %w", row.Descriptor.Name, pcm.Short(cell), last)
}

func orErr(err error, otherwise *pcm.Error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// serveCellJoin takes a peer into this node's cell that has a passport of the
// mesh. It asks for itself, or an issuer does.
func (n *Node) serveCellJoin(ctx context.Context, from pcm.Passport, raw []byte) ([]byte, error) {
	var req cellJoinRequest
	if err := pcm.Unmarshal(raw, &req); err != nil {
		return nil, err
	}
	if req.Cell != n.id.Mesh.Cell {
		return nil, pcm.Errorf(pcm.NotFound, "peer %s is not of %.40q", pcm.Short(n.self), req.Cell)
	}
	p, err := pcm.OpenPassport(req.Passport, n.id.Mesh.root(), time.Now())
	if err != nil {
		return nil, err
	}
	if p.Peer != from.Peer && !from.Has(pcm.RoleIssuer) {
		return nil, pcm.Errorf(pcm.Forbidden, "peer %s can't bring another peer into a cell: only who may invite can", pcm.Short(from.Peer))
	}
	n.joins.Lock() // one after the other: else two could take the last place
	defer n.joins.Unlock()
	members := n.cell.Status().Members
	if !slices.ContainsFunc(members, func(m consensus.Member) bool { return m.Peer == p.Peer }) {
		most, open := n.limits()
		d := pcm.Descriptor{Cell: n.id.Mesh.Cell, Name: n.id.Mesh.CellName, Members: len(members), MaxMembers: most, Open: open}
		if d.Room() == 0 {
			return nil, noRoomIn(d, n.otherCells(), time.Now())
		}
		if p.Peer == from.Peer {
			if err := n.followsHere(ctx, p.Peer); err != nil {
				return nil, err
			}
		}
		if _, err := n.must(ctx, pcm.Op{Enroll: &pcm.Enroll{Passport: req.Passport}}); err != nil {
			return nil, err
		}
		if err := n.cell.AddReplica(ctx, p.Peer); err != nil {
			return nil, err
		}
		n.log.Info("a peer was taken into the cell", "peer", pcm.Short(p.Peer), "name", p.Name, "account", pcm.Short(p.Account), "asked_by", pcm.Short(from.Peer))
	}
	addrs := n.knownAddrs()
	return pcm.Marshal(cellJoinReply{n.id.Mesh.CellName, n.voters(), addrs[:min(len(addrs), 64)]})
}

// voters are those of this node's cell.
func (n *Node) voters() (ids []pcm.PeerID) {
	for _, m := range n.cell.Status().Members {
		if m.Role == consensus.RoleVoter || m.Role == consensus.RoleLeader {
			ids = append(ids, m.Peer)
		}
	}
	return ids
}
