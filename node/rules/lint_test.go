package rules_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/node/rules"
)

var one = rules.Rule{
	Name: "one", Accept: "job.gpu < 2", Reason: "${job.gpu} are too many",
	Examples: []rules.Example{{Expect: "accept"}, {Given: rules.Facts{Job: rules.Job{GPU: 2}}, Expect: "refuse", Reason: "2 are too many"}},
}

func with(change func(*rules.Rule)) rules.Rule {
	r := one
	r.Examples = slices.Clone(one.Examples)
	change(&r)
	return r
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name string
		list []rules.Rule
		want []string // "field: part of the message", warnings with a ?
	}{
		{"good", []rules.Rule{one}, nil},
		{"name", []rules.Rule{with(func(r *rules.Rule) { r.Name = "My rule" })}, []string{"rules[0]: not a name"}},
		{"twice", []rules.Rule{one, one}, []string{"rules[1].name: rules[0] is called one too"}},
		{"two kinds", []rules.Rule{with(func(r *rules.Rule) { r.Price = "80%" })}, []string{"rules[0]: says 2 things"}},
		{"nothing", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "" })}, []string{"rules[0]: says 0 things"}},
		{"syntax", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "job.gpu <" })}, []string{"rules[0].accept: at 1:1"}},
		{"variable", []rules.Rule{with(func(r *rules.Rule) { r.When = "jobs.gpu > 1" })}, []string{"rules[0].when: did you mean job?"}},
		{"field", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "job.gpus < 2" })}, []string{"rules[0].accept: job has no field gpus; did you mean gpu?"}},
		{"field in a reason", []rules.Rule{with(func(r *rules.Rule) { r.Reason = "${buyer.acount}" })}, []string{"rules[0].reason: did you mean account?"}},
		{"time, public", []rules.Rule{with(func(r *rules.Rule) { r.Public, r.When = true, "time.hour > 8" })}, []string{"rules[0].when: only private rules may speak of time"}},
		{"peer without data", []rules.Rule{with(func(r *rules.Rule) { r.When = "peer.name == 'x'" })}, []string{"rules[0].when: peer is known only to rules that say data"}},
		{"always", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "1 < 2"; r.Examples = r.Examples[:1] })}, []string{"?rules[0].accept: is always true"}},
		{"no reason", []rules.Rule{with(func(r *rules.Rule) { r.Reason = ""; r.Examples = r.Examples[:1] })}, []string{"?rules[0]: no reason"}},
		{"no examples", []rules.Rule{with(func(r *rules.Rule) { r.Examples = nil })}, []string{"?rules[0]: no examples"}},
		{"no condition", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "job.cpu + 1" })}, []string{`rules[0].accept: "job.cpu + 1" gives a number`}},
		{"no condition, a text", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "job.name" })}, []string{`rules[0].accept: gives a text`}},
		{"no condition, by its type", []rules.Rule{with(func(r *rules.Rule) { r.Accept = "size(job.inputs)" })}, []string{`rules[0].accept: gives a number`}},
		{"no condition, when", []rules.Rule{with(func(r *rules.Rule) { r.When = "job.cpu" })}, []string{`rules[0].when: gives a number`}},
		{"no condition, private", []rules.Rule{with(func(r *rules.Rule) { r.When = "time.hour" })}, []string{`rules[0].when: gives a number`}},
		{"no condition, data", []rules.Rule{{Name: "d", Data: "peer.labels", Reason: "no"}}, []string{`rules[0].data: gives a map`, "?rules[0]: no examples"}},
		{"no condition where it counts", []rules.Rule{with(func(r *rules.Rule) { r.When = "job.gpu > 0 ? job.gpu : true" })}, []string{`rules[0].when: gives a number`}},
		{"a condition that is none yet", []rules.Rule{with(func(r *rules.Rule) { r.When = "job.module || job.count >= 0" })}, nil},
		{"label", []rules.Rule{with(func(r *rules.Rule) { r.When = "job.labels.region == 'eu'"; r.Examples = nil })}, []string{"?rules[0].when: has(job.labels.region)", "?rules[0]: no examples"}},
		{"label, tested", []rules.Rule{with(func(r *rules.Rule) { r.When = "!has(job.labels.region) || job.labels.region == 'eu'" })}, nil},
		{"example fails", []rules.Rule{with(func(r *rules.Rule) { r.Examples[0].Expect = "refuse" })}, []string{"rules[0].examples[0]: expects refuse, the rule comes to accept"}},
		{"example, other reason", []rules.Rule{with(func(r *rules.Rule) { r.Examples[1].Reason = "three" })}, []string{`rules[0].examples[1]: expects the reason "three"`}},
		{"example, no such end", []rules.Rule{with(func(r *rules.Rule) { r.Examples[0].Expect = "maybe" })}, []string{"rules[0].examples[0].expect: accept, refuse"}},
		{"price", []rules.Rule{{Name: "p", Price: "cheap", Examples: one.Examples}}, []string{"rules[0].price: like 80%"}},
		{"price, its example", []rules.Rule{{Name: "p", When: "buyer.own", Price: "80%", Examples: []rules.Example{{Expect: "accept"}, {Given: rules.Facts{Buyer: rules.Buyer{Own: true}}, Expect: "80%"}}}}, nil},
		{"limit", []rules.Rule{{Name: "l", Limit: &rules.Limit{Share: "half"}}}, []string{"rules[0].limit.share: like 80%"}},
		{"limit of none", []rules.Rule{{Name: "l", Limit: &rules.Limit{}}}, []string{"rules[0]: limit that is none"}},
		{"limit, its examples", []rules.Rule{{Name: "l", Limit: &rules.Limit{Tasks: 2}, Examples: []rules.Example{
			{Given: rules.Facts{Standing: rules.Standing{Tasks: 1}}, Expect: "accept"}, {Given: rules.Facts{Standing: rules.Standing{Tasks: 2}}, Expect: "full", Reason: "2 tasks"},
		}}}, nil},
		{"too long for the offer", []rules.Rule{with(func(r *rules.Rule) { r.Public, r.Reason = true, strings.Repeat("x", 3000); r.Examples = r.Examples[:1] })}, []string{"rules: over the bound of 2048"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			set, found := rules.Check(tt.list)
			var got []string
			faults := false
			for _, f := range found {
				mark := ""
				if f.Warning {
					mark = "?"
				}
				faults = faults || !f.Warning
				got = append(got, mark+f.Field+": "+f.Message)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("found %q, want %q", got, tt.want)
			}
			for i, want := range tt.want {
				field, text, _ := strings.Cut(want, ": ")
				if !strings.HasPrefix(got[i], field+": ") || !strings.Contains(got[i], text) {
					t.Errorf("found %q, want %q", got[i], want)
				}
			}
			if faults != (len(set.Public)+len(set.Private) == 0) || faults != (rules.Faults(found) != nil) {
				t.Errorf("faults: %v, the set is %+v", faults, set)
			}
		})
	}
}

// What travels in the offer: what is public, and what buyers have to know.
func TestPublic(t *testing.T) {
	public := with(func(r *rules.Rule) { r.Name, r.Public = "public", true })
	set, found := rules.Check([]rules.Rule{one, public, {Name: "price", Price: "120%"}, {Name: "limit", Limit: &rules.Limit{Tasks: 1}}})
	if rules.Faults(found) != nil || len(set.Private) != 1 || len(set.Public) != 3 || set.Private[0].Name != "one" {
		t.Fatalf("%+v, %+v", set, found)
	}
	if got := set.Percents("any"); !slices.Equal(got, []int{120}) {
		t.Errorf("prices: %v", got)
	}
}

// Everything that expressions can speak of is described.
func TestWords(t *testing.T) {
	for _, w := range rules.Words() {
		if w.Name == "" || w.Type == "" {
			t.Errorf("%+v", w)
		}
	}
}

func TestWordsHaveMeanings(t *testing.T) {
	for _, w := range rules.Words() {
		if w.Meaning == "" || strings.HasPrefix(w.Meaning, "(") {
			t.Errorf("%s has no meaning: %q", w.Name, w.Meaning)
		}
	}
}
