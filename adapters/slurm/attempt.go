package slurm

import (
	"io"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// attempt is one attempt in the runner, from Run's begin to its return.
type attempt struct {
	*supervisor.Run
	key  string
	work string // where the task runs
	seen watched

	turn int // the generation that it is submitted with next; the queue's

	// Of follow alone.
	halted    bool      // Slurm has suspended it
	withdrawn bool      // its start was claimed by us
	beat      time.Time // last sign of life, by its node's clock
	beaten    time.Time // when we saw it

	mu        sync.Mutex
	kick      chan struct{} // capacity 1: see listen; nil: nobody waits for it
	at        intent
	submitted time.Time // when its number was learnt; zero before
	job       *job      // as last seen
	jobAt     time.Time // when
	missing   int       // looks in a row that did not show it
	since     time.Time // of the first of these
	fatal     error     // why it can't be submitted
	gone      bool      // Run has returned, or is about to
}

// nudge has it looked at: something below mu or in the spool changed.
func (a *attempt) nudge() {
	a.mu.Lock()
	kick := a.kick
	a.mu.Unlock()
	select {
	case kick <- struct{}{}:
	default:
	}
	a.Wake()
}

// listen gives what nudge is heard by, for who waits within a turn.
func (a *attempt) listen() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.kick == nil {
		a.kick = make(chan struct{}, 1)
	}
	return a.kick
}

func (a *attempt) place() (intent, time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.at, a.submitted
}

func (a *attempt) ref() jobRef {
	in, _ := a.place()
	return jobRef{in.ID, in.Index, in.Name}
}

// fail ends an attempt that was not submitted and won't be.
func (a *attempt) fail(err error) {
	a.mu.Lock()
	a.fatal = err
	a.mu.Unlock()
	a.nudge()
}

func (a *attempt) dead() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.gone
}

func (a *attempt) leave() {
	a.mu.Lock()
	a.gone = true
	a.mu.Unlock()
}

// tail carries a stream's file over to the supervisor, as it grows.
type tail struct {
	r    *Runner
	of   *attempt
	name string // of the stream
	dst  io.Writer
	off  int64
	full bool
}

func (t *tail) file() string { return t.r.spool.file(t.of.key, t.name) }

// maxTail is how much is carried over at once, so that a stop is not kept waiting.
const maxTail = 4 << 20

// copy carries over what has come; more tells that there is more already.
func (t *tail) copy() (more bool, err error) {
	if t.full {
		return false, nil
	}
	f, err := openShared(t.file())
	if err != nil {
		return false, err
	}
	defer f.Close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for sent := 0; sent < maxTail; {
		n, err := f.ReadAt(*buf, t.off)
		if n > 0 {
			w, werr := t.dst.Write((*buf)[:n])
			t.off += int64(w)
			sent += w
			if werr != nil {
				t.full = true // over the cap: the supervisor ends it
				return false, nil
			}
		}
		if err == io.EOF || n == 0 {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

func seller(reason string) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: reason}
}
