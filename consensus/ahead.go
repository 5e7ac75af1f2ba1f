package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// ahead sends a leader's entries to its followers while its own disk still writes
// them. Raft syncs first and sends then: for a caller who waits for one command,
// two disks one after the other.
//
// It is as safe, as the order of the two never mattered (Raft's thesis, 10.2.1):
// a leader may send what it has not stored, and must only not count itself among
// those who have. It doesn't: Raft counts itself when its store has returned, and
// gets followers' answers only to what it has asked for, which is later. If it
// dies in between, followers hold an entry of a term in which there is no leader
// any more, as if it had died a moment later; it comes back without the entry,
// and never leads in that term again.
type ahead struct {
	mu        sync.Mutex
	pipelines map[*steadyPipeline]struct{}
	committed func() uint64 // nil: not known yet
}

func newAhead() *ahead { return &ahead{pipelines: map[*steadyPipeline]struct{}{}} }

func (a *ahead) add(p *steadyPipeline) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pipelines[p] = struct{}{}
	p.over = func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.pipelines, p)
	}
}

// storing is told of entries that are about to be stored, and of the term of the
// one before them. Pipelines are there only on a leader. Where some are left of
// an earlier term, their term is not that of the entries, or the entries are those
// that this peer has made as its leader.
func (a *ahead) storing(before uint64, logs []*raft.Log) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.pipelines) == 0 || a.committed == nil {
		return
	}
	for _, l := range logs {
		if l.Type != raft.LogCommand || l.Term != logs[0].Term {
			return // configurations go Raft's way
		}
	}
	req := &raft.AppendEntriesRequest{
		Term: logs[0].Term, PrevLogEntry: logs[0].Index - 1, PrevLogTerm: before,
		Entries: logs, LeaderCommitIndex: min(a.committed(), logs[0].Index-1),
	}
	for p := range a.pipelines {
		select {
		case p.first <- req: // each makes its own of it
		default: // the one before is still being sent: Raft sends this one
		}
	}
}

// know sets who tells up to where entries are committed.
func (a *ahead) know(committed func() uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.committed = committed
}
