package main

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// operation is a write of a value that only grows, or a linearizable read of it.
type operation struct {
	key, client int
	write       bool
	value       uint64 // written or read
	refused     bool   // the value was not below the written one
	unknown     bool   // never answered: it may have taken effect at any later time, or never
	call, ret   time.Duration
}

// growing is what a value does: a write succeeds if it is above what stands there.
var growing = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(was, input, _ any) (bool, any) {
		state, op := was.(uint64), input.(operation)
		switch {
		case !op.write:
			return op.value == state, state
		case op.unknown:
			return true, max(state, op.value)
		case op.refused:
			return op.value <= state, state
		}
		return op.value > state, op.value
	},
}

// linearizable tells what is wrong with a history; "" if nothing is. Bounded in time:
// a value that takes longer stays undecided, but not more than half of the history may.
func linearizable(history []operation, most time.Duration) (problem string, checked int) {
	byKey := map[int][]porcupine.Operation{}
	for i, op := range history {
		ret := op.ret.Nanoseconds()
		if op.unknown {
			ret = math.MaxInt64 - int64(i)
		}
		byKey[op.key] = append(byKey[op.key], porcupine.Operation{ClientId: op.client, Input: op, Call: op.call.Nanoseconds(), Return: ret})
	}
	for key, ops := range byKey {
		switch porcupine.CheckOperationsTimeout(growing, ops, most) {
		case porcupine.Illegal:
			return fmt.Sprintf("the history of value %d is not linearizable (%d operations)%s", key, len(ops), contradiction(ops)), checked
		case porcupine.Ok:
			checked += len(ops)
		}
	}
	if 2*checked < len(history) {
		return fmt.Sprintf("of %d operations only %d could be checked in time", len(history), checked), checked
	}
	return "", checked
}

// contradiction tells of two operations that can't both be, for whoever looks for the
// cause: what one has seen was there at its end, and another, begun later, saw less. "" if there are no such two.
func contradiction(ops []porcupine.Operation) string {
	var seen []operation // that the value was at least theirs, by their ends
	for _, o := range ops {
		if op := o.Input.(operation); !op.unknown && !op.refused {
			seen = append(seen, op)
		}
	}
	slices.SortFunc(seen, func(a, b operation) int { return cmp.Compare(a.ret, b.ret) })
	high := make([]operation, len(seen)) // the highest that had ended
	for i, op := range seen {
		high[i] = op
		if i > 0 && high[i-1].value > op.value {
			high[i] = high[i-1]
		}
	}
	for _, op := range seen {
		i := sort.Search(len(seen), func(i int) bool { return seen[i].ret >= op.call })
		if i == 0 {
			continue
		}
		if was := high[i-1]; was.value > op.value || op.write && was.value == op.value {
			return fmt.Sprintf(": %s after %s", op, was)
		}
	}
	return ""
}

// String tells of the operation.
func (op operation) String() string {
	what := "read"
	if op.write {
		what = "write"
	}
	return fmt.Sprintf("client %d's %s of %d from %.3f to %.3f s", op.client, what, op.value, op.call.Seconds(), op.ret.Seconds())
}
