package ledger_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// TestRandom drives the ledger and the model with the same random commands, good
// and bad. After each, both agree on what was taken and on all that is seen of
// it, and the invariants hold; every so often the whole of [cell.audit] does.
func TestRandom(t *testing.T) {
	// A history needs many steps before anything in it can be lost, disputed or paid.
	if f := flag.Lookup("rapid.steps"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("250"); err != nil {
			t.Fatal(err)
		}
		defer f.Value.Set(f.DefValue)
	}
	seen := map[string]int{}
	history := func(rt *rapid.T) {
		r := newRandom(rt, seen)
		rt.Repeat(map[string]func(*rapid.T){
			"":         r.compare,
			"enroll":   r.enroll,
			"capacity": r.capacity,
			"submit":   r.submit,
			"buy":      r.buy,
			"buy more": r.buy,
			"place":    r.place,
			"award":    r.award,
			"start":    r.sellerSays,
			"seller":   r.sellerSays,
			"end":      r.finish,
			"finish":   r.finish,
			"accept":   r.accept,
			"abandon":  r.abandon,
			"settle":   r.settle,
			"dispute":  r.dispute,
			"renew":    r.renew,
			"drive":    r.drive,
			"stop":     r.stop,
			"cancel":   r.cancel,
			"scale":    r.scale,
			"burn":     r.burn,
			"notekey":  r.notekey,
			"upgrade":  r.upgrade,
			"set":      r.set,
			"base":     r.base,
			"net":      r.net,
			"resolve":  r.resolve,
			"time":     r.time,
			"keep":     r.keep,
			"leader":   r.leader,
			"snapshot": r.snapshot,
			"repeat":   r.again,
		})
		r.mustAudit(rt)
	}
	rapid.Check(t, history)
	if testing.Short() {
		return // too few histories to come by everything
	}
	// The test is worth something only if it came by everything, good and bad. What is
	// rare may take more histories.
	for more := 0; more < 10 && len(unseen(seen)) > 0; more++ {
		rapid.Check(t, history)
	}
	for _, what := range unseen(seen) {
		t.Errorf("nothing was ever %s: no good test of it", what)
	}
	t.Log(seen)
}

// unseen is what must come by in a good test and did not.
func unseen(seen map[string]int) (missing []string) {
	for _, kind := range []string{
		"enroll", "capacity", "renew", "submit", "drive", "place", "award", "reject", "start", "meter", "finish",
		"accept", "abandon", "settle", "dispute", "stop", "cancel", "scale", "burn", "upgrade", "set", "base", "net", "resolve",
	} {
		if seen[kind+" true"] == 0 {
			missing = append(missing, kind+" that was taken")
		}
		if seen[kind+" false"] == 0 && kind != "submit" {
			missing = append(missing, kind+" that was refused")
		}
	}
	for _, fact := range []string{"lost", "ended", "closed", "overdue", "past its end"} {
		if seen[fact] == 0 {
			missing = append(missing, fact)
		}
	}
	return missing
}

type random struct {
	*cell
	model  *model
	actors []*actor
	sealed []pcm.Signed
	got    [][]byte // encoded results of sealed
	terms  []pcm.Terms
	steps  int
	names  int
	seen   map[string]int

	nettings []pcm.Agreed
}

func newRandom(t *rapid.T, seen map[string]int) *random {
	r := &random{cell: newCell(), seen: seen}
	r.model = newModel(r.cell)
	for _, who := range [][2]string{{"anna", "anna"}, {"abel", "anna"}, {"bert", "bert"}, {"carl", "carl"}} {
		r.actors = append(r.actors, r.actor(who[0], who[1]))
	}
	for _, a := range r.actors[:2+r.n(t, "enrolled at first", 3)] {
		r.run(t, a, pcm.Op{Enroll: &pcm.Enroll{Passport: a.passport}})
	}
	r.run(t, r.actors[0], noteKeyOf(r.actors[0], false), pcm.Op{Upgrade: &pcm.Upgrade{Level: pcm.LedgerLevel}})
	for _, a := range r.actors[1:3] {
		r.run(t, a, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{pool(4)}, Credit: 2_000_000}})
	}
	return r
}

func (r *random) n(t *rapid.T, label string, below int) int {
	return rapid.IntRange(0, below-1).Draw(t, label)
}

// rarely is true one time in n.
func (r *random) rarely(t *rapid.T, label string, n int) bool { return r.n(t, label, n) == n-1 }

func (r *random) anyone(t *rapid.T) *actor { return r.actors[r.n(t, "who", len(r.actors))] }

// mostly is the actor of a peer, or now and then another.
func (r *random) mostly(t *rapid.T, id pcm.PeerID) *actor {
	i := slices.IndexFunc(r.actors, func(a *actor) bool { return a.peer == id })
	if i < 0 || r.rarely(t, "somebody else", 10) {
		return r.anyone(t)
	}
	return r.actors[i]
}

// run applies a command to both and compares the verdicts.
func (r *random) run(t *rapid.T, a *actor, ops ...pcm.Op) {
	if r.rarely(t, "one more", 10) { // what is refused leaves what came before it
		ops = append(ops, pcm.Op{Renew: &pcm.Renew{Incarnation: uint64(r.n(t, "incarnation", 4))}})
	}
	signed := a.key.Seal(pcm.DomainCommand, r.command(a, ops...))
	r.model.settle(r.stamp, r.wall, false)
	fx := r.apply(false, signed)
	r.model.record = uint64(len(r.records))
	if n := len(fx.Records); n > 0 && mustRecord(t, fx.Records[n-1]).Command != nil {
		r.model.record--
	}
	want := r.model.judge(a.peer, ops)
	r.facts(fx)
	got := fx.Results[0]
	if got.Err == nil && r.model.members[a.peer] != nil { // else it isn't remembered: it may be good later
		r.sealed, r.got = append(r.sealed, signed), append(r.got, pcm.MustMarshal(got))
	}
	if got.Err != nil { // refused as a whole: nothing of it was tried
		if want[0].ok {
			t.Fatalf("%s by %s is refused, the model takes it: %s", ops[0].Kind(), a.name, got.Err)
		}
		return
	}
	if len(got.Ops) != len(want) {
		t.Fatalf("%d operations of %s were tried, %d by the model: %v", len(got.Ops), a.name, len(want), got.First())
	}
	for i, v := range want {
		o := got.Ops[i]
		r.seen[fmt.Sprint(ops[i].Kind(), " ", v.ok)]++
		if (o.Err == nil) != v.ok {
			t.Fatalf("%s by %s: taken is %v, in the model %v: %v", ops[i].Kind(), a.name, o.Err == nil, v.ok, o.Err)
		}
		if v.ok && !slices.Equal(o.Skipped, pcm.SpansOf(v.skipped)) {
			t.Fatalf("%s by %s skips %v, in the model %v", ops[i].Kind(), a.name, o.Skipped, v.skipped)
		}
	}
}

func (r *random) facts(fx pcm.Effects) {
	for _, e := range fx.Events {
		switch f := e.Fact; {
		case f == nil:
		case f.Lost != nil:
			r.seen["lost"]++
			if strings.Contains(f.Lost.Reason, "60 s") {
				r.seen["past its end"]++
			}
		case f.Ended != nil:
			r.seen["ended"]++
		case f.Closed != nil:
			r.seen["closed"]++
		case f.Overdue != nil:
			r.seen["overdue"]++
		}
	}
}

func (r *random) time(t *rapid.T) {
	r.facts(r.pass(time.Duration(r.n(t, "ms", 9000)) * time.Millisecond))
	r.model.settle(r.stamp, r.wall, false)
}

// keep lets time pass while all renew, long enough for attempts to come to their own end.
func (r *random) keep(t *rapid.T) {
	if !r.rarely(t, "really", 4) {
		return
	}
	for range 8 {
		r.facts(r.pass(8 * time.Second))
		r.model.settle(r.stamp, r.wall, false)
		for _, a := range r.actors {
			if m := r.model.members[a.peer]; m != nil {
				r.run(t, a, pcm.Op{Renew: &pcm.Renew{Incarnation: m.incarnation}})
			}
		}
	}
}

func (r *random) leader(t *rapid.T) {
	r.stamp += int64(r.n(t, "ms", 14_000))
	r.facts(r.apply(true))
	r.model.settle(r.stamp, r.wall, true)
}

// snapshot goes on with a state that was restored.
func (r *random) snapshot(t *rapid.T) {
	data, err := r.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	r.state = ledger.New(r.genesis)
	if err := r.state.Restore(data); err != nil {
		t.Fatal(err)
	}
}

// again applies a copy of an earlier command: its answer is the same or a
// refusal by time, and nothing follows.
func (r *random) again(t *rapid.T) {
	i := len(r.sealed) - 1 - r.n(t, "back", min(len(r.sealed), 12))
	before, _ := r.state.Root()
	fx := r.apply(false, r.sealed[i])
	if after, _ := r.state.Root(); after != before || len(fx.Events) > 0 {
		t.Fatalf("a copy of a command had an effect")
	}
	var cmd pcm.Command
	if err := pcm.Unmarshal(r.sealed[i].Payload, &cmd); err != nil {
		t.Fatal(err)
	}
	switch res := fx.Results[0]; {
	case res.Err != nil && (res.Err.Code == pcm.Conflict || res.Err.Code == pcm.Unauthorized) && r.stamp > cmd.NotAfter:
	case string(pcm.MustMarshal(res)) != string(r.got[i]):
		t.Fatalf("a copy of a command was answered otherwise: %v", res.First())
	}
}

// compare holds the state against the model.
func (r *random) compare(t *rapid.T) {
	if err := r.state.Check(); err != nil {
		t.Fatal(err)
	}
	m := r.model
	for id, want := range m.jobs {
		j, _ := r.job(id)
		if j == nil {
			t.Fatalf("%s is gone", want.Name)
		}
		state := pcm.JobOpen
		if want.ended != "" {
			state = want.ended
		}
		if j.State != state || j.Driver != want.driver || j.Term != want.term || j.Stopping != want.stopping || j.Fence != want.fence || j.Held != want.held() || j.Paid != want.spent {
			t.Fatalf("%s is %s, held %s, paid %s, fence %d; in the model %s, %s, %s, %d", want.Name, j.State, j.Held, j.Paid, j.Fence, state, want.held(), want.spent, want.fence)
		}
		for s, step := range want.tasks {
			for i, tk := range step {
				if got := j.Steps[s].Tasks[i]; got.State != tk.state || got.Attempt != tk.attempt || got.Failures != tk.failures {
					t.Fatalf("task %d/%d of %s is %s after %d attempts, in the model %s after %d", s, i, want.Name, got.State, got.Attempt, tk.state, tk.attempt)
				}
			}
		}
	}
	owed := map[ledger.BalanceKey]bool{}
	for id, want := range m.trades {
		tr, archived := r.trade(id)
		if tr == nil || archived == want.open() {
			t.Fatalf("%s is open: %v; archived: %v", id, want.open(), archived)
		}
		for i, a := range want.attempts {
			if got := tr.Attempt(i); got.State != a.state || (got.Stop != "") != a.stop || got.Metered != a.used || a.result != nil && got.Charge != a.charge {
				t.Fatalf("attempt %s/%d is %s, in the model %s", id, i, got.State, a.state)
			}
		}
		if k := m.key(want.Terms); k.Buyer != k.Seller {
			owed[k] = true
		}
	}
	for k, b := range r.state.Balances {
		if m.balance(k) != b {
			t.Fatalf("balance is %v, in the model %v", b, m.balance(k))
		}
		delete(owed, k)
	}
	for k := range owed {
		if b := m.balance(k); b != (ledger.Balance{}) {
			t.Fatalf("no balance, in the model %v", b)
		}
	}
	for key, want := range m.settings {
		got := r.state.Setting(key)
		if got.Value != want.now() || got.Version != uint64(len(want.values)-1) || len(got.Votes) != len(want.wants) {
			t.Fatalf("%s is %+v, in the model %+v", key, got, want)
		}
	}
	for k, want := range m.pools {
		reserved, slots := m.reserved(k)
		p, ok := r.state.Pool(k)
		if ok != (want.declared || slots > 0) || ok && (p.Reserved != reserved || p.Slots != slots || p.Closed == want.declared) {
			t.Fatalf("pool %s: %+v; in the model %s in %d slots are reserved, declared: %v", k.Pool, p, reserved, slots, want.declared)
		}
	}
	if r.steps++; r.steps%20 == 0 {
		r.mustAudit(t)
	}
}
