package rest

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// manyCall is one call for the jobs of several tasks. It has all that is needed of
// their notes, which others may have by now.
type manyCall struct {
	notes  []*note // of before the call only
	keys   []adapters.Key
	names  []string
	places []*description.Array
	each   []map[string]any // variables of each task
	vars   map[string]any   // of what is the same for all
	req    client.Request
}

// many renders the call for tasks. It takes the first n of them, so many as one call
// may speak of. Where an error is of one of the tasks, n is its place.
func (b *backend) many(ctx context.Context, notes []*note, width int) (c *manyCall, n int, err error) {
	m := b.d.Create.Many
	c = &manyCall{notes: notes}
	sum := sha256.New()
	for _, n := range notes {
		fmt.Fprintln(sum, n.Task.Key)
		c.keys = append(c.keys, n.Task.Key)
		c.names = append(c.names, jobName(b.cfg.Instance, n.Task.Key))
	}
	name := owner(b.cfg.Instance) + "-x" + strings.ToLower(base32.StdEncoding.EncodeToString(sum.Sum(nil)[:15]))
	if width <= 0 {
		width = len(notes)
	}
	array := map[string]any{"name": name, "count": int64(len(notes)), "width": int64(min(width, len(notes)))}
	each, size := []any{}, 0
	for i, n := range notes {
		at := &description.Array{Name: name, Index: i, Count: len(notes)}
		own := *n
		own.Array, own.Alone = at, false
		vars := b.vars(&own)
		vars["array"] = array
		v, err := m.Each.Render(ctx, vars)
		if err != nil {
			return nil, i, pcm.Errorf(pcm.Invalid, "create.many.each: %w", err)
		}
		if size += len(expr.Text(v)); size > maxEach && i > 0 {
			return c, i, nil
		}
		each = append(each, v)
		c.places, c.each = append(c.places, at), append(c.each, vars)
	}
	c.vars = maps.Clone(c.each[0])
	all := maps.Clone(array)
	all["each"] = each
	c.vars["array"] = all
	c.req, err = b.request(ctx, &m.Request, c.vars)
	return c, len(notes), err
}

// create makes the call, and says what became of each task.
func (s *arrays) create(ctx context.Context, c *manyCall) []outcome {
	b, m := s.r.b, s.r.b.d.Create.Many
	all := make([]outcome, len(c.keys))
	every := func(o outcome) []outcome {
		for i := range all {
			all[i] = o
		}
		return all
	}
	patient, cancel := patiently(ctx)
	defer cancel()
	said, err := b.send(patient, &m.Call, c.req, c.vars)
	var items []any
	switch {
	case err == nil && m.Items.Given():
		v, ierr := m.Items.Eval(ctx, said.in(c.vars))
		list, ok := v.([]any)
		if ierr != nil || !ok {
			s.r.log.Warn("the answer to a call for many jobs is not as described", "trade", c.keys[0].Trade, "err", ierr)
		}
		items = list
	case err == nil:
	case said != nil && slices.Contains(b.d.Create.Exists, said.status):
		// There is one of this name: ours.
	case said != nil && b.d.Create.Full.Given() && truth(ctx, b.d.Create.Full, said.in(c.vars)):
		return every(outcome{again: true, err: &waits{word: "full", reason: "its back end has no room: " + err.Error(), err: err}})
	case isUnsent(err) && (isAway(err) || pcm.ErrorCode(err) == pcm.Refused):
		return every(outcome{again: true, err: err})
	case isUnsent(err):
		s.r.log.Warn("a call for many jobs was refused: each is created by itself", "trade", c.keys[0].Trade, "tasks", len(all), "err", err)
		return every(bySelf("its back end does not take it with others: " + err.Error()))
	}
	why := &waits{word: "unknown", reason: "its back end took it, and did not say under which name: it is looked for"}
	if err != nil {
		why = &waits{word: "unreachable", reason: "its back end did not say whether it took it: " + err.Error(), err: err}
	}
	every(outcome{err: why})
	vars := c.vars
	if said != nil {
		vars = said.in(vars)
	}
	switch {
	case m.Items.Given() && items != nil:
		s.match(ctx, c, vars, items, all)
	case err == nil && !m.Items.Given() && m.List == nil:
		s.count(ctx, c, said, all)
	}
	s.list(ctx, c, vars, all)
	return all
}

// count is for answers from which the name of each job is computed.
func (s *arrays) count(ctx context.Context, c *manyCall, said *answer, all []outcome) {
	ids := make([]string, len(all))
	for i := range all {
		if v, err := s.r.b.d.Create.Many.ID.Eval(ctx, said.in(c.each[i])); err == nil {
			ids[i] = expr.Text(v)
		}
	}
	s.believe(c, ids, all)
}

// match reads what items say, each of one task. What makes no sense is passed over:
// of whom it speaks nobody is told anything.
func (s *arrays) match(ctx context.Context, c *manyCall, vars map[string]any, items []any, all []outcome) {
	m := s.r.b.d.Create.Many
	places := map[string]int{}
	for i, n := range c.names {
		places[n] = i
	}
	ids, refused, twice, strange := make([]string, len(all)), make([]error, len(all)), make([]bool, len(all)), 0
	for _, item := range items[:min(len(items), maxItems)] {
		at := maps.Clone(vars)
		at["item"] = item
		i, ok := -1, false
		if m.Name.Given() {
			if v, err := m.Name.Eval(ctx, at); err == nil {
				i, ok = places[expr.Text(v)]
			}
		} else if v, err := m.Index.Eval(ctx, at); err == nil {
			n, whole := whole(v)
			i, ok = int(n), whole && n < int64(len(all))
		}
		if !ok {
			strange++
			continue
		}
		maps.Copy(at, c.each[i])
		at["array"] = vars["array"]
		var err error
		switch why, no := s.refused(ctx, at); {
		case m.Full.Given() && truth(ctx, m.Full, at):
			err = &waits{word: "full", reason: "its back end has no room: " + why}
		case no:
			err = pcm.Errorf(pcm.Invalid, "%s: %s", s.r.b.name, why)
		}
		id := ""
		if err == nil {
			if v, eerr := m.ID.Eval(ctx, at); eerr == nil {
				id = expr.Text(v)
			}
		}
		twice[i] = twice[i] || refused[i] != nil && id != "" || ids[i] != "" && (err != nil || id != ids[i])
		if ids[i] == "" && refused[i] == nil {
			ids[i], refused[i] = id, err
		}
	}
	for i := range all {
		switch {
		case twice[i]:
			ids[i] = "" // who has two names is looked for
			strange++
		case refused[i] != nil:
			all[i] = outcome{again: true, err: refused[i]}
		}
	}
	if strange > 0 {
		s.r.log.Warn("of what the back end says of many jobs some makes no sense", "trade", c.keys[0].Trade, "items", len(items), "senseless", strange)
	}
	s.believe(c, ids, all)
}

// refused tells whether an item says that its task is refused, and why.
func (s *arrays) refused(ctx context.Context, at map[string]any) (why string, no bool) {
	m := s.r.b.d.Create.Many
	if !m.Refused.Given() {
		return "", false
	}
	v, err := m.Refused.Eval(ctx, at)
	if err != nil || v == nil || v == false || v == "" {
		return "", false
	}
	if v == true {
		return "no reason is given", true
	}
	return s.r.b.clean(expr.Text(v), maxReason), true
}

// believe takes over names of jobs: each that is nobody else's.
func (s *arrays) believe(c *manyCall, ids []string, all []outcome) {
	times := map[string]int{}
	for _, id := range ids {
		times[id]++
	}
	taken := s.r.poller.ids()
	for _, o := range all {
		if o.id != "" && !slices.Contains(ids, o.id) {
			taken[o.id] = true
		}
	}
	for i, id := range ids {
		switch {
		case id == "" || len(id) > 1024 || all[i].again:
		case times[id] > 1 || taken[id]:
			s.r.log.Warn("the back end gives the name of another job: it is looked for", "attempt", c.keys[i], "job", s.r.b.clean(id, 80))
		default:
			all[i] = outcome{id: id}
		}
	}
}

// list asks which jobs there are of those of which the answer didn't tell.
func (s *arrays) list(ctx context.Context, c *manyCall, vars map[string]any, all []outcome) {
	b, m := s.r.b, s.r.b.d.Create.Many
	open := func() bool {
		return slices.ContainsFunc(all, func(o outcome) bool { return o.id == "" && !o.again })
	}
	for try := 0; try < looks && m.List != nil && open(); try++ {
		if try > 0 && !pause(ctx, max(b.poll, time.Second)) {
			return
		}
		var items []any
		err := b.list(ctx, m.List, vars, func(item any) bool {
			items = append(items, item)
			return len(items) >= maxItems
		})
		if err != nil && !isAbsent(err) {
			s.r.log.Warn("can't list the jobs of a call for many", "trade", c.keys[0].Trade, "err", err)
			continue
		}
		found := slices.Clone(all)
		s.match(ctx, c, vars, items, found)
		for i, o := range found {
			if all[i].id == "" && !all[i].again && o.id != "" {
				all[i] = o
			}
		}
	}
}
