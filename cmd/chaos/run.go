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
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/jointcloud/pcm"
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
	probes                       []int  // what traders try that must be refused; nil: anything
	older                        string // the program of an older release, of which the peers are at first; "": none
	after                        int    // commands that are acknowledged before the first fault
	snapshot                     uint64 // entries after which peers take one; 0: 600
	hasty                        bool   // ends at the first broken promise, and looks for no more
	replicas                     int    // of the last cell, beside its voters
	bare                         bool   // nobody buys in the other cell, or is of no cell
}

// report is what a run came to.
type report struct {
	seed     uint64
	took     time.Duration
	cells    []*nemesis
	verdicts []verdict
	problems problems
	trades   int // between cells, held against each other
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
	for i := range s.sizes {
		c := newTestCell(dir, d, s, i)
		cells = append(cells, c)
		replicas := 0
		if i == len(s.sizes)-1 {
			replicas = s.replicas
		}
		wg.Go(func() { started[i] = c.start(ctx, replicas) })
	}
	wg.Wait()
	for _, err := range started {
		if err != nil {
			r.problems = append(r.problems, problemOf(err))
		}
	}
	if len(r.problems) > 0 {
		return r, r.problems.err(r.seed)
	}
	var outside *outsider
	if !s.bare {
		if outside, err = newOutsider(); err != nil {
			return nil, err
		}
		defer outside.close()
	}

	load, endLoad := context.WithCancel(ctx)
	defer endLoad()
	harm, endHarm := context.WithCancel(ctx)
	defer endHarm()
	var clientsOf []*clients
	failures := make(chan error, 8*len(cells))
	var loads, harms sync.WaitGroup
	for _, cell := range cells {
		c := newClients(cell, s.seed)
		c.probes = s.probes
		if outside != nil {
			if c.away, err = outside.client(cell); err != nil {
				return nil, err
			}
			defer c.away.Close()
		}
		clientsOf = append(clientsOf, c)
	}
	for i, cell := range cells {
		c := clientsOf[i]
		n := newNemesis(cell, c)
		r.cells = append(r.cells, n)
		ready, updated := make(chan struct{}), make(chan struct{})
		m := market{ready: ready, updated: updated, older: s.older != ""}
		if len(cells) > 1 && !s.bare {
			m.other, m.abroad = clientsOf[(i+1)%len(cells)], 4
		}
		if s.older == "" {
			close(updated)
		} else {
			harms.Go(func() {
				switch err := n.bringUp(harm, s.seed, ready); {
				case err == nil:
					close(updated)
				case harm.Err() == nil:
					failures <- err
				}
			})
		}
		loads.Go(func() {
			if err := c.run(load, 16, 3, m); err != nil && load.Err() == nil {
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
				first := []<-chan struct{}{ready}
				if lane == 1 {
					first = append(first, updated) // one thing at a time happens to processes
				}
				for _, done := range first {
					select {
					case <-done:
					case <-harm.Done():
						return
					}
				}
				if n.trades(harm, s.after) != nil {
					return // it is told that too little was done
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
			r.problems = append(r.problems, problemOf(err))
			wait = false
		case <-deadline:
			n, _ := reached()
			r.problems = append(r.problems, problem{isBack, fmt.Sprintf("after %s: %s", s.most, n)})
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
		r.problems = append(r.problems, problemOf(err))
	}
	if s.hasty {
		var seen problems
		for _, c := range clientsOf {
			seen = append(seen, c.found()...)
		}
		if len(seen) > 0 {
			r.problems = append(r.problems, seen...)
			return r, r.problems.err(r.seed)
		}
	}
	if !s.bare && len(r.problems) == 0 {
		r.problems = append(r.problems, lulls(ctx, r.cells, s)...)
	}
	ledgers := map[pcm.CellID][]pcm.Record{}
	for i, n := range r.cells {
		if err := n.settleDown(ctx); err != nil {
			r.problems = append(r.problems, problemOf(err))
			if s.keep != "" {
				for _, p := range n.cell.running() {
					p.signal(syscall.SIGQUIT) // its log then says where it hangs
				}
			}
		}
		v := clientsOf[i].check(ctx)
		r.verdicts = append(r.verdicts, v)
		for _, p := range v.problems {
			p.text = n.cell.name + ": " + p.text
			r.problems = append(r.problems, p)
		}
		ledgers[n.cell.genesis.Cell] = v.ledger
	}
	var differ problems
	r.trades, differ = agree(ledgers)
	r.problems = append(r.problems, differ...)
	r.took = time.Since(begun)
	return r, r.problems.err(r.seed)
}

// lulls has all cells rest and harms them, in a short run each by one of the faults, and
// all of these together by all.
func lulls(ctx context.Context, cells []*nemesis, s settings) (found problems) {
	errs := make([]error, len(cells))
	var wg sync.WaitGroup
	for i, n := range cells {
		if slices.ContainsFunc(n.cell.all(), (*proc).isOlder) {
			n.note("cells that did not rest: not all of their peers were updated")
			continue
		}
		faults := atRest
		if s.least == 0 {
			at := (int(s.seed%shortLulls) + i) % shortLulls
			faults = atRest[at : at+1]
		}
		wg.Go(func() { errs[i] = n.lull(ctx, s.seed+uint64(100*i), faults) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			found = append(found, problemOf(err))
		}
	}
	return found
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
	losses := map[string]int{}
	notes := map[string]int{}
	probes := map[string]int{}
	var v verdict
	var tries, failed, settled, given, unknown, outside, abroad int64
	signed := 0
	for i, n := range r.cells {
		for name, t := range n.counts {
			k := kinds[name]
			kinds[name] = tally{injected: k.injected + t.injected, leaders: k.leaders + t.leaders, failed: k.failed + t.failed}
			if i < len(r.verdicts) {
				losses[name] += t.lost(r.verdicts[i].losses)
			}
		}
		for what, count := range n.notes {
			notes[what] += count
		}
		for what, count := range n.c.checks {
			probes[what] += count
		}
		tries, failed = tries+n.c.tries.Load(), failed+n.c.failed.Load()
		settled, given, unknown = settled+n.c.settled.Load(), given+n.c.given.Load(), unknown+int64(len(n.c.unknown))
		outside, abroad = outside+n.c.outside.Load(), abroad+n.c.abroad.Load()
		signed += n.c.heads.count
		if i < len(r.verdicts) {
			o := r.verdicts[i]
			v.records, v.replicas, v.checked = v.records+o.records, v.replicas+o.replicas, v.checked+o.checked
			v.lost, v.twice, v.lostTasks = v.lost+o.lost, v.twice+o.twice, v.lostTasks+o.lostTasks
		}
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "FAULT\tINJECTED\tLEADERS CHANGED\tPROPOSALS UNANSWERED\tATTEMPTS LOST")
	for _, name := range sortedKeys(kinds) {
		k := kinds[name]
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t%d\n", name, k.injected, k.leaders, k.failed, losses[name])
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
	fmt.Fprintf(w, "from outside: %d commands were answered to a peer that is of no cell\n", outside)
	fmt.Fprintf(w, "between cells: %d attempts bought; %d trades, the same in the ledgers of both sides\n", abroad, r.trades)
	fmt.Fprintf(w, "checkpoints: %d signed, each of the one log of its cell\n", signed)
	fmt.Fprintf(w, "ledgers: %d records, the same at %d replicas\n", v.records, v.replicas)
	fmt.Fprintf(w, "linearizable: %d reads and writes of single values\n", v.checked)
	fmt.Fprintf(w, "acknowledged and lost: %d\n", v.lost)
	fmt.Fprintf(w, "done or paid twice: %d\n", v.twice)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
