package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
)

// logChecks is what Verify and Audit check besides the records themselves.
var logChecks = []string{
	"the checkpoint is signed by a quorum of those who sign, each with the key that the ledger binds to it",
	"the ledger goes on from the last checkpoint that was seen here",
}

// signedHead is a checkpoint as a view, with the peers that signed it.
func signedHead(c tlog.Checkpoint, note []byte, by []tlog.Key, bound []pcm.NoteKey) *api.SignedHead {
	v := &api.SignedHead{Size: c.Size, Root: hex.EncodeToString(c.Root[:]), Note: string(note), Signers: []pcm.PeerID{}, Voters: len(bound), Quorum: quorum(len(bound))}
	for _, k := range bound {
		if slices.ContainsFunc(by, func(o tlog.Key) bool { return slices.Equal(o.Public, k.Key) }) {
			v.Signers = append(v.Signers, k.Peer)
		}
	}
	return v
}

// quorumWait is how long Verify waits for the voters' signatures.
const quorumWait = 8 * time.Second

// verifyHead completes a verdict by what the voters have signed.
func (t *transparency) verifyHead(ctx context.Context, out *api.Verdict) {
	ctx, cancel := context.WithTimeout(ctx, quorumWait)
	defer cancel()
	for {
		note, err := t.checkpoint(ctx, true)
		var c tlog.Checkpoint
		var by []tlog.Key
		if err == nil {
			var keys []tlog.Key
			keys, _ = t.keys()
			c, by, err = tlog.Open(note, keys)
		}
		if err == nil {
			var bound []pcm.NoteKey
			voters := t.n.cell.Voters()
			t.n.cell.View(func() { bound = t.n.state.NoteKeys() })
			bound = slices.DeleteFunc(bound, func(k pcm.NoteKey) bool { return !slices.Contains(voters, k.Peer) })
			out.Checkpoint = signedHead(c, note, by, bound)
			out.Checkpoint.Voters, out.Checkpoint.Quorum = len(voters), quorum(len(voters))
			if len(out.Checkpoint.Signers) >= out.Checkpoint.Quorum {
				out.Problem = ""
				break
			}
			out.Problem = fmt.Sprintf("the checkpoint of %d records is signed by %d of %d voters, a quorum is %d: are the others up?", c.Size, len(out.Checkpoint.Signers), len(voters), out.Checkpoint.Quorum)
		} else {
			out.Problem = "there is no signed checkpoint: " + err.Error()
		}
		if !pause(ctx, 200*time.Millisecond) {
			break
		}
	}
	if cases := t.alarms.warnings(); len(cases) > 0 {
		out.Problem = cases[0]
	}
}

// AuditSource is a log as an outsider sees it. Nothing of it is believed.
type AuditSource struct {
	Checkpoint func(ctx context.Context) ([]byte, error)
	Read       tlog.Reader
	// Base brings the file "base" of the log: NotFound where all entries are served.
	// Nil: all entries are to be read.
	Base func(ctx context.Context) ([]byte, error)
}

// MaxBase bounds the file "base" of a log.
const MaxBase = 1 << 30

// baseMagic begins that file; the number of records before the base follows on a line
// of its own, then its state.
const baseMagic = "pcm base 1\n"

func baseFile(size uint64, state []byte) []byte {
	return append(fmt.Appendf(nil, "%s%d\n", baseMagic, size), state...)
}

func parseBase(file []byte) (size uint64, state []byte, err error) {
	rest, ok := bytes.CutPrefix(file, []byte(baseMagic))
	line, state, found := bytes.Cut(rest, []byte("\n"))
	size, err = strconv.ParseUint(string(line), 10, 64)
	if !ok || !found || err != nil || size == 0 || size > tlog.MaxSize {
		return 0, nil, pcm.Errorf(pcm.Invalid, "the log's base is none")
	}
	return size, state, nil
}

// openBase is the state from which a log can be verified whose first entries its
// server has no more; nil if it has them all.
func openBase(ctx context.Context, src AuditSource, tree *tlog.Tree, cell pcm.CellID) (*ledger.State, *api.LedgerBase, error) {
	if src.Base == nil {
		return nil, nil, nil
	}
	file, err := src.Base(ctx)
	if pcm.ErrorCode(err) == pcm.NotFound {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	size, encoded, err := parseBase(file)
	if err != nil {
		return nil, nil, err
	}
	list, err := tree.Entries(ctx, size/tlog.Width)
	if err != nil {
		return nil, nil, err
	}
	if size%tlog.Width >= uint64(len(list)) {
		return nil, nil, pcm.Errorf(pcm.Invalid, "the log's base is of %d records, the log has %d", size, tree.Head().Size)
	}
	record := list[size%tlog.Width]
	s, err := ledger.OpenBase(ledger.Genesis{Cell: cell}, record, encoded)
	if err != nil {
		return nil, nil, err
	}
	if g := s.Genesis(); pcm.NewMeshID(g.Root) != g.Mesh {
		return nil, nil, pcm.Errorf(pcm.Invalid, "the root key of the log's base is not that of %s", g.Mesh)
	}
	return s, baseView(record, size/tlog.Width*tlog.Width), nil
}

// Pins are what an outsider knows about a log from elsewhere; the zero value knows nothing.
type Pins struct {
	Mesh pcm.MeshID // "": what the log says
	Keys []tlog.Key // of those who sign: a majority must have signed
	Seen []byte     // the last checkpoint that the outsider saw; nil: none
}

// Audit checks a whole log from outside: every tile and entry against the
// checkpoint, the checkpoint against the keys that the ledger binds to peers,
// the peers against the mesh's root key, and all that [ledger.Verify] checks. A
// verdict that is not OK says what is wrong; an error that it could not be found out.
// Split is true if the log contradicts the checkpoint that was seen before.
func Audit(ctx context.Context, src AuditSource, pins Pins) (out api.Verdict, split bool, err error) {
	began := time.Now()
	note, err := src.Checkpoint(ctx)
	if err != nil {
		return out, false, err
	}
	head, err := tlog.ParseCheckpoint(note)
	if err != nil {
		return out, false, err
	}
	cell, ok := head.Cell()
	if !ok {
		return out, false, pcm.Errorf(pcm.Invalid, "%q is not the origin of a cell's log", head.Origin)
	}
	out = api.Verdict{ID: string(cell), Cell: cell, Checks: append(slices.Clone(ledger.Checks), logChecks...), Records: head.Size, Root: hex.EncodeToString(head.Root[:])}
	done := func(format string, args ...any) (api.Verdict, bool, error) {
		out.Problem = fmt.Sprintf(format, args...)
		out.OK, out.TookMS = out.Problem == "", time.Since(began).Milliseconds()
		return out, split, nil
	}
	if head.Size == 0 {
		return done("the log has no records")
	}
	tree := tlog.NewTree(head, src.Read)
	begin, base, err := openBase(ctx, src, tree, cell)
	switch {
	case pcm.ErrorCode(err) == pcm.Invalid:
		return done("%v", err)
	case err != nil:
		return out, false, err
	case base == nil:
		first, err := tree.Entries(ctx, 0)
		if err != nil {
			return out, false, err
		}
		genesis, err := founding(cell, first[0])
		if err != nil {
			zero := uint64(0)
			out.Bad = &zero
			return done("%v", err)
		}
		begin = ledger.New(genesis)
	}
	out.Mesh, out.Base = begin.Genesis().Mesh, base
	if pins.Mesh != "" && pins.Mesh != out.Mesh {
		return done("the log is of %s, not of %s", out.Mesh, pins.Mesh)
	}
	from, _ := begin.Root()
	var broken error
	v, state := begin.Verify(entries(ctx, tree, from, &broken))
	out.Signatures, out.Bad = v.Signatures, v.Bad
	switch {
	case broken != nil && pcm.ErrorCode(broken) != pcm.Invalid:
		return out, false, broken // the server did not answer
	case v.Bad != nil:
		return done("%s", v.Problem)
	case v.Records != head.Size || v.Root != head.Root:
		return done("the records do not hash to the root of the checkpoint")
	}
	bound := state.NoteKeys()
	keys := make([]tlog.Key, len(bound))
	for i, k := range bound {
		keys[i] = tlog.NewKey(cell, k.Key)
	}
	_, by, err := tlog.Open(note, keys)
	if err != nil {
		return done("%v", err)
	}
	out.Checkpoint = signedHead(head, note, by, bound)
	if n := len(out.Checkpoint.Signers); n < out.Checkpoint.Quorum {
		return done("the checkpoint is signed by %d of the %d peers that sign for this ledger, a quorum is %d", n, len(bound), out.Checkpoint.Quorum)
	}
	if len(pins.Keys) > 0 {
		_, by, err := tlog.Open(note, pins.Keys)
		if err != nil {
			return done("%v", err)
		}
		if need := quorum(len(pins.Keys)); len(by) < need {
			return done("the checkpoint is signed by %d of the %d keys that were given, at least %d are wanted", len(by), len(pins.Keys), need)
		}
	}
	known := len(pins.Keys) > 0
	if seen, err := tlog.ParseCheckpoint(pins.Seen); err == nil && seen.Origin == head.Origin {
		known = true
		switch ok, err := tree.Extends(ctx, seen); {
		case pcm.ErrorCode(err) == pcm.NotFound:
			return done("the log has %d records, fewer than the %d that were seen before: it was reset, or this server is behind", head.Size, seen.Size)
		case err != nil:
			return out, false, err
		case !ok:
			split = true
			return done("the log does not go on from the checkpoint of %d records that was seen before: it was shown with two histories", seen.Size)
		}
	}
	if base != nil && !known {
		return done("its first %d records are gone, so that nothing leads from the mesh's root key to those who sign: give the keys of the cell's voters with --vkey, or the removed records with --archive", base.Records)
	}
	return done("")
}

// entries walks over the entries of a log from a number on, checked against its head. What ends
// the walk is kept in broken.
func entries(ctx context.Context, tree *tlog.Tree, from uint64, broken *error) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for n := from / tlog.Width; n*tlog.Width < tree.Head().Size; n++ {
			list, err := tree.Entries(ctx, n)
			if err != nil {
				*broken = err
				yield(nil, err)
				return
			}
			for _, e := range list[max(from, n*tlog.Width)-n*tlog.Width:] {
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// founding finds out with what a cell was founded, by its first record: the
// founder's passport leads to the root key, whose hash is the mesh's ID.
func founding(cell pcm.CellID, leaf []byte) (ledger.Genesis, error) {
	g := ledger.Genesis{Cell: cell}
	var r pcm.Record
	var c pcm.Command
	if err := pcm.Unmarshal(leaf, &r); err != nil {
		return g, err
	}
	if r.Command == nil {
		return g, errors.New("the first record is not that of the cell's founding")
	}
	if err := pcm.Unmarshal(r.Command.Payload, &c); err != nil {
		return g, err
	}
	if len(c.Ops) == 0 || c.Ops[0].Enroll == nil {
		return g, errors.New("the first record enrols nobody")
	}
	top := c.Ops[0].Enroll.Passport
	for range 8 { // a chain is shorter than that
		var p pcm.Passport
		if err := pcm.Unmarshal(top.Payload, &p); err != nil {
			return g, err
		}
		if p.Issuer == nil {
			break
		}
		top = *p.Issuer
	}
	g.Mesh, g.Root = c.Mesh, top.Signer
	if pcm.NewMeshID(g.Root) != g.Mesh {
		return g, fmt.Errorf("the passport of the founder does not lead to the root key of %s", g.Mesh)
	}
	return g, nil
}

// RecordView decodes an entry of a log.
func RecordView(entry []byte) (api.RecordView, error) { return recordView(entry) }
