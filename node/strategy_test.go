package node

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/placement"
)

// oracle is an adapter that ranks; the rest of it is not called.
type oracle struct {
	adapters.Adapter
	rank func(context.Context, adapters.Choice) (map[int]adapters.Score, error)
	n    int
}

func (o *oracle) Rank(ctx context.Context, c adapters.Choice) (map[int]adapters.Score, error) {
	o.n++
	return o.rank(ctx, c)
}

func TestPluginStrategy(t *testing.T) {
	o := &oracle{}
	n := &Node{log: slog.New(slog.DiscardHandler), seller: &seller{adapters: map[string]adapters.Adapter{"wise": o}}}
	site := func(name string, cost pcm.Micro) placement.Site {
		return placement.Site{
			Peer: pcm.PeerID(name), Name: name, Slots: 4, Free: pcm.Resources{CPU: 4000, Memory: 4 << 30},
			Pool: pcm.Pool{
				ID: "process", Adapter: "process", Slots: 4, Capacity: pcm.Resources{CPU: 4000, Memory: 4 << 30},
				Price: pcm.Price{Unit: "credit", PerTask: cost}, Features: []pcm.Feature{pcm.FeatureCommand},
			},
		}
	}
	sites := []placement.Site{site("a", 1), site("b", 2), site("c", 3)}
	r := placement.Request{Step: pcm.Step{Name: "s", Command: []string{"x"}}, Each: pcm.Resources{CPU: 1000}, Unit: "credit", Strategy: "plugin.wise"}
	order := func() (string, string) {
		ranked, note, err := n.rank(t.Context(), r, "job-1", 5, sites)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, c := range ranked {
			if c.OK() {
				names = append(names, c.Name)
			}
		}
		return strings.Join(names, ""), note
	}

	o.rank = func(_ context.Context, c adapters.Choice) (map[int]adapters.Score, error) {
		if c.Tasks != 5 || c.Step != "s" || len(c.Sites) != 3 || c.Sites[0].Peer != "a" || c.Sites[0].Room != 4 {
			t.Errorf("it was asked %+v", c)
		}
		return map[int]adapters.Score{1: {Score: 1}, 2: {Score: 2, Reason: "the greenest"}}, nil
	}
	if got, note := order(); got != "cb" || note != "" {
		t.Errorf("order %q, %q", got, note)
	}
	// What it can't do in time is done as usual, and it is not asked in every round.
	o.rank = func(ctx context.Context, _ adapters.Choice) (map[int]adapters.Score, error) {
		<-ctx.Done()
		return nil, pcm.Errorf(pcm.Unavailable, "no answer in time")
	}
	o.n = 0
	for range 3 {
		if got, note := order(); got != "abc" || note != "placed by cheapest instead of plugin.wise: no answer in time" {
			t.Errorf("order %q, %q", got, note)
		}
	}
	if o.n != 1 {
		t.Errorf("it was asked %d times", o.n)
	}
	r.Strategy = "plugin.absent"
	if got, note := order(); got != "abc" || !strings.Contains(note, `no plug-in "absent"`) {
		t.Errorf("order %q, %q", got, note)
	}
	for name, ok := range map[string]bool{"cheapest": true, "plugin.wise": true, "plugin.absent": false, "plugin.": false, "luckiest": false} {
		if err := n.checkStrategy(name); (err == nil) != ok || err != nil && pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
