package process

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// share hands this machine's accelerators out, each to one task at a time.
type share struct {
	kind adapters.Devices

	mu     sync.Mutex
	free   []int // places in kind.Each
	mine   map[adapters.Key][]int
	change chan struct{} // closed and replaced when some become free
}

// newShare takes the most numerous kind: what a pool offers is all alike.
func newShare(all []adapters.Devices) *share {
	s := &share{mine: map[adapters.Key][]int{}, change: make(chan struct{})}
	if len(all) > 0 {
		s.kind = all[0]
	}
	for i := range s.kind.Each {
		s.free = append(s.free, i)
	}
	return s
}

// facts says what there is.
func (s *share) facts(f *supervisor.Facts) {
	if n := len(s.kind.Each); n > 0 {
		f.GPU, f.Accelerator = int64(n), &s.kind.Accelerator
	}
}

// check refuses what could never be had.
func (s *share) check(t adapters.Task) error {
	if n := int64(len(s.kind.Each)); t.Resources.GPU > n {
		return pcm.Errorf(pcm.Refused, "attempt %s asks for %d accelerators, this machine has %d", t.Key, t.Resources.GPU, n)
	}
	return nil
}

// take gets the task its accelerators, when so many are free. The error is that of
// ctx, which ends before. Who asks for many may wait while others that ask for few
// pass: the ledger reserves no more than there are, so the wait is for others' ends.
func (s *share) take(ctx context.Context, t *supervisor.Run) error {
	n := int(t.Resources.GPU)
	for n > 0 {
		s.mu.Lock()
		if len(s.free) >= n {
			s.mine[t.Key] = s.free[:n:n]
			s.free = slices.Clone(s.free[n:])
			s.mu.Unlock()
			return nil
		}
		change := s.change
		s.mu.Unlock()
		t.Report(adapters.Pending, "", "waits for a free accelerator")
		select {
		case <-change:
		case <-t.Stopping:
			return context.Canceled
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// give lets the task use what it took, and tells it which.
func (s *share) give(k adapters.Key, extra *surroundings) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mine[k]) == 0 {
		return
	}
	var ids []string
	extra.devices = slices.Clone(s.kind.Shared)
	for _, i := range s.mine[k] {
		ids = append(ids, s.kind.Each[i].ID)
		for _, node := range s.kind.Each[i].Nodes {
			if !slices.Contains(extra.devices, node) { // slices of one have its file in common
				extra.devices = append(extra.devices, node)
			}
		}
	}
	extra.libs = s.kind.ReadOnly
	if s.kind.Variable != "" {
		extra.env = map[string]string{s.kind.Variable: strings.Join(ids, ",")}
	}
}

// back frees what the task had.
func (s *share) back(k adapters.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mine[k]) == 0 {
		return
	}
	s.free = append(s.free, s.mine[k]...)
	delete(s.mine, k)
	close(s.change)
	s.change = make(chan struct{})
}
