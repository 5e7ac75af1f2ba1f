package kubernetes

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/jointcloud/pcm/adapters"
)

// tracker knows where our Jobs and pods stand: two watches for all attempts.
type tracker struct {
	c   *cluster
	log *slog.Logger

	mu      sync.Mutex
	pods    map[adapters.Key]*podView
	jobs    map[string]*jobView
	seen    [2]map[string]bool // names of a list that is coming in: pods, Jobs
	ready   [2]bool
	err     [2]error
	away    time.Time                        // since when the cluster doesn't answer; zero: it does
	waiting map[adapters.Key]*track          // attempts that want to hear
	owners  map[string]map[adapters.Key]bool // Job name to attempts
	doomed  map[adapters.Key]string          // tasks of arrays that must not begin, with their Jobs
	reaped  map[string]time.Time             // Jobs to be deleted, and when
	orphans map[string]time.Time             // Jobs that nobody owns, since when
	swept   bool                             // the attempts of before are being taken up
	strays  map[adapters.Key]time.Time       // pods that nobody owns, since when
	twice   int                              // pods that came beside another of the same attempt
}

// track is what one attempt hears.
type track struct {
	t       *tracker
	key     adapters.Key
	job     string
	changed chan struct{} // capacity 1
	foreign bool          // the Job is not ours; under tracker.mu
}

func newTracker(c *cluster, log *slog.Logger) *tracker {
	return &tracker{
		c: c, log: log, pods: map[adapters.Key]*podView{}, jobs: map[string]*jobView{}, waiting: map[adapters.Key]*track{},
		owners: map[string]map[adapters.Key]bool{}, doomed: map[adapters.Key]string{}, reaped: map[string]time.Time{}, orphans: map[string]time.Time{},
		strays: map[adapters.Key]time.Time{},
	}
}

func (t *tracker) run(ctx context.Context) {
	selector := labelManaged + "=" + managed + "," + labelInstance + "=" + t.c.set.Instance
	kinds := []*reflector{
		{what: "pods", api: t.c.in(pods), put: t.putPod, drop: t.dropPod},
		{what: "jobs", api: t.c.in(jobs), put: t.putJob, drop: t.dropJob},
	}
	var wg sync.WaitGroup
	for i, r := range kinds {
		r.selector, r.log = selector, t.log
		r.begin = func() { t.mu.Lock(); t.seen[i] = map[string]bool{}; t.mu.Unlock() }
		r.synced = func() { t.sync(i) }
		r.failed = func(err error) { t.fail(i, err) }
		wg.Go(func() { r.run(ctx) })
	}
	wg.Go(func() { t.reap(ctx) })
	wg.Wait()
}

func (t *tracker) fail(i int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err[i] = err
	switch {
	case t.err[0] == nil && t.err[1] == nil:
		t.away = time.Time{}
	case t.away.IsZero():
		t.away = time.Now()
		t.log.Warn("the cluster can't be watched", "err", err)
	}
}

// sync drops what a complete list did not have.
func (t *tracker) sync(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i == 0 {
		for k, p := range t.pods {
			if !t.seen[i][p.name] {
				delete(t.pods, k)
				t.wake(k)
			}
		}
	} else {
		for name := range t.jobs {
			if !t.seen[i][name] {
				t.lost(name)
			}
		}
	}
	t.seen[i] = nil
	t.ready[i] = true
	t.err[i] = nil
	for _, w := range t.waiting {
		w.wake()
	}
}

func (t *tracker) putPod(o *unstructured.Unstructured) {
	k, err := keyOf(o)
	v, err2 := viewPod(o)
	if err != nil || err2 != nil {
		t.log.Warn("a pod with our label is not ours", "pod", o.GetName(), "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen[0] != nil {
		t.seen[0][v.name] = true
	}
	old := t.pods[k]
	if old != nil && old.name != v.name {
		t.twice++
		t.log.Warn("a second pod of one attempt", "attempt", k.String(), "pods", old.name+" "+v.name)
		if v.created < old.created || old.started && !v.started {
			return
		}
	}
	if old != nil && old.exited && !v.exited && old.name == v.name {
		return // it does not come back to life
	}
	t.pods[k] = v
	if t.doomed[k] != "" && !v.deleting {
		go t.c.kill(context.Background(), v.name, 0) // again with the next change, if it fails
	}
	t.wake(k)
}

func (t *tracker) dropPod(o *unstructured.Unstructured) {
	k, err := keyOf(o)
	if err != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.pods[k]; p != nil && p.name == o.GetName() {
		delete(t.pods, k)
		t.wake(k)
	}
}

func (t *tracker) putJob(o *unstructured.Unstructured) {
	v, err := viewJob(o)
	if err != nil {
		t.log.Warn("a Job with our label is not ours", "job", o.GetName(), "err", err)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	name := o.GetName()
	if t.seen[1] != nil {
		t.seen[1][name] = true
	}
	t.jobs[name] = v
	for k := range t.owners[name] {
		t.wake(k)
	}
}

func (t *tracker) dropJob(o *unstructured.Unstructured) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost(o.GetName())
}

// lost forgets a Job that is no more. t.mu is held.
func (t *tracker) lost(name string) {
	delete(t.jobs, name)
	delete(t.reaped, name)
	delete(t.orphans, name)
	for k, job := range t.doomed {
		if job == name {
			delete(t.doomed, k)
		}
	}
	for k := range t.owners[name] {
		t.wake(k)
	}
}

func (t *tracker) wake(k adapters.Key) {
	if w := t.waiting[k]; w != nil {
		w.wake()
	}
}

func (w *track) wake() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// follow begins to tell of an attempt.
func (t *tracker) follow(k adapters.Key, job string) *track {
	w := &track{t: t, key: k, job: job, changed: make(chan struct{}, 1)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[k] = w
	if t.owners[job] == nil {
		t.owners[job] = map[adapters.Key]bool{}
	}
	t.owners[job][k] = true
	delete(t.orphans, job)
	delete(t.reaped, job)
	return w
}

// done ends that; the Job is deleted some time after the last of its attempts
// has ended: by then their ends are on disk, and a supervisor that comes after
// does not look for it.
func (w *track) done() {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.waiting, w.key)
	delete(t.owners[w.job], w.key)
	if len(t.owners[w.job]) == 0 {
		delete(t.owners, w.job)
		if !w.foreign {
			t.reaped[w.job] = time.Now().Add(reapAfter)
		}
	}
}

// disown leaves the Job alone: it is not ours.
func (w *track) disown() { w.t.mu.Lock(); w.foreign = true; w.t.mu.Unlock() }

// view is what is known: nil for what is not there. known tells whether that can
// be relied on.
func (w *track) view() (p *podView, j *jobView, known bool, away time.Time) {
	t := w.t
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pods[w.key], t.jobs[w.job], t.ready[0] && t.ready[1], t.away
}

// doom keeps a task of an array from beginning.
func (w *track) doom() {
	w.t.mu.Lock()
	defer w.t.mu.Unlock()
	w.t.doomed[w.key] = w.job
}

const (
	reapAfter  = 3 * time.Second
	orphanLife = 2 * time.Minute // of a Job that no attempt of this supervisor owns
	strayLife  = 20 * time.Second
	reapEvery  = time.Second
	reapMost   = 200 // Jobs deleted in one round
)

// reap deletes Jobs that nobody needs.
func (t *tracker) reap(ctx context.Context) {
	tick := time.NewTicker(reapEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, name := range t.due(time.Now()) {
			if err := t.c.forget(ctx, name); err != nil {
				t.log.Debug("can't delete a Job yet", "job", name, "err", err)
				break // the server is away: all of them later
			}
			t.mu.Lock()
			delete(t.reaped, name)
			delete(t.orphans, name)
			t.mu.Unlock()
		}
		for _, pod := range t.stray(time.Now()) {
			t.log.Warn("ending a pod that no attempt owns", "pod", pod)
			if err := t.c.kill(ctx, pod, 1); err != nil {
				t.log.Debug("can't end a pod yet", "pod", pod, "err", err)
				break
			}
		}
	}
}

// stray finds pods of attempts that have ended here: given up, or killed before an
// earlier supervisor was. In an array, whose Job stays for the others, the cluster
// would run them still, or keep a place for what was not fetched.
func (t *tracker) stray(now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.swept || !t.ready[0] {
		return nil
	}
	for k := range t.strays {
		if t.pods[k] == nil {
			delete(t.strays, k)
		}
	}
	var names []string
	for k, p := range t.pods {
		if t.waiting[k] != nil || p.deleting || p.ended && !p.holding {
			delete(t.strays, k)
		} else if since, ok := t.strays[k]; !ok {
			t.strays[k] = now
		} else if now.Sub(since) > strayLife && len(names) < reapMost {
			names = append(names, p.name)
		}
	}
	return names
}

func (t *tracker) due(now time.Time) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, at := range t.reaped {
		if now.After(at) && len(names) < reapMost {
			names = append(names, name)
		}
	}
	if !t.ready[1] {
		return names
	}
	for name, j := range t.jobs {
		if _, ok := t.reaped[name]; ok || j.deleting || len(t.owners[name]) > 0 {
			continue
		}
		since, ok := t.orphans[name]
		if !ok {
			t.orphans[name] = now
		} else if now.Sub(since) > orphanLife && len(names) < reapMost {
			t.log.Warn("deleting a Job that no attempt owns", "job", name)
			names = append(names, name)
		}
	}
	return names
}
