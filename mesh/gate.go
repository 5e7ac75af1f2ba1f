package mesh

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// session is what is known of a connected peer; it lives from its first
// connection to the end of its last. Its fields are guarded by Mesh.mu.
type session struct {
	peer    peer.ID
	settled chan struct{} // closed once passport or err is set
	open    bool          // passport checked, both sides agreed
	err     error         // why not open; set before settled is closed

	passport pcm.Passport
	signed   pcm.Signed
	rtt      time.Duration // of the last exchange; 0: none yet
	seenAt   time.Time

	greeting int // hellos under way
	joining  int // joins under way
	waiters  int // streams that wait at the gate
}

// settle must be called with Mesh.mu held.
func (s *session) settle() {
	select {
	case <-s.settled:
	default:
		close(s.settled)
	}
}

// session finds or begins a session. Mesh.mu must be held.
func (m *Mesh) sessionLocked(p peer.ID) *session {
	s := m.sessions[p]
	if s == nil {
		s = &session{peer: p, settled: make(chan struct{})}
		m.sessions[p] = s
	}
	return s
}

// endSession drops a session and wakes who waits for it. Mesh.mu must be held.
func (m *Mesh) endSessionLocked(s *session, err error) {
	if m.sessions[s.peer] == s {
		delete(m.sessions, s.peer)
	}
	s.open = false
	if s.err == nil {
		s.err = err
	}
	s.settle()
}

// admitted returns the passport of a peer that may use the gated protocols now.
func (m *Mesh) admitted(p peer.ID) (pcm.Passport, error) {
	m.mu.Lock()
	s := m.sessions[p]
	if s == nil || !s.open {
		m.mu.Unlock()
		return pcm.Passport{}, pcm.Errorf(pcm.Unauthorized, "peer %s has shown no passport", short(p))
	}
	passport := s.passport
	m.mu.Unlock()
	if err := m.stillValid(passport); err != nil {
		m.cut(s, err)
		return pcm.Passport{}, err
	}
	return passport, nil
}

// stillValid re-checks what time and bans can change.
func (m *Mesh) stillValid(p pcm.Passport) error {
	now := m.cfg.Now()
	if now.Add(-pcm.Skew).UnixMilli() > p.NotAfter {
		return pcm.Errorf(pcm.Unauthorized, "passport of %s expired at %s", pcm.Short(p.Peer), time.UnixMilli(p.NotAfter).UTC().Format(time.RFC3339))
	}
	return m.bans.check(p, now)
}

// waitOpen waits until p's hello is through. inbound: only while a hello is
// under way, so that a stranger's streams don't pile up.
func (m *Mesh) waitOpen(ctx context.Context, p peer.ID, inbound bool) (pcm.Passport, error) {
	if pass, err := m.admitted(p); err == nil {
		return pass, nil
	}
	m.mu.Lock()
	s := m.sessions[p]
	if inbound && (s == nil || s.greeting == 0 || s.waiters >= maxGateWaiters) {
		m.mu.Unlock()
		return pcm.Passport{}, pcm.Errorf(pcm.Unauthorized, "peer %s has shown no passport", short(p))
	}
	if s == nil {
		s = m.sessionLocked(p)
	}
	s.waiters++
	m.mu.Unlock()
	defer func() { m.mu.Lock(); s.waiters--; m.mu.Unlock() }()

	t := time.NewTimer(helloTimeout)
	defer t.Stop()
	select {
	case <-s.settled:
		m.mu.Lock()
		err := s.err
		m.mu.Unlock()
		if err != nil {
			return pcm.Passport{}, err
		}
		return m.admitted(p)
	case <-ctx.Done():
		return pcm.Passport{}, pcm.Errorf(pcm.Unavailable, "peer %s did not show its passport in time: %w", short(p), ctx.Err())
	case <-t.C:
		return pcm.Passport{}, pcm.Errorf(pcm.Unavailable, "peer %s did not show its passport within %s", short(p), helloTimeout)
	case <-m.ctx.Done():
		return pcm.Passport{}, errClosed
	}
}

var errClosed = pcm.Errorf(pcm.Unavailable, "this peer is shutting down")

// condemn settles a session with the reason why its peer may not stay. The
// connections stand until cut, so that the reason can still be told.
func (m *Mesh) condemn(s *session, why error) {
	m.mu.Lock()
	if s.err != nil || m.sessions[s.peer] != s {
		m.mu.Unlock()
		return
	}
	wasOpen := s.open
	s.open, s.err = false, why
	s.settle()
	m.mu.Unlock()
	switch {
	case wasOpen:
		m.log.Warn("peer cut off", "peer", short(s.peer), "reason", why)
		m.touch(pcm.PeerID(s.peer.String()))
	case pcm.ErrorCode(why) == pcm.Unavailable:
		m.log.Debug("hello failed", "peer", short(s.peer), "reason", why)
	default:
		m.log.Warn("hello refused", "peer", short(s.peer), "reason", why)
	}
	m.roster.refused(s.peer, why, m.cfg.Now())
}

// cut condemns a session and closes its connections.
func (m *Mesh) cut(s *session, why error) {
	m.condemn(s, why)
	m.mu.Lock()
	current := m.sessions[s.peer] == s
	if current {
		m.endSessionLocked(s, why)
	}
	m.mu.Unlock()
	if current {
		m.base.Network().ClosePeer(s.peer)
	}
}

// gatedHost is a host on which only peers with a checked passport exist.
type gatedHost struct {
	host.Host
	m *Mesh
}

func (g *gatedHost) SetStreamHandler(id protocol.ID, h network.StreamHandler) {
	g.Host.SetStreamHandler(id, g.guard(h))
}

func (g *gatedHost) SetStreamHandlerMatch(id protocol.ID, match func(protocol.ID) bool, h network.StreamHandler) {
	g.Host.SetStreamHandlerMatch(id, match, g.guard(h))
}

func (g *gatedHost) guard(h network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		if _, err := g.m.waitOpen(g.m.ctx, s.Conn().RemotePeer(), true); err != nil {
			s.ResetWithError(network.StreamGated)
			return
		}
		h(s)
	}
}

// Connect dials with every address known and returns when the peer has been admitted.
func (g *gatedHost) Connect(ctx context.Context, pi peer.AddrInfo) error {
	if g.Host.Network().Connectedness(pi.ID) != network.Connected {
		pi.Addrs = append(pi.Addrs[:len(pi.Addrs):len(pi.Addrs)], g.m.roster.addrs(pi.ID)...)
		if err := g.Host.Connect(ctx, pi); err != nil {
			return pcm.Errorf(pcm.Unavailable, "can't reach peer %s: %w", short(pi.ID), err)
		}
	}
	_, err := g.m.waitOpen(ctx, pi.ID, false)
	return err
}

// NewStream waits for the peer's hello, bounded by ctx and helloTimeout.
func (g *gatedHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	if _, err := g.m.admitted(p); err != nil {
		if noDial, _ := network.GetNoDial(ctx); noDial && g.Host.Network().Connectedness(p) != network.Connected {
			return nil, network.ErrNoConn
		}
		if err := g.Connect(ctx, peer.AddrInfo{ID: p}); err != nil {
			return nil, err
		}
	}
	return g.Host.NewStream(ctx, p, ids...)
}

// notifiee follows connections.
type notifiee struct{ m *Mesh }

func (n notifiee) Listen(network.Network, ma.Multiaddr)      {}
func (n notifiee) ListenClose(network.Network, ma.Multiaddr) {}

// Connected runs before the connection's first stream is accepted.
func (n notifiee) Connected(_ network.Network, c network.Conn) {
	m, p := n.m, c.RemotePeer()
	m.mu.Lock()
	s := m.sessionLocked(p)
	outbound := c.Stat().Direction == network.DirOutbound
	if outbound {
		s.greeting++
	}
	crowded := !outbound && !s.open && m.pendingLocked() > maxPending
	m.mu.Unlock()
	switch {
	case crowded:
		go c.CloseWithError(network.ConnResourceLimitExceeded)
	case outbound:
		m.spawn(func() { m.greet(s) })
	default:
		m.afterGrace(s, c)
	}
}

// Disconnected ends the session with the last connection.
func (n notifiee) Disconnected(_ network.Network, c network.Conn) {
	m, p := n.m, c.RemotePeer()
	if m.base.Network().Connectedness(p) == network.Connected {
		return
	}
	m.mu.Lock()
	s := m.sessions[p]
	if s == nil {
		m.mu.Unlock()
		return
	}
	wasOpen := s.open
	m.endSessionLocked(s, pcm.Errorf(pcm.Unavailable, "connection to peer %s was lost", short(p)))
	m.mu.Unlock()
	if wasOpen {
		m.roster.lost(p, m.cfg.Now())
		m.touch(pcm.PeerID(p.String()))
		m.wake()
	}
}

func (m *Mesh) pendingLocked() int {
	n := 0
	for _, s := range m.sessions {
		if !s.open {
			n++
		}
	}
	return n
}

// afterGrace closes an inbound connection that neither said hello nor joins.
func (m *Mesh) afterGrace(s *session, c network.Conn) {
	time.AfterFunc(strangerGrace, func() {
		m.mu.Lock()
		idle := !s.open && s.joining == 0 && s.greeting == 0
		busy := !s.open && !idle
		m.mu.Unlock()
		switch {
		case c.IsClosed():
		case idle:
			c.CloseWithError(network.ConnGated)
		case busy:
			m.afterGrace(s, c)
		}
	})
}

func short(p peer.ID) string { return pcm.Short(pcm.PeerID(p.String())) }
