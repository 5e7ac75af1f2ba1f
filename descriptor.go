package pcm

import (
	"slices"
	"time"
)

// Bounds of a cell's descriptor.
const (
	MaxDescriptor  = 8 << 10
	maxDescribed   = 9 // voters
	maxDescribedAt = 4 // addresses of each
)

// MaxDescriptorLife is how long a descriptor holds at most, ms: who has spoken for a
// cell once must not do so for ever.
const MaxDescriptorLife = int64(2 * 60 * 60 * 1000)

// Descriptor is what a cell tells the mesh of itself, signed by its leader. It is
// a hint to those outside: how to find the cell, and whether it takes newcomers.
// What binds is the cell's ledger. Of two of one cell the one of the higher term
// counts; within a term, the one of the higher number.
type Descriptor struct {
	Mesh       MeshID          `json:"mesh" cbor:"1,keyasint"`
	Cell       CellID          `json:"cell" cbor:"2,keyasint"`
	Name       string          `json:"name" cbor:"3,keyasint"` // for people; not unique
	Number     uint64          `json:"number" cbor:"4,keyasint"`
	Voters     []DescribedPeer `json:"voters" cbor:"5,keyasint"` // by peer
	Leader     PeerID          `json:"leader" cbor:"6,keyasint"` // who signs: one of Voters
	Term       uint64          `json:"term" cbor:"7,keyasint"`
	Members    int             `json:"members" cbor:"8,keyasint"`     // voters and replicas
	MaxMembers int             `json:"max_members" cbor:"9,keyasint"` // past it, newcomers are sent on
	Open       bool            `json:"open,omitempty" cbor:"10,keyasint,omitempty"`
	IssuedAt   int64           `json:"issued_at" cbor:"11,keyasint"` // Unix ms
	NotAfter   int64           `json:"not_after" cbor:"12,keyasint"` // Unix ms
}

// DescribedPeer is a voter in a descriptor.
type DescribedPeer struct {
	Peer    PeerID    `json:"peer" cbor:"1,keyasint"`
	Account AccountID `json:"account" cbor:"2,keyasint"`
	Addrs   []string  `json:"addrs,omitempty" cbor:"3,keyasint,omitempty"` // multiaddrs without /p2p/
}

// Newer tells whether d counts rather than o, a descriptor of the same cell.
func (d Descriptor) Newer(o Descriptor) bool {
	return d.Term > o.Term || d.Term == o.Term && d.Number > o.Number
}

// Room is how many newcomers the cell would still take: none if it is closed.
func (d Descriptor) Room() int {
	if !d.Open {
		return 0
	}
	return max(0, d.MaxMembers-d.Members)
}

// Silent tells whether the cell's leader should have been heard of again by now:
// half of the time for which the descriptor holds is over, which is several times
// as long as leaders wait.
func (d Descriptor) Silent(now time.Time) bool {
	return now.UnixMilli()-d.IssuedAt > (d.NotAfter-d.IssuedAt)/2
}

// Votes tells whether a peer is one of the cell's voters.
func (d Descriptor) Votes(id PeerID) bool {
	return slices.ContainsFunc(d.Voters, func(v DescribedPeer) bool { return v.Peer == id })
}

// Clip leaves out of a descriptor what is over its bounds: addresses beyond the
// first few of each voter.
func (d *Descriptor) Clip() {
	for i := range d.Voters {
		v := &d.Voters[i]
		v.Addrs = v.Addrs[:min(len(v.Addrs), maxDescribedAt)]
	}
}

// OpenDescriptor checks signature, size, signer, form and validity at now. Whether
// the signer leads the cell, only the cell knows.
func OpenDescriptor(s Signed, now time.Time) (Descriptor, error) {
	var d Descriptor
	if len(s.Payload) > MaxDescriptor {
		return d, Errorf(TooLarge, "descriptor of %d bytes is over the bound of %d", len(s.Payload), MaxDescriptor)
	}
	if err := s.Open(DomainCell, &d); err != nil {
		return d, err
	}
	if string(d.Leader.Public()) != string(s.Signer) {
		return d, Errorf(Unauthorized, "the descriptor of %.40q is signed by another than the leader that it names, %s", d.Cell, Short(d.Leader))
	}
	if !d.Mesh.Valid() || !d.Cell.Valid() || len(d.Name) > 63 || !Printable(d.Name) || len(d.Voters) == 0 || len(d.Voters) > maxDescribed ||
		d.Members < len(d.Voters) || d.MaxMembers < 0 || d.NotAfter < d.IssuedAt || d.NotAfter-d.IssuedAt > MaxDescriptorLife {
		return d, Errorf(Invalid, "the descriptor by %s is malformed or over its bounds", Short(d.Leader))
	}
	for i, v := range d.Voters {
		if len(v.Peer.Public()) == 0 || len(v.Account.Public()) == 0 || i > 0 && d.Voters[i-1].Peer >= v.Peer || len(v.Addrs) > maxDescribedAt {
			return d, Errorf(Invalid, "the descriptor of %s names voters out of order, twice, or in a wrong form", d.Cell)
		}
		for _, a := range v.Addrs {
			if len(a) > 256 || !Printable(a) {
				return d, Errorf(Invalid, "the descriptor of %s has an address that is none", d.Cell)
			}
		}
	}
	if !d.Votes(d.Leader) {
		return d, Errorf(Invalid, "the descriptor of %s is signed by %s, who is none of its voters", d.Cell, Short(d.Leader))
	}
	if now.Add(Skew).UnixMilli() < d.IssuedAt || now.Add(-Skew).UnixMilli() > d.NotAfter {
		return d, Errorf(Invalid, "descriptor %d of %s is not valid now: it expired or one clock is wrong", d.Number, d.Cell)
	}
	return d, nil
}
