package consensus

import (
	"testing"

	"github.com/hashicorp/raft"
)

// A leader that hears of a later one stores nothing in that one's term, though it has
// waited for work ever since.
func TestDeposedLeaderStoresNothing(t *testing.T) {
	n := found(t, &book{}, patient) // nothing but a message wakes its Raft
	other := n.admit(t, patient)
	other.await("what the leader has", func() bool { return other.Applied() == n.Applied() })
	last, later := n.raft.LastIndex(), n.raft.CurrentTerm()+1
	if err := other.pulse(raft.ServerID(n.cfg.Self), later); err != nil {
		t.Fatal(err)
	}
	if got := n.raft.CurrentTerm(); got != later {
		t.Fatalf("the term is %d, not %d: nothing is tested", got, later)
	}
	_, s := n.command(n.cfg.Self)
	if err := n.raft.ApplyLog(raft.Log{Data: s.Payload, Extensions: []byte(testCell)}, 0).Error(); err == nil {
		t.Error("a deposed leader takes an entry")
	}
	if got := n.raft.LastIndex(); got != last {
		t.Errorf("a deposed leader has stored an entry: the log ends at %d, not %d", got, last)
	}
	if other.pulse(raft.ServerID(n.cfg.Self), later) != nil {
		t.Error("the leader of the term is not followed")
	}
}

// Who is no candidate of a term, or no more, asks for no vote in it.
func TestOnlyCandidatesAskForVotes(t *testing.T) {
	n := found(t, &book{}, patient)
	other := n.admit(t, patient)
	id := raft.ServerID(other.cfg.Self)
	for _, term := range []uint64{n.raft.CurrentTerm(), n.raft.CurrentTerm() + 1} {
		var resp raft.RequestVoteResponse
		req := raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.cfg.Self), Addr: []byte(n.cfg.Self)}, Term: term}
		if err := (steadyTransport{n.trans, n.Cell}).RequestVote(id, raft.ServerAddress(id), &req, &resp); err == nil {
			t.Errorf("a leader asks for a vote in term %d", term)
		}
	}
}
