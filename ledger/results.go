package ledger

import (
	"iter"
	"slices"

	"github.com/jointcloud/pcm"
)

// Bounds of what sellers say about the use of their attempts.
const (
	// clockSlack is how much more time than has passed since the award each of a
	// trade's slots may be charged for, ms: log time can stand still.
	clockSlack = int64(60_000)
	// maxUsage bounds what a time in a result can say, ms: ten years.
	maxUsage = maxLastMS
)

func (a *applying) meter(o *pcm.Op) error {
	op := o.Meter
	t, err := a.sold(op.Trade)
	if err != nil {
		return err
	}
	_, err = t.each(slices.Values([]int{op.Index}), func(i int, at *Attempt) error {
		if !at.State.Live() {
			return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s", t.ID, i, at.State)
		}
		if err := checkUsage(i, op.Usage); err != nil {
			return err
		}
		if op.Usage.WallMS < at.Metered.WallMS || op.Usage.CPUMS < at.Metered.CPUMS {
			return pcm.Errorf(pcm.Invalid, "the use of attempt %s/%d can't shrink", t.ID, i)
		}
		at.Metered = op.Usage
		return nil
	})
	if err == nil {
		a.event(o, t.Terms.Job, t, a.driver(t))
	}
	return err
}

// finish takes the seller's results. One that is the seller's own fault is a
// rejection, and so is one that says that the attempt was stopped when nobody
// asked for it: the event tells of that as the seller's fault as well.
func (a *applying) finish(o *pcm.Op) (pcm.Spans, error) {
	op := o.Finish
	t, err := a.sold(op.Trade)
	if err != nil {
		return nil, err
	}
	judged := t.judge(op.Results)
	results, err := byIndex(judged)
	if err != nil {
		return nil, err
	}
	skipped, err := t.each(indexesOf(op.Results), func(i int, at *Attempt) error {
		r := results[i]
		if err := checkResult(r); err != nil {
			return err
		}
		if !at.State.Live() {
			return pcm.Errorf(pcm.Conflict, "attempt %s/%d is %s and can't finish", t.ID, i, at.State)
		}
		if r.Outcome == pcm.OutcomeSeller {
			if err := a.move(t, i, at, pcm.AttemptRejected); err != nil {
				return err
			}
			at.Reason = r.Reason
			a.release(t, 1, 0)
			return nil
		}
		if err := a.move(t, i, at, pcm.AttemptFinished); err != nil {
			return err
		}
		result := *r
		at.Result, at.Metered = &result, r.Usage
		a.charge(t, at)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.event(&pcm.Op{Finish: &pcm.Finish{Trade: op.Trade, Results: judged}}, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	a.close(t)
	return skipped, nil
}

// judge has those of the results that say without ground that the buyer asked to
// stop be the seller's fault.
func (t *Trade) judge(results []pcm.Result) []pcm.Result {
	judged := slices.Clone(results)
	for i := range judged {
		r := &judged[i]
		if at := t.attempt(r.Index); at != nil && at.Stop == "" && r.Outcome == pcm.OutcomeStopped {
			r.Outcome, r.Reason = pcm.OutcomeSeller, "it was stopped, though its buyer did not ask for that"
		}
	}
	return judged
}

// charge sets what a finished attempt costs. A result that says more than can
// be is taken nevertheless: the seller may be honest where log time stood still.
// But all results of a trade together are not charged for more time than its
// slots can have run since the award, whatever they say.
func (a *applying) charge(t *Trade, at *Attempt) {
	passed := min(max(a.stamp-t.AwardedAt, 0), maxUsage) + clockSlack
	room := max(int64(t.Terms.Width)*passed-t.WallMS, 0)
	u := at.Result.Usage
	u.WallMS = min(u.WallMS, t.Terms.LimitMS, room)
	t.WallMS += u.WallMS
	at.Charge = t.Terms.Charge(u)
}

// checkUsage checks what task index is said to have used.
func checkUsage(index int, u pcm.Usage) error {
	switch {
	case u.WallMS < 0 || u.CPUMS < 0 || u.MaxMemory < 0:
		return pcm.Errorf(pcm.Invalid, "the use of task %d is below zero", index)
	case u.WallMS > maxUsage:
		return pcm.Errorf(pcm.Invalid, "task %d says that it ran for %d ms: at most %d can be said", index, u.WallMS, maxUsage)
	}
	return nil
}

func checkResult(r *pcm.Result) error {
	if err := checkUsage(r.Index, r.Usage); err != nil {
		return err
	}
	switch {
	case len(r.Reason) > MaxReason:
		return pcm.Errorf(pcm.Invalid, "the reason of task %d has more than %d bytes", r.Index, MaxReason)
	case r.Output != "" && !r.Output.Valid():
		return pcm.Errorf(pcm.Invalid, "the output of task %d has no digest", r.Index)
	case r.ExitCode < 0 || r.ExitCode > 255:
		return pcm.Errorf(pcm.Invalid, "exit code %d of task %d is out of range", r.ExitCode, r.Index)
	}
	switch r.Outcome {
	case pcm.OutcomeOK:
		if r.ExitCode != 0 {
			return pcm.Errorf(pcm.Invalid, "task %d can't be ok with exit code %d", r.Index, r.ExitCode)
		}
	case pcm.OutcomeFailed, pcm.OutcomeTimeLimit, pcm.OutcomeMemory, pcm.OutcomeOutput, pcm.OutcomeStopped, pcm.OutcomeSeller:
	default:
		return pcm.Errorf(pcm.Invalid, "outcome %q of task %d is unknown", r.Outcome, r.Index)
	}
	return nil
}

func indexesOf(results []pcm.Result) iter.Seq[int] {
	return func(yield func(int) bool) {
		for _, r := range results {
			if !yield(r.Index) {
				return
			}
		}
	}
}

// byIndex finds results by their task; one task has one.
func byIndex(results []pcm.Result) (map[int]*pcm.Result, error) {
	if len(results) > pcm.MaxBatch {
		return nil, pcm.Errorf(pcm.Invalid, "%d results are too many: at most %d", len(results), pcm.MaxBatch)
	}
	m := make(map[int]*pcm.Result, len(results))
	for i := range results {
		if m[results[i].Index] != nil {
			return nil, pcm.Errorf(pcm.Invalid, "task %d has two results", results[i].Index)
		}
		m[results[i].Index] = &results[i]
	}
	return m, nil
}
