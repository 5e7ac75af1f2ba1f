package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// protoReceipt asks a seller to sign what became of a trade, for a driver that the job's
// cell doesn't believe.
const protoReceipt protocol.ID = "/pcm/receipt/1.0.0"

const (
	maxReceipt   = 256 << 10
	receiptWait  = 8 * time.Second
	receiptRest  = time.Second      // after one that was not to be had
	receiptGives = 30 * time.Second // then it is gone on without, where that is possible
)

// receiptRequest is the receipt as the driver would have it.
type receiptRequest struct {
	Receipt pcm.Receipt `cbor:"1,keyasint"`
	Terms   *pcm.Terms  `cbor:"2,keyasint,omitempty"` // of a trade that was never sold
}

// serveReceipt signs a receipt, if this cell's ledger says the same.
func (n *Node) serveReceipt(ctx context.Context, from pcm.Passport, raw []byte) ([]byte, error) {
	var req receiptRequest
	if err := pcm.Unmarshal(raw, &req); err != nil {
		return nil, err
	}
	r := req.Receipt
	if r.Mesh != n.id.Mesh.Mesh || r.Cell != n.id.Mesh.Cell {
		return nil, pcm.Errorf(pcm.Invalid, "peer %s sells in %s and signs nothing about a trade in %.40q", pcm.Short(n.self), pcm.Short(n.id.Mesh.Cell), r.Cell)
	}
	if err := n.cell.Sync(ctx); err != nil {
		return nil, err
	}
	t, err := n.tradeHere(r.Trade)
	if err != nil && pcm.ErrorCode(err) != pcm.NotFound {
		return nil, err
	}
	terms := req.Terms
	if t != nil && err == nil {
		terms = &t.Terms
	} else {
		t = nil
	}
	switch {
	case terms == nil:
		return nil, pcm.Errorf(pcm.NotFound, "no trade %.40q in %s", r.Trade, pcm.Short(n.id.Mesh.Cell))
	case terms.Seller != n.self:
		return nil, pcm.Errorf(pcm.Forbidden, "%.40q is sold by another peer", r.Trade)
	case t != nil && from.Account != terms.Buyer && !n.actsHere(from.Peer, terms):
		return nil, pcm.Errorf(pcm.Forbidden, "peer %s doesn't act for the buyer of %s here", pcm.Short(from.Peer), r.Trade)
	}
	n.cell.View(func() { err = trueReceipt(n.state, t, terms, r) })
	if err != nil {
		return nil, err
	}
	return r.Sign(n.id.Peer), nil
}

// trueReceipt tells whether a receipt says what the ledger of the trade's cell says, of a
// trade with these terms; t is nil if it has no such trade, open or closed.
func trueReceipt(s *ledger.State, t *ledger.Trade, terms *pcm.Terms, r pcm.Receipt) error {
	no := func(format string, args ...any) error { return pcm.Errorf(pcm.Conflict, format, args...) }
	if t == nil {
		switch {
		case !terms.Abroad() || terms.Trade() != r.Trade || terms.Cell != s.Genesis().Cell:
			return pcm.Errorf(pcm.Invalid, "the terms are not those of %.40q", r.Trade)
		case r.Unsold && r.Terms != pcm.DigestOf(pcm.MustMarshal(*terms)):
			return pcm.Errorf(pcm.Invalid, "the receipt for %s is of other terms", r.Trade)
		case !r.Unsold || len(r.Results) > 0:
			return no("%s was never awarded", r.Trade)
		case !s.Barred(terms):
			return no("%s may still be awarded: make it void first", r.Trade)
		}
		return nil
	}
	if r.Unsold {
		return no("%s was awarded", r.Trade)
	}
	if len(r.Free) > 0 && !r.Free.Valid(pcm.MaxTasks) || r.Free.Len() > pcm.MaxBatch {
		return pcm.Errorf(pcm.Invalid, "the receipt for %s names no valid tasks", r.Trade)
	}
	for _, res := range r.Results {
		at := t.Attempt(res.Index)
		if at == nil || at.State != pcm.AttemptFinished && at.State != pcm.AttemptSettled || at.Result == nil || *at.Result != res {
			return no("that is not the result with which task %d of %s has finished", res.Index, r.Trade)
		}
	}
	for i := range r.Free.All {
		if at := t.Attempt(i); at == nil || at.State != pcm.AttemptRejected && at.State != pcm.AttemptLost {
			return no("task %d of %s may still have to be paid", i, r.Trade)
		}
	}
	return nil
}

// warrants are what a driver of another account than the buyer's has asked its seller
// to sign for one trade.
type warrants struct {
	asked  bool      // it is being asked
	signed []pcm.Op  // with receipts, to be proposed
	since  time.Time // of the first time that it was not to be had; zero: none
	rest   time.Time // until when it isn't asked again
	last   error     // why
}

// warranted is news of receipts that were asked for.
type warranted struct {
	trade pcm.TradeID
	ops   []pcm.Op
	err   error
}

// receiptFor puts a receipt on an operation.
func receiptFor(op *pcm.Op, sig []byte) {
	switch {
	case op.Accept != nil:
		c := *op.Accept
		c.Receipt = sig
		op.Accept = &c
	case op.Abandon != nil:
		c := *op.Abandon
		c.Receipt = sig
		op.Abandon = &c
	}
}

// warrant is what of a driver's decisions about a trade can be committed at home now: what
// needs no receipt, or has one. The rest is asked for.
func (d *driver) warrant(t *abroadTrade, ops []pcm.Op, now time.Time) []pcm.Op {
	w := &t.warrants
	if len(w.signed) > 0 {
		signed := w.signed
		w.signed = nil
		return signed
	}
	if w.asked {
		return nil
	}
	lasting := !w.since.IsZero() && now.Sub(w.since) > receiptGives
	var ready, wanting []pcm.Op
	for _, op := range ops {
		if _, needed := pcm.ReceiptOf(op, d.n.id.Mesh.Mesh, &t.terms); !needed {
			ready = append(ready, op)
		} else if lasting {
			ready = append(ready, unwarranted(op, w.last))
		} else {
			wanting = append(wanting, op)
		}
	}
	if lasting {
		w.since = time.Time{} // what comes next gets as long
	}
	if len(ready) > 0 || len(wanting) == 0 || now.Before(w.rest) {
		return ready
	}
	w.asked = true
	terms := t.terms
	go func() {
		ctx, cancel := context.WithTimeout(d.n.run, receiptWait)
		defer cancel()
		signed, err := d.n.askReceipts(ctx, terms, wanting)
		d.mu.Lock()
		d.warranted = append(d.warranted, warranted{terms.Trade(), signed, err})
		d.mu.Unlock()
		d.nudge()
	}()
	return nil
}

// unwarranted is what is left of a decision that a seller doesn't sign: the attempt is
// given up, and what it costs stays set aside, until the buyer says or time does.
func unwarranted(op pcm.Op, why error) pcm.Op {
	var a pcm.Abandon
	results := []pcm.Result(nil)
	if op.Accept != nil {
		a = pcm.Abandon{Job: op.Accept.Job, Term: op.Accept.Term, Trade: op.Accept.Trade}
		results = op.Accept.Results
	} else {
		a = *op.Abandon
		if a.Fault == pcm.FaultTask {
			results = a.Results
		}
	}
	if results != nil {
		var tasks []int
		for _, r := range results {
			tasks = append(tasks, r.Index)
		}
		slices.Sort(tasks)
		a.Tasks, a.Results = pcm.SpansOf(tasks), nil
		a.Reason = clip("its seller did not sign what it finished with: " + why.Error())
	}
	a.Fault, a.Over, a.Unsold = pcm.FaultSeller, false, false
	return pcm.Op{Abandon: &a}
}

// takeWarrants takes in what the seller has signed, or why it has not.
func (t *abroadTrade) takeWarrants(news warranted, now time.Time) {
	w := &t.warrants
	w.asked = false
	if w.signed = news.ops; news.err == nil {
		w.since, w.last = time.Time{}, nil
		return
	}
	w.rest, w.last = now.Add(receiptRest), news.err
	if w.since.IsZero() {
		w.since = now
	}
}

// askReceipts has the seller of a trade sign what operations rest on. With an error come
// those for which it has.
func (n *Node) askReceipts(ctx context.Context, t pcm.Terms, ops []pcm.Op) (signed []pcm.Op, err error) {
	for _, op := range ops {
		r, _ := pcm.ReceiptOf(op, n.id.Mesh.Mesh, &t)
		req := receiptRequest{Receipt: r}
		if r.Unsold {
			req.Terms = &t
		}
		sig, failed := n.mesh.Call(ctx, t.Seller, protoReceipt, pcm.MustMarshal(req))
		if failed == nil {
			failed = r.SignedBy(t.Seller, sig)
		}
		if failed != nil {
			err = failed
			continue
		}
		receiptFor(&op, sig)
		signed = append(signed, op)
	}
	return signed, err
}
