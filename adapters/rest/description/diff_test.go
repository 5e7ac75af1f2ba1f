package description

import (
	"slices"
	"strings"
	"testing"
)

func TestDiff(t *testing.T) {
	a, problems := Parse([]byte(small))
	if a == nil {
		t.Fatal(problems)
	}
	if d := Diff(a, a); len(d) != 0 {
		t.Errorf("a description differs from itself: %v", d)
	}
	b, problems := Parse([]byte(strings.NewReplacer(
		"about: a test\n", "about: a test\nfeatures: [image]\nlacks: {exec: it has no such call}\nlimits: {rate: 2}\nbridge: {regions: {cn-north-4: north}}\n",
		"done: {", "finished: {", "stop: {", "kill: {",
	).Replace(small)))
	if b == nil {
		t.Fatal(problems)
	}
	for _, want := range []Difference{
		{"feature", "image", "", "yes"}, {"capability", "exec", "yes", "no: it has no such call"}, {"limit", "rate", "10/s", "2/s"},
		{"region", "north", "", "cn-north-4"}, {"state", "ended ok", "done", "finished"}, {"call", "stop", "yes", ""}, {"call", "kill", "", "yes"},
	} {
		if !slices.Contains(Diff(a, b), want) {
			t.Errorf("it does not say %+v", want)
		}
	}
}
