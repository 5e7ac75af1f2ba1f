package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

// Runner is the supervisor's side. It implements supervisor.Remote.
type Runner struct {
	set     Settings
	c       *cluster
	log     *slog.Logger
	tracker *tracker
	batches *batches
	gates   *gates
	follows chan struct{} // places for live logs
	creates chan struct{} // places for requests that make Jobs
	merged  atomic.Bool   // the cluster can't tell stderr from stdout
	facts   atomic.Pointer[supervisor.Facts]
	loose   atomic.Int64 // attempts given up whose pod may still have run
	end     context.CancelFunc
	over    sync.WaitGroup
}

var _ supervisor.Remote = (*Runner)(nil)

const (
	maxFollows = 256 // streams of live output at once; others are read at the end
	maxCreates = 32
)

// NewRunner makes the runner. The cluster need not be there yet.
func NewRunner(ctx context.Context, set Settings, log *slog.Logger) (*Runner, error) {
	set.Defaults()
	if err := set.Validate(); err != nil {
		return nil, err
	}
	c, err := connect(set)
	if err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Runner{set: set, c: c, log: log, tracker: newTracker(c, log), follows: make(chan struct{}, maxFollows), creates: make(chan struct{}, maxCreates), end: cancel}
	r.batches, r.gates = newBatches(), newGates()
	r.facts.Store(&supervisor.Facts{Sandbox: "container"})
	r.over.Go(func() { r.tracker.run(ctx) })
	r.over.Go(func() { r.shut(ctx) })
	return r, nil
}

// Name implements supervisor.Runner.
func (r *Runner) Name() string { return Name }

// Remote implements supervisor.Remote.
func (r *Runner) Remote() {}

// Facts implements supervisor.Runner.
func (r *Runner) Facts() supervisor.Facts { return *r.facts.Load() }

// Sweep implements supervisor.Runner: what no attempt owns is deleted once the
// cluster has been seen.
func (r *Runner) Sweep([]adapters.Key) error {
	r.tracker.mu.Lock()
	defer r.tracker.mu.Unlock()
	r.tracker.swept = true
	return nil
}

// Close implements supervisor.Runner.
func (r *Runner) Close(context.Context) error {
	r.end()
	r.over.Wait()
	return nil
}

// Check implements supervisor.Runner.
func (r *Runner) Check(t adapters.Task) error {
	_, accelerated := r.set.resourceOf(t.Pool)
	switch {
	case t.Module != "" || len(t.Command) == 0 || t.Command[0] == "":
		return pcm.Errorf(pcm.Invalid, "the kubernetes adapter runs commands; attempt %s has none", t.Key)
	case t.Image != "" && !r.set.MatchImage(t.Image):
		return pcm.Errorf(pcm.Refused, "image %q is not among those that this provider allows", t.Image)
	case t.Network && !r.set.Network:
		return pcm.Errorf(pcm.Refused, "this provider gives tasks no network")
	case t.Resources.GPU > 0 && !accelerated:
		return pcm.Errorf(pcm.Refused, "pool %s has no accelerators", t.Pool)
	case len(t.Inputs) > maxInputs:
		return pcm.Errorf(pcm.TooLarge, "%d inputs: at most %d", len(t.Inputs), maxInputs)
	}
	size := 0
	for k, v := range t.Env {
		size += len(k) + len(v)
	}
	for _, w := range t.Command {
		size += len(w)
	}
	for _, w := range t.Args {
		size += len(w)
	}
	if size > maxWords {
		return pcm.Errorf(pcm.TooLarge, "command and environment have %d bytes: at most %d", size, maxWords)
	}
	return nil
}

const (
	maxInputs = 256
	maxWords  = 512 << 10 // of what goes into the Job, which the cluster's store bounds
)

// attempt is one Run.
type attempt struct {
	*supervisor.Run
	r      *Runner
	g      array
	w      *track
	begun  bool // Started was called
	sent   bool // inputs
	asked  bool // to end
	since  time.Time
	silent time.Time // since when its node does not answer
	word   string    // kind of what it waits for, since then
	reader *reader
}

// Run implements supervisor.Runner.
func (r *Runner) Run(ctx context.Context, t *supervisor.Run) supervisor.Exit {
	a := &attempt{Run: t, r: r}
	if t.Again {
		a.g = recall(t)
	} else {
		g, err := r.batches.join(ctx, t.Task)
		if err != nil {
			return seller("PodDeleted", "ended before it was given to the cluster")
		}
		a.g = g
	}
	// Before it waits: its Job may be there already, and is not to be deleted as nobody's.
	a.w = r.tracker.follow(t.Key, a.g.jobName())
	defer a.w.done()
	if t.Batch > 1 && a.g.single() {
		leave, ok := r.gates.enter(ctx, t, t.Again && a.wasMade())
		if !ok {
			return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM)}
		}
		defer leave()
	}
	if exit, ok := a.create(ctx); !ok {
		return exit
	}
	return a.attend(ctx)
}

func seller(word, reason string) supervisor.Exit {
	return supervisor.Exit{Outcome: pcm.OutcomeSeller, Code: 128 + int(syscall.SIGKILL), Native: word, Reason: reason}
}

// The file beside the attempt's working folder that says in which Job it is.
func noteFile(t *supervisor.Run) string { return filepath.Join(filepath.Dir(t.Work), "kubernetes") }

// remember notes the Job before it is made; made again, it would be the same.
func (a *attempt) remember(made bool) error {
	return os.WriteFile(noteFile(a.Run), fmt.Appendf(nil, "%s %d %d %t\n", a.g.first, a.g.n, a.g.width, made), 0o600)
}

// recall tells in which Job an attempt is that an earlier supervisor ran.
func recall(t *supervisor.Run) array {
	var first string
	g := array{n: 1, width: 1, first: t.Key}
	var n, width int
	data, err := os.ReadFile(noteFile(t))
	if err != nil {
		return g
	}
	if _, err := fmt.Sscanf(string(data), "%s %d %d", &first, &n, &width); err != nil {
		return g
	}
	if k, err := adapters.ParseKey(first); err == nil && n > 0 && n <= pcm.MaxBatch {
		return array{first: k, n: n, width: width}
	}
	return g
}

// wasMade tells whether an earlier supervisor saw the cluster take the Job.
func (a *attempt) wasMade() bool {
	data, err := os.ReadFile(noteFile(a.Run))
	return err == nil && strings.HasSuffix(strings.TrimSpace(string(data)), "true")
}

// create gives the Job to the cluster. One that is there already, under a name that only
// this attempt has, is ours.
func (a *attempt) create(ctx context.Context) (supervisor.Exit, bool) {
	if a.Again && a.wasMade() {
		return supervisor.Exit{}, true
	}
	if !a.Again {
		if err := a.remember(false); err != nil {
			return seller("", "can't note its Job: "+err.Error()), false
		}
	}
	for _, in := range a.Inputs {
		if _, err := os.Stat(in.Path); err != nil {
			return seller("InputsFailed", "an input is not there: "+err.Error()), false
		}
	}
	if a.g.first == a.Key || a.Again {
		job := a.r.set.job(a.Task, a.g)
		var denied time.Time
		for wait := minWait; ; wait = min(2*wait, maxWait) {
			err := a.r.make(ctx, job)
			if apierrors.IsAlreadyExists(err) {
				var own bool
				if own, err = a.r.c.own(ctx, a.w.job); err == nil && !own {
					a.w.disown()
					return seller("", "the cluster has a Job "+a.w.job+" that is not this node's"), false
				}
			}
			if err == nil {
				break
			}
			quota := apierrors.IsForbidden(err) && strings.Contains(err.Error(), "quota")
			// A server that has just begun knows nobody's rights yet.
			early := apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)
			if early && denied.IsZero() {
				denied = time.Now()
			}
			early = early && time.Since(denied) < rightsMost
			if !away(err) && !quota && !early {
				return seller("", "the cluster does not take its Job: "+err.Error()), false
			}
			a.Report(adapters.Pending, "NoPod", "the cluster does not take its Job yet: "+err.Error())
			select {
			case <-ctx.Done():
				// The last request may have arrived all the same.
				a.kill(ctx)
				return seller("", "the cluster did not take its Job: "+err.Error()), false
			case <-a.Stopping:
				a.kill(ctx)
				return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM)}, false
			case <-time.After(wait):
			}
		}
	}
	if err := a.remember(true); err != nil {
		a.kill(ctx)
		return seller("", "can't note its Job: "+err.Error()), false
	}
	return supervisor.Exit{}, true
}

// make gives a Job to the cluster, one of at most so many at once.
func (r *Runner) make(ctx context.Context, job object) error {
	select {
	case r.creates <- struct{}{}:
		defer func() { <-r.creates }()
	case <-ctx.Done():
		return ctx.Err()
	}
	_, err := r.c.create(ctx, jobs, job)
	return err
}

const (
	checkEvery = 5 * time.Second
	goneAfter  = 20 * time.Second // until a Job that can't be found is believed to be gone
	lostAfter  = grace + 30*time.Second
	rightsMost = 30 * time.Second
	brokenMost = time.Minute // that a container may fail to be made
)

// attend sees the attempt through.
func (a *attempt) attend(ctx context.Context) supervisor.Exit {
	defer func() { a.reader.close() }()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	began := time.Now()
	var deleting, failed time.Time
	for {
		p, j, known, away := a.w.view()
		switch {
		case !known || !away.IsZero() && p == nil:
			began = time.Now()
			if !known && !a.begun {
				a.Report(adapters.Pending, "Unknown", "the cluster does not answer")
			}
		case p != nil:
			failed = time.Time{}
			if exit, over := a.pod(ctx, p, &deleting); over {
				return exit
			}
		case a.asked:
			return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM), Native: "PodDeleted"}
		case j == nil:
			if (time.Since(began) > goneAfter || a.begun) && a.r.c.gone(ctx, a.w.job) {
				return seller("JobDeleted", states["JobDeleted"].Reason)
			}
		case j.failed != "" || j.complete || !a.g.single() && within(j.failedIndexes, a.Index-a.g.first.Index):
			// Its pod may still be on its way here.
			if failed.IsZero() {
				failed = time.Now()
			} else if time.Since(failed) > checkEvery {
				return a.judge(j.failed, j.message)
			}
		case a.begun:
			return seller("PodDeleted", states["PodDeleted"].Reason)
		case j.suspended:
			a.Report(adapters.Pending, "Suspended", states["Suspended"].Reason)
		case time.Since(began) > checkEvery || !a.g.single():
			a.Report(adapters.Pending, "NoPod", states["NoPod"].Reason)
		}
		select {
		case <-a.w.changed:
		case <-tick.C:
		case <-a.Stopping:
			a.asked = true
			a.ask(ctx, p)
		case <-ctx.Done():
			return a.kill(ctx)
		}
	}
}

// pod acts on what became of the pod.
func (a *attempt) pod(ctx context.Context, p *podView, deleting *time.Time) (supervisor.Exit, bool) {
	if p.started && !a.begun {
		a.begun = true
		if !p.exited {
			a.Report(adapters.Pending, p.word, "")
		}
		a.Started()
		a.reader = a.r.read(a.Run, p.name)
	}
	if p.exited || p.ended {
		return a.finish(ctx, p), true
	}
	if k := kind(p.word); k != a.word {
		a.word, a.since = k, time.Now()
	}
	if !p.silent {
		a.silent = time.Time{}
	}
	n := states.Of(p.word)
	reason := n.Reason
	if p.message != "" && n.State == adapters.Pending {
		reason += ": " + p.message
	}
	switch {
	case p.deleting && p.node == "":
		return a.gone(p, "PodDeleted"), true
	case p.deleting:
		if deleting.IsZero() {
			*deleting = time.Now()
		}
		if time.Since(*deleting) > lostAfter {
			return a.lost(p), true
		}
		a.Report(adapters.Running, "Terminating", states["Terminating"].Reason)
	case n.State == adapters.Ended:
		return a.judge(p.word, p.message), true
	case p.silent:
		if a.silent.IsZero() {
			a.silent = time.Now()
		}
		if time.Since(a.silent) > a.r.set.LostLimit {
			return a.lost(p), true
		}
		a.Report(adapters.Running, "NodeNotReady", states["NodeNotReady"].Reason)
	case isPull(p.word) && time.Since(a.since) > a.r.set.PullLimit:
		outcome := pcm.OutcomeSeller
		if a.Image != "" {
			outcome = pcm.OutcomeFailed
		}
		return supervisor.Exit{Outcome: outcome, Code: 125, Native: p.word, Reason: fmt.Sprintf("its image did not come within %s: %s", a.r.set.PullLimit, p.message)}, true
	case isBroken(p.word) && time.Since(a.since) > brokenMost:
		return seller(p.word, reason), true
	case p.ready && !a.sent && len(a.Inputs) > 0:
		a.Report(adapters.Pending, p.word, reason)
		if err := a.r.sendInputs(ctx, a.Task, p.name); err != nil {
			a.Report(adapters.Pending, p.word, "bringing its inputs failed and is tried again: "+err.Error())
			a.r.log.Warn("can't bring inputs", "attempt", a.Key.String(), "err", err)
			if time.Since(a.since) > brokenMost || fatal(err) {
				return seller("InputsFailed", "its inputs could not be brought: "+err.Error()), true
			}
			return supervisor.Exit{}, false
		}
		a.sent = true
	default:
		state := n.State
		if state == adapters.Running && !a.begun {
			state = adapters.Pending
		}
		a.Report(state, p.word, reason)
	}
	return supervisor.Exit{}, false
}

// lost gives up an attempt whose node does not answer. Its pod may still run:
// the cluster is told to end it, and makes no other.
func (a *attempt) lost(p *podView) supervisor.Exit {
	a.r.loose.Add(1)
	a.r.log.Warn("gave up an attempt whose pod may still run", "attempt", a.Key.String(), "node", p.node, "pod", p.name, "so_far", a.r.loose.Load())
	return seller("NodeLost", fmt.Sprintf("node %s does not answer; the pod may still run there", p.node))
}

// fatal tells whether an error is of our own files.
func fatal(err error) bool {
	var p *os.PathError
	return errors.As(err, &p)
}

// gone is the end of a pod that never came to a node.
func (a *attempt) gone(p *podView, word string) supervisor.Exit {
	if a.asked {
		return supervisor.Exit{Outcome: pcm.OutcomeStopped, Code: 128 + int(syscall.SIGTERM), Native: word}
	}
	if p.disrupted != "" {
		word = p.disrupted
	}
	return seller(word, states.Of(word).Reason)
}

// judge makes an end of a word that says how, where there is no exit code.
func (a *attempt) judge(word, message string) supervisor.Exit {
	n := states.Of(word)
	if n.State != adapters.Ended || n.Outcome == pcm.OutcomeOK {
		n.Outcome = pcm.OutcomeSeller
	}
	code := 128 + int(syscall.SIGKILL)
	if n.Outcome == pcm.OutcomeFailed {
		code = 126
	}
	reason := n.Reason
	if message != "" {
		reason += ": " + message
	}
	return supervisor.Exit{Outcome: n.Outcome, Code: code, Native: word, Reason: reason}
}

// finish gathers what an ended pod left.
func (a *attempt) finish(ctx context.Context, p *podView) supervisor.Exit {
	if p.exited {
		if a.reader == nil {
			a.reader = a.r.read(a.Run, p.name)
		}
		if err := a.reader.finish(ctx); err != nil {
			a.r.log.Warn("can't read all output", "attempt", a.Key.String(), "err", err)
			if p.code == 0 && ctx.Err() == nil {
				return seller(p.word, "its output could not be read: "+err.Error())
			}
		}
		if len(a.Outputs) > 0 {
			if err := a.r.fetchOutputs(ctx, a.Run, p); err != nil && ctx.Err() == nil {
				return seller(p.word, "its outputs could not be fetched: "+err.Error())
			}
		}
	}
	return verdict(p, a.asked)
}

// verdict says how a task ended whose pod has.
func verdict(p *podView, asked bool) supervisor.Exit {
	exit := supervisor.Exit{Code: p.code, Native: p.word}
	exit.CPUMS, exit.Memory = use(p.note)
	n := states.Of(p.word)
	switch {
	case p.exited && p.code == 0:
		exit.Outcome = pcm.OutcomeOK
		return exit
	case p.word == "OOMKilled":
		exit.Outcome, exit.Reason = pcm.OutcomeMemory, n.Reason
	case p.disrupted != "" && !asked:
		exit.Outcome, exit.Native, exit.Reason = pcm.OutcomeSeller, p.disrupted, states.Of(p.disrupted).Reason
	case p.deleting && !asked && p.word != "DeadlineExceeded":
		exit.Outcome, exit.Native, exit.Reason = pcm.OutcomeSeller, "PodDeleted", states["PodDeleted"].Reason
	case p.word == "StartError" || p.word == "ContainerCannotRun":
		exit.Outcome, exit.Reason = pcm.OutcomeFailed, n.Reason+": "+p.message
		if strings.Contains(p.message, "not found") || strings.Contains(p.message, "no such file") {
			exit.Code, exit.Reason = 127, "its program was not found: "+p.message
		}
	case p.exited && (n.Outcome == pcm.OutcomeFailed || n.State != adapters.Ended):
		exit.Outcome, exit.Reason = pcm.OutcomeFailed, fmt.Sprintf("exit code %d", p.code)
		if p.code == 127 {
			exit.Reason = "exit code 127: its program was not found"
		}
	default:
		exit.Outcome, exit.Reason = n.Outcome, n.Reason
		if n.State != adapters.Ended || n.Outcome == pcm.OutcomeOK {
			exit.Outcome = pcm.OutcomeSeller
		}
		if p.message != "" {
			exit.Reason += ": " + p.message
		}
	}
	if exit.Code == 0 {
		exit.Code = 128 + int(syscall.SIGKILL)
	}
	return exit
}

// ask tells the task to end by itself.
func (a *attempt) ask(ctx context.Context, p *podView) {
	if a.g.single() {
		if err := a.r.c.suspend(ctx, a.w.job); err != nil {
			a.r.log.Warn("can't hold a Job", "attempt", a.Key.String(), "err", err)
		}
	} else {
		a.w.doom()
	}
	if p == nil {
		return
	}
	if err := a.r.c.kill(ctx, p.name, int64(grace/time.Second)); err != nil {
		a.r.log.Warn("can't ask a pod to end", "attempt", a.Key.String(), "err", err)
	}
}

// killTime bounds how long a killed attempt is waited for.
const killTime = 12 * time.Second

// kill ends the attempt in the cluster, and waits a while for that. Where the
// cluster does not answer, its Job is deleted as soon as it does.
func (a *attempt) kill(ctx context.Context) supervisor.Exit {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	if !a.g.single() {
		a.w.doom()
	}
	held, killed := !a.g.single(), false
	for wait := minWait; ; wait = min(2*wait, 2*time.Second) {
		p, j, known, _ := a.w.view()
		if !held {
			held = a.r.c.suspend(ctx, a.w.job) == nil
		}
		switch {
		case p != nil && p.ended:
			a.keep(ctx, p)
			exit := verdict(p, true)
			if exit.Outcome == pcm.OutcomeOK {
				return exit
			}
			exit.Outcome, exit.Reason = pcm.OutcomeFailed, "ended by force"
			return exit
		case p != nil && (p.node == "" && p.deleting), p == nil && known && held && (a.begun || killed || j == nil || !a.g.single() || j.suspended):
			return supervisor.Exit{Outcome: pcm.OutcomeFailed, Code: 128 + int(syscall.SIGKILL), Reason: "ended by force"}
		case p != nil && !killed:
			killed = a.r.c.kill(ctx, p.name, 1) == nil
		}
		select {
		case <-a.w.changed:
		case <-time.After(wait):
		case <-ctx.Done():
			a.r.loose.Add(1)
			a.r.log.Warn("gave up an attempt that may still run", "attempt", a.Key.String(), "job", a.w.job, "so_far", a.r.loose.Load())
			return seller("", "the cluster did not say that it ended: it may still run there")
		}
	}
}

// keep gathers the output of an attempt that was ended by force.
func (a *attempt) keep(ctx context.Context, p *podView) {
	if !p.exited {
		return
	}
	if a.reader == nil {
		a.reader = a.r.read(a.Run, p.name)
	}
	if err := a.reader.finish(ctx); err != nil {
		a.r.log.Debug("output of a killed attempt is cut", "attempt", a.Key.String(), "err", err)
	}
	if len(a.Outputs) > 0 && p.holding {
		if err := a.r.fetchOutputs(ctx, a.Run, p); err != nil {
			a.r.log.Debug("outputs of a killed attempt are not complete", "attempt", a.Key.String(), "err", err)
		}
	}
}

// splitRefused notes that the cluster can't tell stderr from stdout.
func (r *Runner) splitRefused(no *refusal) bool {
	if !strings.Contains(strings.ToLower(no.text), "stream") {
		return false
	}
	r.merged.Store(true)
	r.publish()
	return true
}
