package supervisor

import (
	"context"
	"io"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Runner runs tasks of one kind inside the supervisor. Implementations are safe
// for concurrent use.
type Runner interface {
	// Name is the name under which adapters address the runner, e.g. "process".
	Name() string

	// Facts says what the runner does with tasks on this machine.
	Facts() Facts

	// Check refuses what the runner can never run. The error has code Invalid or Refused.
	Check(t adapters.Task) error

	// Sweep is called once, before anything else but Name, when the folder is
	// ours alone. It kills what an earlier supervisor left running there; a Remote's
	// unfinished attempts are run again after it.
	Sweep(unfinished []adapters.Key) error

	// Close gives back what the runner holds of the machine, when nothing runs
	// any more and the folder is still ours.
	Close(ctx context.Context) error

	// Run runs the task to its end. When ctx is done it kills the task, with all
	// that it has started, and returns without delay. Run calls r.Started once,
	// when the task itself begins; never calling it means that it didn't start. A
	// runner whose attempts may be thousands returns [Waits] where it would wait.
	Run(ctx context.Context, r *Run) Exit
}

// Remote is a runner whose tasks run elsewhere and outlive this process. Its Run
// finds what runs under the task's key already, instead of starting it again: an
// attempt that an earlier supervisor left unfinished is not swept, it is run again
// with Again set.
type Remote interface {
	Runner
	Remote()
}

// Halter is a runner that halts running attempts and lets them go on. The
// supervisor reports that.
type Halter interface {
	Halt(k adapters.Key, on bool) error
}

// Facts describes a runner.
type Facts struct {
	Sandbox string     `cbor:"1,keyasint"` // what keeps tasks in, e.g. "bubblewrap"; "none" if nothing
	Labels  pcm.Labels `cbor:"2,keyasint,omitempty"`

	GPU         int64            `cbor:"3,keyasint,omitempty"` // accelerators that it can give to tasks
	Accelerator *pcm.Accelerator `cbor:"4,keyasint,omitempty"` // which all of them are
}

// Run is one attempt, prepared.
type Run struct {
	adapters.Task
	Work           string      // the working folder, empty at first
	Stdout, Stderr io.Writer   // bounded: a write over the cap fails and ends ctx
	Stopping       <-chan Stop // at most one; the task is to be asked to end
	Started        func()
	Again          bool // an earlier supervisor ran this attempt already; see [Remote]

	// Report tells of what becomes of the attempt before its end, beside Started:
	// Pending while its back end has yet to run it, Suspended, Running again; with
	// the back end's own word and, where that needs one, a reason.
	Report func(state adapters.State, native, reason string)

	// Wake has the step called of an attempt that waits; see [Waits].
	Wake func()

	// Used tells of what the attempt has used so far, where that can be known
	// while it runs. What Exit says counts if it is more.
	Used func(cpuMS int64, memory pcm.Bytes)
}

// Stop asks a task to end by itself.
type Stop struct{}

// Exit is how a run ended, as its runner saw it. If ctx was ended by the
// supervisor, its verdict replaces Outcome and Reason.
type Exit struct {
	Outcome pcm.Outcome
	Code    int    // 128+n for signal n
	Reason  string // for a person; cut to 256 bytes
	Native  string // the back end's own word; "" where there is none
	CPUMS   int64  // user and system
	Memory  pcm.Bytes
	// How long it ran, if the back end knows better than who learns of begin and end
	// a moment later. It counts where it is more than was seen, up to what has
	// passed since the runner was given the attempt.
	Wall time.Duration

	step Step // not nil: it is not the end, see Waits
	most time.Duration
}

// Environ is the whole environment of a task, sorted: the spec's variables and
// those by which it learns its place. home is the working folder as the task sees it.
func Environ(t adapters.Task, home, path string) []string {
	return environ(t, home, path)
}
