package mesh

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// inviter is a peer that serves joins as a node does: each secret once, save for the same peer.
type inviter struct {
	*testPeer
	s      *site
	mu     sync.Mutex
	burned map[pcm.Digest]pcm.PeerID
	level  int // that the last newcomer said
}

func (s *site) inviter(name string) *inviter {
	in := &inviter{testPeer: s.prepare(name, nil, pcm.RoleIssuer).start(s.t), s: s, burned: map[pcm.Digest]pcm.PeerID{}}
	cell := pcm.NewCellID()
	in.ServeJoin(func(_ context.Context, r JoinRequest, inv pcm.Invite, from pcm.PeerID) (JoinReply, error) {
		in.mu.Lock()
		defer in.mu.Unlock()
		if by, used := in.burned[inv.Hash]; used && by != from {
			return JoinReply{}, pcm.Errorf(pcm.Refused, "this token was used by another peer")
		}
		in.burned[inv.Hash], in.level = from, r.Level
		passport, err := pcm.IssuePassport(in.key, s.root.Public(), in.Signed(), r.Statement(s.mesh, inv.Roles), time.Now())
		return JoinReply{Passport: passport, Cell: cell, CellName: "first", Root: s.root.Public(), Peers: in.Addrs()}, err
	})
	return in
}

// token makes a token; mend changes the invite before it is signed by key.
func (in *inviter) token(key pcm.Key, mend func(*pcm.Invite)) pcm.Token {
	secret := slices.Clone(pcm.NewKey().Seed())
	inv := pcm.Invite{
		Mesh: in.s.mesh, Root: in.s.root.Public(), Cell: pcm.NewCellID(), Issuer: key.Peer(), Addrs: in.Addrs(),
		Hash: pcm.DigestOf(secret), NotAfter: time.Now().Add(time.Hour).UnixMilli(),
	}
	if mend != nil {
		mend(&inv)
	}
	return pcm.Token{Invite: key.Seal(pcm.DomainInvite, inv), Secret: secret}
}

func (s *site) joinWith(token string, key pcm.Key) (JoinReply, error) {
	return Join(ctxFor(s.t, 20*time.Second), JoinConfig{
		Key: key, Account: pcm.NewKey(), Name: "newcomer", Labels: pcm.Labels{"region": "eu"}, Token: token,
		Logger: s.prepare("newcomer", nil).cfg.Logger,
	})
}

func TestJoin(t *testing.T) {
	s := newSite(t)
	in := s.inviter("in")
	token := in.token(in.key, nil).String()
	key, account := pcm.NewKey(), pcm.NewKey()
	cfg := JoinConfig{Key: key, Account: account, Name: "newcomer", Labels: pcm.Labels{"region": "eu"}, Token: token, Logger: in.cfg.Logger}
	reply, err := Join(ctxFor(t, 20*time.Second), cfg)
	if err != nil {
		t.Fatal(err)
	}
	p, err := pcm.OpenPassport(reply.Passport, s.root.Public(), time.Now())
	if err != nil || p.Peer != key.Peer() || p.Account != account.Account() || p.Labels["region"] != "eu" || p.Has(pcm.RoleIssuer) {
		t.Fatalf("passport %+v, %v", p, err)
	}
	if again, err := Join(ctxFor(t, 20*time.Second), cfg); err != nil || again.Cell != reply.Cell {
		t.Errorf("the same peer with the same token again: %v", err)
	}
	// The newcomer takes its place with what it got, and nothing else.
	n := &testPeer{key: key, account: account, clock: &clock{}}
	n.cfg = Config{Key: key, Root: reply.Root, Passport: reply.Passport, Bootstrap: reply.Peers, Logger: in.cfg.Logger}
	m, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.run(t, m)
	eventually(t, "newcomer connected", sees(in.testPeer, n))

	// A second peer with the same token.
	_, err = s.joinWith(token, pcm.NewKey())
	wantCode(t, err, pcm.Refused)
	wantText(t, err, "used")
}

func TestJoinRefusals(t *testing.T) {
	s := newSite(t)
	in := s.inviter("in")
	plain := s.peer("plain", in.testPeer) // a member without the issuer role
	eventually(t, "connected", sees(in.testPeer, plain))
	foreign := newSite(t).inviter("foreign")

	expired := func(i *pcm.Invite) { i.NotAfter = time.Now().Add(-time.Hour).UnixMilli() }
	forged := in.token(in.key, nil)
	forged.Invite.Payload = append(slices.Clone(forged.Invite.Payload[:len(forged.Invite.Payload)-1]), 0)
	wrongSecret := in.token(in.key, nil)
	wrongSecret.Secret = []byte("guess")

	for _, c := range []struct {
		name  string
		token string
		code  pcm.Code
		text  string
	}{
		{"no token", "hello", pcm.Invalid, "not a token"},
		{"cut short", in.token(in.key, nil).String()[:80], pcm.Invalid, "copy the whole line"},
		{"forged", forged.String(), pcm.Unauthorized, "signature"},
		{"wrong secret", wrongSecret.String(), pcm.Invalid, "secret"},
		{"expired", in.token(in.key, expired).String(), pcm.Refused, "expired"},
		{"by a stranger", in.token(pcm.NewKey(), nil).String(), pcm.Unauthorized, "not known here"},
		{"by a member that may not invite", in.token(plain.key, nil).String(), pcm.Unauthorized, "may not invite"},
		{"without address", in.token(in.key, func(i *pcm.Invite) { i.Addrs = nil }).String(), pcm.Invalid, "no address"},
		{"nobody there", in.token(in.key, func(i *pcm.Invite) { i.Addrs = []string{"/ip4/127.0.0.1/tcp/1/p2p/" + string(in.key.Peer())} }).String(), pcm.Unavailable, "could be reached"},
		{"of another mesh", foreign.token(foreign.key, func(i *pcm.Invite) { i.Addrs = in.Addrs() }).String(), pcm.Refused, "is for"},
		{"where nobody serves joins", in.token(in.key, func(i *pcm.Invite) { i.Addrs = plain.Addrs() }).String(), pcm.Unavailable, "does not serve joins"},
	} {
		_, err := s.joinWith(c.token, pcm.NewKey())
		if pcm.ErrorCode(err) != c.code {
			t.Errorf("%s: code %q, want %q: %v", c.name, pcm.ErrorCode(err), c.code, err)
			continue
		}
		wantText(t, err, c.text)
	}
	if len(in.burned) != 0 {
		t.Errorf("refused joins reached the ledger: %v", in.burned)
	}
}

// TestJoinOfOlderReleases: newcomers say how far they speak the ledger's rules; those of a
// release that does not know how are served, and so are those who ask a peer of one.
func TestJoinOfOlderReleases(t *testing.T) {
	s := newSite(t)
	in := s.inviter("in")
	h, id := stranger(t, in.testPeer)
	account, tok := pcm.NewKey(), in.token(in.key, nil)
	self := pcm.PeerID(h.ID().String())
	framed, err := knock(t, h, id, protoJoin10, appendFrame(nil, pcm.MustMarshal(JoinRequest{
		Invite: tok.Invite, Secret: tok.Secret, Peer: self, Account: account.Account(), AccountSig: pcm.SignJoin(account, s.mesh, self), Name: "x",
	})))
	if err == nil {
		err = joinRefusal(t, framed)
	}
	if err != nil {
		t.Errorf("a newcomer of an older release: %v", err)
	}
	join := func(level int) error {
		_, err := Join(ctxFor(t, 20*time.Second), JoinConfig{
			Key: pcm.NewKey(), Account: pcm.NewKey(), Name: "newcomer", Token: in.token(in.key, nil).String(), Level: level, Logger: in.cfg.Logger,
		})
		return err
	}
	if err := join(3); err != nil || in.level != 3 {
		t.Errorf("it is said that level %d is spoken: %v", in.level, err)
	}
	in.base.RemoveStreamHandler(ProtoJoin)
	if err := join(3); err != nil || in.level != 0 {
		t.Errorf("at a peer of an older release, level %d: %v", in.level, err)
	}
}

// TestJoinChecksByTheServer asks as no honest newcomer would.
func TestJoinChecksByTheServer(t *testing.T) {
	s := newSite(t)
	in := s.inviter("in")
	h, id := stranger(t, in.testPeer)
	self, account := pcm.PeerID(h.ID().String()), pcm.NewKey()
	good := func() JoinRequest {
		tok := in.token(in.key, nil)
		return JoinRequest{Invite: tok.Invite, Secret: tok.Secret, Peer: self, Account: account.Account(), AccountSig: pcm.SignJoin(account, s.mesh, self), Name: "x"}
	}
	for name, c := range map[string]struct {
		mend func(*JoinRequest)
		code pcm.Code
	}{
		"good":                  {func(*JoinRequest) {}, ""},
		"as another peer":       {func(r *JoinRequest) { r.Peer = pcm.NewKey().Peer() }, pcm.Unauthorized},
		"for another's account": {func(r *JoinRequest) { r.Account = pcm.NewKey().Account() }, pcm.Unauthorized},
		"guessed secret":        {func(r *JoinRequest) { r.Secret = []byte("x") }, pcm.Unauthorized},
		"expired": {func(r *JoinRequest) {
			tok := in.token(in.key, func(i *pcm.Invite) { i.NotAfter = 1 })
			r.Invite, r.Secret = tok.Invite, tok.Secret
		}, pcm.Refused},
		"bad name":        {func(r *JoinRequest) { r.Name = "\x1b[31m" }, pcm.Invalid},
		"too many labels": {func(r *JoinRequest) { r.Labels = pcm.Labels{"A b": "x"} }, pcm.Invalid},
	} {
		r := good()
		c.mend(&r)
		framed, err := knock(t, h, id, ProtoJoin, appendFrame(nil, pcm.MustMarshal(r)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := joinRefusal(t, framed); pcm.ErrorCode(err) != c.code {
			t.Errorf("%s: %v, want code %q", name, err, c.code)
		}
	}
}
