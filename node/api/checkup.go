package api

import (
	"context"
	"net/http"
)

// How a check ends.
const (
	CheckOK   = "ok"
	CheckWarn = "warn"
	CheckFail = "fail"
)

// Finding is what a check found.
type Finding struct {
	Check  string `json:"check"`
	Status string `json:"status"` // ok, warn, fail
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"` // what to do about it
}

// Checkup is what was found about a node.
type Checkup struct {
	ID    string    `json:"id"` // the peer
	OK    bool      `json:"ok"` // nothing failed
	Items []Finding `json:"items"`
}

// NewCheckup sums findings up.
func NewCheckup(id string, list []Finding) Checkup {
	c := Checkup{ID: id, OK: true, Items: list}
	for _, f := range list {
		c.OK = c.OK && f.Status != CheckFail
	}
	return c
}

func (s *Server) checkupRoutes() {
	route(s, true, http.MethodPost, "/v1/doctor", "doctor", "Look for what is wrong with this node", func(ctx context.Context, _ *none) (Checkup, error) {
		return s.node.Doctor(ctx)
	})
}

// Doctor has the node look for what is wrong with it.
func (c *Client) Doctor(ctx context.Context) (Checkup, error) {
	return post[Checkup](ctx, c, "/v1/doctor", nil)
}
