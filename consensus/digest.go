package consensus

import (
	"bytes"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// Digester is a [Machine] whose states can be compared: the leader has all
// replicas hash theirs at the same entry now and then, and tells its hash in a
// later one. Equal states have equal digests.
type Digester interface {
	Digest() ([32]byte, error)
	// Level is the level of the machine's rules; entries carry digests from 2 on.
	Level() int
}

// When states are compared.
const (
	digestEvery = 256 // entries
	digestShare = 100 // hashing takes no more than one part in so many of the time
	digestLevel = 2
	maxMarks    = 4 // hashes that a replica remembers
)

// digests are the hashes that this replica took of its state.
type digests struct {
	mu    sync.Mutex
	marks []pcm.StateDigest
	at    time.Time     // of the last one
	took  time.Duration // it
	told  uint64        // mark up to which the leader's hash is in the log, or on its way
}

// compare takes a mark, or holds the leader's hash against the one taken here.
// It is called before the entry is applied; its error halts the replica.
func (f *fsm) compare(index uint64, d *pcm.StateDigest) error {
	m, ok := f.machine.(Digester)
	if !ok {
		return nil
	}
	s := &f.digests
	if len(d.Sum) == 0 {
		began := time.Now()
		f.mu.Lock()
		sum, err := m.Digest()
		f.mu.Unlock()
		if err != nil {
			return pcm.Errorf(pcm.Internal, "the state can't be hashed: %w", err)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.marks) == maxMarks {
			s.marks = s.marks[1:]
		}
		s.marks = append(s.marks, pcm.StateDigest{Index: index, Sum: sum[:]})
		s.at, s.took = time.Now(), time.Since(began)
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = max(s.told, d.Index)
	for _, mark := range s.marks {
		if mark.Index == d.Index && !bytes.Equal(mark.Sum, d.Sum) {
			return pcm.Errorf(pcm.Internal, "before entry %d the state here was not that of the leader: its digest is %x, the leader's %x", d.Index, mark.Sum, d.Sum)
		}
	}
	return nil // one from before a restart or a restored snapshot is not known here
}

// forget drops what was taken of a state that was replaced.
func (s *digests) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = nil
}

// next is what the leader's next entry says of states, made since entries after
// the last mark; nil: nothing.
func (f *fsm) nextDigest(since int) *pcm.StateDigest {
	m, ok := f.machine.(Digester)
	if !ok {
		return nil
	}
	s := &f.digests
	s.mu.Lock()
	if n := len(s.marks); n > 0 && s.marks[n-1].Index > s.told {
		d := s.marks[n-1]
		s.told = d.Index
		s.mu.Unlock()
		return &d
	}
	due := since >= f.c.cfg.digestEvery && time.Since(s.at) >= digestShare*s.took
	s.mu.Unlock()
	if !due {
		return nil
	}
	level := 0
	f.c.View(func() { level = m.Level() })
	if level < digestLevel {
		return nil
	}
	return &pcm.StateDigest{}
}
