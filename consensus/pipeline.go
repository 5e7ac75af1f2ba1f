package consensus

import (
	"errors"
	"net"
	"sync"

	"github.com/hashicorp/raft"
)

// steadyTransport is Raft's transport with pipelines that can't hang, and votes that aren't
// lost to streams of a process that is no more. Raft gives a
// pipeline up at the first answer that is no success, and takes no more of its
// answers; if it is just sending then, and as many are under way as may be, it waits for room that
// only taking answers would make: for ever, while its heartbeats go on. A leader
// in which that has befallen a majority leads on and commits nothing.
type steadyTransport struct{ *raft.NetworkTransport }

// AppendEntriesPipeline implements raft.Transport.
func (t steadyTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	inner, err := t.NetworkTransport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return newSteadyPipeline(inner), nil
}

// RequestVote implements raft.Transport.
func (t steadyTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	return past(func() error { return t.NetworkTransport.RequestVote(id, to, req, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t steadyTransport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	return past(func() error { return t.NetworkTransport.RequestPreVote(id, to, req, resp) })
}

// past asks again over another stream, as often as there may be idle ones from before the
// other process was started: Raft asks once, and would wait for its next election. To ask
// twice for the same vote is harmless.
func past(ask func() error) error {
	var err error
	var dial *dialError
	var late net.Error
	for range maxPool + 1 {
		if err = ask(); err == nil || errors.As(err, &dial) || errors.As(err, &late) && late.Timeout() {
			break
		}
	}
	return err
}

// steadyPipeline takes the answers that Raft doesn't want any more.
type steadyPipeline struct {
	raft.AppendPipeline
	out  chan raft.AppendFuture
	done chan struct{}
	once sync.Once
}

func newSteadyPipeline(inner raft.AppendPipeline) *steadyPipeline {
	p := &steadyPipeline{AppendPipeline: inner, out: make(chan raft.AppendFuture), done: make(chan struct{})}
	go p.pass()
	return p
}

// pass hands answers on, up to and with the first that is no success.
func (p *steadyPipeline) pass() {
	over := false
	for {
		select {
		case f := <-p.AppendPipeline.Consumer():
			if over {
				continue
			}
			over = f.Error() != nil || !f.Response().Success
			select {
			case p.out <- f:
			case <-p.done:
				return
			}
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *steadyPipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline.
func (p *steadyPipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	return p.AppendPipeline.Close()
}
