package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// cachedEnd is a back end whose pools are those that were seen an hour ago.
type cachedEnd struct {
	poolEnd
	seen  time.Time
	fault error
	asks  bool
}

func (e *cachedEnd) Probe(ctx context.Context) ([]pcm.Pool, error) {
	if e.fault != nil {
		return nil, e.fault
	}
	if e.asks {
		e.seen = time.Now()
	}
	return e.Pools(ctx)
}

func (e *cachedEnd) Seen() time.Time { return e.seen }

// What was seen before is not told as an answer.
func TestDoctorAsksAnew(t *testing.T) {
	for name, tt := range map[string]struct {
		end          *cachedEnd
		status, text string
	}{
		"alive":       {&cachedEnd{asks: true}, api.CheckOK, "answers in "},
		"dead":        {&cachedEnd{fault: errors.New("connection refused")}, api.CheckFail, "it can't be observed: connection refused; it last answered 1h0m"},
		"never asked": {&cachedEnd{}, api.CheckOK, "not asked: "},
	} {
		e := tt.end
		e.name, e.seen = "a", time.Now().Add(-time.Hour)
		f := CheckBackEnds(t.Context(), []adapters.Adapter{e})[0]
		if f.Status != tt.status || !strings.HasPrefix(f.Text, tt.text) {
			t.Errorf("%s: %s: %q, want %q", name, f.Status, f.Text, tt.text)
		}
	}
}
