package node

import (
	"context"
	"maps"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// How long the start of an attempt is tried while its back end is away or has no
// room, and how long one try may take.
const (
	startWait = 10 * time.Minute
	startTry  = time.Minute
)

// maxStarts bounds the attempts that one back end is asked to start at once: of many
// more the last would find their leases over, and what extends leases would come
// after all of them.
const maxStarts = 32

// turn waits until a back end may be asked to start one more attempt; done gives the
// turn back. It is nil when ctx ended before.
func (s *seller) turn(ctx context.Context, adapter string) (done func()) {
	s.mu.Lock()
	turns := s.turns[adapter]
	if turns == nil {
		turns = make(chan struct{}, maxStarts)
		s.turns[adapter] = turns
	}
	s.mu.Unlock()
	select {
	case turns <- struct{}{}:
		return func() { <-turns }
	case <-ctx.Done():
		return nil
	}
}

// room is how many more of a trade's attempts its back end can be given, and how
// many of them may run at once. One that keeps a queue itself gets many at once, and
// the next many when few are left: so both together keep within the width.
func (x *execution) room(a adapters.Adapter) (n, width int) {
	width = x.terms.Width
	b, ok := a.(adapters.Batcher)
	if !ok || b.MaxBatch() <= 0 {
		return width - len(x.running), width
	}
	if left := len(x.running); left > width/8 {
		return 0, width
	}
	width -= len(x.running)
	return max(b.MaxBatch(), width), width
}

// next starts what has room: at most Width attempts of a trade run at once.
func (s *seller) next(id pcm.TradeID, x *execution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !x.prepared || len(x.queue) == 0 || x.ctx.Err() != nil {
		return
	}
	n, width := x.room(s.adapters[x.terms.Adapter])
	n = min(max(n, 0), len(x.queue))
	batch := 0
	if n > 1 {
		batch = n
	}
	for _, i := range x.queue[:n] {
		r := &run{}
		x.running[i] = r
		go s.start(id, x, i, r, batch, width)
	}
	x.queue = x.queue[n:]
}

// start starts one attempt, and tries that again for some time while its back end
// is away. A stop may come before the back end knows of the attempt, and then
// finds nothing: so start looks for one before and after.
func (s *seller) start(id pcm.TradeID, x *execution, i int, r *run, batch, width int) {
	t := x.terms
	st := x.held.spec.Steps[t.Step]
	patience := time.Now().Add(startWait)
	var err error
	for wait := 200 * time.Millisecond; ; wait = min(2*wait, 15*time.Second) {
		done := s.turn(x.ctx, t.Adapter)
		if done == nil {
			break
		}
		s.mu.Lock()
		why, stopped := x.stop[i]
		wanted := x.running[i] == r
		s.mu.Unlock()
		if stopped || !wanted {
			done()
			if err != nil { // a try before may have come through
				go s.stopOne(x, i, why)
			}
			s.done(id, x, pcm.Result{Index: i, Outcome: pcm.OutcomeStopped, Reason: clip(why)})
			return
		}
		ctx, cancel := context.WithTimeout(x.ctx, startTry)
		deadline, live, late := s.grant(ctx, id, x, i)
		if !live {
			cancel()
			done()
			s.lose(id, pcm.Spans{{Lo: i, Hi: i + 1}}, "it has ended for the cell")
			return
		}
		if err = late; err == nil {
			err = s.adapters[t.Adapter].Start(ctx, adapters.Task{
				Key: x.key(i), Job: t.Job, Fence: t.Fence, Count: st.Count, Pool: t.Pool,
				Command: st.Command, Module: x.module, Args: st.Args, Image: st.Image, Network: st.Network, Env: environment(st), Port: portOf(st),
				Inputs: x.mounts, Outputs: st.Outputs,
				Resources: t.Each, Limit: time.Duration(t.LimitMS) * time.Millisecond, Deadline: deadline,
				Batch: batch, Width: width,
			})
		}
		cancel()
		done()
		if x.ctx.Err() != nil { // the trade was closed meanwhile, or this peer goes down
			s.nudgeTidy()
			return
		}
		if code := pcm.ErrorCode(err); err == nil || code != pcm.Unavailable && code != pcm.Busy {
			break
		}
		s.waits(x, i, r, err)
		if time.Now().Add(wait).After(patience) || !pause(x.ctx, wait) {
			break
		}
	}
	if x.ctx.Err() != nil {
		s.nudgeTidy()
		return
	}
	if err != nil {
		s.n.log.Warn("can't start a task", "trade", id, "task", i, "error", err)
		if pcm.ErrorCode(err) == pcm.Unavailable { // the answer was lost: it may run all the same
			go s.stopOne(x, i, "its start was given up")
		}
		s.done(id, x, pcm.Result{Index: i, Outcome: pcm.OutcomeSeller, Reason: clip(err.Error())})
		return
	}
	s.mu.Lock()
	r.placed = true
	why, stopped := x.stop[i]
	s.mu.Unlock()
	if stopped {
		s.stopOne(x, i, why)
	}
}

// portOf is the port on which a step's tasks listen; 0 if they don't.
func portOf(st pcm.Step) int {
	if st.Service == nil {
		return 0
	}
	return st.Service.Port
}

// environment is what a step's tasks are told beside what adapters tell all tasks.
func environment(st pcm.Step) map[string]string {
	if st.Service == nil {
		return st.Env
	}
	env := maps.Clone(st.Env)
	if env == nil {
		env = map[string]string{}
	}
	env["PCM_PORT"] = strconv.Itoa(st.Service.Port)
	return env
}

// waits notes why an attempt has not started yet.
func (s *seller) waits(x *execution, i int, r *run, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x.running[i] == r && r.status.State == "" {
		s.n.log.Info("a task waits for its back end", "trade", x.terms.Trade(), "task", i, "error", why)
		r.status = adapters.Status{Key: x.key(i), State: adapters.Prepared, Reason: clip(why.Error())}
	}
}

// follow takes in where an attempt stands that has not ended. What waits at its back
// end has not started for the ledger.
func (s *seller) follow(st adapters.Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.trades[st.Trade]
	if x == nil || st.Attempt != x.terms.Attempt || x.running[st.Index] == nil || x.ended[st.Index] {
		return
	}
	s.followed(st.Trade, x, st)
}

// followed is follow for an attempt that is known to be wanted. s.mu is held.
func (s *seller) followed(id pcm.TradeID, x *execution, st adapters.Status) {
	r := x.running[st.Index]
	r.status = st
	if !r.began && runs(st) {
		r.began, r.since = true, adapters.Now().Add(-st.Usage.Wall())
		s.note(x, "started", pcm.Result{Index: st.Index})
		s.reports.started(id, st.Index)
	}
}

// runs tells whether an attempt has begun to run and not ended.
func runs(st adapters.Status) bool {
	return st.State == adapters.Running || st.State == adapters.Suspended
}

// show adds to a task's view what its back end here told of it last.
func (s *seller) show(v *api.Task) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.trades[v.Trade]
	if x == nil || x.running[v.Index] == nil || x.terms.Attempt != v.Attempt {
		return
	}
	r := x.running[v.Index]
	v.BackEnd = orElse(string(r.status.State), string(adapters.Prepared))
	if r.status.Native != "" {
		v.BackEnd += " (" + r.status.Native + ")"
	}
	v.Reason = orElse(v.Reason, r.status.Reason)
	if r.began {
		u := r.status.Usage
		u.WallMS = max(u.WallMS, time.Duration(adapters.Now()-r.since).Milliseconds())
		u.GPUMS = x.terms.Each.GPU * u.WallMS
		v.Usage = &u
	}
}
