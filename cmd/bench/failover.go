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
