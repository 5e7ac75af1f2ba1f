package consensus

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// With a CommitTimeout of ten minutes, Raft itself tells followers of a commit
// only with the next entry: what they learn without one was pushed.
func TestEventsArePushedAheadOfApply(t *testing.T) {
	nodes := three(t, func(c *Config) {
		patientRaft(c)
		c.silent = true
	})
	lead := leaderOf(t, nodes...)
	var seller, other *node
	for _, n := range nodes {
		if n != lead {
			seller, other = n, seller
		}
	}
	lead.await("the streams of events", func() bool {
		lead.hub.mu.Lock()
		defer lead.hub.mu.Unlock()
		return len(lead.hub.members) == 2
	})
	events := seller.Events(t.Context())
	unconcerned := other.hub.byPush.Load()
	before := seller.hub.byPush.Load()
	_, result := other.propose(t, seller.cfg.Self)
	batch := <-events
	if len(batch) != 1 || batch[0].Index != result.Index || batch[0].Op.Cancel.Reason != string(seller.cfg.Self) {
		t.Fatalf("events: %v", batch)
	}
	if got := seller.hub.byPush.Load(); got != before+1 {
		t.Errorf("%d events came by push, want 1 more than %d", got, before)
	}
	if other.hub.byPush.Load() != unconcerned {
		t.Error("an event was pushed to a peer that it doesn't concern")
	}
	// Its own Apply doesn't deliver it again: the next batch is the next entry's.
	_, next := other.propose(t, seller.cfg.Self)
	if batch := <-events; batch[0].Index != next.Index {
		t.Errorf("event of entry %d came twice", batch[0].Index)
	}
}

// patientRaft makes Raft itself tell followers of a commit only with the next entry.
func patientRaft(c *Config) {
	tune := c.tune
	c.tune = func(rc *raft.Config) {
		tune(rc)
		rc.CommitTimeout = 10 * time.Minute
	}
}

// Those whom an entry concerns apply it at once, though Raft has nothing to send them.
func TestCommitsAreAnnounced(t *testing.T) {
	nodes := three(t, patientRaft)
	lead := leaderOf(t, nodes...)
	lead.await("the streams of events", func() bool {
		lead.hub.mu.Lock()
		defer lead.hub.mu.Unlock()
		return len(lead.hub.members) == 2
	})
	for _, n := range nodes {
		if n == lead {
			continue
		}
		for range 3 {
			_, result := lead.propose(t, n.cfg.Self)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if err := n.WaitApplied(ctx, result.Index); err != nil {
				t.Error(err)
			}
			cancel()
		}
	}
}

func TestOfferKeepsTheLatest(t *testing.T) {
	commits := make(chan commit, 1)
	for i := range 3 {
		offer(commits, commit{index: uint64(i)})
	}
	if k := <-commits; k.index != 2 || len(commits) != 0 {
		t.Errorf("commit %d, and %d more", k.index, len(commits))
	}
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	h := newHub(&Cell{log: quiet(), ctx: context.Background()})
	h.c.hub = h
	ch := h.c.Events(t.Context())
	for i := range subscriberQueue + 1 {
		h.applied(uint64(i+1), 0, []pcm.Event{{Index: uint64(i + 1)}})
	}
	n := 0
	for range ch {
		n++
	}
	if n != subscriberQueue {
		t.Errorf("%d batches before the channel was closed, want %d", n, subscriberQueue)
	}
}

func TestEventsDedupe(t *testing.T) {
	h := newHub(&Cell{log: quiet(), ctx: context.Background()})
	h.c.hub = h
	ch := h.c.Events(t.Context())
	all := []pcm.Event{{Index: 7, Job: "job-a"}, {Index: 7, Job: "job-b"}, {Index: 7, Job: "job-c"}}
	push := eventFrame{Index: 7, At: []int{1}, Events: all[1:2]}
	h.arrived(push)
	h.arrived(push)
	h.applied(7, 0, all)
	h.arrived(push) // late: applied already
	var got []pcm.JobID
	for len(ch) > 0 {
		for _, e := range <-ch {
			got = append(got, e.Job)
		}
	}
	if len(got) != 3 || got[0] != "job-b" || got[1] != "job-a" || got[2] != "job-c" {
		t.Errorf("events: %v", got)
	}
	if h.byPush.Load() != 1 || h.byApply.Load() != 2 {
		t.Errorf("by push %d, by apply %d", h.byPush.Load(), h.byApply.Load())
	}
}
