package consensus

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// history fetches what a snapshot doesn't hold: the records and documents from
// before it. Records are checked against the Merkle root of the restored state;
// documents are believed as the snapshot itself is, which came from the same peers.
type history struct {
	c    *Cell
	poke chan struct{}
}

// Bounds of one answer.
const (
	pageRecords = 4096
	pageBytes   = 1 << 20
)

var merkle = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

func newHistory(c *Cell) *history { return &history{c: c, poke: make(chan struct{}, 1)} }

func (h *history) wake() {
	select {
	case h.poke <- struct{}{}:
	default:
	}
}

type recordsRequest struct {
	From uint64 `cbor:"1,keyasint"`
	To   uint64 `cbor:"2,keyasint"`
}

type documentsRequest struct {
	After string `cbor:"1,keyasint"`
	Index uint64 `cbor:"2,keyasint"` // the source must have applied as much
}

type documentsAnswer struct {
	Page []storedDocument `cbor:"1,keyasint"`
	More bool             `cbor:"2,keyasint"`
}

// run fills the gap whenever there is one.
func (h *history) run() {
	const least, most = 100 * time.Millisecond, 10 * time.Second
	pause := least
	for {
		if h.c.archive.current().Gap == nil {
			pause = least
			select {
			case <-h.poke:
			case <-h.c.ctx.Done():
				return
			}
			continue
		}
		if h.fill() {
			continue
		}
		timer := time.NewTimer(pause)
		pause = min(2*pause, most)
		select {
		case <-timer.C:
		case <-h.poke:
		case <-h.c.ctx.Done():
		}
		timer.Stop()
		if h.c.ctx.Err() != nil {
			return
		}
	}
}

// fill asks one peer after the other; true when the gap it began with is no more.
func (h *history) fill() bool {
	leader, _ := h.c.watch.current()
	sources := h.c.voters()
	for _, s := range h.c.servers() { // replicas come last: they may be no further
		if !slices.Contains(sources, pcm.PeerID(s.ID)) {
			sources = append(sources, pcm.PeerID(s.ID))
		}
	}
	if i := slices.Index(sources, leader); i > 0 {
		sources[0], sources[i] = sources[i], sources[0]
	}
	for _, from := range sources {
		if from == h.c.cfg.Self {
			continue
		}
		err := h.fillFrom(from)
		if err == nil {
			return true
		}
		if h.c.ctx.Err() != nil {
			return false
		}
		h.c.log.Warn("the history could not be fetched", "cell", h.c.cfg.Cell, "peer", from, "error", err)
	}
	return false
}

func (h *history) fillFrom(from pcm.PeerID) error {
	a := h.c.archive
	for {
		g := a.current().Gap
		if g == nil {
			return nil
		}
		var err error
		switch {
		case g.Next < g.To:
			err = h.pullRecords(from, *g)
		case !g.Docs:
			err = h.pullDocuments(from, *g)
		default:
			err = h.verify(*g)
			if err == nil {
				h.c.log.Info("the history is complete", "cell", h.c.cfg.Cell, "records", g.To)
			}
		}
		if err != nil {
			return err
		}
	}
}

const pullTimeout = 30 * time.Second

// pullRecords asks for one page while the one before is written. Nothing that is pulled need be
// durable before all of it is verified: what a crash takes away, it takes away from the end of.
func (h *history) pullRecords(from pcm.PeerID, g gap) error {
	var written chan error // of the page before; nil: there is none
	for g.Next < g.To {
		page, err := h.pageOf(from, g)
		if written != nil {
			if e := <-written; e != nil {
				return e
			}
			if now := h.c.archive.current().Gap; now == nil || now.To != g.To || now.Root != g.Root {
				return nil // there is a newer snapshot
			}
		}
		if err != nil {
			return err
		}
		first := g.Next
		g.Next += uint64(len(page))
		after := g
		op := &archiveOp{pulled: &after, first: first, records: page, answer: make(chan error, 1)}
		h.c.archive.put(op)
		written = op.answer
	}
	if written == nil {
		return nil
	}
	return <-written
}

// pageOf is the next page of a gap's records.
func (h *history) pageOf(from pcm.PeerID, g gap) (page [][]byte, err error) {
	ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
	defer cancel()
	if err := h.c.ask(ctx, from, nil, protoRecords, "records", recordsRequest{g.Next, g.To}, &page); err != nil {
		return nil, err
	}
	if len(page) == 0 || uint64(len(page)) > g.To-g.Next {
		return nil, pcm.Errorf(pcm.Invalid, "peer %s sent %d records, asked for those from %d to %d", pcm.Short(from), len(page), g.Next, g.To)
	}
	return page, nil
}

func (h *history) pullDocuments(from pcm.PeerID, g gap) error {
	ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
	defer cancel()
	var answer documentsAnswer
	if err := h.c.ask(ctx, from, nil, protoRecords, "documents", documentsRequest{g.After, g.Index}, &answer); err != nil {
		return err
	}
	for _, d := range answer.Page {
		if d.Key <= g.After {
			return pcm.Errorf(pcm.Invalid, "peer %s sent document %q after %q", pcm.Short(from), d.Key, g.After)
		}
		g.After = d.Key
	}
	if answer.More && len(answer.Page) == 0 {
		return pcm.Errorf(pcm.Invalid, "peer %s has more documents but sent none", pcm.Short(from))
	}
	g.Docs = !answer.More
	return h.c.archive.do(&archiveOp{pulled: &g, pages: answer.Page})
}

// verify compares the records with the root of the restored state, then closes
// the gap. If they differ, all are fetched anew, from whoever is asked next.
func (h *history) verify(g gap) error {
	root, err := h.c.archive.root(h.c.ctx, g.To)
	if err != nil && h.c.ctx.Err() != nil {
		return err
	}
	if err == nil && root == g.Root {
		return h.c.archive.do(&archiveOp{pulled: &g, closed: true, sync: true})
	}
	again := g
	again.From, again.Next = 0, 0
	if e := h.c.archive.do(&archiveOp{pulled: &again, sync: true}); e != nil {
		return e
	}
	if err == nil {
		err = pcm.Errorf(pcm.Invalid, "the %d records that were fetched have root %x, the cell's is %x: fetching all anew", g.To, root, g.Root)
	}
	return err
}

// root is the RFC 6962 tree hash of the first size records.
func (a *archive) root(ctx context.Context, size uint64) (root [32]byte, err error) {
	tree := merkle.NewEmptyRange(0)
	err = a.records(0, size, func(_ uint64, r []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return tree.Append(rfc6962.DefaultHasher.HashLeaf(r), nil)
	})
	if err != nil {
		return root, err
	}
	sum := rfc6962.DefaultHasher.EmptyRoot()
	if size > 0 {
		if sum, err = tree.GetRootHash(nil); err != nil {
			return root, err
		}
	}
	return [32]byte(sum), nil
}

var errPageFull = errors.New("page full")

// answerRecords serves history to other members.
func (c *Cell) answerRecords(_ pcm.PeerID, method string, body []byte, reply func([]byte, error)) {
	if !c.start(func() {
		data, err := c.historyPage(method, body)
		reply(data, err)
	}) {
		reply(nil, &retryable{errClosing})
	}
}

func (c *Cell) historyPage(method string, body []byte) ([]byte, error) {
	switch method {
	case "records":
		var req recordsRequest
		if err := pcm.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		if req.To > c.RecordCount() || req.From >= req.To {
			return nil, pcm.Errorf(pcm.NotFound, "records %d to %d are not here", req.From, req.To)
		}
		var page [][]byte
		size := 0
		err := c.Records(req.From, min(req.To, req.From+pageRecords), func(_ uint64, r []byte) error {
			if size += len(r); len(page) > 0 && size > pageBytes {
				return errPageFull
			}
			page = append(page, r)
			return nil
		})
		if err != nil && !errors.Is(err, errPageFull) {
			return nil, err
		}
		return pcm.Marshal(page)
	case "documents":
		var req documentsRequest
		if err := pcm.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		if complete, _, _ := c.History(); !complete || c.Applied() < req.Index {
			return nil, pcm.Errorf(pcm.Unavailable, "the history of this peer is not complete")
		}
		if err := c.archive.settle(); err != nil {
			return nil, err
		}
		page, more, err := c.archive.documents(DocumentQuery{After: req.After, Limit: 1000}, pageBytes)
		if err != nil {
			return nil, err
		}
		return pcm.Marshal(documentsAnswer{page, more})
	}
	return nil, pcm.Errorf(pcm.Invalid, "request %q is not known", method)
}
