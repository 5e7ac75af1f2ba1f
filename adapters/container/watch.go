package container

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm/adapters"
)

// watcher follows the engine's events, once for all attempts, and compares with
// the list of containers when it has connected and now and then.
type watcher struct {
	engine *engine
	home   string
	log    *slog.Logger

	mu      sync.Mutex
	tracks  map[string]*track    // by name of container
	orphans map[string]time.Time // containers of ours without an attempt: since when
	lost    time.Time            // since when the engine is away; zero: it is not
	running bool
	closed  bool
	stop    context.CancelFunc
	done    sync.WaitGroup
}

// track is what the watcher knows of one attempt's container.
type track struct {
	name string
	wake chan struct{} // capacity 1: look at the container

	// watcher.mu
	asked  bool          // we sent a signal
	killed string        // the signal that somebody else sent
	blind  time.Duration // how long the engine was away when the end came
}

const (
	compareEvery = 10 * time.Second
	linger       = 30 * time.Second // with nothing to watch
	orphanAge    = 15 * time.Second
)

func newWatcher(e *engine, home string, log *slog.Logger) *watcher {
	return &watcher{engine: e, home: home, log: log, tracks: map[string]*track{}, orphans: map[string]time.Time{}}
}

// add begins to watch a container, which need not be there yet.
func (w *watcher) add(name string) *track {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := &track{name: name, wake: make(chan struct{}, 1)}
	w.tracks[name] = t
	w.begin()
	return t
}

func (w *watcher) drop(t *track) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tracks[t.name] == t {
		delete(w.tracks, t.name)
	}
}

// orphan has a container removed when that can be done.
func (w *watcher) orphan(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.orphans[name] = time.Now().Add(-orphanAge)
	w.begin()
}

// begin sees to it that the loop runs. w.mu is held.
func (w *watcher) begin() {
	if w.running || w.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	w.running, w.stop, w.lost = true, cancel, time.Time{}
	w.done.Go(func() { defer cancel(); w.loop(ctx) })
}

func (w *watcher) close() {
	w.mu.Lock()
	w.closed = true
	if w.stop != nil {
		w.stop()
	}
	w.mu.Unlock()
	w.done.Wait()
}

// ask notes that we are about to send a signal.
func (w *watcher) ask(t *track) { w.mu.Lock(); t.asked = true; w.mu.Unlock() }

// fate is what is known of a container's end. The attempt may look at its
// container before this watcher is back at an engine that was away.
func (w *watcher) fate(t *track) (killed string, blind time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.lost.IsZero() {
		t.blind = max(t.blind, time.Since(w.lost))
	}
	return t.killed, t.blind
}

// away notes since when the engine is; zero: it is back.
func (w *watcher) away(since time.Time) { w.mu.Lock(); w.lost = since; w.mu.Unlock() }

// idle tells whether the loop is to end, and ends it.
func (w *watcher) idle(since time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.tracks) == 0 && len(w.orphans) == 0 && time.Since(since) > linger {
		w.running = false
		return true
	}
	return false
}

func (w *watcher) loop(ctx context.Context) {
	busy := time.Now() // when there was something to watch
	lost := time.Time{}
	last := time.Time{} // of the last event
	for wait := 100 * time.Millisecond; ; {
		began := time.Now()
		err := w.follow(ctx, &busy, &last, lost)
		if ctx.Err() != nil || err == nil {
			w.mu.Lock()
			w.running = false
			w.mu.Unlock()
			return
		}
		if lost.IsZero() || time.Since(began) > 2*wait {
			lost, wait = time.Now(), 100*time.Millisecond
			w.away(lost)
			w.log.Warn("the container engine is away", "err", err)
		}
		if w.idle(busy) {
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, 5*time.Second)
	}
}

// follow follows one stream of events. It returns nil when there is nothing to
// watch any more.
func (w *watcher) follow(ctx context.Context, busy, last *time.Time, lost time.Time) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	opts := client.EventsListOptions{Filters: client.Filters{}.Add("type", "container").Add("label", labelHome+"="+w.home)}
	if !last.IsZero() {
		opts.Since = fmt.Sprintf("%d.%09d", last.Unix(), last.Nanosecond())
	}
	timer := time.AfterFunc(callLimit, cancel)
	stream := w.engine.Events(ctx, opts)
	timer.Stop()
	if last.IsZero() {
		*last = time.Now()
	}
	var away time.Duration
	if !lost.IsZero() {
		away = time.Since(lost)
	}
	if err := w.compare(ctx, away); err != nil {
		select {
		case serr := <-stream.Err:
			return serr
		default:
			return err
		}
	}
	w.away(time.Time{})
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	for {
		select {
		case e := <-stream.Messages:
			*last = time.Unix(0, e.TimeNano)
			w.see(e)
		case err := <-stream.Err:
			if err == nil {
				err = fmt.Errorf("the stream of events ended")
			}
			return err
		case <-tick.C:
			if w.idle(*busy) {
				return nil
			}
			w.mu.Lock()
			if len(w.tracks) > 0 {
				*busy = time.Now()
			}
			w.mu.Unlock()
			if err := w.compare(ctx, 0); err != nil {
				return err
			}
		}
	}
}

// see takes in one event.
func (w *watcher) see(e events.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.tracks[e.Actor.Attributes["name"]]
	if t == nil {
		return
	}
	switch e.Action {
	case events.ActionKill:
		switch sig := e.Actor.Attributes["signal"]; sig {
		case "", "1", "2", "3", "9", "15": // what ends programs; podman tells no signal
			if !t.asked {
				if sig == "" {
					sig = "unknown"
				}
				t.killed = sig
			}
		}
	case events.ActionDie, events.ActionDestroy, events.ActionRemove, events.ActionPause, events.ActionUnPause, events.ActionStop, events.ActionOOM:
		t.look()
	}
}

func (t *track) look() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// compare looks for containers that have ended or vanished unseen, and for ones
// that no attempt owns any more. away is for how long nothing could be seen.
func (w *watcher) compare(ctx context.Context, away time.Duration) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	res, err := w.engine.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", labelHome+"="+w.home)})
	if err != nil {
		return err
	}
	seen := map[string]container.ContainerState{}
	var stale []string
	w.mu.Lock()
	for _, c := range res.Items {
		k, err := adapters.ParseKey(c.Labels[labelKey])
		if err != nil {
			continue
		}
		name := nameOf(k)
		seen[name] = c.State
		if w.tracks[name] != nil {
			delete(w.orphans, name)
		} else if since, ok := w.orphans[name]; !ok {
			w.orphans[name] = time.Now()
		} else if time.Since(since) > orphanAge {
			stale = append(stale, name)
		}
	}
	for name := range w.orphans {
		if _, ok := seen[name]; !ok {
			delete(w.orphans, name)
		}
	}
	for name, t := range w.tracks {
		if s, ok := seen[name]; !ok || states.Of(string(s)).State != adapters.Running || away > 0 {
			if away > 0 {
				t.blind = away
			}
			t.look()
		}
	}
	w.mu.Unlock()
	for _, name := range stale {
		w.log.Info("removing a container that no attempt owns", "container", name)
		if _, err := w.engine.ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil && away == 0 {
			w.log.Warn("can't remove a container", "container", name, "err", err)
		}
	}
	return nil
}

// seen notes that a container runs on after the engine was away.
func (w *watcher) seen(t *track) { w.mu.Lock(); t.blind = 0; w.mu.Unlock() }
