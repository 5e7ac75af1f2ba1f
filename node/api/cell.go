package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/jointcloud/pcm"
)

// CellHealth is how the peers of this node's cell are, as its leader sees them.
type CellHealth struct {
	ID        pcm.CellID   `json:"id"`
	Name      string       `json:"name"`
	Leader    pcm.PeerID   `json:"leader,omitempty"`
	MaxVoters int          `json:"max_voters,omitempty"`
	Plan      string       `json:"plan" doc:"What the leader does about who votes, or why nothing."`
	Members   []PeerHealth `json:"members"`
}

// PeerHealth is how one peer of the cell is. Without a leader, all but the first four fields are unknown.
type PeerHealth struct {
	ID       pcm.PeerID `json:"id"`
	Name     string     `json:"name"`
	Role     string     `json:"role"` // leader, voter, replica
	Answers  bool       `json:"answers"`
	SilentMS int64      `json:"silent_ms"` // since its last answer
	Applied  uint64     `json:"applied"`
	Last     uint64     `json:"last"`      // in its log
	Complete bool       `json:"complete"`  // all records are there
	Ready    bool       `json:"ready"`     // caught up for long enough to vote
	CaughtMS int64      `json:"caught_ms"` // for how long it is caught up
	Eligible bool       `json:"eligible"`  // may vote by its own configuration
	Held     bool       `json:"held"`      // an operator took its vote
	Forgot   bool       `json:"forgot"`    // its folder is new or was lost: it takes no part in elections yet
	Account  string     `json:"account,omitempty"`
	Site     string     `json:"site,omitempty"`
}

// MayMean tells whether a person can mean the peer of this ID and name: by either, the
// short form of the ID, or the beginning of one of its forms.
func MayMean(typed string, id pcm.PeerID, name string) bool {
	return typed != "" && (typed == name || typed == string(id) ||
		len(typed) >= 4 && strings.HasPrefix(pcm.Short(id), typed) || len(typed) > 8 && strings.HasPrefix(string(id), typed))
}

// MemberPath is the part of a path that names a peer of the cell.
type MemberPath struct {
	Who string `path:"who" maxLength:"64" doc:"A peer: its ID, an unambiguous beginning of it, or its name."`
}

// PromoteRequest says whose place a new voter takes.
type PromoteRequest struct {
	InsteadOf string `json:"instead_of,omitempty" maxLength:"64" doc:"The voter that becomes a replica: its ID, an unambiguous beginning of it, or its name."`
}

// DemoteRequest says how sure one is.
type DemoteRequest struct {
	Force bool `json:"force,omitempty" doc:"Also where no replica takes the place."`
}

// LeaderRequest names the next leader.
type LeaderRequest struct {
	To string `json:"to,omitempty" maxLength:"64" doc:"A voter: its ID, an unambiguous beginning of it, or its name. Default: the one that is furthest."`
}

// CellOperator is what an operator may do to the cell. Peers are named as people name them.
type CellOperator interface {
	CellHealth(ctx context.Context) (CellHealth, error)
	TransferLeader(ctx context.Context, to string) (CellHealth, error)
	PromotePeer(ctx context.Context, who, instead string) (CellHealth, error)
	DemotePeer(ctx context.Context, who string, force bool) (CellHealth, error)
	AddPeer(ctx context.Context, who string) (CellHealth, error)
	RemovePeer(ctx context.Context, who string) (CellHealth, error)
	CellRecovery(ctx context.Context) (CellRecovery, error)
	RecoverCell(ctx context.Context, lost []string, reason string) (Ack, error)
	RefuseRecovery(ctx context.Context) (Ack, error)
	RejoinCell(ctx context.Context) (Ack, error)
	// SaveCell writes a snapshot file of the cell, with its whole history.
	SaveCell(ctx context.Context, w io.Writer) error
	// Backup writes a backup of the peer; root says whether the mesh's root key is to be in it.
	Backup(ctx context.Context, root bool, w io.Writer) error
}

func (s *Server) cellRoutes() {
	route(s, false, http.MethodGet, "/v1/cell/members", "get-cell-members", "The peers of this node's cell and how they are, as its leader sees them", func(ctx context.Context, _ *none) (CellHealth, error) {
		return s.node.CellHealth(ctx)
	})
	type leader struct{ Body LeaderRequest }
	route(s, true, http.MethodPost, "/v1/cell/leader", "transfer-leader", "Hand the leadership of the cell to another voter", func(ctx context.Context, in *leader) (CellHealth, error) {
		return s.node.TransferLeader(ctx, in.Body.To)
	})
	type promote struct {
		MemberPath
		Body PromoteRequest
	}
	route(s, true, http.MethodPost, "/v1/cell/members/{who}/promote", "promote-member", "Make a replica a voter", func(ctx context.Context, in *promote) (CellHealth, error) {
		return s.node.PromotePeer(ctx, in.Who, in.Body.InsteadOf)
	})
	type demote struct {
		MemberPath
		Body DemoteRequest
	}
	route(s, true, http.MethodPost, "/v1/cell/members/{who}/demote", "demote-member", "Make a voter a replica until it is promoted again", func(ctx context.Context, in *demote) (CellHealth, error) {
		return s.node.DemotePeer(ctx, in.Who, in.Body.Force)
	})
	route(s, true, http.MethodPost, "/v1/cell/members/{who}/add", "add-member", "Take a peer with a passport into the cell, as a replica", func(ctx context.Context, in *MemberPath) (CellHealth, error) {
		return s.node.AddPeer(ctx, in.Who)
	})
	route(s, true, http.MethodPost, "/v1/cell/members/{who}/remove", "remove-member", "Take a peer out of the cell", func(ctx context.Context, in *MemberPath) (CellHealth, error) {
		return s.node.RemovePeer(ctx, in.Who)
	})
}

// Survivor is a peer of a cell that has no leader.
type Survivor struct {
	ID       pcm.PeerID `json:"id"`
	Name     string     `json:"name"`
	Role     string     `json:"role"` // voter, replica
	Answers  bool       `json:"answers"`
	Last     uint64     `json:"last"` // entry in its log
	Term     uint64     `json:"term"` // of that entry
	Applied  uint64     `json:"applied"`
	Complete bool       `json:"complete"` // all records are there
	Forgot   bool       `json:"forgot"`   // its folder is new: it has nothing
}

// CellRecovery is what is left of a cell without a majority, and what can be done.
type CellRecovery struct {
	ID        pcm.CellID `json:"id"`
	Name      string     `json:"name"`
	Peer      pcm.PeerID `json:"peer"`              // that would go on
	Possible  bool       `json:"possible"`          // it may
	Problem   string     `json:"problem,omitempty"` // why it may not
	Index     uint64     `json:"index"`             // the last entry that it has
	Keep      []string   `json:"keep"`              // who goes on with it
	Lost      []string   `json:"lost"`              // who is left behind
	Warnings  []string   `json:"warnings,omitempty"`
	Survivors []Survivor `json:"survivors"`
}

// RecoverRequest confirms what was shown.
type RecoverRequest struct {
	Lost   []string `json:"lost" maxItems:"256" doc:"Who is left behind, as GET /v1/cell/recovery says it."`
	Reason string   `json:"reason,omitempty" maxLength:"500" doc:"Why; it stands in the ledger."`
}

func (s *Server) recoveryRoutes() {
	route(s, false, http.MethodGet, "/v1/cell/recovery", "get-cell-recovery", "What is left of the cell when a majority of its voters is gone", func(ctx context.Context, _ *none) (CellRecovery, error) {
		return s.node.CellRecovery(ctx)
	})
	type recovery struct{ Body RecoverRequest }
	route(s, true, http.MethodPost, "/v1/cell/recovery", "recover-cell", "Go on without a majority of the voters; what only those knew is lost", func(ctx context.Context, in *recovery) (Ack, error) {
		return s.node.RecoverCell(ctx, in.Body.Lost, in.Body.Reason)
	})
	route(s, true, http.MethodPost, "/v1/cell/recovery/refuse", "refuse-recovery", "Go on with the old cell, though it was recovered without this peer", func(ctx context.Context, _ *none) (Ack, error) {
		return s.node.RefuseRecovery(ctx)
	})
	route(s, true, http.MethodPost, "/v1/cell/rejoin", "rejoin-cell", "Join the cell anew that was recovered without this peer; what this peer has of the old one is put aside", func(ctx context.Context, _ *none) (Ack, error) {
		return s.node.RejoinCell(ctx)
	})
}

// CellRecovery tells what is left of the cell.
func (c *Client) CellRecovery(ctx context.Context) (CellRecovery, error) {
	return get[CellRecovery](ctx, c, "/v1/cell/recovery")
}

// RecoverCell has the node's peer go on without those that are lost.
func (c *Client) RecoverCell(ctx context.Context, lost []string, reason string) (Ack, error) {
	return post[Ack](ctx, c, "/v1/cell/recovery", RecoverRequest{Lost: lost, Reason: reason})
}

// RefuseRecovery has the node's peer go on with the old cell.
func (c *Client) RefuseRecovery(ctx context.Context) (Ack, error) {
	return post[Ack](ctx, c, "/v1/cell/recovery/refuse", nil)
}

// RejoinCell has the node's peer join the recovered cell anew.
func (c *Client) RejoinCell(ctx context.Context) (Ack, error) {
	return post[Ack](ctx, c, "/v1/cell/rejoin", nil)
}

// CellHealth tells how the peers of the node's cell are.
func (c *Client) CellHealth(ctx context.Context) (CellHealth, error) {
	return get[CellHealth](ctx, c, "/v1/cell/members")
}

// TransferLeader hands the leadership of the cell over; to "": whoever is furthest.
func (c *Client) TransferLeader(ctx context.Context, to string) (CellHealth, error) {
	return post[CellHealth](ctx, c, "/v1/cell/leader", LeaderRequest{to})
}

// PromotePeer makes a replica a voter, in place of another one unless that is "".
func (c *Client) PromotePeer(ctx context.Context, who, instead string) (CellHealth, error) {
	return post[CellHealth](ctx, c, memberURL(who)+"/promote", PromoteRequest{instead})
}

// DemotePeer makes a voter a replica.
func (c *Client) DemotePeer(ctx context.Context, who string, force bool) (CellHealth, error) {
	return post[CellHealth](ctx, c, memberURL(who)+"/demote", DemoteRequest{force})
}

// AddPeer takes a peer into the cell.
func (c *Client) AddPeer(ctx context.Context, who string) (CellHealth, error) {
	return post[CellHealth](ctx, c, memberURL(who)+"/add", nil)
}

// RemovePeer takes a peer out of the cell.
func (c *Client) RemovePeer(ctx context.Context, who string) (CellHealth, error) {
	return post[CellHealth](ctx, c, memberURL(who)+"/remove", nil)
}

func memberURL(who string) string { return "/v1/cell/members/" + url.PathEscape(who) }
