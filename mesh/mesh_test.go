package mesh

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/network"
)

// site is what a test needs to make peers of one mesh.
type site struct {
	t    testing.TB
	root pcm.Key
	mesh pcm.MeshID
}

func newSite(t testing.TB) *site {
	root := pcm.NewKey()
	return &site{t, root, pcm.NewMeshID(root.Public())}
}

type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

// testPeer is a peer before or after it was started.
type testPeer struct {
	*Mesh
	key     pcm.Key
	account pcm.Key
	cfg     Config
	clock   *clock
	stop    func()
}

func (s *site) statement(key, account pcm.Key, name string, roles ...pcm.Role) pcm.Passport {
	return pcm.Passport{
		Mesh: s.mesh, Peer: key.Peer(), Account: account.Account(), Name: name, Roles: roles,
		AccountBy: pcm.SignJoin(account, s.mesh, key.Peer()),
	}
}

// prepare makes a peer's keys, passport and config. issuer nil: the root signs.
func (s *site) prepare(name string, issuer *testPeer, roles ...pcm.Role) *testPeer {
	s.t.Helper()
	p := &testPeer{key: pcm.NewKey(), account: pcm.NewKey(), clock: &clock{}}
	signer, own := s.root, pcm.Signed{}
	if issuer != nil {
		signer, own = issuer.key, issuer.cfg.Passport
	}
	passport, err := pcm.IssuePassport(signer, s.root.Public(), own, s.statement(p.key, p.account, name, roles...), time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	p.cfg = Config{
		Key: p.key, Root: s.root.Public(), Passport: passport,
		Listen: []string{"/ip4/127.0.0.1/tcp/0"},
		Logger: slog.New(slog.NewTextHandler(testWriter{s.t, name}, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:    p.clock.now,
	}
	return p
}

type testWriter struct {
	t    testing.TB
	name string
}

func (w testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		w.t.Logf("%s: %s", w.name, b)
	}
	return len(b), nil
}

// start runs a peer that knows the given others.
func (p *testPeer) start(t testing.TB, others ...*testPeer) *testPeer {
	t.Helper()
	for _, o := range others {
		p.cfg.Bootstrap = append(p.cfg.Bootstrap, o.Addrs()...)
	}
	m, err := New(p.cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.run(t, m)
	return p
}

func (p *testPeer) run(t testing.TB, m *Mesh) {
	p.Mesh = m
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	var stopped bool
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		m.Close()
	}
	t.Cleanup(p.stop)
}

func (s *site) peer(name string, others ...*testPeer) *testPeer {
	s.t.Helper()
	return s.prepare(name, nil).start(s.t, others...)
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

func sees(a, b *testPeer) func() bool {
	return func() bool {
		for _, r := range a.Peers() {
			if r.Passport.Peer == b.key.Peer() {
				return r.Connected
			}
		}
		return false
	}
}

func wantCode(t testing.TB, err error, code pcm.Code) {
	t.Helper()
	if pcm.ErrorCode(err) != code {
		t.Fatalf("error %q has code %q, want %q", err, pcm.ErrorCode(err), code)
	}
}

const protoEcho = "/test/echo/1.0.0"

func echo(_ context.Context, _ pcm.Passport, req []byte) ([]byte, error) { return req, nil }

func ctxFor(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestThreePeersThatKnowOneKnowEachOther(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	eventually(t, "b joins a", sees(a, b))
	c := s.peer("c", a)
	for _, pair := range [][2]*testPeer{{a, b}, {b, a}, {a, c}, {c, a}, {b, c}, {c, b}} {
		eventually(t, "all connected", sees(pair[0], pair[1]))
	}
	for _, r := range c.Peers() {
		if r.Transport != "tcp" || r.Latency <= 0 || len(r.Addrs) == 0 || r.SeenAt.IsZero() {
			t.Errorf("row lacks something: %+v", r)
		}
	}
	if p, ok := c.Passport(b.key.Peer()); !ok || p.Name != "b" || p.Account != b.account.Account() {
		t.Errorf("passport of b as c has it: %+v, %v", p, ok)
	}
	if len(a.Addrs()) != 1 {
		t.Errorf("addresses %v, want the one loopback address", a.Addrs())
	}
}

// Two that say hello to a third at the same moment are not yet in what it tells of others.
func TestPeersThatComeAtOnceFindEachOther(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b, c := s.peer("b", a), s.peer("c", a)
	eventually(t, "b and c connected", sees(b, c))
	eventually(t, "c and b connected", sees(c, b))
}

func TestQUICAlone(t *testing.T) {
	s := newSite(t)
	a := s.prepare("a", nil)
	a.cfg.Listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1"}
	a.start(t)
	b := s.peer("b", a)
	a.HandleCall(protoEcho, Limits{}, echo)
	resp, err := b.Call(ctxFor(t, 10*time.Second), a.key.Peer(), protoEcho, []byte("hi"))
	if err != nil || string(resp) != "hi" {
		t.Fatalf("%q, %v", resp, err)
	}
	if rows := b.Peers(); rows[0].Transport != "quic" {
		t.Errorf("transport %q", rows[0].Transport)
	}
}

func TestPortTaken(t *testing.T) {
	s := newSite(t)
	for _, listen := range []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"} {
		a := s.prepare("a", nil)
		a.cfg.Listen = []string{listen}
		a.start(t)
		taken := a.base.Network().ListenAddresses()[0].String()
		b := s.prepare("b", nil)
		b.cfg.Listen = []string{taken}
		_, err := New(b.cfg)
		wantCode(t, err, pcm.Conflict)
		wantText(t, err, taken, "--listen")
	}
}

func TestRedialAfterRestart(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	eventually(t, "connected", sees(b, a))
	events := make(chan PeerEvent, 16)
	b.OnPeer(func(e PeerEvent) { events <- e })
	if e := <-events; !e.Connected || e.Passport.Peer != a.key.Peer() {
		t.Fatalf("first event %+v", e)
	}
	addr := a.base.Network().ListenAddresses()[0].String()
	a.stop()
	if e := <-events; e.Connected {
		t.Fatalf("event after stop %+v", e)
	}
	a.cfg.Listen = []string{addr} // a knows nobody: b has to dial
	a.start(t)
	if e := <-events; !e.Connected {
		t.Fatalf("event after restart %+v", e)
	}
	eventually(t, "connected again", sees(a, b))
}

func TestPeersFileFindsTheMeshAgain(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.prepare("b", nil)
	b.cfg.PeersFile = filepath.Join(t.TempDir(), "peers.json")
	b.start(t, a)
	eventually(t, "connected", sees(b, a))
	b.stop()
	b.cfg.Bootstrap = nil
	b.start(t)
	eventually(t, "connected again without bootstrap", sees(b, a))

	b.stop()
	other := newSite(t).prepare("b", nil)
	other.cfg.PeersFile = b.cfg.PeersFile
	other.start(t)
	if rows := other.Peers(); len(rows) != 0 {
		t.Errorf("peers of another mesh were taken over: %+v", rows)
	}
}

func TestCalls(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	a.HandleCall(protoEcho, Limits{Request: 1 << 20}, func(_ context.Context, from pcm.Passport, req []byte) ([]byte, error) {
		if from.Name != "b" {
			t.Errorf("request from %q", from.Name)
		}
		if string(req) == "no" {
			return nil, pcm.Errorf(pcm.Conflict, "the state has moved on to %d", 7)
		}
		return req, nil
	})
	ctx := ctxFor(t, 20*time.Second)
	for _, size := range []int{0, 1, 100_000, 1 << 20} {
		resp, err := b.Call(ctx, a.key.Peer(), protoEcho, make([]byte, size))
		if err != nil || len(resp) != size {
			t.Fatalf("echo of %d bytes: %d bytes, %v", size, len(resp), err)
		}
	}
	_, err := b.Call(ctx, a.key.Peer(), protoEcho, []byte("no"))
	wantCode(t, err, pcm.Conflict)
	wantText(t, err, "moved on to 7")
	for _, size := range []int{1<<20 + 1, pcm.MaxMessage} {
		_, err = b.Call(ctx, a.key.Peer(), protoEcho, make([]byte, size))
		wantCode(t, err, pcm.TooLarge)
		wantText(t, err, "bound of 1048576")
	}
	_, err = b.Call(ctx, a.key.Peer(), protoEcho, make([]byte, pcm.MaxMessage+1))
	wantCode(t, err, pcm.TooLarge)
	_, err = b.Call(ctx, a.key.Peer(), "/test/nothing/1.0.0", nil)
	wantCode(t, err, pcm.NotFound)
	_, err = b.Call(ctx, pcm.NewKey().Peer(), protoEcho, nil)
	wantCode(t, err, pcm.Unavailable)
	_, err = b.Call(ctx, "nonsense", protoEcho, nil)
	wantCode(t, err, pcm.Invalid)
}

func TestCallEndsWithItsContext(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	handlerEnded := make(chan struct{})
	a.HandleCall(protoEcho, Limits{}, func(ctx context.Context, _ pcm.Passport, _ []byte) ([]byte, error) {
		<-ctx.Done()
		close(handlerEnded)
		return nil, ctx.Err()
	})
	eventually(t, "connected", sees(b, a))
	_, err := b.Call(ctxFor(t, 200*time.Millisecond), a.key.Peer(), protoEcho, nil)
	wantCode(t, err, pcm.Unavailable)
	<-handlerEnded // the deadline travelled along
}

func TestTooManyCallsAtOnceAreBusy(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	entered, release := make(chan struct{}, 2), make(chan struct{})
	a.HandleCall(protoEcho, Limits{Concurrent: 2}, func(context.Context, pcm.Passport, []byte) ([]byte, error) {
		entered <- struct{}{}
		<-release
		return nil, nil
	})
	ctx := ctxFor(t, 20*time.Second)
	ended := make(chan error, 2)
	for range 2 {
		go func() { _, err := b.Call(ctx, a.key.Peer(), protoEcho, nil); ended <- err }()
	}
	<-entered
	<-entered
	_, err := b.Call(ctx, a.key.Peer(), protoEcho, nil)
	wantCode(t, err, pcm.Busy)
	close(release)
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestStreams(t *testing.T) {
	s := newSite(t)
	a := s.peer("a")
	b := s.peer("b", a)
	a.Handle(protoEcho, func(_ context.Context, from pcm.Passport, st network.Stream) {
		defer st.Close()
		st.Write([]byte(from.Name))
	})
	st, err := b.Stream(ctxFor(t, 10*time.Second), a.key.Peer(), protoEcho)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	st.CloseWrite()
	buf := make([]byte, 8)
	n, _ := st.Read(buf)
	if string(buf[:n]) != "b" {
		t.Fatalf("read %q", buf[:n])
	}
}

func BenchmarkCall(b *testing.B) {
	s := newSite(b)
	p := s.peer("p")
	q := s.peer("q", p)
	p.HandleCall(protoEcho, Limits{}, echo)
	eventually(b, "connected", sees(q, p))
	req := make([]byte, 256)
	for b.Loop() {
		if _, err := q.Call(context.Background(), p.key.Peer(), protoEcho, req); err != nil {
			b.Fatal(err)
		}
	}
}
