package consensus

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// back opens a node that was killed, with its folder and another host.
func (n *node) back() *node {
	n.t.Helper()
	n.connect()
	return n.open()
}

// split recovers one voter of three without the other two, who are down by then.
// The first is the survivor.
func split(t *testing.T) (nodes []*node, ids []pcm.CommandID) {
	t.Helper()
	nodes = three(t, nil)
	lead := leaderOf(t, nodes...)
	for range 5 {
		id, _ := lead.propose(t, lead.cfg.Self)
		ids = append(ids, id)
	}
	nodes = append(others(nodes, lead), lead)
	for _, n := range nodes {
		n.await("all records", func() bool { return n.count() == 5 })
	}
	nodes[1].kill()
	nodes[2].kill()
	var plan Recovery
	nodes[0].await("the loss to be seen", func() (ok bool) {
		var err error
		_, plan, err = nodes[0].PlanRecovery(t.Context())
		return err == nil
	})
	plan.Reason = "a test"
	if err := nodes[0].OrderRecovery(plan); err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].close(); err != nil {
		t.Fatal(err)
	}
	nodes[0].open()
	nodes[0].await("leadership", func() bool { return nodes[0].leads() > 0 })
	id, _ := nodes[0].propose(t, nodes[0].cfg.Self)
	return nodes, append(ids, id)
}

// TestLeftBehindStops: who was left behind by a recovery and comes up with its old
// folder, takes no part any more, whichever comes first; both sides say so, and the
// recovered side loses nothing. A person may decide otherwise.
func TestLeftBehindStops(t *testing.T) {
	for name, late := range map[string]bool{"together": false, "one after the other": true} {
		t.Run(name, func(t *testing.T) {
			nodes, ids := split(t)
			old := nodes[1:]
			for _, n := range old {
				n.back()
				if late {
					n.await("it to stop", func() bool { return n.notices.stopped() != nil })
				}
			}
			for _, n := range old {
				n.await("it to stop", func() bool { return n.notices.stopped() != nil })
				if ok, why := n.Ready(); ok || !strings.Contains(why, "pcm cell rejoin") {
					t.Errorf("it is ready %t: %s", ok, why)
				}
				_, s := n.command(n.cfg.Self)
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				if _, err := n.Propose(ctx, s); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "was recovered without this peer") {
					t.Errorf("a command there: %v", err)
				}
				if err := n.Sync(ctx); pcm.ErrorCode(err) != pcm.Refused {
					t.Errorf("a read there: %v", err)
				}
				if _, _, err := n.PlanRecovery(ctx); pcm.ErrorCode(err) != pcm.Refused {
					t.Errorf("another recovery there: %v", err)
				}
				cancel()
			}
			nodes[0].await("both to be seen", func() bool {
				p := nodes[0].Partings()
				return len(p) == 1 && p[0].Own && len(p[0].Others) == 2 && p[0].Others[0].Stopped && p[0].Others[1].Stopped
			})
			if p := old[0].Partings(); len(p) != 1 || p[0].Own || !p[0].Stopped || p[0].Notice.By != nodes[0].cfg.Self || p[0].Notice.Recovered.Reason != "a test" {
				t.Errorf("it shows %+v", p)
			}
			id, _ := nodes[0].propose(t, nodes[0].cfg.Self)
			if got, want := nodes[0].ids(t), append(slices.Clone(ids), id); !slices.Equal(got, want) {
				t.Errorf("records %v, want %v", got, want)
			}
			if late {
				return
			}
			// It outlives a restart, also one at which nobody is there to tell.
			nodes[0].kill()
			for _, n := range old {
				if err := n.close(); err != nil {
					t.Fatal(err)
				}
				if n.open(); n.notices.stopped() == nil {
					t.Error("it has forgotten that it was left behind")
				}
			}
			for _, n := range old {
				if err := n.RefuseRecovery(); err != nil {
					t.Fatal(err)
				}
			}
			leaderOf(t, old...).propose(t, old[0].cfg.Self)
			nodes[0].back()
			for _, n := range old { // as the mesh does
				if err := n.host.Connect(t.Context(), *peerInfo(nodes[0].host)); err != nil {
					t.Fatal(err)
				}
			}
			nodes[0].await("the alarm", func() bool {
				p := nodes[0].Partings()
				return len(p) == 1 && len(p[0].Others) == 2 && !p[0].Others[0].Stopped && p[0].Others[0].Leader != ""
			})
			old[0].await("the alarm there", func() bool {
				p := old[0].Partings()
				return len(p) == 1 && p[0].Refused && len(p[0].Others) == 1
			})
			if old[0].notices.stopped() != nil || old[0].leads()+old[1].leads() == 0 {
				t.Error("a refused recovery stopped them")
			}
		})
	}
}

// TestOneVoterStopsNobody: a voter that says falsely to have recovered the cell raises the
// alarm, and changes nothing for others that have a leader, be it at their restart, or when
// the leader changes.
func TestOneVoterStopsNobody(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	lead.propose(t, lead.cfg.Self)
	honest := others(nodes, nodes[2])
	if lead == nodes[2] {
		if err := lead.TransferLeadership(t.Context(), nodes[0].cfg.Self); err != nil {
			t.Fatal(err)
		}
		lead = nodes[0]
	}
	liar := nodes[2]
	lie := func(by *node) pcm.Signed {
		return by.key.Seal(pcm.DomainNotice, pcm.Notice{Mesh: testMesh, Cell: testCell, By: by.cfg.Self, At: 1, Recovered: pcm.Recovered{
			Index: 1 << 40, Term: 99, Lost: []pcm.PeerID{nodes[0].cfg.Self, nodes[1].cfg.Self}, Way: ByFolder, Reason: "a lie",
		}})
	}
	liar.notices.mu.Lock()
	err := liar.notices.take(lie(liar))
	liar.notices.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	alarmed := func(n *node) bool {
		p := n.Partings()
		return len(p) == 1 && p[0].Believed && !p[0].Stopped
	}
	for _, n := range honest {
		if err := liar.notices.ask(t.Context(), n.cfg.Self); err != nil {
			t.Fatal(err)
		}
		n.await("the alarm", func() bool { return alarmed(n) })
	}
	follower := others(honest, lead)[0]
	follower.kill()
	follower.back()
	follower.await("its leader", func() bool { l, _ := follower.watch.current(); return l != "" })
	follower.propose(t, follower.cfg.Self)
	lead.propose(t, lead.cfg.Self)
	if err := lead.TransferLeadership(t.Context(), follower.cfg.Self); err != nil { // by chance it might be the liar, whom they would then follow
		t.Fatal(err)
	}
	follower.await("leadership", func() bool { return follower.leads() > 0 })
	lead.kill()
	lead.back()
	lead.await("the next leader", func() bool { l, _ := lead.watch.current(); return l == follower.cfg.Self })
	lead.propose(t, lead.cfg.Self)
	for _, n := range honest {
		// Whom the liar leads is on its side, by its word: nothing parts them.
		n.await("the alarm", func() bool {
			leader, _ := n.watch.current()
			return alarmed(n) || leader == liar.cfg.Self && len(n.Partings()) == 0
		})
	}
}

// TestWhoIsBelieved: a voter's word counts, signed or told by it; that of others, or what
// contradicts entries that were applied, is shown and stops nobody. What is no notice is not kept.
func TestWhoIsBelieved(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	replica := lead.admit(t, nil)
	stranger := lead.book.prepare(t, nil)
	replica.await("to be a replica", func() bool { return replica.Status().Role == RoleReplica })
	me := others(nodes, lead)[0]
	me.await("the replica", func() bool { return me.isMember(replica.cfg.Self) })
	voter := others(nodes, lead, me)[0]
	at := me.Applied()
	good := pcm.Recovered{Index: at, Way: ByFolder, Reason: "x"}
	good.Term, _ = me.termOf(at)
	notice := func(by *node, r pcm.Recovered, keep ...pcm.PeerID) pcm.Signed {
		return by.key.Seal(pcm.DomainNotice, pcm.Notice{Mesh: testMesh, Cell: testCell, By: by.cfg.Self, At: 1, Keep: keep, Recovered: r})
	}
	denied := good
	denied.Term++
	ahead := pcm.Recovered{Index: at + 1000, Term: 9, Way: ByFolder, Reason: "x"}
	otherCell := voter.key.Seal(pcm.DomainNotice, pcm.Notice{Mesh: testMesh, Cell: "cell-other", By: voter.cfg.Self, At: 1, Recovered: good})
	forged := notice(replica, good)
	forged.Sig = slices.Clone(forged.Sig)
	forged.Sig[0] ^= 1
	for _, c := range []struct {
		what       string
		from       *node
		notice     pcm.Signed
		kept, true bool
	}{
		{"a voter's", voter, notice(voter, good), true, true},
		{"a voter's, told by a replica", replica, notice(voter, good), true, true},
		{"a replica's, told by a voter", voter, notice(replica, good), true, true},
		{"of more than this peer has", voter, notice(voter, ahead), true, true},
		{"a replica's", replica, notice(replica, good), true, false},
		{"of another history", voter, notice(voter, denied), true, false},
		{"a stranger's", stranger, notice(stranger, good), false, false},
		{"of those that went on", voter, notice(voter, good, me.cfg.Self), false, false},
		{"of another cell", voter, otherCell, false, false},
		{"a forged one", voter, forged, false, false},
	} {
		me.notices.mu.Lock()
		me.notices.heard, me.notices.kept = nil, keptNotices{}
		me.notices.mu.Unlock()
		me.notices.hear(c.from.cfg.Self, word{Notices: []pcm.Signed{c.notice}})
		p := me.Partings()
		if len(p) == 1 != c.kept || c.kept && p[0].Believed != c.true {
			t.Errorf("%s: %+v", c.what, p)
		}
	}
	// Those whom this peer knows not as voters can't keep it from hearing a voter, or from noting one that agrees with them.
	forget := func() {
		me.notices.mu.Lock()
		defer me.notices.mu.Unlock()
		me.notices.heard, me.notices.kept = nil, keptNotices{}
	}
	believed := func() bool {
		return slices.ContainsFunc(me.Partings(), func(p Parting) bool { return p.Believed })
	}
	forget()
	for range 2 * maxNotices {
		k := pcm.NewKey()
		made := k.Seal(pcm.DomainNotice, pcm.Notice{Mesh: testMesh, Cell: testCell, By: k.Peer(), At: 1, Recovered: good})
		me.notices.hear(replica.cfg.Self, word{Notices: []pcm.Signed{made}})
	}
	if n := len(me.Partings()); n != maxNotices || believed() {
		t.Errorf("%d notices that a replica made up, believed: %t", n, believed())
	}
	me.notices.hear(voter.cfg.Self, word{Notices: []pcm.Signed{notice(voter, good)}})
	if n := len(me.Partings()); n != maxNotices || !believed() {
		t.Errorf("a voter's notice after them: %d notices, believed: %t", n, believed())
	}
	forget()
	for range 2 * maxTellers {
		me.notices.hear(pcm.NewKey().Peer(), word{Notices: []pcm.Signed{notice(replica, good)}})
	}
	if believed() {
		t.Error("what strangers tell is believed")
	}
	me.notices.hear(voter.cfg.Self, word{Notices: []pcm.Signed{notice(replica, good)}})
	if !believed() || len(me.notices.kept.Heard[0].From) > maxTellers {
		t.Errorf("a voter tells it after them, believed: %t", believed())
	}
	forget()
	me.notices.mu.Lock()
	clear(me.notices.words)
	me.notices.mu.Unlock()
	for range 2 * MaxMembers {
		me.notices.hear(pcm.NewKey().Peer(), word{Last: 1})
	}
	me.notices.hear(replica.cfg.Self, word{Last: 1})
	me.notices.mu.Lock()
	if n := len(me.notices.words); n > len(nodes)+1 || me.notices.words[replica.cfg.Self] == nil {
		t.Errorf("after many strangers, %d words are kept, that of the replica among them: %t", n, me.notices.words[replica.cfg.Self] != nil)
	}
	me.notices.mu.Unlock()

	// From its own leader, it is told that it is on the recovered side.
	me.notices.hear(voter.cfg.Self, word{Notices: []pcm.Signed{notice(voter, good)}})
	me.notices.hear(lead.cfg.Self, word{Notices: []pcm.Signed{notice(voter, good)}})
	if p := me.Partings(); len(p) != 0 || len(me.notices.own) != 1 {
		t.Errorf("what its leader says: %+v", p)
	}
	var many []pcm.Signed
	for range maxNotices + 1 {
		many = append(many, notice(replica, good))
	}
	if me.notices.hear(voter.cfg.Self, word{Notices: many}); len(me.Partings()) != 0 {
		t.Error("a word over its bounds was heard")
	}
}
