package pcm

import (
	"slices"
	"unicode/utf8"
)

// Recovered says, in the ledger, that a majority of the cell's voters was lost and
// that the signing peer went on with what it had: for whoever audits later. What
// only the lost ones knew may be missing. It changes nothing else.
type Recovered struct {
	Index  uint64   `json:"index" cbor:"1,keyasint"`  // of the last entry that was there
	Term   uint64   `json:"term" cbor:"2,keyasint"`   // its term
	Lost   []PeerID `json:"lost" cbor:"3,keyasint"`   // left behind
	Way    string   `json:"way" cbor:"4,keyasint"`    // folder: with a survivor's own folder; file: from a snapshot
	Reason string   `json:"reason" cbor:"5,keyasint"` // a person's words
}

// Bounds of a Recovered.
const (
	maxRecoveredLost   = 256
	maxRecoveredReason = 500
)

// Validate checks the form.
func (r *Recovered) Validate() error {
	switch {
	case r.Way != "folder" && r.Way != "file":
		return Errorf(Invalid, "a cell is recovered by folder or file, not by %.20q", r.Way)
	case r.Index == 0:
		return Errorf(Invalid, "a cell without entries can't be recovered")
	case len(r.Lost) > maxRecoveredLost:
		return Errorf(TooLarge, "%d lost peers are over the bound of %d", len(r.Lost), maxRecoveredLost)
	case len(r.Reason) > maxRecoveredReason || !utf8.ValidString(r.Reason):
		return Errorf(Invalid, "the reason is over %d bytes, or no text", maxRecoveredReason)
	}
	return nil
}

// Notice tells peers that a recovered cell left behind that it goes on without them,
// in the words and with the signature of the peer that went on. That cell's lost voters
// can't sign it too: it is one peer's word, and what to make of it is the reader's
// matter. It may come over any peer; it proves for good what its signer did, or said.
type Notice struct {
	Mesh      MeshID    `json:"mesh" cbor:"1,keyasint"`
	Cell      CellID    `json:"cell" cbor:"2,keyasint"`
	By        PeerID    `json:"by" cbor:"3,keyasint"`        // went on, and signs
	At        int64     `json:"at" cbor:"4,keyasint"`        // by its wall clock, Unix ms
	Keep      []PeerID  `json:"keep" cbor:"5,keyasint"`      // others that it took along
	Recovered Recovered `json:"recovered" cbor:"6,keyasint"` // as it stands in the cell's ledger
}

// MaxNotice bounds a signed notice, in bytes.
const MaxNotice = 64 << 10

// OpenNotice checks signature, signer, size and form of a notice to a cell.
func OpenNotice(s Signed, mesh MeshID, cell CellID) (Notice, error) {
	var n Notice
	if len(s.Payload) > MaxNotice {
		return n, Errorf(TooLarge, "a notice of %d bytes is over the bound of %d", len(s.Payload), MaxNotice)
	}
	if err := s.Open(DomainNotice, &n); err != nil {
		return n, err
	}
	switch {
	case string(n.By.Public()) != string(s.Signer):
		return n, Errorf(Unauthorized, "the notice of %.40q is signed by another than the peer that it names, %s", n.Cell, Short(n.By))
	case n.Mesh != mesh || n.Cell != cell:
		return n, Errorf(Invalid, "the notice is of %.40q in %.40q, not of %s", n.Cell, n.Mesh, cell)
	case n.At <= 0 || len(n.Keep) > maxRecoveredLost:
		return n, Errorf(Invalid, "the notice by %s is malformed or over its bounds", Short(n.By))
	}
	return n, n.Recovered.Validate()
}

// LeavesBehind tells whether a peer is none of those that went on.
func (n Notice) LeavesBehind(id PeerID) bool { return id != n.By && !slices.Contains(n.Keep, id) }
