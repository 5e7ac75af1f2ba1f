package slurm

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm/adapters"
)

// poller looks for all attempts together: at Slurm's queue, and at the spool.
type poller struct {
	r    *Runner
	wake chan struct{} // capacity 1: look at Slurm soon

	mu       sync.Mutex
	attempts map[string]*attempt // by key
	drops    map[string]*drop    // jobs to be cancelled, by jobRef
	done     map[string]int      // keys whose end is not known to be on record, and their generations
	hung     time.Time           // since when Slurm has not answered; zero: it does
}

const (
	pollFast  = 500 * time.Millisecond
	pollSlow  = 15 * time.Second
	lookFast  = 25 * time.Millisecond
	lookSlow  = 500 * time.Millisecond
	pollShare = 25 // looking takes one part of so many of the time, at most
)

func newPoller(r *Runner) *poller {
	return &poller{r: r, wake: make(chan struct{}, 1), attempts: map[string]*attempt{}, drops: map[string]*drop{}, done: map[string]int{}}
}

func (p *poller) add(a *attempt) {
	p.mu.Lock()
	p.attempts[a.key] = a
	delete(p.done, a.key)
	p.mu.Unlock()
}

func (p *poller) remove(a *attempt, generations int) {
	p.mu.Lock()
	delete(p.attempts, a.key)
	p.done[a.key] = generations
	p.mu.Unlock()
}

// soon has Slurm looked at without delay.
func (p *poller) soon() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *poller) hungSince() time.Time { p.mu.Lock(); defer p.mu.Unlock(); return p.hung }

// idle tells whether there is nothing to look for.
func (p *poller) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.attempts) == 0 && len(p.drops) == 0
}

// watchQueue looks at Slurm's queue until ctx ends.
func (p *poller) watchQueue(ctx context.Context) {
	wait := pollFast
	for {
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-p.wake:
			// Many ask at once: one look serves them.
			timer.Stop()
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		case <-timer.C:
		}
		if p.idle() {
			wait = pollSlow
			continue
		}
		began := time.Now()
		all, err := p.r.link.jobs(ctx)
		took := time.Since(began)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			p.fault(began, err)
			wait = min(max(2*wait, time.Second), pollSlow)
			continue
		}
		p.mu.Lock()
		if !p.hung.IsZero() {
			p.r.log.Info("Slurm answers again", "after", time.Since(p.hung).String())
			p.hung = time.Time{}
		}
		p.mu.Unlock()
		p.match(all, began)
		p.cancelDropped(ctx, all, began)
		wait = min(max(pollFast, pollShare*took), pollSlow)
	}
}

func (p *poller) fault(began time.Time, err error) {
	p.mu.Lock()
	first := p.hung.IsZero()
	if first {
		p.hung = began
	}
	waiting := make([]*attempt, 0, len(p.attempts))
	for _, a := range p.attempts {
		waiting = append(waiting, a)
	}
	p.mu.Unlock()
	level := slog.LevelDebug
	if first {
		level = slog.LevelWarn
	}
	p.r.log.Log(context.Background(), level, "can't look at Slurm's queue", "err", err)
	for _, a := range waiting {
		a.nudge()
	}
}

// ours tells whether a job is of this node: numbers are given again, so they say nothing.
func (p *poller) ours(j job) bool {
	return strings.HasPrefix(j.Name, "pcm.") && j.Comment == p.r.owner
}

// named are the jobs of one name: one job, or what an array consists of.
type named struct {
	tasks map[int][]*job // of an array, that stand alone
	lists []list         // several that have yet to run
	whole []*job         // no part of an array, or what was left of one when it was cancelled
}

type list struct {
	*job
	of []indexes
}

func (n *named) add(j *job) {
	switch {
	case j.Indexes != "":
		n.lists = append(n.lists, list{j, j.ranges()})
	case j.Index < 0:
		n.whole = append(n.whole, j)
	default:
		if n.tasks == nil {
			n.tasks = map[int][]*job{}
		}
		n.tasks[j.Index] = append(n.tasks[j.Index], j)
	}
}

// at finds what stands for a task of the array, or for a job that is none, at -1.
func (n *named) at(index int) []*job {
	if n == nil {
		return nil
	}
	if index < 0 {
		return n.whole
	}
	found := slices.Clone(n.tasks[index])
	for _, l := range n.lists {
		if slices.ContainsFunc(l.of, func(r indexes) bool { return r.has(index) }) {
			found = append(found, l.job)
		}
	}
	if len(found) > 0 {
		return found
	}
	for _, j := range n.whole {
		if index == 0 || states.Of(j.State).State == adapters.Ended {
			found = append(found, j)
		}
	}
	return found
}

// match tells each attempt what Slurm says of it.
func (p *poller) match(all []job, began time.Time) {
	byName := map[string]*named{}
	for i := range all {
		if j := &all[i]; p.ours(*j) {
			if byName[j.Name] == nil {
				byName[j.Name] = &named{}
			}
			byName[j.Name].add(j)
		}
	}
	p.mu.Lock()
	attempts := make([]*attempt, 0, len(p.attempts))
	for _, a := range p.attempts {
		attempts = append(attempts, a)
	}
	p.mu.Unlock()
	for _, a := range attempts {
		a.mu.Lock()
		if a.submitted.IsZero() || a.submitted.After(began) {
			a.mu.Unlock()
			continue
		}
		found := byName[a.at.Name].at(a.at.Index)
		pick := p.pick(a, found)
		if pick == nil {
			if a.missing++; a.missing == 1 {
				a.since = time.Now()
			}
		} else {
			a.missing, a.jobAt = 0, began
			a.at.ID = pick.ID
		}
		changed := (pick == nil) || a.job == nil || a.job.State != pick.State || a.job.Reason != pick.Reason
		if pick != nil {
			a.job = pick
		}
		index, name := a.at.Index, a.at.Name
		a.mu.Unlock()
		for _, j := range found { // submitted twice, the first answer lost: the start file lets one of them run
			if pick != nil && j.ID != pick.ID && states.Of(j.State).State != adapters.Ended {
				p.drop(jobRef{j.ID, index, name})
			}
		}
		if changed {
			a.nudge()
		}
	}
}

// pick chooses among jobs under one name: the one that runs it, else the first. a.mu is held.
func (p *poller) pick(a *attempt, found []*job) *job {
	if len(found) == 0 {
		return nil
	}
	best := found[0]
	if len(found) > 1 {
		b, ok := p.r.spool.readBegun(a.key, a.at.Generation, "start")
		for _, j := range found[1:] {
			if ok && (jobRef{j.ID, a.at.Index, ""}).String() == b.Job {
				return j
			}
			if j.ID < best.ID {
				best = j
			}
		}
		if ok && best.ID != found[0].ID && (jobRef{found[0].ID, a.at.Index, ""}).String() == b.Job {
			best = found[0]
		}
	}
	return best
}

// watchSpool tells attempts of their evidence as it comes, until ctx ends.
func (p *poller) watchSpool(ctx context.Context) {
	seen := map[string]bool{}
	wait, tidied := lookFast, time.Now()
	for {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		if time.Since(tidied) > time.Second {
			p.tidy()
			tidied = time.Now()
		}
		p.mu.Lock()
		n := len(p.attempts)
		p.mu.Unlock()
		if n == 0 {
			wait = lookSlow / 4
			clear(seen)
			continue
		}
		began := time.Now()
		names, err := readNames(p.r.spool.events())
		if err != nil {
			wait = lookSlow
			continue
		}
		now, fresh := make(map[string]bool, len(names)), false
		for _, name := range names {
			now[name] = true
			if !seen[name] {
				fresh = true
				p.mu.Lock()
				a := p.attempts[keyOf(name)]
				p.mu.Unlock()
				if a != nil {
					a.nudge()
				}
			}
		}
		seen = now
		if fresh {
			wait = lookFast
		} else {
			wait = min(wait+wait/4, lookSlow)
		}
		wait = max(wait, pollShare*time.Since(began)) // many of them, or a slow file system
	}
}

// keyOf takes KEY out of KEY.GEN.WHAT.
func keyOf(name string) string {
	for range 2 {
		at := strings.LastIndexByte(name, '.')
		if at < 0 {
			return ""
		}
		name = name[:at]
	}
	return name
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// tidy deletes what attempts left whose end is on record: until then it is
// what keeps them from being run again.
func (p *poller) tidy() {
	p.mu.Lock()
	var gone []string
	for key := range p.done {
		if p.r.recorded(key) {
			gone = append(gone, key)
		}
	}
	p.mu.Unlock()
	for _, key := range gone {
		p.mu.Lock()
		gens := p.done[key]
		_, back := p.attempts[key]
		delete(p.done, key)
		p.mu.Unlock()
		if !back {
			p.r.spool.forget(key, gens)
		}
	}
}
