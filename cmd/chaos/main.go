// Command chaos breaks cells while they are used, and checks that they keep their
// promises: two cells of five and three voters, each peer a process on a disk and
// behind a wire that fail as told; clients who trade and read through any of them;
// a nemesis for each cell. In the end every replica, every record and every answer that a client
// had are held against each other.
//
//	go run ./cmd/chaos [-seed 1] [-for 5m] [-faults 200] [-operations 10000] [-attempts 500]
//
// A seed gives the same schedule of faults. What they meet depends on the machine too.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
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
	flag.Parse()
	if s.seed == 0 {
		s.seed = uint64(time.Now().UnixNano())
	}
	s.most = 3*s.least + 10*time.Minute
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	r, err := run(ctx, s)
	stop()
	if r != nil {
		r.print(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}
