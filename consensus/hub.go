package consensus

import (
	"bufio"
	"context"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// Bounds of the events' way.
const (
	subscriberQueue = 4096             // batches that a local subscriber may lag behind
	pushQueue       = 1024             // frames that a member may lag behind before its stream is cut
	pushedKept      = 4096             // Raft indexes whose pushed events are remembered
	eventsAlive     = 10 * time.Second // between frames of an idle stream
)

// hub hands out what was committed: to local subscribers all of it, as it is
// applied here; to other members what concerns them, so that they needn't wait
// for Raft to tell them of the commit. It never holds Apply up.
type hub struct {
	c *Cell

	mu      sync.Mutex
	subs    map[*subscription]struct{}
	members map[pcm.PeerID]*pushStream
	index   uint64           // last that was applied here
	pushed  map[uint64][]int // index → positions that arrived by push before they were applied here
	order   []uint64         // keys of pushed, oldest first

	byPush, byApply atomic.Uint64 // events delivered to local subscribers
}

type subscription struct{ ch chan []pcm.Event }

type pushStream struct {
	frames chan *eventFrame
	lost   chan struct{} // closed when frames overflowed
	once   sync.Once
}

// eventFrame carries events of one entry to one member. A frame without events
// only tells the log time.
type eventFrame struct {
	Index  uint64      `cbor:"1,keyasint,omitempty"`
	At     []int       `cbor:"2,keyasint,omitempty"` // positions within the entry's events
	Events []pcm.Event `cbor:"3,keyasint,omitempty"`
	Term   uint64      `cbor:"4,keyasint,omitempty"`
	Stamp  int64       `cbor:"5,keyasint,omitempty"` // log time at the sender; 0: not known

	led uint64 // the entry's term, if this peer led in it; not sent
}

func newHub(c *Cell) *hub {
	return &hub{c: c, subs: map[*subscription]struct{}{}, members: map[pcm.PeerID]*pushStream{}, pushed: map[uint64][]int{}}
}

// Events is a subscription to what is committed from now on, until ctx ends.
// Each batch is of one entry. Events come at least once, usually once; those
// that concern this peer may come before the entry is applied here. A
// subscriber that lags too far behind finds its channel closed: it must look at
// the state again and subscribe anew.
func (c *Cell) Events(ctx context.Context) <-chan []pcm.Event {
	s := &subscription{ch: make(chan []pcm.Event, subscriberQueue)}
	h := c.hub
	h.mu.Lock()
	h.subs[s] = struct{}{}
	h.mu.Unlock()
	stop := func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.drop(s)
	}
	context.AfterFunc(ctx, stop)
	context.AfterFunc(c.ctx, stop)
	return s.ch
}

// drop needs the lock.
func (h *hub) drop(s *subscription) {
	if _, ok := h.subs[s]; ok {
		delete(h.subs, s)
		close(s.ch)
	}
}

// deliver needs the lock.
func (h *hub) deliver(events []pcm.Event) {
	if len(events) == 0 {
		return
	}
	for s := range h.subs {
		select {
		case s.ch <- events:
		default:
			h.c.log.Warn("a subscriber of events is too slow and was cut off", "cell", h.c.cfg.Cell)
			h.drop(s)
		}
	}
}

// applied takes the events of an entry that was applied here. led is the entry's
// term if this peer has proposed it as the leader, else 0.
func (h *hub) applied(index, led uint64, events []pcm.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = index
	if len(events) == 0 {
		return
	}
	for id, m := range h.members {
		var f eventFrame
		for i, e := range events {
			if slices.Contains(e.To, id) {
				f.At, f.Events = append(f.At, i), append(f.Events, e)
			}
		}
		if len(f.Events) == 0 {
			continue
		}
		f.Index, f.led = index, led
		select {
		case m.frames <- &f:
		default:
			m.once.Do(func() { close(m.lost) })
		}
	}
	if early, ok := h.pushed[index]; ok {
		delete(h.pushed, index)
		var rest []pcm.Event
		for i, e := range events {
			if !slices.Contains(early, i) {
				rest = append(rest, e)
			}
		}
		events = rest
	}
	h.byApply.Add(uint64(len(events)))
	h.deliver(events)
}

// jumped says that a snapshot took the state to an index: who listens must look again.
func (h *hub) jumped(index uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.index = index
	for s := range h.subs {
		h.drop(s)
	}
}

// arrived takes events that another member pushed.
func (h *hub) arrived(f eventFrame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.Index <= h.index || len(f.At) != len(f.Events) {
		return // applied here in the meantime, or nonsense
	}
	early := h.pushed[f.Index]
	if early == nil {
		if len(h.order) >= pushedKept {
			delete(h.pushed, h.order[0])
			h.order = h.order[1:]
		}
		h.order = append(h.order, f.Index)
	}
	var fresh []pcm.Event
	for i, at := range f.At {
		if !slices.Contains(early, at) {
			early, fresh = append(early, at), append(fresh, f.Events[i])
		}
	}
	h.pushed[f.Index] = early
	h.byPush.Add(uint64(len(fresh)))
	h.deliver(fresh)
}

// push serves one peer's stream of events. A peer outside the cell, as the driver
// of a job that buys here, gets those that concern it like a member.
func (h *hub) push(s network.Stream, to pcm.PeerID) {
	m := &pushStream{frames: make(chan *eventFrame, pushQueue), lost: make(chan struct{})}
	h.mu.Lock()
	if old := h.members[to]; old != nil {
		old.once.Do(func() { close(old.lost) })
	}
	h.members[to] = m
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		if h.members[to] == m {
			delete(h.members, to)
		}
		h.mu.Unlock()
	}()
	gone := make(chan struct{})
	go func() { // the member sends nothing but its greeting: reading tells when it is gone
		defer close(gone)
		io.CopyN(io.Discard, s, 64)
	}()
	defer func() { s.Reset(); <-gone }()
	w := newFrameWriter(s)
	send := func(f eventFrame) bool { return w.write(f, func() bool { return len(m.frames) > 0 }) == nil }
	over, commits := make(chan struct{}), make(chan commit, 1)
	defer close(over)
	go h.c.announce(to, commits, over)
	member := false // only members have a log that could be told of a commit
	alive := time.NewTicker(eventsAlive)
	defer alive.Stop()
	if !send(h.logTime()) {
		return
	}
	for {
		select {
		case f := <-m.frames:
			if !send(*f) {
				return
			}
			if member = member || h.c.isMember(to); member && f.led > 0 && len(m.frames) == 0 {
				offer(commits, commit{f.Index, f.led})
			}
		case <-alive.C:
			if !send(h.logTime()) {
				return
			}
		case <-m.lost:
			return
		case <-gone:
			return
		}
	}
}

// logTime is a frame that tells the log time, if this peer leads.
func (h *hub) logTime() eventFrame {
	if h.c.leads() == 0 {
		return eventFrame{}
	}
	term, stamp := h.c.clock.read()
	return eventFrame{Term: term, Stamp: stamp}
}

// follow keeps a stream of events open to the leader, whoever that is.
func (h *hub) follow() {
	const least, most = 50 * time.Millisecond, 2 * time.Second
	wait := least
	for h.c.ctx.Err() == nil {
		leader, changed := h.c.watch.current()
		if leader == "" || leader == h.c.cfg.Self {
			select {
			case <-changed:
			case <-h.c.ctx.Done():
			}
			continue
		}
		began := time.Now()
		err := h.receive(leader, changed)
		if time.Since(began) > most {
			wait = least
		}
		if err == nil { // the leader has changed
			continue
		}
		h.c.log.Debug("the stream of events ended", "cell", h.c.cfg.Cell, "leader", leader, "error", err)
		select {
		case <-changed:
		case <-time.After(wait):
			wait = min(2*wait, most)
		case <-h.c.ctx.Done():
		}
	}
}

// receive takes events from the leader until it changes (nil) or the stream fails.
func (h *hub) receive(leader pcm.PeerID, changed <-chan struct{}) error {
	id, err := peer.Decode(string(leader))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(h.c.ctx, dialTimeout)
	defer cancel()
	s, err := h.c.cfg.Host.NewStream(ctx, id, h.c.protocol(protoEvents))
	if err != nil {
		return err
	}
	over, finish := context.WithCancel(h.c.ctx)
	defer finish()
	context.AfterFunc(over, func() { s.Reset() })
	defer s.Reset()
	// The protocol is negotiated with the first byte that is written.
	s.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.Write([]byte{1}); err != nil {
		return err
	}
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-changed:
			s.Reset()
		case <-over.Done():
		}
	}()
	defer func() { finish(); <-watching }()
	r := bufio.NewReaderSize(s, readBuffer)
	for {
		s.SetReadDeadline(time.Now().Add(3 * eventsAlive))
		var f eventFrame
		if err := readFrame(r, &f); err != nil {
			select {
			case <-changed:
				return nil
			default:
				return err
			}
		}
		if f.Stamp > 0 {
			h.c.clock.observe(f.Term, f.Stamp)
		}
		if len(f.Events) > 0 {
			h.arrived(f)
		}
	}
}
