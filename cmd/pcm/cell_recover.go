package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

const recoverLong = `When a majority of a cell's voters is gone for good, the cell decides nothing any
more. This command shows what each survivor has, and what would be lost; if a
person confirms it, this node goes on alone with all that it has, as the one
voter, and the other survivors follow it. It refuses where the cell has a
leader, where a majority answers, and where another survivor has more.

What only the lost voters knew is lost. That the cell was recovered, by whom and
why, stands in the ledger. Should the lost ones come up again with their old
folders, they are told, and take no part in the cell any more; 'pcm cell rejoin'
on each of them joins the recovered cell. If the recovery was a mistake, --refuse
on each of them has them go on with the old cell: then there are two.`

const rejoinLong = `A peer that was left behind when its cell was recovered takes no part in it any
more. This command puts aside what it has of the old cell, restarts it, and has
those who went on take it in as a newcomer; it keeps its name, its account and
its passport. What only the old cell knew is not in the recovered one.`

func (a *app) cellRecoverCommand() *cobra.Command {
	var yes, dry, refuse bool
	var reason string
	c := &cobra.Command{
		Use: "recover", Short: "Go on without a majority of the voters that is gone for good", Long: recoverLong, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if refuse {
				return a.refuseRecovery(cmd.Context(), c, yes)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), viewTimeout)
			v, err := c.CellRecovery(ctx)
			cancel()
			if err != nil {
				return err
			}
			if dry || !v.Possible {
				if err := a.print(v, func(t *table) { drawRecovery(t, v) }); err != nil || dry {
					return err
				}
				return pcm.Errorf(pcm.Refused, "%s", v.Problem)
			}
			t := &table{wide: a.format == "wide", now: a.now()}
			drawRecovery(t, v)
			fmt.Fprint(a.errOut, t.String())
			if !yes {
				if err := a.confirm("recover the cell", v.Name); err != nil {
					return err
				}
			}
			ctx, cancel = context.WithTimeout(cmd.Context(), recoverWait)
			defer cancel()
			before, err := c.Status(ctx)
			if err != nil {
				return err
			}
			ack, err := c.RecoverCell(ctx, v.Lost, reason)
			if err != nil {
				return err
			}
			if !a.restarted(ctx, before, func(st api.Status) bool { return st.Ready }) {
				return pcm.Errorf(pcm.Unavailable, "the cell is being recovered, but the node was not ready again within %s; its log says why", recoverWait)
			}
			ack.Text = "this peer goes on as the one voter of its cell; others follow as they are ready"
			if err := a.print(ack, func(t *table) { t.text("%s: %s", pcm.Short(ack.ID), ack.Text) }); err != nil {
				return err
			}
			a.hint("Next: %s cell members; when more peers are back or joined, they vote by themselves", a.self())
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask: what is lost is known")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show what each survivor has")
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger")
	c.Flags().BoolVar(&refuse, "refuse", false, "on a peer that another one's recovery left behind: go on with the old cell all the same")
	return c
}

// refuseRecovery has a peer go on with the old cell, though it was recovered without it.
func (a *app) refuseRecovery(ctx context.Context, c *api.Client, yes bool) error {
	ctx, cancel := context.WithTimeout(ctx, viewTimeout)
	defer cancel()
	if !yes {
		st, err := c.Status(ctx)
		if err != nil {
			return err
		}
		a.showWarnings(st)
		if err := a.confirm("go on with the old cell", st.CellName); err != nil {
			return err
		}
	}
	ack, err := c.RefuseRecovery(ctx)
	if err != nil {
		return err
	}
	if err := a.print(ack, func(t *table) { t.text("%s: %s", pcm.Short(ack.ID), ack.Text) }); err != nil {
		return err
	}
	a.hint("Next: %s cell members; and --refuse on the others that were left behind", a.self())
	return nil
}

// showWarnings has a person read what status warns of.
func (a *app) showWarnings(st api.Status) {
	for _, w := range st.Warnings {
		fmt.Fprintln(a.errOut, plain(w))
	}
}

func (a *app) cellRejoinCommand() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "rejoin", Short: "Join the cell anew that was recovered without this node", Long: rejoinLong, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), recoverWait)
			defer cancel()
			before, err := c.Status(ctx)
			if err != nil {
				return err
			}
			if !yes {
				a.showWarnings(before)
				if err := a.confirm("give the old cell up", before.CellName); err != nil {
					return err
				}
			}
			ack, err := c.RejoinCell(ctx)
			if err != nil {
				return err
			}
			if !a.restarted(ctx, before, func(api.Status) bool { return true }) {
				return pcm.Errorf(pcm.Unavailable, "the old cell is given up, but the node was not up again within %s; its log says why", recoverWait)
			}
			if err := a.print(ack, func(t *table) { t.text("%s: %s", pcm.Short(ack.ID), ack.Text) }); err != nil {
				return err
			}
			a.hint("Next: %s status; the recovered cell takes this peer in as soon as it is reached", a.self())
			return nil
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask: what only the old cell knew is given up")
	return c
}

// recoverWait bounds how long 'pcm cell recover' waits for the node to be back.
const recoverWait = 90 * time.Second

// restarted waits until the node is another run than it was, and so far.
func (a *app) restarted(ctx context.Context, before api.Status, far func(api.Status) bool) bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := a.client(); err == nil { // the API may have moved
			st, err := c.Status(ctx)
			c.Close()
			if err == nil && far(st) && !st.StartedAt.Equal(before.StartedAt) {
				return true
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

// confirm has a person type a word before something that can't be undone.
func (a *app) confirm(what, word string) error {
	fmt.Fprintf(a.errOut, "To %s, type its name (%s): ", what, plain(word))
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if strings.TrimSpace(line) == word && word != "" {
		return nil
	}
	if err != nil && strings.TrimSpace(line) == "" {
		fmt.Fprintln(a.errOut)
		return pcm.Errorf(pcm.Refused, "nobody confirmed: nothing was done; --yes does it without asking")
	}
	return pcm.Errorf(pcm.Refused, "that is not %q: nothing was done", word)
}

func drawRecovery(t *table, v api.CellRecovery) {
	t.pair("Cell", "%s (%s)", v.Name, v.ID)
	if v.Possible {
		t.pair("Goes on", "this peer, with its log up to entry %d; with it %s", v.Index, or(strings.Join(v.Keep, ", "), "nobody"))
		t.pair("Lost", "%s", or(strings.Join(v.Lost, ", "), "nobody"))
	} else {
		t.pair("Not now", "%s", v.Problem)
	}
	for _, w := range v.Warnings {
		t.pair("Beware", "%s", w)
	}
	t.text("")
	t.row("MEMBER", "PEER", "ROLE", "ANSWERS", "LOG ENDS", "TERM", "APPLIED", "HISTORY")
	for _, s := range v.Survivors {
		row := []string{or(s.Name, "-"), id(t, s.ID), s.Role, "no", "?", "?", "?", "?"}
		if s.Answers {
			history := "whole"
			switch {
			case s.Forgot:
				history = "none yet"
			case !s.Complete:
				history = "not whole"
			}
			row = []string{row[0], row[1], row[2], "yes", fmt.Sprint(s.Last), fmt.Sprint(s.Term), fmt.Sprint(s.Applied), history}
		}
		t.row(row...)
	}
	t.flush()
}
