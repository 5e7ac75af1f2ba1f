package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// beats is how this peer takes heartbeats. Raft takes them beside its main loop, so that it
// answers while its disk writes, and changes its state and term there too. A leader that is deposed
// so while it waits for work stores what comes next under the term of the one that
// deposed it; as index and term are then those of an entry of that leader, it keeps its own in the
// place of it, and applies that (github.com/hashicorp/raft/issues/695).
//
// So only heartbeats that change nothing go beside the loop: those to a follower, in its
// term. All others go through it. A peer may cease to be a follower just when Raft takes one;
// it asks for votes only after that, and not if it was made a follower by it.
type beats struct {
	mu sync.RWMutex // held to read while Raft takes a heartbeat beside its loop
}

// SetHeartbeatHandler implements raft.Transport.
func (t steadyTransport) SetHeartbeatHandler(take func(raft.RPC)) {
	t.c.rest.hear = func(rpc raft.RPC) { // before anybody is answered
		req := rpc.Command.(*raft.AppendEntriesRequest)
		if t.beside(req.Term, func() { take(rpc) }) {
			return
		}
		// To Raft it is the same with this term, which belongs to no entry; to its transport it is no heartbeat.
		own, resp := *req, raft.AppendEntriesResponse{}
		own.PrevLogTerm = 1
		self := raft.ServerID(t.c.cfg.Self)
		if err := t.NetworkTransport.AppendEntries(self, raft.ServerAddress(self), &own, &resp); err != nil {
			rpc.Respond(nil, err)
			return
		}
		rpc.Respond(&resp, nil)
	}
	t.NetworkTransport.SetHeartbeatHandler(t.c.rest.hear)
}

// beside calls take if a heartbeat of that term changes nothing here.
func (t steadyTransport) beside(term uint64, take func()) bool {
	t.c.beats.mu.RLock()
	defer t.c.beats.mu.RUnlock()
	if !t.c.stands(raft.Follower, term) {
		return false
	}
	take()
	return true
}

// mayAsk tells whether this peer still is the candidate of a term, when all heartbeats
// have been taken that found a follower here.
func (t steadyTransport) mayAsk(term uint64) bool {
	t.c.beats.mu.Lock()
	defer t.c.beats.mu.Unlock()
	return t.c.stands(raft.Candidate, term)
}

// stands tells whether Raft is up, and in which state and term.
func (c *Cell) stands(as raft.RaftState, term uint64) bool {
	return c.rest.begun.Load() && c.raft.State() == as && c.raft.CurrentTerm() == term
}

var errNoCandidate = retryf("this peer doesn't stand for election any more")
