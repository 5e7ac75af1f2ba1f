package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// A service's task that has ended is tried again after a pause, which doubles
// with each try until one has lasted.
const (
	firstPause = time.Second
	mostPause  = 5 * time.Minute
	lasting    = 10 * time.Minute
)

// restart says how often a service's task has ended soon, and until when it rests.
type restart struct {
	soon  int
	until time.Time
}

// goesOn tells whether a task whose attempt ended like that is tried again, and
// if so, why it ended.
func (d *driver) goesOn(step, i int, r pcm.Result) (why string, again bool) {
	if d.model.stopping != "" {
		return "", false
	}
	st := &d.model.steps[step]
	if st.service == nil {
		again = r.Outcome != pcm.OutcomeOK && r.Outcome != pcm.OutcomeStopped && st.tasks[i].failures < st.retries
		return failure(r), again
	}
	switch r.Outcome {
	case pcm.OutcomeStopped:
		return orElse(r.Reason, "stopped"), true // it waits, or runs elsewhere when the scale has grown again
	case pcm.OutcomeTimeLimit:
		return fmt.Sprintf("its period of %s is over", d.held.spec.Steps[step].Limit()), true
	case pcm.OutcomeOK:
		return "it ended by itself", st.service.Restart == pcm.RestartAlways
	}
	return failure(r), st.service.Restart != pcm.RestartNever
}

// rest has a service's task wait before it is tried again. It can't have run for
// longer than this peer saw of it since the award: what a seller says beyond that,
// and a period that was over soon, doesn't get it placed anew at once.
func (d *driver) rest(step, i int, r pcm.Result, seen time.Duration, now time.Time) {
	if d.model.steps[step].service == nil {
		return
	}
	k := pcm.TaskRef{Step: step, Index: i}
	ran := min(r.Usage.Wall(), seen)
	if r.Outcome == pcm.OutcomeStopped || r.Outcome == pcm.OutcomeTimeLimit && ran >= d.held.spec.Steps[step].Limit()/2 {
		delete(d.restarts, k)
		return
	}
	p := d.restarts[k]
	if ran >= lasting {
		p.soon = 0
	}
	p.until = now.Add(min(firstPause<<min(p.soon, 20), mostPause))
	p.soon++
	d.restarts[k] = p
}

// resting is how much longer a task is to wait; 0 if it is not.
func (d *driver) resting(step, i int, now time.Time) time.Duration {
	return max(0, d.restarts[pcm.TaskRef{Step: step, Index: i}].until.Sub(now))
}

// parked tells whether a task is beyond what its step is scaled to.
func (s *stepModel) parked(i int) bool { return s.service != nil && i >= s.scale }

// rescale takes a new scale into the model.
func (d *driver) rescale(op *pcm.Scale) {
	if op.Step >= 0 && op.Step < len(d.model.steps) {
		d.model.steps[op.Step].scale = op.Count
	}
}

// shrink stops what runs beyond the scale of its step.
func (d *driver) shrink() []step {
	if d.model.stopping != "" {
		return nil
	}
	var round []step
	for _, id := range sortedKeys(d.trades) {
		m := d.trades[id]
		if m.terms.Step >= len(d.model.steps) {
			continue
		}
		st := &d.model.steps[m.terms.Step]
		var over []int
		for _, i := range sortedKeys(m.live) {
			if st.parked(i) && !m.asked[i] {
				over = append(over, i)
			}
		}
		if len(over) == 0 {
			continue
		}
		reason := fmt.Sprintf("scaled to %d", st.scale)
		round = append(round, step{
			ops: []pcm.Op{{Stop: &pcm.Stop{Trade: id, Tasks: pcm.SpansOf(over), Reason: reason}}},
			then: func(r pcm.CommandResult) bool {
				if r.Err == nil { // what had ended meanwhile needs no stop
					for _, i := range over {
						m.asked[i] = true
					}
				}
				return false
			},
		})
	}
	return round
}

// services are what a job's steps that are services are scaled to.
func services(j *ledger.Job, spec *pcm.Spec) []api.ServiceView {
	var list []api.ServiceView
	for s := range j.Steps {
		st := &j.Steps[s]
		if !st.Service {
			continue
		}
		v := api.ServiceView{Step: fmt.Sprint(s), Scale: st.Scale, Most: len(st.Tasks)}
		if spec != nil && s < len(spec.Steps) && spec.Steps[s].Service != nil {
			v.Step, v.Port = spec.Steps[s].Name, spec.Steps[s].Service.Port
		}
		for i := range st.Tasks {
			if st.Tasks[i].State == pcm.TaskPlaced {
				v.Placed++
			}
		}
		list = append(list, v)
	}
	return list
}

// parked counts the tasks of a job that wait because they are not to run.
func parked(j *ledger.Job) (n int) {
	for s := range j.Steps {
		for i := range j.Steps[s].Tasks {
			if j.Steps[s].Parked(i) && j.Steps[s].Tasks[i].State == pcm.TaskWaiting {
				n++
			}
		}
	}
	return n
}

// Scale implements api.Node: it sets how many tasks of a service run.
func (n *Node) Scale(ctx context.Context, id pcm.JobID, step string, count int) error {
	n.fresh(ctx)
	h, known := n.specs.get(id)
	var op *pcm.Scale
	var bad error
	err := n.withJob(id, func(j *ledger.Job) {
		if j.EndedAt != 0 {
			bad = pcm.Errorf(pcm.Conflict, "%s has ended: it is %s", id, j.State)
			return
		}
		if j.Buyer != n.account {
			bad = pcm.Errorf(pcm.Forbidden, "%s belongs to account %s: scale it on one of its peers", id, pcm.Short(j.Buyer))
			return
		}
		var names []string
		for s := range j.Steps {
			if !j.Steps[s].Service {
				continue
			}
			name := fmt.Sprint(s)
			if known && s < len(h.spec.Steps) {
				name = h.spec.Steps[s].Name
			}
			names = append(names, name)
			if step == name || step == fmt.Sprint(s) && op == nil {
				op = &pcm.Scale{Job: id, Step: s, Count: count}
			}
			if step == name {
				break
			}
		}
		switch {
		case len(names) == 0:
			bad = pcm.Errorf(pcm.Refused, "no step of %s is a service: only services are scaled", pcm.Short(id))
		case op == nil && step == "" && len(names) == 1:
			for s := range j.Steps {
				if j.Steps[s].Service {
					op = &pcm.Scale{Job: id, Step: s, Count: count}
				}
			}
		case op == nil:
			bad = pcm.Errorf(pcm.NotFound, "%s has no service %q: its services are %s", pcm.Short(id), step, strings.Join(names, ", "))
		}
	})
	if err == nil {
		err = bad
	}
	if err != nil {
		return err
	}
	_, err = n.must(ctx, pcm.Op{Scale: op})
	return err
}
