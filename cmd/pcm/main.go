// Command pcm is the one binary: the daemon of a peer, its command line and the
// supervisor of its tasks.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() {
	a := &app{in: os.Stdin, out: os.Stdout, errOut: os.Stderr, getenv: os.Getenv, now: time.Now}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// app is one run of the program: where it reads and writes, and its global flags.
type app struct {
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	getenv func(string) string
	now    func() time.Time

	api, data, format string // the global flags
	started           bool   // the command line was understood
}

// exitStatus ends the program with a status and without a further message.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Exit codes, besides those of [pcm.Code.ExitCode].
const (
	exitFailed = 1 // the job failed, or what was checked is not true
	exitUsage  = 2
)

func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if status, ok := errors.AsType[exitStatus](err); ok {
		return int(status)
	}
	fmt.Fprintf(a.errOut, "pcm: %s\n", strings.TrimSpace(err.Error()))
	if !a.started {
		return exitUsage
	}
	return pcm.ErrorCode(err).ExitCode()
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "pcm",
		Short: "Join computing sites of different owners; trade and run jobs among them",
		Long: `pcm joins computing sites of different owners into a mesh without a central
server. Each site runs one peer; peers find each other, tell what they sell,
agree on who runs what and who owes what, and run it on what they already have.

Begin with 'pcm up' in one terminal and 'pcm run -- echo hello' in another.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRun: func(*cobra.Command, []string) {
			a.started = true
		},
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.api, "api", "", "address `HOST:PORT` of the node's API (PCM_API)")
	f.StringVar(&a.data, "data", "", "data folder `DIR` of the node (PCM_DATA; default $XDG_DATA_HOME/pcm, else ~/.pcm)")
	f.StringVarP(&a.format, "format", "o", "table", "output `FORMAT`: table, wide, json or yaml")

	root.AddGroup(&cobra.Group{ID: "node", Title: "This node:"}, &cobra.Group{ID: "work", Title: "Work:"}, &cobra.Group{ID: "sell", Title: "Selling:"}, &cobra.Group{ID: "mesh", Title: "The mesh:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("node", a.upCommand(), a.downCommand(), a.inviteCommand(), a.joinCommand(), a.leaveCommand(), a.statusCommand(), a.doctorCommand(), a.backupCommand(), a.restoreCommand(), a.rootKeyCommand())
	add("work", a.runCommand(), a.jobCommand(), a.execCommand(), a.copyCommand(), a.forwardCommand())
	add("sell", a.poolCommand(), a.adapterCommand(), a.taskCommand(), a.accountCommand(), a.rulesCommand(), a.auditCommand())
	add("mesh", a.peersCommand(), a.offersCommand(), a.classCommand(), a.tradesCommand(), a.tradeCommand(), a.balancesCommand(), a.cellCommand(), a.ledgerCommand())
	root.AddCommand(a.versionCommand(), a.superviseCommand(), a.adapterSuiteCommand(), a.adapterSuperviseCommand(), adapterScriptCommand())
	root.RunE = a.group(root)
	root.InitDefaultCompletionCmd("completion")
	a.complete(root)
	return root
}

// group is what a command does that only holds others: help, or an error that
// names the nearest of them.
func (a *app) group(c *cobra.Command) func(*cobra.Command, []string) error {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		var names []string
		for _, sub := range cmd.Commands() {
			if sub.IsAvailableCommand() {
				names = append(names, sub.Name())
			}
		}
		return fmt.Errorf("unknown command %q for %q%s; see '%s --help'", args[0], cmd.CommandPath(), didYouMean(args[0], names), cmd.CommandPath())
	}
	return func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

// flagError adds the nearest flag to an error about an unknown one.
func flagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	hint := ""
	if errors.As(err, &unknown) {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if n := pcm.Nearest(unknown.GetSpecifiedName(), names); n != "" {
			hint = "; did you mean --" + n + "?"
		}
	}
	return fmt.Errorf("%w%s; see '%s --help'", err, hint, c.CommandPath())
}

// exactly and friends word cobra's argument checks for people.
func exactly(n int, usage string) cobra.PositionalArgs { return between(n, n, usage) }

func between(lo, hi int, usage string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < lo:
			return fmt.Errorf("%s needs %s; see '%s --help'", c.CommandPath(), usage, c.CommandPath())
		case len(args) > hi && hi == 0:
			return fmt.Errorf("%s takes no arguments, got %q; see '%s --help'", c.CommandPath(), args[0], c.CommandPath())
		case len(args) > hi:
			return fmt.Errorf("%s takes only %s, got %q as well; see '%s --help'", c.CommandPath(), usage, args[hi], c.CommandPath())
		}
		return nil
	}
}

var noArgs = between(0, 0, "")

// dataDir is the data folder that flag or environment names, and whether one of them does.
func (a *app) dataDir() (dir string, named bool) {
	if a.data != "" {
		return a.data, true
	}
	if dir := a.getenv("PCM_DATA"); dir != "" {
		return dir, true
	}
	return defaultData(a.getenv), false
}

// client finds the node: by --api, --data, PCM_API, PCM_DATA, in that order,
// else in the default data folder.
func (a *app) client() (*api.Client, error) {
	dir, named := a.dataDir()
	t := api.Target{Data: dir, API: a.api, Token: a.getenv("PCM_TOKEN")}
	if t.API == "" && a.data == "" {
		t.API = a.getenv("PCM_API")
	}
	if t.API != "" && !named && readAddr(dir) != t.API {
		t.Data = "" // the default folder is another node's: so is its token
	}
	return api.Dial(t)
}

// self is the command line that reaches the same node as this one does.
func (a *app) self() string {
	s := "pcm"
	if a.data != "" {
		s += " --data " + a.data
	}
	if a.api != "" {
		s += " --api " + a.api
	}
	return s
}

func (a *app) versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}
