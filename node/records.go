package node

import (
	"archive/tar"
	"context"
	"encoding/hex"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// Records lists records of the cell's ledger from a number on.
func (n *Node) Records(_ context.Context, from uint64, limit int) ([]api.RecordView, error) {
	var list []api.RecordView
	err := n.cell.Records(from, from+uint64(max(0, limit)), func(_ uint64, leaf []byte) error {
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
	v, replayed := ledger.Verify(n.state.Genesis(), func(yield func([]byte, error) bool) {
		stop := io.EOF
		err := n.cell.Records(0, size, func(_ uint64, leaf []byte) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if !yield(leaf, nil) {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			yield(nil, err)
		}
	})
	out = api.Verdict{
		ID: string(n.id.Mesh.Cell), Cell: n.id.Mesh.Cell, Records: v.Records, Signatures: v.Signatures,
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
