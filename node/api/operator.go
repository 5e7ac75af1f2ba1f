package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// Operator is what a seller's operator sees and does. The node implements it.
type Operator interface {
	Pools(ctx context.Context) ([]OwnPool, error)
	Pool(ctx context.Context, id pcm.PoolID) (OwnPool, error)
	CordonPool(ctx context.Context, id pcm.PoolID, reason string) (OwnPool, error)
	UncordonPool(ctx context.Context, id pcm.PoolID) (OwnPool, error)
	DrainPool(ctx context.Context, id pcm.PoolID, timeout *time.Duration, reason string) (OwnPool, error)
	CapPool(ctx context.Context, id pcm.PoolID, c CapRequest) (OwnPool, error)
	PricePool(ctx context.Context, id pcm.PoolID, p PriceRequest) (OwnPool, error)

	Attempts(ctx context.Context) ([]Attempt, error) // by trade and index
	KillAttempt(ctx context.Context, id pcm.TradeID, index int, reason string) (Ack, error)

	Rules(ctx context.Context) ([]SaleRule, error)
	ReloadRules(ctx context.Context) ([]SaleRule, error) // as the configuration has them now
	AccountRules(ctx context.Context) ([]AccountRule, error)
	SetAccountRule(ctx context.Context, who, rule, note string) (AccountRule, error)
	RemoveAccountRule(ctx context.Context, who string) (AccountRule, error)

	AuditLog(ctx context.Context, q AuditQuery) ([]AuditEntry, error) // newest first

	Doctor(ctx context.Context) (Checkup, error)
}

// States of a pool of this peer.
const (
	PoolOffered      = "offered"
	PoolCordoned     = "cordoned"     // takes nothing new
	PoolDraining     = "draining"     // and what runs is being let out
	PoolDrained      = "drained"      // nothing runs any more
	PoolUnobservable = "unobservable" // its back end doesn't answer
	PoolWithheld     = "withheld"     // the whole peer takes nothing new
)

// OwnPool is a pool of this peer, as its operator sees it.
type OwnPool struct {
	ID            pcm.PoolID     `json:"id"`
	Adapter       string         `json:"adapter"`
	Class         string         `json:"class,omitempty"`
	Capacity      pcm.Resources  `json:"capacity"`          // as its back end has it
	Largest       *pcm.Resources `json:"largest,omitempty"` // what one task may have at most, where that is less
	Slots         int            `json:"slots"`
	Cap           *PoolCap       `json:"cap,omitempty"` // the most that is sold of it
	Reserved      pcm.Resources  `json:"reserved"`      // by trades
	ReservedSlots int            `json:"reserved_slots"`
	Running       int            `json:"running"` // attempts
	Waiting       int            `json:"waiting"`
	Price         Price          `json:"price"`     // of new trades
	PriceSet      bool           `json:"price_set"` // by the operator, not by the configuration
	State         string         `json:"state"`     // offered, cordoned, draining, drained, unobservable, withheld
	Reason        string         `json:"reason,omitempty"`
	Since         time.Time      `json:"since,omitzero"`
	Seen          time.Time      `json:"seen,omitzero"`        // when its back end was asked that has answered last
	DrainUntil    time.Time      `json:"drain_until,omitzero"` // what runs then is stopped
	Labels        pcm.Labels     `json:"labels,omitempty"`
	Features      []pcm.Feature  `json:"features,omitempty"`
	Sandbox       string         `json:"sandbox,omitempty"`
	OwnOnly       bool           `json:"own_only,omitempty"`
	NoFiles       bool           `json:"no_files,omitempty"` // takes no inputs, gives no outputs back
}

// PoolCap is what is sold of a pool under its cap.
type PoolCap struct {
	Capacity pcm.Resources `json:"capacity"`
	Slots    int           `json:"slots"`
}

// ReasonRequest says why.
type ReasonRequest struct {
	Reason string `json:"reason,omitempty" maxLength:"200"`
}

// DrainRequest says how long what runs may go on.
type DrainRequest struct {
	Reason  string `json:"reason,omitempty" maxLength:"200"`
	Timeout string `json:"timeout,omitempty" maxLength:"32" doc:"What runs after that is stopped; 0s: at once. Default 10m, at most 720h." example:"10m"`
}

// CapRequest bounds what is sold of a pool. What is left out is not bounded; nothing at all takes the cap away.
type CapRequest struct {
	CPU    string `json:"cpu,omitempty" maxLength:"32" example:"4"`
	Memory string `json:"memory,omitempty" maxLength:"32" example:"8GiB"`
	GPU    *int64 `json:"gpu,omitempty"`
	Slots  *int64 `json:"slots,omitempty" doc:"Attempts that may run at once."`
}

// PriceRequest sets parts of a pool's price, in whole units. What is left out stays; nothing at all brings the configured price back.
type PriceRequest struct {
	Unit       string `json:"unit,omitempty" maxLength:"63"`
	PerTask    string `json:"per_task,omitempty" maxLength:"32" example:"0.001"`
	PerCPUHour string `json:"per_cpu_hour,omitempty" maxLength:"32"`
	PerGiBHour string `json:"per_gib_hour,omitempty" maxLength:"32"`
	PerGPUHour string `json:"per_gpu_hour,omitempty" maxLength:"32"`
}

// Attempt is an attempt that runs or waits at this peer.
type Attempt struct {
	ID        string        `json:"id"` // TRADE/INDEX
	Trade     pcm.TradeID   `json:"trade"`
	Index     int           `json:"index"`
	Try       int           `json:"attempt"`
	Job       pcm.JobID     `json:"job"`
	Step      string        `json:"step"`
	Buyer     pcm.AccountID `json:"buyer"`
	Driver    pcm.PeerID    `json:"driver"` // that placed it
	Pool      pcm.PoolID    `json:"pool"`
	Adapter   string        `json:"adapter"`
	Program   string        `json:"program,omitempty"`
	Image     string        `json:"image,omitempty"`
	Resources pcm.Resources `json:"resources"`
	LimitMS   int64         `json:"limit_ms"`
	State     string        `json:"state"`            // preparing, waiting, starting, prepared, pending, running, suspended, stopping, ended, unknown
	Native    string        `json:"native,omitempty"` // the back end's own word for it
	Reason    string        `json:"reason,omitempty"`
	Awarded   time.Time     `json:"awarded_at"`
	Started   time.Time     `json:"started_at,omitzero"`
	Usage     pcm.Usage     `json:"usage"` // so far
	LeaseMS   int64         `json:"lease_ms,omitempty"`
}

// SaleRule is one of the rules on which this peer sells.
type SaleRule struct {
	pcm.Rule
	Public bool `json:"public"` // it travels in the offer
}

// AccountRule says whether an account or a peer may buy here.
type AccountRule struct {
	ID    string    `json:"id"`
	Kind  string    `json:"kind"` // account, peer
	Name  string    `json:"name,omitempty"`
	Rule  string    `json:"rule"` // allow, deny
	Note  string    `json:"note,omitempty"`
	Since time.Time `json:"since"`
}

// NoteRequest holds a remark.
type NoteRequest struct {
	Note string `json:"note,omitempty" maxLength:"200"`
}

// AuditEntry is a line of the audit log.
type AuditEntry struct {
	ID       string        `json:"id"`
	At       time.Time     `json:"at"`
	Event    string        `json:"event"`             // awarded, adopted, started, ended, refused, killed, lost; of the operator: kill, cordon, uncordon, drain, cap, price, allow, deny, unrule, and about the cell: transfer-leader, promote, demote, add, remove, recover-cell, refuse-recovery, rejoin-cell
	Who      string        `json:"who,omitempty"`     // who did it at the API, e.g. "uid 1000"
	Subject  string        `json:"subject,omitempty"` // account or peer that a rule is about
	Buyer    pcm.AccountID `json:"buyer,omitempty"`
	Peer     pcm.PeerID    `json:"peer,omitempty"` // that placed it
	Job      pcm.JobID     `json:"job,omitempty"`
	Step     string        `json:"step,omitempty"`
	Trade    pcm.TradeID   `json:"trade,omitempty"`
	Tasks    string        `json:"tasks,omitempty"` // of an award: "0-3,7"
	Task     *int          `json:"task,omitempty"`
	Attempt  int           `json:"attempt,omitempty"`
	Pool     pcm.PoolID    `json:"pool,omitempty"`
	Adapter  string        `json:"adapter,omitempty"`
	Program  string        `json:"program,omitempty"`        // name only
	Command  pcm.Digest    `json:"command_digest,omitempty"` // of command, module and arguments
	Image    string        `json:"image,omitempty"`
	Outcome  pcm.Outcome   `json:"outcome,omitempty"`
	ExitCode *int          `json:"exit_code,omitempty"`
	Usage    *pcm.Usage    `json:"usage,omitempty"`
	Reason   string        `json:"reason,omitempty"`
}

// AuditQuery says which entries are wanted.
type AuditQuery struct {
	Since   time.Time
	Account string // or peer
	Event   string
}

type caller struct{} // context key: who speaks, as the connection knows it

// withCaller notes which user is at the other end of a unix socket.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, caller{}, fmt.Sprintf("uid %d", cred.Uid))
}

// Caller is who makes a request, for the audit log: the user at the other end of
// the unix socket, or whoever has the token.
func Caller(ctx context.Context) string {
	if who, ok := ctx.Value(caller{}).(string); ok {
		return who
	}
	if ctx.Value(authorized{}) != nil {
		return "token"
	}
	return ""
}

// PoolPath is the part of a path that names a pool.
type PoolPath struct {
	Pool pcm.PoolID `path:"pool" maxLength:"63" doc:"Name of the pool."`
}

func (s *Server) operatorRoutes() {
	listRoute(s, "/v1/pools", "list-pools", "Pools of this peer, offered or not", s.node.Pools, func(p OwnPool) string { return string(p.ID) })
	route(s, false, http.MethodGet, "/v1/pools/{pool}", "get-pool", "One pool of this peer", func(ctx context.Context, in *PoolPath) (OwnPool, error) {
		return s.node.Pool(ctx, in.Pool)
	})
	type reason struct {
		PoolPath
		Body ReasonRequest
	}
	route(s, true, http.MethodPost, "/v1/pools/{pool}/cordon", "cordon-pool", "Take a pool out of the offers; what runs there goes on", func(ctx context.Context, in *reason) (OwnPool, error) {
		return s.node.CordonPool(ctx, in.Pool, in.Body.Reason)
	})
	route(s, true, http.MethodPost, "/v1/pools/{pool}/uncordon", "uncordon-pool", "Offer a pool again", func(ctx context.Context, in *PoolPath) (OwnPool, error) {
		return s.node.UncordonPool(ctx, in.Pool)
	})
	type drain struct {
		PoolPath
		Body DrainRequest
	}
	route(s, true, http.MethodPost, "/v1/pools/{pool}/drain", "drain-pool", "Cordon a pool, let run out what runs there, and stop what is left after a time", func(ctx context.Context, in *drain) (OwnPool, error) {
		var timeout *time.Duration
		if in.Body.Timeout != "" {
			d, err := time.ParseDuration(in.Body.Timeout)
			if err != nil {
				return OwnPool{}, pcm.Errorf(pcm.Invalid, "timeout %q is not a length of time; write it like 90s, 10m or 2h", in.Body.Timeout)
			}
			timeout = &d
		}
		return s.node.DrainPool(ctx, in.Pool, timeout, in.Body.Reason)
	})
	type capped struct {
		PoolPath
		Body CapRequest
	}
	route(s, true, http.MethodPost, "/v1/pools/{pool}/cap", "cap-pool", "Bound what is sold of a pool", func(ctx context.Context, in *capped) (OwnPool, error) {
		return s.node.CapPool(ctx, in.Pool, in.Body)
	})
	type priced struct {
		PoolPath
		Body PriceRequest
	}
	route(s, true, http.MethodPost, "/v1/pools/{pool}/price", "price-pool", "Set the price of a pool for new trades", func(ctx context.Context, in *priced) (OwnPool, error) {
		return s.node.PricePool(ctx, in.Pool, in.Body)
	})

	listRoute(s, "/v1/attempts", "list-attempts", "What runs or waits at this peer, for whom", s.node.Attempts, func(a Attempt) string { return a.ID })
	type attempt struct {
		Trade string `path:"trade" maxLength:"64" doc:"Trade ID, or any unambiguous beginning of it."`
		Index int    `path:"index" minimum:"0" doc:"Index of the task in its step."`
		Body  ReasonRequest
	}
	route(s, true, http.MethodPost, "/v1/attempts/{trade}/{index}/kill", "kill-attempt", "End an attempt by the seller's will; its buyer pays nothing and runs it elsewhere", func(ctx context.Context, in *attempt) (Ack, error) {
		all, err := s.node.Attempts(ctx)
		if err != nil {
			return Ack{}, err
		}
		var ids []pcm.TradeID
		for i, a := range all {
			if i == 0 || a.Trade != all[i-1].Trade {
				ids = append(ids, a.Trade)
			}
		}
		id, err := resolve("trd", in.Trade, ids)
		if err != nil {
			return Ack{}, err
		}
		return s.node.KillAttempt(ctx, id, in.Index, in.Body.Reason)
	})

	route(s, false, http.MethodGet, "/v1/rules", "list-rules", "The rules on which this peer sells; those that travel in its offer come first. Needs the token", func(ctx context.Context, in *Page) (List[SaleRule], error) {
		if err := mayReadSecrets(ctx); err != nil {
			return List[SaleRule]{}, err
		}
		items, err := s.node.Rules(ctx)
		if err != nil {
			return List[SaleRule]{}, err
		}
		return paginate(items, func(r SaleRule) string { return r.Name }, *in)
	})
	route(s, true, http.MethodPost, "/v1/rules/reload", "reload-rules", "Put the rules in force that the configuration has now; with a fault in them, those before stay", func(ctx context.Context, _ *none) (List[SaleRule], error) {
		items, err := s.node.ReloadRules(ctx)
		return List[SaleRule]{Items: items}, err
	})

	listRoute(s, "/v1/accounts", "list-accounts", "Who may buy here and who may not", s.node.AccountRules, func(r AccountRule) string { return r.ID })
	type ruled struct {
		Who  string `path:"who" maxLength:"64" doc:"Account or peer: its ID, an unambiguous beginning of it, or the peer's name."`
		Body NoteRequest
	}
	for _, rule := range []string{"allow", "deny"} {
		route(s, true, http.MethodPost, "/v1/accounts/{who}/"+rule, rule+"-account", "Note that an account or peer may "+map[string]string{"allow": "", "deny": "not "}[rule]+"buy here", func(ctx context.Context, in *ruled) (AccountRule, error) {
			return s.node.SetAccountRule(ctx, in.Who, rule, in.Body.Note)
		})
	}
	type unruled struct {
		Who string `path:"who" maxLength:"64" doc:"Account or peer."`
	}
	route(s, true, http.MethodPost, "/v1/accounts/{who}/remove", "remove-account", "Take the rule for an account or peer back", func(ctx context.Context, in *unruled) (AccountRule, error) {
		return s.node.RemoveAccountRule(ctx, in.Who)
	})

	type auditQuery struct {
		Page
		Since   time.Time `query:"since" doc:"Only entries from then on."`
		Account string    `query:"account" maxLength:"64" doc:"Only entries of this account or peer."`
		Event   string    `query:"event" maxLength:"32" doc:"Only entries of this event."`
	}
	route(s, false, http.MethodGet, "/v1/audit", "list-audit", "What was run here for whom, and what the operator did; newest first. Needs the token", func(ctx context.Context, in *auditQuery) (List[AuditEntry], error) {
		if err := mayReadSecrets(ctx); err != nil {
			return List[AuditEntry]{}, err
		}
		all, err := s.node.AuditLog(ctx, AuditQuery{Since: in.Since, Account: in.Account, Event: in.Event})
		if err != nil {
			return List[AuditEntry]{}, err
		}
		return paginate(all, func(e AuditEntry) string { return e.ID }, in.Page)
	})
}
