package supervisor

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// patient is a back end that has all attempts wait until it is told of them.
type patient struct {
	fake
	mu    sync.Mutex
	waits map[adapters.Key]*Run
	turns map[adapters.Key]int
	said  map[adapters.Key]bool // it has ended there
	block chan struct{}         // who is to be held up waits for it
	stuck atomic.Int64          // how many are
	asked atomic.Int64          // how often a stubborn one was asked to stop
}

func newPatient() *patient {
	return &patient{waits: map[adapters.Key]*Run{}, turns: map[adapters.Key]int{}, said: map[adapters.Key]bool{}, block: make(chan struct{})}
}

func (p *patient) Name() string { return "patient" }

func (p *patient) Run(ctx context.Context, r *Run) Exit {
	p.mu.Lock()
	p.waits[r.Key] = r
	p.mu.Unlock()
	r.Started()
	return p.step(ctx, r)
}

func (p *patient) step(ctx context.Context, r *Run) Exit {
	p.mu.Lock()
	p.turns[r.Key]++
	turns, said := p.turns[r.Key], p.said[r.Key]
	p.mu.Unlock()
	select {
	case <-r.Stopping:
		if r.Command[0] != "stubborn" {
			return Exit{Outcome: pcm.OutcomeOK}
		}
		p.asked.Add(1)
	default:
	}
	most := time.Duration(0)
	switch {
	case ctx.Err() != nil:
		return Exit{Outcome: pcm.OutcomeFailed, Code: 137}
	case said:
		return Exit{Outcome: pcm.OutcomeFailed, Code: 3, Reason: "exit code 3"}
	case r.Command[0] == "tick" && turns > 3:
		return Exit{Outcome: pcm.OutcomeOK}
	case r.Command[0] == "tick":
		most = time.Millisecond
	case r.Command[0] == "panic" && turns > 1:
		panic("told to")
	case r.Command[0] == "stuck" && turns > 1:
		p.stuck.Add(1)
		<-p.block
		return Exit{Outcome: pcm.OutcomeOK}
	case r.Command[0] == "eager" && turns == 1:
		r.Wake() // before it waits
	case r.Command[0] == "eager":
		return Exit{Outcome: pcm.OutcomeOK}
	}
	return Waits(func(ctx context.Context) Exit { return p.step(ctx, r) }, most)
}

// tell has the back end say that an attempt has ended.
func (p *patient) tell(k adapters.Key) {
	p.mu.Lock()
	p.said[k] = true
	r := p.waits[k]
	p.mu.Unlock()
	r.Wake()
}

func servePatient(t testing.TB) (*daemon, *patient) {
	p := newPatient()
	d := serve(t, shortDir(t), func(cfg *Config) { cfg.Runners = append(cfg.Runners, p) })
	d.a = d.client.Attempts("patient")
	return d, p
}

func TestWaits(t *testing.T) {
	d, p := servePatient(t)
	for _, c := range []struct {
		command string
		do      func(adapters.Key)
		outcome pcm.Outcome
		reason  string
	}{
		{"wait", p.tell, pcm.OutcomeFailed, "exit code 3"},
		{"tick", func(adapters.Key) {}, pcm.OutcomeOK, ""},
		{"eager", func(adapters.Key) {}, pcm.OutcomeOK, ""},
		{"panic", p.tell, pcm.OutcomeFailed, "exit code 3"},
		{"panic", func(k adapters.Key) { p.mu.Lock(); r := p.waits[k]; p.mu.Unlock(); r.Wake() }, pcm.OutcomeSeller, "internal fault of the patient runner: told to"},
		{"wait", func(k adapters.Key) { d.a.Stop(t.Context(), k, time.Hour, "enough") }, pcm.OutcomeStopped, "enough"},
		{"wait", func(k adapters.Key) { d.a.Stop(t.Context(), k, 0, "at once") }, pcm.OutcomeStopped, "at once"},
		{"wait", func(k adapters.Key) { d.a.Stop(t.Context(), k, time.Millisecond, "soon") }, pcm.OutcomeStopped, "soon"},
	} {
		k := d.start(c.command)
		if c.command != "tick" && c.command != "eager" {
			d.wait(k, adapters.Running)
		}
		c.do(k)
		if st := d.wait(k, adapters.Ended); st.Outcome != c.outcome || st.Reason != c.reason {
			t.Errorf("%s: it ended as %q, %q; expected %q, %q", c.command, st.Outcome, st.Reason, c.outcome, c.reason)
		}
	}
}

// An attempt that waits has a lease and a time limit as any, and ends with its supervisor.
func TestWaitsWithALease(t *testing.T) {
	d, _ := servePatient(t)
	lease, limit := newTask("wait"), newTask("wait")
	lease.Deadline = adapters.Now().Add(50 * time.Millisecond)
	limit.Limit = 50 * time.Millisecond
	for _, task := range []adapters.Task{lease, limit} {
		if err := d.a.Start(t.Context(), task); err != nil {
			t.Fatal(err)
		}
	}
	if st := d.wait(lease.Key, adapters.Ended); st.Outcome != pcm.OutcomeSeller || !strings.Contains(st.Reason, "lease ended") {
		t.Errorf("%+v", st)
	}
	if st := d.wait(limit.Key, adapters.Ended); st.Outcome != pcm.OutcomeTimeLimit {
		t.Errorf("%+v", st)
	}
	k := d.start("wait")
	d.wait(k, adapters.Running)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	if st, err := folderOf(d.dir, k.String()).loadStatus(); err != nil || st.Outcome != pcm.OutcomeSeller || st.Reason != "supervisor was told to end" {
		t.Errorf("%+v, %v", st, err)
	}
}

// A peer that asks a second time, as after an answer that was lost, has the task asked once.
func TestStopTwice(t *testing.T) {
	d, p := servePatient(t)
	k := d.start("stubborn")
	d.wait(k, adapters.Running)
	for range 2 {
		if err := d.a.Stop(t.Context(), k, time.Hour, "enough"); err != nil {
			t.Fatal(err)
		}
		d.await(func() bool { return p.asked.Load() > 0 })
	}
	p.tell(k)
	d.wait(k, adapters.Ended)
	if n := p.asked.Load(); n != 1 {
		t.Errorf("it was asked to stop %d times", n)
	}
}

// Thousands whose turn has come, each held up a little by a slow disk, don't wait for each other.
func TestSlowSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, each = 1000, 20 * time.Millisecond
		var all sync.WaitGroup
		all.Add(n)
		var s *turns
		s = newTurns(func(h *handed) {
			time.Sleep(each)
			s.over(h)
			all.Done()
		})
		begun := time.Now()
		for range n {
			h := &handed{attempt: &attempt{}, ctx: t.Context()}
			s.wait(h, nil, 0)
			s.wake(h, false)
		}
		all.Wait()
		if took := time.Since(begun); took > n*each/40 {
			t.Errorf("%d steps of %s took %s", n, each, took)
		}
	})
}

// Who is to be ended by force comes before all who only wait for their turn, also if it has waited with them.
func TestForceComesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var taken []*handed
		var mu sync.Mutex
		var s *turns
		s = newTurns(func(h *handed) {
			mu.Lock()
			taken = append(taken, h)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			s.over(h)
		})
		var last *handed
		const n = 1000
		for range n {
			last = &handed{attempt: &attempt{}, ctx: t.Context()}
			s.wait(last, nil, 0)
			s.wake(last, false)
		}
		s.wake(last, true)
		s.wake(last, true)
		time.Sleep(time.Minute)
		if at := slices.Index(taken, last); at >= 2*fewWorkers || len(taken) != n {
			t.Errorf("%d steps, its own after %d", len(taken), at)
		}
	})
}

// Steps that hang are bounded, and those that wait for them get their turn later.
func TestHungSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2 * mostWorkers
		var hung, done atomic.Int64
		disk := make(chan struct{})
		var s *turns
		s = newTurns(func(h *handed) {
			hung.Add(1)
			<-disk
			s.over(h)
			done.Add(1)
		})
		for range n {
			h := &handed{attempt: &attempt{}, ctx: t.Context()}
			s.wait(h, nil, 0)
			s.wake(h, false)
		}
		time.Sleep(time.Minute)
		if got := hung.Load(); got != mostWorkers {
			t.Errorf("%d hang at once; expected %d", got, mostWorkers)
		}
		close(disk)
		synctest.Wait()
		if got := done.Load(); got != n {
			t.Errorf("%d of %d came to their turn", got, n)
		}
	})
}

// Steps that are held up hold up nobody else, nor the end of what is to be killed.
func TestStuckSteps(t *testing.T) {
	d, p := servePatient(t)
	var stuck []adapters.Key
	for range 5 * fewWorkers {
		k := d.start("stuck")
		d.wait(k, adapters.Running)
		stuck = append(stuck, k)
	}
	other := d.start("wait")
	d.wait(other, adapters.Running)
	p.mu.Lock()
	for _, k := range stuck {
		p.waits[k].Wake()
	}
	p.mu.Unlock()
	d.await(func() bool { return p.stuck.Load() == int64(len(stuck)) })
	p.tell(other)
	d.wait(other, adapters.Ended)
	killed := d.start("wait")
	d.wait(killed, adapters.Running)
	if err := d.a.Stop(t.Context(), killed, 0, "at once"); err != nil {
		t.Fatal(err)
	}
	d.wait(killed, adapters.Ended)
	close(p.block)
	for _, k := range stuck {
		if st := d.wait(k, adapters.Ended); st.Outcome != pcm.OutcomeOK {
			t.Errorf("%+v", st)
		}
	}
}

// tracked has n attempts wait, and says what each of them takes.
func tracked(tb testing.TB, d *daemon, p *patient, n int) (bytes, stacks float64, goroutines int) {
	usage := func() (heap, stack uint64, goroutines int) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc, m.StackInuse, runtime.NumGoroutine()
	}
	heap, stack, before := usage()
	job := pcm.NewJobID()
	trade := pcm.NewTradeID(job, 1)
	for i := range n {
		t := newTask("wait", "with", "some", "arguments")
		t.Job, t.Key = job, adapters.Key{Trade: trade, Index: i, Attempt: 1}
		t.Env = map[string]string{"MODEL": strings.Repeat("x", 200), "RATE": "0.001"}
		if err := d.a.Start(tb.Context(), t); err != nil {
			tb.Fatal(err)
		}
	}
	all := func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.waits) >= n }
	for end := time.Now().Add(time.Minute); !all() && time.Now().Before(end); {
		runtime.Gosched()
	}
	heap2, stack2, after := usage()
	return float64(int64(heap2-heap)) / float64(n), float64(int64(stack2-stack)) / float64(n), after - before
}

// What is kept of an attempt that waits is bounded: no goroutine, no stack, and of what
// is the same in all tasks of a job one.
func TestWaitingIsCheap(t *testing.T) {
	d, p := servePatient(t)
	bytes, stacks, goroutines := tracked(t, d, p, 1000)
	t.Logf("an attempt that waits takes %.0f bytes, and %.0f of stack; %d goroutines more", bytes, stacks, goroutines)
	if bytes > 4096 {
		t.Errorf("an attempt that waits takes %.0f bytes: more than 4096", bytes)
	}
	if goroutines > 100 {
		t.Errorf("1,000 attempts wait with %d goroutines", goroutines)
	}
}

// BenchmarkWaitingAttempts says what an attempt takes that waits at its back end,
// and how many can be begun.
func BenchmarkWaitingAttempts(b *testing.B) {
	for b.Loop() {
		d, p := servePatient(b)
		bytes, stacks, goroutines := tracked(b, d, p, 10_000)
		b.ReportMetric(bytes, "bytes/attempt")
		b.ReportMetric(stacks, "stack-bytes/attempt")
		b.ReportMetric(float64(goroutines), "goroutines")
		d.client.Close()
		d.end()
	}
}
