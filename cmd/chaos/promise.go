package main

import (
	"errors"
	"fmt"
	"strings"
)

// promise is one of those that a run holds a cell against.
type promise string

// The promises. All but the last are of what must never happen; a cell that only
// takes too long has broken none of those.
const (
	isKept    promise = "what was acknowledged is kept"
	isOnce    promise = "nothing is done or paid twice"
	isTold    promise = "answers tell what the ledger says"
	isRefused promise = "what must be refused is refused"
	isSame    promise = "all replicas have the same state"
	isWhole   promise = "every replica has the whole history"
	isSound   promise = "records follow from each other"
	isOneLog  promise = "all checkpoints are of one log"
	isLinear  promise = "reads and writes are linearizable"
	isOwed    promise = "accounts owe what was settled"
	isOdd     promise = "votes grow in pairs"
	isAgreed  promise = "cells agree on the trades between them"
	isTimely  promise = "no attempt runs beyond its lease"
	isBack    promise = "a cell comes back after faults"
)

// always are the promises that hold however slow everything is: that a cell takes long to
// come back may have any reason.
var always = []promise{
	isKept, isOnce, isTold, isRefused, isSame, isWhole, isSound, isOneLog, isLinear, isOwed, isOdd, isAgreed, isTimely,
}

// problem is a promise that was not kept, and how that showed.
type problem struct {
	promise promise
	text    string
}

// problemOf is what an error says of a cell that it stopped: a promise by name, else
// that the cell did not come back.
func problemOf(err error) problem {
	var p problem
	if errors.As(err, &p) {
		return p
	}
	return problem{isBack, err.Error()}
}

// Error implements error.
func (p problem) Error() string { return p.String() }

func (p problem) String() string { return fmt.Sprintf("[%s] %s", p.promise, p.text) }

// problems are those that were found, up to a bound.
type problems []problem

// err is an error that tells of the problems; nil if there are none.
func (ps problems) err(seed uint64) error {
	if len(ps) == 0 {
		return nil
	}
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.String()
	}
	return fmt.Errorf("seed %d: %w:\n  %s", seed, errBroken, strings.Join(texts, "\n  "))
}

// maxProblems bounds what is told of one cell.
const maxProblems = 50

func (ps *problems) add(of promise, format string, args ...any) {
	if len(*ps) < maxProblems {
		*ps = append(*ps, problem{of, fmt.Sprintf(format, args...)})
	}
}
