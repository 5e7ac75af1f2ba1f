package modelarts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm/adapters/rest/fake/machine"
)

// The phases of a job.
const (
	creating    = "Creating"
	pending     = "Pending"
	running     = "Running"
	failed      = "Failed"
	completed   = "Completed"
	terminating = "Terminating"
	terminated  = "Terminated"
	abnormal    = "Abnormal"
)

const worker = "worker-0" // the one task of a job with one node

// job is one training job. c.mu guards what changes.
type job struct {
	create
	ID     string
	env    map[string]string
	flavor Flavor
	dir    string

	status  status
	created time.Time
	began   time.Time
	ended   time.Time
	events  []event
	process *machine.Process
	stop    chan struct{} // closed when the end is wanted
	grace   time.Duration
	gone    bool // deleted: its folder goes when nothing runs there any more
	left    bool // nothing does
}

// add makes a job and lets it run. c.mu is held.
func (c *Cloud) add(in create, env map[string]string, f Flavor) *job {
	j := &job{create: in, ID: newID(), env: env, flavor: f, created: c.o.Now(), stop: make(chan struct{})}
	j.dir = filepath.Join(c.o.Dir, "jobs", j.ID)
	j.status = status{Phase: creating, Secondary: creating, Tasks: []string{worker}}
	j.Metadata.ID, j.Metadata.CreateTime = j.ID, j.created.UnixMilli()
	c.jobs[j.ID] = j
	c.order = append(c.order, j)
	j.note(c.o.Now(), "Info", "Job", "Training job created.")
	c.wait.Add(1)
	go func() {
		defer c.wait.Done()
		c.run(j)
	}()
	return j
}

func (j *job) final() bool {
	return slices.Contains([]string{failed, completed, terminated, abnormal}, j.status.Phase)
}

// end asks the job to end, with time to do so. c.mu is held.
func (j *job) end(grace time.Duration) {
	select {
	case <-j.stop:
		if j.process != nil && grace == 0 {
			j.process.Kill()
		}
	default:
		j.grace = grace
		close(j.stop)
	}
}

func (j *job) note(now time.Time, level, source, text string) {
	if len(j.events) < maxEvents {
		j.events = append(j.events, event{now.Format(time.RFC3339), level, text, source})
	}
}

// answer is the job as the API shows it.
func (j *job) answer(now time.Time) answer {
	a := answer{Kind: j.Kind, Metadata: *j.Metadata, Status: j.status, Algorithm: *j.Algorithm, Spec: *j.Spec}
	if !j.began.IsZero() {
		until := now
		if !j.ended.IsZero() {
			until = j.ended
		}
		a.Status.StartTime, a.Status.Duration = j.began.UnixMilli(), until.Sub(j.began).Milliseconds()
	}
	a.Status.Statuses = slices.Clone(j.status.Statuses)
	if env := a.Algorithm.Environments; env != nil {
		a.Algorithm.Environments = []any{env}
	}
	return a
}

func (c *Cloud) serveShow(j *job, _ *http.Request, _ []byte) (int, any, error) {
	return http.StatusOK, j.answer(c.o.Now()), nil
}

func (c *Cloud) serveDescribe(j *job, _ *http.Request, body []byte) (int, any, error) {
	var in struct {
		Description *string `json:"description"`
	}
	if err := json.Unmarshal(body, &in); err != nil || in.Description == nil || len([]rune(*in.Description)) > maxDescribed {
		return 0, nil, badRequest("description is required and has at most 256 characters")
	}
	j.Metadata.Description = *in.Description
	return http.StatusOK, nil, nil
}

func (c *Cloud) serveAction(j *job, _ *http.Request, body []byte) (int, any, error) {
	var in struct {
		Type string `json:"action_type"`
	}
	switch err := json.Unmarshal(body, &in); {
	case err != nil || in.Type == "":
		return 0, nil, badRequest("action_type is required")
	case in.Type != "terminate":
		return 0, nil, badRequest("action_type %.64q is not supported: use terminate", in.Type)
	case j.final():
		return 0, nil, &apiError{400, "ModelArts.0105", "The operation is not allowed: the training job is " + j.status.Phase}
	}
	j.status.Phase, j.status.Secondary = terminating, terminating
	j.note(c.o.Now(), "Info", "Job", "ExecuteAction: Start to execute action TerminateJob")
	j.end(c.o.Grace)
	return http.StatusAccepted, j.answer(c.o.Now()), nil
}

func (c *Cloud) serveDelete(j *job, _ *http.Request, _ []byte) (int, any, error) {
	c.remove(j)
	return http.StatusAccepted, nil, nil
}

func (c *Cloud) serveSearch(_ http.ResponseWriter, _ *http.Request, body []byte) (int, any, error) {
	var in search
	if err := json.Unmarshal(body, &in); err != nil {
		return 0, nil, badRequest("the body is not JSON of a search: %v", err)
	}
	out := found{Limit: 10, Offset: in.Offset, SortBy: "create_time", Order: "desc", GroupBy: in.GroupBy, Workspace: "0", AIProject: "default-ai-project", Items: []answer{}}
	if in.Limit != nil {
		out.Limit = *in.Limit
	}
	switch {
	case out.Limit < 1 || out.Limit > maxPage:
		return 0, nil, badRequest("limit %d is not from 1 to %d", out.Limit, maxPage)
	case in.Offset < 0 || in.Offset > maxJobs:
		return 0, nil, badRequest("offset %d is not a page", in.Offset)
	case in.SortBy != "" && in.SortBy != "create_time":
		return 0, nil, badRequest("sort_by %.64q is not supported", in.SortBy)
	case in.Order != "" && in.Order != "asc" && in.Order != "desc":
		return 0, nil, badRequest("order %.64q must be asc or desc", in.Order)
	case in.Workspace != "" && in.Workspace != "0":
		return 0, nil, badRequest("workspace_id %.64q does not exist", in.Workspace)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var hits []*job
	for _, j := range c.order {
		ok, err := j.passes(in.Filters)
		if err != nil {
			return 0, nil, err
		}
		if ok {
			hits = append(hits, j)
		}
	}
	if in.Order == "asc" {
		out.Order = "asc"
	} else {
		slices.Reverse(hits)
	}
	out.Total, out.Count = len(c.order), len(hits)
	from := min(in.Offset*out.Limit, len(hits))
	for _, j := range hits[from:min(from+out.Limit, len(hits))] {
		out.Items = append(out.Items, j.answer(c.o.Now()))
	}
	return http.StatusOK, out, nil
}

// passes tells whether all filters let the job through. Empty values let all through.
func (j *job) passes(filters []filter) (bool, error) {
	for _, f := range filters {
		values := slices.DeleteFunc(slices.Clone(f.Value), func(v string) bool { return v == "" })
		var have string
		switch f.Key {
		case "name":
			have = j.Metadata.Name
		case "phase":
			have = j.status.Phase
		case "kind":
			have = j.Kind
		case "create_time":
			have = strconv.FormatInt(j.Metadata.CreateTime, 10)
		case "algorithm_name", "user_id", "flavor_id":
		default:
			return false, badRequest("filter key %.64q is not supported", f.Key)
		}
		if len(values) == 0 {
			continue
		}
		var ok bool
		switch f.Operator {
		case "like":
			ok = strings.Contains(have, values[0])
		case "in":
			ok = slices.Contains(values, have)
		case "not":
			ok = !slices.Contains(values, have)
		case "between":
			from, err1 := strconv.ParseInt(values[0], 10, 64)
			to, err2 := strconv.ParseInt(values[len(values)-1], 10, 64)
			at, err3 := strconv.ParseInt(have, 10, 64)
			if err1 != nil || err2 != nil || err3 != nil || len(values) != 2 {
				return false, badRequest("filter %q with operator between needs two times in milliseconds", f.Key)
			}
			ok = from <= at && at <= to
		default:
			return false, badRequest("filter operator %.64q must be like, in, not or between", f.Operator)
		}
		if !ok {
			return false, nil
		}
	}
	return true, nil
}

func (c *Cloud) serveEvents(j *job, r *http.Request, _ []byte) (int, any, error) {
	q := r.URL.Query()
	number := func(name string, n int) int {
		if v, err := strconv.Atoi(q.Get(name)); err == nil {
			return v
		}
		return n
	}
	offset, limit := number("offset", 0), number("limit", 50)
	if offset < 0 || limit < 1 || limit > 100 {
		return 0, nil, badRequest("limit must be from 1 to 100, offset at least 0")
	}
	list := slices.Clone(j.events)
	if q.Get("order") != "asc" {
		slices.Reverse(list)
	}
	from := min(offset, len(list))
	return http.StatusOK, map[string]any{
		"total": len(list), "limit": limit, "offset": offset, "order": q.Get("order"),
		"events": list[from:min(from+limit, len(list))],
	}, nil
}

func (c *Cloud) serveLog(j *job, task, form string) (int, any, error) {
	if task != worker {
		return 0, nil, &apiError{404, "ModelArts.0102", fmt.Sprintf("The resource does not exist: task %.64q", task)}
	}
	_, full := machine.ReadAt(j.log(), 0, 0)
	switch form {
	case "preview":
		data, _ := machine.ReadAt(j.log(), max(0, full-maxPreview), maxPreview)
		text := strings.ToValidUTF8(string(data), "\uFFFD")
		return http.StatusOK, map[string]any{"content": text, "current_size": len(data), "full_size": full}, nil
	case "url":
		url, err := c.link(j)
		return http.StatusOK, map[string]any{"obs_url": url}, err
	}
	return 0, nil, &apiError{404, "APIGW.0101", "The API does not exist or has not been published in the environment"}
}

// logBucket is the service's own.
const logBucket = "modelarts-fake-logs"

// link stores the log as it is now and makes a link to it.
func (c *Cloud) link(j *job) (string, error) {
	if err := c.o.Store.CreateBucket(logBucket); err != nil {
		return "", err
	}
	key := j.ID + "/" + j.logName()
	if err := c.store(logBucket, key, j.log()); err != nil {
		return "", err
	}
	return c.o.Store.Presign(http.MethodGet, c.o.StoreURL, c.o.Access, logBucket, key, linkValid)
}

func (j *job) log() string     { return filepath.Join(j.dir, "log") }
func (j *job) logName() string { return "modelarts-job-" + j.ID + "-" + worker + ".log" }

// store puts a file into the object store. One that isn't there is empty.
func (c *Cloud) store(bucket, key, file string) error {
	f, err := os.Open(file)
	if os.IsNotExist(err) {
		return c.o.Store.Put(bucket, key, bytes.NewReader(nil))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return c.o.Store.Put(bucket, key, io.Reader(f))
}
