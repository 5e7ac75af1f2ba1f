package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) tradesCommand() *cobra.Command {
	var q api.Query
	var job string
	c := &cobra.Command{
		Use: "trades", Short: "List trades, newest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkFlag("--state", q.State, tradeStates); err != nil {
				return err
			}
			q.Job = pcm.JobID(job)
			return view(a, func(ctx context.Context, c *api.Client) (api.List[api.Trade], error) { return c.Trades(ctx, q) }, drawTrades)(cmd, args)
		},
	}
	c.Flags().IntVar(&q.Limit, "limit", 50, "most trades to list; 0: all")
	c.Flags().StringVar(&q.State, "state", "", "only trades that are open or closed")
	c.Flags().StringVar(&job, "job", "", "only trades of this `JOB`")
	return c
}

func drawTrades(t *table, l api.List[api.Trade]) {
	head := []string{"TRADE", "JOB", "TASKS", "TRY", "SELLER", "ADAPTER", "STATE", "ATTEMPTS", "HELD", "PAID", "UNIT", "AGE"}
	if t.wide {
		head = append(head, "BUYER", "SELLER PEER", "SELLER ACCOUNT", "POOL", "CELL", "SAYS")
	}
	t.row(head...)
	for _, r := range l.Items {
		row := []string{
			id(t, r.ID), id(t, r.Job), fmt.Sprint(r.Tasks), fmt.Sprint(r.Attempt), or(r.SellerName, pcm.Short(r.Seller)), r.Adapter,
			r.State, drawStates(r.States), r.Held, r.Paid, r.Unit, t.age(r.At),
		}
		if t.wide {
			row = append(row, string(r.Buyer), string(r.Seller), string(r.SellerAccount), string(r.Pool), string(r.Cell), r.Source)
		}
		t.row(row...)
	}
}

func drawStates(states map[pcm.AttemptState]int) string {
	var parts []string
	for s, n := range states {
		parts = append(parts, fmt.Sprintf("%d %s", n, s))
	}
	slices.Sort(parts)
	return or(strings.Join(parts, ", "), "-")
}

func (a *app) balancesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "balances", Short: "List what accounts owe each other", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Balance], error) { return c.Balances(ctx) }, func(t *table, l api.List[api.Balance]) {
			head := []string{"BUYER", "OWES", "UNIT", "TO SELLER", "HELD", "LIMIT", "CELL"}
			if t.wide {
				head = append(head, "AGE")
			}
			t.row(head...)
			for _, b := range l.Items {
				row := []string{id(t, b.Buyer), b.Owed, b.Unit, id(t, b.Seller), b.Held, b.Limit, id(t, b.Cell)}
				if age := "-"; t.wide { // of what another cell has said
					if !b.AsOf.IsZero() {
						age = t.age(b.AsOf)
					}
					row = append(row, age)
				}
				t.row(row...)
			}
		}),
	}
}

func (a *app) cellCommand() *cobra.Command {
	c := &cobra.Command{Use: "cell", Short: "Look at the cell that keeps this node's ledger, and say who votes there", Long: cellLong}
	c.RunE = a.group(c)
	c.AddCommand(a.cellOrders()...)
	c.AddCommand(a.cellGetCommand(), a.cellSetCommand())
	c.AddCommand(a.cellListCommand(), &cobra.Command{
		Use: "status", Short: "Show this node's cell, with its members", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Cell], error) { return c.Cells(ctx) }, drawCells),
	})
	return c
}

func drawCells(t *table, l api.List[api.Cell]) {
	others := 0
	for _, c := range l.Items {
		if c.Away {
			others++
			continue
		}
		t.pair("Cell", "%s (%s)", c.Name, c.ID)
		leader := "none now"
		if c.Leader != "" {
			leader = string(c.Leader)
			for _, m := range c.Members {
				if m.ID == c.Leader {
					leader = m.Name + " (" + id(t, m.ID) + ")"
				}
			}
		}
		t.pair("Leader", "%s, term %d", leader, c.Term)
		t.pair("Log", "index %d, applied here %d", c.Index, c.Applied)
		t.pair("Ledger", "%s, root %s", plural(int(c.Records), "record"), c.Root)
		if c.Removed > 0 {
			t.pair("Kept here", "from record %d on; those before are in %s", c.Removed, or(plain(c.Archive), "archives of other peers"))
		}
		if !c.LogTime.IsZero() {
			t.pair("Log time", "%s", c.LogTime.UTC().Format(time.RFC3339))
		}
		t.text("")
		t.row("MEMBER", "PEER", "ROLE", "ALIVE")
		for _, m := range c.Members {
			alive := "no"
			if m.Alive {
				alive = "yes"
			}
			t.row(or(m.Name, "-"), id(t, m.ID), m.Role, alive)
		}
		t.flush()
	}
	if others > 0 {
		t.text("")
		t.text("The mesh has %s more: pcm cell list", plural(others, "cell"))
	}
}

func (a *app) ledgerCommand() *cobra.Command {
	c := &cobra.Command{Use: "ledger", Short: "Read and check the ledger of this node's cell", Long: ledgerLong}
	c.RunE = a.group(c)
	c.AddCommand(
		a.verifyCommand(), a.vkeysCommand(), a.proofCommand(), a.verifyProofCommand(), a.exportCommand(),
		a.recordsCommand(),
	)
	return c
}

func drawVerdict(t *table, v api.Verdict) {
	good := plural(int(v.Records), "record")
	if v.Base != nil {
		good = fmt.Sprintf("records %d to %d", v.Base.Records, v.Records-1)
	}
	if v.OK {
		t.text("The ledger of %s is good: %s, %s, checked in %s.", v.Cell, good, plural(v.Signatures, "signature"), time.Duration(v.TookMS)*time.Millisecond)
	} else {
		at := ""
		if v.Bad != nil {
			at = fmt.Sprintf(" at record %d", *v.Bad)
		}
		t.text("The ledger of %s is BAD%s: %s", v.Cell, at, plain(v.Problem))
	}
	if b := v.Base; b != nil {
		where := "archives of the cell's peers"
		if b.Archive != "" {
			where = plain(b.Archive)
		}
		t.text("  verified from record %d on, a base of %s, digest %s", b.Records, b.At.UTC().Format(time.RFC3339), b.Digest)
		t.text("  not verified: the %d records before it; %d of them are only in %s: pcm ledger verify --archive DIR", b.Records, b.Removed, where)
	}
	for _, c := range v.Checks {
		t.text("  checked: %s", plain(c))
	}
	if h := v.Checkpoint; h != nil {
		t.text("  checkpoint: %s, signed by %d of %d voters", plural(int(h.Size), "record"), len(h.Signers), h.Voters)
	}
	t.text("  root: %s", v.Root)
}

func (a *app) recordsCommand() *cobra.Command {
	var q api.Query
	c := &cobra.Command{
		Use: "records", Short: "List records, oldest first", Args: noArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.List[api.RecordView], error) { return c.Records(ctx, q) }, func(t *table, l api.List[api.RecordView]) {
				t.row("RECORD", "TIME", "BY", "WHAT", "HASH")
				for _, r := range l.Items {
					hash := r.Hash
					if !t.wide {
						hash = hash[:min(len(hash), 12)]
					}
					by := "time"
					if r.By != "" {
						by = id(t, r.By)
					}
					t.row(fmt.Sprint(r.Number), r.Time.UTC().Format("2006-01-02 15:04:05.000"), by, whatFor(r.Kinds), hash)
				}
			})(cmd, args)
		},
	}
	c.Flags().StringVar(&q.Cursor, "from", "", "number of the first record")
	c.Flags().IntVar(&q.Limit, "limit", 100, "most records to list; 0: all")
	return c
}
