package pcm

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// MilliCPU is an amount of CPU: 1000 is one core.
type MilliCPU int64

// Bytes is an amount of memory or disk.
type Bytes int64

// Resources is a shape: what a task needs, or what a pool has.
type Resources struct {
	CPU    MilliCPU `json:"cpu" cbor:"1,keyasint,omitempty"`    // in thousandths of a core
	Memory Bytes    `json:"memory" cbor:"2,keyasint,omitempty"` // in bytes
	GPU    int64    `json:"gpu,omitempty" cbor:"3,keyasint,omitempty"`
	Disk   Bytes    `json:"disk,omitempty" cbor:"4,keyasint,omitempty"` // in bytes; of a pool, 0: it states none
}

// Bounds of one shape: a million cores, 4 PiB of memory and of disk, a million accelerators.
const (
	maxCPU    MilliCPU = 1e9
	maxMemory Bytes    = 4 << 50
	maxGPU             = 1e6
)

// MinMemory is the least memory that a task may ask for, if it asks for any:
// below it no program starts, and a number without its unit is the likely cause.
const MinMemory Bytes = 1 << 20

// CheckMemory refuses memory that is neither none nor at least [MinMemory], with
// code Invalid.
func (r Resources) CheckMemory() error {
	if r.Memory <= 0 || r.Memory >= MinMemory {
		return nil
	}
	if r.Memory > 1<<10 && r.Memory%(1<<10) != 0 {
		return Errorf(Invalid, "memory %s is below %s, the least that can be asked for", r.Memory, MinMemory)
	}
	digits := strings.TrimRight(r.Memory.String(), "KiB")
	return Errorf(Invalid, "memory %s is below %s: did you mean %sMiB?", r.Memory, MinMemory, digits)
}

// Validate checks that nothing is negative or beyond all bounds.
func (r Resources) Validate() error {
	if r.CPU < 0 || r.CPU > maxCPU {
		return Errorf(Invalid, "cpu %s is out of range", r.CPU)
	}
	if r.Memory < 0 || r.Memory > maxMemory {
		return Errorf(Invalid, "memory %s is out of range", r.Memory)
	}
	if r.GPU < 0 || r.GPU > maxGPU {
		return Errorf(Invalid, "gpu %d is out of range", r.GPU)
	}
	if r.Disk < 0 || r.Disk > maxMemory {
		return Errorf(Invalid, "disk %s is out of range", r.Disk)
	}
	return nil
}

// Times multiplies the shape; n is at most a few million, so it can't overflow.
func (r Resources) Times(n int) Resources {
	return Resources{r.CPU * MilliCPU(n), r.Memory * Bytes(n), r.GPU * int64(n), r.Disk * Bytes(n)}
}

// Plus adds two shapes.
func (r Resources) Plus(o Resources) Resources {
	return Resources{r.CPU + o.CPU, r.Memory + o.Memory, r.GPU + o.GPU, r.Disk + o.Disk}
}

// Minus subtracts o; parts may become negative.
func (r Resources) Minus(o Resources) Resources {
	return Resources{r.CPU - o.CPU, r.Memory - o.Memory, r.GPU - o.GPU, r.Disk - o.Disk}
}

// Within tells whether every part of r is at most that of o.
func (r Resources) Within(o Resources) bool {
	return r.CPU <= o.CPU && r.Memory <= o.Memory && r.GPU <= o.GPU && r.Disk <= o.Disk
}

// Fits counts how many tasks of shape each have room in r, at most limit.
func (r Resources) Fits(each Resources, limit int) int {
	n := int64(limit)
	if each.CPU > 0 {
		n = min(n, int64(max(r.CPU, 0)/each.CPU))
	}
	if each.Memory > 0 {
		n = min(n, int64(max(r.Memory, 0)/each.Memory))
	}
	if each.GPU > 0 {
		n = min(n, max(r.GPU, 0)/each.GPU)
	}
	if each.Disk > 0 {
		n = min(n, int64(max(r.Disk, 0)/each.Disk))
	}
	return int(max(n, 0))
}

func (r Resources) String() string {
	s := fmt.Sprintf("%s cpu, %s", r.CPU, r.Memory)
	if r.GPU > 0 {
		s += fmt.Sprintf(", %d gpu", r.GPU)
	}
	if r.Disk > 0 {
		s += fmt.Sprintf(", %s disk", r.Disk)
	}
	return s
}

// String prints cores: 1500 is "1.5", 250 is "0.25".
func (c MilliCPU) String() string { return (Micro(c) * 1000).String() }

// ParseMilliCPU reads "2", "0.5" or "500m".
func ParseMilliCPU(s string) (MilliCPU, error) {
	t := strings.TrimSpace(s)
	if m, ok := strings.CutSuffix(t, "m"); ok {
		n, err := strconv.ParseInt(m, 10, 64)
		if err != nil || n < 0 || n > int64(maxCPU) {
			return 0, Errorf(Invalid, "cpu %q is not an amount of CPU; write it like 2, 0.5 or 500m", s)
		}
		return MilliCPU(n), nil
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f > float64(maxCPU)/1000 {
		return 0, Errorf(Invalid, "cpu %q is not an amount of CPU; write it like 2, 0.5 or 500m", s)
	}
	milli := f * 1000
	if whole := math.Round(milli); math.Abs(milli-whole) < 1e-6 { // what the float's own error may add, and no more
		return MilliCPU(whole), nil
	}
	return MilliCPU(math.Ceil(milli)), nil
}

var byteUnits = []struct {
	suffix string
	factor float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"B", 1},
}

// ParseBytes reads "64MiB", "8 GiB", "1.5GB", "512Mi" or a plain number of bytes.
func ParseBytes(s string) (Bytes, error) {
	t, factor := strings.TrimSpace(s), 1.0
	for _, u := range byteUnits {
		if n, ok := strings.CutSuffix(t, u.suffix); ok {
			t, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f*factor > float64(maxMemory) {
		return 0, Errorf(Invalid, "size %q is not an amount of bytes; write it like 64MiB, 8 GiB or 500MB", s)
	}
	return Bytes(math.Ceil(f * factor)), nil
}

// String prints the size in the largest binary unit that is not below one: "64MiB", "1.5GiB".
func (b Bytes) String() string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	sign, n, unit, i := "", uint64(b), uint64(1), 0
	if b < 0 {
		sign, n = "-", -n
	}
	for n/unit >= 1024 && i < len(units)-1 {
		unit, i = unit*1024, i+1
	}
	// In whole numbers: the ledger's refusals, which replicas compare, print sizes.
	whole, tenths := n/unit, (n%unit*10+unit/2)/unit
	if tenths == 10 {
		whole, tenths = whole+1, 0
	}
	s := sign + strconv.FormatUint(whole, 10)
	if tenths > 0 {
		s += "." + strconv.FormatUint(tenths, 10)
	}
	return s + units[i]
}

// Labels are facts about a peer, pool or task, e.g. {"region": "eu"}: at most 32,
// keys as in ValidName, values of at most 63 characters.
type Labels map[string]string

// Validate checks the bounds.
func (l Labels) Validate() error {
	if len(l) > 32 {
		return Errorf(Invalid, "%d labels are too many: at most 32", len(l))
	}
	for _, k := range slices.Sorted(maps.Keys(l)) {
		if !ValidName(k) {
			return Errorf(Invalid, "label %q is not a name of lower-case letters, digits, dots and dashes", k)
		}
		if len(l[k]) > 63 {
			return Errorf(Invalid, "label %s has a value of %d characters: at most 63", k, len(l[k]))
		}
		if !Printable(l[k]) {
			return Errorf(Invalid, "label %s has a value with characters that can't be shown: %q", k, l[k])
		}
	}
	return nil
}

// Missing names the first wanted label that l lacks or has with another value; "" if none.
func (l Labels) Missing(want Labels) string {
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if l[k] != want[k] {
			return k + "=" + want[k]
		}
	}
	return ""
}

func (l Labels) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(l)) {
		parts = append(parts, k+"="+l[k])
	}
	return strings.Join(parts, ",")
}
