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
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/supervisor"
)

const (
	maxArray   = 1000 // Slurm's MaxArraySize is 1,001 by default
	maxBackOff = 30 * time.Second
)

// queue collects attempts of one trade into arrays and submits them. Slurm keeps an
// array to its width.
type queue struct {
	*supervisor.Queue[*attempt]
	r *Runner
}

func newQueue(r *Runner) *queue {
	q := &queue{r: r}
	q.Queue = supervisor.NewQueue(maxArray, true, r.work.Go, func(group []*attempt, width int) {
		q.submit(group, width, group[0].turn)
	})
	return q
}

// add has the attempt submitted, soon and together with others.
func (q *queue) add(a *attempt) {
	a.turn = 1
	q.Add(a, &a.Task, strconv.Itoa(a.turn))
}

// again has an attempt submitted once more that counted as out, and which Slurm has lost.
func (q *queue) again(a *attempt, gen int) {
	a.turn = gen
	q.Again(a, &a.Task, strconv.Itoa(gen))
}

// done lets others of the trade follow one that was submitted, or gives up one that waits.
func (q *queue) done(a *attempt) { q.Done(a, &a.Task) }

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
