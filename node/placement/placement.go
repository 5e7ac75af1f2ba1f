// Package placement decides where tasks go: filters, then a strategy's score,
// over what is known of the sites. It is pure: no I/O, no clock, no state.
package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// Request is what one step asks for.
type Request struct {
	Step     pcm.Step
	Each     pcm.Resources // shape of one task
	Limit    time.Duration // of one attempt
	Buyer    pcm.AccountID
	Driver   pcm.AccountID // account of the peer that places
	Unit     string        // in which the job pays
	Strategy string
	Judge    Judge // of the rules that sites state; nil: they are not asked

	demand, own pcm.Demand // of the step, with and without what its class demands
}

// demands is what the site's pool has to meet: one that is offered as the step's
// class meets the class's demands by that.
func (r Request) demands(s Site) pcm.Demand {
	if r.Step.Class != "" && r.Step.Class == s.Pool.Class {
		return r.own
	}
	return r.demand
}

// Site is one pool of one peer, and what is known of it.
type Site struct {
	Peer    pcm.PeerID
	Name    string // of the peer
	Account pcm.AccountID
	Cell    pcm.CellID
	Labels  pcm.Labels // of the peer; its pools add to them
	Offer   uint64     // number
	Pool    pcm.Pool
	Free    pcm.Resources // not reserved now
	Slots   int           // free now
	Silent  time.Duration // since the seller was last known alive
	Avoid   string        // why it should not be asked just now, e.g. "rejected 3 s ago: …"
	Rules   []pcm.Rule    // of the seller, as far as they are public
	Credit  pcm.Micro     // the most that one other account may owe the seller

	Away bool // in another cell than the job's: preferred to none that is as good

	Reserved pcm.Resources // by the buyer, beside what the ledger shows yet
	Tasks    int           // at once, of those
}

// Judge asks a site's rules for a request that passed the filters.
type Judge interface {
	Judge(r Request, s Site) Ruling
}

// Ruling is what a seller's rules say.
type Ruling struct {
	Refused string // why; "": it is not
	Price   pcm.Price
	Room    int    // tasks more at once
	Limit   string // why Room is no more
}

// SilentFor is how long a seller may be silent and still be asked: several idle renewals.
const SilentFor = 50 * time.Second

// Candidate is a site with its verdict.
type Candidate struct {
	Site
	Filter string  // which filter excluded it; "" if none
	Reason string  // and by how much, for a person
	Room   int     // tasks that may run there at once now; 0 for a site that is full
	Score  float64 // higher is better; comparable within one ranking only
	Cost   pcm.Micro
}

// OK tells whether the site fits, be it full or not.
func (c Candidate) OK() bool { return c.Filter == "" }

// Filter tests one condition. It returns why the site is excluded, "" if it is not.
type Filter struct {
	Name string
	Test func(r Request, s Site) string
}

// Filters are applied in this order; the first that excludes a site is reported.
var Filters = []Filter{
	{"adapter", func(r Request, s Site) string {
		switch {
		case r.Step.Adapter != "" && s.Pool.Adapter != r.Step.Adapter:
			return fmt.Sprintf("wants adapter %s, the pool's is %s", r.Step.Adapter, s.Pool.Adapter)
		case r.Step.Module != "" && !s.Pool.Has(pcm.FeatureModule):
			return fmt.Sprintf("a module runs on adapter wasm, the pool's is %s", s.Pool.Adapter)
		case r.Step.Module == "" && s.Pool.Has(pcm.FeatureModule):
			return "a command can't run on adapter wasm"
		}
		return ""
	}},
	{"features", func(r Request, s Site) string {
		for _, f := range r.Step.Wants() {
			if !s.Pool.Has(f) {
				return fmt.Sprintf("wants a pool that can do %s, this one can do %s", f, cmp.Or(joined(s.Pool.Features), "nothing of that kind"))
			}
		}
		return ""
	}},
	{"files", func(r Request, s Site) string {
		if in, out := len(r.Step.Inputs), len(r.Step.Outputs); s.Pool.NoFiles && in+out > 0 {
			return fmt.Sprintf("a task has %d inputs and %d outputs, the pool has no way to bring files to tasks, or from them", in, out)
		}
		return ""
	}},
	{"class", func(r Request, s Site) string {
		c, known := pcm.FindClass(r.Step.Class)
		switch {
		case r.Step.Class == "" || s.Pool.Class == r.Step.Class:
			return ""
		case known && c.Resources.Within(s.Pool.Most()):
			return ""
		case !known && r.Step.Resources.CPU != "" && r.Step.Resources.Memory != "":
			return "" // a class of the buyer's own, spelled out in the spec
		case !known:
			return fmt.Sprintf("class %s is not known", r.Step.Class)
		}
		return fmt.Sprintf("class %s is %s, %s", r.Step.Class, c.Resources, whole(s.Pool))
	}},
	{"labels", func(r Request, s Site) string {
		have := maps.Clone(s.Labels)
		if have == nil {
			have = pcm.Labels{}
		}
		maps.Copy(have, s.Pool.Labels)
		if missing := have.Missing(r.Step.Labels); missing != "" {
			return fmt.Sprintf("wants label %s, has %s", missing, cmp.Or(have.String(), "none"))
		}
		return ""
	}},
	{"accelerator", func(r Request, s Site) string { return r.demands(s).MissesAccelerator(s.Pool) }},
	{"software", func(r Request, s Site) string { return r.demands(s).MissesSoftware(s.Pool) }},
	{"network", func(r Request, s Site) string { return r.demands(s).MissesNetwork(s.Pool) }},
	{"disk", func(r Request, s Site) string {
		switch have := s.Pool.Most().Disk; {
		case r.Each.Disk <= have:
			return ""
		case have == 0:
			return fmt.Sprintf("a task needs %s of disk, the pool doesn't state its disk", r.Each.Disk)
		case have < s.Pool.Capacity.Disk:
			return fmt.Sprintf("a task needs %s of disk, one of this pool has at most %s: %s too little", r.Each.Disk, have, r.Each.Disk-have)
		default:
			return fmt.Sprintf("a task needs %s of disk, the whole pool has %s: %s too little", r.Each.Disk, have, r.Each.Disk-have)
		}
	}},
	{"size", func(r Request, s Site) string {
		if r.Each.Within(s.Pool.Most()) && s.Pool.Slots > 0 {
			return ""
		}
		return fmt.Sprintf("a task needs %s, %s in %d slots", r.Each, whole(s.Pool), s.Pool.Slots)
	}},
	{"time", func(r Request, s Site) string {
		if s.Pool.MaxTime > 0 && r.Limit.Milliseconds() > s.Pool.MaxTime {
			return fmt.Sprintf("time limit %s is over the pool's longest, %s", r.Limit, time.Duration(s.Pool.MaxTime)*time.Millisecond)
		}
		return ""
	}},
	{"unit", func(r Request, s Site) string {
		if s.Pool.Price.Unit != r.Unit {
			return fmt.Sprintf("the job pays in %s, the pool asks for %s", r.Unit, s.Pool.Price.Unit)
		}
		return ""
	}},
	{"own account", func(r Request, s Site) string {
		if s.Pool.OwnOnly && s.Account != r.Buyer {
			return fmt.Sprintf("sold to its own account only (sandbox: %s)", cmp.Or(s.Pool.Sandbox, "none"))
		}
		return ""
	}},
	{"self-dealing", func(r Request, s Site) string {
		if r.Driver != r.Buyer && s.Account == r.Driver {
			return "the driver acts for another account and may not sell to it itself"
		}
		return ""
	}},
	{"alive", func(r Request, s Site) string {
		if s.Silent > SilentFor {
			return fmt.Sprintf("not heard of for %s", s.Silent.Round(time.Second))
		}
		return ""
	}},
	{"recent", func(r Request, s Site) string { return s.Avoid }},
}

// whole says how much a pool has: for one task, where that is less, and in all.
func whole(p pcm.Pool) string {
	if most := p.Most(); most != p.Capacity {
		return fmt.Sprintf("one of this pool has at most %s; the whole pool has %s", most, p.Capacity)
	}
	return fmt.Sprintf("the whole pool has %s", p.Capacity)
}

func joined(features []pcm.Feature) string {
	names := make([]string, len(features))
	for i, f := range features {
		names[i] = string(f)
	}
	return strings.Join(names, ", ")
}

// Strategy scores the sites that passed the filters. Higher is better.
type Strategy struct {
	Name  string
	Score func(r Request, c Candidate) float64
	Even  bool // share tasks evenly among the sites that fit, instead of filling the best first
}

// Strategies by name.
var Strategies = []Strategy{
	{Name: "cheapest", Score: func(_ Request, c Candidate) float64 { return -float64(c.Cost) }},
	{Name: "spread", Even: true, Score: func(r Request, c Candidate) float64 { // emptiest first
		whole := c.Pool.Capacity.Fits(r.Each, c.Pool.Slots)
		return float64(c.Room) / float64(max(1, whole))
	}},
}

// ByPlugin tells which plug-in supplies the strategy, if it is one of a plug-in's: "plugin.NAME".
func ByPlugin(strategy string) (plugin string, ok bool) {
	plugin, ok = strings.CutPrefix(strategy, "plugin.")
	return plugin, ok && plugin != ""
}

// FindStrategy looks a strategy up by name. That of a plug-in scores by cost, until the plug-in has been asked.
func FindStrategy(name string) (Strategy, error) {
	if _, ok := ByPlugin(name); ok {
		s := Strategies[0]
		s.Name = name
		return s, nil
	}
	var names []string
	for _, s := range Strategies {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Strategy{}, pcm.Errorf(pcm.Invalid, "no strategy is named %q; known: %s", name, strings.Join(names, ", "))
}

// Rank judges every site: those that fit come first, best first; then those that
// are excluded, with reasons. The order is total and does not depend on that of the sites.
func Rank(r Request, sites []Site) ([]Candidate, error) {
	strategy, err := FindStrategy(cmp.Or(r.Strategy, "cheapest"))
	if err != nil {
		return nil, err
	}
	if r.demand, err = r.Step.Demand(""); err != nil {
		return nil, err
	}
	if r.own, err = r.Step.Demand(r.Step.Class); err != nil {
		return nil, err
	}
	list := make([]Candidate, 0, len(sites))
	for _, s := range sites {
		c := Candidate{Site: s, Cost: s.Pool.Price.Cost(r.Each, r.Limit)}
		for _, f := range Filters {
			if why := f.Test(r, s); why != "" {
				c.Filter, c.Reason = f.Name, why
				break
			}
		}
		limit := ""
		if c.OK() && len(s.Rules) > 0 && r.Judge != nil {
			ruling := r.Judge.Judge(r, s)
			if ruling.Refused != "" {
				c.Filter, c.Reason = "rules", ruling.Refused
			} else {
				c.Pool.Price, c.Slots = ruling.Price, min(c.Slots, ruling.Room)
				c.Cost = ruling.Price.Cost(r.Each, r.Limit)
			}
			if s.Free.Fits(r.Each, s.Slots) > ruling.Room {
				limit = ruling.Limit
			}
		}
		if c.OK() {
			c.Room = s.Free.Fits(r.Each, c.Slots)
			c.Score = strategy.Score(r, c)
			if c.Room == 0 && limit != "" {
				c.Reason = "full: " + limit
			} else if c.Room == 0 {
				c.Reason = fmt.Sprintf("full: %s and %d slots are free of %s and %d", s.Free, s.Slots, s.Pool.Capacity, s.Pool.Slots)
			}
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Candidate) int {
		if a.OK() != b.OK() {
			if a.OK() {
				return -1
			}
			return 1
		}
		if a.Score == b.Score && a.Away != b.Away {
			if b.Away {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Pool.ID, b.Pool.ID))
	})
	return list, nil
}

// Portion is a number of tasks for one candidate.
type Portion struct {
	Candidate
	Tasks int // in the trade
	Width int // that run at once
}

// Deal shares n tasks among ranked candidates. A site gets as many as run there
// at once and, of a long array, some more to work through without asking again;
// what is left stays for the next round, so that a slow site can't hold up the
// rest. most bounds the tasks of one portion by site; nil for no bound.
func (st Strategy) Deal(n int, ranked []Candidate, most func(Candidate) int) []Portion {
	total, sites := 0, 0
	for _, c := range ranked {
		if c.Room > 0 {
			total += c.Room
			sites++
		}
	}
	var portions []Portion
	left := n
	for _, c := range ranked {
		if c.Room == 0 || left == 0 {
			continue
		}
		width := min(c.Room, left)
		if st.Even {
			width = min(width, (left+sites-1)/sites)
		}
		tasks := width
		if n > total { // a long array: half of the fair share, at least one round
			tasks = min(left, max(width, n*c.Room/total/2), 8*width)
		}
		tasks = min(tasks, pcm.MaxBatch)
		if most != nil {
			tasks = min(tasks, max(1, most(c)))
		}
		portions = append(portions, Portion{Candidate: c, Tasks: tasks, Width: min(width, tasks)})
		left -= tasks
		sites--
	}
	return portions
}

// Why sums up why tasks wait, for a person.
func Why(ranked []Candidate) string {
	if len(ranked) == 0 {
		return "nobody offers anything: no other peer sells here yet"
	}
	if ranked[0].OK() {
		return fmt.Sprintf("every site that fits is full (%d of %d sites fit)", count(ranked), len(ranked))
	}
	var parts []string
	for i, c := range ranked {
		if i == 3 {
			parts = append(parts, fmt.Sprintf("and %d more", len(ranked)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s/%s: %s", cmp.Or(c.Name, pcm.Short(c.Peer)), c.Pool.ID, c.Reason))
	}
	return "no site fits: " + strings.Join(parts, "; ")
}

func count(ranked []Candidate) int {
	n := 0
	for _, c := range ranked {
		if c.OK() {
			n++
		}
	}
	return n
}
