package rest

import (
	"context"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/rest/client"
)

const (
	cleanTries  = 300 // with back-off, about a day
	cleanMost   = 5 * time.Minute
	cleaners    = 4  // at once
	unconfirmed = 20 // tries after which a job is deleted that does not say that it has ended
)

// cleaner deletes what attempts leave at the back end: first it makes sure that the
// job has ended, then, when the supervisor has recorded the attempt's end, it
// deletes the job, undoes the steps before it, and deletes the files.
type cleaner struct {
	r    *Runner
	wake chan struct{}

	mu    sync.Mutex
	items map[string]*leftover // by key, and by job where it is one copy of several
	away  bool                 // the back end did not answer the last call
}

// leftover is what is left of an attempt.
type leftover struct {
	key   string
	n     note
	copy  bool // a job that is there beside the attempt's own
	t     *track
	tries int
	next  time.Time
	busy  bool
	first time.Time // of looks for a job that may be there
	looks int
	found bool // all that creates may have left was looked for
	gone  bool // the job is no more
	undo  int  // steps that are undone
}

func newCleaner(r *Runner) *cleaner {
	return &cleaner{r: r, wake: make(chan struct{}, 1), items: map[string]*leftover{}}
}

func (c *cleaner) add(n *note) {
	key := n.Task.Key.String()
	c.mu.Lock()
	c.items[key] = &leftover{key: key, n: *n}
	c.mu.Unlock()
	c.soon()
}

// copies are jobs of an attempt that has another one.
func (c *cleaner) copies(n *note, ids []string) {
	c.mu.Lock()
	for _, id := range ids {
		o := &leftover{key: n.Task.Key.String(), n: *n, copy: true}
		o.n.ID, o.n.Stage, o.n.Doubt = id, made, false
		if len(c.items) < maxLeft {
			c.items[o.key+" "+id] = o
		}
	}
	c.mu.Unlock()
	c.soon()
}

const maxLeft = 20_000

func (c *cleaner) soon() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// idle tells whether there is nothing to do, or nothing that can be done now.
func (c *cleaner) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.items) == 0 || c.away
}

// run works until ctx ends.
func (c *cleaner) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	turns := make(chan struct{}, cleaners)
	for {
		now, wait := time.Now(), time.Minute
		c.mu.Lock()
		var due []*leftover
		for _, o := range c.items {
			switch rest := o.next.Sub(now); {
			case o.busy:
			case rest <= 0:
				o.busy = true
				due = append(due, o)
			default:
				wait = min(wait, rest)
			}
		}
		c.mu.Unlock()
		for _, o := range due {
			select {
			case turns <- struct{}{}:
			case <-ctx.Done():
				return
			}
			work.Go(func() {
				defer func() { <-turns }()
				c.turn(ctx, o)
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.wake:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// turn does what can be done of one.
func (c *cleaner) turn(ctx context.Context, o *leftover) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := c.clean(ctx, o)
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.soon()
	o.busy, c.away = false, isAway(err)
	if err == nil || o.tries >= cleanTries {
		if err != nil {
			c.r.log.Error("gave up to delete what an attempt has left: its back end does not let us", "attempt", o.key, "job", o.n.ID, "err", err)
		}
		if o.t != nil {
			c.r.poller.leave(o.t)
		}
		for k, v := range c.items {
			if v == o {
				delete(c.items, k)
			}
		}
		return
	}
	switch err {
	case errLater:
		o.next = time.Now().Add(min(c.r.b.poll, 100*time.Millisecond))
		return
	case errUnseen:
		o.next = time.Now().Add(c.r.b.poll)
		return
	}
	o.tries++
	o.next = time.Now().Add(min(c.r.b.poll<<min(o.tries, 8), cleanMost))
	if o.tries == 5 {
		c.r.log.Warn("can't delete what an attempt has left yet", "attempt", o.key, "job", o.n.ID, "err", err)
	}
}

// These have a leftover looked at again soon: they are no failures.
var (
	errLater  = pcm.Errorf(pcm.Conflict, "its end is not recorded yet, or another job of its own is there yet")
	errUnseen = pcm.Errorf(pcm.Conflict, "a job that it may have is looked for")
	errStill  = pcm.Errorf(pcm.Conflict, "it has yet to end") // though it was called to
)

func (c *cleaner) clean(ctx context.Context, o *leftover) error {
	b := c.r.b
	vars := b.vars(&o.n)
	if !o.gone && o.n.ID == "" && (o.n.Stage == making || o.n.Doubt) {
		if err := c.find(ctx, o); err != nil {
			return err
		}
		vars["id"] = o.n.ID
	}
	if !o.gone && o.n.Stage == made {
		if err := c.end(ctx, o, vars); err != nil {
			return err
		}
		o.n.Stage, o.n.Dying = over, false
		if !o.copy {
			if err := c.r.notes.save(&o.n); err != nil {
				return err
			}
		}
	}
	if !c.r.recorded(o.key) {
		return errLater
	}
	if !o.gone && o.n.ID != "" && b.d.Delete != nil {
		if _, err := b.call(ctx, b.d.Delete, vars); err != nil && !isAbsent(err) {
			return err
		}
	}
	o.gone = true
	if o.copy {
		return nil
	}
	if o.n.Doubt && !o.found {
		if err := c.find(ctx, o); err != nil {
			return err
		}
		if !o.found {
			return errUnseen
		}
	}
	steps := b.d.Create.Before
	for ; o.undo < len(steps); o.undo++ {
		s := steps[len(steps)-1-o.undo]
		v, done := o.n.Step[s.Name]
		if !done || s.Undo == nil {
			continue
		}
		vars["step"] = v
		if _, err := b.call(ctx, s.Undo, vars); err != nil && !isAbsent(err) {
			return err
		}
	}
	if o.n.Stored {
		if err := b.discard(ctx, &o.n); err != nil {
			return err
		}
	}
	if c.copied(o.key) { // the note is all that tells of them
		return errLater
	}
	return c.r.notes.remove(o.key)
}

// copied tells whether other jobs of the attempt are yet to be deleted.
func (c *cleaner) copied(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.items {
		if o.key == key && o.copy {
			return true
		}
	}
	return false
}

// find looks for what a create has left whose answer nobody read.
func (c *cleaner) find(ctx context.Context, o *leftover) error {
	b := c.r.b
	if b.d.Find.List == nil {
		o.found = true
		if o.n.ID == "" {
			c.r.log.Warn("a create was not answered, and the description has no way to find out what became of it", "attempt", o.key)
			o.gone = true
		}
		return nil
	}
	ids, err := b.findAny(ctx, &o.n)
	if err != nil {
		return err
	}
	var more []string
	for _, id := range ids {
		if o.n.ID == "" {
			o.n.ID, o.n.Stage = id, made
		} else if id != o.n.ID {
			more = append(more, id)
		}
	}
	if len(more) > 0 {
		c.copies(&o.n, more)
	}
	if o.n.ID == "" {
		if o.looks++; o.looks == 1 {
			o.first = time.Now()
		}
		if o.looks < looks || time.Since(o.first) < vanished || o.n.late(2*b.timeout) {
			return errUnseen
		}
		o.gone = true
	}
	o.found = !o.n.late(2 * b.timeout)
	return nil
}

// end ends a job, and makes sure that it has.
func (c *cleaner) end(ctx context.Context, o *leftover, vars map[string]any) error {
	if o.t == nil {
		n := o.n
		o.t = c.r.poller.follow(o.key, o.n.ID, func() map[string]any { return c.r.b.vars(&n) })
	}
	seen, gone := o.t.view()
	if gone || seen != nil && seen.native.State == adapters.Ended {
		return nil
	}
	if seen != nil {
		vars["job"] = seen.job
	}
	call := c.r.b.killer()
	if call == nil {
		return pcm.Errorf(pcm.Refused, "the description of %s has no call that ends a job", c.r.b.name)
	}
	_, err := c.r.b.call(client.Ahead(ctx), call, vars)
	if isAbsent(err) {
		return nil
	}
	if err == nil && call == c.r.b.d.Delete { // ending a job is deleting it there
		return nil
	}
	c.r.poller.soon()
	if err == nil {
		err = errStill
	}
	if o.tries >= unconfirmed && c.r.b.d.Delete != nil {
		return nil
	}
	return err
}
