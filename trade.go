package pcm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// AttemptState is where one attempt stands, as its seller's cell sees it.
type AttemptState string

// The states. The table [AttemptNext] says which may follow which.
const (
	AttemptAwarded  AttemptState = "awarded"  // the seller is bound; its hold is reserved
	AttemptStarted  AttemptState = "started"  // the seller says that it runs
	AttemptFinished AttemptState = "finished" // the seller has a result
	AttemptRejected AttemptState = "rejected" // the seller would or could not run it
	AttemptLost     AttemptState = "lost"     // the seller was silent for lease and margin, or let the attempt's end pass
	AttemptSettled  AttemptState = "settled"  // hold became balance
	AttemptDisputed AttemptState = "disputed" // buyer and seller differ; the hold is frozen
)

// AttemptNext is the transition table: the states that may follow each. A state
// without followers is final.
var AttemptNext = map[AttemptState][]AttemptState{
	AttemptAwarded:  {AttemptStarted, AttemptFinished, AttemptRejected, AttemptLost},
	AttemptStarted:  {AttemptFinished, AttemptRejected, AttemptLost},
	AttemptFinished: {AttemptSettled, AttemptDisputed},
	AttemptDisputed: {AttemptSettled, AttemptRejected, AttemptLost}, // the buyer pays, the seller gives in, or nobody does
}

// Live tells whether an attempt in this state may be running.
func (s AttemptState) Live() bool { return s == AttemptAwarded || s == AttemptStarted }

// TaskState is where a task stands, as its buyer's cell sees it.
type TaskState string

// The states of a task.
const (
	TaskWaiting   TaskState = "waiting" // for a place, or for a step before it
	TaskPlaced    TaskState = "placed"  // an attempt is with a seller
	TaskDone      TaskState = "done"    // a result was accepted, exit code 0
	TaskFailed    TaskState = "failed"  // a result was accepted, and it is a failure; or no try is left
	TaskCancelled TaskState = "cancelled"
)

// Final tells whether the state stays.
func (s TaskState) Final() bool { return s == TaskDone || s == TaskFailed || s == TaskCancelled }

// JobState is where a job stands.
type JobState string

// The states of a job.
const (
	JobOpen      JobState = "open"      // waiting or running
	JobDone      JobState = "done"      // every task is done
	JobFailed    JobState = "failed"    // some task failed for good
	JobCancelled JobState = "cancelled" // by its owner or its deadline
)

// Outcome says how an attempt ended.
type Outcome string

// The outcomes.
const (
	OutcomeOK        Outcome = "ok"         // exit code 0
	OutcomeFailed    Outcome = "failed"     // the task's own fault: another exit code, a signal, a trap
	OutcomeTimeLimit Outcome = "time_limit" // ended at its time limit
	OutcomeMemory    Outcome = "memory"     // ended at its memory limit
	OutcomeOutput    Outcome = "output"     // wrote more than it may
	OutcomeStopped   Outcome = "stopped"    // the buyer asked
	OutcomeSeller    Outcome = "seller"     // the seller's fault: not paid, and tried elsewhere
)

// Usage is what an attempt used.
type Usage struct {
	WallMS    int64 `json:"wall_ms" cbor:"1,keyasint"`                    // from start to end
	CPUMS     int64 `json:"cpu_ms" cbor:"2,keyasint"`                     // user and system
	MaxMemory Bytes `json:"max_memory" cbor:"3,keyasint"`                 // peak resident
	GPUMS     int64 `json:"gpu_ms,omitempty" cbor:"4,keyasint,omitempty"` // accelerators held × time
}

// Wall is the time from start to end.
func (u Usage) Wall() time.Duration { return time.Duration(u.WallMS) * time.Millisecond }

// TaskRef names a task within its job.
type TaskRef struct {
	Step  int `json:"step" cbor:"1,keyasint"`
	Index int `json:"index" cbor:"2,keyasint"`
}

// Result is how one attempt ended. Output is the digest of the tree that holds
// stdout, stderr and the declared outputs; empty if all of them are.
type Result struct {
	Index    int     `json:"index" cbor:"1,keyasint"` // of the task in the trade's step
	Outcome  Outcome `json:"outcome" cbor:"2,keyasint"`
	ExitCode int     `json:"exit_code" cbor:"3,keyasint"` // 128+n for signal n
	Usage    Usage   `json:"usage" cbor:"4,keyasint"`
	Output   Digest  `json:"output,omitempty" cbor:"5,keyasint,omitempty"`
	Reason   string  `json:"reason,omitempty" cbor:"6,keyasint,omitempty"` // for a person, at most 256 bytes
}

// Span is the half-open range [Lo, Hi) of task indexes.
type Span struct {
	Lo int `json:"lo" cbor:"1,keyasint"`
	Hi int `json:"hi" cbor:"2,keyasint"`
}

// Spans is a set of task indexes: sorted, disjoint, non-empty spans.
type Spans []Span

// SpansOf makes the set of the given indexes, which must be sorted and distinct.
func SpansOf(sorted []int) Spans {
	var s Spans
	for _, i := range sorted {
		if n := len(s); n > 0 && s[n-1].Hi == i {
			s[n-1].Hi++
		} else {
			s = append(s, Span{i, i + 1})
		}
	}
	return s
}

// Len counts the indexes.
func (s Spans) Len() int {
	n := 0
	for _, r := range s {
		n += r.Hi - r.Lo
	}
	return n
}

// All yields the indexes in order.
func (s Spans) All(yield func(int) bool) {
	for _, r := range s {
		for i := r.Lo; i < r.Hi; i++ {
			if !yield(i) {
				return
			}
		}
	}
}

// Has tells whether i is in the set.
func (s Spans) Has(i int) bool {
	for _, r := range s {
		if i >= r.Lo && i < r.Hi {
			return true
		}
	}
	return false
}

// With is the set with i added.
func (s Spans) With(i int) Spans {
	at := 0
	for at < len(s) && s[at].Hi < i {
		at++
	}
	switch {
	case at == len(s) || i < s[at].Lo-1:
		return slices.Insert(slices.Clone(s), at, Span{i, i + 1})
	case i >= s[at].Lo && i < s[at].Hi:
		return s
	}
	s = slices.Clone(s)
	s[at].Lo, s[at].Hi = min(s[at].Lo, i), max(s[at].Hi, i+1)
	if at+1 < len(s) && s[at].Hi == s[at+1].Lo {
		s[at].Hi = s[at+1].Hi
		s = slices.Delete(s, at+1, at+2)
	}
	return s
}

// Valid tells whether the spans are sorted, disjoint, non-empty and within [0, count).
func (s Spans) Valid(count int) bool {
	at := 0
	for _, r := range s {
		if r.Lo < at || r.Hi <= r.Lo || r.Hi > count {
			return false
		}
		at = r.Hi
	}
	return len(s) > 0
}

// String writes the set as 0-3,7.
func (s Spans) String() string {
	parts := make([]string, 0, len(s))
	for _, r := range s {
		if r.Hi == r.Lo+1 {
			parts = append(parts, strconv.Itoa(r.Lo))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r.Lo, r.Hi-1))
		}
	}
	return strings.Join(parts, ",")
}

// ParseSpans reads what String writes.
func ParseSpans(text string) (Spans, error) {
	var s Spans
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, found := strings.Cut(part, "-")
		if !found {
			hi = lo
		}
		a, err := strconv.Atoi(lo)
		b, err2 := strconv.Atoi(hi)
		if err != nil || err2 != nil {
			return nil, Errorf(Invalid, "%.40q names no tasks: write like 0-3,7", text)
		}
		s = append(s, Span{a, b + 1})
	}
	if !s.Valid(MaxTasks) {
		return nil, Errorf(Invalid, "%.40q names no tasks: write them in order and once, like 0-3,7", text)
	}
	return s, nil
}

// MaxBatch bounds the attempts in one trade.
const MaxBatch = 1024

// Terms are what buyer and seller agree on in one trade. Both Place and Award
// carry them, so that each cell can judge its part alone.
type Terms struct {
	Job     JobID     `json:"job" cbor:"1,keyasint"`
	Step    int       `json:"step" cbor:"2,keyasint"`
	Tasks   Spans     `json:"tasks" cbor:"3,keyasint"`
	Attempt int       `json:"attempt" cbor:"4,keyasint"` // 1 for the first try; the same for all tasks of the trade
	Fence   uint64    `json:"fence" cbor:"5,keyasint"`   // fencing token: grows with each Place of the job
	Buyer   AccountID `json:"buyer" cbor:"6,keyasint"`
	Spec    Digest    `json:"spec" cbor:"7,keyasint"` // of the signed spec's payload
	Driver  PeerID    `json:"driver" cbor:"8,keyasint"`
	Cell    CellID    `json:"cell" cbor:"9,keyasint"` // the seller's: where the trade lives
	Seller  PeerID    `json:"seller" cbor:"10,keyasint"`
	Pool    PoolID    `json:"pool" cbor:"11,keyasint"`
	Offer   uint64    `json:"offer" cbor:"12,keyasint"` // number of the seller's offer
	Price   Price     `json:"price" cbor:"13,keyasint"`
	Each    Resources `json:"each" cbor:"14,keyasint"`     // of one attempt
	Width   int       `json:"width" cbor:"15,keyasint"`    // attempts that run at once: Width × Each is reserved
	LimitMS int64     `json:"limit_ms" cbor:"16,keyasint"` // time limit of one attempt
	Adapter string    `json:"adapter" cbor:"17,keyasint"`

	// Of a trade abroad, in another cell than the buyer's:
	Home    CellID `json:"home,omitempty" cbor:"18,keyasint,omitempty"`     // the buyer's cell, which judges the tasks
	AwardBy int64  `json:"award_by,omitempty" cbor:"19,keyasint,omitempty"` // log time of the seller's cell, ms: later, no award on these terms takes effect
}

// Trade is the ID of the trade on these terms. Of one abroad it also follows from
// buyer and home: its cell knows no job by which to tell whose the IDs are.
func (t Terms) Trade() TradeID {
	if t.Abroad() {
		return newTradeIDAbroad(t.Home, t.Buyer, t.Job, t.Fence)
	}
	return NewTradeID(t.Job, t.Fence)
}

// Abroad tells whether the trade is in another cell than its job.
func (t Terms) Abroad() bool { return t.Home != "" }

// HoldEach is the most that one attempt can cost: what is held until it is settled.
func (t Terms) HoldEach() Micro {
	return t.Price.Cost(t.Each, time.Duration(t.LimitMS)*time.Millisecond)
}

// Charge is the most that an attempt costs that used u: by wall time, never above
// its hold. The ledger charges less where the results of a trade together say
// more time than can have passed.
func (t Terms) Charge(u Usage) Micro { return min(t.Price.Cost(t.Each, u.Wall()), t.HoldEach()) }

// LeaseFor is how long an attempt that has run for ran outlives its seller's
// last renewal: 10 s and 5 % of its run time, at most an hour.
func LeaseFor(ran time.Duration) time.Duration {
	return min(10*time.Second+max(ran, 0)/20, time.Hour)
}

// LeaseMargin is how much longer than the lease the cell waits before it calls
// an attempt lost; the seller's supervisor ends it at the lease.
const LeaseMargin = 2 * time.Second

// DisputeFor is how long a dispute may last: if neither side ends it, its hold is
// freed and nothing is paid. The record of it stays.
const DisputeFor = 7 * 24 * time.Hour

// ClearFor is how long the buyer's cell waits to hear what a trade abroad has cost,
// after its last task was decided: then it goes by what it has accepted.
const ClearFor = 30 * 24 * time.Hour

// RenewEvery is how often a peer with open work renews.
const RenewEvery = 3 * time.Second

// DriverLease is how long a driver's term outlives its peer's last renewal.
const DriverLease = 10 * time.Second
