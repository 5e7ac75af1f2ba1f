package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// grown is a cell of one voter with a history of some length.
type grown struct {
	*troop
	name               string
	apply, cpu, allocs []float64 // of a command: µs, µs, objects
}

// growth holds a cell with a long history against one with a short one, in turns.
func (b *bench) growth(ctx context.Context) error {
	short, long := max(b.records/100, 1), b.records
	fmt.Printf("growth: a lone voter with %d records beside one with %d; commands of 256 at a time, without signatures\n", long, short)
	var both []*grown
	for _, n := range []int{short, long} {
		t, err := b.troop(ctx, 1, func(p *plan) {
			p.Checks = 0
			if p.Profile != "" {
				p.Profile += fmt.Sprint(n, "-")
			}
		})
		if err != nil {
			return err
		}
		defer t.stop()
		g := &grown{troop: t, name: fmt.Sprintf("%d records", n)}
		both = append(both, g)
		a, err := t.members[0].order(order{Do: "fill", N: n})
		if err != nil {
			return err
		}
		if _, err := t.members[0].order(order{Do: "heap"}); err != nil {
			return err
		}
		figure(g.name+": made", fmt.Sprintf("%.0f/s", float64(a.Report.Acknowledged)/a.Report.Seconds), "")
		if err := g.quiet(ctx); err != nil {
			return err
		}
		size, err := sizeOf(filepath.Join(t.plan.Dir, "member0"))
		if err != nil {
			return err
		}
		figure(g.name+": on disk", mib(size), fmt.Sprintf("%d bytes each", size/int64(n)))
		if _, err := t.members[0].order(order{Do: "profile"}); err != nil {
			return err
		}
	}
	for range 7 {
		for _, g := range both {
			if err := g.measure(ctx, 20_000); err != nil {
				return err
			}
		}
	}
	s, l := both[0], both[1]
	figure("CPU of the ledger for a command: median", fmt.Sprintf("%.1f and %.1f µs", median(s.apply), median(l.apply)), fmt.Sprintf("%.2f × (target ≤ 1.25)", median(l.apply)/median(s.apply)))
	figure("CPU of a command, making and storing it: median", fmt.Sprintf("%.1f and %.1f µs", median(s.cpu), median(l.cpu)), fmt.Sprintf("%.2f × (target ≤ 1.25)", median(l.cpu)/median(s.cpu)))
	figure("  mean", fmt.Sprintf("%.1f and %.1f µs", mean(s.cpu), mean(l.cpu)), fmt.Sprintf("%.2f ×", mean(l.cpu)/mean(s.cpu)))
	figure("allocations of a command: median", fmt.Sprintf("%.1f and %.1f", median(s.allocs), median(l.allocs)), fmt.Sprintf("%.2f × (target 1)", median(l.allocs)/median(s.allocs)))
	if err := sleep(ctx, 15*time.Second); err != nil { // command IDs are forgotten
		return err
	}
	for _, g := range both {
		if _, err := g.members[0].order(order{Do: "fill", N: 1}); err != nil {
			return err
		}
		a, err := g.members[0].order(order{Do: "hot"})
		if err != nil {
			return err
		}
		figure(g.name+": size of a snapshot", fmt.Sprintf("%d bytes", a.Status.Hot), "target: the same")
	}
	for _, g := range both {
		p := g.members[0]
		u, err := usageOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		figure(g.name+": memory after the load", mib(u.rss), mib(u.anon)+" without mapped files")
		p.in.Close()
		p.cmd.Wait() // in order
		if err := g.begin(ctx, "restart to the first commit"); err != nil {
			return err
		}
		g.members[0].kill()
		if err := g.begin(ctx, "the same, killed before"); err != nil {
			return err
		}
	}
	return nil
}

// measure has the cell take n commands, and waits until they are stored for good:
// what the history does with them afterwards is part of their cost.
func (g *grown) measure(ctx context.Context, n int) error {
	p := g.members[0]
	before, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	m0, err := p.order(order{Do: "allocs"})
	if err != nil {
		return err
	}
	if _, err := p.order(order{Do: "fill", N: n}); err != nil {
		return err
	}
	if err := g.quiet(ctx); err != nil {
		return err
	}
	m1, err := p.order(order{Do: "allocs"})
	if err != nil {
		return err
	}
	after, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	g.apply = append(g.apply, float64(m1.Status.Apply-m0.Status.Apply)/1000/float64(n))
	g.cpu = append(g.cpu, float64(after.minus(before).cpu.Microseconds())/float64(n))
	g.allocs = append(g.allocs, float64(m1.Status.Allocs-m0.Status.Allocs)/float64(n))
	return nil
}

// quiet waits until the voter has nothing more to do.
func (g *grown) quiet(ctx context.Context) error {
	const look = 500 * time.Millisecond
	last, err := usageOf(g.members[0].cmd.Process.Pid)
	if err != nil {
		return err
	}
	return until(ctx, 10*time.Minute, look, "the history is at rest", func() (bool, error) {
		now, err := usageOf(g.members[0].cmd.Process.Pid)
		idle := now.cpu-last.cpu <= look/10
		last = now
		return idle, err
	})
}

// begin starts the voter and measures how long it takes, and what it holds then.
func (g *grown) begin(ctx context.Context, how string) error {
	begun := time.Now()
	if err := g.restart(0); err != nil {
		return err
	}
	p := g.members[0]
	if _, err := p.order(order{Do: "fill", N: 1}); err != nil {
		return err
	}
	figure(g.name+": "+how, fmt.Sprintf("%.2f s", time.Since(begun).Seconds()), "target < 2 s")
	if err := g.quiet(ctx); err != nil {
		return err
	}
	u, err := usageOf(p.cmd.Process.Pid)
	if err != nil {
		return err
	}
	figure(g.name+": memory then", mib(u.rss), "target < 200 MiB; "+mib(u.anon)+" without mapped files")
	return nil
}

// sizeOf is what the files of a folder take on disk.
func sizeOf(dir string) (size int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		var info os.FileInfo
		if err == nil && !d.IsDir() {
			info, err = d.Info()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // files come and go
		}
		if err != nil || info == nil {
			return err
		}
		if name := d.Name(); strings.HasSuffix(name, ".vlog") || strings.HasSuffix(name, ".mem") {
			return nil // reserved ahead, and nothing is in them for long
		}
		size += info.Size()
		return nil
	})
	return size, err
}

func mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(max(len(x), 1))
}
