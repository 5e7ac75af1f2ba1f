package mesh

import (
	"context"
	"encoding/binary"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

func wantText(t testing.TB, err error, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if err == nil || !strings.Contains(err.Error(), p) {
			t.Fatalf("error %v does not say %q", err, p)
		}
	}
}

// stranger is a bare host connected to p that says nothing by itself.
func stranger(t *testing.T, p *testPeer) (*baseHost, peer.ID) {
	t.Helper()
	h, err := newHost(pcm.NewKey(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	pi, err := peer.AddrInfoFromString(p.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Connect(ctxFor(t, 10*time.Second), *pi); err != nil {
		t.Fatal(err)
	}
	return h, pi.ID
}

// knock opens a stream, sends bytes and returns what comes back.
func knock(t *testing.T, h *baseHost, p peer.ID, proto protocol.ID, send []byte) ([]byte, error) {
	t.Helper()
	ctx := ctxFor(t, 20*time.Second)
	s, err := h.NewStream(network.WithNoDial(ctx, "test"), p, proto)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := s.Write(send); err != nil {
		return nil, err
	}
	return io.ReadAll(s)
}

func TestStrangerReachesOnlyHelloAndJoin(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	called := make(chan string, 8)
	a.HandleCall(protoEcho, Limits{}, func(context.Context, pcm.Passport, []byte) ([]byte, error) {
		called <- "call"
		return nil, nil
	})
	a.Handle("/test/stream/1.0.0", func(_ context.Context, _ pcm.Passport, s network.Stream) { called <- "stream"; s.Close() })
	a.Host().SetStreamHandler("/test/host/1.0.0", func(s network.Stream) { called <- "host"; s.Close() })
	a.ServeJoin(func(context.Context, JoinRequest, pcm.Invite, pcm.PeerID) (JoinReply, error) {
		called <- "join"
		return JoinReply{}, nil
	})
	h, id := stranger(t, a)
	for _, proto := range a.base.Mux().Protocols() {
		switch {
		case proto == ProtoHello, proto == ProtoJoin, proto == protoJoin10, strings.HasPrefix(string(proto), "/ipfs/id/"):
			continue
		}
		if resp, err := knock(t, h, id, proto, []byte{0, 0}); err == nil {
			t.Errorf("%s answered a stranger: %q", proto, resp)
		}
	}
	frame, err := knock(t, h, id, ProtoJoin, appendFrame(nil, pcm.MustMarshal(JoinRequest{})))
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, joinRefusal(t, frame), "not valid")
	select {
	case what := <-called:
		t.Errorf("a stranger's stream reached the %s handler", what)
	default:
	}
	if rows := a.Peers(); len(rows) != 0 {
		t.Errorf("a stranger is listed: %+v", rows)
	}
}

func joinRefusal(t *testing.T, framed []byte) error {
	t.Helper()
	frame, err := readFrame(strings.NewReader(string(framed)), maxJoin)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	var a joinAnswer
	if err := pcm.Unmarshal(frame, &a); err != nil {
		t.Fatal(err)
	}
	if a.Refusal == nil {
		return nil
	}
	return a.Refusal
}

// bothRefuse starts b against a and waits until each has said why they part.
func bothRefuse(t *testing.T, a, b *testPeer, want string) {
	t.Helper()
	why := func(p *testPeer, q *testPeer) string {
		qid, _ := peer.Decode(string(q.key.Peer()))
		p.mu.Lock()
		defer p.mu.Unlock()
		if s := p.sessions[qid]; s != nil && s.open {
			t.Fatal("admitted")
		}
		return ""
	}
	_, err := b.Call(ctxFor(t, 10*time.Second), a.key.Peer(), protoEcho, nil)
	if code := pcm.ErrorCode(err); code == "" || code == pcm.Unavailable && !strings.Contains(err.Error(), want) {
		t.Fatalf("call: %v", err)
	}
	wantText(t, err, want)
	eventually(t, "connection closed", func() bool {
		return len(a.base.Network().Conns()) == 0 && len(b.base.Network().Conns()) == 0
	})
	why(a, b)
	why(b, a)
	bid, _ := peer.Decode(string(a.key.Peer()))
	b.roster.mu.Lock()
	defer b.roster.mu.Unlock()
	if e := b.roster.peers[bid]; time.Until(e.next) < refusedRetry/2 {
		t.Errorf("dials again in %s already", time.Until(e.next))
	}
}

func TestOtherMeshIsRefused(t *testing.T) {
	a := newSite(t).peer("a")
	b := newSite(t).prepare("b", nil)
	b.cfg.Bootstrap = a.Addrs()
	m, err := New(b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b.Mesh = m
	bothRefuse(t, a, b, "another mesh")
}

func TestOtherVersionIsRefused(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.prepare("b", nil)
	b.cfg.Bootstrap, b.cfg.Mesh = a.Addrs(), s.mesh
	m, err := newMesh(b.cfg, 7, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b.Mesh = m
	bothRefuse(t, a, b, "versions 7 to 9")
}

func TestNeighbouringVersionsTalk(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.prepare("b", nil)
	b.cfg.Bootstrap, b.cfg.Mesh = a.Addrs(), s.mesh
	m, err := newMesh(b.cfg, Version, Version+1)
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, m)
	eventually(t, "connected", sees(a, b))
}

func TestExpiredPassportIsRefused(t *testing.T) {
	s := newSite(t)
	a := s.prepare("a", nil)
	a.clock.advance(pcm.PassportLifetime - time.Hour)
	// a's own passport is fresh, b's is nearly at its end.
	fresh, err := pcm.IssuePassport(s.root, s.root.Public(), pcm.Signed{}, s.statement(a.key, a.account, "a"), a.clock.now())
	if err != nil {
		t.Fatal(err)
	}
	a.cfg.Passport = fresh
	a.start(t)
	b := s.prepare("b", nil)
	b.cfg.Bootstrap = a.Addrs()
	b.clock.advance(pcm.PassportLifetime - time.Hour)
	b.start(t)
	eventually(t, "connected", sees(a, b))

	a.clock.advance(2 * time.Hour)
	a.sweep()
	if sees(a, b)() {
		t.Fatal("still connected after the passport expired")
	}
	_, err = a.Call(ctxFor(t, 10*time.Second), b.key.Peer(), protoEcho, nil)
	if err == nil {
		t.Fatal("call went through")
	}
}

func TestRevocationCutsAndSpreads(t *testing.T) {
	s := newSite(t)
	a := s.prepare("a", nil, pcm.RoleIssuer).start(t)
	b := s.peer("b", a)
	bad := s.prepare("bad", a).start(t, a, b)
	for _, pair := range [][2]*testPeer{{a, bad}, {b, bad}, {a, b}} {
		eventually(t, "connected", sees(pair[0], pair[1]))
	}
	cut := make(chan PeerEvent, 4)
	b.OnPeer(func(e PeerEvent) {
		if !e.Connected && e.Passport.Name == "bad" {
			cut <- e
		}
	})
	eventually(t, "gossip links a and b", func() bool { return len(a.topic.ListPeers()) == 2 })
	r := SignRevocation(a.key, s.mesh, a.Signed(), bad.key.Peer(), "mined coins", time.Now())
	if err := a.Revoke(r); err != nil {
		t.Fatal(err)
	}
	if sees(a, bad)() {
		t.Error("a is still connected to the banned peer")
	}
	<-cut // b heard by gossip

	// A peer that comes later hears in its hello, and refuses the banned one with the reason.
	c := s.peer("c", a)
	eventually(t, "connected", sees(c, a))
	_, err := bad.Call(ctxFor(t, 10*time.Second), a.key.Peer(), protoEcho, nil)
	wantCode(t, err, pcm.Forbidden)
	wantText(t, err, "mined coins")
	badID, _ := peer.Decode(string(bad.key.Peer()))
	eventually(t, "c knows", func() bool { return c.bans.banned(pcm.PeerID(badID.String()), false, time.Now()) != nil })

	// Whom the root admitted, only the root bans; who is no issuer bans nobody.
	_ = a.learnRevocation(SignRevocation(a.key, s.mesh, a.Signed(), b.key.Peer(), "rival", time.Now()))
	if err := a.bans.check(b.Own(), time.Now()); err != nil {
		t.Errorf("an issuer banned a peer that the root admitted: %v", err)
	}
	err = a.learnRevocation(SignRevocation(b.key, s.mesh, b.Signed(), a.key.Peer(), "rival", time.Now()))
	wantCode(t, err, pcm.Unauthorized)
}

func TestRenewal(t *testing.T) {
	s := newSite(t)
	issuer := s.prepare("issuer", nil, pcm.RoleIssuer)
	var b *testPeer
	half := pcm.PassportLifetime/2 + time.Hour
	issuer.cfg.SelfIssue = func() (pcm.Signed, error) {
		return pcm.IssuePassport(s.root, s.root.Public(), pcm.Signed{}, s.statement(issuer.key, issuer.account, "issuer", pcm.RoleIssuer), issuer.clock.now())
	}
	issuer.start(t)
	b = s.prepare("b", issuer)
	stored := make(chan pcm.Signed, 1)
	b.cfg.OnPassport = func(s pcm.Signed) { stored <- s }
	b.start(t, issuer)
	eventually(t, "connected", sees(issuer, b))
	before := b.Own()

	ctx := ctxFor(t, 20*time.Second)
	if wait := b.renew(ctx); wait <= 0 {
		t.Fatal("renewed long before half of the lifetime")
	}
	issuer.clock.advance(half)
	b.clock.advance(half)
	if wait := b.renew(ctx); wait < renewRetry {
		t.Fatalf("the issuer's own passport ends with b's, so there is nothing to gain; looks again in %s", wait)
	}
	if wait := issuer.renew(ctx); wait != 0 {
		t.Fatal("the root's holder did not renew its own passport")
	}
	if wait := b.renew(ctx); wait != 0 {
		t.Fatal("not renewed")
	}
	after := b.Own()
	if after.NotAfter <= before.NotAfter || after.Peer != before.Peer || after.Account != before.Account {
		t.Errorf("before %+v, after %+v", before, after)
	}
	if got := <-stored; string(got.Payload) != string(b.Signed().Payload) {
		t.Error("another passport was stored")
	}
	eventually(t, "the issuer sees the new passport", func() bool {
		p, ok := issuer.Passport(b.key.Peer())
		return ok && p.NotAfter == after.NotAfter
	})
	if !sees(issuer, b)() {
		t.Error("renewal cut the connection")
	}
	// b is no issuer.
	_, err := issuer.Call(ctx, b.key.Peer(), ProtoRenew, nil)
	wantCode(t, err, pcm.Forbidden)
}

// TestHugeMessages sends the claim and part of a 100 MB message to each protocol.
func TestHugeMessages(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	a.HandleCall(protoEcho, Limits{}, echo)
	a.ServeJoin(func(context.Context, JoinRequest, pcm.Invite, pcm.PeerID) (JoinReply, error) {
		t.Error("join was served")
		return JoinReply{}, nil
	})
	member := s.peer("member", a)
	eventually(t, "connected", sees(a, member))
	out, id := stranger(t, a)

	const huge = 100 << 20
	claim := binary.AppendUvarint(nil, huge)
	call := binary.AppendUvarint([]byte{0}, huge)
	gossip := claim
	cases := []struct {
		from  *baseHost
		proto protocol.ID
		head  []byte
	}{
		{out, ProtoJoin, claim}, {out, ProtoHello, claim},
		{member.base, ProtoOffers, call}, {member.base, ProtoRenew, call}, {member.base, protoEcho, call},
		{member.base, "/meshsub/1.2.0", gossip}, {member.base, ProtoHello, claim}, // last: a bad hello cuts off
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for _, c := range cases {
		if c.from == out && out.Network().Connectedness(id) != network.Connected {
			out, id = stranger(t, a) // the last refusal cut it off
			c.from = out
		}
		ctx := ctxFor(t, 20*time.Second)
		st, err := c.from.NewStream(network.WithNoDial(ctx, "test"), id, c.proto)
		if err != nil {
			t.Fatalf("%s: %v", c.proto, err)
		}
		st.SetDeadline(time.Now().Add(time.Second)) // whom nobody reads any more blocks
		go io.Copy(io.Discard, st)                  // takes the refusal
		_, err = st.Write(c.head)
		block := make([]byte, 64<<10)
		sent := 0
		for err == nil && sent < huge {
			var n int
			n, err = st.Write(block)
			sent += n
		}
		st.Reset()
		if sent >= huge {
			t.Errorf("%s took all %d bytes", c.proto, sent)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
}

func TestAddressesToldToOthers(t *testing.T) {
	parse := func(ss ...string) (out []ma.Multiaddr) {
		for _, s := range ss {
			out = append(out, ma.StringCast(s))
		}
		return out
	}
	got := dialable(parse("/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.5/tcp/1", "/ip6/fe80::1/tcp/1", "/ip6/::1/tcp/1"))
	if len(got) != 1 || got[0].String() != "/ip4/10.0.0.5/tcp/1" {
		t.Errorf("with a LAN address: %v", got)
	}
	got = dialable(parse("/ip4/127.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1"))
	if len(got) != 1 || got[0].String() != "/ip4/127.0.0.1/tcp/1" {
		t.Errorf("loopback only: %v", got)
	}
	ok := usable([]string{
		"/ip4/10.0.0.5/tcp/1", "/dns4/a.example/udp/4001/quic-v1",
		"/ip4/10.0.0.5/tcp/1/p2p-circuit", "/ip4/10.0.0.5/tcp/1/ws", "/unix/tmp/x", "nonsense", "/ip4/10.0.0.5",
	})
	if len(ok) != 2 {
		t.Errorf("usable: %v", ok)
	}
}
