// Package adaptertest is the conformance suite of adapters: every adapter runs
// it against its real back end.
package adaptertest

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Subject is an adapter under test.
type Subject struct {
	// New makes an adapter on a back end of its own.
	New func(t *testing.T) Instance

	// Script fills in what makes t run the steps of [script.Main]: its command
	// or module, and the input that holds the program, if any.
	Script func(t *testing.T, task *adapters.Task, steps ...string)

	Signals bool                      // a task can be asked to end
	Memory  bool                      // ending at the memory limit is told from other failures
	Links   bool                      // tasks can make links that lead anywhere
	Missing func(task *adapters.Task) // makes task name a program that isn't there; nil: can't be
}

// Instance is one adapter and its back end.
type Instance struct {
	Adapter adapters.Adapter
	// Reconnect drops the adapter, as the end of the daemon would, and makes another.
	Reconnect func() adapters.Adapter
	// Hang stops the back end from answering until resume is called; nil: can't be.
	Hang func() (resume func())
}

// patience is how long the suite waits for what must happen.
const patience = 60 * time.Second

var fences atomic.Uint64

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Subject)
	}{
		{"pools", testPools},
		{"exit codes and streams", testExit},
		{"idempotent start", testIdempotent},
		{"refusals", testRefusals},
		{"missing program", testMissing},
		{"environment", testEnvironment},
		{"inputs are read-only", testInputs},
		{"outputs", testOutputs},
		{"hostile outputs", testHostileOutputs},
		{"logs", testLogs},
		{"watch", testWatch},
		{"stop", testStop},
		{"stop by force", testStopForce},
		{"time limit", testTimeLimit},
		{"lease", testLease},
		{"memory", testMemory},
		{"too little memory", testTooLittleMemory},
		{"output cap", testOutputCap},
		{"remove", testRemove},
		{"many at once", testMany},
		{"adoption", testAdoption},
		{"hung back end", testHung},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			c.test(t, s)
		})
	}
}

// bench is what a test works with.
type bench struct {
	t   *testing.T
	s   Subject
	ins Instance
	ctx context.Context
}

func setUp(t *testing.T, s Subject) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return &bench{t, s, s.New(t), ctx}
}

// NewTask makes an empty task with a key of its own and a long lease.
func NewTask() adapters.Task {
	job := pcm.NewJobID()
	fence := fences.Add(1)
	return adapters.Task{
		Key: adapters.Key{Trade: pcm.NewTradeID(job, fence), Index: 0, Attempt: 1},
		Job: job, Fence: fence, Count: 1,
		Resources: pcm.Resources{CPU: 1000, Memory: 512 << 20},
		Limit:     5 * time.Minute,
		Deadline:  adapters.Now().Add(5 * time.Minute),
	}
}

func (b *bench) task(steps ...string) adapters.Task {
	b.t.Helper()
	t := NewTask()
	b.s.Script(b.t, &t, steps...)
	return t
}

func (b *bench) start(t adapters.Task) adapters.Key {
	b.t.Helper()
	if err := b.ins.Adapter.Start(b.ctx, t); err != nil {
		b.t.Fatalf("start: %v", err)
	}
	return t.Key
}

// run starts a task and waits for its end.
func (b *bench) run(t adapters.Task) adapters.Status {
	b.t.Helper()
	return b.wait(b.start(t), adapters.Ended)
}

// Wait waits until the attempt has reached the state, or has ended.
func Wait(ctx context.Context, a adapters.Adapter, k adapters.Key, state adapters.State) (adapters.Status, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ch, err := a.Watch(ctx)
	if err != nil {
		return adapters.Status{}, err
	}
	all, err := a.List(ctx)
	if err != nil {
		return adapters.Status{}, err
	}
	for _, st := range all {
		if st.Key == k && (st.State == state || st.State == adapters.Ended) {
			return st, nil
		}
	}
	for st := range ch {
		if st.Key == k && (st.State == state || st.State == adapters.Ended) {
			return st, nil
		}
	}
	return adapters.Status{}, fmt.Errorf("attempt %s did not become %s: the watch ended", k, state)
}

func (b *bench) wait(k adapters.Key, state adapters.State) adapters.Status {
	b.t.Helper()
	st, err := Wait(b.ctx, b.ins.Adapter, k, state)
	if err != nil {
		b.t.Fatal(err)
	}
	return st
}

// find gives the listed status of an attempt.
func (b *bench) find(k adapters.Key) (adapters.Status, bool) {
	b.t.Helper()
	all, err := b.ins.Adapter.List(b.ctx)
	if err != nil {
		b.t.Fatalf("list: %v", err)
	}
	for _, st := range all {
		if st.Key == k {
			return st, true
		}
	}
	return adapters.Status{}, false
}

func (b *bench) logs(k adapters.Key, s adapters.StreamName, offset int64, follow bool) string {
	b.t.Helper()
	r, err := b.ins.Adapter.Logs(b.ctx, k, s, offset, follow)
	if err != nil {
		b.t.Fatalf("logs: %v", err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatalf("logs: %v", err)
	}
	return string(data)
}

func (b *bench) results(k adapters.Key) fs.FS {
	b.t.Helper()
	fsys, err := b.ins.Adapter.Results(b.ctx, k)
	if err != nil {
		b.t.Fatalf("results: %v", err)
	}
	return fsys
}

// files lists the regular files of fsys with their contents, and everything
// else with its type.
func (b *bench) files(fsys fs.FS) map[string]string {
	b.t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !d.Type().IsRegular() {
			all[p] = d.Type().String()
			return nil
		}
		data, err := fs.ReadFile(fsys, p)
		all[p] = string(data)
		return err
	})
	if err != nil {
		b.t.Fatalf("walking the results: %v", err)
	}
	return all
}

func (b *bench) expect(st adapters.Status, outcome pcm.Outcome, code int) {
	b.t.Helper()
	if st.State != adapters.Ended || st.Outcome != outcome || code >= 0 && st.ExitCode != code {
		b.t.Fatalf("ended as %s %q, exit code %d, %q; expected outcome %q, exit code %d\nstdout: %.500s\nstderr: %.500s",
			st.State, st.Outcome, st.ExitCode, st.Reason, outcome, code,
			b.logs(st.Key, adapters.Stdout, 0, false), b.logs(st.Key, adapters.Stderr, 0, false))
	}
	if (st.Outcome == pcm.OutcomeOK) != (st.Reason == "") {
		b.t.Errorf("outcome %s has reason %q", st.Outcome, st.Reason)
	}
	if len(st.Reason) > 256 {
		b.t.Errorf("the reason has %d bytes", len(st.Reason))
	}
}
