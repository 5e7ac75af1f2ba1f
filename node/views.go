package node

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
	"github.com/jointcloud/pcm/node/placement"
)

var _ api.Node = (*Node)(nil)

// logDate is a log time as a date: log time begins at the founder's wall clock.
func logDate(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(min(max(ms, 1), lastDate)).UTC()
}

// lastDate is the last millisecond of the year 9999: JSON knows no later dates, and what
// another cell or account says may be any number.
const lastDate = 253402300799999

func priceView(p pcm.Price) api.Price {
	v := api.Price{Unit: p.Unit, PerTask: p.PerTask.String(), PerCPUHour: p.PerCPUHour.String(), PerGiBHour: p.PerGiBHour.String()}
	if p.PerGPUHour != 0 {
		v.PerGPUHour = p.PerGPUHour.String()
	}
	return v
}

func (n *Node) connected() int {
	k := 0
	for _, p := range n.mesh.Peers() {
		if p.Connected {
			k++
		}
	}
	return k
}

// notReady says why this peer can't take work; "" if it can.
func (n *Node) notReady() string {
	if n.draining.Load() {
		return "going down"
	}
	if ok, why := n.cell.Ready(); !ok {
		return why
	}
	select {
	case <-n.member:
		return ""
	default:
		return "the cell does not know this peer yet"
	}
}

// Status is the node at a glance.
func (n *Node) Status(context.Context) (api.Status, error) {
	st := n.cell.Status()
	own := n.mesh.Own()
	use := n.store.Usage()
	running, _ := n.seller.busy()
	s := api.Status{
		ID: n.self, Name: n.cfg.Name, Version: n.cfg.Version, Account: n.account,
		Mesh: n.id.Mesh.Mesh, Cell: n.id.Mesh.Cell, CellName: n.id.Mesh.CellName,
		Role: string(st.Role), Leader: st.Leader, Reason: n.notReady(),
		Listen: n.mesh.Addrs(), Data: n.cfg.Dir, Peers: n.connected(), Running: running,
		Pools: n.offer.declared(), StartedAt: n.startedAt.UTC(), Passport: time.UnixMilli(own.NotAfter).UTC(),
		Disk: api.Disk{Free: use.Free, Reserved: use.Reserve, Artifacts: use.Used, Quota: use.Quota},
	}
	s.Ready = s.Reason == ""
	if n.cfg.API != nil {
		s.API = n.cfg.API()
	}
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			if j.EndedAt == 0 && j.Buyer == n.account {
				s.Open++
			}
		}
	})
	if low := n.diskLow(); low != "" {
		s.Warnings = append(s.Warnings, "the disk is nearly full: "+low)
	}
	s.Warnings = append(s.Warnings, n.partings()...)
	s.Warnings = append(s.Warnings, n.glass.alarms.warnings()...)
	s.Warnings = append(s.Warnings, n.retention.warnings()...)
	s.Warnings = append(s.Warnings, n.offer.warnings()...)
	s.Warnings = append(s.Warnings, n.offer.strays()...)
	if !n.saysSame(own) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("name or labels in the configuration differ from the passport, which says %q with %s: others go by the passport; to change it, leave and join again", own.Name, orElse(own.Labels.String(), "no labels")))
	}
	if !st.Complete {
		s.Warnings = append(s.Warnings, "the ledger's history is still being fetched from other peers")
	}
	if time.Until(s.Passport) < pcm.PassportLifetime/4 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("the passport expires %s: no issuer could be reached to renew it", s.Passport.Format(time.RFC3339)))
	}
	return s, nil
}

// roles are the roles of the peers of this node's cell.
func (n *Node) roles() map[pcm.PeerID]consensus.Member {
	m := map[pcm.PeerID]consensus.Member{}
	for _, c := range n.cell.Status().Members {
		m[c.Peer] = c
	}
	return m
}

// Peers lists this peer first, then the others it knows.
func (n *Node) Peers(context.Context) ([]api.Peer, error) {
	roles := n.roles()
	own := n.mesh.Own()
	list := []api.Peer{{
		ID: n.self, Name: own.Name, Account: own.Account, Labels: own.Labels, Self: true, Connected: true,
		Addrs: n.mesh.Addrs(), Role: string(n.cell.Status().Role), SeenAt: time.Now().UTC(),
	}}
	for _, p := range n.mesh.Peers() {
		list = append(list, api.Peer{
			ID: p.Passport.Peer, Name: p.Passport.Name, Account: p.Passport.Account, Labels: p.Passport.Labels,
			Connected: p.Connected, Addrs: p.Addrs, Transport: p.Transport,
			LatencyMS: float64(p.Latency.Microseconds()) / 1000, Role: string(roles[p.Passport.Peer].Role), SeenAt: p.SeenAt.UTC(),
		})
	}
	return list, nil
}

// Offers is the offer book, a row for each pool.
func (n *Node) Offers(ctx context.Context) ([]api.Offer, error) {
	n.fresh(ctx)
	var list []api.Offer
	rows := n.mesh.Offers()
	abroad := map[ledger.PoolKey]placement.Site{}
	for _, s := range n.sitesAbroad(levelAbroad) {
		abroad[ledger.PoolKey{Peer: s.Peer, Pool: s.Pool.ID}] = s
	}
	n.cell.View(func() {
		for _, row := range rows {
			o := row.Offer
			for _, p := range o.Pools {
				v := api.Offer{
					ID: string(o.Peer) + "/" + string(p.ID), Peer: o.Peer, Name: o.Name, Account: o.Account, Cell: o.Cell,
					Number: o.Number, Pool: p, Rules: rulesFor(o.Rules, p.ID), Price: priceView(p.Price), Source: row.Source,
					AgeMS: max(0, time.Now().UnixMilli()-o.IssuedAt), NotAfter: time.UnixMilli(o.NotAfter).UTC(),
				}
				key := ledger.PoolKey{Peer: o.Peer, Pool: p.ID}
				if o.Cell != n.id.Mesh.Cell {
					s, ok := abroad[key]
					if v.FreeNote = s.Avoid; !ok {
						v.FreeNote = "it can't be bought from here: this cell's rules know no trade across cells yet"
					} else if v.FreeNote == "" {
						v.Free, v.FreeSlots = &s.Free, &s.Slots
					}
				} else if lp, ok := n.state.Pool(key); ok {
					free, slots := lp.Free()
					v.Free, v.FreeSlots = &free, &slots
				} else {
					v.FreeNote = "it is not declared in the ledger yet"
				}
				list = append(list, v)
			}
		}
	})
	return list, nil
}

// Cells lists the cells of the mesh that this peer knows, its own first.
func (n *Node) Cells(context.Context) ([]api.Cell, error) {
	st := n.cell.Status()
	c := api.Cell{
		ID: st.Cell, Name: n.id.Mesh.CellName, Leader: st.Leader, Term: st.Term, Index: st.Index, Applied: st.Applied,
	}
	if c.Removed = n.cell.Pruned(); c.Removed > 0 && n.retention.archive != nil {
		c.Archive = n.retention.archive.dir
	}
	names := map[pcm.PeerID]string{}
	n.cell.View(func() {
		var root [32]byte
		c.Records, root = n.state.Root()
		c.Root, c.LogTime = hex.EncodeToString(root[:]), logDate(n.state.Stamp())
		for _, m := range n.state.Members() {
			names[m.Peer] = m.Name
		}
	})
	alive := map[pcm.PeerID]bool{n.self: true}
	for _, p := range n.mesh.Peers() {
		alive[p.Passport.Peer] = p.Connected
	}
	for _, m := range st.Members {
		c.Members = append(c.Members, api.CellMember{ID: m.Peer, Name: names[m.Peer], Role: string(m.Role), Alive: alive[m.Peer]})
	}
	c.Size = len(st.Members)
	c.MaxMembers, c.Open = n.limits()
	return append([]api.Cell{c}, n.awayCells()...), nil
}

func jobView(j *ledger.Job) api.Job {
	v := api.Job{
		ID: j.ID, Name: j.Name, State: j.State, Reason: j.Reason, Account: j.Buyer, Submitter: j.Submitter,
		Driver: j.Driver, DriverTerm: j.Term, Takeover: j.Takeover, Spec: j.Spec,
		SubmittedAt: logDate(j.SubmittedAt), EndedAt: logDate(j.EndedAt), Settled: j.Settled(),
		Unit: j.Unit, Held: j.Held.String(), Paid: j.Paid.String(),
	}
	if j.Budget > 0 {
		v.Budget = j.Budget.String()
	}
	if j.EndedAt != 0 {
		v.PayAt = logDate(j.PayAt())
	}
	counts := j.Counts()
	v.Counts = api.TaskCounts{
		Waiting: counts[pcm.TaskWaiting], Placed: counts[pcm.TaskPlaced], Done: counts[pcm.TaskDone],
		Failed: counts[pcm.TaskFailed], Cancelled: counts[pcm.TaskCancelled],
	}
	for _, c := range counts {
		v.Counts.Total += c
	}
	v.Counts.Parked = parked(j)
	v.Counts.Waiting -= v.Counts.Parked
	if j.Stopping && j.EndedAt == 0 && v.Reason == "" {
		v.Reason = "cancelled"
	}
	return v
}

// jobJustSubmitted is the view of a job that this peer's copy of the ledger may not show yet.
func (n *Node) jobJustSubmitted(id pcm.JobID, op *pcm.Submit) api.Job {
	j := ledger.Job{
		ID: id, Name: op.Name, Buyer: n.account, Submitter: n.self, Spec: op.Spec, Takeover: op.Takeover,
		Unit: op.Unit, Budget: op.Budget, SubmittedAt: n.cell.LogTime(), State: pcm.JobOpen, Driver: n.self, Term: 1,
	}
	for _, s := range op.Steps {
		tasks := make([]ledger.Task, s.Count)
		for i := range tasks {
			tasks[i].State = pcm.TaskWaiting
		}
		j.Steps = append(j.Steps, ledger.Step{Retries: s.Retries, Tasks: tasks, Service: s.Service, Scale: s.Scale})
	}
	return jobView(&j)
}

// documents decodes a page of archived documents.
func (n *Node) documents(prefix, after string, limit int) ([]pcm.Document, string, error) {
	return n.cell.Documents(consensus.DocumentQuery{Prefix: prefix, After: after, Limit: limit})
}

// Bounds of lists of what is archived, whose keys say nothing of when it was.
const (
	maxListed  = 10_000  // jobs or trades: the newest
	maxScanned = 500_000 // that are looked at for that
)

// archived are the newest documents of a kind, in no order; at says when each was.
func archived[T any](n *Node, prefix string, at func(*T) int64) ([]*T, error) {
	list, after, scanned := newest[T]{at: at, most: maxListed}, "", 0
	for {
		docs, next, err := n.documents(prefix, after, 1000)
		if err != nil {
			return nil, err
		}
		for _, d := range docs {
			v := new(T)
			if err := pcm.UnmarshalLarge(d.Value, v); err != nil {
				return nil, err
			}
			list.add(v)
		}
		if scanned += len(docs); next == "" || scanned >= maxScanned {
			if next != "" {
				n.log.Warn("a list leaves documents out: there are too many to look at", "of", prefix, "most", maxScanned)
			}
			return list.all(), nil
		}
		after = next
	}
}

// newest keeps the latest of what is added, and little more than that.
type newest[T any] struct {
	at   func(*T) int64
	most int
	kept []*T
}

func (l *newest[T]) add(v *T) {
	if l.kept = append(l.kept, v); len(l.kept) >= 2*l.most {
		l.all()
	}
}

// all is what was kept.
func (l *newest[T]) all() []*T {
	if len(l.kept) > l.most {
		slices.SortFunc(l.kept, func(a, b *T) int { return cmp.Compare(l.at(b), l.at(a)) })
		clear(l.kept[l.most:])
		l.kept = l.kept[:l.most]
	}
	return l.kept
}

// archivedJob is a job that has ended and is settled.
func (n *Node) archivedJob(id pcm.JobID) (*ledger.Job, error) {
	data, err := n.cell.Document(ledger.JobKey(id))
	if err != nil {
		return nil, err
	}
	j := new(ledger.Job)
	return j, pcm.UnmarshalLarge(data, j)
}

// withJob calls f with a job, open or archived. f must not keep it.
func (n *Node) withJob(id pcm.JobID, f func(*ledger.Job)) error {
	found := false
	n.cell.View(func() {
		if j, ok := n.state.Job(id); ok {
			found = true
			f(j)
		}
	})
	if found {
		return nil
	}
	j, err := n.archivedJob(id)
	if err != nil {
		if pcm.ErrorCode(err) == pcm.NotFound {
			return pcm.Errorf(pcm.NotFound, "no job %s in %s: see 'pcm job list'", id, n.id.Mesh.CellName)
		}
		return err
	}
	f(j)
	return nil
}

// Jobs lists open and ended jobs, newest first.
func (n *Node) Jobs(ctx context.Context) ([]api.Job, error) {
	n.fresh(ctx)
	old, err := archived(n, "job/", func(j *ledger.Job) int64 { return j.SubmittedAt })
	if err != nil {
		return nil, err
	}
	var list []api.Job
	for _, j := range old {
		list = append(list, jobView(j))
	}
	n.cell.View(func() {
		for _, j := range n.state.Jobs() {
			list = append(list, jobView(j))
		}
	})
	for i := range list {
		if list[i].Counts.Waiting > 0 {
			list[i].Waiting = n.drivers.why(list[i].ID)
		}
	}
	slices.SortStableFunc(list, func(a, b api.Job) int { return b.SubmittedAt.Compare(a.SubmittedAt) })
	// Between the two reads a job may have moved from the state to the archive.
	seen := map[pcm.JobID]bool{}
	return slices.DeleteFunc(list, func(j api.Job) bool {
		twice := seen[j.ID]
		seen[j.ID] = true
		return twice
	}), nil
}

// Job is one job.
func (n *Node) Job(ctx context.Context, id pcm.JobID) (api.Job, error) {
	n.fresh(ctx)
	var v api.Job
	h, known := n.specs.get(id)
	err := n.withJob(id, func(j *ledger.Job) {
		v = jobView(j)
		if known {
			v.Services = services(j, &h.spec)
		} else {
			v.Services = services(j, nil)
		}
	})
	if err == nil && v.Counts.Waiting > 0 {
		v.Waiting = n.drivers.why(id)
	}
	return v, err
}

// names are the names of the peers that the cell knows.
func (n *Node) names() map[pcm.PeerID]string {
	names := map[pcm.PeerID]string{n.self: n.cfg.Name}
	n.cell.View(func() {
		for _, m := range n.state.Members() {
			names[m.Peer] = m.Name
		}
	})
	for _, p := range n.mesh.Peers() { // of other cells
		if names[p.Passport.Peer] == "" {
			names[p.Passport.Peer] = p.Passport.Name
		}
	}
	return names
}

// Tasks lists a job's tasks, by step and index.
func (n *Node) Tasks(ctx context.Context, id pcm.JobID) ([]api.Task, error) {
	n.fresh(ctx)
	var list []api.Task
	names := n.names()
	held, known := n.specs.get(id)
	err := n.withJob(id, func(j *ledger.Job) {
		for s, st := range j.Steps {
			step := fmt.Sprint(s)
			if known && s < len(held.spec.Steps) {
				step = held.spec.Steps[s].Name
			}
			for i := range st.Tasks {
				v := taskView(j, s, i, step, names)
				if v.Seller == n.self && v.State == pcm.TaskPlaced {
					n.seller.show(&v)
				}
				list = append(list, v)
			}
		}
	})
	return list, err
}

func taskView(j *ledger.Job, s, i int, step string, names map[pcm.PeerID]string) api.Task {
	tk := &j.Steps[s].Tasks[i]
	v := api.Task{
		ID: fmt.Sprintf("%s/%d/%d", j.ID, s, i), Job: j.ID, Step: step, Index: i, State: tk.State, Attempt: tk.Attempt,
		Seller: tk.Seller, SellerName: names[tk.Seller], Trade: tk.Trade, Reason: tk.Reason, History: slices.Clone(tk.History),
	}
	if j.Steps[s].Parked(i) && tk.State == pcm.TaskWaiting {
		v.Reason = fmt.Sprintf("not to run: the step is scaled to %d", j.Steps[s].Scale)
	}
	if r := tk.Result; r != nil {
		code, use := r.ExitCode, r.Usage
		v.Outcome, v.ExitCode, v.Usage, v.Output = r.Outcome, &code, &use, r.Output
	}
	return v
}

// placeOf tells where a task is.
func (n *Node) placeOf(id pcm.JobID, step, index int) (taskPlace, error) {
	var p taskPlace
	var bad error
	err := n.withJob(id, func(j *ledger.Job) {
		if step < 0 || step >= len(j.Steps) || index < 0 || index >= len(j.Steps[step].Tasks) {
			bad = pcm.Errorf(pcm.NotFound, "%s has no task %d/%d", id, step, index)
			return
		}
		tk := &j.Steps[step].Tasks[index]
		p = taskPlace{state: tk.State, decided: tk.State.Final(), attempt: tk.Attempt, seller: tk.Seller, driver: j.Driver, job: j.ID, reason: tk.Reason}
		if tk.State == pcm.TaskPlaced {
			p.trade = tk.Trade
		}
		if tk.Result != nil {
			p.output = tk.Result.Output
		}
	})
	if err == nil {
		err = bad
	}
	return p, err
}

func tradeView(t *ledger.Trade, cell pcm.CellID, names map[pcm.PeerID]string) api.Trade {
	if t.Terms.Abroad() {
		cell = t.Terms.Cell
	}
	v := api.Trade{
		ID: t.ID, Cell: cell, Job: t.Terms.Job, Step: t.Terms.Step, Tasks: t.Terms.Tasks.Len(), Attempt: t.Terms.Attempt,
		Buyer: t.Terms.Buyer, Seller: t.Terms.Seller, SellerName: names[t.Terms.Seller], SellerAccount: t.SellerAccount,
		Pool: t.Terms.Pool, Adapter: t.Terms.Adapter, Price: priceView(t.Terms.Price), States: map[pcm.AttemptState]int{},
		State: "open", Unit: t.Terms.Price.Unit, Held: t.Held.String(), Paid: t.Paid.String(),
		At: logDate(t.AwardedAt), ClosedAt: logDate(t.ClosedAt), Source: api.TradeOfLedger,
	}
	if t.ClosedAt != 0 {
		v.State = "closed"
	}
	for i := range t.Attempts {
		v.States[t.Attempts[i].State]++
	}
	if v.States[pcm.AttemptDisputed] > 0 {
		v.Disputes = disputesOf(t)
	}
	return v
}

// maxDisputes bounds how many reasons of one trade are shown apart.
const maxDisputes = 16

// disputesOf puts the tasks of a trade that are in dispute together by reason, those of
// the lowest indexes first; what is beyond the bound goes to the last one.
func disputesOf(t *ledger.Trade) []api.TradeDispute {
	type group struct {
		tasks []int
		asked pcm.Micro
		since int64
	}
	groups, order := map[string]*group{}, []string{}
	for i, at := range t.All {
		if at.State != pcm.AttemptDisputed {
			continue
		}
		why := at.Reason
		if groups[why] == nil && len(order) == maxDisputes {
			why = order[maxDisputes-1]
		}
		g := groups[why]
		if g == nil {
			g = &group{since: at.DisputedAt}
			groups[why], order = g, append(order, why)
		}
		g.tasks, g.asked, g.since = append(g.tasks, i), pcm.AddMicro(g.asked, at.Charge), min(g.since, at.DisputedAt)
	}
	list := make([]api.TradeDispute, 0, len(order))
	for _, why := range order {
		g := groups[why]
		list = append(list, api.TradeDispute{
			Tasks: spansText(pcm.SpansOf(g.tasks)), Reason: why, Asked: g.asked.String(), Until: logDate(g.since + pcm.DisputeFor.Milliseconds()),
		})
	}
	return list
}

// Trades lists open and closed trades of this node's cell, and those in other
// cells that its jobs have bought there, newest first.
func (n *Node) Trades(ctx context.Context) ([]api.Trade, error) {
	n.fresh(ctx)
	names := n.names()
	old, err := archived(n, "trade/", func(t *ledger.Trade) int64 { return t.AwardedAt })
	if err != nil {
		return nil, err
	}
	var list []api.Trade
	for _, t := range old {
		list = append(list, tradeView(t, n.id.Mesh.Cell, names))
	}
	n.cell.View(func() {
		for _, t := range n.state.Trades() {
			list = append(list, tradeView(t, n.id.Mesh.Cell, names))
		}
	})
	abroad, err := n.tradesAbroad(ctx, names)
	if err != nil {
		return nil, err
	}
	list = append(list, abroad...)
	slices.SortStableFunc(list, func(a, b api.Trade) int { return b.At.Compare(a.At) })
	seen := map[pcm.TradeID]bool{}
	return slices.DeleteFunc(list, func(t api.Trade) bool {
		twice := seen[t.ID]
		seen[t.ID] = true
		return twice
	}), nil
}

// Cancel ends a job.
func (n *Node) Cancel(ctx context.Context, id pcm.JobID, reason string) error {
	j, err := n.Job(ctx, id)
	if err != nil {
		return err
	}
	if j.State != pcm.JobOpen {
		return pcm.Errorf(pcm.Conflict, "%s has ended: it is %s", id, j.State)
	}
	if j.Account != n.account && j.Driver != n.self {
		return pcm.Errorf(pcm.Forbidden, "%s belongs to account %s: cancel it on one of its peers", id, pcm.Short(j.Account))
	}
	_, err = n.must(ctx, pcm.Op{Cancel: &pcm.Cancel{Job: id, Reason: clip(orElse(reason, "cancelled by its owner"))}})
	return err
}

// Explain says why tasks of a job are, or are not, where they are.
func (n *Node) Explain(ctx context.Context, id pcm.JobID) (api.Explanation, error) {
	j, err := n.Job(ctx, id)
	if err != nil {
		return api.Explanation{}, err
	}
	h, ok := n.specs.get(id)
	if !ok {
		return api.Explanation{}, pcm.Errorf(pcm.NotFound, "the spec of %s is not here: ask its driver, peer %s", id, pcm.Short(j.Driver))
	}
	return n.explain(ctx, id, h, j.Account)
}

// ExplainSpec says where a spec's tasks would go.
func (n *Node) ExplainSpec(ctx context.Context, s api.Submission) (api.Explanation, error) {
	spec := s.Spec
	if faults := spec.Normalize(); len(faults) > 0 {
		return api.Explanation{}, joinFaults(faults)
	}
	return n.explain(ctx, "", heldSpec{spec: spec}, n.account)
}

func (n *Node) explain(ctx context.Context, id pcm.JobID, h heldSpec, buyer pcm.AccountID) (api.Explanation, error) {
	_, unit, err := h.spec.BudgetAmount()
	if err != nil {
		return api.Explanation{}, err
	}
	e := api.Explanation{ID: orElse(string(id), "dry-run")}
	abroad := 0
	if buyer == n.account {
		abroad = levelAbroad
	}
	sites := n.freshSites(buyer, abroad)
	for s, st := range h.spec.Steps {
		r, err := request(h, s, buyer, n.account, unit)
		if err != nil {
			return e, err
		}
		r.Judge = n.judge(h, s, buyer, n.self)
		ranked, note, err := n.rank(ctx, r, id, st.Count, sites)
		if err != nil {
			return e, err
		}
		n.askSellers(ctx, id, h, s, ranked)
		x := api.StepExplain{Step: st.Name, Shape: r.Each, Strategy: h.spec.Strategy}
		room := 0
		for _, c := range ranked {
			room += c.Room
			x.Candidates = append(x.Candidates, api.CandidateView{
				Peer: c.Peer, Name: c.Name, Pool: c.Pool.ID, OK: c.OK(), Filter: c.Filter, Reason: c.Reason,
				Room: c.Room, Score: c.Score, Cost: c.Cost.String(),
			})
		}
		if x.Summary = placement.Why(ranked); room > 0 {
			x.Summary = fmt.Sprintf("%d tasks have room now", room)
		}
		if note != "" {
			x.Summary += "; " + note
		}
		e.Steps = append(e.Steps, x)
	}
	return e, nil
}
