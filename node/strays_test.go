package node

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/rules"
)

// Facts and rules of no pool are told of, as soon as all pools are known.
func TestStrays(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), cfg: Config{
		Dir: t.TempDir(), Sales: []Sale{{Adapter: newSlowEnd()}},
		Facts: map[pcm.PoolID]Facts{"slow": {}, "slwo": {}},
	}}
	n.rules.Store(&rules.Set{
		Public:  []pcm.Rule{{Name: "all", Accept: "true"}, {Name: "some", Pools: []string{"sl*"}, Accept: "true"}},
		Private: []pcm.Rule{{Name: "lost", Pools: []string{"gpu-*"}, Accept: "true"}},
	})
	var err error
	if n.operator, err = openOperator(n); err != nil {
		t.Fatal(err)
	}
	s := newSelling(n)
	if all := s.strays(); len(all) != 0 {
		t.Errorf("before any pool is known: %q", all)
	}
	n.operator.saw("slow", []pcm.Pool{{ID: "slow", Adapter: "slow"}})
	all := s.strays()
	if len(all) != 2 || !strings.Contains(all[0], "facts.slwo is of no pool here") || !strings.Contains(all[0], "did you mean slow?") || !strings.Contains(all[1], "rule lost is for gpu-*") {
		t.Errorf("%q", all)
	}
	n.operator.lost("slow", errors.New("away"))
	if all := s.strays(); len(all) != 0 {
		t.Errorf("while a back end is away: %q", all)
	}
}
