// Package rules is how providers say on what conditions they sell: CEL over the job,
// the buyer, its standing and the pool. Buyers judge by the rules that travel in
// offers, so those are hostile: all that they cost is bounded, and a rule that can't be
// read or evaluated holds for nobody. It is pure: no I/O, no clock.
package rules

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
)

// Bounds of what rules cost.
const (
	MaxCost   = 5_000     // of one evaluation, in CEL's units
	MaxSpent  = 50_000    // of all rules of one seller for one question to all its pools
	maxReason = 200       // bytes of what a buyer is told
	maxCached = 256 << 10 // bytes of the expressions that are kept compiled
	unlimited = 1<<31 - 1 // tasks
)

// The variables of public rules, of which buyers know the same as sellers; and of private ones.
var (
	publicVars  = []string{"job", "buyer", "standing", "pool", "peer"}
	privateVars = append(slices.Clone(publicVars), "time")
)

func environment(vars []string) *expr.Env {
	env, err := expr.NewBounded(MaxCost, append(slices.Sorted(maps.Keys(constants)), vars...)...)
	if err != nil {
		panic(err)
	}
	return env
}

var (
	publicEnv  = sync.OnceValue(func() *expr.Env { return environment(publicVars) })
	privateEnv = sync.OnceValue(func() *expr.Env { return environment(privateVars) })
)

// Question is what rules are asked.
type Question struct {
	Job, Buyer, Standing, Pool Variable
	Peers                      []Variable // with which data would be exchanged
	Time                       Variable   // nil: only public rules are asked

	ID       pcm.PoolID
	Each     pcm.Resources // of one task
	Whole    pcm.Resources // of the pool
	Slots    int           // of the pool
	Reserved pcm.Resources // by the buyer, in the pool
	Tasks    int           // that the buyer has reserved there
}

// Verdict is the answer of a seller's rules.
type Verdict struct {
	Refused string // why, for the buyer; "": it is not
	Rule    string // which rule refuses, or limits
	Percent int    // of the price
	Room    int    // tasks more at once
	Limit   string // why Room is no more
	Cost    uint64 // of asking
	Fault   error  // of the rule that can't be evaluated, for its owner
}

// Book keeps rules compiled. Its zero value is ready.
type Book struct {
	mu    sync.Mutex
	bytes int
	exprs map[key]*entry
}

type key struct {
	source            string
	private, template bool
}

type entry struct {
	expr     *expr.Expr
	template *expr.Template
	err      error
}

// compiled looks an expression or template up, or compiles it.
func (b *Book) compiled(k key) *entry {
	b.mu.Lock()
	e := b.exprs[k]
	b.mu.Unlock()
	if e != nil {
		return e
	}
	e = &entry{}
	env := publicEnv()
	if k.private {
		env = privateEnv()
	}
	if k.template {
		e.template, e.err = env.Template(k.source)
	} else {
		e.expr, e.err = env.Compile(k.source)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.exprs == nil {
		b.exprs = map[key]*entry{}
	}
	for old := range b.exprs { // any: what is needed again is compiled again
		if b.bytes+len(k.source) <= maxCached {
			break
		}
		b.bytes -= len(old.source) + 64
		delete(b.exprs, old)
	}
	if b.exprs[k] == nil {
		b.bytes += len(k.source) + 64
		b.exprs[k] = e
	}
	return e
}

// asking is one question to one seller's rules.
type asking struct {
	b       *Book
	private bool
	vars    map[string]any
	spent   uint64
}

func (a *asking) bool(source string) (bool, error) {
	e := a.b.compiled(key{source, a.private, false})
	if e.err != nil {
		return false, e.err
	}
	v, cost, err := e.expr.EvalCost(context.Background(), a.vars)
	a.spent += cost
	if err != nil {
		return false, err
	}
	is, ok := v.(bool)
	if !ok {
		return false, pcm.Errorf(pcm.Invalid, "expression %q gives %s, not true or false", source, expr.Kind(v))
	}
	return is, nil
}

// text is what the buyer is told. The owner's own words are cut and made printable.
func (a *asking) text(template string) (string, error) {
	if template == "" {
		return "", nil
	}
	e := a.b.compiled(key{template, a.private, true})
	if e.err != nil {
		return "", e.err
	}
	parts, ok := e.template.Value().([]any)
	if !ok {
		parts = []any{e.template.Value()}
	}
	var text strings.Builder
	for _, p := range parts {
		if x, ok := p.(*expr.Expr); ok {
			v, cost, err := x.EvalCost(context.Background(), a.vars)
			if a.spent += cost; err != nil {
				return "", err
			}
			p = expr.Text(v)
		}
		if a.spent > MaxSpent {
			return "", errSpent
		}
		text.WriteString(fmt.Sprint(p))
		if text.Len() > maxReason {
			break
		}
	}
	return clip(text.String()), nil
}

// errSpent is why rules aren't asked to their end.
var errSpent = pcm.Errorf(pcm.Invalid, "the rules take too much to evaluate")

func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !pcm.Printable(string(r)) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= maxReason {
		return s
	}
	cut := maxReason - len("…")
	for cut > 0 && s[cut]&0xC0 == 0x80 { // not within a character
		cut--
	}
	return s[:cut] + "…"
}

// Judge asks rules in their order. The first that refuses decides; so does the first
// that names a price. private tells whose rules they are: those of this peer, which
// may speak of time, and whose expressions nobody is told.
func (b *Book) Judge(list []pcm.Rule, private bool, q *Question) Verdict {
	v := Verdict{Percent: 100, Room: unlimited}
	a := &asking{b: b, private: private, vars: make(map[string]any, 12)}
	maps.Copy(a.vars, constants)
	a.vars["job"], a.vars["buyer"], a.vars["standing"], a.vars["pool"] = map[string]any(q.Job), map[string]any(q.Buyer), map[string]any(q.Standing), map[string]any(q.Pool)
	if private {
		a.vars["time"] = map[string]any(q.Time)
	}
	priced := false
	for _, r := range list {
		if !r.For(q.ID) {
			continue
		}
		peers := []Variable{nil}
		if r.Data != "" {
			peers = q.Peers
		}
		for _, p := range peers {
			delete(a.vars, "peer")
			if p != nil {
				a.vars["peer"] = map[string]any(p)
			}
			err := a.rule(r, q, &v, &priced)
			if err != nil {
				v.Rule, v.Fault = r.Name, err
				v.Refused = "rule " + r.Name + " can't be judged for this job"
				if !private {
					v.Refused = clip(v.Refused + ": " + err.Error())
				}
			}
			if v.Refused != "" {
				v.Cost = a.spent
				return v
			}
		}
	}
	v.Cost = a.spent
	return v
}

// rule asks one rule.
func (a *asking) rule(r pcm.Rule, q *Question, v *Verdict, priced *bool) error {
	if a.spent > MaxSpent {
		return errSpent
	}
	if r.When != "" {
		if about, err := a.bool(r.When); err != nil || !about {
			return err
		}
	}
	switch {
	case r.Accept != "" || r.Data != "":
		holds, err := a.bool(r.Accept + r.Data)
		if err != nil || holds {
			return err
		}
		why, err := a.text(r.Reason)
		if err != nil {
			return err
		}
		v.Rule, v.Refused = r.Name, "rule "+r.Name
		if why != "" {
			v.Refused += ": " + why
		}
	case r.Percent != nil && !*priced:
		*priced, v.Percent = true, *r.Percent
	case r.Limit != nil:
		most, room := roomIn(*r.Limit, q)
		why, err := a.text(r.Reason)
		if err != nil {
			return err
		}
		if why == "" {
			why = "at most " + most + " of pool " + string(q.ID) + " for one account at once"
		}
		why = "rule " + r.Name + ": " + why
		if room < 0 {
			v.Rule, v.Refused = r.Name, why
		} else if room < v.Room {
			v.Rule, v.Room, v.Limit = r.Name, room, why
		}
	}
	return nil
}

// Kept counts the expressions that are kept compiled.
func (b *Book) Kept() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.exprs)
}
