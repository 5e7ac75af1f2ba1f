package pcm

import "unicode/utf8"

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
