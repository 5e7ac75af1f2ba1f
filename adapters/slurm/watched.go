package slurm

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// watched is what follow has seen of an attempt.
type watched struct {
	out, errs tail
	start     begun
	began     bool
	endSeen   time.Time // when Slurm first said that it ended; zero: it doesn't
	wait      time.Duration
	again     supervisor.Step // follow
}

// tick is when to look again though nothing tells of anything: at a task that runs,
// since its output grows.
func (w *watched) tick() time.Duration {
	if !w.began && w.endSeen.IsZero() {
		return 0
	}
	wait := w.wait
	w.wait = min(w.wait+w.wait/4, tailSlow)
	return wait
}

// follow takes a submitted attempt one turn further.
func (r *Runner) follow(ctx context.Context, a *attempt) supervisor.Exit {
	w := &a.seen
	var exit *supervisor.Exit
	if ctx.Err() != nil {
		exit = r.cut(a, w)
	} else {
		select {
		case <-a.Stopping:
			exit = r.stopped(a, w)
		default:
		}
		if exit == nil {
			exit = r.look(ctx, a, w)
		}
	}
	if exit == nil {
		return supervisor.Waits(w.again, w.tick())
	}
	r.leave(a)
	return *exit
}

// stopped asks the task to end; one that has not begun is over.
func (r *Runner) stopped(a *attempt, w *watched) *supervisor.Exit {
	if !w.began && r.withdraw(a) {
		exit := killed()
		return &exit
	}
	r.work.Go(func() { r.ask(a) })
	return nil
}

// cut ends it by force.
func (r *Runner) cut(a *attempt, w *watched) *supervisor.Exit {
	exit := killed()
	if w.began || !r.withdraw(a) {
		exit = r.kill(a, &w.out, &w.errs)
	}
	return &exit
}

// look looks at what the attempt left in the spool and at what Slurm says of it; nil
// means that it goes on.
func (r *Runner) look(ctx context.Context, a *attempt, w *watched) *supervisor.Exit {
	in, _ := a.place()
	if !w.began {
		if w.start, w.began = r.spool.readBegun(a.key, in.Generation, "start"); w.began {
			a.Report(adapters.Pending, "RUNNING", "its node begins with it")
			a.Started()
			w.wait = tailFast
		}
	}
	if w.began {
		if peak, err := readSmall(r.spool.file(a.key, "peak")); err == nil {
			if kib, err := strconv.ParseInt(strings.TrimSpace(peak), 10, 50); err == nil && kib > 0 {
				a.Used(0, pcm.Bytes(kib)<<10)
			}
		}
		last := w.out.off + w.errs.off
		more1, _ := w.out.copy()
		more2, _ := w.errs.copy()
		if more1 || more2 {
			a.nudge()
		}
		if w.out.off+w.errs.off != last {
			w.wait = tailFast
		}
	}
	if o, ok := r.spool.readOver(a.key, in.Generation); ok {
		if !w.began {
			a.Started()
		}
		exit := r.finish(ctx, a, o, &w.out, &w.errs)
		exit.Wall = r.spool.lasted(a.key, in.Generation)
		return &exit
	}
	if exit, ok := r.consider(ctx, a, w.start, w.began, &w.endSeen); ok {
		err := r.drain(ctx, &w.out, &w.errs)
		if herr := r.bringHome(ctx, a); err == nil {
			err = herr
		}
		exit = unlessLost(exit, err)
		return &exit
	}
	return nil
}
