package consensus

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// succession has voters act at once when their leader's process has died, which
// they see by its connections ending. By itself Raft waits until a leader has
// been silent for its timeout, for up to twice as long as that, and as long again if the other
// voters haven't waited for so long yet: they refuse the first who asks.
//
// A lost connection is not a dead leader. So a voter first gives the leader time
// to come back, then asks the other voters; only if a majority of all have lost the
// same leader, the one whose log reaches furthest stands for election. That is no more
// than what Raft does for a leader that hands over: who is elected, and by whom, stays Raft's.
// A leader that falls silent with its connections open is left to Raft's timeouts.
type succession struct {
	c    *Cell
	poke chan struct{} // has room for one
}

// When a voter asks about a leader that it has lost: a leader that lives has sent a heartbeat, and so dialled, by then.
const (
	succeedLAN   = 200 * time.Millisecond
	succeedWAN   = time.Second
	succeedTries = 4 // then it is Raft's matter
)

func newSuccession(c *Cell) *succession { return &succession{c: c, poke: make(chan struct{}, 1)} }

func (s *succession) run() {
	ended := &network.NotifyBundle{DisconnectedF: func(_ network.Network, conn network.Conn) {
		if leader, _ := s.c.watch.current(); leader == pcm.PeerID(conn.RemotePeer().String()) {
			select {
			case s.poke <- struct{}{}:
			default:
			}
		}
	}}
	s.c.cfg.Host.Network().Notify(ended)
	defer s.c.cfg.Host.Network().StopNotify(ended)
	for {
		select {
		case <-s.poke:
			s.succeed()
		case <-s.c.ctx.Done():
			return
		}
	}
}

// succeed asks the others about the leader that was lost, and stands for election if it is this peer's turn.
func (s *succession) succeed() {
	leader, changed := s.c.watch.current()
	term := s.c.raft.CurrentTerm()
	pause := succeedLAN
	if s.c.cfg.Profile == WAN {
		pause = succeedWAN
	}
	s.meet(leader)
	for range succeedTries {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-changed:
		case <-s.c.ctx.Done():
		}
		timer.Stop()
		own := s.c.bereft()
		if own.Leader != leader || own.Term != term || !own.Lost || s.c.ctx.Err() != nil {
			return
		}
		voters := s.c.voters()
		if s.c.forgot() || !slices.Contains(voters, s.c.cfg.Self) {
			return
		}
		if successor(s.ask(voters, leader, own), leader, term, len(voters)) != s.c.cfg.Self {
			continue
		}
		if s.c.raft.State() != raft.Follower || s.c.raft.CurrentTerm() != term {
			return
		}
		s.c.log.Info("the leader's process is gone: this peer stands for election", "cell", s.c.cfg.Cell, "leader", leader)
		if err := s.c.stand(); err != nil {
			s.c.log.Debug("this peer could not stand for election", "cell", s.c.cfg.Cell, "error", err)
		}
		return
	}
	s.c.rest.rouse() // Raft's timeouts must not be those of a peer at rest
}

// meet connects to the other voters, which need not have spoken to each other while there was a leader.
// Of each two only one dials: two that dial each other at the same moment, from the ports on which
// they listen, share one TCP connection in which neither is the server, and then avoid each other for a while.
func (s *succession) meet(leader pcm.PeerID) {
	for _, v := range s.c.voters() {
		id, err := peer.Decode(string(v))
		if err != nil || v == leader || v <= s.c.cfg.Self {
			continue
		}
		s.c.start(func() {
			ctx, cancel := context.WithTimeout(s.c.ctx, succeedWAN)
			defer cancel()
			if err := s.c.cfg.Host.Connect(ctx, peer.AddrInfo{ID: id}); err != nil {
				s.c.log.Debug("a voter can't be reached", "cell", s.c.cfg.Cell, "peer", v, "error", err)
			}
		})
	}
}

// bereftAnswer says whether a voter has lost its leader, and how far its log reaches.
type bereftAnswer struct {
	Leader pcm.PeerID `cbor:"1,keyasint,omitempty"`
	Term   uint64     `cbor:"2,keyasint"`
	Lost   bool       `cbor:"3,keyasint"` // there is no connection to the leader
	Last   uint64     `cbor:"4,keyasint"` // in its log
	Of     uint64     `cbor:"5,keyasint"` // term of that entry
}

// bereft is how this peer sees it.
func (c *Cell) bereft() bereftAnswer {
	st := c.ownStatus()
	a := bereftAnswer{Term: c.raft.CurrentTerm(), Last: st.Last, Of: st.Term}
	a.Leader, _ = c.watch.current()
	id, err := peer.Decode(string(a.Leader))
	a.Lost = err == nil && a.Leader != c.cfg.Self && c.cfg.Host.Network().Connectedness(id) == network.NotConnected
	return a
}

// ask asks the other voters but the leader, all at once.
func (s *succession) ask(voters []pcm.PeerID, leader pcm.PeerID, own bereftAnswer) map[pcm.PeerID]bereftAnswer {
	ctx, cancel := context.WithTimeout(s.c.ctx, succeedWAN)
	defer cancel()
	type said struct {
		by pcm.PeerID
		a  bereftAnswer
	}
	answers := make(chan said, len(voters))
	asked := 0
	for _, id := range voters {
		if id == s.c.cfg.Self || id == leader {
			continue
		}
		if s.c.start(func() {
			var a bereftAnswer
			if err := s.c.ask(ctx, id, nil, protoAdmin, "bereft", nil, &a); err != nil { // an older release doesn't know the question
				s.c.log.Debug("a voter can't say whether it has lost the leader", "cell", s.c.cfg.Cell, "peer", id, "error", err)
			}
			answers <- said{id, a}
		}) {
			asked++
		}
	}
	all := map[pcm.PeerID]bereftAnswer{s.c.cfg.Self: own}
	for range asked {
		if got := <-answers; got.a.Lost {
			all[got.by] = got.a
		}
	}
	return all
}

// successor is the voter that is to stand for election: of those who have lost the leader of that term the
// one with the longest log, as no other could be elected; "" if they are no majority of the voters.
func successor(answers map[pcm.PeerID]bereftAnswer, leader pcm.PeerID, term uint64, voters int) pcm.PeerID {
	var list []pcm.PeerID
	for id, a := range answers {
		if a.Lost && a.Leader == leader && a.Term == term {
			list = append(list, id)
		}
	}
	if len(list) <= voters/2 {
		return ""
	}
	return slices.MaxFunc(list, func(a, b pcm.PeerID) int {
		return cmp.Or(cmp.Compare(answers[a].Of, answers[b].Of), cmp.Compare(answers[a].Last, answers[b].Last), cmp.Compare(a, b))
	})
}

// stand has Raft begin an election now. As when a leader hands over, voters don't refuse for the leader that they know.
func (c *Cell) stand() error {
	self := raft.ServerID(c.cfg.Self)
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self), Addr: []byte(self)}
	var resp raft.TimeoutNowResponse
	return c.trans.TimeoutNow(self, raft.ServerAddress(self), &raft.TimeoutNowRequest{RPCHeader: header}, &resp)
}
