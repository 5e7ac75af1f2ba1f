package rest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// maker brings an attempt to the back end, one thing after the other: what was done
// is noted, and not done again by whoever takes the attempt up.
type maker struct {
	a     *attempt
	looks int       // for a job whose create was not answered
	first time.Time // of them
}

// next does what is left. A nil error means that the job is there.
func (m *maker) next(ctx context.Context) error {
	a, n := m.a, m.a.n
	if n.Stage == made || n.Stage == over {
		return nil
	}
	if n.Stage == fresh {
		if err := a.r.arrays.enter(ctx, a); err != nil {
			return err
		}
	}
	err := m.rest(ctx)
	if err != nil && a.seat.g != nil {
		a.seat.g.leave(a)
	}
	return err
}

// rest does what is left of an attempt that may have its job now.
func (m *maker) rest(ctx context.Context) error {
	a, n := m.a, m.a.n
	if n.Pool == nil {
		p, err := a.b.placeOf(ctx, a.Task)
		if err != nil {
			return err
		}
		n.Pool = p
	}
	if n.Data == nil && a.b.d.Data != nil {
		// What a step makes may be the place of what is uploaded.
		if a.b.d.Data.Store == "presigned" {
			if err := m.steps(ctx); err != nil {
				return err
			}
		}
		if err := a.upload(ctx); err != nil {
			return err
		}
		if n.Stored { // what is there can be deleted by what it is called there
			if err := a.r.notes.save(n); err != nil {
				return err
			}
		}
	}
	if n.Stage == fresh {
		if err := m.prepare(ctx); err != nil {
			return err
		}
	} else {
		again, err := m.look(ctx)
		if err != nil || !again {
			return err
		}
	}
	return m.create(ctx)
}

// prepare computes what create needs, and makes the calls that come before it.
func (m *maker) prepare(ctx context.Context) error {
	a, n := m.a, m.a.n
	if a.b.scripted && n.Script == "" {
		n.Script = script(a.Task, jobName(a.b.cfg.Instance, a.Key), n.Nonce, n.Data, a.b.tail())
	}
	if n.Link == "" && (a.b.linked || a.b.linkedMany && a.seat.g != nil) {
		if err := a.putScript(ctx); err != nil {
			return pcm.Errorf(pcm.ErrorCode(err), "its script can't be brought there: %w", err)
		}
	}
	if n.Let == nil {
		let := map[string]any{}
		for _, l := range a.b.d.Let {
			n.Let = let
			v, err := l.Value.Render(ctx, a.b.vars(n))
			if err != nil {
				n.Let = nil
				return pcm.Errorf(pcm.Invalid, "let %s: %w", l.Name, err)
			}
			let[l.Name] = v
		}
		n.Let = let
	}
	return m.steps(ctx)
}

// steps makes the calls that come before create, and were not made yet.
func (m *maker) steps(ctx context.Context) error {
	a, n := m.a, m.a.n
	for i := range a.b.d.Create.Before {
		s := &a.b.d.Create.Before[i]
		if _, done := n.Step[s.Name]; done {
			continue
		}
		said, err := a.b.makes(ctx, &s.Call, a.b.vars(n))
		if err != nil {
			return pcm.Errorf(pcm.ErrorCode(err), "%s: %w", s.Name, err)
		}
		v := said.body
		if s.Find.Given() {
			if v, err = s.Find.Eval(ctx, said.in(a.b.vars(n))); err != nil {
				// Not Unavailable: each try would make one more.
				return pcm.Errorf(pcm.Invalid, "the answer to %s is not as described: %w", s.Name, err)
			}
		}
		if len(expr.Text(v)) > maxItem {
			return pcm.Errorf(pcm.Invalid, "the answer to %s has over %d bytes: let find take what is needed of it", s.Name, maxItem)
		}
		if n.Step == nil {
			n.Step = map[string]any{}
		}
		n.Step[s.Name] = v
		if err := a.r.notes.keep(n); err != nil {
			return err
		}
	}
	return nil
}

// look looks for a job that may be there. It is to be created again only when
// several looks have not shown it.
func (m *maker) look(ctx context.Context) (again bool, err error) {
	a, n := m.a, m.a.n
	if a.b.d.Find.List == nil {
		return false, pcm.Errorf(pcm.Conflict, "it was called to create the job and did not answer, and its description has no way to find out")
	}
	ids, err := a.b.findAny(ctx, n)
	if err != nil {
		return false, err
	}
	if len(ids) > 0 {
		return false, m.found(ids)
	}
	if m.looks++; m.looks == 1 {
		m.first = time.Now()
	}
	if m.looks < looks || time.Since(m.first) < vanished || n.late(min(a.b.timeout, lateCreate)) {
		return false, &waits{word: "unknown", reason: "its back end did not say whether it took it: it is looked for"}
	}
	m.looks = 0
	n.Stage, n.Doubt, n.Alone = fresh, true, n.Array != nil // the first call may still be acted on
	if n.Alone && a.seat.counted {
		a.seat.g = nil
		return false, bySelf("it was not made with the others of its call").err
	}
	return true, m.prepare(ctx)
}

// found takes the first of the jobs that are there. Others are ended with it.
func (m *maker) found(ids []string) error {
	n := m.a.n
	n.ID, n.Stage, n.Doubt = ids[0], made, n.Doubt || len(ids) > 1
	if len(ids) > 1 {
		m.a.r.log.Warn("a job is there more than once: all but one are ended", "attempt", m.a.key, "jobs", ids)
		m.a.r.cleaner.copies(n, ids[1:])
	}
	return m.a.r.notes.save(n)
}

// lateCreate is how long a create is waited for at most whose answer was lost, before
// it is called again. What comes later still is found when the attempt has ended.
const lateCreate = 10 * time.Second

// late tells whether what the last create makes may still come: a call that
// is given up on this side may be on its way, or in work, for as long as one may take.
func (n *note) late(most time.Duration) bool {
	since := time.Since(n.Asked)
	return since >= 0 && since < most
}

// makes makes a call that makes something. Once it is on its way it is not given up
// at once with ctx: who doesn't know what it made can't delete it.
func (b *backend) makes(ctx context.Context, c *description.Call, vars map[string]any) (*answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, &callError{err: pcm.Errorf(pcm.Busy, "it was not called: %w", err), unsent: true}
	}
	patient, cancel := patiently(ctx)
	defer cancel()
	return b.call(patient, c, vars)
}

// patiently is a context that ends some time after ctx.
func patiently(ctx context.Context) (context.Context, context.CancelFunc) {
	patient, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(callTime, cancel) })
	return patient, func() { stop(); cancel() }
}

// together has the job made with others; alone is true if it is to be made by itself.
func (m *maker) together(ctx context.Context) (alone bool, err error) {
	a, n := m.a, m.a.n
	o := a.seat.g.join(ctx, a)
	switch {
	case o.alone:
		return true, nil
	case o.id != "":
		n.ID, n.Stage = o.id, made
		return false, a.r.notes.save(n)
	case o.again:
		asked := n.Stage != fresh
		if n.Stage = fresh; !n.Alone {
			n.Array = nil
		}
		a.seat.g, a.seat.single = nil, a.seat.single || o.single
		if asked {
			err = a.r.notes.save(n)
		}
		return false, errors.Join(err, o.err)
	}
	n.Doubt = true
	return false, errors.Join(a.r.notes.save(n), o.err)
}

// create calls the back end to create the job.
func (m *maker) create(ctx context.Context) error {
	a, n, c := m.a, m.a.n, &m.a.b.d.Create
	if a.seat.g != nil {
		if alone, err := m.together(ctx); !alone {
			return err
		}
	}
	n.Stage, n.Asked = making, time.Now()
	if err := a.r.notes.keep(n); err != nil {
		return err
	}
	vars := a.b.vars(n)
	said, err := a.b.makes(ctx, &c.Call, vars)
	if err == nil {
		v, err := c.ID.Eval(ctx, said.in(vars))
		id := expr.Text(v)
		if err != nil || id == "" || len(id) > 1024 {
			n.Doubt = true
			return &waits{word: "unknown", reason: "its back end took it, and did not say under which name: it is looked for", err: err}
		}
		n.ID, n.Stage = id, made
		return a.r.notes.save(n)
	}
	if said != nil {
		if slices.Contains(c.Exists, said.status) {
			return m.exists(ctx, said)
		}
		if c.Full.Given() && truth(ctx, c.Full, said.in(vars)) {
			n.Stage = fresh
			return errors.Join(a.r.notes.save(n), &waits{word: "full", reason: "its back end has no room: " + err.Error(), err: err})
		}
	}
	if isUnsent(err) {
		n.Stage = fresh
		if serr := a.r.notes.save(n); serr != nil {
			return serr
		}
		return err
	}
	n.Doubt = true
	if serr := a.r.notes.save(n); serr != nil {
		return serr
	}
	if ctx.Err() == nil && !isAway(err) {
		return err
	}
	return &waits{word: "unreachable", reason: "its back end did not say whether it took it: " + err.Error(), err: err}
}

// exists is for a job that is there already: ours, as no other has its key.
func (m *maker) exists(ctx context.Context, said *answer) error {
	a, n := m.a, m.a.n
	ids, err := a.b.findAny(ctx, n)
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		if v, err := a.b.d.Create.ID.Eval(ctx, said.in(a.b.vars(n))); err == nil && expr.Text(v) != "" {
			ids = []string{expr.Text(v)}
		}
	}
	if len(ids) == 0 {
		return pcm.Errorf(pcm.Conflict, "it says that it has a job under this name, which can't be found")
	}
	return m.found(ids)
}
