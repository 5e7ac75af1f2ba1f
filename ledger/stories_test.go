package ledger_test

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// TestStories runs testdata/stories: each file tells one path through the ledger,
// good or bad. testdata/stories/README.md has the words of their language. After
// each line the invariants are checked, and at the end all that [cell.audit] checks.
// Run with -rewrite to write the answers anew, and read the diff.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/stories", func(t *testing.T, path string) {
		if strings.HasSuffix(path, ".md") {
			return
		}
		s := newStory()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			answer := s.tell(t, d)
			if err := s.state.Check(); err != nil {
				t.Errorf("%s: after %s: %v", d.Pos, d.Cmd, err)
			}
			return answer
		})
		s.mustAudit(t)
		for _, name := range slices.Sorted(maps.Keys(s.cells)) {
			s.cells[name].mustAudit(t)
		}
	})
}

// story is a cell with names for everything in it.
type story struct {
	*cell
	jobs    map[string]pcm.JobID
	trades  map[string]pcm.Terms
	results map[string]map[int]pcm.Result // what sellers said last, by trade
	invites map[string]pcm.Signed
	named   map[string]pcm.CommandID // commands that were given a name
	last    *pcm.Signed
	words   map[string]string // for identifiers, in full and abbreviated
	cells   map[string]*cell  // those that the story tells of, beside the one that it is in now
	in      string            // its name

	mandates map[pcm.JobID]pcm.Signed // with which jobs were submitted
}

func newStory() *story {
	s := &story{
		cell: newCell(), jobs: map[string]pcm.JobID{}, trades: map[string]pcm.Terms{},
		words: map[string]string{}, cells: map[string]*cell{}, in: "home", results: map[string]map[int]pcm.Result{}, invites: map[string]pcm.Signed{}, named: map[string]pcm.CommandID{}, mandates: map[pcm.JobID]pcm.Signed{},
	}
	s.name(string(s.genesis.Cell), "cell-home")
	s.name(string(s.genesis.Mesh), "mesh-one")
	return s
}

// name has an identifier printed as a word, in full and abbreviated.
func (s *story) name(id, word string) {
	s.words[id], s.words[pcm.Short(id)] = word, word
}

// plain prints words for identifiers: the longest first, as some begin with others.
func (s *story) plain(text string) string {
	ids := slices.SortedFunc(maps.Keys(s.words), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(b), len(a)), cmp.Compare(a, b))
	})
	var pairs []string
	for _, id := range ids {
		pairs = append(pairs, id, s.words[id])
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// line is one directive with its arguments.
type line struct {
	*datadriven.TestData
	t *testing.T
	s *story
}

func (l line) str(key, otherwise string) string {
	a, ok := l.Arg(key)
	if !ok || len(a.Vals) == 0 {
		return otherwise
	}
	return strings.Join(a.Vals, ", ")
}

func (l line) num(key string, otherwise int) int {
	n, err := strconv.Atoi(l.str(key, strconv.Itoa(otherwise)))
	l.must(err)
	return n
}

func (l line) micro(key, otherwise string) pcm.Micro {
	m, err := pcm.ParseMicro(l.str(key, otherwise))
	l.must(err)
	return m
}

func (l line) dur(key string, otherwise time.Duration) time.Duration {
	d, err := time.ParseDuration(l.str(key, otherwise.String()))
	l.must(err)
	return d
}

func (l line) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%s: %v", l.Pos, err)
	}
}

// who is the actor that the line begins with.
func (l line) who() *actor { return l.actor(l.CmdArgs[0].Key) }

func (l line) actor(name string) *actor {
	a := l.s.peers[name]
	for _, in := range slices.Sorted(maps.Keys(l.s.cells)) {
		a = cmp.Or(a, l.s.cells[in].peers[name])
	}
	if a == nil {
		l.t.Fatalf("%s: nobody is called %q", l.Pos, name)
	}
	return a
}

// spans reads tasks=0-3,7.
func (l line) spans() pcm.Spans {
	var out pcm.Spans
	for _, part := range strings.Split(l.str("tasks", "0"), ",") {
		lo, hi, ok := strings.Cut(part, "-")
		if !ok {
			hi = lo
		}
		a, err := strconv.Atoi(lo)
		l.must(err)
		b, err := strconv.Atoi(hi)
		l.must(err)
		out = append(out, pcm.Span{Lo: a, Hi: b + 1})
	}
	return out
}

func (l line) job() pcm.JobID {
	name := l.str("job", "")
	id, ok := l.s.jobs[name]
	if !ok {
		id = jobID(name)
		l.s.jobs[name] = id
		l.s.name(string(id), "job-"+name)
	}
	return id
}

func (l line) trade() (string, pcm.Terms) {
	name := l.str("trade", "")
	t, ok := l.s.trades[name]
	if !ok {
		l.t.Fatalf("%s: no trade is called %q", l.Pos, name)
	}
	return name, t
}

// tell carries one line out.
func (s *story) tell(t *testing.T, d *datadriven.TestData) string {
	l := line{d, t, s}
	switch d.Cmd {
	case "peer":
		a := s.actor(d.CmdArgs[0].Key, l.str("account", d.CmdArgs[0].Key))
		s.name(string(a.peer), a.name)
		s.name(string(a.buyer), strings.ToTitle(l.str("account", a.name)[:1])+l.str("account", a.name)[1:])
		if d.HasArg("stranger") {
			return "ok"
		}
		return s.send(l, a, pcm.Op{Enroll: &pcm.Enroll{Passport: a.passport}})
	case "cell":
		return s.moveTo(d.CmdArgs[0].Key)
	case "time":
		fx := s.pass(l.elapsed(0))
		return s.answer(nil, fx)
	case "renewing": // time passes, and a peer renews all the while
		var all pcm.Effects
		for left := l.elapsed(1); left > 0; left -= 5 * time.Second {
			all.Events = append(all.Events, s.pass(min(left, 5*time.Second)).Events...)
			_, fx := s.do(l.who(), pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
			all.Events = append(all.Events, fx.Events...)
		}
		return s.answer(nil, all)
	case "wall": // passes for passports and tokens only
		s.wall += l.elapsed(0).Milliseconds()
		return "ok"
	case "leader":
		if len(d.CmdArgs) > 0 {
			s.stamp += l.elapsed(0).Milliseconds()
		}
		return s.answer(nil, s.apply(true))
	case "repeat":
		fx := s.apply(false, *s.last)
		return s.answer(&fx.Results[0], fx)
	case "restore":
		data, err := s.state.Snapshot()
		l.must(err)
		l.must(s.state.Restore(data))
		return "ok"
	case "invite":
		return s.invite(l)
	case "renewed":
		s.renewPassport(l.who())
		return "ok"
	case "show":
		return s.plain(s.show(l))
	case "audit":
		s.mustAudit(t)
		return "ok"
	}
	ops := s.ops(l)
	return s.send(l, l.who(), ops...)
}

func (l line) elapsed(arg int) time.Duration {
	d, err := time.ParseDuration(strings.TrimPrefix(l.CmdArgs[arg].Key, "+"))
	l.must(err)
	return d
}

// send signs and applies a command as the line's options say.
func (s *story) send(l line, a *actor, ops ...pcm.Op) string {
	cmd := s.command(a, ops...)
	cmd.NotAfter = s.stamp + l.dur("valid", time.Minute).Milliseconds()
	if name := l.str("id", ""); name != "" {
		if _, ok := s.named[name]; !ok {
			s.named[name] = cmd.ID
			s.name(cmd.ID.String(), "id "+name)
		}
		cmd.ID = s.named[name]
	}
	if name := l.str("for-cell", ""); name != "" {
		cmd.Cell = pcm.CellID(idOf("cell-", name))
		s.name(string(cmd.Cell), "cell-"+name)
	}
	if name := l.str("for-mesh", ""); name != "" {
		cmd.Mesh = pcm.MeshID(idOf("mesh-", name))
		s.name(string(cmd.Mesh), "mesh-"+name)
	}
	signed := a.key.Seal(pcm.DomainCommand, cmd)
	if by := l.str("signed-by", ""); by != "" {
		signed = l.actor(by).key.Seal(pcm.DomainCommand, cmd)
	}
	s.last = &signed
	fx := s.apply(false, signed)
	return s.answer(&fx.Results[0], fx)
}

// answer prints a result and the facts that came with it.
func (s *story) answer(r *pcm.CommandResult, fx pcm.Effects) string {
	var b strings.Builder
	switch {
	case r == nil:
		b.WriteString("ok\n")
	case r.Err != nil:
		fmt.Fprintf(&b, "refused (%s): %s\n", r.Err.Code, r.Err)
	default:
		for _, o := range r.Ops {
			switch {
			case o.Err != nil:
				fmt.Fprintf(&b, "refused (%s): %s\n", o.Err.Code, o.Err)
			case len(o.Skipped) > 0:
				fmt.Fprintf(&b, "ok, but not for %s\n", list(o.Skipped))
			default:
				b.WriteString("ok\n")
			}
		}
	}
	for _, e := range fx.Events {
		switch f := e.Fact; {
		case f == nil:
		case f.Lost != nil:
			fmt.Fprintf(&b, "lost: %s %s: %s\n", f.Lost.Trade, list(f.Lost.Tasks), f.Lost.Reason)
		case f.Ended != nil:
			fmt.Fprintf(&b, "ended: %s is %s%s\n", f.Ended.Job, f.Ended.State, because(f.Ended.Reason))
		case f.Closed != nil:
			fmt.Fprintf(&b, "closed: %s, paid %s\n", f.Closed.Trade, f.Closed.Paid)
		case f.Overdue != nil:
			fmt.Fprintf(&b, "overdue: %s\n", f.Overdue.Job)
		case f.Cleared != nil:
			fmt.Fprintf(&b, "cleared by time: %s of %s in %s\n", f.Cleared.Trade, f.Cleared.Job, f.Cleared.Cell)
		}
	}
	return s.plain(b.String())
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

func list(s pcm.Spans) string {
	var parts []string
	for _, r := range s {
		if r.Hi == r.Lo+1 {
			parts = append(parts, strconv.Itoa(r.Lo))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r.Lo, r.Hi-1))
		}
	}
	return strings.Join(parts, ",")
}

func (s *story) invite(l line) string {
	a, name := l.who(), l.str("as", "token")
	inv := pcm.Invite{
		Mesh: s.genesis.Mesh, Root: s.genesis.Root, Cell: s.genesis.Cell, Issuer: a.peer,
		Hash: pcm.DigestOf([]byte(name)), NotAfter: s.wall + l.dur("valid", time.Hour).Milliseconds(),
	}
	if other := l.str("for-cell", ""); other != "" {
		inv.Cell = pcm.CellID(idOf("cell-", other))
		s.name(string(inv.Cell), "cell-"+other)
	}
	s.invites[name] = a.key.Seal(pcm.DomainInvite, inv)
	if by := l.str("signed-by", ""); by != "" {
		s.invites[name] = l.actor(by).key.Seal(pcm.DomainInvite, inv)
	}
	return "ok"
}

// draw makes the terms that place and buy ask for, under the name as=….
func (s *story) draw(l line, a *actor) pcm.Terms {
	seller := l.actor(l.str("seller", ""))
	tasks := l.spans()
	t := s.terms(a, seller, l.job(), tasks, l.num("width", tasks.Len()))
	t.Pool = pcm.PoolID(l.str("pool", "local"))
	t.LimitMS = l.dur("limit", 100*time.Second).Milliseconds()
	t.Each.GPU = int64(l.num("gpus", 0))
	if n := l.num("cores", 0); n > 0 {
		t.Each.CPU = pcm.MilliCPU(n) * 1000
	}
	t.Fence = uint64(l.num("fence", int(t.Fence)))
	t.Attempt = l.num("attempt", t.Attempt)
	t.Offer = uint64(l.num("offer", int(t.Offer)))
	t.Price.PerTask = l.micro("per-task", t.Price.PerTask.String())
	if buyer := l.str("buyer", ""); buyer != "" {
		t.Buyer = l.actor(buyer).buyer
	}
	if spec := l.str("spec", ""); spec != "" {
		t.Spec = pcm.DigestOf([]byte(spec))
	}
	if driver := l.str("driver", ""); driver != "" {
		t.Driver = l.actor(driver).peer
	}
	if name := l.str("abroad", ""); name != "" {
		s.drawAbroad(l, seller, name, &t)
	}
	name := l.str("as", "t1")
	s.trades[name] = t
	s.name(string(t.Trade()), "trd-"+name)
	return t
}

// ops makes the operations of a line.
func (s *story) ops(l line) []pcm.Op {
	a := l.who()
	term := func(job pcm.JobID) uint64 {
		var now uint64
		if j, _ := s.job(job); j != nil {
			now = j.Term
		}
		return uint64(l.num("term", int(now)))
	}
	reason := l.str("reason", "")
	switch l.Cmd {
	case "enroll":
		return []pcm.Op{{Enroll: &pcm.Enroll{Passport: l.actor(l.str("peer", a.name)).passport}}}
	case "enroll-and-submit":
		return []pcm.Op{{Enroll: &pcm.Enroll{Passport: l.actor(l.str("peer", a.name)).passport}}, s.submit(l)}
	case "burn":
		return []pcm.Op{{Burn: &pcm.Burn{Invite: s.invites[l.str("token", "token")], Peer: l.actor(l.str("peer", "")).peer}}}
	case "capacity":
		return []pcm.Op{s.capacity(l, a)}
	case "renew":
		return []pcm.Op{{Renew: &pcm.Renew{Incarnation: uint64(l.num("incarnation", 1))}}}
	case "submit":
		return []pcm.Op{s.submit(l)}
	case "drive":
		return []pcm.Op{{Drive: &pcm.Drive{Job: l.job(), Term: uint64(l.num("term", int(term(l.job()))+1))}}}
	case "place":
		return []pcm.Op{{Place: &pcm.Place{Term: term(l.job()), Terms: s.draw(l, a)}}}
	case "buy":
		t := s.draw(l, a)
		return []pcm.Op{{Place: &pcm.Place{Term: term(l.job()), Terms: t}}, {Award: &pcm.Award{Terms: t}}}
	case "award":
		_, t := l.trade()
		t.Price.PerTask = l.micro("per-task", t.Price.PerTask.String())
		t.Width = l.num("width", t.Width)
		return []pcm.Op{{Award: &pcm.Award{Terms: t, Attest: s.attested(l, t.Job, pcm.DigestOf(pcm.MustMarshal(t)))}}}
	case "succeed":
		return []pcm.Op{s.succeed(l)}
	case "reject":
		_, t := l.trade()
		return []pcm.Op{{Reject: &pcm.Reject{Trade: t.Trade(), Tasks: l.spans(), Reason: reason}}}
	case "start":
		_, t := l.trade()
		return []pcm.Op{{Start: &pcm.Start{Trade: t.Trade(), Tasks: l.spans()}}}
	case "meter":
		_, t := l.trade()
		return []pcm.Op{{Meter: &pcm.Meter{Trade: t.Trade(), Index: l.num("task", 0), Usage: pcm.Usage{WallMS: l.dur("ran", 0).Milliseconds()}}}}
	case "finish":
		return []pcm.Op{s.finish(l)}
	case "accept":
		name, t := l.trade()
		var results []pcm.Result
		for i := range l.spans().All {
			r, ok := s.results[name][i]
			if !ok {
				r = good(span(i, i+1), 10*time.Second)[0]
			}
			if l.HasArg("altered") {
				r.Output = pcm.DigestOf([]byte("altered"))
			}
			results = append(results, r)
		}
		op := pcm.Op{Accept: &pcm.Accept{Job: l.job(), Term: term(l.job()), Trade: t.Trade(), Results: results}}
		op.Accept.Receipt = s.receipt(l, op)
		return []pcm.Op{op}
	case "abandon":
		_, t := l.trade()
		op := pcm.Op{Abandon: &pcm.Abandon{Job: l.job(), Term: term(l.job()), Trade: t.Trade(), Tasks: l.spans(), Fault: pcm.Fault(l.str("fault", "seller")), Reason: reason, Over: l.HasArg("over"), Unsold: l.HasArg("unsold"), Results: s.told(l)}}
		op.Abandon.Receipt = s.receipt(l, op)
		return []pcm.Op{op}
	case "stop":
		_, t := l.trade()
		return []pcm.Op{{Stop: &pcm.Stop{Trade: t.Trade(), Tasks: l.spans(), Reason: reason}}}
	case "settle":
		_, t := l.trade()
		return []pcm.Op{{Settle: &pcm.Settle{Trade: t.Trade(), Tasks: l.spans(), Amount: l.micro("amount", "0")}}}
	case "dispute":
		_, t := l.trade()
		return []pcm.Op{{Dispute: &pcm.Dispute{Trade: t.Trade(), Tasks: l.spans(), Reason: reason}}}
	case "scale":
		return []pcm.Op{{Scale: &pcm.Scale{Job: l.job(), Step: l.num("step", 0), Count: l.num("to", 1)}}}
	case "void":
		_, t := l.trade()
		return []pcm.Op{{Void: &pcm.Void{Terms: t}}}
	case "clear":
		_, t := l.trade()
		return []pcm.Op{{Clear: &pcm.Clear{Job: l.job(), Trade: t.Trade(), Paid: l.micro("paid", "0")}}}
	case "notekey":
		return []pcm.Op{noteKeyOf(a, l.HasArg("nothing"))}
	case "level":
		return []pcm.Op{noteKeyOf(a, false), {Upgrade: &pcm.Upgrade{Level: l.num("to", pcm.LedgerLevel)}}}
	case "set":
		key := l.str("key", "")
		return []pcm.Op{{Set: &pcm.Set{Key: key, Value: l.str("to", ""), Version: uint64(l.num("version", int(s.state.Setting(key).Version)))}}}
	case "base":
		return []pcm.Op{{Base: &pcm.Base{Last: uint64(l.num("on", int(s.state.Base().Size)))}}}
	case "net":
		return []pcm.Op{s.net(l)}
	case "resolve":
		return []pcm.Op{s.resolve(l)}
	case "cancel":
		return []pcm.Op{{Cancel: &pcm.Cancel{Job: l.job(), Reason: reason}}}
	}
	l.t.Fatalf("%s: the language has no word %q", l.Pos, l.Cmd)
	return nil
}

func (s *story) capacity(l line, a *actor) pcm.Op {
	m, _ := s.state.Member(a.peer)
	offer := uint64(1)
	if m != nil {
		offer = m.Offer + 1
	}
	c := &pcm.Capacity{Offer: uint64(l.num("offer", int(offer))), Credit: l.micro("credit", "100")}
	if !l.HasArg("nothing") {
		n := l.num("slots", 4)
		p := pool(n)
		p.ID = pcm.PoolID(l.str("pool", "local"))
		p.Price.PerTask = l.micro("per-task", "0.1")
		p.Price.PerCPUHour = l.micro("per-cpu-hour", "3.6")
		p.Price.PerGPUHour = l.micro("per-gpu-hour", "0")
		p.Capacity.GPU = int64(l.num("gpus", 0))
		p.OwnOnly = l.HasArg("own-only")
		if l.HasArg("tariff") {
			p.Tariffs = []pcm.Price{p.Price.Percent(l.num("tariff", 100))}
		}
		p.MaxTime = l.dur("max-time", 0).Milliseconds()
		if n := l.num("largest", 0); n > 0 {
			p.Largest = &pcm.Resources{CPU: pcm.MilliCPU(n) * 1000}
		}
		c.Pools = []pcm.Pool{p}
	}
	return pcm.Op{Capacity: c}
}

func (s *story) submit(l line) pcm.Op {
	sub := &pcm.Submit{
		Job: l.job(), Name: l.str("job", ""), Spec: pcm.DigestOf([]byte(l.str("spec", l.str("job", "")))),
		Budget: l.micro("budget", "0"), Unit: l.str("unit", pcm.DefaultUnit), LastMS: l.dur("deadline", 0).Milliseconds(),
		Takeover: pcm.Takeover(l.str("takeover", "account")), PayAfterMS: l.dur("pay_after", 0).Milliseconds(),
	}
	for _, n := range strings.Split(l.str("tasks", "1"), ",") { // tasks=3,1: two steps
		count, err := strconv.Atoi(n)
		l.must(err)
		sub.Steps = append(sub.Steps, pcm.Shape{Count: count, Retries: l.num("retries", 0), Service: l.HasArg("service"), Scale: l.num("scale", 0)})
	}
	if l.HasArg("mandate") {
		sub.Mandate = s.mandate(l, sub)
	}
	return pcm.Op{Submit: sub}
}

// noteKeyOf binds the note key of a voter, or takes it back.
func noteKeyOf(a *actor, nothing bool) pcm.Op {
	k := &pcm.NoteKey{Peer: a.peer, Key: keyOf("note " + a.name).Public()}
	if nothing {
		k.Key = nil
	}
	return pcm.Op{NoteKey: k}
}

// net makes a netting of two accounts, signed by both or as the line says.
func (s *story) net(l line) pcm.Op {
	a, b, name := l.actor(l.str("a", "")), l.actor(l.str("b", "")), l.str("as", "n1")
	n := pcm.Netting{
		Mesh: s.genesis.Mesh, ID: pcm.NettingID(idOf("net-", name)), A: a.buyer, B: b.buyer, Unit: l.str("unit", pcm.DefaultUnit),
		Lines:    []pcm.NettingLine{{Cell: s.genesis.Cell, ByA: l.micro("by-a", "0"), ByB: l.micro("by-b", "0")}},
		NotAfter: s.wall + l.dur("good", 24*time.Hour).Milliseconds(),
	}
	s.name(string(n.ID), "net-"+name)
	if c := l.str("at", ""); c != "" {
		n.Lines[0].Cell = pcm.CellID(idOf("cell-", c))
	}
	agreed := n.Offer(a.account)
	switch {
	case l.HasArg("unaccepted"):
	case l.HasArg("forged"):
		agreed = agreed.Accept(pcm.DomainNetting, a.account)
	default:
		agreed = agreed.Accept(pcm.DomainNetting, b.account)
	}
	return pcm.Op{Net: &pcm.Net{Netting: agreed}}
}

// resolve makes the end of a dispute, signed by both sides or as the line says.
func (s *story) resolve(l line) pcm.Op {
	_, t := l.trade()
	buyer, seller := l.actor(l.str("buyer", "anna")), l.actor(l.str("seller", "bert"))
	r := pcm.Resolution{
		Mesh: s.genesis.Mesh, Cell: s.genesis.Cell, Trade: t.Trade(), Tasks: l.spans(), Buyer: buyer.buyer, Seller: seller.buyer,
		Amount: l.micro("amount", "0"), BySeller: l.HasArg("by-seller"),
	}
	if l.HasArg("good") {
		r.NotAfter = s.wall + l.dur("good", time.Hour).Milliseconds()
	}
	first, second := buyer, seller
	if r.BySeller {
		first, second = seller, buyer
	}
	agreed := r.Offer(first.account)
	switch {
	case l.HasArg("unaccepted"):
	case l.HasArg("forged"):
		agreed = agreed.Accept(pcm.DomainResolution, first.account)
	default:
		agreed = agreed.Accept(pcm.DomainResolution, second.account)
	}
	op := pcm.ResolveAs(r, agreed)
	op.Timed = op.Timed != l.HasArg("misnamed")
	return pcm.Op{Resolve: op}
}

func (s *story) finish(l line) pcm.Op {
	name, t := l.trade()
	var results []pcm.Result
	for i := range l.spans().All {
		r := good(span(i, i+1), l.dur("ran", 10*time.Second))[0]
		r.Outcome, r.Reason = pcm.Outcome(l.str("outcome", "ok")), l.str("reason", "")
		r.ExitCode = l.num("exit", 0)
		results = append(results, r)
		if s.results[name] == nil {
			s.results[name] = map[int]pcm.Result{}
		}
		s.results[name][i] = r
	}
	return pcm.Op{Finish: &pcm.Finish{Trade: t.Trade(), Results: results}}
}

// show prints a part of the state.
func (s *story) show(l line) string {
	var b strings.Builder
	switch l.CmdArgs[0].Key {
	case "job":
		s.showJob(&b, jobID(l.CmdArgs[1].Key))
	case "trade":
		s.showTrade(&b, s.trades[l.CmdArgs[1].Key].Trade())
	case "deputy":
		s.showDeputy(&b, s.trades[l.CmdArgs[1].Key])
	case "bought":
		s.showBought(&b, s.trades[l.CmdArgs[1].Key].Trade())
	case "balances":
		for k, v := range s.state.Balances {
			fmt.Fprintf(&b, "%s owes %s %s %s, held %s\n", k.Buyer, k.Seller, v.Owed, k.Unit, v.Held)
		}
	case "pools":
		var rows []string
		for _, a := range s.peers {
			for _, id := range []pcm.PoolID{"local", "other"} {
				if p, ok := s.state.Pool(ledger.PoolKey{Peer: a.peer, Pool: id}); ok {
					free, n := p.Free()
					rows = append(rows, fmt.Sprintf("%s %s: offer %d, %d of %d slots reserved (%s), free %d (%s)%s%s\n", a.name, id, p.Offer, p.Slots, p.Pool.Slots, p.Reserved, n, free, when(p.Closed, ", closed"), when(p.Shrunk, ", shrunk")))
				}
			}
		}
		slices.Sort(rows)
		b.WriteString(strings.Join(rows, ""))
	case "records":
		fmt.Fprintf(&b, "%d\n", len(s.records))
	case "settings":
		for _, k := range pcm.Settings {
			v := s.state.Setting(k.Key)
			fmt.Fprintf(&b, "%s = %s, version %d", v.Key, v.Value, v.Version)
			for _, vote := range v.Votes {
				fmt.Fprintf(&b, ", %s wants %s", vote.Account, vote.Value)
			}
			b.WriteString("\n")
		}
	case "level":
		fmt.Fprintf(&b, "%d\n", s.state.Level())
	case "bases":
		for _, x := range s.bases {
			fmt.Fprintf(&b, "of %d records\n", x.Size)
		}
	default:
		l.t.Fatalf("%s: can't show %s", l.Pos, l.CmdArgs[0].Key)
	}
	if b.Len() == 0 {
		return "none"
	}
	return b.String()
}

func when(set bool, word string) string {
	if set {
		return word
	}
	return ""
}

func (s *story) showJob(b *strings.Builder, id pcm.JobID) {
	j, archived := s.job(id)
	if j == nil {
		return
	}
	fmt.Fprintf(b, "%s%s%s, driven by %s in term %d, held %s, paid %s%s%s%s\n", j.State, when(j.Stopping && j.EndedAt == 0, ", stopping"), because(j.Reason), j.Driver, j.Term, j.Held, j.Paid, when(j.Trades > 0, fmt.Sprintf(", %d open trades", j.Trades)), when(j.PayAfterMS > 0, fmt.Sprintf(", to be paid %s after its end", time.Duration(j.PayAfterMS)*time.Millisecond)), when(archived, ", archived"))
	s.showAbroad(b, j)
	for si, st := range j.Steps {
		for i, tk := range st.Tasks {
			fmt.Fprintf(b, "%d/%d %s", si, i, tk.State)
			if tk.Attempt > 0 {
				fmt.Fprintf(b, ", attempt %d with %s in %s", tk.Attempt, tk.Seller, tk.Trade)
			}
			if tk.Result != nil {
				fmt.Fprintf(b, ": %s", tk.Result.Outcome)
			}
			b.WriteString(because(tk.Reason) + "\n")
			for _, h := range tk.History {
				fmt.Fprintf(b, "    %s\n", h)
			}
		}
	}
}

func (s *story) showTrade(b *strings.Builder, id pcm.TradeID) {
	t, archived := s.trade(id)
	if t == nil {
		return
	}
	fmt.Fprintf(b, "%s for %s, held %s, paid %s%s\n", t.Terms.Seller, t.Terms.Buyer, t.Held, t.Paid, when(archived, ", archived"))
	for i, at := range t.All {
		fmt.Fprintf(b, "%d %s%s", i, at.State, because(at.Reason))
		if at.Metered.WallMS > 0 {
			fmt.Fprintf(b, ", ran %s", at.Metered.Wall())
		}
		if at.Charge > 0 {
			fmt.Fprintf(b, ", costs %s", at.Charge)
		}
		b.WriteString(when(at.Stop != "", ", asked to stop: "+at.Stop) + "\n")
	}
}
