package rules

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/jointcloud/pcm"
)

// Bounds of one peer's rules.
const (
	MaxOwn      = 64 // rules, public and private
	maxExamples = 64 // of one rule
)

// Rule is one as its owner writes it: what it is about, and one of accept, data,
// price and limit.
type Rule struct {
	Name     string    `json:"name"`
	Public   bool      `json:"public"`   // travels in the offer; those that say price or limit always do
	Pools    []string  `json:"pools"`    // IDs, * for any part; none: every pool
	When     string    `json:"when"`     // CEL
	Accept   string    `json:"accept"`   // CEL
	Data     string    `json:"data"`     // CEL
	Price    string    `json:"price"`    // like 80%
	Limit    *Limit    `json:"limit"`    //
	Reason   string    `json:"reason"`   // a template
	Examples []Example `json:"examples"` // of what it comes to
}

// Limit is one as its owner writes it.
type Limit struct {
	Tasks  int    `json:"tasks"`
	CPU    string `json:"cpu"`
	Memory string `json:"memory"`
	GPU    int64  `json:"gpu"`
	Share  string `json:"share"` // like 50%
}

// Set are a peer's rules, ready to be asked.
type Set struct {
	Public  []pcm.Rule
	Private []pcm.Rule
}

// Percents are the prices that the rules ask for of a pool, in hundredths of its usual one.
func (s Set) Percents(id pcm.PoolID) (list []int) {
	for _, r := range s.Public {
		if r.Percent != nil && r.For(id) {
			list = append(list, *r.Percent)
		}
	}
	return list
}

// public tells whether a rule travels in the offer.
func (r Rule) public() bool { return r.Public || r.Price != "" || r.Limit != nil }

// terse is the rule without its examples. The error names the field.
func (r Rule) terse() (p pcm.Rule, field string, err error) {
	p = pcm.Rule{Name: r.Name, Pools: r.Pools, When: r.When, Accept: r.Accept, Data: r.Data, Reason: r.Reason}
	if r.Price != "" {
		n, err := percent(r.Price, pcm.MaxPercent)
		if err != nil {
			return p, "price", err
		}
		p.Percent = &n
	}
	if l := r.Limit; l != nil {
		p.Limit = &pcm.Limit{Tasks: l.Tasks, GPU: l.GPU}
		if l.CPU != "" {
			if p.Limit.CPU, err = pcm.ParseMilliCPU(l.CPU); err != nil {
				return p, "limit.cpu", err
			}
		}
		if l.Memory != "" {
			if p.Limit.Memory, err = pcm.ParseBytes(l.Memory); err != nil {
				return p, "limit.memory", err
			}
		}
		if l.Share != "" {
			if p.Limit.Share, err = percent(l.Share, 100); err != nil {
				return p, "limit.share", err
			}
		}
	}
	return p, "", p.Validate()
}

func percent(s string, most int) (int, error) {
	text, ok := strings.CutSuffix(strings.TrimSpace(s), "%")
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if !ok || err != nil || n < 0 || n > most {
		return 0, pcm.Errorf(pcm.Invalid, "%.40q is not a share in whole percent from 0%% to %d%%, like 80%%", s, most)
	}
	return n, nil
}

// Example says what a rule comes to in one case. What it doesn't give of the facts
// is zero or empty.
type Example struct {
	Given  Facts  `json:"given"`
	Expect string `json:"expect"` // accept, refuse, full (of a limit), or a price like 80%
	Reason string `json:"reason"` // what the buyer is told contains this
}

// question is what an example asks of its rule.
func (e Example) question(r pcm.Rule) *Question {
	g := e.Given
	pool := pcm.PoolID(g.Pool.ID)
	if pool == "" || !r.For(pool) {
		pool = "example"
		for _, p := range r.Pools {
			pool = pcm.PoolID(strings.ReplaceAll(p, "*", ""))
		}
	}
	thousandths := func(cores float64) pcm.MilliCPU { return pcm.MilliCPU(cores*1000 + 0.5) }
	q := &Question{
		Job: Of(g.Job), Buyer: Of(g.Buyer), Standing: Of(g.Standing), Pool: Of(g.Pool), Time: Of(g.Time), Peers: []Variable{Of(g.Peer)},
		ID: pool, Slots: g.Pool.Slots, Tasks: g.Standing.Tasks,
		Each:  pcm.Resources{CPU: thousandths(g.Job.CPU), Memory: pcm.Bytes(g.Job.Memory), GPU: g.Job.GPU, Disk: pcm.Bytes(g.Job.Disk)},
		Whole: pcm.Resources{CPU: thousandths(g.Pool.CPU), Memory: pcm.Bytes(g.Pool.Memory), GPU: g.Pool.GPU, Disk: pcm.Bytes(g.Pool.Disk)},
	}
	q.Reserved = q.Each.Times(q.Tasks)
	return q
}

// fails says how a rule comes to something else than the example expects; "" if it doesn't.
func (e Example) fails(b *Book, r pcm.Rule, private bool) string {
	v := b.Judge([]pcm.Rule{r}, private, e.question(r))
	if v.Fault != nil {
		return v.Fault.Error()
	}
	got, told := "accept", v.Refused
	switch {
	case v.Refused != "":
		got = "refuse"
	case v.Room < 1:
		got, told = "full", v.Limit
	case r.Percent != nil:
		got = fmt.Sprintf("%d%%", v.Percent)
	}
	want := strings.TrimSpace(e.Expect)
	if r.Percent != nil && want == "accept" {
		want = "100%"
	}
	if got != want {
		if told != "" {
			told = ": " + told
		}
		return fmt.Sprintf("expects %s, the rule comes to %s%s", want, got, told)
	}
	if !strings.Contains(told, e.Reason) {
		return fmt.Sprintf("expects the reason %q, the buyer is told %q", e.Reason, told)
	}
	return ""
}
