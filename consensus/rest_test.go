package consensus

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// restless has cells of a test rest soon.
func restless(c *Config) { c.restAfter, c.restBeat = 300*time.Millisecond, 400*time.Millisecond }

// atRest waits until all followers are at rest, and the leader knows; it is returned.
func atRest(t *testing.T, nodes ...*node) *node {
	t.Helper()
	var leader *node
	await(t, "a cell at rest", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.leads() > 0 {
				leader = n
			}
		}
		if leader == nil {
			return false
		}
		for _, n := range nodes {
			if !n.Status().Resting || n != leader && !leader.rest.rests(n.cfg.Self) {
				return false
			}
		}
		return true
	})
	return leader
}

func (r *rest) rests(id pcm.PeerID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[raft.ServerID(id)]
	return p != nil && p.rests && p.term == r.c.raft.CurrentTerm()
}

func TestCellRestsAndWakes(t *testing.T) {
	nodes := three(t, restless)
	term := uint64(0)
	for i := range 4 {
		leader := atRest(t, nodes...)
		if term == 0 {
			term = leader.raft.CurrentTerm()
		}
		follower := others(nodes, leader)[i%2]
		if hb := follower.raft.ReloadableConfig().HeartbeatTimeout; hb <= follower.rest.hasty {
			t.Errorf("a follower at rest waits %s for its leader", hb)
		}
		by := follower
		if i >= 2 {
			by = leader
		}
		if i == 3 { // a read does not wake the cell
			if err := by.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !leader.rest.rests(follower.cfg.Self) {
				t.Error("a read has woken the cell")
			}
		}
		by.propose(t, by.cfg.Self)
		if leader.rest.rests(follower.cfg.Self) {
			t.Error("the leader still rests")
		}
		for _, n := range others(nodes, leader) {
			n.await("haste", func() bool {
				return !n.rest.patient.Load() && n.raft.ReloadableConfig().HeartbeatTimeout == n.rest.hasty
			})
		}
		if got := leader.raft.CurrentTerm(); got != term {
			t.Errorf("the term was %d and is %d: the cell has lost its leader", term, got)
		}
	}
}

// A cell at rest stays so though entries without commands are made, and sends little.
func TestRestIsQuiet(t *testing.T) {
	nodes := three(t, restless)
	leader := atRest(t, nodes...)
	follower := others(nodes, leader)[0]
	beats := func() time.Time { return leader.rest.heard(follower.cfg.Self) }
	first := beats()
	leader.await("a heartbeat that is sent", func() bool { return beats().After(first) })
	second := beats()
	leader.await("the next one", func() bool { return beats().After(second) })
	if d := beats().Sub(second); d < leader.rest.beat {
		t.Errorf("heartbeats are sent every %s", d)
	}
	before := follower.Applied()
	leader.View(func() { leader.m.due = 1 })
	follower.await("the tick", func() bool { return follower.Applied() > before })
	if !leader.rest.rests(follower.cfg.Self) || !follower.rest.patient.Load() {
		t.Error("a tick has woken the cell")
	}
}

// A cell at rest holds no streams of Raft's, and has them again when it works.
func TestRestHoldsNoStreams(t *testing.T) {
	nodes := three(t, restless)
	leader := atRest(t, nodes...)
	streams := func() (n int) {
		for _, node := range nodes {
			node.layer.mu.Lock()
			n += len(node.layer.open)
			node.layer.mu.Unlock()
		}
		return n
	}
	leader.await("the end of Raft's streams", func() bool { return streams() == 0 })
	follower := others(nodes, leader)[0]
	last := leader.rest.heard(follower.cfg.Self)
	leader.await("a heartbeat", func() bool { return leader.rest.heard(follower.cfg.Self).After(last) })
	if err := follower.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := streams(); n > 0 {
		t.Errorf("heartbeats and a read have opened %d streams of Raft's", n)
	}
	leader.propose(t, leader.cfg.Self)
	if streams() == 0 {
		t.Error("there are none while the cell works")
	}
}

// A peer that rests is told so again and again. Where its leader can't ask it to rest on, as
// something is due soon, it beats as ever before the peer's patience ends.
func TestRestLapsesAtTheLeaderFirst(t *testing.T) {
	nodes := three(t, func(c *Config) {
		restless(c)
		c.restBeat, c.restFor = time.Hour, 4*time.Second
	})
	leader := atRest(t, nodes...)
	term := leader.raft.CurrentTerm()
	leader.View(func() { _, now := leader.clock.read(); leader.m.due = now + 20_000 })
	for _, n := range others(nodes, leader) {
		n.await("the end of patience", func() bool { return !n.rest.patient.Load() })
	}
	for _, n := range others(nodes, leader) {
		last := leader.rest.heard(n.cfg.Self)
		leader.await("heartbeats", func() bool { return leader.rest.heard(n.cfg.Self).After(last) })
	}
	if got := leader.raft.CurrentTerm(); got != term || leader.leads() == 0 {
		t.Errorf("the term was %d and is %d: the cell has lost its leader", term, got)
	}
}

// What dies at rest is missed in the usual time: by its connections, and where
// these don't break, by the first who wants something.
func TestLeaderDiesAtRest(t *testing.T) {
	nodes := three(t, func(c *Config) {
		restless(c)
		c.restBeat = 10 * time.Minute // nobody would miss the leader by itself
	})
	leader := atRest(t, nodes...)
	rest := others(nodes, leader)
	leader.kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // a fifth of what their patience is
	defer cancel()
	_, s := rest[0].command(rest[1].cfg.Self)
	if _, err := rest[0].Propose(ctx, s); err != nil {
		t.Fatal(err)
	}
	led := leaderOf(t, rest...)
	led.await("rest of those who are left", func() bool { return led.rest.rests(others(rest, led)[0].cfg.Self) })
	if led.Status().Resting {
		t.Error("a cell rests that misses a peer")
	}
}

// A leader that is stopped at rest is replaced as soon as somebody wants something,
// and neither acknowledges nor confirms anything, though it believes for a while to lead.
func TestLeaderStopsAtRest(t *testing.T) {
	nodes := three(t, func(c *Config) {
		restless(c)
		c.restBeat = 10 * time.Minute
	})
	leader, rest := stopAtRest(t, nodes)
	soon := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	if err := leader.confirm(soon()); err == nil {
		t.Error("the old leader was confirmed")
	}
	_, late := leader.command(leader.cfg.Self)
	if _, err := leader.Propose(soon(), late); err == nil {
		t.Error("the old leader has acknowledged a command")
	}
	leader.gate.lift()
	leader.propose(t, leader.cfg.Self)
	leader.await("the others' state", func() bool {
		return leader.Applied() == rest[0].Applied() && leader.digest() == rest[0].digest()
	})
	atRest(t, nodes...)
}

// stopAtRest stops the leader of a cell at rest, and has the others act without it while it
// believes to lead. Where a heartbeat was on its way just then it misses the answer, and knows:
// that is tried again.
func stopAtRest(t *testing.T, nodes []*node) (leader *node, rest []*node) {
	t.Helper()
	for range 10 {
		leader = atRest(t, nodes...)
		rest = others(nodes, leader)
		leader.gate.shut()
		t.Cleanup(leader.gate.lift)                                  // ahead of what closes the cell
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // then they would be patient no more
		_, s := rest[0].command(rest[1].cfg.Self)
		_, err := rest[0].Propose(ctx, s)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if leader.leads() > 0 {
			return leader, rest
		}
		leader.gate.lift()
	}
	t.Fatal("the old leader always knows already: nothing is tested")
	return nil, nil
}

// The set of voters changes at rest as ever.
func TestMembersChangeAtRest(t *testing.T) {
	nodes := three(t, restless)
	leader := atRest(t, nodes...)
	fourth := others(nodes, leader)[0].admit(t, restless)
	nodes = append(nodes, fourth)
	leader = atRest(t, nodes...)
	to := others(nodes, leader, fourth)[0]
	if err := leader.TransferLeadership(t.Context(), to.cfg.Self); err != nil {
		t.Fatal(err)
	}
	if leader = atRest(t, nodes...); leader != to {
		t.Errorf("%s leads", leader.cfg.Self)
	}
	if err := leader.Remove(t.Context(), fourth.cfg.Self); err != nil {
		t.Fatal(err)
	}
	atRest(t, nodes[:3]...)
}

// A peer that restarts within a resting cell is sent what it lacks and rests again; it
// disturbs nobody.
func TestPeerRestartsAtRest(t *testing.T) {
	nodes := three(t, restless)
	leader := atRest(t, nodes...)
	term := leader.raft.CurrentTerm()
	lost := others(nodes, leader)[0]
	lost.kill()
	leader.propose(t, leader.cfg.Self)
	lost.connect()
	lost.open()
	lost.await("what it lacks", func() bool { return lost.Applied() == leader.Applied() })
	atRest(t, nodes...)
	if got := leader.raft.CurrentTerm(); got != term {
		t.Errorf("the term was %d and is %d", term, got)
	}
}

// What a peer is told to do by one that doesn't lead it, it doesn't.
func TestRestIsTheLeadersToOrder(t *testing.T) {
	nodes := three(t, func(c *Config) { c.restAfter = time.Hour })
	leader := leaderOf(t, nodes...)
	two := others(nodes, leader)
	term := leader.raft.CurrentTerm()
	for _, o := range []restOrder{{Term: term, Patience: 60_000}, {Term: term + 1, Patience: 60_000}} {
		if err := two[0].rest.ordered(two[1].cfg.Self, o); err == nil {
			t.Errorf("another follower may order %+v", o)
		}
	}
	for _, o := range []restOrder{{Term: term - 1, Patience: 60_000}, {Term: term, Patience: 60_000, Index: 1 << 40}} {
		if err := two[0].rest.ordered(leader.cfg.Self, o); err == nil {
			t.Errorf("the leader may order %+v", o)
		}
	}
	if err := two[0].rest.ordered(leader.cfg.Self, restOrder{Term: term, Patience: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	if hb := two[0].raft.ReloadableConfig().HeartbeatTimeout; hb != restMost {
		t.Errorf("it waits for %s", hb)
	}
	if err := two[0].rest.beaten(leader.cfg.Self, pcm.MustMarshal(term)); err != nil {
		t.Errorf("the leader may not beat: %v", err)
	}
	for from, term := range map[*node]uint64{two[1]: term, leader: term + 1} {
		if err := two[0].rest.beaten(from.cfg.Self, pcm.MustMarshal(term)); err == nil {
			t.Errorf("%s may beat in term %d", from.cfg.Self, term)
		}
	}
	if got := two[0].raft.CurrentTerm(); got != term {
		t.Errorf("a beat has taken the peer to term %d", got)
	}
	if err := two[1].rest.beaten(leader.cfg.Self, pcm.MustMarshal(term)); err == nil {
		t.Error("a peer that does not rest takes a beat for a heartbeat")
	}
	if err := leader.rest.ordered(leader.cfg.Self, restOrder{Term: term, Patience: 60_000}); err == nil {
		t.Error("the leader orders itself")
	}
}

// A peer that agrees to rest at the moment when work comes is told of the work: it would wait
// long for its leader in a cell that is used.
func TestWorkOvertakesRest(t *testing.T) {
	nodes := three(t, func(c *Config) { c.restAfter = time.Hour })
	leader := leaderOf(t, nodes...)
	follower := others(nodes, leader)[0]
	r := leader.rest
	for tested := false; !tested; {
		follower.await("the leader's word of the last entry", func() bool { return follower.raft.CommitIndex() >= leader.raft.LastIndex() })
		follower.rest.own.Lock() // it answers no order
		r.mu.Lock()
		r.seen, r.since = r.touched.Load(), time.Now().Add(-2*time.Hour)
		r.mu.Unlock()
		asked := make(chan bool, 1)
		go func() { asked <- r.consider([]pcm.PeerID{follower.cfg.Self}) }()
		await(t, "a question that is under way", func() bool {
			if len(asked) > 0 {
				return true
			}
			leader.links.mu.Lock()
			defer leader.links.mu.Unlock()
			for k, slot := range leader.links.slots {
				slot.sem <- struct{}{}
				l := slot.l
				<-slot.sem
				if k.peer != follower.cfg.Self || l == nil {
					continue
				}
				l.mu.Lock()
				n := len(l.pending)
				l.mu.Unlock()
				if n > 0 {
					return true
				}
			}
			return false
		})
		r.touch()
		follower.rest.own.Unlock()
		tested = <-asked // or it saw the work first
	}
	follower.await("haste", func() bool {
		follower.rest.own.Lock()
		defer follower.rest.own.Unlock()
		return !follower.rest.patient.Load()
	})
}
