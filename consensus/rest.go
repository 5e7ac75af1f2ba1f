package consensus

import (
	"context"
	"runtime/debug"
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
	restSlow    = 5                // halves of its heartbeat timeout that Raft has at a leader at rest: it beats every quarter to half of one then, and gives up leading after a whole one without an answer
	restPatient = 4                // beats that a peer at rest waits for, before it gives the leader up
	restFor     = time.Minute      // how long a peer rests that hears no more of it; the leader takes it to rest for half as long
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
// Raft's safety hangs on time. Heartbeats go as questions of ours then ([rest.beaten]), and Raft's
// streams, with half a MiB of buffers each, are closed.
//
// Work wakes the cell at once: the leader beats as ever, and tells the peers. A peer
// at rest that wants something of the leader, or is asked for its vote, looks whether the
// leader is there, and is impatient if it is not. A leader whose connections have
// ended is the succession's matter, first.
type rest struct {
	c     *Cell
	after time.Duration
	beat  time.Duration
	lasts time.Duration  // see restFor
	hasty time.Duration  // heartbeat timeout of a peer that doesn't rest
	hear  func(raft.RPC) // how Raft takes heartbeats, see beats
	begun atomic.Bool    // Raft is there

	touched atomic.Uint64 // grows with each piece of work
	any     atomic.Bool   // a peer may be at rest

	// Of the leader.
	mu    sync.Mutex
	peers map[raft.ServerID]*restPeer
	seen  uint64 // of touched
	since time.Time

	own  sync.Mutex  // held while Raft's timeouts are changed
	slow atomic.Bool // they are those of a leader at rest

	// Of a peer that follows.
	patient atomic.Bool
	lapse   *time.Timer
	rousing atomic.Bool
	roused  time.Time // of the goroutine that rouses
}

// restPeer is a peer as the leader of a term sees it.
type restPeer struct {
	term   uint64
	rests  bool
	agreed time.Time // when it was asked to, the last time that it said yes
	heard  time.Time // when the last heartbeat was sent that it has answered
}

func newRest(c *Cell) *rest {
	r := &rest{c: c, after: restAfter, beat: restBeat, lasts: restFor, peers: map[raft.ServerID]*restPeer{}}
	if c.cfg.restAfter > 0 {
		r.after = c.cfg.restAfter
	}
	if c.cfg.restBeat > 0 {
		r.beat = c.cfg.restBeat
	}
	if c.cfg.restFor > 0 {
		r.lasts = c.cfg.restFor
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
	if r.any.Load() || r.slow.Load() {
		r.wake()
	}
}

// wake has all peers beat and wait as if the cell had never rested.
func (r *rest) wake() {
	r.quicken()
	r.mu.Lock()
	r.any.Store(false)
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

// quicken has Raft beat as often as ever, and now.
func (r *rest) quicken() {
	if r.slow.Load() {
		r.end()
	}
}

// slacken has Raft beat less often, if nothing has touched the cell since it was found at rest.
func (r *rest) slacken(term, touched uint64) {
	r.own.Lock()
	defer r.own.Unlock()
	if r.slow.Load() || r.touched.Load() != touched || r.c.leads() != term {
		return
	}
	if err := r.reload(restSlow * r.hasty / 2); err != nil {
		r.c.log.Warn("Raft keeps its short timeouts", "cell", r.c.cfg.Cell, "error", err)
		return
	}
	r.slow.Store(true)
	trim()
}

// trimAfter is how long after a cell begins to rest its process gives memory back: the store is closed by then.
const trimAfter = storeIdle + 5*time.Second

var trimming struct {
	sync.Mutex
	timer *time.Timer // nil: no cell has rested yet
}

// trim has this process give back, a while after the last of its cells began to rest, the memory that
// it needed while they worked: megabytes each. By itself the runtime keeps as much as it has last used, as it has no reason to look again.
func trim() {
	trimming.Lock()
	defer trimming.Unlock()
	if trimming.timer == nil {
		trimming.timer = time.AfterFunc(trimAfter, debug.FreeOSMemory)
		return
	}
	trimming.timer.Reset(trimAfter)
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
	if p.rests && time.Since(p.agreed) > r.lasts/2 {
		p.rests = false // it wasn't asked to rest on
	}
	rests := p.rests && p.term == req.Term
	if rests && time.Since(p.heard) < r.beat {
		r.mu.Unlock()
		*resp = raft.AppendEntriesResponse{Term: req.Term, Success: true}
		return nil
	}
	r.mu.Unlock()
	sent := time.Now()
	var err error
	if rests && r.beatOn(id, req.Term) == nil {
		*resp = raft.AppendEntriesResponse{Term: req.Term, Success: true}
	} else {
		err = send()
	}
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

// beatOn has a peer at rest hear of its leader. After an error Raft's own heartbeat
// has to tell: a release may not know the question.
func (r *rest) beatOn(id raft.ServerID, term uint64) error {
	ctx, cancel := context.WithTimeout(r.c.ctx, r.hasty)
	defer cancel()
	return r.c.ask(ctx, pcm.PeerID(id), nil, protoAdmin, "beat", term, nil)
}

// beaten is the other end of beatOn. To Raft it is a heartbeat of the leader that it knows.
func (r *rest) beaten(from pcm.PeerID, body []byte) error {
	var term uint64
	if err := pcm.Unmarshal(body, &term); err != nil {
		return err
	}
	if leader, _ := r.c.watch.current(); leader != from || r.c.raft.CurrentTerm() != term || !r.patient.Load() {
		return pcm.Errorf(pcm.Conflict, "this peer does not rest in term %d, with peer %s as its leader", term, pcm.Short(from))
	}
	answer := make(chan raft.RPCResponse, 1)
	r.hear(raft.RPC{Command: heartbeatOf(from, term), RespChan: answer})
	select {
	case got := <-answer:
		if resp, ok := got.Response.(*raft.AppendEntriesResponse); !ok || got.Error != nil || !resp.Success {
			return errNotLeader
		}
		return nil
	default: // Raft has ended
		return &retryable{errClosing}
	}
}

// restsIn tells whether a peer rests in a term, as far as its leader knows.
func (r *rest) restsIn(id raft.ServerID, term uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.peers[id]
	return p != nil && p.rests && p.term == term
}

// spare tells whether an append to a peer at rest says nothing new after the last one.
func (r *rest) spare(id raft.ServerID, last passed, req *raft.AppendEntriesRequest) bool {
	if !r.any.Load() || len(req.Entries) > 0 || last != (passed{req.PrevLogEntry, req.LeaderCommitIndex}) {
		return false
	}
	return r.restsIn(id, req.Term)
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
			if agreed {
				p.agreed = sent
			}
			if agreed && !p.rests {
				p.rests, p.heard = true, later(p.heard, sent.Add(-r.beat)) // the next heartbeat is sent
			}
			r.mu.Unlock()
			if !agreed { // there is work meanwhile
				r.hasten(raft.ServerID(id), term)
			}
		})
	}
	wg.Wait()
	if r.resting() {
		r.slacken(term, touched)
		r.c.trans.CloseStreams()
	} else {
		r.quicken()
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
		trim()
	}
	r.c.links.rest(protoPropose)
	if r.lapse != nil {
		r.lapse.Stop()
	}
	r.lapse = time.AfterFunc(r.lasts, r.end)
	return nil
}

// end has this peer's Raft beat, and wait for its leader, as usual.
func (r *rest) end() {
	if !r.patient.Load() && !r.slow.Load() {
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
	if r.lapse != nil {
		r.lapse.Stop()
	}
	r.patient.Store(false)
	r.slow.Store(false)
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
