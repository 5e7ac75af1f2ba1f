package consensus

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// Role is what a peer is in a cell.
type Role string

// The roles.
const (
	RoleLeader  Role = "leader"
	RoleVoter   Role = "voter"
	RoleReplica Role = "replica"
	RoleNone    Role = "none" // not taken in yet, or removed
)

// Status is a cell as this peer sees it.
type Status struct {
	Cell     pcm.CellID
	Role     Role       // of this peer
	Leader   pcm.PeerID // "" if none is known
	Term     uint64
	Index    uint64 // last in this peer's log
	Commit   uint64
	Applied  uint64 // here
	Records  uint64
	Complete bool  // all records are here
	LogTime  int64 // estimate, ms
	Queued   int64 // commands that wait here, if this peer leads
	Resting  bool  // there is no work: this peer waits patiently for its leader, or leads and beats seldom for all others
	Members  []Member
}

// Member is a peer of the cell. Contact and Applied are known on the leader.
type Member struct {
	Peer    pcm.PeerID
	Role    Role
	Contact time.Time // last answer; zero: none yet, or not known here
	Applied uint64
}

// Status looks at the cell. It waits for nobody.
func (c *Cell) Status() Status {
	leader, _ := c.watch.current()
	state := c.archive.current()
	s := Status{
		Cell: c.cfg.Cell, Role: RoleNone, Leader: leader, Term: c.raft.CurrentTerm(), Index: c.raft.LastIndex(),
		Commit: c.raft.CommitIndex(), Applied: c.Applied(), Records: state.Count, Complete: state.Gap == nil,
		LogTime: c.LogTime(), Queued: c.proposer.queued.Load(), Resting: c.rest.resting(),
	}
	for _, sv := range c.servers() {
		m := Member{Peer: pcm.PeerID(sv.ID), Role: RoleReplica}
		if sv.Suffrage == raft.Voter {
			m.Role = RoleVoter
		}
		if m.Peer == leader {
			m.Role = RoleLeader
		}
		if m.Peer == c.cfg.Self {
			s.Role = m.Role
			m.Contact, m.Applied = c.cfg.Now(), s.Applied
		} else {
			m.Contact, m.Applied = c.members.contact(m.Peer)
			if m.Peer == leader {
				m.Contact = c.raft.LastContact()
			}
		}
		s.Members = append(s.Members, m)
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return cmp.Compare(a.Peer, b.Peer) })
	return s
}

func (c *Cell) servers() []raft.Server { return c.raft.GetConfiguration().Configuration().Servers }

func (c *Cell) voters() (list []pcm.PeerID) {
	for _, s := range c.servers() {
		if s.Suffrage == raft.Voter {
			list = append(list, pcm.PeerID(s.ID))
		}
	}
	return list
}

func (c *Cell) anybody(pcm.PeerID) bool { return true }

// isMember tells whether a peer is in the configuration that this one knows.
func (c *Cell) isMember(id pcm.PeerID) bool {
	return slices.ContainsFunc(c.servers(), func(s raft.Server) bool { return s.ID == raft.ServerID(id) })
}

// connected tells whether there is a connection to a peer.
func (c *Cell) connected(id pcm.PeerID) bool {
	p, err := peer.Decode(string(id))
	return err == nil && c.cfg.Host.Network().Connectedness(p) == network.Connected
}

// speaksRaft tells from whom Raft's messages are taken: members, and peers that
// the operator or the mesh vouched for. A peer that doesn't vote can't know a
// leader from after its last contact, and harms only itself by believing it; a
// voter believes nobody else.
func (c *Cell) speaksRaft(id pcm.PeerID) bool {
	if c.notices.stopped() != nil {
		return false
	}
	return c.isMember(id) || c.members.trusted(id) || !c.isVoter(c.cfg.Self)
}

// Trust adds a peer to those whose Raft messages are taken though this peer's
// configuration doesn't name them: one that a signed descriptor of the cell names.
func (c *Cell) Trust(id pcm.PeerID) { c.members.trust(id) }

// members watches over the others and, on the leader, over who votes.
type members struct {
	c *Cell

	mu     sync.Mutex
	health map[pcm.PeerID]*health
	vouch  map[pcm.PeerID]bool
	poke   chan struct{}
	rounds uint64 // of the leader's loop; for tests
	holds  holds

	changing sync.Mutex // held while the set of voters is changed
}

type health struct {
	contact  time.Time // last answer
	since    time.Time // first asked, as long as there was no answer
	answers  bool      // in the last survey
	applied  uint64
	last     uint64 // in its log
	complete bool
	forgot   bool      // it has lost its memory
	caught   time.Time // since when it is caught up; zero: it isn't
}

// MaxMembers bounds the peers of a cell.
const MaxMembers = 256

const maxVouched = 256 // trusted peers

func newMembers(c *Cell) *members {
	m := &members{c: c, health: map[pcm.PeerID]*health{}, vouch: map[pcm.PeerID]bool{}, poke: make(chan struct{}, 1)}
	for _, id := range c.cfg.Trust {
		m.trust(id)
	}
	return m
}

func (m *members) trust(id pcm.PeerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.vouch) < maxVouched {
		m.vouch[id] = true
	}
}

func (m *members) trusted(id pcm.PeerID) bool {
	if r := m.c.Recovered(); r != nil && slices.Contains(r.Lost, id) {
		return false // it was left behind: unless it was taken in again, it speaks for a cell that is no more
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vouch[id]
}

func (m *members) contact(id pcm.PeerID) (time.Time, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.health[id]; h != nil {
		return later(h.contact, m.c.rest.heard(id)), h.applied
	}
	return time.Time{}, 0
}

// wake starts a round now.
func (m *members) wake() {
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// run makes rounds while this peer leads. A cell in which nothing is to be watched
// closely is looked at five times less often, one without work (see rest) fifteen times.
func (m *members) run() {
	const calm, resting = 5, 15
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-m.poke: // this peer begins to lead, there is another leader, or something to be seen to
		case <-m.c.ctx.Done():
			return
		}
		if m.c.leads() == 0 {
			m.mu.Lock()
			clear(m.health)
			m.mu.Unlock()
			tick.Stop()
			continue
		}
		tick.Reset(time.Duration(m.round(calm, resting)) * m.c.cfg.memberEvery)
		m.mu.Lock()
		m.rounds++
		m.mu.Unlock()
	}
}

// round asks all others how they are, then mends the set of voters. It tells after how
// many ticks the next one is due: 1, calm or resting.
func (m *members) round(calm, resting int) int {
	servers := m.c.servers()
	m.survey(servers)
	m.remind()
	switch {
	case !m.mend(servers):
		return 1
	case m.c.rest.consider(m.caughtUp()):
		return resting
	}
	return calm
}

// caughtUp are the peers that answered in the last survey and lack nothing.
func (m *members) caughtUp() (list []pcm.PeerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, h := range m.health {
		if h.answers && !h.forgot && !h.caught.IsZero() {
			list = append(list, id)
		}
	}
	return list
}

// behind is how many of the newest entries peers lack that answer and lag, as far as the log still has them.
func (m *members) behind() uint64 {
	first, err := m.c.logs.FirstIndex()
	last := m.c.raft.LastIndex()
	if err != nil || m.c.leads() == 0 {
		return 0 // it is for the leader to send them
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	low := last
	for _, h := range m.health {
		if h.answers {
			low = min(low, max(h.last, first-min(first, 1)))
		}
	}
	return last - low
}

// statusRequest is what a leader asks, and what the others are to know should
// one of them lead next. Up to release 1 it was the number Goal alone, which nobody reads.
type statusRequest struct {
	Holds holds `cbor:"1,keyasint"`
}

type statusAnswer struct {
	Applied  uint64 `cbor:"1,keyasint"`
	Complete bool   `cbor:"2,keyasint"`
	Last     uint64 `cbor:"3,keyasint"` // in its log
	Forgot   bool   `cbor:"4,keyasint,omitempty"`
	Term     uint64 `cbor:"5,keyasint,omitempty"` // of the last entry
}

// survey asks all others at the same time.
func (m *members) survey(servers []raft.Server) {
	ctx, cancel := context.WithTimeout(m.c.ctx, 2*time.Second)
	defer cancel()
	goal := m.c.Applied() // before asking: whose log holds it by now is caught up
	req := statusRequest{Holds: m.held()}
	var wg sync.WaitGroup
	current := map[pcm.PeerID]bool{}
	for _, s := range servers {
		id := pcm.PeerID(s.ID)
		if id == m.c.cfg.Self {
			continue
		}
		current[id] = true
		wg.Go(func() {
			var a statusAnswer
			err := m.c.ask(ctx, id, nil, protoAdmin, "status", req, &a)
			now := time.Now()
			m.mu.Lock()
			defer m.mu.Unlock()
			h := m.health[id]
			if h == nil {
				h = &health{since: now}
				m.health[id] = h
			}
			h.answers = err == nil
			if err != nil {
				h.caught = time.Time{}
				return
			}
			h.contact, h.applied, h.last, h.complete, h.forgot = now, a.Applied, a.Last, a.Complete, a.Forgot
			switch {
			case !a.Complete || a.Applied == 0 || a.Last < goal:
				h.caught = time.Time{}
			case h.caught.IsZero():
				h.caught = now
			}
		})
	}
	wg.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range m.health {
		if !current[id] {
			delete(m.health, id)
		}
	}
}
