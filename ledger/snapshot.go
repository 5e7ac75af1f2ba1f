package ledger

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"

	"github.com/jointcloud/pcm"
)

// snapshotVersion is what this release writes.
const snapshotVersion = 1

// snapshot is the encoded form of a State: hot state and Merkle frontier, no history.
type snapshot struct {
	Version  int                               `cbor:"1,keyasint"`
	Genesis  Genesis                           `cbor:"2,keyasint"`
	Stamp    int64                             `cbor:"3,keyasint"`
	Records  uint64                            `cbor:"4,keyasint"`
	Frontier [][]byte                          `cbor:"5,keyasint"`
	Due      int64                             `cbor:"6,keyasint"`
	Members  []*Member                         `cbor:"7,keyasint"`
	Pools    []pair[PoolKey, *Pool]            `cbor:"8,keyasint"`
	Jobs     []*Job                            `cbor:"9,keyasint"`
	Trades   []*Trade                          `cbor:"10,keyasint"`
	Balances []pair[BalanceKey, *Balance]      `cbor:"11,keyasint"`
	Burned   []pair[pcm.Digest, Burned]        `cbor:"12,keyasint"`
	Seen     []pair[pcm.CommandID, remembered] `cbor:"13,keyasint"`
	Granted  int64                             `cbor:"14,keyasint"`
	Voids    []pair[pcm.TradeID, int64]        `cbor:"15,keyasint,omitempty"`
	Nettings []pair[pcm.NettingID, int64]      `cbor:"16,keyasint,omitempty"`
	NetFloor int64                             `cbor:"17,keyasint,omitempty"`
	Settings []*Setting                        `cbor:"18,keyasint,omitempty"`
	Level    int                               `cbor:"19,keyasint,omitempty"`
	Netters  []pair[pcm.NettingID, parties]    `cbor:"20,keyasint,omitempty"`
	Base     *Base                             `cbor:"21,keyasint,omitempty"`
	Deputies []pair[DeputyKey, *Deputy]        `cbor:"22,keyasint,omitempty"`

	DeputyFloor int64 `cbor:"23,keyasint,omitempty"`
}

type pair[K, V any] struct {
	Key   K `cbor:"1,keyasint"`
	Value V `cbor:"2,keyasint"`
}

func pairs[K comparable, V any](m map[K]V, compare func(a, b K) int) []pair[K, V] {
	list := make([]pair[K, V], 0, len(m))
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		list = append(list, pair[K, V]{k, m[k]})
	}
	return list
}

func compareIDs(a, b pcm.CommandID) int { return bytes.Compare(a[:], b[:]) }

// Snapshot encodes the state. Equal states have equal snapshots.
func (s *State) Snapshot() ([]byte, error) { return pcm.Marshal(s.encoded()) }

func (s *State) encoded() snapshot {
	return snapshot{
		Version: snapshotVersion, Genesis: s.genesis, Stamp: s.stamp, Records: s.records,
		Frontier: s.tree.Hashes(), Due: s.due, Granted: s.granted,
		Members: s.Members(), Pools: pairs(s.pools, PoolKey.compare),
		Jobs: s.Jobs(), Trades: s.Trades(),
		Balances: pairs(s.balances, BalanceKey.compare),
		Burned:   pairs(s.burned, cmp.Compare[pcm.Digest]),
		Seen:     pairs(s.seen, compareIDs),
		Voids:    pairs(s.voids, cmp.Compare[pcm.TradeID]),
		Nettings: pairs(s.nettings, cmp.Compare[pcm.NettingID]), NetFloor: s.netFloor,
		Netters:  pairs(s.netters, cmp.Compare[pcm.NettingID]),
		Settings: byKey(s.settings, cmp.Compare[string]), Level: s.level, Base: s.base,
		Deputies: pairs(s.deputies, DeputyKey.compare), DeputyFloor: s.deputyFloor,
	}
}

// Digest is a hash over the whole state.
func (s *State) Digest() ([32]byte, error) {
	data, err := s.Snapshot()
	return sha256.Sum256(data), err
}

// Restore replaces the state by an encoded one of the same cell. On an error
// the state is as before.
func (s *State) Restore(data []byte) error {
	var in snapshot
	if err := pcm.UnmarshalLarge(data, &in); err != nil {
		return pcm.Errorf(pcm.Internal, "the snapshot is damaged: %w", err)
	}
	if in.Version != snapshotVersion {
		return pcm.Errorf(pcm.Invalid, "the snapshot is of version %d, this release reads %d: use the release that wrote it, or a newer one", in.Version, snapshotVersion)
	}
	if s.genesis.Cell != "" && in.Genesis.Cell != s.genesis.Cell {
		return pcm.Errorf(pcm.Invalid, "the snapshot is of %s, this is %s", in.Genesis.Cell, s.genesis.Cell)
	}
	tree, err := treeFactory.NewRange(0, in.Records, in.Frontier)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "the snapshot's Merkle frontier is damaged: %w", err)
	}
	if err := in.whole(); err != nil {
		return err
	}
	if in.Level > s.spoken() {
		return pcm.Errorf(pcm.Invalid, "%s is at level %d of the ledger's rules, this release speaks %d: update this peer", pcm.Short(in.Genesis.Cell), in.Level, s.spoken())
	}
	n := New(in.Genesis)
	n.speaks, n.level, n.netFloor, n.base = s.speaks, in.Level, in.NetFloor, in.Base
	n.stamp, n.records, n.tree, n.due, n.granted = in.Stamp, in.Records, tree, in.Due, in.Granted
	for _, m := range in.Members {
		n.members[m.Peer] = m
	}
	for _, p := range in.Pools {
		n.pools[p.Key] = p.Value
	}
	for _, j := range in.Jobs {
		n.jobs[j.ID] = j
		n.tasks += j.tasks()
		n.abroad += j.abroad()
	}
	for _, t := range in.Trades {
		n.trades[t.ID] = t
	}
	for _, b := range in.Balances {
		n.balances[b.Key] = b.Value
	}
	for _, b := range in.Burned {
		n.burned[b.Key] = b.Value
	}
	for _, v := range in.Voids {
		n.voids[v.Key] = v.Value
	}
	for _, x := range in.Nettings {
		n.nettings[x.Key] = x.Value
	}
	for _, x := range in.Netters {
		n.netters[x.Key] = x.Value
	}
	for _, x := range in.Settings {
		n.settings[x.Key] = x
	}
	for _, x := range in.Deputies {
		n.deputies[x.Key] = x.Value
	}
	n.deputyFloor = in.DeputyFloor
	for _, r := range in.Seen {
		n.seen[r.Key] = r.Value
		n.buckets[bucketOf(r.Value.NotAfter)] = append(n.buckets[bucketOf(r.Value.NotAfter)], r.Key)
	}
	if err := n.Check(); err != nil {
		return pcm.Errorf(pcm.Internal, "the snapshot breaks an invariant: %w", err)
	}
	*s = *n
	return nil
}

// whole tells whether everything is there that the state takes for granted: a
// snapshot may come from another peer.
func (in *snapshot) whole() error {
	damaged := func(part string) error {
		return pcm.Errorf(pcm.Internal, "the snapshot is damaged: its %s are not whole", part)
	}
	if slices.Contains(in.Members, nil) {
		return damaged("members")
	}
	for _, p := range in.Pools {
		if p.Value == nil {
			return damaged("pools")
		}
	}
	for _, b := range in.Balances {
		if b.Value == nil {
			return damaged("balances")
		}
	}
	for _, d := range in.Deputies {
		if d.Value == nil {
			return damaged("deputies")
		}
	}
	if slices.Contains(in.Settings, nil) {
		return damaged("settings")
	}
	for _, t := range in.Trades {
		if t == nil || !t.Terms.Tasks.Valid(pcm.MaxTasks) || t.Terms.Tasks.Len() != len(t.Attempts) || t.Terms.Width < 1 {
			return damaged("trades")
		}
	}
	for _, j := range in.Jobs {
		if j == nil {
			return damaged("jobs")
		}
		for _, p := range j.Places {
			if p.Step < 0 || p.Step >= len(j.Steps) || p.Terms != nil && (p.Terms.Step != p.Step || p.Terms.Trade() != p.Trade) {
				return damaged("jobs")
			}
		}
	}
	return nil
}
