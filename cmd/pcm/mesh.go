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

// viewTimeout bounds a call that only looks.
const viewTimeout = 30 * time.Second

// view makes the run function of a command that shows one thing.
func view[T any](a *app, get func(context.Context, *api.Client) (T, error), draw func(*table, T)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), viewTimeout)
		defer cancel()
		v, err := get(ctx, c)
		if err != nil {
			return err
		}
		return a.print(v, func(t *table) { draw(t, v) })
	}
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show this node at a glance", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.Status, error) { return c.Status(ctx) }, drawStatus),
	}
}

func drawStatus(t *table, s api.Status) {
	ready := "ready"
	if !s.Ready {
		ready = "not ready: " + or(s.Reason, "starting")
	}
	t.pair("Name", "%s (pcm %s, up %s)", s.Name, s.Version, t.age(s.StartedAt))
	t.pair("State", "%s", ready)
	t.pair("Peer", "%s", s.ID)
	t.pair("Account", "%s", s.Account)
	t.pair("Mesh", "%s, %s connected", s.Mesh, plural(s.Peers, "peer"))
	leader := ""
	if s.Leader != "" && s.Leader != s.ID {
		leader = ", led by " + pcm.Short(s.Leader)
	}
	t.pair("Cell", "%s (%s), %s%s", s.CellName, s.Cell, s.Role, leader)
	if !s.Passport.IsZero() {
		t.pair("Passport", "until %s", s.Passport.UTC().Format(time.RFC3339))
	}
	t.pair("Listens", "%s", strings.Join(s.Listen, " "))
	t.pair("API", "%s", strings.Join(s.API, " "))
	t.pair("Data", "%s", s.Data)
	t.pair("Disk", "%s free, %s kept free, artifacts %s of %s", s.Disk.Free, s.Disk.Reserved, s.Disk.Artifacts, s.Disk.Quota)
	t.pair("Work", "%s, %s here", plural(s.Open, "open job"), plural(s.Running, "running task"))
	for i, p := range s.Pools {
		name := ""
		if i == 0 {
			name = "Sells"
		}
		t.row(name, drawPool(p))
	}
	if len(s.Pools) == 0 {
		t.row("Sells", "nothing")
	}
	for _, w := range s.Warnings {
		t.row("Warning", w)
	}
}

func drawPool(p pcm.Pool) string {
	s := fmt.Sprintf("%s: %s, %s%s at %s", p.ID, p.Capacity, plural(p.Slots, "slot"), drawMost(p), drawPrice(api.Price{
		Unit: p.Price.Unit, PerTask: p.Price.PerTask.String(), PerCPUHour: p.Price.PerCPUHour.String(), PerGiBHour: p.Price.PerGiBHour.String(),
		PerGPUHour: p.Price.PerGPUHour.String(),
	}, p.Capacity.GPU))
	if p.Accelerator != nil {
		s += ", accelerators " + p.Accelerator.Name()
	}
	if p.Sandbox != "" {
		s += ", sandbox " + p.Sandbox
	}
	if p.NoFiles {
		s += ", no files"
	}
	if p.OwnOnly {
		s += ", own account only"
	}
	return s
}

// drawMost says what one task may have, where that is less than all.
func drawMost(p pcm.Pool) string {
	most := p.Most()
	if most == p.Capacity {
		return ""
	}
	return fmt.Sprintf(" of at most %s", most)
}

// drawAccelerators says how many of what a pool has.
func drawAccelerators(p pcm.Pool) string {
	switch {
	case p.Accelerator != nil:
		return fmt.Sprintf("%d × %s", p.Capacity.GPU, p.Accelerator)
	case p.Capacity.GPU > 0:
		return fmt.Sprintf("%d, not stated which", p.Capacity.GPU)
	}
	return "-"
}

// drawGPUPrice is what one accelerator of an offer costs for an hour.
func drawGPUPrice(o api.Offer) string {
	if o.Pool.Capacity.GPU == 0 {
		return "-"
	}
	return or(o.Price.PerGPUHour, "0")
}

func drawNetwork(p pcm.Pool) string {
	if p.Network == nil {
		return "-"
	}
	return p.Network.String()
}

func drawFeatures(features []pcm.Feature, noFiles bool) string {
	var names []string
	for _, f := range features {
		names = append(names, string(f))
	}
	if noFiles {
		names = append(names, "no files")
	}
	return or(strings.Join(names, ","), "-")
}

// drawPrice is the price of a pool with so many accelerators: what they cost is
// left out where there are none.
func drawPrice(p api.Price, gpus int64) string {
	s := fmt.Sprintf("%s/task + %s/cpu·h + %s/GiB·h", p.PerTask, p.PerCPUHour, p.PerGiBHour)
	if gpus > 0 {
		s += fmt.Sprintf(" + %s/gpu·h", or(p.PerGPUHour, "0"))
	}
	return s + " " + p.Unit
}

func (a *app) peersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "peers", Short: "List the peers of the mesh", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Peer], error) { return c.Peers(ctx) }, drawPeers),
	}
}

func drawPeers(t *table, l api.List[api.Peer]) {
	head := []string{"NAME", "PEER", "ACCOUNT", "CONNECTED", "ROLE", "LATENCY", "SEEN"}
	if t.wide {
		head = append(head, "TRANSPORT", "LABELS", "ADDRESSES")
	}
	t.row(head...)
	for _, p := range l.Items {
		connected, latency, seen := "no", "-", t.age(p.SeenAt)
		switch {
		case p.Self:
			connected, seen = "self", "-"
		case p.Connected:
			connected = "yes"
		}
		if p.LatencyMS > 0 {
			latency = fmt.Sprintf("%.1fms", p.LatencyMS)
		}
		row := []string{or(p.Name, "-"), id(t, p.ID), id(t, p.Account), connected, or(p.Role, "-"), latency, seen}
		if t.wide {
			row = append(row, or(p.Transport, "-"), or(p.Labels.String(), "-"), strings.Join(p.Addrs, " "))
		}
		t.row(row...)
	}
}

func (a *app) offersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "offers", Short: "List what is sold in the mesh", Args: noArgs,
		RunE: view(a, func(ctx context.Context, c *api.Client) (api.List[api.Offer], error) { return c.Offers(ctx) }, drawOffers),
	}
}

func drawOffers(t *table, l api.List[api.Offer]) {
	head := []string{"SELLER", "POOL", "ADAPTER", "CPU", "MEMORY", "SLOTS", "FREE", "PER TASK", "PER CPU·H", "PER GIB·H", "UNIT", "AGE"}
	if t.wide {
		head = append(head, "PEER", "ACCOUNT", "CELL", "NUMBER", "SANDBOX", "OWN ONLY", "CLASS", "ACCELERATORS", "PER GPU·H", "SOFTWARE", "NETWORK", "FEATURES", "LABELS", "RULES", "SOURCE", "VALID UNTIL")
	}
	t.row(head...)
	var unknown []string
	for _, o := range l.Items {
		free := "?"
		if o.FreeSlots != nil {
			free = plural(*o.FreeSlots, "slot")
		} else if o.FreeNote != "" {
			unknown = append(unknown, fmt.Sprintf("? at %s/%s: %s", or(o.Name, pcm.Short(o.Peer)), o.Pool.ID, o.FreeNote))
		}
		row := []string{
			or(o.Name, pcm.Short(o.Peer)), string(o.Pool.ID), o.Pool.Adapter, o.Pool.Capacity.CPU.String(), o.Pool.Capacity.Memory.String(),
			fmt.Sprint(o.Pool.Slots) + drawMost(o.Pool), free, o.Price.PerTask, o.Price.PerCPUHour, o.Price.PerGiBHour, o.Price.Unit,
			humanDuration(time.Duration(o.AgeMS) * time.Millisecond),
		}
		if t.wide {
			row = append(row, string(o.Peer), string(o.Account), string(o.Cell), fmt.Sprint(o.Number), or(o.Pool.Sandbox, "-"),
				fmt.Sprint(o.Pool.OwnOnly), or(o.Pool.Class, "-"), drawAccelerators(o.Pool), drawGPUPrice(o), or(o.Pool.Software.String(), "-"), drawNetwork(o.Pool),
				drawFeatures(o.Pool.Features, o.Pool.NoFiles), or(o.Pool.Labels.String(), "-"), or(ruleNames(o.Rules), "-"), string(o.Source), o.NotAfter.UTC().Format(time.RFC3339))
		}
		t.row(row...)
	}
	t.flush()
	for _, line := range unknown[:min(len(unknown), 5)] {
		t.text("%s", line)
	}
}

// ruleNames names the rules on which a pool is sold.
func ruleNames(rules []pcm.Rule) string {
	var names []string
	for _, r := range rules {
		names = append(names, r.Name)
	}
	return strings.Join(names, ",")
}

func (a *app) inviteCommand() *cobra.Command {
	var validFor time.Duration
	var issuer bool
	c := &cobra.Command{
		Use: "invite", Short: "Make a one-time token that lets a peer into the mesh", Args: noArgs,
		Long: `Prints a token, in one line, that lets one peer into this node's mesh. Pass it
on over a channel that you trust, and on the other machine run

  pcm up --join TOKEN`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if validFor < 0 {
				return pcm.Errorf(pcm.Invalid, "--valid-for %s is below zero", validFor)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), viewTimeout)
			defer cancel()
			inv, err := c.Invite(ctx, validFor, issuer)
			if err != nil {
				return err
			}
			if st, err := c.Status(ctx); err == nil && onlyLoopback(st.Listen) {
				fmt.Fprintf(a.errOut, "Warning: this node listens on loopback only, so the token works on this machine alone. To let others in, restart it with\n  pcm up --listen /ip4/0.0.0.0/udp/7419/quic-v1 --listen /ip4/0.0.0.0/tcp/7419\n")
			}
			if err := a.print(inv, func(t *table) { t.text("%s", inv.Token) }); err != nil {
				return err
			}
			a.hint("Good once, until %s. Next, on the other machine: pcm up --join TOKEN", inv.NotAfter.Local().Format("2006-01-02 15:04 MST"))
			return nil
		},
	}
	c.Flags().DurationVar(&validFor, "valid-for", 0, "how long the token can be used (default 24h)")
	c.Flags().BoolVar(&issuer, "issuer", false, "let the newcomer invite others")
	return c
}

// onlyLoopback tells whether nobody on another machine can reach the addresses.
func onlyLoopback(addrs []string) bool {
	for _, a := range addrs {
		if !strings.HasPrefix(a, "/ip4/127.") && !strings.HasPrefix(a, "/ip6/::1/") {
			return false
		}
	}
	return true
}

func (a *app) joinCommand() *cobra.Command {
	var cell string
	c := &cobra.Command{
		Use: "join TOKEN", Short: "Move this node, which has nothing but its founding, into another mesh", Args: exactly(1, "a TOKEN from 'pcm invite'"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, _, err := pcm.ParseToken(args[0]); err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			st, err := c.Join(cmd.Context(), args[0], cell)
			if err != nil {
				return err
			}
			if err := a.print(st, func(t *table) { drawStatus(t, st) }); err != nil {
				return err
			}
			a.hint("Next: pcm peers")
			return nil
		},
	}
	c.Flags().StringVar(&cell, "cell", "", cellFlag)
	return c
}

const cellFlag = "`CELL` to go to: a name or an ID (see 'pcm cell list'), or new:NAME to found one (default: where the inviting peer sends this one)"

func (a *app) leaveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "leave", Short: "Give this node's membership of the mesh up for good", Args: noArgs,
		RunE: a.ack(func(ctx context.Context, c *api.Client) (api.Ack, error) { return c.Leave(ctx) }),
	}
}

// downWait bounds how long 'pcm down' waits for the node's end: a little longer
// than the node may take.
const downWait = stopGrace + 5*time.Second

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop this node and wait for its end; running tasks stay with their supervisor", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), downWait)
			defer cancel()
			st, err := c.Status(ctx)
			if err != nil {
				return err
			}
			ack, err := c.Down(ctx)
			if err != nil {
				return err
			}
			ack.Text = "the node has ended"
			if !ended(ctx, c, st.Data) {
				return pcm.Errorf(pcm.Unavailable, "the node was told to end, but did not within %s; its log says why", downWait)
			}
			return a.print(ack, func(t *table) { t.text("%s: %s", st.Name, ack.Text) })
		},
	}
}

// ended waits until a node's process is gone: it has let go of its data folder or,
// where that can't be seen, no longer answers.
func ended(ctx context.Context, c *api.Client, data string) bool {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		held, known := lockHeld(data)
		if known && !held {
			return true
		}
		if _, err := c.Status(ctx); !known && pcm.ErrorCode(err) == pcm.Unavailable && ctx.Err() == nil {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
}

func (a *app) ack(do func(context.Context, *api.Client) (api.Ack, error)) func(*cobra.Command, []string) error {
	return view(a, do, func(t *table, k api.Ack) { t.text("%s: %s", pcm.Short(k.ID), k.Text) })
}
