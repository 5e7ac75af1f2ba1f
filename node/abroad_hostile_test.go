package node

import (
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// TestTradesAnswerIsChecked: another cell may answer anything.
func TestTradesAnswerIsChecked(t *testing.T) {
	a, b, c := pcm.TradeID("trade-a"), pcm.TradeID("trade-b"), pcm.TradeID("trade-c")
	asked := []pcm.TradeID{a, b}
	for name, answer := range map[string]tradesAnswer{
		"a trade that is none":       {Trades: []*ledger.Trade{nil}, Unknown: []pcm.TradeID{b}},
		"another trade than asked":   {Trades: []*ledger.Trade{{ID: c}}, Unknown: []pcm.TradeID{b}},
		"one trade twice":            {Trades: []*ledger.Trade{{ID: a}, {ID: a}}},
		"known and unknown":          {Trades: []*ledger.Trade{{ID: a}}, Unknown: []pcm.TradeID{a}},
		"too few":                    {Unknown: []pcm.TradeID{a}},
		"more than asked":            {Unknown: []pcm.TradeID{a, b, c}},
		"nothing but what is left":   {Left: 2},
		"less than nothing is left":  {Unknown: []pcm.TradeID{a, b, c}, Left: -1},
		"one that is left, and told": {Unknown: []pcm.TradeID{a, b}, Left: 1},
	} {
		var got tradesAnswer // as it comes
		if err := pcm.Unmarshal(pcm.MustMarshal(answer), &got); err != nil {
			t.Fatal(err)
		}
		if _, err := got.of(asked); err == nil {
			t.Errorf("an answer with %s is taken", name)
		}
	}
	for name, answer := range map[string]tradesAnswer{
		"both":      {Trades: []*ledger.Trade{{ID: b}, {ID: a}}},
		"one known": {Trades: []*ledger.Trade{{ID: a}}, Unknown: []pcm.TradeID{b}},
		"one left":  {Unknown: []pcm.TradeID{a}, Left: 1},
	} {
		told, err := answer.of(asked)
		if err != nil || len(told) != len(answer.Trades) {
			t.Errorf("an answer with %s: %d trades, %v", name, len(told), err)
		}
	}
}

// TestResultsOfAnotherCellAreChecked: what home would refuse is not brought to it.
func TestResultsOfAnotherCellAreChecked(t *testing.T) {
	terms := pcm.Terms{Job: "job-aaaaaaaaaaaaaaaa", Tasks: pcm.SpansOf([]int{4}), Home: "cell-aaaaaaaaaaaaaaaa", Cell: "cell-bbbbbbbbbbbbbbbb", Width: 1}
	trade := newAbroadTrade(terms.Trade(), terms)
	tell := func(r pcm.Result) error {
		return trade.learnTrade(&ledger.Trade{ID: trade.id, Terms: terms, Attempts: []ledger.Attempt{{State: pcm.AttemptFinished, Result: &r}}}, 1)
	}
	for name, r := range map[string]pcm.Result{
		"an unknown outcome":    {Index: 4, Outcome: "splendid"},
		"the seller's fault":    {Index: 4, Outcome: pcm.OutcomeSeller},
		"ok with an exit code":  {Index: 4, Outcome: pcm.OutcomeOK, ExitCode: 3},
		"use below zero":        {Index: 4, Outcome: pcm.OutcomeOK, Usage: pcm.Usage{WallMS: -1}},
		"a digest that is none": {Index: 4, Outcome: pcm.OutcomeOK, Output: "sha256:x"},
		"an endless reason":     {Index: 4, Outcome: pcm.OutcomeFailed, ExitCode: 1, Reason: strings.Repeat("x", 1000)},
		"another task":          {Index: 5, Outcome: pcm.OutcomeOK},
	} {
		if err := tell(r); err == nil || trade.seen != nil {
			t.Errorf("a result with %s is taken", name)
		}
	}
	if err := tell(pcm.Result{Index: 4, Outcome: pcm.OutcomeOK}); err != nil || trade.seen == nil {
		t.Errorf("a plain result is refused: %v", err)
	}
}

// TestAgesOfAnotherCellAreBounded: how long a trade has run is believed as far as home
// had it placed by then, so that its seller can't be paid for time before that.
func TestAgesOfAnotherCellAreBounded(t *testing.T) {
	terms := pcm.Terms{Job: "job-aaaaaaaaaaaaaaaa", Tasks: pcm.SpansOf([]int{4}), Home: "cell-aaaaaaaaaaaaaaaa", Cell: "cell-bbbbbbbbbbbbbbbb", Width: 1}
	p := &ledger.Placement{Trade: terms.Trade(), Terms: &terms}
	tell := func(trade *abroadTrade, stamp, awarded int64) time.Duration {
		t.Helper()
		v := &ledger.Trade{ID: trade.id, Terms: terms, AwardedAt: awarded, Attempts: []ledger.Attempt{{State: pcm.AttemptStarted}}}
		if err := trade.learnTrade(v, stamp); err != nil {
			t.Fatal(err)
		}
		return trade.ran(time.Now())
	}
	for _, c := range []struct {
		name           string
		age            time.Duration
		stamp, awarded int64
		least, most    time.Duration
	}{
		{"as home knows", time.Hour, 3_600_000, 60_000, 59 * time.Minute, time.Hour},
		{"older than its placement", time.Minute, 3_600_000, 0, time.Minute, 2 * time.Minute},
		{"before all time", time.Minute, 1 << 62, -1 << 62, 0, 2 * time.Minute},
		{"from the future", time.Minute, 0, 1 << 62, 0, time.Minute},
		{"home's clock went back", -time.Hour, 60_000, 0, 0, time.Minute},
	} {
		if ran := tell(readAbroad(p, nil, c.age), c.stamp, c.awarded); ran < c.least || ran > c.most {
			t.Errorf("%s: it ran for %s, want %s to %s", c.name, ran, c.least, c.most)
		}
	}
}
