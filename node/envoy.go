package node

import (
	"context"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// envoy speaks to one other cell for one driver, so that a cell that does not
// answer keeps nobody waiting: it proposes there what the driver wants, asks how
// its trades stand, and tells the driver. It works in cycles: what the driver wants
// is done only if the driver knew all news when it said so.
type envoy struct {
	n    *Node
	job  pcm.JobID
	cell pcm.CellID
	tell func(tidings) // must not block
	wake chan struct{}
	stop context.CancelFunc

	mu      sync.Mutex
	errands []errand
	watched []pcm.TradeID
	knows   int // the cycle of which the driver had the news when it wanted that
	cycle   int

	heard int // the cycle of which the driver has the news; the driver's own

	hold time.Time // until when errands wait, after some that failed; run's own

	as     *deputy // that has to be shown there first; nil: none
	shown  bool    // it was; run's own
	refuse string  // why it is not taken there; "": it is, or that isn't known
}

// errand is a command for the other cell.
type errand struct {
	trade pcm.TradeID
	ops   []pcm.Op
}

// tidings are what an envoy tells: what became of the errands, and of the trades.
type tidings struct {
	from    *envoy
	cycle   int
	results map[pcm.TradeID]errandResult
	seen    map[pcm.TradeID]*ledger.Trade // of those asked for; nil: not there
	stamp   int64                         // log time of the cell's last entry by then
}

// errandResult is what became of a command: err is set if that is not known.
type errandResult struct {
	ops    []pcm.Op
	result pcm.CommandResult
	err    error
}

// How an envoy paces itself.
const (
	envoyPatience = 8 * time.Second // for one command, or one question
	envoyLeast    = 50 * time.Millisecond
	envoyMost     = 3 * time.Second
)

func (n *Node) newEnvoy(ctx context.Context, job pcm.JobID, cell pcm.CellID, as *deputy, tell func(tidings)) *envoy {
	e := &envoy{n: n, job: job, cell: cell, as: as, tell: tell, wake: make(chan struct{}, 1)}
	ctx, e.stop = context.WithCancel(ctx)
	n.ears.open(e)
	go func() {
		defer n.ears.close(e)
		e.run(ctx)
	}()
	return e
}

func (e *envoy) nudge() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// want says what is to be done, and which trades are to be watched.
func (e *envoy) want(errands []errand, watched []pcm.TradeID) {
	e.mu.Lock()
	e.errands, e.watched, e.knows = errands, watched, e.heard
	e.mu.Unlock()
	if len(errands) > 0 {
		e.nudge()
	}
}

// take takes what is to be done now.
func (e *envoy) take() (errands []errand, watched []pcm.TradeID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.knows == e.cycle && time.Now().After(e.hold) {
		errands, e.errands = e.errands, nil
	}
	return errands, e.watched
}

func (e *envoy) run(ctx context.Context) {
	wait := envoyLeast
	told := map[pcm.TradeID]pcm.Digest{}
	for ctx.Err() == nil {
		errands, watched := e.take()
		if err := e.show(ctx); err != nil && ctx.Err() == nil {
			e.n.log.Info("another cell does not let this peer act for a job's buyer yet", "job", e.job, "cell", e.cell, "reason", err)
			wait = envoyMost // what it is to do there is not done, as if the cell was silent
		} else if len(errands)+len(watched) > 0 {
			news := tidings{from: e}
			err := e.send(ctx, errands, &news)
			for _, er := range errands {
				delete(told, er.trade) // what became of it is news in any case
			}
			if err == nil && len(watched) > 0 {
				err = e.look(ctx, watched, told, &news)
			}
			if failed(news.results) {
				e.hold = time.Now().Add(time.Second)
			}
			if len(errands) > 0 || len(news.seen) > 0 {
				e.mu.Lock()
				e.cycle++
				news.cycle = e.cycle
				e.mu.Unlock()
				e.tell(news)
				wait = envoyLeast
			}
			if err != nil {
				e.n.log.Debug("can't speak to another cell", "job", e.job, "cell", e.cell, "error", err)
				wait = envoyMost
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-e.wake:
			wait = envoyLeast
		case <-timer.C:
			wait = min(2*wait, envoyMost)
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// show has this peer act there for the job's buyer, if it doesn't by itself.
func (e *envoy) show(ctx context.Context) error {
	if e.as == nil || e.shown {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, envoyPatience)
	defer cancel()
	op, why := e.as.succession(ctx)
	if why == nil {
		results, err := e.n.commitIn(ctx, e.cell, [][]pcm.Op{{op}})
		if err != nil {
			return err // nothing is heard of it
		}
		why = results[0].First()
	}
	if e.as.signed == nil { // of the buyer's account: it acts there in any case
		why = nil
	}
	e.shown = why == nil
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.refuse = ""; why != nil {
		e.refuse = clip(why.Error())
	}
	return why
}

// barred says why the cell doesn't let this peer act for the job's buyer; "" if it does,
// or nobody has asked yet.
func (e *envoy) barred() string {
	if e == nil || e.as == nil || e.as.signed == nil {
		return ""
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.refuse
}

// attested puts on an award by a driver of another account what it has to show.
func (e *envoy) attested(ctx context.Context, ops []pcm.Op) ([]pcm.Op, error) {
	if e.as == nil || e.as.signed == nil || ops[0].Award == nil {
		return ops, nil
	}
	at, err := e.as.attested(ctx, pcm.DigestOf(pcm.MustMarshal(ops[0].Award.Terms)))
	if err != nil {
		return nil, err
	}
	return []pcm.Op{{Award: &pcm.Award{Terms: ops[0].Award.Terms, Attest: at}}}, nil
}

// failed tells whether there are errands that will be tried again as they are.
func failed(results map[pcm.TradeID]errandResult) bool {
	for _, r := range results {
		award := r.ops[0].Award != nil
		void := r.ops[0].Void != nil && pcm.ErrorCode(r.result.First()) == pcm.Conflict
		if r.err != nil || r.result.First() != nil && !award && !void {
			return true
		}
	}
	return false
}

// send proposes errands, each as a command of its own.
func (e *envoy) send(ctx context.Context, errands []errand, news *tidings) error {
	if len(errands) == 0 {
		return nil
	}
	news.results = map[pcm.TradeID]errandResult{}
	var commands [][]pcm.Op
	var unattested error
	sent := errands[:0:0]
	for _, er := range errands {
		ops, err := e.attested(ctx, er.ops)
		if err != nil { // as if it got lost
			unattested, news.results[er.trade] = err, errandResult{ops: er.ops, err: err}
			continue
		}
		sent, commands = append(sent, er), append(commands, ops)
	}
	if len(sent) == 0 {
		return unattested
	}
	try, cancel := context.WithTimeout(ctx, envoyPatience)
	defer cancel()
	results, err := e.n.commitIn(try, e.cell, commands)
	for i, er := range sent {
		r := errandResult{ops: er.ops, err: err}
		if i < len(results) {
			r.result, r.err = results[i], nil
		}
		news.results[er.trade] = r
	}
	return err
}

// look asks how trades stand. Those that are as they were are no news.
func (e *envoy) look(ctx context.Context, watched []pcm.TradeID, told map[pcm.TradeID]pcm.Digest, news *tidings) error {
	try, cancel := context.WithTimeout(ctx, envoyPatience)
	defer cancel()
	found, stamp, err := e.n.tradesIn(try, e.cell, watched)
	if err != nil {
		return err
	}
	news.stamp = stamp
	news.seen = map[pcm.TradeID]*ledger.Trade{}
	for _, id := range watched {
		digest := pcm.DigestOf(pcm.MustMarshal(found[id]))
		if told[id] != digest || found[id] == nil { // of what is missing, the time is news
			told[id] = digest
			news.seen[id] = found[id]
		}
	}
	if len(told) > 2*len(watched)+1024 { // of trades that are over
		clear(told)
	}
	return nil
}

// commitIn has lists of operations committed in another cell, each as a command of
// its own, in order. With an error come the results of those before it.
func (n *Node) commitIn(ctx context.Context, cell pcm.CellID, commands [][]pcm.Op) ([]pcm.CommandResult, error) {
	away, err := n.aways.to(cell)
	if err != nil {
		return nil, err
	}
	if away.LogTime() == 0 {
		if _, err := away.Locate(ctx); err != nil {
			return nil, err
		}
	}
	own := n.mesh.Signed()
	results := make([]pcm.CommandResult, 0, len(commands))
	for len(commands) > 0 {
		var signed []pcm.Signed
		bytes := 0
		for k, ops := range commands {
			if k == 0 { // the first one makes this peer known there
				ops = append([]pcm.Op{{Enroll: &pcm.Enroll{Passport: own}}}, ops...)
			}
			s := n.id.Peer.Seal(pcm.DomainCommand, pcm.Command{
				Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: n.id.Mesh.Mesh, Cell: cell,
				Peer: n.self, NotAfter: away.LogTime() + commandValidity.Milliseconds(), Ops: ops,
			})
			if bytes += len(s.Payload) + 128; k > 0 && (bytes > pcm.MaxEntryBytes/2 || k >= pcm.MaxEntryCommands) {
				break
			}
			signed = append(signed, s)
		}
		got, err := away.Propose(ctx, signed...)
		if err != nil {
			return results, err
		}
		if misdated(got[0]) && pause(ctx, 100*time.Millisecond) { // it took no effect: sign it anew
			if _, err := away.Locate(ctx); err != nil { // also brings the log time
				return results, err
			}
			continue
		}
		if len(got[0].Ops) > 0 { // the enrolment's own answer is nobody's news, unless it was refused
			if got[0].Ops[0].Err != nil {
				got[0].Err = got[0].Ops[0].Err
			}
			got[0].Ops = got[0].Ops[1:]
		}
		results, commands = append(results, got...), commands[len(got):]
	}
	return results, nil
}

// ears listen to other cells for the envoys that are there.
type ears struct {
	n  *Node
	mu sync.Mutex
	by map[pcm.CellID]*ear
}

type ear struct {
	envoys map[*envoy]bool
	stop   context.CancelFunc
}

func newEars(n *Node) *ears { return &ears{n: n, by: map[pcm.CellID]*ear{}} }

func (es *ears) open(e *envoy) {
	es.mu.Lock()
	defer es.mu.Unlock()
	ear := es.by[e.cell]
	if ear == nil {
		ear = newEar()
		var ctx context.Context
		ctx, ear.stop = context.WithCancel(es.n.run)
		es.by[e.cell] = ear
		go es.listen(ctx, e.cell)
	}
	ear.envoys[e] = true
}

func newEar() *ear { return &ear{envoys: map[*envoy]bool{}} }

func (es *ears) close(e *envoy) {
	es.mu.Lock()
	defer es.mu.Unlock()
	ear := es.by[e.cell]
	if ear == nil {
		return
	}
	if delete(ear.envoys, e); len(ear.envoys) == 0 {
		ear.stop()
		delete(es.by, e.cell)
	}
}

// listen wakes the envoys in a cell when something is committed there that concerns
// them, or may have been missed.
func (es *ears) listen(ctx context.Context, cell pcm.CellID) {
	for ctx.Err() == nil {
		if away, err := es.n.aways.to(cell); err == nil {
			for batch := range away.Events(ctx) {
				es.wake(cell, batch)
			}
		}
		if !pause(ctx, time.Second) { // the client of the cell was let go
			return
		}
	}
}

func (es *ears) wake(cell pcm.CellID, batch []pcm.Event) {
	jobs := map[pcm.JobID]bool{}
	for i := range batch {
		jobs[batch[i].Job] = true
	}
	es.mu.Lock()
	defer es.mu.Unlock()
	if ear := es.by[cell]; ear != nil {
		for e := range ear.envoys {
			if len(batch) == 0 || jobs[e.job] {
				e.nudge()
			}
		}
	}
}
