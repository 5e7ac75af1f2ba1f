package consensus

import (
	"context"
	"testing"
	"time"
)

// A leader that reaches no voter but itself is not confirmed by those who don't vote.
func TestReplicasConfirmNoLeader(t *testing.T) {
	nodes := three(t, nil)
	leader := leaderOf(t, nodes...)
	replica := leader.admit(t, nil)
	replica.await("the leader's word", func() bool { return replica.Applied() >= leader.Applied() && leader.Applied() > 0 })
	if err := leader.confirm(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range others(nodes, leader) {
		n.gate.shut()
		t.Cleanup(n.gate.lift)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := leader.confirm(short); err == nil {
		t.Error("the leader was confirmed by a replica")
	}
}
