package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) poolCommand() *cobra.Command {
	c := &cobra.Command{Use: "pool", Aliases: []string{"pools"}, Short: "What this peer sells: show it, hold it back, bound it, price it"}
	c.RunE = a.group(c)
	c.AddCommand(a.poolListCommand(), a.poolCordonCommand(), a.poolUncordonCommand(), a.poolDrainCommand(), a.poolCapCommand(), a.poolPriceCommand())
	return c
}

func (a *app) poolListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the pools of this peer, offered or not", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.OwnPool], error) { return c.Pools(ctx) },
			func(t *table, l api.List[api.OwnPool]) { drawPools(t, l.Items) }),
	}
}

func drawPools(t *table, pools []api.OwnPool) {
	head := []string{"POOL", "ADAPTER", "CLASS", "CPU", "MEMORY", "SLOTS", "IN USE", "TASKS", "PRICE", "SEEN", "STATE", "REASON"}
	if t.wide {
		head = append(head, "SINCE", "AS FOUND", "SANDBOX", "FEATURES", "LABELS")
	}
	t.row(head...)
	for _, p := range pools {
		capacity, slots, capped := p.Capacity, p.Slots, ""
		if p.Cap != nil {
			capacity, slots, capped = p.Cap.Capacity, p.Cap.Slots, " (cap)"
		}
		state := p.State
		switch {
		case p.State == api.PoolDraining && p.DrainUntil.After(t.now):
			state += ", " + humanDuration(p.DrainUntil.Sub(t.now)) + " left"
		case !p.Since.IsZero():
			state += " " + t.age(p.Since)
		}
		tasks := fmt.Sprintf("%d run", p.Running)
		if p.Waiting > 0 {
			tasks += fmt.Sprintf(", %d wait", p.Waiting)
		}
		price := drawPrice(p.Price, p.Capacity.GPU)
		if p.PriceSet {
			price += " (set)"
		}
		seen := "-"
		if !p.Seen.IsZero() {
			seen = t.age(p.Seen)
		}
		row := []string{
			string(p.ID), p.Adapter, or(p.Class, "-"), capacity.CPU.String(), capacity.Memory.String(), fmt.Sprint(slots) + drawMost(pcm.Pool{Capacity: capacity, Largest: p.Largest}) + capped,
			fmt.Sprintf("%s cpu, %s", p.Reserved.CPU, p.Reserved.Memory), tasks, price, seen, state, or(p.Reason, "-"),
		}
		if t.wide {
			since := "-"
			if !p.Since.IsZero() {
				since = p.Since.UTC().Format(time.RFC3339)
			}
			row = append(row, since, fmt.Sprintf("%s, %d slots", p.Capacity, p.Slots), or(p.Sandbox, "-"), drawFeatures(p.Features, p.NoFiles), or(p.Labels.String(), "-"))
		}
		t.row(row...)
	}
	if len(pools) == 0 {
		t.text("This peer sells nothing; see 'adapters' in its configuration.")
	}
}

// poolAction is a command that does something to one pool and shows it then.
func (a *app) poolAction(do func(ctx context.Context, c *api.Client, args []string) (api.OwnPool, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return view(a, func(ctx context.Context, c *api.Client) (api.OwnPool, error) { return do(ctx, c, args) },
			func(t *table, p api.OwnPool) { drawPools(t, []api.OwnPool{p}) })(cmd, nil)
	}
}

func (a *app) poolCordonCommand() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "cordon POOL", Short: "Take a pool out of the offers; what runs there goes on", Args: exactly(1, "a POOL of 'pcm pool list'"),
		RunE: a.poolAction(func(ctx context.Context, c *api.Client, args []string) (api.OwnPool, error) {
			return c.CordonPool(ctx, args[0], reason)
		}),
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for people")
	return c
}

func (a *app) poolUncordonCommand() *cobra.Command {
	return &cobra.Command{
		Use: "uncordon POOL", Short: "Offer a pool again", Args: exactly(1, "a POOL of 'pcm pool list'"),
		RunE: a.poolAction(func(ctx context.Context, c *api.Client, args []string) (api.OwnPool, error) {
			return c.UncordonPool(ctx, args[0])
		}),
	}
}

func (a *app) poolDrainCommand() *cobra.Command {
	var reason string
	var timeout time.Duration
	var wait bool
	c := &cobra.Command{
		Use: "drain POOL", Short: "Take a pool out of the offers and empty it", Args: exactly(1, "a POOL of 'pcm pool list'"),
		Long: `Takes the pool out of the offers. What waits there goes back to its buyers at
once; what runs may end by itself until the timeout, and is stopped then: its
buyers pay nothing for it and run it elsewhere. The drain goes on when this
command ends, and when the node is restarted. 'pcm pool uncordon' ends it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), viewTimeout)
			p, err := c.DrainPool(ctx, args[0], timeout, reason)
			cancel()
			if err == nil && wait {
				p, err = a.awaitDrained(cmd.Context(), c, p)
			}
			if err != nil {
				return err
			}
			return a.print(p, func(t *table) { drawPools(t, []api.OwnPool{p}) })
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why, for people")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "what still runs after that is stopped; 0s: at once")
	c.Flags().BoolVar(&wait, "wait", false, "wait until nothing runs there any more, and show progress")
	return c
}

// awaitDrained follows a drain to its end.
func (a *app) awaitDrained(ctx context.Context, c *api.Client, p api.OwnPool) (api.OwnPool, error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	told := ""
	for {
		switch p.State {
		case api.PoolDrained:
			return p, nil
		case api.PoolDraining:
		default:
			return p, pcm.Errorf(pcm.Conflict, "pool %s is %s: its drain was ended by somebody else", p.ID, p.State)
		}
		if now := fmt.Sprintf("%s run in %s", plural(p.Running, "task"), p.ID); now != told {
			told = now
			a.hint("%s; what is left is stopped %s", now, p.DrainUntil.Local().Format("15:04:05"))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return p, pcm.Errorf(pcm.Unavailable, "interrupted; the drain of %s goes on: see 'pcm pool list'", p.ID)
		}
		var err error
		if p, err = c.Pool(ctx, string(p.ID)); err != nil {
			return p, err
		}
	}
}

// assignments reads "key=value,key=value" in one or more arguments; keys are the known ones.
func assignments(args []string, known ...string) (map[string]string, error) {
	found := map[string]string{}
	for _, arg := range args {
		for _, part := range strings.Split(arg, ",") {
			key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
			if !ok || value == "" {
				return nil, pcm.Errorf(pcm.Invalid, "%q is not of the form KEY=VALUE; keys: %s", part, strings.Join(known, ", "))
			}
			if err := checkFlag("key", key, known); err != nil {
				return nil, err
			}
			if _, twice := found[key]; twice {
				return nil, pcm.Errorf(pcm.Invalid, "%s is given twice", key)
			}
			found[key] = value
		}
	}
	return found, nil
}

func (a *app) poolCapCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cap POOL cpu=4,memory=8GiB,slots=10 | none", Short: "Bound what is sold of a pool", Args: between(2, 8, "a POOL and what to cap (cpu=4,memory=8GiB,gpu=1,slots=10), or none"),
		Long: `Bounds what is sold of a pool, whatever its back end has. What is not named is
not bounded; none takes the cap away. What runs goes on: nothing new is
taken until it is within the cap.`,
		RunE: a.poolAction(func(ctx context.Context, c *api.Client, args []string) (api.OwnPool, error) {
			var r api.CapRequest
			if len(args) == 2 && args[1] == "none" {
				return c.CapPool(ctx, args[0], r)
			}
			set, err := assignments(args[1:], "cpu", "memory", "gpu", "slots")
			if err != nil {
				return api.OwnPool{}, err
			}
			r.CPU, r.Memory = set["cpu"], set["memory"]
			for key, to := range map[string]**int64{"gpu": &r.GPU, "slots": &r.Slots} {
				if set[key] == "" {
					continue
				}
				n, err := strconv.ParseInt(set[key], 10, 64)
				if err != nil || n < 0 || n > math.MaxInt32 {
					return api.OwnPool{}, pcm.Errorf(pcm.Invalid, "%s=%s is not a number of %s", key, set[key], key)
				}
				*to = &n
			}
			return c.CapPool(ctx, args[0], r)
		}),
	}
}

func (a *app) poolPriceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "price POOL per_cpu_hour=1,per_task=0.001,… | default", Short: "Set the price of a pool, for new trades", Args: between(2, 8, "a POOL and its price (per_task=0.001,per_cpu_hour=1,per_gib_hour=0.1,per_gpu_hour=10,unit=credit), or default"),
		Long: `Sets parts of a pool's price; what is not named stays as it is. default brings
the configured price back. Trades that are made already keep their price.`,
		RunE: a.poolAction(func(ctx context.Context, c *api.Client, args []string) (api.OwnPool, error) {
			if len(args) == 2 && args[1] == "default" {
				return c.PricePool(ctx, args[0], api.PriceRequest{})
			}
			set, err := assignments(args[1:], "per_task", "per_cpu_hour", "per_gib_hour", "per_gpu_hour", "unit")
			if err != nil {
				return api.OwnPool{}, err
			}
			return c.PricePool(ctx, args[0], api.PriceRequest{
				Unit: set["unit"], PerTask: set["per_task"], PerCPUHour: set["per_cpu_hour"], PerGiBHour: set["per_gib_hour"], PerGPUHour: set["per_gpu_hour"],
			})
		}),
	}
}

// completePool offers the node's pools as first argument.
func (a *app) completePool(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 {
		return nil, none
	}
	c, err := a.client()
	if err != nil {
		return nil, none
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	pools, err := c.Pools(ctx)
	if err != nil {
		return nil, none
	}
	var found []cobra.Completion
	for _, p := range pools.Items {
		if strings.HasPrefix(string(p.ID), typed) {
			found = append(found, cobra.CompletionWithDesc(string(p.ID), plain(p.State)))
		}
	}
	return found, none
}
