// Command bench measures what PCM promises, with real processes on this machine:
// start and idle cost, the latency of one job on a cell of three, the throughput
// of arrays, how long the loss of a seller takes to mend, and what a cell commits
// beside etcd. Each figure is printed beside its target; a missed target does not
// fail the run, since figures depend on the machine, but a wrong result does. The parts backends and tracked start the
// servers of other back ends, as root; what is not there is said. Unless it is named, backends is short.
//
//	go run ./cmd/bench -pcm bin/pcm [-only up,job,array,module,loss,cells,failover,growth,catchup,crowd,backends,tracked] [-servers slurm] [-quick]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// bench is one run: its settings, and where it reports.
type bench struct {
	pcm  string // the binary under test
	dir  string // scratch
	idle time.Duration
	jobs int // runs of one job
	many int // tasks of an array
	mods int // runs of the Go module
	keep bool
	all  bool // processes of cells log all

	tasks   int             // of an array on a back end
	rounds  int             // of each such array
	servers map[string]bool // that are measured; none: all

	each    time.Duration // of one load on a cell
	checks  []int         // signatures of a command that are checked, each in a cell of its own
	callers int           // measured alone; 0: all
	kills   int           // of a leader
	records int           // of a cell that has grown
	missed  int           // records, by a replica that was away
	crowded int           // cells at rest
	etcd    string        // a built cmd/bench/etcd; "": it is built
	store   string        // of Raft's log
	profile string        // where CPU profiles of a cell's processes go
}

func main() {
	if len(os.Args) == 4 && os.Args[1] == "member" {
		at, err := strconv.Atoi(os.Args[3])
		if err == nil {
			err = runMember(os.Args[2], at)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: member:", err)
			os.Exit(1)
		}
		return
	}
	var b bench
	var only, servers, checks string
	var quick bool
	flag.StringVar(&b.pcm, "pcm", "bin/pcm", "the program to measure")
	flag.StringVar(&only, "only", "", "parts to run, separated by commas: up, job, array, module, loss, cells, failover, growth, catchup, crowd, backends, tracked (default: all; back ends with a tenth of the tasks, once)")
	flag.StringVar(&servers, "servers", "", "back ends to measure, separated by commas: process, slurm, container, kubernetes (default: all)")
	flag.IntVar(&b.tasks, "tasks", 0, "tasks of an array on a back end, a tenth of those tracked (default: 1000)")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each back end runs it")
	flag.BoolVar(&quick, "quick", false, "a tenth of everything, for a first look")
	flag.DurationVar(&b.each, "for", 3*time.Second, "how long each load on a cell lasts")
	flag.StringVar(&checks, "signatures", "0,1,2", "signatures of a command that are checked, each number in a cell of its own")
	flag.IntVar(&b.callers, "callers", 0, "measure cells with so many callers only: 1, 64 or 1024")
	flag.IntVar(&b.kills, "kills", 20, "how often the leader of a cell is killed")
	flag.IntVar(&b.records, "records", 1_000_000, "of a cell that has grown, beside one with a hundredth; the goals are for 10000000")
	flag.IntVar(&b.missed, "missed", 1_000_000, "records that a replica was away for")
	flag.IntVar(&b.crowded, "crowd", 100, "cells at rest")
	flag.StringVar(&b.etcd, "etcd", "", "the built program of cmd/bench/etcd (default: it is built)")
	flag.StringVar(&b.store, "store", "", "of a cell's Raft log (default: the usual one)")
	flag.StringVar(&b.profile, "profile", "", "write CPU profiles of a cell's processes to files that begin so")
	flag.BoolVar(&b.keep, "keep", false, "keep the data folders and logs")
	flag.BoolVar(&b.all, "debug", false, "with -keep: a cell's processes log all that they do")
	flag.Parse()
	b.idle, b.jobs, b.many, b.mods = 60*time.Second, 200, 2000, 200
	if quick {
		b.idle, b.jobs, b.many, b.mods = 6*time.Second, 20, 200, 20
		b.rounds, b.each = 1, time.Second
		b.kills, b.records, b.missed, b.crowded = 3, b.records/10, b.missed/10, 20
	}
	if b.tasks <= 0 {
		b.tasks = b.many / 2
	}
	b.rounds = max(b.rounds, 1)
	for n := range strings.SplitSeq(checks, ",") {
		if v, err := strconv.Atoi(n); err == nil && v >= 0 && v <= 2 {
			b.checks = append(b.checks, v)
		}
	}
	for name := range strings.SplitSeq(servers, ",") {
		if name != "" {
			if b.servers == nil {
				b.servers = map[string]bool{}
			}
			b.servers[name] = true
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := b.run(ctx, only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// part is one group of measurements.
type part struct {
	name string
	run  func(context.Context) error
}

func (b *bench) run(ctx context.Context, only string) error {
	parts := []part{{"up", b.up}, {"job", b.job}, {"array", b.array}, {"module", b.module}, {"loss", b.loss}, {"cells", b.cells}, {"failover", b.failover}, {"growth", b.growth}, {"catchup", b.catchUp}, {"crowd", b.crowd}, {"backends", b.backends}, {"tracked", b.tracked}}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(only, ",") {
		if name != "" {
			wanted[name] = true
		}
	}
	for name := range wanted {
		known := false
		for _, p := range parts {
			known = known || p.name == name
		}
		if !known {
			return fmt.Errorf("-only %s: there is no such part", name)
		}
	}
	var err error
	if b.pcm, err = filepath.Abs(b.pcm); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "pcm-bench-"); err != nil {
		return err
	}
	if b.keep {
		fmt.Println("data folders:", b.dir)
	} else {
		defer os.RemoveAll(b.dir)
	}
	p50, p99, err := fsyncTimes(b.dir)
	if err != nil {
		return err
	}
	fmt.Printf("machine: %d cores, %s, load %s; append of 4 KiB and fsync: p50 %s, p99 %s\n",
		runtime.NumCPU(), runtime.Version(), loadAverage(), ms(p50), ms(p99))
	for _, p := range parts {
		if len(wanted) > 0 && !wanted[p.name] {
			continue
		}
		if len(wanted) == 0 && (p.name == "backends" || p.name == "tracked") && os.Geteuid() != 0 {
			fmt.Printf("%s: NOT ROOT, IT IS NOT MEASURED: it starts servers\n", p.name)
			continue
		}
		run := p.run
		if len(wanted) == 0 && p.name == "backends" { // at full length it takes an hour
			short := *b
			short.tasks, short.rounds = max(b.tasks/10, 1), 1
			run = short.backends
		}
		if err := run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// figure prints one figure beside its target.
func figure(name, got, target string) { fmt.Printf("  %-52s %-28s %s\n", name, got, target) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
