package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
)

// Timing of retention: it is looked at 64 times within the time that records are kept, within these bounds.
const (
	retainLeast = 200 * time.Millisecond
	retainMost  = 30 * time.Second
	retainNone  = 5 * time.Second  // how often it is looked whether the cell has agreed on a time
	retainRetry = 30 * time.Second // after a removal that failed, for longer times to keep
)

// retention removes what the cell no longer keeps, each peer its own copy, after it
// was exported to this peer's archive. What makes that possible, bases, the leader proposes.
type retention struct {
	n       *Node
	archive *LedgerArchive // nil: this peer has none, and removes nothing

	mu      sync.Mutex
	due     uint64 // records that should be gone
	problem string // why they are not
}

// baseItems is how many jobs, tasks and trades may be open for a base to be made at once:
// the cell applies nothing while the state is encoded, about 0.2 s for so many.
const baseItems = 40_000

// putOff tells whether a base that is due waits for the cell to have less open. It does
// so for one more gap at most, as nothing can be removed meanwhile.
func putOff(last ledger.Base, now, due int64, gap time.Duration, items int) bool {
	return items > baseItems && last.Size > 0 && now < due+gap.Milliseconds()
}

func newRetention(n *Node) *retention {
	r := &retention{n: n}
	if dir := n.cfg.LedgerArchive; dir != "" {
		a := NewLedgerArchive(dir, n.id.Mesh.Cell)
		r.archive = &a
	}
	return r
}

func (r *retention) run(ctx context.Context) error {
	for {
		keep := r.keep()
		wait := retainNone
		if keep > 0 {
			wait = min(max(keep/64, retainLeast), retainMost)
		}
		if !pause(ctx, wait) {
			return nil
		}
		if r.keep() == 0 {
			r.note(0, "")
			continue
		}
		if err := r.makeBase(ctx); err != nil && ctx.Err() == nil {
			r.n.log.Debug("no base can be made yet", "reason", err)
		}
		if r.remove(ctx) && keep > time.Hour && !pause(ctx, retainRetry) {
			return nil
		}
	}
}

func (r *retention) keep() (keep time.Duration) {
	r.n.cell.View(func() { keep = r.n.state.Keep() })
	return keep
}

// makeBase has the cell write down its state, if it is time and anything came since.
func (r *retention) makeBase(ctx context.Context) error {
	n := r.n
	if n.cell.Status().Role != consensus.RoleLeader {
		return nil
	}
	due, mine := false, false
	var last ledger.Base
	now := n.cell.LogTime()
	n.cell.View(func() {
		m, ok := n.state.Member(n.self)
		mine = ok && len(m.NoteKey) > 0
		last = n.state.Base()
		records, _ := n.state.Root()
		stamp, ok := n.state.BaseDue()
		due = ok && now >= stamp && records > last.Size+1 && // the base itself is one
			!putOff(last, now, stamp, pcm.BaseGap(n.state.Keep()), n.state.Items())
	})
	if !due || !mine {
		return nil
	}
	try, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := n.must(try, pcm.Op{Base: &pcm.Base{Last: last.Size}})
	return err
}

// remove removes what is past its time. It tells whether that failed.
func (r *retention) remove(ctx context.Context) bool {
	n := r.n
	keep := r.keep()
	if keep == 0 {
		return false // the cell has just agreed to keep everything
	}
	until := n.cell.LogTime() - keep.Milliseconds()
	size := n.cell.Pruned()
	for _, b := range n.cell.Bases() {
		if b.Stamp <= until {
			size = max(size, b.Size/tlog.Width*tlog.Width)
		}
	}
	if r.archive == nil {
		r.note(size-n.cell.Pruned(), "")
		return false
	}
	gone, err := n.cell.Prune(ctx, size, r.archive.write)
	if gone > 0 {
		n.log.Info("records were removed after their time", "records", gone, "archive", r.archive.dir, "kept_from", n.cell.Pruned())
	}
	if err == nil || ctx.Err() != nil {
		r.note(0, "")
		return false
	}
	if r.note(size-n.cell.Pruned(), err.Error()) {
		n.log.Warn("records can't be removed after their time", "reason", err)
	}
	return true
}

// note keeps what is due and not done; it tells whether the reason is news.
func (r *retention) note(due uint64, problem string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := problem != r.problem
	r.due, r.problem = due, problem
	return news
}

// finding says how it stands with what the cell no longer keeps; false: it keeps everything.
func (r *retention) finding() (api.Finding, bool) {
	keep := ""
	r.n.cell.View(func() { keep = r.n.state.Setting(pcm.SettingKeep).Value })
	if keep == "all" {
		return api.Finding{}, false
	}
	r.mu.Lock()
	due, problem := r.due, r.problem
	r.mu.Unlock()
	f := api.Finding{Check: "retention", Status: api.CheckOK, Text: fmt.Sprintf("records are kept for %s; %d were removed here, %d at a time", keep, r.n.cell.Pruned(), tlog.Width)}
	switch {
	case r.archive == nil:
		f.Status = api.CheckWarn
		f.Text = fmt.Sprintf("the cell keeps records for %s, and this peer removes none, as it has no archive to put them in (%d are past their time)", keep, due)
		f.Hint = "set ledger_archive to a folder and start the peer again; or leave it, if it has room for all records"
	case problem != "":
		f.Status = api.CheckWarn
		f.Text = fmt.Sprintf("%d records are past their time and can't be removed: %s", due, problem)
		f.Hint = "see to the archive " + r.archive.dir + ": nothing is removed that is not there"
	}
	return f, true
}

// warnings are those of status: what keeps records from being removed.
func (r *retention) warnings() []string {
	r.mu.Lock()
	due := r.due
	r.mu.Unlock()
	if f, ok := r.finding(); ok && f.Status != api.CheckOK && (due > 0 || r.archive != nil) {
		return []string{f.Text + ": " + f.Hint}
	}
	return nil
}
