package main

import (
	"cmp"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// trySite is what a site says of a back end that is tried.
type trySite struct {
	set, secret  []string
	allowPrivate bool
	ca           string
}

func (s *trySite) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&s.set, "set", nil, "a setting, `NAME=VALUE`; may be given several times")
	f.StringArrayVar(&s.secret, "secret", nil, "where a secret is, `NAME=REFERENCE`: env:VARIABLE or file:/PATH; may be given several times")
	f.BoolVar(&s.allowPrivate, "allow-private", false, "allow loopback, link-local and private addresses")
	f.StringVar(&s.ca, "ca", "", "`FILE` with certificates to believe beside the system's")
}

func pairs(flag string, list []string) (map[string]string, error) {
	all := map[string]string{}
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, pcm.Errorf(pcm.Invalid, "%s has no NAME= before its value", flag)
		}
		all[k] = v
	}
	return all, nil
}

// config makes the configuration of a description; done deletes what was made for it.
func (s *trySite) config(d described) (cfg rest.Config, done func(), err error) {
	done = func() {}
	cfg = rest.Config{Instance: "try", File: d.file, AllowPrivate: s.allowPrivate, CA: s.ca}
	if cfg.Settings, err = pairs("--set", s.set); err != nil {
		return cfg, done, err
	}
	if cfg.Secrets, err = pairs("--secret", s.secret); err != nil {
		return cfg, done, err
	}
	dir, err := os.MkdirTemp("", "pcm-try-")
	if err != nil {
		return cfg, done, pcm.Errorf(pcm.Internal, "can't make a folder: %w", err)
	}
	done = func() { os.RemoveAll(dir) }
	cfg.Dir = dir
	if d.dir == "" || d.file == "standard input" {
		cfg.File = filepath.Join(dir, "adapter.yaml")
		if err := os.WriteFile(cfg.File, d.text, 0o600); err != nil {
			return cfg, done, pcm.Errorf(pcm.Internal, "can't keep the description: %w", err)
		}
	}
	return cfg, done, nil
}

func (a *app) adapterTryCommand() *cobra.Command {
	var site trySite
	var dry, run bool
	c := &cobra.Command{
		Use: "try FILE|NAME [--set NAME=VALUE] [--secret NAME=REFERENCE] [-- COMMAND…]", Short: "Go through a description: each request, and what is understood of each answer",
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at >= 0 {
				args = args[:at]
			}
			return exactly(1, "the FILE with the description, or the NAME of one that 'pcm adapter list' shows")(c, args)
		},
		Long: `Logs in, lists pools and jobs, and shows how the back end's words and ours stand for
each other. Requests that would make, stop or delete something are only shown, unless --run:
then a small task is run for real. With --dry-run nothing is sent at all. Secrets show as ***.`,
		ValidArgsFunction: completeDescription,
		RunE: func(c *cobra.Command, args []string) error {
			d, err := a.readDescription(args[0])
			if err != nil {
				return err
			}
			if _, err := d.valid(); err != nil {
				return err
			}
			if dry && run {
				return pcm.Errorf(pcm.Invalid, "--dry-run and --run exclude each other")
			}
			cfg, done, err := site.config(d)
			defer done()
			if err != nil {
				return err
			}
			steps := []rest.Step{}
			opt := rest.TryOptions{DryRun: dry, Run: run, Task: adapters.Task{Command: args[1:]}, Out: func(s rest.Step) {
				if a.human() {
					t := &table{now: a.now(), wide: a.format == "wide"}
					drawStep(t, s)
					_, err := a.out.Write([]byte(t.String()))
					_ = err // a reader that went away wants no more
					return
				}
				steps = append(steps, s)
			}}
			err = rest.Try(c.Context(), cfg, opt)
			if !a.human() {
				if perr := a.print(steps, nil); perr != nil {
					return perr
				}
			}
			return err
		},
	}
	site.flags(c)
	c.Flags().BoolVar(&dry, "dry-run", false, "send nothing, show what would be sent")
	c.Flags().BoolVar(&run, "run", false, "run a task for real: COMMAND, or true")
	return c
}

func drawStep(t *table, s rest.Step) {
	if x := s.Exchange; x != nil {
		verb := "would send"
		if s.Sent {
			verb = "sent"
		}
		t.text("%s: %s %s %s", s.Part, verb, plain(x.Method), plain(x.URL))
		if x.RequestBody != "" {
			for _, l := range showBody(x.RequestBody) {
				t.text("    %s", l)
			}
		}
		if x.Status != 0 {
			t.text("  answer: HTTP %d", x.Status)
			if x.ResponseBody != "" {
				for _, l := range showBody(x.ResponseBody) {
					t.text("    %s", l)
				}
			}
		}
	}
	for _, f := range s.Facts {
		t.text("  %s: %s = %s", s.Part, plain(f.Ours), plain(f.Theirs))
	}
	if s.Err != "" {
		t.text("  %s: error: %s", s.Part, plain(s.Err))
	}
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

// diffView is in what two back ends differ.
type diffView struct {
	A           string                   `json:"a"`
	B           string                   `json:"b"`
	Differences []description.Difference `json:"differences"`
}

func (a *app) adapterDiffCommand() *cobra.Command {
	return &cobra.Command{
		Use: "diff A B", Short: "Compare two descriptions: what one back end offers that the other doesn't", Args: exactly(2, "two descriptions: FILEs, or NAMEs that 'pcm adapter list' shows"),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 1 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return completeDescription(nil, nil, "")
		},
		RunE: func(_ *cobra.Command, args []string) error {
			var both [2]*description.Description
			v := diffView{A: args[0], B: args[1]}
			for i, arg := range args {
				d, err := a.readDescription(arg)
				if err != nil {
					return err
				}
				if both[i], err = d.valid(); err != nil {
					return err
				}
			}
			v.Differences = description.Diff(both[0], both[1])
			return a.print(v, func(t *table) {
				if len(v.Differences) == 0 {
					t.text("no differences")
					return
				}
				t.row("OF", "NAME", strings.ToUpper(both[0].Name), strings.ToUpper(both[1].Name))
				for _, d := range v.Differences {
					t.row(d.Of, d.Name, cmp.Or(d.A, "-"), cmp.Or(d.B, "-"))
				}
			})
		},
	}
}
