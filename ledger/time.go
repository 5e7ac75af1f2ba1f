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

// Grace that a live attempt has, however diligently its seller renews.
const (
	endGrace   = int64(60_000)    // ms to store outputs, after its time limit, or after it was asked to stop
	queueGrace = int64(3_600_000) // ms to fetch inputs of many GB, after those before it in its trade must have ended
)

// LostAt is the log time at which a live attempt counts as lost: when its
// seller's lease runs out, unless it renews before, or at the attempt's own end.
func (s *State) LostAt(t *Trade, at *Attempt) int64 {
	end, _ := s.endAt(t, at)
	return min(s.leaseAt(t, at), end)
}

// leaseAt is the log time at which the seller of a live attempt counts as gone.
func (s *State) leaseAt(t *Trade, at *Attempt) int64 {
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

// endAt is the log time past which a live attempt is lost whatever its seller
// says, and why: else one that renews and never finishes would hold the buyer's
// money and the task for ever. While a cell has no leader nobody can report, so
// each grace begins anew with a new leader.
func (s *State) endAt(t *Trade, at *Attempt) (int64, loss) {
	end, why := int64(0), lateStart
	if at.StartedAt > 0 {
		end, why = max(at.StartedAt+t.Terms.LimitMS, s.granted)+endGrace, lateEnd
	} else {
		rounds := int64((len(t.Attempts) + t.Terms.Width - 1) / t.Terms.Width)
		end = max(t.AwardedAt+rounds*t.Terms.LimitMS, s.granted) + queueGrace
	}
	if at.Stop != "" {
		if asked := max(at.StopAt, s.granted) + endGrace; asked <= end {
			return asked, lateStop
		}
	}
	return end, why
}

// loss is why time has an attempt lost.
type loss int

const (
	silent loss = iota
	lateStart
	lateEnd
	lateStop
	unresolved
	losses // how many there are
)

func (l loss) String() string {
	return [losses]string{
		silent:     "its seller did not renew the lease: it is down or cut off",
		lateStart:  "its seller neither started nor finished it in all the time that the trade can take",
		lateEnd:    fmt.Sprintf("its seller did not finish it within its time limit and %d s", endGrace/1000),
		lateStop:   fmt.Sprintf("its seller did not end it within %d s of being asked to stop", endGrace/1000),
		unresolved: fmt.Sprintf("its dispute was not resolved within %d days", pcm.DisputeFor/(24*time.Hour)),
	}[l]
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
		a.expireAbroad(j)
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

// expireTrade lets leases, attempts and disputes of one trade run out.
func (a *applying) expireTrade(t *Trade) {
	var lost [losses][]int
	for i, at := range t.All {
		var when int64
		var why loss
		switch {
		case at.State == pcm.AttemptDisputed:
			when, why = at.DisputedAt+pcm.DisputeFor.Milliseconds(), unresolved
		case at.State.Live():
			when, why = a.endAt(t, at)
			if lease := a.leaseAt(t, at); lease <= when {
				when, why = lease, silent
			}
		default:
			continue
		}
		if a.stamp < when {
			a.soon(when)
			continue
		}
		if err := a.move(t, i, at, pcm.AttemptLost); err != nil {
			panic(err) // live and disputed attempts can be lost
		}
		at.Reason, at.Result, at.Charge = why.String(), nil, 0
		a.release(t, 1, 0)
		lost[why] = append(lost[why], i)
	}
	any := false
	for why, tasks := range lost {
		if len(tasks) == 0 {
			continue
		}
		any = true
		a.fact(pcm.Fact{Lost: &pcm.Lost{Trade: t.ID, Tasks: pcm.SpansOf(tasks), Reason: loss(why).String()}}, t.Terms.Job, t, t.Terms.Seller, a.driver(t))
	}
	if any {
		a.close(t)
	}
}

// regrant gives every lease and every driver's term its full length again: a new
// leader can't know what it did not see. It tells whether anything depends on it.
func (a *applying) regrant() bool {
	worth := false
	for _, m := range a.Members() {
		m.RenewedAt = a.stamp
		worth = worth || m.Live > 0 || m.Drives > 0
	}
	if worth { // else there is no attempt that it could matter for, and no record of it
		a.granted = a.stamp
	}
	return worth
}
