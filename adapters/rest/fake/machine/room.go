package machine

import "sync"

// Room is what a fake can run at once, in units of its own: cores, slots, cards.
// Who came first goes first, however little the next one wants.
type Room struct {
	mu    sync.Mutex
	all   int
	free  int
	queue []*Place
}

// Place is what one task has or waits for.
type Place struct {
	room  *Room
	n     int
	ready chan struct{}
	state placeState
}

type placeState int

const (
	waits placeState = iota
	has
	gone
)

// NewRoom makes a room of n units.
func NewRoom(n int) *Room { return &Room{all: n, free: n} }

// Enter asks for n units. Who wants none has its place at once.
func (r *Room) Enter(n int) *Place {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := &Place{room: r, n: n, ready: make(chan struct{})}
	if n <= 0 {
		p.n, p.state = 0, has
		close(p.ready)
		return p
	}
	r.queue = append(r.queue, p)
	r.admit()
	return p
}

// Use tells how many units there are, and how many are taken.
func (r *Room) Use() (all, taken int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all, r.all - r.free
}

func (r *Room) admit() {
	for len(r.queue) > 0 && r.queue[0].n <= r.free {
		p := r.queue[0]
		r.queue = r.queue[1:]
		r.free -= p.n
		p.state = has
		close(p.ready)
	}
}

// Ready is closed when the place is had.
func (p *Place) Ready() <-chan struct{} { return p.ready }

// Leave gives the place back, or no longer waits for it.
func (p *Place) Leave() {
	p.room.mu.Lock()
	defer p.room.mu.Unlock()
	switch p.state {
	case has:
		p.room.free += p.n
	case waits:
		for i, q := range p.room.queue {
			if q == p {
				p.room.queue = append(p.room.queue[:i], p.room.queue[i+1:]...)
				break
			}
		}
	}
	p.state = gone
	p.room.admit()
}
