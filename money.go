package pcm

import (
	"math"
	"math/big"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// Micro is an amount of money: an integer of micro-units of a named unit.
// 1 credit is 1,000,000. There are no floats in anything that is agreed on.
type Micro int64

// DefaultUnit is the unit of prices that name none.
const DefaultUnit = "credit"

// String prints the amount in whole units without trailing zeros: 1500000 is "1.5".
func (m Micro) String() string {
	sign, u := "", uint64(m)
	if m < 0 {
		sign, u = "-", uint64(-m)
	}
	s := sign + strconv.FormatUint(u/1e6, 10)
	if frac := u % 1e6; frac != 0 {
		digits := strconv.FormatUint(frac+1e6, 10)[1:]
		s += "." + strings.TrimRight(digits, "0")
	}
	return s
}

// MarshalText is String, so that JSON shows amounts in whole units: "1.5".
func (m Micro) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMicro.
func (m *Micro) UnmarshalText(text []byte) error {
	v, err := ParseMicro(string(text))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// ParseMicro reads an amount in whole units with up to six decimals: "1.5" is 1500000.
func ParseMicro(s string) (Micro, error) {
	bad := func(why string) (Micro, error) {
		return 0, Errorf(Invalid, "amount %q %s; write it like 12 or 0.25 (at most six decimals)", s, why)
	}
	t := strings.TrimSpace(s)
	neg := strings.HasPrefix(t, "-")
	t = strings.TrimPrefix(t, "-")
	whole, frac, dot := strings.Cut(t, ".")
	if whole == "" || (dot && frac == "") {
		return bad("is not a number")
	}
	if len(frac) > 6 {
		return bad("has more than six decimals")
	}
	w, err := strconv.ParseUint(whole, 10, 63)
	if err != nil || w > 9e12 {
		return bad("is not a number in range")
	}
	var f uint64
	if frac != "" {
		if f, err = strconv.ParseUint(frac+strings.Repeat("0", 6-len(frac)), 10, 63); err != nil {
			return bad("is not a number")
		}
	}
	m := Micro(w*1e6 + f)
	if neg {
		m = -m
	}
	return m, nil
}

// Price is what a pool costs. An attempt pays PerTask, and for as long as it ran
// the three rates on the CPU, memory and accelerators that were reserved for it.
// Disk has no rate: what a task keeps is bounded, and gone with it.
type Price struct {
	Unit       string `json:"unit" cbor:"1,keyasint"`
	PerTask    Micro  `json:"per_task" cbor:"2,keyasint"`                         // for each attempt that was started
	PerCPUHour Micro  `json:"per_cpu_hour" cbor:"3,keyasint"`                     // for one core for one hour
	PerGiBHour Micro  `json:"per_gib_hour" cbor:"4,keyasint"`                     // for one GiB of memory for one hour
	PerGPUHour Micro  `json:"per_gpu_hour,omitempty" cbor:"5,keyasint,omitempty"` // for one accelerator for one hour
}

// MaxPrice bounds each part of a price: a million units.
const MaxPrice Micro = 1e12

// Validate checks the bounds.
func (p Price) Validate() error {
	if !ValidName(p.Unit) {
		return Errorf(Invalid, "price unit %q is not a name of lower-case letters, digits and dashes", p.Unit)
	}
	for _, m := range []Micro{p.PerTask, p.PerCPUHour, p.PerGiBHour, p.PerGPUHour} {
		if m < 0 || m > MaxPrice {
			return Errorf(Invalid, "price %s %s is out of range: each part is between 0 and %s", m, p.Unit, MaxPrice)
		}
	}
	return nil
}

// Cost is what one attempt with resources r costs that ran for d, rounded up
// to a whole micro-unit. It saturates instead of overflowing.
func (p Price) Cost(r Resources, d time.Duration) Micro {
	ms := uint64(max(d, 0) / time.Millisecond)
	cpu := rate(uint64(p.PerCPUHour), ms, uint64(r.CPU), 1000*3600*1000)
	mem := rate(uint64(p.PerGiBHour), ms, uint64(r.Memory)>>20, 1024*3600*1000)
	gpu := rate(uint64(p.PerGPUHour), ms, uint64(r.GPU), 3600*1000)
	return AddMicro(p.PerTask, AddMicro(AddMicro(cpu, mem), gpu))
}

// rate is ceil(price × ms × quantity / per), saturating. Amounts of everyday fit
// 128 bits on the way; the rest takes the slow way to the same result.
func rate(price, ms, quantity, per uint64) Micro {
	hi, lo := bits.Mul64(price, quantity)
	if hi != 0 {
		return rateBig(price, ms, quantity, per)
	}
	hi, lo = bits.Mul64(lo, ms)
	lo, carry := bits.Add64(lo, per-1, 0)
	hi += carry
	if hi >= per {
		return math.MaxInt64
	}
	q, _ := bits.Div64(hi, lo, per)
	if q > math.MaxInt64 {
		return math.MaxInt64
	}
	return Micro(q)
}

func rateBig(price, ms, quantity, per uint64) Micro {
	n := new(big.Int).SetUint64(price)
	n.Mul(n, new(big.Int).SetUint64(quantity))
	n.Mul(n, new(big.Int).SetUint64(ms))
	n.Add(n, new(big.Int).SetUint64(per-1))
	n.Quo(n, new(big.Int).SetUint64(per))
	if !n.IsInt64() {
		return math.MaxInt64
	}
	return Micro(n.Int64())
}

// AddMicro adds two amounts of zero or more, saturating.
func AddMicro(a, b Micro) Micro {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// MulMicro multiplies an amount of zero or more by a count, saturating.
func MulMicro(a Micro, n int) Micro {
	hi, lo := bits.Mul64(uint64(a), uint64(max(n, 0)))
	if hi != 0 || lo > math.MaxInt64 {
		return math.MaxInt64
	}
	return Micro(lo)
}
