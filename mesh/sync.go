package mesh

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Anti-entropy: who sees a neighbour's book differ from its own pulls what it lacks.

type haveRow struct {
	Peer   pcm.PeerID `cbor:"1,keyasint"`
	Number uint64     `cbor:"2,keyasint"`
}

type pullRequest struct {
	Sum  bookSum   `cbor:"1,keyasint"`
	Full bool      `cbor:"2,keyasint,omitempty"` // Have is the whole digest; else only Sum is compared
	Have []haveRow `cbor:"3,keyasint,omitempty"`

	Peers bool `cbor:"4,keyasint,omitempty"` // tell what other members you know
}

type pullReply struct {
	Sum    bookSum        `cbor:"1,keyasint"`
	Offers []announcement `cbor:"2,keyasint,omitempty"`
	More   bool           `cbor:"3,keyasint,omitempty"`
	Peers  []peerAddrs    `cbor:"4,keyasint,omitempty"`
}

const (
	pullBytes    = 2 << 20
	pullRounds   = 32 // enough for a full book at 64 MiB
	pullTimeout  = 30 * time.Second
	maxPullRows  = maxBook
	syncInterval = time.Minute
	settleTime   = time.Second // for gossip to know a new neighbour
)

func (m *Mesh) serveOffers(_ context.Context, from pcm.Passport, req []byte) ([]byte, error) {
	var r pullRequest
	if err := pcm.Unmarshal(req, &r); err != nil {
		return nil, err
	}
	if len(r.Have) > maxPullRows {
		return nil, pcm.Errorf(pcm.TooLarge, "digest has %d rows, over the bound of %d", len(r.Have), maxPullRows)
	}
	reply := pullReply{Sum: m.book.digest()}
	if p, err := peer.Decode(string(from.Peer)); err == nil && r.Peers {
		reply.Peers = m.roster.exchange(p, maxExchange)
	}
	if r.Full && r.Sum != reply.Sum {
		have := make(map[pcm.PeerID]uint64, len(r.Have))
		for _, h := range r.Have {
			have[h.Peer] = h.Number
		}
		var all bool
		reply.Offers, all = m.book.newer(have, m.cfg.Now(), pullBytes)
		reply.More = !all
	}
	return pcm.Marshal(reply)
}

// pullOffers brings this peer's book up to that of p. One at a time for each peer.
func (m *Mesh) pullOffers(p peer.ID) {
	if !m.pulls.take(p) {
		return
	}
	defer m.pulls.give(p)
	ctx, cancel := context.WithTimeout(m.ctx, pullTimeout)
	defer cancel()
	for range pullRounds {
		reply, err := m.pull(ctx, p, pullRequest{Sum: m.book.digest(), Full: true, Have: m.book.have()})
		if err != nil {
			m.log.Debug("offer sync failed", "peer", short(p), "reason", err)
			return
		}
		news := 0
		for _, a := range reply.Offers {
			if a.Offer == nil || a.Passport == nil {
				m.log.Warn("offer sync: malformed answer", "peer", short(p))
				return
			}
			err := m.acceptOffer(a, pcm.PeerID(p.String()), false)
			if err == nil {
				news++
			} else if !errors.Is(err, errNotNews) {
				m.log.Warn("offer sync: bad offer", "peer", short(p), "reason", err)
				return
			}
		}
		if !reply.More || news == 0 {
			return
		}
	}
}

func (m *Mesh) pull(ctx context.Context, p peer.ID, r pullRequest) (pullReply, error) {
	var reply pullReply
	sentAt := time.Now()
	resp, err := m.Call(ctx, pcm.PeerID(p.String()), ProtoOffers, pcm.MustMarshal(r))
	if err != nil {
		return reply, err
	}
	m.measured(p, time.Since(sentAt))
	return reply, pcm.Unmarshal(resp, &reply)
}

// compareAny compares books with a random neighbour.
func (m *Mesh) compareAny() {
	if open := m.connected(); len(open) > 0 {
		p := open[rand.IntN(len(open))]
		m.compare(p)
		m.compareCells(p)
	}
}

// compareSoon compares again with a new neighbour: an offer published between
// its hello and the moment that gossip knows it, or a peer that came at the same
// moment, would else wait for chance.
func (m *Mesh) compareSoon(p peer.ID) {
	t := time.NewTimer(settleTime)
	defer t.Stop()
	select {
	case <-t.C:
		m.compare(p)
		m.compareCells(p)
	case <-m.ctx.Done():
	}
}

// compare asks a neighbour whether its book differs and whom it knows, and pulls what is missing.
func (m *Mesh) compare(p peer.ID) {
	ctx, cancel := context.WithTimeout(m.ctx, pullTimeout)
	defer cancel()
	reply, err := m.pull(ctx, p, pullRequest{Sum: m.book.digest(), Peers: true})
	if err != nil {
		return
	}
	if reply.Sum != m.book.digest() {
		m.pullOffers(p)
	}
	if len(reply.Peers) <= maxExchange {
		m.roster.hearsay(m.self, reply.Peers)
		m.wake()
	}
}
