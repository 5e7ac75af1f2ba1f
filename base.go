package pcm

import "time"

// Base has the cell write the digest of its state into the ledger: from there on
// the records can be verified without those before. It is proposed now and then
// by the leader of a cell that keeps its records for some time only. Last is the
// size of the base before, 0 if there was none: so that two are not made at once.
type Base struct {
	Last uint64 `json:"last" cbor:"1,keyasint"`
}

// Based says what a Base came to: the SHA-256 of the state that follows from the
// records below Size, as [BaseState] has it. It stands in record Size.
type Based struct {
	Size   uint64 `json:"size" cbor:"1,keyasint"`
	Digest []byte `json:"digest" cbor:"2,keyasint"`
}

// BaseState is the state that a [Based] speaks of, encoded.
type BaseState struct {
	Based
	Stamp int64 // log time of the record, ms
	State []byte
}

// BaseShare is which part of the time that records are kept passes between two
// bases at least: so much longer than it was set some records are kept, and up to
// twice as much in a cell with very much open.
const BaseShare = 4

// BaseGap is the log time between two bases at least, of a cell that keeps its
// records for some time.
func BaseGap(keep time.Duration) time.Duration { return keep / BaseShare }

// BaseOf reads what a record says of a base; false if it doesn't.
func BaseOf(record []byte) (Based, bool) {
	var r Record
	if Unmarshal(record, &r) != nil {
		return Based{}, false
	}
	for _, f := range r.Facts {
		if f.Based != nil && f.Based.Size == r.Number {
			return *f.Based, true
		}
	}
	return Based{}, false
}
