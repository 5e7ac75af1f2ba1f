package pcm

import (
	"bytes"
	stded25519 "crypto/ed25519"
	"crypto/rand"
	"hash/maphash"
	"slices"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/oasisprotocol/curve25519-voi/primitives/ed25519"
)

// Key is an Ed25519 key pair: of a peer, an account or a mesh root.
// The zero Key signs nothing.
type Key struct{ priv stded25519.PrivateKey }

// NewKey draws a key.
func NewKey() Key {
	_, priv, err := stded25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err) // the system's random source never fails since Go 1.24
	}
	return Key{priv}
}

// KeyFromSeed restores a key from its 32-byte seed.
func KeyFromSeed(seed []byte) (Key, error) {
	if len(seed) != stded25519.SeedSize {
		return Key{}, Errorf(Invalid, "a key's seed has %d bytes, this one has %d", stded25519.SeedSize, len(seed))
	}
	return Key{stded25519.NewKeyFromSeed(seed)}, nil
}

// Seed is the 32 secret bytes from which KeyFromSeed restores the key.
func (k Key) Seed() []byte { return k.priv.Seed() }

// Public is the 32-byte public key.
func (k Key) Public() []byte { return k.priv.Public().(stded25519.PublicKey) }

// Account is the account that this key is.
func (k Key) Account() AccountID { return AccountID("acc-" + b32.EncodeToString(k.Public())) }

// Peer is the libp2p peer ID of this key.
func (k Key) Peer() PeerID {
	id, err := peer.IDFromPrivateKey(k.LibP2P())
	if err != nil {
		panic(err) // an Ed25519 key always has a peer ID
	}
	return PeerID(id.String())
}

// LibP2P is the key as libp2p holds it.
func (k Key) LibP2P() crypto.PrivKey {
	p, err := crypto.UnmarshalEd25519PrivateKey(k.priv)
	if err != nil {
		panic(err) // a Key always holds 64 bytes
	}
	return p
}

// Domain separates signatures by purpose: a signature for one never passes for another.
type Domain string

// The domains. Their text is signed ahead of the payload.
const (
	DomainCommand  Domain = "pcm/command/1"
	DomainOffer    Domain = "pcm/offer/1"
	DomainPassport Domain = "pcm/passport/1"
	DomainJoin     Domain = "pcm/join/1" // an account takes a peer as its own
	DomainInvite   Domain = "pcm/invite/1"
	DomainSpec     Domain = "pcm/spec/1"
	DomainCell     Domain = "pcm/cell/1"
	DomainNotice   Domain = "pcm/notice/1"

	DomainNetting    Domain = "pcm/netting/1"    // two accounts strike what they owe each other
	DomainResolution Domain = "pcm/resolution/1" // two accounts end a dispute

	DomainMandate Domain = "pcm/mandate/1" // a buyer lets its job's drivers act for it in other cells
	DomainAttest  Domain = "pcm/attest/1"  // a voter says who drives a job, and what is placed
	DomainReceipt Domain = "pcm/receipt/1" // a seller says what became of a trade
)

func (d Domain) message(payload []byte) []byte {
	m := make([]byte, 0, len(d)+1+len(payload))
	return append(append(append(m, d...), '\n'), payload...)
}

// Sign signs payload for one domain.
func (k Key) Sign(d Domain, payload []byte) []byte {
	return stded25519.Sign(k.priv, d.message(payload))
}

// zip215 is the one verification predicate, single and in batches, so that no
// two peers can disagree on a signature (https://zips.z.cash/zip-0215).
var zip215 = &ed25519.Options{Verify: ed25519.VerifyOptionsZIP_215}

// Verify checks a signature by a 32-byte public key.
func Verify(public []byte, d Domain, payload, sig []byte) bool {
	return len(public) == ed25519.PublicKeySize &&
		ed25519.VerifyWithOptions(public, d.message(payload), sig, zip215)
}

// Public is the 32-byte public key inside the peer ID; nil if the ID is not that of an Ed25519 key.
func (id PeerID) Public() []byte {
	slot := &publics[maphash.String(publicsSeed, string(id))%uint64(len(publics))]
	if p := slot.Load(); p != nil && p.id == id {
		return slices.Clone(p.public)
	}
	public := id.public()
	if public != nil {
		slot.Store(&peerPublic{id, slices.Clone(public)})
	}
	return public
}

// publics remembers what peer IDs decode to: each command names one, and to decode
// its base 58 takes as long as the rest of the command.
var (
	publics     [1024]atomic.Pointer[peerPublic]
	publicsSeed = maphash.MakeSeed()
)

type peerPublic struct {
	id     PeerID
	public []byte
}

func (id PeerID) public() []byte {
	p, err := peer.Decode(string(id))
	if err != nil {
		return nil
	}
	pub, err := p.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return nil
	}
	raw, err := pub.Raw()
	if err != nil {
		return nil
	}
	return raw
}

// Public is the account's 32-byte public key; nil if the ID is malformed.
func (id AccountID) Public() []byte {
	if len(id) != 56 || id[:4] != "acc-" {
		return nil
	}
	raw, err := b32.DecodeString(string(id[4:]))
	if err != nil || len(raw) != ed25519.PublicKeySize {
		return nil
	}
	return raw
}

// Signed is a payload with a signature over its exact bytes. Signer is the
// 32-byte public key; who that is, and whether it may sign, is for the payload to say.
type Signed struct {
	Payload []byte `json:"payload" cbor:"1,keyasint"`
	Signer  []byte `json:"signer" cbor:"2,keyasint"`
	Sig     []byte `json:"sig" cbor:"3,keyasint"`
}

// Seal encodes v and signs it.
func (k Key) Seal(d Domain, v any) Signed {
	payload := MustMarshal(v)
	return Signed{Payload: payload, Signer: k.Public(), Sig: k.Sign(d, payload)}
}

// Equal tells whether two envelopes are the same, byte for byte.
func (s Signed) Equal(o Signed) bool {
	return bytes.Equal(s.Payload, o.Payload) && bytes.Equal(s.Signer, o.Signer) && bytes.Equal(s.Sig, o.Sig)
}

// Verify checks the signature alone.
func (s Signed) Verify(d Domain) bool { return Verify(s.Signer, d, s.Payload, s.Sig) }

// Open checks the signature and decodes the payload into v.
// Errors have code Unauthorized (signature) or Invalid (payload).
func (s Signed) Open(d Domain, v any) error {
	if !s.Verify(d) {
		return Errorf(Unauthorized, "the signature of this %s is not valid", d)
	}
	return Unmarshal(s.Payload, v)
}
