// Package ledger is the state machine of a cell: who may do what, who holds
// what, who owes whom. It is pure: it reads no clock, draws nothing at random,
// does no I/O and starts no goroutine, so that every replica that applies the
// same entries holds the same state.
package ledger

import (
	"cmp"
	"maps"
	"slices"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// Genesis is what a cell is founded with; it never changes.
type Genesis struct {
	Mesh pcm.MeshID `cbor:"1,keyasint"`
	Root []byte     `cbor:"2,keyasint"` // the mesh's root public key
	Cell pcm.CellID `cbor:"3,keyasint"`
	Name string     `cbor:"4,keyasint"` // of the cell, for people
}

// State is the hot state of one cell: what is open, and what must be remembered
// to judge what comes. It is not safe for concurrent use: whoever drives it
// keeps reads apart from Apply.
type State struct {
	genesis Genesis
	stamp   int64  // log time of the last entry, ms
	records uint64 // records made so far
	tree    *compact.Range
	due     int64 // log time before which nothing expires: a lower bound
	granted int64 // log time at which a new leader last granted every lease anew
	tasks   int   // of all open jobs

	members  map[pcm.PeerID]*Member
	pools    map[PoolKey]*Pool
	jobs     map[pcm.JobID]*Job
	trades   map[pcm.TradeID]*Trade
	balances map[BalanceKey]*Balance
	burned   map[pcm.Digest]Burned
	seen     map[pcm.CommandID]remembered
	buckets  map[int64][]pcm.CommandID // IDs of seen by NotAfter, in steps of seenBucket

	voids    map[pcm.TradeID]int64     // trades abroad that are not to be awarded, by their AwardBy
	voidsDue int64                     // log time before which none of voids is past: a lower bound
	abroad   int                       // placements abroad of all jobs
	nettings map[pcm.NettingID]int64   // applied, by [pcm.Netting.Key], with their NotAfter, Unix ms
	netters  map[pcm.NettingID]parties // of those applied since level 3
	netFloor int64                     // nettings up to this NotAfter may have been forgotten
	settings map[string]*Setting

	deputies    map[DeputyKey]*Deputy // who act for buyers of other cells' jobs
	deputyFloor int64                 // mandates up to this NotAfter may have been forgotten

	base   *Base // the last one; nil: none
	level  int   // of the rules; 0: 1
	speaks int   // tests: level of an older release; 0: that of this one
}

var treeFactory = &compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}

// never is later than every stamp.
const never = int64(1) << 62

// New is the state of a newly founded cell.
func New(g Genesis) *State {
	return &State{
		genesis:  g,
		tree:     treeFactory.NewEmptyRange(0),
		due:      never,
		members:  map[pcm.PeerID]*Member{},
		pools:    map[PoolKey]*Pool{},
		jobs:     map[pcm.JobID]*Job{},
		trades:   map[pcm.TradeID]*Trade{},
		balances: map[BalanceKey]*Balance{},
		burned:   map[pcm.Digest]Burned{},
		seen:     map[pcm.CommandID]remembered{},
		buckets:  map[int64][]pcm.CommandID{},
		voids:    map[pcm.TradeID]int64{},
		nettings: map[pcm.NettingID]int64{},
		netters:  map[pcm.NettingID]parties{},
		settings: map[string]*Setting{},
		deputies: map[DeputyKey]*Deputy{},
	}
}

// Member is a peer that the cell knows.
type Member struct {
	Peer        pcm.PeerID    `cbor:"1,keyasint"`
	Account     pcm.AccountID `cbor:"2,keyasint"`
	Name        string        `cbor:"3,keyasint"`
	Labels      pcm.Labels    `cbor:"4,keyasint,omitempty"`
	NotAfter    int64         `cbor:"5,keyasint"` // of its passport, Unix ms
	RenewedAt   int64         `cbor:"6,keyasint"` // log time, ms
	Incarnation uint64        `cbor:"7,keyasint"`
	Offer       uint64        `cbor:"8,keyasint"`  // number of its current offer
	Credit      pcm.Micro     `cbor:"9,keyasint"`  // most that any one other account may owe it
	Live        int           `cbor:"10,keyasint"` // attempts that may be running there
	Drives      int           `cbor:"11,keyasint"` // open jobs that it drives
	Seen        int           `cbor:"12,keyasint"` // its command IDs that are remembered

	Tasks int `cbor:"14,keyasint"` // of the open jobs that it submitted

	NoteKey []byte `cbor:"13,keyasint,omitempty"` // with which it signs checkpoints; nil: it doesn't
}

// PoolKey names a pool within a cell.
type PoolKey struct {
	Peer pcm.PeerID `cbor:"1,keyasint"`
	Pool pcm.PoolID `cbor:"2,keyasint"`
}

func (k PoolKey) compare(o PoolKey) int {
	return cmp.Or(cmp.Compare(k.Peer, o.Peer), cmp.Compare(k.Pool, o.Pool))
}

// Pool is a declared pool and what is reserved of it.
type Pool struct {
	Pool     pcm.Pool      `cbor:"1,keyasint"`
	Offer    uint64        `cbor:"2,keyasint"`
	Closed   bool          `cbor:"3,keyasint"` // no longer declared: kept until its trades are closed
	Reserved pcm.Resources `cbor:"4,keyasint"`
	Slots    int           `cbor:"5,keyasint"` // reserved
	Shrunk   bool          `cbor:"6,keyasint"` // declared smaller than what was reserved: nothing is awarded until that has ended
}

// fits tells whether what is reserved is within what is declared.
func (p *Pool) fits() bool { return p.Reserved.Within(p.Pool.Capacity) && p.Slots <= p.Pool.Slots }

// Free is what can be awarded now, and how many attempts at once.
func (p *Pool) Free() (pcm.Resources, int) {
	if p.Closed || p.Shrunk {
		return pcm.Resources{}, 0
	}
	return p.Pool.Capacity.Minus(p.Reserved), p.Pool.Slots - p.Slots
}

// Burned is an invite that was used.
type Burned struct {
	Peer     pcm.PeerID `cbor:"1,keyasint"`
	NotAfter int64      `cbor:"2,keyasint"` // of the invite, Unix ms: forgotten some time later
}

// BalanceKey names a balance.
type BalanceKey struct {
	Buyer  pcm.AccountID `cbor:"1,keyasint"`
	Seller pcm.AccountID `cbor:"2,keyasint"`
	Unit   string        `cbor:"3,keyasint"`
}

func (k BalanceKey) compare(o BalanceKey) int {
	return cmp.Or(cmp.Compare(k.Buyer, o.Buyer), cmp.Compare(k.Seller, o.Seller), cmp.Compare(k.Unit, o.Unit))
}

// Balance is what a buyer owes a seller, and what it may come to owe.
type Balance struct {
	Owed pcm.Micro `cbor:"1,keyasint"`
	Held pcm.Micro `cbor:"2,keyasint"`
}

// Genesis is what the cell was founded with.
func (s *State) Genesis() Genesis { return s.genesis }

// Stamp is the log time of the last entry, ms.
func (s *State) Stamp() int64 { return s.stamp }

// Due tells whether something may expire at a log time, so that a tick is worth it.
func (s *State) Due(stamp int64) bool { return stamp >= s.due }

// Items is how many jobs, tasks and trades are open: to encode the state takes some
// microseconds for each.
func (s *State) Items() int { return len(s.jobs) + s.tasks + len(s.trades) }

// Root is the number of records and their RFC 6962 Merkle tree hash.
func (s *State) Root() (uint64, [32]byte) {
	var root [32]byte
	if s.records == 0 {
		copy(root[:], rfc6962.DefaultHasher.EmptyRoot())
		return 0, root
	}
	h, err := s.tree.GetRootHash(nil)
	if err != nil {
		panic(err) // the range always begins at 0
	}
	copy(root[:], h)
	return s.records, root
}

// Member looks a peer up.
func (s *State) Member(id pcm.PeerID) (*Member, bool) { m, ok := s.members[id]; return m, ok }

// Members are all peers that the cell knows, by ID.
func (s *State) Members() []*Member { return byKey(s.members, cmp.Compare[pcm.PeerID]) }

// Pool looks a pool up.
func (s *State) Pool(k PoolKey) (*Pool, bool) { p, ok := s.pools[k]; return p, ok }

// Job looks an open job up: one that has not ended, or that has unsettled trades.
func (s *State) Job(id pcm.JobID) (*Job, bool) { j, ok := s.jobs[id]; return j, ok }

// Jobs are all open jobs, by ID.
func (s *State) Jobs() []*Job { return byKey(s.jobs, cmp.Compare[pcm.JobID]) }

// Trade looks an open trade up.
func (s *State) Trade(id pcm.TradeID) (*Trade, bool) { t, ok := s.trades[id]; return t, ok }

// Trades are all open trades, by ID.
func (s *State) Trades() []*Trade { return byKey(s.trades, cmp.Compare[pcm.TradeID]) }

// Balances calls yield for every balance, by key.
func (s *State) Balances(yield func(BalanceKey, Balance) bool) {
	for _, k := range slices.SortedFunc(maps.Keys(s.balances), BalanceKey.compare) {
		if !yield(k, *s.balances[k]) {
			return
		}
	}
}

// byKey lists the values of a map in the order of its keys.
func byKey[K comparable, V any](m map[K]V, compare func(a, b K) int) []V {
	list := make([]V, 0, len(m))
	for _, k := range slices.SortedFunc(maps.Keys(m), compare) {
		list = append(list, m[k])
	}
	return list
}

// account is the account of a known peer; "" if unknown.
func (s *State) account(id pcm.PeerID) pcm.AccountID {
	if m, ok := s.members[id]; ok {
		return m.Account
	}
	return ""
}

// soon makes sure that expiry is looked at no later than at a log time.
func (s *State) soon(at int64) { s.due = min(s.due, at) }
