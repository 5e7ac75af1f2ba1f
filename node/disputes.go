package node

import (
	"context"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// openTrade is an open trade, of this node's cell or of its jobs in another one, with
// those of its tasks that are in one of some states, all or the ones that a person names.
func (n *Node) openTrade(ctx context.Context, id pcm.TradeID, typed string, in ...pcm.AttemptState) (t soldIn, tasks pcm.Spans, err error) {
	n.fresh(ctx)
	found, cell, err := n.tradeAnywhere(ctx, id)
	switch {
	case pcm.ErrorCode(err) == pcm.NotFound && cell == n.id.Mesh.Cell:
		return t, nil, pcm.Errorf(pcm.NotFound, "there is no trade %s in this node's cell, and none of its jobs has bought it in another one; see 'pcm trade list'", id)
	case err != nil:
		return t, nil, err
	case found.ClosedAt != 0:
		return t, nil, pcm.Errorf(pcm.Conflict, "%s has closed: what is closed stays as it is", id)
	}
	t = soldIn{*found, cell}
	wanted := in[0]
	for _, s := range in[1:] {
		wanted += " or " + s
	}
	var of []int
	for i, at := range t.All {
		if slices.Contains(in, at.State) {
			of = append(of, i)
		}
	}
	if typed == "" {
		if len(of) == 0 {
			return t, nil, pcm.Errorf(pcm.Conflict, "no task of %s is %s", id, wanted)
		}
		return t, pcm.SpansOf(of), nil
	}
	if tasks, err = pcm.ParseSpans(typed); err != nil {
		return t, nil, err
	}
	for i := range tasks.All {
		if at := t.Attempt(i); at == nil || !slices.Contains(in, at.State) {
			state := pcm.AttemptState("not one of its tasks")
			if at != nil {
				state = at.State
			}
			return t, nil, pcm.Errorf(pcm.Conflict, "task %d of %s is not %s: it is %s", i, id, wanted, state)
		}
	}
	return t, tasks, nil
}

// soldIn is a trade and the cell that it is in.
type soldIn struct {
	ledger.Trade
	cell pcm.CellID
}

// mayAct refuses what only the buyer's or the seller's account does.
func (n *Node) mayAct(t soldIn, account pcm.AccountID, what string) error {
	if account == n.account {
		return nil
	}
	return pcm.Errorf(pcm.Forbidden, "%s: that is for account %s to %s, this peer is of account %s", t.ID, pcm.Short(account), what, pcm.Short(n.account))
}

// acted is a trade after an operation on it.
func (n *Node) acted(ctx context.Context, t soldIn, op pcm.Op) (api.Trade, error) {
	if err := n.mustIn(ctx, t.cell, op); err != nil {
		return api.Trade{}, err
	}
	n.owed.stale.Store(true)
	n.fresh(ctx)
	after, cell, err := n.tradeAnywhere(ctx, t.ID)
	if err != nil { // the operation took effect all the same: who hears of an error would try it again
		n.log.Info("a trade can't be read after an operation on it", "trade", t.ID, "error", err)
		v := tradeView(&t.Trade, t.cell, n.names())
		v.Source = api.TradeBefore
		return v, nil
	}
	if cell != n.id.Mesh.Cell {
		return n.bought.view(after, cell, n.names()), nil
	}
	return tradeView(after, cell, n.names()), nil
}

// DisputeTrade freezes the holds of finished tasks that the buyer doesn't want to pay.
func (n *Node) DisputeTrade(ctx context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	t, tasks, err := n.openTrade(ctx, id, r.Tasks, pcm.AttemptFinished)
	if pcm.ErrorCode(err) == pcm.Conflict {
		err = pcm.Errorf(pcm.Conflict, "%w. Tasks are paid as soon as their results are accepted, unless the job says pay_after (pcm run --pay-after 10m)", err)
	}
	if err == nil {
		err = n.mayAct(t, t.Terms.Buyer, "dispute")
	}
	if err == nil && r.Reason == "" {
		err = pcm.Errorf(pcm.Invalid, "a dispute needs a reason: its seller has to know what is wrong")
	}
	if err != nil {
		return api.Trade{}, err
	}
	n.audit.operator(ctx, "dispute", api.AuditEntry{Trade: id, Tasks: spansText(tasks), Reason: r.Reason})
	return n.acted(ctx, t, pcm.Op{Dispute: &pcm.Dispute{Trade: id, Tasks: tasks, Reason: clip(r.Reason)}})
}

// PayTrade pays for tasks what the ledger charges: for those in dispute, and for those that
// would be paid for later (see pcm.Spec.PayAfter).
func (n *Node) PayTrade(ctx context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	t, tasks, err := n.openTrade(ctx, id, r.Tasks, pcm.AttemptDisputed, pcm.AttemptFinished)
	if err == nil {
		err = n.mayAct(t, t.Terms.Buyer, "pay")
	}
	if err != nil {
		return api.Trade{}, err
	}
	var sum pcm.Micro
	for i := range tasks.All {
		sum = pcm.AddMicro(sum, t.Attempt(i).Charge)
	}
	n.audit.operator(ctx, "pay", api.AuditEntry{Trade: id, Tasks: spansText(tasks), Reason: r.Reason})
	return n.acted(ctx, t, pcm.Op{Settle: &pcm.Settle{Trade: id, Tasks: tasks, Amount: sum}})
}

// GiveIn takes nothing for disputed tasks that this peer sold.
func (n *Node) GiveIn(ctx context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	t, tasks, err := n.openTrade(ctx, id, r.Tasks, pcm.AttemptDisputed)
	if err == nil && t.Terms.Seller != n.self {
		err = pcm.Errorf(pcm.Forbidden, "%s was sold by peer %s: it gives in there", id, orElse(n.names()[t.Terms.Seller], pcm.Short(t.Terms.Seller)))
	}
	if err != nil {
		return api.Trade{}, err
	}
	n.audit.operator(ctx, "give in", api.AuditEntry{Trade: id, Tasks: spansText(tasks), Reason: r.Reason})
	return n.acted(ctx, t, pcm.Op{Reject: &pcm.Reject{Trade: id, Tasks: tasks, Reason: clip(orElse(r.Reason, "the seller gives in"))}})
}

// resolutionFor is how long an offer to end a dispute can be accepted, if it doesn't say.
const resolutionFor = 3 * 24 * time.Hour

// ProposeResolution offers the other side of a dispute to end it at an amount.
func (n *Node) ProposeResolution(ctx context.Context, id pcm.TradeID, r api.ResolutionRequest) (api.Agreement, error) {
	t, tasks, err := n.openTrade(ctx, id, r.Tasks, pcm.AttemptDisputed)
	if err != nil {
		return api.Agreement{}, err
	}
	amount, err := pcm.ParseMicro(r.Amount)
	if err != nil {
		return api.Agreement{}, err
	}
	if held := pcm.MulMicro(t.Terms.HoldEach(), tasks.Len()); amount < 0 || amount > held {
		return api.Agreement{}, pcm.Errorf(pcm.Invalid, "%s can't be agreed on: zero to %s %s, which is held for tasks %s", amount, held, t.Terms.Price.Unit, tasks)
	}
	if err := checkNote("note", r.Note); err != nil {
		return api.Agreement{}, err
	}
	if n.account != t.Terms.Buyer && n.account != t.SellerAccount {
		return api.Agreement{}, pcm.Errorf(pcm.Forbidden, "%s is between account %s and account %s, this peer is of account %s", id, pcm.Short(t.Terms.Buyer), pcm.Short(t.SellerAccount), pcm.Short(n.account))
	}
	res := pcm.Resolution{
		Mesh: n.id.Mesh.Mesh, Cell: t.cell, Trade: id, Tasks: tasks, Buyer: t.Terms.Buyer, Seller: t.SellerAccount,
		Amount: amount, BySeller: n.account != t.Terms.Buyer, Note: r.Note,
	}
	valid, err := r.ValidFor.Get(resolutionFor)
	if err != nil {
		return api.Agreement{}, err
	}
	if valid < time.Minute || valid > pcm.DisputeFor {
		return api.Agreement{}, pcm.Errorf(pcm.Invalid, "an offer to end a dispute can't be valid for %s: 1m to %s, by when it ends unpaid", valid, pcm.DisputeFor)
	}
	level, err := n.levelIn(ctx, t.cell)
	if err != nil {
		return api.Agreement{}, err
	}
	if level >= (pcm.Op{Resolve: &pcm.Resolve{Timed: true}}).Level() {
		res.NotAfter = time.Now().Add(valid).UnixMilli()
	}
	k := &deal{Domain: pcm.DomainResolution, At: time.Now().UTC(), Agreed: res.Offer(n.id.Account)}
	if t.Terms.Buyer == t.SellerAccount { // both sides are this account
		k.Agreed = k.Agreed.Accept(pcm.DomainResolution, n.id.Account)
	}
	n.audit.operator(ctx, "offer", api.AuditEntry{Trade: id, Tasks: spansText(tasks), Reason: "to end a dispute at " + amount.String()})
	return n.offered(ctx, k)
}

// CellSettings lists the settings of this node's cell.
func (n *Node) CellSettings(ctx context.Context) ([]api.CellSetting, error) {
	n.fresh(ctx)
	var list []api.CellSetting
	for _, s := range pcm.Settings {
		list = append(list, n.settingView(s.Key))
	}
	return list, nil
}

func (n *Node) settingView(key string) (v api.CellSetting) {
	n.cell.View(func() {
		s := n.state.Setting(key)
		deciders := n.state.Deciders()
		v = api.CellSetting{ID: key, Value: s.Value, Version: s.Version, Needs: len(deciders)/2 + 1, Voters: []api.CellVoter{}}
		for _, vote := range s.Votes {
			v.Wanted = append(v.Wanted, api.CellVote{Account: vote.Account, Value: vote.Value})
		}
		for _, a := range deciders {
			voter := api.CellVoter{Account: a}
			for _, m := range n.state.Members() {
				if m.Account == a && len(m.NoteKey) > 0 && voter.Name == "" {
					voter.Name = m.Name
				}
			}
			v.Voters = append(v.Voters, voter)
		}
	})
	for _, s := range pcm.Settings {
		if s.Key == key {
			v.Default, v.Form = s.Default, s.Form
		}
	}
	return v
}

// SetCell says what this account wants a setting of the cell to be.
func (n *Node) SetCell(ctx context.Context, key, value string) (api.CellSetting, error) {
	if err := pcm.CheckSetting(key, value); err != nil {
		return api.CellSetting{}, err
	}
	n.fresh(ctx)
	var version uint64
	n.cell.View(func() { version = n.state.Setting(key).Version })
	if _, err := n.must(ctx, pcm.Op{Set: &pcm.Set{Key: key, Value: value, Version: version}}); err != nil {
		return api.CellSetting{}, err
	}
	n.audit.operator(ctx, "set", api.AuditEntry{Subject: key, Reason: value})
	n.fresh(ctx)
	return n.settingView(key), nil
}
