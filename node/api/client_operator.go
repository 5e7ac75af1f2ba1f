package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
)

// Pools lists the pools of the node's peer, offered or not.
func (c *Client) Pools(ctx context.Context) (List[OwnPool], error) {
	return list[OwnPool](ctx, c, "/v1/pools", Query{}, pageSize)
}

// Pool is one pool of the node's peer.
func (c *Client) Pool(ctx context.Context, id string) (OwnPool, error) {
	return get[OwnPool](ctx, c, poolURL(id))
}

// CordonPool takes a pool out of the offers.
func (c *Client) CordonPool(ctx context.Context, id, reason string) (OwnPool, error) {
	return post[OwnPool](ctx, c, poolURL(id)+"/cordon", ReasonRequest{reason})
}

// UncordonPool offers a pool again.
func (c *Client) UncordonPool(ctx context.Context, id string) (OwnPool, error) {
	return post[OwnPool](ctx, c, poolURL(id)+"/uncordon", nil)
}

// DrainPool cordons a pool, and stops after timeout what still runs there.
func (c *Client) DrainPool(ctx context.Context, id string, timeout time.Duration, reason string) (OwnPool, error) {
	return post[OwnPool](ctx, c, poolURL(id)+"/drain", DrainRequest{Reason: reason, Timeout: timeout.String()})
}

// CapPool bounds what is sold of a pool.
func (c *Client) CapPool(ctx context.Context, id string, r CapRequest) (OwnPool, error) {
	return post[OwnPool](ctx, c, poolURL(id)+"/cap", r)
}

// PricePool sets a pool's price.
func (c *Client) PricePool(ctx context.Context, id string, r PriceRequest) (OwnPool, error) {
	return post[OwnPool](ctx, c, poolURL(id)+"/price", r)
}

// Attempts lists what runs or waits at the node's peer.
func (c *Client) Attempts(ctx context.Context) (List[Attempt], error) {
	return list[Attempt](ctx, c, "/v1/attempts", Query{}, pageSize)
}

// KillAttempt ends an attempt by the seller's will.
func (c *Client) KillAttempt(ctx context.Context, trade string, index int, reason string) (Ack, error) {
	return post[Ack](ctx, c, fmt.Sprintf("/v1/attempts/%s/%d/kill", url.PathEscape(trade), index), ReasonRequest{reason})
}

// Rules lists the rules on which the node's peer sells.
func (c *Client) Rules(ctx context.Context) (List[SaleRule], error) {
	return list[SaleRule](ctx, c, "/v1/rules", Query{}, pageSize)
}

// ReloadRules puts the rules in force that the node's configuration has now.
func (c *Client) ReloadRules(ctx context.Context) (List[SaleRule], error) {
	return post[List[SaleRule]](ctx, c, "/v1/rules/reload", nil)
}

// AccountRules lists who may buy at the node's peer and who may not.
func (c *Client) AccountRules(ctx context.Context) (List[AccountRule], error) {
	return list[AccountRule](ctx, c, "/v1/accounts", Query{}, pageSize)
}

// SetAccountRule sets the rule, allow or deny, for an account or a peer.
func (c *Client) SetAccountRule(ctx context.Context, who, rule, note string) (AccountRule, error) {
	return post[AccountRule](ctx, c, "/v1/accounts/"+url.PathEscape(who)+"/"+rule, NoteRequest{note})
}

// RemoveAccountRule takes a rule back.
func (c *Client) RemoveAccountRule(ctx context.Context, who string) (AccountRule, error) {
	return post[AccountRule](ctx, c, "/v1/accounts/"+url.PathEscape(who)+"/remove", nil)
}

// AuditLog reads the audit log, newest first; limit 0: all that the node returns.
func (c *Client) AuditLog(ctx context.Context, q AuditQuery, limit int) (List[AuditEntry], error) {
	all := List[AuditEntry]{Items: []AuditEntry{}}
	for {
		want := pageSize
		if limit > 0 {
			want = min(want, limit-len(all.Items))
		}
		v := url.Values{"limit": {strconv.Itoa(want)}}
		if !q.Since.IsZero() {
			v.Set("since", q.Since.UTC().Format(time.RFC3339))
		}
		for name, value := range map[string]string{"account": q.Account, "event": q.Event, "cursor": all.Next} {
			if value != "" {
				v.Set(name, value)
			}
		}
		var page List[AuditEntry]
		if err := c.do(ctx, http.MethodGet, "/v1/audit", v, nil, &page); err != nil {
			return all, err
		}
		if len(page.Items) == 0 && page.Next != "" {
			return all, pcm.Errorf(pcm.Internal, "the node at %s returns empty pages without end", c.where)
		}
		all.Items, all.Next = append(all.Items, page.Items...), page.Next
		if page.Next == "" || limit > 0 && len(all.Items) >= limit {
			return all, nil
		}
	}
}

func poolURL(id string) string { return "/v1/pools/" + url.PathEscape(id) }
