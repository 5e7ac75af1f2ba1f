package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// Specs come early: a submitter hands them to those who may take over, and a
// driver to its sellers, before their ledgers show the job. Anybody could do that
// with jobs that never come to be, so what one peer may leave here is bounded.
const (
	earlySpecs = 1024
	earlyBytes = 16 << 20
	earlyFor   = time.Hour        // what is in no ledger by then goes
	jobSoon    = 10 * time.Second // by then the ledger here shows a job that is being submitted
)

// early are the specs of jobs that the ledger did not have when they came, by who
// sent them.
type early struct {
	mu sync.Mutex
	by map[pcm.PeerID]map[pcm.JobID]earlySpec
}

type earlySpec struct {
	bytes int
	came  time.Time
}

func newEarly() early { return early{by: map[pcm.PeerID]map[pcm.JobID]earlySpec{}} }

// add counts a spec; Busy if its sender has too many here. known tells which
// jobs the ledger has meanwhile: they count no more.
func (e *early) add(from pcm.PeerID, job pcm.JobID, size int, now time.Time, known func(pcm.JobID) bool) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	mine := e.by[from]
	if mine == nil {
		mine = map[pcm.JobID]earlySpec{}
		e.by[from] = mine
	}
	full := func() bool {
		bytes := size
		for other, s := range mine {
			if other != job {
				bytes += s.bytes
			}
		}
		_, again := mine[job]
		return bytes > earlyBytes || !again && len(mine) >= earlySpecs
	}
	if full() {
		for other := range mine {
			if known(other) {
				delete(mine, other)
			}
		}
		if full() {
			return pcm.Errorf(pcm.Busy, "%d specs of peer %s are here for jobs that the ledger doesn't have: wait until it does", len(mine), pcm.Short(from))
		}
	}
	mine[job] = earlySpec{size, now}
	return nil
}

// expire forgets what came long ago: by then it was kept for good, or swept.
func (e *early) expire(now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for from, mine := range e.by {
		for job, s := range mine {
			if now.Sub(s.came) >= 2*earlyFor {
				delete(mine, job)
			}
		}
		if len(mine) == 0 {
			delete(e.by, from)
		}
	}
}

// welcome says whether a spec that another peer sends may come in: the ledger's
// word on which is the job's comes before that of any peer.
func (s *specs) welcome(from pcm.PeerID, job pcm.JobID, h heldSpec) error {
	if want, known := s.wanted(job); known {
		if want != h.digest {
			return pcm.Errorf(pcm.Conflict, "the ledger has another spec of %s", job)
		}
		return nil
	}
	if old, ok := s.find(job); ok && old.digest != h.digest {
		return pcm.Errorf(pcm.Conflict, "another spec of %s is here", job)
	}
	return s.early.add(from, job, len(h.signed.Payload), time.Now(), func(job pcm.JobID) bool {
		if _, open := s.wanted(job); open {
			return true
		}
		_, err := s.n.cell.Document(ledger.JobKey(job)) // it has ended since
		return err == nil
	})
}

// awaitJob waits until the ledger has a job with the given spec. Error: NotFound
// if that does not come soon.
func (s *specs) awaitJob(ctx context.Context, job pcm.JobID, spec pcm.Digest) error {
	ctx, cancel := context.WithTimeout(ctx, jobSoon)
	defer cancel()
	for {
		news := s.n.pulse.next()
		if want, known := s.wanted(job); known {
			if want != spec {
				return pcm.Errorf(pcm.Conflict, "the ledger has another spec of %s", job)
			}
			return nil
		}
		if s.n.await(ctx, news) != nil {
			return pcm.Errorf(pcm.NotFound, "the ledger has no %s: its inputs are not fetched ahead of it", job)
		}
	}
}

// stored are the jobs whose specs are on disk.
func (s *specs) stored() map[pcm.JobID]bool {
	jobs := map[pcm.JobID]bool{}
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.n.log.Warn("can't list the stored specs", "error", err)
	}
	for _, e := range entries {
		if job := pcm.JobID(e.Name()); job.Valid() {
			jobs[job] = true
		}
	}
	return jobs
}
