package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// How often the disk is looked at, and what is no longer needed swept.
const (
	diskEvery  = 10 * time.Second
	sweepEvery = time.Hour
)

// watchDisk warns before the ledger meets a full disk, and lets go of what no job
// needs any more.
func (n *Node) watchDisk(ctx context.Context) error {
	warned := false
	swept := time.Time{}
	for {
		low := n.diskLow()
		if low != "" && !warned {
			n.log.Error("the disk is nearly full: this peer sells nothing until there is room", "detail", low)
			n.store.Collect()
		}
		if (low != "") != warned {
			warned = low != ""
			n.offer.check()
		}
		if time.Since(swept) > sweepEvery {
			swept = time.Now()
			n.sweep()
		}
		if !pause(ctx, diskEvery) {
			return nil
		}
	}
}

// diskLow says how far the disk is below the reserve; "" if it isn't.
func (n *Node) diskLow() string {
	free, err := diskFree(n.cfg.Dir)
	if err != nil || free >= n.cfg.StoreReserve/2 {
		return ""
	}
	return fmt.Sprintf("%s free in %s, which must keep %s for the ledger: make room, or lower store.reserve", free, n.cfg.Dir, n.cfg.StoreReserve/2)
}

func diskFree(dir string) (pcm.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return pcm.Bytes(st.Bavail) * pcm.Bytes(st.Bsize), nil
}

// sweep unpins what belongs to jobs that ended long ago and to trades that are closed.
func (n *Node) sweep() {
	open := map[pcm.TradeID]bool{}
	jobs := map[pcm.JobID]bool{}
	n.cell.View(func() {
		for _, t := range n.state.Trades() {
			open[t.ID] = true
		}
		for _, j := range n.state.Jobs() {
			jobs[j.ID] = true
		}
	})
	now := n.cell.LogTime()
	for _, owner := range n.store.Owners() {
		if id, ok := strings.CutPrefix(owner, "trade/"); ok && !open[pcm.TradeID(id)] {
			n.unpin(owner)
		}
		job, ok := jobOfOwner(owner)
		if !ok || jobs[job] || n.drivers.has(job) {
			continue
		}
		if j, err := n.archivedJob(job); err == nil && now-j.EndedAt > keepEnded.Milliseconds() {
			n.unpin(owner)
			n.specs.drop(job)
		}
	}
}
