package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// TestDifferingReplicaStops holds that a replica whose state is not that of the
// leader stops, keeps its folder and says why, and that the others go on.
func TestDifferingReplicaStops(t *testing.T) {
	nodes := three(t, func(c *Config) {
		c.digestEvery = 4
		c.tune = func(rc *raft.Config) { // nobody else is to lead, however slow the machine is
			rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 20*time.Second, 20*time.Second, 20*time.Second
		}
	})
	change := func(n *node, f func(*tally)) {
		n.fsm.mu.Lock()
		defer n.fsm.mu.Unlock()
		f(n.m)
	}
	for _, n := range nodes {
		change(n, func(m *tally) { m.level = digestLevel })
	}
	told := func(n *node) uint64 {
		n.fsm.digests.mu.Lock()
		defer n.fsm.digests.mu.Unlock()
		return n.fsm.digests.told
	}
	leader := leaderOf(t, nodes...)
	for _, n := range nodes {
		n.await("the leader's digest", func() bool {
			leader.propose(t, "")
			return told(n) > 0
		})
		if err := n.Err(); err != nil {
			t.Fatalf("equal states are taken for different ones: %v", err)
		}
	}
	bad := nodes[0]
	if bad == leader {
		bad = nodes[1]
	}
	change(bad, func(m *tally) { m.bent = 1 })
	bad.await("the differing replica to stop", func() bool {
		leader.propose(t, "")
		return bad.Err() != nil
	})
	if e := bad.Err(); pcm.ErrorCode(e) != pcm.Internal || !strings.Contains(e.Error(), "was not that of the leader") || !strings.Contains(e.Error(), "keep its folder") {
		t.Errorf("it stops for another reason: %v", e)
	}
	leader.propose(t, "") // the other two are enough
	for _, n := range nodes {
		if n != bad && n.Err() != nil {
			t.Errorf("another replica stopped as well: %v", n.Err())
		}
	}
}

// TestNoDigestsBelowTheirLevel holds that entries carry nothing that older releases can't read.
func TestNoDigestsBelowTheirLevel(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.digestEvery = 1 })
	for range 8 {
		n.propose(t, "")
	}
	n.fsm.digests.mu.Lock()
	defer n.fsm.digests.mu.Unlock()
	if len(n.fsm.digests.marks) > 0 {
		t.Fatal("a cell below the level of digests took one")
	}
}
