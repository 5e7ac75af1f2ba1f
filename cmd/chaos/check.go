package main

import (
	"bytes"
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
)

// verdict is what was found after a run.
type verdict struct {
	problems  problems
	records   uint64
	ledger    []pcm.Record
	replicas  int
	checked   int // operations found linearizable
	lost      int // acknowledged commands that are not in the ledger
	twice     int // commands, results or payments that are there more than once
	lostTasks int // attempts that the ledger calls lost
	losses    []loss
}

// loss is attempts that a cell calls lost from a log time on.
type loss struct {
	at       int64
	attempts int
}

func (v *verdict) problem(of promise, format string, args ...any) {
	v.problems.add(of, format, args...)
}

// settleDown ends all faults and waits until every peer has applied the same and can read
// all of its history.
func (n *nemesis) settleDown(ctx context.Context) error {
	if err := n.calm(); err != nil {
		return err
	}
	if err := n.rest(ctx); err != nil {
		return err
	}
	mended, err := n.proofread()
	if err != nil || !mended {
		return err
	}
	return n.rest(ctx)
}

// calm ends all faults.
func (n *nemesis) calm() error {
	for _, p := range n.cell.all() {
		p.signal(syscall.SIGCONT)
		n.cell.disk.of(p.name).set(func(f *folder) { f.failing, f.full, f.slow = false, false, 0 })
		if err := n.mend(p); err != nil {
			return err
		}
		if p.isGone() {
			continue
		}
		n.between(p, nil)
		n.setClock(p, 0)
	}
	return nil
}

// rest waits until every peer has applied the same.
func (n *nemesis) rest(ctx context.Context) error {
	var last string
	return await(ctx, patience, n.cell.name+" has come to rest", func() error {
		last = ""
		var leader Health
		var all []Health
		for _, p := range n.cell.all() {
			if !p.runs() {
				n.note("peers that stopped by themselves later")
				if err := n.mend(p); err != nil {
					return err
				}
				return fmt.Errorf("%s did not run", p.name)
			}
			h, err := p.health(false)
			if err != nil {
				return err
			}
			last += fmt.Sprintf(" %s: %s, applied %d of %d, complete %v;", p.name, h.Role, h.Applied, h.Commit, h.Complete)
			if h.Role == consensus.RoleLeader {
				leader = h
			}
			all = append(all, h)
		}
		for _, h := range all {
			if leader.Leader == "" || h.Applied < leader.Commit || h.Applied != leader.Applied || !h.Complete || h.Leader != leader.Leader {
				return fmt.Errorf("they differ:%s", last)
			}
		}
		if len(leader.Voters)%2 == 0 {
			return fmt.Errorf("%d voters", len(leader.Voters))
		}
		return nil
	})
}

// check holds a cell that has come to rest against what its clients know.
func (c *clients) check(ctx context.Context) verdict {
	var v verdict
	c.mu.Lock()
	defer c.mu.Unlock()
	v.problems = append(v.problems, c.violations...)

	// All replicas have the same records, state and head.
	type replica struct {
		name    string
		records [][]byte
		h       Health
	}
	var first *replica
	for _, p := range c.cell.all() {
		r := &replica{name: p.name}
		var err error
		if r.h, err = p.health(true); err != nil {
			v.problem(isBack, "%s does not answer: %v", p.name, err)
			continue
		}
		if r.h.Broken != "" {
			v.problem(isSound, "%s: an invariant does not hold: %s", p.name, r.h.Broken)
		}
		if r.records, err = p.records(); err != nil {
			v.problem(isWhole, "%s can't read its history: %v", p.name, err)
		}
		v.replicas++
		if first == nil {
			first = r
			continue
		}
		if len(r.records) != len(first.records) {
			v.problem(isWhole, "%s has %d records, %s has %d", r.name, len(r.records), first.name, len(first.records))
		}
		for i := range min(len(r.records), len(first.records)) {
			if !bytes.Equal(r.records[i], first.records[i]) {
				v.problem(isSame, "record %d of %s is not that of %s", i, r.name, first.name)
				break
			}
		}
		if r.h.Applied == first.h.Applied && r.h.Digest != first.h.Digest {
			v.problem(isSame, "the state of %s after entry %d is not that of %s", r.name, r.h.Applied, first.name)
		}
		if r.h.Records == first.h.Records && r.h.Root != first.h.Root {
			v.problem(isSame, "the head of %s at %d records is not that of %s", r.name, r.h.Records, first.name)
		}
	}
	if first == nil {
		v.problem(isBack, "no replica is left")
		return v
	}
	v.records = uint64(len(first.records))

	c.heads.check(first.records, &v.problems)

	// The records follow from each other: signatures, transitions, invariants.
	got, _ := ledger.Verify(c.cell.genesis, func(yield func([]byte, error) bool) {
		for _, r := range first.records {
			if !yield(r, nil) {
				return
			}
		}
	})
	if got.Bad != nil {
		v.problem(isSound, "record %d: %s", *got.Bad, got.Problem)
		return v
	}
	if first.h.Records == got.Records && first.h.Root != got.Root {
		v.problem(isSound, "the records' head is not the one that %s has", first.name)
	}

	// What was acknowledged is there, once, as it was said.
	seen := map[pcm.CommandID]pcm.Record{}
	for _, data := range first.records {
		var r pcm.Record
		if err := pcm.Unmarshal(data, &r); err != nil {
			v.problem(isSound, "a record can't be read: %v", err)
			continue
		}
		v.ledger = append(v.ledger, r)
		for _, f := range r.Facts {
			if f.Lost != nil {
				v.lostTasks += f.Lost.Tasks.Len()
				v.losses = append(v.losses, loss{r.Stamp, f.Lost.Tasks.Len()})
			}
		}
		if r.Command == nil {
			continue
		}
		var cmd pcm.Command
		if err := pcm.Unmarshal(r.Command.Payload, &cmd); err != nil {
			v.problem(isSound, "record %d: %v", r.Number, err)
			continue
		}
		if old, ok := seen[cmd.ID]; ok {
			v.twice++
			v.problem(isOnce, "command %s is in record %d and in record %d", cmd.ID, old.Number, r.Number)
		}
		seen[cmd.ID] = r
	}
	for id, k := range c.acks {
		r, ok := seen[id]
		leaves := k.done > 0 && k.what != "renew" && k.what != "forbidden"
		switch {
		case leaves && !ok:
			v.lost++
			v.problem(isKept, "the %s %s was acknowledged at entry %d and is in no record", k.what, id, k.index)
		case ok && (r.Index != k.index || r.Done != k.done):
			v.problem(isTold, "the %s %s was acknowledged at entry %d with %d operations, record %d has entry %d with %d", k.what, id, k.index, k.done, r.Number, r.Index, r.Done)
		}
	}

	// Who owes what, as the clients know it.
	owed := map[payment]pcm.Micro{}
	for _, o := range first.h.Owed {
		owed[payment{o.Buyer, o.Seller}] += o.Amount
	}
	for k, want := range c.paid {
		if have := owed[k]; have < want.least || have > want.most {
			v.twice++
			v.problem(isOwed, "a buyer owes %s, and its settlements come to at least %s and at most %s", have, want.least, want.most)
		}
		delete(owed, k)
	}
	for _, have := range owed {
		if have != 0 {
			v.problem(isOwed, "a buyer owes %s that nobody settled", have)
		}
	}

	problem, checked := linearizable(c.history, 30*time.Second)
	if problem != "" {
		v.problem(isLinear, "%s", problem)
	}
	v.checked = checked
	return v
}
