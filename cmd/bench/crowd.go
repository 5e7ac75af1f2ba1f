package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
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
		if err := m.grow(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// touch proposes a command in each cell of the crowd, in some of them at the same time, and
// says how long it took.
func (m *member) touch(ctx context.Context, width int) (r report, err error) {
	slots := make(chan struct{}, width)
	took, failed := make([]time.Duration, len(m.cells)), make([]error, len(m.cells))
	var wg sync.WaitGroup
	for i, c := range m.cells {
		p := m.plan
		p.Cell = pcm.CellID(fmt.Sprintf("%s%d", p.Cell, i))
		s, err := p.enrol(m.key, c.LogTime())
		if err != nil {
			return r, err
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			begun := time.Now()
			results, err := c.Propose(ctx, s)
			if err == nil {
				err = results[0].First()
			}
			took[i], failed[i] = time.Since(begun), err
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		return r, err
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
	if err := t.rested(ctx, b.crowded); err != nil {
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
	for _, p := range t.members {
		if _, err := p.order(order{Do: "profiled"}); err != nil {
			return err
		}
	}
	n := float64(b.crowded)
	figure("CPU of a cell, its three voters together", fmt.Sprintf("%.3f %% of a core", float64(after.minus(before).cpu)/float64(b.idle)*100/n), "target < 0.1 %")
	figure("memory of a voter", mib(int64(float64(after.rss-empty.rss)/n/3)), "target < 1 MiB")
	figure("traffic of a cell: what streams carry", fmt.Sprintf("%.0f bytes/s", float64(bytes-sent)/b.idle.Seconds()/n), "target < 500 bytes/s")
	a, err := t.members[1].order(order{Do: "touch", N: 1})
	if err != nil {
		return err
	}
	figure("first command in a cell at rest, one after the other: median", fmt.Sprintf("%.0f ms", a.Report.P50MS), fmt.Sprintf("p99 %.0f ms", a.Report.P99MS))
	if err := t.rested(ctx, b.crowded); err != nil {
		return err
	}
	t.members[0].kill()
	if a, err = t.members[1].order(order{Do: "touch", N: b.crowded}); err != nil {
		return err
	}
	figure("first command after the leaders' death at rest, all at once: median", fmt.Sprintf("%.0f ms", a.Report.P50MS), fmt.Sprintf("p99 %.0f ms", a.Report.P99MS))
	return nil
}

// rested waits until all cells of a crowd are at rest, and their histories closed.
func (t *troop) rested(ctx context.Context, cells int) error {
	if err := sleep(ctx, 20*time.Second); err != nil { // replicas become voters; what was busy is no more
		return err
	}
	for _, p := range t.members {
		err := until(ctx, 3*time.Minute, time.Second, "all cells are at rest", func() (bool, error) {
			a, err := p.order(order{Do: "resting"})
			return a.Report.Acknowledged == cells, err
		})
		if err != nil {
			return err
		}
	}
	return sleep(ctx, 20*time.Second)
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
