package main

import (
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

func TestRemovalCost(t *testing.T) {
	h := api.CellHealth{Name: "north", Members: []api.PeerHealth{
		{ID: "a", Name: "alpha", Role: "leader", Answers: true}, {ID: "b", Name: "beta", Role: "voter"}, {ID: "c", Name: "gamma", Role: "voter", Answers: true},
		{ID: "d", Name: "delta", Role: "replica", Answers: true},
	}}
	long := api.CellHealth{Name: "north", Members: []api.PeerHealth{{ID: "12D3KooWAbcdefghijk", Role: "leader", Answers: true}, {ID: "12D3KooWXbcdefghijk", Name: "beta", Role: "voter"}}}
	for _, c := range []struct {
		who, name, cost string
		of              api.CellHealth
	}{
		{"delta", "", "", h},
		{"nobody", "", "", h},
		{"alpha", "", "", api.CellHealth{Members: h.Members[:1]}},
		{"gamma", "gamma", "gamma is one of 3 voters of cell north. 2 would be left, of which 1 answer now; the cell then goes on with 0 of its voters lost, now with 1.", h},
		{"b", "beta", "beta is one of 3 voters of cell north. 2 would be left, of which 2 answer now; the cell then goes on with 0 of its voters lost, now with 1.", h},
		{"12D3KooWX", "beta", "beta is one of 2 voters of cell north. 1 would be left, of which 1 answer now; the cell then goes on with 0 of its voters lost, now with 0.", long},
	} {
		if name, cost := removalCost(c.of, c.who); name != c.name || cost != c.cost {
			t.Errorf("%s: %q, %q", c.who, name, cost)
		}
	}
}

func TestStillHeld(t *testing.T) {
	h := api.CellHealth{Members: []api.PeerHealth{
		{ID: "12D3KooWAbcdefghijk", Name: "alpha", Role: "leader"}, {ID: "12D3KooWXbcdefghijk", Name: "beta", Role: "replica", Held: true, Forgot: true}, {ID: "12D3KooWYbcdefghijk", Held: true},
	}}
	for who, want := range map[string]string{
		"alpha": "", "beta": "beta", "12D3KooWXbcdefghijk": "beta", "12D3KooWYbcdefghijk": pcm.Short(h.Members[2].ID), "nobody": "", "": "",
	} {
		if got := stillHeld(h, who); got != want {
			t.Errorf("of %q: %q, want %q", who, got, want)
		}
	}
}
