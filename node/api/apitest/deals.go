package apitest

import (
	"context"
	"fmt"
	"slices"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Deals is the fake's part that accounts and cells agree on.
type Deals struct {
	AgreementList []api.Agreement
	SettingList   []api.CellSetting
}

func (n *Node) Agreements(context.Context) ([]api.Agreement, error) { return read(n, &n.AgreementList) }

func (n *Node) CellSettings(context.Context) ([]api.CellSetting, error) {
	return read(n, &n.SettingList)
}

func (n *Node) offer(what string) (api.Agreement, error) {
	n.Lock()
	defer n.Unlock()
	n.Done = append(n.Done, what)
	if len(n.AgreementList) == 0 {
		return api.Agreement{}, pcm.Errorf(pcm.NotFound, "there is no such offer")
	}
	return n.AgreementList[0], n.Err
}

func (n *Node) ProposeNetting(_ context.Context, r api.NettingRequest) (api.Agreement, error) {
	if r.DryRun {
		v, err := n.offer(fmt.Sprintf("look at a net with %s, paid %q", r.With, r.Paid))
		v.ID, v.Line, v.Text, v.State = "", "", "", api.AgreementLooked
		return v, err
	}
	return n.offer(fmt.Sprintf("net with %s, paid %q", r.With, r.Paid))
}

func (n *Node) ProposeResolution(_ context.Context, id pcm.TradeID, r api.ResolutionRequest) (api.Agreement, error) {
	return n.offer(fmt.Sprintf("resolve %s %q for %s", id, r.Tasks, r.Amount))
}

func (n *Node) Agree(_ context.Context, offer string) (api.Agreement, error) {
	return n.offer("agree " + offer)
}

func (n *Node) act(what string, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	n.Lock()
	defer n.Unlock()
	n.Done = append(n.Done, fmt.Sprintf("%s %s %q: %s", what, id, r.Tasks, r.Reason))
	i := slices.IndexFunc(n.TradeList, func(t api.Trade) bool { return t.ID == id })
	if i < 0 {
		return api.Trade{}, pcm.Errorf(pcm.NotFound, "there is no trade %s", id)
	}
	return n.TradeList[i], n.Err
}

func (n *Node) DisputeTrade(_ context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	return n.act("dispute", id, r)
}

func (n *Node) PayTrade(_ context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	return n.act("pay", id, r)
}

func (n *Node) GiveIn(_ context.Context, id pcm.TradeID, r api.TasksRequest) (api.Trade, error) {
	return n.act("give in", id, r)
}

func (n *Node) SetCell(_ context.Context, key, value string) (api.CellSetting, error) {
	n.Lock()
	defer n.Unlock()
	if err := pcm.CheckSetting(key, value); err != nil {
		return api.CellSetting{}, err
	}
	i := slices.IndexFunc(n.SettingList, func(s api.CellSetting) bool { return s.ID == key })
	if i < 0 {
		return api.CellSetting{}, pcm.Errorf(pcm.NotFound, "there is no setting %s", key)
	}
	n.SettingList[i].Value = value
	n.SettingList[i].Version++
	return n.SettingList[i], n.Err
}
