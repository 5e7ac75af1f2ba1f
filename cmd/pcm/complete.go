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
	"github.com/jointcloud/pcm/node/placement"
)

// completeTimeout bounds how long a shell waits for the node to complete a word;
// maxCompleted how many jobs, newest first, it is offered.
const (
	completeTimeout = 500 * time.Millisecond
	maxCompleted    = 100
)

var (
	formats     = []string{"table", "wide", "json", "yaml"}
	jobStates   = []string{string(pcm.JobOpen), string(pcm.JobDone), string(pcm.JobFailed), string(pcm.JobCancelled)}
	tradeStates = []string{"open", "closed"}
	takeovers   = []string{string(pcm.TakeoverAccount), string(pcm.TakeoverAny), string(pcm.TakeoverNone)}
)

// checkFlag refuses a flag's value that is not empty and not among the known ones.
func checkFlag(flag, value string, known []string) error {
	if value == "" || slices.Contains(known, value) {
		return nil
	}
	return pcm.Errorf(pcm.Invalid, "%s %s is none of %s%s", flag, value, strings.Join(known, ", "), didYouMean(value, known))
}

// complete teaches the commands below root what the shell may offer for their
// flags and arguments, and 'pcm completion' to refuse a shell that it doesn't know.
func (a *app) complete(root *cobra.Command) {
	var strategies []string
	for _, s := range placement.Strategies {
		strategies = append(strategies, s.Name)
	}
	values := map[string][]string{"format": formats, "strategy": strategies, "takeover": takeovers, "state": jobStates}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for name, known := range values {
			if c.LocalNonPersistentFlags().Lookup(name) == nil && (c != root || name != "format") {
				continue
			}
			if c.Name() == "trades" {
				known = tradeStates
			}
			// It fails for an unknown flag or the second time: neither can be.
			c.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(known, cobra.ShellCompDirectiveNoFileComp))
		}
		for name, known := range map[string]func() []string{"class": classNames, "accelerator": acceleratorNames} {
			if c.LocalNonPersistentFlags().Lookup(name) != nil { // read only when they are asked for
				c.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
					return known(), cobra.ShellCompDirectiveNoFileComp
				})
			}
		}
		switch c.CommandPath() {
		case "pcm completion":
			c.RunE = a.group(c)
		case "pcm job describe", "pcm job stop", "pcm job logs", "pcm job scale", "pcm job suspend", "pcm job resume", "pcm port-forward":
			c.ValidArgsFunction = a.completeJob(cobra.ShellCompDirectiveNoFileComp, cobra.ShellCompDirectiveNoFileComp)
		case "pcm pool cordon", "pcm pool uncordon", "pcm pool drain", "pcm pool cap", "pcm pool price":
			c.ValidArgsFunction = a.completePool
		case "pcm exec": // then a command
			c.ValidArgsFunction = a.completeJob(cobra.ShellCompDirectiveNoFileComp, cobra.ShellCompDirectiveDefault)
		case "pcm job get":
			c.ValidArgsFunction = a.completeJob(cobra.ShellCompDirectiveNoFileComp, cobra.ShellCompDirectiveFilterDirs)
		case "pcm job explain": // or a file
			c.ValidArgsFunction = a.completeJob(cobra.ShellCompDirectiveDefault, cobra.ShellCompDirectiveNoFileComp)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
}

// completeJob offers the node's jobs as first argument. first and then say what
// else the shell may offer there, and for the arguments after it. A node that
// doesn't answer has none to offer.
func (a *app) completeJob(first, then cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, then
		}
		c, err := a.client()
		if err != nil {
			return nil, first
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		jobs, err := c.Jobs(ctx, api.Query{Limit: maxCompleted})
		if err != nil {
			return nil, first
		}
		var found []cobra.Completion
		for _, j := range jobs.Items {
			if id := string(j.ID); strings.HasPrefix(id, typed) {
				found = append(found, cobra.CompletionWithDesc(id, plain(fmt.Sprintf("%s, %s", j.Name, j.State))))
			}
		}
		return found, first
	}
}
