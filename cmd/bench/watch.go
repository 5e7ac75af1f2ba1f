package main

import (
	"context"
	"fmt"
	"time"
)

// watch is the state of three peers at a moment, to tell later where time went.
type watch struct {
	t       trio
	at      time.Time
	index   uint64
	records uint64
	fsync   time.Duration
	node    [3]usage
	super   [3]usage
}

func (t trio) watch(ctx context.Context) (*watch, error) {
	w := &watch{t: t}
	var err error
	if w.fsync, _, err = fsyncTimes(t[0].data); err != nil {
		return nil, err
	}
	if err := w.read(ctx); err != nil {
		return nil, err
	}
	w.at = time.Now()
	return w, nil
}

func (w *watch) read(ctx context.Context) error {
	cells, err := w.t[0].c.Cells(ctx)
	if err != nil {
		return err
	}
	w.index, w.records = cells.Items[0].Index, cells.Items[0].Records
	for i, p := range w.t {
		if w.node[i], err = usageOf(p.cmd.Process.Pid); err != nil {
			return err
		}
		if pid := supervisorOf(p.data); pid > 0 {
			if w.super[i], err = usageOf(pid); err != nil {
				return err
			}
		}
	}
	return nil
}

// report prints what happened since the watch was made, per unit of work.
func (w *watch) report(ctx context.Context, n int, unit string) error {
	took := time.Since(w.at)
	now := &watch{t: w.t}
	if err := now.read(ctx); err != nil {
		return err
	}
	entries, records := now.index-w.index, now.records-w.records
	figure("  Raft entries", fmt.Sprintf("%.2f a %s", float64(entries)/float64(n), unit), fmt.Sprintf("%d records in %d entries", records, entries))
	// The leader syncs before it sends, a follower before it answers.
	syncs := 2 * time.Duration(entries) * w.fsync
	figure("  two serial fsyncs an entry, at the p50 of 4 KiB", fmt.Sprintf("%.0f %% of the time", 100*float64(syncs)/float64(took)), ms(w.fsync)+" each")
	var node, super, tasks time.Duration
	var rss, superRSS int64
	for i := range w.t {
		u, s := now.node[i].minus(w.node[i]), now.super[i].minus(w.super[i])
		node, super, tasks = node+u.cpu, super+s.cpu, tasks+s.children
		rss, superRSS = max(rss, now.node[i].rss), max(superRSS, now.super[i].rss)
	}
	each := func(d time.Duration) string { return ms(d / time.Duration(n)) }
	figure("  CPU a "+unit+": daemons, supervisors, task processes", fmt.Sprintf("%s, %s, %s", each(node), each(super), each(tasks)),
		fmt.Sprintf("%.2f cores in use", float64(node+super+tasks)/float64(took)))
	figure("  memory, most: daemon, supervisor", fmt.Sprintf("%s, %s", mib(rss), mib(superRSS)), "")
	return nil
}
