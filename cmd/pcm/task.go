package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// taskName is a task as a person names it: JOB, JOB/INDEX, JOB/STEP or JOB/STEP/INDEX.
type taskName struct {
	job, rest string
}

const taskUsage = "a TASK: JOB, JOB/INDEX, JOB/STEP or JOB/STEP/INDEX"

func parseTask(typed string) (taskName, error) {
	job, rest, _ := strings.Cut(typed, "/")
	if job == "" || strings.Count(rest, "/") > 1 {
		return taskName{}, pcm.Errorf(pcm.Invalid, "%q is not %s", typed, taskUsage)
	}
	return taskName{job, rest}, nil
}

// list finds the tasks that are meant.
func (n taskName) list(ctx context.Context, c *api.Client) ([]api.Task, error) {
	job, err := c.Job(ctx, n.job)
	if err != nil {
		return nil, err
	}
	all, err := c.Tasks(ctx, string(job.ID), api.Query{})
	if err != nil {
		return nil, err
	}
	return pickTasks(all.Items, n.rest)
}

// running finds the one task that is meant: of several the first that has a place.
func (n taskName) running(ctx context.Context, c *api.Client) (api.Task, error) {
	tasks, err := n.list(ctx, c)
	if err != nil {
		return api.Task{}, err
	}
	for _, t := range tasks {
		if t.State == pcm.TaskPlaced {
			return t, nil
		}
	}
	if len(tasks) == 1 {
		t := tasks[0]
		return t, pcm.Errorf(pcm.Conflict, "task %s/%d does not run: it is %s%s", t.Step, t.Index, t.State, prefixed(": ", t.Reason))
	}
	return api.Task{}, pcm.Errorf(pcm.Conflict, "none of the %d tasks runs now; see 'pcm job describe %s'", len(tasks), n.job)
}

// taskLine names a task for people.
func taskLine(t api.Task) string {
	return fmt.Sprintf("%s/%s/%s", pcm.Short(t.Job), t.Step, strconv.Itoa(t.Index))
}
