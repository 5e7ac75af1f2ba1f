// Command bench measures what PCM promises, with real processes on this machine:
// start and idle cost, the latency of one job on a cell of three, the throughput
// of arrays, and how long the loss of a seller takes to mend. Each figure is
// printed beside its target; a missed target does not fail the run, since figures
// depend on the machine, but a wrong result does. The parts backends and tracked are run only when
// they are named: they start the servers of other back ends, as root, and take long.
//
//	go run ./cmd/bench -pcm bin/pcm [-only up,job,array,module,loss,backends,tracked] [-servers slurm] [-quick]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
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

	tasks   int             // of an array on a back end
	rounds  int             // of each such array
	servers map[string]bool // that are measured; none: all
}

func main() {
	var b bench
	var only, servers string
	var quick bool
	flag.StringVar(&b.pcm, "pcm", "bin/pcm", "the program to measure")
	flag.StringVar(&only, "only", "", "parts to run, separated by commas: up, job, array, module, loss (default: these), backends, tracked")
	flag.StringVar(&servers, "servers", "", "back ends to measure, separated by commas: process, slurm, container, kubernetes (default: all)")
	flag.IntVar(&b.tasks, "tasks", 0, "tasks of an array on a back end, a tenth of those tracked (default: 1000)")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each back end runs it")
	flag.BoolVar(&quick, "quick", false, "a tenth of everything, for a first look")
	flag.BoolVar(&b.keep, "keep", false, "keep the data folders and logs")
	flag.Parse()
	b.idle, b.jobs, b.many, b.mods = 60*time.Second, 200, 2000, 200
	if quick {
		b.idle, b.jobs, b.many, b.mods = 6*time.Second, 20, 200, 20
		b.rounds = 1
	}
	if b.tasks <= 0 {
		b.tasks = b.many / 2
	}
	b.rounds = max(b.rounds, 1)
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
	parts := []part{{"up", b.up}, {"job", b.job}, {"array", b.array}, {"module", b.module}, {"loss", b.loss}, {"backends", b.backends}, {"tracked", b.tracked}}
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
		if len(wanted) > 0 && !wanted[p.name] || len(wanted) == 0 && (p.name == "backends" || p.name == "tracked") { // these take servers, and long
			continue
		}
		if err := p.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// figure prints one figure beside its target.
func figure(name, got, target string) { fmt.Printf("  %-52s %-28s %s\n", name, got, target) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
