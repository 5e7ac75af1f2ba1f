package mesh

import (
	"context"
	"io"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The hello is three frames on one stream: the dialer's greeting, the
// listener's, and the dialer's verdict (a greeting without body). Either of the
// first two may be a refusal instead, which ends it.

// greeting is the frame that never changes, so that peers of any two versions
// can tell each other why they part. Body is a helloBody of the agreed version.
type greeting struct {
	Version uint32     `cbor:"1,keyasint"` // newest that the sender speaks
	Oldest  uint32     `cbor:"2,keyasint"`
	Mesh    pcm.MeshID `cbor:"3,keyasint"`
	Body    []byte     `cbor:"4,keyasint,omitempty"`
	Refusal *pcm.Error `cbor:"5,keyasint,omitempty"`
}

type helloBody struct {
	Passport    pcm.Signed   `cbor:"1,keyasint"`
	Addrs       []string     `cbor:"2,keyasint,omitempty"` // of the sender, without /p2p/
	Peers       []peerAddrs  `cbor:"3,keyasint,omitempty"` // other members that the sender knows
	Revocations []pcm.Signed `cbor:"4,keyasint,omitempty"`
	Book        bookSum      `cbor:"5,keyasint"`
}

// peerAddrs is where a member can be dialled.
type peerAddrs struct {
	Peer  pcm.PeerID `cbor:"1,keyasint"`
	Addrs []string   `cbor:"2,keyasint"`
}

const maxHelloRevocations = 64

func decodeGreeting(frame []byte) (greeting, error) {
	var g greeting
	err := pcm.Unmarshal(frame, &g)
	if err == nil && g.Refusal != nil {
		g.Refusal = cleanError(g.Refusal)
	}
	return g, err
}

func decodeHelloBody(body []byte) (helloBody, error) {
	var b helloBody
	if err := pcm.Unmarshal(body, &b); err != nil {
		return b, err
	}
	if len(b.Addrs) > maxAddrs || len(b.Peers) > maxExchange || len(b.Revocations) > maxHelloRevocations {
		return b, pcm.Errorf(pcm.TooLarge, "hello names %d addresses, %d peers and %d revocations: over the bounds", len(b.Addrs), len(b.Peers), len(b.Revocations))
	}
	return b, nil
}

// hello is what this peer says.
func (m *Mesh) hello(to peer.ID) greeting {
	body := helloBody{
		Passport:    m.Signed(),
		Addrs:       m.bareAddrs(),
		Peers:       m.roster.exchange(to, maxExchange),
		Revocations: m.bans.list(maxHelloRevocations, m.cfg.Now()),
		Book:        m.book.digest(),
	}
	return greeting{Version: m.version, Oldest: m.oldest, Mesh: m.cfg.Mesh, Body: pcm.MustMarshal(body)}
}

func (m *Mesh) verdict(refusal error) greeting {
	g := greeting{Version: m.version, Oldest: m.oldest, Mesh: m.cfg.Mesh}
	if refusal != nil {
		g.Refusal = asError(refusal)
	}
	return g
}

// judge decides whether the peer at the other end is a member.
func (m *Mesh) judge(g greeting, from peer.ID) (helloBody, pcm.Passport, error) {
	if g.Version < m.oldest || g.Oldest > m.version {
		return helloBody{}, pcm.Passport{}, pcm.Errorf(pcm.Refused,
			"peer %s speaks protocol versions %d to %d, peer %s speaks %d to %d: upgrade the older one",
			short(from), g.Oldest, g.Version, short(m.self), m.oldest, m.version)
	}
	if g.Mesh != m.cfg.Mesh {
		return helloBody{}, pcm.Passport{}, pcm.Errorf(pcm.Refused, "peer %s belongs to another mesh than peer %s, which is of %s", short(from), short(m.self), m.cfg.Mesh)
	}
	body, err := decodeHelloBody(g.Body)
	if err != nil {
		return body, pcm.Passport{}, err
	}
	p, err := pcm.OpenPassport(body.Passport, m.cfg.Root, m.cfg.Now())
	if err != nil {
		return body, p, err
	}
	if string(p.Peer) != from.String() {
		return body, p, pcm.Errorf(pcm.Unauthorized, "peer %s shows the passport of %s", short(from), pcm.Short(p.Peer))
	}
	return body, p, m.bans.check(p, m.cfg.Now())
}

// greet says hello to the session's peer: as its dialer, or again to show a renewed passport.
// The caller has counted it in s.greeting.
func (m *Mesh) greet(s *session) {
	ctx, cancel := context.WithTimeout(m.ctx, helloTimeout)
	defer cancel()
	err := m.sayHello(ctx, s)
	m.mu.Lock()
	s.greeting--
	m.mu.Unlock()
	if err != nil {
		m.cut(s, err)
	}
}

func (m *Mesh) sayHello(ctx context.Context, s *session) error {
	stream, err := m.base.NewStream(network.WithNoDial(ctx, "hello follows a connection"), s.peer, ProtoHello)
	if err != nil {
		if ctx.Err() == nil && isUnsupported(err) {
			return pcm.Errorf(pcm.Refused, "peer %s does not speak %s: it is not pcm, or of a version too far from this one", short(s.peer), ProtoHello)
		}
		return pcm.Errorf(pcm.Unavailable, "can't say hello to peer %s: %w", short(s.peer), err)
	}
	defer stream.Close()
	deadline, _ := ctx.Deadline()
	stream.SetDeadline(deadline)

	sentAt := time.Now()
	if err := writeFrame(stream, pcm.MustMarshal(m.hello(s.peer))); err != nil {
		stream.Reset()
		return pcm.Errorf(pcm.Unavailable, "can't say hello to peer %s: %w", short(s.peer), err)
	}
	frame, err := readFrame(stream, maxHello)
	if err != nil {
		stream.Reset()
		if isUnsupported(err) {
			return pcm.Errorf(pcm.Refused, "peer %s does not speak %s: it is not pcm, or of a version too far from this one", short(s.peer), ProtoHello)
		}
		return frameError(s.peer, "hello", err)
	}
	rtt := time.Since(sentAt)
	g, err := decodeGreeting(frame)
	if err != nil {
		stream.Reset()
		return err
	}
	if g.Refusal != nil {
		err := pcm.Errorf(g.Refusal.Code, "peer %s refused this peer: %s", short(s.peer), g.Refusal.Message)
		m.condemn(s, err) // before the stream ends and the other side cuts
		return err
	}
	body, passport, refusal := m.judge(g, s.peer)
	if refusal != nil {
		m.condemn(s, refusal)
	}
	if err := writeFrame(stream, pcm.MustMarshal(m.verdict(refusal))); err != nil && refusal == nil {
		stream.Reset()
		return pcm.Errorf(pcm.Unavailable, "hello to peer %s was cut short: %w", short(s.peer), err)
	}
	if refusal != nil {
		stream.CloseWrite()
		io.CopyN(io.Discard, stream, 1) // until the other side has read the verdict and closed, or the deadline
		return refusal
	}
	m.admit(s, body, passport, rtt)
	return nil
}

// hearHello serves ProtoHello. It is the one handler, beside join, that strangers reach.
func (m *Mesh) hearHello(stream network.Stream) {
	from := stream.Conn().RemotePeer()
	m.mu.Lock()
	s := m.sessionLocked(from)
	crowded := s.greeting >= 4
	s.greeting++
	m.mu.Unlock()
	defer func() { m.mu.Lock(); s.greeting--; m.mu.Unlock() }()
	if crowded {
		stream.ResetWithError(network.StreamRateLimited)
		return
	}
	stream.SetDeadline(time.Now().Add(helloTimeout))
	if err := m.answerHello(stream, s, from); err != nil {
		m.cut(s, err)
	}
}

func (m *Mesh) answerHello(stream network.Stream, s *session, from peer.ID) error {
	frame, err := readFrame(stream, maxHello)
	if err != nil {
		stream.Reset()
		return frameError(from, "hello", err)
	}
	g, err := decodeGreeting(frame)
	var body helloBody
	var passport pcm.Passport
	if err == nil {
		body, passport, err = m.judge(g, from)
	}
	if err != nil {
		m.condemn(s, err)
		defer stream.Close()
		if writeFrame(stream, pcm.MustMarshal(m.verdict(err))) == nil {
			stream.CloseWrite()
			io.CopyN(io.Discard, stream, 1) // lets the refusal arrive before the connection ends
		}
		return err
	}
	sentAt := time.Now()
	if err := writeFrame(stream, pcm.MustMarshal(m.hello(from))); err != nil {
		stream.Reset()
		return pcm.Errorf(pcm.Unavailable, "hello from peer %s was cut short: %w", short(from), err)
	}
	frame, err = readFrame(stream, maxHello)
	rtt := time.Since(sentAt)
	defer stream.Close()
	if err != nil {
		return frameError(from, "hello", err)
	}
	verdict, err := decodeGreeting(frame)
	if err != nil {
		return err
	}
	if verdict.Refusal != nil {
		err := pcm.Errorf(verdict.Refusal.Code, "peer %s refused this peer: %s", short(from), verdict.Refusal.Message)
		m.condemn(s, err)
		return err
	}
	m.admit(s, body, passport, rtt)
	return nil
}

// admit opens the gate to a peer and takes what its hello told.
func (m *Mesh) admit(s *session, body helloBody, passport pcm.Passport, rtt time.Duration) {
	now := m.cfg.Now()
	m.mu.Lock()
	if m.sessions[s.peer] != s || s.err != nil {
		m.mu.Unlock()
		return // gone or condemned meanwhile
	}
	first := !s.open
	s.open, s.passport, s.signed, s.seenAt = true, passport, body.Passport, now
	if rtt > 0 {
		s.rtt = rtt
	}
	s.settle()
	m.mu.Unlock()

	m.roster.met(s.peer, passport, body.Passport, body.Addrs, now)
	m.roster.hearsay(m.self, body.Peers)
	for _, r := range body.Revocations {
		m.learnRevocation(r)
	}
	if first {
		m.log.Info("peer connected", "peer", short(s.peer), "name", passport.Name, "account", pcm.Short(passport.Account))
		m.touch(passport.Peer)
		m.spawn(func() {
			m.compareCells(s.peer) // a newcomer knows the mesh's cells at once
			m.compareSoon(s.peer)
		})
	}
	if body.Book != m.book.digest() {
		m.spawn(func() { m.pullOffers(s.peer) })
	}
	m.wake()
}
