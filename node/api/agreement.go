package api

import (
	"context"
	"net/http"
	"time"

	"github.com/jointcloud/pcm"
)

// Deals is what accounts agree on besides trade, and how a cell is set. The node implements it.
type Deals interface {
	Agreements(ctx context.Context) ([]Agreement, error) // newest first
	ProposeNetting(ctx context.Context, r NettingRequest) (Agreement, error)
	ProposeResolution(ctx context.Context, id pcm.TradeID, r ResolutionRequest) (Agreement, error)
	// Agree accepts an offer, by its ID or its one-line form, and brings it to the
	// cells that it is for. What was agreed to already is brought there again.
	Agree(ctx context.Context, offer string) (Agreement, error)

	DisputeTrade(ctx context.Context, id pcm.TradeID, r TasksRequest) (Trade, error)
	PayTrade(ctx context.Context, id pcm.TradeID, r TasksRequest) (Trade, error)
	GiveIn(ctx context.Context, id pcm.TradeID, r TasksRequest) (Trade, error)

	CellSettings(ctx context.Context) ([]CellSetting, error)
	SetCell(ctx context.Context, key, value string) (CellSetting, error)
}

// Kinds and states of agreements.
const (
	AgreeNetting    = "netting"
	AgreeResolution = "resolution"

	AgreementLooked  = "looked"  // at: of a dry run; nothing is signed, and it has no ID
	AgreementOffered = "offered" // by this account; the other one has to accept
	AgreementAsked   = "asked"   // of this account
	AgreementAgreed  = "agreed"  // by both; not all cells have it yet
	AgreementDone    = "done"
	AgreementOver    = "over" // expired, or what it was about has ended otherwise
)

// Agreement is an offer between two accounts, accepted or not.
type Agreement struct {
	ID    string        `json:"id"`
	Kind  string        `json:"kind"`  // netting, resolution
	State string        `json:"state"` // looked, offered, asked, agreed, done, over
	From  pcm.AccountID `json:"from"`
	To    pcm.AccountID `json:"to"`
	Unit  string        `json:"unit"`

	Lines []AgreementLine `json:"lines,omitempty"` // of a netting
	Payer pcm.AccountID   `json:"payer,omitempty"` // who pays the rest outside of PCM
	Rest  string          `json:"rest,omitempty"`  // how much that is
	Found []AgreementDebt `json:"found,omitempty"` // where it was looked for debts, in the answer to the proposal only

	Trade  pcm.TradeID `json:"trade,omitempty"` // of a resolution
	Cell   pcm.CellID  `json:"cell,omitempty"`  // that the trade is in
	Tasks  string      `json:"tasks,omitempty"`
	Amount string      `json:"amount,omitempty"` // that the buyer pays for these tasks

	Note  string    `json:"note,omitempty"`
	At    time.Time `json:"at"`
	Until time.Time `json:"until,omitzero"`
	Text  string    `json:"text,omitempty"` // what hinders it, or how it reached the other account
	Line  string    `json:"line"`           // the whole of it in one line, to be passed on
}

// AgreementLine is what a netting strikes in one cell.
type AgreementLine struct {
	Cell pcm.CellID `json:"cell"`
	From string     `json:"from_owes_less"`
	To   string     `json:"to_owes_less"`
}

// AgreementDebt is what was found in one cell when a netting was proposed.
type AgreementDebt struct {
	Cell   pcm.CellID `json:"cell"`
	Name   string     `json:"name,omitempty"`
	From   string     `json:"from_owes,omitempty"` // who proposes
	To     string     `json:"to_owes,omitempty"`
	Unseen bool       `json:"unseen,omitempty"` // who proposes owes there, as that cell says, and its own cell knows of nothing that was bought there
	Silent string     `json:"silent,omitempty"` // why it isn't known; what is owed there is left out
}

// NettingRequest asks for an offer to strike what two accounts owe each other.
type NettingRequest struct {
	With     string          `json:"with" maxLength:"64" doc:"The other account: its ID, an unambiguous beginning of it, or one of its peers."`
	Unit     string          `json:"unit,omitempty" maxLength:"63" doc:"Default: credit."`
	Paid     string          `json:"paid,omitempty" maxLength:"32" doc:"What the account that owes more has paid outside of PCM, or all: it owes nothing then. Default: nothing." example:"all"`
	Note     string          `json:"note,omitempty" maxLength:"200"`
	ValidFor pcm.Duration    `json:"valid_for,omitempty" doc:"Default 168h, at most 720h." example:"168h"`
	DryRun   bool            `json:"dry_run,omitempty" doc:"Only look: what is owed in which cell, and what would be struck. Nothing is signed."`
	Expect   []AgreementLine `json:"expect,omitempty" maxItems:"64" doc:"What a dry run has shown: if anything else would be struck now, nothing is signed. Default: whatever is found is signed."`

	Partial bool `json:"partial,omitempty" doc:"Leave out cells that don't answer. Default: refuse while one in which something may be owed does not."`
}

// ResolutionRequest asks for an offer to end a dispute at an amount.
type ResolutionRequest struct {
	Tasks  string `json:"tasks,omitempty" maxLength:"4096" doc:"Default: all that are in dispute." example:"0-3,7"`
	Amount string `json:"amount" maxLength:"32" doc:"What the buyer pays for these tasks together: zero to what is held for them."`
	Note   string `json:"note,omitempty" maxLength:"200"`

	ValidFor pcm.Duration `json:"valid_for,omitempty" doc:"Default 72h, at most 168h." example:"72h"`
}

// TasksRequest names tasks of a trade.
type TasksRequest struct {
	Tasks  string `json:"tasks,omitempty" maxLength:"4096" doc:"Default: all for which it can be done." example:"0-3,7"`
	Reason string `json:"reason,omitempty" maxLength:"200"`
}

// AgreeRequest names an offer.
type AgreeRequest struct {
	Offer string `json:"offer" maxLength:"131072" doc:"ID of an offer, any unambiguous beginning of it, or its one-line form."`
}

// CellSetting is a setting of the cell.
type CellSetting struct {
	ID      string      `json:"id"`
	Value   string      `json:"value"`   // in force
	Version uint64      `json:"version"` // how often it was set
	Default string      `json:"default"`
	Form    string      `json:"form"` // what it may be
	Wanted  []CellVote  `json:"wanted,omitempty"`
	Needs   int         `json:"needs"` // accounts that must want the same
	Voters  []CellVoter `json:"voters"`
}

// CellVote is what an account wants a setting to be.
type CellVote struct {
	Account pcm.AccountID `json:"account"`
	Value   string        `json:"value"`
}

// CellVoter is an account that decides on settings, with a peer of it that votes.
type CellVoter struct {
	Account pcm.AccountID `json:"account"`
	Name    string        `json:"name,omitempty"`
}

// SettingRequest holds the value.
type SettingRequest struct {
	Value string `json:"value" maxLength:"64"`
}

// TradePath is the part of a path that names a trade.
type TradePath struct {
	Trade string `path:"id" maxLength:"64" doc:"Trade ID, or any unambiguous beginning of it."`
}

func (s *Server) dealRoutes() {
	listRoute(s, "/v1/agreements", "list-agreements", "Offers between this account and others, accepted or not, newest first", s.node.Agreements, func(a Agreement) string { return a.ID })
	type netting struct{ Body NettingRequest }
	route(s, true, http.MethodPost, "/v1/agreements/netting", "propose-netting", "Offer an account to strike what it and this one owe each other", func(ctx context.Context, in *netting) (Agreement, error) {
		return s.node.ProposeNetting(ctx, in.Body)
	})
	type agree struct{ Body AgreeRequest }
	route(s, true, http.MethodPost, "/v1/agreements/accept", "accept-agreement", "Accept an offer of another account; both sides' signatures then bind", func(ctx context.Context, in *agree) (Agreement, error) {
		return s.node.Agree(ctx, in.Body.Offer)
	})
	type resolution struct {
		TradePath
		Body ResolutionRequest
	}
	route(s, true, http.MethodPost, "/v1/trades/{id}/resolve", "resolve-trade", "Offer the other side of a dispute to end it at an amount", func(ctx context.Context, in *resolution) (Agreement, error) {
		id, err := s.trade(ctx, in.Trade)
		if err != nil {
			return Agreement{}, err
		}
		return s.node.ProposeResolution(ctx, id, in.Body)
	})
	type tasks struct {
		TradePath
		Body TasksRequest
	}
	for _, act := range []struct {
		path, summary string
		do            func(context.Context, pcm.TradeID, TasksRequest) (Trade, error)
	}{
		{"dispute", "Refuse to pay for finished tasks of a trade; their holds are frozen", s.node.DisputeTrade},
		{"pay", "Pay for tasks in dispute after all, what the ledger charges for them", s.node.PayTrade},
		{"give-in", "Take nothing for tasks in dispute that this peer sold", s.node.GiveIn},
	} {
		route(s, true, http.MethodPost, "/v1/trades/{id}/"+act.path, act.path+"-trade", act.summary, func(ctx context.Context, in *tasks) (Trade, error) {
			id, err := s.trade(ctx, in.Trade)
			if err != nil {
				return Trade{}, err
			}
			return act.do(ctx, id, in.Body)
		})
	}
	listRoute(s, "/v1/settings", "list-settings", "Settings of this node's cell", s.node.CellSettings, func(c CellSetting) string { return c.ID })
	type setting struct {
		Key  string `path:"key" maxLength:"64" doc:"Name of the setting."`
		Body SettingRequest
	}
	route(s, true, http.MethodPost, "/v1/settings/{key}", "set-setting", "Say what this account wants a setting of the cell to be; more than half of the accounts with voters decide", func(ctx context.Context, in *setting) (CellSetting, error) {
		return s.node.SetCell(ctx, in.Key, in.Body.Value)
	})
}

// trade finds the trade that a person meant.
func (s *Server) trade(ctx context.Context, typed string) (pcm.TradeID, error) {
	if id := pcm.TradeID(typed); id.Valid() {
		return id, nil
	}
	all, err := s.node.Trades(ctx)
	if err != nil {
		return "", err
	}
	ids := make([]pcm.TradeID, len(all))
	for i, t := range all {
		ids[i] = t.ID
	}
	return resolve("trd", typed, ids)
}
