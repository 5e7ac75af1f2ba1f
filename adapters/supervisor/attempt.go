package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// attempt is one attempt in the supervisor. Fields below mu are guarded by
// Server.mu; the others are set before the attempt is seen by others. What it needs
// only until it ends is in handed.
type attempt struct {
	key     string
	folder  folder
	gpus    int64
	halting sync.Mutex // held while it is being suspended or resumed

	// mu
	starting chan struct{} // closed when started or refused; nil: it is not being started
	err      error         // why it was refused; read after starting is closed
	live     *handed       // nil: it has ended
	status   status
	begun    adapters.BootTime // when it began to run; 0 before
	deadline adapters.BootTime // of the lease
	limit    time.Duration     // 0: none
	stopped  string            // reason given with Stop
	force    adapters.BootTime // when a stop becomes a kill; 0: no stop asked
}

// verdict is why the supervisor ended an attempt, as a context's cause.
type verdict struct {
	outcome pcm.Outcome
	reason  string
	final   bool // holds even if the task came to a good end
}

func (v *verdict) Error() string { return string(v.outcome) + ": " + v.reason }

// due tells when the attempt must be looked at next, and what is to be done if
// that moment is over. Server.mu is held.
func (a *attempt) due() (adapters.BootTime, *verdict) {
	at, v := a.deadline, &verdict{pcm.OutcomeSeller, "lease ended: it was not renewed in time", false}
	if a.limit > 0 && a.begun != 0 && a.begun.Add(a.limit) <= at {
		at, v = a.begun.Add(a.limit), &verdict{pcm.OutcomeTimeLimit, fmt.Sprintf("ended at its time limit of %s", a.limit), false}
	}
	if a.force != 0 && a.force < at {
		at, v = a.force, &verdict{pcm.OutcomeStopped, a.stopped, true}
	}
	return at, v
}

// handed is an attempt that has not ended: what its runner is given, and what is
// needed to go on with it.
type handed struct {
	*attempt
	ctx            context.Context // of the attempt: ended with a verdict, or nil
	end            context.CancelCauseFunc
	runner         Runner
	run            Run
	out            outputs
	stdout, stderr stream
	stop           chan Stop
	given          adapters.BootTime // when the runner was given it
	place          place             // under turns.mu
	watch          *time.Timer       // of its outputs; nil: it declares none. Under Server.mu
}

// cancel ends the attempt by force, for the reason of v.
func (s *Server) cancel(h *handed, v *verdict) {
	h.end(v)
	s.turns.wake(h, true)
}

func (s *Server) hand(a *attempt, r Runner, t adapters.Task, again bool) *handed {
	h := &handed{attempt: a, runner: r, stop: make(chan Stop, 1)}
	h.ctx, h.end = context.WithCancelCause(s.ctx)
	h.out.left, h.out.over = int64(t.OutputCap), func() {
		s.cancel(h, &verdict{pcm.OutcomeOutput, fmt.Sprintf("wrote more than its cap of %s", h.run.OutputCap), true})
	}
	h.stdout = stream{folder: a.folder, name: adapters.Stdout, out: &h.out}
	h.stderr = stream{folder: a.folder, name: adapters.Stderr, out: &h.out}
	h.run = Run{
		Task: t, Work: a.folder.work(), Stdout: &h.stdout, Stderr: &h.stderr, Stopping: h.stop, Again: again,
		Started: func() { s.begun(a) },
		Used:    func(cpuMS int64, memory pcm.Bytes) { s.used(a, cpuMS, memory) },
		Report:  func(state adapters.State, native, reason string) { s.report(a, state, native, reason) },
		Wake:    func() { s.turns.wake(h, false) },
	}
	return h
}

// run begins with a prepared attempt; again, if an earlier supervisor began that.
func (s *Server) run(h *handed) {
	if len(h.run.Outputs) > 0 {
		s.watchOutputs(h)
	}
	h.given = adapters.Now()
	s.see(h, s.first(h))
}

// first is an attempt's first turn.
func (s *Server) first(h *handed) Exit {
	return s.guarded(h, func(ctx context.Context) Exit { return h.runner.Run(ctx, &h.run) })
}

// again is the turn of one that has waited.
func (s *Server) again(h *handed) { s.see(h, s.guarded(h, h.place.step)) }

// see goes on with an attempt after its turn.
func (s *Server) see(h *handed, exit Exit) {
	if exit.step != nil {
		s.turns.wait(h, exit.step, exit.most)
		return
	}
	s.turns.over(h)
	s.over(h, exit)
	s.tasks.Done()
}

// over judges what the runner says of an attempt's end, and records it.
func (s *Server) over(h *handed, exit Exit) {
	exit.Wall = min(exit.Wall, time.Duration(adapters.Now()-h.given))
	h.stdout.close()
	h.stderr.close()

	var v *verdict
	errors.As(context.Cause(h.ctx), &v)
	if len(h.run.Outputs) > 0 {
		left := h.out.remaining()
		if _, err := measure(h.folder.work(), h.run.Task, left); errors.Is(err, ErrOver) {
			v = outputsOver(&h.run.Task) // whatever else ended it
		} else if err != nil && v == nil {
			v = &verdict{pcm.OutcomeOutput, err.Error(), true}
		}
	}
	if err := h.out.failure(); err != nil && v == nil {
		v = &verdict{pcm.OutcomeSeller, "can't keep its output: " + err.Error(), true}
	}
	h.end(nil)
	s.ended(h.attempt, exit, v)
}

func outputsOver(t *adapters.Task) *verdict {
	return &verdict{pcm.OutcomeOutput, fmt.Sprintf("its outputs are over the cap of %s", t.OutputCap), true}
}

// watchOutputs ends an attempt whose declared outputs grow over its cap, so that
// no task fills its seller's disk.
func (s *Server) watchOutputs(h *handed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.watch = time.AfterFunc(outputsEvery, func() {
		s.mu.Lock()
		if h.live == nil {
			s.mu.Unlock()
			return
		}
		s.tasks.Add(1) // it has not ended, so one is counted
		defer s.tasks.Done()
		s.mu.Unlock()
		began := time.Now()
		if _, err := measure(h.folder.work(), h.run.Task, h.out.remaining()); errors.Is(err, ErrOver) {
			s.cancel(h, outputsOver(&h.run.Task))
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if h.live != nil {
			h.watch.Reset(max(outputsEvery, 50*time.Since(began))) // many files take long to add up
		}
	})
}

// outputsEvery is how often a running task's declared outputs are added up.
const outputsEvery = 500 * time.Millisecond

// guarded has a runner see to an attempt; its panic ends this attempt only.
func (s *Server) guarded(h *handed, see Step) (exit Exit) {
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("runner panicked", "runner", h.runner.Name(), "attempt", h.key, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			exit = Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: fmt.Sprintf("internal fault of the %s runner: %v", h.runner.Name(), p)}
		}
	}()
	return see(h.ctx)
}

// begun notes that an attempt runs: for the first time, or after it had to wait again.
func (s *Server) begun(a *attempt) {
	s.become(a, func(st *status) {
		if st.State != adapters.Running {
			st.State, st.Reason = adapters.Running, ""
		}
	})
}

// report notes where an attempt stands that has not ended.
func (s *Server) report(a *attempt, state adapters.State, native, reason string) {
	s.become(a, func(st *status) {
		st.State, st.Native, st.Reason = state, cut(native, maxNative), cut(reason, maxReason)
	})
}

// become changes the status of an attempt that has not ended, and tells of that once.
func (s *Server) become(a *attempt, change func(*status)) {
	s.mu.Lock()
	st := a.status
	change(&st)
	first := st.State == adapters.Running && a.begun == 0
	if a.status.State == adapters.Ended || st.State == adapters.Ended || st == a.status && !first {
		s.mu.Unlock()
		return
	}
	if first {
		a.begun, st.StartedN = adapters.Now(), time.Now().UnixNano()
	}
	a.status = st
	if first {
		at, _ := a.due()
		s.alarm.by(at)
	}
	s.broadcast(st)
	begun, wall := a.begun, st.StartedN
	_, remote := s.runners[st.Runner].(Remote)
	s.mu.Unlock()
	if first && remote {
		if err := a.folder.storeBegin(begun, wall); err != nil {
			s.log.Warn("can't record when an attempt began: should this supervisor be lost, its time limit begins anew", "attempt", a.key, "err", err)
		}
	}
}

// used notes what an attempt has used so far.
func (s *Server) used(a *attempt, cpuMS int64, memory pcm.Bytes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if u := &a.status.Usage; a.status.State != adapters.Ended {
		u.CPUMS, u.MaxMemory = max(u.CPUMS, cpuMS), max(u.MaxMemory, memory)
	}
}

const maxNative = 64

func (s *Server) ended(a *attempt, exit Exit, v *verdict) {
	s.mu.Lock()
	st := a.status
	stopped, begun := a.stopped, a.begun
	asked := a.force != 0
	s.mu.Unlock()

	st.State = adapters.Ended
	st.Outcome, st.ExitCode, st.Reason = exit.Outcome, exit.Code, exit.Reason
	st.Native = cut(exit.Native, maxNative)
	st.Usage = pcm.Usage{CPUMS: max(st.Usage.CPUMS, exit.CPUMS), MaxMemory: max(st.Usage.MaxMemory, exit.Memory)}
	if begun != 0 {
		st.Usage.WallMS = max(time.Duration(adapters.Now()-begun), exit.Wall).Milliseconds()
		st.Usage.GPUMS = a.gpus * st.Usage.WallMS
	}
	switch {
	// A task that came to a good end just before it was to be killed did so. One
	// that wrote too much did not, nor one that was asked to stop.
	case v != nil && (exit.Outcome != pcm.OutcomeOK || v.final):
		st.Outcome, st.Reason = v.outcome, v.reason
	case asked:
		st.Outcome, st.Reason = pcm.OutcomeStopped, stopped
	}
	if st.Outcome == pcm.OutcomeOK {
		st.Reason = ""
	}
	st.Reason = cut(st.Reason, maxReason)
	if err := a.folder.finish(st); err != nil {
		s.log.Error("can't record the end of an attempt", "attempt", a.key, "err", err)
	}
	s.mu.Lock()
	a.status = st
	s.running--
	delete(s.live, a.key)
	if a.live.watch != nil {
		a.live.watch.Stop()
	}
	a.live = nil
	s.broadcast(st)
	s.touch()
	s.mu.Unlock()
}

const maxReason = 256

// outputs is the cap that an attempt's two streams share.
type outputs struct {
	over func()

	mu   sync.Mutex
	left int64
	hit  bool
	err  error // of the disk
}

func (o *outputs) take(n int) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	got := int(min(int64(n), o.left))
	o.left -= int64(got)
	if got < n && !o.hit {
		o.hit = true
		o.over()
	}
	return got
}

func (o *outputs) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		o.err = err
	}
}

func (o *outputs) remaining() int64 { o.mu.Lock(); defer o.mu.Unlock(); return o.left }
func (o *outputs) failure() error   { o.mu.Lock(); defer o.mu.Unlock(); return o.err }

// stream is stdout or stderr: a file that is made with its first byte.
type stream struct {
	folder folder
	name   adapters.StreamName
	out    *outputs
	mu     sync.Mutex
	file   *os.File
	closed atomic.Bool
}

func (w *stream) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed.Load() {
		return 0, os.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	n := w.out.take(len(p))
	if n > 0 && w.file == nil {
		f, err := os.OpenFile(w.folder.stream(w.name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			w.out.fail(err)
			return 0, err
		}
		w.file = f
	}
	if n > 0 {
		if _, err := w.file.Write(p[:n]); err != nil {
			w.out.fail(err)
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

func (w *stream) close() {
	w.closed.Store(true)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file != nil {
		if err := w.file.Close(); err != nil {
			w.out.fail(err)
		}
		w.file = nil
	}
}
