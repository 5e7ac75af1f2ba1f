package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// confirmer asks the voters whether they follow this peer. Raft's VerifyLeader would do
// for less: it counts replicas like voters, and takes any answer that comes in for one to its
// question, be it to what was sent long before (see ahead), or one that nobody gave
// (see rest). Who was deposed in between would not notice, and answer a read with what was.
//
// One question is under way at a time. Those who come meanwhile share the next one.
type confirmer struct {
	c *Cell

	mu     sync.Mutex
	asking bool
	next   *confirmation // is not asked yet; nil: nobody waits
}

// confirmation is a question that many may wait for.
type confirmation struct {
	done chan struct{} // closed when it is answered
	err  error         // set before
}

// confirmBeats is how many heartbeat timeouts a leader waits for a majority: without
// one it has given up leading by then.
const confirmBeats = 2

// confirm makes sure that no other peer led the cell when it was called: a
// majority of the voters has followed this one after that.
func (c *Cell) confirm(ctx context.Context) error {
	q := c.confirmer.ask()
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return retryf("too few voters have said in time that they follow this peer: %w", ctx.Err())
	case <-c.ctx.Done():
		return &retryable{errClosing}
	}
}

// ask is the next question, and has it asked.
func (f *confirmer) ask() *confirmation {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = &confirmation{done: make(chan struct{})}
	}
	q := f.next
	if !f.asking {
		f.asking = true
		go f.run() // what waits for it ends with the cell
	}
	return q
}

func (f *confirmer) run() {
	for {
		f.mu.Lock()
		q := f.next
		f.next, f.asking = nil, q != nil
		f.mu.Unlock()
		if q == nil {
			return
		}
		q.err = f.poll()
		close(q.done)
	}
}

// poll asks all voters once.
func (f *confirmer) poll() error {
	term := f.c.leads()
	if term == 0 {
		return errNotLeader
	}
	voters := f.c.voters()
	answers := make(chan error, len(voters))
	for _, v := range voters {
		if v == f.c.cfg.Self {
			answers <- nil
			continue
		}
		go func() { answers <- f.c.pulse(raft.ServerID(v), term) }() // the transport bounds it
	}
	late := time.NewTimer(confirmBeats * f.c.rest.hasty)
	defer late.Stop()
	good, bad := 0, 0
	for good <= len(voters)/2 {
		select {
		case err := <-answers:
			if err == nil {
				good++
				continue
			}
			if bad++; 2*bad >= len(voters) {
				return retryf("too few voters follow this peer: %w", err)
			}
		case <-late.C:
			return retryf("too few voters have said in time that they follow this peer")
		case <-f.c.ctx.Done():
			return &retryable{errClosing}
		}
	}
	return nil
}

// pulse sends one heartbeat of a term in which this peer leads; an error if the
// other one doesn't follow.
func (c *Cell) pulse(id raft.ServerID, term uint64) error {
	if c.rest.restsIn(id, term) && c.rest.beatOn(id, term) == nil {
		return nil
	}
	req := heartbeatOf(c.cfg.Self, term)
	var resp raft.AppendEntriesResponse
	if err := past(func() error { return c.trans.AppendEntries(id, raft.ServerAddress(id), req, &resp) }); err != nil {
		return err
	}
	if !resp.Success {
		return errNotLeader
	}
	return nil
}

// heartbeatOf is a heartbeat of a term's leader.
func heartbeatOf(leader pcm.PeerID, term uint64) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader), Addr: []byte(leader)},
		Term:      term,
	}
}

// leads is the term in which this peer leads, as far as it knows; 0: it doesn't.
func (c *Cell) leads() uint64 {
	term := c.proposer.ready.Load()
	if c.raft.State() != raft.Leader || c.raft.CurrentTerm() != term {
		return 0
	}
	return term
}

// lastCommitted is the last entry that is committed as this leader knows and changes what
// is read. It may not be applied here yet: followers that are quicker, as this peer
// encodes a snapshot, say, have shown it to those who read from them, and what
// is read later elsewhere must not be older.
func (c *Cell) lastCommitted() (uint64, error) {
	for i := c.raft.CommitIndex(); i > c.Applied(); i-- {
		var l raft.Log
		if err := c.cache.GetLog(i, &l); err != nil {
			return 0, retryf("entry %d can't be read: %w", i, err)
		}
		if l.Type == raft.LogCommand || l.Type == raft.LogConfiguration { // of others the state machine doesn't hear
			return i, nil
		}
	}
	return c.Applied(), nil
}
