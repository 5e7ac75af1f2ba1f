package consensus

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/jointcloud/pcm"
)

// AddReplica takes a peer into the cell: it gets the log from now on, and may
// become a voter by itself. It works on every member. Nothing changes if the
// peer is in the cell already.
func (c *Cell) AddReplica(ctx context.Context, id pcm.PeerID) error {
	if _, err := peer.Decode(string(id)); err != nil {
		return pcm.Errorf(pcm.Invalid, "%q is not a peer ID", id)
	}
	return c.onLeader(ctx, "add", adminRequest{Peer: id}, nil)
}

// Remove takes a peer out of the cell for good. Its own part must still be
// closed. It works on every member; a replica may remove only itself.
func (c *Cell) Remove(ctx context.Context, id pcm.PeerID) error {
	return c.onLeader(ctx, "remove", adminRequest{Peer: id}, nil)
}

// Promote makes a replica a voter, in place of another one if instead names it.
// It works on every voter.
func (c *Cell) Promote(ctx context.Context, id, instead pcm.PeerID) error {
	return c.onLeader(ctx, "promote", adminRequest{Peer: id, Instead: instead}, nil)
}

// Demote makes a voter a replica, which stays one until it is promoted by
// [Cell.Promote]. A replica takes its place if one is ready; force does without. It works
// on every voter.
func (c *Cell) Demote(ctx context.Context, id pcm.PeerID, force bool) error {
	return c.onLeader(ctx, "demote", adminRequest{Peer: id, Force: force}, nil)
}

// TransferLeadership makes a voter the leader; "" lets Raft choose the one that
// is furthest. It works on every voter.
func (c *Cell) TransferLeadership(ctx context.Context, to pcm.PeerID) error {
	return c.onLeader(ctx, "transfer", adminRequest{Peer: to}, nil)
}

// Sync waits until all that was committed before the call is applied here, so
// that a View that follows is linearizable. Error: Unavailable when ctx ends before.
func (c *Cell) Sync(ctx context.Context) error {
	var index uint64
	if err := c.onLeader(ctx, "sync", adminRequest{}, &index); err != nil {
		return err
	}
	return c.WaitApplied(ctx, index)
}

// adminRequest is what a member asks of the leader.
type adminRequest struct {
	Peer    pcm.PeerID `cbor:"1,keyasint"`
	Instead pcm.PeerID `cbor:"2,keyasint,omitempty"`
	Force   bool       `cbor:"3,keyasint,omitempty"`
}

// body is what is sent: the peer alone, where that says all.
func (r adminRequest) body(method string) any {
	if method == "promote" || method == "demote" {
		return r
	}
	return r.Peer
}

func (r *adminRequest) decode(method string, body []byte) error {
	if method == "promote" || method == "demote" {
		return pcm.Unmarshal(body, r)
	}
	return pcm.Unmarshal(body, &r.Peer)
}

// onLeader has the leader do something, trying again while it changes.
func (c *Cell) onLeader(ctx context.Context, method string, req adminRequest, out *uint64) error {
	wait := retryLeast
	for {
		leader, changed := c.watch.current()
		var err error
		var n uint64
		switch leader {
		case "":
			if err = c.notices.stopped(); err == nil {
				err = retryf("it has no leader now: too few of its voters can reach each other")
			}
		case c.cfg.Self:
			n, err = c.administer(ctx, c.cfg.Self, method, req)
		default:
			c.rest.rouse()
			err = c.ask(ctx, leader, changed, protoAdmin, method, req.body(method), &n)
		}
		if err == nil {
			if out != nil {
				*out = n
			}
			return nil
		}
		switch {
		case ctx.Err() != nil:
			return pcm.Errorf(pcm.Unavailable, "%s did not answer in time (%v): %w", pcm.Short(c.cfg.Cell), err, ctx.Err())
		case c.Err() != nil:
			return c.Err()
		case c.ctx.Err() != nil:
			return errClosing
		case !isRetryable(err):
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
			wait = retryLeast
		case <-timer.C:
			wait = min(2*wait, retryMost)
		case <-ctx.Done():
		case <-c.ctx.Done():
		}
		timer.Stop()
	}
}

// answerAdmin takes requests of other members.
func (c *Cell) answerAdmin(from pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	switch method {
	case "status":
		var req statusRequest
		if pcm.Unmarshal(body, &req) == nil {
			c.members.learn(from, req.Holds)
		}
		reply(pcm.MustMarshal(c.ownStatus()), nil)
		return
	case "bereft":
		reply(pcm.MustMarshal(c.bereft()), nil)
		return
	case "remember":
		reply(nil, c.reminded(from, body))
		return
	case "rest":
		var o restOrder
		err := pcm.Unmarshal(body, &o)
		if err == nil {
			err = c.rest.ordered(from, o)
		}
		reply(nil, err)
		return
	case "beat":
		reply(nil, c.rest.beaten(from, body))
		return
	case "leads":
		reply(nil, c.leadsIn(body))
		return
	case "health":
		if c.leads() == 0 {
			reply(nil, errNotLeader)
			return
		}
		reply(pcm.MustMarshal(c.members.report()), nil)
		return
	}
	var req adminRequest
	if err := req.decode(method, body); err != nil {
		reply(nil, err)
		return
	}
	if !c.start(func() {
		ctx, cancel := context.WithTimeout(c.ctx, 2*changeTimeout)
		defer cancel()
		n, err := c.administer(ctx, from, method, req)
		if err != nil {
			reply(nil, err)
			return
		}
		reply(pcm.MustMarshal(n), nil)
	}) {
		reply(nil, &retryable{errClosing})
	}
}

// administer does what a member asks of the leader.
func (c *Cell) administer(ctx context.Context, from pcm.PeerID, method string, req adminRequest) (uint64, error) {
	id := req.Peer
	if c.leads() == 0 && method != "transfer" {
		return 0, errNotLeader
	}
	votes := slices.Contains(c.voters(), from)
	if method != "sync" {
		c.rest.touch()
	}
	var f raft.Future
	switch method {
	case "sync":
		// What was acknowledged to anybody, or read by anybody, is committed here; that
		// nobody else leads meanwhile is what the voters confirm.
		index, err := c.lastCommitted()
		if err != nil {
			return 0, err
		}
		if err := c.confirm(ctx); err != nil {
			return 0, err
		}
		return index, nil
	case "add":
		if c.isMember(id) {
			return 0, nil
		}
		if len(c.servers()) >= MaxMembers {
			return 0, pcm.Errorf(pcm.Refused, "%s has %d peers, the most that a cell may have: join another cell", pcm.Short(c.cfg.Cell), MaxMembers)
		}
		f = c.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, changeTimeout)
	case "remove":
		switch {
		case !c.isMember(id):
			return 0, nil
		case from != id && !votes:
			return 0, pcm.Errorf(pcm.Forbidden, "a replica can't remove peer %s from %s", pcm.Short(id), pcm.Short(c.cfg.Cell))
		case id == c.cfg.Self && len(c.voters()) == 1:
			return 0, pcm.Errorf(pcm.Refused, "peer %s is the only voter of %s: nobody would be left to keep the ledger", pcm.Short(id), pcm.Short(c.cfg.Cell))
		case id == c.cfg.Self:
			if err := c.transfer(ctx, ""); err != nil {
				return 0, err
			}
			return 0, errNotLeader // the new one shall do it
		}
		if err := c.members.mayRemove(id); err != nil {
			return 0, err
		}
		f = c.raft.RemoveServer(raft.ServerID(id), 0, changeTimeout)
	case "promote", "demote":
		if !votes {
			return 0, pcm.Errorf(pcm.Forbidden, "a replica can't say who votes in %s: ask a voter's operator", pcm.Short(c.cfg.Cell))
		}
		return 0, c.members.order(ctx, method, req)
	case "transfer":
		if !votes {
			return 0, pcm.Errorf(pcm.Forbidden, "a replica can't move the leadership of %s", pcm.Short(c.cfg.Cell))
		}
		return 0, c.transfer(ctx, id)
	default:
		return 0, pcm.Errorf(pcm.Invalid, "request %q is not known", method)
	}
	if err := wait(ctx, f); err != nil {
		return 0, retryCause(err)
	}
	c.members.wake()
	return 0, nil
}

func (c *Cell) transfer(ctx context.Context, to pcm.PeerID) error {
	var f raft.Future
	switch {
	case to == c.cfg.Self:
		return nil
	case to == "":
		f = c.raft.LeadershipTransfer()
	case !slices.Contains(c.voters(), to):
		return pcm.Errorf(pcm.Refused, "peer %s doesn't vote in %s, so it can't lead: 'pcm cell members' lists who votes", pcm.Short(to), pcm.Short(c.cfg.Cell))
	default:
		f = c.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	}
	if err := wait(ctx, f); err != nil {
		if errors.Is(err, raft.ErrNotLeader) && to != "" { // another one leads now, and can do it
			return retryCause(err)
		}
		return pcm.Errorf(pcm.Unavailable, "leadership of %s could not be handed over: %w", pcm.Short(c.cfg.Cell), err)
	}
	return nil
}

// wait waits for a future at most until ctx ends. The goroutine that outlives
// it ends with the future, at the latest when Raft shuts down.
func wait(ctx context.Context, f raft.Future) error {
	ch := make(chan error, 1)
	go func() { ch <- f.Error() }()
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
