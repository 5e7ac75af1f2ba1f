package consensus

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
)

// Timing of a cell at rest.
const (
	restAfter   = 5 * time.Second  // without a command, before a cell rests
	restBeat    = 4 * time.Second  // between heartbeats to a peer at rest
	restPause   = 4                // part of the heartbeat timeout after which Raft has an answer: it gives up leading after a whole one
	restPatient = 4                // beats that a peer at rest waits for, before it gives the leader up
	restFor     = time.Minute      // how long a peer rests that hears no more of it
	restAhead   = 30 * time.Second // what is due so soon keeps the cell awake
	restMost    = 5 * time.Minute  // patience that a leader may ask for
	rouseEvery  = time.Second      // between looks whether the leader is there
	rouseTime   = time.Second      // for the leader to say that it is
)

// rest is what makes a cell without work cheap: heartbeats every few seconds, and no
// message that says nothing new.
//
// Peers rest one by one. The leader asks a peer to be patient; only when the peer
// has said that it is, the leader beats seldom. Raft knows nothing of it: the transport
// answers the heartbeats that are not sent ([rest.heartbeat]), as long as the peer
// has answered one within restBeat. That is no confirmation that this peer leads, and
// is never taken for one ([Cell.confirm]); if the peer falls silent, Raft hears of
// it with the next heartbeat that is sent, and steps down as ever. Nothing else in
// Raft's safety hangs on time.
//
// Work wakes the cell at once: the leader beats as ever, and tells the peers. A peer
// at rest that wants something of the leader, or is asked for its vote, looks whether the
// leader is there, and is impatient if it is not. A leader whose connections have
// ended is the succession's matter, first.
type rest struct {
	c     *Cell
	after time.Duration
	beat  time.Duration
	hasty time.Duration // heartbeat timeout of a peer that doesn't rest
	begun atomic.Bool   // Raft is there

	touched atomic.Uint64 // grows with each piece of work
	any     atomic.Bool   // a peer may be at rest

	// Of the leader.
	mu    sync.Mutex
	stir  chan struct{} // closed and replaced when heartbeats have to be sent
	peers map[raft.ServerID]*restPeer
	seen  uint64 // of touched
	since time.Time

	// Of a peer that follows.
	own     sync.Mutex // held while Raft's timeouts are changed
	patient atomic.Bool
	lapse   *time.Timer
	rousing atomic.Bool
	roused  time.Time // of the goroutine that rouses
}

// restPeer is a peer as the leader of a term sees it.
type restPeer struct {
	term  uint64
	rests bool
	heard time.Time // when the last heartbeat was sent that it has answered
}

func newRest(c *Cell) *rest {
	r := &rest{c: c, after: restAfter, beat: restBeat, stir: make(chan struct{}), peers: map[raft.ServerID]*restPeer{}}
	if c.cfg.restAfter > 0 {
		r.after = c.cfg.restAfter
	}
	if c.cfg.restBeat > 0 {
		r.beat = c.cfg.restBeat
	}
	return r
}

// begin is called when Raft is there.
func (r *rest) begin() {
	r.hasty = r.c.raft.ReloadableConfig().HeartbeatTimeout
	r.begun.Store(true)
}

// watch takes note of connections until stop is called.
func (r *rest) watch() (stop func()) {
	n := &network.NotifyBundle{DisconnectedF: func(net network.Network, conn network.Conn) {
		if id := conn.RemotePeer(); net.Connectedness(id) != network.Connected {
			r.lost(pcm.PeerID(id.String()))
		}
	}}
	r.c.cfg.Host.Network().Notify(n)
	return func() { r.c.cfg.Host.Network().StopNotify(n) }
}

// hasten has a peer wait no longer than usual. It has to hear of the leader before it is
// impatient. If it can't be told, its patience lapses.
func (r *rest) hasten(id raft.ServerID, term uint64) {
	ctx, cancel := context.WithTimeout(r.c.ctx, changeTimeout)
	defer cancel()
	if r.c.pulse(id, term) == nil {
		r.c.ask(ctx, pcm.PeerID(id), nil, protoAdmin, "rest", restOrder{Term: term}, nil)
	}
}

// lost is told of a peer to which there is no connection any more. It doesn't block.
func (r *rest) lost(id pcm.PeerID) {
	r.mu.Lock()
	p := r.peers[raft.ServerID(id)]
	rested := p != nil && p.rests
	if rested {
		p.rests = false
	}
	r.mu.Unlock()
	if rested {
		r.c.members.wake()
	}
}

// touch notes that there is work, and wakes the cell if this peer leads it.
func (r *rest) touch() {
	r.touched.Add(1)
	if r.any.Load() {
		r.wake()
	}
}

// wake has all peers beat and wait as if the cell had never rested.
func (r *rest) wake() {
	r.mu.Lock()
	r.any.Store(false)
	r.stirUp()
	var tell []raft.ServerID
	term := uint64(0)
	for id, p := range r.peers {
		if p.rests {
			p.rests = false
			tell, term = append(tell, id), max(term, p.term)
		}
	}
	r.mu.Unlock()
	for _, id := range tell {
		r.c.start(func() { r.hasten(id, term) })
	}
	if len(tell) > 0 {
		r.c.members.wake()
	}
}

// stirUp needs the lock.
func (r *rest) stirUp() {
	close(r.stir)
	r.stir = make(chan struct{})
}

// heartbeat answers one of Raft's heartbeats for a peer at rest, or has it sent.
func (r *rest) heartbeat(id raft.ServerID, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, send func() error) error {
	r.mu.Lock()
	p := r.peers[id]
	switch {
	case p == nil:
		if len(r.peers) >= 2*MaxMembers {
			clear(r.peers) // of peers that were removed
		}
		p = &restPeer{term: req.Term}
		r.peers[id] = p
	case p.term < req.Term:
		*p = restPeer{term: req.Term}
	}
	for waited := false; p.rests && p.term == req.Term && time.Since(p.heard) < r.beat; waited = true {
		if waited {
			r.mu.Unlock()
			*resp = raft.AppendEntriesResponse{Term: req.Term, Success: true}
			return nil
		}
		stir := r.stir
		r.mu.Unlock()
		pause := time.NewTimer(r.hasty / restPause)
		select {
		case <-pause.C:
		case <-stir:
			pause.Stop()
		case <-r.c.ctx.Done():
			pause.Stop()
		}
		r.mu.Lock()
	}
	r.mu.Unlock()
	sent := time.Now()
	err := send()
	r.mu.Lock()
	silent := false
	if p.term == req.Term {
		if err == nil && resp.Success {
			p.heard = sent
		} else {
			silent, p.rests = p.rests, false
		}
	}
	r.mu.Unlock()
	if silent {
		r.c.members.wake()
	}
	return err
}

// spare tells whether an append to a peer at rest says nothing new after the last one.
func (r *rest) spare(id raft.ServerID, last passed, req *raft.AppendEntriesRequest) bool {
	if !r.any.Load() || len(req.Entries) > 0 || last != (passed{req.PrevLogEntry, req.LeaderCommitIndex}) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[id]
	return p != nil && p.rests && p.term == req.Term
}

// heard is when a heartbeat was sent that a peer has answered; zero if none was.
func (r *rest) heard(id pcm.PeerID) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.peers[raft.ServerID(id)]; p != nil {
		return p.heard
	}
	return time.Time{}
}

// resting tells whether this peer does no more than it must.
func (r *rest) resting() bool {
	term := r.c.leads()
	if term == 0 {
		return r.patient.Load()
	}
	servers := r.c.servers()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range servers {
		if p := r.peers[s.ID]; pcm.PeerID(s.ID) != r.c.cfg.Self && (p == nil || !p.rests || p.term != term) {
			return false
		}
	}
	return true
}

// restOrder is what a leader asks of a peer: to wait for it at least for Patience, or
// no longer than usual (0). It holds for a minute.
type restOrder struct {
	Term     uint64 `cbor:"1,keyasint"`
	Patience int64  `cbor:"2,keyasint,omitempty"` // ms
	Index    uint64 `cbor:"3,keyasint,omitempty"` // committed at the leader: the peer must know that
}

// consider has peers rest, or rest on, if there is no work. Those that can't are tried
// again with the next round. It tells whether there is none.
func (r *rest) consider(peers []pcm.PeerID) bool {
	term, touched := r.c.leads(), r.touched.Load()
	r.mu.Lock()
	if touched != r.seen || r.since.IsZero() {
		r.seen, r.since = touched, time.Now()
	}
	quiet := term > 0 && time.Since(r.since) >= r.after
	r.mu.Unlock()
	index := r.c.raft.CommitIndex()
	if !quiet || r.c.proposer.queued.Load() > 0 || index < r.c.raft.LastIndex() {
		return false
	}
	due := false
	_, now := r.c.clock.read()
	r.c.View(func() { due = r.c.fsm.machine.Due(now + restAhead.Milliseconds()) })
	if due {
		return false
	}
	order := restOrder{Term: term, Patience: max(restPatient*r.beat, restPatient*r.hasty).Milliseconds(), Index: index}
	ctx, cancel := context.WithTimeout(r.c.ctx, 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var fresh atomic.Bool
	for _, id := range peers {
		wg.Go(func() {
			sent := time.Now()
			if err := r.c.ask(ctx, id, nil, protoAdmin, "rest", order, nil); err != nil {
				r.c.log.Debug("a peer does not rest", "cell", r.c.cfg.Cell, "peer", id, "error", err)
				return
			}
			r.mu.Lock()
			r.any.Store(true) // ahead of the look at touched: either touch sees this, or it is seen here
			p := r.peers[raft.ServerID(id)]
			agreed := p != nil && p.term == term && r.touched.Load() == touched
			if agreed && !p.rests {
				fresh.Store(true)
				p.rests, p.heard = true, later(p.heard, sent.Add(-r.beat)) // the next heartbeat is sent
			}
			r.mu.Unlock()
			if !agreed { // there is work meanwhile
				r.hasten(raft.ServerID(id), term)
			}
		})
	}
	wg.Wait()
	if fresh.Load() {
		r.c.trans.CloseStreams()
	}
	return true
}

// ordered is the other end of consider and wake.
func (r *rest) ordered(from pcm.PeerID, o restOrder) error {
	r.own.Lock()
	defer r.own.Unlock()
	leader, _ := r.c.watch.current()
	switch {
	case leader != from || r.c.raft.CurrentTerm() != o.Term || r.c.raft.State() != raft.Follower:
		return pcm.Errorf(pcm.Conflict, "peer %s does not lead this one in term %d", pcm.Short(from), o.Term)
	case o.Patience <= 0:
		return r.hurry()
	case r.c.raft.CommitIndex() < o.Index:
		return retryf("entry %d is not known to be committed here yet", o.Index)
	}
	patience := max(time.Duration(min(o.Patience, restMost.Milliseconds()))*time.Millisecond, r.hasty)
	if err := r.reload(patience); err != nil {
		return err
	}
	if !r.patient.Swap(true) {
		r.c.trans.CloseStreams()
	}
	if r.lapse != nil {
		r.lapse.Stop()
	}
	r.lapse = time.AfterFunc(restFor, r.end)
	return nil
}

// end has this peer wait for its leader no longer than usual.
func (r *rest) end() {
	if !r.patient.Load() {
		return
	}
	r.own.Lock()
	defer r.own.Unlock()
	if err := r.hurry(); err != nil {
		r.c.log.Warn("Raft keeps its long timeouts", "cell", r.c.cfg.Cell, "error", err)
	}
}

// hurry needs own. Raft looks at once how long ago it has heard of its leader.
func (r *rest) hurry() error {
	if !r.patient.Load() {
		return nil
	}
	r.lapse.Stop()
	r.patient.Store(false)
	return r.reload(r.hasty)
}

// reload needs own.
func (r *rest) reload(timeout time.Duration) error {
	return r.c.reload(func(rc *raft.ReloadableConfig) { rc.HeartbeatTimeout, rc.ElectionTimeout = timeout, timeout })
}

// reload changes a part of Raft's settings.
func (c *Cell) reload(change func(*raft.ReloadableConfig)) error {
	c.reloading.Lock()
	defer c.reloading.Unlock()
	have := c.raft.ReloadableConfig()
	want := have
	if change(&want); want == have {
		return nil
	}
	return c.raft.ReloadConfig(want)
}

// rouse looks whether the leader is there, if this peer waits for it patiently; if it
// is not, this peer is patient no more, and stands for election in the usual time. It
// doesn't wait.
func (r *rest) rouse() {
	if !r.patient.Load() || !r.rousing.CompareAndSwap(false, true) {
		return
	}
	if !r.c.start(func() {
		defer r.rousing.Store(false)
		leader, changed := r.c.watch.current()
		if leader != "" && !r.c.connected(leader) {
			timer := time.NewTimer(rouseTime)
			defer timer.Stop()
			select {
			case <-changed:
				return
			case <-timer.C:
			case <-r.c.ctx.Done():
			}
		} else if time.Since(r.roused) < rouseEvery {
			return
		}
		r.roused = time.Now()
		ctx, cancel := context.WithTimeout(r.c.ctx, rouseTime)
		defer cancel()
		if leader == "" || r.c.ask(ctx, leader, changed, protoAdmin, "leads", r.c.raft.CurrentTerm(), nil) != nil {
			r.end()
		}
	}) {
		r.rousing.Store(false)
	}
}

// leadsIn answers rouse.
func (c *Cell) leadsIn(body []byte) error {
	var term uint64
	if err := pcm.Unmarshal(body, &term); err != nil {
		return err
	}
	if have := c.leads(); have != term || have == 0 {
		return errNotLeader
	}
	return nil
}
