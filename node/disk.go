package node

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// How often the disk is looked at, and what is no longer needed swept.
const (
	diskEvery  = 10 * time.Second
	sweepEvery = time.Hour
	sweepAgain = time.Minute // after one that was not possible
)

// watchDisk warns before the ledger meets a full disk, and lets go of what no job
// needs any more.
func (n *Node) watchDisk(ctx context.Context) error {
	warned := false
	swept := time.Time{}
	strange := map[pcm.JobID]time.Time{}
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
			if err := n.sweep(ctx, strange); err != nil && ctx.Err() == nil {
				n.log.Info("can't sweep what no job needs yet", "reason", err)
				swept = swept.Add(sweepAgain - sweepEvery)
			}
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

// sweep lets go of what belongs to jobs that ended long ago and to trades that
// are closed, and of what belongs to jobs that nobody knows: strange says since
// when, and is carried from one sweep to the next.
func (n *Node) sweep(ctx context.Context, strange map[pcm.JobID]time.Time) error {
	// What is listed before the ledger is read was committed or begun by then.
	owners := n.store.Owners()
	held := n.specs.stored()
	sync, cancel := context.WithTimeout(ctx, diskEvery)
	defer cancel()
	if err := n.cell.Sync(sync); err != nil {
		return err
	}
	complete, _, _ := n.cell.History()
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
	for _, owner := range owners {
		if id, ok := tradeOfOwner(owner); ok && !open[id] {
			n.unpin(owner)
		}
		if job, ok := jobOfOwner(owner); ok {
			held[job] = true
		}
	}
	now := time.Now()
	for job := range strange {
		if !held[job] {
			delete(strange, job)
		}
	}
	for job := range held {
		if jobs[job] || n.drivers.has(job) {
			delete(strange, job)
			continue
		}
		over := false
		switch j, err := n.archivedJob(job); {
		case err == nil:
			over = n.cell.LogTime()-j.EndedAt > keepEnded.Milliseconds()
		case pcm.ErrorCode(err) == pcm.NotFound && complete:
			since, seen := strange[job]
			if !seen {
				strange[job] = now
			}
			over = seen && now.Sub(since) >= earlyFor
		}
		if over {
			delete(strange, job)
			n.unpin(jobOwner(job))
			n.specs.drop(job)
		}
	}
	n.specs.early.expire(now)
	return nil
}
