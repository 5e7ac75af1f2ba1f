package slurm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const (
	looks       = 3                // of the queue that must miss a job before it counts as gone
	vanished    = 3 * time.Second  // and for how long
	settle      = 5 * time.Second  // for evidence, or Slurm's last word, to come after the other
	quiet       = 15 * time.Second // without a sign of life, of a task that Slurm lost
	killWait    = 5 * time.Second  // for a job to end that is killed
	generations = 3                // submissions of one attempt
	tailFast    = 50 * time.Millisecond
	tailSlow    = time.Second
)

// consider decides by what Slurm says, where the attempt itself has not said how it ended.
func (r *Runner) consider(ctx context.Context, a *attempt, start begun, began bool, endSeen *time.Time) (supervisor.Exit, bool) {
	a.mu.Lock()
	fatal, in, j := a.fatal, a.at, a.job
	lost := a.missing >= looks && time.Since(a.since) >= vanished
	a.mu.Unlock()
	if fatal != nil {
		if in.Name == "" {
			return seller("Slurm does not take it: " + fatal.Error()), true
		}
		// Of several tries one may have been taken.
		ok, err := r.spool.claim(a.key, in.Generation)
		if ok || err != nil {
			a.withdrawn = ok
			return seller("Slurm does not take it: " + fatal.Error()), true
		}
		a.mu.Lock()
		a.fatal, a.submitted = nil, time.Now()
		a.mu.Unlock()
		r.poller.soon()
		return supervisor.Exit{}, false
	}
	if lost {
		return r.lost(a, in, start, began)
	}
	// A controller that forgot that it had begun has its node begin once more, the
	// first copy alive; after a requeue that one is dead.
	if again, ok := r.spool.readBegun(a.key, in.Generation, "refused"); ok && again.Job == start.Job && (again.Restarts > start.Restarts || !r.alive(a)) {
		r.poller.drop(a.ref())
		e := seller(fmt.Sprintf("Slurm started it once more (restart %d, on %s) after it had begun on %s: it is not run twice here", again.Restarts, again.Host, start.Host))
		e.Native = "REQUEUED"
		return e, true
	}
	if j == nil {
		return supervisor.Exit{}, false
	}
	n := states.Of(j.State)
	switch {
	case n.State == adapters.Ended:
		if endSeen.IsZero() {
			*endSeen = time.Now()
		}
		if time.Since(*endSeen) < settle {
			return supervisor.Exit{}, false // its evidence may be on its way
		}
		if own := n.Outcome == pcm.OutcomeOK || n.Outcome == pcm.OutcomeFailed; own && began && r.alive(a) {
			return supervisor.Exit{}, false // it was another copy that ended
		}
		return r.ended(ctx, a, *j, n, began), true
	case n.State == adapters.Pending && began:
		if !r.restarted(ctx, a) {
			return supervisor.Exit{}, false // an older look
		}
		r.poller.drop(a.ref())
		e := seller(fmt.Sprintf("Slurm put it back into its queue after it had begun on %s (%s): it is not run twice here", start.Host, j.Reason))
		e.Native = j.State
		return e, true
	case n.State == adapters.Pending:
		if never[reasonWord(j.Reason)] {
			if r.withdraw(a) {
				e := seller(why(j.Reason))
				e.Native = j.State
				return e, true
			}
		}
		a.Report(adapters.Pending, j.State, firstOf(n.Reason, why(j.Reason)))
	case n.State == adapters.Suspended:
		a.halted = true
		a.Report(adapters.Suspended, j.State, n.Reason)
	case began && a.halted:
		a.halted = false
		a.Report(adapters.Running, j.State, n.Reason)
	}
	*endSeen = time.Time{}
	return supervisor.Exit{}, false
}

func reasonWord(s string) string {
	for i, r := range s {
		if r == ',' || r == ' ' {
			return s[:i]
		}
	}
	return s
}

// restarted tells whether Slurm says that the job waits although it began, in a
// look later than the begin.
func (r *Runner) restarted(ctx context.Context, a *attempt) bool {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	j, err := r.link.end(ctx, a.ref())
	return err == nil && states.Of(j.State).State != adapters.Running && j.Restarts > 0
}

// lost is for a job that Slurm does not know any more. One that has not begun is
// submitted once more, when the claim of its start has made sure that it never
// will; one that has begun is not run twice.
func (r *Runner) lost(a *attempt, in intent, start begun, began bool) (supervisor.Exit, bool) {
	if began && start.Job != "none" {
		if r.alive(a) {
			return supervisor.Exit{}, false // its node runs it all the same
		}
		replaceFile(r.spool.file(a.key, "kill"), nil)
		return seller(fmt.Sprintf("Slurm lost job %s, which had begun on %s: its controller knows it no more, and how it ended can't be told", start.Job, start.Host)), true
	}
	ok, err := r.spool.claim(a.key, in.Generation)
	if err != nil {
		return seller("can't read the folder shared with Slurm: " + err.Error()), true
	}
	if !ok {
		if r.alive(a) {
			return supervisor.Exit{}, false // it begins this very moment
		}
		replaceFile(r.spool.file(a.key, "kill"), nil)
		return seller("Slurm lost it from its queue, and its node could not note in the shared folder that it began: is there space left?"), true
	}
	if in.Generation >= generations {
		return seller(fmt.Sprintf("Slurm lost it from its queue %d times", generations)), true
	}
	r.log.Warn("Slurm lost a job that had not begun: submitting it again", "attempt", a.key, "job", in.Name, "number", in.ID)
	a.mu.Lock()
	a.at, a.submitted, a.job, a.missing = intent{Name: in.Name, Index: -1, Generation: in.Generation + 1}, time.Time{}, nil, 0
	a.mu.Unlock()
	a.Report(adapters.Pending, "", "Slurm lost it from its queue: it is submitted once more")
	r.queue.again(a, in.Generation+1)
	return supervisor.Exit{}, false
}

// alive tells whether a task that Slurm knows no more shows signs of life.
func (r *Runner) alive(a *attempt) bool {
	f, err := os.Open(r.spool.file(a.key, "alive")) // opening it, not only looking, has NFS ask its server
	if err == nil {
		if info, err := f.Stat(); err == nil && !info.ModTime().Equal(a.beat) {
			a.beat, a.beaten = info.ModTime(), time.Now()
		}
		f.Close()
	}
	if a.beaten.IsZero() {
		a.beaten = time.Now()
	}
	return time.Since(a.beaten) < quiet
}

// withdraw makes sure that an attempt that has not begun never will.
func (r *Runner) withdraw(a *attempt) bool {
	in, _ := a.place()
	ok, err := r.spool.claim(a.key, max(in.Generation, 1))
	if err != nil || !ok {
		return false
	}
	a.withdrawn = true // what was submitted of it is cancelled when Run is left
	return true
}

// ask asks a running task to end.
func (r *Runner) ask(a *attempt) {
	ctx, cancel := context.WithTimeout(r.ctx, r.cfg.Timeout)
	defer cancel()
	a.mu.Lock()
	halted := a.job != nil && states.Of(a.job.State).State == adapters.Suspended
	a.mu.Unlock()
	if err := r.link.signal(ctx, a.ref(), "TERM"); err != nil || halted {
		// It looks for this file itself.
		if err := replaceFile(r.spool.file(a.key, "stop"), nil); err != nil {
			r.log.Warn("can't ask a task to end", "attempt", a.key, "err", err)
		}
	}
}

// kill ends a task that has begun, Slurm answering or not, and waits a little for it.
func (r *Runner) kill(a *attempt, out, errs *tail) supervisor.Exit {
	if err := replaceFile(r.spool.file(a.key, "kill"), nil); err != nil {
		r.log.Warn("can't leave word for a task to end", "attempt", a.key, "err", err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, killWait)
	defer cancel()
	ref := a.ref()
	r.work.Go(func() {
		if err := r.link.signal(ctx, ref, "KILL"); err != nil {
			r.log.Debug("can't kill a job at once", "attempt", a.key, "err", err)
		}
	})
	defer r.poller.drop(ref)
	kick := a.listen()
	for {
		if o, ok := r.spool.readOver(a.key, a.gen()); ok {
			err := r.drain(ctx, out, errs)
			if herr := r.bringHome(ctx, a); err == nil {
				err = herr
			}
			e := killed()
			e.CPUMS, e.Memory = o.CPUMS, o.Peak
			if o.Code == 0 && err == nil {
				e.Outcome, e.Code = pcm.OutcomeOK, 0
			}
			return e
		}
		a.mu.Lock()
		over := a.job != nil && states.Of(a.job.State).State == adapters.Ended && a.jobAt.After(time.Now().Add(-killWait))
		a.mu.Unlock()
		if over {
			r.drain(ctx, out, errs)
			r.bringHome(ctx, a)
			return killed()
		}
		select {
		case <-ctx.Done():
			e := killed()
			e.Reason = "Slurm has yet to say that it has ended it"
			return e
		case <-kick:
		case <-time.After(tailFast):
		}
	}
}

func (a *attempt) gen() int { in, _ := a.place(); return in.Generation }

// finish judges an attempt that said how it ended. Where it failed, Slurm knows
// more about why.
func (r *Runner) finish(ctx context.Context, a *attempt, o over, out, errs *tail) supervisor.Exit {
	exit := supervisor.Exit{Outcome: pcm.OutcomeOK, Code: o.Code, CPUMS: o.CPUMS, Memory: o.Peak}
	if o.Fault != "" {
		exit = seller(o.Fault)
	} else if o.Code != 0 {
		var said adapters.Native
		if last := r.lastWord(ctx, a); last != "" {
			said, exit.Native = states.Of(last), last
		}
		exit.Outcome, exit.Reason = judge(o, a, said)
		// Slurm kills the first copy of what it starts once more, by a signal as any.
		if again, ok := r.spool.readBegun(a.key, a.gen(), "refused"); ok && exit.Outcome == pcm.OutcomeFailed && o.Code > 128 {
			first, _ := r.spool.readBegun(a.key, a.gen(), "start")
			exit.Outcome = pcm.OutcomeSeller
			exit.Reason = fmt.Sprintf("Slurm started it once more (on %s) after it had begun on %s, and ended it there: it is not run twice here", again.Host, first.Host)
		}
	}
	err := r.drain(ctx, out, errs)
	if herr := r.bringHome(ctx, a); err == nil {
		err = herr
	}
	exit = unlessLost(exit, err)
	if exit.Native == "" {
		a.mu.Lock()
		if a.job != nil && states.Of(a.job.State).State == adapters.Ended {
			exit.Native = a.job.State
		}
		a.mu.Unlock()
	}
	return exit
}

// judge says what a failure means. said is what Slurm's last word means.
func judge(o over, a *attempt, said adapters.Native) (pcm.Outcome, string) {
	signalled := o.Code > 128 && o.Code < 128+65
	switch {
	case o.OOM || said.Outcome == pcm.OutcomeMemory:
		return pcm.OutcomeMemory, fmt.Sprintf("used more than its %s of memory", a.Resources.Memory)
	case said.Outcome == pcm.OutcomeTimeLimit, said.Outcome == pcm.OutcomeSeller:
		return said.Outcome, said.Reason
	case o.Missing:
		return pcm.OutcomeFailed, fmt.Sprintf("program %q was not found there, or its interpreter was not", a.Command[0])
	case signalled:
		return pcm.OutcomeFailed, fmt.Sprintf("ended by signal %d (%s)", o.Code-128, syscall.Signal(o.Code-128))
	}
	return pcm.OutcomeFailed, fmt.Sprintf("exit code %d", o.Code)
}

// lastWord waits a little for Slurm's word on how the job ended; "" if there is none.
func (r *Runner) lastWord(ctx context.Context, a *attempt) string {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	kick := a.listen()
	for {
		a.mu.Lock()
		j, lost := a.job, a.missing >= looks
		a.mu.Unlock()
		if j != nil && states.Of(j.State).State == adapters.Ended {
			return j.State
		}
		if lost || !r.poller.hungSince().IsZero() {
			return ""
		}
		if j != nil && states.Of(j.State).State == adapters.Pending && r.restarted(ctx, a) {
			r.poller.drop(a.ref())
			return "REQUEUED"
		}
		r.poller.soon()
		select {
		case <-kick:
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ""
		}
	}
}

// ended judges by Slurm's word alone: the attempt could not say how it ended.
func (r *Runner) ended(ctx context.Context, a *attempt, j job, n adapters.Native, began bool) supervisor.Exit {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	last, err := r.link.end(ctx, a.ref())
	if err == nil && last.Name == j.Name {
		j.ExitCode, j.Node, j.ended = last.ExitCode, firstOf(last.Node, j.Node), true
		if n = states.Of(last.State); n.State == adapters.Ended {
			j.State = last.State
		}
	}
	n = states.Of(j.State)
	exit := supervisor.Exit{Outcome: n.Outcome, Code: j.ExitCode, Reason: n.Reason, Native: j.State}
	switch {
	case !began && (n.Outcome == pcm.OutcomeOK || n.Outcome == pcm.OutcomeFailed):
		exit = seller(fmt.Sprintf("its script could not begin on node %s: is the folder %s shared with the compute nodes?", firstOf(j.Node, "?"), r.spool))
		exit.Native = j.State
	case n.Outcome == pcm.OutcomeOK && (!j.ended || j.ExitCode != 0), n.Outcome == pcm.OutcomeFailed:
		exit.Outcome, exit.Reason = pcm.OutcomeFailed, fmt.Sprintf("exit code %d", j.ExitCode)
		if j.ExitCode == 0 {
			exit = seller("it ended without a word on how")
			exit.Native = j.State
		}
	case n.Outcome == pcm.OutcomeOK:
	case exit.Code == 0:
		exit.Code = 255
	}
	if n.Outcome == pcm.OutcomeMemory {
		exit.Reason = fmt.Sprintf("used more than its %s of memory", a.Resources.Memory)
	}
	return exit
}

// unlessLost makes no good end of one whose output or outputs are not here.
func unlessLost(exit supervisor.Exit, err error) supervisor.Exit {
	if err != nil && exit.Outcome == pcm.OutcomeOK {
		lost := seller("can't bring its output here: " + supervisor.Errno(err).Error())
		lost.Native, lost.CPUMS, lost.Memory = exit.Native, exit.CPUMS, exit.Memory
		return lost
	}
	return exit
}

// drain carries over what is left of the streams.
func (r *Runner) drain(ctx context.Context, tails ...*tail) error {
	for _, t := range tails {
		for more := true; more; {
			var err error
			if more, err = t.copy(); errors.Is(err, fs.ErrNotExist) {
				readNames(filepath.Dir(t.file())) // has NFS ask its server what is there
				more, err = t.copy()
			}
			if err != nil {
				return err
			}
			if more && ctx.Err() != nil && t.off > maxTail {
				return ctx.Err()
			}
		}
	}
	return nil
}

// bringHome copies outputs from the shared folder, where the task ran in one of its own.
func (r *Runner) bringHome(ctx context.Context, a *attempt) error {
	if a.work == a.Work || len(a.Outputs) == 0 {
		return nil
	}
	from, err := openWork(string(r.spool), filepath.Join("attempts", a.key, "work"))
	if err != nil {
		return err
	}
	defer from.Close()
	return copyOut(ctx, a.Task, from, a.Work, int64(a.OutputCap))
}
