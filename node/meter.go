package node

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// meterEvery is how often the use of long attempts is committed: so much of it
// at most is unrecorded when a seller is lost.
const meterEvery = time.Minute

// meter commits the use so far of attempts that run for long.
func (s *seller) meter(ctx context.Context) error {
	for pause(ctx, meterEvery) {
		for name, a := range s.adapters {
			try, cancel := context.WithTimeout(ctx, meterEvery)
			list, err := a.List(try)
			cancel()
			if err != nil {
				s.n.log.Warn("can't meter what a back end runs", "adapter", name, "error", err)
				continue
			}
			if ops := s.metered(list); len(ops) > 0 {
				if err := s.tell(ctx, ops); err != nil && ctx.Err() == nil {
					s.n.log.Warn("can't commit the use of running tasks", "error", err)
				}
			}
		}
	}
	return nil
}

// metered makes the ops for attempts that have run long enough.
func (s *seller) metered(list []adapters.Status) []pcm.Op {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ops []pcm.Op
	for _, st := range list {
		x := s.trades[st.Trade]
		if st.State != adapters.Running || x == nil || x.running[st.Index] == nil || st.Attempt != x.terms.Attempt || st.Usage.Wall() < meterEvery {
			continue
		}
		ops = append(ops, pcm.Op{Meter: &pcm.Meter{Trade: st.Trade, Index: st.Index, Usage: st.Usage}})
	}
	return ops
}
