package consensus

import (
	"context"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// gate is a store that can be held up.
type gate struct {
	raft.LogStore
	mu   sync.Mutex
	open chan struct{} // closed when it is; nil: it is
}

func (g *gate) StoreLogs(logs []*raft.Log) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open != nil {
		<-open
	}
	return g.LogStore.StoreLogs(logs)
}

// hold has writes wait until what it returns is called.
func (g *gate) hold() (release func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	open := make(chan struct{})
	g.open = open
	return sync.OnceFunc(func() {
		g.mu.Lock()
		g.open = nil
		g.mu.Unlock()
		close(open)
	})
}

// The followers store an entry while the leader does; but nothing is committed
// or acknowledged before the leader has stored it.
func TestAheadOfOwnDisk(t *testing.T) {
	gates := map[pcm.PeerID]*gate{}
	nodes := three(t, func(c *Config) {
		g := &gate{}
		gates[c.Self] = g
		c.store = func(s raft.LogStore) raft.LogStore {
			g.LogStore = s
			return g
		}
	})
	leader := leaderOf(t, nodes...)
	await(t, "two pipelines in use", func() bool {
		leader.propose(t, leader.cfg.Self)
		leader.ahead.mu.Lock()
		defer leader.ahead.mu.Unlock()
		used := 0
		for p := range leader.ahead.pipelines {
			p.sending.Lock()
			if p.last != nil {
				used++
			}
			p.sending.Unlock()
		}
		return used == 2
	})
	lastOf := func(n *node) uint64 {
		last, err := n.logs.LastIndex()
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	before := lastOf(leader)
	for _, n := range nodes {
		n.await("the same entries", func() bool { return lastOf(n) == before })
	}
	release := gates[leader.cfg.Self].hold()
	defer release()
	_, s := leader.command(leader.cfg.Self)
	acknowledged := make(chan error, 1)
	go func() {
		_, err := leader.Propose(context.WithoutCancel(t.Context()), s)
		acknowledged <- err
	}()
	for _, n := range nodes {
		if n != leader {
			n.await("the entry that the leader has not stored", func() bool { return lastOf(n) > before })
		}
	}
	if at := leader.raft.CommitIndex(); at > before || lastOf(leader) > before {
		t.Errorf("entry %d is committed, and the leader has stored %d", at, lastOf(leader))
	}
	select {
	case err := <-acknowledged:
		t.Fatalf("the leader has acknowledged what it has not stored (%v)", err)
	default:
	}
	release()
	if err := <-acknowledged; err != nil {
		t.Fatal(err)
	}
}

// manual answers what is sent when it is told to.
type manual struct {
	mu      sync.Mutex
	sent    []*raft.AppendEntriesRequest
	over    bool
	answers chan raft.AppendFuture
}

func (p *manual) closed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.over
}

func (p *manual) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, args)
	return answered{args, resp}, nil
}
func (p *manual) Consumer() <-chan raft.AppendFuture { return p.answers }

func (p *manual) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
	return nil
}

func (p *manual) requests() []*raft.AppendEntriesRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// answer answers the request of a number.
func (p *manual) answer(n int, success bool) {
	p.answers <- answered{p.requests()[n], &raft.AppendEntriesResponse{Success: success}}
}

func entries(term uint64, from, to uint64) *raft.AppendEntriesRequest {
	req := &raft.AppendEntriesRequest{Term: term, PrevLogEntry: from - 1, PrevLogTerm: term}
	for i := from; i <= to; i++ {
		req.Entries = append(req.Entries, &raft.Log{Index: i, Term: term})
	}
	return req
}

// What went ahead of Raft is not sent again, and Raft gets the answers to what it
// has asked for, and no others.
func TestPipelineAhead(t *testing.T) {
	begin := func(t *testing.T) (*steadyPipeline, *manual) {
		m := &manual{answers: make(chan raft.AppendFuture)}
		p := steadyOver(t, m)
		t.Cleanup(func() { p.Close() })
		p.AppendEntries(entries(2, 5, 4), nil) // none: up to 4 all is there
		m.answer(0, true)
		if f := <-p.Consumer(); len(f.Request().Entries) > 0 {
			t.Fatal("another answer")
		}
		p.first <- entries(2, 5, 6)
		await(t, "the entries ahead", func() bool { return len(m.requests()) == 2 })
		return p, m
	}
	next := func(t *testing.T, p *steadyPipeline, want *raft.AppendEntriesRequest, success bool) {
		t.Helper()
		if f := <-p.Consumer(); f.Request() != want || f.Response().Success != success {
			t.Errorf("the answer is to %+v, success %v", f.Request(), f.Response().Success)
		}
	}
	t.Run("asked, then answered", func(t *testing.T) {
		p, m := begin(t)
		req := entries(2, 5, 6)
		p.AppendEntries(req, nil)
		m.answer(1, true)
		next(t, p, req, true)
		if n := len(m.requests()); n != 2 {
			t.Errorf("%d requests were sent", n)
		}
	})
	t.Run("answered, then asked", func(t *testing.T) {
		p, m := begin(t)
		m.answer(1, false)
		req := entries(2, 5, 6)
		p.AppendEntries(req, nil)
		next(t, p, req, false)
	})
	t.Run("more is asked for", func(t *testing.T) {
		p, m := begin(t)
		p.first <- entries(2, 7, 7)
		await(t, "more entries ahead", func() bool { return len(m.requests()) == 3 })
		req := entries(2, 5, 9)
		p.AppendEntries(req, nil)
		m.answer(1, true)
		m.answer(2, true)
		m.answer(3, true)
		next(t, p, req, true)
		if rest := m.requests()[3]; rest.PrevLogEntry != 7 || rest.PrevLogTerm != 2 || len(rest.Entries) != 2 || rest.Entries[0].Index != 8 {
			t.Errorf("sent was %+v", rest)
		}
	})
	t.Run("a message without entries between", func(t *testing.T) {
		p, m := begin(t)
		empty, req := entries(2, 5, 4), entries(2, 5, 6)
		p.AppendEntries(empty, nil)
		m.answer(1, true) // nobody asked for it yet
		m.answer(2, true)
		next(t, p, empty, true)
		p.AppendEntries(req, nil)
		next(t, p, req, true)
	})
	t.Run("something else is asked for", func(t *testing.T) {
		p, m := begin(t)
		req := entries(2, 3, 4)
		p.AppendEntries(req, nil)
		m.answer(1, true)
		m.answer(2, true)
		next(t, p, req, true)
	})
	t.Run("not behind what was sent, or of another term", func(t *testing.T) {
		p, m := begin(t)
		p.first <- entries(2, 9, 9)
		p.first <- entries(3, 7, 7)
		p.first <- entries(2, 7, 7)
		await(t, "the entry that follows", func() bool { return len(m.requests()) == 3 })
		if last := m.requests()[2]; last.Term != 2 || last.Entries[0].Index != 7 {
			t.Errorf("sent was %+v", last)
		}
	})
}
