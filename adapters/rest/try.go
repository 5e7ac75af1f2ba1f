package rest

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/adapters/expr"
	"github.com/jointcloud/pcm/adapters/rest/client"
	"github.com/jointcloud/pcm/adapters/rest/description"
)

// TryOptions says how far Try goes.
type TryOptions struct {
	DryRun bool // nothing is sent: requests are shown as far as they can be without answers
	Run    bool // a task is run for real; otherwise nothing is made, stopped or deleted

	Task adapters.Task // to run, or to show; without command: true. Key, lease and limits are filled in
	Out  func(Step)    // told of each step, one after the other
}

// Step is something that Try did, or would do.
type Step struct {
	Part     string           `json:"part"`               // of the description: login, pools, create, find, watch, logs, stop, delete, data …
	Sent     bool             `json:"sent"`               // the request was sent; else it is only shown
	Exchange *client.Exchange `json:"exchange,omitempty"` // secrets are blotted out, bodies are bounded
	Facts    []Fact           `json:"facts,omitempty"`    // what was understood, or what stands for what
	Err      string           `json:"error,omitempty"`
}

// Fact is a thing in our words and in the back end's.
type Fact struct {
	Ours   string `json:"ours"`
	Theirs string `json:"theirs"`
}

const maxFact = 400 // bytes of a fact shown

// Try goes through a description: what is asked of the back end, and what is
// understood of its answers. The error is the first one that a step had.
func Try(ctx context.Context, cfg Config, opt TryOptions) error {
	t := &trial{ctx: ctx, opt: opt, part: "login"}
	b, err := open(ctx, cfg, t.trace)
	if err != nil {
		return err
	}
	defer b.http.Close()
	t.b, t.cfg = b, cfg
	if opt.DryRun {
		t.b.do = t
		if l := b.d.Login; l.Kind == "keystone" && b.servers["api"] == "" {
			b.servers["api"] = catalogue + l.Service
		}
	}
	t.bridge()
	t.pools()
	if len(t.failed) > 0 {
		return t.hint(t.err)
	}
	if opt.Run && !opt.DryRun {
		return t.hint(t.run())
	}
	t.calls()
	switch len(t.failed) {
	case 0:
		return nil
	case 1:
		return t.hint(t.err)
	}
	return pcm.Errorf(pcm.ErrorCode(t.err), "%s failed, each for the reason that its step names", strings.Join(t.failed, " and "))
}

// hint adds to an error of a call without an answer which settings say where it goes.
func (t *trial) hint(err error) error {
	t.mu.Lock()
	at := t.unheard
	t.mu.Unlock()
	if err == nil || at == nil || pcm.ErrorCode(err) != pcm.Unavailable {
		return err
	}
	base := at.Scheme + "://" + at.Host
	var names []string
	of := func(tpl description.Template) {
		text, terr := tpl.Text(t.ctx, map[string]any{"settings": t.b.settings})
		if terr != nil || tpl.Compiled() == nil || text != base && !strings.HasPrefix(text, base+"/") {
			return
		}
		for _, x := range tpl.Compiled().Exprs() {
			for _, ref := range x.Refs() {
				if name, ok := strings.CutPrefix(ref, "settings."); ok {
					names = append(names, name)
				}
			}
		}
	}
	for _, s := range t.b.d.Servers {
		of(s)
	}
	of(t.b.d.Login.URL)
	if len(names) == 0 {
		return err
	}
	slices.Sort(names)
	names = slices.Compact(names)
	what := "setting " + names[0]
	if len(names) > 1 {
		what = "settings " + strings.Join(names, ", ")
	}
	return pcm.Errorf(pcm.Unavailable, "%w: no answer comes from %s; check %s", err, at.Host, what)
}

// trial is one Try. As a caller it shows requests instead of sending them.
type trial struct {
	ctx   context.Context
	cfg   Config
	opt   TryOptions
	b     *backend
	place map[string]any

	mu      sync.Mutex // held by what tells of steps
	part    string
	err     error    // the first one
	failed  []string // parts
	unheard *url.URL // where the last request went, if no answer came
}

func (t *trial) now(part string) {
	t.mu.Lock()
	t.part = part
	t.mu.Unlock()
}

func (t *trial) tell(s Step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.Part == "" {
		s.Part = t.part
	}
	if t.opt.Out != nil {
		t.opt.Out(s)
	}
}

// fail tells of an error.
func (t *trial) fail(err error) {
	t.mu.Lock()
	if t.err == nil {
		t.err = err
	}
	t.failed = append(t.failed, t.part)
	t.mu.Unlock()
	text := err.Error()
	if t.b != nil {
		text = t.b.secrets.Redact(text)
	}
	t.tell(Step{Err: text})
}

func (t *trial) trace(x client.Exchange) {
	t.mu.Lock()
	if t.unheard = nil; x.Status == 0 && x.Err != "" {
		t.unheard, _ = url.Parse(x.URL)
	}
	t.mu.Unlock()
	t.tell(Step{Sent: true, Exchange: &x, Err: x.Err})
}

// catalogue stands for addresses that only a log-in tells.
const catalogue = "https://catalogue.invalid/"

var errShown = pcm.Errorf(pcm.Unavailable, "nothing was sent")

// Do shows a request.
func (t *trial) Do(_ context.Context, r client.Request) (*client.Response, error) {
	r.Anonymous = strings.HasPrefix(r.URL, catalogue)
	x, err := t.b.http.Preview(r)
	if err != nil {
		return nil, err
	}
	t.tell(Step{Exchange: &x})
	return nil, errShown
}

// fact is a value of theirs as it is shown.
func (t *trial) fact(v any) string { return t.b.clean(expr.Text(v), maxFact) }

// bridge tells what stands for what, as far as the description knows by itself.
func (t *trial) bridge() {
	var words []Fact
	for _, w := range slices.Sorted(maps.Keys(t.b.d.States)) {
		n := t.b.states.Of(w)
		ours := string(n.State)
		if n.State == adapters.Ended {
			ours += ", " + t.b.d.States[w].Outcome
		}
		words = append(words, Fact{Ours: ours, Theirs: w})
	}
	t.tell(Step{Part: "states", Facts: words})
	if br := t.b.d.Bridge; br != nil {
		var facts []Fact
		for _, k := range slices.Sorted(maps.Keys(br.Classes)) {
			facts = append(facts, Fact{"class " + k, br.Classes[k]})
		}
		for _, k := range slices.Sorted(maps.Keys(br.Regions)) {
			facts = append(facts, Fact{"region " + br.Regions[k], k})
		}
		for _, k := range slices.Sorted(maps.Keys(br.Units)) {
			facts = append(facts, Fact{"unit " + br.Units[k], k})
		}
		t.tell(Step{Part: "bridge", Facts: facts})
	}
}

// pools shows what the back end has, and as what it is sold.
func (t *trial) pools() {
	t.now("pools")
	if t.opt.DryRun {
		t.shown(func() error {
			for i := range t.b.d.Pools.More {
				m := &t.b.d.Pools.More[i]
				if _, err := t.b.call(t.ctx, &m.Call, t.vars()); err != nil && err != errShown {
					return err
				}
			}
			if l := t.b.d.Pools.List; l != nil {
				return t.b.list(t.ctx, l, t.vars(), func(any) bool { return true })
			}
			return nil
		})
		return
	}
	places, err := t.b.look(t.ctx, nil)
	if err != nil {
		t.fail(err)
		return
	}
	var facts []Fact
	for _, p := range places {
		text := fmt.Sprintf("pool %s: %d slots of %s", p.pool.ID, p.pool.Slots, p.each)
		if p.pool.Slots == 1 {
			text = fmt.Sprintf("pool %s: 1 slot of %s", p.pool.ID, p.each)
		}
		if p.pool.Class != "" {
			text += ", class " + p.pool.Class
		}
		if p.pool.Accelerator != nil {
			text += ", " + p.pool.Accelerator.String()
		}
		if len(p.pool.Labels) > 0 {
			text += ", " + p.pool.Labels.String()
		}
		facts = append(facts, Fact{text, t.fact(p.item)})
	}
	t.tell(Step{Facts: facts})
	t.b.mu.Lock()
	flaw := t.b.flaw
	t.b.mu.Unlock()
	if flaw != nil {
		t.tell(Step{Err: t.b.clean(flaw.Error(), maxFact)})
	}
	if len(places) == 0 {
		t.fail(pcm.Errorf(pcm.NotFound, "none of what the back end lists is a pool: look at pools.items and pools.where"))
		return
	}
	t.place = map[string]any{"id": string(places[0].pool.ID), "native": places[0].item}
	for _, p := range places {
		if p.pool.ID == t.opt.Task.Pool {
			t.place = map[string]any{"id": string(p.pool.ID), "native": p.item}
		}
	}
}

// shown runs what ends when its first request is shown.
func (t *trial) shown(f func() error) {
	if err := f(); err != nil && err != errShown {
		t.tell(Step{Err: "this depends on an answer, or is wrong: " + t.b.clean(err.Error(), maxFact)})
	}
}

// task is the one to show or to run.
func (t *trial) task() adapters.Task {
	task := t.opt.Task
	if len(task.Command) == 0 {
		task.Command = []string{"true"}
	}
	if task.Job == "" {
		task.Job = pcm.NewJobID()
	}
	if task.Key.Trade == "" {
		task.Key = adapters.Key{Trade: pcm.NewTradeID(task.Job, uint64(time.Now().UnixNano())), Attempt: 1}
	}
	if task.Pool == "" && t.place != nil {
		id, _ := t.place["id"].(string)
		task.Pool = pcm.PoolID(id)
	}
	if task.Resources.CPU == 0 {
		task.Resources = pcm.Resources{CPU: 100, Memory: 64 << 20}
	}
	if task.Limit == 0 {
		task.Limit = 10 * time.Minute
	}
	task.Count, task.OutputCap = max(task.Count, 1), max(task.OutputCap, 64<<20)
	task.Deadline = adapters.Now().Add(task.Limit + 20*time.Minute)
	return task
}

// note is that of the task, as it would be when it is there.
func (t *trial) note() *note {
	task := t.task()
	n := &note{Task: task, Nonce: newNonce(), ID: "JOB-ID", Pool: t.place, Step: sample(t.b.d, "task.step")}
	if n.Pool == nil {
		n.Pool = map[string]any{"id": "POOL", "native": sample(t.b.d, "pool.native")}
	}
	if t.b.d.Data != nil {
		n.Data = map[string]any{"inputs": []any{}, "outputs": map[string]any{}}
		if prefix, err := t.b.prefix(t.ctx, n); err == nil {
			maps.Copy(n.Data, map[string]any{"prefix": prefix, "in": prefix + "/in/", "out": prefix + "/out/", "pack": t.b.d.Data.Pack})
			for k, dir := range map[string]string{"prefix_url": "/", "in_url": "/in/", "out_url": "/out/"} {
				n.Data[k] = t.b.location(t.ctx, prefix+dir)
			}
		}
	}
	if t.b.scripted {
		n.Script = script(task, jobName(t.b.cfg.Instance, task.Key), n.Nonce, n.Data, t.b.tail())
	}
	n.Link = t.link(n)
	return n
}

func (t *trial) vars() map[string]any { return t.with(t.note()) }

// with is what calls for a job may speak of, as if it had been seen.
func (t *trial) with(n *note) map[string]any {
	vars := t.b.vars(n)
	vars["job"] = sample(t.b.d, "job")
	return vars
}

// calls shows the requests of a task's life. Those that only read are sent.
func (t *trial) calls() {
	n := t.note()
	sent := t.b.do
	only := func() { t.b.do = t } // what makes or changes something is shown only
	only()
	t.now("let")
	for _, l := range t.b.d.Let {
		v, err := l.Value.Render(t.ctx, t.b.vars(n))
		if err != nil {
			t.tell(Step{Err: t.b.clean(err.Error(), maxFact)})
			continue
		}
		if n.Let == nil {
			n.Let = map[string]any{}
		}
		n.Let[l.Name] = v
		t.tell(Step{Facts: []Fact{{"task.let." + l.Name, t.fact(v)}}})
	}
	show := func(part string, c *description.Call) {
		if c != nil {
			t.now(part)
			t.shown(func() error { _, err := t.b.call(t.ctx, c, t.with(n)); return err })
		}
	}
	for i := range t.b.d.Create.Before {
		s := &t.b.d.Create.Before[i]
		show("create.before "+s.Name, &s.Call)
	}
	show("create", &t.b.d.Create.Call)
	t.many(n)
	t.b.do = sent
	if f := &t.b.d.Find; f.List != nil {
		t.now("find")
		t.read(func() error {
			ids, err := t.b.find(t.ctx, t.b.vars(n))
			if err == nil {
				t.tell(Step{Facts: []Fact{{fmt.Sprintf("%d jobs of a key that is new", len(ids)), t.fact(strings.Join(ids, ", "))}}})
			}
			return err
		})
	}
	if w := &t.b.d.Watch; w.List != nil {
		t.now("watch")
		t.read(func() error { return t.watch(w) })
	}
	only()
	show("watch", t.b.d.Watch.One)
	for i := range t.b.d.Logs {
		if l := &t.b.d.Logs[i]; !l.Object.Given() {
			t.now("logs " + l.Stream)
			vars := t.with(n)
			vars["offset"] = int64(0)
			t.shown(func() error { _, err := t.b.call(t.ctx, &l.Call, vars); return err })
		}
	}
	for _, c := range []struct {
		part string
		call *description.Call
	}{{"suspend", t.b.d.Suspend}, {"resume", t.b.d.Resume}, {"stop", t.b.d.Stop}, {"kill", t.b.d.Kill}, {"delete", t.b.d.Delete}} {
		show(c.part, c.call)
	}
	t.b.do = sent
}

// link stands for where a task's script would be.
func (t *trial) link(n *note) string {
	if !t.b.linked && !t.b.linkedMany {
		return ""
	}
	return "https://STORE/" + jobName(t.b.cfg.Instance, n.Task.Key) + "/script"
}

// many shows the call for three jobs, or as many as one call is of.
func (t *trial) many(n *note) {
	m := t.b.d.Create.Many
	if m == nil {
		return
	}
	t.now("create.many")
	notes := make([]*note, min(m.Most, 3))
	for i := range notes {
		one := *n
		one.Task.Index, one.Task.Count = n.Task.Index+i, max(n.Task.Count, n.Task.Index+len(notes))
		one.Link = t.link(&one)
		notes[i] = &one
	}
	t.tell(Step{Facts: []Fact{{"one call", fmt.Sprintf("%d tasks here, at most %d", len(notes), m.Most)}}})
	t.shown(func() error {
		c, _, err := t.b.many(t.ctx, notes, 0)
		if err != nil {
			return err
		}
		if _, err = t.b.send(t.ctx, &m.Call, c.req, c.vars); err != nil && err != errShown || m.List == nil {
			return err
		}
		return t.b.list(t.ctx, m.List, c.vars, func(any) bool { return true })
	})
}

// read makes a call that changes nothing.
func (t *trial) read(f func() error) {
	if t.opt.DryRun {
		t.shown(f)
	} else if err := f(); err != nil {
		t.fail(err)
	}
}

// watch tells how the jobs stand that are there, ours or not.
func (t *trial) watch(w *description.Watch) error {
	var facts []Fact
	err := t.b.list(t.ctx, w.List, t.vars(), func(item any) bool {
		at := map[string]any{"settings": t.b.settings, "job": item}
		id, err1 := t.b.text(t.ctx, w.Status.ID, at)
		word, err2 := t.b.text(t.ctx, w.Status.State, at)
		if err1 != nil || err2 != nil {
			facts = append(facts, Fact{"not as described", t.fact(item)})
		} else {
			facts = append(facts, Fact{"job " + t.b.clean(id, 80) + " is " + string(t.b.states.Of(word).State), t.b.clean(word, maxNative)})
		}
		return len(facts) >= 20
	})
	if len(facts) > 0 {
		t.tell(Step{Facts: facts})
	}
	return err
}

var _ caller = (*trial)(nil)
