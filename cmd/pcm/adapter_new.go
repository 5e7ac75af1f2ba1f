package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm/adapters/generate"
)

func (a *app) adapterNewCommand() *cobra.Command {
	o := generate.Options{}
	var from string
	c := &cobra.Command{
		Use: "new NAME --lang LANGUAGE [--from FILE|NAME] [--dir DIR]", Short: "Write the project of an adapter in a language of your choice", Args: exactly(1, "the NAME of the adapter"),
		Long: `Writes a project that is a plug-in of PCM: the contract's server, and, with --from, the
calls, pools and states of a description, or of an OpenAPI document (version 3, YAML or
JSON) a client with types and log-in, and the words that it has for states. What is left
to write is marked and listed.

Called again, it writes the project anew, for instance after the description has changed.
What stands between the lines "pcm:begin" and "pcm:end" stays as it is, and so do files
that it has not written. Where other lines were edited it refuses, unless --force.`,
		RunE: func(_ *cobra.Command, args []string) error {
			o.Name, o.Version = args[0], version
			if o.Dir == "" {
				o.Dir = args[0]
			}
			if from != "" {
				d, err := a.readDescription(from)
				if err != nil {
					return err
				}
				o.From, o.FromFile = d.text, d.file
				if d.dir != "" {
					o.FromDir = os.DirFS(d.dir)
				}
			}
			r, err := generate.New(o)
			if err != nil {
				return err
			}
			return a.print(r, func(t *table) { drawProject(t, r) })
		},
	}
	c.Flags().StringVar(&o.Language, "lang", "", "`LANGUAGE`: "+strings.Join(generate.Languages(), ", "))
	c.Flags().StringVar(&from, "from", "", "`FILE` with a description or an OpenAPI document, or the name of a description that comes with pcm")
	c.Flags().StringVar(&o.Dir, "dir", "", "folder `DIR` of the project (default: its name)")
	c.Flags().BoolVar(&o.Force, "force", false, "overwrite generated lines that were edited, write into a folder that is not empty")
	return c
}

func drawProject(t *table, r *generate.Report) {
	t.text("%s: %s written", r.Dir, plural(len(r.Written), "file"))
	for _, k := range r.Kept {
		t.text("kept     %s", k)
	}
	for _, k := range r.Deleted {
		t.text("deleted  %s", k)
	}
	for _, k := range r.Orphaned {
		t.text("orphaned %s, now in ORPHANED.md", k)
	}
	t.text("lines: %d generated, %d of support, %d of stubs, %d by hand: %.1f %% not by hand", r.Share.Generated, r.Share.Support, r.Share.Stubs, r.Share.Hand, r.Share.Percent())
	for _, o := range r.Omitted {
		t.text("left out %s", o)
	}
	if len(r.Left) == 0 {
		t.text("nothing is left to write")
	} else {
		t.text("left to write:")
		for _, p := range r.Left {
			t.text("  %s/%s:%d: %s", r.Dir, p.File, p.Line, p.Name)
		}
	}
	t.text("next:")
	for _, command := range r.Next {
		t.text("  %s", command)
	}
}

func (a *app) adapterStatsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stats DIR…", Short: "Count how much of adapters' projects was generated, and how much written by hand", Args: between(1, 1000, "the DIR of a project, or several"),
		RunE: func(_ *cobra.Command, args []string) error {
			var all []*generate.Share
			for _, dir := range args {
				s, _, err := generate.Measure(dir)
				if err != nil {
					return err
				}
				all = append(all, s)
			}
			return a.print(all, func(t *table) {
				t.row("ADAPTER", "LANGUAGE", "FROM", "GENERATED", "SUPPORT", "STUBS", "BY HAND", "NOT BY HAND")
				for _, s := range all {
					t.row(s.Name, s.Language, or(s.From, "-"), fmt.Sprint(s.Generated), fmt.Sprint(s.Support), fmt.Sprint(s.Stubs), fmt.Sprint(s.Hand), fmt.Sprintf("%.1f %%", s.Percent()))
				}
			})
		},
	}
}
