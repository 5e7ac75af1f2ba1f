package container

import (
	"log/slog"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// What a restarted engine killed may be looked at by its attempt before the
// watcher is back at the engine: it is the seller's fault then, too.
func TestEndSeenBeforeWatcherIsBack(t *testing.T) {
	w := newWatcher(nil, "home", slog.New(slog.DiscardHandler))
	tr := &track{name: "c", wake: make(chan struct{}, 1)}
	fate := func() pcm.Outcome {
		killed, blind := w.fate(tr)
		return judge(end{code: 143, killed: killed, blind: blind}).Outcome
	}
	if o := fate(); o != pcm.OutcomeFailed {
		t.Errorf("with the engine there all the time it ends as %s", o)
	}
	w.away(time.Now().Add(-3 * time.Second))
	if o := fate(); o != pcm.OutcomeSeller {
		t.Errorf("with the engine away it ends as %s", o)
	}
	w.away(time.Time{})
	w.seen(tr)
	if o := fate(); o != pcm.OutcomeFailed {
		t.Errorf("with the engine back for long it ends as %s", o)
	}
}
