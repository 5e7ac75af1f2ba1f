package machine

import (
	"net/http"
	"strings"
	"sync"
	"time"
)

// Fault is what happens to a call.
type Fault struct {
	Delay  time.Duration // the answer is late
	Status int           // it is refused with this, and not carried out; 0: it is carried out
	Header http.Header   // of a refusal
	Body   string        // of a refusal
	Drop   bool          // it is carried out, and the answer is lost: the connection is cut
	Cut    bool          // the connection is cut before anything is done
}

// Faults stands before a fake's handler. The zero value lets all pass.
type Faults struct {
	mu    sync.Mutex
	plans []*plan
	slow  time.Duration
	gate  chan struct{} // not nil: nothing is answered until it is closed
	calls []string      // the last ones, for tests that count
}

type plan struct {
	match string
	left  int
	fault Fault
}

const maxCalls = 4096

// Next plans a fault for the next n calls that match: "" is every call, else a
// method and a path's beginning, "POST /v1/jobs", or a method only.
func (f *Faults) Next(n int, match string, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans = append(f.plans, &plan{match, n, fault})
}

// Slow makes every answer late; 0 ends that.
func (f *Faults) Slow(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slow = d
}

// Hang keeps all calls from being answered until resume is called. What runs, runs on.
func (f *Faults) Hang() (resume func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	gate := make(chan struct{})
	if f.gate != nil {
		return func() {} // it hangs already
	}
	f.gate = gate
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.gate = nil
		close(gate)
	})
}

// Count tells how many of the last calls, at most 4,096, matched.
func (f *Faults) Count(match string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if matches(match, c) {
			n++
		}
	}
	return n
}

func matches(match, call string) bool {
	method, path, both := strings.Cut(match, " ")
	if !both {
		return match == "" || strings.HasPrefix(call, match+" ")
	}
	return strings.HasPrefix(call, method+" "+path)
}

// take is what becomes of a call.
func (f *Faults) take(call string) (Fault, chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls = append(f.calls, call); len(f.calls) > maxCalls {
		f.calls = f.calls[len(f.calls)-maxCalls:]
	}
	fault := Fault{Delay: f.slow}
	for i, p := range f.plans {
		if !matches(p.match, call) {
			continue
		}
		slow := fault.Delay
		fault = p.fault
		fault.Delay += slow
		if p.left--; p.left <= 0 {
			f.plans = append(f.plans[:i], f.plans[i+1:]...)
		}
		break
	}
	return fault, f.gate
}

// Wrap puts the faults before a handler.
func (f *Faults) Wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fault, gate := f.take(r.Method + " " + r.URL.Path)
		if gate != nil {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			}
		}
		if fault.Delay > 0 {
			select {
			case <-time.After(fault.Delay):
			case <-r.Context().Done():
				return
			}
		}
		switch {
		case fault.Cut:
			panic(http.ErrAbortHandler)
		case fault.Status != 0:
			for name, values := range fault.Header {
				w.Header()[name] = values
			}
			w.WriteHeader(fault.Status)
			_, _ = w.Write([]byte(fault.Body))
		case fault.Drop:
			h.ServeHTTP(nowhere{http.Header{}}, r)
			panic(http.ErrAbortHandler)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// nowhere is where an answer goes that is lost.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n nowhere) WriteHeader(int)             {}
