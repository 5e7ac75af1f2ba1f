package pcm

import (
	"fmt"
	"slices"
	"strings"
)

// AcceleratorAsk is what a task needs its accelerators to be; the zero value takes any.
type AcceleratorAsk struct {
	Vendor, Model, Slice string
	Memory               Bytes  // of one, at least
	Rates                []Need // of one, at least
}

// Need is a least speed at one precision.
type Need struct {
	Precision Precision
	Rate      Rate
}

var acceleratorFields = append([]string{"vendor", "model", "slice", "memory"}, listed(Precisions)...)

func listed[T ~string](list []T) []string {
	var words []string
	for _, w := range list {
		words = append(words, string(w))
	}
	return words
}

// ParseAccelerator reads what a person asks for: a name or model that is known
// ("a100.80g", "a100"), and conditions, separated by commas:
//
//	vendor=huawei, memory >= 32 GiB
//	fp16 >= 300 TOPS
//	a100, slice=3g.20gb
//
// Vendor, model and slice are compared with =, amounts with >= (or ≥). The error
// says which part is wrong.
func ParseAccelerator(s string) (AcceleratorAsk, error) { return known().parseAccelerator(s) }

func (c *catalogue) parseAccelerator(s string) (AcceleratorAsk, error) {
	var ask AcceleratorAsk
	if len(s) > 256 {
		return ask, Errorf(Invalid, "%d characters are too many: at most 256", len(s))
	}
	seen := map[string]bool{}
	for i, part := range strings.Split(s, ",") {
		field, err := ask.read(c, strings.TrimSpace(part), seen)
		if err == nil && seen[field] {
			err = Errorf(Invalid, "%s stands twice", field)
		}
		if err != nil {
			if strings.Contains(s, ",") {
				return AcceleratorAsk{}, Errorf(Invalid, "condition %d: %w", i+1, err)
			}
			return AcceleratorAsk{}, err
		}
		seen[field] = true
	}
	return ask, nil
}

// read takes one condition and tells which field it is about.
func (a *AcceleratorAsk) read(c *catalogue, part string, seen map[string]bool) (field string, err error) {
	at := strings.IndexAny(part, "=<>≥!")
	if part == "" {
		return "", Errorf(Invalid, "nothing stands here: name an accelerator like a100.80g, or a condition like fp16 >= 300 TOPS")
	}
	if at < 0 {
		return "model", a.named(c, part)
	}
	field = strings.ToLower(strings.TrimSpace(part[:at]))
	rest := part[at:]
	op := ""
	for _, o := range []string{">=", "≥", "==", "=", "<=", "<", ">", "!="} {
		if v, ok := strings.CutPrefix(rest, o); ok {
			op, rest = o, strings.TrimSpace(v)
			break
		}
	}
	if !slices.Contains(acceleratorFields, field) {
		return field, Errorf(Invalid, "%q can't be asked for%s", field, meant(field, acceleratorFields))
	}
	text := field == "vendor" || field == "model" || field == "slice"
	switch {
	case text && op != "=":
		return field, Errorf(Invalid, "%s is compared with =, not with %s; write %s=NAME", field, op, field)
	case !text && op != ">=" && op != "≥":
		return field, Errorf(Invalid, "%s is compared with >=, not with %s: what is more will do", field, op)
	case rest == "":
		return field, Errorf(Invalid, "%s %s has no value", field, op)
	}
	switch field {
	case "vendor", "model", "slice":
		rest = strings.ToLower(rest)
		if !ValidName(rest) {
			return field, Errorf(Invalid, "%s %.40q is not a name of letters, digits, dots and dashes", field, rest)
		}
		*map[string]*string{"vendor": &a.Vendor, "model": &a.Model, "slice": &a.Slice}[field] = rest
	case "memory":
		m, err := ParseBytes(rest)
		if err != nil {
			return field, err
		}
		if seen["memory"] {
			return field, Errorf(Invalid, "memory stands twice")
		}
		a.Memory = max(a.Memory, m)
	default:
		r, err := ParseRate(rest)
		if err != nil {
			return field, err
		}
		a.Rates = append(a.Rates, Need{Precision(field), r})
	}
	return field, nil
}

// named takes the name of an accelerator, or of a model, that is known.
func (a *AcceleratorAsk) named(c *catalogue, name string) error {
	name = strings.ToLower(name)
	if k, ok := c.accelerator(name); ok {
		a.Vendor, a.Model, a.Memory = k.Vendor, k.Model, max(a.Memory, k.Memory)
		return nil
	}
	var names []string
	for _, k := range c.accelerators {
		if k.Model == name {
			a.Vendor, a.Model = k.Vendor, k.Model
			return nil
		}
		if k.Vendor == name {
			return Errorf(Invalid, "%s is a vendor: write vendor=%s", name, name)
		}
		names = append(names, k.Name)
		if !slices.Contains(names, k.Model) {
			names = append(names, k.Model)
		}
	}
	hint := "; 'pcm class list' shows what is known, and model=NAME asks for any other"
	if near := Nearest(strings.TrimPrefix(name, "gpu."), names); near != "" {
		hint = "; did you mean " + near + "? Write model=NAME for one that isn't known here"
	}
	return Errorf(Invalid, "no accelerator is called %.40q%s", name, hint)
}

// meant names the nearest of what is known, or all of it.
func meant(word string, known []string) string {
	if near := Nearest(word, known); near != "" {
		return "; did you mean " + near + "?"
	}
	return "; known: " + strings.Join(known, ", ")
}

// String is the ask in conditions that every peer understands, whatever names it knows.
func (a AcceleratorAsk) String() string {
	var parts []string
	for _, w := range []struct{ field, value string }{{"vendor", a.Vendor}, {"model", a.Model}, {"slice", a.Slice}} {
		if w.value != "" {
			parts = append(parts, w.field+"="+w.value)
		}
	}
	if a.Memory > 0 {
		parts = append(parts, "memory >= "+exactBytes(a.Memory))
	}
	for _, n := range a.Rates {
		parts = append(parts, fmt.Sprintf("%s >= %s TOPS", n.Precision, n.Rate))
	}
	return strings.Join(parts, ", ")
}

// exactBytes writes a size without rounding it.
func exactBytes(b Bytes) string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{1 << 40, "TiB"}, {1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if b%u.size == 0 {
			return fmt.Sprintf("%d%s", b/u.size, u.name)
		}
	}
	return fmt.Sprintf("%dB", b)
}

// Misses says what a pool's accelerators lack, and by how much; "" if they will do.
func (a AcceleratorAsk) Misses(have *Accelerator) string {
	if have == nil {
		return fmt.Sprintf("wants an accelerator with %s, the pool states none", a)
	}
	switch {
	case a.Vendor != "" && a.Vendor != have.Vendor:
		return fmt.Sprintf("wants an accelerator of %s, the pool has %s", a.wanted(), have)
	case a.Model != "" && a.Model != have.Model:
		return fmt.Sprintf("wants accelerator %s, the pool has %s", a.wanted(), have)
	case a.Slice != have.Slice && (a.Slice != "" || a.Model != ""):
		if a.Slice == "" {
			return fmt.Sprintf("wants a whole %s, the pool has slices %s of it: ask for slice=%s if one will do", a.Model, have.Slice, have.Slice)
		}
		return fmt.Sprintf("wants slice %s, the pool has %s", a.Slice, have)
	case a.Memory > have.Memory && have.Memory == 0:
		return fmt.Sprintf("wants accelerators with %s, the pool doesn't state the memory of its %s", a.Memory, have.Name())
	case a.Memory > have.Memory:
		return fmt.Sprintf("wants accelerators with %s, one %s has %s: %s too little", a.Memory, have.Name(), have.Memory, a.Memory-have.Memory)
	}
	for _, n := range a.Rates {
		switch r, ok := have.TOPS[n.Precision]; {
		case !ok:
			return fmt.Sprintf("wants %s TOPS at %s, the pool doesn't state what its %s can do there", n.Rate, n.Precision, have.Name())
		case r < n.Rate:
			return fmt.Sprintf("wants %s TOPS at %s, one %s does %s: %s too little", n.Rate, n.Precision, have.Name(), r, n.Rate-r)
		}
	}
	return ""
}

// wanted names what is wanted as shortly as it can be.
func (a AcceleratorAsk) wanted() string {
	if a.Model == "" {
		return a.Vendor
	}
	return Accelerator{Vendor: a.Vendor, Model: a.Model, Slice: a.Slice, Memory: a.Memory}.Name()
}
