// Package adaptertest is the conformance suite of adapters: every adapter runs
// it against its real back end.
package adaptertest

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Subject is an adapter under test.
type Subject struct {
	// Name is what the matrix calls it: the adapter's name, and in which way it
	// was tested if there is more than one: "process (bubblewrap)". "": it is not in there.
	Name string

	// Long marks a subject that not every run of the back ends' tests has, since its
	// server takes long to install.
	Long bool

	// New makes an adapter on a back end of its own, or on one that the tests of
	// one run share.
	New func(t *testing.T) Instance

	// Own makes one on a back end that no other test uses: for the tests that hang,
	// restart or fill it; nil: New.
	Own func(t *testing.T) Instance

	// Script fills in what makes t run the steps of [script.Main]: its command
	// or module, and the input that holds the program, if any.
	Script func(t *testing.T, task *adapters.Task, steps ...string)

	// Unsupported says of each capability that the adapter lacks why. Its test is
	// not run; the matrix shows the reason. Everything else must work.
	Unsupported map[string]string

	Missing func(task *adapters.Task)               // makes task name a program that isn't there
	Image   string                                  // an image whose /image.txt says "of the image"; without tag
	GPU     func(t *testing.T, task *adapters.Task) // makes task ask for accelerators
	Env     []string                                // names of variables that the back end adds; "X*": all that begin with X
	Exec    func(steps ...string) []string          // the command by which the steps run in a running attempt; nil: the task's own program
	Remote  bool                                    // attempts outlive their supervisor and are taken up again

	// Uncounted back ends can't be asked how often they have begun an attempt: only what
	// it printed shows that.
	Uncounted bool

	Patience time.Duration // how long the suite waits for what must happen; default one minute
	Pace     time.Duration // how long it takes until something shows; default 400 ms
	Many     int           // how many tasks are many; default 24
	Enough   pcm.Bytes     // memory for a task that uses 400 MiB; default 16 GiB, also enough with the race detector in it
	Parallel int           // tests at once; default: as many as go test runs
}

// Instance is one adapter and its back end.
type Instance struct {
	Adapter adapters.Adapter
	Box     *Box // the supervisor's
	// Reconnect drops the adapter, as the end of the daemon would, and makes another.
	Reconnect func() adapters.Adapter
	// Hang stops the back end from answering until resume is called. What runs
	// there runs on.
	Hang func() (resume func())
	// Restart ends the back end's service hard and starts it again. It returns when
	// the service answers.
	Restart func()
	// Fill takes all that the back end has, so that what is started waits until release is called.
	Fill func() (release func())
	// Starts counts how often the back end has begun to run the attempt. Remote ones must have it.
	Starts func(k adapters.Key) int
}

var fences atomic.Uint64

// Capability is one thing that adapters are tested for.
type Capability struct {
	Name      string
	Operation bool // on running attempts, which only some adapters have
	alone     bool // disturbs the back end
	test      func(*bench)
}

// Capabilities lists all that the suite tests, in the order of the matrix.
func Capabilities() []Capability {
	return []Capability{
		{"pools", false, false, testPools},
		{"exit codes and streams", false, false, testExit},
		{"idempotent start", false, false, testIdempotent},
		{"refusals", false, false, testRefusals},
		{"missing program", false, false, testMissing},
		{"environment", false, false, testEnvironment},
		{"inputs", false, false, testInputs},
		{"read-only inputs", false, false, testReadOnlyInputs},
		{"outputs", false, false, testOutputs},
		{"hostile outputs", false, false, testHostileOutputs},
		{"logs", false, false, testLogs},
		{"watch", false, false, testWatch},
		{"stop by force", false, false, testStopForce},
		{"graceful stop", true, false, testStop},
		{"time limit", false, false, testTimeLimit},
		{"lease", false, false, testLease},
		{"memory limit", false, false, testMemory},
		{"out of memory", false, false, testOutOfMemory},
		{"too little memory", false, false, testTooLittleMemory},
		{"output cap", false, false, testOutputCap},
		{"use of CPU", false, false, testUseCPU},
		{"use of memory", false, false, testUseMemory},
		{"accelerators", false, false, testGPU},
		{"no network", false, false, testNoNetwork},
		{"network", false, false, testNetwork},
		{"images", false, false, testImage},
		{"remove", false, false, testRemove},
		{"many at once", false, false, testMany},
		{"arrays", false, false, testArrays},
		{"waiting", false, true, testWaiting},
		{"daemon lost", false, false, testAdoption},
		{"supervisor hung", false, false, testHungSupervisor},
		{"supervisor lost", false, false, testLostSupervisor},
		{"back end hung", false, true, testHung},
		{"back end restarted", false, true, testRestart},
		{"suspend and resume", true, false, testSuspend},
		{"exec", true, false, testExec},
		{"copy", true, false, testCopy},
		{"service", true, false, testService},
	}
}

// Run runs the suite.
func Run(t *testing.T, s Subject) {
	s.Patience = cmp.Or(s.Patience, time.Minute)
	s.Pace = cmp.Or(s.Pace, 400*time.Millisecond)
	s.Many = cmp.Or(s.Many, 24)
	s.Enough = cmp.Or(s.Enough, 16<<30)
	known := map[string]bool{}
	var turns chan struct{}
	if s.Parallel > 0 {
		turns = make(chan struct{}, s.Parallel)
	}
	for _, c := range Capabilities() {
		known[c.Name] = true
		t.Run(strings.ReplaceAll(c.Name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			if turns != nil {
				turns <- struct{}{}
				t.Cleanup(func() { <-turns })
			}
			t.Cleanup(func() { note(t, s, c) })
			if why, ok := s.Unsupported[c.Name]; ok {
				t.Skipf("UNSUPPORTED: %s", why)
			}
			ctx, cancel := context.WithTimeout(context.Background(), s.Patience)
			t.Cleanup(cancel)
			fresh := s.New
			if c.alone && s.Own != nil {
				fresh = s.Own
			}
			c.test(&bench{t: t, s: s, ins: fresh(t), ctx: ctx})
		})
	}
	for name, why := range s.Unsupported {
		if !known[name] || why == "" {
			t.Errorf("there is no capability %q, or no reason why it is unsupported", name)
		}
	}
}

// bench is what a test works with.
type bench struct {
	t   *testing.T
	s   Subject
	ins Instance
	ctx context.Context
}

// times is a multiple of the subject's pace, as steps have it.
func (b *bench) times(n float64) string { return b.pace(n).String() }

func (b *bench) pace(n float64) time.Duration { return time.Duration(n * float64(b.s.Pace)) }

// needs fails the test of what the subject should have declared as unsupported.
func (b *bench) needs(ok bool, what string) {
	b.t.Helper()
	if !ok {
		b.t.Fatalf("%s: make it so, or declare the capability as unsupported, with the reason", what)
	}
}

// offers tells whether each pool has the feature.
func (b *bench) offers(f pcm.Feature) bool {
	b.t.Helper()
	pools, err := b.ins.Adapter.Pools(b.ctx)
	if err != nil || len(pools) == 0 {
		b.t.Fatalf("pools: %v, %v", pools, err)
	}
	return !slices.ContainsFunc(pools, func(p pcm.Pool) bool { return !p.Has(f) })
}

// until polls for what nothing tells of.
func (b *bench) until(what string, f func() bool) {
	b.t.Helper()
	for !f() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-b.ctx.Done():
			b.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// after waits for a time in which nothing may happen.
func (b *bench) after(d time.Duration) {
	select {
	case <-time.After(d):
	case <-b.ctx.Done():
	}
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
