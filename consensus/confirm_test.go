package consensus

import (
	"context"
	"sync"
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

// What was read at a quick follower is read wherever somebody reads after that, though
// the leader itself has not applied it yet.
func TestSyncAheadOfLeader(t *testing.T) {
	nodes := three(t, nil)
	leader := leaderOf(t, nodes...)
	follower := others(nodes, leader)[0]
	leader.propose(t, leader.cfg.Self)
	before := leader.Applied()
	held, free := make(chan struct{}), make(chan struct{})
	go leader.View(func() { // nothing is applied meanwhile
		close(held)
		<-free
	})
	<-held
	t.Cleanup(sync.OnceFunc(func() { close(free) }))
	_, s := leader.command(leader.cfg.Self)
	answered := make(chan error, 1)
	go func() {
		_, err := leader.Propose(t.Context(), s)
		answered <- err
	}()
	follower.await("the entry", func() bool { return follower.Applied() > before })
	seen := follower.Applied()
	index, err := leader.administer(t.Context(), leader.cfg.Self, "sync", adminRequest{})
	if err != nil || index < seen {
		t.Errorf("who reads now may see entry %d, and entry %d was read: %v", index, seen, err)
	}
	select {
	case err := <-answered:
		t.Errorf("the leader has applied it: %v", err)
	default:
	}
}
