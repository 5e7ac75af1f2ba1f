package node

import (
	"context"
	"path/filepath"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// standbyWait bounds how long a submission waits for another peer to become able to take over.
const standbyWait = 60 * time.Second

// Submit takes a job: it stores the inputs, signs the spec, sees to it that
// another peer could take over if the job allows that, and has Submit committed.
// When it returns, the job survives this peer as far as its takeover allows.
func (n *Node) Submit(ctx context.Context, s api.Submission) (api.Job, error) {
	if n.draining.Load() {
		return api.Job{}, pcm.Errorf(pcm.Unavailable, "this peer is going down and takes no new work")
	}
	if err := n.awaitMember(ctx); err != nil {
		return api.Job{}, err
	}
	job := s.ID
	if job == "" {
		job = pcm.NewJobID()
	}
	if !job.Valid() {
		return api.Job{}, pcm.Errorf(pcm.Invalid, "%q is not a job ID: leave it out, and one is drawn", job)
	}
	if s.ID != "" { // the caller may be repeating a request that took effect
		if err := n.cell.Sync(ctx); err != nil {
			return api.Job{}, err
		}
	}
	var again api.Job
	if err := n.withJob(job, func(j *ledger.Job) { again = jobView(j) }); err == nil {
		return again, nil // a repeated request; one that the copy here doesn't show yet, the ledger knows
	}
	held, err := n.prepareSpec(ctx, job, s)
	if err != nil {
		n.unpin(jobOwner(job))
		return api.Job{}, err
	}
	spec := held.spec
	d, err := n.drivers.prepare(job, held)
	if err != nil {
		return api.Job{}, err
	}
	if err := n.specs.keep(job, held); err != nil {
		n.drivers.cancelPrepared(job)
		n.unpin(jobOwner(job))
		return api.Job{}, err
	}
	var standby sync.WaitGroup
	ask, giveUp := context.WithCancel(ctx)
	defer giveUp()
	standby.Go(func() { n.findStandbys(ask, job, held) })

	budget, unit, err := spec.BudgetAmount()
	if err != nil {
		return api.Job{}, err
	}
	last, err := spec.Deadline.Get(0)
	if err != nil {
		return api.Job{}, err
	}
	payAfter, err := spec.PayAfter.Get(0)
	if err != nil {
		return api.Job{}, err
	}
	op := &pcm.Submit{
		Job: job, Name: spec.Name, Spec: held.digest, Budget: budget, Unit: unit,
		LastMS: last.Milliseconds(), Takeover: spec.Takeover, PayAfterMS: payAfter.Milliseconds(),
	}
	for _, st := range spec.Steps {
		op.Steps = append(op.Steps, st.Outline())
	}
	if op.Mandate, err = n.mandateFor(op); err != nil {
		n.drivers.cancelPrepared(job)
		return api.Job{}, err
	}
	result, err := n.must(ctx, pcm.Op{Submit: op})
	if err != nil { // they wait for the job to be in the ledger
		giveUp()
	}
	standby.Wait()
	if err != nil {
		// Unless the cell said no, the command may still be on its way: what it
		// needs stays, and if the job comes to be, takeOver finds it.
		n.drivers.cancelPrepared(job)
		if pcm.ErrorCode(err) != pcm.Unavailable {
			n.unpin(jobOwner(job))
			n.specs.drop(job)
		}
		return api.Job{}, err
	}
	var fence uint64
	for _, o := range result.Ops { // one, but for a leader that lies
		fence = o.Fence
	}
	n.drivers.begin(d, 1, result.Index, fence)
	return n.jobJustSubmitted(job, op), nil
}

// prepareSpec checks a spec, stores what it names and signs it.
func (n *Node) prepareSpec(ctx context.Context, job pcm.JobID, s api.Submission) (heldSpec, error) {
	spec := s.Spec
	if faults := spec.Normalize(); len(faults) > 0 {
		return heldSpec{}, pcm.Errorf(pcm.Invalid, "the spec is not valid: %w", joinFaults(faults))
	}
	if err := n.checkStrategy(spec.Strategy); err != nil {
		return heldSpec{}, err
	}
	store := func(field, p string) (pcm.Digest, error) {
		path, err := sourcePath(s.Base, p)
		if err != nil {
			return "", err
		}
		d, _, err := n.store.Import(ctx, path, jobOwner(job))
		if err != nil {
			return "", pcm.Errorf(pcm.ErrorCode(err), "%s: %w", field, err)
		}
		n.owners.add(jobOwner(job), d)
		return d, nil
	}
	known := map[string]pcm.Digest{} // each source is stored once
	for i := range spec.Steps {
		st := &spec.Steps[i]
		if st.Module != "" {
			d, err := store("module", st.Module)
			if err != nil {
				return heldSpec{}, err
			}
			st.ModuleAt, st.Module = d, filepath.Base(st.Module)
		}
		for j := range st.Inputs {
			in := &st.Inputs[j]
			d, ok := known[in.Source]
			if !ok {
				var err error
				if d, err = store("input "+in.Source, in.Source); err != nil {
					return heldSpec{}, err
				}
				known[in.Source] = d
			}
			in.Digest, in.Source = d, filepath.Base(in.Source)
		}
	}
	signed := n.id.Peer.Seal(pcm.DomainSpec, spec)
	return openSpec(signed)
}

// sourcePath is the path of a spec's source. A relative one that stands below
// the spec's folder must not lead out of it by a link: who wrote the spec may
// not be who submits it.
func sourcePath(base, p string) (string, error) {
	if filepath.IsAbs(p) {
		return filepath.Clean(p), nil
	}
	if !filepath.IsAbs(base) {
		return "", pcm.Errorf(pcm.Invalid, "the source %q is relative, and no folder is given that it starts from", p)
	}
	path := filepath.Join(base, p)
	if !filepath.IsLocal(p) {
		return path, nil // it says itself that it is elsewhere
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path, nil // not there: the import says so
	}
	folder, err := filepath.EvalSymlinks(base)
	if err != nil {
		return "", pcm.Errorf(pcm.Invalid, "the folder %s of the spec can't be read: %w", base, err)
	}
	if rel, err := filepath.Rel(folder, real); err != nil || !filepath.IsLocal(rel) {
		return "", pcm.Errorf(pcm.Invalid, "the source %q leads out of %s by a symbolic link, to %s: name the real path if you mean it", p, base, real)
	}
	return path, nil
}

// findStandbys gives spec and inputs to up to two peers that could take over.
func (n *Node) findStandbys(ctx context.Context, job pcm.JobID, h heldSpec) {
	const enough = 2
	if h.spec.Takeover == pcm.TakeoverNone {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, standbyWait)
	defer cancel()
	found := 0
	for _, peer := range n.standbyCandidates(h.spec.Takeover) {
		if err := n.specs.send(ctx, peer, job, h, true); err != nil {
			n.log.Warn("a peer can't stand by for a job", "job", job, "standby", pcm.Short(peer), "error", err)
			continue
		}
		if found++; found == enough {
			return
		}
	}
	if found == 0 && h.spec.Takeover == pcm.TakeoverAny {
		n.log.Warn("no other peer stands by for a job: it waits for this peer if this peer goes away", "job", job)
	}
}

// standbyCandidates are connected peers of the cell that may drive a job of this peer's
// account. The ledger also knows peers of other cells, who buy here: they have no copy.
func (n *Node) standbyCandidates(t pcm.Takeover) []pcm.PeerID {
	connected := map[pcm.PeerID]bool{}
	roles := n.roles()
	for _, p := range n.mesh.Peers() {
		_, here := roles[p.Passport.Peer]
		connected[p.Passport.Peer] = p.Connected && here
	}
	var list []pcm.PeerID
	n.cell.View(func() {
		for _, m := range n.state.Members() {
			if m.Peer != n.self && connected[m.Peer] && (t == pcm.TakeoverAny || m.Account == n.account) {
				list = append(list, m.Peer)
			}
		}
	})
	return list
}

// awaitMember waits until the cell knows this peer.
func (n *Node) awaitMember(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	select {
	case <-n.member:
		if n.cell.Outside() { // it was a member: nobody would hear of the job
			return pcm.Errorf(pcm.Refused, "%s", n.notReady())
		}
		return nil
	case <-ctx.Done():
		return pcm.Errorf(pcm.Unavailable, "this peer is not yet a member of %s (%s): see 'pcm status'", n.id.Mesh.CellName, n.notReady())
	}
}

func joinFaults(faults []error) error {
	text := ""
	for i, f := range faults {
		if i > 0 {
			text += "; "
		}
		text += f.Error()
	}
	return pcm.Errorf(pcm.Invalid, "%s", text)
}
