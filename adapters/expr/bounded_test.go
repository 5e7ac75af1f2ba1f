package expr_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/expr"
)

func TestBounded(t *testing.T) {
	e, err := expr.NewBounded(500, "job")
	if err != nil {
		t.Fatal(err)
	}
	x, err := e.Compile(`job.labels.exists(l, l == "x")`)
	if err != nil {
		t.Fatal(err)
	}
	few := map[string]any{"job": map[string]any{"labels": []string{"x"}}}
	if v, cost, err := x.EvalCost(t.Context(), few); v != true || err != nil || cost == 0 || cost > 50 {
		t.Errorf("%v, %d, %v", v, cost, err)
	}
	many := map[string]any{"job": map[string]any{"labels": make([]string, 1000)}}
	if _, cost, err := x.EvalCost(t.Context(), many); err == nil || !strings.Contains(err.Error(), "cost") || cost != 500 {
		t.Errorf("%d, %v", cost, err)
	}
	if _, err := e.Compile(`job.name.replace("a", "b")`); err == nil {
		t.Error("a stranger's expression may call our functions")
	}
}

func TestUses(t *testing.T) {
	for source, want := range map[string]string{
		`job.cpu > 2 && buyer.labels.region == "eu"`:               "[{[job cpu] false} {[buyer labels region] false}]",
		`has(job.labels.x) || job.?labels.?y.orValue("") == job.z`: "[{[job labels x] true} {[job labels y] true} {[job z] false}]",
		`job.inputs.all(i, i.target == buyer["a"].b)`:              "[{[job inputs] false} {[buyer] false}]",
		`1 > 2`: "[]",
	} {
		e, err := expr.New("job", "buyer")
		if err != nil {
			t.Fatal(err)
		}
		x, err := e.Compile(source)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(x.Uses()); got != want {
			t.Errorf("%s: %s, want %s", source, got, want)
		}
	}
}
