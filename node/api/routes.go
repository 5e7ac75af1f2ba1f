package api

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/jointcloud/pcm"
)

const description = `The local view of one PCM peer. Every peer serves the same view of its mesh.

Over TCP, requests that change something, and those for logs and outputs, need ` + "`Authorization: Bearer TOKEN`" + `
with the token from file ` + "`token`" + ` of the node's data folder. The unix socket ` + "`api.sock`" + ` in that folder needs none.
The ledger of a cell is a public log (https://c2sp.org/tlog-tiles) below ` + "`/v1/cells/{cell}/log/`: `checkpoint`, `tile/…`, `tile/entries/…` and `vkeys`" + `.
Where a path takes a job or trade ID, any unambiguous beginning of it will do. Amounts of money are strings in whole units.`

func humaConfig(version string) huma.Config {
	c := huma.DefaultConfig("PCM", version)
	c.Info.Description = description
	c.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	c.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
	c.DocsPath, c.SchemasPath = "", "" // the documentation page would load scripts from elsewhere
	c.CreateHooks = nil                // no $schema in answers
	c.RejectUnknownQueryParameters = true
	return c
}

// schemaName names a type's schema. Price of the root package, which pools hold,
// must not meet Price of this one.
func schemaName(t reflect.Type, hint string) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == reflect.TypeFor[pcm.Price]() {
		return "PoolPrice"
	}
	name := huma.DefaultSchemaNamer(t, hint)
	if item, ok := strings.CutPrefix(name, "List"); ok && strings.HasPrefix(t.Name(), "List[") {
		return item + "List"
	}
	return strings.TrimSuffix(name, "Body")
}

// answer is what every operation answers with: of one type, as each pair of types
// costs the binary some 18 KB of huma's code. The schema is that of the real body.
type answer struct{ Body any }

type none struct{}

// route registers one operation. write says that it changes something.
func route[I, O any](s *Server, write bool, method, path, id, summary string, h func(context.Context, *I) (O, error)) {
	op := huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary,
		MaxBodyBytes: -1, BodyReadTimeout: -1, // the guard has bounded both
	}
	if write {
		op.Security = []map[string][]string{{"token": {}}}
	}
	body := reflect.StructField{Name: "Body", Type: reflect.TypeFor[O]()}
	op.Responses = map[string]*huma.Response{"200": {
		Description: http.StatusText(http.StatusOK), Content: map[string]*huma.MediaType{"application/json": {
			Schema: huma.SchemaFromField(s.huma.OpenAPI().Components.Schemas, body, id+"Response"),
		}},
	}}
	huma.Register(s.huma, op, func(ctx context.Context, in *I) (*answer, error) {
		v, err := h(ctx, in)
		if err != nil {
			return nil, s.fail(ctx, id, err)
		}
		return &answer{v}, nil
	})
}

func (s *Server) fail(ctx context.Context, op string, err error) error {
	e := errorBody(err)
	if e.Fault.Code == pcm.Internal && ctx.Err() == nil {
		s.log.Error("request failed", "op", op, "err", err)
	}
	return e
}

// JobPath is the part of a path that names a job.
type JobPath struct {
	Job string `path:"id" maxLength:"64" doc:"Job ID, or any unambiguous beginning of it." example:"job-x7k2mq4w"`
}

// TaskPath is the part of a path that names a task.
type TaskPath struct {
	JobPath
	Step  string `path:"step" maxLength:"64" doc:"Name of the step, or its number (from 0) where this peer does not know the name."`
	Index int    `path:"index" minimum:"0" doc:"Index of the task in its step, from 0."`
}

// Ack says that something was done or is under way.
type Ack struct {
	ID   string `json:"id" doc:"What it was done to."`
	Text string `json:"text" doc:"What happens now, for people."`
}

// CancelRequest says why.
type CancelRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"200"`
}

// ScaleRequest says how many tasks of which service are to run.
type ScaleRequest struct {
	Step  string `json:"step,omitempty" maxLength:"64" doc:"Name of the step; default: the job's only service."`
	Count int    `json:"count" minimum:"0" maximum:"100000" doc:"Tasks that are to run: 0 to the step's count."`
}

// InviteRequest says what the token shall be good for.
type InviteRequest struct {
	ValidFor pcm.Duration `json:"valid_for,omitempty" doc:"How long the token can be used; default 24h, at most 720h." example:"24h"`
	Issuer   bool         `json:"issuer,omitempty" doc:"Whether the newcomer may invite others."`
}

// JoinRequest says which mesh to move to, and where in it.
type JoinRequest struct {
	Token string `json:"token" maxLength:"16384"`
	Cell  string `json:"cell,omitempty" maxLength:"80" doc:"Name or ID of the cell to go to, or new:NAME to found one. Default: where the inviting peer sends this one."`
}

// Health says that the process answers.
type Health struct {
	ID      string `json:"id"`
	OK      bool   `json:"ok"`
	Version string `json:"version"`
}

const (
	defaultInvite = 24 * time.Hour
	maxInvite     = 30 * 24 * time.Hour
)

func (s *Server) routes() {
	s.viewRoutes()
	s.jobRoutes()
	s.writeRoutes()
	s.streamRoutes()
	s.sessionRoutes()
	s.operatorRoutes()
	s.cellRoutes()
	s.recoveryRoutes()
	s.backupRoutes()
	s.checkupRoutes()
	s.dealRoutes()
}

// listRoute registers a list that the node returns whole.
func listRoute[T any](s *Server, path, id, summary string, all func(context.Context) ([]T, error), key func(T) string) {
	route(s, false, http.MethodGet, path, id, summary, func(ctx context.Context, in *Page) (List[T], error) {
		items, err := all(ctx)
		if err != nil {
			return List[T]{}, err
		}
		return paginate(items, key, *in)
	})
}

func (s *Server) viewRoutes() {
	route(s, false, http.MethodGet, "/healthz", "healthz", "Whether the process answers", func(context.Context, *none) (Health, error) {
		return Health{ID: "health", OK: true, Version: s.cfg.Version}, nil
	})
	route(s, false, http.MethodGet, "/readyz", "readyz", "Whether the node can take work; 503 with the reason if not", func(ctx context.Context, _ *none) (Health, error) {
		st, err := s.node.Status(ctx)
		if err != nil {
			return Health{}, err
		}
		if !st.Ready {
			return Health{}, pcm.Errorf(pcm.Unavailable, "not ready: %s", st.Reason)
		}
		return Health{ID: "ready", OK: true, Version: s.cfg.Version}, nil
	})
	route(s, false, http.MethodGet, "/v1/status", "status", "The node at a glance", func(ctx context.Context, _ *none) (Status, error) {
		return s.node.Status(ctx)
	})
	listRoute(s, "/v1/peers", "list-peers", "Peers of the mesh", s.node.Peers, func(p Peer) string { return string(p.ID) })
	listRoute(s, "/v1/offers", "list-offers", "What is sold in the mesh: a row for each pool", s.node.Offers, func(o Offer) string { return o.ID })
	listRoute(s, "/v1/cells", "list-cells", "Cells that this node knows", s.node.Cells, func(c Cell) string { return string(c.ID) })
	listRoute(s, "/v1/balances", "list-balances", "What accounts owe each other", s.node.Balances, func(b Balance) string { return b.ID })

	type tradesQuery struct {
		Page
		Job   string `query:"job" maxLength:"64" doc:"Only trades of this job."`
		State string `query:"state" enum:"open,closed" doc:"Only trades in this state."`
	}
	route(s, false, http.MethodGet, "/v1/trades", "list-trades", "Trades of this node's cell, and of its jobs in others, newest first", func(ctx context.Context, in *tradesQuery) (List[Trade], error) {
		job, err := s.optionalJob(ctx, in.Job)
		if err != nil {
			return List[Trade]{}, err
		}
		all, err := s.node.Trades(ctx)
		if err != nil {
			return List[Trade]{}, err
		}
		all = filter(all, func(t Trade) bool {
			return (job == "" || t.Job == job) && (in.State == "" || t.State == in.State)
		})
		return paginate(all, func(t Trade) string { return string(t.ID) }, in.Page)
	})
	type tradePath struct {
		Trade string `path:"id" maxLength:"64" doc:"Trade ID, or any unambiguous beginning of it."`
	}
	route(s, false, http.MethodGet, "/v1/trades/{id}", "get-trade", "One trade", func(ctx context.Context, in *tradePath) (Trade, error) {
		all, err := s.node.Trades(ctx)
		if err != nil {
			return Trade{}, err
		}
		ids := make([]pcm.TradeID, len(all))
		byID := make(map[pcm.TradeID]Trade, len(all))
		for i, t := range all {
			ids[i], byID[t.ID] = t.ID, t
		}
		id, err := resolve("trd", in.Trade, ids)
		return byID[id], err
	})

	type recordsQuery struct {
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Most records to return."`
		Cursor string `query:"cursor" pattern:"^[0-9]*$" maxLength:"20" doc:"Number of the first record wanted; what the previous page had as next."`
	}
	route(s, false, http.MethodGet, "/v1/records", "list-records", "Records of the ledger of this node's cell, oldest first", func(ctx context.Context, in *recordsQuery) (List[RecordView], error) {
		var from uint64
		if in.Cursor != "" {
			var err error
			if from, err = strconv.ParseUint(in.Cursor, 10, 64); err != nil {
				return List[RecordView]{}, pcm.Errorf(pcm.Invalid, "cursor %q is not the number of a record", in.Cursor)
			}
		}
		items, err := s.node.Records(ctx, from, in.Limit+1)
		if err != nil {
			return List[RecordView]{}, err
		}
		l := List[RecordView]{Items: append([]RecordView{}, items[:min(len(items), in.Limit)]...)}
		if len(items) > in.Limit {
			l.Next = strconv.FormatUint(items[in.Limit].Number, 10)
		}
		return l, nil
	})

	route(s, false, http.MethodGet, "/v1/schema/job", "job-schema", "JSON Schema of a job's spec", func(context.Context, *none) (json.RawMessage, error) {
		if s.cfg.JobSchema == nil {
			return nil, pcm.Errorf(pcm.NotFound, "this build has no job schema")
		}
		return s.cfg.JobSchema, nil
	})
}

func (s *Server) jobRoutes() {
	type jobsQuery struct {
		Page
		State pcm.JobState `query:"state" enum:"open,done,failed,cancelled" doc:"Only jobs in this state."`
	}
	route(s, false, http.MethodGet, "/v1/jobs", "list-jobs", "Jobs, newest first, open and ended", func(ctx context.Context, in *jobsQuery) (List[Job], error) {
		all, err := s.node.Jobs(ctx)
		if err != nil {
			return List[Job]{}, err
		}
		all = filter(all, func(j Job) bool { return in.State == "" || j.State == in.State })
		return paginate(all, func(j Job) string { return string(j.ID) }, in.Page)
	})
	route(s, false, http.MethodGet, "/v1/jobs/{id}", "get-job", "One job", func(ctx context.Context, in *JobPath) (Job, error) {
		id, err := s.job(ctx, in.Job)
		if err != nil {
			return Job{}, err
		}
		return s.node.Job(ctx, id)
	})
	type tasksQuery struct {
		JobPath
		Page
		State pcm.TaskState `query:"state" enum:"waiting,placed,done,failed,cancelled" doc:"Only tasks in this state."`
	}
	route(s, false, http.MethodGet, "/v1/jobs/{id}/tasks", "list-tasks", "Tasks of a job, by step and index", func(ctx context.Context, in *tasksQuery) (List[Task], error) {
		id, err := s.job(ctx, in.Job)
		if err != nil {
			return List[Task]{}, err
		}
		all, err := s.node.Tasks(ctx, id)
		if err != nil {
			return List[Task]{}, err
		}
		all = filter(all, func(t Task) bool { return in.State == "" || t.State == in.State })
		return paginate(all, func(t Task) string { return t.ID }, in.Page)
	})
	route(s, false, http.MethodGet, "/v1/jobs/{id}/tasks/{step}/{index}", "get-task", "One task", func(ctx context.Context, in *TaskPath) (Task, error) {
		t, _, err := s.task(ctx, *in)
		return t, err
	})
	route(s, false, http.MethodGet, "/v1/jobs/{id}/explain", "explain-job", "Why tasks of a job are, or are not, where they are", func(ctx context.Context, in *JobPath) (Explanation, error) {
		id, err := s.job(ctx, in.Job)
		if err != nil {
			return Explanation{}, err
		}
		return s.node.Explain(ctx, id)
	})
}

func (s *Server) writeRoutes() {
	type submission struct{ Body Submission }
	route(s, true, http.MethodPost, "/v1/jobs", "submit-job", "Submit a job", func(ctx context.Context, in *submission) (Job, error) {
		if err := checkSubmission(&in.Body); err != nil {
			return Job{}, err
		}
		return s.node.Submit(ctx, in.Body)
	})
	route(s, true, http.MethodPost, "/v1/explain", "explain-spec", "Where a job would run, without submitting it", func(ctx context.Context, in *submission) (Explanation, error) {
		if err := checkSubmission(&in.Body); err != nil {
			return Explanation{}, err
		}
		return s.node.ExplainSpec(ctx, in.Body)
	})
	type cancel struct {
		JobPath
		Body CancelRequest
	}
	route(s, true, http.MethodPost, "/v1/jobs/{id}/cancel", "cancel-job", "Cancel a job; its running tasks are stopped", func(ctx context.Context, in *cancel) (Job, error) {
		id, err := s.job(ctx, in.Job)
		if err != nil {
			return Job{}, err
		}
		reason := in.Body.Reason
		if reason == "" {
			reason = "cancelled by its owner"
		}
		if err := s.node.Cancel(ctx, id, reason); err != nil {
			return Job{}, err
		}
		return s.node.Job(ctx, id)
	})
	type scale struct {
		JobPath
		Body ScaleRequest
	}
	route(s, true, http.MethodPost, "/v1/jobs/{id}/scale", "scale-job", "Set how many tasks of a service run", func(ctx context.Context, in *scale) (Job, error) {
		id, err := s.job(ctx, in.Job)
		if err != nil {
			return Job{}, err
		}
		if err := s.node.Scale(ctx, id, in.Body.Step, in.Body.Count); err != nil {
			return Job{}, err
		}
		return s.node.Job(ctx, id)
	})
	route(s, true, http.MethodPost, "/v1/ledger/verify", "verify-ledger", "Check every record of the cell's ledger", func(ctx context.Context, _ *none) (Verdict, error) {
		return s.node.Verify(ctx)
	})
	type invite struct{ Body InviteRequest }
	route(s, true, http.MethodPost, "/v1/invites", "create-invite", "Make a one-time token that lets a peer into the mesh", func(ctx context.Context, in *invite) (Invitation, error) {
		d, err := in.Body.ValidFor.Get(defaultInvite)
		if err != nil {
			return Invitation{}, err
		}
		if d > maxInvite {
			return Invitation{}, pcm.Errorf(pcm.Invalid, "a token for %s is too long: at most %s", d, maxInvite)
		}
		return s.node.Invite(ctx, d, in.Body.Issuer)
	})
	type join struct{ Body JoinRequest }
	route(s, true, http.MethodPost, "/v1/join", "join", "Move this node into the mesh of the token", func(ctx context.Context, in *join) (Status, error) {
		if _, _, err := pcm.ParseToken(in.Body.Token); err != nil {
			return Status{}, err
		}
		return s.node.Join(ctx, in.Body.Token, in.Body.Cell)
	})
	route(s, true, http.MethodPost, "/v1/leave", "leave", "Give the membership up for good", func(ctx context.Context, _ *none) (Ack, error) {
		return s.ack(ctx, s.node.Leave, "the membership is given up")
	})
	route(s, true, http.MethodPost, "/v1/down", "down", "End the daemon; tasks are left to their supervisors and leases", func(ctx context.Context, _ *none) (Ack, error) {
		return s.ack(ctx, s.node.Down, "the node is ending")
	})
}

func (s *Server) ack(ctx context.Context, do func(context.Context) error, text string) (Ack, error) {
	st, err := s.node.Status(ctx)
	if err != nil {
		return Ack{}, err
	}
	if err := do(ctx); err != nil {
		return Ack{}, err
	}
	return Ack{ID: string(st.ID), Text: text}, nil
}

// checkSubmission fills in defaults and finds what is wrong with a submission
// whatever the mesh looks like.
func checkSubmission(sub *Submission) error {
	if sub.ID != "" && !sub.ID.Valid() {
		return pcm.Errorf(pcm.Invalid, "id %q is not a job ID: it is job- and 16 characters of a-z and 2-7", sub.ID)
	}
	if sub.Base != "" && !filepath.IsAbs(sub.Base) {
		return pcm.Errorf(pcm.Invalid, "base %q is not an absolute path", sub.Base)
	}
	var faults []string
	for _, err := range sub.Spec.Normalize() {
		faults = append(faults, err.Error())
	}
	if len(faults) > 0 {
		return pcm.Errorf(pcm.Invalid, "the spec is not valid: %s", strings.Join(faults, "; "))
	}
	if sub.Base != "" {
		return nil
	}
	for _, st := range sub.Spec.Steps {
		for _, in := range st.Inputs {
			if !filepath.IsAbs(in.Source) {
				return pcm.Errorf(pcm.Invalid, "input %q is relative: give base, the absolute folder that it starts from", in.Source)
			}
		}
		if st.Module != "" && !filepath.IsAbs(st.Module) {
			return pcm.Errorf(pcm.Invalid, "module %q is relative: give base, the absolute folder that it starts from", st.Module)
		}
	}
	return nil
}

// job finds the job that a person meant.
func (s *Server) job(ctx context.Context, typed string) (pcm.JobID, error) {
	if id := pcm.JobID(typed); id.Valid() {
		return id, nil
	}
	jobs, err := s.node.Jobs(ctx)
	if err != nil {
		return "", err
	}
	ids := make([]pcm.JobID, len(jobs))
	for i, j := range jobs {
		ids[i] = j.ID
	}
	return resolve("job", typed, ids)
}

func (s *Server) optionalJob(ctx context.Context, typed string) (pcm.JobID, error) {
	if typed == "" {
		return "", nil
	}
	return s.job(ctx, typed)
}

// task finds a task and the number of its step. The node lists tasks by step and
// index, so a step's number is its place among the distinct steps.
func (s *Server) task(ctx context.Context, p TaskPath) (Task, int, error) {
	id, err := s.job(ctx, p.Job)
	if err != nil {
		return Task{}, 0, err
	}
	tasks, err := s.node.Tasks(ctx, id)
	if err != nil {
		return Task{}, 0, err
	}
	var steps []string
	for i, t := range tasks {
		if i == 0 || t.Step != tasks[i-1].Step {
			steps = append(steps, t.Step)
		}
		if t.Step == p.Step && t.Index == p.Index {
			return t, len(steps) - 1, nil
		}
	}
	return Task{}, 0, pcm.Errorf(pcm.NotFound, "%s has no task %s/%d; its steps: %s; its tasks: %d", pcm.Short(id), p.Step, p.Index, strings.Join(steps, ", "), len(tasks))
}

func filter[T any](all []T, keep func(T) bool) []T {
	var kept []T
	for _, v := range all {
		if keep(v) {
			kept = append(kept, v)
		}
	}
	return kept
}
