package consensus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// Bounds of the proposer.
const (
	maxQueued      = 16384                // commands that wait for an entry or its result, all proposers together
	maxQueuedBytes = 64 << 20             // the same in bytes
	maxFlying      = 3                    // entries on their way through Raft: more would be smaller ones, and cost more
	verifyBatch    = 256                  // commands that are checked at a time, for each core
	maxPatience    = 5 * time.Millisecond // a command waits for others at most so long, and half as long as an entry flies
	tickEvery      = 200 * time.Millisecond
	tickSeldom     = 2 * time.Second // between looks at what is due, where nothing is before the next one
	idleTick       = time.Minute     // an entry at least so often: what log time may lose with its leader
	retryLeast     = 10 * time.Millisecond
	retryMost      = 250 * time.Millisecond
)

// Propose has commands committed and applied, and returns one result for each.
// Those of one call are applied in their order and in one entry; they may be at
// most pcm.MaxEntryCommands, and pcm.MaxEntryBytes together (TooLarge). A
// command that is refused, by its form, its signature or the state, is a result.
//
// It works on every member: followers forward to the leader. While there is no
// leader, or it changes, Propose waits and tries again until ctx ends; then the
// error has code Unavailable, and the commands may still take effect. Trying
// again is safe, here and for the caller: the same command ID takes effect once.
// The leader's queue being full is code Busy.
func (c *Cell) Propose(ctx context.Context, cmds ...pcm.Signed) ([]pcm.CommandResult, error) {
	if len(cmds) == 0 {
		return nil, nil
	}
	if _, err := sizeOf(cmds); err != nil {
		return nil, err
	}
	wait := retryLeast
	for {
		leader, changed := c.watch.current()
		results, err := c.proposeTo(ctx, leader, changed, cmds)
		if err == nil {
			return results, nil
		}
		if ctx.Err() != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "%s did not answer in time (%v): %w", pcm.Short(c.cfg.Cell), err, ctx.Err())
		}
		if e := c.Err(); e != nil {
			return nil, e
		}
		if c.ctx.Err() != nil {
			return nil, errClosing
		}
		if !isRetryable(err) {
			return nil, err
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
			wait = retryLeast
		case <-timer.C:
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

func (c *Cell) proposeTo(ctx context.Context, leader pcm.PeerID, changed <-chan struct{}, cmds []pcm.Signed) ([]pcm.CommandResult, error) {
	switch leader {
	case "":
		if err := c.notices.stopped(); err != nil {
			return nil, err
		}
		return nil, retryf("it has no leader now: too few of its voters can reach each other")
	case c.cfg.Self:
		type outcome struct {
			results []pcm.CommandResult
			err     error
		}
		ch := make(chan outcome, 1)
		c.proposer.submit(cmds, func(r []pcm.CommandResult, err error) { ch <- outcome{r, err} })
		select {
		case o := <-ch:
			return o.results, o.err
		case <-c.failed: // Raft may leave unanswered what it was given while it ended
			return nil, c.failure
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	c.rest.rouse()
	var answer proposeAnswer
	if err := c.ask(ctx, leader, changed, protoPropose, "propose", proposeRequest{cmds}, &answer); err != nil {
		return nil, err
	}
	if len(answer.Results) != len(cmds) {
		return nil, pcm.Errorf(pcm.Internal, "the leader %s sent %d results for %d commands", pcm.Short(leader), len(answer.Results), len(cmds))
	}
	c.clock.observe(answer.Term, answer.Stamp)
	return answer.Results, nil
}

type proposeRequest struct {
	Commands []pcm.Signed `cbor:"1,keyasint"`
}

type proposeAnswer struct {
	Results []pcm.CommandResult `cbor:"1,keyasint"`
	Term    uint64              `cbor:"2,keyasint"`
	Stamp   int64               `cbor:"3,keyasint"` // log time at the leader
}

// answerPropose takes forwarded commands. Whoever the host lets in may forward:
// each command is signed, and the state judges its signer.
func (c *Cell) answerPropose(_ pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	var req proposeRequest
	if err := pcm.Unmarshal(body, &req); err != nil || method != "propose" || len(req.Commands) == 0 {
		reply(nil, pcm.Errorf(pcm.Invalid, "malformed request %q: %v", method, err))
		return
	}
	c.proposer.submit(req.Commands, func(results []pcm.CommandResult, err error) {
		if err != nil {
			reply(nil, err)
			return
		}
		term, stamp := c.clock.read()
		reply(pcm.MustMarshal(proposeAnswer{results, term, stamp}), nil)
	})
}

// sizeOf is the size of commands in an entry, more or less, or that they are too many.
func sizeOf(cmds []pcm.Signed) (int, error) {
	size := 0
	for _, s := range cmds {
		size += len(s.Payload) + len(s.Signer) + len(s.Sig) + 16
		if len(s.Payload) > pcm.MaxCommand {
			return 0, pcm.Errorf(pcm.TooLarge, "command of %d bytes is over the bound of %d", len(s.Payload), pcm.MaxCommand)
		}
	}
	if len(cmds) > pcm.MaxEntryCommands || size > pcm.MaxEntryBytes {
		return 0, pcm.Errorf(pcm.TooLarge, "%d commands of %d bytes are over the bounds of one proposal, %d and %d: split them", len(cmds), size, pcm.MaxEntryCommands, pcm.MaxEntryBytes)
	}
	return size, nil
}

// unit is what one Propose brought: it goes into one entry.
type unit struct {
	cmds    []pcm.Signed
	size    int
	results []pcm.CommandResult // refusals are filled in before the entry is made
	refused []bool
	decoded []pcm.Command // by Check, where not refused; nil: nobody checks
	live    int           // commands that go into the entry
	// gathered says that the verifier has taken it.
	gathered bool
	once     atomic.Bool
	done     func([]pcm.CommandResult, error)
	p        *proposer
}

// finish answers the unit, once.
func (u *unit) finish(err error) {
	if !u.once.CompareAndSwap(false, true) {
		return
	}
	u.p.queued.Add(-int64(len(u.cmds)))
	u.p.queuedBytes.Add(-int64(u.size))
	if u.gathered && u.p.unanswered.Add(-int64(len(u.cmds))) == 0 {
		select {
		case u.p.ended <- struct{}{}:
		default:
		}
	}
	if err != nil {
		u.done(nil, err)
		return
	}
	u.done(u.results, nil)
}

// flight is an entry on its way.
type flight struct {
	entry pcm.Entry
	data  []byte // the entry, encoded
	units []*unit
	began time.Time
}

// proposer makes entries of commands while this peer leads: a verifier checks
// signatures in batches and in parallel, then one goroutine packs all that is
// checked into the next entry. What comes while nothing is under way goes at
// once. What comes while entries are under way is gathered for a moment: an entry
// costs three disks a write and three peers a round of messages, whether it holds
// one command or hundreds, and so does a batch of signatures.
type proposer struct {
	c       *Cell
	came    chan struct{} // holds a token when intake has grown since the verifier looked
	checked chan []*unit
	slots   chan struct{}
	ended   chan struct{} // holds a token when a unit was answered since the verifier looked

	queued, queuedBytes atomic.Int64
	unanswered          atomic.Int64  // commands that were gathered
	flight              atomic.Int64  // how long an entry flies: a moving average, ns
	crowd               int64         // commands that were queued lately; of the verifier alone
	leading             atomic.Bool   // commands are taken
	ready               atomic.Uint64 // term whose first entry is under way; 0: none

	mu      sync.Mutex
	flights map[*byte]*flight // by the first byte of their data

	intakeMu sync.Mutex
	intake   []*unit // bounded by queued
}

func newProposer(c *Cell) *proposer {
	return &proposer{
		c: c, came: make(chan struct{}, 1), checked: make(chan []*unit, 4),
		slots: make(chan struct{}, maxFlying), ended: make(chan struct{}, 1), flights: map[*byte]*flight{},
	}
}

var errNotLeader = retryf("this peer doesn't lead the cell")

// submit queues commands; done is called once, with results or an error, and must not block.
func (p *proposer) submit(cmds []pcm.Signed, done func([]pcm.CommandResult, error)) {
	size, err := sizeOf(cmds)
	switch {
	case err != nil:
		done(nil, err)
		return
	case !p.leading.Load() || p.c.ctx.Err() != nil:
		done(nil, errNotLeader)
		return
	}
	p.c.rest.touch()
	if n := p.queued.Add(int64(len(cmds))); n > int64(p.c.cfg.maxQueued) || p.queuedBytes.Load()+int64(size) > maxQueuedBytes {
		p.queued.Add(-int64(len(cmds)))
		done(nil, pcm.Errorf(pcm.Busy, "%d commands wait at the leader of %s: retry in a moment", n, pcm.Short(p.c.cfg.Cell)))
		return
	}
	p.queuedBytes.Add(int64(size))
	u := &unit{cmds: cmds, size: size, done: done, p: p, results: make([]pcm.CommandResult, len(cmds)), refused: make([]bool, len(cmds))}
	p.intakeMu.Lock()
	p.intake = append(p.intake, u)
	p.intakeMu.Unlock()
	select {
	case p.came <- struct{}{}:
	default:
	}
}

// take takes units that wait to be checked, of about most commands together; a token is left for those that are left.
func (p *proposer) take(most int) (units []*unit, n int) {
	p.intakeMu.Lock()
	defer p.intakeMu.Unlock()
	i := 0
	for ; i < len(p.intake) && n < most; i++ {
		n += len(p.intake[i].cmds)
	}
	units = p.intake[:i:i]
	if p.intake = p.intake[i:]; len(p.intake) > 0 {
		select {
		case p.came <- struct{}{}:
		default:
		}
	} else if n > 0 {
		p.intake = nil // units has its array
	}
	return units, n
}

// gather takes what waits, and while commands taken before are under way, waits
// for about half of all that are queued: then two entries take turns, each with
// half of them. No units mean that the cell is closing.
func (p *proposer) gather() (units []*unit, n int) {
	most := verifyBatch * runtime.GOMAXPROCS(0)
	more := func() {
		fresh, of := p.take(most - n)
		for _, u := range fresh {
			u.gathered = true
		}
		if n += of; units == nil {
			units = fresh
		} else {
			units = append(units, fresh...)
		}
	}
	for n == 0 {
		select {
		case <-p.came:
			more()
		case <-p.c.ctx.Done():
			return nil, 0
		}
	}
	p.crowd = max(p.queued.Load(), p.crowd*7/8)
	defer func() { p.unanswered.Add(int64(n)) }()
	var late <-chan time.Time
	for n < most {
		more()
		if p.unanswered.Load() == 0 || 2*int64(n) >= p.crowd {
			return units, n
		}
		if late == nil {
			timer := time.NewTimer(min(maxPatience, time.Duration(p.flight.Load())/2))
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-p.came:
		case <-p.ended: // look again
		case <-late:
			return units, n
		case <-p.c.ctx.Done():
			return units, n
		}
	}
	return units, n
}

// verify checks what comes in and passes it on. What comes meanwhile is checked
// together: in batches a signature costs a third. Batches that are worth it are
// shared among the cores.
func (p *proposer) verify() {
	for {
		units, n := p.gather()
		if n == 0 {
			return
		}
		parts := max(1, min(runtime.GOMAXPROCS(0), n/minVerify, len(units)))
		var wg sync.WaitGroup
		for i := 1; i < parts; i++ {
			wg.Go(func() { p.check(units[i*len(units)/parts : (i+1)*len(units)/parts]) })
		}
		p.check(units[:len(units)/parts])
		wg.Wait()
		live := units[:0]
		for _, u := range units {
			if u.live == 0 {
				u.finish(nil)
				continue
			}
			live = append(live, u)
		}
		if len(live) == 0 {
			continue
		}
		select {
		case p.checked <- live:
		case <-p.c.ctx.Done():
			finishAll(live, errClosing)
		}
	}
}

func finishAll(units []*unit, err error) {
	for _, u := range units {
		u.finish(err)
	}
}

// check fills in the refusals of units.
func (p *proposer) check(units []*unit) {
	var batch []pcm.Signed
	type place struct {
		u *unit
		i int
	}
	var places []place
	refuse := func(u *unit, i int, err error) {
		u.results[i].Err = pcm.AsError(err)
		u.refused[i] = true
		u.live--
	}
	for _, u := range units {
		u.live = len(u.cmds)
		if p.c.cfg.Check != nil {
			u.decoded = make([]pcm.Command, len(u.cmds))
		}
		for i, s := range u.cmds {
			if p.c.cfg.Check != nil {
				cmd, err := p.c.cfg.Check(s)
				if err != nil {
					refuse(u, i, err)
					continue
				}
				u.decoded[i] = cmd
			}
			batch = append(batch, s)
			places = append(places, place{u, i})
		}
	}
	for n, ok := range p.c.cfg.Verify(batch) {
		if !ok {
			refuse(places[n].u, places[n].i, pcm.Errorf(pcm.Unauthorized, "the command's signature is not valid"))
		}
	}
}

// run leads whenever Raft says so. It is the only reader of checked.
func (p *proposer) run() {
	p.c.start(p.verify)
	leads := p.c.raft.LeaderCh()
	again := false
	for {
		if again {
			again = p.lead(leads)
			continue
		}
		select {
		case on := <-leads:
			if on {
				again = p.lead(leads)
			}
		case units := <-p.checked:
			finishAll(units, errNotLeader)
		case <-p.c.ctx.Done():
			return
		}
	}
}

// lead makes entries until the leadership ends. It reports whether it began anew meanwhile.
func (p *proposer) lead(leads <-chan bool) (again bool) {
	p.leading.Store(true)
	defer func() {
		p.leading.Store(false)
		p.ready.Store(0)
	}()
	// Nothing is stamped before all entries of earlier leaders are applied here.
	term := p.c.raft.CurrentTerm()
	if err := p.c.raft.Barrier(0).Error(); err != nil {
		if p.c.raft.State() != raft.Leader {
			return false
		}
		select { // a transfer of leadership is under way, or failed: look again
		case on := <-leads:
			return on
		case <-time.After(retryMost):
			return true
		case <-p.c.ctx.Done():
			return false
		}
	}
	if p.c.raft.CurrentTerm() != term { // not of this one: there is word of it
		select {
		case on := <-leads:
			return on
		case <-p.c.ctx.Done():
			return false
		}
	}
	var last int64
	p.c.View(func() { last = p.c.fsm.machine.Stamp() })
	// Log time goes on while nobody leads: attempts that run meanwhile are paid by it.
	_, now := p.c.committed.read()
	st := newStamper(max(last, now), p.c.cfg.Now())
	first, since := true, 0 // entries since the last mark
	made := time.Now()
	pause := tickEvery
	tick := time.NewTimer(pause)
	defer tick.Stop()
	var waiting []*unit
	for {
		if !first && len(waiting) == 0 {
			select {
			case waiting = <-p.checked:
			case <-tick.C:
				due, soon := time.Since(made) >= idleTick, true
				if !due {
					now := st.next()
					p.c.View(func() {
						due, soon = p.c.fsm.machine.Due(now), p.c.fsm.machine.Due(now+(tickSeldom+tickEvery).Milliseconds())
					})
				}
				if pause = tickEvery; !soon && len(p.slots) == 0 { // no entry is under way that could change it
					pause = tickSeldom
				}
				tick.Reset(pause)
				if !due {
					continue
				}
			case on := <-leads:
				return on
			case <-p.c.ctx.Done():
				return false
			}
		}
		if pause != tickEvery {
			pause = tickEvery
			tick.Reset(pause)
		}
		select {
		case p.slots <- struct{}{}:
		case on := <-leads:
			finishAll(waiting, errNotLeader)
			return on
		case <-p.c.ctx.Done():
			finishAll(waiting, errClosing)
			return false
		}
		var units []*unit
		units, waiting = p.pack(waiting)
		stamp := st.next()
		if first {
			p.c.clock.observe(term, stamp)
		}
		digest := p.c.fsm.nextDigest(since)
		if since++; digest != nil && len(digest.Sum) == 0 {
			since = 0
		}
		p.launch(pcm.Entry{Version: pcm.EntryVersion, Stamp: stamp, Wall: p.c.cfg.Now().UnixMilli(), NewTerm: first, Digest: digest}, units)
		made = time.Now()
		p.ready.Store(term)
		if first {
			first = false
			p.c.members.wake()
		}
	}
}

// pack takes what waits and what else is checked, up to an entry's bounds. What
// doesn't fit any more is for the next entry.
func (p *proposer) pack(waiting []*unit) (units, rest []*unit) {
	n, size := 0, 0
	for {
		for i, u := range waiting {
			if n > 0 && (n+u.live > pcm.MaxEntryCommands || size+u.size > pcm.MaxEntryBytes) {
				return append(units, waiting[:i]...), waiting[i:]
			}
			n, size = n+u.live, size+u.size
		}
		units = append(units, waiting...)
		select {
		case waiting = <-p.checked:
		default:
			return units, nil
		}
	}
}

// launch gives an entry to Raft; its outcome answers the units.
func (p *proposer) launch(e pcm.Entry, units []*unit) {
	for _, u := range units {
		for i, s := range u.cmds {
			if !u.refused[i] {
				e.Commands = append(e.Commands, s)
				if u.decoded != nil {
					e.Decoded = append(e.Decoded, u.decoded[i])
				}
			}
		}
	}
	data := pcm.MustMarshal(e)
	fl := &flight{e, data, units, time.Now()}
	p.mu.Lock()
	p.flights[&data[0]] = fl
	p.mu.Unlock()
	f := p.c.raft.ApplyLog(raft.Log{Data: data, Extensions: []byte(p.c.cfg.Cell)}, 0)
	go func() { // ends with Raft at the latest; land is then called by Close
		err := f.Error()
		var resp any
		if err == nil {
			resp = f.Response()
		}
		p.land(fl, resp, err)
	}()
}

// land ends a flight and answers its units.
func (p *proposer) land(fl *flight, resp any, err error) {
	p.mu.Lock()
	_, flying := p.flights[&fl.data[0]]
	delete(p.flights, &fl.data[0])
	p.mu.Unlock()
	if !flying {
		return // Close was faster
	}
	<-p.slots
	if err == nil {
		err, _ = resp.(error)
	}
	if err != nil {
		err = retryCause(err)
		for _, u := range fl.units {
			u.finish(err)
		}
		return
	}
	average := p.flight.Load() // two that land at a time may cost it an entry
	p.flight.Store(average + (int64(time.Since(fl.began))-average)/8)
	a := resp.(*applied)
	n := 0
	for _, u := range fl.units {
		for i := range u.cmds {
			if !u.refused[i] {
				u.results[i] = a.results[n]
				n++
			}
		}
		u.finish(nil)
	}
}

// retryCause explains Raft's errors. All of them leave open whether the entry
// was committed, and another leader will know.
func retryCause(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return &retryable{pcm.Errorf(pcm.Unavailable, "the cell's leader is changing: %w", err)}
	}
	return &retryable{pcm.Errorf(pcm.Unavailable, "the entry was not committed: %w", err)}
}

// mine is the entry whose encoding data is, if this peer is proposing it: its
// signatures are checked then, and it needn't be decoded.
func (p *proposer) mine(data []byte) (e pcm.Entry, ok bool) {
	if len(data) == 0 {
		return e, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fl, ok := p.flights[&data[0]]
	if ok {
		e = fl.entry
	}
	return e, ok
}

// drain answers all that is left. Nothing is submitted any more, and Raft has ended.
func (p *proposer) drain() {
	p.mu.Lock()
	flights := make([]*flight, 0, len(p.flights))
	for _, fl := range p.flights {
		flights = append(flights, fl)
	}
	p.mu.Unlock()
	for _, fl := range flights {
		p.land(fl, nil, fmt.Errorf("the cell is closing"))
	}
	for {
		left, _ := p.take(maxQueued)
		finishAll(left, errClosing)
		select {
		case units := <-p.checked:
			finishAll(units, errClosing)
			continue
		default:
		}
		if len(left) == 0 {
			return
		}
	}
}
