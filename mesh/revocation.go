package mesh

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

const domainRevocation pcm.Domain = "pcm/revocation/1"

// revocationLifetime outlasts every passport that was issued before the
// revocation; issuers that know of it issue no more.
const revocationLifetime = 2 * pcm.PassportLifetime

// Revocation bans a peer from a mesh, whatever passport it shows. It is signed
// by the root key or by an issuer, whose passport is carried along; a peer that
// the root admitted itself can only be banned by the root.
type Revocation struct {
	Mesh     pcm.MeshID  `json:"mesh" cbor:"1,keyasint"`
	Peer     pcm.PeerID  `json:"peer" cbor:"2,keyasint"`
	Number   uint64      `json:"number" cbor:"3,keyasint"` // of two by one signer about one peer the higher counts
	IssuedAt int64       `json:"issued_at" cbor:"4,keyasint"`
	NotAfter int64       `json:"not_after" cbor:"5,keyasint"` // banned until then, Unix ms
	Reason   string      `json:"reason" cbor:"6,keyasint"`    // for people, at most 200 bytes
	Issuer   *pcm.Signed `json:"issuer,omitempty" cbor:"7,keyasint,omitempty"`
}

// SignRevocation bans peer. issuer is the signing peer's passport; zero when key is the root key.
func SignRevocation(key pcm.Key, mesh pcm.MeshID, issuer pcm.Signed, peer pcm.PeerID, reason string, now time.Time) pcm.Signed {
	r := Revocation{
		Mesh: mesh, Peer: peer, Number: uint64(now.UnixMilli()), Reason: reason,
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(revocationLifetime).UnixMilli(),
	}
	if len(issuer.Payload) > 0 {
		r.Issuer = &issuer
	}
	return key.Seal(domainRevocation, r)
}

// openRevocation checks signature, signer and form; whether the banned peer
// outranks the signer is for revocations.add to say.
func openRevocation(s pcm.Signed, mesh pcm.MeshID, root []byte, now time.Time) (Revocation, error) {
	var r Revocation
	if len(s.Payload) > maxAnnouncement {
		return r, pcm.Errorf(pcm.TooLarge, "revocation of %d bytes is over the bound of %d", len(s.Payload), maxAnnouncement)
	}
	if err := s.Open(domainRevocation, &r); err != nil {
		return r, err
	}
	if r.Mesh != mesh || r.Peer.Public() == nil || len(r.Reason) > 200 || r.NotAfter-r.IssuedAt > revocationLifetime.Milliseconds() {
		return r, pcm.Errorf(pcm.Invalid, "revocation of %s is of another mesh or over its bounds", pcm.Short(r.Peer))
	}
	if now.Add(pcm.Skew).UnixMilli() < r.IssuedAt || now.UnixMilli() > r.NotAfter {
		return r, pcm.Errorf(pcm.Invalid, "revocation of %s is not valid now", pcm.Short(r.Peer))
	}
	if r.Issuer == nil {
		if !slices.Equal(s.Signer, root) {
			return r, pcm.Errorf(pcm.Unauthorized, "revocation of %s is not signed by the root of %s", pcm.Short(r.Peer), mesh)
		}
		return r, nil
	}
	// Judged at the time of issue: a ban outlives the passport of who spoke it.
	by, err := pcm.OpenPassport(*r.Issuer, root, time.UnixMilli(r.IssuedAt))
	if err != nil {
		return r, err
	}
	if !by.Has(pcm.RoleIssuer) || !slices.Equal(by.Peer.Public(), s.Signer) {
		return r, pcm.Errorf(pcm.Unauthorized, "revocation of %s is by %s, who may not revoke", pcm.Short(r.Peer), pcm.Short(by.Peer))
	}
	return r, nil
}

// revocations are the bans that this peer knows, at most maxRevocations.
type revocations struct {
	mu     sync.Mutex
	byPeer map[pcm.PeerID]ban
}

type ban struct {
	Revocation
	signed pcm.Signed
	byRoot bool
}

// add keeps a checked revocation; false if it is nothing new or has no room.
func (rs *revocations) add(r Revocation, s pcm.Signed, now time.Time) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	have, known := rs.byPeer[r.Peer]
	byRoot := r.Issuer == nil
	if known && (have.byRoot && !byRoot || have.byRoot == byRoot && have.Number >= r.Number) {
		return false
	}
	if !known && len(rs.byPeer) >= maxRevocations {
		maps.DeleteFunc(rs.byPeer, func(_ pcm.PeerID, b ban) bool { return now.UnixMilli() > b.NotAfter })
		if len(rs.byPeer) >= maxRevocations {
			return false
		}
	}
	if rs.byPeer == nil {
		rs.byPeer = map[pcm.PeerID]ban{}
	}
	rs.byPeer[r.Peer] = ban{r, s, byRoot}
	return true
}

// knows tells whether s is kept already, without checking it.
func (rs *revocations) knows(s pcm.Signed) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, b := range rs.byPeer {
		if b.signed.Equal(s) {
			return true
		}
	}
	return false
}

// check returns why a checked passport doesn't count: its peer or one of its issuers is banned.
func (rs *revocations) check(p pcm.Passport, now time.Time) error {
	for {
		if err := rs.banned(p.Peer, p.Issuer == nil, now); err != nil || p.Issuer == nil {
			return err
		}
		var issuer pcm.Passport
		if err := pcm.Unmarshal(p.Issuer.Payload, &issuer); err != nil {
			return err
		}
		p = issuer
	}
}

// banned returns why a peer may not be in the mesh; byRoot: the root itself
// signed its passport, so that only the root can ban it.
func (rs *revocations) banned(p pcm.PeerID, byRoot bool, now time.Time) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	b, ok := rs.byPeer[p]
	if ok && now.UnixMilli() <= b.NotAfter && (b.byRoot || !byRoot) {
		return pcm.Errorf(pcm.Forbidden, "peer %s was banned from %s: %s", pcm.Short(p), b.Mesh, cleanText(b.Reason, 200))
	}
	return nil
}

// list returns at most limit valid revocations, newest first.
func (rs *revocations) list(limit int, now time.Time) []pcm.Signed {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	bans := slices.SortedFunc(maps.Values(rs.byPeer), func(a, b ban) int { return int(b.IssuedAt - a.IssuedAt) })
	var out []pcm.Signed
	for _, b := range bans {
		if len(out) == limit {
			break
		}
		if now.UnixMilli() <= b.NotAfter {
			out = append(out, b.signed)
		}
	}
	return out
}
