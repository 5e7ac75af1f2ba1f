package pcm

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"
)

// Skew is how far apart two peers' wall clocks may be for passports, invites,
// offers and quotes to be judged alike.
const Skew = 2 * time.Minute

// Role is what a passport allows beyond being a peer of the mesh.
type Role string

// RoleIssuer may issue passports. Without it a peer trades and nothing more.
const RoleIssuer Role = "issuer"

// Passport is the statement that lets a peer into a mesh. It is signed by the
// mesh's root key or by a peer whose own passport, carried along in Issuer, has
// RoleIssuer. The account's own signature binds peer to account, so an issuer
// can't invent one.
type Passport struct {
	Mesh      MeshID    `json:"mesh" cbor:"1,keyasint"`
	Peer      PeerID    `json:"peer" cbor:"2,keyasint"`
	Account   AccountID `json:"account" cbor:"3,keyasint"`
	Name      string    `json:"name" cbor:"4,keyasint"` // for people; not unique
	Labels    Labels    `json:"labels,omitempty" cbor:"5,keyasint,omitempty"`
	Roles     []Role    `json:"roles,omitempty" cbor:"6,keyasint,omitempty"`
	IssuedAt  int64     `json:"issued_at" cbor:"7,keyasint"` // Unix ms
	NotAfter  int64     `json:"not_after" cbor:"8,keyasint"` // Unix ms
	AccountBy []byte    `json:"account_sig" cbor:"9,keyasint"`
	Issuer    *Signed   `json:"issuer,omitempty" cbor:"10,keyasint,omitempty"` // issuer's passport; nil if the root key signed
}

// PassportLifetime is how long a passport is valid; peers renew theirs at half of it.
const PassportLifetime = 30 * 24 * time.Hour

const maxIssuers = 4 // length of a chain from the root

// JoinStatement is what an account signs to take a peer as its own.
type JoinStatement struct {
	Mesh MeshID `cbor:"1,keyasint"`
	Peer PeerID `cbor:"2,keyasint"`
}

// SignJoin signs, with the account's key, that peer acts for the account in mesh.
func SignJoin(account Key, mesh MeshID, peer PeerID) []byte {
	return account.Sign(DomainJoin, MustMarshal(JoinStatement{mesh, peer}))
}

// Has tells whether the passport gives the role.
func (p Passport) Has(r Role) bool { return slices.Contains(p.Roles, r) }

// IssuePassport signs a passport for PassportLifetime from now. Of p it takes
// mesh, peer, account (with AccountBy, see SignJoin), name, labels and roles.
// issuer is the signing peer's own passport; the zero Signed when key is the
// mesh's root key. A passport never outlives its issuer's, whose chain it
// carries. The result has been checked as every other peer will check it; the
// error says what is wrong, e.g. that the issuer has no RoleIssuer.
func IssuePassport(key Key, root []byte, issuer Signed, p Passport, now time.Time) (Signed, error) {
	p.IssuedAt, p.NotAfter, p.Issuer = now.UnixMilli(), now.Add(PassportLifetime).UnixMilli(), nil
	if len(issuer.Payload) > 0 {
		by, err := OpenPassport(issuer, root, now)
		if err != nil {
			return Signed{}, err
		}
		p.NotAfter, p.Issuer = min(p.NotAfter, by.NotAfter), &issuer
	}
	s := key.Seal(DomainPassport, p)
	if _, err := OpenPassport(s, root, now); err != nil {
		return Signed{}, err
	}
	return s, nil
}

// OpenPassport checks a passport's whole chain up to the root key (32 bytes) and
// its validity at now, with Skew. It does not know of revocations.
func OpenPassport(s Signed, root []byte, now time.Time) (Passport, error) {
	return openPassport(s, root, now, 0)
}

func openPassport(s Signed, root []byte, now time.Time, depth int) (Passport, error) {
	var p Passport
	if depth > maxIssuers {
		return p, Errorf(Invalid, "passport has more than %d issuers in its chain", maxIssuers)
	}
	if err := s.Open(DomainPassport, &p); err != nil {
		return p, err
	}
	if p.Mesh != NewMeshID(root) {
		return p, Errorf(Unauthorized, "passport is for %s, this is %s", p.Mesh, NewMeshID(root))
	}
	if !Verify(p.Account.Public(), DomainJoin, MustMarshal(JoinStatement{p.Mesh, p.Peer}), p.AccountBy) {
		return p, Errorf(Unauthorized, "passport of %s is not signed by account %s", Short(p.Peer), Short(p.Account))
	}
	if len(p.Name) > 63 || !Printable(p.Name) || len(p.Roles) > 8 {
		return p, Errorf(Invalid, "passport of %s is over its bounds", Short(p.Peer))
	}
	if err := p.Labels.Validate(); err != nil {
		return p, err
	}
	if now.Add(Skew).UnixMilli() < p.IssuedAt {
		return p, Errorf(Unauthorized, "passport of %s was issued in the future (%s): check the clocks of both machines", Short(p.Peer), time.UnixMilli(p.IssuedAt).UTC().Format(time.RFC3339))
	}
	if now.Add(-Skew).UnixMilli() > p.NotAfter {
		return p, Errorf(Unauthorized, "passport of %s expired at %s: check the clocks, or join again with a new token", Short(p.Peer), time.UnixMilli(p.NotAfter).UTC().Format(time.RFC3339))
	}
	if p.Issuer == nil {
		if !slices.Equal(s.Signer, root) {
			return p, Errorf(Unauthorized, "passport of %s is not signed by the root of %s", Short(p.Peer), p.Mesh)
		}
		return p, nil
	}
	issuer, err := openPassport(*p.Issuer, root, now, depth+1)
	if err != nil {
		return p, err
	}
	if !issuer.Has(RoleIssuer) || !slices.Equal(issuer.Peer.Public(), s.Signer) {
		return p, Errorf(Unauthorized, "passport of %s was issued by %s, who may not issue", Short(p.Peer), Short(issuer.Peer))
	}
	return p, nil
}

// Invite is what a token says. It is signed by an issuing peer, so a cell can
// check it without having kept anything; Burn makes its secret work once.
type Invite struct {
	Mesh     MeshID   `cbor:"1,keyasint"`
	Root     []byte   `cbor:"2,keyasint"` // the mesh's root public key
	Cell     CellID   `cbor:"3,keyasint"` // the issuing cell
	Issuer   PeerID   `cbor:"4,keyasint"`
	Addrs    []string `cbor:"5,keyasint"` // multiaddrs with /p2p/ at the end
	Hash     Digest   `cbor:"6,keyasint"` // of the secret
	NotAfter int64    `cbor:"7,keyasint"` // Unix ms
	Roles    []Role   `cbor:"8,keyasint,omitempty"`
}

// Token is an invite with its secret: what a person passes on, in one line.
type Token struct {
	Invite Signed `cbor:"1,keyasint"`
	Secret []byte `cbor:"2,keyasint"`
}

const tokenPrefix = "pcm1."

// String is the token's one-line form.
func (t Token) String() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(MustMarshal(t))
}

// ParseToken reads a token's one-line form and checks the form, the signature by
// the named issuer and that secret and hash belong together; whether issuer and
// expiry are good is for the issuing cell to say.
func ParseToken(s string) (Token, Invite, error) {
	var t Token
	var inv Invite
	body, ok := strings.CutPrefix(strings.TrimSpace(s), tokenPrefix)
	if !ok {
		return t, inv, Errorf(Invalid, "this is not a token: a token begins with %q and comes from 'pcm invite'", tokenPrefix)
	}
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		return t, inv, Errorf(Invalid, "the token is damaged (%v): copy the whole line that 'pcm invite' printed", err)
	}
	if err := Unmarshal(raw, &t); err != nil {
		return t, inv, Errorf(Invalid, "the token is damaged or cut short: copy the whole line that 'pcm invite' printed")
	}
	inv, err = OpenInvite(t.Invite)
	if err != nil {
		return t, inv, err
	}
	if DigestOf(t.Secret) != inv.Hash {
		return t, inv, Errorf(Invalid, "the token is damaged: its secret does not belong to it")
	}
	return t, inv, nil
}

// OpenInvite checks the issuer's signature and the form of an invite.
func OpenInvite(s Signed) (Invite, error) {
	var inv Invite
	if err := s.Open(DomainInvite, &inv); err != nil {
		return inv, err
	}
	if !slices.Equal(inv.Issuer.Public(), s.Signer) || NewMeshID(inv.Root) != inv.Mesh || !inv.Cell.Valid() || len(inv.Addrs) > 32 {
		return inv, Errorf(Invalid, "the token is forged or damaged: ask for a new one")
	}
	return inv, nil
}
