package mesh

import (
	"bytes"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// What decodes must encode to the same bytes again, and no input may panic.

func fuzzSeeds(f *testing.F, values ...any) {
	for _, v := range values {
		b := pcm.MustMarshal(v)
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add([]byte{})
	f.Add([]byte{0xbf, 0xff})
	f.Add(bytes.Repeat([]byte{0x81}, 64))
}

func FuzzHello(f *testing.F) {
	signed := pcm.NewKey().Seal(pcm.DomainPassport, pcm.Passport{Name: "x"})
	body := helloBody{Passport: signed, Addrs: []string{"/ip4/1.2.3.4/tcp/1"}, Peers: []peerAddrs{{"p", []string{"x"}}}, Revocations: []pcm.Signed{signed}}
	fuzzSeeds(f, greeting{Version: 1, Oldest: 1, Mesh: "mesh-x", Body: pcm.MustMarshal(body), Refusal: &pcm.Error{Code: "odd", Message: "\x00"}}, body)
	f.Fuzz(func(t *testing.T, data []byte) {
		if g, err := decodeGreeting(data); err == nil {
			if g.Refusal == nil && !bytes.Equal(pcm.MustMarshal(g), data) {
				// Only the deterministic form decodes to itself; other forms must decode to the same value.
				if again, err := decodeGreeting(pcm.MustMarshal(g)); err != nil || again.Version != g.Version || again.Mesh != g.Mesh || !bytes.Equal(again.Body, g.Body) {
					t.Fatalf("%x decodes to %+v, which does not survive: %v", data, g, err)
				}
			}
			decodeHelloBody(g.Body)
		}
		if b, err := decodeHelloBody(data); err == nil {
			var r roster
			for _, p := range b.Peers {
				usable(p.Addrs)
			}
			r.hearsay("", b.Peers)
			if len(r.peers) > maxExchange {
				t.Fatalf("%d peers from one hello", len(r.peers))
			}
		}
	})
}

func FuzzJoin(f *testing.F) {
	key := pcm.NewKey()
	fuzzSeeds(f, JoinRequest{
		Invite: key.Seal(pcm.DomainInvite, pcm.Invite{}), Secret: []byte("x"), Peer: key.Peer(), Account: key.Account(), Name: "x", Labels: pcm.Labels{"a": "b"},
	})
	m := &Mesh{cfg: Config{Mesh: "mesh-x", Now: time.Now}}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := decodeJoin(data)
		if err != nil {
			return
		}
		if _, err := m.checkJoin(r, ""); err == nil {
			t.Fatalf("%x was let in", data)
		}
	})
}

func FuzzAnnouncement(f *testing.F) {
	key := pcm.NewKey()
	offer, passport := key.Seal(pcm.DomainOffer, pcm.Offer{Peer: key.Peer()}), key.Seal(pcm.DomainPassport, pcm.Passport{})
	fuzzSeeds(f, announcement{Offer: &offer, Passport: &passport}, announcement{Revocation: &offer})
	root := pcm.NewKey()
	m := &Mesh{cfg: Config{Mesh: pcm.NewMeshID(root.Public()), Root: root.Public(), Now: time.Now}, book: newBook()}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeAnnouncement(data)
		if err != nil {
			return
		}
		if a.Revocation != nil {
			if _, err := openRevocation(*a.Revocation, m.cfg.Mesh, m.cfg.Root, time.Now()); err == nil {
				t.Fatalf("%x bans somebody", data)
			}
			return
		}
		if m.acceptOffer(a, "", false) == nil {
			t.Fatalf("%x was taken", data)
		}
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(appendFrame(nil, []byte("hello")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 10
		b, err := readFrame(bytes.NewReader(data), limit)
		if err == nil && (len(b) > limit || !bytes.Contains(data, b)) {
			t.Fatalf("%x gave %x", data, b)
		}
	})
}
