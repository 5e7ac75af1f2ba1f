package main

import (
	"strings"
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

// Of a history that can't be, two operations are told that contradict each other.
func TestContradiction(t *testing.T) {
	for _, c := range []struct {
		name    string
		history []operation
		told    string
	}{
		{"what was read is gone", []operation{{write: true, value: 7, call: 1, ret: 20}, {client: 1, value: 7, call: 2, ret: 3}, {client: 2, value: 0, call: 4, ret: 5}}, "client 2's read of 0"},
		{"a write ends twice", []operation{{write: true, value: 7, call: 1, ret: 2}, {client: 1, write: true, value: 7, call: 3, ret: 4}}, "client 1's write of 7"},
		{"what nobody wrote", []operation{{client: 1, value: 7, call: 2, ret: 3}}, "(1 operations)"},
	} {
		problem, _ := linearizable(c.history, time.Minute)
		if !strings.Contains(problem, c.told) {
			t.Errorf("%s: %q", c.name, problem)
		}
	}
}
