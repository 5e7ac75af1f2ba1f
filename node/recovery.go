package node

import (
	"context"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/node/api"
)

// CellRecovery shows what each peer of the cell has, and whether this one may go
// on without those that don't answer.
func (n *Node) CellRecovery(ctx context.Context) (api.CellRecovery, error) {
	v, _, err := n.planRecovery(ctx)
	return v, err
}

func (n *Node) planRecovery(ctx context.Context) (api.CellRecovery, consensus.Recovery, error) {
	list, plan, refused := n.cell.PlanRecovery(ctx)
	names := n.names()
	v := api.CellRecovery{
		ID: n.id.Mesh.Cell, Name: n.id.Mesh.CellName, Peer: n.self, Possible: refused == nil, Index: plan.Index,
		Keep: called(plan.Keep, names), Lost: called(plan.Lost, names), Survivors: []api.Survivor{},
	}
	if refused != nil {
		if pcm.ErrorCode(refused) != pcm.Refused {
			return v, plan, refused
		}
		v.Problem = refused.Error()
	}
	for _, s := range list {
		v.Survivors = append(v.Survivors, api.Survivor{
			ID: s.Peer, Name: names[s.Peer], Role: string(s.Role), Answers: s.Answers, Last: s.Last, Term: s.Term, Applied: s.Applied, Complete: s.Complete, Forgot: s.Forgot,
		})
		if s.Peer == n.self && !s.Complete {
			v.Warnings = append(v.Warnings, "this peer has not all records of the past; those that no survivor has can't be shown any more")
		}
	}
	if refused == nil {
		v.Warnings = append(v.Warnings,
			"what was acknowledged by the lost voters alone, after entry "+strconv.FormatUint(plan.Index, 10)+", is lost: trades, results and payments since then",
			"should a lost peer come up again with its old folder, it is told, and stops; run 'pcm cell rejoin' there. While it can't reach this side, it can't know")
	}
	return v, plan, nil
}

// called is how people know some peers.
func called(ids []pcm.PeerID, names map[pcm.PeerID]string) []string {
	list := make([]string, 0, len(ids))
	for _, id := range ids {
		list = append(list, orElse(names[id], pcm.Short(id)))
	}
	return list
}

// maxReason bounds a person's words in the ledger, in bytes.
const maxReason = 500

// RecoverCell has this peer go on without those that don't answer: it restarts
// with the cell recovered. lost is what the person was shown; should more peers
// answer meanwhile, nothing is done.
func (n *Node) RecoverCell(ctx context.Context, lost []string, reason string) (api.Ack, error) {
	v, plan, err := n.planRecovery(ctx)
	switch {
	case err != nil:
		return api.Ack{}, err
	case !v.Possible:
		return api.Ack{}, pcm.Errorf(pcm.Refused, "%s", v.Problem)
	case strings.Join(lost, "\n") != strings.Join(v.Lost, "\n"):
		return api.Ack{}, pcm.Errorf(pcm.Conflict, "who is lost has changed since you looked: %s don't answer now, you were shown %s; look again with 'pcm cell recover'", orElse(strings.Join(v.Lost, ", "), "none"), orElse(strings.Join(lost, ", "), "none"))
	case len(reason) > maxReason || !utf8.ValidString(reason):
		return api.Ack{}, pcm.Errorf(pcm.Invalid, "the reason is over %d bytes, or no text", maxReason)
	}
	plan.Reason = orElse(reason, "none was given")
	if err := n.cell.OrderRecovery(plan); err != nil {
		return api.Ack{}, err
	}
	n.audit.operator(ctx, "recover-cell", api.AuditEntry{Reason: plan.Reason})
	n.log.Warn("the operator recovers the cell: this peer goes on alone", "after", plan.Index, "lost", strings.Join(v.Lost, ", "), "reason", plan.Reason)
	n.rejoin.Store(true)
	n.stop(ErrRejoin)
	return api.Ack{ID: string(n.id.Mesh.Cell), Text: "this peer restarts as the one voter of its cell; others follow as they are ready"}, nil
}

// tellRecovery writes a recovery into the ledger, for whoever audits it later.
func (n *Node) tellRecovery(ctx context.Context) error {
	r := n.cell.Recovered()
	if r == nil || r.Told {
		return nil
	}
	select {
	case <-n.member:
	case <-ctx.Done():
		return nil
	}
	op := pcm.Op{Recovered: &pcm.Recovered{Index: r.Index, Term: r.Term, Lost: r.Lost, Way: r.Way, Reason: r.Reason}}
	for {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := n.must(try, op)
		cancel()
		if err == nil {
			return n.cell.RecoveryTold()
		}
		n.log.Debug("the recovery does not stand in the ledger yet", "error", err)
		if !pause(ctx, time.Second) { // the note key of this peer may have to be bound first
			return nil
		}
	}
}
