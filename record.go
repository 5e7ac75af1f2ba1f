package pcm

// Entry is what a cell's Raft log carries: commands that waited together, with
// the leader's stamps.
type Entry struct {
	Version  int      `cbor:"1,keyasint"`
	Stamp    int64    `cbor:"2,keyasint"`           // log time, ms: last stamp + the leader's monotonic elapsed time
	Wall     int64    `cbor:"3,keyasint"`           // leader's wall clock, Unix ms: for passports, invites and offers only
	NewTerm  bool     `cbor:"4,keyasint,omitempty"` // the first entry of a leader: re-grants every lease
	Commands []Signed `cbor:"5,keyasint,omitempty"` // none in a tick

	Digest *StateDigest `cbor:"6,keyasint,omitempty"` // compares the replicas' states

	// Decoded are the payloads of Commands, if this process has checked and decoded
	// them before; it needn't do so again. They are no part of the entry.
	Decoded []Command `cbor:"-"`
}

// StateDigest compares the states of a cell's replicas. Without Sum it is a mark:
// each replica hashes its state ahead of the entry. With it, it is the leader's
// hash at the mark in entry Index; a replica that has another one stops.
type StateDigest struct {
	Index uint64 `cbor:"1,keyasint,omitempty"`
	Sum   []byte `cbor:"2,keyasint,omitempty"`
}

// EntryVersion is what this release writes.
const EntryVersion = 1

// Bounds of an entry, so that its effects fit one Badger transaction.
const (
	MaxEntryCommands = 512
	MaxEntryBytes    = 1 << 20
)

// MaxRecord bounds an encoded record: entry bundles of the public log give each
// entry a length of 16 bits (https://c2sp.org/tlog-tiles).
const MaxRecord = 1<<16 - 1

// Record is one entry of a cell's ledger: a command that took effect, or what
// followed from time alone. Encoded, it is a leaf of the cell's Merkle log.
type Record struct {
	Number  uint64  `json:"number" cbor:"1,keyasint"` // 0, 1, 2 … without gaps
	Index   uint64  `json:"index" cbor:"2,keyasint"`  // of the Raft entry
	Stamp   int64   `json:"stamp" cbor:"3,keyasint"`  // log time, ms
	Wall    int64   `json:"wall" cbor:"4,keyasint"`   // leader's wall clock, Unix ms
	NewTerm bool    `json:"new_term,omitempty" cbor:"5,keyasint,omitempty"`
	Command *Signed `json:"command,omitempty" cbor:"6,keyasint,omitempty"` // nil: made by time
	Done    int     `json:"done" cbor:"7,keyasint"`                        // how many of the command's ops took effect
	Facts   []Fact  `json:"facts,omitempty" cbor:"8,keyasint,omitempty"`   // what followed
}

// Fact is what follows from a command or from time: exactly one field is set.
type Fact struct {
	Lost    *Lost    `json:"lost,omitempty" cbor:"1,keyasint,omitempty"`
	Ended   *Ended   `json:"ended,omitempty" cbor:"2,keyasint,omitempty"`
	Closed  *Closed  `json:"closed,omitempty" cbor:"3,keyasint,omitempty"`
	Overdue *Overdue `json:"overdue,omitempty" cbor:"4,keyasint,omitempty"`
	Cleared *Cleared `json:"cleared,omitempty" cbor:"6,keyasint,omitempty"`
	Based   *Based   `json:"based,omitempty" cbor:"7,keyasint,omitempty"`
}

// Lost says that a seller was silent for lease and margin, or let the end of
// attempts pass; they will never be paid, and their holds are free.
type Lost struct {
	Trade  TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"2,keyasint"`
	Reason string  `json:"reason" cbor:"3,keyasint"`
}

// Ended says that a job reached its last state. Its attempts may still be unsettled.
type Ended struct {
	Job    JobID    `json:"job" cbor:"1,keyasint"`
	State  JobState `json:"state" cbor:"2,keyasint"`
	Reason string   `json:"reason,omitempty" cbor:"3,keyasint,omitempty"`
}

// Overdue says that a job's deadline has passed: what waited is cancelled, what
// runs will be stopped by its driver.
type Overdue struct {
	Job JobID `json:"job" cbor:"1,keyasint"`
}

// Cleared says that nobody told for ClearFor what a trade abroad has cost: its job
// counts as paid what it has accepted, and holds nothing for it any more.
type Cleared struct {
	Job   JobID   `json:"job" cbor:"1,keyasint"`
	Trade TradeID `json:"trade" cbor:"2,keyasint"`
	Cell  CellID  `json:"cell" cbor:"3,keyasint"`
}

// Closed says that nothing of a trade is open any more: all is settled, lost or rejected.
type Closed struct {
	Trade TradeID `json:"trade" cbor:"1,keyasint"`
	Job   JobID   `json:"job" cbor:"2,keyasint"`
	Paid  Micro   `json:"paid" cbor:"3,keyasint"`
}

// Event tells of something committed. It carries all that those concerned need
// to act, so that they need not have applied the entry themselves yet. Events
// come at least once; what reacts to them is idempotent by trade, task and attempt.
type Event struct {
	Index uint64   `cbor:"1,keyasint"`           // Raft index
	Stamp int64    `cbor:"2,keyasint"`           // log time, ms
	By    PeerID   `cbor:"3,keyasint,omitempty"` // who signed; "" for facts
	Job   JobID    `cbor:"4,keyasint,omitempty"`
	Trade TradeID  `cbor:"5,keyasint,omitempty"`
	Op    *Op      `cbor:"6,keyasint,omitempty"` // one of Op and Fact is set
	Fact  *Fact    `cbor:"7,keyasint,omitempty"`
	Terms *Terms   `cbor:"8,keyasint,omitempty"` // of the trade, with ops and facts that tell of one
	To    []PeerID `cbor:"9,keyasint,omitempty"` // whom it concerns: seller, driver, submitter
}

// Outcome of one command, typed. A command that can't be applied is a result,
// never an error of Apply.
type CommandResult struct {
	Index uint64     `cbor:"1,keyasint"`           // of the Raft entry
	Ops   []OpResult `cbor:"2,keyasint"`           // one for each op that was tried; the last may be refused
	Err   *Error     `cbor:"3,keyasint,omitempty"` // refused as a whole: bad signature, expired, over a quota
}

// OpResult is what became of one op.
type OpResult struct {
	Err     *Error `cbor:"1,keyasint,omitempty"` // nil: it took effect
	Skipped Spans  `cbor:"2,keyasint,omitempty"` // tasks of the op to which it did not apply
	Fence   uint64 `cbor:"3,keyasint,omitempty"` // of a Submit: the job's fencing token, above which those of its places begin
}

// First is the command's first refusal, or nil.
func (r CommandResult) First() error {
	if r.Err != nil {
		return r.Err
	}
	for _, o := range r.Ops {
		if o.Err != nil {
			return o.Err
		}
	}
	return nil
}

// Effects are what applying one entry brings about. The state machine has
// already changed; records and documents are to be stored in one transaction
// with the applied index.
type Effects struct {
	Results   []CommandResult // one for each command of the entry
	Records   [][]byte        // encoded Record, to be appended
	First     uint64          // number of the first of Records
	Documents []Document      // finished jobs and trades, out of the hot state
	Events    []Event
	Base      *BaseState // that a record tells of; an entry has one at most
	Halt      error      // not nil: this release can't follow the entry; the replica stops before it
}

// Document is a value under a key, e.g. "job/job-x7k2…".
type Document struct {
	Key   string
	Value []byte
}
