package node

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// protoSpec hands signed specs to those who need them: sellers and eligible drivers.
const protoSpec protocol.ID = "/pcm/spec/1.0.0"

// specRequest either gives a spec (Spec set) or asks for one (Want set).
type specRequest struct {
	Job  pcm.JobID   `cbor:"1,keyasint"`
	Want pcm.Digest  `cbor:"2,keyasint,omitempty"`
	Spec *pcm.Signed `cbor:"3,keyasint,omitempty"`
	Keep bool        `cbor:"4,keyasint,omitempty"` // with Spec: become able to drive the job: fetch and pin its inputs as well
}

// specs holds the signed specs of jobs that this peer submitted, drives, may
// come to drive or runs tasks of. They are secret to others: the ledger has but
// their digests.
type specs struct {
	n      *Node
	dir    string
	mu     sync.Mutex
	cached map[pcm.JobID]heldSpec
	bytes  int                         // cost of what is cached
	wait   map[pcm.JobID]chan struct{} // closed when the spec arrives
	early  early
}

type heldSpec struct {
	signed pcm.Signed
	spec   pcm.Spec
	digest pcm.Digest
}

// maxCached bounds the specs in memory, in bytes by cost. Those on disk have the
// bound of the ledger's open jobs, and that of early.
const maxCached = 64 << 20

// cost is about how much memory a spec takes: as it was signed and decoded.
func (h heldSpec) cost() int { return 2*len(h.signed.Payload) + 1024 }

func newSpecs(n *Node) *specs {
	return &specs{
		n: n, dir: filepath.Join(n.cfg.Dir, "specs"), cached: map[pcm.JobID]heldSpec{}, wait: map[pcm.JobID]chan struct{}{},
		early: newEarly(),
	}
}

// openSpec decodes a signed spec.
func openSpec(s pcm.Signed) (heldSpec, error) {
	h := heldSpec{signed: s, digest: pcm.DigestOf(s.Payload)}
	if len(s.Payload) > pcm.MaxSpec {
		return h, pcm.Errorf(pcm.TooLarge, "a spec of %d bytes is over the bound of %d", len(s.Payload), pcm.MaxSpec)
	}
	if err := s.Open(pcm.DomainSpec, &h.spec); err != nil {
		return h, err
	}
	if faults := h.spec.Normalize(); len(faults) > 0 {
		return h, faults[0]
	}
	return h, nil
}

// fits tells whether this is the spec that a job was submitted with, in all that
// its driver builds on.
func (h heldSpec) fits(j *ledger.Job) error {
	switch {
	case h.digest != j.Spec:
		return pcm.Errorf(pcm.Invalid, "its digest is not the one in the ledger")
	case string(h.signed.Signer) != string(j.Submitter.Public()):
		return pcm.Errorf(pcm.Invalid, "it is not signed by the job's submitter")
	case len(h.spec.Steps) != len(j.Steps):
		return pcm.Errorf(pcm.Invalid, "it has %d steps, the ledger has %d", len(h.spec.Steps), len(j.Steps))
	}
	if d, err := h.spec.PayAfter.Get(0); err != nil || d.Milliseconds() != j.PayAfterMS {
		return pcm.Errorf(pcm.Invalid, "it is paid another time after its end than the ledger says")
	}
	for i, st := range h.spec.Steps {
		if st.Count != len(j.Steps[i].Tasks) || st.Retries != j.Steps[i].Retries {
			return pcm.Errorf(pcm.Invalid, "step %d has %d tasks with %d retries, in the ledger %d with %d", i, st.Count, st.Retries, len(j.Steps[i].Tasks), j.Steps[i].Retries)
		}
		if (st.Service != nil) != j.Steps[i].Service {
			return pcm.Errorf(pcm.Invalid, "step %d is a service in the spec or in the ledger, not in both", i)
		}
	}
	return nil
}

// inputs are the artifacts that the spec's tasks need.
func (h heldSpec) inputs() []pcm.Digest {
	var list []pcm.Digest
	for _, st := range h.spec.Steps {
		if st.ModuleAt != "" {
			list = append(list, st.ModuleAt)
		}
		for _, in := range st.Inputs {
			list = append(list, in.Digest)
		}
	}
	return list
}

// keep stores a spec on disk, so that its job can be driven after a restart.
func (s *specs) keep(job pcm.JobID, h heldSpec) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return pcm.Errorf(pcm.Internal, "can't store the spec of %s: %w", job, err)
	}
	if err := writeFile(filepath.Join(s.dir, string(job)), pcm.MustMarshal(h.signed)); err != nil {
		return err
	}
	s.cache(job, h)
	return nil
}

// cache holds a spec in memory.
func (s *specs) cache(job pcm.JobID, h heldSpec) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(job)
	for old := range s.cached { // any: what is needed again is on disk or asked for again
		if s.bytes+h.cost() <= maxCached {
			break
		}
		s.forget(old)
	}
	s.cached[job] = h
	s.bytes += h.cost()
	if ch := s.wait[job]; ch != nil {
		close(ch)
		delete(s.wait, job)
	}
}

// forget drops a spec from memory; s.mu is held.
func (s *specs) forget(job pcm.JobID) {
	if h, ok := s.cached[job]; ok {
		s.bytes -= h.cost()
		delete(s.cached, job)
	}
}

// wanted is the digest of an open job's spec, by the ledger; false if that
// doesn't have the job.
func (s *specs) wanted(job pcm.JobID) (pcm.Digest, bool) {
	var d pcm.Digest
	ok := false
	s.n.cell.View(func() {
		var j *ledger.Job
		if j, ok = s.n.state.Job(job); ok {
			d = j.Spec
		}
	})
	return d, ok
}

// get finds a spec here; false if it isn't. Where the ledger names another for the
// job, whoever gave this one was wrong: it is dropped.
func (s *specs) get(job pcm.JobID) (heldSpec, bool) {
	h, ok := s.find(job)
	if want, known := s.wanted(job); ok && known && h.digest != want {
		s.n.log.Warn("dropped a spec that is not the one in the ledger", "job", job, "signer", pcm.Short(string(h.signed.Signer)))
		s.drop(job)
		return heldSpec{}, false
	}
	return h, ok
}

// find is get, whatever the ledger says.
func (s *specs) find(job pcm.JobID) (heldSpec, bool) {
	s.mu.Lock()
	h, ok := s.cached[job]
	s.mu.Unlock()
	if ok {
		return h, true
	}
	data, err := os.ReadFile(filepath.Join(s.dir, string(job)))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.n.log.Error("can't read a stored spec", "job", job, "error", err)
		}
		return heldSpec{}, false
	}
	var signed pcm.Signed
	if err := pcm.Unmarshal(data, &signed); err != nil {
		s.n.log.Error("a stored spec is damaged", "job", job, "error", err)
		return heldSpec{}, false
	}
	if h, err = openSpec(signed); err != nil {
		s.n.log.Error("a stored spec is damaged", "job", job, "error", err)
		return heldSpec{}, false
	}
	s.cache(job, h)
	return h, true
}

// obtain gets a spec for a seller: from here, or from the first peer that gives
// it. Drivers usually send it ahead of the award, so it waits a moment first.
func (s *specs) obtain(ctx context.Context, job pcm.JobID, want pcm.Digest, from ...pcm.PeerID) (heldSpec, error) {
	if h, ok := s.get(job); ok && h.digest == want {
		return h, nil
	}
	s.mu.Lock()
	ch := s.wait[job]
	if ch == nil {
		ch = make(chan struct{})
		s.wait[job] = ch
	}
	s.mu.Unlock()
	defer func() { // others who wait too wait but a moment
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.wait[job] == ch {
			delete(s.wait, job)
		}
	}()
	select {
	case <-ch:
		if h, ok := s.get(job); ok && h.digest == want {
			return h, nil
		}
	case <-time.After(50 * time.Millisecond):
	case <-ctx.Done():
		return heldSpec{}, ctx.Err()
	}
	err := error(pcm.Errorf(pcm.NotFound, "no peer has the spec of %s", job))
	for _, peer := range from {
		if peer == s.n.self {
			continue
		}
		var resp []byte
		if resp, err = s.n.mesh.Call(ctx, peer, protoSpec, pcm.MustMarshal(specRequest{Job: job, Want: want})); err != nil {
			continue
		}
		var signed pcm.Signed
		if err = pcm.Unmarshal(resp, &signed); err != nil {
			continue
		}
		var h heldSpec
		if h, err = openSpec(signed); err != nil {
			continue
		}
		if h.digest != want {
			err = pcm.Errorf(pcm.Invalid, "peer %s gave another spec for %s than the ledger names", pcm.Short(peer), job)
			continue
		}
		s.cache(job, h)
		return h, nil
	}
	return heldSpec{}, err
}

// send gives a spec to another peer.
func (s *specs) send(ctx context.Context, to pcm.PeerID, job pcm.JobID, h heldSpec, keep bool) error {
	_, err := s.n.mesh.Call(ctx, to, protoSpec, pcm.MustMarshal(specRequest{Job: job, Spec: &h.signed, Keep: keep}))
	return err
}

// serve answers other peers.
func (s *specs) serve(ctx context.Context, from pcm.Passport, req []byte) ([]byte, error) {
	var r specRequest
	if err := pcm.Unmarshal(req, &r); err != nil {
		return nil, err
	}
	if !r.Job.Valid() {
		return nil, pcm.Errorf(pcm.Invalid, "%q is not a job ID", r.Job)
	}
	if r.Spec == nil {
		h, ok := s.get(r.Job)
		if !ok || h.digest != r.Want {
			return nil, pcm.Errorf(pcm.NotFound, "the spec of %s is not here", r.Job)
		}
		if !s.concerned(from, r.Job) {
			return nil, pcm.Errorf(pcm.Forbidden, "the spec of %s is not for peer %s", r.Job, pcm.Short(from.Peer))
		}
		return pcm.MustMarshal(h.signed), nil
	}
	h, err := openSpec(*r.Spec)
	if err != nil {
		return nil, err
	}
	if err := s.welcome(from.Peer, r.Job, h); err != nil {
		return nil, err
	}
	if !r.Keep {
		s.cache(r.Job, h)
		return nil, nil
	}
	// Whoever asks another account to be ready to drive must have submitted the spec itself.
	if string(from.Peer.Public()) != string(r.Spec.Signer) {
		return nil, pcm.Errorf(pcm.Forbidden, "only the peer that submits a job can ask for it to be driven")
	}
	if s.n.draining.Load() {
		return nil, pcm.Errorf(pcm.Unavailable, "peer %s is going down", pcm.Short(s.n.self))
	}
	inputs := h.inputs()
	if len(inputs) > 0 {
		// Anybody can invent jobs; nobody gets room for their inputs.
		if err := s.awaitJob(ctx, r.Job, h.digest); err != nil {
			return nil, err
		}
	}
	if err := s.n.pin(jobOwner(r.Job), inputs...); err != nil {
		return nil, err
	}
	if len(inputs) > 0 {
		if err := s.n.files.FetchAll(ctx, inputs, from.Peer); err != nil {
			s.n.unpin(jobOwner(r.Job))
			return nil, err
		}
	}
	return nil, s.keep(r.Job, h)
}

// concerned tells whether a peer may see what belongs to a job: its buyer's
// peers, its driver and those who may become it, and its sellers.
func (s *specs) concerned(from pcm.Passport, job pcm.JobID) bool {
	ok := false
	s.n.cell.View(func() {
		j, open := s.n.state.Job(job)
		if !open {
			return
		}
		ok = from.Account == j.Buyer || from.Peer == j.Driver || j.MayDrive(from.Peer, from.Account) == nil
		for i := 0; !ok && i < len(j.Places); i++ {
			t, open := s.n.state.Trade(j.Places[i].Trade)
			ok = open && t.Terms.Seller == from.Peer || j.Places[i].Terms != nil && j.Places[i].Terms.Seller == from.Peer
		}
	})
	if ok {
		return true
	}
	// A job that has ended is for its buyer alone; one so new that the ledger here
	// has not got it yet is for whoever this peer drives it with.
	if j, err := s.n.archivedJob(job); err == nil {
		return from.Account == j.Buyer || from.Peer == j.Driver
	}
	return s.n.drivers.mayShare(job, from)
}

// mayRead says who may read which artifact: those whom a job concerns to which it belongs.
func (s *specs) mayRead(from pcm.Passport, root pcm.Digest) bool {
	for _, owner := range s.n.owners.of(root) {
		job, ok := jobOfOwner(owner)
		id, traded := tradeOfOwner(owner)
		var t pcm.Terms
		if traded {
			t, ok = s.n.seller.termsOf(id)
			job = t.Job
		}
		// The job of a trade abroad is not known here: the trade says whom it concerns.
		concerned := ok && t.Abroad() && (from.Account == t.Buyer || from.Peer == t.Driver || s.n.actsHere(from.Peer, &t))
		if concerned || ok && !t.Abroad() && s.concerned(from, job) {
			if !traded {
				return true
			}
			err := s.n.seller.mayGive(id, from.Peer)
			if err == nil {
				return true
			}
			s.n.log.Info("keeps data here", "trade", id, "peer", pcm.Short(from.Peer), "reason", err)
		}
	}
	return false
}

// drop forgets a spec.
func (s *specs) drop(job pcm.JobID) {
	s.mu.Lock()
	s.forget(job)
	s.mu.Unlock()
	if err := removeIfThere(filepath.Join(s.dir, string(job))); err != nil {
		s.n.log.Warn("can't remove a spec that is no longer needed", "job", job, "error", err)
	}
}
