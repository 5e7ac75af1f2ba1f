package main

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/rules"
)

func (a *app) rulesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rules", Aliases: []string{"rule"}, Short: "On what conditions this peer sells",
		Long: `Rules stand in the node's configuration, under rules: CEL (cel.dev) over the job,
the buyer, its standing and the pool, with examples of what they come to. Public
ones travel in the offer, and buyers judge by them; private ones refuse at start.
A node with a fault in its rules, or an example that fails, doesn't start.`,
	}
	c.RunE = a.group(c)
	c.AddCommand(a.rulesLintCommand(), a.rulesTestCommand(), a.rulesShowCommand(), a.rulesReloadCommand(), a.rulesWordsCommand())
	return c
}

// findingView is one finding in its place.
type findingView struct {
	At      string `json:"at"` // file:line:column
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Warning bool   `json:"warning"`
	text    string
}

func (a *app) rulesLintCommand() *cobra.Command {
	return &cobra.Command{
		Use: "lint [FILE]", Short: "Say what is wrong or odd in the rules of a configuration file (default: the node's)", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			list, at, file, err := a.ruleFile(args)
			if err != nil {
				return err
			}
			_, found := rules.Check(list)
			views, faults := []findingView{}, 0
			for _, f := range found {
				p := at.Of(f.Field)
				v := findingView{fmt.Sprintf("%s:%d:%d", file, p.Line, p.Column), f.Field, f.Message, f.Warning, placed(f, at, file)}
				if f.Warning {
					v.text = "warning: " + v.text
				} else {
					faults++
				}
				views = append(views, v)
			}
			err = a.print(api.List[findingView]{Items: views}, func(t *table) {
				for _, v := range views {
					t.text("%s", plain(v.text))
				}
				t.text("%s: %s, %s, %s.", file, plural(len(list), "rule"), plural(faults, "fault"), plural(len(views)-faults, "warning"))
			})
			if err == nil && faults > 0 {
				err = pcm.Errorf(pcm.Invalid, "a node doesn't start with these rules")
			}
			return err
		},
	}
}

func (a *app) ruleFile(args []string) ([]rules.Rule, pcm.Positions, string, error) {
	file := ""
	if len(args) > 0 {
		file = args[0]
	}
	dir, _ := a.dataDir()
	list, at, name, err := ruleFile(file, dir, a.getenv)
	if err == nil && at == nil { // a node starts without one, but nobody checks what isn't there
		err = pcm.Errorf(pcm.NotFound, "there is no configuration file %s, and so no rules to look at: name a FILE, or set PCM_CONFIG", name)
	}
	return list, at, name, err
}

func (a *app) rulesTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test [FILE]", Short: "Run the examples beside the rules of a configuration file (default: the node's)", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			list, at, file, err := a.ruleFile(args)
			if err != nil {
				return err
			}
			tried, failed := rules.Try(list), 0
			for _, e := range tried {
				if e.Why != "" {
					failed++
				}
			}
			err = a.print(api.List[rules.Tried]{Items: tried}, func(t *table) {
				t.row("RULE", "EXAMPLE", "LINE", "EXPECTS", "RESULT")
				for _, e := range tried {
					t.row(e.Rule, strconv.Itoa(e.Example+1), strconv.Itoa(at.Of(e.Field).Line), e.Expect, or(plain(e.Why), "ok"))
				}
				t.text("%s: %s of %s, %d failed.", file, plural(len(tried), "example"), plural(len(list), "rule"), failed)
			})
			if err == nil && failed > 0 {
				err = pcm.Errorf(pcm.Invalid, "%s not what the rules come to: mend the rule or the example", pluralIs(failed, "example"))
			}
			return err
		},
	}
}

func pluralIs(n int, noun string) string {
	if n == 1 {
		return plural(n, noun) + " is"
	}
	return plural(n, noun) + " are"
}

func (a *app) rulesShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show the rules that are in force", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.SaleRule], error) { return c.Rules(ctx) }, drawSaleRules),
	}
}

func (a *app) rulesReloadCommand() *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Put the rules in force that the node's configuration file has now", Args: noArgs,
		Long: `Has the running node read the rules of its configuration file anew. With a fault
in them, or an example that fails, those before stay in force. What runs already goes on.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var before api.List[api.SaleRule]
			reload := func(ctx context.Context, c *api.Client) (now api.List[api.SaleRule], err error) {
				if before, err = c.Rules(ctx); err == nil {
					now, err = c.ReloadRules(ctx)
				}
				return now, err
			}
			return view(a, reload, func(t *table, now api.List[api.SaleRule]) {
				drawSaleRules(t, now)
				t.text("Reloaded: %s in force, %s.", pluralIs(len(now.Items), "rule"), changedRules(before.Items, now.Items))
			})(cmd, nil)
		},
	}
}

// changedRules says what differs between the rules before and now.
func changedRules(before, now []api.SaleRule) string {
	was := map[string]api.SaleRule{}
	for _, r := range before {
		was[r.Name] = r
	}
	var parts, added, changed, gone []string
	for _, r := range now {
		old, known := was[r.Name]
		delete(was, r.Name)
		switch {
		case !known:
			added = append(added, r.Name)
		case !reflect.DeepEqual(old, r):
			changed = append(changed, r.Name)
		}
	}
	gone = slices.Sorted(maps.Keys(was))
	for _, p := range []struct {
		what  string
		names []string
	}{{"new", added}, {"changed", changed}, {"gone", gone}} {
		if len(p.names) > 0 {
			parts = append(parts, p.what+": "+strings.Join(p.names, ", "))
		}
	}
	return or(strings.Join(parts, "; "), "none of them changed")
}

func drawSaleRules(t *table, l api.List[api.SaleRule]) {
	if len(l.Items) == 0 {
		t.text("No rules: every job that fits is sold to.")
		return
	}
	t.row("RULE", "KNOWN TO", "POOLS", "WHEN", "SAYS", "REASON")
	for _, r := range l.Items {
		known := "this peer"
		if r.Public {
			known = "all"
		}
		t.row(r.Name, known, or(strings.Join(r.Pools, ","), "all"), or(plain(r.When), "always"), plain(says(r.Rule)), or(plain(r.Reason), "-"))
	}
}

// says is what a rule says, in short.
func says(r pcm.Rule) string {
	switch {
	case r.Accept != "":
		return "accept " + r.Accept
	case r.Data != "":
		return "data " + r.Data
	case r.Percent != nil:
		return fmt.Sprintf("price %d%%", *r.Percent)
	case r.Limit == nil:
		return "-"
	}
	var parts []string
	add := func(is bool, format string, v any) {
		if is {
			parts = append(parts, fmt.Sprintf(format, v))
		}
	}
	l := r.Limit
	add(l.Share > 0, "%d%%", l.Share)
	add(l.Tasks > 0, "%d tasks", l.Tasks)
	add(l.CPU > 0, "%s cpu", l.CPU)
	add(l.Memory > 0, "%s", l.Memory)
	add(l.GPU > 0, "%d gpu", l.GPU)
	return "limit " + strings.Join(parts, ", ")
}

func (a *app) rulesWordsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "words", Short: "List what rules can speak of", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			words := rules.Words()
			return a.print(api.List[rules.Word]{Items: words}, func(t *table) {
				t.row("WORD", "TYPE", "MEANING")
				for _, w := range words {
					t.row(w.Name, w.Type, or(w.Meaning, "-"))
				}
			})
		},
	}
}
