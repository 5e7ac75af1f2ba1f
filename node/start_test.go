package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// awayEnd is a back end that is away for its first starts.
type awayEnd struct {
	adapters.Adapter
	mu      sync.Mutex
	left    int // starts that fail yet
	code    pcm.Code
	started map[adapters.Key]adapters.Task
	tries   int
	stops   int
}

func (e *awayEnd) Name() string { return "slow" }

func (e *awayEnd) Start(_ context.Context, t adapters.Task) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tries++
	if e.left > 0 {
		e.left--
		return pcm.Errorf(e.code, "no answer")
	}
	e.started[t.Key] = t
	return nil
}

func (e *awayEnd) Stop(context.Context, adapters.Key, time.Duration, string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stops++
	return nil
}

// queueEnd is one that keeps a queue itself.
type queueEnd struct{ awayEnd }

func (*queueEnd) MaxBatch() int { return 5 }

// prepared makes a seller that has one prepared trade at the back end.
func preparedTrade(t *testing.T, a adapters.Adapter, n, width int) (*seller, pcm.TradeID, *execution) {
	s, _, id, x := sellingTrade(t, n)
	s.adapters["slow"], x.terms.Width = a, width
	return s, id, x
}

// A start that its back end is too busy for, or away from, is tried again; it is
// given up after some time only, and stopped then.
func TestStartIsTriedAgain(t *testing.T) {
	for _, code := range []pcm.Code{pcm.Unavailable, pcm.Busy} {
		synctest.Test(t, func(t *testing.T) {
			a := &awayEnd{left: 3, code: code, started: map[adapters.Key]adapters.Task{}}
			s, id, x := preparedTrade(t, a, 1, 1)
			s.next(id, x)
			synctest.Wait()
			s.mu.Lock()
			if st := x.running[0].status; st.State != adapters.Prepared || st.Reason == "" {
				t.Errorf("while it waits: %+v", st)
			}
			s.mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(a.started) != 1 || len(told(s, id)) != 0 {
				t.Errorf("after %d tries %d were started, reported is %v", a.tries, len(a.started), told(s, id))
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{left: 1 << 30, code: pcm.Unavailable}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.next(id, x)
		time.Sleep(startWait / 2)
		synctest.Wait()
		if got := told(s, id); len(got) != 0 {
			t.Errorf("given up early: %v", got)
		}
		time.Sleep(startWait)
		synctest.Wait()
		if got := told(s, id); !maps.Equal(got, map[int]pcm.Outcome{0: pcm.OutcomeSeller}) || a.stops == 0 {
			t.Errorf("reported %v, stopped %d times", got, a.stops)
		}
	})
	// A stop ends the tries.
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{left: 1 << 30, code: pcm.Unavailable}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.next(id, x)
		time.Sleep(time.Second)
		s.halt(id, pcm.Spans{{Lo: 0, Hi: 1}}, "never mind")
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := told(s, id); !maps.Equal(got, map[int]pcm.Outcome{0: pcm.OutcomeStopped}) {
			t.Errorf("reported %v", got)
		}
	})
	// A refusal is none that time mends.
	synctest.Test(t, func(t *testing.T) {
		a := &awayEnd{left: 1, code: pcm.Refused}
		s, id, x := preparedTrade(t, a, 1, 1)
		s.next(id, x)
		synctest.Wait()
		if got := told(s, id); !maps.Equal(got, map[int]pcm.Outcome{0: pcm.OutcomeSeller}) || a.tries != 1 {
			t.Errorf("reported %v after %d tries", got, a.tries)
		}
	})
}

// A back end with a queue of its own gets many at once, and the next many when few
// are left: no more run at once than may.
func TestBatches(t *testing.T) {
	a := &queueEnd{awayEnd{started: map[adapters.Key]adapters.Task{}}}
	synctest.Test(t, func(t *testing.T) {
		s, id, x := preparedTrade(t, a, 12, 2)
		given := func() []int {
			synctest.Wait()
			a.mu.Lock()
			defer a.mu.Unlock()
			var all []int
			for k := range a.started {
				all = append(all, k.Index)
			}
			slices.Sort(all)
			return all
		}
		end := func(i int) {
			s.ended(adapters.Status{Key: x.key(i), State: adapters.Ended, Outcome: pcm.OutcomeSeller})
		}
		s.next(id, x)
		if got := given(); !slices.Equal(got, []int{0, 1, 2, 3, 4}) {
			t.Fatalf("given %v", got)
		}
		for _, task := range a.started {
			if task.Batch != 5 || task.Width != 2 {
				t.Errorf("batch %d, width %d", task.Batch, task.Width)
			}
		}
		// What waits there has not started.
		s.follow(adapters.Status{Key: x.key(0), State: adapters.Pending, Reason: "(Resources)"})
		s.follow(adapters.Status{Key: x.key(1), State: adapters.Running})
		if got := s.reports.starts[id]; len(got) != 1 || got[1].IsZero() {
			t.Errorf("started: %v", got)
		}
		for i := range 4 {
			end(i)
		}
		if got := given(); len(got) != 5 {
			t.Errorf("with one left %v were given", got)
		}
		end(4)
		if got := given(); len(got) != 10 {
			t.Errorf("with none left %v were given", got)
		}
		for i := 5; i < 10; i++ {
			end(i)
		}
		if got := given(); len(got) != 12 || a.started[x.key(11)].Batch != 2 {
			t.Errorf("at last %v were given", got)
		}
	})
}

// The lease of what waits is that of an attempt which has not run, however long
// it waits: so the ledger counts it.
func TestLeaseOfWhatWaits(t *testing.T) {
	s, end, id, x := sellingTrade(t, 1)
	close(end.release)
	s.next(id, x)
	<-end.starting
	sent := adapters.Now().Add(time.Hour)
	lease := func() adapters.BootTime {
		s.extend(t.Context(), sent)
		end.mu.Lock()
		defer end.mu.Unlock()
		return end.until[x.key(0)]
	}
	s.follow(adapters.Status{Key: x.key(0), State: adapters.Pending})
	if got := lease(); got != sent.Add(pcm.LeaseFor(0)) {
		t.Errorf("the lease of what waits is %s", time.Duration(got-sent))
	}
	s.follow(adapters.Status{Key: x.key(0), State: adapters.Running, Usage: pcm.Usage{WallMS: 3_600_000}})
	if got := time.Duration(lease() - sent); got < pcm.LeaseFor(2*time.Hour)-time.Second || got > pcm.LeaseFor(2*time.Hour)+time.Second {
		t.Errorf("the lease of what has run for two hours is %s", got)
	}
}

// Who looks at a task at its seller sees what the back end says of it.
func TestShow(t *testing.T) {
	s, end, id, x := sellingTrade(t, 1)
	close(end.release)
	s.next(id, x)
	<-end.starting
	view := func() api.Task {
		v := api.Task{Trade: id, Index: 0, Attempt: 1, State: pcm.TaskPlaced}
		s.show(&v)
		return v
	}
	if v := view(); v.BackEnd != "prepared" || v.Usage != nil {
		t.Errorf("on its way: %+v", v)
	}
	s.follow(adapters.Status{Key: x.key(0), State: adapters.Pending, Native: "PENDING", Reason: "waits for resources"})
	if v := view(); v.BackEnd != "pending (PENDING)" || v.Reason != "waits for resources" || v.Usage != nil {
		t.Errorf("waiting: %+v", v)
	}
	x.terms.Each.GPU = 2
	s.follow(adapters.Status{Key: x.key(0), State: adapters.Running, Native: "RUNNING", Usage: pcm.Usage{WallMS: 5000, CPUMS: 70}})
	if v := view(); v.BackEnd != "running (RUNNING)" || v.Reason != "" || v.Usage == nil || v.Usage.WallMS < 5000 || v.Usage.CPUMS != 70 || v.Usage.GPUMS != 2*v.Usage.WallMS {
		t.Errorf("running: %+v, %+v", v, v.Usage)
	}
	v := api.Task{Trade: id, Index: 0, Attempt: 2}
	if s.show(&v); v.BackEnd != "" {
		t.Errorf("of another attempt: %+v", v)
	}
}

// queuedEnd is a back end whose starts and extensions take time.
type queuedEnd struct {
	awayEnd
	now, most int // starts at once
	extended  int
	hangs     bool // when leases are extended
}

func (e *queuedEnd) Start(ctx context.Context, t adapters.Task) error {
	e.mu.Lock()
	e.now++
	e.most = max(e.most, e.now)
	e.mu.Unlock()
	pause(ctx, time.Second)
	e.mu.Lock()
	e.now--
	e.mu.Unlock()
	return e.awayEnd.Start(ctx, t)
}

func (e *queuedEnd) Extend(ctx context.Context, _ map[adapters.Key]adapters.BootTime) error {
	if e.hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.extended++
	return nil
}

// Many starts come to a slow back end one after the other, and a stop takes those
// that wait for their turn.
func TestStartsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5 * maxStarts
		a := &queuedEnd{awayEnd: awayEnd{started: map[adapters.Key]adapters.Task{}}}
		s, id, x := preparedTrade(t, a, n, n)
		s.next(id, x)
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		s.halt(id, pcm.Spans{{Lo: 0, Hi: n}}, "never mind")
		time.Sleep(time.Minute)
		synctest.Wait()
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.most != maxStarts || len(a.started) != 3*maxStarts {
			t.Errorf("%d at once, %d in all", a.most, len(a.started))
		}
		if got := told(s, id); len(got) != 2*maxStarts {
			t.Errorf("stopped while they waited: %d", len(got))
		}
	})
}

// A back end that hangs does not keep the leases of another from being extended, nor
// the next renewal from being sent.
func TestExtendPastHung(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hung := &queuedEnd{awayEnd: awayEnd{started: map[adapters.Key]adapters.Task{}}, hangs: true}
		s, id, x := preparedTrade(t, hung, 1, 1)
		s.next(id, x)
		well := &queuedEnd{}
		other := pcm.TradeID("trd-other")
		y := &execution{terms: x.terms, running: map[int]*run{0: {}}}
		y.terms.Adapter = "well"
		s.mu.Lock()
		s.adapters["well"], s.trades[other] = well, y
		s.mu.Unlock()
		begun := time.Now()
		s.extend(t.Context(), adapters.Now())
		if took := time.Since(begun); took > pcm.RenewEvery || well.extended != 1 {
			t.Errorf("it took %s; the other was extended %d times", took, well.extended)
		}
		s.mu.Lock()
		delete(s.trades, other)
		s.mu.Unlock()
	})
}
