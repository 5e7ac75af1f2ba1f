package node

import (
	"context"
	"encoding/hex"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// protoCheckpoint lets peers of a cell sign and compare the heads of its log.
const protoCheckpoint = "/pcm/checkpoint/1"

// checkpointRequest asks another peer of the cell about the log.
type checkpointRequest struct {
	Cell pcm.CellID `cbor:"1,keyasint"`
	Want string     `cbor:"2,keyasint"`           // one of the wants
	Note []byte     `cbor:"3,keyasint,omitempty"` // with wantSign: the checkpoint to sign, with what signatures it has
}

// What can be wanted.
const (
	wantLast   = "last"   // what the other one signed and served last
	wantSign   = "sign"   // its signature
	wantGather = "gather" // a checkpoint for which it asks all voters
)

type checkpointAnswer struct {
	Note   []byte `cbor:"1,keyasint,omitempty"` // signed by the answering peer, or gathered by it
	Served []byte `cbor:"2,keyasint,omitempty"` // what it served last
	Reason string `cbor:"3,keyasint,omitempty"` // why it did not sign; Note is what it signed last
}

// maxCheckpointRequest bounds a request, in bytes.
const maxCheckpointRequest = tlog.MaxCheckpoint + 256

// ask sends a request to a peer of the cell.
func (t *transparency) ask(ctx context.Context, to pcm.PeerID, want string, note []byte) (checkpointAnswer, error) {
	var a checkpointAnswer
	ctx, cancel := context.WithTimeout(ctx, voterWait)
	defer cancel()
	body, err := t.n.mesh.Call(ctx, to, protoCheckpoint, pcm.MustMarshal(checkpointRequest{t.n.id.Mesh.Cell, want, note}))
	if err != nil {
		return a, err
	}
	return a, pcm.Unmarshal(body, &a)
}

// serve answers such a request.
func (t *transparency) serve(ctx context.Context, from pcm.Passport, body []byte) ([]byte, error) {
	var req checkpointRequest
	if err := pcm.Unmarshal(body, &req); err != nil {
		return nil, err
	}
	if err := t.ofCell(req.Cell); err != nil {
		return nil, err
	}
	if _, ours := t.n.roles()[from.Peer]; !ours {
		return nil, pcm.Errorf(pcm.Forbidden, "peer %s is no replica of %s: ask for its log over HTTP", pcm.Short(from.Peer), pcm.Short(req.Cell))
	}
	var a checkpointAnswer
	switch req.Want {
	case wantLast:
		t.latestMu.Lock()
		a.Served = t.latest
		t.latestMu.Unlock()
		a.Note = t.lastSigned()
	case wantSign:
		c, err := t.accept(ctx, req.Note)
		if err != nil {
			return nil, err
		}
		note, err := t.sign(ctx, c)
		switch {
		case pcm.ErrorCode(err) == pcm.Conflict:
			a.Note, a.Reason = t.lastSigned(), err.Error()
		case err != nil:
			return nil, err
		default:
			a.Note = note
		}
	case wantGather:
		note, err := t.checkpoint(ctx, false)
		if err != nil {
			return nil, err
		}
		a.Note = note
	default:
		return nil, pcm.Errorf(pcm.Invalid, "%.20q can't be wanted", req.Want)
	}
	return pcm.Marshal(a)
}

// sign signs a checkpoint as a voter: only one of records that are committed,
// applied and durable here, not smaller than the last one, of which it is a
// continuation, and not before this peer has seen, since its start, that its
// records are those that a quorum signed. What is signed is noted durably before
// the signature leaves this function. Errors: Conflict if it was overtaken or is
// of another history; Unavailable if it can't be judged now; Refused.
func (t *transparency) sign(ctx context.Context, c tlog.Checkpoint) ([]byte, error) {
	t.signing.Lock()
	defer t.signing.Unlock()
	if !t.bound() {
		return nil, pcm.Errorf(pcm.Unavailable, "the note key of peer %s is not bound to it by the ledger", pcm.Short(t.n.self))
	}
	if err := t.prove(ctx); err != nil {
		return nil, err
	}
	last, err := tlog.ParseCheckpoint(t.lastSigned())
	if err != nil {
		return nil, err
	}
	if c.Size < last.Size {
		return nil, pcm.Errorf(pcm.Conflict, "peer %s has signed %d records and signs no fewer: asked for %d", pcm.Short(t.n.self), last.Size, c.Size)
	}
	tree, err := t.treeOf(ctx, c.Size)
	if err != nil {
		return nil, err
	}
	if err := t.follows(ctx, tree, last); err != nil {
		return nil, err
	}
	if ok, err := tree.Extends(ctx, c); err != nil {
		return nil, err
	} else if !ok {
		return nil, pcm.Errorf(pcm.Conflict, "the ledger of peer %s has another root at %d records", pcm.Short(t.n.self), c.Size)
	}
	if c == last {
		if note := tlog.Merge(c, []tlog.Key{t.signer.Key}, t.lastSigned()); note != nil {
			return note, nil
		}
	}
	if err := t.n.cell.SyncHistory(); err != nil {
		return nil, err
	}
	note := t.signer.Sign(c)
	if err := t.remember(note); err != nil {
		return nil, err
	}
	return note, nil
}

// follows tells whether this peer's log goes on from what it signed last. If
// not, the alarm is raised. The caller holds t.signing.
func (t *transparency) follows(ctx context.Context, tree *tlog.Tree, last tlog.Checkpoint) error {
	ok, err := tree.Extends(ctx, last)
	if err == nil && !ok {
		t.alarm(ctx, t.lastSigned(), tree)
		err = pcm.Errorf(pcm.Conflict, "the ledger of peer %s is not the one that it signed at %d records: it signs nothing", pcm.Short(t.n.self), last.Size)
	}
	return err
}

// prove shows once, after the start, that this peer's records go on from what a
// quorum of the voters, itself included, signed last: the folder may have been
// restored or have lost what it signed. A lone voter that lost it can't know, and
// signs with another key from then on. The caller holds t.signing.
func (t *transparency) prove(ctx context.Context) error {
	if t.proven {
		return nil
	}
	voters := t.n.cell.Voters()
	if !slices.Contains(voters, t.n.self) {
		return pcm.Errorf(pcm.Unavailable, "peer %s does not vote in %s", pcm.Short(t.n.self), pcm.Short(t.n.id.Mesh.Cell))
	}
	others := slices.DeleteFunc(voters, func(id pcm.PeerID) bool { return id == t.n.self })
	if len(others) == 0 && t.lastSigned() == nil {
		return t.rotate()
	}
	if own, err := tlog.ParseCheckpoint(t.lastSigned()); err == nil {
		tree, err := t.treeOf(ctx, own.Size)
		if err == nil {
			err = t.follows(ctx, tree, own)
		}
		if err != nil {
			return err
		}
	}
	answers := make([]*checkpointAnswer, len(others))
	var wg sync.WaitGroup
	for i, id := range others {
		wg.Go(func() {
			if a, err := t.ask(ctx, id, wantLast, nil); err == nil {
				answers[i] = &a
			}
		})
	}
	wg.Wait()
	agree, last := 1, t.lastSigned()
	for _, a := range answers {
		if a == nil {
			continue
		}
		for _, note := range [][]byte{a.Note, a.Served} {
			if note == nil {
				continue
			}
			c, err := t.accept(ctx, note)
			if err != nil {
				return err
			}
			if had, err := tlog.ParseCheckpoint(last); err != nil || c.Size > had.Size {
				last = note
			}
		}
		agree++
	}
	if need := quorum(len(others) + 1); agree < need {
		return pcm.Errorf(pcm.Unavailable, "peer %s has to see what a quorum of the voters signed last, before it signs: %d of %d could be asked", pcm.Short(t.n.self), agree, need)
	}
	if last == nil {
		last = t.nothing()
	}
	if err := t.remember(last); err != nil {
		return err
	}
	t.proven = true
	return nil
}

// rotate makes another note key: nobody can show what was signed with the old one.
func (t *transparency) rotate() error {
	key := pcm.NewKey()
	t.log.Warn("this peer has lost what it signed, and no other voter could show it: it signs with another key from now on")
	if err := writeFile(filepath.Join(t.n.cfg.Dir, noteKeyFile), []byte(hex.EncodeToString(key.Seed())+"\n")); err != nil {
		return err
	}
	t.signer = tlog.NewSigner(t.n.id.Mesh.Cell, key)
	if err := t.remember(t.nothing()); err != nil {
		return err
	}
	return pcm.Errorf(pcm.Unavailable, "peer %s has made another note key, which the ledger does not know yet", pcm.Short(t.n.self))
}

// accept judges a checkpoint by another peer: it must be signed by a peer that
// signs, and its log must be a part of this peer's own; else the alarm is raised.
// Errors: Invalid, Unauthorized; Unavailable if this peer is not as far yet; Conflict.
func (t *transparency) accept(ctx context.Context, note []byte) (tlog.Checkpoint, error) {
	keys, _ := t.keys()
	c, by, err := tlog.Open(note, keys)
	if err != nil {
		return c, err
	}
	switch {
	case c.Origin != t.origin():
		return c, pcm.Errorf(pcm.Invalid, "the checkpoint is of %s, this is %s", c.Origin, t.origin())
	case len(by) == 0 && (c.Size > 0 || c.Root != tlog.EmptyRoot):
		return c, pcm.Errorf(pcm.Unauthorized, "the checkpoint is signed by no peer that signs for %s", pcm.Short(t.n.id.Mesh.Cell))
	}
	tree, err := t.treeOf(ctx, c.Size)
	if err != nil {
		return c, err
	}
	ok, err := tree.Extends(ctx, c)
	if err != nil {
		return c, err
	}
	if !ok {
		t.alarm(ctx, note, tree)
		return c, pcm.Errorf(pcm.Conflict, "the checkpoint of %d records is of another history than this peer's", c.Size)
	}
	return c, nil
}

// checkpoint is the present head with the signatures that could be had in time.
// It is at most checkpointAge behind, unless nobody else can be reached. ahead
// tells to leave it to the leader, so that all peers serve the same.
func (t *transparency) checkpoint(ctx context.Context, ahead bool) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, checkpointWait)
	defer cancel()
	select {
	case t.gather <- struct{}{}:
		defer func() { <-t.gather }()
	case <-ctx.Done():
		return nil, pcm.Errorf(pcm.Unavailable, "the voters of %s take long to sign: try again in a moment", pcm.Short(t.n.id.Mesh.Cell))
	}
	t.latestMu.Lock()
	latest, at := t.latest, t.latestAt
	t.latestMu.Unlock()
	if latest != nil && (time.Since(at) < checkpointAge || t.complete(latest)) {
		return latest, nil
	}
	note, err := t.fresh(ctx, ahead)
	if err != nil {
		if latest != nil {
			t.log.Debug("an older checkpoint is served", "error", err)
			return latest, nil
		}
		return nil, err
	}
	t.latestMu.Lock()
	t.latest, t.latestAt = note, time.Now()
	t.latestMu.Unlock()
	t.see(ctx, note)
	return note, nil
}

// complete tells whether a checkpoint is of the present head, with all signatures that there can be.
func (t *transparency) complete(note []byte) bool {
	keys, _ := t.keys()
	c, by, err := tlog.Open(note, keys)
	return err == nil && c == t.tree().Head() && len(by) == len(keys)
}

func (t *transparency) fresh(ctx context.Context, ahead bool) ([]byte, error) {
	leader := t.n.cell.Status().Leader
	if ahead && leader != "" && leader != t.n.self {
		a, err := t.ask(ctx, leader, wantGather, nil)
		if err == nil {
			_, err = t.accept(ctx, a.Note)
		}
		if err == nil {
			return a.Note, nil
		}
		t.log.Debug("the leader gave no checkpoint", "error", err)
	}
	note, overtaken, err := t.gatherOnce(ctx, 0)
	if overtaken > 0 { // a voter has signed more: once more, with as much
		if again, _, err := t.gatherOnce(ctx, overtaken); err == nil {
			return again, nil
		}
	}
	return note, err
}

// gatherOnce signs the present head, of at least size records, and asks the
// other voters to sign it too. overtaken is the size of the greatest checkpoint
// for which a voter did not sign, if a quorum is missing.
func (t *transparency) gatherOnce(ctx context.Context, size uint64) (note []byte, overtaken uint64, err error) {
	tree, err := t.treeOf(ctx, size)
	if err != nil {
		return nil, 0, err
	}
	c := tree.Head()
	own, err := t.sign(ctx, c)
	if err != nil {
		return nil, 0, err
	}
	keys, of := t.keys()
	notes := make([][]byte, len(of))
	had := make([]uint64, len(of))
	var wg sync.WaitGroup
	for i, id := range of {
		if id == t.n.self {
			notes[i] = own
			continue
		}
		wg.Go(func() {
			a, err := t.ask(ctx, id, wantSign, own)
			switch {
			case err != nil:
				t.log.Debug("a voter did not sign", "peer", pcm.Short(id), "error", err)
			case a.Reason != "":
				if last, err := t.accept(ctx, a.Note); err == nil {
					had[i] = last.Size
				}
			default:
				notes[i] = a.Note
			}
		})
	}
	wg.Wait()
	note = tlog.Merge(c, keys, notes...)
	if _, by, err := tlog.Open(note, keys); err != nil {
		return nil, 0, err
	} else if len(by) < quorum(len(keys)) && len(had) > 0 {
		overtaken = slices.Max(had)
	}
	return note, overtaken, nil
}

// see notes the greatest checkpoint that this peer saw, and holds the ledger
// against the one before: it survives a restart, and a ledger that is replaced.
func (t *transparency) see(ctx context.Context, note []byte) {
	c, err := tlog.ParseCheckpoint(note)
	if err != nil {
		return
	}
	t.latestMu.Lock()
	seen := t.seen
	t.latestMu.Unlock()
	if had, err := tlog.ParseCheckpoint(seen); err == nil {
		if had.Size > c.Size || had == c {
			return
		}
		tree, err := t.treeOf(ctx, had.Size)
		if err != nil {
			return
		}
		ok, err := tree.Extends(ctx, had)
		if err != nil {
			return
		}
		if !ok {
			t.alarm(ctx, seen, tree)
			return
		}
	}
	if err := writeFile(filepath.Join(t.dir, seenFile), note); err != nil {
		t.log.Warn("can't note the checkpoint that was seen", "error", err)
		return
	}
	t.latestMu.Lock()
	t.seen = note
	t.latestMu.Unlock()
}
