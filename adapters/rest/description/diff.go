package description

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/jointcloud/pcm/adapters"
)

// Difference is a thing that two back ends do not have alike.
type Difference struct {
	Of   string `json:"of"` // login, feature, capability, state, class, region, unit, limit, call, data
	Name string `json:"name"`
	A    string `json:"a"` // "": it doesn't have it
	B    string `json:"b"`
}

// Diff says in what two back ends differ, as far as their descriptions tell.
func Diff(a, b *Description) (all []Difference) {
	pairs := func(of string, x, y map[string]string) {
		names := sorted(x)
		for _, n := range sorted(y) {
			if _, ok := x[n]; !ok {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		for _, n := range names {
			if strings.HasPrefix(x[n], lacks) && strings.HasPrefix(y[n], lacks) {
				continue // both do, whatever the reasons
			}
			if x[n] != y[n] {
				all = append(all, Difference{of, n, x[n], y[n]})
			}
		}
	}
	pairs("login", one("kind", cmp.Or(a.Login.Kind, "none")), one("kind", cmp.Or(b.Login.Kind, "none")))
	pairs("sandbox", one("kind", a.Sandbox), one("kind", b.Sandbox))
	pairs("feature", a.features(), b.features())
	pairs("capability", a.capabilities(), b.capabilities())
	pairs("call", a.calls(), b.calls())
	pairs("data", a.data(), b.data())
	pairs("state", a.means(), b.means())
	x, y := a.bridge(), b.bridge()
	pairs("class", x.Classes, y.Classes)
	pairs("region", turned(x.Regions), turned(y.Regions))
	pairs("unit", turned(x.Units), turned(y.Units))
	pairs("limit", a.limits(), b.limits())
	return all
}

const lacks = "no: "

func one(name, value string) map[string]string { return map[string]string{name: value} }

func (d *Description) features() map[string]string {
	all := map[string]string{"command": "yes"}
	for _, f := range d.Features {
		all[f] = "yes"
	}
	if d.Suspend != nil {
		all["suspend"] = "yes"
	}
	return all
}

// capabilities are all that a described back end is tested for, with the reason of those it lacks.
func (d *Description) capabilities() map[string]string {
	all := map[string]string{}
	for _, c := range adapters.Capabilities {
		all[c] = "yes"
	}
	if d.Create.Many == nil {
		all["arrays"] = lacks + "each task is created by itself"
	}
	for c, why := range d.Lacks {
		all[c] = lacks + why
	}
	return all
}

func (d *Description) calls() map[string]string {
	all := map[string]string{"create": d.arrays()}
	for name, c := range map[string]*Call{"stop": d.Stop, "kill": d.Kill, "suspend": d.Suspend, "resume": d.Resume, "delete": d.Delete} {
		if c != nil {
			all[name] = "yes"
		}
	}
	if d.Find.List != nil {
		all["find"] = "yes"
	}
	switch {
	case d.Watch.List != nil && d.Watch.One != nil:
		all["watch"] = "all at once, and each"
	case d.Watch.List != nil:
		all["watch"] = "all at once"
	default:
		all["watch"] = "each"
	}
	for _, l := range d.Logs {
		all["log "+l.Stream] = cmp.Or(l.Follow, "whole")
	}
	return all
}

func (d *Description) data() map[string]string {
	if d.Data == nil {
		return map[string]string{}
	}
	return map[string]string{"store": d.Data.Store, "pack": cmp.Or(d.Data.Pack, "files")}
}

// means says, for each state and outcome of ours, by which words the back end has it.
func (d *Description) means() map[string]string {
	words := map[string][]string{}
	for _, w := range sorted(d.States) {
		s := d.States[w]
		words[strings.TrimSpace(s.State+" "+s.Outcome)] = append(words[strings.TrimSpace(s.State+" "+s.Outcome)], w)
	}
	all := map[string]string{}
	for k, w := range words {
		all[k] = strings.Join(w, ", ")
	}
	return all
}

func (d *Description) bridge() Bridge {
	if d.Bridge == nil {
		return Bridge{}
	}
	return *d.Bridge
}

// turned has ours first.
func turned(m map[string]string) map[string]string {
	all := map[string]string{}
	for theirs, ours := range m {
		all[ours] = theirs
	}
	return all
}

func (d *Description) limits() map[string]string {
	all := map[string]string{"rate": fmt.Sprintf("%g/s", cmp.Or(d.Limits.Rate, 10))}
	if d.Limits.MaxJobs > 0 {
		all["jobs"] = fmt.Sprint(d.Limits.MaxJobs)
	}
	return all
}
