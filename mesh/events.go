package mesh

import (
	"sync"

	"github.com/jointcloud/pcm"
	"github.com/libp2p/go-libp2p/core/peer"
)

// PeerEvent says that a peer was admitted or is gone.
type PeerEvent struct {
	Passport  pcm.Passport
	Connected bool
}

// events delivers peer events one by one, in a goroutine of its own. What waits
// is a set of peers whose state may have changed, so it is bounded by their number
// and a slow listener sees the latest state, not every flicker.
type events struct {
	mu        sync.Mutex
	cond      *sync.Cond
	listeners []func(PeerEvent)
	dirty     map[pcm.PeerID]struct{}
	running   bool
	closed    bool
	done      chan struct{}
}

func newEvents() *events {
	e := &events{dirty: map[pcm.PeerID]struct{}{}, done: make(chan struct{})}
	e.cond = sync.NewCond(&e.mu)
	return e
}

// OnPeer calls f when a peer is admitted or gone, one event at a time; for a
// peer that flickers faster than f returns, steps in between are left out. Peers that are
// connected already are told at once. f may call any method but Close.
func (m *Mesh) OnPeer(f func(PeerEvent)) {
	e := m.events
	e.mu.Lock()
	e.listeners = append(e.listeners, f)
	if !e.running && !e.closed {
		e.running = true
		go m.deliver()
	}
	e.mu.Unlock()
	for _, p := range m.connected() {
		m.touch(pcm.PeerID(p.String()))
	}
}

// touch notes that a peer's state may have changed.
func (m *Mesh) touch(p pcm.PeerID) {
	e := m.events
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running && !e.closed {
		e.dirty[p] = struct{}{}
		e.cond.Signal()
	}
}

func (m *Mesh) deliver() {
	e := m.events
	defer close(e.done)
	told := map[pcm.PeerID]int{} // how many listeners, in order, know the peer as connected
	for {
		e.mu.Lock()
		for len(e.dirty) == 0 && !e.closed {
			e.cond.Wait()
		}
		if e.closed {
			e.mu.Unlock()
			return
		}
		dirty, listeners := e.dirty, e.listeners
		e.dirty = map[pcm.PeerID]struct{}{}
		e.mu.Unlock()
		for p := range dirty {
			ev, known := m.peerState(p)
			if !known {
				continue
			}
			before := told[p]
			if ev.Connected {
				told[p] = len(listeners)
				for _, f := range listeners[min(before, len(listeners)):] {
					f(ev)
				}
			} else if before > 0 {
				delete(told, p)
				for _, f := range listeners[:before] {
					f(ev)
				}
			}
		}
	}
}

func (m *Mesh) peerState(p pcm.PeerID) (PeerEvent, bool) {
	id, err := peer.Decode(string(p))
	if err != nil {
		return PeerEvent{}, false
	}
	m.mu.Lock()
	s := m.sessions[id]
	if s != nil && s.open {
		defer m.mu.Unlock()
		return PeerEvent{s.passport, true}, true
	}
	m.mu.Unlock()
	pass, ok := m.roster.passport(id)
	return PeerEvent{pass, false}, ok
}

func (e *events) close() {
	e.mu.Lock()
	e.closed = true
	running := e.running
	e.cond.Broadcast()
	e.mu.Unlock()
	if running {
		<-e.done
	}
}
