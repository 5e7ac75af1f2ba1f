package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// servingDriver drives a job of one service.
func servingDriver(count, scale int, restart pcm.Restart) *driver {
	st := pcm.Step{Name: "web", Count: count, Service: &pcm.Service{Port: 80, Restart: restart}}
	d := newDriver(&Node{log: slog.New(slog.DiscardHandler)}, pcm.NewJobID(), heldSpec{spec: pcm.Spec{Steps: []pcm.Step{st}}})
	s := stepModel{tasks: make([]taskModel, count), waiting: count, service: st.Service, scale: scale}
	for i := range s.tasks {
		s.tasks[i].state = pcm.TaskWaiting
	}
	d.model.steps = []stepModel{s}
	return d
}

// Whether a service's task goes on, by its policy and by how its attempt ended.
func TestServiceRestarts(t *testing.T) {
	ends := []pcm.Outcome{pcm.OutcomeOK, pcm.OutcomeFailed, pcm.OutcomeMemory, pcm.OutcomeTimeLimit, pcm.OutcomeStopped}
	for policy, want := range map[pcm.Restart]string{
		pcm.RestartAlways:    "true true true true true",
		pcm.RestartOnFailure: "false true true true true",
		pcm.RestartNever:     "false false false true true",
	} {
		d := servingDriver(1, 1, policy)
		var got []string
		for _, o := range ends {
			_, again := d.goesOn(0, 0, pcm.Result{Outcome: o})
			got = append(got, fmt.Sprint(again))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", policy, got, want)
		}
		d.model.stopping = "enough"
		if _, again := d.goesOn(0, 0, pcm.Result{Outcome: pcm.OutcomeFailed}); again {
			t.Errorf("%s: it goes on after its job was cancelled", policy)
		}
	}
}

// The pause before another try grows, has a bound, and begins anew after one that lasted.
func TestServicePauses(t *testing.T) {
	d, now := servingDriver(2, 2, pcm.RestartAlways), time.Now()
	var pauses []time.Duration
	for range 12 {
		d.rest(0, 0, pcm.Result{Outcome: pcm.OutcomeFailed}, time.Hour, now)
		pauses = append(pauses, d.resting(0, 0, now))
	}
	if pauses[0] != time.Second || pauses[3] != 8*time.Second || pauses[11] != 5*time.Minute || !slices.IsSorted(pauses) {
		t.Errorf("pauses %v", pauses)
	}
	by, next := d.waiting(0, now)
	if len(by[1]) != 1 || by[1][0] != 1 || next != 5*time.Minute {
		t.Errorf("to be placed %v, more in %s", by, next)
	}
	lasted := pcm.Result{Outcome: pcm.OutcomeFailed, Usage: pcm.Usage{WallMS: lasting.Milliseconds()}}
	d.rest(0, 0, lasted, time.Hour, now)
	if p := d.resting(0, 0, now); p != time.Second {
		t.Errorf("after one that lasted: %s", p)
	}
	d.rest(0, 0, lasted, time.Minute, now)
	if p := d.resting(0, 0, now); p != 2*time.Second {
		t.Errorf("after one that lasted by its seller's word alone: %s", p)
	}
	over := pcm.Result{Outcome: pcm.OutcomeTimeLimit, Usage: pcm.Usage{WallMS: pcm.DefaultPeriod.Milliseconds()}}
	d.rest(0, 0, over, time.Minute, now)
	if p := d.resting(0, 0, now); p != 4*time.Second {
		t.Errorf("after a period that its seller cut short: %s", p)
	}
	d.rest(0, 0, over, pcm.DefaultPeriod+time.Minute, now)
	if p := d.resting(0, 0, now); p != 0 {
		t.Errorf("after its period: %s", p)
	}
}

// Tasks beyond the scale are not placed; those that run there are asked once to stop.
func TestServiceScale(t *testing.T) {
	d := servingDriver(4, 3, pcm.RestartAlways)
	if by, _ := d.waiting(0, time.Now()); !slices.Equal(by[1], []int{0, 1, 2}) {
		t.Errorf("to be placed: %v", by)
	}
	m := newTradeModel(pcm.Terms{Job: d.job, Fence: 1})
	m.live = map[int]bool{0: true, 1: true, 2: true}
	d.trades[m.terms.Trade()] = m
	if round := d.shrink(); len(round) != 0 {
		t.Errorf("%d commands without need", len(round))
	}
	d.rescale(&pcm.Scale{Step: 0, Count: 1})
	d.rescale(&pcm.Scale{Step: 7, Count: 1}) // a step that isn't there
	round := d.shrink()
	if len(round) != 1 || !slices.Equal(round[0].ops[0].Stop.Tasks, pcm.Spans{{Lo: 1, Hi: 3}}) {
		t.Fatalf("commands %+v", round)
	}
	round[0].then(pcm.CommandResult{})
	if round := d.shrink(); len(round) != 0 {
		t.Errorf("asked again: %+v", round)
	}
	d.rescale(&pcm.Scale{Step: 0, Count: 4})
	if round := d.shrink(); len(round) != 0 || d.model.steps[0].parked(3) {
		t.Errorf("grown again: %+v", round)
	}
}

// doctorEnd is a back end whose attempts listen as it likes.
type doctorEnd struct {
	*workEnd
	good atomic.Bool
}

func (e *doctorEnd) Dial(context.Context, adapters.Key, int) (net.Conn, error) {
	if !e.good.Load() {
		return nil, pcm.Errorf(pcm.Unavailable, "nothing listens")
	}
	near, far := net.Pipe()
	go far.Close()
	return near, nil
}

// A service that fails its checks is ended, and that is its own fault; while it
// starts, and while it is suspended, it has time.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := &pcm.Service{Port: 80, Health: &pcm.HealthCheck{TCP: true, Interval: "10s", StartPeriod: "60s", Failures: 2}}
		s, work, req, x := workingTrade(t, pcm.Step{Service: svc})
		end := &doctorEnd{workEnd: work}
		s.adapters["slow"] = end
		end.has[x.key(0)] = true
		r := &run{placed: true, began: true}
		x.running[0] = r
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.checkHealth(ctx)
		look := func(after time.Duration) vitals {
			<-time.After(after)
			synctest.Wait()
			s.mu.Lock()
			defer s.mu.Unlock()
			return *r.vitals
		}
		if v := look(45 * time.Second); v.state != starting || v.said != "nothing listens" {
			t.Errorf("at first: %+v", v)
		}
		end.good.Store(true)
		if v := look(11 * time.Second); v.state != healthy || v.said != "" {
			t.Errorf("then: %+v", v)
		}
		h := &attemptWork{s: s, x: x, r: r, k: x.key(req.Index)}
		if live, err := h.Look(ctx); err != nil || live.Health != "healthy" {
			t.Errorf("looks like %+v, %v", live, err)
		}
		end.good.Store(false)
		s.mu.Lock()
		r.status.State = adapters.Suspended
		s.mu.Unlock()
		if v := look(time.Minute); v.state != healthy {
			t.Errorf("suspended: %+v", v)
		}
		s.mu.Lock()
		r.status.State = adapters.Running
		s.mu.Unlock()
		if v := look(11 * time.Second); v.state != healthy || v.said == "" {
			t.Errorf("after one bad check: %+v", v)
		}
		if v := look(11 * time.Second); v.state != unhealthy {
			t.Errorf("after two bad checks: %+v", v)
		}
		if k := <-end.stopped; k != x.key(0) {
			t.Errorf("stopped %s", k)
		}
		if why := r.sickness(); why != "health check: nothing listens" {
			t.Errorf("because %q", why)
		}
		stop()
	})
}

// What is good and bad for each kind of check.
func TestProbes(t *testing.T) {
	page := func(status int) func(context.Context) (net.Conn, error) {
		return func(context.Context) (net.Conn, error) {
			near, far := net.Pipe()
			go http.Serve(&oneConn{conn: far}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.WriteHeader(status)
				io.WriteString(w, r.URL.Path)
			}))
			return near, nil
		}
	}
	for status, good := range map[int]bool{200: true, 302: true, 404: false, 500: false} {
		if err := probeHTTP(t.Context(), page(status), pcm.HealthCheck{HTTP: "/ok"}); (err == nil) != good {
			t.Errorf("status %d: %v", status, err)
		}
	}
	silent := func(context.Context) (net.Conn, error) {
		near, _ := net.Pipe()
		return near, nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := probeHTTP(ctx, silent, pcm.HealthCheck{HTTP: "/ok", Timeout: "5s"}); err == nil || !strings.Contains(err.Error(), "no answer within 5s") {
		t.Errorf("a silent service: %v", err)
	}
	garbage := func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			http.ReadRequest(bufio.NewReader(far))
			io.WriteString(far, "HTTP/1.1 500 \xff\xfe\r\nContent-Length: 0\r\n\r\n")
		}()
		return near, nil
	}
	err := probeHTTP(t.Context(), garbage, pcm.HealthCheck{HTTP: "/ok"})
	if err == nil {
		t.Fatal("status 500 is good")
	}
	// What a service says may not keep its seller from reporting.
	s, _, req, x := workingTrade(t, pcm.Step{})
	x.running[0].vitals = &vitals{unhealthy, clip(err.Error())}
	s.adapters["slow"] = &emptyResults{Adapter: s.adapters["slow"]}
	s.ended(adapters.Status{Key: x.key(0), State: adapters.Ended, Outcome: pcm.OutcomeStopped})
	s.reports.mu.Lock()
	raw := pcm.MustMarshal(pcm.Op{Finish: &pcm.Finish{Trade: req.Trade, Results: s.reports.results[req.Trade]}})
	s.reports.mu.Unlock()
	var op pcm.Op
	if err := pcm.Unmarshal(raw, &op); err != nil || len(op.Finish.Results) != 1 {
		t.Errorf("a report that nobody can read: %v", err)
	}
	_, end, _, _ := workingTrade(t, pcm.Step{})
	if err := probeCommand(t.Context(), end, adapters.Key{}, pcm.HealthCheck{Command: []string{"fail"}}); err == nil || err.Error() != "fail ended with 300: no" {
		t.Errorf("a command that fails: %v", err)
	}
}

// oneConn is a listener with one connection.
type oneConn struct{ conn net.Conn }

func (l *oneConn) Accept() (net.Conn, error) {
	if c := l.conn; c != nil {
		l.conn = nil
		return c, nil
	}
	return nil, io.EOF
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// A task that its seller ended for its health has failed, and was not stopped.
func TestSickTaskHasFailed(t *testing.T) {
	s, _, req, x := workingTrade(t, pcm.Step{})
	x.running[0].vitals = &vitals{unhealthy, "nothing listens"}
	s.adapters["slow"] = &emptyResults{Adapter: s.adapters["slow"]}
	s.ended(adapters.Status{Key: x.key(0), State: adapters.Ended, Outcome: pcm.OutcomeStopped, ExitCode: 143})
	if got := told(s, req.Trade); !maps.Equal(got, map[int]pcm.Outcome{0: pcm.OutcomeFailed}) {
		t.Errorf("told %v", got)
	}
}

// emptyResults is a back end whose attempts leave nothing.
type emptyResults struct{ adapters.Adapter }

func (emptyResults) Results(context.Context, adapters.Key) (fs.FS, error) {
	return fstest.MapFS{}, nil
}
