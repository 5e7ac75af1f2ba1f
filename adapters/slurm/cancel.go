package slurm

import (
	"context"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

const (
	maxDrops  = 20_000
	dropTries = 60  // with back-off: about half an hour
	maxCancel = 200 // with one look at the queue
)

// drop is a job that nobody wants any more.
type drop struct {
	ref   jobRef
	asked time.Time
	tries int
	next  time.Time
	left  bool // in its array, until nothing of that waits that is wanted
}

// drop has a job cancelled, however long Slurm does not answer.
func (p *poller) drop(ref jobRef) {
	if ref.Name == "" {
		return
	}
	p.mu.Lock()
	if key := ref.Name + " " + ref.String(); p.drops[key] == nil && len(p.drops) < maxDrops {
		p.drops[key] = &drop{ref: ref, asked: time.Now()}
	}
	p.mu.Unlock()
	p.soon()
}

// cancelling tells whether there is something that can be cancelled now.
func (p *poller) cancelling() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.drops {
		if !d.left {
			return true
		}
	}
	return false
}

// cancel is one request to Slurm, for some that nobody wants.
type cancel struct {
	ref   jobRef
	drops []*drop
	whole bool // all of the array that has yet to run
}

// cancelDropped cancels what nobody wants, and forgets what is no more.
func (p *poller) cancelDropped(ctx context.Context, all []job, began time.Time) {
	now := time.Now()
	for i, c := range p.unwanted(all, began, now) {
		if i >= maxCancel { // the rest with the next look
			p.soon()
			return
		}
		var err error
		if c.whole {
			err = p.r.link.(pendingCanceler).cancelPending(ctx, c.ref)
		} else {
			err = p.r.link.signal(ctx, c.ref, "")
		}
		if pcm.ErrorCode(err) == pcm.Unavailable {
			return
		}
		for _, d := range c.drops {
			d.tries++
			d.next = now.Add(min(time.Duration(d.tries)*time.Second, maxBackOff))
		}
	}
}

// unwanted are the requests that are due by a look at the queue.
//
// Tasks of an array that have yet to run are one job. Where only all of them can be
// cancelled, those that nobody wants are left in until that holds for all: they have
// been made sure never to run, and when their turn comes they are over at once.
func (p *poller) unwanted(all []job, began, now time.Time) (due []cancel) {
	type array struct {
		id   int64
		name string
	}
	_, together := p.r.link.(pendingCanceler)
	wait := map[array]int{}
	for _, j := range all {
		if together && j.Indexes != "" && p.ours(j) && states.Of(j.State).State != adapters.Ended {
			wait[array{j.ID, j.Name}] += j.waiting()
		}
	}
	dropped := map[array]map[int]*drop{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, d := range p.drops {
		if !d.asked.Before(began) {
			continue // it may have come between
		}
		at := slices.IndexFunc(all, func(j job) bool {
			return j.Name == d.ref.Name && p.ours(j) && (d.ref.ID == 0 || j.ID == d.ref.ID) &&
				(d.ref.Index < 0 || j.covers(d.ref.Index)) && states.Of(j.State).State != adapters.Ended
		})
		if at < 0 || d.tries >= dropTries {
			delete(p.drops, key)
			continue
		}
		d.ref.ID = all[at].ID
		d.left = together && d.ref.Index >= 0 && all[at].Indexes != ""
		switch a := (array{d.ref.ID, d.ref.Name}); {
		case d.left:
			if dropped[a] == nil {
				dropped[a] = map[int]*drop{}
			}
			dropped[a][d.ref.Index] = d
		case !d.next.After(now):
			due = append(due, cancel{ref: d.ref, drops: []*drop{d}})
		}
	}
	for a, drops := range dropped {
		if len(drops) < wait[a] {
			continue
		}
		c := cancel{ref: jobRef{a.id, -1, a.name}, whole: true}
		ready := false
		for _, d := range drops {
			d.left = false
			ready = ready || !d.next.After(now)
			c.drops = append(c.drops, d)
		}
		if ready {
			due = append(due, c)
		}
	}
	return due
}
