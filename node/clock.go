package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
)

// protoClock tells what time it is at a peer, for those who doubt their own clock.
const protoClock protocol.ID = "/pcm/clock/1.0.0"

// maxClocks bounds how many peers are asked for the time at once.
const maxClocks = 8

func serveClock(context.Context, pcm.Passport, []byte) ([]byte, error) {
	return pcm.Marshal(time.Now().UnixMilli())
}

// clockOffset is how far this machine's clock is ahead of the clocks of connected
// peers: the median of those that answer, and how many do.
func (n *Node) clockOffset(ctx context.Context) (ahead time.Duration, answers int) {
	found, asked := make(chan *time.Duration, maxClocks), 0
	for _, p := range n.mesh.Peers() {
		if !p.Connected || asked == maxClocks {
			continue
		}
		asked++
		go func() {
			began := time.Now()
			raw, err := n.mesh.Call(ctx, p.Passport.Peer, protoClock, nil)
			var at int64
			if err != nil || pcm.Unmarshal(raw, &at) != nil {
				found <- nil
				return
			}
			took := time.Since(began)
			off := began.Add(took / 2).Sub(time.UnixMilli(at))
			found <- &off
		}()
	}
	var all []time.Duration
	for range asked {
		if off := <-found; off != nil {
			all = append(all, *off)
		}
	}
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], len(all)
}
