package node

import (
	"context"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/mesh"
)

// newCell begins the wish for a cell that is to be founded: "new:NAME".
const newCell = "new:"

// foundingName is how a cell is called that this peer founds.
func (n *Node) foundingName(wish string) (string, error) { return foundingName(wish, n.cfg.Name) }

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

// home is where a newcomer goes.
type home struct {
	cell pcm.CellID // "": one that it founds
	name string
}

// homeFor decides where a newcomer goes that redeems a token here.
func (n *Node) homeFor(req mesh.JoinRequest) (home, error) {
	own := home{n.id.Mesh.Cell, n.id.Mesh.CellName}
	switch {
	case strings.HasPrefix(req.Cell, newCell):
		name, err := foundingName(req.Cell, req.Name)
		return home{name: name}, err
	case req.Cell == "" || req.Cell == own.name || req.Cell == string(own.cell):
		return own, nil
	}
	return home{}, pcm.Errorf(pcm.NotFound, "no cell %q is known here: see 'pcm cell list', or found one with --cell new:%s", req.Cell, req.Cell)
}

// settleIn sees to it that the cell that was decided on takes the newcomer in.
func (n *Node) settleIn(ctx context.Context, h home, newcomer pcm.PeerID, passport pcm.Signed) (mesh.JoinReply, error) {
	reply := mesh.JoinReply{Cell: h.cell, CellName: h.name, Peers: n.knownAddrs()}
	if h.cell == "" {
		reply.Found = true
		return reply, nil
	}
	if err := n.cell.AddReplica(ctx, newcomer); err != nil {
		return reply, err
	}
	reply.Voters = n.voters()
	return reply, nil
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
