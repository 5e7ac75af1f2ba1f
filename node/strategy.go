package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/placement"
)

const (
	rankLimit = time.Second      // for a plug-in to rank the sites of one step
	rankAgain = 10 * time.Second // after which one that failed is asked again
)

// rankers remembers which plug-ins failed to rank, so that no round of placement waits for them anew.
type rankers struct {
	mu     sync.Mutex
	failed map[string]rankFailure
}

type rankFailure struct {
	at  time.Time
	why string
}

// ranker is the plug-in of this node that a strategy names.
func (n *Node) ranker(plugin string) (adapters.Ranker, error) {
	r, ok := n.seller.adapters[plugin].(adapters.Ranker)
	if !ok {
		return nil, pcm.Errorf(pcm.Invalid, "this peer has no plug-in %q that ranks sites", plugin)
	}
	return r, nil
}

// checkStrategy refuses a strategy that this peer can't place by.
func (n *Node) checkStrategy(name string) error {
	if _, err := placement.FindStrategy(name); err != nil {
		return err
	}
	if plugin, ok := placement.ByPlugin(name); ok {
		_, err := n.ranker(plugin)
		return err
	}
	return nil
}

// rank judges the sites. Where the strategy is a plug-in's, it orders those that fit; if
// it can't be asked, or not in time, they stay in the usual order, and note says why.
func (n *Node) rank(ctx context.Context, r placement.Request, job pcm.JobID, tasks int, sites []placement.Site) (ranked []placement.Candidate, note string, err error) {
	ranked, err = placement.Rank(r, sites)
	plugin, ok := placement.ByPlugin(r.Strategy)
	if err != nil || !ok {
		return ranked, "", err
	}
	n.rankers.mu.Lock()
	before, failed := n.rankers.failed[plugin]
	n.rankers.mu.Unlock()
	why := before.why
	if !failed || time.Since(before.at) > rankAgain {
		why = ""
		if err := n.regrade(ctx, plugin, r, job, tasks, ranked); err != nil {
			why = pcm.AsError(err).Message
			n.log.Warn("a plug-in did not rank sites: placing by the usual strategy", "plugin", plugin, "job", job, "err", err)
		}
		n.rankers.mu.Lock()
		if why == "" {
			delete(n.rankers.failed, plugin)
		} else if len(n.rankers.failed) < 1000 {
			if n.rankers.failed == nil {
				n.rankers.failed = map[string]rankFailure{}
			}
			n.rankers.failed[plugin] = rankFailure{time.Now(), why}
		}
		n.rankers.mu.Unlock()
	}
	if why != "" {
		note = fmt.Sprintf("placed by cheapest instead of %s: %s", r.Strategy, why)
	}
	return ranked, note, nil
}

// regrade asks a plug-in for the order of the candidates that fit.
func (n *Node) regrade(ctx context.Context, plugin string, r placement.Request, job pcm.JobID, tasks int, ranked []placement.Candidate) error {
	by, err := n.ranker(plugin)
	if err != nil {
		return err
	}
	fit := 0
	for fit < len(ranked) && ranked[fit].OK() {
		fit++
	}
	if fit == 0 {
		return nil
	}
	c := adapters.Choice{Job: job, Step: r.Step.Name, Tasks: tasks, Each: r.Each, Limit: r.Limit}
	for _, s := range ranked[:fit] {
		labels := maps.Clone(s.Labels)
		if labels == nil {
			labels = pcm.Labels{}
		}
		maps.Copy(labels, s.Pool.Labels)
		c.Sites = append(c.Sites, adapters.ChoiceSite{
			Peer: s.Name, Pool: s.Pool.ID, Adapter: s.Pool.Adapter, Labels: labels, Capacity: s.Pool.Capacity, Free: s.Free, Room: s.Room, Cost: s.Cost,
		})
	}
	ctx, cancel := context.WithTimeout(ctx, rankLimit)
	defer cancel()
	scores, err := by.Rank(ctx, c)
	if err != nil {
		return err
	}
	for i := range ranked[:fit] {
		s, ok := scores[i]
		if !ok {
			ranked[i].Filter, ranked[i].Reason, ranked[i].Room = "strategy", "plug-in "+plugin+" does not want it", 0
			continue
		}
		ranked[i].Score = s.Score
		if ranked[i].Reason == "" {
			ranked[i].Reason = s.Reason
		}
	}
	slices.SortStableFunc(ranked, func(a, b placement.Candidate) int {
		if a.OK() != b.OK() {
			if a.OK() {
				return -1
			}
			return 1
		}
		if !a.OK() {
			return 0
		}
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Pool.ID, b.Pool.ID))
	})
	return nil
}
