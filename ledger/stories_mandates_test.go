package ledger_test

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// mandate signs the mandate for a submission, as the line says.
func (s *story) mandate(l line, sub *pcm.Submit) *pcm.Signed {
	a := l.who()
	m := pcm.Mandate{
		Mesh: s.genesis.Mesh, Home: s.genesis.Cell, Job: sub.Job, Spec: sub.Spec, Buyer: a.buyer, Unit: sub.Unit,
		Budget: l.micro("lets", sub.Budget.String()), Passport: a.passport,
	}
	var voters []pcm.PeerID
	for _, name := range strings.Split(l.str("attesters", "anna, carl, dora"), ", ") {
		voters = append(voters, l.actor(name).peer)
	}
	key := a.key
	if by := l.str("mandate-by", ""); by != "" {
		key, m.Passport = l.actor(by).key, l.actor(by).passport
	}
	signed, err := pcm.NewMandate(key, m, voters, time.UnixMilli(s.wall).Add(l.dur("good", pcm.MandateFor)-pcm.MandateFor))
	l.must(err)
	s.mandates[sub.Job] = signed
	return &signed
}

// attested is what the peers that the line names sign of who drives a job.
func (s *story) attested(l line, job pcm.JobID, terms pcm.Digest) *pcm.Attested {
	by := l.str("attest", "")
	if by == "" {
		return nil
	}
	signed := s.mandates[job]
	m, err := pcm.OpenMandate(signed)
	l.must(err)
	at := pcm.Attestation{
		Mesh: m.Mesh, Home: m.Home, Mandate: pcm.DigestOf(signed.Payload), Job: job, Term: uint64(l.num("of-term", l.num("term", 2))),
		Driver: l.actor(l.str("driver", l.who().name)).peer, Terms: terms,
		NotAfter: s.wall + l.dur("fresh", 5*time.Minute).Milliseconds(),
	}
	out := pcm.Attested{Payload: pcm.MustMarshal(at), Sigs: make([][]byte, len(m.Attesters))}
	for _, name := range strings.Split(by, ", ") {
		a := l.actor(name)
		i := slices.Index(m.Attesters, a.peer)
		if i < 0 { // it signs in the place of another
			i = 0
		}
		out.Sigs[i] = a.key.Sign(pcm.DomainAttest, out.Payload)
	}
	if l.HasArg("altered") {
		at.Term++
		out.Payload = pcm.MustMarshal(at)
	}
	return &out
}

func (s *story) succeed(l line) pcm.Op {
	m, ok := s.mandates[l.job()]
	op := &pcm.Succeed{Job: l.job(), Term: uint64(l.num("term", 2)), Home: pcm.CellID(idOf("cell-", l.str("home", "home"))), Attest: s.attested(l, l.job(), "")}
	if ok && !l.HasArg("recalls") {
		op.Mandate = &m
	}
	return pcm.Op{Succeed: op}
}

// receipt is what the seller signs of what an operation says, if the line has it do so.
func (s *story) receipt(l line, op pcm.Op) []byte {
	by := l.str("receipt", "")
	if by == "" {
		return nil
	}
	_, t := l.trade()
	r, ok := pcm.ReceiptOf(op, s.genesis.Mesh, &t)
	if !ok {
		l.t.Fatalf("%s: this needs no receipt", l.Pos)
	}
	return r.Sign(l.actor(by).key)
}

// showDeputy shows who acts for the buyer of a trade here.
func (s *story) showDeputy(b *strings.Builder, t pcm.Terms) {
	peer, ok := s.state.Deputy(&t)
	if !ok {
		b.WriteString("nobody but its account\n")
		return
	}
	fmt.Fprintf(b, "%s\n", peer)
}
