package api

import (
	"context"
	"net/url"
)

// Agreements lists offers between the node's account and others.
func (c *Client) Agreements(ctx context.Context) (List[Agreement], error) {
	return list[Agreement](ctx, c, "/v1/agreements", Query{}, pageSize)
}

// ProposeNetting offers an account to strike what both owe each other.
func (c *Client) ProposeNetting(ctx context.Context, r NettingRequest) (Agreement, error) {
	return post[Agreement](ctx, c, "/v1/agreements/netting", r)
}

// ProposeResolution offers to end a dispute.
func (c *Client) ProposeResolution(ctx context.Context, trade string, r ResolutionRequest) (Agreement, error) {
	return post[Agreement](ctx, c, "/v1/trades/"+url.PathEscape(trade)+"/resolve", r)
}

// Agree accepts an offer.
func (c *Client) Agree(ctx context.Context, offer string) (Agreement, error) {
	return post[Agreement](ctx, c, "/v1/agreements/accept", AgreeRequest{offer})
}

// ActOnTrade disputes tasks of a trade, pays them after all, or gives in: act is
// dispute, pay or give-in.
func (c *Client) ActOnTrade(ctx context.Context, trade, act string, r TasksRequest) (Trade, error) {
	return post[Trade](ctx, c, "/v1/trades/"+url.PathEscape(trade)+"/"+act, r)
}

// CellSettings lists the settings of the node's cell.
func (c *Client) CellSettings(ctx context.Context) (List[CellSetting], error) {
	return list[CellSetting](ctx, c, "/v1/settings", Query{}, pageSize)
}

// SetCell says what a setting of the cell is to be.
func (c *Client) SetCell(ctx context.Context, key, value string) (CellSetting, error) {
	return post[CellSetting](ctx, c, "/v1/settings/"+url.PathEscape(key), SettingRequest{value})
}
