package consensus

import (
	"sync"
	"time"
)

// logClock estimates the cell's log time between entries, for those who propose:
// the last stamp that is known of the newest term, and the monotonic time since.
type logClock struct {
	mu    sync.Mutex
	term  uint64
	stamp int64
	at    time.Time // carries the monotonic clock
}

// observe takes in a stamp of a term: from an applied entry, or from the leader
// itself. Within a term log time only grows; a new leader's replaces what was
// guessed before, even if it is earlier.
func (c *logClock) observe(term uint64, stamp int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if term < c.term || term == c.term && stamp <= c.now() {
		return
	}
	c.term, c.stamp, c.at = term, stamp, time.Now()
}

// now needs the lock.
func (c *logClock) now() int64 {
	if c.at.IsZero() {
		return 0
	}
	return c.stamp + time.Since(c.at).Milliseconds()
}

func (c *logClock) read() (term uint64, stamp int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.term, c.now()
}

// stamper hands out the stamps of one leadership: monotonic time on top of what
// log time was when it began, by the last stamp that was applied and the time
// since this peer applied it. So log time stands still only where nobody who was
// there leads next: when a cell of one peer restarts. The wall clock is read once in
// a cell's life, when it is founded.
type stamper struct {
	base int64
	from time.Time
	last int64
}

func newStamper(last int64, wall time.Time) *stamper {
	if last == 0 {
		last = wall.UnixMilli()
	}
	return &stamper{base: last, from: time.Now(), last: last}
}

func (s *stamper) next() int64 {
	s.last = max(s.last, s.base+time.Since(s.from).Milliseconds())
	return s.last
}
