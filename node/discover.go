package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// How long a back end may take to say what it has, and how soon after a change
// that it told of the next one is looked at.
const (
	discoverTry  = 5 * time.Second
	discoverPace = time.Second
)

// seen is what a back end said that it has, or why that can't be known.
type seen struct {
	pools []pcm.Pool
	err   error
}

// blind is since when a back end can't be observed, and why.
type blind struct {
	since time.Time
	why   string
}

// discover asks all back ends at once what they have, in the order of the sales:
// one that hangs delays no other. That one can't be observed is logged when it
// begins and when it is over.
func (s *selling) discover(ctx context.Context) []seen {
	all := make([]seen, len(s.n.cfg.Sales))
	var wg sync.WaitGroup
	for i, sale := range s.n.cfg.Sales {
		wg.Go(func() {
			try, cancel := context.WithTimeout(ctx, discoverTry)
			defer cancel()
			all[i].pools, all[i].err = sale.Adapter.Pools(try)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return all
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, sale := range s.n.cfg.Sales {
		name := sale.Adapter.Name()
		b, was := s.blind[name]
		switch err := all[i].err; {
		case err != nil && !was:
			s.n.log.Warn("a back end can't be observed: it is not offered until it can", "adapter", name, "error", err)
			s.blind[name] = blind{time.Now(), clip(err.Error())}
		case err != nil:
			s.blind[name] = blind{b.since, clip(err.Error())}
		case was:
			s.n.log.Info("a back end is observed again", "adapter", name, "after", time.Since(b.since).Round(time.Second))
			delete(s.blind, name)
		}
	}
	return all
}

// warnings say which back ends can't be observed.
func (s *selling) warnings() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range sortedKeys(s.blind) {
		b := s.blind[name]
		all = append(all, fmt.Sprintf("the back end of adapter %s can't be observed since %s and is not offered; what runs there goes on: %s", name, b.since.UTC().Format(time.RFC3339), b.why))
	}
	return all
}

// strays are names in the configuration that are of no pool here: of facts, and of
// rules. While a back end can't be observed nobody knows.
func (s *selling) strays() (all []string) {
	known, whole := s.n.operator.shownPools()
	if !whole {
		return nil
	}
	names := make([]string, len(known))
	for i, id := range known {
		names[i] = string(id)
	}
	have := orElse(strings.Join(names, ", "), "none")
	for _, id := range sortedKeys(s.n.cfg.Facts) {
		if !slices.Contains(known, id) {
			hint := ""
			if near := pcm.Nearest(string(id), names); near != "" {
				hint = "; did you mean " + near + "?"
			}
			all = append(all, fmt.Sprintf("facts.%s is of no pool here and has no effect: the pools are %s%s", id, have, hint))
		}
	}
	set := s.n.ownRules()
	for _, r := range slices.Concat(set.Public, set.Private) {
		if !slices.ContainsFunc(known, r.For) {
			all = append(all, fmt.Sprintf("rule %s is for %s, which no pool here is called: it has no effect; the pools are %s", r.Name, strings.Join(r.Pools, ", "), have))
		}
	}
	return all
}

// listen has the pools looked at whenever a back end tells that they changed, until
// ctx ends. Others are looked at from time to time only.
func (s *selling) listen(ctx context.Context) {
	for _, sale := range s.n.cfg.Sales {
		d, ok := sale.Adapter.(adapters.Discoverer)
		if !ok {
			continue
		}
		go func() {
			for changed := d.Changed(ctx); ; {
				select {
				case _, open := <-changed:
					if !open {
						return
					}
					s.look()
				case <-ctx.Done():
					return
				}
				if !pause(ctx, discoverPace) {
					return
				}
			}
		}()
	}
}

// When capacities that change are declared again: a declaration is an entry of the
// ledger, and awards under the one before are refused. Small changes wait long,
// others until some time after the last one; what appears, vanishes or changes in
// kind is declared at once.
const (
	steadySmall = 2 * time.Minute
	steadyLarge = 10 * time.Second
	smallPart   = 20 // changes of less than 1/20 are small
)

// steady says when a change is worth a declaration.
type steady struct {
	small time.Time // since when a small change waits; zero: none does
	last  time.Time // the last one that was worth it
}

// worth tells whether what is seen differs enough, or for long enough, from what is
// declared; at once, whether it differs.
func (w *steady) worth(declared, seen []pcm.Pool, now time.Time, atOnce bool) bool {
	yes := false
	switch {
	case slices.Equal(pcm.MustMarshal(seen), pcm.MustMarshal(declared)):
		w.small = time.Time{}
		return false
	case atOnce || kinds(declared) != kinds(seen):
		yes = true
	default:
		if w.small.IsZero() {
			w.small = now
		}
		yes = now.Sub(w.small) >= steadySmall || now.Sub(w.last) >= steadyLarge && !slices.EqualFunc(declared, seen, alike)
	}
	if yes {
		w.small, w.last = time.Time{}, now
	}
	return yes
}

// kinds is all of pools but how much they have: only whether they have any.
func kinds(pools []pcm.Pool) string {
	pools = slices.Clone(pools)
	for i := range pools {
		p := &pools[i]
		p.Capacity = pcm.Resources{CPU: min(p.Capacity.CPU, 1), Memory: min(p.Capacity.Memory, 1), GPU: min(p.Capacity.GPU, 1)}
		p.Slots = min(p.Slots, 1)
		if p.Largest != nil {
			p.Largest = &pcm.Resources{}
		}
	}
	return string(pcm.MustMarshal(pools))
}

// alike tells whether two pools have nearly the same.
func alike(a, b pcm.Pool) bool {
	near := func(x, y int64) bool { return max(x-y, y-x) < max(x/smallPart, 1) }
	return near(int64(a.Capacity.CPU), int64(b.Capacity.CPU)) && near(int64(a.Capacity.Memory), int64(b.Capacity.Memory)) &&
		near(a.Capacity.GPU, b.Capacity.GPU) && near(int64(a.Slots), int64(b.Slots)) &&
		(a.Largest == nil || b.Largest == nil || *a.Largest == *b.Largest) // few tasks of another size are many
}
