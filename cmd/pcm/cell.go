package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

const cellLong = `A cell is a group of peers that keep one ledger. Up to three of them vote; its
leader sees to it that those are alive, and of different accounts and sites.
What an operator changes by hand is checked first: nothing that would cost the
majority is done. 'pcm cell members' shows how each peer is, and what the leader
is about to do.`

// cellOrders are the commands by which an operator changes the cell.
func (a *app) cellOrders() []*cobra.Command {
	members := &cobra.Command{
		Use: "members", Short: "Show how the peers of this node's cell are, as its leader sees them", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.CellHealth, error) { return c.CellHealth(ctx) }, drawHealth),
	}
	order := func(use, short, long string, args cobra.PositionalArgs, do func(context.Context, *api.Client, []string) (api.CellHealth, error)) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Long: long, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			return view(a, func(ctx context.Context, c *api.Client) (api.CellHealth, error) { return do(ctx, c, args) }, drawHealth)(cmd, nil)
		}}
	}
	const peer = "a PEER of 'pcm cell members': its name or ID"
	transfer := order("transfer-leader [PEER]", "Hand the leadership of the cell to another voter", "", between(0, 1, "at most "+peer),
		func(ctx context.Context, c *api.Client, args []string) (api.CellHealth, error) {
			to := ""
			if len(args) > 0 {
				to = args[0]
			}
			return c.TransferLeader(ctx, to)
		})
	var instead string
	promote := order("promote PEER", "Let a replica vote", `Makes a replica a voter. It must be caught up, with all records. Two voters are
weaker than one, so the number stays odd: a second replica is promoted with it,
or it takes the place of the voter that --instead-of names. A vote that 'pcm
cell demote' took is given back.`, exactly(1, peer),
		func(ctx context.Context, c *api.Client, args []string) (api.CellHealth, error) {
			return c.PromotePeer(ctx, args[0], instead)
		})
	promote.Flags().StringVar(&instead, "instead-of", "", "the voter `PEER` whose place it takes")
	var force bool
	demote := order("demote PEER", "Make a voter a replica", `Takes a peer's vote, for maintenance or for good. A replica that is ready takes
its place. The peer doesn't vote again until 'pcm cell promote PEER'.`, exactly(1, peer),
		func(ctx context.Context, c *api.Client, args []string) (api.CellHealth, error) {
			return c.DemotePeer(ctx, args[0], force)
		})
	demote.Flags().BoolVar(&force, "force", false, "also where no replica takes its place: then one voter remains of three")
	add := order("add PEER", "Take a peer with a passport into the cell, as a replica", `Takes a peer that is in the mesh, and was in the cell before, into the cell
again. A vote that 'pcm cell demote' took stays taken. New peers join with a token from 'pcm invite' instead.`, exactly(1, peer),
		func(ctx context.Context, c *api.Client, args []string) (api.CellHealth, error) {
			h, err := c.AddPeer(ctx, args[0])
			if name := stillHeld(h, args[0]); name != "" {
				a.hint("An operator took %s's vote before, and that still holds: '%s cell promote %s' gives it back.", name, a.self(), name)
			}
			return h, err
		})
	var yes bool
	remove := order("remove PEER", "Take a peer out of the cell", `Takes a peer that is gone for good out of the cell. It gets no more of the
ledger; its passport stays valid until it runs out. A peer that still runs
leaves in better order by 'pcm leave' on itself. Where that takes a vote, the
command says what the cell can lose then, and asks. 'pcm cell add' takes the
peer in again.`, exactly(1, peer),
		func(ctx context.Context, c *api.Client, args []string) (api.CellHealth, error) {
			if !yes {
				if err := a.confirmRemoval(ctx, c, args[0]); err != nil {
					return api.CellHealth{}, err
				}
			}
			return c.RemovePeer(ctx, args[0])
		})
	remove.Flags().BoolVar(&yes, "yes", false, "don't ask: what the cell can lose then is known")
	return []*cobra.Command{members, transfer, promote, demote, add, remove, a.cellRecoverCommand(), a.cellRejoinCommand(), a.snapshotCommand()}
}

// stillHeld is the name of the peer that was typed, if an operator took its vote; else "".
func stillHeld(h api.CellHealth, who string) string {
	for _, m := range h.Members {
		if who != "" && m.Held && (m.Name == who || string(m.ID) == who || pcm.Short(m.ID) == who) {
			return or(plain(m.Name), pcm.Short(m.ID))
		}
	}
	return ""
}

// confirmRemoval has a person confirm that a voter is taken out of the cell.
func (a *app) confirmRemoval(ctx context.Context, c *api.Client, who string) error {
	h, err := c.CellHealth(ctx)
	if err != nil {
		return err
	}
	name, cost := removalCost(h, who)
	if cost == "" {
		return nil
	}
	fmt.Fprintln(a.errOut, plain(cost))
	return a.confirm("take the peer out", name)
}

// removalCost says what it costs a cell to lose a voter, and the voter's name; "" for what takes no
// vote, which can be taken back, and for the last voter, which the cell keeps.
func removalCost(h api.CellHealth, who string) (name, cost string) {
	voters, answer := 0, 0
	for _, m := range h.Members {
		if m.Role != "voter" && m.Role != "leader" {
			continue
		}
		voters++
		if api.MayMean(who, m.ID, m.Name) {
			name = or(m.Name, pcm.Short(m.ID))
		} else if m.Answers {
			answer++
		}
	}
	left := voters - 1
	if name == "" || left == 0 {
		return "", ""
	}
	return name, fmt.Sprintf("%s is one of %s of cell %s. %d would be left, of which %d answer now; the cell then goes on with %d of its voters lost, now with %d.",
		name, plural(voters, "voter"), h.Name, left, answer, (left-1)/2, (voters-1)/2)
}

func drawHealth(t *table, h api.CellHealth) {
	t.pair("Cell", "%s (%s)", h.Name, h.ID)
	votes := 0
	for _, m := range h.Members {
		if m.Role == "voter" || m.Role == "leader" {
			votes++
		}
	}
	if h.MaxVoters > 0 {
		t.pair("Voters", "%d, at most %d", votes, h.MaxVoters)
	}
	t.pair("Plan", "%s", h.Plan)
	t.text("")
	head := []string{"MEMBER", "PEER", "ROLE", "LOG", "STATE"}
	if t.wide {
		head = append(head, "APPLIED", "ACCOUNT", "SITE")
	}
	t.row(head...)
	for _, m := range h.Members {
		log := "-"
		if m.Last > 0 {
			log = fmt.Sprint(m.Last)
		}
		row := []string{or(m.Name, "-"), id(t, m.ID), m.Role, log, drawPeerHealth(h, m)}
		if t.wide {
			row = append(row, fmt.Sprint(m.Applied), or(m.Account, "-"), or(m.Site, "-"))
		}
		t.row(row...)
	}
	t.flush()
}

// drawPeerHealth says how a peer is in a few words.
func drawPeerHealth(h api.CellHealth, m api.PeerHealth) string {
	silent := humanDuration(time.Duration(m.SilentMS) * time.Millisecond)
	switch {
	case h.MaxVoters == 0 && m.Answers:
		return "connected"
	case h.MaxVoters == 0:
		return "not connected"
	case m.Role == "leader":
		return "leads"
	case !m.Answers && m.Last == 0:
		return "not heard from yet, for " + silent
	case !m.Answers:
		return "silent for " + silent
	case m.Forgot:
		return "gets the ledger: it has just come, or has lost its own, and takes no part in elections until it has it"
	case m.Role == "voter":
		return "votes"
	case !m.Complete:
		return "fetches the history"
	case m.Held:
		return "an operator took its vote; 'pcm cell promote " + or(m.Name, pcm.Short(m.ID)) + "' gives it back"
	case !m.Eligible:
		return "may not vote by its own configuration"
	case m.Ready:
		return "ready to vote for " + humanDuration(time.Duration(m.CaughtMS)*time.Millisecond)
	}
	return "catches up"
}
