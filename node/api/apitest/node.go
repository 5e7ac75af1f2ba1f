// Package apitest has a node made of plain values, for tests of what stands on
// the local API: its server, its client and the CLI.
package apitest

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Node is a fake [api.Node]. Its fields are what it answers; set them before use
// or under Lock. Jobs that are submitted stay open until [Node.End].
type Node struct {
	sync.Mutex
	Seller
	Cell
	Deals
	StatusView   api.Status
	PeerList     []api.Peer
	OfferList    []api.Offer
	CellList     []api.Cell
	TradeList    []api.Trade
	BalanceList  []api.Balance
	RecordList   []api.RecordView
	VerdictView  api.Verdict
	Explained    api.Explanation
	Err          error             // if set, every call fails with it
	Output       map[string][]byte // by "JOB/STEP/INDEX/stdout", …/stderr, …/out/FILE; step by number
	Collected    []any
	Submitted    []api.Submission
	Cancelled    []string // "JOB: reason"
	Operations   []string // what sessions did: "JOB/STEP/INDEX: exec echo hello"
	Invites      []string // "24h0m0s issuer=true"
	JoinedBy     []string // tokens
	LeaveCalls   int
	DownCalls    int
	OnDown       func()                      // called in a goroutine of its own by Down
	AutoRun      func(api.Submission, *Node) // called in a goroutine of its own after a submission
	jobs         []api.Job                   // newest first
	tasks        map[pcm.JobID][]api.Task
	subscribers  map[int]chan api.Change
	nextSub      int
	nextChange   int
	logsChanged  *sync.Cond
	SlowAfter    int // a subscriber's buffer; default 64
	LogsErr      error
	FetchErr     error // after the first half of the archive
	subscribed   chan struct{}
	ClosedLogs   chan string // receives "JOB/STEP/INDEX/stream" when a followed log is closed; nil: nobody cares
	FixedJobTime time.Time
}

// Now is the fake's clock: it stands still.
var Now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// New makes a node that is ready and has nothing.
func New() *Node {
	n := &Node{
		StatusView: api.Status{
			ID: "12D3KooWAlpha11111111111111111111111111111111111111", Name: "alpha", Version: "test",
			Account: "acc-alpha", Mesh: "mesh-aaaaaaaaaaaaaaaa", Cell: "cell-aaaaaaaaaaaaaaaa", CellName: "alpha",
			Role: "leader", Ready: true, Listen: []string{"/ip4/127.0.0.1/tcp/7419"}, API: []string{"127.0.0.1:7420"},
			Data: "DATA", Pools: []pcm.Pool{}, StartedAt: Now,
		},
		Output:       map[string][]byte{},
		tasks:        map[pcm.JobID][]api.Task{},
		subscribers:  map[int]chan api.Change{},
		SlowAfter:    64,
		subscribed:   make(chan struct{}, 1024),
		FixedJobTime: Now,
	}
	n.logsChanged = sync.NewCond(n)
	return n
}

// AddJob adds a job with its tasks, ahead of all others.
func (n *Node) AddJob(j api.Job, tasks ...api.Task) {
	n.Lock()
	defer n.Unlock()
	n.jobs = append([]api.Job{j}, n.jobs...)
	n.tasks[j.ID] = tasks
}

// Status implements [api.Node], as do all methods with a name from there.
func (n *Node) Status(context.Context) (api.Status, error) { return read(n, &n.StatusView) }

func read[T any](n *Node, v *T) (T, error) {
	n.Lock()
	defer n.Unlock()
	if n.Err != nil {
		var zero T
		return zero, n.Err
	}
	return *v, nil
}

func (n *Node) Peers(context.Context) ([]api.Peer, error)       { return read(n, &n.PeerList) }
func (n *Node) Offers(context.Context) ([]api.Offer, error)     { return read(n, &n.OfferList) }
func (n *Node) Cells(context.Context) ([]api.Cell, error)       { return read(n, &n.CellList) }
func (n *Node) Trades(context.Context) ([]api.Trade, error)     { return read(n, &n.TradeList) }
func (n *Node) Balances(context.Context) ([]api.Balance, error) { return read(n, &n.BalanceList) }
func (n *Node) Verify(context.Context) (api.Verdict, error)     { return read(n, &n.VerdictView) }
func (n *Node) Collectors() []any                               { return n.Collected }

func (n *Node) Jobs(context.Context) ([]api.Job, error) {
	jobs, err := read(n, &n.jobs)
	return slices.Clone(jobs), err
}

func (n *Node) find(id pcm.JobID) (int, error) {
	if n.Err != nil {
		return 0, n.Err
	}
	i := slices.IndexFunc(n.jobs, func(j api.Job) bool { return j.ID == id })
	if i < 0 {
		return 0, pcm.Errorf(pcm.NotFound, "there is no job %s", id)
	}
	return i, nil
}

func (n *Node) Job(_ context.Context, id pcm.JobID) (api.Job, error) {
	n.Lock()
	defer n.Unlock()
	i, err := n.find(id)
	if err != nil {
		return api.Job{}, err
	}
	return n.jobs[i], nil
}

func (n *Node) Tasks(_ context.Context, id pcm.JobID) ([]api.Task, error) {
	n.Lock()
	defer n.Unlock()
	if _, err := n.find(id); err != nil {
		return nil, err
	}
	return slices.Clone(n.tasks[id]), nil
}

func (n *Node) Records(_ context.Context, from uint64, limit int) ([]api.RecordView, error) {
	all, err := read(n, &n.RecordList)
	from = min(from, uint64(len(all)))
	return all[from:min(int(from)+limit, len(all))], err
}

func (n *Node) Submit(_ context.Context, s api.Submission) (api.Job, error) {
	n.Lock()
	defer n.Unlock()
	if n.Err != nil {
		return api.Job{}, n.Err
	}
	if s.ID == "" {
		s.ID = pcm.NewJobID()
	}
	if i, err := n.find(s.ID); err == nil {
		return n.jobs[i], nil
	}
	n.Submitted = append(n.Submitted, s)
	j := api.Job{
		ID: s.ID, Name: s.Spec.Name, State: pcm.JobOpen, Account: n.StatusView.Account, Submitter: n.StatusView.ID,
		Driver: n.StatusView.ID, DriverTerm: 1, Takeover: s.Spec.Takeover, SubmittedAt: n.FixedJobTime,
		Unit: pcm.DefaultUnit, Budget: s.Spec.Budget, Held: "0", Paid: "0",
		Counts: api.TaskCounts{Total: s.Spec.Tasks(), Waiting: s.Spec.Tasks()},
	}
	var tasks []api.Task
	for _, st := range s.Spec.Steps {
		for i := range st.Count {
			tasks = append(tasks, api.Task{ID: fmt.Sprintf("%s/%s/%d", s.ID, st.Name, i), Job: s.ID, Step: st.Name, Index: i, State: pcm.TaskWaiting})
		}
	}
	n.jobs = append([]api.Job{j}, n.jobs...)
	n.tasks[s.ID] = tasks
	n.change(api.Change{Kind: "submit", Job: s.ID, Text: "submitted"})
	if n.AutoRun != nil {
		go n.AutoRun(s, n)
	}
	return j, nil
}

// Task sets what a task is; the change is told.
func (n *Node) Task(id pcm.JobID, at int, set func(*api.Task)) {
	n.Lock()
	defer n.Unlock()
	set(&n.tasks[id][at])
	n.logsChanged.Broadcast()
	n.change(api.Change{Kind: "accept", Job: id, Text: "task changed"})
}

// End brings a job to its last state; the change is told.
func (n *Node) End(id pcm.JobID, state pcm.JobState, reason string) {
	n.Lock()
	defer n.Unlock()
	i, err := n.find(id)
	if err != nil {
		panic(err)
	}
	j := &n.jobs[i]
	j.State, j.Reason, j.Settled, j.EndedAt = state, reason, true, n.FixedJobTime.Add(time.Second)
	j.Counts = api.TaskCounts{Total: j.Counts.Total}
	for _, t := range n.tasks[id] {
		switch t.State {
		case pcm.TaskDone:
			j.Counts.Done++
		case pcm.TaskFailed:
			j.Counts.Failed++
		default:
			j.Counts.Cancelled++
		}
	}
	n.logsChanged.Broadcast()
	n.change(api.Change{Kind: "ended", Job: id, State: string(state), Text: reason})
}

// Write adds to what a task has written; step by number.
func (n *Node) Write(id pcm.JobID, step, index int, stream, text string) {
	n.Lock()
	defer n.Unlock()
	k := outputKey(id, step, index, stream)
	n.Output[k] = append(n.Output[k], text...)
	n.logsChanged.Broadcast()
}

// Change tells all subscribers.
func (n *Node) Change(c api.Change) {
	n.Lock()
	defer n.Unlock()
	n.change(c)
}

func (n *Node) change(c api.Change) {
	n.nextChange++
	c.ID, c.At = fmt.Sprint(n.nextChange), n.FixedJobTime
	for k, ch := range n.subscribers {
		select {
		case ch <- c:
		default:
			close(ch)
			delete(n.subscribers, k)
		}
	}
}

// Subscribed receives once for each call of Changes.
func (n *Node) Subscribed() <-chan struct{} { return n.subscribed }

func (n *Node) Changes(ctx context.Context) (<-chan api.Change, error) {
	n.Lock()
	defer n.Unlock()
	if n.Err != nil {
		return nil, n.Err
	}
	ch := make(chan api.Change, n.SlowAfter)
	k := n.nextSub
	n.nextSub++
	n.subscribers[k] = ch
	context.AfterFunc(ctx, func() {
		n.Lock()
		defer n.Unlock()
		if _, ok := n.subscribers[k]; ok {
			delete(n.subscribers, k)
			close(ch)
		}
	})
	select {
	case n.subscribed <- struct{}{}:
	default:
	}
	return ch, nil
}

func (n *Node) Explain(_ context.Context, id pcm.JobID) (api.Explanation, error) {
	n.Lock()
	defer n.Unlock()
	if _, err := n.find(id); err != nil {
		return api.Explanation{}, err
	}
	e := n.Explained
	e.ID = string(id)
	return e, nil
}

func (n *Node) ExplainSpec(context.Context, api.Submission) (api.Explanation, error) {
	e, err := read(n, &n.Explained)
	e.ID = "dry-run"
	return e, err
}

func (n *Node) Cancel(_ context.Context, id pcm.JobID, reason string) error {
	n.Lock()
	i, err := n.find(id)
	if err == nil && n.jobs[i].State != pcm.JobOpen {
		err = pcm.Errorf(pcm.Conflict, "%s has ended: it is %s", id, n.jobs[i].State)
	}
	if err == nil {
		n.Cancelled = append(n.Cancelled, string(id)+": "+reason)
	}
	n.Unlock()
	if err != nil {
		return err
	}
	n.End(id, pcm.JobCancelled, reason)
	return nil
}

func outputKey(id pcm.JobID, step, index int, name string) string {
	return fmt.Sprintf("%s/%d/%d/%s", id, step, index, name)
}

func (n *Node) Logs(ctx context.Context, id pcm.JobID, step, index int, stream string, follow bool) (io.ReadCloser, error) {
	n.Lock()
	defer n.Unlock()
	if _, err := n.find(id); err != nil {
		return nil, err
	}
	if n.LogsErr != nil {
		return nil, n.LogsErr
	}
	k := outputKey(id, step, index, stream)
	if !follow {
		return io.NopCloser(bytes.NewReader(n.Output[k])), nil
	}
	f := &followed{n: n, key: k, job: id}
	context.AfterFunc(ctx, func() { f.Close() })
	return f, nil
}

// followed is a log that goes on until its job has ended.
type followed struct {
	n      *Node
	key    string
	job    pcm.JobID
	at     int
	closed bool
}

func (f *followed) Read(b []byte) (int, error) {
	f.n.Lock()
	defer f.n.Unlock()
	for {
		if f.closed {
			return 0, io.ErrClosedPipe
		}
		if rest := f.n.Output[f.key][f.at:]; len(rest) > 0 {
			c := copy(b, rest)
			f.at += c
			return c, nil
		}
		if i, err := f.n.find(f.job); err != nil || f.n.jobs[i].State != pcm.JobOpen {
			return 0, io.EOF
		}
		f.n.logsChanged.Wait()
	}
}

func (f *followed) Close() error {
	f.n.Lock()
	first := !f.closed
	f.closed = true
	f.n.logsChanged.Broadcast()
	f.n.Unlock()
	if first && f.n.ClosedLogs != nil {
		f.n.ClosedLogs <- f.key
	}
	return nil
}

func (n *Node) Fetch(_ context.Context, id pcm.JobID, step, index int, w io.Writer) error {
	n.Lock()
	defer n.Unlock()
	if _, err := n.find(id); err != nil {
		return err
	}
	prefix := outputKey(id, step, index, "")
	var keys []string
	for k := range n.Output {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return pcm.Errorf(pcm.NotFound, "task %d of %s has no results yet", index, id)
	}
	slices.Sort(keys)
	tw := tar.NewWriter(w)
	for i, k := range keys {
		if n.FetchErr != nil && i == (len(keys)+1)/2 {
			tw.Flush()
			return n.FetchErr
		}
		body := n.Output[k]
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(k, prefix), Mode: 0o644, Size: int64(len(body)), ModTime: Now}); err != nil {
			return err
		}
		if _, err := tw.Write(body); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (n *Node) Invite(_ context.Context, validFor time.Duration, issuer bool) (api.Invitation, error) {
	n.Lock()
	defer n.Unlock()
	n.Invites = append(n.Invites, fmt.Sprintf("%s issuer=%t", validFor, issuer))
	return api.Invitation{ID: "c0ffee", Token: "pcm1.TOKEN", NotAfter: Now.Add(validFor)}, n.Err
}

func (n *Node) Join(_ context.Context, token, cell string) (api.Status, error) {
	n.Lock()
	n.JoinedBy = append(n.JoinedBy, strings.TrimSpace(token+" "+cell))
	n.Unlock()
	return n.Status(context.Background())
}

func (n *Node) Leave(context.Context) error {
	n.Lock()
	defer n.Unlock()
	n.LeaveCalls++
	return n.Err
}

func (n *Node) Down(context.Context) error {
	n.Lock()
	defer n.Unlock()
	n.DownCalls++
	if n.OnDown != nil {
		go n.OnDown()
	}
	return n.Err
}

// Subscribers counts those who follow changes now.
func (n *Node) Subscribers() int {
	n.Lock()
	defer n.Unlock()
	return len(n.subscribers)
}
