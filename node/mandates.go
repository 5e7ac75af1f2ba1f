package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/mesh"
)

// protoAttest asks a voter of a job's cell to sign who drives the job, and what is placed.
const protoAttest protocol.ID = "/pcm/attest/1.0.0"

const (
	maxAttest    = 4 << 10
	attestWait   = 5 * time.Second
	attestFor    = pcm.AttestationFor / 2 // so that clocks may differ
	levelMandate = 3                      // of the rules, from which on there are mandates
)

// mandateFor signs the mandate for a job that is about to be submitted; nil if it would be
// of no use: nobody of another account may drive the job, nothing is sold in other cells,
// or only this peer could attest it.
func (n *Node) mandateFor(op *pcm.Submit) (*pcm.Signed, error) {
	level := 0
	n.cell.View(func() { level = n.state.Level() })
	voters := n.voters()
	away := slices.ContainsFunc(n.mesh.Offers(), func(row mesh.Row) bool { return row.Offer.Cell != n.id.Mesh.Cell })
	if op.Takeover != pcm.TakeoverAny || !away || level < levelMandate || len(voters) < 2 || len(voters) > pcm.MaxAttesters {
		return nil, nil
	}
	m, err := pcm.NewMandate(n.id.Peer, pcm.Mandate{
		Mesh: n.id.Mesh.Mesh, Home: n.id.Mesh.Cell, Job: op.Job, Spec: op.Spec, Buyer: n.account, Unit: op.Unit, Budget: op.Budget,
		Passport: n.mesh.Signed(),
	}, voters, time.Now())
	return &m, err
}

// deputy acts in other cells for the driver of a job: of one of the buyer's own account,
// it ends what others did in its name; others it gets what they have to show.
type deputy struct {
	n    *Node
	job  pcm.JobID
	term uint64

	signed  *pcm.Signed // nil: of the buyer's account
	mandate pcm.Mandate
}

// deputyFor is the deputy that the driver of a job needs; nil if none.
func (n *Node) deputyFor(j *ledger.Job, term uint64) (*deputy, error) {
	d := &deputy{n: n, job: j.ID, term: term}
	switch {
	case j.Mandate == "" || term < 2 && j.Buyer == n.account:
		return nil, nil
	case j.Buyer == n.account:
		return d, nil
	}
	raw, err := n.cell.Document(ledger.MandateKey(j.ID))
	if err != nil {
		return nil, err
	}
	d.signed = new(pcm.Signed)
	if err := pcm.UnmarshalLarge(raw, d.signed); err != nil {
		return nil, err
	}
	if pcm.DigestOf(d.signed.Payload) != j.Mandate {
		return nil, pcm.Errorf(pcm.Internal, "the mandate that is kept for %s is not the one it was submitted with", j.ID)
	}
	d.mandate, err = pcm.OpenMandate(*d.signed)
	return d, err
}

// mayBuy tells whether anything may be bought by the mandate.
func (d *deputy) mayBuy() bool { return d.signed == nil || d.mandate.Budget > 0 }

// succession is the operation that makes this peer act for the job's buyer in another cell.
func (d *deputy) succession(ctx context.Context) (pcm.Op, error) {
	op := &pcm.Succeed{Job: d.job, Home: d.n.id.Mesh.Cell, Term: d.term}
	if d.signed == nil {
		return pcm.Op{Succeed: op}, nil
	}
	attested, err := d.attested(ctx, "")
	op.Mandate, op.Attest = d.signed, attested
	return pcm.Op{Succeed: op}, err
}

// attested has more than half of the attesters sign that this peer drives the job and, if
// terms are given, that these are placed.
func (d *deputy) attested(ctx context.Context, terms pcm.Digest) (*pcm.Attested, error) {
	ctx, cancel := context.WithTimeout(ctx, attestWait)
	defer cancel()
	at := pcm.Attestation{
		Mesh: d.mandate.Mesh, Home: d.mandate.Home, Mandate: pcm.DigestOf(d.signed.Payload), Job: d.job, Term: d.term,
		Driver: d.n.self, Terms: terms, NotAfter: time.Now().Add(attestFor).UnixMilli(),
	}
	by := d.mandate.Attesters
	out := &pcm.Attested{Payload: pcm.MustMarshal(at), Sigs: make([][]byte, len(by))}
	type answer struct {
		i   int
		sig []byte
		err error
	}
	answers := make(chan answer, len(by))
	for i, peer := range by {
		go func() {
			a := answer{i: i}
			if peer == d.n.self {
				a.sig, a.err = d.n.attest(ctx, peer, out.Payload)
			} else {
				a.sig, a.err = d.n.mesh.Call(ctx, peer, protoAttest, out.Payload)
			}
			if a.err == nil && !pcm.Verify(peer.Public(), pcm.DomainAttest, out.Payload, a.sig) {
				a.err = pcm.Errorf(pcm.Invalid, "its signature is not valid")
			}
			answers <- a
		}()
	}
	var last error
	signed := 0
	for range by {
		a := <-answers
		if a.err != nil {
			last = pcm.Errorf(pcm.ErrorCode(a.err), "peer %s: %w", pcm.Short(by[a.i]), a.err)
			continue
		}
		out.Sigs[a.i] = a.sig
		if signed++; signed == d.mandate.Quorum() {
			return out, nil
		}
	}
	return nil, pcm.Errorf(pcm.Unavailable, "%d of the %d peers that voted in the job's cell when it was submitted attest that this peer drives it, %d must; the last that didn't: %w", signed, len(by), d.mandate.Quorum(), last)
}

// serveAttest answers a driver.
func (n *Node) serveAttest(ctx context.Context, from pcm.Passport, raw []byte) ([]byte, error) {
	return n.attest(ctx, from.Peer, raw)
}

// attest signs what a driver says of its job, if the ledger says it as well, with all that
// was committed before it was asked.
func (n *Node) attest(ctx context.Context, from pcm.PeerID, statement []byte) ([]byte, error) {
	at, err := pcm.Attested{Payload: statement}.Read()
	if err != nil {
		return nil, err
	}
	switch {
	case at.Mesh != n.id.Mesh.Mesh || at.Home != n.id.Mesh.Cell:
		return nil, pcm.Errorf(pcm.Invalid, "peer %s is of %s and can't say who drives a job of %.40q", pcm.Short(n.self), pcm.Short(n.id.Mesh.Cell), at.Home)
	case at.Driver != from:
		return nil, pcm.Errorf(pcm.Forbidden, "peer %s asks who drives %.40q for another peer", pcm.Short(from), at.Job)
	}
	if err := at.Timely(time.Now().UnixMilli()); err != nil {
		return nil, err
	}
	if n.cell.Outside() {
		return nil, pcm.Errorf(pcm.Unavailable, "peer %s is no member of %s any more", pcm.Short(n.self), pcm.Short(n.id.Mesh.Cell))
	}
	if err := n.cell.Sync(ctx); err != nil {
		return nil, err
	}
	n.cell.View(func() { err = trueOf(n.state, at) })
	if err != nil {
		return nil, err
	}
	return n.id.Peer.Sign(pcm.DomainAttest, statement), nil
}

// trueOf tells whether an attestation says what the ledger of the job's cell says.
func trueOf(s *ledger.State, at pcm.Attestation) error {
	j, ok := s.Job(at.Job)
	switch {
	case !ok:
		return pcm.Errorf(pcm.NotFound, "no open job %.40q", at.Job)
	case j.Driver != at.Driver || j.Term != at.Term:
		return pcm.Errorf(pcm.Conflict, "%s is driven by peer %s in term %d", j.ID, pcm.Short(j.Driver), j.Term)
	case j.Mandate == "" || j.Mandate != at.Mandate:
		return pcm.Errorf(pcm.Conflict, "%s was submitted with another mandate, or none", j.ID)
	case at.Terms != "" && !slices.ContainsFunc(j.Places, func(p ledger.Placement) bool {
		return p.Terms != nil && p.Open > 0 && pcm.DigestOf(pcm.MustMarshal(*p.Terms)) == at.Terms
	}):
		return pcm.Errorf(pcm.Conflict, "%s has placed no tasks on these terms", j.ID)
	}
	return nil
}

// actsHere tells whether a peer acts, by a mandate, for the buyer of a trade of this cell.
func (n *Node) actsHere(peer pcm.PeerID, t *pcm.Terms) (ok bool) {
	n.cell.View(func() {
		d, has := n.state.Deputy(t)
		ok = has && d == peer
	})
	return ok
}
