package node

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// A cell whose only voter was down for a while has an old clock: the age of its trades
// is told by the machine's, or what ran meanwhile would be disputed.
func TestAge(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	for _, c := range []struct {
		what        string
		at, logTime int64
		want        time.Duration
	}{
		{"the ledger is up to date", 990_000, 1_000_000, 10 * time.Second},
		{"nothing has happened in the cell for long", 990_000, 991_000, 10 * time.Second},
		{"this machine's clock is behind", 990_000, 1_020_000, 30 * time.Second},
		{"this machine's clock is behind what it asks about", 1_005_000, 1_005_000, 0},
	} {
		if got := age(c.at, c.logTime, now); got != c.want {
			t.Errorf("%s: %s, not %s", c.what, got, c.want)
		}
	}
}

func TestDisputesOf(t *testing.T) {
	at := func(state pcm.AttemptState, reason string, charge pcm.Micro, when int64) ledger.Attempt {
		return ledger.Attempt{State: state, Reason: reason, Charge: charge, DisputedAt: when}
	}
	tr := &ledger.Trade{
		Terms: pcm.Terms{Tasks: pcm.SpansOf([]int{4, 5, 6, 9})},
		Attempts: []ledger.Attempt{
			at(pcm.AttemptDisputed, "too long", 1000, 5000), at(pcm.AttemptSettled, "", 1000, 0),
			at(pcm.AttemptDisputed, "empty", 500, 7000), at(pcm.AttemptDisputed, "too long", 2000, 4000),
		},
	}
	got := tradeView(tr, "cell-aaaaaaaaaaaaaaaa", nil).Disputes
	if len(got) != 2 || got[0].Tasks != "4,9" || got[0].Reason != "too long" || got[0].Asked != "0.003" ||
		got[0].Until.Sub(time.UnixMilli(4000)) != pcm.DisputeFor || got[1].Tasks != "6" || got[1].Reason != "empty" || got[1].Asked != "0.0005" {
		t.Errorf("%+v", got)
	}

	many := &ledger.Trade{Terms: pcm.Terms{Tasks: pcm.Spans{{Lo: 0, Hi: 3 * maxDisputes}}}}
	for i := range 3 * maxDisputes {
		many.Attempts = append(many.Attempts, at(pcm.AttemptDisputed, string(rune('A'+i)), 1, 1))
	}
	if got := disputesOf(many); len(got) != maxDisputes || got[maxDisputes-1].Tasks != "15-47" {
		t.Errorf("%d reasons are shown, the last for tasks %s", len(got), got[len(got)-1].Tasks)
	}
}
