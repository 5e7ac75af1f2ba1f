// Command demo shows a mesh at work: three peers of three owners, each a process
// of its own on loopback, trade and run jobs, one of them is killed mid-task, and
// everything is checked. It needs the pcm program and a shell; it leaves nothing
// running. 'make demo' builds and runs it.
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

// limit bounds the whole demo.
const limit = 2 * time.Minute

func main() {
	pcmPath := flag.String("pcm", "bin/pcm", "the pcm `PROGRAM`")
	docs := flag.String("docs", ".", "`FOLDER` whose Markdown documents are counted")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	if err := run(ctx, *pcmPath, *docs); err != nil {
		fmt.Fprintf(os.Stderr, "\nThe demo failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("\nAll checks passed in %.0f s, and nothing is left running.\n", time.Since(began).Seconds())
}

// run plays the whole demo and ends what it started, however that goes.
func run(ctx context.Context, program, docs string) (err error) {
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
	for _, act := range []func(context.Context) error{
		s.found,
		func(ctx context.Context) error { return s.wordCount(ctx, docs) },
		s.webAssembly,
		s.survive,
		s.audit,
	} {
		if err := act(ctx); err != nil {
			if cause := ctx.Err(); cause != nil {
				return fmt.Errorf("it was interrupted (%w)", cause)
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
