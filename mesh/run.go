package mesh

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"golang.org/x/sync/errgroup"
)

const (
	maxDials    = 8
	dialTimeout = 20 * time.Second
	sweepEvery  = 10 * time.Second
	saveEvery   = 30 * time.Second
	saveRest    = 2 * time.Second // at least between two writes of the peers file
)

// Run keeps this peer in the mesh until ctx ends or Close: it dials bootstrap
// and known peers again and again, finds peers on the LAN (Config.MDNS),
// compares offer books, renews the passport, cuts who may not stay and saves
// the peers file. It returns nil when ctx ends or the mesh closes.
func (m *Mesh) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.ctx, cancel)()
	if m.cfg.MDNS {
		lan := mdns.NewMdnsService(m.base, "_"+string(m.cfg.Mesh)+"._udp", lanPeers{m})
		if err := lan.Start(); err != nil {
			m.log.Warn("can't look for peers on the LAN; bootstrap addresses still work", "reason", err)
		} else {
			defer lan.Close()
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { m.dialLoop(ctx); return nil })
	g.Go(func() error { m.renewLoop(ctx); return nil })
	g.Go(func() error { m.every(ctx, sweepEvery, m.sweep); return nil })
	g.Go(func() error { m.every(ctx, syncInterval, m.compareAny); return nil })
	g.Go(func() error { m.saveLoop(ctx); return nil })
	return g.Wait()
}

// every calls f at jittered intervals.
func (m *Mesh) every(ctx context.Context, d time.Duration, f func()) {
	t := time.NewTimer(jitter(d))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			f()
			t.Reset(jitter(d))
		}
	}
}

// saveLoop writes the peers file: what is new of peers and revocations at once, but
// not more often than every saveRest, when they were last seen at intervals.
func (m *Mesh) saveLoop(ctx context.Context) {
	t := time.NewTimer(jitter(saveEvery))
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-m.roster.news:
		}
		if err := m.savePeers(); err != nil {
			m.log.Warn("peers not saved", "reason", err)
		}
		t.Reset(saveRest)
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			t.Reset(jitter(saveEvery))
		}
	}
}

func (m *Mesh) renewLoop(ctx context.Context) {
	// The first look waits until issuers had a chance to connect.
	for wait := 5 * time.Second; ; wait = m.renew(ctx) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// wake lets the dial loop look again.
func (m *Mesh) wake() {
	select {
	case m.wakeUp <- struct{}{}:
	default:
	}
}

func (m *Mesh) dialLoop(ctx context.Context) {
	free := make(chan struct{}, maxDials)
	for {
		open := len(m.connected())
		now := m.cfg.Now()
		dial, next := m.roster.due(now, dialTarget-open, maxDials-len(free), func(p peer.ID) bool {
			return m.base.Network().Connectedness(p) == network.Connected
		})
		for _, pi := range dial {
			free <- struct{}{}
			m.spawn(func() {
				m.dial(ctx, pi)
				<-free
				m.wake()
			})
		}
		wait := time.Minute
		if !next.IsZero() {
			wait = max(min(next.Sub(now), wait), 50*time.Millisecond)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-m.wakeUp:
			t.Stop()
		case <-t.C:
		}
	}
}

func (m *Mesh) dial(ctx context.Context, pi peer.AddrInfo) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer m.roster.dialled(pi.ID)
	m.base.swarm.Backoff().Clear(pi.ID) // the roster's back-off is the one that counts
	err := m.base.Connect(ctx, pi)
	if err != nil {
		err = pcm.Errorf(pcm.Unavailable, "can't reach peer %s: %w", short(pi.ID), err)
		m.roster.refused(pi.ID, err, m.cfg.Now())
	} else {
		_, err = m.waitOpen(ctx, pi.ID, false) // who fails here was noted by cut
	}
	if err != nil && ctx.Err() == nil {
		m.log.Debug("dial failed", "peer", short(pi.ID), "reason", err)
	}
}

// lanPeers takes what mDNS finds.
type lanPeers struct{ m *Mesh }

func (l lanPeers) HandlePeerFound(pi peer.AddrInfo) {
	pa := peerAddrs{Peer: pcm.PeerID(pi.ID.String())}
	for _, a := range pi.Addrs[:min(len(pi.Addrs), maxAddrs)] {
		pa.Addrs = append(pa.Addrs, a.String())
	}
	l.m.roster.hearsay(l.m.self, []peerAddrs{pa})
	l.m.wake()
}
