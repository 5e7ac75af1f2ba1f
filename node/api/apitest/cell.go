package apitest

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// Cell is the part of the fake that is about its cell.
type Cell struct {
	HealthView   api.CellHealth
	RecoveryView api.CellRecovery
	SavedFile    []byte // what a snapshot or a backup is
}

func (n *Node) CellHealth(context.Context) (api.CellHealth, error) { return read(n, &n.HealthView) }

// orderCell notes what was asked for, of a peer of the view.
func (n *Node) orderCell(what, who string) (api.CellHealth, error) {
	n.Lock()
	defer n.Unlock()
	if n.Err != nil {
		return api.CellHealth{}, n.Err
	}
	known := who == ""
	for _, m := range n.HealthView.Members {
		known = known || m.Name == who || string(m.ID) == who
	}
	if !known {
		return api.CellHealth{}, pcm.Errorf(pcm.NotFound, "no peer %q", who)
	}
	n.Operations = append(n.Operations, what+" "+who)
	return n.HealthView, nil
}

func (n *Node) TransferLeader(_ context.Context, to string) (api.CellHealth, error) {
	return n.orderCell("transfer leader", to)
}

func (n *Node) PromotePeer(_ context.Context, who, instead string) (api.CellHealth, error) {
	return n.orderCell("promote instead of "+instead+":", who)
}

func (n *Node) DemotePeer(_ context.Context, who string, force bool) (api.CellHealth, error) {
	if force {
		return n.orderCell("demote by force", who)
	}
	return n.orderCell("demote", who)
}

func (n *Node) AddPeer(_ context.Context, who string) (api.CellHealth, error) {
	return n.orderCell("add", who)
}

func (n *Node) RemovePeer(_ context.Context, who string) (api.CellHealth, error) {
	return n.orderCell("remove", who)
}

func (n *Node) CellRecovery(context.Context) (api.CellRecovery, error) {
	return read(n, &n.RecoveryView)
}

func (n *Node) RecoverCell(_ context.Context, lost []string, reason string) (api.Ack, error) {
	n.Lock()
	defer n.Unlock()
	n.Operations = append(n.Operations, "recover without "+strings.Join(lost, ",")+": "+reason)
	n.StatusView.StartedAt = n.StatusView.StartedAt.Add(time.Second) // as after a restart
	return api.Ack{ID: string(n.RecoveryView.ID), Text: "restarts"}, n.Err
}

func (n *Node) RefuseRecovery(context.Context) (api.Ack, error) {
	n.Lock()
	defer n.Unlock()
	n.Operations = append(n.Operations, "refuse the recovery")
	return api.Ack{ID: string(n.RecoveryView.ID), Text: "goes on with the old cell"}, n.Err
}

func (n *Node) RejoinCell(context.Context) (api.Ack, error) {
	n.Lock()
	defer n.Unlock()
	n.Operations = append(n.Operations, "rejoin the cell")
	n.StatusView.StartedAt = n.StatusView.StartedAt.Add(time.Second) // as after a restart
	return api.Ack{ID: string(n.RecoveryView.ID), Text: "restarts without the old folder"}, n.Err
}

func (n *Node) SaveCell(_ context.Context, w io.Writer) error { return n.save(w) }

func (n *Node) Backup(_ context.Context, _ bool, w io.Writer) error { return n.save(w) }

func (n *Node) save(w io.Writer) error {
	file, err := read(n, &n.SavedFile)
	if err == nil {
		_, err = w.Write(file)
	}
	return err
}
