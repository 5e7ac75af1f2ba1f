package ledger

import (
	"maps"
	"slices"
	"strings"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// remembered is a command that was applied: its copies get the same answer.
type remembered struct {
	NotAfter int64             `cbor:"1,keyasint"`
	Peer     pcm.PeerID        `cbor:"2,keyasint"`
	Result   pcm.CommandResult `cbor:"3,keyasint"`
	Recorded bool              `cbor:"4,keyasint,omitempty"` // from level 3 on: it made a record
}

// Bounds of the memory for command IDs.
const (
	seenBucket  = 10_000 // ms
	maxSeenEach = 50_000 // IDs of one peer that are remembered at a time
	maxMessage  = 512    // bytes of a refusal that is remembered
)

func bucketOf(notAfter int64) int64 { return notAfter / seenBucket }

// applying is the context of one entry.
type applying struct {
	*State
	index   uint64
	nth     int // of the current operation in its command
	entry   pcm.Entry
	by      *Member // signer of the current command; nil while time acts
	facts   []pcm.Fact
	placed  *placed // by the last Place that took effect
	effects *pcm.Effects
}

// Check tells whether a payload has the form of a command: what can be known
// without any state. It is called before a command is proposed.
func Check(c pcm.Signed) (pcm.Command, error) {
	var cmd pcm.Command
	if len(c.Payload) > pcm.MaxCommand {
		return cmd, pcm.Errorf(pcm.TooLarge, "command of %d bytes is over the bound of %d", len(c.Payload), pcm.MaxCommand)
	}
	if err := pcm.Unmarshal(c.Payload, &cmd); err != nil {
		return cmd, err
	}
	if cmd.Version != pcm.CommandVersion {
		return cmd, pcm.Errorf(pcm.Invalid, "command of version %d, this cell reads %d: update the older peer", cmd.Version, pcm.CommandVersion)
	}
	if len(cmd.Ops) == 0 || len(cmd.Ops) > pcm.MaxOps {
		return cmd, pcm.Errorf(pcm.Invalid, "command has %d operations: 1 to %d", len(cmd.Ops), pcm.MaxOps)
	}
	for _, op := range cmd.Ops {
		if op.Kind() == "" {
			return cmd, pcm.Errorf(pcm.Invalid, "an operation of the command is empty or double")
		}
	}
	if !slices.Equal(cmd.Peer.Public(), c.Signer) {
		return cmd, pcm.Errorf(pcm.Unauthorized, "command of %s is signed by somebody else", pcm.Short(cmd.Peer))
	}
	return cmd, nil
}

// Apply brings the state one entry further. Signatures have been checked, and
// that the entry's version is known: whoever decodes entries must stop at one
// that isn't, as a replica that skips it would differ from the others. A command
// that can't be applied is a typed result; Apply never fails.
func (s *State) Apply(index uint64, e pcm.Entry) pcm.Effects {
	effects := pcm.Effects{First: s.records}
	a := &applying{State: s, index: index, entry: e, effects: &effects}
	s.stamp = max(s.stamp, e.Stamp)
	s.forget()
	s.forgetVoids()
	a.time()
	for i, c := range e.Commands {
		var decoded *pcm.Command
		if len(e.Decoded) == len(e.Commands) {
			decoded = &e.Decoded[i]
		}
		effects.Results = append(effects.Results, a.command(c, decoded))
	}
	return effects
}

// time lets log time act: leases, deadlines, and a new leader's re-grant.
func (a *applying) time() {
	worth := false
	if a.entry.NewTerm {
		worth = a.regrant()
	}
	a.expire()
	if worth || len(a.facts) > 0 {
		a.record(pcm.Record{NewTerm: a.entry.NewTerm && worth})
	}
}

// command applies one command; decoded is what Check makes of it, if that is known.
func (a *applying) command(c pcm.Signed, decoded *pcm.Command) pcm.CommandResult {
	refuse := func(err error) pcm.CommandResult {
		return pcm.CommandResult{Index: a.index, Err: pcm.AsError(err)}
	}
	var cmd pcm.Command
	if decoded != nil {
		cmd = *decoded
	} else {
		var err error
		if cmd, err = Check(c); err != nil {
			return refuse(err)
		}
	}
	if cmd.Mesh != a.genesis.Mesh || cmd.Cell != a.genesis.Cell {
		return refuse(pcm.Errorf(pcm.Invalid, "command is for %s of %s, this is %s of %s", cmd.Cell, cmd.Mesh, a.genesis.Cell, a.genesis.Mesh))
	}
	if err := a.gate(cmd); err != nil {
		return refuse(err) // nothing of it is remembered: who can't read it doesn't either
	}
	if r, ok := a.seen[cmd.ID]; ok {
		if r.Peer != cmd.Peer {
			return refuse(pcm.Errorf(pcm.Conflict, "command ID %s was used by another peer", cmd.ID))
		}
		return r.Result
	}
	if cmd.NotAfter < a.stamp || cmd.NotAfter > a.stamp+pcm.CommandWindow {
		return refuse(pcm.Errorf(pcm.Conflict, "command is valid until log time %d, it is %d now: propose it anew", cmd.NotAfter, a.stamp))
	}
	// A command may begin by making its signer known.
	known := a.members[cmd.Peer]
	if known == nil && cmd.Ops[0].Enroll == nil {
		return refuse(pcm.Errorf(pcm.Unauthorized, "peer %s is not known to %s: enroll it first", pcm.Short(cmd.Peer), pcm.Short(a.genesis.Cell)))
	}
	if known != nil && cmd.Ops[0].Enroll == nil && a.entry.Wall > known.NotAfter+pcm.Skew.Milliseconds() {
		return refuse(pcm.Errorf(pcm.Unauthorized, "the passport of peer %s expired: enroll a renewed one", pcm.Short(cmd.Peer)))
	}
	if known != nil && known.Seen >= maxSeenEach {
		return refuse(pcm.Errorf(pcm.Busy, "peer %s has %d commands within their validity: retry in a minute", pcm.Short(cmd.Peer), known.Seen))
	}
	result := pcm.CommandResult{Index: a.index}
	done, worth := 0, false
	for i := range cmd.Ops {
		a.by = a.members[cmd.Peer]
		op := &cmd.Ops[i]
		a.nth = i
		var r pcm.OpResult
		var w bool
		if err := a.maySpeak(op); err != nil {
			r.Err = err
		} else {
			r, w = a.op(cmd.Peer, op)
		}
		if r.Err != nil {
			r.Err = &pcm.Error{Code: r.Err.Code, Message: clip(r.Err.Message), Op: op.Kind()}
		}
		result.Ops = append(result.Ops, r)
		if r.Err != nil {
			// Place and Award in one command are one step: a refused award leaves no placement behind.
			if op.Award != nil && i > 0 && cmd.Ops[i-1].Place != nil {
				a.unplace()
				done--
				worth = worth && done > 0
			}
			break
		}
		done++
		worth = worth || w
	}
	a.by = nil
	a.remember(cmd, result, worth && a.Level() >= baseLevel)
	if worth {
		a.record(pcm.Record{Command: &c, Done: done})
	}
	return result
}

// maySpeak tells whether the signer is known and its passport good, which an
// enrolment ahead of the operation may or may not have brought about.
func (a *applying) maySpeak(op *pcm.Op) *pcm.Error {
	switch {
	case op.Enroll != nil:
	case a.by == nil:
		return pcm.Errorf(pcm.Unauthorized, "its peer is not known to %s: enroll it first", pcm.Short(a.genesis.Cell))
	case a.entry.Wall > a.by.NotAfter+pcm.Skew.Milliseconds():
		return pcm.Errorf(pcm.Unauthorized, "the passport of peer %s expired: enroll a renewed one", pcm.Short(a.by.Peer))
	}
	return nil
}

// clip bounds a message that is kept: refusals quote what a stranger sent. It
// stays valid UTF-8, as a snapshot that holds it must be.
func clip(message string) string {
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	return strings.ToValidUTF8(message, "")
}

// op applies one operation. The second result tells whether it belongs in the ledger.
func (a *applying) op(peer pcm.PeerID, op *pcm.Op) (pcm.OpResult, bool) {
	var err error
	var skipped pcm.Spans
	worth := true
	switch {
	case op.Enroll != nil:
		worth, err = a.enroll(peer, op.Enroll)
	case op.Burn != nil:
		worth, err = a.burn(op.Burn)
	case op.Capacity != nil:
		worth, err = a.capacity(op.Capacity)
	case op.Renew != nil:
		worth, err = a.renew(op.Renew)
	case op.Submit != nil:
		worth, err = a.submit(op)
	case op.Drive != nil:
		err = a.drive(op)
	case op.Place != nil:
		worth, err = a.place(op)
	case op.Award != nil:
		worth, err = a.award(op)
	case op.Reject != nil:
		skipped, err = a.reject(op)
	case op.Start != nil:
		skipped, err = a.start(op)
	case op.Meter != nil:
		err = a.meter(op)
	case op.Finish != nil:
		skipped, err = a.finish(op)
	case op.Accept != nil:
		skipped, err = a.accept(op)
	case op.Abandon != nil:
		skipped, err = a.abandon(op)
	case op.Settle != nil:
		err = a.settle(op)
	case op.Dispute != nil:
		err = a.dispute(op)
	case op.Stop != nil:
		skipped, err = a.stop(op)
	case op.Cancel != nil:
		err = a.cancel(op)
	case op.NoteKey != nil:
		worth, err = a.noteKey(op.NoteKey)
	case op.Scale != nil:
		worth, err = a.scale(op)
	case op.Void != nil:
		worth, err = a.void(op.Void)
	case op.Clear != nil:
		err = a.clear(op)
	case op.Net != nil:
		worth, err = a.net(op.Net)
	case op.Resolve != nil:
		err = a.resolve(op)
	case op.Set != nil:
		worth, err = a.set(op.Set)
	case op.Upgrade != nil:
		worth, err = a.upgrade(op.Upgrade)
	case op.Recovered != nil:
		err = a.recovered(op.Recovered)
	case op.Base != nil:
		err = a.makeBase(op.Base)
	case op.Succeed != nil:
		worth, err = a.succeed(op)
	}
	if err != nil {
		return pcm.OpResult{Err: pcm.AsError(err)}, false
	}
	r := pcm.OpResult{Skipped: skipped}
	if op.Submit != nil {
		r.Fence = a.jobs[op.Submit.Job].Fence
	}
	return r, worth
}

// remember keeps the command's ID and answer until it is no longer valid.
func (a *applying) remember(cmd pcm.Command, result pcm.CommandResult, recorded bool) {
	m := a.members[cmd.Peer]
	if m == nil {
		return // its enrolment was refused: nothing took effect
	}
	m.Seen++
	a.seen[cmd.ID] = remembered{cmd.NotAfter, cmd.Peer, result, recorded}
	b := bucketOf(cmd.NotAfter)
	a.buckets[b] = append(a.buckets[b], cmd.ID)
}

// forget drops the IDs of commands that would be refused by time. Buckets are
// few: a command is valid for CommandWindow at most.
func (s *State) forget() {
	for _, b := range slices.Sorted(maps.Keys(s.buckets)) {
		if b >= bucketOf(s.stamp) {
			break
		}
		for _, id := range s.buckets[b] {
			if m := s.members[s.seen[id].Peer]; m != nil {
				m.Seen--
			}
			delete(s.seen, id)
		}
		delete(s.buckets, b)
	}
}

// record appends a record with the facts gathered so far.
func (a *applying) record(r pcm.Record) {
	r.Number, r.Index, r.Stamp, r.Wall = a.records, a.index, a.stamp, a.entry.Wall
	r.Facts, a.facts = a.facts, nil
	leaf := pcm.MustMarshal(r)
	if err := a.tree.Append(rfc6962.DefaultHasher.HashLeaf(leaf), nil); err != nil {
		panic(err) // ranges begin at 0 and grow by one
	}
	a.records++
	a.effects.Records = append(a.effects.Records, leaf)
}

// fact notes what follows, for the record and for those whom it concerns.
func (a *applying) fact(f pcm.Fact, job pcm.JobID, t *Trade, to ...pcm.PeerID) {
	a.facts = append(a.facts, f)
	e := pcm.Event{Index: a.index, Stamp: a.stamp, Job: job, Fact: &f, To: to}
	if t != nil {
		terms := t.Terms
		e.Trade, e.Terms = t.ID, &terms
	}
	a.effects.Events = append(a.effects.Events, e)
}

// event tells of an op that took effect.
func (a *applying) event(op *pcm.Op, job pcm.JobID, t *Trade, to ...pcm.PeerID) {
	e := pcm.Event{Index: a.index, Stamp: a.stamp, By: a.by.Peer, Job: job, Op: op, To: to}
	if t != nil {
		terms := t.Terms
		e.Trade, e.Terms = t.ID, &terms
	}
	a.effects.Events = append(a.effects.Events, e)
}

// document puts something that is closed among the documents.
func (a *applying) document(key string, v any) {
	a.effects.Documents = append(a.effects.Documents, pcm.Document{Key: key, Value: pcm.MustMarshal(v)})
}
