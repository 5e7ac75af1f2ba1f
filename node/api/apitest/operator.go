package apitest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Seller is the operator's side of the fake. What is done is noted in Done.
type Seller struct {
	PoolList    []api.OwnPool
	AttemptList []api.Attempt
	RuleList    []api.AccountRule
	SaleRules   []api.SaleRule
	AuditList   []api.AuditEntry
	CheckupView api.Checkup
	Done        []string // "cordon local-process: reason"
}

func (n *Node) Pools(context.Context) ([]api.OwnPool, error)            { return read(n, &n.PoolList) }
func (n *Node) Attempts(context.Context) ([]api.Attempt, error)         { return read(n, &n.AttemptList) }
func (n *Node) AccountRules(context.Context) ([]api.AccountRule, error) { return read(n, &n.RuleList) }

func (n *Node) Rules(context.Context) ([]api.SaleRule, error) { return read(n, &n.SaleRules) }

func (n *Node) ReloadRules(context.Context) ([]api.SaleRule, error) {
	n.Lock()
	defer n.Unlock()
	n.Done = append(n.Done, "reload rules")
	return n.SaleRules, n.Err
}

func (n *Node) Doctor(context.Context) (api.Checkup, error) { return read(n, &n.CheckupView) }

func (n *Node) Pool(_ context.Context, id pcm.PoolID) (api.OwnPool, error) {
	return n.pool(id, "", func(*api.OwnPool) {})
}

// pool changes one pool and returns it.
func (n *Node) pool(id pcm.PoolID, done string, f func(*api.OwnPool)) (api.OwnPool, error) {
	n.Lock()
	defer n.Unlock()
	if n.Err != nil {
		return api.OwnPool{}, n.Err
	}
	i := slices.IndexFunc(n.PoolList, func(p api.OwnPool) bool { return p.ID == id })
	if i < 0 {
		return api.OwnPool{}, pcm.Errorf(pcm.NotFound, "this peer has no pool %q", id)
	}
	f(&n.PoolList[i])
	if done != "" {
		n.Done = append(n.Done, done)
	}
	return n.PoolList[i], nil
}

func (n *Node) CordonPool(_ context.Context, id pcm.PoolID, reason string) (api.OwnPool, error) {
	return n.pool(id, fmt.Sprintf("cordon %s: %s", id, reason), func(p *api.OwnPool) {
		p.State, p.Reason, p.Since = api.PoolCordoned, reason, Now
	})
}

func (n *Node) UncordonPool(_ context.Context, id pcm.PoolID) (api.OwnPool, error) {
	return n.pool(id, fmt.Sprintf("uncordon %s", id), func(p *api.OwnPool) {
		p.State, p.Reason, p.Since = api.PoolOffered, "", time.Time{}
	})
}

// DrainPool drains at once.
func (n *Node) DrainPool(_ context.Context, id pcm.PoolID, timeout *time.Duration, reason string) (api.OwnPool, error) {
	return n.pool(id, fmt.Sprintf("drain %s within %s: %s", id, timeout, reason), func(p *api.OwnPool) {
		p.State, p.Reason, p.Since, p.Running = api.PoolDrained, reason, Now, 0
	})
}

func (n *Node) CapPool(_ context.Context, id pcm.PoolID, c api.CapRequest) (api.OwnPool, error) {
	return n.pool(id, fmt.Sprintf("cap %s: cpu=%s memory=%s", id, c.CPU, c.Memory), func(p *api.OwnPool) {
		p.Cap = nil
		if c != (api.CapRequest{}) {
			p.Cap = &api.PoolCap{Capacity: p.Capacity, Slots: p.Slots}
			if c.Slots != nil {
				p.Cap.Slots = int(*c.Slots)
			}
		}
	})
}

func (n *Node) PricePool(_ context.Context, id pcm.PoolID, r api.PriceRequest) (api.OwnPool, error) {
	return n.pool(id, fmt.Sprintf("price %s", id), func(p *api.OwnPool) {
		p.PriceSet = r != (api.PriceRequest{})
		if r.PerTask != "" {
			p.Price.PerTask = r.PerTask
		}
		if r.PerGPUHour != "" {
			p.Price.PerGPUHour = r.PerGPUHour
		}
	})
}

func (n *Node) KillAttempt(_ context.Context, id pcm.TradeID, index int, reason string) (api.Ack, error) {
	n.Lock()
	defer n.Unlock()
	n.Done = append(n.Done, fmt.Sprintf("kill %s/%d: %s", id, index, reason))
	return api.Ack{ID: fmt.Sprintf("%s/%d", id, index), Text: "it is being stopped"}, n.Err
}

func (n *Node) SetAccountRule(_ context.Context, who, rule, note string) (api.AccountRule, error) {
	n.Lock()
	defer n.Unlock()
	r := api.AccountRule{ID: who, Kind: "account", Rule: rule, Note: note, Since: Now}
	n.RuleList = append(n.RuleList, r)
	return r, n.Err
}

func (n *Node) RemoveAccountRule(_ context.Context, who string) (api.AccountRule, error) {
	n.Lock()
	defer n.Unlock()
	i := slices.IndexFunc(n.RuleList, func(r api.AccountRule) bool { return r.ID == who })
	if i < 0 {
		return api.AccountRule{}, pcm.Errorf(pcm.NotFound, "there is no rule for %s", who)
	}
	r := n.RuleList[i]
	n.RuleList = slices.Delete(n.RuleList, i, i+1)
	return r, n.Err
}

func (n *Node) AuditLog(_ context.Context, q api.AuditQuery) ([]api.AuditEntry, error) {
	all, err := read(n, &n.AuditList)
	all = slices.DeleteFunc(slices.Clone(all), func(e api.AuditEntry) bool {
		return e.At.Before(q.Since) || q.Account != "" && string(e.Buyer) != q.Account || q.Event != "" && e.Event != q.Event
	})
	return all, err
}
