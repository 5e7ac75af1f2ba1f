package consensus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// A peer whose folder is empty though it isn't founding its cell may be new, or
// it may have lost what it voted and stored (a disk, a restored backup). As a
// voter it could then vote a second time, or help to elect a leader that lacks
// what it had acknowledged. So it takes no part in elections until the leader has
// made sure that it is a replica by the newest configuration; the leader demotes
// it if it is not. From then on it earns its vote as any newcomer does.
//
// The mark is a file in the folder, so that a restart in between changes nothing.
type memory struct {
	path string
	lost atomic.Bool
}

const fileForgot = "forgot"

// recall finds out whether the folder's memory is whole. empty says that Raft
// finds nothing in it and that no cell is founded.
func (m *memory) recall(dir string, empty bool) error {
	m.path = filepath.Join(dir, fileForgot)
	if empty {
		if err := writeFile(m.path, []byte("This peer takes no part in elections until the cell's leader has taken it in as a replica. Don't remove this file.\n")); err != nil {
			return err
		}
	}
	_, err := os.Stat(m.path)
	m.lost.Store(err == nil)
	return nil
}

// regain takes the mark away.
func (m *memory) regain() error {
	if err := os.Remove(m.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return pcm.Errorf(pcm.Internal, "can't remove %s: %w", m.path, err)
	}
	m.lost.Store(false)
	return nil
}

// forgot tells whether this peer takes no part in elections.
func (c *Cell) forgot() bool { return c.memory.lost.Load() }

var errForgot = pcm.Errorf(pcm.Unavailable, "this peer has lost its memory of the cell and takes no part in elections")

// mute is the transport of a peer that has lost its memory: no votes go in or out.
type mute struct {
	steadyTransport
	memory *memory
	rpcs   chan raft.RPC
}

// muted wraps a transport if the memory is lost; run forwards what may pass until ctx ends.
func (m *memory) muted(trans steadyTransport) (t raft.Transport, run func(context.Context)) {
	if !m.lost.Load() {
		return trans, nil
	}
	w := &mute{steadyTransport: trans, memory: m, rpcs: make(chan raft.RPC)}
	return w, func(ctx context.Context) {
		for {
			select {
			case rpc := <-trans.Consumer():
				if m.lost.Load() && votes(rpc.Command) {
					rpc.Respond(nil, errForgot)
					continue
				}
				select {
				case w.rpcs <- rpc:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func votes(command any) bool {
	switch command.(type) {
	case *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return true
	}
	return false
}

// Consumer implements raft.Transport.
func (w *mute) Consumer() <-chan raft.RPC { return w.rpcs }

// RequestVote implements raft.Transport.
func (w *mute) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if w.memory.lost.Load() {
		return errForgot
	}
	return w.steadyTransport.RequestVote(id, to, req, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (w *mute) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if w.memory.lost.Load() {
		return errForgot
	}
	return w.steadyTransport.RequestPreVote(id, to, req, resp)
}

// remind tells replicas without memory that they may begin anew. That they are
// replicas stands in the newest configuration there is: the voters confirm, after
// it was read, that nobody else leads.
func (m *members) remind() {
	f := m.c.raft.GetConfiguration()
	var whom []pcm.PeerID
	m.mu.Lock()
	for _, s := range f.Configuration().Servers {
		if h := m.health[pcm.PeerID(s.ID)]; h != nil && h.answers && h.forgot && s.Suffrage != raft.Voter {
			whom = append(whom, pcm.PeerID(s.ID))
		}
	}
	m.mu.Unlock()
	if len(whom) == 0 || m.c.raft.CommitIndex() < f.Index() || m.c.confirm(m.c.ctx) != nil {
		return
	}
	ctx, cancel := context.WithTimeout(m.c.ctx, changeTimeout)
	defer cancel()
	for _, id := range whom {
		if err := m.c.ask(ctx, id, nil, protoAdmin, "remember", f.Index(), nil); err != nil {
			m.c.log.Debug("a replica can't begin anew yet", "cell", m.c.cfg.Cell, "peer", id, "error", err)
		}
	}
}

// reminded is the other end of remind: the configuration at that index, or a
// later one, must be here, committed, with this peer as a replica.
func (c *Cell) reminded(from pcm.PeerID, body []byte) error {
	var index uint64
	if err := pcm.Unmarshal(body, &index); err != nil {
		return err
	}
	if leader, _ := c.watch.current(); leader != from {
		return pcm.Errorf(pcm.Forbidden, "peer %s doesn't lead the cell", pcm.Short(from))
	}
	f := c.raft.GetConfiguration()
	if f.Index() < index || c.raft.CommitIndex() < f.Index() {
		return retryf("the configuration of entry %d is not here yet", index)
	}
	for _, s := range f.Configuration().Servers {
		if s.ID == raft.ServerID(c.cfg.Self) && s.Suffrage == raft.Voter {
			return retryf("this peer is a voter by its newest configuration")
		}
	}
	if !c.forgot() {
		return nil
	}
	if err := c.memory.regain(); err != nil {
		return err
	}
	c.log.Info("this peer begins anew as a replica", "cell", c.cfg.Cell)
	return nil
}
