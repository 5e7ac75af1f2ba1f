package mesh

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func (p *testPeer) offer(s *site, number uint64, mend func(*pcm.Offer)) pcm.Signed {
	now := p.cfg.Now()
	o := pcm.Offer{
		Mesh: s.mesh, Cell: pcm.NewCellID(), Peer: p.key.Peer(), Account: p.account.Account(), Name: p.Own().Name,
		Number: number, IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(),
	}
	if mend != nil {
		mend(&o)
	}
	return p.key.Seal(pcm.DomainOffer, o)
}

func (p *testPeer) has(seller *testPeer, number uint64) func() bool {
	return func() bool {
		for _, r := range p.Offers() {
			if r.Offer.Peer == seller.key.Peer() {
				return r.Offer.Number == number
			}
		}
		return false
	}
}

// line starts three peers of which the outer two can never connect to each other.
func line(s *site) (a, b, c *testPeer) {
	a, b, c = s.prepare("a", nil), s.prepare("b", nil), s.prepare("c", nil)
	a.cfg.Listen, c.cfg.Listen = nil, nil // can't be dialled, so b is between them
	b.start(s.t)
	a.start(s.t, b)
	c.start(s.t, b)
	eventually(s.t, "a-b", sees(a, b))
	eventually(s.t, "b-c", sees(b, c))
	return a, b, c
}

func TestGossipReachesWhoIsNotConnected(t *testing.T) {
	s := newSite(t)
	a, b, c := line(s)
	eventually(t, "b relays between two", func() bool { return len(b.topic.ListPeers()) == 2 })
	changed := c.OffersChanged()
	if err := a.Publish(a.offer(s, 1, nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c has a's offer", c.has(a, 1))
	<-changed
	if sees(c, a)() {
		t.Fatal("a and c are connected: the test shows nothing")
	}
	row := c.Offers()[0]
	if row.Source != b.key.Peer() || row.Passport.Name != "a" || row.ReceivedAt.IsZero() || len(row.Signed.Sig) == 0 {
		t.Errorf("row %+v", row)
	}
	if p, ok := c.Passport(a.key.Peer()); !ok || p.Name != "a" {
		t.Error("c does not know the passport that came with the offer")
	}
	if err := a.Publish(a.offer(s, 2, nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c has the newer offer", c.has(a, 2))
	err := a.Publish(a.offer(s, 2, nil))
	wantCode(t, err, pcm.Conflict)
	err = a.Publish(b.offer(s, 9, nil))
	wantCode(t, err, pcm.Invalid)
}

func TestNewcomerGetsTheWholeBook(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	const sellers = 300
	var gone *testPeer
	for i := range sellers {
		p := s.prepare(fmt.Sprintf("s%d", i), nil)
		p.Mesh = &Mesh{own: pcm.Passport{Name: "s"}}
		offer, passport := p.offer(s, 7, nil), p.cfg.Passport
		if err := a.acceptOffer(announcement{Offer: &offer, Passport: &passport}, p.key.Peer(), false); err != nil {
			t.Fatal(err)
		}
		gone = p
	}
	b := s.peer("b", a)
	eventually(t, "b has the book", func() bool { return len(b.Offers()) == sellers && b.book.digest() == a.book.digest() })
	if !b.has(gone, 7)() {
		t.Error("an offer is missing")
	}
	// Offers end by themselves.
	b.clock.advance(2 * time.Hour)
	if n := len(b.Offers()); n != 0 {
		t.Errorf("%d expired offers are listed", n)
	}
	b.sweep()
	if b.book.digest() != (bookSum{}) {
		t.Error("expired offers are kept")
	}
}

func TestBadOffersAreNotTaken(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	seller := s.prepare("seller", nil)
	seller.Mesh = &Mesh{own: pcm.Passport{Name: "seller"}}
	other := s.prepare("other", nil)
	foreign := newSite(t).prepare("foreign", nil)
	foreign.Mesh = seller.Mesh
	good := seller.offer(s, 5, nil)
	if err := a.acceptOffer(announcement{Offer: &good, Passport: &seller.cfg.Passport}, "", false); err != nil {
		t.Fatal(err)
	}
	tampered := seller.offer(s, 6, nil)
	tampered.Payload = append([]byte(nil), tampered.Payload...)
	tampered.Payload[len(tampered.Payload)-2] ^= 1
	by := func(k pcm.Key, n uint64) pcm.Signed {
		return k.Seal(pcm.DomainOffer, pcm.Offer{
			Mesh: s.mesh, Cell: pcm.NewCellID(), Peer: seller.key.Peer(), Account: seller.account.Account(), Name: "x", Number: n,
			IssuedAt: time.Now().UnixMilli(), NotAfter: time.Now().Add(time.Hour).UnixMilli(),
		})
	}
	for _, c := range []struct {
		name     string
		offer    pcm.Signed
		passport pcm.Signed
		forged   bool // else merely no news
	}{
		{"the same again", good, seller.cfg.Passport, false},
		{"older", seller.offer(s, 4, nil), seller.cfg.Passport, false},
		{"same number, other content", seller.offer(s, 5, func(o *pcm.Offer) { o.Name = "cheaper" }), seller.cfg.Passport, false},
		{"expired", seller.offer(s, 6, func(o *pcm.Offer) { o.IssuedAt, o.NotAfter = 0, 1 }), seller.cfg.Passport, false},
		{"from the future", seller.offer(s, 6, func(o *pcm.Offer) { o.IssuedAt += 1e7 }), seller.cfg.Passport, false},
		{"tampered", tampered, seller.cfg.Passport, true},
		{"signed by another", by(other.key, 6), seller.cfg.Passport, true},
		{"with another's passport", seller.offer(s, 6, nil), other.cfg.Passport, true},
		{"with a passport of another mesh", foreign.offer(s, 6, nil), foreign.cfg.Passport, true},
		{"of another mesh", seller.offer(s, 6, func(o *pcm.Offer) { o.Mesh = foreign.cfg.Mesh }), seller.cfg.Passport, true},
		{"for another account", seller.offer(s, 6, func(o *pcm.Offer) { o.Account = other.account.Account() }), seller.cfg.Passport, true},
		{"oversized", seller.offer(s, 6, func(o *pcm.Offer) {
			o.Pools = make([]pcm.Pool, 64)
			for i := range o.Pools {
				o.Pools[i] = pcm.Pool{ID: pcm.PoolID(fmt.Sprintf("pool-%d", i)), Adapter: "process", Labels: pcm.Labels{"a": string(make([]byte, 63)), "b": string(make([]byte, 63))}}
			}
		}), seller.cfg.Passport, true},
	} {
		err := a.acceptOffer(announcement{Offer: &c.offer, Passport: &c.passport}, "", false)
		if err == nil {
			t.Errorf("%s: taken", c.name)
		} else if forged := !errors.Is(err, errNotNews); forged != c.forged {
			t.Errorf("%s: judged forged=%v: %v", c.name, forged, err)
		}
	}
	if !a.has(seller, 5)() {
		t.Error("the good offer is gone")
	}
}

func TestForgeriesAreNotForwarded(t *testing.T) {
	s := newSite(t)
	a, b, c := line(s)
	eventually(t, "b relays between two", func() bool { return len(b.topic.ListPeers()) == 2 })
	stranger := newSite(t).prepare("x", nil)
	stranger.Mesh = a.Mesh
	forged := stranger.offer(s, 1, nil)
	oversized := make([]byte, maxAnnouncement+1)
	for n := range uint64(2) { // the second one travels by gossip for certain: by then b and c are grafted
		if err := a.Publish(a.offer(s, n+1, nil)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "c has the good offer", c.has(a, n+1))
	}
	for _, data := range [][]byte{
		pcm.MustMarshal(announcement{Offer: &forged, Passport: &stranger.cfg.Passport}),
		oversized,
		[]byte("nonsense"),
	} {
		// a is a member gone bad: it publishes what its own validator lets pass, being its own.
		if err := a.topic.Publish(ctxFor(t, 5*time.Second), data); err != nil {
			t.Fatal(err)
		}
	}
	// Messages of one peer arrive in order, so once the good one is through the bad ones were judged.
	if err := a.Publish(a.offer(s, 3, nil)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "c has the good offer", c.has(a, 3))
	for _, p := range []*testPeer{b, c} {
		if n := len(p.Offers()); n != 1 {
			t.Errorf("%s has %d offers", p.Own().Name, n)
		}
	}
}

func TestSellerThatTalksTooMuchIsIgnored(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	seller := s.prepare("seller", nil)
	seller.Mesh = &Mesh{own: pcm.Passport{Name: "seller"}}
	taken := 0
	for n := range 3 * rateBurst {
		offer := seller.offer(s, uint64(n+1), nil)
		err := a.acceptOffer(announcement{Offer: &offer, Passport: &seller.cfg.Passport}, "", true)
		if err == nil {
			taken++
		} else if !errors.Is(err, errNotNews) {
			t.Fatal(err)
		}
	}
	if taken < rateBurst || taken > 2*rateBurst {
		t.Errorf("took %d of %d", taken, 3*rateBurst)
	}
}
