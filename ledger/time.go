package ledger

import (
	"fmt"
	"time"

	"github.com/jointcloud/pcm"
)

// leaseMS is lease and margin of an attempt that had run for ranMS at its seller's last renewal.
func leaseMS(ranMS int64) int64 {
	return (pcm.LeaseFor(time.Duration(ranMS)*time.Millisecond) + pcm.LeaseMargin).Milliseconds()
}

// LostAt is the log time at which a live attempt counts as lost unless its
// seller renews before.
func (s *State) LostAt(t *Trade, at *Attempt) int64 {
	from := t.AwardedAt
	if m := s.members[t.Terms.Seller]; m != nil {
		from = max(from, m.RenewedAt)
	}
	var ran int64
	if at.StartedAt > 0 {
		from = max(from, at.StartedAt)
		ran = from - at.StartedAt
	}
	return from + leaseMS(ran)
}

// expire lets leases and deadlines run out.
func (a *applying) expire() {
	if a.stamp < a.due {
		return
	}
	a.due = never
	for _, t := range a.Trades() {
		if a.full() {
			return
		}
		a.expireTrade(t)
	}
	for _, j := range a.Jobs() {
		if a.full() {
			return
		}
		if j.OverdueAt == 0 || j.Stopping || j.EndedAt != 0 {
			continue
		}
		if a.stamp < j.OverdueAt {
			a.soon(j.OverdueAt)
			continue
		}
		a.fact(pcm.Fact{Overdue: &pcm.Overdue{Job: j.ID}}, j.ID, nil, j.Driver, j.Submitter)
		a.halt(j, fmt.Sprintf("its deadline of %s is over", time.Duration(j.OverdueAt-j.SubmittedAt)*time.Millisecond))
	}
}

// maxFacts bounds what one entry lets expire, in bytes of facts, more or less,
// so that the record stays within pcm.MaxRecord.
const maxFacts = 40 << 10

// full tells whether no more may expire in this entry; the rest is then due with
// the next one. Not with one of the same stamp: replaying the records, each as
// an entry of its own, has to come to the same.
func (a *applying) full() bool {
	size := 0
	for _, f := range a.facts {
		size += 512
		if f.Lost != nil {
			size += 12 * len(f.Lost.Tasks)
		}
	}
	if size < maxFacts {
		return false
	}
	a.soon(a.stamp + 1)
	return true
}

// expireTrade lets leases and disputes of one trade run out.
func (a *applying) expireTrade(t *Trade) {
	const silent = "its seller did not renew the lease: it is down or cut off"
	unresolved := fmt.Sprintf("its dispute was not resolved within %d days", pcm.DisputeFor/(24*time.Hour))
	lost := a.loseAfter(t, silent, func(at *Attempt) (int64, bool) { return a.LostAt(t, at), at.State.Live() })
	lapsed := a.loseAfter(t, unresolved, func(at *Attempt) (int64, bool) {
		return at.DisputedAt + pcm.DisputeFor.Milliseconds(), at.State == pcm.AttemptDisputed
	})
	if lost || lapsed {
		a.close(t)
	}
}

// loseAfter calls attempts lost whose end has come. end tells when that is, and
// whether it concerns an attempt at all. It tells whether there were any.
func (a *applying) loseAfter(t *Trade, reason string, end func(*Attempt) (int64, bool)) bool {
	var lost []int
	for i, at := range t.All {
		when, concerns := end(at)
		if !concerns {
			continue
		}
		if a.stamp < when {
			a.soon(when)
			continue
		}
		if err := a.move(t, i, at, pcm.AttemptLost); err != nil {
			panic(err) // live and disputed attempts can be lost
		}
		at.Reason, at.Result = reason, nil
		a.release(t, 1, 0)
		lost = append(lost, i)
	}
	if len(lost) == 0 {
		return false
	}
	a.fact(pcm.Fact{Lost: &pcm.Lost{Trade: t.ID, Tasks: pcm.SpansOf(lost), Reason: reason}}, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	return true
}

// regrant gives every lease and every driver's term its full length again: a new
// leader can't know what it did not see. It tells whether anything depends on it.
func (a *applying) regrant() bool {
	worth := false
	for _, m := range a.Members() {
		m.RenewedAt = a.stamp
		worth = worth || m.Live > 0 || m.Drives > 0
	}
	return worth
}
