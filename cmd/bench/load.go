package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
)

// loading is a load on a cell: so many callers, each of which waits for its
// answer before it goes on, until the commands or the time are used up.
type loading struct {
	Callers  int           `json:"callers"`
	Commands int           `json:"commands"` // signed before the clock starts
	For      time.Duration `json:"for"`
	Patience time.Duration `json:"patience"` // of a caller; 0: a minute
}

// load signs commands, then proposes them.
func (m *member) load(l loading) (r report, err error) {
	if l.Patience == 0 {
		l.Patience = time.Minute
	}
	ctx, cancel := context.WithTimeout(context.Background(), l.For+time.Minute)
	defer cancel()
	if _, err := m.client.Locate(ctx); err != nil {
		return r, err
	}
	cmds := m.commands(l.Commands, m.client.LogTime())
	r.Bytes = len(cmds[0].Payload) + len(cmds[0].Signer) + len(cmds[0].Sig)
	took := make([][]time.Duration, l.Callers)
	var next, failed atomic.Int64
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range l.Callers {
		wg.Go(func() {
			for time.Since(begun) < l.For {
				n := int(next.Add(1)) - 1
				if n >= len(cmds) {
					return
				}
				at := time.Now()
				patience, cancel := context.WithTimeout(ctx, l.Patience)
				results, err := m.client.Propose(patience, cmds[n])
				cancel()
				if err == nil {
					err = results[0].First()
				}
				if err != nil {
					err = fmt.Errorf("command %d: %w", n, err)
					first.CompareAndSwap(nil, &err)
					failed.Add(1)
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	r.Seconds, r.Failed = time.Since(begun).Seconds(), int(failed.Load())
	all := slices.Concat(took...)
	if r.Acknowledged = len(all); r.Acknowledged > 0 {
		r.P50MS = float64(quantile(all, 0.5).Microseconds()) / 1000
		r.P99MS = float64(quantile(all, 0.99).Microseconds()) / 1000
		r.MaxMS = float64(all[len(all)-1].Microseconds()) / 1000
	}
	if e := first.Load(); e != nil {
		err = *e
	}
	return r, err
}

// commands signs n commands of all signers in turn.
func (m *member) commands(n int, logTime int64) []pcm.Signed {
	type signer struct {
		key  pcm.Key
		self pcm.PeerID
	}
	signers := make([]signer, len(m.plan.Signers))
	for i, seed := range m.plan.Signers {
		k := keyOf(seed)
		signers[i] = signer{k, k.Peer()}
	}
	cmds := make([]pcm.Signed, n)
	var wg sync.WaitGroup
	parts := runtime.GOMAXPROCS(0)
	for part := range parts {
		wg.Go(func() {
			for i := part; i < n; i += parts {
				s := signers[i%len(signers)]
				cmds[i] = m.plan.work(s.key, s.self, logTime)
			}
		})
	}
	wg.Wait()
	return cmds
}
