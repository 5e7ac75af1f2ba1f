package artifact

import (
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// touch notes that a tree was used.
func (s *Store) touch(name sum) {
	now := s.now()
	s.mu.Lock()
	t := s.trees[name]
	stamp := false
	if t != nil {
		t.used = now
		if stamp = now.Sub(t.stamped) > time.Minute && !t.plain; stamp {
			t.stamped = now
		}
	}
	s.mu.Unlock()
	if stamp {
		os.Chtimes(s.blobPath(dirTrees, name), now, now) // if it fails, the tree looks older: no harm
	}
}

// Collect deletes what nobody needs until the store is within its quota and the
// disk has its reserve free. It returns how many bytes it freed. Storing content
// collects by itself; call this when others may have filled the disk.
func (s *Store) Collect() pcm.Bytes { return pcm.Bytes(s.collect(0)) }

// collect makes room for need more bytes if it can. In this order go: trees laid
// out for tasks that no task holds and nobody has pinned; pieces of nothing;
// artifacts without a pin, the one used longest ago first.
func (s *Store) collect(need int64) (freed int64) {
	<-s.scanned
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	s.mu.Lock()
	goal := s.short(need)
	if goal > 0 && s.quota > 0 {
		goal += s.quota / 32 // so that the next piece doesn't collect again
	}
	s.mu.Unlock()
	if goal <= 0 {
		return 0
	}
	freed = s.dropShared(goal)
	if freed < goal {
		freed += s.sweep(goal - freed)
	}
	s.log.Info("collected garbage in the artifact store", "freed", freed, "wanted", goal)
	return freed
}

// sweep deletes artifacts until goal bytes are free; gcMu is held.
func (s *Store) sweep(goal int64) (freed int64) {
	type candidate struct {
		name sum
		treeInfo
	}
	var must, may []candidate
	s.mu.Lock()
	budget := s.used - goal
	s.recent = map[sum]struct{}{}
	defer func() { s.mu.Lock(); s.recent = nil; s.mu.Unlock() }()
	for name, t := range s.trees {
		c := candidate{name, *t}
		if s.needed(name) {
			must = append(must, c)
		} else {
			may = append(may, c)
		}
	}
	for _, sh := range s.shared {
		budget -= sh.cost // those stay; the budget is for trees and chunks
	}
	held := map[sum]struct{}{} // by sessions
	for ses := range s.sessions {
		for b := range ses.blobs {
			held[b] = struct{}{}
		}
	}
	s.mu.Unlock()
	slices.SortFunc(may, func(a, b candidate) int { return b.used.Compare(a.used) })

	marked, kept := held, int64(0)
	for b := range held {
		if info, err := os.Lstat(s.blobPath(dirChunks, b)); err == nil {
			kept += cost(info.Size())
		}
	}
	mark := func(c candidate, limit int64) bool {
		add := c.cost
		var fresh []sum
		if !c.plain {
			t, err := s.tree(c.name)
			if err != nil {
				return false
			}
			seen := map[sum]struct{}{}
			s.blobs(t, func(b sum, size int) error {
				_, m := marked[b]
				_, again := seen[b]
				if !m && !again {
					seen[b] = struct{}{}
					fresh = append(fresh, b)
					add += cost(int64(size))
				}
				return nil
			})
		}
		if kept+add > limit {
			return false
		}
		kept += add
		for _, b := range fresh {
			marked[b] = struct{}{}
		}
		return true
	}
	for _, c := range must {
		mark(c, 1<<62)
	}
	keep := len(may)
	for i, c := range may {
		if !mark(c, budget) {
			keep = i
			break
		}
	}
	for _, c := range may[keep:] {
		s.mu.Lock()
		if !s.needed(c.name) {
			freed += s.dropTree(c.name)
		}
		s.mu.Unlock()
	}
	s.eachBlob(dirChunks, func(b sum, _ fs.FileInfo) {
		if _, ok := marked[b]; ok {
			return
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.recent[b]; !ok && !s.inSession(b, nil) {
			freed += s.dropFile(dirChunks, b)
		}
	})
	s.repack()
	return freed
}

// needed tells whether a tree is pinned or being worked on; mu is held.
func (s *Store) needed(name sum) bool {
	if s.pins.count[name] > 0 {
		return true
	}
	if _, ok := s.recent[name]; ok {
		return true
	}
	for ses := range s.sessions {
		if ses.trees[name] {
			return true
		}
	}
	return false
}
