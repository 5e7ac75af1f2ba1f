package node

import (
	"context"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
)

// protoLevel asks a peer which level of the ledger's rules it speaks.
const protoLevel protocol.ID = "/pcm/level/1.0.0"

// Timing of upgrades.
const (
	levelLook  = 250 * time.Millisecond // how often it is looked whether this peer may raise the level
	levelWait  = 5 * time.Second        // for one peer's answer
	levelEvery = 15 * time.Second       // how often peers are asked that speak an older one
)

type levelAnswer struct {
	Level int `cbor:"1,keyasint"`
}

// serveLevel says what this release speaks.
func serveLevel(context.Context, pcm.Passport, []byte) ([]byte, error) {
	return pcm.Marshal(levelAnswer{pcm.LedgerLevel})
}

// levelUnsaid is the highest level that releases speak which don't say theirs when they join.
const levelUnsaid = 2

// level is that of the rules by which this node's cell judges.
func (n *Node) level() (level int) {
	n.cell.View(func() { level = n.state.Level() })
	return level
}

// mayFollow refuses a peer of a release that would stop at the first entry of a cell.
func mayFollow(cell string, at, speaks int) error {
	if speaks == 0 {
		speaks = levelUnsaid
	}
	if speaks < at {
		return pcm.Errorf(pcm.Refused, "this release of pcm speaks the ledger's rules up to level %d, and cell %s is at level %d: update it, then join with the same token", speaks, cell, at)
	}
	return nil
}

// followable are those of some homes whose rules a newcomer speaks; an error if there are
// none. A cell of which that can't be found out stays: its peers may be of releases
// that don't tell, which know no level that a newcomer of today doesn't.
func (n *Node) followable(ctx context.Context, homes []home, speaks int) (can []home, err error) {
	for _, h := range homes {
		at := 0
		switch {
		case h.cell == n.id.Mesh.Cell:
			at = n.level()
		case h.cell != "" && speaks < pcm.LedgerLevel:
			at = n.levelAway(ctx, h.cell)
		}
		if no := mayFollow(h.name, at, speaks); no != nil {
			err = no
			continue
		}
		can = append(can, h)
	}
	if len(can) > 0 {
		err = nil
	}
	return can, err
}

// levelAway is the level of another cell's rules; 0 if it doesn't tell.
func (n *Node) levelAway(ctx context.Context, cell pcm.CellID) int {
	ctx, cancel := context.WithTimeout(ctx, levelWait)
	defer cancel()
	var l levelAnswer
	away, err := n.aways.to(cell)
	if err == nil {
		err = away.Query(ctx, queryLevel, nil, &l)
	}
	if err != nil {
		n.log.Debug("a cell doesn't tell the level of its rules", "cell", pcm.Short(cell), "error", err)
	}
	return l.Level
}

// followsHere refuses to take a peer in that says it doesn't speak this cell's rules.
func (n *Node) followsHere(ctx context.Context, id pcm.PeerID) error {
	ctx, cancel := context.WithTimeout(ctx, levelWait)
	defer cancel()
	var l levelAnswer
	raw, err := n.mesh.Call(ctx, id, protoLevel, nil)
	if err != nil || pcm.Unmarshal(raw, &l) != nil || l.Level >= n.level() {
		return nil // it can't be reached now, or follows
	}
	return pcm.Errorf(pcm.Refused, "peer %s speaks the ledger's rules up to level %d, and cell %s is at level %d: update pcm there first", pcm.Short(id), l.Level, n.id.Mesh.CellName, n.level())
}

// raiseLevel has the cell go to the level of this release as soon as all its
// voters and replicas speak it. The leader sees to that; a cell that is founded
// is raised at once.
func (n *Node) raiseLevel(ctx context.Context) error {
	said := ""
	for pause(ctx, levelLook) {
		at, mine := 0, false
		n.cell.View(func() {
			at = n.state.Level()
			m, ok := n.state.Member(n.self)
			mine = ok && len(m.NoteKey) > 0
		})
		if at >= pcm.LedgerLevel {
			<-ctx.Done() // nothing is left to do in this release
			return nil
		}
		st := n.cell.Status()
		if st.Role != consensus.RoleLeader || !mine {
			continue
		}
		level, holding := n.levelOfAll(ctx, st)
		if level > at {
			try, cancel := context.WithTimeout(ctx, 10*time.Second)
			_, err := n.must(try, pcm.Op{Upgrade: &pcm.Upgrade{Level: level}})
			cancel()
			if err == nil {
				n.log.Info("the cell was raised to a new level of the ledger's rules", "level", level)
			} else if ctx.Err() == nil {
				n.log.Debug("can't raise the level yet", "reason", err)
			}
			continue
		}
		if why := strings.Join(holding, ", "); why != said {
			said = why
			n.log.Info("the cell stays at an older level of the ledger's rules until all its peers are updated", "level", at, "waits_for", why)
		}
		if !pause(ctx, levelEvery) {
			return nil
		}
	}
	return nil
}

// levelOfAll is the level that all of the cell speak, and who doesn't speak this
// release's. Who doesn't answer speaks the first.
func (n *Node) levelOfAll(ctx context.Context, st consensus.Status) (int, []string) {
	ctx, cancel := context.WithTimeout(ctx, levelWait)
	defer cancel()
	type answer struct {
		who   pcm.PeerID
		level int
	}
	answers := make(chan answer, len(st.Members))
	asked := 0
	for _, m := range st.Members {
		if m.Peer == n.self {
			continue
		}
		asked++
		go func() {
			var l levelAnswer
			raw, err := n.mesh.Call(ctx, m.Peer, protoLevel, nil)
			if err != nil || pcm.Unmarshal(raw, &l) != nil {
				l.Level = 1
			}
			answers <- answer{m.Peer, l.Level}
		}()
	}
	level, names := pcm.LedgerLevel, n.names()
	var holding []string
	for range asked {
		a := <-answers
		if a.level < pcm.LedgerLevel {
			holding = append(holding, orElse(names[a.who], pcm.Short(a.who)))
		}
		level = min(level, max(1, a.level))
	}
	return level, holding
}
