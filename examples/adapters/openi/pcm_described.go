package main

// The back end that the description describes.

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"openi/pluginpb"
)

// described is a back end by description.
type described struct {
	d *Described

	mu     sync.Mutex
	cfg    Config
	client *client
	items  map[string]any                 // what the back end has for each pool
	sizes  map[string]*pluginpb.Resources // of one task, by pool
}

func (b *described) suspends() bool { return b.d.Suspend != nil }

// Configure checks the settings.
func (b *described) Configure(_ context.Context, c Config) error {
	settings := map[string]string{}
	for name, s := range b.d.Settings {
		v, given := c.Settings[name]
		switch {
		case !given && s.Required:
			return status.Errorf(codes.InvalidArgument, "setting %s is missing: %s", name, s.About)
		case !given:
			v = s.Default
		}
		if v != "" && s.Pattern != "" && fMatches(v, "^(?:"+s.Pattern+")$") != true {
			return status.Errorf(codes.InvalidArgument, "setting %s is %q, which does not match %s", name, v, s.Pattern)
		}
		settings[name] = v
	}
	for name := range c.Settings {
		if _, ok := b.d.Settings[name]; !ok {
			return status.Errorf(codes.InvalidArgument, "there is no setting %s; there are %s", name, strings.Join(sortedKeys(b.d.Settings), ", "))
		}
	}
	for name, s := range b.d.Secrets {
		if c.Secrets[name] == "" && !s.Optional {
			return status.Errorf(codes.InvalidArgument, "secret %s is missing: %s", name, s.About)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cfg, b.client = c, newClient(b.d, settings, c.Secrets)
	return nil
}

func (b *described) http() *client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.client
}

// Pools asks for what there is.
func (b *described) Pools(ctx context.Context, ours map[string]int) ([]*pluginpb.Pool, error) {
	c := b.http()
	more := map[string]any{}
	v := Vars{"more": more}
	for i := range b.d.Pools.More {
		m := &b.d.Pools.More[i]
		a, err := c.call(ctx, &m.Call, v)
		if err != nil {
			return nil, err
		}
		more[m.Name] = a.body
		if m.Find != nil {
			if more[m.Name], err = m.Find.eval(a.in(c.vars.with(v))); err != nil {
				return nil, status.Errorf(codes.Unavailable, "the answer to %s is not as described: %v", m.Name, err)
			}
		}
	}
	items := slices.Clone(b.d.Pools.Fixed)
	if b.d.Pools.List != nil {
		if err := c.list(ctx, b.d.Pools.List, v, func(item any) bool {
			items = append(items, item)
			return false
		}); err != nil {
			return nil, err
		}
	}
	var pools []*pluginpb.Pool
	found, sizes := map[string]any{}, map[string]*pluginpb.Resources{}
	var fault error
	for _, item := range items {
		at := c.vars.with(v).with(Vars{"item": plain(item), "ours": int64(0)})
		if b.d.Pools.Where != nil {
			if yes, err := b.d.Pools.Where.eval(at); err != nil || yes != true {
				continue
			}
		}
		p, each, err := b.pool(at, ours)
		if err != nil {
			fault = err
			continue
		}
		if _, twice := found[p.Id]; twice {
			continue
		}
		found[p.Id], sizes[p.Id] = item, each
		if p.Slots > 0 {
			pools = append(pools, p)
		}
	}
	if len(pools) == 0 && fault != nil {
		return nil, status.Errorf(codes.Unavailable, "no pool is as described: %v", fault)
	}
	b.mu.Lock()
	b.items, b.sizes = found, sizes
	b.mu.Unlock()
	return pools, nil
}

// pool maps an item to a pool.
func (b *described) pool(v Vars, ours map[string]int) (p *pluginpb.Pool, each *pluginpb.Resources, err error) {
	defer catch(&err)
	m := &b.d.Pools.Pool
	text := func(x Value) string {
		if x == nil {
			return ""
		}
		return asText(x(v))
	}
	p = &pluginpb.Pool{Id: poolName(text(m.ID)), Sandbox: b.d.Sandbox, Labels: map[string]string{}, Capacity: &pluginpb.Resources{}}
	if p.Id == "" {
		wrong("it has no id")
	}
	v["ours"] = int64(ours[p.Id])
	slots := int64(1)
	if m.Slots != nil {
		slots = whole(text(m.Slots))
	}
	if b.d.Limits.MaxJobs > 0 {
		slots = min(slots, int64(b.d.Limits.MaxJobs))
	}
	p.Slots = uint32(max(slots, 0))
	cpu, err := strconv.ParseFloat(strings.TrimSpace(text(m.CPU)), 64)
	if err != nil {
		return nil, nil, err
	}
	each = &pluginpb.Resources{CpuMilli: int64(cpu * 1000), MemoryBytes: size(text(m.Memory)), DiskBytes: size(text(m.Disk))}
	if g := text(m.GPU); g != "" {
		each.Gpus = whole(g)
	}
	p.Capacity = &pluginpb.Resources{CpuMilli: each.CpuMilli * slots, MemoryBytes: each.MemoryBytes * slots, DiskBytes: each.DiskBytes * slots, Gpus: each.Gpus * slots}
	if slots > 1 { // else the capacity says it
		p.Largest = each
	}
	p.NoFiles = b.d.Data == nil
	if t := text(m.MaxTime); t != "" {
		p.MaxTimeMs = whole(t) * 1000
	}
	for k, x := range m.Labels {
		if s := text(x); s != "" {
			p.Labels[k] = s
		}
	}
	if len(m.Accelerator) > 0 && p.Capacity.Gpus > 0 {
		p.Accelerator = &pluginpb.Accelerator{Vendor: text(m.Accelerator["vendor"]), Model: text(m.Accelerator["model"])}
	}
	p.Features = []pluginpb.Feature{pluginpb.Feature_FEATURE_COMMAND}
	if slices.Contains(b.d.Features, "image") {
		p.Features = append(p.Features, pluginpb.Feature_FEATURE_IMAGE)
	}
	if slices.Contains(b.d.Features, "network") {
		p.Features = append(p.Features, pluginpb.Feature_FEATURE_NETWORK)
	}
	return p, each, nil
}

// poolName makes a name of letters, digits, dots and dashes.
func poolName(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(s))
	s = strings.Trim(s, ".-")
	return s[:min(len(s), 63)]
}

func whole(s string) int64 {
	i, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || i < 0 || i > 1<<40 {
		wrong("%q is not a number of things", s)
	}
	return i
}

// size reads bytes, with a unit or without.
func size(s string) int64 {
	s = strings.TrimSpace(s)
	if s == "" {
		return 0
	}
	factor := 1.0
	for _, u := range []struct {
		name   string
		factor float64
	}{
		{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
		{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
	} {
		if n, ok := strings.CutSuffix(s, u.name); ok {
			s, factor = strings.TrimSpace(n), u.factor
			break
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || f*factor > 1<<50 {
		wrong("%q is not an amount of bytes", s)
	}
	return int64(math.Ceil(f * factor))
}

// owner is what the names of all jobs of this node begin with.
func (b *described) owner() string {
	sum := sha256.Sum256([]byte(b.cfg.Instance))
	return "pcm-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:5]))
}

// name is that of an attempt's job, and of no other.
func (b *described) name(a *Attempt) string {
	name := b.owner() + "-" + strings.ReplaceAll(strings.TrimPrefix(a.Request.Key, "trd-"), ".", "-")
	if len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return b.owner() + "-" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:20]))
}

// of is what expressions may speak of for an attempt.
func (b *described) of(a *Attempt) Vars {
	r := a.Request
	res := r.Resources
	if res == nil {
		res = &pluginpb.Resources{}
	}
	texts := func(l []string) []any {
		all := []any{}
		for _, s := range l {
			all = append(all, s)
		}
		return all
	}
	env := map[string]any{}
	for k, v := range r.Env {
		env[k] = v
	}
	inputs := []any{}
	for i, in := range r.Inputs {
		info, err := os.Stat(in.Path)
		inputs = append(inputs, map[string]any{"index": int64(i), "target": filepath.Clean(in.Target), "folder": err == nil && info.IsDir()})
	}
	note := func(name string) any {
		if v, ok := a.Note[name]; ok {
			return plain(v)
		}
		return map[string]any{}
	}
	task := map[string]any{
		"key": r.Key, "name": b.name(a), "owner": b.owner(), "instance": b.cfg.Instance, "job": r.Job, "trade": r.Trade, "pool": r.Pool,
		"index": int64(r.Index), "count": int64(r.Count), "attempt": int64(r.Attempt), "command": append(texts(r.Command), texts(r.Args)...),
		"image": r.Image, "env": env, "network": r.Network, "port": int64(r.Port), "cpu": float64(res.CpuMilli) / 1000, "cpu_milli": res.CpuMilli,
		"memory": res.MemoryBytes, "disk": res.DiskBytes, "gpu": res.Gpus, "seconds": (r.LimitMs + 999) / 1000, "inputs": inputs,
		"outputs": texts(r.Outputs), "output_cap": r.OutputCapBytes, "script": asText(a.Note["script"]), "let": note("let"), "step": note("step"),
		"array": map[string]any{"name": b.name(a), "index": int64(0), "count": int64(1)},
	}
	return b.http().vars.with(Vars{"task": task, "pool": map[string]any{"id": r.Pool, "native": plain(a.Note["pool"])}, "data": note("data"), "id": a.ID, "job": plain(a.Note["job"])})
}

// Find looks for the attempt's job by its key.
func (b *described) Find(ctx context.Context, a *Attempt) (id string, err error) {
	f := &b.d.Find
	if f.List == nil {
		return "", nil
	}
	v := b.of(a)
	err = b.http().list(ctx, f.List, v, func(item any) bool {
		at := v.with(Vars{"item": item})
		if yes, err := f.Where.eval(at); err != nil || yes != true {
			return false
		}
		id, _ = f.ID.text(at)
		return id != ""
	})
	return id, err
}

// Start brings the inputs and creates the job.
func (b *described) Start(ctx context.Context, a *Attempt) (string, error) {
	if err := b.check(a.Request); err != nil {
		return "", err
	}
	if a.Note["pool"] == nil {
		item, err := b.item(ctx, a.Request)
		if err != nil {
			return "", err
		}
		a.Note["pool"] = item
	}
	if b.d.Data != nil && a.Note["data"] == nil {
		if b.d.Data.Store == "presigned" { // a step may make the place
			if err := b.steps(ctx, a); err != nil {
				return "", err
			}
		}
		data, err := b.upload(ctx, a)
		if err != nil {
			return "", err
		}
		a.Note["data"] = data
	}
	if err := b.prepare(a); err != nil {
		return "", err
	}
	lets := map[string]any{}
	a.Note["let"] = lets
	for _, l := range b.d.Let {
		x, err := l.Value.eval(b.of(a))
		if err != nil {
			return "", status.Errorf(codes.InvalidArgument, "let %s: %v", l.Name, err)
		}
		lets[l.Name] = x
	}
	if err := b.steps(ctx, a); err != nil {
		return "", err
	}
	if err := a.Save(); err != nil { // its script is known by a word that is nowhere else
		return "", status.Error(codes.Internal, err.Error())
	}
	return b.create(ctx, a)
}

// steps makes the calls that come before create, and were not made yet.
func (b *described) steps(ctx context.Context, a *Attempt) error {
	steps, _ := a.Note["step"].(map[string]any)
	if steps == nil {
		steps = map[string]any{}
		a.Note["step"] = steps
	}
	for i := range b.d.Create.Before {
		s := &b.d.Create.Before[i]
		if _, done := steps[s.Name]; done {
			continue
		}
		said, err := b.http().call(ctx, &s.Call, b.of(a))
		if err != nil {
			return err
		}
		found := said.body
		if s.Find != nil {
			if found, err = s.Find.eval(said.in(b.of(a))); err != nil {
				return status.Errorf(codes.Unavailable, "the answer to %s is not as described: %v", s.Name, err)
			}
		}
		steps[s.Name] = found
		if err := a.Save(); err != nil {
			return status.Error(codes.Internal, err.Error())
		}
	}
	return nil
}

func (b *described) create(ctx context.Context, a *Attempt) (string, error) {
	c, v := &b.d.Create, b.of(a)
	said, err := b.http().call(ctx, &c.Call, v)
	switch {
	case said != nil && err != nil && slices.Contains(c.Exists, said.status):
		if id, ferr := b.Find(ctx, a); ferr != nil || id != "" {
			return id, ferr
		}
	case said != nil && err != nil && c.Full != nil:
		if full, ferr := c.Full.eval(said.in(v)); ferr == nil && full == true {
			return "", status.Errorf(codes.ResourceExhausted, "the back end has no room: %v", err)
		}
		return "", err
	case err != nil:
		return "", err
	}
	id, ferr := c.ID.text(said.in(v))
	if ferr != nil || id == "" {
		if err != nil {
			return "", err
		}
		return "", status.Error(codes.Unavailable, "the back end did not say under which name it took the job")
	}
	return id, nil
}

// check refuses what the back end can't do.
func (b *described) check(r *pluginpb.StartRequest) error {
	can := func(f string) bool { return slices.Contains(b.d.Features, f) }
	switch {
	case r.Module != "":
		return status.Error(codes.FailedPrecondition, "this back end runs no modules")
	case r.Image != "" && !can("image"):
		return status.Error(codes.FailedPrecondition, "this back end runs no images of the buyer's")
	case r.Network && !can("network"):
		return status.Error(codes.FailedPrecondition, "this back end gives no network")
	case (len(r.Inputs) > 0 || len(r.Outputs) > 0) && b.d.Data == nil:
		return status.Error(codes.FailedPrecondition, "this back end has no way to bring files to its tasks, or from them: its description has no data")
	}
	return nil
}

// item is what the back end has for the attempt's pool; where none is named, for the
// least that is enough.
func (b *described) item(ctx context.Context, r *pluginpb.StartRequest) (any, error) {
	for try := 0; ; try++ {
		b.mu.Lock()
		item, ok := b.items[b.least(r)]
		b.mu.Unlock()
		if ok {
			return item, nil
		}
		if try > 0 {
			return nil, status.Errorf(codes.FailedPrecondition, "there is no pool %s that is large enough", r.Pool)
		}
		if _, err := b.Pools(ctx, nil); err != nil {
			return nil, err
		}
	}
}

func (b *described) least(r *pluginpb.StartRequest) string {
	if r.Pool != "" {
		return r.Pool
	}
	need := r.Resources
	if need == nil {
		need = &pluginpb.Resources{}
	}
	id, size := "", int64(0)
	for _, name := range sortedKeys(b.sizes) {
		p := b.sizes[name]
		if p.CpuMilli < need.CpuMilli || p.MemoryBytes < need.MemoryBytes || p.Gpus < need.Gpus {
			continue
		}
		if s := p.Gpus<<50 + p.MemoryBytes; id == "" || s < size {
			id, size = name, s
		}
	}
	return id
}

// Poll looks at all jobs, or at each.
func (b *described) Poll(ctx context.Context, all []*Attempt) (map[*Attempt]Seen, error) {
	seen := map[*Attempt]Seen{}
	w := &b.d.Watch
	left := map[string]*Attempt{}
	for _, a := range all {
		left[a.ID] = a
	}
	if w.List != nil {
		err := b.http().list(ctx, w.List, nil, func(item any) bool {
			id, err := w.Status.ID.text(b.http().vars.with(Vars{"job": item}))
			if a := left[id]; err == nil && a != nil {
				delete(left, id)
				seen[a] = b.seen(item)
			}
			return len(left) == 0
		})
		if err != nil {
			return seen, err
		}
	}
	for _, a := range left {
		if w.One == nil {
			seen[a] = Seen{Gone: true}
			continue
		}
		said, err := b.http().call(ctx, w.One, b.http().vars.with(Vars{"id": a.ID}))
		switch {
		case isAbsent(err):
			seen[a] = Seen{Gone: true}
			continue
		case err != nil:
			return seen, err
		}
		job := said.body
		if w.Job != nil {
			if job, err = w.Job.eval(said.in(b.http().vars)); err != nil {
				continue
			}
		}
		seen[a] = b.seen(job)
	}
	return seen, nil
}

// seen reads a job's item.
func (b *described) seen(job any) Seen {
	s, v := &b.d.Watch.Status, b.http().vars.with(Vars{"job": job})
	out := Seen{Job: job}
	word, err := s.State.text(v)
	if err != nil {
		out.State.Reason = "its state is not as described: " + err.Error()
	}
	out.Word = word
	if st, ok := b.d.States[word]; ok {
		out.State = st
	} else if err == nil {
		out.State = State{State: "running", Reason: "its back end calls its state " + cut(word, 60) + ", which is not known here"}
	}
	if why, err := s.Reason.text(v); err == nil && why != "" {
		out.State.Reason = why
	}
	if code, err := s.ExitCode.eval(v); err == nil {
		if i, ok := code.(int64); ok {
			out.Code, out.Known = int(i), true
		}
	}
	num := func(x Value) float64 {
		got, err := x.eval(v)
		f, ok := number(got)
		if err != nil || !ok {
			return 0
		}
		return f
	}
	out.Seconds, out.CPU, out.Memory = num(s.Seconds), num(s.CPU), int64(num(s.Memory))
	return out
}

// Judge adds what the output said of the task's end.
func (b *described) Judge(a *Attempt, s Seen) Seen { return b.says(a, s) }

// Logs reads what is new.
func (b *described) Logs(ctx context.Context, a *Attempt, ended bool) error {
	for i := range b.d.Logs {
		l := &b.d.Logs[i]
		if err := b.follow(ctx, a, l, fmt.Sprint("log", i)); err != nil && !isAbsent(err) {
			return err
		}
	}
	if b.d.scripted() {
		return b.lastWords(ctx, a, ended)
	}
	return nil
}

func (b *described) follow(ctx context.Context, a *Attempt, l *Log, note string) error {
	for range 64 {
		v := b.of(a)
		v["offset"] = plain(a.Note[note])
		if v["offset"] == nil {
			v["offset"] = int64(0)
			if l.Follow == "marker" {
				v["offset"] = ""
			}
		}
		said, err := b.http().call(ctx, &l.Call, v)
		if err != nil {
			return err
		}
		var got any = said.body
		if l.Text != nil {
			if got, err = l.Text.eval(said.in(v)); err != nil {
				return status.Errorf(codes.Unavailable, "the log is not as described: %v", err)
			}
		}
		text := asText(got)
		fresh := text
		var next any
		switch l.Follow {
		case "offset", "marker":
			next = asInt(v["offset"]) + int64(len(text))
			if l.Next != nil {
				if next, err = l.Next.eval(said.in(v)); err != nil {
					return status.Errorf(codes.Unavailable, "the log is not as described: %v", err)
				}
				if next == nil || next == v["offset"] {
					return nil
				}
			}
		default:
			fresh = news(a, note, text)
		}
		if fresh != "" {
			if err := b.take(a, l.Stream, fresh); err != nil {
				return err
			}
		}
		if next != nil {
			a.Note[note] = next // what could not be taken comes again
		}
		if fresh == "" {
			return nil
		}
		if err := a.Save(); err != nil {
			return err
		}
		if l.Follow != "offset" && l.Follow != "marker" {
			return nil // it came whole
		}
	}
	return nil
}

// news is what is new in a log that comes whole, or as much of its end as there is.
func news(a *Attempt, note, text string) string {
	had, _ := plain(a.Note[note]).(map[string]any)
	read, tail := int(asInt(had["read"])), asText(had["tail"])
	from := len(text)
	if read == 0 {
		from = 0
	} else if len(text) >= read && strings.HasSuffix(text[:read], tail) {
		from = read
	} else if i := strings.LastIndex(text, tail); i >= 0 {
		from = i + len(tail)
	}
	fresh := text[from:]
	tail += fresh
	tail = strings.ToValidUTF8(tail[max(0, len(tail)-4096):], "")
	a.Note[note] = map[string]any{"read": int64(read + len(fresh)), "tail": tail}
	return fresh
}

func asInt(x any) int64 {
	i, _ := plain(x).(int64)
	return i
}

// Stop calls stop or kill.
func (b *described) Stop(ctx context.Context, a *Attempt, force bool) error {
	order := []*Call{b.d.Stop, b.d.Kill, b.d.Delete}
	if force {
		order = []*Call{b.d.Kill, b.d.Stop, b.d.Delete}
	}
	for _, k := range order {
		if k != nil {
			_, err := b.http().call(ctx, k, b.of(a))
			return err
		}
	}
	return status.Error(codes.Unimplemented, "nothing is described that ends a job")
}

// Suspend and Resume are calls of the description.
func (b *described) Suspend(ctx context.Context, a *Attempt) error {
	_, err := b.http().call(ctx, b.d.Suspend, b.of(a))
	return err
}

// Resume lets it go on.
func (b *described) Resume(ctx context.Context, a *Attempt) error {
	_, err := b.http().call(ctx, b.d.Resume, b.of(a))
	return err
}

// Remove deletes the job, then what was made for it.
func (b *described) Remove(ctx context.Context, a *Attempt) error {
	if b.d.Delete != nil && a.ID != "" {
		if _, err := b.http().call(ctx, b.d.Delete, b.of(a)); err != nil && !isAbsent(err) {
			return err
		}
	}
	steps, _ := plain(a.Note["step"]).(map[string]any)
	for i := len(b.d.Create.Before) - 1; i >= 0; i-- {
		s := &b.d.Create.Before[i]
		given, ok := steps[s.Name]
		if s.Undo == nil || !ok {
			continue
		}
		if _, err := b.http().call(ctx, s.Undo, b.of(a).with(Vars{"step": given})); err != nil && !isAbsent(err) {
			return err
		}
	}
	return b.discard(ctx, a)
}
