package pcm

import (
	"cmp"
	"fmt"
	"slices"
)

// Class is a resource template: a name with what stands behind it, which jobs ask
// for and pools offer.
type Class struct {
	Name      string    `json:"name"`
	About     string    `json:"about,omitempty"`
	Resources Resources `json:"resources"`             // of one task
	Asks      Ask       `json:"asks"`                  // as the file has it
	Known     string    `json:"accelerator,omitempty"` // what the accelerator asked for has to be, in full
	Own       bool      `json:"own"`                   // from a file of this peer: others don't know it
}

// Classes are the templates: those that every peer knows, then this peer's own.
func Classes() []Class { return known().classes }

// FindClass looks a class up by name.
func FindClass(name string) (Class, bool) {
	list := Classes()
	i := slices.IndexFunc(list, func(c Class) bool { return c.Name == name })
	if i < 0 {
		return Class{}, false
	}
	return list[i], true
}

func classNames() []string {
	var names []string
	for _, c := range Classes() {
		names = append(names, c.Name)
	}
	return names
}

func (e classEntry) class(c *catalogue, own bool) (Class, error) {
	k := Class{Name: e.Name, About: e.About, Asks: e.Resources, Own: own}
	if !ValidName(e.Name) {
		return k, Errorf(Invalid, "class %.40q is not a name of lower-case letters, digits, dots and dashes", e.Name)
	}
	if len(e.About) > 200 || !Printable(e.About) {
		return k, Errorf(Invalid, "class %s: about is not a line of at most 200 characters", e.Name)
	}
	r, err := e.Resources.shape(Resources{})
	if err != nil {
		return k, Errorf(Invalid, "class %s: %w", e.Name, err)
	}
	if r.CPU == 0 || r.Memory == 0 {
		return k, Errorf(Invalid, "class %s needs cpu and memory", e.Name)
	}
	d, err := e.Resources.demand(c)
	if err != nil {
		return k, Errorf(Invalid, "class %s: %w", e.Name, err)
	}
	if k.Resources = r; d.Accelerator != nil {
		k.Known = d.Accelerator.String()
	}
	return k, nil
}

// Demand is what a step asks of a pool beside an amount of resources.
type Demand struct {
	Accelerator *AcceleratorAsk // nil: any, or none
	Software    []SoftwareAsk
	Bandwidth   BitRate
	Fabric      string
}

// Demand is what the step asks of a pool, its class's demands included; what
// resources says of itself goes before what the class says. A pool that is
// offered as the class (poolClass is the pool's) fulfils the class's demands by that.
func (s Step) Demand(poolClass string) (Demand, error) {
	d, err := s.Resources.demand(known())
	if err != nil || s.Class == "" || s.Class == poolClass {
		return d, err
	}
	c, ok := FindClass(s.Class)
	if !ok {
		return d, nil
	}
	of, err := c.Asks.demand(known())
	if err != nil {
		return d, err
	}
	if d.Accelerator == nil {
		d.Accelerator = of.Accelerator
	}
	d.Software = append(of.Software, d.Software...)
	d.Bandwidth, d.Fabric = cmp.Or(d.Bandwidth, of.Bandwidth), cmp.Or(d.Fabric, of.Fabric)
	return d, nil
}

// MissesSoftware says which software the pool lacks; "" if none.
func (d Demand) MissesSoftware(p Pool) string {
	for _, a := range d.Software {
		if why := a.Misses(p.Software); why != "" {
			return why
		}
	}
	return ""
}

// MissesAccelerator says what the pool's accelerators lack; "" if nothing.
func (d Demand) MissesAccelerator(p Pool) string {
	if d.Accelerator == nil {
		return ""
	}
	return d.Accelerator.Misses(p.Accelerator)
}

// MissesNetwork says what the network among the pool's machines lacks; "" if nothing.
func (d Demand) MissesNetwork(p Pool) string {
	var have Network
	if p.Network != nil {
		have = *p.Network
	}
	switch {
	case d.Bandwidth > 0 && have.Bandwidth == 0:
		return fmt.Sprintf("wants a network of %s, the pool doesn't state its bandwidth", d.Bandwidth)
	case d.Bandwidth > have.Bandwidth:
		return fmt.Sprintf("wants a network of %s, the pool has %s: %s too little", d.Bandwidth, have.Bandwidth, d.Bandwidth-have.Bandwidth)
	case d.Fabric != "" && d.Fabric != have.Fabric:
		return fmt.Sprintf("wants fabric %s, the pool has %s", d.Fabric, cmp.Or(have.Fabric, "stated none"))
	}
	return ""
}

// Misses says what the pool lacks of all that is demanded; "" if nothing.
func (d Demand) Misses(p Pool) string {
	return cmp.Or(d.MissesAccelerator(p), d.MissesSoftware(p), d.MissesNetwork(p))
}
