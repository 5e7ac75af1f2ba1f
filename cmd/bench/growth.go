package main

import (
	"context"
	"fmt"
	"time"
)

// growth holds a cell with a long history against one with a short one, in turns.
func (b *bench) growth(ctx context.Context) error {
	short, long := b.records/100, b.records
	fmt.Printf("growth: a lone voter with %d records beside one with %d; commands of 256 at a time, without signatures\n", long, short)
	type grown struct {
		*troop
		name        string
		cpu, allocs []float64 // of a command: µs, objects
	}
	var both []*grown
	for _, n := range []int{short, long} {
		t, err := b.troop(ctx, 1, func(p *plan) { p.Checks = 0 })
		if err != nil {
			return err
		}
		defer t.stop()
		a, err := t.members[0].order(order{Do: "fill", N: n})
		if err != nil {
			return err
		}
		g := &grown{troop: t, name: fmt.Sprintf("%d records", n)}
		both = append(both, g)
		figure(g.name+": made", fmt.Sprintf("%.0f/s", float64(a.Report.Acknowledged)/a.Report.Seconds), "")
	}
	const each = 20_000
	for range 7 {
		for _, g := range both {
			p := g.members[0]
			before, err := usageOf(p.cmd.Process.Pid)
			if err != nil {
				return err
			}
			m0, err := p.order(order{Do: "allocs"})
			if err != nil {
				return err
			}
			a, err := p.order(order{Do: "fill", N: each})
			if err != nil {
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
			n := float64(a.Report.Acknowledged)
			g.cpu = append(g.cpu, float64(after.minus(before).cpu.Microseconds())/n)
			g.allocs = append(g.allocs, float64(m1.Status.Allocs-m0.Status.Allocs)/n)
		}
	}
	s, l := both[0], both[1]
	figure("CPU of a command, making it included: median", fmt.Sprintf("%.1f and %.1f µs", median(s.cpu), median(l.cpu)), fmt.Sprintf("%.2f × (target ≤ 1.25)", median(l.cpu)/median(s.cpu)))
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
		p.in.Close()
		p.cmd.Wait() // in order
		begun := time.Now()
		if err := g.restart(0); err != nil {
			return err
		}
		p = g.members[0]
		if _, err := p.order(order{Do: "fill", N: 1}); err != nil {
			return err
		}
		figure(g.name+": restart to the first commit", fmt.Sprintf("%.2f s", time.Since(begun).Seconds()), "target < 2 s")
		u, err := usageOf(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		figure(g.name+": memory then", mib(u.rss), "target < 200 MiB")
	}
	return nil
}
