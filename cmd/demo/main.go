// Command demo shows a mesh at work: three peers of three owners, each a process
// of its own on loopback, trade and run jobs, one of them is killed mid-task, and
// everything is checked. It needs the pcm program and a shell; it leaves nothing
// running. 'make demo' builds and runs it.
//
// With -backends it shows four sites with four back ends instead: Kubernetes,
// Slurm, Docker and plain processes share one job. It starts private instances of
// those and stops them; 'make demo-backends' builds and runs it. With -describe a
// site joins that has nothing but an account at a cloud, which no adapter in the
// program knows: 'make demo-describe'.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// How long the demo may take, without servers of others and with them, and how long it
// waits for one thing.
const (
	limit        = 2 * time.Minute
	limitServers = 5 * time.Minute
	patience     = 90 * time.Second
)

func main() {
	pcmPath := flag.String("pcm", "bin/pcm", "the pcm `PROGRAM`")
	docs := flag.String("docs", ".", "`FOLDER` whose Markdown documents are counted")
	backends := flag.Bool("backends", false, "show sites with Kubernetes, Slurm, Docker and processes")
	describe := flag.Bool("describe", false, "show a site that joins by a description of its cloud")
	manifest := flag.String("rbac", "configs/kubernetes/rbac.yaml", "`FILE` with the rights that Kubernetes gives the node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	play, most := func(s *stage) []act { return s.peersAct(*docs) }, limit
	switch {
	case *backends:
		play, most = func(s *stage) []act { return s.backendsAct(*docs, *manifest) }, limitServers
	case *describe:
		play = (*stage).describeAct
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	began := time.Now()
	if err := run(ctx, *pcmPath, play); err != nil {
		fmt.Fprintf(os.Stderr, "\nThe demo failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("\nAll checks passed in %.0f s, and nothing is left running.\n", time.Since(began).Seconds())
}

// act is a part of the demo.
type act func(context.Context) error

// peersAct is the demo without servers of others.
func (s *stage) peersAct(docs string) []act {
	return []act{
		s.found,
		func(ctx context.Context) error { return s.wordCount(ctx, docs) },
		s.webAssembly,
		s.survive,
		s.audit,
	}
}

// run plays the acts and ends what they started, however that goes.
func run(ctx context.Context, program string, play func(*stage) []act) (err error) {
	program, err = filepath.Abs(program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w; build it with 'make build'", err)
	}
	dir, err := os.MkdirTemp("", "pcm-demo-")
	if err != nil {
		return err
	}
	s := &stage{program: program, dir: dir}
	defer func() {
		if err != nil && ctx.Err() == nil {
			s.explain()
		}
		if cleanup := s.end(); err == nil {
			err = cleanup
		}
	}()
	for _, act := range play(s) {
		if err := act(ctx); err != nil {
			if cause := ctx.Err(); cause != nil {
				return fmt.Errorf("it was interrupted (%w): %w", cause, err)
			}
			return err
		}
	}
	return nil
}

// title begins an act.
func title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Printf("\n%s\n%s\n", text, strings.Repeat("─", len([]rune(text))))
}

// tell explains what is shown.
func tell(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// check tells what was checked; err is what was wrong.
func check(err error, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if err != nil {
		fmt.Printf("\n✗ %s\n", text)
		return fmt.Errorf("%s: %w", text, err)
	}
	fmt.Printf("\n✓ %s\n", text)
	return nil
}
