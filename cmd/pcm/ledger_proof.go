package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
)

func (a *app) proofCommand() *cobra.Command {
	var file, dir, archive, from string
	c := &cobra.Command{
		Use: "proof TRADE", Short: "Write a proof of a trade's records that is good offline", Args: exactly(1, "a trade ID"),
		Long: `Writes the records of a trade, each with its Merkle proof and the signed
checkpoint, in the format of C2SP tlog-proof: one proof after the other in one
file, or with --dir each in a file of its own, which other tools read as well.

The records of this node's own cell are proven. A trade between cells stands in two:
give the log of the other one with --from, or run this at one of its peers as well;
'pcm ledger verify-proof' takes both, in one file or two.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			get, client, err := a.ownLog(ctx)
			if err != nil {
				return err
			}
			trade, err := client.Trade(ctx, args[0])
			if err != nil {
				return err
			}
			if get, err = a.withArchive(ctx, get, client, archive); err != nil {
				return err
			}
			proofs, err := prove(ctx, get, trade, func(tree *tlog.Tree) (int, error) { return firstBundle(ctx, tree, client) })
			if err != nil {
				return err
			}
			own := logOf(proofs)
			if from != "" {
				more, err := proveElsewhere(ctx, from, trade)
				if err != nil {
					return err
				}
				proofs = append(proofs, more...)
			}
			if dir != "" {
				for _, p := range proofs {
					name := fmt.Sprintf("%s-%d.tlog-proof", trade.ID, p.Index)
					if log := logOf([]tlog.Proof{p}); log != own {
						name = fmt.Sprintf("%s-%s-%d.tlog-proof", trade.ID, log, p.Index)
					}
					if err := writeProof(filepath.Join(dir, name), p.Marshal()); err != nil {
						return err
					}
				}
				a.otherHalf(trade, own, from)
				a.hint("%s of %s in %s.", plural(len(proofs), "proof"), trade.ID, dir)
				return nil
			}
			var all []byte
			for _, p := range proofs {
				all = append(all, p.Marshal()...)
			}
			if file == "-" {
				_, err := a.out.Write(all)
				return written(err)
			}
			if file == "" {
				file = string(trade.ID) + ".tlog-proof"
			}
			if err := writeProof(file, all); err != nil {
				return err
			}
			a.hint("%s of %s in %s. Keep the keys with it: pcm ledger vkeys", plural(len(proofs), "proof"), trade.ID, file)
			a.otherHalf(trade, own, from)
			return nil
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "write to `FILE`; - is the output (default TRADE.tlog-proof)")
	c.Flags().StringVar(&archive, "archive", "", archiveFlag)
	c.Flags().StringVar(&from, "from", "", "`URL` of the log of the trade's other cell, http://HOST:PORT/v1/cells/CELL/log: prove its records as well")
	c.Flags().StringVar(&dir, "dir", "", "write each proof to a file of its own in `DIR`")
	return c
}

// logOf is the cell whose log some proofs are of.
func logOf(proofs []tlog.Proof) pcm.CellID {
	head, err := tlog.ParseCheckpoint(proofs[0].Checkpoint)
	if err != nil {
		return "" // it was parsed to make them
	}
	cell, _ := head.Cell()
	return cell
}

// otherHalf says which half of a trade between cells is proven, and where the other is.
func (a *app) otherHalf(trade api.Trade, own pcm.CellID, from string) {
	switch {
	case trade.Cell == own || trade.Cell == "":
	case from != "":
		a.hint("They are of %s and of %s: 'pcm ledger verify-proof' wants the keys of both.", own, trade.Cell)
	default:
		a.hint("They are of %s: that it was placed and accepted. What is owed stands in the log of %s: add --from URL of that log, or run 'pcm ledger proof %s' at one of its peers.", own, trade.Cell, pcm.Short(trade.ID))
	}
}

// proveElsewhere proves the records that another cell's public log has of a trade.
func proveElsewhere(ctx context.Context, url string, trade api.Trade) ([]tlog.Proof, error) {
	get, err := urlLog(url)
	if err != nil {
		return nil, err
	}
	proofs, err := prove(ctx, get, trade, func(*tlog.Tree) (int, error) { return 0, nil })
	if err != nil {
		return nil, pcm.Errorf(pcm.ErrorCode(err), "%s: %w", url, err)
	}
	return proofs, nil
}

func writeProof(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the proof: %w", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the proof: %w", err)
	}
	return nil
}

// afterwards is how long after a trade was closed records may still tell of it:
// its driver gives up what was lost.
const afterwards = 10 * time.Minute

// prove finds the records of a trade and proves each. They lie between its award
// and its end in log time, by which records are ordered; but each cell has a log time of
// its own, and of a trade between cells it isn't said whose those are: where
// none is found, all records are looked at. begun is the first bundle that can be read.
func prove(ctx context.Context, get getter, trade api.Trade, begun func(*tlog.Tree) (int, error)) ([]tlog.Proof, error) {
	tree, note, err := get.tree(ctx)
	if err != nil {
		return nil, err
	}
	size := tree.Head().Size
	if size == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "the log has no records yet")
	}
	begin, err := begun(tree)
	if err != nil {
		return nil, err
	}
	bundles := int((size + tlog.Width - 1) / tlog.Width)
	first, err := bundleAt(ctx, tree, begin, bundles, trade.At)
	if err != nil {
		return nil, err
	}
	removed := pcm.Errorf(pcm.Unavailable, "records of %s are among the first %d of the ledger, which were removed here after their time: give the archive that has them with --archive", trade.ID, begin*tlog.Width)
	cell, _ := tree.Head().Cell()
	home := trade.Cell == "" || trade.Cell == cell
	if home && begin > 0 && first == begin {
		return nil, removed
	}
	end := trade.ClosedAt
	if !end.IsZero() {
		end = end.Add(afterwards)
	}
	proofs, err := proveIn(ctx, tree, note, max(begin, first-1), end, trade.ID)
	if err == nil && len(proofs) == 0 && !home {
		if proofs, err = proveIn(ctx, tree, note, begin, time.Time{}, trade.ID); err == nil && len(proofs) == 0 && begin > 0 {
			return nil, removed
		}
	}
	if err == nil && len(proofs) == 0 {
		err = pcm.Errorf(pcm.NotFound, "no record of %s is within the %d of %s that are signed yet: if it is new, try again in a moment", trade.ID, size, cell)
	}
	return proofs, err
}

// bundleAt finds the first bundle that begins at a time or later.
func bundleAt(ctx context.Context, tree *tlog.Tree, begin, bundles int, at time.Time) (int, error) {
	var failed error
	first := begin + sort.Search(bundles-begin, func(i int) bool {
		entries, err := tree.Entries(ctx, uint64(i+begin))
		var r pcm.Record
		if err == nil {
			err = pcm.Unmarshal(entries[0], &r)
		}
		if err != nil {
			failed = err
			return true
		}
		return r.Stamp >= at.UnixMilli()
	})
	return first, failed
}

// proveIn proves the records of a trade from a bundle on, up to a time; the zero one: to the end.
func proveIn(ctx context.Context, tree *tlog.Tree, note []byte, from int, end time.Time, trade pcm.TradeID) (proofs []tlog.Proof, err error) {
	for i := uint64(from); i*tlog.Width < tree.Head().Size; i++ {
		entries, err := tree.Entries(ctx, i)
		if err != nil {
			return nil, err
		}
		for j, e := range entries {
			v, err := node.RecordView(e)
			if err != nil {
				return nil, err
			}
			if !end.IsZero() && v.Time.After(end) {
				return proofs, nil
			}
			if !tellsOf(v, trade) {
				continue
			}
			index := i*tlog.Width + uint64(j)
			hashes, err := tree.Prove(ctx, index)
			if err != nil {
				return nil, err
			}
			proofs = append(proofs, tlog.Proof{Entry: e, Index: index, Hashes: hashes, Checkpoint: note})
		}
	}
	return proofs, nil
}

// tellsOf tells whether a record is of a trade.
func tellsOf(v api.RecordView, id pcm.TradeID) bool {
	for _, l := range recordLines(v) {
		if l.Trade == id {
			return true
		}
	}
	return false
}

func (a *app) verifyProofCommand() *cobra.Command {
	var vkeys []string
	c := &cobra.Command{
		Use: "verify-proof FILE…", Short: "Check a proof without any network", Args: between(1, math.MaxInt, "a file"),
		Long: `Checks that the records in FILE, or in several, are in the log whose signed checkpoint stands
there, and that a majority of the keys that you give have signed it. Take the
keys from somebody you trust, not from whoever gave you the proof.`,
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := parseKeys(vkeys)
			if err != nil {
				return err
			}
			var raw []byte
			for _, name := range args {
				one, err := readProof(name)
				if err != nil {
					return err
				}
				raw = append(raw, one...)
			}
			v, err := checkProofs(raw, keys)
			if err != nil {
				return err
			}
			if err := a.print(v, func(t *table) { drawProof(t, v) }); err != nil {
				return err
			}
			if !v.OK {
				return exitStatus(exitFailed)
			}
			return nil
		},
	}
	c.Flags().StringArrayVar(&vkeys, "vkey", nil, "`KEY` that must have signed (a majority of all given), or a file of keys; may be repeated")
	return c
}

// readProof reads a file of proofs; several, one after the other, are a file of proofs as well.
func readProof(name string) ([]byte, error) {
	f, err := openKind(name, "pcm ledger verify-proof")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, tlog.MaxProofFile+1))
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't read the proof: %w", err)
	}
	if len(raw) > tlog.MaxProofFile {
		return nil, pcm.Errorf(pcm.Invalid, "%s has over %s: that is no proof", name, pcm.Bytes(tlog.MaxProofFile))
	}
	return raw, nil
}

// proofVerdict is what verify-proof found.
type proofVerdict struct {
	ID      string         `json:"id"` // the origin of the log, of the first if there are two
	OK      bool           `json:"ok"`
	Logs    []provenLog    `json:"logs"`
	Problem string         `json:"problem,omitempty"`
	Records []provenRecord `json:"records"`
}

// provenRecord is a record, and the log in which it is.
type provenRecord struct {
	Log string `json:"log"` // its origin
	api.RecordView
}

// provenLog is what was found of one log.
type provenLog struct {
	Origin  string   `json:"origin"`
	Size    uint64   `json:"size"`
	Records int      `json:"records"` // of the proofs
	Signers []string `json:"signers"` // keys whose signature is good on each checkpoint

	least []tlog.Key
}

func checkProofs(raw []byte, keys []tlog.Key) (v proofVerdict, err error) {
	proofs, err := tlog.ParseProofs(raw)
	if err != nil {
		return v, err
	}
	v.Logs, v.Records = []provenLog{}, []provenRecord{}
	for i, p := range proofs {
		bad := func(why any) (proofVerdict, error) {
			v.Problem = fmt.Sprintf("proof %d: %v", i+1, why)
			return v, nil
		}
		c, by, err := p.Check(keys)
		if err != nil {
			return bad(err)
		}
		n := slices.IndexFunc(v.Logs, func(l provenLog) bool { return l.Origin == c.Origin })
		if n < 0 {
			n, v.Logs = len(v.Logs), append(v.Logs, provenLog{Origin: c.Origin, least: by})
		}
		l := &v.Logs[n]
		if l.Size, l.Records = max(l.Size, c.Size), l.Records+1; len(by) < len(l.least) {
			l.least = by
		}
		if problem := checkRecord(p, c); problem != "" {
			return bad(problem)
		}
		view, err := node.RecordView(p.Entry)
		if err != nil {
			return bad(err)
		}
		v.Records = append(v.Records, provenRecord{c.Origin, view})
	}
	v.ID = v.Logs[0].Origin
	for i := range v.Logs {
		l := &v.Logs[i]
		l.Signers = []string{}
		for _, k := range l.least {
			l.Signers = append(l.Signers, k.String())
		}
		if v.Problem == "" {
			v.Problem = l.unsigned(keys)
		}
	}
	v.OK = v.Problem == ""
	return v, nil
}

// unsigned says why it isn't shown that a majority of the log's keys have signed; "" if it is.
func (l *provenLog) unsigned(keys []tlog.Key) string {
	of := 0
	for _, k := range keys {
		if k.Name == l.Origin {
			of++
		}
	}
	switch need := of/2 + 1; {
	case len(keys) == 0:
		return "who signed the checkpoint was not checked: give the keys of the cell's voters with --vkey"
	case of == 0:
		return fmt.Sprintf("the proof is of the log %s, and the keys given are of %s: take those of that cell's voters, 'pcm ledger vkeys' on one of its peers", l.Origin, keys[0].Name)
	case len(l.least) < need:
		return fmt.Sprintf("the checkpoint of %s is signed by %d of its %d keys, at least %d are wanted", l.Origin, len(l.least), of, need)
	}
	return ""
}

// checkRecord holds what a record says of itself against the log, and its
// command's signature against its signer.
func checkRecord(p tlog.Proof, c tlog.Checkpoint) string {
	var r pcm.Record
	if err := pcm.Unmarshal(p.Entry, &r); err != nil {
		return err.Error()
	}
	if r.Number != p.Index {
		return fmt.Sprintf("record %d is at place %d of the log", r.Number, p.Index)
	}
	if r.Command == nil {
		return ""
	}
	var cmd pcm.Command
	if err := r.Command.Open(pcm.DomainCommand, &cmd); err != nil {
		return err.Error()
	}
	if string(cmd.Peer.Public()) != string(r.Command.Signer) || pcm.LogOrigin(cmd.Cell) != c.Origin {
		return "its command is signed by another peer, or for another cell"
	}
	return ""
}

func drawProof(t *table, v proofVerdict) {
	if !v.OK {
		t.text("The proof is NOT good: %s", plain(v.Problem))
	}
	for _, l := range v.Logs {
		if v.OK {
			t.text("The proof is good: %s in the log %s at %s, signed by %s.", plural(l.Records, "record"), l.Origin, plural(int(l.Size), "record"), plural(len(l.Signers), "key"))
		}
	}
	t.row("LOG", "RECORD", "TIME", "BY", "WHAT", "HASH")
	for _, r := range v.Records {
		t.row(id(t, pcm.CellID(path.Base(r.Log))), fmt.Sprint(r.Number), r.Time.UTC().Format(time.RFC3339), or(id(t, r.By), "time"), whatFor(r.Kinds), r.Hash[:12])
	}
}
