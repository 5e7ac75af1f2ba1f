package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/node/api"
)

// Bounds of looking at oneself.
const (
	checkClock    = 3 * time.Second
	checkBackEnd  = 5 * time.Second
	clockWarn     = 10 * time.Second // passports, invites and offers allow pcm.Skew
	clockJumpWarn = 5 * time.Second
)

// Doctor looks for what is wrong with this peer, as far as the running node can tell.
func (n *Node) Doctor(ctx context.Context) (api.Checkup, error) {
	var list []api.Finding
	list = append(list, n.checkReady(), n.checkCell(), n.checkHistory(), n.checkPassport(), n.checkStore())
	if f, ok := n.retention.finding(); ok {
		list = append(list, f)
	}
	list = append(list, n.checkClock(ctx)...)
	list = append(list, n.checkPeers())
	var all []adapters.Adapter
	for _, s := range n.cfg.Sales {
		all = append(all, s.Adapter)
	}
	list = append(list, CheckBackEnds(ctx, all)...)
	for _, w := range n.offer.strays() {
		list = append(list, api.Finding{Check: "configuration", Status: api.CheckWarn, Text: w, Hint: "'pcm pool list' shows the pools"})
	}
	for _, w := range n.partings() {
		list = append(list, api.Finding{Check: "recovery", Status: api.CheckFail, Text: w, Hint: "agree with the operators of both sides which one goes on"})
	}
	for _, w := range n.glass.alarms.warnings() {
		list = append(list, api.Finding{Check: "evidence", Status: api.CheckFail, Text: w, Hint: "talk to the operators of the peers it names; then move the folder evidence/ away"})
	}
	return api.NewCheckup(string(n.self), list), nil
}

func (n *Node) checkReady() api.Finding {
	if why := n.notReady(); why != "" {
		return api.Finding{Check: "node", Status: api.CheckFail, Text: "it is not ready: " + why, Hint: "see the cell below, and the node's log"}
	}
	return api.Finding{Check: "node", Status: api.CheckOK, Text: fmt.Sprintf("%s is ready, up %s", n.cfg.Name, time.Since(n.startedAt).Round(time.Second))}
}

// checkCell tells whether the cell can decide, and how many more voters it may lose.
func (n *Node) checkCell() api.Finding {
	f := api.Finding{Check: "cell", Status: api.CheckOK}
	st, names := n.cell.Status(), n.names()
	connected := map[pcm.PeerID]bool{n.self: true}
	for _, p := range n.mesh.Peers() {
		connected[p.Passport.Peer] = p.Connected
	}
	voters, silent := 0, []string{}
	for _, m := range st.Members {
		if m.Role != consensus.RoleVoter && m.Role != consensus.RoleLeader {
			continue
		}
		voters++
		if !connected[m.Peer] {
			silent = append(silent, orElse(names[m.Peer], pcm.Short(m.Peer)))
		}
	}
	alive := voters - len(silent)
	f.Text = fmt.Sprintf("%d of %d voters can be reached from here, this peer is %s", alive, voters, orElse(string(st.Role), "no member"))
	switch {
	case st.Role == consensus.RoleNone:
		f.Status = api.CheckFail
		f.Hint = "a voter's operator takes it in by 'pcm cell add " + n.cfg.Name + "'; to go elsewhere, start with a new data folder and --join"
	case n.cell.LeftBehind() != nil:
		f.Status, f.Text = api.CheckFail, "the cell was recovered without this peer, which takes no part in it any more"
		f.Hint = "'pcm cell rejoin' joins the recovered cell; if that was a mistake: 'pcm cell recover --refuse'"
	case st.Leader == "":
		f.Status, f.Text = api.CheckFail, "the cell has no leader: nothing is decided; "+f.Text
		f.Hint = "bring the voters back that can't be reached"
		if len(silent) > 0 {
			f.Hint += ": " + strings.Join(silent, ", ")
		}
		if alive <= voters/2 {
			f.Hint += "; if they are gone for good, see 'pcm cell recover --dry-run'"
		}
	case len(silent) > 0:
		f.Status = api.CheckWarn
		f.Hint = "look at " + strings.Join(silent, ", ") + ": when fewer than " + fmt.Sprint(voters/2+1) + " voters are left, nothing is decided"
	default:
		f.Text += ", the leader is " + orElse(names[st.Leader], pcm.Short(st.Leader))
	}
	return f
}

func (n *Node) checkHistory() api.Finding {
	st := n.cell.Status()
	switch {
	case !st.Complete:
		return api.Finding{Check: "ledger", Status: api.CheckWarn, Text: "its history is still being fetched from other peers", Hint: "wait; if that lasts, see whether peers that have it can be reached"}
	case st.Commit > st.Applied+1000:
		return api.Finding{Check: "ledger", Status: api.CheckWarn, Text: fmt.Sprintf("this peer is %d entries behind", st.Commit-st.Applied), Hint: "the disk may be too slow: see the time of fsync"}
	}
	if gone := n.cell.Pruned(); gone > 0 {
		return api.Finding{Check: "ledger", Status: api.CheckOK, Text: fmt.Sprintf("%d records, those from %d on here", st.Records, gone)}
	}
	return api.Finding{Check: "ledger", Status: api.CheckOK, Text: fmt.Sprintf("%d records, all of them here", st.Records)}
}

func (n *Node) checkPassport() api.Finding {
	until := time.UnixMilli(n.mesh.Own().NotAfter)
	f := api.Finding{Check: "passport", Status: api.CheckOK, Text: "valid until " + until.UTC().Format(time.RFC3339)}
	switch left := time.Until(until); {
	case left <= 0:
		f.Status, f.Text = api.CheckFail, "expired at "+until.UTC().Format(time.RFC3339)
		f.Hint = "ask for a token ('pcm invite' at a peer that may invite) and join again"
	case left < pcm.PassportLifetime/4:
		f.Status, f.Hint = api.CheckWarn, "no issuer could be reached to renew it: see whether the peer that let this one in is up"
	}
	return f
}

func (n *Node) checkStore() api.Finding {
	use := n.store.Usage()
	f := api.Finding{Check: "store", Status: api.CheckOK, Text: fmt.Sprintf("artifacts take %s of %s", use.Used, use.Quota)}
	if use.Used > use.Quota/10*9 {
		f.Status, f.Hint = api.CheckWarn, "raise store.quota: without room, inputs and outputs are refused"
	}
	return f
}

func (n *Node) checkPeers() api.Finding {
	known := len(n.mesh.Peers())
	f := api.Finding{Check: "peers", Status: api.CheckOK, Text: fmt.Sprintf("%d of %d known peers are connected; listening on %s", n.connected(), known, strings.Join(n.mesh.Addrs(), " "))}
	switch {
	case len(n.mesh.Addrs()) == 0:
		f.Status, f.Hint = api.CheckFail, "name an address to listen on: 'pcm up --listen'"
	case known > 0 && n.connected() == 0:
		f.Status, f.Hint = api.CheckWarn, "see whether the network or a firewall is in the way, and whether the others are up"
	}
	return f
}

// checkClock compares this machine's clock with those of peers, and with the time that has passed.
func (n *Node) checkClock(ctx context.Context) []api.Finding {
	ctx, cancel := context.WithTimeout(ctx, checkClock)
	defer cancel()
	f := api.Finding{Check: "clock", Status: api.CheckOK, Text: "no connected peer to compare it with"}
	if off, answers := n.clockOffset(ctx); answers > 0 {
		f.Text = fmt.Sprintf("%s of the clocks of %d connected peers", aheadText(off), answers)
		switch by := max(off, -off); {
		case by >= pcm.Skew:
			f.Status, f.Hint = api.CheckFail, fmt.Sprintf("set it right (chrony, systemd-timesyncd): from %s on, peers refuse each other's passports and offers", pcm.Skew)
		case by >= clockWarn:
			f.Status, f.Hint = api.CheckWarn, fmt.Sprintf("set it right (chrony, systemd-timesyncd): %s are allowed", pcm.Skew)
		}
	}
	list := []api.Finding{f}
	jump := time.Now().Round(0).Sub(n.startedAt.Round(0)) - time.Since(n.startedAt)
	if max(jump, -jump) > clockJumpWarn {
		list = append(list, api.Finding{
			Check: "clock steps", Status: api.CheckWarn, Text: fmt.Sprintf("since the node started, the clock was set %s, or the machine slept", aheadText(jump)),
			Hint: "leases don't go by it, but passports and offers do: let a time service slew the clock instead of stepping it",
		})
	}
	return list
}

// aheadText says how far a clock is ahead or behind.
func aheadText(d time.Duration) string {
	if d < 0 {
		return (-d).Round(time.Millisecond).String() + " behind"
	}
	return d.Round(time.Millisecond).String() + " ahead"
}

// CheckBackEnds asks adapters for their pools: all at once, and none for longer
// than its time.
func CheckBackEnds(ctx context.Context, all []adapters.Adapter) []api.Finding {
	if len(all) == 0 {
		return []api.Finding{{Check: "back ends", Status: api.CheckOK, Text: "none is enabled: this peer sells nothing"}}
	}
	list := make([]api.Finding, len(all))
	done := make(chan struct{}, len(all))
	for i, a := range all {
		go func() {
			defer func() { done <- struct{}{} }()
			list[i] = checkBackEndOf(ctx, a)
		}()
	}
	for range all {
		<-done
	}
	return list
}

func checkBackEndOf(ctx context.Context, a adapters.Adapter) api.Finding {
	ctx, cancel := context.WithTimeout(ctx, checkBackEnd)
	defer cancel()
	f := api.Finding{Check: "back end " + a.Name(), Status: api.CheckOK}
	began := time.Now()
	ask := a.Pools
	p, probes := a.(adapters.Prober)
	if probes { // what was seen before is no answer
		ask = p.Probe
	}
	pools, err := ask(ctx)
	took := time.Since(began).Round(time.Millisecond)
	switch {
	case err != nil:
		f.Status, f.Text = api.CheckFail, "it can't be observed: "+err.Error()
		if probes && !p.Seen().IsZero() {
			f.Text += fmt.Sprintf("; it last answered %s ago", time.Since(p.Seen()).Round(time.Second))
		}
		f.Hint = "its pools are not offered until it answers; see adapters." + a.Name() + " in the configuration, or disable it there"
		return f
	case len(pools) == 0:
		f.Status, f.Text = api.CheckWarn, fmt.Sprintf("it answers (in %s) and has no pools", took)
		f.Hint = "see adapters." + a.Name() + " in the configuration: what shall be sold?"
		return f
	}
	var parts, faults []string
	for _, p := range pools {
		parts = append(parts, fmt.Sprintf("%s (%s, %d slots)", p.ID, p.Capacity, p.Slots))
		p.Price = pcm.Price{Unit: pcm.DefaultUnit}
		if err := p.Validate(); err != nil {
			faults = append(faults, err.Error())
		}
		if p.Slots == 0 || p.Capacity.CPU == 0 {
			faults = append(faults, fmt.Sprintf("pool %s has no room", p.ID))
		}
	}
	if len(parts) > 4 {
		parts = append(parts[:4], fmt.Sprintf("and %d more", len(parts)-4))
	}
	f.Text = fmt.Sprintf("answers in %s; pools: ", took) + strings.Join(parts, ", ")
	if probes && p.Seen().Before(began) {
		f.Text = "not asked: its pools need no call, and there is nothing else to ask for; pools: " + strings.Join(parts, ", ")
	}
	if len(faults) > 0 {
		f.Status, f.Hint = api.CheckWarn, strings.Join(faults, "; ")
	}
	return f
}
