package ledger_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// BenchmarkTrade applies the five commands of a trade, from submission to
// settlement, each in an entry of its own; signatures are not checked here.
func BenchmarkTrade(b *testing.B) {
	for _, tasks := range []int{1, 256} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			c := newCell()
			anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
			free := pool(64)
			free.Price.PerTask, free.Price.PerCPUHour = 1, 1 // so that credit doesn't end
			c.do(bert, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{free}, Credit: 1e18}})
			s, stamp, index := c.state, c.stamp, c.index
			apply := func(a *actor, ops ...pcm.Op) {
				b.StopTimer()
				signed := pcm.Signed{Payload: pcm.MustMarshal(c.command(a, ops...)), Signer: a.key.Public()}
				index++
				stamp++
				c.stamp = stamp
				e := pcm.Entry{Version: pcm.EntryVersion, Stamp: stamp, Wall: c.wall, Commands: []pcm.Signed{signed}}
				b.StartTimer()
				if err := s.Apply(index, e).Results[0].First(); err != nil {
					b.Fatal(err)
				}
			}
			all := span(0, tasks)
			results := good(all, 10*time.Millisecond)
			b.ReportAllocs()
			for n := range b.N {
				name := fmt.Sprint("job ", n)
				job := jobID(name)
				if n%100 == 0 {
					apply(bert, pcm.Op{Renew: &pcm.Renew{Incarnation: 1}})
				}
				apply(anna, pcm.Op{Submit: &pcm.Submit{Job: job, Name: "bench", Spec: pcm.DigestOf([]byte(name)), Steps: []pcm.Shape{{Count: tasks}}, Unit: "credit", Takeover: pcm.TakeoverNone}})
				t := c.terms(anna, bert, job, all, min(tasks, 64))
				apply(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: t}}, pcm.Op{Award: &pcm.Award{Terms: t}})
				apply(bert, pcm.Op{Finish: &pcm.Finish{Trade: t.Trade(), Results: results}})
				apply(anna, pcm.Op{Accept: &pcm.Accept{Job: job, Term: 1, Trade: t.Trade(), Results: results}})
				apply(anna, pcm.Op{Settle: &pcm.Settle{Trade: t.Trade(), Tasks: all, Amount: pcm.Micro(tasks) * t.Charge(results[0].Usage)}})
			}
			b.ReportMetric(float64(tasks*b.N)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}

// BenchmarkSnapshot encodes and restores a state with 1,000 open jobs of ten tasks, all awarded.
func BenchmarkSnapshot(b *testing.B) {
	c := newCell()
	anna, bert := c.enrolled("anna", "anna"), c.enrolled("bert", "bert")
	free := pool(1000)
	free.Price.PerTask, free.Price.PerCPUHour = 1, 1
	c.do(bert, pcm.Op{Capacity: &pcm.Capacity{Offer: 1, Pools: []pcm.Pool{free}, Credit: 1e18}})
	for i := range 1000 {
		job := c.submits(anna, fmt.Sprint("job ", i), 10, 0)
		t := c.terms(anna, bert, job, span(0, 10), 1)
		if r, _ := c.do(anna, pcm.Op{Place: &pcm.Place{Term: 1, Terms: t}}, pcm.Op{Award: &pcm.Award{Terms: t}}); r.First() != nil {
			b.Fatal(r.First())
		}
	}
	c.pass(5 * time.Second)
	data, err := c.state.Snapshot()
	if err != nil {
		b.Fatal(err)
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := c.state.Snapshot(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(data)), "bytes")
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			if err := ledger.New(c.genesis).Restore(data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if v, _ := verify(c.genesis, c.records); v.Bad != nil {
				b.Fatal(v.Problem)
			}
		}
		b.ReportMetric(float64(len(c.records)*b.N)/b.Elapsed().Seconds(), "records/s")
	})
}

// BenchmarkCommand applies commands of two operations, which come together in
// entries of 64, as cmd/bench proposes them: a job is submitted and withdrawn.
// Each is checked and decoded first, as the proposer does it.
func BenchmarkCommand(b *testing.B) {
	c := newCell()
	anna := c.enrolled("anna", "anna")
	const each = 64
	stamp, index := c.stamp, c.index
	b.ReportAllocs()
	records, documents := 0, 0
	for n := 0; n < b.N; n += each {
		b.StopTimer()
		stamp += 1000 // IDs are forgotten in time: a peer may have so many
		index++
		c.stamp = stamp
		e := pcm.Entry{Version: pcm.EntryVersion, Stamp: stamp, Wall: c.wall}
		for i := range each {
			name := fmt.Sprint("job ", n+i)
			e.Commands = append(e.Commands, pcm.Signed{Signer: anna.key.Public(), Sig: make([]byte, 64), Payload: pcm.MustMarshal(c.command(anna,
				pcm.Op{Submit: &pcm.Submit{Job: jobID(name), Name: "bench", Spec: pcm.DigestOf([]byte(name)), Steps: []pcm.Shape{{Count: 1}}, Unit: "credit", Takeover: pcm.TakeoverNone}},
				pcm.Op{Cancel: &pcm.Cancel{Job: jobID(name), Reason: "measured"}}))})
		}
		b.StartTimer()
		for _, s := range e.Commands {
			cmd, err := ledger.Check(s)
			if err != nil {
				b.Fatal(err)
			}
			e.Decoded = append(e.Decoded, cmd)
		}
		effects := c.state.Apply(index, e)
		for _, r := range effects.Results {
			if err := r.First(); err != nil {
				b.Fatal(err)
			}
		}
		for _, r := range effects.Records {
			records += len(r)
		}
		for _, d := range effects.Documents {
			documents += len(d.Key) + len(d.Value)
		}
	}
	b.ReportMetric(float64(records)/float64(b.N), "record-bytes/op")
	b.ReportMetric(float64(documents)/float64(b.N), "document-bytes/op")
}
