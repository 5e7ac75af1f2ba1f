package pcm

import (
	"encoding/base64"
	"strings"
)

// Agreed is a payload that two accounts have signed, over its exact bytes. Who
// they are stands in the payload; nobody else's word is needed for it to hold.
type Agreed struct {
	Payload []byte `json:"payload" cbor:"1,keyasint"`
	First   []byte `json:"first" cbor:"2,keyasint"`            // signature of the first account
	Second  []byte `json:"second" cbor:"3,keyasint,omitempty"` // of the second; none in an offer
}

// open decodes the payload and checks both signatures; parties names the accounts,
// in the order of their signatures, once it is decoded.
func (a Agreed) open(d Domain, decode func(payload []byte) error, parties func() (first, second AccountID)) error {
	if err := decode(a.Payload); err != nil {
		return err
	}
	first, second := parties()
	for _, s := range []struct {
		by  AccountID
		sig []byte
	}{{first, a.First}, {second, a.Second}} {
		if !Verify(s.by.Public(), d, a.Payload, s.sig) {
			return Errorf(Unauthorized, "the signature of account %s under this %s is not valid", Short(s.by), d)
		}
	}
	return nil
}

// NettingID names a netting, e.g. "net-7xk2q…".
type NettingID string

// NewNettingID draws a random ID.
func NewNettingID() NettingID { return NettingID("net-" + random()) }

// Valid tells whether the ID has the right form.
func (id NettingID) Valid() bool { return validID("net-", string(id)) }

// Key is the netting's ID among those of all accounts: whoever sees an ID that two
// others have agreed on can take it for an agreement of its own.
func (n Netting) Key() NettingID { return newNettingKey(n.A, n.B, n.ID) }

// Netting is what two accounts agree to strike from what they owe each other in
// one unit, in one cell or several. What of it is not set off was paid outside
// of PCM; see [Netting.Payment]. It takes effect once in each cell that it names.
type Netting struct {
	Mesh     MeshID        `json:"mesh" cbor:"1,keyasint"`
	ID       NettingID     `json:"id" cbor:"2,keyasint"`
	A        AccountID     `json:"a" cbor:"3,keyasint"` // who offers it
	B        AccountID     `json:"b" cbor:"4,keyasint"` // who accepts it
	Unit     string        `json:"unit" cbor:"5,keyasint"`
	Lines    []NettingLine `json:"lines" cbor:"6,keyasint"`     // by cell
	NotAfter int64         `json:"not_after" cbor:"7,keyasint"` // Unix ms
	Note     string        `json:"note,omitempty" cbor:"8,keyasint,omitempty"`
}

// NettingLine is what a netting strikes in one cell.
type NettingLine struct {
	Cell CellID `json:"cell" cbor:"1,keyasint"`
	ByA  Micro  `json:"by_a" cbor:"2,keyasint"` // of what A owes B
	ByB  Micro  `json:"by_b" cbor:"3,keyasint"` // of what B owes A
}

// Bounds of a netting.
const (
	MaxNettingLines    = 32
	MaxNettingLifetime = int64(31 * 24 * 3600 * 1000) // ms
	maxNote            = 256
)

// Validate checks the form.
func (n Netting) Validate() error {
	switch {
	case !n.Mesh.Valid() || !n.ID.Valid():
		return Errorf(Invalid, "a netting has no valid mesh or ID: %q of %q", n.ID, n.Mesh)
	case len(n.A.Public()) == 0 || len(n.B.Public()) == 0 || n.A == n.B:
		return Errorf(Invalid, "%s is not between two accounts: %q and %q", n.ID, n.A, n.B)
	case !ValidName(n.Unit):
		return Errorf(Invalid, "%s names no unit: %q", n.ID, n.Unit)
	case len(n.Lines) == 0 || len(n.Lines) > MaxNettingLines:
		return Errorf(Invalid, "%s names %d cells: 1 to %d", n.ID, len(n.Lines), MaxNettingLines)
	case len(n.Note) > maxNote || !Printable(n.Note):
		return Errorf(Invalid, "the note of %s has more than %d bytes, or some that can't be printed", n.ID, maxNote)
	}
	const most = Micro(1e18)
	last := CellID("")
	for _, l := range n.Lines {
		if !l.Cell.Valid() || l.Cell <= last {
			return Errorf(Invalid, "%s names cell %q, which is none, or out of order", n.ID, l.Cell)
		}
		if last = l.Cell; l.ByA < 0 || l.ByB < 0 || l.ByA > most || l.ByB > most || l.ByA+l.ByB == 0 {
			return Errorf(Invalid, "%s strikes %s and %s in %s: not below zero, and something", n.ID, l.ByA, l.ByB, l.Cell)
		}
	}
	return nil
}

// Line is what the netting strikes in a cell.
func (n Netting) Line(cell CellID) (NettingLine, bool) {
	for _, l := range n.Lines {
		if l.Cell == cell {
			return l, true
		}
	}
	return NettingLine{}, false
}

// Struck is what it strikes in all cells together.
func (n Netting) Struck() (byA, byB Micro) {
	for _, l := range n.Lines {
		byA, byB = AddMicro(byA, l.ByA), AddMicro(byB, l.ByB)
	}
	return byA, byB
}

// Payment is what the two accounts declare to have settled outside of PCM: who
// pays whom, and how much. Zero if both strike the same.
func (n Netting) Payment() (payer, payee AccountID, amount Micro) {
	byA, byB := n.Struck()
	if byA >= byB {
		return n.A, n.B, byA - byB
	}
	return n.B, n.A, byB - byA
}

// Offer signs the netting as its first account. The key must be A's.
func (n Netting) Offer(key Key) Agreed {
	payload := MustMarshal(n)
	return Agreed{Payload: payload, First: key.Sign(DomainNetting, payload)}
}

// ReadNetting reads an offer: it checks its form and its first signature.
func ReadNetting(a Agreed) (Netting, error) {
	var n Netting
	if err := Unmarshal(a.Payload, &n); err != nil {
		return n, err
	}
	if err := n.Validate(); err != nil {
		return n, err
	}
	if !Verify(n.A.Public(), DomainNetting, a.Payload, a.First) {
		return n, Errorf(Unauthorized, "%s is not signed by account %s, which is to offer it", n.ID, Short(n.A))
	}
	return n, nil
}

// OpenNetting checks form and both signatures.
func OpenNetting(a Agreed) (Netting, error) {
	var n Netting
	if err := a.open(DomainNetting, func(payload []byte) error { return Unmarshal(payload, &n) }, func() (AccountID, AccountID) { return n.A, n.B }); err != nil {
		return n, err
	}
	return n, n.Validate()
}

// Net strikes what two accounts owe each other in this cell. Any member may bring
// it: it holds by the two signatures in it.
type Net struct {
	Netting Agreed `json:"netting" cbor:"1,keyasint"`
}

// Resolution is how the two sides of a dispute agree to end it: the attempts are
// paid with Amount together, anything from zero to what is held for them.
type Resolution struct {
	Mesh   MeshID    `json:"mesh" cbor:"1,keyasint"`
	Cell   CellID    `json:"cell" cbor:"2,keyasint"`
	Trade  TradeID   `json:"trade" cbor:"3,keyasint"`
	Tasks  Spans     `json:"tasks" cbor:"4,keyasint"`
	Buyer  AccountID `json:"buyer" cbor:"5,keyasint"`
	Seller AccountID `json:"seller" cbor:"6,keyasint"`
	Amount Micro     `json:"amount" cbor:"7,keyasint"`
	// BySeller says that the seller offers it, and so signs first; else the buyer does.
	BySeller bool   `json:"by_seller,omitempty" cbor:"8,keyasint,omitempty"`
	Note     string `json:"note,omitempty" cbor:"9,keyasint,omitempty"`
	// NotAfter is until when it can be applied, Unix ms; 0: until the dispute ends by
	// itself. One that has an end is signed in another form, a timedResolution: cells
	// below level 3 don't know it.
	NotAfter int64 `json:"not_after,omitempty" cbor:"-"`
}

// timedResolution is the signed form of a resolution that can be applied until a time.
type timedResolution struct {
	Resolution Resolution `cbor:"1,keyasint"`
	NotAfter   int64      `cbor:"2,keyasint"` // Unix ms
}

// readTimed decodes a payload with a resolution's end in it.
func readTimed(payload []byte, r *Resolution) error {
	var t timedResolution
	if err := Unmarshal(payload, &t); err != nil {
		return err
	}
	if t.NotAfter <= 0 {
		return Errorf(Invalid, "the resolution of %s ends at %d, which is no time", t.Resolution.Trade, t.NotAfter)
	}
	*r = t.Resolution
	r.NotAfter = t.NotAfter
	return nil
}

// Parties are the accounts in the order of their signatures.
func (r Resolution) Parties() (first, second AccountID) {
	if r.BySeller {
		return r.Seller, r.Buyer
	}
	return r.Buyer, r.Seller
}

// Validate checks the form.
func (r Resolution) Validate() error {
	switch {
	case !r.Mesh.Valid() || !r.Cell.Valid() || !r.Trade.Valid():
		return Errorf(Invalid, "a resolution has no valid mesh, cell or trade: %q, %q, %q", r.Mesh, r.Cell, r.Trade)
	case !r.Tasks.Valid(MaxTasks) || r.Tasks.Len() > MaxBatch:
		return Errorf(Invalid, "the resolution of %s names no valid tasks", r.Trade)
	case len(r.Buyer.Public()) == 0 || len(r.Seller.Public()) == 0:
		return Errorf(Invalid, "the resolution of %s is not between two accounts: %q and %q", r.Trade, r.Buyer, r.Seller)
	case r.Amount < 0:
		return Errorf(Invalid, "the resolution of %s pays %s: not below zero", r.Trade, r.Amount)
	case len(r.Note) > maxNote || !Printable(r.Note):
		return Errorf(Invalid, "the note of the resolution of %s has more than %d bytes, or some that can't be printed", r.Trade, maxNote)
	}
	return nil
}

// Offer signs the resolution as its first party.
func (r Resolution) Offer(key Key) Agreed {
	payload := MustMarshal(r)
	if r.NotAfter != 0 {
		payload = MustMarshal(timedResolution{r, r.NotAfter})
	}
	return Agreed{Payload: payload, First: key.Sign(DomainResolution, payload)}
}

// ReadResolution reads an offer: it checks its form and its first signature.
func ReadResolution(a Agreed) (Resolution, error) {
	var r Resolution
	if err := Unmarshal(a.Payload, &r); err != nil {
		if readTimed(a.Payload, &r) != nil {
			return r, err
		}
	}
	if err := r.Validate(); err != nil {
		return r, err
	}
	if by, _ := r.Parties(); !Verify(by.Public(), DomainResolution, a.Payload, a.First) {
		return r, Errorf(Unauthorized, "the resolution of %s is not signed by account %s, which is to offer it", r.Trade, Short(by))
	}
	return r, nil
}

// Open checks form and both signatures.
func (op Resolve) Open() (Resolution, error) {
	var r Resolution
	decode := func(payload []byte) error { return Unmarshal(payload, &r) }
	if op.Timed {
		decode = func(payload []byte) error { return readTimed(payload, &r) }
	}
	if err := op.Resolution.open(DomainResolution, decode, func() (AccountID, AccountID) { return r.Parties() }); err != nil {
		return r, err
	}
	return r, r.Validate()
}

// Resolve ends a dispute as both its sides have signed. Any member may bring it.
type Resolve struct {
	Resolution Agreed `json:"resolution" cbor:"1,keyasint"`
	Timed      bool   `json:"timed,omitempty" cbor:"2,keyasint,omitempty"` // it can be applied until a time that stands in it
}

// ResolveAs is the operation that brings a resolution.
func ResolveAs(r Resolution, a Agreed) *Resolve {
	return &Resolve{Resolution: a, Timed: r.NotAfter != 0}
}

// Accept signs an offer as its second party: what it says is then binding.
func (a Agreed) Accept(d Domain, key Key) Agreed {
	a.Second = key.Sign(d, a.Payload)
	return a
}

// The one-line forms of agreements, for a mail or a file, say what they are.
const (
	nettingPrefix    = "pcm-netting-"
	resolutionPrefix = "pcm-resolution-"
)

// Line is the agreement's one-line form.
func (a Agreed) Line(d Domain) string {
	prefix := nettingPrefix
	if d == DomainResolution {
		prefix = resolutionPrefix
	}
	return prefix + base64.RawURLEncoding.EncodeToString(MustMarshal(a))
}

// ParseAgreed reads an agreement's one-line form, and says of what kind it is.
func ParseAgreed(s string) (Agreed, Domain, error) {
	s = strings.Join(strings.Fields(s), "") // mail wraps lines
	d := DomainNetting
	body, ok := strings.CutPrefix(s, nettingPrefix)
	if !ok {
		d = DomainResolution
		if body, ok = strings.CutPrefix(s, resolutionPrefix); !ok {
			return Agreed{}, "", Errorf(Invalid, "%.20q is no agreement: it begins with %s or %s", s, nettingPrefix, resolutionPrefix)
		}
	}
	var a Agreed
	raw, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil || len(raw) > MaxCommand {
		return a, "", Errorf(Invalid, "the agreement is cut short or altered: pass on the whole line")
	}
	return a, d, Unmarshal(raw, &a)
}
