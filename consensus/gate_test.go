package consensus

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// gated is a host whose streams can be held up, both ways, as those of a peer that is
// stopped, or cut off without a word.
type gated struct {
	host.Host
	mu   sync.Mutex
	open chan struct{} // closed while messages pass
}

func behindGate(h host.Host) *gated {
	g := &gated{Host: h, open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gated) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = make(chan struct{})
}

func (g *gated) lift() {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
	default:
		close(g.open)
	}
}

func (g *gated) pass(until time.Time) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	var late <-chan time.Time
	if !until.IsZero() {
		late = time.After(time.Until(until))
	}
	select {
	case <-open:
		return nil
	default:
	}
	select {
	case <-open:
		return nil
	case <-late:
		return os.ErrDeadlineExceeded
	}
}

func (g *gated) NewStream(ctx context.Context, to peer.ID, pids ...protocol.ID) (network.Stream, error) {
	until, ok := ctx.Deadline()
	if !ok {
		until = time.Now().Add(10 * time.Second)
	}
	if err := g.pass(until); err != nil {
		return nil, err
	}
	s, err := g.Host.NewStream(ctx, to, pids...)
	if err != nil {
		return nil, err
	}
	return &gatedStream{Stream: s, g: g}, nil
}

func (g *gated) SetStreamHandler(pid protocol.ID, handle network.StreamHandler) {
	g.Host.SetStreamHandler(pid, func(s network.Stream) { handle(&gatedStream{Stream: s, g: g}) })
}

type gatedStream struct {
	network.Stream
	g           *gated
	mu          sync.Mutex
	read, write time.Time
}

func (s *gatedStream) deadline(t *time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *t
}

func (s *gatedStream) set(t time.Time, which ...*time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range which {
		*w = t
	}
}

func (s *gatedStream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if e := s.g.pass(s.deadline(&s.read)); e != nil {
		return 0, e
	}
	return n, err
}

func (s *gatedStream) Write(p []byte) (int, error) {
	if err := s.g.pass(s.deadline(&s.write)); err != nil {
		return 0, err
	}
	return s.Stream.Write(p)
}

func (s *gatedStream) SetDeadline(t time.Time) error {
	s.set(t, &s.read, &s.write)
	return s.Stream.SetDeadline(t)
}

func (s *gatedStream) SetReadDeadline(t time.Time) error {
	s.set(t, &s.read)
	return s.Stream.SetReadDeadline(t)
}

func (s *gatedStream) SetWriteDeadline(t time.Time) error {
	s.set(t, &s.write)
	return s.Stream.SetWriteDeadline(t)
}
