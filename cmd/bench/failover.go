package main

import (
	"context"
	"fmt"
	"time"
)

// failover kills the leader of a cell under load, again and again: how long is
// nothing acknowledged, does a caller see an error, and is all there in the end.
func (b *bench) failover(ctx context.Context) error {
	fmt.Printf("failover: the leader of three voters is killed with -9 under the load of 64 remote callers, %d times\n", b.kills)
	t, err := b.troop(ctx, 3, nil)
	if err != nil {
		return err
	}
	defer t.stop()
	acknowledged := 0
	var gaps []time.Duration
	for range b.kills {
		if _, err := t.caller.order(order{Do: "sign", N: 60_000}); err != nil {
			return err
		}
		if err := t.caller.send(order{Do: "load", Load: loading{Callers: 64, For: 6 * time.Second}}); err != nil {
			return err
		}
		if err := sleep(ctx, 2*time.Second); err != nil {
			return err
		}
		victim, err := t.leader()
		if err != nil {
			return err
		}
		t.members[victim].kill()
		if b.all {
			fmt.Printf("  %s: member %d is killed\n", time.Now().Format(time.RFC3339Nano), victim)
		}
		a, err := t.caller.answer()
		if err != nil {
			return fmt.Errorf("a caller saw an error: %w", err)
		}
		acknowledged += a.Report.Acknowledged
		gap := time.Duration(a.Report.GapMS * float64(time.Millisecond))
		gaps = append(gaps, gap)
		if b.all {
			fmt.Println("    without an acknowledgement for", ms(gap))
		}
		if err := t.restart(victim); err != nil {
			return err
		}
		if err := t.level(ctx); err != nil {
			return err
		}
	}
	figure("longest time without an acknowledgement: median", ms(quantile(gaps, 0.5)), "")
	figure("the same: p99", ms(quantile(gaps, 0.99)), "target < 3000 ms")
	figure("errors that callers saw", "0", "target 0")
	for i, p := range t.members {
		a, err := p.order(order{Do: "count"})
		if err != nil {
			return err
		}
		if a.Status.Seen < acknowledged {
			return fmt.Errorf("member %d has %d commands, and %d were acknowledged", i, a.Status.Seen, acknowledged)
		}
		figure(fmt.Sprintf("commands acknowledged, and in the records of member %d", i), fmt.Sprintf("%d, %d", acknowledged, a.Status.Seen), "none lost")
	}
	return nil
}

// leader is the place of the member that leads.
func (t *troop) leader() (int, error) {
	for range 100 {
		for _, p := range t.members {
			a, err := p.order(order{Do: "status"})
			if err != nil {
				return 0, err
			}
			for i, q := range t.members {
				if q.id == a.Status.Leader {
					return i, nil
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return 0, fmt.Errorf("the cell has no leader")
}

// restart starts a killed member again.
func (t *troop) restart(at int) error {
	p, err := t.start(at)
	if err != nil {
		return err
	}
	t.members[at] = p
	if err := t.meet(); err != nil {
		return err
	}
	_, err = p.order(order{Do: "open"})
	return err
}

// level waits until all members have applied the same.
func (t *troop) level(ctx context.Context) error {
	return until(ctx, 2*time.Minute, 50*time.Millisecond, "all members have applied the same", func() (bool, error) {
		var first uint64
		for i, p := range t.members {
			a, err := p.order(order{Do: "status"})
			if err != nil {
				return false, err
			}
			if i == 0 {
				first = a.Status.Records
			}
			if a.Status.Records != first || a.Status.Leader == "" || a.Status.Voters != len(t.members) {
				return false, nil
			}
		}
		return true, nil
	})
}
