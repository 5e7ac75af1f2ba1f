package rest

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// List asks a back end for its pools, as Try does and as they would be sold.
func List(ctx context.Context, cfg Config) ([]pcm.Pool, error) {
	t := &trial{ctx: ctx, cfg: cfg, part: "pools"}
	b, err := open(ctx, cfg, t.trace)
	if err != nil {
		return nil, err
	}
	defer b.http.Close()
	t.b = b
	places, err := b.look(ctx, nil)
	if err != nil {
		return nil, t.hint(err)
	}
	var pools []pcm.Pool
	for _, p := range places {
		pools = append(pools, p.pool)
	}
	return pools, nil
}

// Compare says what two back ends have now: for each size that a task can have
// which pools have it, and in what else they differ.
func Compare(a, b []pcm.Pool) (all []description.Difference) {
	add := func(of, name, x, y string) {
		if x != y {
			all = append(all, description.Difference{Of: of, Name: name, A: x, B: y})
		}
	}
	var sizes []pcm.Pool // one pool of each size
	for _, p := range slices.Concat(a, b) {
		if !slices.ContainsFunc(sizes, func(q pcm.Pool) bool { return size(p) == size(q) }) {
			sizes = append(sizes, p)
		}
	}
	slices.SortFunc(sizes, func(p, q pcm.Pool) int {
		x, y := p.Most(), q.Most()
		for _, d := range []int64{x.GPU - y.GPU, int64(x.CPU - y.CPU), int64(x.Memory - y.Memory), int64(x.Disk - y.Disk)} {
			if d != 0 {
				return int(max(min(d, 1), -1))
			}
		}
		return strings.Compare(size(p), size(q))
	})
	for _, s := range sizes {
		has := func(pools []pcm.Pool) string {
			var names []string
			for _, p := range pools {
				if size(p) == size(s) {
					names = append(names, fmt.Sprintf("%s ×%d", p.ID, p.Slots))
				}
			}
			return strings.Join(names, ", ")
		}
		add("size", size(s), has(a), has(b))
	}
	x, y := most(a), most(b)
	add("at most", "cpu", x.CPU.String(), y.CPU.String())
	add("at most", "memory", x.Memory.String(), y.Memory.String())
	add("at most", "gpu", fmt.Sprint(x.GPU), fmt.Sprint(y.GPU))
	for _, f := range []struct {
		of string
		in func(pcm.Pool) map[string]string
	}{
		{"class", func(p pcm.Pool) map[string]string {
			if p.Class == "" {
				return nil
			}
			return map[string]string{p.Class: string(p.ID)}
		}},
		{"label", func(p pcm.Pool) map[string]string { return p.Labels }},
		{"software", func(p pcm.Pool) map[string]string { return p.Software }},
	} {
		x, y := gather(a, f.in), gather(b, f.in)
		names := slices.Concat(x.names, y.names)
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			add(f.of, n, x.values(n), y.values(n))
		}
	}
	return all
}

// size is what a task of the pool may have, for people.
func size(p pcm.Pool) string {
	if p.Accelerator == nil {
		return p.Most().String()
	}
	return strings.TrimRight(p.Most().String()+", "+p.Accelerator.Vendor+" "+p.Accelerator.Model, " ")
}

// most is the most of each that a task may have in some pool.
func most(pools []pcm.Pool) (r pcm.Resources) {
	for _, p := range pools {
		m := p.Most()
		r = pcm.Resources{CPU: max(r.CPU, m.CPU), Memory: max(r.Memory, m.Memory), GPU: max(r.GPU, m.GPU), Disk: max(r.Disk, m.Disk)}
	}
	return r
}

// gathered are the values that pools have under names.
type gathered struct {
	names []string
	all   map[string][]string
}

func gather(pools []pcm.Pool, in func(pcm.Pool) map[string]string) gathered {
	g := gathered{all: map[string][]string{}}
	for _, p := range pools {
		for n, v := range in(p) {
			if g.all[n] == nil {
				g.names = append(g.names, n)
			}
			g.all[n] = append(g.all[n], v)
		}
	}
	return g
}

func (g gathered) values(name string) string {
	v := slices.Clone(g.all[name])
	slices.Sort(v)
	return strings.Join(slices.Compact(v), ", ")
}
