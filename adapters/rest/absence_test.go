package rest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/adaptertest"
	"github.com/jointcloud/pcm/adapters/rest/client"
)

// What was seen before is no answer of a back end that is dead: the pools go out of
// the offers before they are looked at again, what runs is told of and goes on, and
// all is well when the back end is back.
func TestAbsence(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Refresh = time.Hour // nothing but the calls of others can tell sooner
	ins := boxed(t, cfg)
	a := ins.Adapter.(adapters.Prober)
	pools := func() error { _, err := ins.Adapter.Pools(t.Context()); return err }
	if err := pools(); err != nil {
		t.Fatal(err)
	}
	first := a.Seen()
	if err := pools(); err != nil || first.IsZero() || !a.Seen().Equal(first) {
		t.Fatalf("%v; seen %s, then %s: it was asked again", err, first, a.Seen())
	}
	if got, err := a.Probe(t.Context()); err != nil || len(got) == 0 || !a.Seen().After(first) {
		t.Fatalf("a probe: %v, %v; seen %s", got, err, a.Seen())
	}

	free := filepath.Join(t.TempDir(), "free")
	task := adaptertest.NewTask()
	task.Command = []string{"sh", "-c", "while [ ! -e " + free + " ]; do sleep 0.1; done"}
	if err := ins.Adapter.Start(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	status := func() adapters.Status {
		list, err := ins.Adapter.List(t.Context())
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0]
	}
	until(t, "it runs", func() bool { return status().State == adapters.Running && pools() == nil })

	c.srv.Close()
	until(t, "its pools are out of the offers", func() bool {
		err := pools()
		return pcm.ErrorCode(err) == pcm.Unavailable && strings.Contains(err.Error(), "it does not answer since 20")
	})
	until(t, "what runs is told of", func() bool {
		s := status()
		return s.State == adapters.Running && strings.Contains(s.Reason, "its back end does not say how it stands")
	})
	seen := a.Seen()
	if _, err := a.Probe(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable || !a.Seen().Equal(seen) {
		t.Errorf("a probe of a dead back end: %v; seen %s after %s", err, a.Seen(), seen)
	}

	c.listen(c.addr)
	until(t, "it is back", func() bool { return pools() == nil && a.Seen().After(seen) && status().Reason == "" })
	if err := os.WriteFile(free, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, "it ends well", func() bool { s := status(); return s.State == adapters.Ended && s.Outcome == pcm.OutcomeOK })
}

// Without work nobody calls a back end: a probe finds that it is dead, and what was
// seen before counts no more.
func TestProbe(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	cfg := c.settings("small.yaml")
	cfg.Refresh = time.Hour
	ins := boxed(t, cfg)
	if _, err := ins.Adapter.Pools(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.srv.Close()
	if _, err := ins.Adapter.(adapters.Prober).Probe(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("a probe: %v", err)
	}
	if _, err := ins.Adapter.Pools(t.Context()); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("afterwards the pools are: %v", err)
	}
}

// An answer that something is wrong comes from a back end that is there, unless its
// jobs can't be read at all; tries that nobody waits for any more say nothing.
func TestHeard(t *testing.T) {
	t.Parallel()
	c := newCloud(t, 8)
	b, err := open(t.Context(), c.settings("small.yaml"), nil)
	if err != nil {
		t.Fatal(err)
	}
	post, get := &client.Request{Method: "POST"}, &client.Request{Method: "GET", Idempotent: true}
	silent, busy := pcm.Errorf(pcm.Unavailable, "connection refused"), pcm.Errorf(pcm.Busy, "429")
	over, cancel := context.WithCancel(t.Context())
	cancel()
	away := func() bool { return b.absent != nil }
	b.heard(t.Context(), post, nil, silent)
	b.heard(t.Context(), post, nil, busy)
	b.heard(over, get, nil, silent)
	b.heard(t.Context(), get, &client.Response{Status: 503}, silent)
	if away() {
		t.Errorf("one try, and it counts as away: %v", b.absent)
	}
	b.heard(t.Context(), post, &client.Response{Status: 404}, pcm.Errorf(pcm.NotFound, "no such job"))
	b.heard(t.Context(), post, nil, silent)
	if away() {
		t.Errorf("tries are not in a row: %v", b.absent)
	}
	if b.heard(t.Context(), post, nil, silent); !away() {
		t.Error("two tries in a row, and it does not count as away")
	}
	if b.heard(t.Context(), get, &client.Response{Status: 200}, nil); away() {
		t.Error("it answers, and counts as away")
	}
	if b.heard(t.Context(), get, nil, silent); !away() {
		t.Error("the client has tried again already, and it does not count as away")
	}
	b.heard(t.Context(), get, &client.Response{Status: 200}, nil)
	b.unread(silent)
	if b.unread(silent); !away() || !b.absent.Unread {
		t.Errorf("its jobs can't be read: %v", b.absent)
	}
	b.heard(t.Context(), get, &client.Response{Status: 200}, nil)
	b.heard(t.Context(), get, nil, silent)
	if b.unread(silent); !away() || b.absent.Unread {
		t.Errorf("nothing is answered at all, and only its jobs count as unread: %v", b.absent)
	}
}
