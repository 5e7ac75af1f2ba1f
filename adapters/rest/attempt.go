package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const (
	callTime   = 10 * time.Second // of a call that ends a job
	killTime   = 12 * time.Second // for a job that is killed to end
	rightsMost = 30 * time.Second // that a log-in may be refused
	minWait    = 200 * time.Millisecond
)

// attempt is one Run.
type attempt struct {
	*supervisor.Run
	r    *Runner
	b    *backend
	key  string
	n    *note
	t    *track
	stop chan struct{} // closed when it is asked to end
	seat seat          // where jobs of many tasks are made by one call

	begun  bool // Started was called
	reader *reader

	mu     sync.Mutex  // held by halt, also while it calls
	halted atomic.Bool // by us
}

// waits is an error for which an attempt waits.
type waits struct {
	word   string // for Status.Native
	reason string
	err    error
}

func (w *waits) Error() string { return w.reason }
func (w *waits) Unwrap() error { return w.err }

func (a *attempt) asked() bool {
	select {
	case <-a.stop:
		return true
	default:
		return false
	}
}

func (a *attempt) run(ctx context.Context) supervisor.Exit {
	if exit, ok := a.make(ctx); !ok {
		return exit
	}
	t := a.r.poller.follow(a.key, a.n.ID, func() map[string]any { return a.b.vars(a.n) })
	a.mu.Lock()
	a.t = t
	a.mu.Unlock()
	a.reader = newReader(a)
	defer a.reader.close()
	return a.attend(ctx)
}

// make sees to it that the job is there.
func (a *attempt) make(ctx context.Context) (supervisor.Exit, bool) {
	if a.n.Stage == fresh && a.asked() {
		return stopped(), false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-a.stop:
			cancel()
		case <-done:
		}
	}()
	m := &maker{a: a}
	var denied time.Time
	for wait := minWait; ; wait = min(2*wait, maxBackOff) {
		there := a.n.Stage == made || a.n.Stage == over
		err := m.next(ctx)
		switch {
		case err == nil && !there && a.asked():
			return stopped(), false // it came after the stop: the cleaner ends it
		case err == nil:
			return supervisor.Exit{}, true
		}
		if ctx.Err() != nil {
			if a.asked() {
				return stopped(), false
			}
			return seller("its back end did not take it: " + err.Error()), false
		}
		var w *waits
		switch {
		case errors.As(err, &w):
			a.Report(adapters.Pending, w.word, w.reason)
			wait = min(wait, max(a.b.poll, time.Second))
		case isAway(err):
			a.Report(adapters.Pending, "unreachable", "its back end does not take it yet: "+err.Error())
		case pcm.ErrorCode(err) == pcm.Refused && (denied.IsZero() || time.Since(denied) < rightsMost):
			// A log-in that is being renewed, or rights that have just been given.
			if denied.IsZero() {
				denied = time.Now()
			}
			a.Report(adapters.Pending, "refused", "its back end does not take it yet: "+err.Error())
		default:
			return seller("its back end does not take it: " + err.Error()), false
		}
		pause(ctx, wait)
	}
}

// attend sees the job through.
func (a *attempt) attend(ctx context.Context) supervisor.Exit {
	tick := time.NewTicker(max(a.b.poll, time.Second))
	defer tick.Stop()
	stop := a.stop
	for {
		seen, gone := a.t.view()
		switch {
		case seen != nil && seen.native.State == adapters.Ended:
			return a.finish(ctx, seen)
		case gone:
			a.n.Stage = over
			exit := seller("its back end knows it no more, and how it ended can't be told")
			if !a.begun {
				exit.Reason = "its back end lost it before it began"
			}
			a.reader.finish(ctx, false)
			return exit
		case seen != nil:
			a.report(seen, a.r.poller.fault())
		default:
			if err := a.r.poller.fault(); err != nil {
				a.Report(adapters.Pending, "unreachable", "its back end does not say how it stands: "+err.Error())
			}
		}
		select {
		case <-a.t.changed:
		case <-tick.C:
		case <-stop:
			stop = nil
			a.r.work.Go(func() { a.ask(ctx) })
		case <-ctx.Done():
			return a.kill(ctx)
		}
	}
}

// report tells where the job stands that has not ended, or stood when its back end
// could still be read.
func (a *attempt) report(seen *reading, away error) {
	if away != nil {
		last := *seen
		last.native.Reason = a.b.clean("its back end does not say how it stands, this is of "+seen.at.UTC().Format(time.RFC3339)+": "+away.Error(), maxReason)
		seen = &last
	}
	state := seen.native.State
	if state == adapters.Running && a.halted.Load() && !a.b.states.suspended {
		state = adapters.Suspended // it has no word for it
	}
	switch {
	case state == adapters.Pending && a.begun:
		a.Report(adapters.Running, seen.word, seen.native.Reason) // taken back into a queue, perhaps: it has begun
	case state == adapters.Pending:
		reason := seen.native.Reason
		if reason == "" {
			reason = "it waits at its back end"
		}
		a.Report(adapters.Pending, seen.word, reason)
	default:
		a.begin(seen.word)
		a.reader.start()
		a.Report(state, seen.word, seen.native.Reason)
	}
}

// begin tells that the task itself has begun.
func (a *attempt) begin(word string) {
	if !a.begun {
		a.begun = true
		a.Report(adapters.Pending, word, "")
		a.Started()
	}
}

// ask asks the job to end by itself. Where there is no way to ask, it is ended.
func (a *attempt) ask(ctx context.Context) {
	call := a.b.d.Stop
	if call == nil {
		call = a.b.killer()
	}
	for wait := minWait; call != nil; wait = min(2*wait, maxBackOff) {
		_, err := a.b.call(client.Ahead(ctx), call, a.vars())
		if err == nil || isAbsent(err) || ctx.Err() != nil {
			break
		}
		a.r.log.Warn("can't ask a job to end", "attempt", a.key, "job", a.n.ID, "err", err)
		if !isAway(err) || !pause(ctx, wait) {
			break
		}
	}
	a.r.poller.soon()
}

// vars are those of calls for the job, with what was last seen of it.
func (a *attempt) vars() map[string]any {
	vars := a.b.vars(a.n)
	if seen, _ := a.t.view(); seen != nil {
		vars["job"] = seen.job
	}
	return vars
}

// kill ends the job, and waits a while for that. Where the back end doesn't
// answer, the job is ended as soon as it does.
func (a *attempt) kill(ctx context.Context) supervisor.Exit {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	a.n.Forced = true
	sent := false
	for wait := minWait; ; wait = min(2*wait, 2*time.Second) {
		seen, gone := a.t.view()
		switch {
		case seen != nil && seen.native.State == adapters.Ended:
			exit := a.finish(ctx, seen)
			if exit.Outcome == pcm.OutcomeOK {
				return exit
			}
			exit.Outcome, exit.Reason = pcm.OutcomeFailed, "ended by force"
			if exit.Code == 0 {
				exit.Code = killed().Code
			}
			return exit
		case gone:
			a.n.Stage = over
			a.reader.finish(ctx, false)
			return killed()
		}
		if !sent {
			call, stop := context.WithTimeout(ctx, callTime)
			_, err := a.b.call(client.Ahead(call), a.b.killer(), a.vars())
			stop()
			if sent = err == nil || isAbsent(err); sent {
				a.t.doom()
			}
			if err != nil && !isAbsent(err) {
				a.r.log.Warn("can't end a job yet", "attempt", a.key, "job", a.n.ID, "err", err)
			}
		}
		a.r.poller.soon()
		select {
		case <-a.t.changed:
		case <-time.After(wait):
		case <-ctx.Done():
			a.r.log.Warn("left a job that may still run: it is ended as soon as its back end lets us", "attempt", a.key, "job", a.n.ID)
			exit := killed()
			exit.Reason = "its back end has yet to say that it has ended it"
			return exit
		}
	}
}

// halt suspends the job, or lets it go on.
func (a *attempt) halt(on bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	call, word := a.b.d.Resume, "resume"
	if on {
		call, word = a.b.d.Suspend, "suspend"
	}
	if call == nil || a.t == nil {
		return pcm.Errorf(pcm.Refused, "the %s adapter has no call to %s a job", a.b.name, word)
	}
	if a.halted.Load() == on {
		return nil
	}
	ctx, cancel := context.WithTimeout(a.r.ctx, callTime)
	defer cancel()
	if _, err := a.b.call(client.Ahead(ctx), call, a.vars()); err != nil {
		return pcm.Errorf(pcm.ErrorCode(err), "can't %s the job of attempt %s: %w", word, a.key, err)
	}
	a.halted.Store(on)
	a.t.forget()
	return nil
}

// finish gathers what an ended job left, and says how it ended.
func (a *attempt) finish(ctx context.Context, seen *reading) supervisor.Exit {
	a.n.Stage = over
	err := a.reader.finish(ctx, !a.n.Forced) // what is killed has no last words
	exit := a.judge(ctx, seen)
	if err != nil && exit.Outcome == pcm.OutcomeOK {
		exit.Outcome, exit.Code, exit.Reason = pcm.OutcomeSeller, 255, "its output could not be read: "+err.Error()
		return exit
	}
	if len(a.Outputs) > 0 && exit.Outcome != pcm.OutcomeSeller {
		err := a.fetch(ctx)
		switch {
		case err == nil:
		case pcm.ErrorCode(err) == pcm.TooLarge:
			exit.Outcome, exit.Reason = pcm.OutcomeOutput, err.Error()
		case exit.Outcome == pcm.OutcomeOK:
			exit.Outcome, exit.Code, exit.Reason = pcm.OutcomeSeller, 255, "its outputs could not be fetched: "+err.Error()
		default:
			a.r.log.Warn("can't fetch outputs", "attempt", a.key, "err", err)
		}
	}
	return exit
}

// judge says how an ended job's task ended.
func (a *attempt) judge(ctx context.Context, seen *reading) supervisor.Exit {
	s, vars := &a.b.d.Watch.Status, map[string]any{"settings": a.b.settings, "job": seen.job}
	exit := supervisor.Exit{Outcome: seen.native.Outcome, Native: seen.word, Reason: seen.native.Reason}
	code, known := int64(0), false
	if s.ExitCode.Given() {
		if v, err := s.ExitCode.Eval(ctx, vars); err == nil && v != nil {
			code, known = whole(v)
		}
	}
	if v, err := eval(ctx, s.Seconds.Given(), s.Seconds, vars); err == nil {
		exit.Wall = time.Duration(min(v, 1e9) * float64(time.Second))
	}
	if v, err := eval(ctx, s.CPU.Given(), s.CPU, vars); err == nil {
		exit.CPUMS = int64(min(v, 1e9) * 1000)
	}
	if v, err := eval(ctx, s.Memory.Given(), s.Memory, vars); err == nil {
		exit.Memory = pcm.Bytes(min(v, 1<<50))
	}
	m := a.reader.marks
	if m.cpu > 0 {
		exit.CPUMS = m.cpu.Milliseconds()
	}
	exit.Memory = max(exit.Memory, m.peak)
	if m.ended && m.fault == "" {
		code, known = int64(m.code), true
	}
	ran := m.began || known && exit.Outcome != pcm.OutcomeSeller || exit.Outcome == pcm.OutcomeOK || exit.Wall > 0 || exit.Outcome == pcm.OutcomeMemory
	if ran && m.fault == "" {
		a.begin(seen.word)
	}
	switch {
	case m.fault != "":
		exit.Outcome, exit.Code, exit.Reason = pcm.OutcomeSeller, 255, a.b.clean(m.fault, maxReason)
		return exit
	case m.over:
		exit.Outcome, exit.Reason = pcm.OutcomeOutput, fmt.Sprintf("its outputs are over the cap of %s", a.OutputCap)
	case exit.Outcome == pcm.OutcomeOK && known && code == 0:
	case exit.Outcome == pcm.OutcomeOK && known:
		exit.Outcome = pcm.OutcomeFailed
		exit.Reason = failure(code)
	case exit.Outcome == pcm.OutcomeOK && a.b.scripted:
		exit.Outcome, exit.Code, exit.Reason = pcm.OutcomeSeller, 255, "it ended without a word on how: the last lines of its output did not come"
		return exit
	case exit.Outcome == pcm.OutcomeFailed && known && code == 0:
		exit.Outcome, exit.Code = pcm.OutcomeSeller, 255
		exit.Reason = "its back end calls it " + seen.word + ", though it came to a good end: " + exit.Reason
		return exit
	case exit.Outcome == pcm.OutcomeFailed && known:
		exit.Reason = failure(code)
	case exit.Outcome == pcm.OutcomeFailed && exit.Reason == "":
		exit.Reason = "its back end says no more than " + seen.word
	case exit.Outcome == pcm.OutcomeStopped && !a.asked() && !a.n.Forced:
		exit.Outcome = pcm.OutcomeSeller
		exit.Reason = "it was ended at its back end, not by its buyer: " + seen.word
	}
	if exit.Code = int(code); exit.Code == 0 && exit.Outcome != pcm.OutcomeOK {
		exit.Code = killed().Code
		if exit.Outcome == pcm.OutcomeFailed {
			exit.Code = 255
		}
	}
	return exit
}

func failure(code int64) string {
	switch {
	case code == 127:
		return "exit code 127: its program was not found"
	case code > 128 && code < 128+65:
		return fmt.Sprintf("exit code %d: ended by signal %d", code, code-128)
	}
	return fmt.Sprintf("exit code %d", code)
}

// killer is the call that ends a job by force.
func (b *backend) killer() *description.Call {
	for _, c := range []*description.Call{b.d.Kill, b.d.Stop, b.d.Delete} {
		if c != nil {
			return c
		}
	}
	return nil
}

// features are what the pools of this back end can do.
func (b *backend) features() []pcm.Feature {
	all := []pcm.Feature{pcm.FeatureCommand}
	for _, f := range b.d.Features {
		if f := pcm.Feature(f); !slices.Contains(all, f) && slices.Contains([]pcm.Feature{pcm.FeatureImage, pcm.FeatureNetwork}, f) {
			all = append(all, f)
		}
	}
	return all
}

func (b *backend) sandbox() string {
	if b.d.Sandbox == "" {
		return b.d.Name
	}
	return b.d.Sandbox
}
