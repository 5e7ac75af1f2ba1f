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

func (a *app) cellListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the cells of the mesh", Args: noArgs,
		Long: `Lists the cells of the mesh: this node's own first, then what the leaders of the
others tell of them. A newcomer goes to a cell with room by

  pcm up --join TOKEN --cell NAME

and founds one of its own, in the same mesh, by --cell new:NAME.`,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Cell], error) { return c.Cells(ctx) }, drawCellList),
	}
}

func drawCellList(t *table, l api.List[api.Cell]) {
	head := []string{"CELL", "ID", "LEADER", "VOTERS", "MEMBERS", "NEWCOMERS", "HEARD"}
	if t.wide {
		head = append(head, "TERM", "RECORDS", "VOTER", "SOURCE", "VALID UNTIL")
	}
	t.row(head...)
	for _, c := range l.Items {
		var voters []string
		leader := "none now"
		if c.Leader != "" {
			leader = pcm.Short(c.Leader)
		}
		for _, m := range c.Members {
			if m.Role == "voter" || m.Role == "leader" {
				voters = append(voters, or(m.Name, pcm.Short(m.ID)))
			}
			if m.ID == c.Leader {
				leader = or(m.Name, leader)
			}
		}
		size := max(c.Size, len(c.Members))
		newcomers, heard := fmt.Sprintf("room for %d", max(0, c.MaxMembers-size)), "own"
		switch {
		case c.Silent:
			newcomers = "silent"
		case !c.Open:
			newcomers = "closed"
		case c.MaxMembers <= size:
			newcomers = "full"
		}
		if c.Away {
			heard = humanDuration(time.Duration(c.AgeMS)*time.Millisecond) + " ago"
		}
		row := []string{c.Name, id(t, c.ID), leader, fmt.Sprint(len(voters)), fmt.Sprint(size), newcomers, heard}
		if t.wide {
			records, until := "-", "-"
			if !c.Away {
				records = fmt.Sprint(c.Records)
			} else {
				until = c.NotAfter.UTC().Format(time.RFC3339)
			}
			row = append(row, fmt.Sprint(c.Term), records, strings.Join(voters, ","), or(id(t, c.Source), "-"), until)
		}
		t.row(row...)
	}
}
