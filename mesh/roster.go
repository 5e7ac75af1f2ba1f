package mesh

import (
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// roster is every peer known: met, told by others, configured or remembered.
// It holds at most maxRoster peers and says whom to dial when.
type roster struct {
	mu    sync.Mutex
	peers map[peer.ID]*entry
	dirty bool          // differs from the peers file
	news  chan struct{} // has an element when that should be written soon
}

type entry struct {
	id       peer.ID
	addrs    []ma.Multiaddr
	pinned   bool // from Bootstrap: dialled for ever, never dropped
	met      bool // has shown a passport to this peer, now or in an earlier run
	passport pcm.Passport
	signed   pcm.Signed // zero: never seen
	seenAt   time.Time  // last connected; zero: never

	dialling bool
	fails    int       // in a row
	next     time.Time // not dialled before
}

// Back-off of dialling: quick for who was just there, long for who refuses.
const (
	firstRetry   = 500 * time.Millisecond
	longestRetry = 2 * time.Minute
	refusedRetry = 10 * time.Minute
	forgetAfter  = 8 // failures of a peer known by hearsay alone
)

func retryAfter(fails int) time.Duration {
	d := longestRetry
	if fails < 16 {
		d = min(firstRetry<<max(fails-1, 0), longestRetry)
	}
	return jitter(d)
}

// jitter spreads d by a quarter to either side.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// entryLocked finds or makes an entry; nil if there is no room. mu must be held.
func (r *roster) entryLocked(p peer.ID) *entry {
	if e := r.peers[p]; e != nil {
		return e
	}
	if len(r.peers) >= maxRoster && !r.evictLocked() {
		return nil
	}
	if r.peers == nil {
		r.peers = map[peer.ID]*entry{}
	}
	e := &entry{id: p}
	r.peers[p] = e
	return e
}

// evictLocked drops the least useful entry: hearsay first, then whoever was seen longest ago.
func (r *roster) evictLocked() bool {
	var worst *entry
	for _, e := range r.peers {
		if !e.pinned && !e.dialling && (worst == nil || e.seenAt.Before(worst.seenAt)) {
			worst = e
		}
	}
	if worst == nil {
		return false
	}
	delete(r.peers, worst.id)
	return true
}

// pin adds a bootstrap address.
func (r *roster) pin(p peer.ID, a ma.Multiaddr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entryLocked(p); e != nil {
		e.pinned = true
		e.add([]ma.Multiaddr{a})
	}
}

func (e *entry) add(addrs []ma.Multiaddr) (grew bool) {
	for _, a := range addrs {
		if len(e.addrs) < maxAddrs && !slices.ContainsFunc(e.addrs, a.Equal) {
			e.addrs = append(e.addrs, a)
			grew = true
		}
	}
	return grew
}

// met notes an admitted peer. What it says of its own addresses replaces hearsay.
func (r *roster) met(p peer.ID, passport pcm.Passport, signed pcm.Signed, addrs []string, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entryLocked(p)
	if e == nil {
		return
	}
	known, before := e.met && slices.Equal(e.signed.Payload, signed.Payload), e.addrs
	e.met, e.passport, e.signed, e.seenAt = true, passport, signed, now
	e.fails, e.next = 0, time.Time{}
	if own := usable(addrs); len(own) > 0 {
		if e.pinned {
			own = append(own, e.addrs...) // what the operator wrote stays
		}
		e.addrs = nil
		e.add(own)
	}
	r.dirty = true
	if !known || !slices.EqualFunc(before, e.addrs, ma.Multiaddr.Equal) {
		r.announceLocked()
	}
}

// announceLocked has the peers file written soon: a peer that is killed finds by it
// whom it has met. mu must be held.
func (r *roster) announceLocked() {
	r.dirty = true
	select {
	case r.news <- struct{}{}:
	default:
	}
}

// learnPassport notes a checked passport of a peer that may never have been met.
func (r *roster) learnPassport(passport pcm.Passport, signed pcm.Signed) {
	p, err := peer.Decode(string(passport.Peer))
	if err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entryLocked(p); e != nil && passport.IssuedAt >= e.passport.IssuedAt {
		e.passport, e.signed = passport, signed
	}
}

// hearsay notes members that another member told of.
func (r *roster) hearsay(self peer.ID, peers []peerAddrs) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, pa := range peers {
		p, err := peer.Decode(string(pa.Peer))
		if err != nil || p == self || len(pa.Addrs) > maxAddrs {
			continue
		}
		if addrs := usable(pa.Addrs); len(addrs) > 0 {
			if e := r.entryLocked(p); e != nil && e.add(addrs) {
				e.next = time.Time{}
			}
		}
	}
}

// usable keeps what can be dialled of a peer's addresses: plain TCP and QUIC by IP or name.
func usable(addrs []string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range addrs {
		if len(s) > 256 || len(out) == maxAddrs {
			continue
		}
		a, err := ma.NewMultiaddr(s)
		if err == nil && plain(a) {
			out = append(out, a)
		}
	}
	return out
}

// plain tells whether a is one host and one TCP or QUIC port, and nothing more.
func plain(a ma.Multiaddr) bool {
	if len(a) < 2 || len(a) > 3 {
		return false
	}
	switch a[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6, ma.P_DNS4, ma.P_DNS6, ma.P_DNS:
	default:
		return false
	}
	if len(a) == 2 {
		return a[1].Protocol().Code == ma.P_TCP
	}
	return a[1].Protocol().Code == ma.P_UDP && a[2].Protocol().Code == ma.P_QUIC_V1
}

// lost notes a broken connection: dial again soon, not both sides at once.
func (r *roster) lost(p peer.ID, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.peers[p]; e != nil {
		e.seenAt, e.fails = now, 0
		e.next = now.Add(100*time.Millisecond + rand.N(firstRetry))
		r.dirty = true
	}
}

// refused notes that a dial or a hello came to nothing.
func (r *roster) refused(p peer.ID, why error, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.peers[p]
	if e == nil {
		return
	}
	e.fails++
	wait := retryAfter(e.fails)
	switch pcm.ErrorCode(why) {
	case pcm.Unavailable, pcm.Busy:
	default:
		wait = jitter(refusedRetry)
	}
	e.next = now.Add(wait)
	if !e.pinned && !e.met && e.fails >= forgetAfter {
		delete(r.peers, p)
	}
}

// due returns peers to dial now, marked as being dialled, and when to look
// again (zero: when something happens). room bounds how many of those that
// aren't pinned are returned.
func (r *roster) due(now time.Time, room, limit int, skip func(peer.ID) bool) (dial []peer.AddrInfo, next time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.peers {
		if e.dialling || len(e.addrs) == 0 || skip(e.id) || !e.pinned && room <= 0 {
			continue
		}
		if e.next.After(now) || len(dial) >= limit {
			if next.IsZero() || e.next.Before(next) {
				next = e.next
			}
			continue
		}
		if !e.pinned {
			room--
		}
		e.dialling = true
		dial = append(dial, peer.AddrInfo{ID: e.id, Addrs: slices.Clone(e.addrs)})
	}
	return dial, next
}

func (r *roster) dialled(p peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.peers[p]; e != nil {
		e.dialling = false
	}
}

func (r *roster) addrs(p peer.ID) []ma.Multiaddr {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.peers[p]; e != nil {
		return slices.Clone(e.addrs)
	}
	return nil
}

// passport is the last one that p or its offer showed; it may have expired.
func (r *roster) passport(p peer.ID) (pcm.Passport, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.peers[p]; e != nil && len(e.signed.Payload) > 0 {
		return e.passport, true
	}
	return pcm.Passport{}, false
}

// exchange is what to is told of others: those met, latest first.
func (r *roster) exchange(to peer.ID, limit int) []peerAddrs {
	r.mu.Lock()
	defer r.mu.Unlock()
	var known []*entry
	for _, e := range r.peers {
		if e.met && e.id != to && len(e.addrs) > 0 {
			known = append(known, e)
		}
	}
	slices.SortFunc(known, func(a, b *entry) int {
		if c := b.seenAt.Compare(a.seenAt); c != 0 {
			return c
		}
		return strings.Compare(string(a.id), string(b.id))
	})
	var out []peerAddrs
	for _, e := range known[:min(limit, len(known))] {
		pa := peerAddrs{Peer: pcm.PeerID(e.id.String())}
		for _, a := range e.addrs[:min(8, len(e.addrs))] {
			if plain(a) {
				pa.Addrs = append(pa.Addrs, a.String())
			}
		}
		out = append(out, pa)
	}
	return out
}

// rows copies the entries that have a passport.
func (r *roster) rows() []entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []entry
	for _, e := range r.peers {
		if len(e.signed.Payload) > 0 {
			c := *e
			c.addrs = slices.Clone(e.addrs)
			out = append(out, c)
		}
	}
	return out
}

// peersFile is what is remembered between runs.
type peersFile struct {
	Mesh        pcm.MeshID   `json:"mesh"`
	Peers       []fileEntry  `json:"peers"`
	Revocations []pcm.Signed `json:"revocations,omitempty"`
}

type fileEntry struct {
	ID       string      `json:"id"`
	Addrs    []string    `json:"addrs"`
	SeenAt   time.Time   `json:"seen_at"`
	Passport *pcm.Signed `json:"passport,omitempty"`
}

const maxPeersFile = 32 << 20

// loadPeers reads the peers file. A file that can't be read as one is an error
// that names it; none at all is not.
func (m *Mesh) loadPeers() error {
	if m.cfg.PeersFile == "" {
		return nil
	}
	info, err := os.Stat(m.cfg.PeersFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Size() > maxPeersFile {
		return pcm.Errorf(pcm.TooLarge, "peers file %s has %d bytes, over its bound of %d: remove it; peers are found again through the bootstrap addresses", m.cfg.PeersFile, info.Size(), maxPeersFile)
	}
	data, err := os.ReadFile(m.cfg.PeersFile)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't read the peers file %s: %w", m.cfg.PeersFile, err)
	}
	var f peersFile
	if err := json.Unmarshal(data, &f); err != nil {
		return pcm.Errorf(pcm.Invalid, "peers file %s is damaged (%w): remove it; peers are found again through the bootstrap addresses", m.cfg.PeersFile, err)
	}
	if f.Mesh != m.cfg.Mesh {
		m.log.Warn("peers file is of another mesh and is ignored", "file", m.cfg.PeersFile, "its_mesh", f.Mesh)
		return nil
	}
	now := m.cfg.Now()
	for _, s := range f.Revocations {
		if r, err := openRevocation(s, m.cfg.Mesh, m.cfg.Root, now); err == nil {
			m.bans.add(r, s, now)
		}
	}
	r := &m.roster
	for _, fe := range f.Peers {
		p, err := peer.Decode(fe.ID)
		if err != nil || p == m.self {
			continue
		}
		r.mu.Lock()
		if e := r.entryLocked(p); e != nil {
			e.add(usable(fe.Addrs))
			e.met, e.seenAt = true, fe.SeenAt
			if fe.Passport != nil {
				if pass, err := pcm.OpenPassport(*fe.Passport, m.cfg.Root, now); err == nil && string(pass.Peer) == fe.ID {
					e.passport, e.signed = pass, *fe.Passport
				}
			}
		}
		r.mu.Unlock()
	}
	return nil
}

// savePeers writes the peers file if anything changed, all of it or nothing.
func (m *Mesh) savePeers() error {
	if m.cfg.PeersFile == "" {
		return nil
	}
	r := &m.roster
	f := peersFile{Mesh: m.cfg.Mesh, Revocations: m.bans.list(maxRevocations, m.cfg.Now())}
	r.mu.Lock()
	if !r.dirty {
		r.mu.Unlock()
		return nil
	}
	for _, e := range r.peers {
		if !e.met {
			continue
		}
		fe := fileEntry{ID: e.id.String(), SeenAt: e.seenAt}
		for _, a := range e.addrs {
			fe.Addrs = append(fe.Addrs, a.String())
		}
		if len(e.signed.Payload) > 0 {
			s := e.signed
			fe.Passport = &s
		}
		f.Peers = append(f.Peers, fe)
	}
	r.dirty = false
	r.mu.Unlock()
	slices.SortFunc(f.Peers, func(a, b fileEntry) int { return strings.Compare(a.ID, b.ID) })
	data, err := json.MarshalIndent(f, "", " ")
	if err == nil {
		err = writeAtomic(m.cfg.PeersFile, data)
	}
	if err != nil {
		r.mu.Lock()
		r.dirty = true
		r.mu.Unlock()
		return pcm.Errorf(pcm.Internal, "can't write the peers file %s: %w", m.cfg.PeersFile, err)
	}
	return nil
}

func writeAtomic(path string, data []byte) error {
	t, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(t.Name()) // no effect once renamed
	_, err = t.Write(data)
	err = errors.Join(err, t.Sync(), t.Close())
	if err != nil {
		return err
	}
	return os.Rename(t.Name(), path)
}
