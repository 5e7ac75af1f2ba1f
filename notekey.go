package pcm

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
)

// NoteKey binds the Ed25519 key with which a peer signs checkpoints of the
// cell's log to that peer. The signing peer sets its own key, in place of an
// earlier one; with Key empty it takes a peer's key back: its own, or, if it
// signs checkpoints itself, that of another peer that votes no more.
type NoteKey struct {
	Peer PeerID `json:"peer" cbor:"1,keyasint"`
	Key  []byte `json:"key,omitempty" cbor:"2,keyasint,omitempty"` // 32 bytes
}

// LogOrigin names a cell's log in its checkpoints, e.g.
// "pcm.jointcloud/cell-7xk2q…"; it is the name of every note key as well
// (https://c2sp.org/tlog-checkpoint).
func LogOrigin(cell CellID) string { return "pcm.jointcloud/" + string(cell) }

// NoteKeyID is the key ID by which a signed note finds the verifier of a line
// (https://c2sp.org/signed-note). It is short: anybody can make a key with the ID
// of another one, so a cell takes each ID once.
func NoteKeyID(cell CellID, key []byte) uint32 {
	const algEd25519 = 1
	sum := sha256.Sum256(append(append([]byte(LogOrigin(cell)), '\n', algEd25519), key...))
	return binary.BigEndian.Uint32(sum[:])
}

// Validate checks the form.
func (k NoteKey) Validate() error {
	if len(k.Peer.Public()) == 0 {
		return Errorf(Invalid, "%q is not a peer ID", k.Peer)
	}
	if n := len(k.Key); n != 0 && n != ed25519.PublicKeySize {
		return Errorf(Invalid, "a note key has %d bytes, this one has %d", ed25519.PublicKeySize, n)
	}
	return nil
}
