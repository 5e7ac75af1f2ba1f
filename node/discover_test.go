package node

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func pool(id string, cpu pcm.MilliCPU, memory pcm.Bytes, slots int) pcm.Pool {
	return pcm.Pool{ID: pcm.PoolID(id), Adapter: "x", Capacity: pcm.Resources{CPU: cpu, Memory: memory}, Slots: slots}
}

// A busy cluster does not flood the ledger, and what matters is declared at once.
func TestSteady(t *testing.T) {
	largest := func(p pcm.Pool, cpu pcm.MilliCPU) []pcm.Pool {
		p.Largest = &pcm.Resources{CPU: cpu}
		return []pcm.Pool{p}
	}
	base := largest(pool("a", 100_000, 1<<40, 100), 4000)
	labelled := largest(pool("a", 100_000, 1<<40, 100), 4000)
	labelled[0].Labels = pcm.Labels{"zone": "b"}
	for _, c := range []struct {
		name string
		seen []pcm.Pool
		wait time.Duration
	}{
		{"nothing", base, -1},
		{"a little", largest(pool("a", 99_000, 1<<40, 100), 4000), steadySmall},
		{"a little of all", largest(pool("a", 104_000, 1<<40-1<<34, 96), 4000), steadySmall},
		{"a smaller largest machine", largest(base[0], 2000), steadyLarge},
		{"much", largest(pool("a", 94_000, 1<<40, 100), 4000), steadyLarge},
		{"many slots", largest(pool("a", 100_000, 1<<40, 106), 4000), steadyLarge},
		{"all", largest(pool("a", 100_000, 1<<40, 0), 4000), 0},
		{"a pool", nil, 0},
		{"one more", []pcm.Pool{base[0], pool("b", 1, 1, 1)}, 0},
		{"a label", labelled, 0},
	} {
		now := time.Unix(1e9, 0)
		w := steady{last: now}
		for at := time.Duration(0); ; at += time.Second {
			if w.worth(base, c.seen, now.Add(at), false) {
				if at != c.wait {
					t.Errorf("%s: declared after %s, not %s", c.name, at, c.wait)
				}
				break
			}
			if at > 10*time.Minute {
				if c.wait >= 0 {
					t.Errorf("%s: never declared", c.name)
				}
				break
			}
		}
	}
	if w := (steady{last: time.Unix(1e9, 0)}); !w.worth(base, largest(pool("a", 99_999, 1<<40, 100), 4000), w.last, true) || w.worth(base, base, w.last, true) {
		t.Error("who asks for it doesn't get any change declared, or gets none declared")
	}
	// A change that is taken back needs no declaration, and the next one waits anew.
	now := time.Unix(1e9, 0)
	w := steady{last: now}
	little := largest(pool("a", 99_000, 1<<40, 100), 4000)
	for at := time.Duration(0); at < time.Hour; at += steadySmall / 2 {
		if w.worth(base, little, now.Add(at), false) || w.worth(base, base, now.Add(at+steadySmall/4), false) {
			t.Fatalf("declared after %s", at)
		}
	}
}

// poolEnd is a back end that has pools, hangs, and tells of changes.
type poolEnd struct {
	adapters.Adapter
	name    string
	mu      sync.Mutex
	hangs   bool
	asked   int
	changed chan struct{}
}

func (e *poolEnd) Name() string { return e.name }

func (e *poolEnd) Pools(ctx context.Context) ([]pcm.Pool, error) {
	e.mu.Lock()
	e.asked++
	hangs := e.hangs
	e.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return nil, pcm.Errorf(pcm.Unavailable, "no answer in time")
	}
	return []pcm.Pool{pool(e.name, 1000, 1<<30, 4)}, nil
}

func (e *poolEnd) Changed(context.Context) <-chan struct{} { return e.changed }

// A back end that hangs is said to, once, and delays no other.
func TestHungBackEndIsNotOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		a, b, c := &poolEnd{name: "a", hangs: true}, &poolEnd{name: "b"}, &poolEnd{name: "c", hangs: true}
		n := &Node{log: slog.New(slog.NewTextHandler(&log, nil)), cfg: Config{Sales: []Sale{{Adapter: a}, {Adapter: b}, {Adapter: c}}}}
		s := newSelling(n)
		began := time.Now()
		for range 3 {
			got := s.discover(t.Context())
			if got[0].err == nil || got[1].err != nil || len(got[1].pools) != 1 || got[2].err == nil {
				t.Fatalf("seen: %+v", got)
			}
		}
		if took := time.Since(began); took != 3*discoverTry {
			t.Errorf("three rounds took %s", took)
		}
		if n := strings.Count(log.String(), "can't be observed"); n != 2 {
			t.Errorf("logged %d times:\n%s", n, log.String())
		}
		w := s.warnings()
		if len(w) != 2 || !strings.Contains(w[0], "adapter a ") || !strings.Contains(w[0], "no answer in time") || !strings.Contains(w[0], began.Add(discoverTry).UTC().Format(time.RFC3339)) {
			t.Errorf("warnings: %q", w)
		}
		a.hangs, c.hangs = false, false
		s.discover(t.Context())
		if w := s.warnings(); len(w) != 0 || strings.Count(log.String(), "observed again") != 2 {
			t.Errorf("afterwards: %q\n%s", w, log.String())
		}
	})
}

// Pools are looked at when their back end tells that they changed, but not without pause.
func TestDiscovererIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := &poolEnd{name: "a", changed: make(chan struct{}, 1)}
		s := newSelling(&Node{cfg: Config{Sales: []Sale{{Adapter: a}}}})
		s.listen(ctx)
		heard := 0
		for range 20 {
			select {
			case a.changed <- struct{}{}:
			default:
			}
			synctest.Wait()
			select {
			case <-s.again:
				heard++
			default:
			}
			time.Sleep(discoverPace / 10)
		}
		if heard != 2 {
			t.Errorf("in %s heard %d times", 2*discoverPace, heard)
		}
		cancel()
		synctest.Wait()
	})
}
