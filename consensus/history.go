package consensus

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// history fetches what a snapshot doesn't hold: the records and documents from
// before it. Of records that others have removed it fetches the hashes, and the
// bases from which the rest can be verified. Records and hashes are checked against the
// Merkle root of the restored state, bases against their records; documents are
// believed as the snapshot itself is, which came from the same peers.
type history struct {
	c      *Cell
	poke   chan struct{}
	hashed *compact.Range // of the records that were pulled one after the other, lately; nil: none. Of run alone
}

// Bounds of one answer.
const (
	pageRecords = 4096
	pageBytes   = 1 << 20
	pageTiles   = 64 // of 8 KiB each
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

// keptAnswer says what of the history a peer has.
type keptAnswer struct {
	Pruned uint64 `cbor:"1,keyasint"` // of records below it only the hashes
	Bases  []Base `cbor:"2,keyasint"`
}

type baseRequest struct {
	Size   uint64 `cbor:"1,keyasint"`
	Offset int    `cbor:"2,keyasint"`
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
	kept, err := h.askKept(from)
	if err != nil {
		return err
	}
	for {
		state := a.current()
		g := state.Gap
		if g == nil {
			return nil
		}
		var err error
		switch low, err := lowFor(*g, state, kept.Pruned); {
		case err != nil:
			return err
		case low != g.Low:
			*g = g.lowered(low, state.Tiled)
			if err := a.do(&archiveOp{pulled: g, sync: true}); err != nil {
				return err
			}
			continue
		}
		switch {
		case g.Next < g.Low:
			err = h.pullTiles(from, *g)
		case g.Next < g.To:
			err = h.pullRecords(from, *g)
		case !g.Docs:
			err = h.pullDocuments(from, *g)
		default:
			err = h.verify(from, *g, kept.Bases)
			if err == nil {
				h.c.log.Info("the history is complete", "cell", h.c.cfg.Cell, "records", g.To, "from", g.Low)
			}
		}
		if err != nil {
			return err
		}
	}
}

const pullTimeout = 30 * time.Second

// askKept asks what a peer has of the history. One of a release that removes nothing
// doesn't know the question.
func (h *history) askKept(from pcm.PeerID) (kept keptAnswer, err error) {
	ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
	defer cancel()
	err = h.c.ask(ctx, from, nil, protoRecords, "kept", struct{}{}, &kept)
	if pcm.ErrorCode(err) == pcm.Invalid {
		return keptAnswer{}, nil
	}
	if err == nil && (kept.Pruned%tileWidth != 0 || len(kept.Bases) > maxBases) {
		err = pcm.Errorf(pcm.Invalid, "peer %s says that it has removed %d records and has %d bases", pcm.Short(from), kept.Pruned, len(kept.Bases))
	}
	return kept, err
}

// lowFor is up to where hashes are fetched in place of records from a peer that has
// removed some; 0: nowhere.
func lowFor(g gap, state archiveState, pruned uint64) (uint64, error) {
	switch {
	case g.Next >= g.Low && pruned <= g.Next: // it has all that is missing
		return g.Low, nil
	case pruned <= g.From:
		return 0, nil
	case pruned > state.Count:
		return 0, pcm.Errorf(pcm.Unavailable, "it has removed %d records, and this peer has come to %d: it has to catch up first", pruned, state.Count)
	}
	return pruned, nil
}

// lowered is the gap with hashes in place of the records below low, of which there are
// some already for those below tiled: perhaps for more, if a peer that has removed more was
// asked before. Records above low are still to be had.
func (g gap) lowered(low, tiled uint64) gap {
	g.Low, g.Next = low, g.From
	if low > 0 {
		g.Next = min(tiled, low)
	}
	return g
}

func (h *history) pullTiles(from pcm.PeerID, g gap) error {
	ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
	defer cancel()
	a := h.c.archive
	var page [][]byte
	if err := h.c.ask(ctx, from, nil, protoRecords, "tiles", recordsRequest{g.Next, g.Low}, &page); err != nil {
		return err
	}
	if len(page) == 0 || len(page) > pageTiles || g.Next+uint64(len(page))*tileWidth > g.Low {
		return pcm.Errorf(pcm.Invalid, "peer %s sent %d tiles, asked for those of records %d to %d", pcm.Short(from), len(page), g.Next, g.Low)
	}
	op, err := a.newTiling(ctx, g.Next/tileWidth, page)
	if err != nil {
		return err
	}
	g.Next += uint64(len(page)) * tileWidth
	return a.do(&archiveOp{pulled: &g, tiled: op, sync: true})
}

// pullBase fetches the state of a base, and stores it if it is the one that the ledger tells of.
func (h *history) pullBase(from pcm.PeerID, b Base) error {
	if b.Bytes < 1 || b.Bytes > maxSnapshot {
		return pcm.Errorf(pcm.Invalid, "peer %s has a base of %d bytes", pcm.Short(from), b.Bytes)
	}
	var state []byte
	for len(state) < b.Bytes {
		ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
		var page []byte
		err := h.c.ask(ctx, from, nil, protoRecords, "base", baseRequest{b.Size, len(state)}, &page)
		cancel()
		if err != nil {
			return err
		}
		if len(page) == 0 || len(page) > b.Bytes-len(state) {
			return pcm.Errorf(pcm.Invalid, "peer %s sent %d bytes of a base", pcm.Short(from), len(page))
		}
		state = append(state, page...)
	}
	base, err := h.c.archive.checkBase(b.Size, state)
	if err != nil {
		return err
	}
	return h.c.archive.do(&archiveOp{base: base, sync: true})
}

// pull asks for one page while the one before is written, until there is no more. next asks for
// a page, moves the gap on and says what is to be written. Nothing that is pulled need be
// durable before all of it is verified: what a crash takes away, it takes away from the end of.
func (h *history) pull(g gap, more func(gap) bool, next func(*gap) (*archiveOp, error)) error {
	var written chan error // of the page before; nil: there is none
	for more(g) {
		op, err := next(&g)
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
		after := g
		op.pulled, op.answer = &after, make(chan error, 1)
		h.c.archive.put(op)
		written = op.answer
	}
	if written == nil {
		return nil
	}
	return <-written
}

// pullRecords pulls the records that are missing, and hashes them meanwhile.
func (h *history) pullRecords(from pcm.PeerID, g gap) error {
	if h.hashed == nil || h.hashed.End() != g.Next {
		h.hashed = merkle.NewEmptyRange(g.Next)
	}
	return h.pull(g, func(g gap) bool { return g.Next < g.To }, func(g *gap) (*archiveOp, error) {
		page, err := h.pageOf(from, *g)
		if err != nil {
			return nil, err
		}
		op := &archiveOp{first: g.Next, records: page}
		g.Next += uint64(len(page))
		return op, hashInto(h.hashed, page)
	})
}

func hashInto(tree *compact.Range, records [][]byte) error {
	for _, r := range records {
		if err := tree.Append(rfc6962.DefaultHasher.HashLeaf(r), nil); err != nil {
			return err
		}
	}
	return nil
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
	return h.pull(g, func(g gap) bool { return !g.Docs }, func(g *gap) (*archiveOp, error) {
		page, err := h.documentsAfter(from, g)
		return &archiveOp{pages: page}, err
	})
}

// documentsAfter is the next page of a gap's documents, which it moves on.
func (h *history) documentsAfter(from pcm.PeerID, g *gap) ([]storedDocument, error) {
	ctx, cancel := context.WithTimeout(h.c.ctx, pullTimeout)
	defer cancel()
	var answer documentsAnswer
	if err := h.c.ask(ctx, from, nil, protoRecords, "documents", documentsRequest{g.After, g.Index}, &answer); err != nil {
		return nil, err
	}
	for _, d := range answer.Page {
		if d.Key <= g.After {
			return nil, pcm.Errorf(pcm.Invalid, "peer %s sent document %q after %q", pcm.Short(from), d.Key, g.After)
		}
		g.After = d.Key
	}
	if answer.More && len(answer.Page) == 0 {
		return nil, pcm.Errorf(pcm.Invalid, "peer %s has more documents but sent none", pcm.Short(from))
	}
	g.Docs = !answer.More
	return answer.Page, nil
}

// verify compares the records with the root of the restored state, fetches the
// bases, then closes the gap. If they differ, all are fetched anew, from whoever
// is asked next; but for those that were removed here, whose hashes were checked.
func (h *history) verify(from pcm.PeerID, g gap, bases []Base) error {
	a := h.c.archive
	hashed := h.hashed
	h.hashed = nil
	if hashed == nil || hashed.End() != g.To || hashed.Begin() < max(g.From, g.Low) {
		hashed = merkle.NewEmptyRange(g.To) // it was begun by another process: all is read again
	}
	// What was here before the gap was checked, and so were its tiles.
	low := max(g.Low, min(g.From, a.current().Tiled)/tileWidth*tileWidth)
	root, err := a.root(h.c.ctx, low, hashed)
	if err != nil && h.c.ctx.Err() != nil {
		return err
	}
	if err == nil && root == g.Root {
		// Where a peer has removed what this one has applied itself after its snapshot.
		for n := g.To / tileWidth; err == nil && n < g.Low/tileWidth; n++ {
			err = a.checkTile(h.c.ctx, n, g.To)
		}
	}
	if err == nil && root == g.Root {
		for _, b := range bases {
			if b.Size < g.Low || b.Size >= a.current().Count {
				continue // of no use, or made meanwhile: it comes with its entry
			}
			if err := h.pullBase(from, b); err != nil {
				return err
			}
		}
		if have := a.current().Bases; g.Low > 0 && (len(have) == 0 || have[len(have)-1].Size < g.Low) {
			return pcm.Errorf(pcm.Unavailable, "peer %s has removed %d records, and has no base from which the others can be verified", pcm.Short(from), g.Low)
		}
		return a.do(&archiveOp{pulled: &g, closed: true, sync: true})
	}
	again := g
	again.From, again.Low = a.current().Pruned, 0
	again.Next = again.From
	if e := h.c.archive.do(&archiveOp{pulled: &again, sync: true}); e != nil {
		return e
	}
	if err == nil {
		err = pcm.Errorf(pcm.Invalid, "the %d records that were fetched have root %x, the cell's is %x: fetching all anew", g.To, root, g.Root)
	}
	return err
}

// closeGap is the writer's part: the history is complete, but for what nobody has any more.
func (a *archive) closeGap(wb *badger.WriteBatch, state *archiveState) error {
	low := state.Gap.Low
	state.Gap = nil
	if low <= state.Pruned {
		return nil
	}
	state.Pruned = low
	state.skipHole()
	return a.dropBases(wb, state, func(b Base) bool { return b.Size < low })
}

// checkTile holds a full tile against the records from a number on, which are here.
func (a *archive) checkTile(ctx context.Context, n, from uint64) error {
	return a.compare(ctx, n, from, func(i uint64, _ []byte, same bool) error {
		if !same {
			return pcm.Errorf(pcm.Invalid, "the hash of record %d that was fetched is not that of the record", i)
		}
		return nil
	})
}

// root is the RFC 6962 tree hash of the records up to the end of those that are hashed, by stored tiles for those
// below low, a multiple of 256.
func (a *archive) root(ctx context.Context, low uint64, hashed *compact.Range) (root [32]byte, err error) {
	size := hashed.Begin()
	tree := merkle.NewEmptyRange(0)
	for at := uint64(0); at < min(low, size); at += tileWidth {
		tile, err := a.tile(ctx, 0, at/tileWidth, tileWidth)
		if err != nil {
			return root, err
		}
		if at+tileWidth <= size {
			full, err := merkle.NewRange(at, at+tileWidth, [][]byte{tileRoot(tile)})
			if err != nil {
				return root, err
			}
			if err := tree.AppendRange(full, nil); err != nil {
				return root, err
			}
			continue
		}
		for leaf := range slices.Chunk(tile[:(size-at)*hashSize], hashSize) {
			if err := tree.Append(leaf, nil); err != nil {
				return root, err
			}
		}
	}
	err = a.records(min(low, size), size, func(_ uint64, r []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return tree.Append(rfc6962.DefaultHasher.HashLeaf(r), nil)
	})
	if err != nil {
		return root, err
	}
	if err := tree.AppendRange(hashed, nil); err != nil {
		return root, err
	}
	sum := rfc6962.DefaultHasher.EmptyRoot()
	if tree.End() > 0 {
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
	case "kept":
		state := c.archive.current()
		return pcm.Marshal(keptAnswer{state.Pruned, state.Bases})
	case "base":
		var req baseRequest
		if err := pcm.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		state, err := c.BaseState(req.Size)
		if err != nil {
			return nil, err
		}
		if req.Offset < 0 || req.Offset >= len(state) {
			return nil, pcm.Errorf(pcm.NotFound, "the base of %d records has %d bytes", req.Size, len(state))
		}
		return pcm.Marshal(state[req.Offset:min(len(state), req.Offset+pageBytes)])
	case "records", "tiles":
		var req recordsRequest
		if err := pcm.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		if req.To > c.RecordCount() || req.From >= req.To {
			return nil, pcm.Errorf(pcm.NotFound, "records %d to %d are not here", req.From, req.To)
		}
		if method == "tiles" {
			return c.tilePage(req)
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

// tilePage is some full tiles of level 0.
func (c *Cell) tilePage(req recordsRequest) ([]byte, error) {
	state := c.archive.current()
	if state.Gap != nil || req.From%tileWidth != 0 || req.To > state.Tiled {
		return nil, pcm.Errorf(pcm.Unavailable, "the hashes of records %d to %d are not here", req.From, req.To)
	}
	var page [][]byte
	for n := req.From / tileWidth; n < req.To/tileWidth && len(page) < pageTiles; n++ {
		tile, err := c.archive.tile(c.ctx, 0, n, tileWidth)
		if err != nil {
			return nil, err
		}
		page = append(page, tile)
	}
	return pcm.Marshal(page)
}
