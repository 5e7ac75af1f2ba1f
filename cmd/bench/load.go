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
	cmds := m.signed
	if m.signed = nil; cmds == nil {
		if cmds, err = m.commands(ctx, l.Commands); err != nil {
			return r, err
		}
	}
	r.Bytes = len(cmds[0].Payload) + len(cmds[0].Signer) + len(cmds[0].Sig)
	took, ends := make([][]time.Duration, l.Callers), make([][]time.Duration, l.Callers)
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
				took[i], ends[i] = append(took[i], time.Since(at)), append(ends[i], time.Since(begun))
			}
		})
	}
	wg.Wait()
	r.Seconds, r.Failed = time.Since(begun).Seconds(), int(failed.Load())
	all := slices.Concat(took...)
	if r.Acknowledged = len(all); r.Acknowledged > 0 {
		r.P50MS = float64(quantile(all, 0.5).Microseconds()) / 1000
		r.P99MS = float64(quantile(all, 0.99).Microseconds()) / 1000
		r.GapMS = float64(longest(slices.Concat(ends...)).Microseconds()) / 1000
	}
	if e := first.Load(); e != nil {
		err = *e
	}
	return r, err
}

// commands signs n commands of all signers in turn.
func (m *member) commands(ctx context.Context, n int) ([]pcm.Signed, error) {
	logTime, err := m.logTime(ctx)
	if err != nil {
		return nil, err
	}
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
	return cmds, nil
}

// longest is the longest time between two of the times, sorted by it.
func longest(times []time.Duration) (gap time.Duration) {
	slices.Sort(times)
	for i := 1; i < len(times); i++ {
		gap = max(gap, times[i]-times[i-1])
	}
	return gap
}

// fill has this peer, a lone voter, make n records as fast as it can. Nobody
// checks their signatures, and they have none. What is refused for want of room, as
// each peer's commands are bounded, or because it came too late, is made anew.
func (m *member) fill(n int) (r report, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Hour)
	defer cancel()
	return m.fillWithin(ctx, n)
}

// flood fills until it is told to stop.
type flood struct {
	stop context.CancelFunc
	done chan struct{}
	r    report // valid when done is closed
	err  error
}

func (m *member) flood() *flood {
	ctx, cancel := context.WithCancel(context.Background())
	f := &flood{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(f.done)
		f.r, f.err = m.fillWithin(ctx, 1<<40)
		if ctx.Err() != nil {
			f.err = nil // it was told to
		}
	}()
	return f
}

func (m *member) fillWithin(ctx context.Context, n int) (r report, err error) {
	begun := time.Now()
	var left, failed, done atomic.Int64
	left.Store(int64(n))
	var first atomic.Pointer[error]
	var wg sync.WaitGroup
	const workers, each = 4, 256
	take := func() int {
		for {
			have := left.Load()
			size := min(each, have)
			if size <= 0 || left.CompareAndSwap(have, have-size) {
				return int(size)
			}
		}
	}
	for worker := range workers {
		wg.Go(func() {
			type signer struct {
				self   pcm.PeerID
				public []byte
			}
			var signers []signer
			for i := worker; i < len(m.plan.Signers); i += workers {
				key := keyOf(m.plan.Signers[i])
				signers = append(signers, signer{key.Peer(), key.Public()})
			}
			sig := make([]byte, 64)
			for turn := 0; first.Load() == nil; turn++ {
				size, by := take(), signers[turn%len(signers)]
				if size == 0 {
					return
				}
				cmds := make([]pcm.Signed, size)
				for i := range cmds {
					job := pcm.NewJobID()
					cmds[i] = pcm.Signed{Signer: by.public, Sig: sig, Payload: pcm.MustMarshal(pcm.Command{
						Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: m.plan.Mesh, Cell: m.plan.Cell, Peer: by.self,
						NotAfter: m.cell.LogTime() + 2_000, Ops: submitAndCancel(job),
					})}
				}
				results, err := m.cell.Propose(ctx, cmds...)
				if pcm.ErrorCode(err) == pcm.Busy {
					left.Add(int64(size))
					continue
				}
				for _, res := range results {
					switch e := res.First(); pcm.ErrorCode(e) {
					case "":
						done.Add(1)
					case pcm.Busy, pcm.Conflict:
						failed.Add(1)
						left.Add(1)
					default:
						err = e
					}
				}
				if err != nil {
					first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	r.Acknowledged, r.Failed, r.Seconds = int(done.Load()), int(failed.Load()), time.Since(begun).Seconds()
	if e := first.Load(); e != nil {
		err = *e
	}
	return r, err
}

// count counts the bench's commands in the records.
func (m *member) count() (n int, err error) {
	err = m.cell.Records(0, m.cell.RecordCount(), func(_ uint64, data []byte) error {
		var rec pcm.Record
		if err := pcm.Unmarshal(data, &rec); err != nil || rec.Command == nil {
			return err
		}
		var cmd pcm.Command
		if err := pcm.Unmarshal(rec.Command.Payload, &cmd); err != nil {
			return err
		}
		if cmd.Ops[0].Submit != nil {
			n++
		}
		return nil
	})
	return n, err
}
