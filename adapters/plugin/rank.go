package plugin

import (
	"context"
	"math"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/plugin/pluginpb"
)

var _ adapters.Ranker = (*Adapter)(nil)

const (
	rankCall      = time.Second
	maxCandidates = 1000
	maxRankReason = 128
)

func wireResources(r pcm.Resources) *pluginpb.Resources {
	return &pluginpb.Resources{CpuMilli: int64(r.CPU), MemoryBytes: int64(r.Memory), Gpus: r.GPU, DiskBytes: int64(r.Disk)}
}

// Rank implements adapters.Ranker.
func (a *Adapter) Rank(ctx context.Context, c adapters.Choice) (map[int]adapters.Score, error) {
	l, err := a.role("rank")
	if err != nil {
		return nil, err
	}
	req := &pluginpb.RankRequest{Job: string(c.Job), Step: c.Step, Tasks: uint32(c.Tasks), Each: wireResources(c.Each), LimitMs: c.Limit.Milliseconds()}
	for i, s := range c.Sites[:min(len(c.Sites), maxCandidates)] {
		req.Candidates = append(req.Candidates, &pluginpb.Candidate{
			Id: strconv.Itoa(i), Peer: s.Peer, Pool: string(s.Pool), Adapter: s.Adapter, Labels: s.Labels,
			Capacity: wireResources(s.Capacity), Free: wireResources(s.Free), Room: uint32(s.Room), CostMicro: int64(s.Cost),
		})
	}
	res, err := call[pluginpb.RankRequest, pluginpb.RankResponse](ctx, l, "Rank", rankCall, req)
	if err != nil {
		return nil, err
	}
	scores := map[int]adapters.Score{}
	for _, s := range res.Scores {
		i, err := strconv.Atoi(s.GetId())
		if err != nil || i < 0 || i >= len(req.Candidates) {
			return nil, pcm.Errorf(pcm.Internal, "plug-in %s scores a candidate %q that it was not asked about", a.cfg.Name, pcm.Clean(s.GetId(), 32))
		}
		if math.IsNaN(s.Score) || math.IsInf(s.Score, 0) {
			return nil, pcm.Errorf(pcm.Internal, "plug-in %s gives a candidate the score %v", a.cfg.Name, s.Score)
		}
		scores[i] = adapters.Score{Score: s.Score, Reason: pcm.Clean(s.Reason, maxRankReason)}
	}
	return scores, nil
}
