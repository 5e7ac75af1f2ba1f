package main

import (
	"fmt"
	"math"
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
			return fmt.Sprintf("the history of value %d is not linearizable (%d operations)", key, len(ops)), checked
		case porcupine.Ok:
			checked += len(ops)
		}
	}
	if 2*checked < len(history) {
		return fmt.Sprintf("of %d operations only %d could be checked in time", len(history), checked), checked
	}
	return "", checked
}
