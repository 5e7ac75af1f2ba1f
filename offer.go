package pcm

import (
	"fmt"
	"slices"
	"time"
)

// Pool is a quantity of like resources that a peer sells through one adapter.
// It belongs to exactly one cell.
type Pool struct {
	ID       PoolID    `json:"id" cbor:"1,keyasint"`
	Adapter  string    `json:"adapter" cbor:"2,keyasint"` // e.g. "process"
	Class    string    `json:"class,omitempty" cbor:"3,keyasint,omitempty"`
	Capacity Resources `json:"capacity" cbor:"4,keyasint"`
	Slots    int       `json:"slots" cbor:"5,keyasint"` // attempts that may run at once
	Labels   Labels    `json:"labels,omitempty" cbor:"6,keyasint,omitempty"`
	Price    Price     `json:"price" cbor:"7,keyasint"`
	Sandbox  string    `json:"sandbox,omitempty" cbor:"8,keyasint,omitempty"`      // what keeps tasks in, e.g. "bubblewrap"; "none" if nothing
	OwnOnly  bool      `json:"own_only,omitempty" cbor:"9,keyasint,omitempty"`     // sold to the seller's own account only
	MaxTime  int64     `json:"max_time_ms,omitempty" cbor:"10,keyasint,omitempty"` // longest attempt, ms; 0: no bound of the pool's own
	Features []Feature `json:"features,omitempty" cbor:"11,keyasint,omitempty"`    // sorted; what tasks can be, and what can be done with them

	Accelerator *Accelerator `json:"accelerator,omitempty" cbor:"12,keyasint,omitempty"` // what the GPUs of its capacity are; nil: not stated
	Software    Software     `json:"software,omitempty" cbor:"13,keyasint,omitempty"`    // what is installed; what is missing isn't stated
	Network     *Network     `json:"network,omitempty" cbor:"14,keyasint,omitempty"`     // among its machines; nil: not stated

	// Tariffs are the other prices at which rules sell it. Whoever asks for one to
	// which the rules don't entitle is refused by the seller.
	Tariffs []Price `json:"tariffs,omitempty" cbor:"15,keyasint,omitempty"`

	// Largest is what one task may have at most, where that is less than the capacity:
	// of a pool of many machines, what the largest has. A part that is 0 isn't bounded by
	// it; nil: nothing is.
	Largest *Resources `json:"largest,omitempty" cbor:"16,keyasint,omitempty"`
	NoFiles bool       `json:"no_files,omitempty" cbor:"17,keyasint,omitempty"` // takes no inputs, gives no outputs back
}

// Most is what one task may have at most.
func (p Pool) Most() Resources {
	most := p.Capacity
	if l := p.Largest; l != nil {
		if l.CPU > 0 {
			most.CPU = min(most.CPU, l.CPU)
		}
		if l.Memory > 0 {
			most.Memory = min(most.Memory, l.Memory)
		}
		if l.GPU > 0 {
			most.GPU = min(most.GPU, l.GPU)
		}
		if l.Disk > 0 {
			most.Disk = min(most.Disk, l.Disk)
		}
	}
	return most
}

// Feature is something that a pool can do.
type Feature string

// The features. The first five are what a task can be, the others what can be
// done with one that runs.
const (
	FeatureCommand Feature = "command" // runs commands
	FeatureModule  Feature = "module"  // runs WebAssembly modules
	FeatureImage   Feature = "image"   // runs commands in container images that the spec names
	FeatureNetwork Feature = "network" // gives tasks the network, if they ask
	FeatureService Feature = "service" // runs services, and reaches their ports
	FeatureCopy    Feature = "copy"
	FeatureExec    Feature = "exec"
	FeatureSuspend Feature = "suspend"
)

// Has tells whether the pool has the feature. Pools of peers that know no
// features run modules if they are called wasm, else commands.
func (p Pool) Has(f Feature) bool {
	if len(p.Features) == 0 {
		return f == FeatureModule && p.Adapter == "wasm" || f == FeatureCommand && p.Adapter != "wasm"
	}
	return slices.Contains(p.Features, f)
}

const maxSlots = 1 << 20

// Validate checks the bounds.
func (p Pool) Validate() error {
	if !ValidName(string(p.ID)) {
		return Errorf(Invalid, "pool %q is not a name of lower-case letters, digits, dots and dashes", p.ID)
	}
	if !ValidName(p.Adapter) {
		return Errorf(Invalid, "pool %s: adapter %q is not a name", p.ID, p.Adapter)
	}
	if p.Class != "" && !ValidName(p.Class) {
		return Errorf(Invalid, "pool %s: class %q is not a name", p.ID, p.Class)
	}
	if p.Slots < 0 || p.Slots > maxSlots {
		return Errorf(Invalid, "pool %s: %d slots are out of range: 0 to %d", p.ID, p.Slots, maxSlots)
	}
	if len(p.Sandbox) > 63 || !Printable(p.Sandbox) || p.MaxTime < 0 {
		return Errorf(Invalid, "pool %s: sandbox or max_time_ms is out of range", p.ID)
	}
	if len(p.Features) > 32 || !slices.IsSorted(p.Features) || slices.ContainsFunc(p.Features, func(f Feature) bool { return !ValidName(string(f)) }) {
		return Errorf(Invalid, "pool %s: features are not at most 32 names in order", p.ID)
	}
	if err := p.Capacity.Validate(); err != nil {
		return Errorf(Invalid, "pool %s: %w", p.ID, err)
	}
	if p.Largest != nil {
		if err := p.Largest.Validate(); err != nil {
			return Errorf(Invalid, "pool %s: its largest task: %w", p.ID, err)
		}
	}
	if err := p.Labels.Validate(); err != nil {
		return Errorf(Invalid, "pool %s: %w", p.ID, err)
	}
	if p.Accelerator != nil {
		if err := p.Accelerator.Validate(); err != nil {
			return Errorf(Invalid, "pool %s: %w", p.ID, err)
		}
	}
	if err := p.Software.Validate(); err != nil {
		return Errorf(Invalid, "pool %s: %w", p.ID, err)
	}
	if p.Network != nil {
		if err := p.Network.Validate(); err != nil {
			return Errorf(Invalid, "pool %s: %w", p.ID, err)
		}
	}
	if len(p.Tariffs) > MaxTariffs {
		return Errorf(Invalid, "pool %s has %d tariffs: at most %d", p.ID, len(p.Tariffs), MaxTariffs)
	}
	for _, t := range p.Tariffs {
		if err := t.Validate(); err != nil || t.Unit != p.Price.Unit {
			return Errorf(Invalid, "pool %s: a tariff is out of range, or not in %s", p.ID, p.Price.Unit)
		}
	}
	return p.Price.Validate()
}

// MaxOffer bounds a signed offer: 8 KiB.
const MaxOffer = 8 << 10

// Offer is a provider's statement of what it sells. Offers are numbered: of two
// by one peer the higher number counts. They are soft state: what binds is the
// Capacity that the seller commits to its cell under the same number.
type Offer struct {
	Mesh     MeshID    `json:"mesh" cbor:"1,keyasint"`
	Cell     CellID    `json:"cell" cbor:"2,keyasint"` // where its pools' trades live
	Peer     PeerID    `json:"peer" cbor:"3,keyasint"`
	Account  AccountID `json:"account" cbor:"4,keyasint"`
	Name     string    `json:"name" cbor:"5,keyasint"`
	Number   uint64    `json:"number" cbor:"6,keyasint"`
	IssuedAt int64     `json:"issued_at" cbor:"7,keyasint"` // Unix ms
	NotAfter int64     `json:"not_after" cbor:"8,keyasint"` // Unix ms
	Labels   Labels    `json:"labels,omitempty" cbor:"9,keyasint,omitempty"`
	Pools    []Pool    `json:"pools" cbor:"10,keyasint"`
	Rules    []Rule    `json:"rules,omitempty" cbor:"11,keyasint,omitempty"` // on which it sells, as far as they are public
}

// CheckSize refuses an offer that is too large to be told to others, with code
// TooLarge: it names the pool that takes the most.
func (o Offer) CheckSize() error {
	size := len(MustMarshal(o))
	if size <= MaxOffer || len(o.Pools) == 0 {
		return nil
	}
	most, largest := 0, o.Pools[0].ID
	for _, p := range o.Pools {
		if n := len(MustMarshal(p)); n > most {
			most, largest = n, p.ID
		}
	}
	rules := ""
	if len(o.Rules) > 0 {
		rules = fmt.Sprintf("; its rules take %d", len(MustMarshal(o.Rules)))
	}
	return Errorf(TooLarge, "the offer of %d pools has %d bytes, over the bound of %d; pool %s takes the most, %d: shorten its labels or what is said of its software, or sell fewer pools%s",
		len(o.Pools), size, MaxOffer, largest, most, rules)
}

// OpenOffer checks signature, size, signer, form and validity at now.
func OpenOffer(s Signed, now time.Time) (Offer, error) {
	var o Offer
	if len(s.Payload) > MaxOffer {
		return o, Errorf(TooLarge, "offer of %d bytes is over the bound of %d", len(s.Payload), MaxOffer)
	}
	if err := s.Open(DomainOffer, &o); err != nil {
		return o, err
	}
	if string(o.Peer.Public()) != string(s.Signer) {
		return o, Errorf(Unauthorized, "offer of %s is signed by somebody else", Short(o.Peer))
	}
	if !o.Mesh.Valid() || !o.Cell.Valid() || len(o.Name) > 63 || !Printable(o.Name) || len(o.Pools) > 64 {
		return o, Errorf(Invalid, "offer of %s is malformed or over its bounds", Short(o.Peer))
	}
	if now.Add(Skew).UnixMilli() < o.IssuedAt || now.Add(-Skew).UnixMilli() > o.NotAfter {
		return o, Errorf(Invalid, "offer %d of %s is not valid now: it expired or one clock is wrong", o.Number, Short(o.Peer))
	}
	if err := o.Labels.Validate(); err != nil {
		return o, err
	}
	if err := CheckRules(o.Rules); err != nil {
		return o, Errorf(ErrorCode(err), "offer of %s: %w", Short(o.Peer), err)
	}
	ids := map[PoolID]bool{}
	for _, p := range o.Pools {
		if err := p.Validate(); err != nil {
			return o, err
		}
		if ids[p.ID] {
			return o, Errorf(Invalid, "offer of %s has two pools %s", Short(o.Peer), p.ID)
		}
		ids[p.ID] = true
	}
	return o, nil
}
