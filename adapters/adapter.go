// Package adapters is the contract between a peer and what runs tasks: a local
// process, a WebAssembly runtime, a container engine, a cluster. An adapter
// executes; it never bids, prices or knows of the mesh.
package adapters

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Key is the natural key of an attempt. Everything that an adapter does is
// idempotent by it.
type Key struct {
	Trade   pcm.TradeID
	Index   int // of the task in its step
	Attempt int
}

// String is the key's form in file names, labels and job names: "trd-p3q8….7.1".
func (k Key) String() string { return fmt.Sprintf("%s.%d.%d", k.Trade, k.Index, k.Attempt) }

// ParseKey reads the form that String prints.
func ParseKey(s string) (Key, error) {
	parts := strings.Split(s, ".")
	if len(parts) == 3 && pcm.TradeID(parts[0]).Valid() {
		index, err1 := strconv.Atoi(parts[1])
		attempt, err2 := strconv.Atoi(parts[2])
		if err1 == nil && err2 == nil && index >= 0 && attempt > 0 {
			return Key{pcm.TradeID(parts[0]), index, attempt}, nil
		}
	}
	return Key{}, pcm.Errorf(pcm.Invalid, "%q is not the key of an attempt (TRADE.INDEX.ATTEMPT)", s)
}

// Task is one attempt to run.
type Task struct {
	Key
	Job       pcm.JobID
	Pool      pcm.PoolID // of the trade, as Pools names it
	Fence     uint64     // fencing token of the trade
	Count     int        // tasks in the step
	Command   []string
	Module    string // path of a local WebAssembly file; set instead of Command
	Image     string // container image as the spec names it; "": the adapter's own choice
	Args      []string
	Env       map[string]string // nothing of the node's own environment is added; PCM_TASK_INDEX and PCM_TASK_COUNT are
	Inputs    []Mount
	Outputs   []string // relative to the working folder
	Resources pcm.Resources
	Network   bool          // the task may use the network; without it there is none
	Port      int           // on which a service listens; 0: none
	Limit     time.Duration // of the run
	OutputCap pcm.Bytes     // stdout, stderr and declared outputs together; 0: the adapter's default
	Deadline  BootTime      // the lease: the attempt ends then unless extended

	// A back end that schedules arrays by itself gets them whole: tasks of one
	// trade that are started together. 0: this task is started alone.
	Batch int // how many are started together, this one included
	Width int // how many of the trade may run at once; Batch may be more
}

// Mount is an input that stands ready on this machine.
type Mount struct {
	Path   string // local file or folder: shared among tasks, never to be written
	Target string // relative to the task's working folder
}

// State is where an attempt stands at its back end.
type State string

// The states.
const (
	Prepared  State = "prepared"  // accepted by the adapter
	Pending   State = "pending"   // with the back end, which has yet to run it: queued, pulling an image
	Running   State = "running"   // also what an unknown native state becomes
	Suspended State = "suspended" // keeps what it has, and doesn't run
	Ended     State = "ended"
)

// Status is what an adapter knows of an attempt.
type Status struct {
	Key
	Fence    uint64
	State    State
	Started  time.Time   // wall clock; zero before
	Outcome  pcm.Outcome // when ended
	ExitCode int         // 128+n for signal n
	Usage    pcm.Usage   // so far, or in all
	Reason   string      // for a person, with the back end's own words: why it ended, or why it doesn't run yet; at most 256 bytes
	Native   string      // the back end's own word for the state, as it said it; at most 64 bytes
}

// StreamName is one of a task's two outputs.
type StreamName string

// The streams.
const (
	Stdout StreamName = "stdout"
	Stderr StreamName = "stderr"
)

// Adapter runs attempts on one back end. Implementations are safe for concurrent
// use. Every call obeys its context's deadline: a hung back end is an error
// (code Unavailable), never a hang. Errors are *pcm.Error.
type Adapter interface {
	// Name is the adapter's name in pools and specs, e.g. "process".
	Name() string

	// Pools discovers what this back end has, without prices. Labels, features and
	// sandbox are facts. Capacity is all that our attempts may use at this moment:
	// what is free, and what they use already. The error is Unavailable when the
	// back end can't be observed: then it is not offered, and nothing else follows.
	Pools(ctx context.Context) ([]pcm.Pool, error)

	// Start runs the attempt. If one with the same key was started already, in
	// whatever state, nothing happens and the error is nil. If the error is not
	// nil, the attempt doesn't run and never will under this key unless Start is
	// called again.
	Start(ctx context.Context, t Task) error

	// Watch delivers the status of attempts whenever their state changes, until
	// ctx ends; the channel is closed then, or when the back end is lost. Changes
	// before the call are not repeated: call List after Watch.
	Watch(ctx context.Context) (<-chan Status, error)

	// List tells of all attempts under our keys that were not removed.
	List(ctx context.Context) ([]Status, error)

	// Logs reads a stream from offset, live: with follow until the attempt ends,
	// else what there is now.
	Logs(ctx context.Context, k Key, s StreamName, offset int64, follow bool) (io.ReadCloser, error)

	// Results opens what an ended attempt left: "stdout", "stderr" and, under
	// "out/", the declared outputs that exist. Links that lead outside are not followed.
	// Inputs are no outputs, even where a declared folder holds them. Only regular
	// files and folders show.
	Results(ctx context.Context, k Key) (fs.FS, error)

	// Stop ends the attempt: gracefully, after grace by force. Nothing happens if
	// it has ended. The outcome is "stopped".
	Stop(ctx context.Context, k Key, grace time.Duration, reason string) error

	// Remove forgets an ended attempt and deletes what it left. Nothing happens
	// if there is none.
	Remove(ctx context.Context, k Key) error
}

// Fencer is an adapter that ends attempts by itself when their lease is over,
// daemon dead or alive.
type Fencer interface {
	// Extend moves the deadlines of attempts. Deadlines never move back; keys
	// that don't run are passed over.
	Extend(ctx context.Context, leases map[Key]BootTime) error
}
