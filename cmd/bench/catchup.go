package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// catchUp measures how a voter that was away for many records comes back while the
// cell goes on as fast as it can: how long until it follows again and has all
// records, by how many snapshots, and whether the others are held up by it.
func (b *bench) catchUp(ctx context.Context) error {
	fmt.Printf("catchup: one of three voters is away for %d records and comes back under full load, without signatures\n", b.missed)
	t, err := b.troop(ctx, 3, func(p *plan) { p.Checks = 0 })
	if err != nil {
		return err
	}
	defer t.stop()
	at, err := t.leader()
	if err != nil {
		return err
	}
	away, lead := (at+1)%3, t.members[at]
	if _, err := lead.order(order{Do: "fill", N: min(10_000, b.missed)}); err != nil {
		return err
	}
	t.members[away].kill()
	a, err := lead.order(order{Do: "fill", N: b.missed})
	if err != nil {
		return err
	}
	before := float64(a.Report.Acknowledged) / a.Report.Seconds
	figure("without it", fmt.Sprintf("%.0f/s", before), "")
	if _, err := lead.order(order{Do: "flood"}); err != nil {
		return err
	}
	begun := time.Now()
	if err := t.restart(away); err != nil {
		return err
	}
	first, err := t.members[away].order(order{Do: "status"})
	if err != nil {
		return err
	}
	if _, err := t.members[away].order(order{Do: "profile"}); err != nil {
		return err
	}
	var follows, whole time.Duration
	var last state
	err = until(ctx, 15*time.Minute, 200*time.Millisecond, "it has all records", func() (bool, error) {
		l, err := lead.order(order{Do: "status"})
		if err != nil {
			return false, err
		}
		a, err := t.members[away].order(order{Do: "status"})
		if err != nil {
			return false, err
		}
		last = a.Status
		if follows == 0 && last.Applied >= l.Status.Applied { // as it was before it was asked
			follows = time.Since(begun)
		}
		whole = time.Since(begun)
		return follows > 0 && last.Whole, nil
	})
	_, unprofiled := t.members[away].order(order{Do: "profiled"})
	e, ebb := lead.order(order{Do: "ebb"})
	if err != nil {
		return fmt.Errorf("%w: it has applied entry %d after %d snapshots", err, last.Applied, last.Restored-first.Status.Restored)
	}
	if err := errors.Join(ebb, unprofiled); err != nil {
		return err
	}
	during := float64(e.Report.Acknowledged) / e.Report.Seconds
	figure("it follows again after", fmt.Sprintf("%.1f s", follows.Seconds()), "")
	figure("  and has all records after", fmt.Sprintf("%.1f s", whole.Seconds()), "")
	figure("  snapshots that it took over", fmt.Sprint(last.Restored-first.Status.Restored), "target ≤ 1")
	figure("  meanwhile", fmt.Sprintf("%.0f/s", during), fmt.Sprintf("%.2f ×", during/before))
	return t.level(ctx)
}
