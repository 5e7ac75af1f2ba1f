package main

import (
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func TestChangedRules(t *testing.T) {
	rule := func(name, accept string, public bool) api.SaleRule {
		return api.SaleRule{Rule: pcm.Rule{Name: name, Accept: accept}, Public: public}
	}
	before := []api.SaleRule{rule("a", "job.gpu < 2", true), rule("b", "job.gpu < 3", false), rule("c", "job.gpu < 4", false)}
	now := []api.SaleRule{rule("a", "job.gpu < 2", false), rule("b", "job.gpu < 3", false), rule("d", "job.gpu < 4", false)}
	for _, tt := range []struct {
		before, now []api.SaleRule
		want        string
	}{
		{before, before, "none of them changed"},
		{before, now, "new: d; changed: a; gone: c"},
		{before, nil, "gone: a, b, c"},
		{nil, before, "new: a, b, c"},
	} {
		if got := changedRules(tt.before, tt.now); got != tt.want {
			t.Errorf("%v to %v: %q, want %q", tt.before, tt.now, got, tt.want)
		}
	}
}
