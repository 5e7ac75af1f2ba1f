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
