package main

import (
	"testing"
	"time"
)

// The check of histories can fail, and doesn't pass what it had no time for.
func TestLinearizable(t *testing.T) {
	write := operation{client: 1, write: true, value: 7, call: 1, ret: 2}
	never := operation{client: 2, value: 777, call: 3, ret: 4} // a read of what nobody wrote
	var hard []operation                                       // writes that may have taken effect at any time
	for i := range 40 {
		hard = append(hard, operation{client: i, write: true, value: uint64(i + 1), unknown: true, call: time.Duration(i)})
	}
	for _, c := range []struct {
		name    string
		history []operation
		most    time.Duration
		good    bool
	}{
		{"nothing", nil, time.Minute, true},
		{"a write and its read", []operation{write, {client: 2, value: 7, call: 3, ret: 4}}, time.Minute, true},
		{"a stale read", []operation{write, {client: 2, value: 0, call: 3, ret: 4}}, time.Minute, false},
		{"a read of nothing", []operation{write, never}, time.Minute, false},
		{"no time", append(hard, never), time.Nanosecond, false},
	} {
		if problem, checked := linearizable(c.history, c.most); c.good != (problem == "") || c.good && checked != len(c.history) {
			t.Errorf("%s: %q, %d checked", c.name, problem, checked)
		}
	}
}
