package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// slowEnd is a back end whose starts take until they are let go. It knows an
// attempt only from then on, as the contract allows.
type slowEnd struct {
	adapters.Adapter
	starting chan adapters.Key // of each call of Start
	release  chan struct{}
	stopped  chan adapters.Key // of each stop that found its attempt

	mu       sync.Mutex
	has      map[adapters.Key]bool
	missed   int // stops that did not
	extended map[adapters.Key]bool
	until    map[adapters.Key]adapters.BootTime // of leases
}

func newSlowEnd() *slowEnd {
	return &slowEnd{
		starting: make(chan adapters.Key, 16), release: make(chan struct{}), stopped: make(chan adapters.Key, 16),
		has: map[adapters.Key]bool{}, extended: map[adapters.Key]bool{}, until: map[adapters.Key]adapters.BootTime{},
	}
}

func (e *slowEnd) Name() string { return "slow" }

func (e *slowEnd) Start(_ context.Context, t adapters.Task) error {
	e.starting <- t.Key
	<-e.release
	e.mu.Lock()
	defer e.mu.Unlock()
	e.has[t.Key] = true
	return nil
}

func (e *slowEnd) Stop(_ context.Context, k adapters.Key, _ time.Duration, _ string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.has[k] {
		e.missed++
		return pcm.Errorf(pcm.NotFound, "no attempt %s here", k)
	}
	e.stopped <- k
	return nil
}

func (e *slowEnd) Extend(_ context.Context, leases map[adapters.Key]adapters.BootTime) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, at := range leases {
		e.extended[k], e.until[k] = true, at
	}
	return nil
}

// sellingTrade makes a seller that has one prepared trade of n tasks, two at once.
func sellingTrade(t *testing.T, n int) (*seller, *slowEnd, pcm.TradeID, *execution) {
	alive, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	end := newSlowEnd()
	node := &Node{run: alive, log: slog.New(slog.DiscardHandler), cfg: Config{Sales: []Sale{{Adapter: end}}}}
	s := newSeller(node)
	node.seller = s
	s.live = func(_ pcm.TradeID, _ uint64, tasks pcm.Spans) pcm.Spans { return tasks }
	terms := pcm.Terms{Job: pcm.NewJobID(), Tasks: pcm.Spans{{Lo: 0, Hi: n}}, Attempt: 1, Fence: 1, Width: 2, Adapter: "slow"}
	x := &execution{
		terms: terms, running: map[int]*run{}, ended: map[int]bool{}, stop: map[int]string{}, idle: make(chan struct{}),
		held: heldSpec{spec: pcm.Spec{Steps: []pcm.Step{{Count: n}}}}, prepared: true,
	}
	close(x.idle)
	x.ctx, x.cancel = context.WithCancel(alive)
	for i := range n {
		x.queue = append(x.queue, i)
	}
	s.trades[terms.Trade()] = x
	return s, end, terms.Trade(), x
}

// told are the results that wait to be reported, by task.
func told(s *seller, id pcm.TradeID) map[int]pcm.Outcome {
	s.reports.mu.Lock()
	defer s.reports.mu.Unlock()
	m := map[int]pcm.Outcome{}
	for _, r := range s.reports.results[id] {
		m[r.Index] = r.Outcome
	}
	return m
}

// A stop that comes while an attempt is on its way to its back end is not lost.
func TestStopMeetsStart(t *testing.T) {
	s, end, id, x := sellingTrade(t, 4)
	s.next(id, x)
	begun := []adapters.Key{<-end.starting, <-end.starting}
	s.halt(id, pcm.Spans{{Lo: 0, Hi: 4}}, "changed my mind")
	if got, want := told(s, id), (map[int]pcm.Outcome{2: pcm.OutcomeStopped, 3: pcm.OutcomeStopped}); !maps.Equal(got, want) {
		t.Errorf("reported at once: %v, want %v", got, want)
	}
	close(end.release)
	found := map[adapters.Key]bool{}
	for len(found) < len(begun) {
		found[<-end.stopped] = true
	}
	for _, k := range begun {
		if !found[k] {
			t.Errorf("%s was not stopped", k)
		}
	}
	if got := told(s, id); len(got) != 2 {
		t.Errorf("reported before they ended: %v", got)
	}
	if len(end.starting) > 0 {
		t.Error("more was started")
	}
}

// An attempt that is lost while it starts is stopped as well; its lease is not
// extended, its end not reported, and its place is free.
func TestLossMeetsStart(t *testing.T) {
	s, end, id, x := sellingTrade(t, 3)
	s.next(id, x)
	a, b := <-end.starting, <-end.starting
	s.lose(id, pcm.Spans{{Lo: a.Index, Hi: a.Index + 1}}, "silent")
	if k := <-end.starting; k.Index != 2 {
		t.Errorf("%s was started next", k)
	}
	s.extend(t.Context(), adapters.Now())
	end.mu.Lock()
	got := slices.Sorted(func(yield func(int) bool) {
		for k := range end.extended {
			if !yield(k.Index) {
				return
			}
		}
	})
	end.mu.Unlock()
	if want := []int{b.Index, 2}; !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("extended the leases of %v, want %v", got, want)
	}
	close(end.release)
	if k := <-end.stopped; k != a {
		t.Errorf("stopped %s, want %s", k, a)
	}
	s.ended(adapters.Status{Key: a, State: adapters.Ended, Outcome: pcm.OutcomeStopped})
	if got := told(s, id); len(got) != 0 {
		t.Errorf("reported %v", got)
	}
}

// The end of an attempt that the seller believed to be waiting counts: the back
// end had it from before a restart.
func TestEndOfQueued(t *testing.T) {
	s, _, id, x := sellingTrade(t, 3)
	x.prepared = false
	s.ended(adapters.Status{Key: x.key(1), State: adapters.Ended, Outcome: pcm.OutcomeSeller, Reason: "killed"})
	if got, want := told(s, id), (map[int]pcm.Outcome{1: pcm.OutcomeSeller}); !maps.Equal(got, want) {
		t.Errorf("reported %v, want %v", got, want)
	}
	if !slices.Equal(x.queue, []int{0, 2}) {
		t.Errorf("%v wait", x.queue)
	}
	// A veto is for what has not started.
	s.reject(id, x, "no spec")
	if got := told(s, id); len(got) != 3 || len(x.queue) != 0 {
		t.Errorf("after a veto %v are reported, %v wait", got, x.queue)
	}
}

// A veto leaves alone what runs already.
func TestVetoSparesWhatRuns(t *testing.T) {
	s, end, id, x := sellingTrade(t, 4)
	s.next(id, x)
	running := map[int]bool{(<-end.starting).Index: true, (<-end.starting).Index: true}
	s.reject(id, x, "can't get the inputs")
	got := told(s, id)
	for i := range 4 {
		if _, vetoed := got[i]; vetoed == running[i] {
			t.Errorf("task %d: runs %v, vetoed %v", i, running[i], vetoed)
		}
	}
	close(end.release)
}

// What the cell could not be told is told later: starts too, but not of what has
// ended meanwhile.
func TestReportsComeBack(t *testing.T) {
	r := newReports()
	id := pcm.TradeID("trd-test")
	for i := range 4 {
		r.started(id, i)
	}
	r.finished(id, pcm.Result{Index: 0, Outcome: pcm.OutcomeOK})
	now := time.Now()
	if batch := r.take(now); len(batch) != 1 || batch[0].Finish == nil {
		t.Fatalf("told at once: %+v", batch)
	} else {
		r.putBack(batch)
	}
	batch := r.take(now.Add(startAfter * 2))
	if len(batch) != 2 || batch[1].Start == nil || batch[1].Start.Tasks.Len() != 3 {
		t.Fatalf("told later: %+v", batch)
	}
	r.finished(id, pcm.Result{Index: 1, Outcome: pcm.OutcomeOK})
	r.putBack(batch)
	r.giveIn(id, pcm.Spans{{Lo: 3, Hi: 4}})
	r.giveIn(id, pcm.Spans{{Lo: 3, Hi: 4}})
	got := ""
	for _, op := range r.take(now) {
		switch {
		case op.Reject != nil:
			got += fmt.Sprint("reject ", op.Reject.Tasks)
		case op.Finish != nil:
			for _, res := range op.Finish.Results {
				got += fmt.Sprint(" finish ", res.Index)
			}
		case op.Start != nil:
			got += fmt.Sprint(" start ", op.Start.Tasks)
		}
	}
	if want := "reject 3 finish 0 finish 1 start 2-3"; got != want {
		t.Errorf("told at last: %s, want %s", got, want)
	}
	if rest := r.take(now.Add(time.Hour)); len(rest) != 0 {
		t.Errorf("told again: %+v", rest)
	}
}

// No peer can leave more than so many specs of jobs that never come to be.
func TestEarlySpecsAreBounded(t *testing.T) {
	e := newEarly()
	now := time.Now()
	known := map[pcm.JobID]bool{}
	add := func(from pcm.PeerID, job pcm.JobID, size int) error {
		return e.add(from, job, size, now, func(j pcm.JobID) bool { return known[j] })
	}
	var last pcm.JobID
	for range earlySpecs {
		last = pcm.NewJobID()
		if err := add("mallory", last, 100); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("mallory", pcm.NewJobID(), 100); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("one too many: %v", err)
	}
	if err := add("mallory", last, 100); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := add("anna", pcm.NewJobID(), 100); err != nil {
		t.Errorf("of another peer: %v", err)
	}
	known[last] = true
	if err := add("mallory", pcm.NewJobID(), earlyBytes); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("too many bytes: %v", err)
	}
	if err := add("mallory", pcm.NewJobID(), 100); err != nil {
		t.Errorf("after one was submitted: %v", err)
	}
	e.expire(now.Add(2 * earlyFor))
	if len(e.by) != 0 {
		t.Errorf("%d senders are remembered", len(e.by))
	}
}

// Specs in memory are bounded by bytes, and what is dropped or replaced is not counted.
func TestSpecsInMemoryAreBounded(t *testing.T) {
	s := newSpecs(&Node{log: slog.New(slog.DiscardHandler), cfg: Config{Dir: t.TempDir()}})
	h := heldSpec{signed: pcm.Signed{Payload: make([]byte, 1<<20)}}
	var job pcm.JobID
	for range 100 {
		job = pcm.NewJobID()
		s.cache(job, h)
		s.cache(job, h)
	}
	if n := len(s.cached); n < 20 || n*h.cost() > maxCached || s.bytes != n*h.cost() {
		t.Errorf("%d specs are cached, counted as %d bytes", n, s.bytes)
	}
	if _, ok := s.find(job); !ok {
		t.Error("the last one is not there")
	}
	for job := range maps.Clone(s.cached) {
		s.drop(job)
	}
	if s.bytes != 0 || len(s.cached) != 0 {
		t.Errorf("%d bytes are counted of %d specs", s.bytes, len(s.cached))
	}
}
