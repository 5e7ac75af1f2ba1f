package main

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/container"
	"github.com/jointcloud/pcm/adapters/kubernetes"
	"github.com/jointcloud/pcm/adapters/plugin"
	"github.com/jointcloud/pcm/adapters/process"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/slurm"
	"github.com/jointcloud/pcm/adapters/supervisor"
	"github.com/jointcloud/pcm/adapters/wasm"
)

// supervised is what the supervisor is told by the daemon that starts it: how
// tasks are kept in. It stands in the arguments, for all of the machine to read:
// secrets go by reference. A supervisor with other settings is replaced when it is idle.
type supervised struct {
	Dir       string `json:"dir"`
	Cache     string `json:"cache"` // of compiled WebAssembly modules
	Sandbox   string `json:"sandbox"`
	Network   bool   `json:"network"`
	Disk      string `json:"disk"`
	MaxOutput string `json:"max_output"`
	Version   string `json:"version"`

	Container *container.RunnerConfig `json:"container,omitempty"`
	Slurm     *slurm.Config           `json:"slurm,omitempty"` // nil: not sold

	Kubernetes *kubernetes.Settings `json:"kubernetes,omitempty"`

	Described []rest.Config   `json:"described,omitempty"`
	Plugins   []plugin.Config `json:"plugins,omitempty"`
}

// superviseCommand is the process outside the daemon that holds tasks' leases.
// The daemon starts it; people don't.
func (a *app) superviseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "supervise SETTINGS", Hidden: true, Short: "Hold the leases of this node's tasks (the daemon starts this)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var s supervised
			if err := json.Unmarshal([]byte(args[0]), &s); err != nil || s.Dir == "" {
				return pcm.Errorf(pcm.Invalid, "supervise needs its settings as JSON; 'pcm up' starts it by itself")
			}
			// Ending by a signal ends the tasks and records it; their node tries them again.
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50) // it works little and may hold many attempts: memory counts
			}
			return s.serve(ctx)
		},
	}
}

func (s supervised) serve(ctx context.Context) error {
	limit, err := pcm.ParseBytes(s.MaxOutput)
	if err != nil {
		return err
	}
	log := slog.Default() // to standard error, which the daemon has pointed at the supervisor's log
	disk, err := pcm.ParseBytes(s.Disk)
	if err != nil {
		return err
	}
	found := adapters.DetectAccelerators(ctx, adapters.Machine{})
	rest := found
	if s.Container != nil {
		_, rest = container.Split(s.Container.GPUs, found) // what containers have, processes don't
	}
	proc, err := process.NewRunner(process.RunnerConfig{Dir: s.Dir, Sandbox: s.Sandbox, Network: s.Network, Disk: disk, Devices: rest, Logger: log})
	if err != nil {
		return err
	}
	web, err := wasm.NewRunner(ctx, wasm.RunnerConfig{CacheDir: s.Cache, Logger: log})
	if err != nil {
		return err
	}
	clusters, err := slurmRunner(s.Slurm, log)
	if err != nil {
		return err
	}
	kube, err := kubernetesRunner(ctx, s.Kubernetes, log)
	if err != nil {
		return err
	}
	runners := append(append([]supervisor.Runner{proc, web}, clusters...), kube...)
	if s.Container != nil {
		cfg := *s.Container
		cfg.Dir, cfg.Logger, cfg.Devices = s.Dir, log, found
		r, err := container.NewRunner(cfg)
		if err != nil {
			return err
		}
		runners = append(runners, r)
	}
	runners = append(runners, describedRunners(s.Described, log)...)
	runners = append(runners, pluginRunners(s.Plugins, s.Dir, log)...)
	go settle(ctx, log)
	return supervisor.Serve(ctx, supervisor.Config{
		Dir: s.Dir, Runners: runners, Version: s.Version, OutputCap: limit,
	})
}

// tasksDir is the supervisor's folder.
func tasksDir(cfg Config) string { return filepath.Join(cfg.Data, "tasks") }

// supervisorClient is the daemon's way to the supervisor of its data folder.
// instance is its name at back ends, executable this program.
func supervisorClient(cfg Config, instance, executable, version string, log *slog.Logger) (*supervisor.Client, error) {
	s := supervised{
		Dir: tasksDir(cfg), Cache: filepath.Join(cfg.Data, "cache", "wasm"),
		Sandbox: cfg.Adapters.Process.Sandbox, Network: cfg.Adapters.Process.Network, Disk: cfg.Adapters.Process.Disk, MaxOutput: cfg.Adapters.MaxOutput, Version: version,
	}
	if cluster := cfg.Adapters.Slurm; cluster.Enabled {
		c := cluster.settings(cfg.Data, instance)
		s.Slurm = &c
	}
	if kube := cfg.Adapters.Kubernetes; kube.Enabled {
		set := kube.settings(instance)
		s.Kubernetes = &set
	}
	if c := cfg.Adapters.Container; c.Enabled {
		r, err := c.runner()
		if err != nil {
			return nil, err
		}
		s.Container = &r
	}
	plugins, environ, err := pluginSettings(cfg.Adapters.Plugins, s.Dir, instance, version)
	if err != nil {
		return nil, err
	}
	s.Plugins = plugins
	if s.Described, err = describedConfigs(cfg.Adapters.Described, s.Dir, instance); err != nil {
		return nil, err
	}
	environ = append(environ, describedEnviron(cfg.Adapters.Described)...)
	same, err := json.Marshal(s)
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't encode the supervisor's settings: %w", err)
	}
	s.Version = version + " " + string(pcm.DigestOf(same))[:12]
	settings, err := json.Marshal(s)
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't encode the supervisor's settings: %w", err)
	}
	return supervisor.NewClient(supervisor.ClientConfig{
		Dir: s.Dir, Argv: []string{executable, "supervise", string(settings)}, Version: s.Version, Logger: log,
		Env: append(cfg.Adapters.Slurm.environ(), environ...),
	}), nil
}
