package slurm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

const (
	maxArray   = 1000                   // Slurm's MaxArraySize is 1,001 by default
	collect    = 250 * time.Millisecond // how long tasks of a trade wait for the next
	collectAll = 8 * time.Second        // and all of them, on a machine that is slow to bring them
	gather     = 250 * time.Millisecond // how long room for a few waits for room for more
	maxBackOff = 30 * time.Second
)

// queue collects attempts of one trade into arrays and submits them.
type queue struct {
	r *Runner

	mu      sync.Mutex
	trades  map[pcm.TradeID]*trade
	adopted map[string]bool // keys that count as out before their Run has come
}

func newQueue(r *Runner) *queue {
	return &queue{r: r, trades: map[pcm.TradeID]*trade{}, adopted: map[string]bool{}}
}

// trade is what of one trade waits, and how much of it Slurm has.
type trade struct {
	waiting []*attempt
	out     int         // submitted, not ended
	first   time.Time   // when the first of those came that are being collected; zero: none are
	timer   *time.Timer // until those that wait are submitted; nil: none set
}

func (q *queue) of(id pcm.TradeID) *trade {
	t := q.trades[id]
	if t == nil {
		t = &trade{}
		q.trades[id] = t
	}
	return t
}

// add has the attempt submitted, soon and together with others. Each that comes
// has them wait for the next: what misses its array is let out in small groups.
func (q *queue) add(a *attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	a.turn = 1
	q.wait(a)
}

// again has an attempt submitted once more that counted as out, and which Slurm has
// lost. It comes with the others that were, and within their trade's width.
func (q *queue) again(a *attempt, gen int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.of(a.Trade).out--
	a.turn = gen
	q.wait(a)
}

func (q *queue) wait(a *attempt) {
	t := q.of(a.Trade)
	t.waiting = append(t.waiting, a)
	if t.first.IsZero() {
		t.first = time.Now()
	}
	wait := min(collect, time.Until(t.first.Add(collectAll)))
	if a.Batch <= 1 || len(t.waiting) >= min(a.Batch, maxArray) || wait <= 0 {
		q.flush(t)
	} else {
		q.later(t, wait)
	}
}

// later submits what waits after some time, and no sooner. q.mu is held.
func (q *queue) later(t *trade, wait time.Duration) {
	if t.timer != nil {
		t.timer.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(wait, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if t.timer == timer {
			q.flush(t)
		}
	})
	t.timer = timer
}

// adopt counts an attempt that Slurm has already, once. All are counted before the
// first one comes that it doesn't have.
func (q *queue) adopt(k adapters.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if key := k.String(); !q.adopted[key] {
		q.adopted[key] = true
		q.of(k.Trade).out++
	}
}

// done lets others of the trade follow one that was submitted, or gives up one that waits.
func (q *queue) done(a *attempt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.adopted, a.key)
	t := q.of(a.Trade)
	found := false
	for i, w := range t.waiting {
		if w == a {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			found = true
			break
		}
	}
	if !found {
		t.out--
	}
	if len(t.waiting) == 0 {
		if t.out <= 0 {
			delete(q.trades, a.Trade)
		}
		return
	}
	width := t.waiting[0].Width
	switch free := width - t.out; {
	case !t.first.IsZero(): // more are about to come
	case width <= 0, t.out <= 0, free >= max(1, width/4):
		q.flush(t)
	case free > 0 && t.timer == nil:
		q.later(t, gather)
	}
}

// flush submits as much as may be. No more than the trade's width run at once:
// the first array has Slurm see to that; what follows while it runs is let out as
// room comes. q.mu is held.
func (q *queue) flush(t *trade) {
	if t.timer != nil {
		t.timer.Stop()
	}
	t.first, t.timer = time.Time{}, nil
	for len(t.waiting) > 0 {
		n, width := min(len(t.waiting), maxArray), t.waiting[0].Width
		if width > 0 && t.out > 0 {
			n = min(n, width-t.out)
			width = 0
		}
		if n <= 0 {
			return
		}
		gen := t.waiting[0].turn
		for i, a := range t.waiting[:n] {
			if a.turn != gen {
				n = i
				break
			}
		}
		group := append([]*attempt(nil), t.waiting[:n]...)
		t.waiting = t.waiting[n:]
		t.out += n
		q.r.work.Go(func() { q.submit(group, width, gen) })
	}
}

// submit brings attempts to Slurm, whatever time that takes it. They count as out.
func (q *queue) submit(group []*attempt, width, gen int) {
	r := q.r
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	named := false
	var b batch
	var keys []string
	for wait := time.Second; ; wait = min(2*wait, maxBackOff) {
		// Those that were ended meanwhile claimed their start: they may be left in.
		live := false
		for _, a := range group {
			live = live || !a.dead()
		}
		if !live || ctx.Err() != nil {
			return
		}
		var err error
		if !named {
			if b, keys, err = q.describe(ctx, group, width, gen); err == nil {
				err = q.intend(b, keys, group, gen)
				named = err == nil
			}
		} else {
			// The call before may have taken effect, its answer lost.
			var id int64
			if id, err = r.lookUp(ctx, b.Name); err == nil && id > 0 {
				q.placed(id, group)
				return
			}
		}
		if err == nil {
			var id int64
			if id, err = r.link.submit(ctx, b); err == nil {
				q.placed(id, group)
				return
			}
		}
		if pcm.ErrorCode(err) != pcm.Unavailable {
			for _, a := range group {
				a.fail(err)
			}
			return
		}
		r.log.Warn("can't submit to Slurm yet", "job", b.Name, "tasks", len(group), "err", err)
		for _, a := range group {
			if !a.dead() {
				a.Report(pendingState, "", "Slurm does not take it yet: "+err.Error())
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// describe makes the batch of a group.
func (q *queue) describe(ctx context.Context, group []*attempt, width, gen int) (batch, []string, error) {
	a := group[0]
	where, err := q.r.resolve(ctx, a.Pool)
	if err != nil {
		return batch{}, nil, err
	}
	b := batch{
		Name: "pcm." + a.key, Comment: q.r.owner, Partition: where.partition, GPU: where.gpu, Each: a.Resources,
		Count: len(group), Width: width, Dir: string(q.r.spool),
	}
	var keys []string
	for _, a := range group {
		keys = append(keys, a.key)
		if a.Limit > 0 {
			b.Minutes = max(b.Minutes, int64((a.Limit+time.Minute-1)/time.Minute))
		}
	}
	if len(group) > 1 {
		sum := sha256.Sum256([]byte(strings.Join(keys, "\n")))
		b.Name = "pcm." + string(a.Trade) + ".x" + hex.EncodeToString(sum[:6])
	}
	if gen > 1 {
		b.Name += fmt.Sprintf(".g%d", gen)
	}
	b.Script = batchScript(q.r.spool, b, keys, gen)
	return b, keys, nil
}

// intend writes down where the attempts will be found.
func (q *queue) intend(b batch, keys []string, group []*attempt, gen int) error {
	if len(keys) > 1 {
		dir := q.r.spool.array(b.Name)
		err := os.MkdirAll(dir, 0o700)
		for i, key := range keys {
			if err == nil {
				err = os.Symlink(filepath.Join("..", "..", "attempts", key), filepath.Join(dir, strconv.Itoa(i)))
			}
			if errors.Is(err, fs.ErrExist) {
				err = nil
			}
		}
		if err != nil {
			return pcm.Errorf(pcm.Refused, "can't write to the folder shared with Slurm: %w", err)
		}
	}
	for i, a := range group {
		in := intent{Name: b.Name, Index: i, Generation: gen}
		if len(group) == 1 {
			in.Index = -1
		}
		err := os.WriteFile(q.r.spool.script(a.key, gen), []byte(wrapper(q.r.spool, a.Task, gen, a.work, q.r.cfg.KeepEnv)), 0o600)
		if err == nil {
			err = q.r.spool.saveIntent(a.key, in)
		}
		if err != nil {
			return pcm.Errorf(pcm.Refused, "can't write to the folder shared with Slurm: %w", err)
		}
		a.mu.Lock()
		a.at = in
		a.mu.Unlock()
	}
	return nil
}

// placed notes the number under which Slurm has the group.
func (q *queue) placed(id int64, group []*attempt) {
	in, _ := group[0].place()
	in.ID = id
	if err := q.r.spool.saveNumber(group[0].key, in); err != nil {
		q.r.log.Warn("can't note a job's number", "job", in.Name, "number", id, "err", err)
	}
	for _, a := range group {
		a.mu.Lock()
		a.at.ID, a.submitted, a.job, a.missing = id, time.Now(), nil, 0
		in, gone := a.at, a.gone
		a.mu.Unlock()
		if gone {
			q.r.poller.drop(jobRef{in.ID, in.Index, in.Name})
			continue
		}
		a.nudge()
	}
	q.r.poller.soon()
}
