package ledger

import (
	"bytes"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// baseLevel is the level of the rules from which on there are bases.
const baseLevel = 3

// Base is the last base that the ledger has, from which its records can be verified.
type Base struct {
	Size  uint64 `cbor:"1,keyasint"` // records before it
	Stamp int64  `cbor:"2,keyasint"` // log time when it was made, ms
}

// Base is the last base; the zero value if there is none.
func (s *State) Base() Base {
	if s.base == nil {
		return Base{}
	}
	return *s.base
}

// BaseDue is the log time at which the next base may be made; never, if records
// are kept for ever.
func (s *State) BaseDue() (stamp int64, ok bool) {
	keep := s.Keep()
	if keep == 0 || s.Level() < baseLevel {
		return 0, false
	}
	if s.base == nil {
		return s.stamp, true
	}
	return s.base.Stamp + pcm.BaseGap(keep).Milliseconds(), true
}

// makeBase writes down what the records so far come to.
func (a *applying) makeBase(op *pcm.Base) error {
	last := a.Base()
	due, ok := a.BaseDue()
	switch {
	case a.nth > 0:
		return pcm.Errorf(pcm.Invalid, "a base begins its command, as it is of the records before it")
	case len(a.by.NoteKey) == 0:
		return pcm.Errorf(pcm.Forbidden, "peer %s is no voter of %s: those make bases", pcm.Short(a.by.Peer), pcm.Short(a.genesis.Cell))
	case !ok:
		return pcm.Errorf(pcm.Refused, "%s keeps all records: it needs no base", pcm.Short(a.genesis.Cell))
	case op.Last != last.Size:
		return pcm.Errorf(pcm.Conflict, "the last base of %s is of %d records, not of %d", pcm.Short(a.genesis.Cell), last.Size, op.Last)
	case a.stamp < due:
		return pcm.Errorf(pcm.Conflict, "the last base of %s is %s old: the next one may follow in %s", pcm.Short(a.genesis.Cell), time.Duration(a.stamp-last.Stamp)*time.Millisecond, time.Duration(due-a.stamp)*time.Millisecond)
	}
	state, err := a.recorded()
	if err != nil {
		return pcm.Errorf(pcm.Internal, "the state can't be encoded: %w", err)
	}
	sum := sha256.Sum256(state)
	based := pcm.Based{Size: a.records, Digest: sum[:]}
	a.base = &Base{a.records, a.stamp}
	a.facts = append(a.facts, pcm.Fact{Based: &based})
	a.effects.Base = &pcm.BaseState{Based: based, Stamp: a.stamp, State: state}
	return nil
}

// recorded encodes what of the state follows from the records alone, so that all
// who replay them come to the same bytes, whatever else was proposed meanwhile. It
// is a snapshot that can be restored to go on from.
func (s *State) recorded() ([]byte, error) {
	in := s.encoded()
	in.Genesis.Name = "" // no record tells it
	// Whatever was due has just expired, so nothing is due before the next moment. When the
	// cell looks next is no part of what the records say, and answers have words that
	// another release, which verifies the base, has not.
	in.Due = s.stamp + 1
	seen := map[pcm.PeerID]int{}
	in.Seen = slices.DeleteFunc(in.Seen, func(p pair[pcm.CommandID, remembered]) bool { return !p.Value.Recorded })
	for i := range in.Seen {
		in.Seen[i].Value.Result = pcm.CommandResult{}
		seen[in.Seen[i].Value.Peer]++
	}
	heard := s.heard(in.Trades, in.Jobs)
	for i, m := range in.Members {
		c := *m
		c.Seen = seen[m.Peer]
		if !heard[m.Peer] {
			c.RenewedAt = 0
		}
		in.Members[i] = &c
	}
	return pcm.Marshal(in)
}

// heard are the peers whose last renewal something depends on: a lease or a term that
// began before it. Other renewals leave no record.
func (s *State) heard(trades []*Trade, jobs []*Job) map[pcm.PeerID]bool {
	heard := map[pcm.PeerID]bool{}
	since := func(peer pcm.PeerID, at int64) {
		if m := s.members[peer]; m != nil && m.RenewedAt > at {
			heard[peer] = true
		}
	}
	for _, t := range trades {
		if t.Live > 0 {
			since(t.Terms.Seller, t.AwardedAt)
		}
	}
	for _, j := range jobs {
		if j.EndedAt == 0 {
			since(j.Driver, j.DrivenAt)
		}
	}
	return heard
}

// OpenBase is the state of a base, from the record that tells of it and its
// encoded state, which nobody needs to trust but for that record.
func OpenBase(g Genesis, record, state []byte) (*State, error) {
	based, ok := pcm.BaseOf(record)
	if !ok {
		return nil, pcm.Errorf(pcm.Invalid, "the record tells of no base")
	}
	if sum := sha256.Sum256(state); !bytes.Equal(sum[:], based.Digest) {
		return nil, pcm.Errorf(pcm.Invalid, "the state of the base of %d records has digest %x, the ledger says %x", based.Size, sum, based.Digest)
	}
	s := New(g)
	if err := s.Restore(state); err != nil {
		return nil, err
	}
	if s.records != based.Size {
		return nil, pcm.Errorf(pcm.Invalid, "the state of the base of %d records is one of %d", based.Size, s.records)
	}
	return s, nil
}
