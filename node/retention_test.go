package node

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm/ledger"
)

// A base is put off while very much is open, but not for ever, and never the first one.
func TestBasePutOff(t *testing.T) {
	const gap = 5 * time.Second
	last := ledger.Base{Size: 100, Stamp: 1000}
	due := last.Stamp + gap.Milliseconds()
	for _, c := range []struct {
		name  string
		last  ledger.Base
		now   int64
		items int
		want  bool
	}{
		{"little is open", last, due, baseItems, false},
		{"much is open", last, due, baseItems + 1, true},
		{"much is open, still", last, due + gap.Milliseconds() - 1, baseItems + 1, true},
		{"a gap later", last, due + gap.Milliseconds(), baseItems + 1, false},
		{"the first", ledger.Base{}, due, baseItems + 1, false},
	} {
		if got := putOff(c.last, c.now, due, gap, c.items); got != c.want {
			t.Errorf("%s: put off is %v", c.name, got)
		}
	}
}
