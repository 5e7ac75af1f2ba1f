package consensus

import (
	"bufio"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// AwayConfig is what it takes to speak to a cell that this peer is not in. Cell,
// Self, Host and Peers are needed.
type AwayConfig struct {
	Cell pcm.CellID
	Self pcm.PeerID
	Host host.Host
	// Peers names peers of the cell, those to be asked first ahead. What they say of
	// the cell is believed: name none that only says itself that it is of the cell.
	Peers  func() []pcm.PeerID
	Logger *slog.Logger // nil: slog.Default()
}

// Bounds of a client of another cell.
const (
	awayTry    = 5 * time.Second // for one peer to answer; a stopped leader must not hold a caller up for ever
	awayLook   = 2 * time.Second // for those who are asked who leads
	awaySettle = 50 * time.Millisecond
	awayAsked  = 8                      // peers that are asked at a time
	awayMost   = 100 * time.Millisecond // between tries: while a leader is being elected, each adds to what a caller waits
	awayDoubt  = time.Second            // without an answer of the leader's: others are asked whether it still is
	awayShun   = 3 * time.Second        // a peer that failed is not taken for the leader for so long, if another one may be
)

// Away is this peer as a client of a cell that it is not in: it proposes, asks
// and listens there, through whichever of the cell's peers answers. Its methods
// are safe for concurrent use.
type Away struct {
	cfg   AwayConfig
	links *links
	clock *logClock

	patience time.Duration // awayTry

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	closing bool
	wg      sync.WaitGroup
	leader  pcm.PeerID               // that answered last as one; "": not known
	named   pcm.PeerID               // whom the cell's peers named last as leader
	moved   context.Context          // ends, and is replaced, when they name another one
	leave   context.CancelFunc       // ends it
	looking *looking                 // nil: nobody is asked just now
	voters  []pcm.PeerID             // as the cell's peers named them last
	failed  map[pcm.PeerID]time.Time // by peer: when it did not answer as it should
	heard   time.Time
}

// NewAway makes a client of another cell. It asks nobody yet.
func NewAway(cfg AwayConfig) (*Away, error) {
	if cfg.Cell == "" || cfg.Self == "" || cfg.Host == nil || cfg.Peers == nil {
		return nil, pcm.Errorf(pcm.Invalid, "consensus: AwayConfig lacks Cell, Self, Host or Peers")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	a := &Away{cfg: cfg, clock: &logClock{}, patience: awayTry, failed: map[pcm.PeerID]time.Time{}}
	a.ctx, a.cancel = context.WithCancel(context.Background())
	a.moved, a.leave = context.WithCancel(a.ctx)
	a.links = newLinks(cfg.Host, cfg.Cell, a.start)
	return a, nil
}

// Cell is the cell that this client speaks to.
func (a *Away) Cell() pcm.CellID { return a.cfg.Cell }

// Close ends the client; calls that wait fail.
func (a *Away) Close() {
	a.mu.Lock()
	a.closing = true
	a.mu.Unlock()
	a.cancel()
	a.links.closeAll()
	a.wg.Wait()
}

func (a *Away) start(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closing {
		return false
	}
	a.wg.Go(f)
	return true
}

// LogTime estimates the other cell's log time now, in ms; 0 as long as nothing
// was heard of it ([Away.Locate] changes that).
func (a *Away) LogTime() int64 {
	_, stamp := a.clock.read()
	return stamp
}

// Heard is when the cell last decided or answered something for this client; the
// zero time if it never did.
func (a *Away) Heard() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.heard
}

func (a *Away) answered(by pcm.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.heard = time.Now()
	delete(a.failed, by)
}

// failedAt notes that a peer did not answer as a leader would.
func (a *Away) failedAt(id pcm.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leader == id {
		a.leader = ""
	}
	if len(a.failed) >= maxLinks {
		clear(a.failed)
	}
	a.failed[id] = time.Now()
}

// Propose is [Cell.Propose] in the other cell: the same command takes effect
// once, however often it is proposed.
func (a *Away) Propose(ctx context.Context, cmds ...pcm.Signed) ([]pcm.CommandResult, error) {
	if len(cmds) == 0 {
		return nil, nil
	}
	if _, err := sizeOf(cmds); err != nil {
		return nil, err
	}
	var answer proposeAnswer
	err := a.persist(ctx, func() error {
		leader, moved, err := a.find(ctx)
		if err != nil {
			return err
		}
		answer = proposeAnswer{}
		defer a.doubt()()
		if err := a.try(ctx, leader, moved, protoPropose, "propose", proposeRequest{cmds}, &answer); err != nil {
			if isRetryable(err) {
				a.failedAt(leader)
			}
			return err
		}
		if len(answer.Results) != len(cmds) {
			return pcm.Errorf(pcm.Unavailable, "peer %s, taken for the leader of %s, sent %d results for %d commands", pcm.Short(leader), pcm.Short(a.cfg.Cell), len(answer.Results), len(cmds))
		}
		a.answered(leader)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.clock.observe(answer.Term, answer.Stamp)
	return answer.Results, nil
}

// Query asks the other cell's ledger something. Whatever was committed there
// before the call is seen by the answer. Any peer of the cell may answer; who
// can't is left for the next one until ctx ends (Unavailable).
func (a *Away) Query(ctx context.Context, method string, in, out any) error {
	if method == methodWhere {
		return pcm.Errorf(pcm.Invalid, "consensus: the question %q is not the ledger's", method)
	}
	return a.persist(ctx, func() error {
		last := error(retryf("no peer of it is known here"))
		for _, id := range a.candidates() {
			err := a.try(ctx, id, a.ctx, protoQuery, method, in, out)
			if err == nil {
				a.answered(id)
				return nil
			}
			if !isRetryable(err) || ctx.Err() != nil || a.ctx.Err() != nil {
				return err
			}
			a.failedAt(id)
			last = err
		}
		return last
	})
}

// Locate finds out who leads the other cell now, and what its log time is.
func (a *Away) Locate(ctx context.Context) (leader pcm.PeerID, err error) {
	err = a.persist(ctx, func() (err error) {
		leader, err = a.look(ctx)
		return err
	})
	return leader, err
}

// persist tries again and again until f succeeds, fails for good, or ctx ends.
func (a *Away) persist(ctx context.Context, f func() error) error {
	wait := retryLeast
	for {
		err := f()
		switch {
		case err == nil:
			return nil
		case a.ctx.Err() != nil:
			return pcm.Errorf(pcm.Unavailable, "this peer speaks to %s no more: it is ending", pcm.Short(a.cfg.Cell))
		case ctx.Err() != nil:
			return pcm.Errorf(pcm.Unavailable, "%s did not answer in time (%v): %w", pcm.Short(a.cfg.Cell), err, ctx.Err())
		case !isRetryable(err):
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			wait = min(2*wait, awayMost)
		case <-ctx.Done():
		case <-a.ctx.Done():
		}
		timer.Stop()
	}
}

// try asks one peer, with patience of its own, and as long as valid doesn't end.
func (a *Away) try(ctx context.Context, to pcm.PeerID, valid context.Context, proto, method string, in, out any) error {
	try, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	defer context.AfterFunc(valid, cancel)()
	err := a.links.ask(try, to, nil, proto, method, in, out)
	switch {
	case err == nil || try.Err() == nil || ctx.Err() != nil:
		return err
	case valid.Err() != nil:
		return retryf("the cell's leader has changed")
	}
	return retryf("peer %s did not answer within %s", pcm.Short(to), a.patience)
}

// candidates are the peers to ask: the leader first, then as the configuration
// and the cell's own peers name them, those last that failed lately.
func (a *Away) candidates() []pcm.PeerID {
	named := a.cfg.Peers()
	a.mu.Lock()
	defer a.mu.Unlock()
	all := append(append([]pcm.PeerID{a.leader}, named...), a.voters...)
	var good, bad []pcm.PeerID
	for _, id := range all {
		switch {
		case id == "" || id == a.cfg.Self || slices.Contains(good, id) || slices.Contains(bad, id):
		case time.Since(a.failed[id]) < awayShun:
			bad = append(bad, id)
		default:
			good = append(good, id)
		}
	}
	all = append(good, bad...)
	return all[:min(len(all), 2*awayAsked)]
}

// looking is a look that is under way: many callers wait for the same one.
type looking struct {
	done   chan struct{} // closed when it has ended
	leader pcm.PeerID
	err    error
}

// find is who leads, as far as is known, and a context that ends when it is
// another one; else it looks.
func (a *Away) find(ctx context.Context) (pcm.PeerID, context.Context, error) {
	a.mu.Lock()
	leader, moved := a.leader, a.moved
	a.mu.Unlock()
	if leader != "" {
		return leader, moved, nil
	}
	l := a.lookAgain()
	select {
	case <-l.done:
	case <-ctx.Done():
		return "", nil, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return l.leader, a.moved, l.err
}

// lookAgain looks, whoever is taken for the leader now; or joins the look that is under way.
func (a *Away) lookAgain() *looking {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.looking != nil {
		return a.looking
	}
	l := &looking{done: make(chan struct{})}
	if a.closing {
		l.err = retryf("this peer's part of it is ending")
		close(l.done)
		return l
	}
	a.looking = l
	a.wg.Go(func() {
		l.leader, l.err = a.look(a.ctx)
		a.mu.Lock()
		a.looking = nil
		a.mu.Unlock()
		close(l.done)
	})
	return l
}

// doubt has others asked, again and again until stop is called, whether the leader still is one.
// One that was stopped keeps its connections, and would hold its callers up.
func (a *Away) doubt() (stop func()) {
	ctx, cancel := context.WithCancel(a.ctx)
	a.start(func() {
		tick := time.NewTicker(awayDoubt)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.lookAgain()
			case <-ctx.Done():
				return
			}
		}
	})
	return cancel
}

// look asks some peers at once who leads. Of those who answer in time the one
// of the newest term is believed, save that it names one that just failed.
func (a *Away) look(ctx context.Context) (pcm.PeerID, error) {
	asked := a.candidates()
	asked = asked[:min(len(asked), awayAsked)]
	if len(asked) == 0 {
		return "", retryf("no peer of it is known here")
	}
	ctx, cancel := context.WithTimeout(ctx, awayLook)
	defer cancel()
	answers := make(chan whereAnswer, len(asked))
	for _, id := range asked {
		if !a.start(func() {
			var w whereAnswer
			if err := a.links.ask(ctx, id, nil, protoQuery, methodWhere, nil, &w); err != nil {
				a.cfg.Logger.Debug("a peer of another cell can't say who leads", "cell", a.cfg.Cell, "peer", id, "error", err)
				w = whereAnswer{}
			}
			answers <- w
		}) {
			answers <- whereAnswer{}
		}
	}
	var best whereAnswer
	var settle, late <-chan time.Time
	for range asked {
		select {
		case w := <-answers:
			if !a.plausible(w) {
				continue
			}
			if best.Leader == "" || a.better(w, best) {
				best = w
			}
			if settle == nil && !a.shunned(best.Leader) {
				settle = time.After(awaySettle)
			}
			if late == nil { // who failed may be the one that doesn't answer
				late = time.After(4 * awaySettle)
			}
			continue
		case <-settle:
		case <-late:
		case <-ctx.Done():
		}
		break
	}
	if best.Leader == "" {
		return "", retryf("none of %d peers of it that were asked knows who leads", len(asked))
	}
	a.clock.observe(best.Term, best.Stamp) // not by an answer that isn't believed
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.named != best.Leader {
		a.leave()
		a.moved, a.leave = context.WithCancel(a.ctx)
	}
	a.leader, a.named, a.voters = best.Leader, best.Leader, best.Voters
	return best.Leader, nil
}

// plausible tells whether an answer names a leader, in form.
func (a *Away) plausible(w whereAnswer) bool {
	if len(w.Voters) > awayAsked || w.Leader == a.cfg.Self {
		return false
	}
	for _, id := range append(w.Voters, w.Leader) {
		if _, err := peer.Decode(string(id)); err != nil {
			return false
		}
	}
	return true
}

func (a *Away) shunned(id pcm.PeerID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.failed[id]) < awayShun
}

func (a *Away) better(w, than whereAnswer) bool {
	if s := a.shunned(than.Leader); s != a.shunned(w.Leader) {
		return s
	}
	return w.Term > than.Term
}

// Events is a subscription to what is committed in the other cell and concerns
// this peer, until ctx ends. Some may be missed whenever the stream to the cell
// breaks, or the subscriber is slow; each new stream begins with a batch, perhaps
// an empty one, at which the subscriber should ask for what it must not miss.
func (a *Away) Events(ctx context.Context) <-chan []pcm.Event {
	out := make(chan []pcm.Event, 256)
	if !a.start(func() { a.listen(ctx, out) }) {
		close(out)
	}
	return out
}

func (a *Away) listen(ctx context.Context, out chan<- []pcm.Event) {
	defer close(out)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	wait := retryLeast
	for ctx.Err() == nil {
		began := time.Now()
		leader, _, err := a.find(ctx)
		if err == nil {
			err = a.receive(ctx, leader, out)
			a.failedAt(leader)
		}
		if ctx.Err() != nil {
			return
		}
		a.cfg.Logger.Debug("the stream of another cell's events ended", "cell", a.cfg.Cell, "leader", leader, "error", err)
		if time.Since(began) > eventsAlive {
			wait = retryLeast
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			wait = min(2*wait, 5*awayMost)
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// receive hands on events from one peer until its stream ends.
func (a *Away) receive(ctx context.Context, from pcm.PeerID, out chan<- []pcm.Event) error {
	id, err := peer.Decode(string(from))
	if err != nil {
		return err
	}
	dial, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := a.cfg.Host.NewStream(dial, id, protocolOf(a.cfg.Cell, protoEvents))
	if err != nil {
		return err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	s.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.Write([]byte{1}); err != nil {
		return err
	}
	again := true // what came while there was no stream was missed
	r := bufio.NewReaderSize(s, 32<<10)
	for {
		s.SetReadDeadline(time.Now().Add(3 * eventsAlive))
		var f eventFrame
		if err := readFrame(r, &f); err != nil {
			return err
		}
		if f.Stamp > 0 {
			a.clock.observe(f.Term, f.Stamp)
		}
		if len(f.Events) == 0 && !again {
			continue
		}
		again = false
		select {
		case out <- f.Events:
		default:
			a.cfg.Logger.Warn("events of another cell come faster than they are taken: some are missed", "cell", a.cfg.Cell)
		}
	}
}
