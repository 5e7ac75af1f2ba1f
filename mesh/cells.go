package mesh

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
)

// maxCells bounds the cells that a peer knows of.
const maxCells = 1024

// CellRow is a cell's descriptor as this peer has it.
type CellRow struct {
	Descriptor pcm.Descriptor
	Signed     pcm.Signed
	Passport   pcm.Passport // of the leader who signed it
	Source     pcm.PeerID   // who sent it here; this peer itself for its own
	ReceivedAt time.Time
}

// cellNews is a descriptor with the passport of who signed it: what gossip carries
// and what peers pull from each other.
type cellNews struct {
	Descriptor pcm.Signed `cbor:"1,keyasint"`
	Passport   pcm.Signed `cbor:"2,keyasint"`
}

func decodeCellNews(data []byte) (cellNews, error) {
	var n cellNews
	if len(data) > maxAnnouncement {
		return n, pcm.Errorf(pcm.TooLarge, "a cell's news of %d bytes is over the bound of %d", len(data), maxAnnouncement)
	}
	return n, pcm.Unmarshal(data, &n)
}

// cellBook is the cells of the mesh, at most maxCells, the latest descriptor of each.
type cellBook struct {
	mu      sync.Mutex
	rows    map[pcm.CellID]*knownCell
	sum     bookSum
	changed chan struct{} // closed and replaced at each change
}

type knownCell struct {
	CellRow
	passport pcm.Signed
}

func newCellBook() *cellBook {
	return &cellBook{rows: map[pcm.CellID]*knownCell{}, changed: make(chan struct{})}
}

func (b *bookSum) toggleCell(d pcm.Descriptor) {
	key := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte(d.Cell), d.Term), d.Number)
	sum := sha256.Sum256(key)
	for i := range b {
		b[i] ^= sum[i]
	}
}

func (b *cellBook) signalLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// news tells whether a descriptor is worth being checked: it is newer than what is
// known of its cell, and by a peer that was one of the cell's voters, as long as
// what is known still holds. So a stranger can't speak for a cell that is known. Nor
// can a peer speak for two cells, and fill the book: it is in one.
func (b *cellBook) news(d pcm.Descriptor, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newsLocked(d, now)
}

func (b *cellBook) newsLocked(d pcm.Descriptor, now time.Time) bool {
	if o := b.ledByLocked(d.Leader); o != nil && o.Cell != d.Cell && !laterCell(d, *o) && now.UnixMilli() <= o.NotAfter {
		return false
	}
	old := b.rows[d.Cell]
	return old == nil || now.UnixMilli() > old.Descriptor.NotAfter || d.Newer(old.Descriptor) && old.Descriptor.Votes(d.Leader)
}

// ledByLocked is the descriptor that a peer has signed; nil if none is here.
func (b *cellBook) ledByLocked(leader pcm.PeerID) *pcm.Descriptor {
	for _, r := range b.rows {
		if r.Descriptor.Leader == leader {
			return &r.Descriptor
		}
	}
	return nil
}

// laterCell tells whether d is of the cell that its leader went to after o's.
func laterCell(d, o pcm.Descriptor) bool {
	return d.IssuedAt > o.IssuedAt || d.IssuedAt == o.IssuedAt && d.Cell > o.Cell
}

// put keeps a checked descriptor. own ones are kept whatever is known: this peer
// leads that cell.
func (b *cellBook) put(row CellRow, passport pcm.Signed, own bool) (added, full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !own && !b.newsLocked(row.Descriptor, row.ReceivedAt) {
		return false, false
	}
	if left := b.ledByLocked(row.Descriptor.Leader); left != nil && left.Cell != row.Descriptor.Cell {
		b.sum.toggleCell(*left)
		delete(b.rows, left.Cell)
	}
	old := b.rows[row.Descriptor.Cell]
	switch {
	case old == nil && len(b.rows) >= maxCells:
		return false, true
	case old != nil:
		b.sum.toggleCell(old.Descriptor)
	}
	b.sum.toggleCell(row.Descriptor)
	b.rows[row.Descriptor.Cell] = &knownCell{row, passport}
	b.signalLocked()
	return true, false
}

// samePassport returns the checked passport of a leader if signed is the one that
// came with the last descriptor of its cell.
func (b *cellBook) samePassport(cell pcm.CellID, signed pcm.Signed) (pcm.Passport, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rows[cell]
	if r == nil || !r.passport.Equal(signed) {
		return pcm.Passport{}, false
	}
	return r.Passport, true
}

// drop forgets cells of which nothing was heard for too long.
func (b *cellBook) drop(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.rows)
	maps.DeleteFunc(b.rows, func(_ pcm.CellID, r *knownCell) bool {
		gone := now.Add(-pcm.Skew).UnixMilli() > r.Descriptor.NotAfter
		if gone {
			b.sum.toggleCell(r.Descriptor)
		}
		return gone
	})
	if len(b.rows) != before {
		b.signalLocked()
	}
}

func (b *cellBook) list(now time.Time) []CellRow {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]CellRow, 0, len(b.rows))
	for _, r := range b.rows {
		if now.UnixMilli() <= r.Descriptor.NotAfter {
			out = append(out, r.CellRow)
		}
	}
	slices.SortFunc(out, func(a, b CellRow) int { return strings.Compare(string(a.Descriptor.Cell), string(b.Descriptor.Cell)) })
	return out
}

func (b *cellBook) digest() bookSum {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sum
}

func (b *cellBook) have() []haveCell {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]haveCell, 0, len(b.rows))
	for id, r := range b.rows {
		out = append(out, haveCell{id, r.Descriptor.Term, r.Descriptor.Number})
	}
	return out
}

// newer returns what who has the given rows lacks, up to limit bytes, and whether that was all.
func (b *cellBook) newer(have map[pcm.CellID]haveCell, now time.Time, limit int) (out []cellNews, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := 0
	for id, r := range b.rows {
		h, ok := have[id]
		if ok && !r.Descriptor.Newer(pcm.Descriptor{Term: h.Term, Number: h.Number}) || now.UnixMilli() > r.Descriptor.NotAfter {
			continue
		}
		size += len(r.Signed.Payload) + len(r.passport.Payload) + 256
		if size > limit {
			return out, false
		}
		out = append(out, cellNews{r.Signed, r.passport})
	}
	return out, true
}

// Cells is what this peer knows of the mesh's cells: the latest valid descriptor
// of each, ordered by ID. They are hints.
func (m *Mesh) Cells() []CellRow { return m.cells.list(m.cfg.Now()) }

// CellsChanged returns a channel that is closed at the next change of Cells.
func (m *Mesh) CellsChanged() <-chan struct{} {
	m.cells.mu.Lock()
	defer m.cells.mu.Unlock()
	return m.cells.changed
}

// PublishCell tells the mesh of the cell that this peer leads.
func (m *Mesh) PublishCell(descriptor pcm.Signed) error {
	now := m.cfg.Now()
	d, err := pcm.OpenDescriptor(descriptor, now)
	if err != nil {
		return err
	}
	own, signed := m.Own(), m.Signed()
	if d.Leader != own.Peer || d.Mesh != own.Mesh {
		return pcm.Errorf(pcm.Invalid, "the descriptor of %s is by %s in %s; only this peer's own can be published here", d.Cell, pcm.Short(d.Leader), d.Mesh)
	}
	data := pcm.MustMarshal(cellNews{descriptor, signed})
	if len(data) > maxAnnouncement {
		return pcm.Errorf(pcm.TooLarge, "descriptor and passport take %d bytes, over the bound of %d", len(data), maxAnnouncement)
	}
	if _, full := m.cells.put(CellRow{d, descriptor, own, own.Peer, now}, signed, true); full {
		return pcm.Errorf(pcm.Busy, "%d cells are known, which is the bound", maxCells)
	}
	if err := m.cellTopic.Publish(m.ctx, data); err != nil {
		return pcm.Errorf(pcm.Unavailable, "can't publish: %w", err)
	}
	return nil
}

// validateCell judges one gossip message about a cell, as validate does offers.
func (m *Mesh) validateCell(_ context.Context, from peer.ID, msg *pubsub.Message) pubsub.ValidationResult {
	if from == m.self {
		return pubsub.ValidationAccept
	}
	n, err := decodeCellNews(msg.GetData())
	if err == nil {
		err = m.acceptCell(n, pcm.PeerID(from.String()), true)
	}
	return m.verdictOn(from, err)
}

// acceptCell checks a descriptor with its passport and puts it into the book. It
// returns nil when it was news, an error wrapping errNotNews when it was not,
// another error when it is forged or malformed.
func (m *Mesh) acceptCell(n cellNews, source pcm.PeerID, limited bool) error {
	now := m.cfg.Now()
	var claim pcm.Descriptor
	if len(n.Descriptor.Payload) > pcm.MaxDescriptor {
		return pcm.Errorf(pcm.TooLarge, "descriptor of %d bytes is over the bound of %d", len(n.Descriptor.Payload), pcm.MaxDescriptor)
	}
	if err := pcm.Unmarshal(n.Descriptor.Payload, &claim); err != nil {
		return err
	}
	if !m.cells.news(claim, now) {
		return errNotNews // before any signature is checked: most duplicates end here
	}
	d, err := pcm.OpenDescriptor(n.Descriptor, now)
	if err != nil {
		if n.Descriptor.Verify(pcm.DomainCell) && outOfTime(claim.IssuedAt, claim.NotAfter, now) {
			return errors.Join(errNotNews, err)
		}
		return err
	}
	passport, ok := m.cells.samePassport(d.Cell, n.Passport)
	if !ok {
		if passport, err = pcm.OpenPassport(n.Passport, m.cfg.Root, now); err != nil {
			if n.Passport.Verify(pcm.DomainPassport) && outOfTime(passport.IssuedAt, passport.NotAfter, now) {
				return errors.Join(errNotNews, err)
			}
			return err
		}
	}
	i := slices.IndexFunc(d.Voters, func(v pcm.DescribedPeer) bool { return v.Peer == d.Leader })
	if d.Mesh != m.cfg.Mesh || d.Leader != passport.Peer || d.Voters[i].Account != passport.Account {
		return pcm.Errorf(pcm.Unauthorized, "the descriptor of %s does not match its passport's mesh, peer or account", d.Cell)
	}
	if err := m.stillValid(passport); err != nil {
		return errors.Join(errNotNews, err)
	}
	if limited && !m.cellRate.allow(d.Leader, time.Now()) {
		return errNotNews
	}
	added, full := m.cells.put(CellRow{d, n.Descriptor, passport, source, now}, n.Passport, false)
	if full {
		m.log.Warn("the book of cells is full", "bound", maxCells, "cell", d.Cell)
	}
	if !added {
		return errNotNews
	}
	m.roster.learnPassport(passport, n.Passport)
	var where []peerAddrs
	for _, v := range d.Voters {
		where = append(where, peerAddrs{v.Peer, v.Addrs})
	}
	m.roster.hearsay(m.self, where)
	return nil
}

// Anti-entropy of the book of cells: as that of offers, see sync.go.

type haveCell struct {
	Cell   pcm.CellID `cbor:"1,keyasint"`
	Term   uint64     `cbor:"2,keyasint"`
	Number uint64     `cbor:"3,keyasint"`
}

type cellsRequest struct {
	Sum  bookSum    `cbor:"1,keyasint"`
	Full bool       `cbor:"2,keyasint,omitempty"` // Have is all that the asker has; else only Sum is compared
	Have []haveCell `cbor:"3,keyasint,omitempty"`
}

type cellsReply struct {
	Sum   bookSum    `cbor:"1,keyasint"`
	Cells []cellNews `cbor:"2,keyasint,omitempty"`
	More  bool       `cbor:"3,keyasint,omitempty"`
}

func (m *Mesh) serveCells(_ context.Context, _ pcm.Passport, req []byte) ([]byte, error) {
	var r cellsRequest
	if err := pcm.Unmarshal(req, &r); err != nil {
		return nil, err
	}
	if len(r.Have) > maxCells {
		return nil, pcm.Errorf(pcm.TooLarge, "%d cells are over the bound of %d", len(r.Have), maxCells)
	}
	reply := cellsReply{Sum: m.cells.digest()}
	if r.Full && r.Sum != reply.Sum {
		have := make(map[pcm.CellID]haveCell, len(r.Have))
		for _, h := range r.Have {
			have[h.Cell] = h
		}
		var all bool
		reply.Cells, all = m.cells.newer(have, m.cfg.Now(), pullBytes)
		reply.More = !all
	}
	return pcm.Marshal(reply)
}

// compareCells brings this peer's book of cells up to a neighbour's. Peers of
// releases with one cell a mesh have none.
func (m *Mesh) compareCells(p peer.ID) {
	ctx, cancel := context.WithTimeout(m.ctx, pullTimeout)
	defer cancel()
	ask := func(r cellsRequest) (reply cellsReply, err error) {
		resp, err := m.Call(ctx, pcm.PeerID(p.String()), ProtoCells, pcm.MustMarshal(r))
		if err == nil {
			err = pcm.Unmarshal(resp, &reply)
		}
		return reply, err
	}
	reply, err := ask(cellsRequest{Sum: m.cells.digest()})
	for range pullRounds {
		if err != nil || reply.Sum == m.cells.digest() {
			return
		}
		if reply, err = ask(cellsRequest{Sum: m.cells.digest(), Full: true, Have: m.cells.have()}); err != nil {
			return
		}
		news := 0
		for _, n := range reply.Cells {
			err := m.acceptCell(n, pcm.PeerID(p.String()), false)
			if err == nil {
				news++
			} else if !errors.Is(err, errNotNews) {
				m.log.Warn("comparing cells: a bad descriptor", "peer", short(p), "reason", err)
				return
			}
		}
		if !reply.More || news == 0 {
			return
		}
	}
}

// maxAskedCells bounds the neighbours that are asked at once.
const maxAskedCells = 16

// AskCells compares this peer's book of cells with those of its neighbours, at most
// until ctx ends.
func (m *Mesh) AskCells(ctx context.Context) {
	var wg sync.WaitGroup
	asked := 0
	for _, p := range m.Peers() {
		id, err := peer.Decode(string(p.Passport.Peer))
		if err != nil || !p.Connected || asked == maxAskedCells {
			continue
		}
		asked++
		wg.Go(func() { m.compareCells(id) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// AddrsOf is where a peer can be dialled, as far as is known, without /p2p/.
func (m *Mesh) AddrsOf(id pcm.PeerID) []string {
	p, err := peer.Decode(string(id))
	if err != nil {
		return nil
	}
	if p == m.self {
		return m.bareAddrs()
	}
	m.roster.mu.Lock()
	defer m.roster.mu.Unlock()
	var out []string
	if e := m.roster.peers[p]; e != nil {
		for _, a := range e.addrs {
			out = append(out, a.String())
		}
	}
	return out
}
