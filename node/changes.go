package node

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// pulse wakes those who wait for anything to be committed. The zero value is ready.
type pulse struct {
	mu sync.Mutex
	ch chan struct{}
}

// next is closed at the next beat.
func (p *pulse) next() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch == nil {
		p.ch = make(chan struct{})
	}
	return p.ch
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ch != nil {
		close(p.ch)
		p.ch = nil
	}
}

// changes tells readers of the local view what happens.
type changes struct {
	mu      sync.Mutex
	next    uint64
	readers map[chan api.Change]struct{}
}

// maxBehind bounds what a reader may lag; maxReaders how many there are.
const (
	maxBehind  = 1024
	maxReaders = 256
)

func newChanges() *changes { return &changes{readers: map[chan api.Change]struct{}{}} }

// Changes delivers changes until ctx ends. A reader that lags too far is cut off.
func (n *Node) Changes(ctx context.Context) (<-chan api.Change, error) {
	ch := make(chan api.Change, maxBehind)
	c := n.changes
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.readers) >= maxReaders {
		return nil, pcm.Errorf(pcm.Busy, "%d readers follow changes already", len(c.readers))
	}
	c.readers[ch] = struct{}{}
	// The node must not remember readers that are gone.
	forget := context.AfterFunc(n.run, func() { c.drop(ch) })
	context.AfterFunc(ctx, func() {
		forget()
		c.drop(ch)
	})
	return ch, nil
}

func (c *changes) drop(ch chan api.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut(ch)
}

// cut needs the lock.
func (c *changes) cut(ch chan api.Change) {
	if _, ok := c.readers[ch]; ok {
		delete(c.readers, ch)
		close(ch)
	}
}

func (c *changes) publish(ch api.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.readers) == 0 {
		return
	}
	c.next++
	ch.ID, ch.At = strconv.FormatUint(c.next, 10), time.Now().UTC()
	for r := range c.readers {
		select {
		case r <- ch:
		default:
			c.cut(r)
		}
	}
}

// observe turns an event into a change.
func (c *changes) observe(n *Node, e *pcm.Event) {
	c.mu.Lock()
	idle := len(c.readers) == 0
	c.mu.Unlock()
	if idle {
		return
	}
	ch := api.Change{Job: e.Job, Trade: e.Trade, Peer: e.By}
	switch {
	case e.Op != nil:
		ch.Kind = e.Op.Kind()
		ch.Text = describeOp(e)
	case e.Fact != nil && e.Fact.Ended != nil:
		ch.Kind, ch.State, ch.Text = "ended", string(e.Fact.Ended.State), "the job is "+string(e.Fact.Ended.State)
		if r := e.Fact.Ended.Reason; r != "" {
			ch.Text += ": " + r
		}
	case e.Fact != nil && e.Fact.Lost != nil:
		ch.Kind, ch.Text = "lost", fmt.Sprintf("%s lost: %s", many(e.Fact.Lost.Tasks.Len(), "task"), e.Fact.Lost.Reason)
	case e.Fact != nil && e.Fact.Closed != nil:
		ch.Kind, ch.Text = "closed", "the trade is closed, paid "+e.Fact.Closed.Paid.String()
	case e.Fact != nil && e.Fact.Overdue != nil:
		ch.Kind, ch.Text = "overdue", "the job's deadline is over"
	case e.Fact != nil && e.Fact.Cleared != nil:
		ch.Kind = "cleared"
		ch.Text = fmt.Sprintf("nobody told for %d days what the trade has cost in %s: its job goes by what it has accepted", pcm.ClearFor/(24*time.Hour), pcm.Short(e.Fact.Cleared.Cell))
	}
	c.publish(ch)
}

// many counts things: "1 task", "3 tasks".
func many(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

func describeOp(e *pcm.Event) string {
	op := e.Op
	switch {
	case op.Submit != nil:
		return fmt.Sprintf("job %q was submitted", op.Submit.Name)
	case op.Drive != nil:
		return fmt.Sprintf("peer %s drives the job, term %d", pcm.Short(e.By), op.Drive.Term)
	case op.Award != nil:
		t := op.Award.Terms
		return fmt.Sprintf("%s awarded to peer %s (%s)", many(t.Tasks.Len(), "task"), pcm.Short(t.Seller), t.Adapter)
	case op.Reject != nil:
		return fmt.Sprintf("%s rejected: %s", many(op.Reject.Tasks.Len(), "task"), op.Reject.Reason)
	case op.Start != nil:
		return many(op.Start.Tasks.Len(), "task") + " running"
	case op.Finish != nil:
		return many(len(op.Finish.Results), "task") + " finished"
	case op.Accept != nil:
		return many(len(op.Accept.Results), "result") + " accepted"
	case op.Abandon != nil:
		return fmt.Sprintf("%s given up: %s", many(op.Abandon.Tasks.Len(), "attempt"), op.Abandon.Reason)
	case op.Settle != nil:
		return fmt.Sprintf("%s paid: %s", many(op.Settle.Tasks.Len(), "result"), op.Settle.Amount)
	case op.Dispute != nil:
		return fmt.Sprintf("%s disputed: %s", many(op.Dispute.Tasks.Len(), "result"), op.Dispute.Reason)
	case op.Stop != nil:
		return fmt.Sprintf("%s to stop: %s", many(op.Stop.Tasks.Len(), "task"), op.Stop.Reason)
	case op.Clear != nil:
		return "the trade is over in its cell, and has cost " + op.Clear.Paid.String()
	case op.Succeed != nil && op.Succeed.Mandate != nil:
		return fmt.Sprintf("a driver of another account acts for the buyer, in term %d", op.Succeed.Term)
	case op.Succeed != nil:
		return "a peer of the buyer's account acts for it again"
	case op.Resolve != nil:
		return "a dispute was resolved by both sides"
	case op.Scale != nil:
		return fmt.Sprintf("step %d is scaled to %d", op.Scale.Step, op.Scale.Count)
	case op.Cancel != nil:
		return "the job was cancelled: " + op.Cancel.Reason
	}
	return op.Kind()
}

// watchPeers tells of peers and offers that come and go, and has waiting work
// look for places when the book changes.
func (n *Node) watchPeers(ctx context.Context) error {
	for {
		changed := n.mesh.OffersChanged()
		n.drivers.nudgeAll()
		n.changes.publish(api.Change{Kind: "offers", Text: "the offer book changed"})
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
