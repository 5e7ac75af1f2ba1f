package pcm

import (
	"slices"
	"time"
)

// Mandate is a buyer's word to other cells: whoever drives its job, as the job's
// cell attests, acts for the buyer there. It is signed by the peer that submits the
// job, when peers of any account may take it over. The cell that judges a trade
// abroad knows neither the job nor who drives it: it goes by the mandate, and by the
// voters of the job's cell whom the mandate names.
type Mandate struct {
	Mesh  MeshID    `json:"mesh" cbor:"1,keyasint"`
	Home  CellID    `json:"home" cbor:"2,keyasint"` // the job's cell
	Job   JobID     `json:"job" cbor:"3,keyasint"`
	Spec  Digest    `json:"spec" cbor:"4,keyasint"` // of the signed spec's payload
	Buyer AccountID `json:"buyer" cbor:"5,keyasint"`
	Unit  string    `json:"unit" cbor:"6,keyasint"`
	// Budget is the most that may be bought by it in any one other cell. 0: nothing, only
	// what was bought already is gone on with.
	Budget    Micro    `json:"budget" cbor:"7,keyasint"`
	Attesters []PeerID `json:"attesters" cbor:"8,keyasint"` // who voted at home when it was signed, in order; see [Mandate.Quorum]
	NotAfter  int64    `json:"not_after" cbor:"9,keyasint"` // Unix ms
	Passport  Signed   `json:"passport" cbor:"10,keyasint"` // of the peer that signs it
}

// Bounds of mandates and of what is attested for them.
const (
	MandateFor       = PassportLifetime
	MaxAttesters     = 5
	AttestationFor   = 10 * time.Minute // an attestation is good for
	maxMandate       = 8 << 10
	maxMandateLife   = MandateFor + time.Hour // what a cell takes: clocks differ
	maxAttestedBytes = 1 << 10
)

// Quorum is how many of its attesters must have signed: more than half.
func (m Mandate) Quorum() int { return len(m.Attesters)/2 + 1 }

// Validate checks the form.
func (m Mandate) Validate() error {
	switch {
	case !m.Mesh.Valid() || !m.Home.Valid() || !m.Job.Valid() || !m.Spec.Valid() || len(m.Buyer.Public()) == 0 || !ValidName(m.Unit):
		return Errorf(Invalid, "the mandate for %.40q is malformed", m.Job)
	case m.Budget < 0 || m.Budget > 1e18:
		return Errorf(Invalid, "the mandate for %s has a budget of %s, which is out of range", m.Job, m.Budget)
	case len(m.Attesters) == 0 || len(m.Attesters) > MaxAttesters:
		return Errorf(Invalid, "the mandate for %s names %d attesters: 1 to %d", m.Job, len(m.Attesters), MaxAttesters)
	}
	for i, p := range m.Attesters {
		if len(p.Public()) == 0 || i > 0 && p <= m.Attesters[i-1] {
			return Errorf(Invalid, "the mandate for %s names attester %.80q, which is no peer, or out of order", m.Job, p)
		}
	}
	return nil
}

// OpenMandate checks form and signature. Whether its signer is of the buyer's account
// its passport says, or whoever knows the peer.
func OpenMandate(s Signed) (Mandate, error) {
	var m Mandate
	if len(s.Payload) > maxMandate {
		return m, Errorf(TooLarge, "a mandate of %d bytes is over the bound of %d", len(s.Payload), maxMandate)
	}
	if err := s.Open(DomainMandate, &m); err != nil {
		return m, err
	}
	return m, m.Validate()
}

// Timely tells whether the mandate is good at a wall time, Unix ms, with [Skew].
func (m Mandate) Timely(wall int64) error {
	switch {
	case wall > m.NotAfter+Skew.Milliseconds():
		return Errorf(Refused, "the mandate for %s was good until %s: only peers of account %s can act for it now", m.Job, time.UnixMilli(m.NotAfter).UTC().Format(time.RFC3339), Short(m.Buyer))
	case m.NotAfter > wall+(maxMandateLife+Skew).Milliseconds():
		return Errorf(Refused, "the mandate for %s is good for longer than %s from now", m.Job, maxMandateLife)
	}
	return nil
}

// Attestation is what a voter of a job's cell signs when it has read there, after all
// that was committed before it was asked, that a peer drives the job, and, if Terms is
// set, that exactly these terms are placed.
type Attestation struct {
	Mesh     MeshID `json:"mesh" cbor:"1,keyasint"`
	Home     CellID `json:"home" cbor:"2,keyasint"`
	Mandate  Digest `json:"mandate" cbor:"3,keyasint"` // of the mandate's payload
	Job      JobID  `json:"job" cbor:"4,keyasint"`
	Term     uint64 `json:"term" cbor:"5,keyasint"`
	Driver   PeerID `json:"driver" cbor:"6,keyasint"`
	Terms    Digest `json:"terms,omitempty" cbor:"7,keyasint,omitempty"` // of the encoded terms
	NotAfter int64  `json:"not_after" cbor:"8,keyasint"`                 // Unix ms
}

// Timely tells whether the attestation is good at a wall time, Unix ms, with [Skew].
func (at Attestation) Timely(wall int64) error {
	if wall > at.NotAfter+Skew.Milliseconds() || at.NotAfter > wall+(AttestationFor+Skew).Milliseconds() {
		return Errorf(Conflict, "the attestation for %s in term %d is good until %s, and for %s: have it signed anew, and check the clocks", at.Job, at.Term, time.UnixMilli(at.NotAfter).UTC().Format(time.RFC3339), AttestationFor)
	}
	return nil
}

// Attested is an attestation with the signatures of attesters over its exact bytes.
type Attested struct {
	Payload []byte   `json:"payload" cbor:"1,keyasint"`
	Sigs    [][]byte `json:"sigs" cbor:"2,keyasint"` // by the attesters, in the mandate's order; empty: it has not signed
}

// Read decodes the payload; nothing is checked.
func (a Attested) Read() (at Attestation, err error) {
	if len(a.Payload) > maxAttestedBytes {
		return at, Errorf(TooLarge, "an attestation of %d bytes is over the bound of %d", len(a.Payload), maxAttestedBytes)
	}
	return at, Unmarshal(a.Payload, &at)
}

// Open decodes the payload and checks that more than half of the attesters have signed it.
func (a Attested) Open(attesters []PeerID) (Attestation, error) {
	at, err := a.Read()
	if err != nil {
		return at, err
	}
	if len(a.Sigs) != len(attesters) {
		return at, Errorf(Invalid, "there are %d attesters for %s, and room for %d signatures", len(attesters), at.Job, len(a.Sigs))
	}
	n := 0
	for i, sig := range a.Sigs {
		if len(sig) == 0 {
			continue
		}
		if !Verify(attesters[i].Public(), DomainAttest, a.Payload, sig) {
			return at, Errorf(Unauthorized, "the signature of attester %s for %s is not valid", Short(attesters[i]), at.Job)
		}
		n++
	}
	if need := len(attesters)/2 + 1; n < need {
		return at, Errorf(Unauthorized, "%d of %d attesters have signed for %s: %d are needed", n, len(attesters), at.Job, need)
	}
	return at, nil
}

// Succeed makes the signing peer the one that acts for the buyer of another cell's job
// in this cell. A peer of another account shows the mandate, and that it drives the job
// in that term. One of the buyer's own account needs neither: who acted before it does
// so no more.
type Succeed struct {
	Job     JobID     `json:"job" cbor:"1,keyasint"`
	Home    CellID    `json:"home" cbor:"2,keyasint"`
	Term    uint64    `json:"term" cbor:"3,keyasint"`
	Mandate *Signed   `json:"mandate,omitempty" cbor:"4,keyasint,omitempty"`
	Attest  *Attested `json:"attest,omitempty" cbor:"5,keyasint,omitempty"`
}

// Receipt is what a seller signs about a trade abroad for a driver that the job's cell
// doesn't believe, as it is not of the buyer's account.
type Receipt struct {
	Mesh    MeshID   `cbor:"1,keyasint"`
	Cell    CellID   `cbor:"2,keyasint"` // the seller's
	Trade   TradeID  `cbor:"3,keyasint"`
	Results []Result `cbor:"4,keyasint,omitempty"` // as the seller finished with them
	Free    Spans    `cbor:"5,keyasint,omitempty"` // tasks for which nothing is, or will be, to be paid
	Unsold  bool     `cbor:"6,keyasint,omitempty"` // with Free: the trade was never awarded, and never will be
	Terms   Digest   `cbor:"7,keyasint,omitempty"` // with Unsold: of the encoded terms, as the trade's ID doesn't say until when it may be awarded
}

// Sign signs the receipt as its seller.
func (r Receipt) Sign(seller Key) []byte { return seller.Sign(DomainReceipt, MustMarshal(r)) }

// SignedBy checks the seller's signature.
func (r Receipt) SignedBy(seller PeerID, sig []byte) error {
	if !Verify(seller.Public(), DomainReceipt, MustMarshal(r), sig) {
		return Errorf(Unauthorized, "the driver is not of the buyer's account, and seller %s has not signed this of %s", Short(seller), r.Trade)
	}
	return nil
}

// ReceiptOf is the receipt that an operation of the job's cell on a trade with these terms
// rests on; false if it needs none.
func ReceiptOf(op Op, mesh MeshID, t *Terms) (Receipt, bool) {
	r := Receipt{Mesh: mesh, Cell: t.Cell}
	switch {
	case op.Accept != nil:
		r.Trade, r.Results = op.Accept.Trade, op.Accept.Results
	case op.Abandon != nil && op.Abandon.Fault == FaultTask:
		r.Trade, r.Results = op.Abandon.Trade, op.Abandon.Results
	case op.Abandon != nil && op.Abandon.Over:
		r.Trade, r.Free, r.Unsold = op.Abandon.Trade, op.Abandon.Tasks, op.Abandon.Unsold
		if r.Unsold {
			r.Terms = DigestOf(MustMarshal(*t))
		}
	default:
		return Receipt{}, false
	}
	return r, true
}

// NewMandate signs the mandate for a job that a peer is about to submit; voters are
// who votes in its cell.
func NewMandate(key Key, m Mandate, voters []PeerID, now time.Time) (Signed, error) {
	m.Attesters = slices.Clone(voters)
	slices.Sort(m.Attesters)
	m.NotAfter = now.Add(MandateFor).UnixMilli()
	if err := m.Validate(); err != nil {
		return Signed{}, err
	}
	return key.Seal(DomainMandate, m), nil
}
