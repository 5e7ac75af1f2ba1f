package main

import (
	"context"
	"time"

	"openi/pluginpb"
)

// Backend is what runs attempts. Its methods are called at the same time, but one
// after the other for one attempt. Errors are gRPC statuses: see adapter.proto.
type Backend interface {
	// Configure gets settings and secrets. It may come again.
	Configure(ctx context.Context, c Config) error
	// Pools tells what there is. ours counts our attempts by pool.
	Pools(ctx context.Context, ours map[string]int) ([]*pluginpb.Pool, error)
	// Find looks for an attempt that was perhaps begun: its name at the back end, or "".
	Find(ctx context.Context, a *Attempt) (id string, err error)
	// Start begins an attempt and gives its name at the back end.
	Start(ctx context.Context, a *Attempt) (id string, err error)
	// Poll tells how attempts stand. What is left out is not known at the moment;
	// one that is gone is Seen with Gone.
	Poll(ctx context.Context, all []*Attempt) (map[*Attempt]Seen, error)
	// Logs adds what is new to a's streams: see Attempt.Write. ended says that no more will come.
	Logs(ctx context.Context, a *Attempt, ended bool) error
	// Stop asks it to end, or with force ends it.
	Stop(ctx context.Context, a *Attempt, force bool) error
	// Outputs brings the declared outputs into a.Request.Work.
	Outputs(ctx context.Context, a *Attempt) error
	// Remove deletes what is left of it at the back end.
	Remove(ctx context.Context, a *Attempt) error
}

// Suspender is a back end that can halt what runs.
type Suspender interface {
	Suspend(ctx context.Context, a *Attempt) error
	Resume(ctx context.Context, a *Attempt) error
}

// Judger is a back end that knows how a task ended when its output was read.
type Judger interface {
	Judge(a *Attempt, s Seen) Seen
}

// Config is what the site says.
type Config struct {
	Name, Instance    string
	Settings, Secrets map[string]string
}

// Seen is how an attempt stands.
type Seen struct {
	Job     any    // what the back end said, for Attempt.Note["job"]
	Word    string // the back end's own
	State   State  // what it means; as a rule from the table of states
	Gone    bool   // the back end has it no more
	Code    int    // exit code, when ended
	Known   bool   // the code is known
	Seconds float64
	CPU     float64 // seconds
	Memory  int64   // bytes at most
	Started time.Time
}

// State is what a word of the back end means: State pending, running, suspended or
// ended; Outcome of ended ok, failed, time_limit, memory, output, stopped or lost.
type State struct{ State, Outcome, Reason string }
