package main

import (
	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

func (a *app) adapterTryCommand() *cobra.Command {
	var site trySite
	var name string
	var dry, run bool
	c := &cobra.Command{
		Use: "try FILE|NAME [--set NAME=VALUE] [--secret NAME=REFERENCE] [-- COMMAND…]", Short: "Go through a description: each request, and what is understood of each answer",
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at >= 0 {
				args = args[:at]
			}
			if name != "" {
				return between(0, 0, "")(c, args)
			}
			return exactly(1, "the FILE with the description, or the NAME of one that 'pcm adapter list' shows; or --adapter, with the name of one in the node's configuration")(c, args)
		},
		Long: `Logs in, lists pools and jobs, and shows how the back end's words and ours stand for
each other. Requests that would make, stop or delete something are only shown, unless --run:
then a small task is run for real. With --dry-run nothing is sent at all. Secrets show as ***.

With --adapter NAME everything is as the node's configuration has it under
adapters.described, so that what is tried is what the node will do:

  pcm adapter try --adapter modelarts --config /etc/pcm/config.yaml`,
		ValidArgsFunction: completeDescription,
		RunE: func(c *cobra.Command, args []string) error {
			if dry && run {
				return pcm.Errorf(pcm.Invalid, "--dry-run and --run exclude each other")
			}
			cfg, done, command, err := a.trial(c, &site, name, args)
			defer done()
			if err != nil {
				return err
			}
			steps := []rest.Step{}
			var log tryLog
			draw := func(f func(*table)) {
				t := &table{now: a.now(), wide: a.format == "wide"}
				f(t)
				_, err := a.out.Write([]byte(t.String()))
				_ = err // a reader that went away wants no more
			}
			opt := rest.TryOptions{DryRun: dry, Run: run, Task: adapters.Task{Command: command}, Out: func(s rest.Step) {
				if a.human() {
					draw(func(t *table) { log.step(t, s) })
					return
				}
				steps = append(steps, s)
			}}
			err = wanted(rest.Try(c.Context(), cfg, opt), "")
			if a.human() {
				draw(func(t *table) { log.end(t, err) })
			} else if perr := a.print(steps, nil); perr != nil {
				return perr
			}
			return err
		},
	}
	site.flags(c)
	c.Flags().StringVar(&name, "adapter", "", "`NAME` of the described adapter in the node's configuration to try, with what that says of it")
	c.Flags().BoolVar(&dry, "dry-run", false, "send nothing, show what would be sent")
	c.Flags().BoolVar(&run, "run", false, "run a task for real: COMMAND, or true")
	return c
}

// trial is what is to be tried: a description with what flags say, or the adapter
// that the node's configuration has; and the command after --.
func (a *app) trial(c *cobra.Command, site *trySite, name string, args []string) (cfg rest.Config, done func(), command []string, err error) {
	done = func() {}
	var d described
	if name == "" {
		if c.Flags().Changed("config") {
			return cfg, done, nil, pcm.Errorf(pcm.Invalid, "--config needs --adapter: the name of the adapter in it that is to be tried")
		}
		if d, err = a.readDescription(args[0]); err != nil {
			return cfg, done, nil, err
		}
		if _, err = d.valid(); err != nil {
			return cfg, done, nil, err
		}
		cfg, done, err = site.config(d)
		return cfg, done, args[1:], err
	}
	for _, flag := range []string{"set", "secret", "allow-private", "ca"} {
		if c.Flags().Changed(flag) {
			return cfg, done, nil, pcm.Errorf(pcm.Invalid, "--%s and --adapter exclude each other: the node's configuration says all of it", flag)
		}
	}
	if cfg, d, err = a.configured(site.file, name); err != nil {
		return cfg, done, nil, err
	}
	cfg, done, err = tried(cfg, d)
	return cfg, done, args, err
}

// valid is parse, with the first problem as an error.
func (d described) valid() (*description.Description, error) {
	parsed, problems := d.parse()
	if parsed != nil {
		return parsed, nil
	}
	for _, p := range problems {
		if !p.Warning {
			return nil, pcm.Errorf(pcm.Invalid, "%s; 'pcm adapter lint' tells all", lintLine(d.file, "error", p))
		}
	}
	return nil, pcm.Errorf(pcm.Invalid, "%s is no description", d.file)
}
