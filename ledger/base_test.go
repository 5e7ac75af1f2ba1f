package ledger_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// based is a cell that keeps its records for 20 s, so that there is a base every 5 s.
func based(t *testing.T) (c *cell, anna, bert *actor, base func() *pcm.BaseState) {
	t.Helper()
	c, anna = raised()
	bert = c.enrolled("bert", "bert")
	c.sells(bert, 4)
	if r, _ := c.do(anna, pcm.Op{Set: &pcm.Set{Key: pcm.SettingKeep, Value: "20s"}}); r.First() != nil {
		t.Fatal(r.First())
	}
	return c, anna, bert, func() *pcm.BaseState {
		t.Helper()
		r, fx := c.do(anna, pcm.Op{Base: &pcm.Base{Last: c.state.Base().Size}})
		if r.First() != nil {
			t.Fatal(r.First())
		}
		return fx.Base
	}
}

func renewal() pcm.Op { return pcm.Op{Renew: &pcm.Renew{Incarnation: 1}} }

// Renewals on which nothing depended left no record, so a base tells nothing of them,
// not even if work began in the very moment of one.
func TestBaseIdleRenewals(t *testing.T) {
	c, anna, bert, base := based(t)
	c.do(anna, renewal()) // these are records: they tell of an incarnation
	c.do(bert, renewal())
	c.pass(time.Second)
	renews := func() {
		for _, a := range []*actor{anna, bert} {
			if _, fx := c.do(a, renewal()); len(fx.Records) > 0 {
				t.Fatal("a renewal was recorded on which nothing depends")
			}
		}
	}
	renews()
	base()
	c.mustAudit(t)
	c.pass(5 * time.Second)
	renews()
	c.buys(t, anna, bert, "job")
	base()
	c.mustAudit(t)

	// Nor if work is open still, of which nothing runs and nothing is to be decided.
	c.pass(5 * time.Second)
	trade, done := c.state.Trades()[0], good(span(0, 1), time.Second)
	c.do(bert, pcm.Op{Finish: &pcm.Finish{Trade: trade.ID, Results: done}})
	if r, _ := c.do(anna, pcm.Op{Accept: &pcm.Accept{Job: trade.Terms.Job, Term: 1, Trade: trade.ID, Results: done}}); r.First() != nil {
		t.Fatal(r.First())
	}
	c.pass(time.Second)
	renews()
	base()
	if len(c.state.Trades()) != 1 || len(c.state.Jobs()) != 1 {
		t.Fatal("nothing is open")
	}
	c.mustAudit(t)
}

// A renewal on which a lease or a driver's term depends is part of a base: who goes on
// from there judges as the cell does.
func TestBaseRenewals(t *testing.T) {
	c, anna, bert, base := based(t)
	anne := c.enrolled("anne", "anna") // another peer of anna's account
	c.buys(t, anna, bert, "job")
	c.pass(9 * time.Second)
	c.do(anna, renewal())
	c.do(bert, renewal())
	b := base()
	c.pass(9 * time.Second) // leases from before the renewals would be over
	if len(c.state.Trades()) != 1 {
		t.Fatal("the trade is lost")
	}
	early := anne.key.Seal(pcm.DomainCommand, c.command(anne, pcm.Op{Drive: &pcm.Drive{Job: jobID("job"), Term: 2}}))
	opened, err := ledger.OpenBase(c.genesis, c.records[b.Size], b.State)
	if err != nil {
		t.Fatal(err)
	}
	there := opened.Apply(c.index+1, pcm.Entry{Version: pcm.EntryVersion, Stamp: c.stamp, Wall: c.wall, Commands: []pcm.Signed{early}}).Results[0]
	here := c.apply(false, early).Results[0]
	if here.First() == nil || there.First() == nil || here.First().Error() != there.First().Error() {
		t.Errorf("a driver that is not silent is replaced: %v by the cell, %v from the base on", here.First(), there.First())
	}
	c.do(bert, renewal())
	c.pass(6 * time.Second)
	base()
	c.mustAudit(t)
}

// A base tells nothing of when it is looked next for what has expired: that follows
// from the rest, and who looks more often comes to the same.
func TestBaseDue(t *testing.T) {
	c, anna, bert, base := based(t)
	c.buys(t, anna, bert, "job")
	snapshot, err := c.state.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var fields map[int]cbor.RawMessage
	const due = 6 // where snapshots have it
	if err := pcm.UnmarshalLarge(snapshot, &fields); err != nil || fields[due] == nil {
		t.Fatalf("a snapshot doesn't say what is due: %v", err)
	}
	fields[due] = pcm.MustMarshal(c.stamp + 1)
	other := ledger.New(c.genesis)
	if err := other.Restore(pcm.MustMarshal(fields)); err != nil {
		t.Fatal(err)
	}
	b := base()
	last := c.entries[len(c.entries)-1]
	if fx := other.Apply(c.index, last); fx.Base == nil || !bytes.Equal(fx.Base.Digest, b.Digest) {
		t.Error("who looks for what has expired at another time has another base")
	}
	c.mustAudit(t)
}

// A base has no answers to commands in it: an answer may be a refusal, whose words are
// not the same in all releases that come to verify the base.
func TestBaseHasNoAnswers(t *testing.T) {
	c, anna, _, base := based(t)
	stale := pcm.Op{Capacity: &pcm.Capacity{}}
	if r, fx := c.do(anna, pcm.Op{Capacity: &pcm.Capacity{Offer: 1}}, stale); r.First() == nil || len(fx.Records) != 1 {
		t.Fatalf("a command of which the second half is refused made %d records: %v", len(fx.Records), r.First())
	}
	r, fx := c.do(anna, stale) // not recorded
	if r.First() == nil || len(fx.Records) != 0 {
		t.Fatalf("a refused command made %d records: %v", len(fx.Records), r.First())
	}
	words := []byte("not newer than")
	if snapshot, err := c.state.Snapshot(); err != nil || !bytes.Contains(snapshot, words) {
		t.Fatalf("the state has no answers (%v)", err)
	}
	if bytes.Contains(base().State, words) {
		t.Error("the words of a refusal are part of a base")
	}
	c.mustAudit(t)
}

// BenchmarkBase makes bases of a cell with many open jobs, all awarded.
func BenchmarkBase(b *testing.B) {
	for _, jobs := range []int{1000, 50_000} {
		b.Run(fmt.Sprint("jobs=", jobs), func(b *testing.B) {
			c, anna := raised()
			bert := c.enrolled("bert", "bert")
			free := pool(jobs)
			free.Price.PerTask, free.Price.PerCPUHour = 1, 1
			c.do(bert, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{free}, Credit: 1e18}})
			c.do(anna, pcm.Op{Set: &pcm.Set{Key: pcm.SettingKeep, Value: "20s"}})
			for i := range jobs {
				if i%10_000 == 9999 {
					c.pass(61 * time.Second) // so that anna's commands are within their bound
					c.wall -= 61_000
					c.do(bert, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
				}
				job := c.submits(anna, fmt.Sprint("job ", i), 1, 0)
				t := c.terms(anna, bert, job, span(0, 1), 1)
				if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: t}}, pcm.Op{Award: &pcm.Award{Terms: t}}); r.First() != nil {
					b.Fatal(r.First())
				}
			}
			b.ResetTimer()
			for range b.N {
				c.stamp += 5000
				if r, fx := c.do(anna, pcm.Op{Base: &pcm.Base{Last: c.state.Base().Size}}); r.First() != nil || fx.Base == nil {
					b.Fatal(r.First())
				} else {
					b.ReportMetric(float64(len(fx.Base.State))/1e6, "MB")
				}
			}
		})
	}
}
