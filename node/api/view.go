package api

import (
	"context"
	"io"
	"time"

	"github.com/jointcloud/pcm"
)

// The views: what the local API returns, and what the CLI prints with -o json.
// Field names are stable. Amounts of money are strings in whole units ("1.25").

// Status is the node at a glance.
type Status struct {
	ID        pcm.PeerID    `json:"id"`
	Name      string        `json:"name"`
	Version   string        `json:"version"`
	Account   pcm.AccountID `json:"account"`
	Mesh      pcm.MeshID    `json:"mesh"`
	Cell      pcm.CellID    `json:"cell"`
	CellName  string        `json:"cell_name"`
	Role      string        `json:"role"` // in its cell: leader, voter, replica
	Leader    pcm.PeerID    `json:"leader,omitempty"`
	Ready     bool          `json:"ready"`
	Reason    string        `json:"reason,omitempty"` // why not ready
	Listen    []string      `json:"listen"`
	API       []string      `json:"api"` // where the local API listens
	Data      string        `json:"data"`
	Peers     int           `json:"peers"`
	Open      int           `json:"open_jobs"`
	Running   int           `json:"running_tasks"` // here
	Pools     []pcm.Pool    `json:"pools"`         // sold by this peer
	Disk      Disk          `json:"disk"`
	StartedAt time.Time     `json:"started_at"`
	Passport  time.Time     `json:"passport_expires"`
	Warnings  []string      `json:"warnings,omitempty"` // what an operator should look at
}

// Disk is the state of the node's stores.
type Disk struct {
	Free      pcm.Bytes `json:"free"`
	Reserved  pcm.Bytes `json:"reserved"` // kept free for the ledger
	Artifacts pcm.Bytes `json:"artifacts"`
	Quota     pcm.Bytes `json:"quota"`
}

// Peer is a peer of the mesh.
type Peer struct {
	ID        pcm.PeerID    `json:"id"`
	Name      string        `json:"name"`
	Account   pcm.AccountID `json:"account"`
	Labels    pcm.Labels    `json:"labels,omitempty"`
	Self      bool          `json:"self"`
	Connected bool          `json:"connected"`
	Addrs     []string      `json:"addrs,omitempty"`
	Transport string        `json:"transport,omitempty"` // quic or tcp
	LatencyMS float64       `json:"latency_ms,omitempty"`
	Role      string        `json:"role,omitempty"` // in this node's cell
	SeenAt    time.Time     `json:"seen_at,omitzero"`
}

// Offer is one pool of one seller's offer: a row of the book.
type Offer struct {
	ID        string         `json:"id"` // PEER/POOL
	Peer      pcm.PeerID     `json:"peer"`
	Name      string         `json:"name"`
	Account   pcm.AccountID  `json:"account"`
	Cell      pcm.CellID     `json:"cell"`
	Number    uint64         `json:"number"`
	Pool      pcm.Pool       `json:"pool"`
	Free      *pcm.Resources `json:"free,omitempty"` // as the ledger of its cell has it; another cell said so within the last 15 s
	FreeSlots *int           `json:"free_slots,omitempty"`
	FreeNote  string         `json:"free_note,omitempty"` // why it isn't known what is free
	Price     Price          `json:"price"`
	Rules     []pcm.Rule     `json:"rules,omitempty"` // on which it is sold, as far as they are public
	Source    pcm.PeerID     `json:"source"`          // who sent it here
	AgeMS     int64          `json:"age_ms"`          // since it was issued
	NotAfter  time.Time      `json:"not_after"`
}

// Price in whole units.
type Price struct {
	Unit       string `json:"unit"`
	PerTask    string `json:"per_task"`
	PerCPUHour string `json:"per_cpu_hour"`
	PerGiBHour string `json:"per_gib_hour"`
	PerGPUHour string `json:"per_gpu_hour,omitempty"` // missing: 0
}

// Cell is a cell of the mesh.
type Cell struct {
	ID      pcm.CellID   `json:"id"`
	Name    string       `json:"name"`
	Leader  pcm.PeerID   `json:"leader,omitempty"`
	Term    uint64       `json:"term"`
	Index   uint64       `json:"index"`   // last in the log
	Applied uint64       `json:"applied"` // here
	Records uint64       `json:"records"`
	Removed uint64       `json:"removed,omitempty"` // records, from the first one on, that are no longer in this peer's ledger
	Archive string       `json:"archive,omitempty"` // where they are
	Root    string       `json:"root"`              // hex Merkle root over the records
	LogTime time.Time    `json:"log_time"`
	Members []CellMember `json:"members"`

	// Of another cell than this node's, only what its leader told the mesh is known:
	// its members are its voters then, and log and ledger are missing.
	Away       bool       `json:"away,omitempty"`
	Size       int        `json:"size"`             // voters and replicas
	MaxMembers int        `json:"max_members"`      // past it, newcomers are sent on
	Open       bool       `json:"open"`             // takes newcomers, if there is room
	Source     pcm.PeerID `json:"source,omitempty"` // who sent here what is known
	AgeMS      int64      `json:"age_ms"`           // since it came; of this node's own cell 0
	Silent     bool       `json:"silent,omitempty"` // its leader should have been heard of again by now
	NotAfter   time.Time  `json:"not_after,omitzero"`
}

// CellMember is a peer of a cell.
type CellMember struct {
	ID    pcm.PeerID `json:"id"`
	Name  string     `json:"name"`
	Role  string     `json:"role"` // leader, voter, replica
	Alive bool       `json:"alive"`
}

// Job is a job as the ledger has it.
type Job struct {
	ID          pcm.JobID     `json:"id"`
	Name        string        `json:"name"`
	State       pcm.JobState  `json:"state"`
	Reason      string        `json:"reason,omitempty"`
	Account     pcm.AccountID `json:"account"`
	Submitter   pcm.PeerID    `json:"submitter"`
	Driver      pcm.PeerID    `json:"driver"`
	DriverTerm  uint64        `json:"driver_term"`
	Takeover    pcm.Takeover  `json:"takeover"`
	Spec        pcm.Digest    `json:"spec_digest"`
	SubmittedAt time.Time     `json:"submitted_at"`
	EndedAt     time.Time     `json:"ended_at,omitzero"`
	PayAt       time.Time     `json:"pay_at,omitzero"` // what it has cost is paid from then on, unless it is disputed before
	Settled     bool          `json:"settled"`         // nothing of it is open any more
	Unit        string        `json:"unit"`
	Budget      string        `json:"budget,omitempty"`
	Held        string        `json:"held"`
	Paid        string        `json:"paid"`
	Counts      TaskCounts    `json:"tasks"`
	Waiting     string        `json:"waiting,omitempty"` // why tasks have no place, when some wait
	Services    []ServiceView `json:"services,omitempty"`
}

// ServiceView is a step of a job that is a service.
type ServiceView struct {
	Step   string `json:"step"`           // its name where the spec is known here, else its number
	Port   int    `json:"port,omitempty"` // where the spec is known here
	Scale  int    `json:"scale"`          // tasks that are to run
	Most   int    `json:"most"`           // that it can be scaled to
	Placed int    `json:"placed"`         // tasks with a seller
}

// TaskCounts counts a job's tasks by state.
type TaskCounts struct {
	Total     int `json:"total"`
	Waiting   int `json:"waiting"`
	Placed    int `json:"placed"`
	Done      int `json:"done"`
	Failed    int `json:"failed"`
	Cancelled int `json:"cancelled"`
	Parked    int `json:"parked,omitempty"` // of a service, beyond its scale: not to run
}

// Task is one task of a job.
type Task struct {
	ID         string        `json:"id"` // JOB/STEP/INDEX
	Job        pcm.JobID     `json:"job"`
	Step       string        `json:"step"` // its name where the spec is known here, else its number
	Index      int           `json:"index"`
	State      pcm.TaskState `json:"state"`
	Attempt    int           `json:"attempt"`
	Seller     pcm.PeerID    `json:"seller,omitempty"`
	SellerName string        `json:"seller_name,omitempty"`
	Trade      pcm.TradeID   `json:"trade,omitempty"`
	Outcome    pcm.Outcome   `json:"outcome,omitempty"`
	ExitCode   *int          `json:"exit_code,omitempty"`
	Usage      *pcm.Usage    `json:"usage,omitempty"` // so far, of one that runs at this peer
	Output     pcm.Digest    `json:"output,omitempty"`
	BackEnd    string        `json:"back_end,omitempty"` // of one that is at this peer: where it stands at its back end, and the back end's own word for that
	Reason     string        `json:"reason,omitempty"`
	History    []string      `json:"history,omitempty"` // earlier attempts, one line each
}

// Trade is a trade as its cell has it.
type Trade struct {
	ID            pcm.TradeID              `json:"id"`
	Cell          pcm.CellID               `json:"cell"`
	Job           pcm.JobID                `json:"job"`
	Step          int                      `json:"step"`
	Tasks         int                      `json:"tasks"`
	Attempt       int                      `json:"attempt"`
	Buyer         pcm.AccountID            `json:"buyer"`
	Seller        pcm.PeerID               `json:"seller"`
	SellerName    string                   `json:"seller_name,omitempty"`
	SellerAccount pcm.AccountID            `json:"seller_account"`
	Pool          pcm.PoolID               `json:"pool"`
	Adapter       string                   `json:"adapter"`
	Price         Price                    `json:"price"`
	States        map[pcm.AttemptState]int `json:"states"` // attempts by state
	State         string                   `json:"state"`  // open, closed
	Unit          string                   `json:"unit"`
	Held          string                   `json:"held"`
	Paid          string                   `json:"paid"`
	At            time.Time                `json:"awarded_at"`
	ClosedAt      time.Time                `json:"closed_at,omitzero"`
	// Source says whose word this is: ledger, of this node's own cell; cell, that of the
	// trade told it; home, what the buyer's cell has of it, since the trade's did not tell.
	Source string `json:"source"`
	// Disputes are its tasks in dispute, put together by reason.
	Disputes []TradeDispute `json:"disputes,omitempty"`
}

// TradeDispute is tasks of a trade that the buyer doesn't pay as they are.
type TradeDispute struct {
	Tasks  string    `json:"tasks"`  // their indexes in the step, like 0-3,7
	Reason string    `json:"reason"` // as the buyer gave it
	Asked  string    `json:"asked"`  // what the buyer pays if it gives in, in the trade's unit
	Until  time.Time `json:"until"`  // when the first of them ends unpaid
}

// Sources of what is shown of a trade.
const (
	TradeOfLedger = "ledger"
	TradeOfCell   = "cell"
	TradeOfHome   = "home"
	TradeBefore   = "before" // an operation on it that took effect: it could not be read after that
)

// Balance is what one account owes another.
type Balance struct {
	ID     string        `json:"id"` // BUYER/SELLER/UNIT
	Cell   pcm.CellID    `json:"cell"`
	Buyer  pcm.AccountID `json:"buyer"`
	Seller pcm.AccountID `json:"seller"`
	Unit   string        `json:"unit"`
	Owed   string        `json:"owed"`
	Held   string        `json:"held"`
	Limit  string        `json:"limit"`          // smallest credit limit of the seller's peers
	AsOf   time.Time     `json:"as_of,omitzero"` // of another cell: when it said so
}

// RecordView is a record of the ledger, decoded.
type RecordView struct {
	ID      string       `json:"id"` // its number
	Number  uint64       `json:"number"`
	Index   uint64       `json:"index"`
	Time    time.Time    `json:"time"` // log time
	By      pcm.PeerID   `json:"by,omitempty"`
	Kinds   []string     `json:"kinds"`
	Command *pcm.Command `json:"command,omitempty"`
	Facts   []pcm.Fact   `json:"facts,omitempty"`
	Hash    string       `json:"hash"` // hex leaf hash
}

// Verdict is what 'ledger verify' found.
type Verdict struct {
	ID         string     `json:"id"` // the cell
	Cell       pcm.CellID `json:"cell"`
	OK         bool       `json:"ok"`
	Records    uint64     `json:"records"`
	Signatures int        `json:"signatures"`
	Root       string     `json:"root"`
	Bad        *uint64    `json:"bad,omitempty"` // first bad record
	Problem    string     `json:"problem,omitempty"`
	Checks     []string   `json:"checks"` // what was checked
	TookMS     int64      `json:"took_ms"`

	Mesh       pcm.MeshID  `json:"mesh,omitempty"`
	Checkpoint *SignedHead `json:"checkpoint,omitempty"`

	// Where records are not kept for ever: what was begun from, instead of the founding.
	Base *LedgerBase `json:"base,omitempty"`
}

// LedgerBase is a state of the ledger whose digest stands in the ledger: from there
// on it can be verified without the records before.
type LedgerBase struct {
	Records uint64    `json:"records"` // before it
	At      time.Time `json:"at"`
	Digest  string    `json:"digest"`            // hex SHA-256 of the state
	Removed uint64    `json:"removed"`           // records that the source has no more
	Archive string    `json:"archive,omitempty"` // of this node, where it has put them
}

// SignedHead is a checkpoint of the public log and who signed it.
type SignedHead struct {
	Size    uint64       `json:"size"`    // records
	Root    string       `json:"root"`    // hex
	Signers []pcm.PeerID `json:"signers"` // peers whose signature is good
	Voters  int          `json:"voters"`  // peers that should have signed
	Quorum  int          `json:"quorum"`  // how many of them are enough
	Note    string       `json:"note"`    // the checkpoint itself
}

// Explanation says why tasks of a job are, or are not, where they are.
type Explanation struct {
	ID    string        `json:"id"` // the job, or "dry-run"
	Steps []StepExplain `json:"steps"`
}

// StepExplain explains one step.
type StepExplain struct {
	Step       string          `json:"step"`
	Shape      pcm.Resources   `json:"shape"`
	Strategy   string          `json:"strategy"`
	Candidates []CandidateView `json:"candidates"`
	Summary    string          `json:"summary"`
}

// CandidateView is one pool's chance.
type CandidateView struct {
	Peer   pcm.PeerID `json:"peer"`
	Name   string     `json:"name"`
	Pool   pcm.PoolID `json:"pool"`
	OK     bool       `json:"ok"`
	Filter string     `json:"filter,omitempty"` // which filter excluded it
	Reason string     `json:"reason,omitempty"` // and by how much
	Room   int        `json:"room"`             // tasks that fit now
	Score  float64    `json:"score"`
	Cost   string     `json:"cost,omitempty"` // of one task that uses its whole time limit
}

// Invitation is a fresh token.
type Invitation struct {
	ID       string    `json:"id"` // hash of its secret
	Token    string    `json:"token"`
	NotAfter time.Time `json:"not_after"`
}

// Change is a server-sent event.
type Change struct {
	ID    string      `json:"id"`
	Kind  string      `json:"kind"` // e.g. submit, place, award, start, finish, accept, settle, lost, ended, offer, peer
	At    time.Time   `json:"at"`
	Job   pcm.JobID   `json:"job,omitempty"`
	Trade pcm.TradeID `json:"trade,omitempty"`
	Peer  pcm.PeerID  `json:"peer,omitempty"`
	Text  string      `json:"text"`
	State string      `json:"state,omitempty"` // of the job, with kind ended
}

// Submission is a spec to run. Paths in it are absolute, on the node's machine,
// or belong to an upload.
type Submission struct {
	ID   pcm.JobID `json:"id,omitempty" doc:"Job ID chosen by the caller, so that a repeated request submits once. Default: drawn."`
	Spec pcm.Spec  `json:"spec"`
	Base string    `json:"base,omitempty" doc:"Absolute folder that relative source paths start from."`
}

// Node is what the API serves. The node implements it. Errors are *pcm.Error.
type Node interface {
	Operator
	CellOperator
	Deals

	Status(ctx context.Context) (Status, error)
	Peers(ctx context.Context) ([]Peer, error)
	Offers(ctx context.Context) ([]Offer, error)
	Cells(ctx context.Context) ([]Cell, error)
	Jobs(ctx context.Context) ([]Job, error) // newest first, open and ended
	Job(ctx context.Context, id pcm.JobID) (Job, error)
	Tasks(ctx context.Context, id pcm.JobID) ([]Task, error)
	Trades(ctx context.Context) ([]Trade, error)
	Balances(ctx context.Context) ([]Balance, error)
	Records(ctx context.Context, from uint64, limit int) ([]RecordView, error)
	Verify(ctx context.Context) (Verdict, error)

	Submit(ctx context.Context, s Submission) (Job, error)
	Explain(ctx context.Context, id pcm.JobID) (Explanation, error)
	ExplainSpec(ctx context.Context, s Submission) (Explanation, error)
	Cancel(ctx context.Context, id pcm.JobID, reason string) error
	// Scale sets how many tasks of a service run; step "" is the job's only service.
	Scale(ctx context.Context, id pcm.JobID, step string, count int) error
	// Logs streams one stream of one task, from wherever it is.
	Logs(ctx context.Context, id pcm.JobID, step, index int, stream string, follow bool) (io.ReadCloser, error)
	// Fetch writes a task's results (stdout, stderr, out/…) as a tar stream.
	Fetch(ctx context.Context, id pcm.JobID, step, index int, w io.Writer) error
	// Session carries out one session with a running task over conn, at the peer that
	// runs it, whose request the client sends first. It closes conn. What goes wrong is told in the session.
	Session(ctx context.Context, id pcm.JobID, step, index int, conn io.ReadWriteCloser) error
	// Changes delivers changes until ctx ends. A reader that is too slow is cut off (channel closed).
	Changes(ctx context.Context) (<-chan Change, error)

	Invite(ctx context.Context, validFor time.Duration, issuer bool) (Invitation, error)
	// Join moves this node, which has nothing but its founding, into another mesh, and
	// there into the cell that is named: by name, ID or new:NAME; "": where it is sent.
	Join(ctx context.Context, token, cell string) (Status, error)
	Leave(ctx context.Context) error
	Down(ctx context.Context) error // asks the daemon to end
	Collectors() []any              // Prometheus collectors
}
