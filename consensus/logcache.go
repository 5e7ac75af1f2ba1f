package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// logCache keeps the newest entries of Raft's log in memory, for followers and
// for Apply: together with MaxAppendEntries it doubles throughput. Unlike
// raft.LogCache it is bounded in bytes as well; an entry may have a MiB.
type logCache struct {
	raft.LogStore
	storing func(before uint64, logs []*raft.Log) // told of each write that follows a cached entry, whose term is before; nil: nobody is
	stored  func(error)                           // told how each write ended; nil: nobody is

	mu    sync.RWMutex
	ring  []*raft.Log // by index modulo its length, which grows up to slots
	slots int
	low   uint64 // no lower index is cached
	high  uint64 // newest cached index; 0: nothing is cached
	bytes int
	most  int

	replace func(low, high uint64) error // may refuse to remove entries; nil: never
}

// Bounds of the cache.
const (
	cacheEntries = 8192
	cacheLeast   = 64 // of which so many are room from the beginning
	cacheBytes   = 24 << 20
)

func newLogCache(store raft.LogStore, entries, bytes int) *logCache {
	return &logCache{LogStore: store, ring: make([]*raft.Log, min(entries, cacheLeast)), slots: entries, most: bytes}
}

func (c *logCache) slot(index uint64) **raft.Log { return &c.ring[index%uint64(len(c.ring))] }

func sizeOfLog(l *raft.Log) int { return len(l.Data) + len(l.Extensions) + 128 }

// GetLog implements raft.LogStore.
func (c *logCache) GetLog(index uint64, out *raft.Log) error {
	c.mu.RLock()
	l := *c.slot(index)
	c.mu.RUnlock()
	if l != nil && l.Index == index {
		*out = *l
		return nil
	}
	return c.LogStore.GetLog(index, out)
}

// StoreLog implements raft.LogStore.
func (c *logCache) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (c *logCache) StoreLogs(logs []*raft.Log) error {
	if c.storing != nil && len(logs) > 0 {
		c.mu.RLock()
		before := *c.slot(logs[0].Index - 1)
		c.mu.RUnlock()
		if before != nil && before.Index == logs[0].Index-1 {
			c.storing(before.Term, logs)
		}
	}
	err := c.LogStore.StoreLogs(logs)
	if c.stored != nil {
		c.stored(err)
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if l.Index != c.high+1 {
			c.clear()
			c.low = l.Index
		}
		if *c.slot(l.Index) != nil {
			c.grow()
		}
		if s := c.slot(l.Index); *s != nil {
			c.bytes -= sizeOfLog(*s)
			c.low = (*s).Index + 1
		}
		*c.slot(l.Index) = l
		c.high = l.Index
		c.bytes += sizeOfLog(l)
		for c.bytes > c.most && c.low < c.high {
			if s := c.slot(c.low); *s != nil {
				c.bytes -= sizeOfLog(*s)
				*s = nil
			}
			c.low++
		}
	}
	return nil
}

// grow doubles the ring, unless it is as large as it may be. It needs the lock.
func (c *logCache) grow() {
	if len(c.ring) >= c.slots {
		return
	}
	old := c.ring
	c.ring = make([]*raft.Log, min(2*len(old), c.slots))
	for _, l := range old {
		if l != nil {
			*c.slot(l.Index) = l
		}
	}
}

// IsMonotonic implements raft.MonotonicLogStore for the store below.
func (c *logCache) IsMonotonic() bool {
	m, ok := c.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// clear needs the lock.
func (c *logCache) clear() {
	clear(c.ring)
	c.low, c.high, c.bytes = 0, 0, 0
}

// DeleteRange implements raft.LogStore. What is deleted at the old end falls
// out of the cache by itself; at the new end, all is forgotten.
func (c *logCache) DeleteRange(low, high uint64) error {
	if c.replace != nil {
		if err := c.replace(low, high); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if high >= c.low {
		c.clear()
	}
	c.mu.Unlock()
	return c.LogStore.DeleteRange(low, high)
}
