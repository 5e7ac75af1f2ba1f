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
// Server.mu; the others are set before the attempt is seen by others.
type attempt struct {
	key     string
	folder  folder
	ready   chan struct{} // closed when started or refused
	err     error         // why it was refused; read after ready
	done    chan struct{} // closed when ended
	stop    chan Stop
	halting sync.Mutex // held while it is being suspended or resumed
	cancel  context.CancelCauseFunc
	gpus    int64

	// mu
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

// handed is what a runner is given, and what it gives back.
type handed struct {
	run  Run
	out  outputs
	exit Exit
}

// run takes a prepared attempt to its end; again, if an earlier supervisor began
// that. Thousands wait in it and in what it calls, so the stack is kept small: below
// 1.2 KiB in all, the least that goroutines have is enough.
func (s *Server) run(ctx context.Context, a *attempt, r Runner, t *adapters.Task, again bool) {
	defer s.tasks.Done()
	h := s.hand(a, t, again)
	var unwatch func()
	if len(t.Outputs) > 0 {
		unwatch = s.watchOutputs(ctx, a, t, &h.out)
	}
	given := adapters.Now()
	s.guarded(ctx, r, h)
	s.over(ctx, a, h, given)
	if unwatch != nil {
		unwatch()
	}
}

func (s *Server) hand(a *attempt, t *adapters.Task, again bool) *handed {
	h := &handed{run: Run{Task: *t, Work: a.folder.work(), Stopping: a.stop, Again: again}}
	h.out.left, h.out.over = int64(t.OutputCap), func() {
		a.cancel(&verdict{pcm.OutcomeOutput, fmt.Sprintf("wrote more than its cap of %s", t.OutputCap), true})
	}
	run := &h.run
	run.Stdout = &stream{name: a.folder.stream(adapters.Stdout), out: &h.out}
	run.Stderr = &stream{name: a.folder.stream(adapters.Stderr), out: &h.out}
	run.Started = func() { s.begun(a) }
	run.Used = func(cpuMS int64, memory pcm.Bytes) { s.used(a, cpuMS, memory) }
	run.Report = func(state adapters.State, native, reason string) { s.report(a, state, native, reason) }
	return h
}

// over judges what the runner says of an attempt's end, and records it.
func (s *Server) over(ctx context.Context, a *attempt, h *handed, given adapters.BootTime) {
	run, out, exit := &h.run, &h.out, &h.exit
	exit.Wall = min(exit.Wall, time.Duration(adapters.Now()-given))
	run.Stdout.(*stream).close()
	run.Stderr.(*stream).close()

	var v *verdict
	errors.As(context.Cause(ctx), &v)
	if len(run.Outputs) > 0 {
		left := out.remaining()
		if _, err := measure(a.folder.work(), run.Task, left); errors.Is(err, ErrOver) {
			v = outputsOver(&run.Task) // whatever else ended it
		} else if err != nil && v == nil {
			v = &verdict{pcm.OutcomeOutput, err.Error(), true}
		}
	}
	if err := out.failure(); err != nil && v == nil {
		v = &verdict{pcm.OutcomeSeller, "can't keep its output: " + err.Error(), true}
	}
	a.cancel(nil)
	s.ended(a, *exit, v)
}

func outputsOver(t *adapters.Task) *verdict {
	return &verdict{pcm.OutcomeOutput, fmt.Sprintf("its outputs are over the cap of %s", t.OutputCap), true}
}

// watchOutputs ends an attempt whose declared outputs grow over its cap, so that
// no task fills its seller's disk. The function that it returns ends the watch.
func (s *Server) watchOutputs(ctx context.Context, a *attempt, t *adapters.Task, out *outputs) func() {
	ctx, stop := context.WithCancel(ctx)
	s.tasks.Go(func() {
		wait := outputsEvery
		for {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
			began := time.Now()
			if _, err := measure(a.folder.work(), *t, out.remaining()); errors.Is(err, ErrOver) {
				a.cancel(outputsOver(t))
				return
			}
			wait = max(outputsEvery, 50*time.Since(began)) // many files take long to add up
		}
	})
	return stop
}

// outputsEvery is how often a running task's declared outputs are added up.
const outputsEvery = 500 * time.Millisecond

// guarded runs the runner; its panic ends this attempt only.
func (s *Server) guarded(ctx context.Context, r Runner, h *handed) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(r, h, p)
		}
	}()
	h.exit = r.Run(ctx, &h.run)
}

func (s *Server) panicked(r Runner, h *handed, p any) {
	s.log.Error("runner panicked", "runner", r.Name(), "attempt", h.run.Key.String(), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	h.exit = Exit{Outcome: pcm.OutcomeSeller, Code: 255, Reason: fmt.Sprintf("internal fault of the %s runner: %v", r.Name(), p)}
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
	s.broadcast(st)
	close(a.done)
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
	name   string
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
		f, err := os.OpenFile(w.name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
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
