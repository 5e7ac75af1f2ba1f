package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) accountNetCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "net", Short: "Strike what two accounts owe each other",
		Long: `Two accounts strike what they owe each other: one proposes, the other accepts,
and each cell in which they owe takes it off their balances, once: also a cell that
was silent meanwhile, when it is back. Debts are looked for in all known cells; while
one in which something may be owed doesn't answer, nothing is proposed, unless it is
to be left out (--partial). What is left when both debts are set off may have been
paid outside of PCM: say so with --paid.
Offers to end disputes ('pcm trade resolve') are listed and accepted here as well.`,
	}
	c.RunE = a.group(c)
	c.AddCommand(a.netProposeCommand(), a.netAcceptCommand("accept"), a.netListCommand())
	return c
}

func (a *app) netProposeCommand() *cobra.Command {
	var r api.NettingRequest
	var valid time.Duration
	var yes bool
	c := &cobra.Command{
		Use: "propose ACCOUNT|PEER", Short: "Offer an account to strike what both owe each other",
		Long: `Asks all known cells what the two accounts owe each other in them, shows it, and
asks before this account signs: each cell is taken at its word, and what one says is
set off against what another says. --dry-run only shows.`,
		Args: exactly(1, "the other ACCOUNT, or a PEER of it: an ID, or a peer's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.With = args[0]
			if valid != 0 {
				r.ValidFor = pcm.Duration(valid.String())
			}
			return view(a, func(ctx context.Context, c *api.Client) (api.Agreement, error) {
				if !yes && !r.DryRun {
					look := r
					look.DryRun = true
					found, err := c.ProposeNetting(ctx, look)
					if err != nil {
						return found, err
					}
					shown := &table{wide: a.format == "wide", now: a.now()}
					a.drawOffer(shown, found)
					fmt.Fprint(a.errOut, shown)
					if err := a.confirm("offer this, and sign it", args[0]); err != nil {
						return found, err
					}
					r.Expect = found.Lines
				}
				return c.ProposeNetting(ctx, r)
			}, a.drawOffer)(cmd, nil)
		},
	}
	c.Flags().StringVar(&r.Unit, "unit", "", "`UNIT` of the debts (default credit)")
	c.Flags().StringVar(&r.Paid, "paid", "", "`AMOUNT` that the account that owes more has paid outside, or all")
	c.Flags().StringVar(&r.Note, "note", "", "a word to the other account")
	c.Flags().DurationVar(&valid, "valid-for", 0, "how long the offer can be accepted (default 168h)")
	c.Flags().BoolVar(&r.Partial, "partial", false, "leave out cells that don't answer")
	c.Flags().BoolVar(&r.DryRun, "dry-run", false, "only show what is owed where, and what would be struck; nothing is signed")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask: sign whatever the cells say")
	return c
}

func (a *app) netAcceptCommand(use string) *cobra.Command {
	return &cobra.Command{
		Use: use + " OFFER", Short: "Accept an offer of another account; both signatures then bind",
		Args: exactly(1, "an OFFER: its ID of 'pcm account net list', or its line"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.Agreement, error) { return c.Agree(ctx, args[0]) }, a.drawOffer)(cmd, nil)
		},
	}
}

func (a *app) netListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List offers between this account and others, newest first", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Agreement], error) { return c.Agreements(ctx) },
			func(t *table, l api.List[api.Agreement]) {
				head := []string{"OFFER", "WHAT", "STATE", "FROM", "TO", "TERMS", "UNTIL", "AGE", "NOTE"}
				if t.wide {
					head = append(head, "CELLS", "LINE")
				}
				t.row(head...)
				for _, g := range l.Items {
					until := "-"
					if !g.Until.IsZero() {
						until = g.Until.UTC().Format("2006-01-02 15:04")
					}
					row := []string{id(t, g.ID), g.Kind, g.State, id(t, g.From), id(t, g.To), terms(t, g), until, t.age(g.At), or(plain(strings.TrimSpace(g.Note+" "+g.Text)), "-")}
					if t.wide {
						row = append(row, or(cellsOf(g), "-"), g.Line)
					}
					t.row(row...)
				}
				if len(l.Items) == 0 {
					t.text("No offers. 'pcm balances' shows what is owed; 'pcm account net propose ACCOUNT' offers to strike it.")
				}
			}),
	}
}

// terms says in a few words what an agreement comes to.
func terms(t *table, g api.Agreement) string {
	if g.Kind == api.AgreeResolution {
		return fmt.Sprintf("%s tasks %s: pay %s %s", id(t, g.Trade), g.Tasks, g.Amount, g.Unit)
	}
	var from, to pcm.Micro
	for _, l := range g.Lines { // what isn't a number counts nothing
		f, _ := pcm.ParseMicro(l.From)
		o, _ := pcm.ParseMicro(l.To)
		from, to = pcm.AddMicro(from, f), pcm.AddMicro(to, o)
	}
	s := fmt.Sprintf("strike %s and %s %s", from, to, g.Unit)
	if g.Rest != "" {
		s += fmt.Sprintf("; %s has paid %s", id(t, g.Payer), g.Rest)
	}
	return s
}

func cellsOf(g api.Agreement) string {
	var parts []string
	for _, l := range g.Lines {
		parts = append(parts, fmt.Sprintf("%s: %s, %s", l.Cell, l.From, l.To))
	}
	return strings.Join(parts, "; ")
}

// drawOffer shows an agreement and what comes next.
func (a *app) drawOffer(t *table, g api.Agreement) {
	if g.ID != "" {
		t.pair("Offer", "%s (%s)", g.ID, g.Kind)
	}
	t.pair("State", "%s", g.State)
	t.pair("From", "%s", id(t, g.From))
	t.pair("To", "%s", id(t, g.To))
	t.pair("Terms", "%s", terms(t, g))
	for _, f := range g.Found {
		switch {
		case f.Silent != "":
			t.pair("Silent", "%s (%s), left out: %s", or(plain(f.Name), id(t, f.Cell)), id(t, f.Cell), plain(f.Silent))
		default:
			t.pair("Found", "in %s (%s) this account owes %s, and is owed %s", or(plain(f.Name), id(t, f.Cell)), id(t, f.Cell), f.From, f.To)
			if f.Unseen {
				t.pair("Beware", "that this account owes there is that cell's word alone: this node's cell knows of nothing that was bought in it")
			}
		}
	}
	for _, l := range g.Lines {
		t.pair("Cell", "%s: %s owes %s less, %s owes %s less", id(t, l.Cell), id(t, g.From), l.From, id(t, g.To), l.To)
	}
	if g.Note != "" {
		t.pair("Note", "%s", plain(g.Note))
	}
	if !g.Until.IsZero() {
		t.pair("Until", "%s", g.Until.UTC().Format(time.RFC3339))
	}
	if g.Text != "" {
		t.pair("Delivery", "%s", plain(g.Text))
	}
	t.flush()
	switch g.State {
	case api.AgreementLooked:
		t.text("Nothing is signed yet.")
	case api.AgreementOffered:
		t.text("The other account accepts it with 'pcm account net accept %s', or with this line:", id(t, g.ID))
		t.text("%s", g.Line)
	case api.AgreementAsked:
		t.text("Accept it with '%s account net accept %s'.", a.self(), id(t, g.ID))
	case api.AgreementAgreed:
		t.text("Both have signed; it is brought to the cells that don't have it yet. See '%s account net list'.", a.self())
	}
}

func (a *app) tradeCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "trade", Short: "Look at trades, dispute them, and end a dispute",
		Long: `Trades of this node's cell, and those that its jobs have bought in other cells.
A buyer disputes finished tasks that it won't pay as they are: their holds are
frozen. Tasks are paid as soon as their results are accepted, unless the job says
pay_after (pcm run --pay-after 24h): then there is so long after its end. A dispute ends when the buyer pays after all, when the seller gives in, when
both agree on an amount ('pcm trade resolve', accepted by the other side), or after
seven days, unpaid.`,
	}
	c.RunE = a.group(c)
	list := a.tradesCommand()
	list.Use = "list"
	c.AddCommand(list, a.tradeGetCommand(),
		a.tradeActCommand("dispute", "Refuse to pay for finished tasks as they are", true),
		a.tradeActCommand("pay", "Pay for tasks in dispute after all, or for those that are to be paid later", false),
		a.tradeActCommand("give-in", "Take nothing for tasks in dispute that this peer sold", false),
		a.tradeResolveCommand(), a.netAcceptCommand("accept"))
	return c
}

func (a *app) tradeGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get TRADE", Short: "Show one trade, of this node's cell or bought in another one", Args: exactly(1, "a TRADE of 'pcm trade list'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.Trade, error) { return c.Trade(ctx, args[0]) }, a.drawTrade)(cmd, nil)
		},
	}
}

// drawTrade shows a trade, and what can be done about it.
func (a *app) drawTrade(t *table, tr api.Trade) {
	t.pair("Trade", "%s", tr.ID)
	t.pair("Job", "%s step %d, %s, try %d", id(t, tr.Job), tr.Step, plural(tr.Tasks, "task"), tr.Attempt)
	t.pair("State", "%s (%s)", tr.State, drawStates(tr.States))
	t.pair("Cell", "%s", tr.Cell)
	says := map[string]string{
		api.TradeOfLedger: "this cell's ledger", api.TradeOfCell: "its cell, asked just now or when it had closed",
		api.TradeOfHome: "the buyer's cell: the trade's own did not tell, or not this account",
		api.TradeBefore: "as it stood before; what was asked for took effect",
	}
	t.pair("Says", "%s", or(says[tr.Source], tr.Source))
	t.pair("Buyer", "%s", tr.Buyer)
	t.pair("Seller", "%s, pool %s (%s)", or(plain(tr.SellerName), pcm.Short(tr.Seller)), tr.Pool, tr.Adapter)
	if tr.SellerAccount != "" {
		t.pair("Its account", "%s", tr.SellerAccount)
	}
	t.pair("Paid", "%s %s", tr.Paid, tr.Unit)
	t.pair("Held", "%s %s", tr.Held, tr.Unit)
	if !tr.At.IsZero() {
		t.pair("Awarded", "%s ago", t.age(tr.At))
	}
	if !tr.ClosedAt.IsZero() {
		t.pair("Closed", "%s ago", t.age(tr.ClosedAt))
	}
	for _, d := range tr.Disputes {
		t.pair("In dispute", "tasks %s, for %s %s, until %s: %s", d.Tasks, d.Asked, tr.Unit, d.Until.Format(time.DateOnly), plain(d.Reason))
	}
	t.flush()
	a.nextOfTrade(t, tr)
}

// nextOfTrade says what ends a dispute.
func (a *app) nextOfTrade(t *table, tr api.Trade) {
	if tr.States[pcm.AttemptDisputed] > 0 {
		t.text("It ends by '%[1]s trade pay %[2]s' at the buyer, '%[1]s trade give-in %[2]s' at the seller, or '%[1]s trade resolve %[2]s --amount X' at either.", a.self(), id(t, tr.ID))
	}
}

func (a *app) tradeActCommand(act, short string, reasoned bool) *cobra.Command {
	var r api.TasksRequest
	use := act + " TRADE"
	if reasoned {
		use += " --reason WHY"
	}
	c := &cobra.Command{
		Use: use, Short: short, Args: exactly(1, "a TRADE of 'pcm trades'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reasoned && r.Reason == "" {
				return pcm.Errorf(pcm.Invalid, "say why: --reason 'the outputs are empty'")
			}
			return view(a, func(ctx context.Context, c *api.Client) (api.Trade, error) { return c.ActOnTrade(ctx, args[0], act, r) },
				func(t *table, tr api.Trade) {
					drawTrades(t, api.List[api.Trade]{Items: []api.Trade{tr}})
					if tr.Source == api.TradeBefore {
						t.text("That is how it stood before. What was asked for took effect; how it stands now can't be read at the moment: see '%s trade get %s'.", a.self(), id(t, tr.ID))
						return
					}
					a.nextOfTrade(t, tr)
				})(cmd, nil)
		},
	}
	c.Flags().StringVar(&r.Tasks, "tasks", "", "only these `TASKS`, like 0-3,7 (default: all for which it can be done)")
	c.Flags().StringVar(&r.Reason, "reason", "", "why, for the other side")
	return c
}

func (a *app) tradeResolveCommand() *cobra.Command {
	var r api.ResolutionRequest
	var valid time.Duration
	c := &cobra.Command{
		Use: "resolve TRADE --amount AMOUNT", Short: "Offer the other side of a dispute to end it at an amount", Args: exactly(1, "a TRADE of 'pcm trades'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Amount == "" {
				return pcm.Errorf(pcm.Invalid, "say what the buyer shall pay for these tasks together: --amount 0.5")
			}
			if valid != 0 {
				r.ValidFor = pcm.Duration(valid.String())
			}
			return view(a, func(ctx context.Context, c *api.Client) (api.Agreement, error) {
				return c.ProposeResolution(ctx, args[0], r)
			}, a.drawOffer)(cmd, nil)
		},
	}
	c.Flags().StringVar(&r.Amount, "amount", "", "what the buyer pays for these tasks together")
	c.Flags().StringVar(&r.Tasks, "tasks", "", "only these `TASKS`, like 0-3,7 (default: all in dispute)")
	c.Flags().StringVar(&r.Note, "note", "", "a word to the other side")
	c.Flags().DurationVar(&valid, "valid-for", 0, "how long the offer can be accepted (default 72h)")
	return c
}

func (a *app) cellGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get [SETTING]", Short: "Show the settings of this node's cell", Args: between(0, 1, "a SETTING"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.List[api.CellSetting], error) {
				l, err := c.CellSettings(ctx)
				if err != nil || len(args) == 0 {
					return l, err
				}
				for _, s := range l.Items {
					if s.ID == args[0] {
						return api.List[api.CellSetting]{Items: []api.CellSetting{s}}, nil
					}
				}
				return l, pcm.CheckSetting(args[0], "")
			}, drawSettings)(cmd, nil)
		},
	}
}

func (a *app) cellSetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set SETTING VALUE", Short: "Say what this account wants a setting of the cell to be",
		Long: `Settings hold for all peers of the cell. The accounts that have voters in it decide:
a setting changes when more than half of them have said the same.`,
		Args: exactly(2, "a SETTING and a VALUE; see 'pcm cell get'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.CellSetting, error) {
				return c.SetCell(ctx, args[0], args[1])
			},
				func(t *table, s api.CellSetting) {
					drawSettings(t, api.List[api.CellSetting]{Items: []api.CellSetting{s}})
					if keep, _ := pcm.KeepFor(s.Value); s.ID == pcm.SettingKeep && keep > 0 {
						t.flush()
						t.text("Peers with an archive (ledger_archive) move older records there; the others keep them. Whether this one does: pcm doctor")
					}
					if s.Value != args[1] {
						t.flush()
						t.text("%d of %s must want the same: the others run 'pcm cell set %s %s'.", s.Needs, plural(len(s.Voters), "account"), s.ID, args[1])
					}
				})(cmd, nil)
		},
	}
}

func drawSettings(t *table, l api.List[api.CellSetting]) {
	t.row("SETTING", "VALUE", "SET", "WANTED", "MAY BE")
	for _, s := range l.Items {
		var wanted []string
		for _, w := range s.Wanted {
			who := id(t, w.Account)
			for _, v := range s.Voters {
				if v.Account == w.Account && v.Name != "" {
					who = v.Name
				}
			}
			wanted = append(wanted, fmt.Sprintf("%s by %s", w.Value, who))
		}
		set := "never"
		if s.Version > 0 {
			set = plural(int(s.Version), "time")
		}
		t.row(s.ID, s.Value, set, or(strings.Join(wanted, ", "), "-"), s.Form)
	}
}
