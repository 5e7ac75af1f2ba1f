package pcm

import (
	"crypto/rand"
	"encoding/hex"
)

// CommandVersion is what this release writes. Apply dispatches on it; the
// meaning of older versions is frozen.
const CommandVersion = 1

// CommandID makes a command exactly-once: a cell remembers it until NotAfter.
type CommandID [16]byte

// NewCommandID draws a command ID.
func NewCommandID() (id CommandID) {
	rand.Read(id[:]) // never fails since Go 1.24
	return id
}

func (id CommandID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText is String, so that JSON shows 32 hex digits.
func (id CommandID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads 32 hex digits.
func (id *CommandID) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(id) {
		return Errorf(Invalid, "%.40q is not a command ID: 32 hex digits", text)
	}
	copy(id[:], raw)
	return nil
}

// Command is what a peer proposes to a cell: a few operations, applied in order;
// one that is refused ends the command, and those before it stand. The payload
// of a [Signed] with [DomainCommand].
type Command struct {
	Version  int       `json:"version" cbor:"1,keyasint"`
	ID       CommandID `json:"id" cbor:"2,keyasint"`
	Mesh     MeshID    `json:"mesh" cbor:"3,keyasint"`
	Cell     CellID    `json:"cell" cbor:"4,keyasint"`
	Peer     PeerID    `json:"peer" cbor:"5,keyasint"`      // who signs
	NotAfter int64     `json:"not_after" cbor:"6,keyasint"` // log time, ms
	Ops      []Op      `json:"ops" cbor:"7,keyasint"`
}

// Bounds of a command.
const (
	MaxOps        = 16
	MaxCommand    = 48 << 10             // bytes of the payload: its record must stay within MaxRecord
	CommandWindow = int64(2 * 60 * 1000) // NotAfter is at most this far ahead in log time, ms
)

// Op is one operation: exactly one field is set.
type Op struct {
	Enroll   *Enroll   `json:"enroll,omitempty" cbor:"1,keyasint,omitempty"`
	Burn     *Burn     `json:"burn,omitempty" cbor:"2,keyasint,omitempty"`
	Capacity *Capacity `json:"capacity,omitempty" cbor:"3,keyasint,omitempty"`
	Renew    *Renew    `json:"renew,omitempty" cbor:"4,keyasint,omitempty"`
	Submit   *Submit   `json:"submit,omitempty" cbor:"5,keyasint,omitempty"`
	Drive    *Drive    `json:"drive,omitempty" cbor:"6,keyasint,omitempty"`
	Place    *Place    `json:"place,omitempty" cbor:"7,keyasint,omitempty"`
	Award    *Award    `json:"award,omitempty" cbor:"8,keyasint,omitempty"`
	Reject   *Reject   `json:"reject,omitempty" cbor:"9,keyasint,omitempty"`
	Start    *Start    `json:"start,omitempty" cbor:"10,keyasint,omitempty"`
	Meter    *Meter    `json:"meter,omitempty" cbor:"11,keyasint,omitempty"`
	Finish   *Finish   `json:"finish,omitempty" cbor:"12,keyasint,omitempty"`
	Accept   *Accept   `json:"accept,omitempty" cbor:"13,keyasint,omitempty"`
	Abandon  *Abandon  `json:"abandon,omitempty" cbor:"14,keyasint,omitempty"`
	Settle   *Settle   `json:"settle,omitempty" cbor:"15,keyasint,omitempty"`
	Dispute  *Dispute  `json:"dispute,omitempty" cbor:"16,keyasint,omitempty"`
	Stop     *Stop     `json:"stop,omitempty" cbor:"17,keyasint,omitempty"`
	Cancel   *Cancel   `json:"cancel,omitempty" cbor:"18,keyasint,omitempty"`
	NoteKey  *NoteKey  `json:"note_key,omitempty" cbor:"19,keyasint,omitempty"`
	Scale    *Scale    `json:"scale,omitempty" cbor:"20,keyasint,omitempty"`
	Void     *Void     `json:"void,omitempty" cbor:"21,keyasint,omitempty"`
	Clear    *Clear    `json:"clear,omitempty" cbor:"22,keyasint,omitempty"`

	Net     *Net     `json:"net,omitempty" cbor:"23,keyasint,omitempty"`
	Resolve *Resolve `json:"resolve,omitempty" cbor:"24,keyasint,omitempty"`
	Set     *Set     `json:"set,omitempty" cbor:"25,keyasint,omitempty"`
	Upgrade *Upgrade `json:"upgrade,omitempty" cbor:"26,keyasint,omitempty"`

	Recovered *Recovered `json:"recovered,omitempty" cbor:"27,keyasint,omitempty"`
	Base      *Base      `json:"base,omitempty" cbor:"28,keyasint,omitempty"`
	Succeed   *Succeed   `json:"succeed,omitempty" cbor:"29,keyasint,omitempty"`
}

// Kind names the operation, e.g. "award"; "" if none or more than one is set.
func (o Op) Kind() string {
	kind, n := "", 0
	for _, k := range []struct {
		name string
		set  bool
	}{
		{"enroll", o.Enroll != nil}, {"burn", o.Burn != nil}, {"capacity", o.Capacity != nil},
		{"renew", o.Renew != nil}, {"submit", o.Submit != nil}, {"drive", o.Drive != nil},
		{"place", o.Place != nil}, {"award", o.Award != nil}, {"reject", o.Reject != nil},
		{"start", o.Start != nil}, {"meter", o.Meter != nil}, {"finish", o.Finish != nil},
		{"accept", o.Accept != nil}, {"abandon", o.Abandon != nil}, {"settle", o.Settle != nil},
		{"dispute", o.Dispute != nil}, {"stop", o.Stop != nil}, {"cancel", o.Cancel != nil},
		{"note_key", o.NoteKey != nil}, {"scale", o.Scale != nil},
		{"void", o.Void != nil}, {"clear", o.Clear != nil},
		{"net", o.Net != nil}, {"resolve", o.Resolve != nil}, {"set", o.Set != nil}, {"upgrade", o.Upgrade != nil},
		{"recovered", o.Recovered != nil}, {"base", o.Base != nil}, {"succeed", o.Succeed != nil},
	} {
		if k.set {
			kind, n = k.name, n+1
		}
	}
	if n != 1 {
		return ""
	}
	return kind
}

// Enroll makes a peer known to the cell, with the account that its passport
// binds it to. A command's own signer may be enrolled by it.
type Enroll struct {
	Passport Signed `json:"passport" cbor:"1,keyasint"`
}

// Burn uses up an invite's secret for one peer, by compare-and-set: a passport
// is issued only after it. The same peer may ask again and gets the same answer.
type Burn struct {
	Invite Signed `json:"invite" cbor:"1,keyasint"`
	Peer   PeerID `json:"peer" cbor:"2,keyasint"`
}

// Capacity declares what the signing peer sells in this cell from now on. Pools
// that it names no more are closed: their trades run on, new awards are refused.
type Capacity struct {
	Offer  uint64 `json:"offer" cbor:"1,keyasint"` // number of the offer that says the same by gossip
	Pools  []Pool `json:"pools" cbor:"2,keyasint"`
	Credit Micro  `json:"credit" cbor:"3,keyasint"` // most that any one other account may owe, holds included, per unit
}

// Renew extends the leases of all attempts that the signing peer runs, and its
// terms as a driver. Incarnation grows with each start of the peer's daemon.
type Renew struct {
	Incarnation uint64 `json:"incarnation" cbor:"1,keyasint"`
}

// Shape says what the ledger must know of a step.
type Shape struct {
	Count   int `json:"count" cbor:"1,keyasint"`
	Retries int `json:"retries" cbor:"2,keyasint"`

	Service bool `json:"service,omitempty" cbor:"3,keyasint,omitempty"` // its tasks run until the job is cancelled
	Scale   int  `json:"scale,omitempty" cbor:"4,keyasint,omitempty"`   // of a service: how many of them run at first
}

// Submit opens a job. The signing peer's account is the buyer, and the peer the
// first driver (term 1).
type Submit struct {
	Job      JobID    `json:"job" cbor:"1,keyasint"` // of no open job; that of one long archived makes a new job
	Name     string   `json:"name" cbor:"2,keyasint"`
	Spec     Digest   `json:"spec" cbor:"3,keyasint"`
	Steps    []Shape  `json:"steps" cbor:"4,keyasint"`
	Budget   Micro    `json:"budget" cbor:"5,keyasint"` // 0: none
	Unit     string   `json:"unit" cbor:"6,keyasint"`
	LastMS   int64    `json:"last_ms" cbor:"7,keyasint"` // deadline as ms from the submission; 0: none
	Takeover Takeover `json:"takeover" cbor:"8,keyasint"`

	// What it has cost stays unpaid for so long after its end, so that a person can dispute it; 0: paid at once.
	PayAfterMS int64   `json:"pay_after_ms,omitempty" cbor:"9,keyasint,omitempty"`
	Mandate    *Signed `json:"mandate,omitempty" cbor:"10,keyasint,omitempty"` // with takeover any: for drivers of other accounts in other cells
}

// Drive takes the job over for a term. Term is the current one plus one; it is
// refused while the present driver's lease holds, unless that driver is of the
// same account and the signer is the submitter's peer.
type Drive struct {
	Job  JobID  `json:"job" cbor:"1,keyasint"`
	Term uint64 `json:"term" cbor:"2,keyasint"`
}

// Place is the durable intent to have tasks run at a seller, before any award.
type Place struct {
	Term  uint64 `json:"term" cbor:"1,keyasint"`
	Terms Terms  `json:"terms" cbor:"2,keyasint"`
}

// Award binds the seller to the terms, or is refused.
type Award struct {
	Terms Terms `json:"terms" cbor:"1,keyasint"`

	Attest *Attested `json:"attest,omitempty" cbor:"2,keyasint,omitempty"` // by a driver of another account, abroad: that the terms are placed
}

// Reject is the seller's veto on tasks of a trade.
type Reject struct {
	Trade  TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"2,keyasint"`
	Reason string  `json:"reason" cbor:"3,keyasint"`
}

// Start says that attempts run.
type Start struct {
	Trade TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks Spans   `json:"tasks" cbor:"2,keyasint"`
}

// Meter records the use so far of a long attempt.
type Meter struct {
	Trade TradeID `json:"trade" cbor:"1,keyasint"`
	Index int     `json:"index" cbor:"2,keyasint"`
	Usage Usage   `json:"usage" cbor:"3,keyasint"`
}

// Finish reports how attempts ended.
type Finish struct {
	Trade   TradeID  `json:"trade" cbor:"1,keyasint"`
	Results []Result `json:"results" cbor:"2,keyasint"`
}

// Accept takes results as those of their tasks, by compare-and-set on the attempt.
type Accept struct {
	Job     JobID    `json:"job" cbor:"1,keyasint"`
	Term    uint64   `json:"term" cbor:"2,keyasint"`
	Trade   TradeID  `json:"trade" cbor:"3,keyasint"`
	Results []Result `json:"results" cbor:"4,keyasint"`

	Receipt []byte `json:"receipt,omitempty" cbor:"5,keyasint,omitempty"` // abroad, by a driver of another account: see [ReceiptOf]
}

// Abandon gives attempts up: the tasks wait for a place again or, if no try is
// left, have failed. Fault says whose it was; the task's own costs a retry.
type Abandon struct {
	Job    JobID   `json:"job" cbor:"1,keyasint"`
	Term   uint64  `json:"term" cbor:"2,keyasint"`
	Trade  TradeID `json:"trade" cbor:"3,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"4,keyasint"`
	Fault  Fault   `json:"fault" cbor:"5,keyasint"`
	Reason string  `json:"reason" cbor:"6,keyasint"`

	// Of a trade abroad, of which the job's cell knows nothing:
	Results []Result `json:"results,omitempty" cbor:"7,keyasint,omitempty"`  // with FaultTask: what is paid for
	Over    bool     `json:"over,omitempty" cbor:"8,keyasint,omitempty"`     // with FaultSeller: nothing will be paid; else the hold stays until Clear
	Unsold  bool     `json:"unsold,omitempty" cbor:"9,keyasint,omitempty"`   // with Over: it was never awarded, so the attempt is not counted
	Receipt []byte   `json:"receipt,omitempty" cbor:"10,keyasint,omitempty"` // by a driver of another account: see [ReceiptOf]
}

// Void has the seller's cell refuse every award on terms of a trade abroad from
// now on; it is refused itself, with code Conflict, if the trade is open there.
// So a driver learns what became of an award of which it has no answer.
type Void struct {
	Terms Terms `json:"terms" cbor:"1,keyasint"`
}

// Clear tells the job's cell what a trade abroad has cost in the end, when all its
// tasks are decided and nothing of it is open any more: what is held for it is free.
type Clear struct {
	Job   JobID   `json:"job" cbor:"1,keyasint"`
	Trade TradeID `json:"trade" cbor:"2,keyasint"`
	Paid  Micro   `json:"paid" cbor:"3,keyasint"`
}

// Fault says who is to blame for an attempt without an accepted result.
type Fault string

// The faults.
const (
	FaultTask   Fault = "task"   // its own failure: costs one of the step's retries
	FaultSeller Fault = "seller" // lost, rejected or broken there: costs no retry, but tries are bounded by MaxAttempts
)

// MaxAttempts bounds the tries of one task, whoever is at fault. Those of a
// service's are bounded by MaxServiceTries.
const MaxAttempts = 1000

// Stop asks the seller to end attempts.
type Stop struct {
	Trade  TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"2,keyasint"`
	Reason string  `json:"reason" cbor:"3,keyasint"`
}

// Settle turns the holds of finished attempts into balance: what the ledger
// charges for each. Amount is the most that the signer pays for them together.
type Settle struct {
	Trade  TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"2,keyasint"`
	Amount Micro   `json:"amount" cbor:"3,keyasint"`
}

// Dispute freezes the holds of finished attempts that the buyer doesn't believe,
// until it settles them after all, the seller gives in (Reject), or DisputeFor is over.
type Dispute struct {
	Trade  TradeID `json:"trade" cbor:"1,keyasint"`
	Tasks  Spans   `json:"tasks" cbor:"2,keyasint"`
	Reason string  `json:"reason" cbor:"3,keyasint"`
	// Undelivered says that the outputs could not be had from the seller: it gives in by itself.
	Undelivered bool `json:"undelivered,omitempty" cbor:"4,keyasint,omitempty"`
}

// Scale sets how many tasks of a service run: those with the lowest indexes.
type Scale struct {
	Job   JobID `json:"job" cbor:"1,keyasint"`
	Step  int   `json:"step" cbor:"2,keyasint"`
	Count int   `json:"count" cbor:"3,keyasint"` // 0 to the step's count
}

// Cancel ends a job: what waits is cancelled, what runs will be stopped by its driver.
type Cancel struct {
	Job    JobID  `json:"job" cbor:"1,keyasint"`
	Reason string `json:"reason" cbor:"2,keyasint"`
}
