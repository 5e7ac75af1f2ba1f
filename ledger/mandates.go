package ledger

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jointcloud/pcm"
)

// A job of another cell may come to be driven by a peer of another account than its
// buyer's. This cell can't see that: it goes by the buyer's mandate and by what more
// than half of the attesters named in it have signed. So a driver of another account
//
//   - acts here from when it has shown both, until the next term's driver has, or a peer
//     of the buyer's account ends it;
//   - buys here only on terms that are placed at home, as the attesters say, never from
//     its own account, and never for more than the mandate's budget;
//   - settles at what the ledger charges, which is never more than was held; ends no
//     dispute; and settles nothing that its own account has sold.
//
// At home it is believed nothing about a trade abroad that its seller has not signed,
// and what a trade has cost in the end is for the buyer to say.

// Bounds of the mandates that a cell remembers until they expire: of all buyers, and
// of one.
const (
	maxDeputies     = 4096
	maxDeputiesEach = 256
)

// MandateKey is the document key of a job's mandate.
func MandateKey(id pcm.JobID) string { return "mandate/" + string(id) }

// DeputyKey names a job of another cell, and who buys for it here.
type DeputyKey struct {
	Home  pcm.CellID    `cbor:"1,keyasint"`
	Buyer pcm.AccountID `cbor:"2,keyasint"`
	Job   pcm.JobID     `cbor:"3,keyasint"`
}

func (k DeputyKey) compare(o DeputyKey) int {
	return cmp.Or(cmp.Compare(k.Home, o.Home), cmp.Compare(k.Buyer, o.Buyer), cmp.Compare(k.Job, o.Job))
}

func deputyKeyOf(t *pcm.Terms) DeputyKey { return DeputyKey{t.Home, t.Buyer, t.Job} }

// Deputy is who acts here for the buyer of another cell's job, by its mandate.
type Deputy struct {
	Peer      pcm.PeerID   `cbor:"1,keyasint"` // of the buyer's account, when that has ended it
	Term      uint64       `cbor:"2,keyasint"` // in which it drives the job
	Mandate   pcm.Digest   `cbor:"3,keyasint"`
	NotAfter  int64        `cbor:"4,keyasint"` // of the mandate, Unix ms
	Spec      pcm.Digest   `cbor:"5,keyasint"`
	Unit      string       `cbor:"6,keyasint"`
	Budget    pcm.Micro    `cbor:"7,keyasint"`
	Bought    pcm.Micro    `cbor:"8,keyasint"` // by deputies: what their open trades may cost, and their closed ones have
	Attesters []pcm.PeerID `cbor:"9,keyasint"`
}

// deputy is who acts for the buyer of a trade abroad; nil: peers of its account alone.
func (s *State) deputy(t *pcm.Terms) *Deputy {
	if !t.Abroad() {
		return nil
	}
	return s.deputies[deputyKeyOf(t)]
}

// Deputy is the peer that acts for a trade's buyer, if that is not the one in its terms.
func (s *State) Deputy(t *pcm.Terms) (pcm.PeerID, bool) {
	if d := s.deputy(t); d != nil {
		return d.Peer, true
	}
	return "", false
}

// actsFor tells whether the signer, of another account, acts for a trade's buyer.
func (a *applying) actsFor(t *pcm.Terms) bool {
	d := a.deputy(t)
	return d != nil && d.Peer == a.by.Peer
}

// succeed has another peer act for the buyer of another cell's job.
func (a *applying) succeed(o *pcm.Op) (bool, error) {
	op := o.Succeed
	if op.Mandate == nil || op.Attest == nil {
		return a.recall(o)
	}
	m, err := pcm.OpenMandate(*op.Mandate)
	if err != nil {
		return false, err
	}
	switch {
	case m.Mesh != a.genesis.Mesh || m.Home == a.genesis.Cell || m.Home != op.Home || m.Job != op.Job:
		return false, pcm.Errorf(pcm.Invalid, "the mandate is for %s of %s, the operation for %s of %s", m.Job, m.Home, op.Job, op.Home)
	case m.Buyer == a.by.Account:
		return false, pcm.Errorf(pcm.Invalid, "peer %s is of the buyer's account and needs no mandate", pcm.Short(a.by.Peer))
	}
	if err := m.Timely(a.entry.Wall); err != nil {
		return false, err
	}
	k, id := DeputyKey{m.Home, m.Buyer, m.Job}, pcm.DigestOf(op.Mandate.Payload)
	was := a.deputies[k]
	switch {
	case was != nil && was.Mandate == id && was.Term == op.Term && was.Peer == a.by.Peer:
		return false, nil
	case was != nil && was.Mandate == id && was.Term >= op.Term:
		return false, pcm.Errorf(pcm.Conflict, "peer %s acts for %s in term %d here, or has: term %d is over", pcm.Short(was.Peer), m.Job, was.Term, op.Term)
	case was != nil && was.Mandate != id && was.NotAfter >= m.NotAfter, m.NotAfter <= a.deputyFloor:
		return false, pcm.Errorf(pcm.Refused, "the mandate for %s is older than one that was shown here, or may have been", m.Job)
	}
	if err := a.signsFor(m, *op.Mandate); err != nil {
		return false, err
	}
	at, err := op.Attest.Open(m.Attesters)
	if err != nil {
		return false, err
	}
	if err := a.attests(at, m.Home, m.Job, id, op.Term, ""); err != nil {
		return false, err
	}
	if was == nil {
		if err := a.roomForDeputy(m.Buyer); err != nil {
			return false, err
		}
	}
	d := &Deputy{Mandate: id, NotAfter: m.NotAfter, Spec: m.Spec, Unit: m.Unit, Budget: m.Budget, Attesters: m.Attesters}
	if was != nil && was.Mandate == id {
		d.Bought = was.Bought
	}
	d.Peer, d.Term = a.by.Peer, op.Term
	a.deputies[k] = d
	a.event(o, m.Job, nil, a.by.Peer)
	return true, nil
}

// recall has a peer of the buyer's account act again, and whoever did no more.
func (a *applying) recall(o *pcm.Op) (bool, error) {
	op := o.Succeed
	if op.Mandate != nil || op.Attest != nil || !op.Home.Valid() || !op.Job.Valid() {
		return false, pcm.Errorf(pcm.Invalid, "to act for %.40q of %.40q, a peer of the buyer's account needs nothing more, and others need a mandate and what its attesters say", op.Job, op.Home)
	}
	d := a.deputies[DeputyKey{op.Home, a.by.Account, op.Job}]
	switch {
	case d == nil || d.Peer == a.by.Peer && d.Term == op.Term:
		return false, nil
	case op.Term < d.Term:
		return false, pcm.Errorf(pcm.Conflict, "peer %s acts for %s in term %d: term %d is over", pcm.Short(d.Peer), op.Job, d.Term, op.Term)
	}
	old := d.Peer
	d.Peer, d.Term = a.by.Peer, op.Term
	a.event(o, op.Job, nil, a.by.Peer, old)
	return true, nil
}

// signsFor tells whether a mandate's signer is of the buyer's account: as this cell
// knows it, or by the passport that came along.
func (a *applying) signsFor(m pcm.Mandate, s pcm.Signed) error {
	p, err := pcm.OpenPassport(m.Passport, a.genesis.Root, time.UnixMilli(a.entry.Wall))
	if id := p.Peer; len(id) > 0 { // renewed since, it may be good though the one that came along is not
		if known := a.members[id]; err != nil && known != nil && known.Account == p.Account && a.entry.Wall <= known.NotAfter+pcm.Skew.Milliseconds() {
			err = nil
		}
	}
	switch {
	case err != nil:
		return err
	case p.Account != m.Buyer || !slices.Equal(p.Peer.Public(), s.Signer):
		return pcm.Errorf(pcm.Unauthorized, "the mandate for %s is not signed by a peer of account %s", m.Job, pcm.Short(m.Buyer))
	}
	return nil
}

// attests tells whether an attestation says that the signer drives a job in a term, and
// that terms are placed.
func (a *applying) attests(at pcm.Attestation, home pcm.CellID, job pcm.JobID, mandate pcm.Digest, term uint64, terms pcm.Digest) error {
	switch {
	case at.Mesh != a.genesis.Mesh || at.Home != home || at.Job != job || at.Mandate != mandate:
		return pcm.Errorf(pcm.Unauthorized, "what is attested is of %.40q in %.40q by another mandate, or another job than %s", at.Job, at.Home, job)
	case at.Driver != a.by.Peer || at.Term != term:
		return pcm.Errorf(pcm.Unauthorized, "it is attested that peer %s drives %s in term %d, not that %s does in term %d", pcm.Short(at.Driver), job, at.Term, pcm.Short(a.by.Peer), term)
	case at.Terms != terms:
		return pcm.Errorf(pcm.Unauthorized, "it is not attested that %s has placed exactly these terms", job)
	}
	return at.Timely(a.entry.Wall)
}

// roomForDeputy tells why a mandate of a buyer can't be remembered just now. Mandates that have
// expired are forgotten then, and from then on all are refused that are no younger,
// whatever the clock says: so none begins its budget anew.
func (a *applying) roomForDeputy(buyer pcm.AccountID) error {
	past := func(d *Deputy) bool { return a.entry.Wall > d.NotAfter+2*pcm.Skew.Milliseconds() }
	all, each, floor := 0, 0, a.deputyFloor
	for _, k := range slices.SortedFunc(maps.Keys(a.deputies), DeputyKey.compare) {
		switch d := a.deputies[k]; {
		case past(d):
			floor = max(floor, d.NotAfter)
		case k.Buyer == buyer:
			all, each = all+1, each+1
		default:
			all++
		}
	}
	switch {
	case each >= maxDeputiesEach:
		return pcm.Errorf(pcm.Busy, "%d mandates of account %s are within their validity in %s, which is the bound for one account: retry when some have expired", each, pcm.Short(buyer), pcm.Short(a.genesis.Cell))
	case all >= maxDeputies:
		return pcm.Errorf(pcm.Busy, "%d mandates are within their validity in %s, which is its bound: retry when some have expired", all, pcm.Short(a.genesis.Cell))
	case len(a.deputies) >= maxDeputiesEach && floor > a.deputyFloor:
		maps.DeleteFunc(a.deputies, func(_ DeputyKey, d *Deputy) bool { return past(d) })
		a.deputyFloor = floor
	}
	return nil
}

// mayBuy tells whether a deputy may buy on terms.
func (a *applying) mayBuy(op *pcm.Award) error {
	t := &op.Terms
	d := a.deputy(t)
	switch {
	case a.entry.Wall > d.NotAfter+pcm.Skew.Milliseconds():
		return pcm.Errorf(pcm.Refused, "the mandate for %s has expired: only peers of account %s can buy for it now", t.Job, pcm.Short(t.Buyer))
	case a.account(t.Seller) == a.by.Account:
		return pcm.Errorf(pcm.Forbidden, "peer %s drives %s for another account and may not sell to it itself", pcm.Short(a.by.Peer), t.Job)
	case t.Spec != d.Spec || t.Price.Unit != d.Unit:
		return pcm.Errorf(pcm.Invalid, "the terms name another spec or unit than the mandate for %s", t.Job)
	case op.Attest == nil:
		return pcm.Errorf(pcm.Unauthorized, "it is not attested that %s has placed these terms", t.Job)
	}
	at, err := op.Attest.Open(d.Attesters)
	if err != nil {
		return err
	}
	if err := a.attests(at, t.Home, t.Job, d.Mandate, d.Term, pcm.DigestOf(pcm.MustMarshal(*t))); err != nil {
		return err
	}
	if hold := pcm.MulMicro(t.HoldEach(), t.Tasks.Len()); pcm.AddMicro(d.Bought, hold) > d.Budget {
		return pcm.Errorf(pcm.Refused, "the mandate for %s lets %s %s be bought here by drivers of other accounts: %s is, and these tasks may cost %s", t.Job, d.Budget, d.Unit, d.Bought, hold)
	}
	return nil
}

// spend counts a trade that a deputy has just bought.
func (a *applying) spend(t *Trade) {
	d := a.deputy(&t.Terms)
	t.Mandate = d.Mandate
	d.Bought += t.Held
}

// unspend gives back what such a trade, now closed, has not cost of what it might have.
func (a *applying) unspend(t *Trade) {
	if d := a.deputy(&t.Terms); t.Mandate != "" && d != nil && d.Mandate == t.Mandate {
		d.Bought -= pcm.MulMicro(t.Terms.HoldEach(), len(t.Attempts)) - t.Paid
	}
}

// checkMandate checks the mandate that a job is submitted with.
func (a *applying) checkMandate(op *pcm.Submit) (pcm.Digest, error) {
	if op.Mandate == nil {
		return "", nil
	}
	m, err := pcm.OpenMandate(*op.Mandate)
	if err != nil {
		return "", err
	}
	switch {
	case op.Takeover != pcm.TakeoverAny:
		return "", pcm.Errorf(pcm.Invalid, "a mandate is for jobs that any account may take over, this one has takeover %s", op.Takeover)
	case m.Mesh != a.genesis.Mesh || m.Home != a.genesis.Cell || m.Job != op.Job || m.Spec != op.Spec || m.Unit != op.Unit || m.Budget != op.Budget:
		return "", pcm.Errorf(pcm.Invalid, "the mandate is for another job, cell, spec, unit or budget than the submission of %s", op.Job)
	case m.Buyer != a.by.Account || !slices.Equal(op.Mandate.Signer, a.by.Peer.Public()):
		return "", pcm.Errorf(pcm.Unauthorized, "the mandate for %s is signed by somebody else than its submitter", op.Job)
	}
	return pcm.DigestOf(op.Mandate.Payload), nil
}

// believes tells whether home takes a driver's word about a trade abroad: it takes
// that of a peer of the buyer's account, and else the seller's.
func (a *applying) believes(o *pcm.Op, j *Job, p *Placement, receipt []byte) error {
	r, needed := pcm.ReceiptOf(*o, a.genesis.Mesh, p.Terms)
	if !needed || a.by.Account == j.Buyer {
		return nil
	}
	return r.SignedBy(p.Terms.Seller, receipt)
}
