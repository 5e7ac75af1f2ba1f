package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) accountCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "account", Aliases: []string{"accounts"}, Short: "Who may buy at this peer and who may not",
		Long: `Rules for accounts, and for peers that place jobs. What is denied never runs
here. As soon as anything is allowed, only what is allowed, and this peer's own
account, may buy. What runs already goes on.`,
	}
	c.RunE = a.group(c)
	c.AddCommand(a.accountListCommand(), a.accountRuleCommand("allow", "Let an account or peer buy here, and nobody else who is not allowed"),
		a.accountRuleCommand("deny", "Don't sell to an account or peer"), a.accountRemoveCommand(), a.accountNetCommand())
	return c
}

func (a *app) accountListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the rules", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.AccountRule], error) {
			return c.AccountRules(ctx)
		},
			func(t *table, l api.List[api.AccountRule]) {
				drawRules(t, l.Items)
				if len(l.Items) == 0 {
					t.text("No rules: every account of the mesh may buy here.")
				}
			}),
	}
}

func drawRules(t *table, rules []api.AccountRule) {
	t.row("RULE", "WHO", "KIND", "NAME", "AGE", "NOTE")
	for _, r := range rules {
		t.row(r.Rule, id(t, r.ID), r.Kind, or(r.Name, "-"), t.age(r.Since), or(r.Note, "-"))
	}
}

func (a *app) accountRuleCommand(rule, short string) *cobra.Command {
	var note string
	c := &cobra.Command{
		Use: rule + " ACCOUNT|PEER", Short: short, Args: exactly(1, "an ACCOUNT or PEER: an ID, or a peer's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.AccountRule, error) {
				return c.SetAccountRule(ctx, args[0], rule, note)
			}, func(t *table, r api.AccountRule) { drawRules(t, []api.AccountRule{r}) })(cmd, nil)
		},
	}
	c.Flags().StringVar(&note, "note", "", "why, for people")
	return c
}

func (a *app) accountRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove ACCOUNT|PEER", Short: "Take a rule back", Args: exactly(1, "an ACCOUNT or PEER of 'pcm account list'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.AccountRule, error) {
				return c.RemoveAccountRule(ctx, args[0])
			},
				func(t *table, r api.AccountRule) { t.text("%s: no rule any more (was: %s)", id(t, r.ID), r.Rule) })(cmd, nil)
		},
	}
}

func (a *app) auditCommand() *cobra.Command {
	var since time.Duration
	var account, event string
	var limit int
	c := &cobra.Command{
		Use: "audit", Short: "Show what this peer ran for whom, and what its operator did", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 || limit < 0 {
				return pcm.Errorf(pcm.Invalid, "--since and --limit must be above zero, like --since 24h --limit 100")
			}
			q := api.AuditQuery{Since: a.now().Add(-since), Account: account, Event: event}
			return view(a, func(ctx context.Context, c *api.Client) (api.List[api.AuditEntry], error) {
				return c.AuditLog(ctx, q, limit)
			}, drawAudit)(cmd, nil)
		},
	}
	c.Flags().DurationVar(&since, "since", 24*time.Hour, "how far to look back")
	c.Flags().StringVar(&account, "account", "", "only entries about this `ACCOUNT` or peer")
	c.Flags().StringVar(&event, "event", "", "only entries of this `EVENT`: awarded, started, ended, refused, killed, lost, cordon, …")
	c.Flags().IntVar(&limit, "limit", 1000, "most entries to show; 0: all")
	return c
}

func drawAudit(t *table, l api.List[api.AuditEntry]) {
	head := []string{"TIME", "EVENT", "BUYER", "TASK", "POOL", "PROGRAM", "OUTCOME", "TIME USED", "CPU", "WHO", "REASON"}
	if t.wide {
		head = append(head, "JOB", "STEP", "TRY", "PEER", "COMMAND", "IMAGE")
	}
	t.row(head...)
	for _, e := range l.Items {
		task, outcome, wall, cpu, subject := "-", or(string(e.Outcome), "-"), "-", "-", or(id(t, e.Buyer), or(id(t, e.Subject), "-"))
		switch {
		case e.Task != nil:
			task = fmt.Sprintf("%s/%d", id(t, e.Trade), *e.Task)
		case e.Trade != "":
			task = fmt.Sprintf("%s/%s", id(t, e.Trade), e.Tasks)
		}
		if e.ExitCode != nil && *e.ExitCode != 0 {
			outcome += fmt.Sprintf(" (%d)", *e.ExitCode)
		}
		if e.Usage != nil {
			wall = (time.Duration(e.Usage.WallMS) * time.Millisecond).String()
			cpu = (time.Duration(e.Usage.CPUMS) * time.Millisecond).String()
		}
		row := []string{
			e.At.UTC().Format("2006-01-02 15:04:05"), e.Event, subject, task, or(string(e.Pool), "-"), or(e.Program, "-"), outcome, wall, cpu, or(e.Who, "-"), or(e.Reason, "-"),
		}
		if t.wide {
			row = append(row, or(string(e.Job), "-"), or(e.Step, "-"), fmt.Sprint(e.Attempt), or(string(e.Peer), "-"), or(string(e.Command), "-"), or(e.Image, "-"))
		}
		t.row(row...)
	}
	if l.Next != "" {
		t.text("There are more: raise --limit.")
	}
}
