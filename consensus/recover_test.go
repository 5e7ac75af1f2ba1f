package consensus

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func TestPlanRecovery(t *testing.T) {
	s := func(id string, role Role, answers bool, term, last uint64) Survivor {
		return Survivor{Peer: pcm.PeerID(id), Role: role, Answers: answers, Term: term, Last: last}
	}
	forgot := s("b", RoleVoter, true, 0, 0)
	forgot.Forgot = true
	for _, c := range []struct {
		what   string
		self   pcm.PeerID
		leader pcm.PeerID
		list   []Survivor
		want   string // part of the reason; "": possible
		keep   []pcm.PeerID
		lost   []pcm.PeerID
	}{
		{"two of three gone", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, false, 0, 0), s("c", RoleVoter, false, 0, 0)}, "", nil, []pcm.PeerID{"b", "c"}},
		{"with a replica that has less", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, false, 0, 0), s("c", RoleVoter, false, 0, 0), s("d", RoleReplica, true, 3, 8)}, "", []pcm.PeerID{"d"}, []pcm.PeerID{"b", "c"}},
		{"a longer log of an older term is less", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, false, 0, 0), s("c", RoleVoter, false, 0, 0), s("d", RoleReplica, true, 2, 30)}, "", []pcm.PeerID{"d"}, []pcm.PeerID{"b", "c"}},
		{"a replica that has more", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, false, 0, 0), s("c", RoleVoter, false, 0, 0), s("d", RoleReplica, true, 3, 10)}, "run this there", nil, nil},
		{"a replica goes on", "d", "", []Survivor{s("d", RoleReplica, true, 3, 9), s("b", RoleVoter, false, 0, 0), s("c", RoleVoter, false, 0, 0), s("a", RoleVoter, true, 3, 8)}, "", []pcm.PeerID{"a"}, []pcm.PeerID{"b", "c"}},
		{"there is a leader", "a", "b", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, true, 3, 9)}, "has a leader", nil, nil},
		{"a majority answers", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), s("b", RoleVoter, true, 3, 9), s("c", RoleVoter, false, 0, 0)}, "majority", nil, nil},
		{"one of them has lost its memory", "a", "", []Survivor{s("a", RoleVoter, true, 3, 9), forgot, s("c", RoleVoter, false, 0, 0)}, "", []pcm.PeerID{"b"}, []pcm.PeerID{"c"}},
		{"this one has", "b", "", []Survivor{s("a", RoleVoter, true, 3, 9), forgot, s("c", RoleVoter, false, 0, 0)}, "holds nothing", nil, nil},
		{"not in the cell", "x", "", []Survivor{s("a", RoleVoter, false, 0, 0)}, "not in the cell", nil, nil},
	} {
		r, err := planRecovery(c.self, c.leader, c.list)
		switch {
		case c.want != "" && (pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		case c.want == "" && (err != nil || !slices.Equal(r.Keep, c.keep) || !slices.Equal(r.Lost, c.lost) || r.Index != 9 || r.Term != 3):
			t.Errorf("%s: %+v, %v", c.what, r, err)
		}
	}
}

// TestRecoverFromLostQuorum: two of three voters and one of two replicas are gone
// for good. The survivor with the longest log goes on alone with all that it has,
// takes the other survivor along, and grows again.
func TestRecoverFromLostQuorum(t *testing.T) {
	nodes := three(t, func(c *Config) { c.MaxVoters = 3 })
	lead := leaderOf(t, nodes...)
	kept := nodes[0].book.prepare(t, nil).open()
	behind := nodes[0].book.prepare(t, nil).open()
	for _, n := range []*node{kept, behind} {
		if err := lead.AddReplica(t.Context(), n.cfg.Self); err != nil {
			t.Fatal(err)
		}
		n.await("the replica", func() bool { return n.Status().Role == RoleReplica && !n.forgot() })
	}
	var ids []pcm.CommandID
	for range 10 {
		id, _ := lead.propose(t, lead.cfg.Self)
		ids = append(ids, id)
	}
	var survivor *node
	for _, n := range nodes {
		if n != lead {
			survivor = n
		}
	}
	for _, n := range []*node{survivor, kept, behind} {
		n.await("all records", func() bool { return n.count() == 10 })
	}
	if _, _, err := survivor.PlanRecovery(t.Context()); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("a cell that is well: %v", err)
	}
	for _, n := range nodes {
		if n != survivor {
			n.kill()
		}
	}
	var plan Recovery
	survivor.await("the loss to be seen", func() bool {
		var err error
		_, plan, err = survivor.PlanRecovery(t.Context())
		return err == nil
	})
	if len(plan.Lost) != 2 || len(plan.Keep) != 2 {
		t.Fatalf("plan: %+v", plan)
	}
	plan.Reason = "a test"
	if err := survivor.OrderRecovery(plan); err != nil {
		t.Fatal(err)
	}
	if err := survivor.close(); err != nil {
		t.Fatal(err)
	}
	survivor.open()
	survivor.await("leadership", func() bool { return survivor.leads() > 0 })
	r := survivor.Recovered()
	if r == nil || r.Told || r.Reason != "a test" || r.Index < 10 {
		t.Errorf("recovered: %+v", r)
	}
	if err := survivor.RecoveryTold(); err != nil || !survivor.Recovered().Told {
		t.Errorf("told: %v", err)
	}
	id, _ := survivor.propose(t, survivor.cfg.Self)
	for _, n := range []*node{survivor, kept, behind} {
		n.await("the new voters", func() bool { return len(n.voters()) == 3 && !slices.ContainsFunc(plan.Lost, n.isMember) })
		n.await("the new record", func() bool { return n.count() == 11 })
		if got := n.ids(t); !slices.Equal(got, append(slices.Clone(ids), id)) {
			t.Errorf("records: %v", got)
		}
	}
	// Who was left behind is believed no more, even if the mesh vouches for it.
	survivor.Trust(plan.Lost[0])
	if survivor.speaksRaft(plan.Lost[0]) {
		t.Error("Raft's messages of a peer that was left behind are taken")
	}
}

// TestRewrittenHistoryIsNotFollowed: a peer that has applied more than the one
// from which the cell was recovered stops loudly instead of following it.
func TestRewrittenHistoryIsNotFollowed(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	lead.propose(t, lead.cfg.Self)
	var short, ahead *node
	for _, n := range nodes {
		switch {
		case n == lead:
		case short == nil:
			short = n
		default:
			ahead = n
		}
	}
	short.await("the first record", func() bool { return short.count() == 1 })
	if err := short.close(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		lead.propose(t, lead.cfg.Self)
	}
	ahead.await("all records", func() bool { return ahead.count() == 6 })
	lead.kill()
	if err := ahead.close(); err != nil {
		t.Fatal(err)
	}
	// Wrongly, the one that has less goes on, and believes the other to be well.
	keep := Recovery{Keep: []pcm.PeerID{ahead.cfg.Self}, Lost: []pcm.PeerID{lead.cfg.Self}, Way: ByFolder, Reason: "a mistake"}
	if err := short.OrderRecovery(keep); err != nil {
		t.Fatal(err)
	}
	short.open()
	short.await("leadership", func() bool { return short.leads() > 0 })
	short.propose(t, short.cfg.Self)
	failed := make(chan error, 1)
	ahead.cfg.OnFailure = func(err error) { failed <- err }
	ahead.open()
	select {
	case err := <-failed:
		if !strings.Contains(err.Error(), "are to be replaced") {
			t.Errorf("it stopped, but said: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatalf("it went on with %d records; the recovered one has %d", ahead.count(), short.count())
	}
	if got := ahead.RecordCount(); got != 6 {
		t.Errorf("it has %d records now", got)
	}
}
