package node

import (
	"context"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// renewIdle is how often a peer renews that neither runs nor drives anything: a
// sign of life for those who choose sellers.
const renewIdle = 15 * time.Second

// renew keeps this peer's leases and driver's terms alive. The lease of what
// runs here counts from when a renewal was sent, and only if it was committed.
func (n *Node) renew(ctx context.Context) error {
	select {
	case <-n.member:
	case <-ctx.Done():
		return nil
	}
	n.reincarnate()
	last := time.Time{}
	for {
		busy := n.drivers.count() > 0
		if running, queued := n.seller.busy(); running+queued > 0 {
			busy = true
		}
		if busy || time.Since(last) >= renewIdle {
			sent, at := adapters.Now(), time.Now()
			try, cancel := context.WithTimeout(ctx, pcm.LeaseFor(0))
			r, err := n.propose(try, pcm.Op{Renew: &pcm.Renew{Incarnation: n.incarnation}})
			cancel()
			if err == nil {
				err = r.First()
			}
			switch {
			case err == nil:
				last = at
				n.renewalIndex.Store(r.Index) // first: who sees the renewal sees its index, or a later one
				n.lastRenewal.Store(int64(sent))
				n.seller.extend(ctx, sent)
			case ctx.Err() != nil:
				return nil
			case len(r.Ops) > 0 && pcm.ErrorCode(err) == pcm.Conflict: // another daemon with this peer's key
				return err
			default:
				n.log.Warn("can't renew leases", "error", err)
			}
		}
		if !pause(ctx, pcm.RenewEvery) {
			return nil
		}
	}
}

// reincarnate makes this start's incarnation greater than every one before it,
// also when the wall clock was set back.
func (n *Node) reincarnate() {
	n.cell.View(func() {
		if m, ok := n.state.Member(n.self); ok {
			n.incarnation = max(n.incarnation, m.Incarnation+1)
		}
	})
}

// renewedAt is when the last committed renewal was sent; 0 if there was none.
func (n *Node) renewedAt() adapters.BootTime { return adapters.BootTime(n.lastRenewal.Load()) }

// count is how many jobs are driven here.
func (ds *drivers) count() int {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return len(ds.jobs)
}
