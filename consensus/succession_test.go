package consensus

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
)

// When the leader's process ends, its connections do, and another one leads
// long before Raft's timeouts are over; also when streams to a voter are left from before its restart.
func TestSuccession(t *testing.T) {
	nodes := three(t, patient)
	lead := leaderOf(t, nodes...)
	for range 4 {
		lead.propose(t, lead.cfg.Self)
		dead := lead
		dead.kill()
		rest := others(nodes, dead)
		if lead = leaderOf(t, rest...); lead == dead {
			t.Fatal("the one that was killed leads on")
		}
		lead.propose(t, lead.cfg.Self)
		dead.connect()
		dead.open()
		for _, n := range nodes {
			n.await("the same state", func() bool { return n.digest() == lead.digest() })
		}
	}
}

// One voter that can't reach the leader deposes nobody: the other one does.
func TestSuccessionNeedsMajority(t *testing.T) {
	nodes := three(t, patient)
	lead := leaderOf(t, nodes...)
	rest := others(nodes, lead)
	alone := rest[0]
	term := lead.Status().Term
	alone.host.Peerstore().ClearAddrs(lead.host.ID())
	lead.host.Peerstore().ClearAddrs(alone.host.ID())
	if err := alone.host.Network().ClosePeer(lead.host.ID()); err != nil {
		t.Fatal(err)
	}
	alone.await("the leader to be lost", func() bool {
		return alone.host.Network().Connectedness(lead.host.ID()) == network.NotConnected
	})
	s := newSuccession(alone.Cell)
	own := alone.bereft()
	if !own.Lost || own.Leader != lead.cfg.Self {
		t.Fatalf("it doesn't see that it has lost the leader: %+v", own)
	}
	answers := s.ask(alone.voters(), lead.cfg.Self, own)
	if by := successor(answers, lead.cfg.Self, term, 3); by != "" {
		t.Errorf("%s would stand for election by %+v", by, answers)
	}
	s.succeed() // until it gives up
	if got := alone.raft.CurrentTerm(); got != term {
		t.Errorf("the term went from %d to %d", term, got)
	}
	if !lead.Leads() {
		t.Error("the leader leads no more")
	}
}

// Who stands is the one that can be elected, and all come to the same one.
func TestSuccessor(t *testing.T) {
	lost := func(leader pcm.PeerID, term, of, last uint64) bereftAnswer {
		return bereftAnswer{Leader: leader, Term: term, Lost: true, Of: of, Last: last}
	}
	for name, c := range map[string]struct {
		answers map[pcm.PeerID]bereftAnswer
		voters  int
		want    pcm.PeerID
	}{
		"two of three, the longer log":     {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9), "b": lost("l", 4, 4, 8)}, 3, "a"},
		"a newer last term before length":  {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 3, 9), "b": lost("l", 4, 4, 8)}, 3, "b"},
		"alike, one of them all the same":  {map[pcm.PeerID]bereftAnswer{"b": lost("l", 4, 4, 8), "a": lost("l", 4, 4, 8)}, 3, "b"},
		"one of three":                     {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9)}, 3, ""},
		"two of five":                      {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9), "b": lost("l", 4, 4, 9)}, 5, ""},
		"another leader":                   {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9), "b": lost("m", 4, 4, 9)}, 3, ""},
		"another term":                     {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9), "b": lost("l", 5, 4, 9)}, 3, ""},
		"one still reaches it":             {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9), "b": {Leader: "l", Term: 4, Of: 4, Last: 9}}, 3, ""},
		"of two voters one is no majority": {map[pcm.PeerID]bereftAnswer{"a": lost("l", 4, 4, 9)}, 2, ""},
	} {
		if got := successor(c.answers, "l", 4, c.voters); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
