package main

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
)

// crowd opens n cells of which this process is a member; the first member founds
// and leads them.
func (m *member) crowd(ctx context.Context, n int) error {
	for i := len(m.cells); i < n; i++ {
		cell := pcm.CellID(fmt.Sprintf("%s%d", m.plan.Cell, i))
		g := m.plan.genesis()
		g.Cell = cell
		c, err := consensus.Open(consensus.Config{
			Dir: filepath.Join(m.plan.Dir, fmt.Sprintf("%s-%d", m.name, i)), Mesh: m.plan.Mesh, Cell: cell, Self: m.key.Peer(), Host: m.host,
			Machine: ledger.New(g), Bootstrap: m.at == 0, Logger: slog.New(slog.DiscardHandler), MaxVoters: len(m.plan.Members),
		})
		if err != nil {
			return err
		}
		m.cells = append(m.cells, c)
		if m.at > 0 {
			continue
		}
		for _, seed := range m.plan.Members[1:] {
			if err := c.AddReplica(ctx, keyOf(seed).Peer()); err != nil {
				return err
			}
		}
	}
	return nil
}

// touch proposes a command in each cell of the crowd and says how long it took.
func (m *member) touch(ctx context.Context) (r report, err error) {
	took := make([]time.Duration, 0, len(m.cells))
	for i, c := range m.cells {
		p := m.plan
		p.Cell = pcm.CellID(fmt.Sprintf("%s%d", p.Cell, i))
		begun := time.Now()
		s, err := p.enrol(m.key, c.LogTime())
		if err != nil {
			return r, err
		}
		results, err := c.Propose(ctx, s)
		if err != nil {
			return r, err
		}
		if err := results[0].First(); err != nil {
			return r, err
		}
		took = append(took, time.Since(begun))
	}
	r.Acknowledged = len(took)
	r.P50MS = float64(quantile(took, 0.5).Microseconds()) / 1000
	r.P99MS = float64(quantile(took, 0.99).Microseconds()) / 1000
	return r, nil
}

// crowd measures many cells at rest: three processes, each a voter of every one.
func (b *bench) crowd(ctx context.Context) error {
	fmt.Printf("crowd: %d cells of three voters at rest, in three processes, over %s\n", b.crowded, b.idle)
	t, err := b.troop(ctx, 3, nil)
	if err != nil {
		return err
	}
	defer t.stop()
	empty, err := t.usage()
	if err != nil {
		return err
	}
	for _, i := range []int{1, 2, 0} { // those who wait to be taken in first
		if _, err := t.members[i].order(order{Do: "crowd", N: b.crowded}); err != nil {
			return err
		}
	}
	if err := sleep(ctx, 20*time.Second); err != nil { // replicas become voters
		return err
	}
	for _, p := range t.members {
		if _, err := p.order(order{Do: "profile"}); err != nil {
			return err
		}
	}
	sent, err := t.sent()
	if err != nil {
		return err
	}
	before, err := t.usage()
	if err != nil {
		return err
	}
	if err := sleep(ctx, b.idle); err != nil {
		return err
	}
	after, err := t.usage()
	if err != nil {
		return err
	}
	bytes, err := t.sent()
	if err != nil {
		return err
	}
	n := float64(b.crowded)
	figure("CPU of a cell, its three voters together", fmt.Sprintf("%.3f %% of a core", float64(after.minus(before).cpu)/float64(b.idle)*100/n), "target < 0.1 %")
	figure("memory of a voter", mib(int64(float64(after.rss-empty.rss)/n/3)), "target < 1 MiB")
	figure("traffic of a cell: what streams carry", fmt.Sprintf("%.0f bytes/s", float64(bytes-sent)/b.idle.Seconds()/n), "target < 500 bytes/s")
	t.members[0].kill()
	a, err := t.members[1].order(order{Do: "touch"})
	if err != nil {
		return err
	}
	figure("first command after the death of the leader: median", fmt.Sprintf("%.0f ms", a.Report.P50MS), fmt.Sprintf("p99 %.0f ms", a.Report.P99MS))
	return nil
}

// usage is what all members use together.
func (t *troop) usage() (sum usage, err error) {
	for _, p := range t.members {
		u, err := usageOf(p.cmd.Process.Pid)
		if err != nil {
			return sum, err
		}
		sum.cpu, sum.rss = sum.cpu+u.cpu, sum.rss+u.rss
	}
	return sum, nil
}

// sent is what all members have sent in streams.
func (t *troop) sent() (sum int64, err error) {
	for _, p := range t.members {
		a, err := p.order(order{Do: "sent"})
		if err != nil {
			return sum, err
		}
		sum += a.Status.Sent
	}
	return sum, nil
}
