package consensus

import (
	"bufio"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
)

// outsider is a peer that is not in the cell, and its client of it.
func outsider(t *testing.T, b *book, known func() []pcm.PeerID) (*node, *Away) {
	t.Helper()
	o := b.prepare(t, nil)
	a, err := NewAway(AwayConfig{Cell: testCell, Self: o.cfg.Self, Host: o.host, Peers: known, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return o, a
}

func (n *node) awayCommand(a *Away, to pcm.PeerID) (pcm.CommandID, pcm.Signed) {
	id := pcm.NewCommandID()
	return id, n.key.Seal(pcm.DomainCommand, pcm.Command{
		Version: 1, ID: id, Mesh: testMesh, Cell: testCell, Peer: n.cfg.Self, NotAfter: a.LogTime() + 60_000,
		Ops: []pcm.Op{{Cancel: &pcm.Cancel{Job: "job-x", Reason: string(to)}}},
	})
}

// A peer that is not in the cell proposes, asks and hears of what concerns it. It
// knows one peer of the cell to begin with, and not the leader.
func TestAwayProposesAsksAndListens(t *testing.T) {
	var mu sync.Mutex
	answers := map[pcm.PeerID]func() int{} // how many records a peer of the cell has applied
	nodes := three(t, func(c *Config) {
		self := c.Self
		c.Answer = func(from pcm.PeerID, method string, body []byte) ([]byte, error) {
			var least int
			if err := pcm.Unmarshal(body, &least); err != nil || method != "count" {
				return nil, pcm.Errorf(pcm.NotFound, "no question %q", method)
			}
			mu.Lock()
			defer mu.Unlock()
			return pcm.Marshal(answers[self]())
		}
	})
	mu.Lock()
	for _, n := range nodes {
		answers[n.cfg.Self] = n.count
	}
	mu.Unlock()
	lead := leaderOf(t, nodes...)
	follower := nodes[slices.IndexFunc(nodes, func(n *node) bool { return n != lead })]
	o, a := outsider(t, nodes[0].book, func() []pcm.PeerID { return []pcm.PeerID{follower.cfg.Self} })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if leader, err := a.Locate(ctx); err != nil || leader != lead.cfg.Self || a.LogTime() == 0 {
		t.Fatalf("the leader is %s, log time %d: %v", leader, a.LogTime(), err)
	}
	events := a.Events(ctx)
	if first := <-events; len(first) != 0 {
		t.Fatalf("a new stream begins with events: %v", first)
	}
	id, s := o.awayCommand(a, o.cfg.Self)
	first, err := a.Propose(ctx, s)
	if err != nil || first[0].First() != nil {
		t.Fatal(first, err)
	}
	if again, err := a.Propose(ctx, s); err != nil || again[0].Index != first[0].Index {
		t.Errorf("the same command again: %v %v, the first time %v", again, err, first)
	}
	if batch := <-events; len(batch) != 1 || batch[0].Index != first[0].Index {
		t.Errorf("events: %v", batch)
	}
	var n int
	if err := a.Query(ctx, "count", 1, &n); err != nil || n != 1 {
		t.Errorf("the ledger has %d records: %v", n, err)
	}
	if got := lead.ids(t); !slices.Equal(got, []pcm.CommandID{id}) {
		t.Errorf("records of %v, want %v", got, id)
	}
	if err := a.Query(ctx, "nonsense", 1, &n); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("an unknown question: %v", err)
	}
	if a.Heard().IsZero() {
		t.Error("the client doesn't know when it heard from the cell")
	}
}

// While the leader dies, commands of a peer outside are delayed, not lost and not done twice.
func TestAwayExactlyOnceAcrossLeaderKill(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	o, a := outsider(t, nodes[0].book, func() (ids []pcm.PeerID) {
		for _, n := range nodes {
			ids = append(ids, n.cfg.Self)
		}
		return ids
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := a.Locate(ctx); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	acked := map[pcm.CommandID]bool{}
	var wg sync.WaitGroup
	const each = 25
	for range 4 {
		wg.Go(func() {
			for range each {
				id, s := o.awayCommand(a, "nobody")
				r, err := a.Propose(ctx, s)
				if err == nil {
					err = pcmFirst(r)
				}
				if err != nil {
					t.Errorf("a command failed: %v", err)
					return
				}
				mu.Lock()
				acked[id] = true
				mu.Unlock()
			}
		})
	}
	await(t, "some commands", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > each })
	lead.kill()
	wg.Wait()
	rest := slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n == lead })
	next := leaderOf(t, rest...)
	next.await("all of them", func() bool { return next.count() >= 4*each })
	seen := map[pcm.CommandID]int{}
	for _, id := range next.ids(t) {
		seen[id]++
	}
	for id := range acked {
		if seen[id] != 1 {
			t.Errorf("command %s was done %d times", id, seen[id])
		}
	}
}

func pcmFirst(results []pcm.CommandResult) error {
	for _, r := range results {
		if err := r.First(); err != nil {
			return err
		}
	}
	return nil
}

// A leader that was stopped keeps its streams and answers nothing. Its callers don't wait for
// it once the cell has another one.
func TestAwayLeavesSilentLeader(t *testing.T) {
	b := &book{}
	lead := found(t, b, nil)
	silent := b.prepare(t, nil)
	var asked atomic.Bool // it was asked to decide something
	silent.host.SetStreamHandler(protocolOf(testCell, protoPropose), func(s network.Stream) {
		var req request
		if readFrame(s, &req) == nil {
			asked.Store(true)
		}
	})
	silent.host.SetStreamHandler(protocolOf(testCell, protoQuery), func(s network.Stream) {
		w := bufio.NewWriter(s)
		for {
			var req request
			if readFrame(s, &req) != nil {
				return
			}
			where := whereAnswer{Leader: silent.cfg.Self, Term: 1_000}
			if asked.Load() {
				where = whereAnswer{Leader: lead.cfg.Self, Term: 1_001}
			}
			if writeFrame(w, response{ID: req.ID, Body: pcm.MustMarshal(where)}) != nil || w.Flush() != nil {
				return
			}
		}
	})
	o, a := outsider(t, b, func() []pcm.PeerID { return []pcm.PeerID{silent.cfg.Self, lead.cfg.Self} })
	a.patience = time.Hour
	if got, err := a.Locate(t.Context()); err != nil || got != silent.cfg.Self {
		t.Fatalf("the leader is taken to be %s: %v", got, err)
	}
	a.clock.observe(1_000, lead.LogTime())
	_, s := o.awayCommand(a, "nobody")
	r, err := a.Propose(t.Context(), s)
	if err == nil {
		err = pcmFirst(r)
	}
	if err != nil || !asked.Load() {
		t.Errorf("asked the silent leader: %v; %v", asked.Load(), err)
	}
}

// With nobody to ask, a caller is told so when its patience ends.
func TestAwayWithoutPeers(t *testing.T) {
	_, a := outsider(t, &book{}, func() []pcm.PeerID { return nil })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := a.Locate(ctx); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("%v", err)
	}
	if err := a.Query(ctx, "count", 1, nil); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("%v", err)
	}
}
