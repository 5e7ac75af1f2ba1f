package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) taskCommand() *cobra.Command {
	c := &cobra.Command{Use: "task", Aliases: []string{"tasks"}, Short: "What runs on this machine for others, and how to end it"}
	c.RunE = a.group(c)
	c.AddCommand(a.taskListCommand(), a.taskKillCommand())
	return c
}

func (a *app) taskListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what runs or waits at this peer, and for whom", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Attempt], error) { return c.Attempts(ctx) }, drawAttempts),
	}
}

func drawAttempts(t *table, l api.List[api.Attempt]) {
	head := []string{"TASK", "TRY", "JOB", "STEP", "BUYER", "POOL", "PROGRAM", "STATE", "AGE", "CPU", "MEMORY", "LEASE", "REASON"}
	if t.wide {
		head = append(head, "DRIVER", "RESERVES", "IMAGE", "AWARDED", "STARTED")
	}
	t.row(head...)
	for _, x := range l.Items {
		state, lease, began := x.State, "-", x.Started
		if x.Native != "" && x.Native != x.State {
			state += " (" + x.Native + ")"
		}
		if x.LeaseMS > 0 {
			lease = humanDuration(time.Duration(x.LeaseMS) * time.Millisecond)
		}
		if began.IsZero() {
			began = x.Awarded
		}
		row := []string{
			fmt.Sprintf("%s/%d", id(t, x.Trade), x.Index), fmt.Sprint(x.Try), id(t, x.Job), or(x.Step, "-"), id(t, x.Buyer), string(x.Pool), or(x.Program, "-"),
			state, t.age(began), (time.Duration(x.Usage.CPUMS) * time.Millisecond).String(), x.Usage.MaxMemory.String(), lease, or(x.Reason, "-"),
		}
		if t.wide {
			started := "-"
			if !x.Started.IsZero() {
				started = x.Started.UTC().Format(time.RFC3339)
			}
			row = append(row, string(x.Driver), x.Resources.String(), or(x.Image, "-"), x.Awarded.UTC().Format(time.RFC3339), started)
		}
		t.row(row...)
	}
	if len(l.Items) == 0 {
		t.text("Nothing runs here.")
	}
}

func (a *app) taskKillCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "kill TRADE/INDEX", Short: "End a task that runs at this peer; its buyer pays nothing and runs it elsewhere", Args: exactly(1, "a task TRADE/INDEX of 'pcm task list'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			trade, number, ok := strings.Cut(args[0], "/")
			index, err := strconv.Atoi(number)
			if !ok || err != nil || index < 0 || trade == "" {
				return pcm.Errorf(pcm.Invalid, "%q is not a task of the form TRADE/INDEX, like trd-p3q8ab2c/0; see 'pcm task list'", args[0])
			}
			return a.ack(func(ctx context.Context, c *api.Client) (api.Ack, error) {
				return c.KillAttempt(ctx, trade, index, reason)
			})(cmd, nil)
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for its buyer to read")
	return c
}
