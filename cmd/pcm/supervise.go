package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/process"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/adapters/wasm"
)

// superviseFlags say how the supervisor keeps tasks in.
type superviseFlags struct {
	dir, cache, sandbox, maxOutput, version string
}

// args are the arguments of this program that start such a supervisor.
func (f superviseFlags) args() []string {
	return []string{"supervise", "--dir", f.dir, "--cache", f.cache, "--sandbox", f.sandbox, "--max-output", f.maxOutput, "--as-version", f.version}
}

// superviseCommand is the process outside the daemon that holds tasks' leases.
// The daemon starts it; people don't.
func (a *app) superviseCommand() *cobra.Command {
	var f superviseFlags
	c := &cobra.Command{
		Use: "supervise", Hidden: true, Short: "Hold the leases of this node's tasks (the daemon starts this)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Ending by a signal ends the tasks and records it; their node tries them again.
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return f.serve(ctx)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.dir, "dir", "", "`FOLDER` of the supervisor")
	fl.StringVar(&f.cache, "cache", "", "`FOLDER` for compiled WebAssembly modules")
	fl.StringVar(&f.sandbox, "sandbox", process.SandboxAuto, "auto, bubblewrap or none")
	fl.StringVar(&f.maxOutput, "max-output", "1GiB", "most that a task may write")
	fl.StringVar(&f.version, "as-version", "", "version and settings, for the daemon to compare")
	return c
}

func (f superviseFlags) serve(ctx context.Context) error {
	if f.dir == "" {
		return pcm.Errorf(pcm.Invalid, "supervise needs --dir; 'pcm up' starts it by itself")
	}
	limit, err := pcm.ParseBytes(f.maxOutput)
	if err != nil {
		return err
	}
	log := slog.Default() // to standard error, which the daemon has pointed at the supervisor's log
	proc, err := process.NewRunner(process.RunnerConfig{Dir: f.dir, Sandbox: f.sandbox, Logger: log})
	if err != nil {
		return err
	}
	web, err := wasm.NewRunner(ctx, wasm.RunnerConfig{CacheDir: f.cache, Logger: log})
	if err != nil {
		return err
	}
	return supervisor.Serve(ctx, supervisor.Config{
		Dir: f.dir, Runners: []supervisor.Runner{proc, web}, Version: f.version, OutputCap: limit,
	})
}

// supervisorClient is the daemon's way to the supervisor of its data folder.
// executable is this program.
func supervisorClient(cfg Config, executable, version string, log *slog.Logger) *supervisor.Client {
	f := superviseFlags{
		dir: filepath.Join(cfg.Data, "tasks"), cache: filepath.Join(cfg.Data, "cache", "wasm"),
		sandbox: cfg.Adapters.Process.Sandbox, maxOutput: cfg.Adapters.MaxOutput,
	}
	f.version = version + " " + f.sandbox + " " + f.maxOutput
	return supervisor.NewClient(supervisor.ClientConfig{
		Dir: f.dir, Argv: append([]string{executable}, f.args()...), Version: f.version, Logger: log,
	})
}
