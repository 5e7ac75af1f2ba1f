package mesh

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
)

// Row is one seller's offer as this peer has it.
type Row struct {
	Offer      pcm.Offer
	Signed     pcm.Signed
	Passport   pcm.Passport // of the seller
	Source     pcm.PeerID   // who sent it here; this peer itself for its own
	ReceivedAt time.Time
}

// announcement is what gossip carries and what peers pull from each other: an
// offer with the passport of who signed it, so that a peer that never met the
// seller can check it; or a revocation.
type announcement struct {
	Offer      *pcm.Signed `cbor:"1,keyasint,omitempty"`
	Passport   *pcm.Signed `cbor:"2,keyasint,omitempty"`
	Revocation *pcm.Signed `cbor:"3,keyasint,omitempty"`
}

// bookSum identifies a book's contents: the XOR of a hash of each (peer, number).
// It only spares needless pulls; nothing is trusted because of it.
type bookSum [16]byte

func (b *bookSum) toggle(p pcm.PeerID, number uint64) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(p), number))
	for i := range b {
		b[i] ^= sum[i]
	}
}

// book is the offers of the mesh, at most maxBook, the latest of each seller.
type book struct {
	mu      sync.Mutex
	rows    map[pcm.PeerID]*bookRow
	sum     bookSum
	changed chan struct{} // closed and replaced at each change
}

type bookRow struct {
	Row
	passport pcm.Signed
}

func newBook() *book {
	return &book{rows: map[pcm.PeerID]*bookRow{}, changed: make(chan struct{})}
}

func (b *book) signalLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (b *book) digest() bookSum {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sum
}

func (b *book) changes() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// number is that of the latest offer of p; 0 if none.
func (b *book) number(p pcm.PeerID) uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.rows[p]; r != nil {
		return r.Offer.Number
	}
	return 0
}

// samePassport returns the checked passport of p if signed is the one that came with its last offer.
func (b *book) samePassport(p pcm.PeerID, signed pcm.Signed) (pcm.Passport, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rows[p]
	if r == nil || !r.passport.Equal(signed) {
		return pcm.Passport{}, false
	}
	return r.Passport, true
}

// put keeps a checked offer if it is newer than what is known. full tells that there is no room for another seller.
func (b *book) put(row Row, passport pcm.Signed) (added, full bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.rows[row.Offer.Peer]
	if old != nil && old.Offer.Number >= row.Offer.Number {
		return false, false
	}
	if old == nil && len(b.rows) >= maxBook {
		return false, true
	}
	if old != nil {
		b.sum.toggle(row.Offer.Peer, old.Offer.Number)
	}
	b.sum.toggle(row.Offer.Peer, row.Offer.Number)
	b.rows[row.Offer.Peer] = &bookRow{row, passport}
	b.signalLocked()
	return true, false
}

// drop removes the rows for which gone returns true.
func (b *book) drop(gone func(Row) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.rows)
	maps.DeleteFunc(b.rows, func(p pcm.PeerID, r *bookRow) bool {
		if !gone(r.Row) {
			return false
		}
		b.sum.toggle(p, r.Offer.Number)
		return true
	})
	if len(b.rows) != before {
		b.signalLocked()
	}
}

// list returns the rows that are valid at now, ordered by peer.
func (b *book) list(now time.Time) []Row {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Row, 0, len(b.rows))
	for _, r := range b.rows {
		if now.UnixMilli() <= r.Offer.NotAfter {
			out = append(out, r.Row)
		}
	}
	slices.SortFunc(out, func(a, b Row) int { return strings.Compare(string(a.Offer.Peer), string(b.Offer.Peer)) })
	return out
}

// have is the (peer, number) digest of the book.
func (b *book) have() []haveRow {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]haveRow, 0, len(b.rows))
	for p, r := range b.rows {
		out = append(out, haveRow{p, r.Offer.Number})
	}
	return out
}

// newer returns announcements that who has the given rows lacks, up to limit
// bytes, and whether that was all.
func (b *book) newer(have map[pcm.PeerID]uint64, now time.Time, limit int) (out []announcement, all bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := 0
	for p, r := range b.rows {
		if n, ok := have[p]; ok && n >= r.Offer.Number || now.UnixMilli() > r.Offer.NotAfter {
			continue
		}
		size += len(r.Signed.Payload) + len(r.passport.Payload) + 256
		if size > limit {
			return out, false
		}
		offer, passport := r.Signed, r.passport
		out = append(out, announcement{Offer: &offer, Passport: &passport})
	}
	return out, true
}
