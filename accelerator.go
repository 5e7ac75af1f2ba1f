package pcm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Precision is a form of number that accelerators compute with.
type Precision string

// Precisions that are known, widest first.
var Precisions = []Precision{"fp64", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"}

// Rate is a speed of computing in thousand million operations a second: 1000 is one TOPS.
type Rate int64

const maxRate Rate = 1e12

// String prints TOPS: 312000 is "312", 9700 is "9.7".
func (r Rate) String() string { return (Micro(r) * 1000).String() }

// MarshalText is String, so that JSON shows TOPS.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRate.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRate(string(text))
	return err
}

var rateUnits = []struct {
	suffix string
	per    Micro // of the unit's millionths make one Rate
}{
	{"GOPS", 1e6}, {"GFLOPS", 1e6}, {"TOPS", 1e3}, {"TFLOPS", 1e3}, {"POPS", 1}, {"PFLOPS", 1},
}

// ParseRate reads "300 TOPS", "9.7 TFLOPS", "1.2 PFLOPS" or a bare number of TOPS.
func ParseRate(s string) (Rate, error) {
	t, per := strings.TrimSpace(s), Micro(1e3)
	for _, u := range rateUnits {
		if len(t) > len(u.suffix) && strings.EqualFold(t[len(t)-len(u.suffix):], u.suffix) {
			t, per = strings.TrimSpace(t[:len(t)-len(u.suffix)]), u.per
			break
		}
	}
	m, err := ParseMicro(t)
	if err != nil || m < 0 || m/per > Micro(maxRate) {
		return 0, Errorf(Invalid, "%.40q is not a speed of computing; write it like 300 TOPS, 9.7 TFLOPS or 1.2 PFLOPS", s)
	}
	return Rate(m / per), nil
}

// Accelerator is a kind of GPU, NPU or the like: one of those that a pool has.
type Accelerator struct {
	Vendor string             `json:"vendor,omitempty" cbor:"1,keyasint,omitempty"` // e.g. "nvidia"
	Model  string             `json:"model,omitempty" cbor:"2,keyasint,omitempty"`  // e.g. "a100"
	Slice  string             `json:"slice,omitempty" cbor:"3,keyasint,omitempty"`  // the part of one that is offered as one, e.g. "3g.20gb"
	Memory Bytes              `json:"memory,omitempty" cbor:"4,keyasint,omitempty"` // of one; 0: not known
	TOPS   map[Precision]Rate `json:"tops,omitempty" cbor:"5,keyasint,omitempty"`   // of one, dense; what is not known is missing
}

// Validate checks the bounds.
func (a Accelerator) Validate() error {
	for _, word := range []string{a.Vendor, a.Model, a.Slice} {
		if word != "" && !ValidName(word) {
			return Errorf(Invalid, "accelerator: %.80q is not a name of lower-case letters, digits, dots and dashes", word)
		}
	}
	if a.Model == "" && a.Vendor == "" {
		return Errorf(Invalid, "an accelerator has a vendor or a model")
	}
	if a.Memory < 0 || a.Memory > maxMemory {
		return Errorf(Invalid, "accelerator %s: memory %s is out of range", a.Name(), a.Memory)
	}
	if len(a.TOPS) > 16 {
		return Errorf(Invalid, "accelerator %s: %d precisions are too many: at most 16", a.Name(), len(a.TOPS))
	}
	for _, p := range slices.Sorted(maps.Keys(a.TOPS)) {
		if !ValidName(string(p)) || a.TOPS[p] < 0 || a.TOPS[p] > maxRate {
			return Errorf(Invalid, "accelerator %s: %.20q at %s TOPS is out of range", a.Name(), p, a.TOPS[p])
		}
	}
	return nil
}

// Name is what people call it: "a100.80g", "a100.3g.20gb", or the vendor where no more is known.
func (a Accelerator) Name() string {
	switch {
	case a.Model == "":
		return a.Vendor
	case a.Slice != "":
		return a.Model + "." + a.Slice
	case a.Memory < 1<<30:
		return a.Model
	}
	return a.Model + "." + strconv.FormatInt(int64((a.Memory+1<<29)>>30), 10) + "g"
}

// String describes it: "nvidia a100.80g (80GiB; fp16 312, int8 624 TOPS)".
func (a Accelerator) String() string {
	var facts, rates []string
	if a.Memory > 0 {
		facts = append(facts, a.Memory.String())
	}
	for _, p := range Precisions {
		if r := a.TOPS[p]; r > 0 {
			rates = append(rates, string(p)+" "+r.String())
		}
	}
	if len(rates) > 0 {
		facts = append(facts, strings.Join(rates, ", ")+" TOPS")
	}
	s := a.Name()
	if a.Vendor != "" && a.Model != "" {
		s = a.Vendor + " " + s
	}
	if len(facts) > 0 {
		s += " (" + strings.Join(facts, "; ") + ")"
	}
	return s
}

// Sliced is the part of the accelerator that a slice like "3g.20gb" is: so many of
// parts equal shares of its speed, and the memory that the slice names.
func (a Accelerator) Sliced(slice string, parts int64) Accelerator {
	s := a
	s.Slice, s.TOPS = slice, nil
	var share int64
	var gib float64
	if n, err := fmt.Sscanf(slice, "%dg.%fgb", &share, &gib); n == 2 && err == nil && gib > 0 && gib < 1<<12 {
		s.Memory = Bytes(gib * (1 << 30))
	}
	if share > 0 && share <= parts {
		s.TOPS = map[Precision]Rate{}
		for p, r := range a.TOPS {
			s.TOPS[p] = r * Rate(share) / Rate(parts)
		}
	}
	return s
}
