package consensus

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// steadyTransport is Raft's transport with pipelines that can't hang and over which entries
// go ahead of Raft, and votes that aren't lost to streams of a process that is no more. Raft gives a
// pipeline up at the first answer that is no success, and takes no more of its
// answers; if it is just sending then, and as many are under way as may be, it waits for room that
// only taking answers would make: for ever, while its heartbeats go on. A leader
// in which that has befallen a majority leads on and commits nothing.
//
// It also spares a cell at rest its messages (see rest), and takes a follower that
// comes back at once ([steadyTransport.AppendEntries]). What it does about heartbeats is in beats.
type steadyTransport struct {
	*raft.NetworkTransport
	c *Cell
}

// AppendEntriesPipeline implements raft.Transport.
func (t steadyTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	p, err := newSteadyPipeline(
		func() (raft.AppendPipeline, error) { return t.NetworkTransport.AppendEntriesPipeline(id, target) },
		func(last passed, req *raft.AppendEntriesRequest) bool { return t.c.rest.spare(id, last, req) })
	if err != nil {
		return nil, err
	}
	t.c.ahead.add(p)
	return p, nil
}

// RequestVote implements raft.Transport.
func (t steadyTransport) RequestVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if !t.mayAsk(req.Term) {
		return errNoCandidate
	}
	if err := t.c.notices.mute(); err != nil {
		return err
	}
	return past(func() error { return t.NetworkTransport.RequestVote(id, to, req, resp) })
}

// RequestPreVote implements raft.WithPreVote.
func (t steadyTransport) RequestPreVote(id raft.ServerID, to raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.c.notices.mute(); err != nil {
		return err
	}
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

// Raft waits longer and longer with each append that fails, up to 10 s, and a follower
// that came back would be left behind for as long. So a failure is not passed on, but
// tried again, while the follower is to have what is sent. What waits for it stays in
// memory; where that is more than the cache holds, Raft has it back.
const (
	appendRetryLeast = 50 * time.Millisecond
	appendRetryMost  = 500 * time.Millisecond
)

// AppendEntries implements raft.Transport.
func (t steadyTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	send := func() error { return t.NetworkTransport.AppendEntries(id, target, req, resp) }
	if req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0 {
		return t.c.rest.heartbeat(id, req, resp, send)
	}
	size := 0
	for _, l := range req.Entries {
		size += sizeOfLog(l)
	}
	for wait := appendRetryLeast; ; wait = min(2*wait, appendRetryMost) {
		err := send()
		if err == nil || size > cacheBytes || !t.mayRetry(id, req.Term) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-t.c.ctx.Done():
			return err
		}
		*resp = raft.AppendEntriesResponse{}
	}
}

// mayRetry tells whether this peer still leads in a term, and another is to have its log.
func (t steadyTransport) mayRetry(id raft.ServerID, term uint64) bool {
	return t.c.ctx.Err() == nil && t.c.rest.begun.Load() && t.c.raft.State() == raft.Leader && t.c.raft.CurrentTerm() == term && t.c.isMember(pcm.PeerID(id))
}

// steadyPipeline takes the answers that Raft doesn't want any more, keeps those to what
// was sent ahead of Raft until it asks for them, and doesn't send what needs not be sent.
// While nothing needs to be sent it has no stream, whose buffers are half a MiB.
type steadyPipeline struct {
	open  func() (raft.AppendPipeline, error)
	out   chan raft.AppendFuture
	done  chan struct{}
	once  sync.Once
	over  func()                                                 // called when it is closed; nil: nothing
	first chan *raft.AppendEntriesRequest                        // to be sent ahead of Raft
	spare func(told passed, req *raft.AppendEntriesRequest) bool // nil: all is sent

	streamMu sync.Mutex
	stream   raft.AppendPipeline      // nil: there is none now
	opened   chan raft.AppendPipeline // to pass on answers of
	flying   atomic.Int64             // requests whose answers haven't come

	sending sync.Mutex                 // held by who sends
	last    *raft.AppendEntriesRequest // of Raft
	next    uint64                     // index behind the last entry that was sent
	told    passed                     // by the last append without entries, if none with some was sent since
	early   []*sent                    // ahead of Raft, which didn't ask for them yet, oldest first

	mu     sync.Mutex // never held while something is sent
	known  map[*raft.AppendEntriesRequest]*sent
	late   []raft.AppendFuture // Raft has asked for these after they were answered
	notify chan struct{}       // holds a token when late has grown
}

// sent is a request that isn't quite one of Raft's.
type sent struct {
	req    *raft.AppendEntriesRequest
	asked  *raft.AppendEntriesRequest // Raft's, to which its answer is an answer
	answer raft.AppendFuture          // that came before Raft asked
	drop   bool                       // nobody wants its answer
}

// answerTo is an answer as one to another request.
type answerTo struct {
	raft.AppendFuture
	asked *raft.AppendEntriesRequest
}

// Request implements raft.AppendFuture.
func (a answerTo) Request() *raft.AppendEntriesRequest { return a.asked }

// maxAnswers bounds the answers that wait for Raft to take them.
const maxAnswers = 8

// newSteadyPipeline opens a pipeline. open opens its stream, now and whenever it is wanted again.
func newSteadyPipeline(open func() (raft.AppendPipeline, error), spare func(told passed, req *raft.AppendEntriesRequest) bool) (*steadyPipeline, error) {
	stream, err := open()
	if err != nil {
		return nil, err
	}
	p := &steadyPipeline{
		open: open, stream: stream, opened: make(chan raft.AppendPipeline), spare: spare, out: make(chan raft.AppendFuture), done: make(chan struct{}),
		first: make(chan *raft.AppendEntriesRequest, 1), notify: make(chan struct{}, 1), known: map[*raft.AppendEntriesRequest]*sent{},
	}
	go p.pass(stream.Consumer())
	go p.sendAhead()
	return p, nil
}

// send needs sending.
func (p *steadyPipeline) send(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.streamMu.Lock()
	stream := p.stream
	p.streamMu.Unlock()
	if stream == nil {
		var err error
		if stream, err = p.open(); err != nil {
			return nil, err
		}
		select {
		case p.opened <- stream:
		case <-p.done:
		}
		p.streamMu.Lock()
		p.stream = stream
		p.streamMu.Unlock()
		select {
		case <-p.done: // perhaps before there was a stream to close
			stream.Close()
			return nil, raft.ErrPipelineShutdown
		default:
		}
	}
	p.flying.Add(1)
	return stream.AppendEntries(args, resp)
}

// park closes the stream if no answer is to come. It needs sending.
func (p *steadyPipeline) park() {
	if p.flying.Load() > 0 {
		return
	}
	p.streamMu.Lock()
	stream := p.stream
	p.stream = nil
	p.streamMu.Unlock()
	if stream != nil {
		stream.Close()
	}
}

// passed is up to where an append told that there are entries, and that they are committed.
type passed struct{ last, commit uint64 }

// pass hands answers on, up to and with the first that is no success.
func (p *steadyPipeline) pass(answers <-chan raft.AppendFuture) {
	over := false
	var ready []raft.AppendFuture
	for {
		in, out, head := answers, p.out, raft.AppendFuture(nil)
		switch {
		case len(ready) == 0:
			out = nil
		case len(ready) >= maxAnswers:
			in, head = nil, ready[0]
		default:
			head = ready[0]
		}
		select {
		case f := <-in:
			p.flying.Add(-1)
			if f = p.answered(f); f != nil && !over {
				ready = append(ready, f)
			}
		case stream := <-p.opened:
			answers = stream.Consumer()
		case <-p.notify:
			p.mu.Lock()
			late := p.late
			p.late = nil
			p.mu.Unlock()
			if !over {
				ready = append(ready, late...)
			}
		case out <- head:
			if ready = ready[1:]; head.Error() != nil || !head.Response().Success {
				over, ready = true, nil
			}
		case <-p.done:
			return
		}
	}
}

// answered is what Raft gets of an answer; nil: nothing now.
func (p *steadyPipeline) answered(f raft.AppendFuture) raft.AppendFuture {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.known[f.Request()]
	switch {
	case s == nil:
		return f
	case s.drop:
	case s.asked != nil:
		f = answerTo{f, s.asked}
		delete(p.known, s.req)
		return f
	default:
		s.answer = f
		return nil
	}
	delete(p.known, s.req)
	return nil
}

// ask makes the answer to a request one to Raft's.
func (p *steadyPipeline) ask(s *sent, asked *raft.AppendEntriesRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.asked = asked; s.answer == nil {
		return
	}
	delete(p.known, s.req)
	p.late = append(p.late, answerTo{s.answer, asked})
	select {
	case p.notify <- struct{}{}:
	default:
	}
}

// forget has the answers to requests dropped.
func (p *steadyPipeline) forget(list []*sent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range list {
		if s.drop = true; s.answer != nil {
			delete(p.known, s.req)
		}
	}
}

// register makes a request known before it is sent.
func (p *steadyPipeline) register(req, asked *raft.AppendEntriesRequest) *sent {
	s := &sent{req: req, asked: asked}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[req] = s
	return s
}

// pending is what AppendEntries returns where the answer is one to an earlier
// request, or none will come. Raft looks at answers where they are consumed, and never at this.
type pending struct{ raft.AppendFuture }

// AppendEntries implements raft.AppendPipeline. What of a request went ahead is not
// sent again.
func (p *steadyPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.sending.Lock()
	defer p.sending.Unlock()
	p.last = args
	if args == nil || len(args.Entries) == 0 {
		if args != nil && len(p.early) == 0 {
			p.next = args.PrevLogEntry + 1
		}
		if args != nil {
			// What is not sent is as good as lost on the way.
			if p.spare != nil && p.spare(p.told, args) {
				p.park()
				return pending{}, nil
			}
			p.told = passed{args.PrevLogEntry, args.LeaderCommitIndex}
		}
		return p.send(args, resp)
	}
	p.told = passed{}
	from, to := args.Entries[0].Index, args.Entries[len(args.Entries)-1].Index
	covered := 0 // of early
	at := from   // index behind what is covered
	for covered < len(p.early) {
		first, last, term := p.early[covered].span()
		if first != at || last > to || term != args.Term {
			break
		}
		covered, at = covered+1, last+1
	}
	early := p.early
	if covered < len(early) { // Raft goes on elsewhere
		p.forget(early[covered:])
	}
	p.early, p.next = nil, to+1
	switch {
	case covered == 0:
		return p.send(args, resp)
	case at == to+1:
		p.forget(early[:covered-1])
		p.ask(early[covered-1], args)
		return pending{}, nil
	}
	p.forget(early[:covered])
	rest := *args
	rest.PrevLogEntry, rest.PrevLogTerm, rest.Entries = at-1, args.Entries[at-1-from].Term, args.Entries[at-from:]
	p.register(&rest, args)
	return p.send(&rest, resp)
}

// span is the first and last index of a request with entries, and its term.
func (s *sent) span() (first, last, term uint64) {
	return s.req.Entries[0].Index, s.req.Entries[len(s.req.Entries)-1].Index, s.req.Term
}

// sendAhead sends what is to be sent ahead of Raft, if Raft hasn't sent it by then.
func (p *steadyPipeline) sendAhead() {
	for {
		select {
		case req := <-p.first:
			p.sending.Lock()
			if last := p.last; last != nil && last.Term == req.Term && p.next == req.Entries[0].Index {
				own := *req
				own.RPCHeader = last.RPCHeader
				s := p.register(&own, nil)
				p.early, p.next = append(p.early, s), req.Entries[len(req.Entries)-1].Index+1
				// Where it fails, the stream is broken: Raft will find out by what it asks for.
				if _, err := p.send(&own, new(raft.AppendEntriesResponse)); err != nil {
					p.forget(p.early)
					p.early, p.next = nil, 0
				}
			}
			p.sending.Unlock()
		case <-p.done:
			return
		}
	}
}

// Consumer implements raft.AppendPipeline.
func (p *steadyPipeline) Consumer() <-chan raft.AppendFuture { return p.out }

// Close implements raft.AppendPipeline.
func (p *steadyPipeline) Close() error {
	p.once.Do(func() {
		close(p.done)
		if p.over != nil {
			p.over()
		}
	})
	p.streamMu.Lock()
	stream := p.stream
	p.streamMu.Unlock()
	if stream == nil {
		return nil
	}
	return stream.Close()
}
