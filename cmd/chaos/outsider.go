package main

import (
	"log/slog"
	"sync"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
)

// outsider is a peer of no cell, in this process. Its clients do what a driver does in
// cells that it only buys in.
type outsider struct {
	h host.Host

	mu    sync.Mutex
	known map[pcm.PeerID]bool
}

func newOutsider() (*outsider, error) {
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay(), libp2p.DisableMetrics())
	return &outsider{h: h, known: map[pcm.PeerID]bool{}}, err
}

func (o *outsider) close() { o.h.Close() }

// client speaks to one cell, through whichever of its peers answers.
func (o *outsider) client(c *testCell) (*consensus.Away, error) {
	c.outside = pcm.PeerID(o.h.ID().String())
	return consensus.NewAway(consensus.AwayConfig{
		Cell: c.genesis.Cell, Self: c.outside, Host: o.h, Logger: slog.New(slog.DiscardHandler),
		Peers: func() []pcm.PeerID { return o.learn(c) },
	})
}

// learn tells libp2p where the peers of a cell are.
func (o *outsider) learn(c *testCell) []pcm.PeerID {
	o.mu.Lock()
	defer o.mu.Unlock()
	book := c.book()
	for id, addr := range book {
		if o.known[id] {
			continue // a peer that restarts listens where it did
		}
		dec, err := peer.Decode(string(id))
		if err != nil {
			continue
		}
		if a, err := multiaddr.NewMultiaddr(addr); err == nil {
			o.h.Peerstore().AddAddr(dec, a, peerstore.PermanentAddrTTL)
			o.known[id] = true
		}
	}
	return sortedKeys(book)
}
