package consensus

import (
	"bufio"
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
)

// Bounds of a link, a stream that carries many requests at a time.
const (
	maxPending   = 4096             // requests that wait for an answer on one link
	dialTimeout  = 5 * time.Second  // to open a stream
	writeTimeout = 10 * time.Second // for one write: a peer that doesn't read is gone
)

// link is the asking end.
type link struct {
	stream network.Stream
	out    chan request
	done   chan struct{} // closed when the stream has failed

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan response
	err     error // why the stream has failed
}

func newLink(s network.Stream) *link {
	return &link{stream: s, out: make(chan request, 256), done: make(chan struct{}), pending: map[uint64]chan response{}}
}

func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		l.stream.Reset()
		close(l.done)
	}
}

// failure is for callers of a link that has failed.
func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return retryf("the stream to %s failed: %w", pcm.Short(pcm.PeerID(l.stream.Conn().RemotePeer().String())), l.err)
}

func (l *link) alive() bool {
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}

func (l *link) write() {
	w := newFrameWriter(l.stream)
	for {
		select {
		case r := <-l.out:
			if err := w.write(r, func() bool { return len(l.out) > 0 }); err != nil {
				l.fail(err)
				return
			}
		case <-l.done:
			return
		}
	}
}

func (l *link) read() {
	r := bufio.NewReaderSize(l.stream, readBuffer)
	for {
		var resp response
		if err := readFrame(r, &resp); err != nil {
			l.fail(err)
			return
		}
		l.mu.Lock()
		ch := l.pending[resp.ID]
		delete(l.pending, resp.ID)
		l.mu.Unlock()
		if ch != nil {
			ch <- resp // has room for the one answer
		}
	}
}

// call asks and waits. When the link fails or abandon is closed, it returns a
// retryable error: whether the request had an effect is then unknown.
func (l *link) call(ctx context.Context, abandon <-chan struct{}, method string, body []byte) ([]byte, error) {
	ch := make(chan response, 1)
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil, l.failure()
	}
	if len(l.pending) >= maxPending {
		l.mu.Unlock()
		return nil, pcm.Errorf(pcm.Busy, "%d requests wait for the leader: retry in a moment", maxPending)
	}
	l.next++
	id := l.next
	l.pending[id] = ch
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, id)
		l.mu.Unlock()
	}()
	select {
	case l.out <- request{ID: id, Method: method, Body: body}:
	case <-l.done:
		return nil, l.failure()
	case <-abandon:
		return nil, retryf("the cell's leader has changed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case resp := <-ch:
		switch {
		case resp.Err != nil && resp.Retry:
			return nil, &retryable{resp.Err}
		case resp.Err != nil:
			return nil, resp.Err
		}
		return resp.Body, nil
	case <-l.done:
		return nil, l.failure()
	case <-abandon:
		return nil, retryf("the cell's leader has changed")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// links keeps one link open to each peer and protocol of one cell that was asked
// lately.
type links struct {
	host  host.Host
	cell  pcm.CellID
	start func(func()) bool // runs a goroutine that its owner waits for; false when that is closing

	mu    sync.Mutex
	slots map[linkKey]*linkSlot
}

type linkKey struct {
	peer  pcm.PeerID
	proto protocol.ID
}

type linkSlot struct {
	sem chan struct{} // holds the right to look at and replace link
	l   *link
}

// maxLinks bounds the links; over it, idle ones to other peers are closed.
const maxLinks = 64

func newLinks(h host.Host, cell pcm.CellID, start func(func()) bool) *links {
	return &links{host: h, cell: cell, start: start, slots: map[linkKey]*linkSlot{}}
}

func (ls *links) get(ctx context.Context, to pcm.PeerID, proto string) (*link, error) {
	id, err := peer.Decode(string(to))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not a peer ID", to)
	}
	key := linkKey{to, protocolOf(ls.cell, proto)}
	ls.mu.Lock()
	slot := ls.slots[key]
	if slot == nil {
		if len(ls.slots) >= maxLinks {
			ls.evict(func(linkKey) bool { return true })
		}
		slot = &linkSlot{sem: make(chan struct{}, 1)}
		ls.slots[key] = slot
	}
	ls.mu.Unlock()
	select {
	case slot.sem <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-slot.sem }()
	if slot.l != nil && slot.l.alive() {
		return slot.l, nil
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := ls.host.NewStream(dial, id, key.proto)
	if err != nil {
		return nil, retryf("can't reach %s: %w", pcm.Short(to), err)
	}
	l := newLink(s)
	if !ls.start(l.write) || !ls.start(l.read) {
		l.fail(errClosing)
		return nil, errClosing
	}
	slot.l = l
	return l, nil
}

// rest closes the links of one protocol that nobody waits on.
func (ls *links) rest(proto string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.evict(func(k linkKey) bool { return k.proto == protocolOf(ls.cell, proto) })
}

// evict closes those links that may go and that nobody waits on. It needs the lock.
func (ls *links) evict(may func(linkKey) bool) {
	for k, slot := range ls.slots {
		if !may(k) {
			continue
		}
		select {
		case slot.sem <- struct{}{}:
		default:
			continue // being dialled
		}
		idle := true
		if slot.l != nil {
			slot.l.mu.Lock()
			idle = len(slot.l.pending) == 0
			slot.l.mu.Unlock()
			if idle {
				slot.l.fail(errClosing)
			}
		}
		if idle {
			delete(ls.slots, k)
		}
		<-slot.sem
	}
}

// closeAll fails every link. No more are made once the cell is closing.
func (ls *links) closeAll() {
	ls.mu.Lock()
	slots := make([]*linkSlot, 0, len(ls.slots))
	for _, s := range ls.slots {
		slots = append(slots, s)
	}
	ls.mu.Unlock()
	for _, s := range slots {
		s.sem <- struct{}{}
		if s.l != nil {
			s.l.fail(errClosing)
		}
		<-s.sem
	}
}

// ask sends one request to a peer of the cell and decodes its answer into out.
func (c *Cell) ask(ctx context.Context, to pcm.PeerID, abandon <-chan struct{}, proto, method string, in, out any) error {
	return c.links.ask(ctx, to, abandon, proto, method, in, out)
}

// ask sends one request to a peer and decodes its answer into out.
func (ls *links) ask(ctx context.Context, to pcm.PeerID, abandon <-chan struct{}, proto, method string, in, out any) error {
	body, err := pcm.Marshal(in)
	if err != nil {
		return err
	}
	l, err := ls.get(ctx, to, proto)
	if err != nil {
		return err
	}
	answer, err := l.call(ctx, abandon, method, body)
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	return pcm.Unmarshal(answer, out)
}

// maxStreams bounds the streams of one protocol that one peer may hold open
// here, and maxPeersIn the peers.
const (
	maxStreams = 4
	maxPeersIn = 1024
)

// answerer takes one request. It calls reply exactly once, from any goroutine,
// and doesn't block.
type answerer func(from pcm.PeerID, method string, body []byte, reply func(body []byte, err error))

// serve answers requests of one protocol; at most limit of each stream at a time.
func (c *Cell) serve(proto string, limit int, allow func(pcm.PeerID) bool, answer answerer) {
	c.handleStreams(proto, allow, func(s network.Stream, from pcm.PeerID) {
		sem := make(chan struct{}, limit)
		out := make(chan response, limit) // sem bounds the answers: a reply never blocks
		gone := make(chan struct{})
		written := make(chan struct{})
		go func() {
			defer close(written)
			w := newFrameWriter(s)
			more := func() bool { return len(out) > 0 }
			for {
				select {
				case resp := <-out:
					err := w.write(resp, more)
					if pcm.ErrorCode(err) == pcm.TooLarge {
						err = w.write(response{ID: resp.ID, Err: pcm.AsError(err)}, more)
					}
					<-sem
					if err != nil {
						s.Reset() // ends the reader as well
						return
					}
				case <-gone:
					return
				}
			}
		}()
		r := bufio.NewReaderSize(s, readBuffer)
		for {
			var req request
			if err := readFrame(r, &req); err != nil {
				break
			}
			select {
			case sem <- struct{}{}:
			case <-written:
			case <-c.ctx.Done():
			}
			if c.ctx.Err() != nil {
				break
			}
			answer(from, req.Method, req.Body, func(body []byte, err error) {
				resp := response{ID: req.ID, Body: body}
				if err != nil {
					resp = response{ID: req.ID, Err: pcm.AsError(err), Retry: isRetryable(err)}
				}
				select {
				case out <- resp:
				case <-written:
				}
			})
		}
		close(gone)
		<-written
	})
}

// handleStreams lets allowed peers open streams of one protocol. The handler
// owns the stream until it returns; Close resets it.
func (c *Cell) handleStreams(proto string, allow func(pcm.PeerID) bool, handle func(network.Stream, pcm.PeerID)) {
	var mu sync.Mutex
	open := map[pcm.PeerID]int{}
	id := c.protocol(proto)
	c.protocols = append(c.protocols, id)
	c.cfg.Host.SetStreamHandler(id, func(s network.Stream) {
		from := pcm.PeerID(s.Conn().RemotePeer().String())
		if !allow(from) {
			s.Reset()
			return
		}
		mu.Lock()
		full := open[from] >= maxStreams || len(open) >= maxPeersIn
		if !full {
			open[from]++
		}
		mu.Unlock()
		if full {
			s.Reset()
			return
		}
		if !c.start(func() {
			defer func() {
				mu.Lock()
				if open[from]--; open[from] == 0 {
					delete(open, from)
				}
				mu.Unlock()
				s.Reset()
			}()
			stop := context.AfterFunc(c.ctx, func() { s.Reset() })
			defer stop()
			handle(s, from)
		}) {
			s.Reset()
		}
	})
}
