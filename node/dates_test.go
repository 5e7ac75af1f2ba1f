package node

import (
	"encoding/json"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// TestDatesOfOthersCanBeShown: what other cells and accounts say of time may be in no
// calendar. One such row must not keep all others from being shown.
func TestDatesOfOthersCanBeShown(t *testing.T) {
	d := &deals{n: new(Node)}
	for _, at := range []int64{-1 << 63, -1 << 62, -1, 1, 1 << 62, 1<<63 - 1} {
		if _, err := json.Marshal(tradeView(&ledger.Trade{AwardedAt: at, ClosedAt: at}, "cell-a", nil)); err != nil {
			t.Errorf("a trade awarded at %d: %v", at, err)
		}
		k := &deal{Domain: pcm.DomainNetting, net: pcm.Netting{NotAfter: at}}
		if _, err := json.Marshal(d.view(k)); err != nil || k.until().IsZero() {
			t.Errorf("an offer until %d: until %s, %v", at, k.until(), err)
		}
	}
}
