package ledger

import "github.com/jointcloud/pcm"

// A step that is a service has a scale: tasks from there on wait, and are not
// placed. A task of it whose attempt has ended may always be tried again: what
// ends a service is its job's end.

// checkShape checks what is said of a step when its job is submitted.
func checkShape(st pcm.Shape) error {
	if st.Count < 1 || st.Count > pcm.MaxTasks || st.Retries < 0 || st.Retries > 100 {
		return pcm.Errorf(pcm.Invalid, "a step of %d tasks with %d retries is out of range", st.Count, st.Retries)
	}
	if st.Service && (st.Retries != 0 || st.Scale < 0 || st.Scale > st.Count) {
		return pcm.Errorf(pcm.Invalid, "a service of %d tasks can't have %d retries or be scaled to %d", st.Count, st.Retries, st.Scale)
	}
	if !st.Service && st.Scale != 0 {
		return pcm.Errorf(pcm.Invalid, "a step that is no service has no scale: %d", st.Scale)
	}
	return nil
}

// Parked tells whether a task is beyond what its step is scaled to.
func (st *Step) Parked(i int) bool { return st.Service && i >= st.Scale }

// mostAttempts bounds the tries of one of the step's tasks.
func (st *Step) mostAttempts() int {
	if st.Service {
		return pcm.MaxServiceTries
	}
	return pcm.MaxAttempts
}

// retryLeft tells whether a task that has failed may be tried again.
func (st *Step) retryLeft(tk *Task) bool { return st.Service || tk.Failures < st.Retries }

// scale sets how many tasks of a service are to run. It tells whether that is news.
func (a *applying) scale(o *pcm.Op) (bool, error) {
	op := o.Scale
	j, err := a.openJob(op.Job)
	if err != nil {
		return false, err
	}
	if a.by.Account != j.Buyer {
		return false, pcm.Errorf(pcm.Forbidden, "%s belongs to account %s", j.ID, pcm.Short(j.Buyer))
	}
	if j.Stopping {
		return false, pcm.Errorf(pcm.Conflict, "%s was cancelled: %s", j.ID, j.Reason)
	}
	if op.Step < 0 || op.Step >= len(j.Steps) || !j.Steps[op.Step].Service {
		return false, pcm.Errorf(pcm.Invalid, "%s has no service as step %d: only services are scaled", j.ID, op.Step)
	}
	st := &j.Steps[op.Step]
	if op.Count < 0 || op.Count > len(st.Tasks) {
		return false, pcm.Errorf(pcm.Invalid, "step %d of %s can be scaled to 0 to %d, not to %d: the spec's count is the most", op.Step, j.ID, len(st.Tasks), op.Count)
	}
	if st.Scale == op.Count {
		return false, nil
	}
	st.Scale = op.Count
	a.event(o, j.ID, nil, j.Driver, j.Submitter)
	return true, nil
}
