package plugin

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

func TestRank(t *testing.T) {
	choice := adapters.Choice{Step: "s", Tasks: 3, Sites: []adapters.ChoiceSite{{Peer: "a", Room: 2}, {Peer: "b", Room: 7}}}
	r := newRig(t, "good")
	r.pools()
	scores, err := r.ins.Adapter.(adapters.Ranker).Rank(r.ctx, choice)
	if err != nil || len(scores) != 2 || scores[1] != (adapters.Score{Score: 7, Reason: "room for 7"}) {
		t.Errorf("scores %v, %v", scores, err)
	}
	r = &rig{t: t, ins: instance(t, "hangs:Rank"), ctx: r.ctx}
	r.pools()
	began := time.Now()
	if _, err := r.ins.Adapter.(adapters.Ranker).Rank(r.ctx, choice); pcm.ErrorCode(err) != pcm.Unavailable || time.Since(began) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	r = &rig{t: t, ins: instance(t, "oracle"), ctx: r.ctx}
	r.pools()
	if _, err := r.ins.Adapter.(adapters.Ranker).Rank(r.ctx, choice); pcm.ErrorCode(err) != pcm.Internal {
		t.Errorf("scores that are none: %v", err)
	}
}
