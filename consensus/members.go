package consensus

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
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
		LogTime: c.LogTime(), Queued: c.proposer.queued.Load(),
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

// speaksRaft tells from whom Raft's messages are taken: members, and peers that
// the operator or the mesh vouched for. A peer that doesn't vote can't know a
// leader from after its last contact, and harms only itself by believing it; a
// voter believes nobody else.
func (c *Cell) speaksRaft(id pcm.PeerID) bool {
	return c.isMember(id) || c.members.trusted(id) || !slices.Contains(c.voters(), c.cfg.Self)
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
}

type health struct {
	contact  time.Time // last answer
	since    time.Time // first asked, as long as there was no answer
	applied  uint64
	complete bool
	caught   time.Time // since when it is caught up; zero: it isn't
}

// maxVouched bounds the trusted peers, maxMembers the peers of a cell.
const (
	maxVouched = 256
	maxMembers = 256
)

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
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.vouch[id]
}

func (m *members) contact(id pcm.PeerID) (time.Time, uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.health[id]; h != nil {
		return h.contact, h.applied
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

// run makes rounds while this peer leads. A cell at rest is looked at five times
// less often.
func (m *members) run() {
	const calm = 5
	tick := time.NewTicker(m.c.cfg.memberEvery)
	defer tick.Stop()
	skip := 0
	for {
		select {
		case <-tick.C:
			if skip > 0 {
				skip--
				continue
			}
		case <-m.poke:
		case <-m.c.ctx.Done():
			return
		}
		if !m.c.proposer.ready.Load() {
			m.mu.Lock()
			clear(m.health)
			m.mu.Unlock()
			skip = 0
			continue
		}
		if m.round() {
			skip = calm - 1
		} else {
			skip = 0
		}
		m.mu.Lock()
		m.rounds++
		m.mu.Unlock()
	}
}

// round asks all others how they are, then mends the set of voters. It tells
// whether nothing is to be watched closely.
func (m *members) round() (calm bool) {
	servers := m.c.servers()
	m.survey(servers)
	return m.mend(servers)
}

type statusAnswer struct {
	Applied  uint64 `cbor:"1,keyasint"`
	Complete bool   `cbor:"2,keyasint"`
	Last     uint64 `cbor:"3,keyasint"` // in its log
}

// survey asks all others at the same time.
func (m *members) survey(servers []raft.Server) {
	ctx, cancel := context.WithTimeout(m.c.ctx, 2*time.Second)
	defer cancel()
	goal := m.c.Applied() // before asking: whose log holds it by now is caught up
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
			err := m.c.ask(ctx, id, nil, protoAdmin, "status", goal, &a)
			now := time.Now()
			m.mu.Lock()
			defer m.mu.Unlock()
			h := m.health[id]
			if h == nil {
				h = &health{since: now}
				m.health[id] = h
			}
			if err != nil {
				h.caught = time.Time{}
				return
			}
			h.contact, h.applied, h.complete = now, a.Applied, a.Complete
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

// changeTimeout bounds one change of the configuration.
const changeTimeout = 5 * time.Second

// mend moves the set of voters one step towards an odd number of living ones.
//
//   - Two voters are weaker than one, so growth is in pairs: replicas that are
//     caught up and stable become voters together, and if the second fails, the
//     first goes back.
//   - A dead voter is first demoted, then replaced: the demotion needs no more
//     peers than are needed anyway while it is dead, whereas promoting first
//     would need the newcomer as well.
//   - An even number is made odd: by a replica, else by demoting one.
func (m *members) mend(servers []raft.Server) (calm bool) {
	var voters, dead, ready []pcm.PeerID
	waiting := false // a replica may become a voter soon
	now := time.Now()
	m.mu.Lock()
	for _, s := range servers {
		id := pcm.PeerID(s.ID)
		h := m.health[id]
		silent := h != nil && now.Sub(later(h.contact, h.since)) > m.c.cfg.DeadAfter
		switch {
		case s.Suffrage == raft.Voter:
			voters = append(voters, id)
			if id != m.c.cfg.Self && silent {
				dead = append(dead, id)
			}
		case h == nil || !m.c.cfg.Eligible(id):
		case !h.caught.IsZero() && now.Sub(h.caught) >= m.c.cfg.Stabilise:
			ready = append(ready, id)
		case !silent:
			waiting = true
		}
	}
	m.mu.Unlock()
	ready = spread(ready, voters, m.c.cfg.Owner)
	most := m.c.cfg.MaxVoters
	switch n := len(voters); {
	case len(dead) > 0 && len(ready) > 0:
		m.replace(dead[0], ready[0])
		return false
	case n%2 == 0 && n < most && len(ready) > 0:
		m.promote(ready[0])
		return false
	case n%2 == 0 || n > most:
		m.demote(m.leastUseful(voters, dead))
		return false
	case n+2 <= most && len(ready) >= 2:
		m.promotePair(ready[0], ready[1])
		return false
	}
	// Below its size, a cell waits for a pair; with one replica alone there is no hurry.
	return !(waiting && len(voters) < most) && len(dead) == 0
}

// spread orders replicas for promotion: first those whose owner has the fewest
// voters, those ahead in the order counted as voters already; then by ID.
func spread(ready, voters []pcm.PeerID, owner func(pcm.PeerID) string) []pcm.PeerID {
	votes := map[string]int{}
	for _, v := range voters {
		votes[owner(v)]++
	}
	left := slices.Sorted(slices.Values(ready))
	ordered := make([]pcm.PeerID, 0, len(left))
	for len(left) > 0 {
		best := 0
		for i, id := range left {
			if votes[owner(id)] < votes[owner(left[best])] {
				best = i
			}
		}
		votes[owner(left[best])]++
		ordered = append(ordered, left[best])
		left = slices.Delete(left, best, best+1)
	}
	return ordered
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// leastUseful is the voter to demote: a dead one, else one that isn't the leader.
func (m *members) leastUseful(voters, dead []pcm.PeerID) pcm.PeerID {
	if len(dead) > 0 {
		return dead[0]
	}
	slices.Sort(voters)
	for _, id := range voters {
		if id != m.c.cfg.Self {
			return id
		}
	}
	return ""
}

func (m *members) promotePair(a, b pcm.PeerID) {
	// A single voter that takes in a peer which is gone could not even take that
	// back. Both must have answered in this very round, which survey saw to.
	if !m.promote(a) {
		return
	}
	if !m.promote(b) {
		m.demote(a)
	}
}

func (m *members) replace(dead, by pcm.PeerID) {
	if m.demote(dead) {
		m.promote(by)
	}
}

func (m *members) promote(id pcm.PeerID) bool {
	err := m.c.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, changeTimeout).Error()
	return m.report("the peer votes now", "the peer could not be made a voter", id, err)
}

func (m *members) demote(id pcm.PeerID) bool {
	if id == "" {
		return false
	}
	err := m.c.raft.DemoteVoter(raft.ServerID(id), 0, changeTimeout).Error()
	return m.report("the peer votes no more", "the peer could not be made a replica", id, err)
}

func (m *members) report(good, bad string, id pcm.PeerID, err error) bool {
	if err != nil {
		m.c.log.Warn(bad, "cell", m.c.cfg.Cell, "peer", id, "error", err)
		return false
	}
	m.c.log.Info(good, "cell", m.c.cfg.Cell, "peer", id)
	return true
}

// AddReplica takes a peer into the cell: it gets the log from now on, and may
// become a voter by itself. It works on every member. Nothing changes if the
// peer is in the cell already.
func (c *Cell) AddReplica(ctx context.Context, id pcm.PeerID) error {
	if _, err := peer.Decode(string(id)); err != nil {
		return pcm.Errorf(pcm.Invalid, "%q is not a peer ID", id)
	}
	return c.onLeader(ctx, "add", id, nil)
}

// Remove takes a peer out of the cell for good. Its own part must still be
// closed. It works on every member; a replica may remove only itself.
func (c *Cell) Remove(ctx context.Context, id pcm.PeerID) error {
	return c.onLeader(ctx, "remove", id, nil)
}

// TransferLeadership makes a voter the leader; "" lets Raft choose the one that
// is furthest. It works on every voter.
func (c *Cell) TransferLeadership(ctx context.Context, to pcm.PeerID) error {
	return c.onLeader(ctx, "transfer", to, nil)
}

// Sync waits until all that was committed before the call is applied here, so
// that a View that follows is linearizable. Error: Unavailable when ctx ends before.
func (c *Cell) Sync(ctx context.Context) error {
	var index uint64
	if err := c.onLeader(ctx, "sync", "", &index); err != nil {
		return err
	}
	return c.WaitApplied(ctx, index)
}

// onLeader has the leader do something, trying again while it changes.
func (c *Cell) onLeader(ctx context.Context, method string, id pcm.PeerID, out *uint64) error {
	wait := retryLeast
	for {
		leader, changed := c.watch.current()
		var err error
		var n uint64
		switch leader {
		case "":
			err = retryf("it has no leader now: too few of its voters can reach each other")
		case c.cfg.Self:
			n, err = c.administer(ctx, c.cfg.Self, method, id)
		default:
			err = c.ask(ctx, leader, changed, protoAdmin, method, id, &n)
		}
		if err == nil {
			if out != nil {
				*out = n
			}
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return pcm.Errorf(pcm.Unavailable, "%s did not answer in time (%v): %w", pcm.Short(c.cfg.Cell), err, ctx.Err())
		case c.Err() != nil:
			return c.Err()
		case c.ctx.Err() != nil:
			return errClosing
		case !isRetryable(err):
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
			wait = retryLeast
		case <-timer.C:
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

// answerAdmin takes requests of other members.
func (c *Cell) answerAdmin(from pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	if method == "status" {
		s := c.archive.current()
		reply(pcm.MustMarshal(statusAnswer{Applied: c.Applied(), Complete: s.Gap == nil, Last: c.raft.LastIndex()}), nil)
		return
	}
	var id pcm.PeerID
	if err := pcm.Unmarshal(body, &id); err != nil {
		reply(nil, err)
		return
	}
	if !c.start(func() {
		ctx, cancel := context.WithTimeout(c.ctx, 2*changeTimeout)
		defer cancel()
		n, err := c.administer(ctx, from, method, id)
		if err != nil {
			reply(nil, err)
			return
		}
		reply(pcm.MustMarshal(n), nil)
	}) {
		reply(nil, &retryable{errClosing})
	}
}

// administer does what a member asks of the leader.
func (c *Cell) administer(ctx context.Context, from pcm.PeerID, method string, id pcm.PeerID) (uint64, error) {
	if !c.proposer.ready.Load() && method != "transfer" {
		return 0, errNotLeader
	}
	votes := slices.Contains(c.voters(), from)
	var f raft.Future
	switch method {
	case "sync":
		// What was acknowledged to anybody is applied here; that nobody else
		// leads meanwhile is what the voters confirm.
		index := c.Applied()
		if err := wait(ctx, c.raft.VerifyLeader()); err != nil {
			return 0, retryCause(err)
		}
		return index, nil
	case "add":
		if c.isMember(id) {
			return 0, nil
		}
		if len(c.servers()) >= maxMembers {
			return 0, pcm.Errorf(pcm.Refused, "%s has %d peers, the most that a cell may have: join another cell", pcm.Short(c.cfg.Cell), maxMembers)
		}
		f = c.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, changeTimeout)
	case "remove":
		switch {
		case !c.isMember(id):
			return 0, nil
		case from != id && !votes:
			return 0, pcm.Errorf(pcm.Forbidden, "a replica can't remove peer %s from %s", pcm.Short(id), pcm.Short(c.cfg.Cell))
		case id == c.cfg.Self && len(c.voters()) == 1:
			return 0, pcm.Errorf(pcm.Refused, "peer %s is the only voter of %s: nobody would be left to keep the ledger", pcm.Short(id), pcm.Short(c.cfg.Cell))
		case id == c.cfg.Self:
			if err := c.transfer(ctx, ""); err != nil {
				return 0, err
			}
			return 0, errNotLeader // the new one shall do it
		}
		f = c.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout)
	case "transfer":
		if !votes {
			return 0, pcm.Errorf(pcm.Forbidden, "a replica can't move the leadership of %s", pcm.Short(c.cfg.Cell))
		}
		return 0, c.transfer(ctx, id)
	default:
		return 0, pcm.Errorf(pcm.Invalid, "request %q is not known", method)
	}
	if err := wait(ctx, f); err != nil {
		return 0, retryCause(err)
	}
	c.members.wake()
	return 0, nil
}

func (c *Cell) transfer(ctx context.Context, to pcm.PeerID) error {
	var f raft.Future
	switch {
	case to == c.cfg.Self:
		return nil
	case to == "":
		f = c.raft.LeadershipTransfer()
	case !slices.Contains(c.voters(), to):
		return pcm.Errorf(pcm.Invalid, "peer %s is not a voter of %s", pcm.Short(to), pcm.Short(c.cfg.Cell))
	default:
		f = c.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	}
	if err := wait(ctx, f); err != nil {
		return pcm.Errorf(pcm.Unavailable, "leadership of %s could not be handed over: %w", pcm.Short(c.cfg.Cell), err)
	}
	return nil
}

// wait waits for a future at most until ctx ends. The goroutine that outlives
// it ends with the future, at the latest when Raft shuts down.
func wait(ctx context.Context, f raft.Future) error {
	ch := make(chan error, 1)
	go func() { ch <- f.Error() }()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
