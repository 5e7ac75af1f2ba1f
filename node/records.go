package node

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
)

// Records lists records of the cell's ledger from a number on.
func (n *Node) Records(ctx context.Context, from uint64, limit int) ([]api.RecordView, error) {
	var list []api.RecordView
	err := n.recordsOf(ctx, from, from+uint64(max(0, limit)), func(_ uint64, leaf []byte) error {
		v, err := recordView(leaf)
		list = append(list, v)
		return err
	})
	return list, err
}

func recordView(leaf []byte) (api.RecordView, error) {
	var r pcm.Record
	if err := pcm.Unmarshal(leaf, &r); err != nil {
		return api.RecordView{}, err
	}
	v := api.RecordView{
		ID: strconv.FormatUint(r.Number, 10), Number: r.Number, Index: r.Index, Time: logDate(r.Stamp), Facts: r.Facts,
		Hash: hex.EncodeToString(rfc6962.DefaultHasher.HashLeaf(leaf)), Kinds: []string{},
	}
	if r.Command != nil {
		var c pcm.Command
		if err := pcm.Unmarshal(r.Command.Payload, &c); err != nil {
			return v, err
		}
		v.By, v.Command = c.Peer, &c
		for _, op := range c.Ops[:min(r.Done, len(c.Ops))] {
			v.Kinds = append(v.Kinds, op.Kind())
		}
	}
	for _, f := range r.Facts {
		v.Kinds = append(v.Kinds, factKind(f))
	}
	if r.NewTerm {
		v.Kinds = append(v.Kinds, "new_term")
	}
	return v, nil
}

// factKind names a fact.
func factKind(f pcm.Fact) string {
	switch {
	case f.Lost != nil:
		return "lost"
	case f.Ended != nil:
		return "ended"
	case f.Closed != nil:
		return "closed"
	case f.Overdue != nil:
		return "overdue"
	case f.Cleared != nil:
		return "cleared"
	case f.Based != nil:
		return "based"
	}
	return ""
}

// Verify replays all records of the cell and compares what follows from them
// with what this peer holds.
func (n *Node) Verify(ctx context.Context) (out api.Verdict, err error) {
	began := time.Now()
	if done, from, to := n.cell.History(); !done {
		return api.Verdict{}, pcm.Errorf(pcm.Unavailable, "records %d to %d are still being fetched from other peers: try again in a moment", from, to)
	}
	// The records may grow meanwhile: what is compared is one moment.
	var size uint64
	var root [32]byte
	var held []byte
	n.cell.View(func() {
		size, root = n.state.Root()
		held, err = n.state.Snapshot()
	})
	if err != nil {
		return api.Verdict{}, err
	}
	begin, base, err := n.verifiable()
	if err != nil {
		return api.Verdict{}, err
	}
	first, _ := begin.Root()
	var gone error
	v, replayed := begin.Verify(func(yield func([]byte, error) bool) {
		stop := io.EOF
		err := n.cell.Records(first, size, func(_ uint64, leaf []byte) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !yield(leaf, nil) {
				return stop
			}
			return nil
		})
		if pcm.ErrorCode(err) == pcm.Unavailable {
			gone = err // removed meanwhile
		}
		if err != nil && err != stop {
			yield(nil, err)
		}
	})
	if gone != nil {
		return api.Verdict{}, gone
	}
	out = api.Verdict{
		Base: base,
		ID:   string(n.id.Mesh.Cell), Cell: n.id.Mesh.Cell, Records: v.Records, Signatures: v.Signatures,
		Root: hex.EncodeToString(v.Root[:]), Bad: v.Bad, Problem: v.Problem,
		Checks: append(slices.Clone(ledger.Checks), logChecks...), Mesh: n.id.Mesh.Mesh,
	}
	defer func() { out.TookMS = time.Since(began).Milliseconds() }()
	if v.Bad != nil {
		return out, nil
	}
	mine := ledger.New(n.state.Genesis())
	switch err := mine.Restore(held); {
	case err != nil:
		out.Problem = err.Error()
	case v.Records != size || v.Root != root:
		out.Problem = "the records do not hash to the Merkle root that this peer holds"
	default:
		if err := mine.SameAs(replayed); err != nil {
			out.Problem = err.Error()
		}
	}
	if out.Problem == "" {
		n.glass.verifyHead(ctx, &out)
	}
	out.OK = out.Problem == ""
	return out, nil
}

// Fetch writes a task's results as a tar stream.
func (n *Node) Fetch(ctx context.Context, id pcm.JobID, step, index int, w io.Writer) error {
	n.fresh(ctx)
	t, err := n.placeOf(id, step, index)
	if err != nil {
		return err
	}
	if !t.decided {
		return pcm.Errorf(pcm.Conflict, "task %d/%d of %s has no result yet: it is %s", step, index, id, t.state)
	}
	if t.output == "" {
		return tar.NewWriter(w).Close()
	}
	if err := n.bringOutput(ctx, t); err != nil {
		return err
	}
	return n.store.Tar(ctx, t.output, w)
}

// recordsOf calls f with records as cell.Records does, and with those that were removed
// here, if they are in this peer's archive.
func (n *Node) recordsOf(ctx context.Context, from, to uint64, f func(number uint64, record []byte) error) error {
	for gone := min(n.cell.Pruned(), to); from < gone; {
		records, err := n.fromArchive(ctx, from/tlog.Width)
		if err != nil {
			return err
		}
		for _, r := range records[from%tlog.Width:] {
			if from == gone {
				break
			}
			if err := f(from, r); err != nil {
				return err
			}
			from++
		}
	}
	if from >= to {
		return nil
	}
	return n.cell.Records(from, to, f)
}

// fromArchive reads a bundle of records that were removed here, and holds it against
// their hashes, which were not.
func (n *Node) fromArchive(ctx context.Context, bundle uint64) ([][]byte, error) {
	lacks := func(why any) error {
		return pcm.Errorf(pcm.Unavailable, "the first %d records of %s were %w, and can't be had from this peer: %v", n.cell.Pruned(), pcm.Short(n.id.Mesh.Cell), api.ErrRemoved, why)
	}
	if n.retention.archive == nil {
		return nil, lacks("it has no archive (ledger_archive)")
	}
	raw, err := n.retention.archive.Bundle(bundle)
	if err != nil {
		return nil, lacks(err)
	}
	records, err := tlog.SplitBundle(raw, tlog.Width)
	if err != nil {
		return nil, lacks(err)
	}
	tile, err := n.cell.Tile(ctx, 0, bundle, tlog.Width)
	if err != nil {
		return nil, err
	}
	for i, r := range records {
		if !bytes.Equal(rfc6962.DefaultHasher.HashLeaf(r), tile[i*tlog.HashSize:(i+1)*tlog.HashSize]) {
			return nil, lacks(pcm.Errorf(pcm.Invalid, "record %d in the archive %s is another one", bundle*tlog.Width+uint64(i), n.retention.archive.dir))
		}
	}
	return records, nil
}

// servedFrom is the number of the first record that can be had from this peer.
func (n *Node) servedFrom() uint64 {
	gone := n.cell.Pruned()
	if gone == 0 || n.retention.archive == nil {
		return gone
	}
	for _, b := range []uint64{0, gone/tlog.Width - 1} { // it is written from the first one on
		if _, err := n.retention.archive.Bundle(b); err != nil {
			return gone
		}
	}
	return 0
}

// verifiable is the state from which this peer's records can be verified: that of the
// founding, or that of its oldest base.
func (n *Node) verifiable() (*ledger.State, *api.LedgerBase, error) {
	gone := n.cell.Pruned()
	if gone == 0 {
		return ledger.New(n.state.Genesis()), nil, nil
	}
	bases := n.cell.Bases()
	if len(bases) == 0 {
		return nil, nil, pcm.Errorf(pcm.Internal, "the first %d records were removed here, and there is no base from which the others could be verified: move the folder history away and start again", gone)
	}
	record, err := n.cell.Record(bases[0].Size)
	if err != nil {
		return nil, nil, err
	}
	encoded, err := n.cell.BaseState(bases[0].Size)
	if err != nil {
		return nil, nil, err
	}
	s, err := ledger.OpenBase(n.state.Genesis(), record, encoded)
	if err != nil {
		return nil, nil, err
	}
	v := baseView(record, gone)
	if n.retention.archive != nil {
		v.Archive = n.retention.archive.dir
	}
	return s, v, nil
}

// baseView is a base as a view, by the record that tells of it.
func baseView(record []byte, gone uint64) *api.LedgerBase {
	var r pcm.Record
	based, ok := pcm.BaseOf(record)
	if !ok || pcm.Unmarshal(record, &r) != nil {
		return nil
	}
	return &api.LedgerBase{Records: based.Size, At: logDate(r.Stamp), Digest: hex.EncodeToString(based.Digest), Removed: gone}
}
