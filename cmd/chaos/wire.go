package main

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Rule is how a peer's messages to one other peer fare. What comes the other way
// has a rule of its own, at the other peer.
type Rule struct {
	Cut    bool          // nothing gets through; it waits, as TCP's would
	Delay  time.Duration // of each write
	Jitter time.Duration // at most so much more
	Loss   float64       // of the writes: they come by retransmission only, later
	Rate   int           // bytes per second; 0: no bound
	Reset  bool          // streams break when this rule comes into force
}

// Bounds of the wire.
const (
	wireQueue  = 1 << 20                // bytes of one stream that are under way
	retransmit = 200 * time.Millisecond // TCP's least time-out
)

// wire is a host whose streams suffer from faults. The connections below, and what
// libp2p says over them to itself, are spared.
type wire struct {
	host.Host

	mu      sync.Mutex
	rules   map[peer.ID]Rule
	changed chan struct{} // closed and replaced with each change
	streams map[*wireStream]struct{}
}

func newWire(h host.Host) *wire {
	return &wire{Host: h, rules: map[peer.ID]Rule{}, changed: make(chan struct{}), streams: map[*wireStream]struct{}{}}
}

// set replaces all rules.
func (w *wire) set(rules map[peer.ID]Rule) {
	w.mu.Lock()
	w.rules = rules
	close(w.changed)
	w.changed = make(chan struct{})
	var broken []*wireStream
	for s := range w.streams {
		if rules[s.to].Reset {
			broken = append(broken, s)
		}
	}
	w.mu.Unlock()
	for _, s := range broken {
		s.Reset()
	}
}

func (w *wire) rule(to peer.ID) (Rule, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rules[to], w.changed
}

// NewStream implements host.Host.
func (w *wire) NewStream(ctx context.Context, to peer.ID, pids ...protocol.ID) (network.Stream, error) {
	for {
		r, changed := w.rule(to)
		if !r.Cut {
			if r.Delay > 0 {
				select {
				case <-time.After(r.Delay):
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			break
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s, err := w.Host.NewStream(ctx, to, pids...)
	if err != nil {
		return nil, err
	}
	return w.wrap(s), nil
}

// SetStreamHandler implements host.Host.
func (w *wire) SetStreamHandler(pid protocol.ID, handle network.StreamHandler) {
	w.Host.SetStreamHandler(pid, func(s network.Stream) { handle(w.wrap(s)) })
}

func (w *wire) wrap(s network.Stream) *wireStream {
	ws := &wireStream{Stream: s, w: w, to: s.Conn().RemotePeer(), room: make(chan struct{}, 1), ended: make(chan struct{})}
	w.mu.Lock()
	w.streams[ws] = struct{}{}
	w.mu.Unlock()
	return ws
}

// wireStream keeps what is written until its time has come.
type wireStream struct {
	network.Stream
	w  *wire
	to peer.ID

	mu       sync.Mutex
	queue    []chunk
	bytes    int
	pumping  bool
	err      error
	deadline time.Time
	room     chan struct{}

	once  sync.Once
	ended chan struct{}
}

type chunk struct {
	data []byte
	due  time.Time
}

// Write implements net.Conn.
func (s *wireStream) Write(p []byte) (int, error) {
	r, _ := s.w.rule(s.to)
	s.mu.Lock()
	if r == (Rule{}) && !s.pumping {
		s.mu.Unlock() // a stream has one writer
		return s.Stream.Write(p)
	}
	for s.err == nil && s.bytes > wireQueue {
		late := s.deadline
		s.mu.Unlock()
		var timeout <-chan time.Time
		if !late.IsZero() {
			timeout = time.After(time.Until(late))
		}
		select {
		case <-s.room:
		case <-timeout:
			return 0, os.ErrDeadlineExceeded
		case <-s.ended:
			return 0, network.ErrReset
		}
		s.mu.Lock()
	}
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	due := time.Now().Add(r.Delay)
	if r.Jitter > 0 {
		due = due.Add(rand.N(r.Jitter))
	}
	if r.Loss > 0 && rand.Float64() < r.Loss {
		due = due.Add(retransmit)
	}
	s.queue = append(s.queue, chunk{append([]byte(nil), p...), due})
	s.bytes += len(p)
	if !s.pumping {
		s.pumping = true
		go s.pump()
	}
	return len(p), nil
}

// pump passes the queue on, in its order, and ends when it is empty.
func (s *wireStream) pump() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.err != nil {
			s.pumping, s.queue = false, nil
			s.mu.Unlock()
			return
		}
		c := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		err := s.await(c)
		if err == nil {
			_, err = s.Stream.Write(c.data)
		}
		s.mu.Lock()
		s.bytes -= len(c.data)
		if err != nil && s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
		select {
		case s.room <- struct{}{}:
		default:
		}
	}
}

// await waits until a chunk may be passed on.
func (s *wireStream) await(c chunk) error {
	for {
		r, changed := s.w.rule(s.to)
		var wait <-chan time.Time
		if !r.Cut {
			until := time.Until(c.due)
			if r == (Rule{}) {
				until = 0 // the fault is over
			}
			if r.Rate > 0 {
				until = max(until, time.Duration(len(c.data))*time.Second/time.Duration(r.Rate))
			}
			if until <= 0 {
				return nil
			}
			wait = time.After(until)
		}
		select {
		case <-wait:
			return nil
		case <-changed:
		case <-s.ended:
			return network.ErrReset
		}
	}
}

func (s *wireStream) end() {
	s.once.Do(func() {
		close(s.ended)
		s.w.mu.Lock()
		delete(s.w.streams, s)
		s.w.mu.Unlock()
	})
}

// SetWriteDeadline implements net.Conn.
func (s *wireStream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	s.deadline = t
	pumping := s.pumping
	s.mu.Unlock()
	if pumping {
		return nil
	}
	return s.Stream.SetWriteDeadline(t)
}

// SetDeadline implements net.Conn.
func (s *wireStream) SetDeadline(t time.Time) error {
	s.SetWriteDeadline(t)
	return s.Stream.SetReadDeadline(t)
}

// Reset implements network.Stream.
func (s *wireStream) Reset() error {
	s.end()
	return s.Stream.Reset()
}

// ResetWithError implements network.Stream.
func (s *wireStream) ResetWithError(code network.StreamErrorCode) error {
	s.end()
	return s.Stream.ResetWithError(code)
}

// Close implements network.Stream.
func (s *wireStream) Close() error {
	s.end()
	return s.Stream.Close()
}
