package consensus

import "github.com/jointcloud/pcm"

// Machine is the cell's state machine. No two of its methods are called at the
// same time, except Due, Stamp and Root, which may run beside each other and
// beside readers in [Cell.View].
type Machine interface {
	// Apply brings the state one entry further. It depends on nothing but the
	// state, the Raft index and the entry. Signatures have been checked. It
	// returns one result for each command of the entry.
	Apply(index uint64, e pcm.Entry) pcm.Effects
	// Snapshot encodes the hot state.
	Snapshot() ([]byte, error)
	// Restore replaces the state by an encoded one. On an error the state is as before.
	Restore(state []byte) error
	// Stamp is the log time of the last entry, ms; 0 if there was none.
	Stamp() int64
	// Due tells whether something may expire at a log time, so that an entry
	// without commands is worth its while.
	Due(stamp int64) bool
	// Root is the number of records made so far and their RFC 6962 Merkle tree hash.
	Root() (size uint64, root [32]byte)
}
