package pcm

import "path"

// Bounds of the rules in one offer.
const (
	MaxRules     = 8
	MaxRuleBytes = 2 << 10 // of all of them, encoded
)

// Rule is a condition on which a provider sells, in its own words: CEL over the job,
// the buyer, its standing and the pool. Rules travel in offers, so that buyers don't
// ask in vain; what they mean is in node/rules. One rule says one thing: Accept,
// Data, Percent or Limit.
type Rule struct {
	Name    string   `json:"name" cbor:"1,keyasint"`
	Pools   []string `json:"pools,omitempty" cbor:"2,keyasint,omitempty"`   // IDs, * for any part; none: every pool
	When    string   `json:"when,omitempty" cbor:"3,keyasint,omitempty"`    // whom and what it is about; "": all
	Accept  string   `json:"accept,omitempty" cbor:"4,keyasint,omitempty"`  // has to hold
	Data    string   `json:"data,omitempty" cbor:"5,keyasint,omitempty"`    // has to hold for each peer with which data are exchanged
	Percent *int     `json:"percent,omitempty" cbor:"6,keyasint,omitempty"` // of the pool's price that is asked for
	Limit   *Limit   `json:"limit,omitempty" cbor:"7,keyasint,omitempty"`
	Reason  string   `json:"reason,omitempty" cbor:"8,keyasint,omitempty"` // what the buyer is told; a template
}

// Limit is the most of one pool that one account may have reserved at once; parts
// that are zero are no limit.
type Limit struct {
	Tasks  int      `json:"tasks,omitempty" cbor:"1,keyasint,omitempty"`
	CPU    MilliCPU `json:"cpu,omitempty" cbor:"2,keyasint,omitempty"`
	Memory Bytes    `json:"memory,omitempty" cbor:"3,keyasint,omitempty"`
	GPU    int64    `json:"gpu,omitempty" cbor:"4,keyasint,omitempty"`
	Share  int      `json:"share,omitempty" cbor:"5,keyasint,omitempty"` // percent of each part of the pool
}

// MaxPercent bounds what a rule may make of a price: ten times as much.
const MaxPercent = 1000

// Validate checks the bounds. Whether its expressions can be read is another question.
func (r Rule) Validate() error {
	if !ValidName(r.Name) {
		return Errorf(Invalid, "rule %.40q is not a name of lower-case letters, digits, dots and dashes", r.Name)
	}
	kinds := 0
	for _, says := range []bool{r.Accept != "", r.Data != "", r.Percent != nil, r.Limit != nil} {
		if says {
			kinds++
		}
	}
	if kinds != 1 {
		return Errorf(Invalid, "rule %s says %d things: a rule says one of accept, data, price and limit", r.Name, kinds)
	}
	if p := r.Percent; p != nil && (*p < 0 || *p > MaxPercent) {
		return Errorf(Invalid, "rule %s asks for %d %% of the price: 0 to %d can be asked for", r.Name, *p, MaxPercent)
	}
	if l := r.Limit; l != nil {
		if l.Tasks < 0 || l.Share < 0 || l.Share > 100 || *l == (Limit{}) {
			return Errorf(Invalid, "rule %s has a limit that is none, or out of range", r.Name)
		}
		if err := (Resources{CPU: l.CPU, Memory: l.Memory, GPU: l.GPU}).Validate(); err != nil {
			return Errorf(Invalid, "rule %s: %w", r.Name, err)
		}
	}
	if len(r.Pools) > 16 {
		return Errorf(Invalid, "rule %s names %d pools: at most 16; * stands for any part of a name", r.Name, len(r.Pools))
	}
	for _, p := range r.Pools {
		if _, err := path.Match(p, ""); err != nil || len(p) > 63 || !Printable(p) {
			return Errorf(Invalid, "rule %s is for pool %.40q, which is neither a name nor a pattern like gpu-*", r.Name, p)
		}
	}
	return nil
}

// For tells whether the rule is for the pool.
func (r Rule) For(id PoolID) bool {
	for _, p := range r.Pools {
		if ok, _ := path.Match(p, string(id)); ok {
			return true
		}
	}
	return len(r.Pools) == 0
}

// CheckRules checks the rules of one offer, and that they are within its bounds.
func CheckRules(rules []Rule) error {
	if len(rules) == 0 {
		return nil
	}
	if len(rules) > MaxRules {
		return Errorf(TooLarge, "%d rules are too many for an offer: at most %d", len(rules), MaxRules)
	}
	if n := len(MustMarshal(rules)); n > MaxRuleBytes {
		return Errorf(TooLarge, "the rules of the offer have %d bytes, over the bound of %d: shorten them, or keep some private", n, MaxRuleBytes)
	}
	names := map[string]bool{}
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			return err
		}
		if names[r.Name] {
			return Errorf(Invalid, "two rules are called %s", r.Name)
		}
		names[r.Name] = true
	}
	return nil
}

// Percent is the price of which each part is n hundredths, rounded up to a whole micro-unit.
func (p Price) Percent(n int) Price {
	for _, part := range []*Micro{&p.PerTask, &p.PerCPUHour, &p.PerGiBHour, &p.PerGPUHour} {
		*part = min(MaxPrice, (*part*Micro(n)+99)/100)
	}
	return p
}

// MaxTariffs bounds the prices of a pool beside its usual one.
const MaxTariffs = MaxRules

// Sold tells whether the pool is sold at a price: its own, or one of its tariffs.
func (p Pool) Sold(at Price) bool {
	for _, t := range p.Tariffs {
		if t == at {
			return true
		}
	}
	return p.Price == at
}
