package mesh

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	pb "github.com/libp2p/go-libp2p-pubsub/pb"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Gossip carries soft state only: offers, and hints of revocations. Messages
// have no pubsub signature (StrictNoSign): each is signed by whom it binds,
// numbered and carries the signer's passport, so an envelope by whoever
// published it would cost a second verification and prove nothing more.
func (m *Mesh) startGossip() error {
	name, cells := "/pcm/offers/1/"+string(m.cfg.Mesh), "/pcm/cells/1/"+string(m.cfg.Mesh)
	params := pubsub.DefaultGossipSubParams()
	params.D, params.Dlo, params.Dhi, params.Dout, params.Dscore = 5, 4, 8, 1, 3
	ps, err := pubsub.NewGossipSub(m.ctx, m.host,
		pubsub.WithGossipSubParams(params),
		pubsub.WithFloodPublish(true), // own offers are rare: to every neighbour, grafted yet or not
		pubsub.WithMessageSignaturePolicy(pubsub.StrictNoSign),
		pubsub.WithNoAuthor(),
		pubsub.WithMessageIdFn(func(msg *pb.Message) string {
			sum := sha256.Sum256(msg.GetData())
			return string(sum[:20])
		}),
		pubsub.WithMaxMessageSize(2*maxAnnouncement), // of a whole RPC; larger ones end the stream
		pubsub.WithSubscriptionFilter(pubsub.NewAllowlistSubscriptionFilter(name, cells)),
		pubsub.WithValidateQueueSize(128),
		pubsub.WithValidateThrottle(128),
		pubsub.WithPeerOutboundQueueSize(64),
		pubsub.WithPeerScore(scoreParams(name, cells)),
		pubsub.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))),
	)
	if err != nil {
		return err
	}
	if err := ps.RegisterTopicValidator(name, m.validate, pubsub.WithValidatorConcurrency(16)); err != nil {
		return err
	}
	if m.topic, err = ps.Join(name); err != nil {
		return err
	}
	if err := ps.RegisterTopicValidator(cells, m.validateCell, pubsub.WithValidatorConcurrency(16)); err != nil {
		return err
	}
	if m.cellTopic, err = ps.Join(cells); err != nil {
		return err
	}
	// The validators take what is good, so there is nobody to deliver to: only forward.
	if m.unrelay, err = m.topic.Relay(); err != nil {
		return err
	}
	m.unrelayCells, err = m.cellTopic.Relay()
	return err
}

// scoreParams punish forged and malformed messages (P4) and protocol abuse
// (P7): fifteen bad messages within a minute or so get a peer ignored. Nothing is won by
// behaving well, and peers behind one address are not punished for it.
func scoreParams(names ...string) (*pubsub.PeerScoreParams, *pubsub.PeerScoreThresholds) {
	topics := map[string]*pubsub.TopicScoreParams{}
	for _, name := range names {
		topics[name] = &pubsub.TopicScoreParams{
			SkipAtomicValidation:           true,
			TopicWeight:                    1,
			InvalidMessageDeliveriesWeight: -1,
			InvalidMessageDeliveriesDecay:  0.9,
			TimeInMeshQuantum:              time.Second,
		}
	}
	return &pubsub.PeerScoreParams{
			SkipAtomicValidation:        true,
			AppSpecificScore:            func(peer.ID) float64 { return 0 },
			AppSpecificWeight:           1,
			BehaviourPenaltyWeight:      -1,
			BehaviourPenaltyThreshold:   6,
			BehaviourPenaltyDecay:       0.9,
			DecayInterval:               10 * time.Second,
			DecayToZero:                 0.01,
			RetainScore:                 10 * time.Minute,
			IPColocationFactorWeight:    0,
			IPColocationFactorThreshold: 1,
			Topics:                      topics,
		}, &pubsub.PeerScoreThresholds{
			GossipThreshold: -50, PublishThreshold: -100, GraylistThreshold: -200,
		}
}

// validate judges one gossip message and, if it is good and news, takes it.
// Reject is for what an honest peer would not have forwarded; Ignore for what
// clocks and races explain.
func (m *Mesh) validate(_ context.Context, from peer.ID, msg *pubsub.Message) pubsub.ValidationResult {
	if from == m.self {
		return pubsub.ValidationAccept
	}
	a, err := decodeAnnouncement(msg.GetData())
	if err != nil {
		m.log.Debug("gossip rejected", "from", short(from), "reason", err)
		return pubsub.ValidationReject
	}
	if a.Revocation != nil {
		return m.verdictOn(from, m.learnRevocation(*a.Revocation))
	}
	return m.verdictOn(from, m.acceptOffer(a, pcm.PeerID(from.String()), true))
}

func (m *Mesh) verdictOn(from peer.ID, err error) pubsub.ValidationResult {
	switch {
	case err == nil:
		return pubsub.ValidationAccept
	case errors.Is(err, errNotNews):
		return pubsub.ValidationIgnore
	}
	m.log.Debug("gossip rejected", "from", short(from), "reason", err)
	return pubsub.ValidationReject
}

func decodeAnnouncement(data []byte) (announcement, error) {
	var a announcement
	if len(data) > maxAnnouncement {
		return a, pcm.Errorf(pcm.TooLarge, "announcement of %d bytes is over the bound of %d", len(data), maxAnnouncement)
	}
	if err := pcm.Unmarshal(data, &a); err != nil {
		return a, err
	}
	if offer := a.Offer != nil && a.Passport != nil; offer == (a.Revocation != nil) {
		return a, pcm.Errorf(pcm.Invalid, "announcement is neither an offer with its passport nor a revocation")
	}
	return a, nil
}

// errNotNews: nothing wrong with the sender, nothing to pass on either.
var errNotNews = errors.New("known, outdated or too frequent")

// acceptOffer checks an offer with its passport and puts it into the book.
// It returns nil when it was news, an error wrapping errNotNews when it was
// not, another error when it is forged or malformed.
func (m *Mesh) acceptOffer(a announcement, source pcm.PeerID, limited bool) error {
	now := m.cfg.Now()
	var claim pcm.Offer
	if len(a.Offer.Payload) > pcm.MaxOffer {
		return pcm.Errorf(pcm.TooLarge, "offer of %d bytes is over the bound of %d", len(a.Offer.Payload), pcm.MaxOffer)
	}
	if err := pcm.Unmarshal(a.Offer.Payload, &claim); err != nil {
		return err
	}
	if claim.Number <= m.book.number(claim.Peer) {
		return errNotNews // before any signature is checked: most duplicates end here
	}
	offer, err := pcm.OpenOffer(*a.Offer, now)
	if err != nil {
		if a.Offer.Verify(pcm.DomainOffer) && outOfTime(claim.IssuedAt, claim.NotAfter, now) {
			return errors.Join(errNotNews, err)
		}
		return err
	}
	passport, ok := m.book.samePassport(offer.Peer, *a.Passport)
	if !ok {
		if passport, err = pcm.OpenPassport(*a.Passport, m.cfg.Root, now); err != nil {
			if a.Passport.Verify(pcm.DomainPassport) && outOfTime(passport.IssuedAt, passport.NotAfter, now) {
				return errors.Join(errNotNews, err)
			}
			return err
		}
	}
	if offer.Mesh != m.cfg.Mesh || offer.Peer != passport.Peer || offer.Account != passport.Account {
		return pcm.Errorf(pcm.Unauthorized, "offer %d of %s does not match its passport's mesh, peer or account", offer.Number, pcm.Short(offer.Peer))
	}
	if err := m.stillValid(passport); err != nil {
		return errors.Join(errNotNews, err)
	}
	if limited && !m.offerRate.allow(offer.Peer, time.Now()) {
		return errNotNews
	}
	added, full := m.book.put(Row{offer, *a.Offer, passport, source, now}, *a.Passport)
	if full {
		m.log.Warn("offer book is full", "bound", maxBook, "peer", pcm.Short(offer.Peer))
	}
	if !added {
		return errNotNews
	}
	m.roster.learnPassport(passport, *a.Passport)
	return nil
}

func outOfTime(issued, notAfter int64, now time.Time) bool {
	return now.Add(pcm.Skew).UnixMilli() < issued || now.Add(-pcm.Skew).UnixMilli() > notAfter
}

// learnRevocation checks a revocation and, if it is news, obeys and remembers it.
func (m *Mesh) learnRevocation(s pcm.Signed) error {
	if m.bans.knows(s) {
		return errNotNews
	}
	now := m.cfg.Now()
	r, err := openRevocation(s, m.cfg.Mesh, m.cfg.Root, now)
	if err != nil {
		return err
	}
	if r.Issuer != nil {
		var by pcm.Passport
		if err := pcm.Unmarshal(r.Issuer.Payload, &by); err != nil {
			return err
		}
		if err := m.bans.check(by, now); err != nil {
			return errors.Join(errNotNews, err) // who is banned bans nobody
		}
	}
	if !m.bans.add(r, s, now) {
		return errNotNews
	}
	m.log.Warn("peer banned", "peer", pcm.Short(r.Peer), "reason", r.Reason)
	m.roster.mu.Lock()
	m.roster.announceLocked()
	m.roster.mu.Unlock()
	m.sweep()
	return nil
}

// Revoke obeys a revocation (see [SignRevocation]) and tells the mesh. Every
// peer that hears of it cuts the banned peer off; the others hear at their next hello.
func (m *Mesh) Revoke(s pcm.Signed) error {
	if err := m.learnRevocation(s); err != nil && !errors.Is(err, errNotNews) {
		return err
	}
	return m.announce(announcement{Revocation: &s})
}

// Publish puts this peer's own signed offer into its book and tells the mesh.
// It must carry a higher number than any before it: code Conflict says which
// number the mesh already knows (also after this peer lost its own state).
func (m *Mesh) Publish(offer pcm.Signed) error {
	now := m.cfg.Now()
	o, err := pcm.OpenOffer(offer, now)
	if err != nil {
		return err
	}
	own, signed := m.Own(), m.Signed()
	if o.Peer != own.Peer || o.Account != own.Account || o.Mesh != own.Mesh {
		return pcm.Errorf(pcm.Invalid, "offer %d is of peer %s, account %s in %s; only this peer's own can be published here", o.Number, pcm.Short(o.Peer), pcm.Short(o.Account), o.Mesh)
	}
	a := announcement{Offer: &offer, Passport: &signed}
	if n := len(pcm.MustMarshal(a)); n > maxAnnouncement {
		return pcm.Errorf(pcm.TooLarge, "offer and passport take %d bytes, over the bound of %d: sell fewer pools or use fewer labels", n, maxAnnouncement)
	}
	added, full := m.book.put(Row{o, offer, own, own.Peer, now}, signed)
	switch {
	case full:
		return pcm.Errorf(pcm.Busy, "the offer book is full: %d sellers", maxBook)
	case !added:
		return pcm.Errorf(pcm.Conflict, "offer %d is outdated: the mesh knows number %d; issue the next one above it", o.Number, m.book.number(own.Peer))
	}
	return m.announce(a)
}

func (m *Mesh) announce(a announcement) error {
	if err := m.topic.Publish(m.ctx, pcm.MustMarshal(a)); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't publish: %w", err)
	}
	return nil
}

// Offers is the book: the latest valid offer of each seller, this peer's own
// included, ordered by peer.
func (m *Mesh) Offers() []Row { return m.book.list(m.cfg.Now()) }

// OffersChanged returns a channel that is closed at the next change of the
// book. Take it before reading Offers, and take a new one after each wake-up.
func (m *Mesh) OffersChanged() <-chan struct{} { return m.book.changes() }

// rates is a token bucket for each seller: bursts of rateBurst, then one each rateEvery.
type rates struct {
	mu      sync.Mutex
	buckets map[pcm.PeerID]bucket
}

type bucket struct {
	left float64
	at   time.Time
}

const (
	rateBurst = 10
	rateEvery = 2 * time.Second
)

func (r *rates) allow(p pcm.PeerID, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, ok := r.buckets[p]
	if !ok {
		if len(r.buckets) >= 2*maxBook {
			clear(r.buckets) // forgetting all is cheap and rare; only members get here
		}
		b = bucket{rateBurst, now}
	}
	if r.buckets == nil {
		r.buckets = map[pcm.PeerID]bucket{}
	}
	b.left = min(rateBurst, b.left+now.Sub(b.at).Seconds()/rateEvery.Seconds())
	b.at = now
	ok = b.left >= 1
	if ok {
		b.left--
	}
	r.buckets[p] = b
	return ok
}
