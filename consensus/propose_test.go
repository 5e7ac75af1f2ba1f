package consensus

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
)

// gathering is a verifier's end of a proposer, with n commands in its intake.
func gathering(ctx context.Context, n int) *proposer {
	c := &Cell{ctx: ctx, cfg: Config{maxQueued: maxQueued}}
	c.rest = newRest(c)
	p := newProposer(c)
	p.leading.Store(true)
	p.arrive(n)
	return p
}

func (p *proposer) arrive(n int) {
	for range n {
		p.submit([]pcm.Signed{{}}, func([]pcm.CommandResult, error) {})
	}
}

// What comes while nothing is under way goes at once, with what waits beside it.
func TestGatherAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := gathering(t.Context(), 3)
		p.flight.Store(int64(time.Second))
		began := time.Now()
		if _, n := p.gather(); n != 3 || time.Since(began) != 0 {
			t.Errorf("%d commands were gathered after %v, not 3 at once", n, time.Since(began))
		}
	})
}

// While an entry is under way, the next is gathered: until half of all that are
// queued are in it, or the one before has landed, or patience ends.
func TestGatherWhileOneFlies(t *testing.T) {
	begin := func(t *testing.T) (p *proposer, flying []*unit) {
		p = gathering(t.Context(), 10)
		p.flight.Store(int64(4 * time.Millisecond))
		flying, _ = p.gather()
		p.arrive(1)
		return p, flying
	}
	for _, c := range []struct {
		name string
		then func(p *proposer, flying []*unit)
		n    int
		took time.Duration
	}{
		{"half of all", func(p *proposer, _ []*unit) { p.arrive(5) }, 6, time.Millisecond},
		{"landed", func(_ *proposer, flying []*unit) { finishAll(flying, nil) }, 1, time.Millisecond},
		{"patience", func(p *proposer, _ []*unit) { p.arrive(1) }, 2, 2 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, flying := begin(t)
				time.AfterFunc(time.Millisecond, func() { c.then(p, flying) })
				began := time.Now()
				if _, n := p.gather(); n != c.n || time.Since(began) != c.took {
					t.Errorf("%d commands were gathered after %v, not %d after %v", n, time.Since(began), c.n, c.took)
				}
			})
		})
	}
}
