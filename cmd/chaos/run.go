package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

// settings of a run.
type settings struct {
	seed                         uint64
	least, most                  time.Duration // of the load
	faults, operations, attempts int           // least of each
	keep                         string
	sizes                        []int    // voters of each cell; nil: 5 and 3
	env                          []string // of the peers
	plain                        bool     // disks without faults
	only                         []string // names of faults; nil: all
	heavyPause                   time.Duration
}

// report is what a run came to.
type report struct {
	seed     uint64
	took     time.Duration
	cells    []*nemesis
	verdicts []verdict
	problems []string
	note     string
}

// run breaks cells for a while. Its error says that a promise was broken, or that
// the run did not reach its numbers; the report is there in both cases.
func run(ctx context.Context, s settings) (_ *report, err error) {
	begun := time.Now()
	dir := s.keep
	if dir == "" {
		if dir, err = os.MkdirTemp("", "pcm-chaos-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	r := &report{seed: s.seed}
	d, err := newDisk(dir)
	if err != nil || s.plain {
		r.note = "NO FAULTS OF DISKS: as settings say"
		if err != nil {
			r.note = fmt.Sprintf("NO FAULTS OF DISKS: %v", err)
		}
		d = plainDisk(dir)
	}
	defer func() { err = errors.Join(err, d.close()) }()
	if s.sizes == nil {
		s.sizes = []int{5, 3}
	}
	if s.heavyPause == 0 {
		s.heavyPause = 600 * time.Millisecond
	}
	var cells []*testCell
	defer func() {
		for _, c := range cells {
			for _, p := range c.all() {
				p.kill()
			}
		}
	}()
	var wg sync.WaitGroup
	started := make([]error, len(s.sizes))
	for i, size := range s.sizes {
		c := newTestCell(dir, d, s.seed, string(rune('a'+i)), size, s.env)
		cells = append(cells, c)
		wg.Go(func() { started[i] = c.start(ctx) })
	}
	wg.Wait()
	if err := errors.Join(started...); err != nil {
		return nil, fmt.Errorf("the cells don't start: %w", err)
	}

	load, endLoad := context.WithCancel(ctx)
	defer endLoad()
	harm, endHarm := context.WithCancel(ctx)
	defer endHarm()
	var clientsOf []*clients
	failures := make(chan error, 8*len(cells))
	var loads, harms sync.WaitGroup
	for i, cell := range cells {
		c := newClients(cell, s.seed)
		clientsOf = append(clientsOf, c)
		n := newNemesis(cell, c)
		r.cells = append(r.cells, n)
		ready := make(chan struct{})
		loads.Go(func() {
			if err := c.run(load, 16, 3, ready); err != nil && load.Err() == nil {
				failures <- err
			}
		})
		for lane, faults := range [][]fault{light, heavy} {
			if faults = chosen(faults, s.only); len(faults) == 0 {
				continue
			}
			pause := 60 * time.Millisecond
			if lane == 1 {
				pause = s.heavyPause
			}
			harms.Go(func() {
				select {
				case <-ready:
				case <-harm.Done():
					return
				}
				if err := n.run(harm, s.seed+uint64(100*i), faults, pause); err != nil {
					failures <- err
				}
			})
		}
	}
	deadline := time.After(s.most)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	reached := func() (string, bool) {
		f, o, a := r.numbers()
		return fmt.Sprintf("%d faults of %d, %d acknowledged operations of %d, %d attempts of %d", f, s.faults, o, s.operations, a, s.attempts),
			f >= s.faults && o >= s.operations && a >= s.attempts && time.Since(begun) >= s.least
	}
	for wait := true; wait; {
		select {
		case <-tick.C:
			_, enough := reached()
			wait = !enough && !slices.ContainsFunc(clientsOf, (*clients).broken)
		case err := <-failures:
			r.problems = append(r.problems, err.Error())
			wait = false
		case <-deadline:
			n, _ := reached()
			r.problems = append(r.problems, fmt.Sprintf("after %s: %s", s.most, n))
			wait = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	endHarm()
	harms.Wait()
	endLoad()
	loads.Wait()
	close(failures)
	for err := range failures {
		r.problems = append(r.problems, err.Error())
	}
	for i, n := range r.cells {
		if err := n.settleDown(ctx); err != nil {
			r.problems = append(r.problems, err.Error())
			if s.keep != "" {
				for _, p := range n.cell.running() {
					p.signal(syscall.SIGQUIT) // its log then says where it hangs
				}
			}
		}
		v := clientsOf[i].check(ctx)
		r.verdicts = append(r.verdicts, v)
		for _, p := range v.problems {
			r.problems = append(r.problems, n.cell.name+": "+p)
		}
	}
	r.took = time.Since(begun)
	if len(r.problems) > 0 {
		return r, fmt.Errorf("seed %d: %w:\n  %s", s.seed, errBroken, strings.Join(r.problems, "\n  "))
	}
	return r, nil
}

// errBroken says that a promise was not kept.
var errBroken = errors.New("promises were broken")

// chosen are the faults with some names; of none: all.
func chosen(faults []fault, names []string) []fault {
	if names == nil {
		return faults
	}
	return slices.DeleteFunc(slices.Clone(faults), func(f fault) bool { return !slices.Contains(names, f.name) })
}

// numbers are what a run has to reach.
func (r *report) numbers() (faults, operations, attempts int) {
	for _, n := range r.cells {
		faults += n.injected()
		operations += int(n.c.acked.Load() + n.c.reads.Load())
		attempts += int(n.c.bought.Load())
	}
	return faults, operations, attempts
}

func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "seed %d, %.0f s\n", r.seed, r.took.Seconds())
	if r.note != "" {
		fmt.Fprintln(w, r.note)
	}
	kinds := map[string]tally{}
	notes := map[string]int{}
	probes := map[string]int{}
	var v verdict
	var tries, failed, settled, given, unknown int64
	for i, n := range r.cells {
		for name, t := range n.counts {
			k := kinds[name]
			kinds[name] = tally{k.injected + t.injected, k.leaders + t.leaders, k.failed + t.failed}
		}
		for what, count := range n.notes {
			notes[what] += count
		}
		for what, count := range n.c.checks {
			probes[what] += count
		}
		tries, failed = tries+n.c.tries.Load(), failed+n.c.failed.Load()
		settled, given, unknown = settled+n.c.settled.Load(), given+n.c.given.Load(), unknown+int64(len(n.c.unknown))
		if i < len(r.verdicts) {
			o := r.verdicts[i]
			v.records, v.replicas, v.checked = v.records+o.records, v.replicas+o.replicas, v.checked+o.checked
			v.lost, v.twice, v.lostTasks = v.lost+o.lost, v.twice+o.twice, v.lostTasks+o.lostTasks
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FAULT\tINJECTED\tLEADERS CHANGED\tPROPOSALS UNANSWERED")
	for _, name := range sortedKeys(kinds) {
		k := kinds[name]
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\n", name, k.injected, k.leaders, k.failed)
	}
	tw.Flush()
	for _, what := range sortedKeys(notes) {
		fmt.Fprintf(w, "%s: %d\n", what, notes[what])
	}
	for _, what := range sortedKeys(probes) {
		fmt.Fprintf(w, "tried %d times: %s\n", probes[what], what)
	}
	f, o, a := r.numbers()
	fmt.Fprintf(w, "faults: %d\n", f)
	fmt.Fprintf(w, "operations: %d acknowledged, %d never answered; %d proposals sent, %d of them unanswered and sent again\n", o, unknown, tries, failed)
	fmt.Fprintf(w, "jobs: %d settled, %d given up; %d attempts bought, %d of them lost\n", settled, given, a, v.lostTasks)
	fmt.Fprintf(w, "ledgers: %d records, the same at %d replicas\n", v.records, v.replicas)
	fmt.Fprintf(w, "linearizable: %d reads and writes of single values\n", v.checked)
	fmt.Fprintf(w, "acknowledged and lost: %d\n", v.lost)
	fmt.Fprintf(w, "done or paid twice: %d\n", v.twice)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
