// Command chaos breaks cells while they are used, and checks that they keep their
// promises: two cells of five and three voters, each peer a process on a disk and
// behind a wire that fail as told; clients who trade and read through any of them;
// a nemesis for each cell, which strikes once more when the cell has come to rest. In the end every replica, every record and every answer that a client
// had are held against each other.
//
//	go run ./cmd/chaos [-seed 1] [-for 5m] [-faults 200] [-operations 10000] [-attempts 500] [-tasks 500]
//	go run ./cmd/chaos -teeth [-seeds 10] [-bug "no fsync"]
//
// Then five whole peers trade tasks that really run, while daemons and supervisors are
// killed and stopped; the tasks bear witness. With -teeth, bugs are planted instead, one after the other: each must be found.
// A seed gives the same schedule of faults. What they meet depends on the machine too.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if os.Getenv(peerEnv) != "" {
		if err := servePeer(); err != nil {
			fmt.Fprintln(os.Stderr, "the peer has ended:", err)
			os.Exit(1)
		}
		return
	}
	var s settings
	flag.Uint64Var(&s.seed, "seed", 0, "of the schedule (default: drawn, and printed)")
	flag.DurationVar(&s.least, "for", 5*time.Minute, "how long at least")
	flag.IntVar(&s.faults, "faults", 200, "faults at least")
	flag.IntVar(&s.operations, "operations", 10_000, "acknowledged operations at least")
	flag.IntVar(&s.attempts, "attempts", 500, "attempts that are bought at least")
	flag.StringVar(&s.keep, "keep", "", "a folder in which everything is left")
	flag.Func("cells", "voters of each cell, e.g. 5,3", func(v string) error {
		for n := range strings.SplitSeq(v, ",") {
			size, err := strconv.Atoi(n)
			if err != nil || size < 1 {
				return fmt.Errorf("%q is no number of voters", n)
			}
			s.sizes = append(s.sizes, size)
		}
		return nil
	})
	flag.Func("only", "kinds of faults, separated by commas; none: no faults", func(v string) error {
		s.only = strings.Split(v, ",")
		return nil
	})
	flag.Func("probes", "numbers of what traders try that must be refused (clients.go), separated by commas", func(v string) error {
		for text := range strings.SplitSeq(v, ",") {
			n, err := strconv.Atoi(text)
			if err != nil {
				return err
			}
			s.probes = append(s.probes, n)
		}
		return nil
	})
	flag.IntVar(&s.after, "after", 0, "acknowledged commands before the first fault")
	flag.Uint64Var(&s.snapshot, "snapshot", 0, "entries after which peers take a snapshot")
	flag.BoolVar(&s.hasty, "hasty", false, "end at the first promise that a client sees broken")
	flag.BoolVar(&s.bare, "bare", false, "nobody trades between cells or is of no cell, no replicas")
	abroad := flag.Bool("abroad", false, "with -bare: but for trade between cells")
	flag.StringVar(&s.older, "older", "", "the program of an older release, from which the cells are updated under load; none: they aren't (default: it is built)")
	flag.DurationVar(&s.heavyPause, "pause", 600*time.Millisecond, "between faults of processes and disks, about")
	var ts taskSettings
	flag.IntVar(&ts.attempts, "tasks", 500, "attempts that really run, at least; 0: none")
	flag.BoolVar(&ts.supervisors, "supervisors", true, "kill supervisors as well: two attempts of a task at once are no failure where the earlier one's was")
	flag.StringVar(&ts.pcm, "pcm", "bin/pcm", "the program whose peers run them")
	flag.DurationVar(&patience, "patience", patience, "how long a cell may take to recover")
	flag.DurationVar(&s.most, "limit", 0, "how long the load may take at most (default: three times -for and ten minutes)")
	withBugs := flag.Bool("teeth", false, "plant one bug after the other instead: each must be found")
	seeds := flag.Int("seeds", 10, "with -teeth: runs with each bug")
	from := flag.Int("from", 1, "with -teeth: the first seed")
	bug := flag.String("bug", "", "the planted bug of this run, or with -teeth the only ones, separated by commas")
	flag.Parse()
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano())
	}
	if s.most == 0 {
		s.most = 3*s.least + 10*time.Minute
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if *withBugs {
		var only []string
		if *bug != "" {
			only = strings.Split(*bug, ",")
		}
		err := teeth(ctx, os.Stdout, s.keep, *from, *seeds, only)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		return
	}
	if *bug != "" {
		s.env = []string{bugEnv + "=" + *bug}
	}
	var built string // a folder that is ours
	var err error
	s.bare = s.bare && !*abroad
	if !s.bare && !*abroad {
		s.replicas = 1
	}
	switch s.older {
	case "none":
		s.older = ""
	case "":
		if built, err = os.MkdirTemp("", "pcm-older-"); err == nil {
			s.older, err = older(ctx, built)
		}
		if err != nil {
			err = fmt.Errorf("no older release to update from: %w", err)
		}
	}
	var r *report
	if err == nil {
		r, err = run(ctx, s)
	}
	if built != "" {
		os.RemoveAll(built)
	}
	if r != nil {
		r.print(os.Stdout)
	}
	tell(err) // what follows takes minutes
	if ts.attempts > 0 {
		ts.seed, ts.faults, ts.most = s.seed, ts.attempts/25, s.most
		if s.keep != "" {
			ts.keep = filepath.Join(s.keep, "tasks")
		}
		tr, terr := runTasks(ctx, ts)
		if tr != nil {
			tr.print(os.Stdout)
		}
		tell(terr)
		err = errors.Join(err, terr)
	}
	stop()
	if err != nil {
		if errors.Is(err, errBroken) {
			os.Exit(exitBroken)
		}
		os.Exit(1)
	}
}

func tell(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
}
