package node

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
	"github.com/jointcloud/pcm/node/api"
)

// statusWithin bounds how long a list of attempts waits for each back end. What is
// not known by then is shown without.
const statusWithin = 3 * time.Second

// Attempts lists what runs or waits at this peer, by trade and index.
func (n *Node) Attempts(ctx context.Context) ([]api.Attempt, error) {
	type answer struct {
		adapter string
		list    []adapters.Status
		err     error
	}
	answers := make(chan answer, len(n.seller.adapters))
	for name, a := range n.seller.adapters {
		go func() {
			try, cancel := context.WithTimeout(ctx, statusWithin)
			defer cancel()
			list, err := a.List(try)
			answers <- answer{name, list, err}
		}()
	}
	known, blind := map[adapters.Key]adapters.Status{}, map[string]error{}
	for range n.seller.adapters {
		a := <-answers
		for _, st := range a.list {
			known[st.Key] = st
		}
		if a.err != nil {
			blind[a.adapter] = a.err
		}
	}
	now, renewed := adapters.Now(), n.renewedAt()
	list := []api.Attempt{}
	s := n.seller
	s.mu.Lock()
	trades := maps.Clone(s.trades)
	s.mu.Unlock()
	entries := map[pcm.TradeID]api.AuditEntry{}
	for id, x := range trades {
		entries[id] = s.entry(x, "")
	}
	s.mu.Lock()
	for id, x := range trades {
		row := api.Attempt{
			Trade: id, Job: x.terms.Job, Step: fmt.Sprint(x.terms.Step), Try: x.terms.Attempt, Buyer: x.terms.Buyer, Driver: x.terms.Driver,
			Pool: x.terms.Pool, Adapter: x.terms.Adapter, Resources: x.terms.Each, LimitMS: x.terms.LimitMS,
			Awarded: time.Now().Add(-time.Duration(now - x.awarded)).UTC(),
		}
		e := entries[id]
		row.Step, row.Program, row.Image = orElse(e.Step, row.Step), e.Program, e.Image
		for _, i := range x.queue {
			w := row
			w.Index, w.State, w.Reason = i, "waiting", fmt.Sprintf("at most %d of its trade run at once", x.terms.Width)
			if !x.prepared {
				w.State, w.Reason = "preparing", "its spec and inputs are being fetched"
			}
			list = append(list, w)
		}
		for i, r := range x.running {
			w := row
			w.Index, w.State = i, "starting"
			var ran time.Duration
			if r.began {
				ran = max(0, time.Duration(renewed-r.since))
			}
			w.LeaseMS = max(0, time.Duration(max(x.awarded, renewed).Add(pcm.LeaseFor(ran))-now).Milliseconds())
			st, ok := known[x.key(i)]
			if !ok && blind[x.terms.Adapter] == nil {
				st, ok = r.status, r.status.State != ""
			}
			switch {
			case ok:
				w.State, w.Native, w.Reason, w.Usage = string(st.State), st.Native, st.Reason, st.Usage
				if !st.Started.IsZero() {
					w.Started = st.Started.UTC()
				}
			case blind[x.terms.Adapter] != nil:
				w.State, w.Reason = "unknown", "its back end can't be observed: "+blind[x.terms.Adapter].Error()
			}
			if why, stops := x.stop[i]; stops && w.State != string(adapters.Ended) {
				w.State, w.Reason = "stopping", why
			}
			list = append(list, w)
		}
	}
	s.mu.Unlock()
	for i := range list {
		list[i].ID = fmt.Sprintf("%s/%d", list[i].Trade, list[i].Index)
	}
	slices.SortFunc(list, func(a, b api.Attempt) int {
		if a.Trade != b.Trade {
			return strings.Compare(string(a.Trade), string(b.Trade))
		}
		return a.Index - b.Index
	})
	return list, nil
}

// KillAttempt ends an attempt by the operator's will: its buyer is told why, pays
// nothing, and has it run elsewhere.
func (n *Node) KillAttempt(ctx context.Context, id pcm.TradeID, index int, reason string) (api.Ack, error) {
	if err := checkNote("reason", reason); err != nil {
		return api.Ack{}, err
	}
	s := n.seller
	s.mu.Lock()
	x := s.trades[id]
	s.mu.Unlock()
	if x == nil || !x.terms.Tasks.Has(index) {
		return api.Ack{}, pcm.Errorf(pcm.NotFound, "task %d of %s doesn't run here; see 'pcm task list'", index, id)
	}
	why := "killed by the seller's operator"
	if reason != "" {
		why += ": " + reason
	}
	if s.kill(id, func(i int) bool { return i == index }, why) == 0 {
		return api.Ack{}, pcm.Errorf(pcm.Conflict, "task %d of %s has ended, or is being killed already; see 'pcm task list'", index, id)
	}
	e := s.entry(x, "")
	e.Task, e.Reason = &index, reason
	n.audit.operator(ctx, "kill", e)
	return api.Ack{ID: fmt.Sprintf("%s/%d", id, index), Text: "it is being stopped; its buyer is told why, and runs it elsewhere"}, nil
}
