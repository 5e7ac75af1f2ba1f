package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) execCommand() *cobra.Command {
	var stdin, tty bool
	c := &cobra.Command{
		Use:   "exec TASK [-i] [-t] -- COMMAND [ARG…]",
		Short: "Run a command beside a running task, where that runs",
		Long: `Runs a command in the surroundings of a running task, at the peer that runs it:
same files, same limits, same network. Exits with the command's exit code. TASK is
JOB, JOB/INDEX, JOB/STEP or JOB/STEP/INDEX; of several tasks the first that runs
is taken.

  pcm exec job-x7k2mq4w -- ls -l
  pcm exec -it job-x7k2mq4w/train/0 -- sh
  tar c src | pcm exec -i job-x7k2mq4w -- tar x`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseTask(args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM)
			defer stop()
			t, err := name.running(ctx, c)
			if err != nil {
				return err
			}
			code, err := a.exec(ctx, c, t, api.ExecRequest{Command: args[1:]}, stdin, tty)
			if err != nil {
				return err
			}
			if code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) < 2 {
			return fmt.Errorf("pcm exec needs a TASK and, after --, a command, like: pcm exec job-x7k2mq4w -- ls; see 'pcm exec --help'")
		}
		return nil
	}
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	return c
}

// exec runs a command beside a task, on this program's terminal.
func (a *app) exec(ctx context.Context, c *api.Client, t api.Task, x api.ExecRequest, stdin, tty bool) (int, error) {
	x.TTY, x.Stdout, x.Stderr = tty, a.out, a.errOut
	if stdin {
		x.Stdin = a.in
	}
	if !tty {
		var stop context.CancelFunc
		ctx, stop = signal.NotifyContext(ctx, os.Interrupt)
		defer stop()
	}
	f, isFile := a.in.(*os.File)
	if !tty || !stdin || !isFile || !term.IsTerminal(int(f.Fd())) {
		if tty {
			x.Rows, x.Cols = 24, 80
		}
		return c.Exec(ctx, string(t.Job), t.Step, t.Index, x)
	}
	x.Rows, x.Cols = windowSize(f)
	resize := make(chan [2]uint16, 1)
	changed := make(chan os.Signal, 1)
	if windowChange != nil {
		signal.Notify(changed, windowChange)
		defer signal.Stop(changed)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-changed:
				rows, cols := windowSize(f)
				select {
				case resize <- [2]uint16{rows, cols}:
				case <-done:
					return
				}
			case <-done:
				return
			}
		}
	}()
	x.Resize = resize
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return 0, pcm.Errorf(pcm.Invalid, "can't set this terminal up for -t: %w", err)
	}
	defer term.Restore(int(f.Fd()), old) // if it fails there is no terminal any more
	x.Stdout = struct{ io.Writer }{a.out}
	return c.Exec(ctx, string(t.Job), t.Step, t.Index, x)
}

func windowSize(f *os.File) (rows, cols uint16) {
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil || w <= 0 || h <= 0 || w > 1<<15 || h > 1<<15 {
		return 24, 80
	}
	return uint16(h), uint16(w)
}
