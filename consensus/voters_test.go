package consensus

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// TestOperatorsSayWhoVotes demotes and promotes by hand: what an operator wants
// holds across leaders, and the cell keeps three voters.
func TestOperatorsSayWhoVotes(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	fourth := lead.admit(t, nil)
	out := nodes[0]
	if out == lead {
		out = nodes[1]
	}
	if err := fourth.Demote(t.Context(), out.cfg.Self, false); pcm.ErrorCode(err) != pcm.Forbidden {
		t.Errorf("a replica demoted a voter: %v", err)
	}
	lead.await("the replica to be ready", func() bool {
		h, err := out.Health(t.Context())
		return err == nil && slices.ContainsFunc(h.Members, func(m MemberHealth) bool { return m.Peer == fourth.cfg.Self && m.Ready })
	})
	// Each order looks anew, and may find a replica an entry behind: it is not ready then.
	order := func(give func() error) (err error) {
		lead.await("the replica to be ready again", func() bool {
			err = give()
			return pcm.ErrorCode(err) != pcm.Unavailable && (err == nil || !strings.Contains(err.Error(), "no replica is ready"))
		})
		return err
	}
	if err := order(func() error { return out.Promote(t.Context(), fourth.cfg.Self, "") }); pcm.ErrorCode(err) != pcm.Refused || !strings.Contains(err.Error(), "--instead-of") {
		t.Errorf("a fourth voter of three: %v", err)
	}
	// Asked on another voter than the leader, and about itself.
	if err := order(func() error { return out.Demote(t.Context(), out.cfg.Self, false) }); err != nil {
		t.Fatal(err)
	}
	if v := lead.voters(); len(v) != 3 || !slices.Contains(v, fourth.cfg.Self) || slices.Contains(v, out.cfg.Self) {
		t.Fatalf("voters after the demotion: %v", v)
	}
	for _, n := range append(nodes, fourth) {
		n.await("all to know whose vote was taken", func() bool { return n.members.held().has(out.cfg.Self) })
	}
	// The next leader holds to it, even if a voter is then missing.
	if err := lead.TransferLeadership(t.Context(), fourth.cfg.Self); err != nil {
		t.Fatal(err)
	}
	fourth.await("leadership", func() bool { return fourth.leads() > 0 })
	fourth.await("a look at the demoted one", func() bool {
		h, err := fourth.Health(t.Context())
		i := slices.IndexFunc(h.Members, func(m MemberHealth) bool { return m.Peer == out.cfg.Self })
		return err == nil && i >= 0 && h.Members[i].Held && h.Members[i].Ready
	})
	if err := order(func() error { return lead.Promote(t.Context(), out.cfg.Self, lead.cfg.Self) }); err != nil {
		t.Fatal(err)
	}
	v := fourth.voters()
	if len(v) != 3 || !slices.Contains(v, out.cfg.Self) || slices.Contains(v, lead.cfg.Self) {
		t.Errorf("voters after the promotion: %v", v)
	}
	if h := fourth.members.held(); h.has(out.cfg.Self) || !h.has(lead.cfg.Self) {
		t.Errorf("held: %v", h)
	}
	fourth.propose(t, fourth.cfg.Self)
}

// TestReturningVoterDisturbsNobody: with pre-vote, a voter that comes back after
// many elections of its own doesn't depose the leader.
func TestReturningVoterDisturbsNobody(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	away := nodes[0]
	if away == lead {
		away = nodes[1]
	}
	term := lead.Status().Term
	away.host.Close()
	away.await("the voter to miss its leader", func() bool { return away.raft.State() == raft.Candidate || away.raft.Leader() == "" })
	lead.propose(t, lead.cfg.Self)
	if got := away.Status().Term; got > term {
		t.Errorf("alone, the voter went on to term %d from %d", got, term)
	}
	if err := away.close(); err != nil {
		t.Fatal(err)
	}
	away.connect()
	away.open()
	away.await("the voter to be back", func() bool { return away.count() == 1 })
	if s := lead.Status(); s.Term != term || s.Leader != lead.cfg.Self {
		t.Errorf("leader %s in term %d, before it was %s in term %d", s.Leader, s.Term, lead.cfg.Self, term)
	}
}

// TestLostFolderDoesNotVote: a voter whose folder is gone comes back as nobody
// that votes, is made a replica, and then earns its vote anew.
func TestLostFolderDoesNotVote(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	lost := nodes[0]
	if lost == lead {
		lost = nodes[1]
	}
	lead.propose(t, lead.cfg.Self)
	if err := lost.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(lost.dir); err != nil {
		t.Fatal(err)
	}
	// The others don't vouch for it, or change anything, until it shows itself.
	for _, n := range nodes {
		if n != lost {
			n.members.changing.Lock()
		}
	}
	lost.cfg.Bootstrap = false
	lost.open()
	if ok, why := lost.Ready(); ok || !strings.Contains(why, "restore") {
		t.Errorf("ready %v: %s", ok, why)
	}
	lost.await("the log", func() bool { return lost.count() == 1 })
	if !lost.forgot() {
		t.Error("it is a voter by the newest configuration, and takes part in elections already")
	}
	for _, ask := range []func() error{
		func() error {
			var resp raft.RequestVoteResponse
			return lead.trans.RequestVote(raft.ServerID(lost.cfg.Self), raft.ServerAddress(lost.cfg.Self), &raft.RequestVoteRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(lead.cfg.Self), Addr: []byte(lead.cfg.Self)},
				Term:      lead.Status().Term, LeadershipTransfer: true, LastLogTerm: 1 << 40, LastLogIndex: 1 << 40,
			}, &resp)
		},
		func() error {
			return lost.mute(t).RequestVote("x", "x", nil, nil)
		},
		func() error {
			return lost.mute(t).RequestPreVote("x", "x", nil, nil)
		},
	} {
		if err := ask(); err == nil || !strings.Contains(err.Error(), "lost its memory") {
			t.Errorf("a peer without memory takes part in an election: %v", err)
		}
	}
	for _, n := range nodes {
		if n != lost {
			n.members.changing.Unlock()
		}
	}
	lost.await("its memory", func() bool { return !lost.forgot() })
	lost.await("its vote", func() bool {
		v := lost.voters()
		return len(v) == 3 && slices.Contains(v, lost.cfg.Self)
	})
	if _, err := os.Stat(filepath.Join(lost.dir, fileForgot)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the mark: %v", err)
	}
	lost.propose(t, lost.cfg.Self)
}

// mute is the transport of a peer without memory.
func (n *node) mute(t *testing.T) *mute {
	t.Helper()
	trans, run := n.memory.muted(steadyTransport{n.trans, n.Cell})
	m, ok := trans.(*mute)
	if !ok || run == nil {
		t.Fatal("the transport isn't muted")
	}
	return m
}

// TestHoldsOutliveTheFolderBeingOpened reads back what was noted.
func TestHoldsOutliveTheFolderBeingOpened(t *testing.T) {
	n := found(t, &book{}, nil)
	n.members.keep(n.members.held().with("p1").with("p2"))
	n.members.keep(n.members.held().without("p1"))
	n.members.learn("p9", holds{Number: 99}) // not from the leader
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.open()
	if h := n.members.held(); !slices.Equal(h.Peers, []pcm.PeerID{"p2"}) || h.Number != 3 {
		t.Errorf("held: %+v", h)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dir, fileHolds), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.open() // nothing worth stopping for
	if h := n.members.held(); len(h.Peers) > 0 {
		t.Errorf("held: %+v", h)
	}
}

// What is told of the leader's plan follows from how the cell is now, not when it was last looked after.
func TestHealthTellsThePlanOfNow(t *testing.T) {
	var most atomic.Int64
	most.Store(3)
	nodes := three(t, func(c *Config) { c.Settled = func() int { return int(most.Load()) } })
	leader := leaderOf(t, nodes...)
	leader.members.changing.Lock() // nothing is looked after
	defer leader.members.changing.Unlock()
	most.Store(1)
	for _, n := range nodes {
		h, err := n.Health(t.Context())
		if err != nil || h.MaxVoters != 1 || !strings.Contains(h.Plan, "at most 1 may") {
			t.Errorf("%d voters at most, and the plan is %q, %v", h.MaxVoters, h.Plan, err)
		}
	}
}
