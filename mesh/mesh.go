package mesh

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Mesh is this peer in its mesh. Its methods may be called concurrently.
type Mesh struct {
	cfg     Config
	log     *slog.Logger
	self    peer.ID
	version uint32
	oldest  uint32
	base    *baseHost
	host    *gatedHost
	ctx     context.Context // ends with Close; handlers and dials hang on it
	cancel  context.CancelFunc
	work    sync.WaitGroup // goroutines that spawn started
	topic   *pubsub.Topic
	unrelay pubsub.RelayCancelFunc

	cellTopic    *pubsub.Topic
	unrelayCells pubsub.RelayCancelFunc

	bans      revocations
	roster    roster
	book      *book
	offerRate rates
	cells     *cellBook
	cellRate  rates
	pulls     *slots
	wakeUp    chan struct{} // something to dial, cap 1
	events    *events
	closeOnce sync.Once

	mu        sync.Mutex
	closed    bool
	own       pcm.Passport
	ownSigned pcm.Signed
	sessions  map[peer.ID]*session
}

// New checks cfg, listens and serves; it dials nobody before Run. A port that
// is taken is an error with code Conflict that names the address.
func New(cfg Config) (*Mesh, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Mesh == "" {
		cfg.Mesh = pcm.NewMeshID(cfg.Root)
	}
	return newMesh(cfg, Oldest, Version)
}

func newMesh(cfg Config, oldest, newest uint32) (*Mesh, error) {
	if cfg.Mesh != pcm.NewMeshID(cfg.Root) {
		return nil, pcm.Errorf(pcm.Invalid, "root key belongs to %s, not to %s", pcm.NewMeshID(cfg.Root), cfg.Mesh)
	}
	own, err := pcm.OpenPassport(cfg.Passport, cfg.Root, cfg.Now())
	if err != nil {
		return nil, pcm.Errorf(pcm.ErrorCode(err), "this peer's own passport: %w", err)
	}
	if own.Peer != cfg.Key.Peer() {
		return nil, pcm.Errorf(pcm.Invalid, "this peer's own passport is for %s, its key is that of %s", own.Peer, cfg.Key.Peer())
	}
	listen, err := parseAddrs("listen", cfg.Listen)
	if err != nil {
		return nil, err
	}
	announce, err := parseAddrs("announce", cfg.Announce)
	if err != nil {
		return nil, err
	}
	m := &Mesh{
		cfg: cfg, log: cfg.Logger, version: newest, oldest: oldest,
		own: own, ownSigned: cfg.Passport, sessions: map[peer.ID]*session{},
		book: newBook(), cells: newCellBook(), pulls: newSlots(1), wakeUp: make(chan struct{}, 1), events: newEvents(),
	}
	m.roster.news = make(chan struct{}, 1)
	if m.self, err = peer.Decode(string(own.Peer)); err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not a peer ID: %w", own.Peer, err)
	}
	if err := m.pinBootstrap(); err != nil {
		return nil, err
	}
	if err := m.loadPeers(); err != nil {
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if m.base, err = newHost(cfg.Key, announce, cfg.PortMap); err != nil {
		m.cancel()
		return nil, err
	}
	m.host = &gatedHost{m.base, m}
	m.base.Network().Notify(notifiee{m})
	m.base.SetStreamHandler(ProtoHello, m.hearHello)
	m.HandleCall(ProtoRenew, Limits{Request: 16, Concurrent: 2}, m.serveRenew)
	m.HandleCall(ProtoCells, Limits{Request: 256 << 10, Concurrent: 2}, m.serveCells)
	m.HandleCall(ProtoOffers, Limits{Request: 1 << 20, Concurrent: 2}, m.serveOffers)
	if err = m.startGossip(); err == nil {
		err = m.base.listen(m.ctx, listen) // last: who dials finds everything in place
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Mesh) pinBootstrap() error {
	addrs, err := parseAddrs("bootstrap", m.cfg.Bootstrap)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		at, p := peer.SplitAddr(a)
		if p == "" || at == nil {
			return pcm.Errorf(pcm.Invalid, "bootstrap: %s lacks the peer at its end: /ip4/…/tcp/PORT/p2p/PEER", a)
		}
		if p != m.self {
			m.roster.pin(p, at)
		}
	}
	return nil
}

// Close cuts all connections and ends what Run and the handlers do. It waits for the latter.
func (m *Mesh) Close() error {
	var err error
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.closed = true
		m.mu.Unlock()
		if saveErr := m.savePeers(); saveErr != nil {
			m.log.Warn("peers not saved", "reason", saveErr)
		}
		m.cancel()
		if m.unrelay != nil {
			m.unrelay()
		}
		if m.unrelayCells != nil {
			m.unrelayCells()
		}
		err = m.base.Close()
		m.work.Wait()
		m.events.close()
	})
	return err
}

// spawn runs f unless the mesh is closing; Close waits for it.
func (m *Mesh) spawn(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.work.Go(f)
}

// Host is the libp2p host on which only admitted peers exist: streams from
// others are reset, and opening a stream or connecting waits for the peer's hello.
func (m *Mesh) Host() host.Host { return m.host }

// Self is this peer's ID.
func (m *Mesh) Self() pcm.PeerID { return pcm.PeerID(m.self.String()) }

// Own is this peer's own passport as it stands, renewals included.
func (m *Mesh) Own() pcm.Passport {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.own
}

// Signed is Own as it was signed.
func (m *Mesh) Signed() pcm.Signed {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ownSigned
}

// Addrs is where others can dial this peer: multiaddrs with /p2p/ at the end.
// Loopback addresses are among them only if there are no others.
func (m *Mesh) Addrs() []string {
	var out []string
	for _, a := range m.bareAddrs() {
		out = append(out, a+"/p2p/"+m.self.String())
	}
	return out
}

func (m *Mesh) bareAddrs() []string {
	addrs := m.base.Addrs()
	var out []string
	for _, a := range addrs[:min(len(addrs), maxAddrs)] {
		out = append(out, a.String())
	}
	slices.SortStableFunc(out, func(a, b string) int { return strings.Compare(kind(a), kind(b)) })
	return out
}

// kind sorts TCP addresses before QUIC ones.
func kind(a string) string {
	if strings.Contains(a, "/tcp/") {
		return "0"
	}
	return "1"
}

// Passport finds a peer's passport: of this peer, of a connected one, or the
// last that was seen of another, if it still counts.
func (m *Mesh) Passport(p pcm.PeerID) (pcm.Passport, bool) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return pcm.Passport{}, false
	}
	if id == m.self {
		return m.Own(), true
	}
	if pass, err := m.admitted(id); err == nil {
		return pass, true
	}
	pass, ok := m.roster.passport(id)
	return pass, ok && m.stillValid(pass) == nil
}

// PeerRow is one other peer of the mesh, connected or remembered.
type PeerRow struct {
	Passport  pcm.Passport
	Connected bool
	Addrs     []string      // without /p2p/; when connected the one in use comes first
	Transport string        // "tcp" or "quic"; "" when not connected
	Latency   time.Duration // last measured round trip; 0 when not connected
	SeenAt    time.Time     // now when connected; zero: known through others only
}

// Peers lists the other members that this peer knows a passport of, ordered by peer.
func (m *Mesh) Peers() []PeerRow {
	now := m.cfg.Now()
	var out []PeerRow
	for _, e := range m.roster.rows() {
		if e.id == m.self { // others have told of it
			continue
		}
		row := PeerRow{Passport: e.passport, SeenAt: e.seenAt}
		m.mu.Lock()
		if s := m.sessions[e.id]; s != nil && s.open {
			row.Passport, row.Connected, row.Latency, row.SeenAt = s.passport, true, s.rtt, now
		}
		m.mu.Unlock()
		if !row.Connected && m.stillValid(row.Passport) != nil {
			continue
		}
		addrs := e.addrs
		if conns := m.base.Network().ConnsToPeer(e.id); row.Connected && len(conns) > 0 {
			row.Transport = transportOf(conns[0].RemoteMultiaddr())
			addrs = append([]ma.Multiaddr{conns[0].RemoteMultiaddr()}, addrs...)
		}
		for _, a := range addrs {
			if s := a.String(); !slices.Contains(row.Addrs, s) {
				row.Addrs = append(row.Addrs, s)
			}
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b PeerRow) int { return strings.Compare(string(a.Passport.Peer), string(b.Passport.Peer)) })
	return out
}

// Protect keeps the connection manager from closing connections to a peer, e.g. a voter of this peer's cell.
func (m *Mesh) Protect(p pcm.PeerID, tag string) {
	if id, err := peer.Decode(string(p)); err == nil {
		m.base.ConnManager().Protect(id, tag)
	}
}

// connected lists the admitted peers.
func (m *Mesh) connected() []peer.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]peer.ID, 0, len(m.sessions))
	for p, s := range m.sessions {
		if s.open {
			out = append(out, p)
		}
	}
	return out
}

// measured notes a round trip to an admitted peer.
func (m *Mesh) measured(p peer.ID, rtt time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sessions[p]; s != nil && s.open {
		s.rtt = rtt
	}
}

// sweep cuts whose passport ended or was revoked, and clears what is stale.
func (m *Mesh) sweep() {
	now := m.cfg.Now()
	for _, p := range m.connected() {
		m.admitted(p) // cuts for cause
	}
	m.book.drop(func(r Row) bool {
		return now.Add(-pcm.Skew).UnixMilli() > r.Offer.NotAfter || m.stillValid(r.Passport) != nil
	})
	m.cells.drop(now)
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, s := range m.sessions {
		if !s.open && s.waiters == 0 && s.greeting == 0 && s.joining == 0 && m.base.Network().Connectedness(p) != network.Connected {
			m.endSessionLocked(s, pcm.Errorf(pcm.Unavailable, "connection to peer %s was lost", short(p)))
		}
	}
}
