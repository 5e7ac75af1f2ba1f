package rest

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

const (
	looks      = 3 // readings that must miss a job before it counts as gone
	vanished   = 3 * time.Second
	maxBackOff = 30 * time.Second
	lookers    = 8 // calls at once, where each job has its own
	maxNative  = 64
)

// poller learns for all attempts of a back end how they stand.
type poller struct {
	b    *backend
	log  *slog.Logger
	wake chan struct{} // capacity 1

	mu     sync.Mutex
	tracks map[*track]bool
	away   error // why the back end can't be read; nil: it can
}

// track is a job that is followed.
type track struct {
	key     string
	id      string
	vars    func() map[string]any
	changed chan struct{} // capacity 1: something may be new

	mu      sync.Mutex
	known   time.Time // readings begun before say nothing of it
	seen    *reading
	missing int
	first   time.Time // of missing
	doomed  bool      // it was ended by force, which may well delete it
	gone    bool      // the back end doesn't know it any more
}

// reading is what the back end says of a job.
type reading struct {
	job    any
	word   string
	native adapters.Native
	at     time.Time // when it was begun
}

func newPoller(b *backend, log *slog.Logger) *poller {
	return &poller{b: b, log: log, wake: make(chan struct{}, 1), tracks: map[*track]bool{}}
}

// follow begins to look for a job.
func (p *poller) follow(key, id string, vars func() map[string]any) *track {
	t := &track{key: key, id: id, vars: vars, changed: make(chan struct{}, 1), known: time.Now()}
	p.mu.Lock()
	p.tracks[t] = true
	first := len(p.tracks) == 1
	p.mu.Unlock()
	if first {
		p.soon()
	}
	return t
}

func (p *poller) leave(t *track) {
	p.mu.Lock()
	delete(p.tracks, t)
	p.mu.Unlock()
}

// soon has the back end looked at without delay.
func (p *poller) soon() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// fault is why the back end can't be read; nil if it can.
func (p *poller) fault() error { p.mu.Lock(); defer p.mu.Unlock(); return p.away }

// count is how many jobs are followed.
func (p *poller) count() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.tracks) }

// run looks until ctx ends.
func (p *poller) run(ctx context.Context) {
	wait := p.b.poll
	var last time.Time
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-p.wake:
			timer.Stop()
			// Many ask at once: one look serves them.
			if rest := min(time.Until(last.Add(p.b.poll)), p.b.poll); rest > 0 && !pause(ctx, rest/4) {
				return
			}
		}
		p.mu.Lock()
		all := make([]*track, 0, len(p.tracks))
		for t := range p.tracks {
			all = append(all, t)
		}
		p.mu.Unlock()
		if len(all) == 0 {
			wait = maxBackOff
			continue
		}
		last = time.Now()
		err := p.look(ctx, all)
		if ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		was := p.away
		p.away = err
		p.mu.Unlock()
		switch {
		case err == nil:
			wait = p.b.poll
			if was != nil {
				p.log.Info("the back end answers again", "adapter", p.b.name)
			}
		default:
			wait = min(max(2*wait, p.b.poll), max(p.b.poll, min(maxBackOff, max(20*p.b.poll, time.Second))))
			if was == nil {
				p.log.Warn("can't look at jobs", "adapter", p.b.name, "err", err)
			}
			p.b.unread(err)
			for _, t := range all {
				t.nudge()
			}
		}
	}
}

// pause is false if ctx ends before d is over.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// look reads how all jobs stand.
func (p *poller) look(ctx context.Context, all []*track) error {
	w := &p.b.d.Watch
	if w.List == nil {
		return p.each(ctx, all)
	}
	began := time.Now()
	want := map[string][]*track{}
	for _, t := range all {
		t.mu.Lock()
		if t.known.Before(began) && !t.gone {
			want[t.id] = append(want[t.id], t)
		}
		t.mu.Unlock()
	}
	left := len(want)
	seen := map[string]bool{}
	vars := map[string]any{"settings": p.b.settings}
	err := p.b.list(client.Ahead(ctx), w.List, vars, func(item any) bool {
		id, err := p.b.text(ctx, w.Status.ID, map[string]any{"settings": p.b.settings, "job": item})
		if err != nil || want[id] == nil {
			return false
		}
		for _, t := range want[id] {
			p.b.read(ctx, t, item, began)
		}
		if !seen[id] {
			seen[id] = true
			left--
		}
		return left == 0
	})
	if err != nil && w.One != nil && !isAway(err) {
		return p.each(ctx, all) // the list is of no use, or was made so
	}
	if err != nil {
		return err
	}
	var lost []*track
	for id, ts := range want {
		for _, t := range ts {
			if !seen[id] && t.miss() {
				lost = append(lost, t)
			}
		}
	}
	return p.confirm(ctx, lost)
}

// each reads the jobs one by one.
func (p *poller) each(ctx context.Context, all []*track) error {
	var fault error
	var mu sync.Mutex
	var work sync.WaitGroup
	turns := make(chan struct{}, lookers)
	for _, t := range all {
		mu.Lock()
		stop := fault != nil
		mu.Unlock()
		if stop || ctx.Err() != nil {
			break
		}
		turns <- struct{}{}
		work.Go(func() {
			defer func() { <-turns }()
			if err := p.one(ctx, t); err != nil {
				mu.Lock()
				fault = err
				mu.Unlock()
			}
		})
	}
	work.Wait()
	return fault
}

// one reads a job by its own call.
func (p *poller) one(ctx context.Context, t *track) error {
	t.mu.Lock()
	gone := t.gone
	t.mu.Unlock()
	if gone {
		return nil
	}
	began := time.Now()
	job, err := p.b.one(ctx, t.vars())
	switch {
	case isAbsent(err):
		if t.miss() {
			return p.search(ctx, t)
		}
		return nil
	case err != nil:
		return err
	}
	p.b.read(ctx, t, job, began)
	return nil
}

// one asks for a job.
func (b *backend) one(ctx context.Context, vars map[string]any) (any, error) {
	a, err := b.call(ctx, b.d.Watch.One, vars)
	if err != nil {
		return nil, err
	}
	if !b.d.Watch.Job.Given() {
		return a.body, nil
	}
	return b.d.Watch.Job.Eval(ctx, a.in(vars))
}

// confirm looks once more for jobs that lists have missed.
func (p *poller) confirm(ctx context.Context, lost []*track) error {
	for _, t := range lost {
		if p.b.d.Watch.One != nil {
			began := time.Now()
			job, err := p.b.one(ctx, t.vars())
			if err == nil {
				p.b.read(ctx, t, job, began)
				continue
			}
			if !isAbsent(err) {
				return err
			}
		}
		if err := p.search(ctx, t); err != nil {
			return err
		}
	}
	return nil
}

// search looks for a job by its key, and gives it up if it isn't there.
func (p *poller) search(ctx context.Context, t *track) error {
	if p.b.d.Find.List != nil {
		ids, err := p.b.find(ctx, t.vars())
		if err != nil {
			return err
		}
		if slices.Contains(ids, t.id) {
			t.mu.Lock()
			t.missing = 0
			t.mu.Unlock()
			return nil
		}
	}
	t.mu.Lock()
	t.gone = true
	t.mu.Unlock()
	t.nudge()
	return nil
}

// find lists the jobs of an attempt by its key, the first ones first.
func (b *backend) find(ctx context.Context, vars map[string]any) ([]string, error) {
	f := &b.d.Find
	if f.List == nil {
		return nil, nil
	}
	var ids []string
	err := b.list(ctx, f.List, vars, func(item any) bool {
		at := map[string]any{"item": item}
		for k, v := range vars {
			at[k] = v
		}
		if f.Where.Given() && !truth(ctx, f.Where, at) {
			return false
		}
		id, err := b.text(ctx, f.ID, at)
		if err == nil && id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
		return len(ids) >= maxCopies
	})
	if isAbsent(err) {
		return nil, nil
	}
	return ids, err
}

// findAny is find for an attempt whose job may have been made by a call for many, or by
// itself: its note says in the end by which.
func (b *backend) findAny(ctx context.Context, n *note) ([]string, error) {
	ids, err := b.find(ctx, b.vars(n))
	if err != nil || !n.Alone || !b.placed {
		return ids, err
	}
	among := *n
	among.Alone = false
	more, err := b.find(ctx, b.vars(&among))
	if err != nil {
		return nil, err
	}
	if n.ID == "" && len(ids) == 0 && len(more) > 0 {
		n.Alone = false
	}
	for _, id := range more {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// maxCopies bounds how many jobs under one key are looked at.
const maxCopies = 16

// text is an expression's value as a text.
func (b *backend) text(ctx context.Context, x description.Expression, vars map[string]any) (string, error) {
	if !x.Given() {
		return "", nil
	}
	v, err := x.Eval(ctx, vars)
	if err != nil {
		return "", err
	}
	s := expr.Text(v)
	if len(s) > 1024 {
		return "", pcm.Errorf(pcm.Unavailable, "%s says %d bytes where a name should be", b.name, len(s))
	}
	return s, nil
}

// read notes what was seen of a job.
func (b *backend) read(ctx context.Context, t *track, job any, began time.Time) {
	vars := map[string]any{"settings": b.settings, "job": job}
	s := &b.d.Watch.Status
	word, err := b.text(ctx, s.State, vars)
	if err != nil || word == "" {
		return // an item without a state says nothing
	}
	r := &reading{job: job, word: b.clean(word, maxNative), native: b.states.Of(word), at: began}
	if v, err := b.line(ctx, s.Reason, vars); err == nil && v != "" {
		r.native.Reason = v
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if began.Before(t.known) || t.seen != nil && t.seen.native.State == adapters.Ended {
		return // a job that has ended doesn't come back
	}
	t.missing = 0
	same := t.seen != nil && t.seen.word == r.word && t.seen.native == r.native
	t.seen = r
	if !same {
		t.nudge()
	}
}

// miss notes that a reading lacked the job; true if it is to be given up unless
// it can be found otherwise.
func (t *track) miss() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.missing++; t.missing == 1 {
		t.first = time.Now()
	}
	return t.doomed || t.missing >= looks && time.Since(t.first) >= vanished
}

// doom says that the back end has taken the call that ends the job by force: the
// first reading from now on that lacks it is believed.
func (t *track) doom() {
	t.mu.Lock()
	t.doomed, t.known = true, time.Now()
	t.mu.Unlock()
}

func (t *track) nudge() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// view is what is known now.
func (t *track) view() (r *reading, gone bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen, t.gone
}

// forget has readings that have begun before now count no more.
func (t *track) forget() {
	t.mu.Lock()
	t.known = time.Now()
	t.mu.Unlock()
}

// line is an expression's value as a text for people.
func (b *backend) line(ctx context.Context, x description.Expression, vars map[string]any) (string, error) {
	if !x.Given() {
		return "", nil
	}
	v, err := x.Eval(ctx, vars)
	if err != nil {
		return "", err
	}
	return b.clean(expr.Text(v), maxReason), nil
}

// ids are the names of all jobs that are followed.
func (p *poller) ids() map[string]bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]bool, len(p.tracks))
	for t := range p.tracks {
		all[t.id] = true
	}
	return all
}
