package ledger

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"slices"

	"github.com/jointcloud/pcm"
)

// Verdict is what Verify found.
type Verdict struct {
	Records    uint64
	Signatures int
	Root       [32]byte
	Bad        *uint64 // number of the first bad record; nil if none
	Problem    string  // what is wrong with it
}

// Checks says what Verify checks, for people.
var Checks = []string{
	"records are numbered without gaps and hash to the Merkle root",
	"every signature, over the exact bytes",
	"every transition: replaying the commands makes the same records, byte for byte",
	"what time alone made follows from earlier records",
	"at most one live attempt and one accepted result for each task; nothing paid twice",
	"reserved ≤ declared for every pool; holds match open trades; balances sum to zero",
}

const verifyBatch = 512

// Verify replays a cell's records from its founding and checks everything that
// follows from them. The state that it comes to is returned, to be compared with
// the one that a peer holds. It stops at the first bad record. Slices that records
// yields are kept for a while: an iterator must not write to them again.
func Verify(g Genesis, records iter.Seq2[[]byte, error]) (Verdict, *State) {
	return New(g).Verify(records)
}

// Verify is [Verify] of the records that follow on a state of [OpenBase], which it
// changes: the first is the one that tells of that base.
func (s *State) Verify(records iter.Seq2[[]byte, error]) (Verdict, *State) {
	var v Verdict
	bad := func(n uint64, format string, args ...any) (Verdict, *State) {
		v.Bad, v.Problem = &n, fmt.Sprintf(format, args...)
		v.Records, v.Root = s.Root()
		return v, s
	}
	var leaves [][]byte
	flush := func() (uint64, error) {
		n, err := s.verifyBatch(leaves, &v)
		leaves = leaves[:0]
		return n, err
	}
	for leaf, err := range records {
		if err != nil {
			if n, earlier := flush(); earlier != nil {
				return bad(n, "%v", earlier)
			}
			return bad(s.records, "can't be read: %v", err)
		}
		if leaves = append(leaves, leaf); len(leaves) == verifyBatch {
			if n, err := flush(); err != nil {
				return bad(n, "%v", err)
			}
		}
	}
	if n, err := flush(); err != nil {
		return bad(n, "%v", err)
	}
	v.Records, v.Root = s.Root()
	return v, s
}

// verifyBatch checks the signatures of some records together and replays them.
// With an error comes the number of the first bad record.
func (s *State) verifyBatch(leaves [][]byte, v *Verdict) (uint64, error) {
	list := make([]pcm.Record, len(leaves))
	var signed []pcm.Signed
	var numbers []uint64
	var damaged error
	for i, leaf := range leaves {
		if damaged = pcm.Unmarshal(leaf, &list[i]); damaged != nil {
			list = list[:i] // those before it come first
			break
		}
		if c := list[i].Command; c != nil {
			signed, numbers = append(signed, *c), append(numbers, s.records+uint64(i))
		}
	}
	forged := uint64(1) << 63
	for i, ok := range pcm.VerifyBatch(pcm.DomainCommand, signed) {
		if !ok {
			forged = numbers[i]
			break
		}
		v.Signatures++
	}
	for i, r := range list {
		n := s.records
		if n == forged {
			return n, pcm.Errorf(pcm.Unauthorized, "its signature is not valid")
		}
		if err := s.replay(r, leaves[i]); err != nil {
			return n, err
		}
	}
	if damaged != nil {
		return s.records, damaged
	}
	if err := s.Check(); err != nil {
		return s.records - 1, err
	}
	return 0, nil
}

// replay applies what a record says and demands that the same record results.
func (s *State) replay(r pcm.Record, leaf []byte) error {
	if r.Number != s.records {
		return pcm.Errorf(pcm.Invalid, "it is numbered %d, expected %d", r.Number, s.records)
	}
	if r.Stamp < s.stamp {
		return pcm.Errorf(pcm.Invalid, "its log time %d is before that of an earlier record, %d", r.Stamp, s.stamp)
	}
	e := pcm.Entry{Version: pcm.EntryVersion, Stamp: r.Stamp, Wall: r.Wall, NewTerm: r.NewTerm}
	if r.Command != nil {
		e.Commands = []pcm.Signed{*r.Command}
	}
	effects := s.Apply(r.Index, e)
	if len(effects.Records) != 1 || !bytes.Equal(effects.Records[0], leaf) {
		why := "replaying it makes another record"
		for _, res := range effects.Results {
			if err := res.First(); err != nil {
				why = fmt.Sprintf("its command does not follow from earlier records (%v)", err)
			}
		}
		return pcm.Errorf(pcm.Invalid, "%s", why)
	}
	return nil
}

// SameAs compares the parts of two states that follow from records: jobs,
// trades, pools and balances. It names the first difference.
func (s *State) SameAs(o *State) error {
	for _, part := range []struct {
		name string
		a, b any
	}{
		{"jobs", s.Jobs(), o.Jobs()},
		{"trades", s.Trades(), o.Trades()},
		{"pools", pairs(s.pools, PoolKey.compare), pairs(o.pools, PoolKey.compare)},
		{"balances", pairs(s.balances, BalanceKey.compare), pairs(o.balances, BalanceKey.compare)},
		{"note keys", s.NoteKeys(), o.NoteKeys()},
		{"nettings", pairs(s.nettings, cmp.Compare[pcm.NettingID]), pairs(o.nettings, cmp.Compare[pcm.NettingID])},
		{"settings", byKey(s.settings, cmp.Compare[string]), byKey(o.settings, cmp.Compare[string])},
		{"deputies", pairs(s.deputies, DeputyKey.compare), pairs(o.deputies, DeputyKey.compare)},
		{"rules' levels", s.Level(), o.Level()},
		{"used tokens", pairs(s.burned, cmp.Compare[pcm.Digest]), pairs(o.burned, cmp.Compare[pcm.Digest])},
	} {
		if !slices.Equal(pcm.MustMarshal(part.a), pcm.MustMarshal(part.b)) {
			return pcm.Errorf(pcm.Internal, "the %s that this peer holds are not those that follow from the records", part.name)
		}
	}
	return nil
}
