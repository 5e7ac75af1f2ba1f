package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/description"
	"github.com/jointcloud/pcm/configs"
)

func (a *app) adapterCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "adapter", Aliases: []string{"adapters"}, Short: "Describe back ends, check descriptions, write adapters",
		Long: `Tasks run on back ends, each of which an adapter knows. Some are built in; a back
end with a REST API needs no code, but a description of it in YAML; anything else
is written as a plug-in in any language, most of which 'pcm adapter new' generates.`,
	}
	c.RunE = a.group(c)
	c.AddCommand(a.adapterListCommand(), a.adapterLintCommand(), a.adapterSchemaCommand(), a.adapterTryCommand(), a.adapterDiffCommand(), a.adapterTestCommand(), a.adapterNewCommand(), a.adapterStatsCommand())
	return c
}

// adapterView is an adapter that this program knows.
type adapterView struct {
	Name  string `json:"name"`
	Kind  string `json:"kind"` // built in, or described
	About string `json:"about"`
	Login string `json:"login,omitempty"`
	Home  string `json:"homepage,omitempty"`
}

var builtIn = []adapterView{
	{Name: "process", About: "programs on this machine, kept in by a sandbox"},
	{Name: "wasm", About: "WebAssembly modules on this machine"},
	{Name: "container", About: "containers of Docker or Podman on this machine"},
	{Name: "slurm", About: "batch jobs of a Slurm cluster"},
	{Name: "kubernetes", About: "Jobs of a Kubernetes cluster"},
}

func adapterViews() ([]adapterView, error) {
	list := slices.Clone(builtIn)
	for i := range list {
		list[i].Kind = "built in"
	}
	for _, name := range configs.AdapterNames() {
		d, problems := description.Parse(configs.Adapter(name))
		if d == nil {
			return nil, pcm.Errorf(pcm.Internal, "the description %s in this program is broken: %v", name, problems[0])
		}
		list = append(list, adapterView{name, "described", oneLine(d.About), cmp.Or(d.Login.Kind, "none"), d.Homepage})
	}
	return list, nil
}

// oneLine is the first line of a text, without white space around it.
func oneLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return strings.TrimSpace(line)
}

func (a *app) adapterListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the adapters that this program knows", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			list, err := adapterViews()
			if err != nil {
				return err
			}
			return a.print(list, func(t *table) {
				head := []string{"ADAPTER", "KIND", "ABOUT"}
				if t.wide {
					head = []string{"ADAPTER", "KIND", "LOG-IN", "HOMEPAGE", "ABOUT"}
				}
				t.row(head...)
				for _, v := range list {
					if t.wide {
						t.row(v.Name, v.Kind, cmp.Or(v.Login, "-"), cmp.Or(v.Home, "-"), v.About)
						continue
					}
					t.row(v.Name, v.Kind, v.About)
				}
			})
		},
	}
}

func (a *app) adapterSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use: "schema", Short: "Print the JSON Schema of descriptions, from which editors complete", Args: noArgs,
		Long: `Prints the JSON Schema (2020-12) of descriptions. Editors with a YAML language
server take it from the first line of a description:

  # yaml-language-server: $schema=adapter.schema.json`,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.out.Write(configs.AdapterSchema)
			return written(err)
		},
	}
}

// described is a description as a command was told to read it.
type described struct {
	text []byte
	file string // as messages call it
	dir  string // where its neighbours are; "" for one that came with the program
}

// readDescription takes the name of a shipped description, a path, or - for standard input.
func (a *app) readDescription(arg string) (d described, err error) {
	switch text := configs.Adapter(arg); {
	case text != nil:
		return described{text, arg, ""}, nil
	case arg == "-":
		text, err = io.ReadAll(io.LimitReader(a.in, description.MaxSize+1))
		d = described{text, "standard input", "."}
	default:
		text, err = readBounded(arg)
		d = described{text, arg, filepath.Dir(arg)}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, pcm.Errorf(pcm.NotFound, "there is no file %s, and no description of that name in this program%s; 'pcm adapter list' shows those", arg, didYouMean(arg, configs.AdapterNames()))
	case err != nil:
		return d, pcm.Errorf(pcm.Invalid, "can't read the description: %w", err)
	}
	return d, nil
}

// parse reads it, with the problems found; the description is nil if one is an error.
func (d described) parse() (*description.Description, []description.Problem) {
	if d.dir == "" {
		return description.Parse(d.text)
	}
	return description.ParseIn(d.text, os.DirFS(d.dir))
}

// lintView is what lint found.
type lintView struct {
	File     string                `json:"file"`
	Errors   int                   `json:"errors"`
	Warnings int                   `json:"warnings"`
	Problems []description.Problem `json:"problems"`
}

func (a *app) adapterLintCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lint FILE|NAME", Short: "Check a description: each problem with its line and reason", Args: exactly(1, "the FILE with the description, or the NAME of one that 'pcm adapter list' shows"),
		Long: `Checks a description without asking anybody else. Each problem comes with its line
and the reason. The exit code is 2 if one of them is an error; warnings don't count.
docs/descriptions.md explains each field, and what expressions may read.`,
		ValidArgsFunction: completeDescription,
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := a.readDescription(args[0])
			if err != nil {
				return err
			}
			v := lintView{File: d.file, Problems: []description.Problem{}}
			_, problems := d.parse()
			for _, p := range problems {
				if p.Warning {
					v.Warnings++
				} else {
					v.Errors++
				}
				v.Problems = append(v.Problems, p)
			}
			err = a.print(v, func(t *table) {
				for _, p := range v.Problems {
					kind := "error"
					if p.Warning {
						kind = "warning"
					}
					t.text("%s", plain(lintLine(d.file, kind, p)))
				}
			})
			switch {
			case err != nil:
				return err
			case v.Errors > 0:
				a.hint("%s and %s", plural(v.Errors, "error"), plural(v.Warnings, "warning"))
				return exitStatus(exitUsage)
			case v.Warnings > 0:
				a.hint("no errors, %s", plural(v.Warnings, "warning"))
			default:
				a.hint("no errors")
			}
			return nil
		},
	}
}

// lintLine is a problem as compilers print theirs, so that editors find the place.
func lintLine(file, kind string, p description.Problem) string {
	at, path := file, ""
	if p.Line > 0 {
		at = fmt.Sprintf("%s:%d", file, p.Line)
		path = strings.TrimPrefix(p.Path, "$.") + ": "
	}
	return at + ": " + kind + ": " + path + p.Message
}

// completeDescription offers shipped descriptions beside files.
func completeDescription(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return configs.AdapterNames(), cobra.ShellCompDirectiveDefault
}
