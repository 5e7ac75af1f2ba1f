package ledger_test

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// leaf is a place in a command that holds one value.
type leaf struct {
	path string
	v    reflect.Value
}

// leavesOf finds the places of a value, down to numbers, texts and lists.
func leavesOf(path string, v reflect.Value) (found []leaf) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return leavesOf(path, v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			found = append(found, leavesOf(path+"."+v.Type().Field(i).Name, v.Field(i))...)
		}
	case reflect.Slice:
		found = append(found, leaf{path, v})
		for i := range min(v.Len(), 2) {
			found = append(found, leavesOf(fmt.Sprint(path, "[", i, "]"), v.Index(i))...)
		}
	case reflect.Bool, reflect.Map, reflect.String, reflect.Int, reflect.Int64, reflect.Uint64:
		found = append(found, leaf{path, v})
	}
	return found
}

// extremes are what a hostile peer would put in such a place.
func extremes(v reflect.Value) (vs []reflect.Value) {
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		for _, n := range []int64{math.MinInt64, -1, 0, 1, 1 << 31, 1e12, 1e18, math.MaxInt64 - 1, math.MaxInt64} {
			vs = append(vs, reflect.ValueOf(n).Convert(v.Type()))
		}
	case reflect.Uint64:
		for _, n := range []uint64{0, 1, math.MaxUint64} {
			vs = append(vs, reflect.ValueOf(n).Convert(v.Type()))
		}
	case reflect.String:
		for _, s := range []string{"", "x", "\x00", "12D3KooW" + strings.Repeat("é", 20), strings.Repeat("é%s", 40_000)} {
			vs = append(vs, reflect.ValueOf(s).Convert(v.Type()))
		}
	case reflect.Slice:
		vs = append(vs, reflect.Zero(v.Type()))
		if v.Len() > 0 {
			vs = append(vs, reflect.AppendSlice(reflect.AppendSlice(reflect.Zero(v.Type()), v), v))
		}
	case reflect.Bool:
		vs = append(vs, reflect.ValueOf(!v.Bool()))
	}
	return vs
}

// TestExtremeValues puts extreme values into every place of every kind of
// command, at the moment when the command itself would be good: nothing panics
// or hangs, no invariant breaks, now or when time goes by, and what is kept can
// be restored.
func TestExtremeValues(t *testing.T) {
	c := history()
	s := ledger.New(c.genesis)
	tried, taken := 0, 0
	for i, e := range c.entries {
		if len(e.Commands) == 1 {
			before, err := s.Snapshot()
			if err != nil {
				t.Fatal(err)
			}
			whole := open(t, e.Commands[0])
			count := len(leavesOf("", reflect.ValueOf(&whole.Ops)))
			for n := range count {
				for x := range 9 {
					cmd := open(t, e.Commands[0])
					l := leavesOf("", reflect.ValueOf(&cmd.Ops))[n]
					values := extremes(l.v)
					if x >= len(values) {
						break
					}
					l.v.Set(values[x])
					what := fmt.Sprintf("entry %d: %s%s = %.40v", i+1, whole.Ops[0].Kind(), l.path, values[x])
					hostile := pcm.Entry{Version: pcm.EntryVersion, Stamp: e.Stamp, Wall: e.Wall, Commands: []pcm.Signed{{Payload: pcm.MustMarshal(cmd), Signer: cmd.Peer.Public()}}}
					tried++
					if survives(t, what, c.genesis, before, hostile) {
						taken++
					}
				}
			}
		}
		s.Apply(uint64(i+1), e)
	}
	t.Logf("%d values, of which %d were taken", tried, taken)
	if tried < 2000 || taken == 0 || taken > tried/2 {
		t.Errorf("of %d extreme values %d were taken: that is no good test", tried, taken)
	}
}

func open(t testing.TB, s pcm.Signed) (cmd pcm.Command) {
	t.Helper()
	if err := pcm.Unmarshal(s.Payload, &cmd); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// survives applies an entry to a state and checks what must hold whatever it says.
// It tells whether the command was taken.
func survives(t testing.TB, what string, g ledger.Genesis, before []byte, e pcm.Entry) bool {
	t.Helper()
	s := ledger.New(g)
	if err := s.Restore(before); err != nil {
		t.Fatal(err)
	}
	r := s.Apply(1000, e).Results[0]
	for _, o := range r.Ops {
		if o.Err != nil && len(o.Err.Message) > 512 {
			t.Fatalf("%s: the refusal that is remembered has %d bytes", what, len(o.Err.Message))
		}
	}
	for range 2 {
		if err := s.Check(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		after, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if grown := len(after) - len(before) - len(e.Commands[0].Payload); grown > 4096 {
			t.Fatalf("%s: a command of %d bytes has the state grow by %d", what, len(e.Commands[0].Payload), grown)
		}
		again := ledger.New(g)
		if err := again.Restore(after); err != nil {
			t.Fatalf("%s: what is kept can't be restored: %v", what, err)
		}
		s.Apply(1001, pcm.Entry{Version: pcm.EntryVersion, Stamp: s.Stamp() + 20_000, Wall: e.Wall})
	}
	return r.First() == nil
}

// TestFormRefused holds the bounds of a command's form.
func TestFormRefused(t *testing.T) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	renew := pcm.Op{Renew: &pcm.Renew{}}
	for name, change := range map[string]func(*pcm.Command){
		"no operation":    func(cmd *pcm.Command) { cmd.Ops = nil },
		"17 operations":   func(cmd *pcm.Command) { cmd.Ops = make([]pcm.Op, 17); fill(cmd.Ops, renew) },
		"empty operation": func(cmd *pcm.Command) { cmd.Ops = []pcm.Op{{}} },
		"double operation": func(cmd *pcm.Command) {
			cmd.Ops = []pcm.Op{{Renew: &pcm.Renew{}, Drive: &pcm.Drive{}}}
		},
		"version 0":  func(cmd *pcm.Command) { cmd.Version = 0 },
		"version 2":  func(cmd *pcm.Command) { cmd.Version = 2 },
		"other peer": func(cmd *pcm.Command) { cmd.Peer = c.actor("zoe", "zoe").peer },
		"no peer":    func(cmd *pcm.Command) { cmd.Peer = "" },
		"too large": func(cmd *pcm.Command) {
			cmd.Ops = []pcm.Op{{Cancel: &pcm.Cancel{Reason: strings.Repeat("x", pcm.MaxCommand)}}}
		},
	} {
		cmd := c.command(anna, renew)
		change(&cmd)
		signed := anna.key.Seal(pcm.DomainCommand, cmd)
		if _, err := ledger.Check(signed); err == nil {
			t.Errorf("%s: Check has nothing against it", name)
		}
		if r := c.apply(false, signed).Results[0]; r.Err == nil {
			t.Errorf("%s: Apply takes it", name)
		}
	}
	if _, err := ledger.Check(anna.key.Seal(pcm.DomainCommand, c.command(anna, renew))); err != nil {
		t.Errorf("a good command: %v", err)
	}
	if _, err := ledger.Check(pcm.Signed{}); pcm.ErrorCode(err) != pcm.Invalid {
		t.Errorf("nothing at all: %v", err)
	}
	c.mustAudit(t)
}

func fill(ops []pcm.Op, op pcm.Op) {
	for i := range ops {
		ops[i] = op
	}
}

// TestMoneyDoesNotOverflow sells at the highest price, for the longest time, on credit without end.
func TestMoneyDoesNotOverflow(t *testing.T) {
	for _, own := range []bool{false, true} {
		c := newCell()
		anna := c.enrolled("anna", "anna")
		seller := c.enrolled("bert", map[bool]string{false: "bert", true: "anna"}[own])
		dear := pool(4)
		dear.Capacity = pcm.Resources{CPU: 1e9, Memory: 4 << 50, GPU: 1e6}
		dear.Price = pcm.Price{Unit: "credit", PerTask: pcm.MaxPrice, PerCPUHour: pcm.MaxPrice, PerGiBHour: pcm.MaxPrice, PerGPUHour: pcm.MaxPrice}
		if r, _ := c.do(seller, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{dear}, Credit: math.MaxInt64}}); r.First() == nil {
			t.Error("credit without end is taken")
		}
		if r, _ := c.do(seller, pcm.Op{Capacity: &pcm.Capacity{Offer: 2, Pools: []pcm.Pool{dear}, Credit: 1e18}}); r.First() != nil {
			t.Fatal(r.First())
		}
		job := c.submits(anna, "dear", 2000, 0)
		bought := 0
		for i := range 8 {
			for _, limit := range []int64{1, 1000, 3_600_000, pcm.MaxTimeLimit.Milliseconds()} {
				for _, each := range []pcm.Resources{{CPU: 1e8, Memory: 1 << 50, GPU: 1e5}, {GPU: 1}, {CPU: 1000}, {}} {
					for _, n := range []int{1, 200} {
						terms := c.terms(anna, seller, job, span(200*i, 200*i+n), 1)
						terms.LimitMS, terms.Each = limit, each
						if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}); r.First() == nil {
							bought++
						}
						if err := c.state.Check(); err != nil {
							t.Fatalf("limit %d ms of %s, %d times: %v", limit, each, n, err)
						}
					}
				}
			}
		}
		if bought == 0 {
			t.Error("nothing was bought at all")
		}
		for _, tr := range c.state.Trades() {
			c.do(seller, pcm.Op{Reject: &pcm.Reject{Trade: tr.ID, Tasks: span(tr.Terms.Tasks[0].Lo, tr.Terms.Tasks[0].Lo+1), Reason: "no"}})
		}
		c.pass(time.Minute)
		c.mustAudit(t)
	}
}

// TestHugeBatches has commands name as much as they can: they are bounded before they are walked.
func TestHugeBatches(t *testing.T) {
	c := newCell()
	anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
	c.sells(bert, 4)
	job := c.submits(anna, "huge", pcm.MaxTasks, 0)
	if got, _ := c.state.Job(job); got.Counts()[pcm.TaskWaiting] != pcm.MaxTasks {
		t.Fatal("not all tasks wait")
	}
	for _, tasks := range []pcm.Spans{span(0, pcm.MaxBatch+1), span(0, math.MaxInt), {{Lo: math.MinInt, Hi: 3}}, {{Lo: 0, Hi: math.MaxInt}, {Lo: math.MaxInt, Hi: math.MinInt}}, {{Lo: 5, Hi: 6}, {Lo: 0, Hi: 1}}, {{Lo: 0, Hi: 2}, {Lo: 1, Hi: 3}}} {
		terms := c.terms(anna, bert, job, span(0, 1), 1)
		terms.Tasks = tasks
		if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}); r.First() == nil {
			t.Errorf("%v is placed", tasks)
		}
	}
	terms := c.terms(anna, bert, job, span(0, pcm.MaxBatch), 4)
	terms.LimitMS = 1000
	if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: terms}}, pcm.Op{Award: &pcm.Award{Terms: terms}}); r.First() != nil {
		t.Fatal(r.First())
	}
	id := terms.Trade()
	for _, tasks := range []pcm.Spans{nil, span(0, math.MaxInt), span(0, pcm.MaxTasks), {{Lo: -5, Hi: 2}}, {{Lo: 2, Hi: 2}}, {{Lo: 3, Hi: 4}, {Lo: 3, Hi: 4}}} {
		for who, op := range map[*pcm.Op]*actor{
			{Start: &pcm.Start{Trade: id, Tasks: tasks}}:                                                bert,
			{Reject: &pcm.Reject{Trade: id, Tasks: tasks, Reason: "no"}}:                                bert,
			{Stop: &pcm.Stop{Trade: id, Tasks: tasks, Reason: "no"}}:                                    anna,
			{Settle: &pcm.Settle{Trade: id, Tasks: tasks}}:                                              anna,
			{Dispute: &pcm.Dispute{Trade: id, Tasks: tasks, Reason: "x"}}:                               anna,
			{Abandon: &pcm.Abandon{Job: job, Term: 1, Trade: id, Tasks: tasks, Fault: pcm.FaultSeller}}: anna,
		} {
			if r, _ := c.do(op, *who); r.First() == nil {
				t.Errorf("%s of %v is taken", who.Kind(), tasks)
			}
		}
	}
	results := good(span(0, pcm.MaxBatch), time.Second)
	for _, rs := range [][]pcm.Result{nil, append(results[:3:3], results[2]), append(results[:pcm.MaxBatch:pcm.MaxBatch], pcm.Result{Index: pcm.MaxBatch})} {
		if r, _ := c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: rs}}); r.First() == nil {
			t.Errorf("%d results are taken", len(rs))
		}
	}
	if r, _ := c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: results}}); pcm.ErrorCode(r.First()) != pcm.TooLarge {
		t.Errorf("a command whose record would be over its bound: %v", r.First())
	}
	if r, _ := c.do(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: append(results[:3:3], results[2])}}); r.First() == nil {
		t.Error("two results of one task are accepted")
	}
	for part := range slices.Chunk(results, 256) {
		if r, _ := c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: id, Results: part}}); r.First() != nil {
			t.Fatal(r.First())
		}
		if r, _ := c.do(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: id, Results: part}}); r.First() != nil {
			t.Fatal(r.First())
		}
	}
	c.mustAudit(t)
}

// TestManyCommands holds that one peer's command IDs are bounded, and forgotten in time.
func TestManyCommands(t *testing.T) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	renew := pcm.Op{Renew: &pcm.Renew{Incarnation: 1}}
	var busy error
	for range 50_001 {
		cmd := c.command(anna, renew)
		if busy = c.apply(false, pcm.Signed{Payload: pcm.MustMarshal(cmd), Signer: anna.key.Public()}).Results[0].First(); busy != nil {
			break
		}
	}
	if pcm.ErrorCode(busy) != pcm.Busy {
		t.Fatalf("50,001 commands within a minute: %v", busy)
	}
	if m, _ := c.state.Member(anna.peer); m.Seen != 50_000 {
		t.Errorf("%d commands are remembered", m.Seen)
	}
	full, _ := c.state.Snapshot()
	c.pass(71 * time.Second)
	if r, _ := c.do(anna, renew); r.First() != nil {
		t.Errorf("after their time: %v", r.First())
	}
	if m, _ := c.state.Member(anna.peer); m.Seen != 1 {
		t.Errorf("%d commands are remembered after their time", m.Seen)
	}
	if after, _ := c.state.Snapshot(); len(after) > len(full)/100 {
		t.Errorf("the state has %d bytes, with all commands it had %d", len(after), len(full))
	}
}

// FuzzCommand applies any bytes as a command, as they are and, where they decode,
// readdressed so that they reach the operations.
func FuzzCommand(f *testing.F) {
	c := history()
	for _, e := range c.entries {
		for _, s := range e.Commands {
			f.Add(s.Payload, uint8(0), uint8(20))
		}
	}
	f.Add([]byte{}, uint8(1), uint8(3))
	f.Add([]byte{0xa1, 0x07, 0x9f}, uint8(1), uint8(3))
	// The state before each entry: a fuzzed command may meet any of them.
	var befores [][]byte
	s := ledger.New(c.genesis)
	for i, e := range c.entries {
		before, err := s.Snapshot()
		if err != nil {
			f.Fatal(err)
		}
		befores = append(befores, before)
		s.Apply(uint64(i+1), e)
	}
	names := []string{"anna", "bert", "carl"}
	f.Fuzz(func(t *testing.T, payload []byte, who, when uint8) {
		a := c.peers[names[int(who)%len(names)]]
		n := int(when) % len(befores)
		e := pcm.Entry{Version: pcm.EntryVersion, Stamp: c.entries[n].Stamp, Wall: c.entries[n].Wall}
		e.Commands = []pcm.Signed{{Payload: payload, Signer: a.key.Public()}}
		survives(t, "as it is", c.genesis, befores[n], e)
		var cmd pcm.Command
		if pcm.Unmarshal(payload, &cmd) != nil {
			return
		}
		cmd.Version, cmd.Mesh, cmd.Cell, cmd.Peer = pcm.CommandVersion, c.genesis.Mesh, c.genesis.Cell, a.peer
		cmd.ID, cmd.NotAfter = pcm.CommandID{0xff}, e.Stamp+1000
		e.Commands[0].Payload = pcm.MustMarshal(cmd)
		survives(t, "readdressed", c.genesis, befores[n], e)
	})
}

// FuzzRestore restores any bytes: they are refused, or make a state that holds and goes on.
func FuzzRestore(f *testing.F) {
	c := history()
	whole, err := c.state.Snapshot()
	if err != nil {
		f.Fatal(err)
	}
	empty, _ := ledger.New(c.genesis).Snapshot()
	f.Add(whole)
	f.Add(empty)
	f.Add(whole[:len(whole)/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		s := ledger.New(c.genesis)
		was, _ := s.Snapshot()
		if s.Restore(data) != nil {
			if is, _ := s.Snapshot(); string(is) != string(was) {
				t.Fatal("a refused snapshot changed the state")
			}
			return
		}
		for _, d := range []int64{0, 5_000, 20_000, 4_000_000} {
			s.Apply(1, pcm.Entry{Version: pcm.EntryVersion, Stamp: s.Stamp() + d, NewTerm: d == 5_000})
		}
		if _, err := s.Snapshot(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzVerify reads any bytes as a record after good ones.
func FuzzVerify(f *testing.F) {
	c := history()
	for _, r := range c.records {
		f.Add(r, uint8(5))
	}
	f.Fuzz(func(t *testing.T, leaf []byte, after uint8) {
		n := int(after) % len(c.records)
		v, s := verify(c.genesis, append(c.records[:n:n], leaf))
		if v.Bad != nil && *v.Bad != uint64(n) || v.Bad == nil && v.Records != uint64(n+1) {
			t.Fatalf("%+v after %d good records", v, n)
		}
		if v.Bad == nil && s.Check() != nil {
			t.Fatal(s.Check())
		}
	})
}
