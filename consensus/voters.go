package consensus

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// Timing of the set of voters.
const (
	changeTimeout = 5 * time.Second // of one change of the configuration
	answersWithin = 5 * time.Second // who answered so lately is counted on by the operator's changes
	settledAfter  = 15              // times Stabilise: a replica may then take a living voter's place
)

// Health is how the peers of a cell are, as its leader sees them.
type Health struct {
	Leader    pcm.PeerID     `cbor:"1,keyasint"`
	MaxVoters int            `cbor:"2,keyasint"`
	Plan      string         `cbor:"3,keyasint"` // what the leader does about the set of voters, or why nothing
	Members   []MemberHealth `cbor:"4,keyasint"`
}

// MemberHealth is how one peer is.
type MemberHealth struct {
	Peer     pcm.PeerID `cbor:"1,keyasint"`
	Role     Role       `cbor:"2,keyasint"`
	Answers  bool       `cbor:"3,keyasint"`
	SilentMS int64      `cbor:"4,keyasint"` // since its last answer
	Applied  uint64     `cbor:"5,keyasint"`
	Last     uint64     `cbor:"6,keyasint"` // in its log
	Complete bool       `cbor:"7,keyasint"` // all records are there
	CaughtMS int64      `cbor:"8,keyasint"` // for how long it is caught up; 0: it isn't
	Ready    bool       `cbor:"9,keyasint"` // caught up for long enough to vote
	Eligible bool       `cbor:"10,keyasint"`
	Held     bool       `cbor:"11,keyasint"` // an operator took its vote
	Forgot   bool       `cbor:"12,keyasint"` // it has lost its memory
	Owner    string     `cbor:"13,keyasint"`
	Site     string     `cbor:"14,keyasint"`
}

// Health asks the leader how the peers are.
func (c *Cell) Health(ctx context.Context) (Health, error) {
	leader, changed := c.watch.current()
	switch leader {
	case "":
		if err := c.notices.stopped(); err != nil {
			return Health{}, err
		}
		return Health{}, pcm.Errorf(pcm.Unavailable, "%s has no leader now: too few of its voters can reach each other", pcm.Short(c.cfg.Cell))
	case c.cfg.Self:
		if c.leads() == 0 {
			return Health{}, errNotLeader
		}
		return c.members.report(), nil
	}
	var h Health
	err := c.ask(ctx, leader, changed, protoAdmin, "health", "", &h)
	return h, err
}

// view is what the leader knows of all peers, for the planner.
func (m *members) view(servers []raft.Server) []standing {
	now, held := time.Now(), m.held()
	cfg := &m.c.cfg
	list := make([]standing, 0, len(servers))
	for _, sv := range servers { // without the lock: this reads the machine's state
		id := pcm.PeerID(sv.ID)
		list = append(list, standing{
			Peer: id, Voter: sv.Suffrage == raft.Voter, Leader: id == cfg.Self, Answers: id == cfg.Self,
			Eligible: cfg.Eligible(id) && !held.has(id), Owner: cfg.Owner(id), Site: cfg.Site(id),
		})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range list {
		s, id := &list[i], list[i].Peer
		if h := m.health[id]; h != nil && id != cfg.Self {
			silent := now.Sub(later(h.contact, h.since)) > cfg.DeadAfter
			s.Answers, s.Dead, s.Forgot, s.Complete = h.answers, silent, h.forgot && h.answers, h.complete
			stable := time.Duration(0)
			if !h.caught.IsZero() {
				stable = now.Sub(h.caught)
			}
			s.Ready = !s.Voter && !h.caught.IsZero() && stable >= cfg.Stabilise
			s.Settled = s.Ready && stable >= settledAfter*cfg.Stabilise
			s.Coming = !s.Voter && !s.Ready && !silent
		}
	}
	return list
}

// mend moves the set of voters one step on. It tells whether nothing is to be
// watched closely.
func (m *members) mend(servers []raft.Server) (calm bool) {
	if !m.changing.TryLock() {
		return false // an operator's change is under way
	}
	defer m.changing.Unlock()
	p := planVoters(m.view(servers), m.c.maxVoters())
	if p.Transfer != "" {
		ctx, cancel := context.WithTimeout(m.c.ctx, changeTimeout)
		defer cancel()
		if err := m.c.transfer(ctx, p.Transfer); err != nil {
			m.c.log.Warn("leadership could not be handed over", "cell", m.c.cfg.Cell, "to", p.Transfer, "error", err)
		}
		return false
	}
	if len(p.Changes) > 0 {
		m.c.log.Info("the set of voters changes", "cell", m.c.cfg.Cell, "why", p.Why)
		if err := m.carryOut(p); err != nil {
			m.c.log.Warn("the set of voters could not be changed", "cell", m.c.cfg.Cell, "error", err)
		}
	}
	return p.Calm
}

// carryOut makes the changes of a plan. A lone voter that takes in a peer which
// is gone could not even take that back; so all must have answered in the round
// that made the plan.
func (m *members) carryOut(p plan) error {
	for i, c := range p.Changes {
		if err := m.change(c); err != nil {
			if p.Pair && i > 0 {
				return errors.Join(err, m.change(change{false, p.Changes[0].Peer}))
			}
			return err
		}
	}
	return nil
}

func (m *members) change(c change) error {
	var f raft.IndexFuture
	id := raft.ServerID(c.Peer)
	if c.Promote {
		f = m.c.raft.AddVoter(id, raft.ServerAddress(id), 0, changeTimeout)
	} else {
		f = m.c.raft.DemoteVoter(id, 0, changeTimeout)
	}
	if err := f.Error(); err != nil {
		if c.Promote {
			return pcm.Errorf(pcm.Unavailable, "peer %s could not be made a voter: %w", pcm.Short(c.Peer), err)
		}
		return pcm.Errorf(pcm.Unavailable, "peer %s could not be made a replica: %w", pcm.Short(c.Peer), err)
	}
	if c.Promote {
		m.c.log.Info("the peer votes now", "cell", m.c.cfg.Cell, "peer", c.Peer)
	} else {
		m.c.log.Info("the peer votes no more", "cell", m.c.cfg.Cell, "peer", c.Peer)
	}
	return nil
}

// order carries out what an operator wants of the set of voters.
func (m *members) order(ctx context.Context, method string, req adminRequest) error {
	m.changing.Lock()
	defer m.changing.Unlock()
	servers := m.c.servers()
	m.survey(servers)
	held := m.held()
	if method == "promote" {
		m.keep(held.without(req.Peer))
	}
	view := m.view(servers)
	var p plan
	var err error
	if method == "promote" {
		p, err = planPromote(view, m.c.maxVoters(), req.Peer, req.Instead)
	} else {
		p, err = planDemote(view, req.Peer, req.Force)
	}
	if err != nil {
		m.keep(held)
		return err
	}
	for _, c := range p.Changes {
		if c.Promote || c.Peer != m.c.cfg.Self {
			continue
		}
		if err := m.c.transfer(ctx, ""); err != nil {
			return err
		}
		return errNotLeader // the new one shall do it
	}
	// Noted before the change: else the next leader could give the vote back.
	for _, c := range p.Changes {
		if !c.Promote {
			m.keep(m.held().with(c.Peer))
		}
	}
	if err := m.carryOut(p); err != nil {
		return retryCause(err)
	}
	m.wake()
	return nil
}

// mayRemove refuses to take out a voter without whom those that answer would be
// no majority.
func (m *members) mayRemove(id pcm.PeerID) error {
	var voters []standing
	now := time.Now()
	m.mu.Lock()
	for _, s := range m.c.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		v := standing{Peer: pcm.PeerID(s.ID), Leader: pcm.PeerID(s.ID) == m.c.cfg.Self, Answers: true}
		if h := m.health[v.Peer]; h != nil && now.Sub(later(later(h.contact, h.since), m.c.rest.heard(v.Peer))) > answersWithin {
			v.Answers = false
		}
		voters = append(voters, v)
	}
	m.mu.Unlock()
	if !slices.ContainsFunc(voters, func(v standing) bool { return v.Peer == id }) || safe(voters, []change{{false, id}}) {
		return nil
	}
	return tooFew(voters)
}

// report is what the leader tells of all peers.
func (m *members) report() Health {
	servers := m.c.servers()
	view, held := m.view(servers), m.held()
	leader, _ := m.c.watch.current()
	applied, last := m.c.Applied(), m.c.raft.LastIndex()
	p := planVoters(view, m.c.maxVoters()) // of now: a setting may have changed since the last round
	if p.Transfer != "" || len(p.Changes) > 0 {
		m.wake()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	r := Health{Leader: leader, MaxVoters: m.c.maxVoters(), Plan: p.Why}
	for _, s := range view {
		h := MemberHealth{
			Peer: s.Peer, Role: RoleReplica, Answers: s.Answers, Ready: s.Ready, Eligible: s.Eligible || held.has(s.Peer),
			Held: held.has(s.Peer), Forgot: s.Forgot, Owner: s.Owner, Site: s.Site,
		}
		switch {
		case s.Leader:
			h.Role, h.Applied, h.Last, h.Complete = RoleLeader, applied, last, true
		case s.Voter:
			h.Role = RoleVoter
		}
		if k := m.health[s.Peer]; k != nil && !s.Leader {
			h.SilentMS = now.Sub(later(later(k.contact, k.since), m.c.rest.heard(s.Peer))).Milliseconds()
			h.Applied, h.Last, h.Complete = k.applied, k.last, k.complete
			if !k.caught.IsZero() {
				h.CaughtMS = max(1, now.Sub(k.caught).Milliseconds())
			}
		}
		r.Members = append(r.Members, h)
	}
	return r
}

// holds are the peers whose vote an operator has taken: they don't get it back
// by themselves. Each member keeps the newest list that it has seen, so that it
// outlives the leader; of two, the one with the higher number is newer.
type holds struct {
	Number uint64       `cbor:"1,keyasint"`
	Peers  []pcm.PeerID `cbor:"2,keyasint"`
}

const fileHolds = "holds.cbor"

func (h holds) has(id pcm.PeerID) bool { return slices.Contains(h.Peers, id) }

func (h holds) with(id pcm.PeerID) holds {
	if h.has(id) || len(h.Peers) >= MaxMembers {
		return h
	}
	return holds{h.Number + 1, append(slices.Clone(h.Peers), id)}
}

func (h holds) without(id pcm.PeerID) holds {
	if !h.has(id) {
		return h
	}
	return holds{h.Number + 1, slices.DeleteFunc(slices.Clone(h.Peers), func(p pcm.PeerID) bool { return p == id })}
}

func (m *members) held() holds {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.holds
}

// keep notes a list, durably.
func (m *members) keep(h holds) {
	m.mu.Lock()
	same := h.Number == m.holds.Number
	if h.Number < m.holds.Number {
		h.Number, same = m.holds.Number+1, false // taken back: newer all the same
	}
	m.holds = h
	m.mu.Unlock()
	if same {
		return
	}
	if err := writeFile(filepath.Join(m.c.cfg.Dir, fileHolds), pcm.MustMarshal(h)); err != nil {
		m.c.log.Warn("can't note whose vote an operator took", "error", err)
	}
}

// learn takes over what the leader knows.
func (m *members) learn(from pcm.PeerID, h holds) {
	if leader, _ := m.c.watch.current(); from == leader && h.Number > m.held().Number && len(h.Peers) <= MaxMembers {
		m.keep(h)
	}
}

// readHolds reads what was noted; a damaged note is as good as none.
func (m *members) readHolds() {
	data, err := os.ReadFile(filepath.Join(m.c.cfg.Dir, fileHolds))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var h holds
	if err == nil {
		err = pcm.Unmarshal(data, &h)
	}
	if err != nil {
		m.c.log.Warn("can't read whose vote an operator took: they may vote again", "error", err)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holds = h
}
