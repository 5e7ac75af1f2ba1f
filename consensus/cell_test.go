package consensus

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

func TestFoundProposeRestart(t *testing.T) {
	b := &book{}
	n := found(t, b, patient) // a lone voter must not wait for its election timeout
	if lt := n.LogTime(); lt < time.Now().Add(-time.Minute).UnixMilli() {
		t.Errorf("log time of a new cell is %d: it shall begin at the wall clock", lt)
	}
	var want []pcm.CommandID
	for range 20 {
		id, _ := n.propose(t, n.cfg.Self)
		want = append(want, id)
	}
	if got := n.ids(t); !slices.Equal(got, want) {
		t.Fatalf("records are of %v, want %v", got, want)
	}
	if _, err := n.Document("cmd/" + want[3].String()); err != nil {
		t.Error(err)
	}
	if _, err := n.Document("cmd/none"); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("missing document: %v", err)
	}
	if _, err := n.Record(20); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("missing record: %v", err)
	}
	digest := n.digest()
	if _, err := Open(n.cfg); pcm.ErrorCode(err) != pcm.Conflict || !strings.Contains(err.Error(), "raft.db is in use") {
		t.Errorf("second open: %v", err)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	other := n.cfg
	other.Cell = "cell-other"
	if _, err := Open(other); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("folder of another cell: %v", err)
	}
	n.open()
	n.await("the log to be applied again", func() bool { return n.count() == 20 })
	if n.digest() != digest {
		t.Error("the state differs after a restart")
	}
	if got := n.ids(t); !slices.Equal(got, want) {
		t.Errorf("records after a restart are of %v, want %v", got, want)
	}
}

func TestDocumentPages(t *testing.T) {
	n := found(t, &book{}, nil)
	var keys []string
	for range 25 {
		id, _ := n.propose(t, n.cfg.Self)
		keys = append(keys, "cmd/"+id.String())
	}
	slices.Sort(keys)
	for _, reverse := range []bool{false, true} {
		want := slices.Clone(keys)
		if reverse {
			slices.Reverse(want)
		}
		var got []string
		q := DocumentQuery{Prefix: "cmd/", Limit: 10, Reverse: reverse}
		for {
			page, next, err := n.Documents(q)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range page {
				got = append(got, d.Key)
			}
			if next == "" {
				break
			}
			q.After = next
		}
		if !slices.Equal(got, want) {
			t.Errorf("reverse %v: pages hold %d keys in the wrong order or number: %v", reverse, len(got), got)
		}
	}
	if page, _, err := n.Documents(DocumentQuery{Prefix: "none/"}); err != nil || len(page) != 0 {
		t.Errorf("pages of another prefix: %v, %v", page, err)
	}
}

func TestGrowthInPairs(t *testing.T) {
	b := &book{}
	a := found(t, b, nil)
	second := a.admit(t, nil)
	a.await("the replica to be ready", func() bool {
		a.members.mu.Lock()
		defer a.members.mu.Unlock()
		h := a.members.health[second.cfg.Self]
		return h != nil && !h.caught.IsZero() && time.Since(h.caught) > a.cfg.Stabilise
	})
	// Several more rounds must leave the one voter alone.
	a.members.mu.Lock()
	rounds := a.members.rounds
	a.members.mu.Unlock()
	a.await("more rounds", func() bool {
		a.members.wake()
		a.members.mu.Lock()
		defer a.members.mu.Unlock()
		return a.members.rounds >= rounds+3
	})
	if v := a.voters(); len(v) != 1 {
		t.Fatalf("voters with one replica: %v", v)
	}
	// On a member that isn't the leader: it is forwarded.
	third := second.admit(t, nil)
	for _, n := range []*node{a, second, third} {
		n.await("three voters", func() bool { return len(n.voters()) == 3 })
	}
	fourth := a.admit(t, nil)
	fourth.await("role of the fourth", func() bool { return fourth.Status().Role == RoleReplica })
	id, _ := fourth.propose(t, a.cfg.Self) // a replica forwards too
	for _, n := range []*node{a, second, third, fourth} {
		n.await("the record", func() bool { return n.count() == 1 })
		if got := n.ids(t); !slices.Equal(got, []pcm.CommandID{id}) {
			t.Errorf("records: %v", got)
		}
		if n.digest() != a.digest() {
			t.Error("states differ")
		}
	}
	if v := a.voters(); len(v) != 3 {
		t.Errorf("voters of four members: %v", v)
	}
	if err := fourth.Remove(t.Context(), a.cfg.Self); pcm.ErrorCode(err) != pcm.Forbidden {
		t.Errorf("a replica removed a voter: %v", err)
	}
	if err := fourth.Remove(t.Context(), fourth.cfg.Self); err != nil {
		t.Fatal(err)
	}
	a.await("three members", func() bool { return len(a.Status().Members) == 3 })
	fourth.await("the fourth to know it", func() bool { return fourth.Outside() })
	if ok, why := fourth.Ready(); ok || !strings.Contains(why, "pcm cell add") {
		t.Errorf("the one that was removed: ready %v, %q", ok, why)
	}
	if ok, why := a.Ready(); !ok {
		t.Errorf("one that stays is not ready: %s", why)
	}
}

func TestDeadVoterIsReplaced(t *testing.T) {
	nodes := three(t, func(c *Config) { c.DeadAfter = 300 * time.Millisecond })
	lead := leaderOf(t, nodes...)
	fourth := lead.admit(t, func(c *Config) { c.DeadAfter = 300 * time.Millisecond })
	var dead *node
	for _, n := range nodes {
		if n != lead {
			dead = n
		}
	}
	dead.kill()
	lead.await("the replica to vote instead", func() bool {
		v := lead.voters()
		return len(v) == 3 && slices.Contains(v, fourth.cfg.Self) && !slices.Contains(v, dead.cfg.Self)
	})
	lead.propose(t, lead.cfg.Self)
}

func TestForwardAndSync(t *testing.T) {
	nodes := three(t, nil)
	for i := range 10 {
		n := nodes[i%3]
		n.propose(t, n.cfg.Self)
		for _, o := range nodes {
			if err := o.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := o.count(); got != i+1 {
				t.Fatalf("after Sync a peer sees %d records, want %d", got, i+1)
			}
		}
	}
	// The same command again, by another peer: the first result, no second record.
	id, s := nodes[1].command(nodes[1].cfg.Self)
	var first uint64
	for _, n := range nodes {
		r, err := n.Propose(t.Context(), s)
		if err != nil || r[0].First() != nil {
			t.Fatal(err, r)
		}
		if first == 0 {
			first = r[0].Index
		}
		if r[0].Index != first {
			t.Errorf("command %v took effect at %d and %d", id, first, r[0].Index)
		}
	}
}

// A leader is killed while many propose: whatever was acknowledged is in the
// log, and nothing is in it twice.
func TestExactlyOnceAcrossLeaderKill(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	var rest []*node
	for _, n := range nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	var mu sync.Mutex
	acked := map[pcm.CommandID]bool{}
	var wg sync.WaitGroup
	enough := make(chan struct{})
	var once sync.Once
	const callers, each = 16, 60
	for i := range callers {
		n := rest[i%len(rest)]
		wg.Go(func() {
			for range each {
				id, s := n.command(n.cfg.Self)
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				r, err := n.Propose(ctx, s)
				cancel()
				if err != nil || r[0].First() != nil {
					t.Errorf("propose: %v %v", err, r)
					return
				}
				mu.Lock()
				acked[id] = true
				if len(acked) > callers*each/3 {
					once.Do(func() { close(enough) })
				}
				mu.Unlock()
			}
		})
	}
	<-enough
	lead.kill()
	wg.Wait()
	for _, n := range rest {
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := n.ids(t)
		have := map[pcm.CommandID]int{}
		for _, id := range got {
			have[id]++
		}
		for id := range acked {
			if have[id] != 1 {
				t.Errorf("acknowledged command %v is %d times in the log", id, have[id])
			}
		}
		if len(got) != len(have) {
			t.Error("a command is in the log twice")
		}
	}
	if rest[0].digest() != rest[1].digest() {
		t.Error("states differ")
	}
	// The dead one comes back and catches up.
	lead.connect()
	lead.open()
	lead.await("the old leader to catch up", func() bool { return lead.digest() == rest[0].digest() })
}

func TestCloseHandsLeadershipOver(t *testing.T) {
	nodes := three(t, func(c *Config) {
		c.tune = func(rc *raft.Config) { // far longer than the test would wait for an election
			rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 60*time.Second, 60*time.Second, 60*time.Second
		}
	})
	lead := leaderOf(t, nodes...)
	if err := lead.close(); err != nil {
		t.Fatal(err)
	}
	var rest []*node
	for _, n := range nodes {
		if n != lead {
			rest = append(rest, n)
		}
	}
	next := leaderOf(t, rest...)
	next.propose(t, next.cfg.Self)
	if _, err := lead.Propose(t.Context(), pcm.Signed{}); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("propose after Close: %v", err)
	}
}

// Log time never goes back, though the next leader's wall clock is an hour
// behind and the one after is an hour ahead.
func TestLogTimeIgnoresWallClock(t *testing.T) {
	b := &book{}
	shift := map[int]time.Duration{0: 0, 1: -time.Hour, 2: time.Hour}
	var nodes []*node
	for i := range 3 {
		change := func(c *Config) { c.Now = func() time.Time { return time.Now().Add(shift[i]) } }
		if i == 0 {
			nodes = append(nodes, found(t, b, change))
			continue
		}
		nodes = append(nodes, nodes[0].admit(t, change))
	}
	nodes[0].await("three voters", func() bool { return len(nodes[0].voters()) == 3 })
	began := time.Now()
	for i := range 3 {
		if err := nodes[0].TransferLeadership(t.Context(), nodes[i].cfg.Self); err != nil {
			t.Fatal(err)
		}
		nodes[i].await("leadership", func() bool { return nodes[i].leads() > 0 })
		nodes[i].propose(t, nodes[i].cfg.Self)
	}
	if err := nodes[0].Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	nodes[0].View(func() {
		if !slices.IsSorted(nodes[0].m.stamps) {
			t.Errorf("stamps go back: %v", nodes[0].m.stamps)
		}
		if nodes[0].m.terms < 3 {
			t.Errorf("%d entries with NewTerm, want at least 3", nodes[0].m.terms)
		}
		all := nodes[0].m.stamps
		if span := all[len(all)-1] - all[0]; span > time.Since(began).Milliseconds()+20_000 {
			t.Errorf("log time grew by %d ms: it followed a wall clock", span)
		}
	})
	for _, n := range nodes {
		if d := n.LogTime() - nodes[2].LogTime(); d > 5000 || d < -5000 {
			t.Errorf("estimates of the log time differ by %d ms", d)
		}
	}
}

// Log time goes on while nobody leads: what runs meanwhile is paid by it.
func TestLogTimeGoesOnWithoutLeader(t *testing.T) {
	nodes := three(t, nil)
	lead := leaderOf(t, nodes...)
	lead.propose(t, lead.cfg.Self)
	var rest []*node
	for _, n := range nodes {
		if n == lead {
			continue
		}
		rest = append(rest, n)
		if err := n.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	var last int64
	lead.View(func() { last = lead.m.stamp })
	lead.kill()
	next := leaderOf(t, rest...)
	next.propose(t, next.cfg.Self)
	next.View(func() {
		all := next.m.stamps
		i := slices.IndexFunc(all, func(s int64) bool { return s > last })
		if i < 0 {
			t.Fatalf("log time stands still at %d", last)
		}
		// Nobody stands for election within half a second of the last heartbeat.
		if grown := all[i] - last; grown < 250 || grown > time.Since(began).Milliseconds()+1000 {
			t.Errorf("log time grew by %d ms while nobody led, in truth at most %s", grown, time.Since(began))
		}
	})
}

func TestTickWhenDue(t *testing.T) {
	n := found(t, &book{}, nil)
	n.propose(t, n.cfg.Self)
	n.fsm.mu.Lock()
	n.m.due = n.m.stamp + 1
	n.fsm.mu.Unlock()
	n.await("a tick", func() bool {
		var ticks int
		n.View(func() { ticks = n.m.ticks })
		return ticks > 0
	})
}

func TestForgedSignatureIsRefusedBeforeProposal(t *testing.T) {
	n := found(t, &book{}, func(c *Config) {
		c.Check = func(s pcm.Signed) (cmd pcm.Command, err error) {
			if string(s.Payload) == "junk" {
				return cmd, pcm.Errorf(pcm.Invalid, "junk")
			}
			return cmd, pcm.Unmarshal(s.Payload, &cmd)
		}
	})
	_, good := n.command(n.cfg.Self)
	_, forged := n.command(n.cfg.Self)
	forged.Sig = slices.Clone(forged.Sig)
	forged.Sig[3] ^= 1
	junk := n.key.Seal(pcm.DomainCommand, "x")
	junk.Payload = []byte("junk")
	before := n.raft.LastIndex()
	r, err := n.Propose(t.Context(), forged, junk)
	if err != nil {
		t.Fatal(err)
	}
	if pcm.ErrorCode(r[0].First()) != pcm.Unauthorized || pcm.ErrorCode(r[1].First()) != pcm.Invalid {
		t.Errorf("results: %v", r)
	}
	if after := n.raft.LastIndex(); after != before {
		t.Errorf("the log grew from %d to %d", before, after)
	}
	// Among good ones, only the bad are refused, and each result is in its place.
	r, err = n.Propose(t.Context(), forged, good, junk)
	if err != nil || pcm.ErrorCode(r[0].First()) != pcm.Unauthorized || r[1].First() != nil || r[1].Index == 0 || pcm.ErrorCode(r[2].First()) != pcm.Invalid {
		t.Errorf("results: %v, %v", r, err)
	}
	n.View(func() {
		if n.m.decoded != 1 {
			t.Errorf("%d commands came decoded to the machine", n.m.decoded)
		}
	})
}

func TestBounds(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.maxQueued = 4 })
	var cmds []pcm.Signed
	for range 5 {
		_, s := n.command(n.cfg.Self)
		cmds = append(cmds, s)
	}
	if _, err := n.Propose(t.Context(), cmds...); pcm.ErrorCode(err) != pcm.Busy {
		t.Errorf("over the queue's bound: %v", err)
	}
	if _, err := n.Propose(t.Context(), cmds[:4]...); err != nil {
		t.Errorf("within the queue's bound: %v", err)
	}
	if _, err := n.Propose(t.Context(), pcm.Signed{Payload: make([]byte, pcm.MaxCommand+1)}); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("too large a command: %v", err)
	}
	if _, err := n.Propose(t.Context(), make([]pcm.Signed, pcm.MaxEntryCommands+1)...); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("too many commands: %v", err)
	}
}

func TestNoQuorumSaysWhy(t *testing.T) {
	nodes := three(t, nil)
	nodes[1].kill()
	nodes[2].kill()
	_, s := nodes[0].command(nodes[0].cfg.Self)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := nodes[0].Propose(ctx, s)
	if pcm.ErrorCode(err) != pcm.Unavailable || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("propose without a quorum: %v", err)
	}
	if err := nodes[0].Sync(ctx); pcm.ErrorCode(err) != pcm.Unavailable {
		t.Errorf("sync without a quorum: %v", err)
	}
}

func TestCloseLeavesNoGoroutines(t *testing.T) {
	b := &book{}
	n := b.prepare(t, func(c *Config) { c.Bootstrap = true })
	before := runtime.NumGoroutine()
	n.open()
	n.await("a leader", func() bool { return n.leads() > 0 })
	n.propose(t, n.cfg.Self)
	events := n.Events(t.Context())
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	for range events {
	}
	await(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before+2 })
}
