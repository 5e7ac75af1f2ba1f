package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
)

// ledgerLong is the story that 'pcm ledger --help' tells.
const ledgerLong = `The ledger of a cell is a public log: its records are the leaves of a Merkle
tree, whose head the cell's voters sign with keys that the ledger binds to them.
Formats are those of C2SP (tlog-tiles, checkpoints as signed notes), so that
tools written by others check it as well.

A peer checks its own copy, the signatures of the others, and that the ledger
goes on from what it saw last:

  pcm ledger verify

An auditor needs no peer and trusts no server. A site that wants to be audited
opens a read-only listener, and hands out its mesh ID and the voters' keys:

  pcm up --log-listen 0.0.0.0:7421
  pcm ledger vkeys > keys
  pcm ledger verify --from http://SITE:7421/v1/cells/CELL/log --mesh MESH --vkey keys

Whoever owes or is owed keeps a proof of a trade, which is good without any
network, also when the cell is long gone:

  pcm ledger proof TRADE
  pcm ledger verify-proof TRADE.tlog-proof --vkey keys

A cell may agree to keep its records for some time only (pcm cell set keep 90d).
Peers with an archive (ledger_archive) then move older ones there, and the ledger is
verified from a base: a record with the digest of all that came before. With the
archive, a folder or what a web server makes of it, it is verified from the founding:

  pcm ledger verify --archive DIR`

func (a *app) verifyCommand() *cobra.Command {
	var from, mesh, archive string
	var vkeys []string
	c := &cobra.Command{
		Use: "verify", Short: "Check every record: signatures, order, invariants, Merkle root, checkpoint", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v api.Verdict
			var err error
			switch ctx := cmd.Context(); {
			case from != "":
				var get getter
				if get, err = urlLog(from); err == nil {
					v, err = a.audit(ctx, get, archive, pcm.MeshID(mesh), vkeys)
				}
			case archive != "":
				v, err = a.auditHere(ctx, archive, vkeys)
			default:
				v, err = a.verifyHere(ctx)
			}
			if err != nil {
				return err
			}
			if err := a.print(v, func(t *table) { drawVerdict(t, v) }); err != nil {
				return err
			}
			if !v.OK {
				return exitStatus(exitFailed)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&from, "from", "", "`URL` of a log, http://HOST:PORT/v1/cells/CELL/log: check that one, as an outsider")
	f.StringVar(&archive, "archive", "", archiveFlag)
	f.StringVar(&mesh, "mesh", "", "with --from: the mesh `ID` that the log must be of")
	f.StringArrayVar(&vkeys, "vkey", nil, "with --from: `KEY` that must have signed (a majority of all given), or a file of keys; may be repeated")
	return c
}

func (a *app) verifyHere(ctx context.Context) (api.Verdict, error) {
	c, err := a.client()
	if err != nil {
		return api.Verdict{}, err
	}
	return c.Verify(ctx) // as long as it takes
}

// auditHere checks the log of the node's own cell, with its archive.
func (a *app) auditHere(ctx context.Context, archive string, vkeys []string) (api.Verdict, error) {
	get, client, err := a.ownLog(ctx)
	if err != nil {
		return api.Verdict{}, err
	}
	st, err := client.Status(ctx)
	if err != nil {
		return api.Verdict{}, err
	}
	return a.audit(ctx, get, archive, st.Mesh, vkeys)
}

// audit checks a log from outside, against what was seen of it before; with an
// archive, from the founding.
func (a *app) audit(ctx context.Context, get getter, archive string, mesh pcm.MeshID, vkeys []string) (v api.Verdict, err error) {
	if mesh != "" && !mesh.Valid() {
		return v, pcm.Errorf(pcm.Invalid, "%q is not a mesh ID, like mesh- and 16 characters", mesh)
	}
	pins := node.Pins{Mesh: mesh}
	if pins.Keys, err = parseKeys(vkeys); err != nil {
		return v, err
	}
	note, err := get.checkpoint(ctx)
	if err != nil {
		return v, err
	}
	head, err := tlog.ParseCheckpoint(note)
	if err != nil {
		return v, err
	}
	cell, ok := head.Cell()
	if !ok {
		return v, pcm.Errorf(pcm.Invalid, "%q is not the origin of a cell's log", head.Origin)
	}
	path := a.seenPath(cell)
	if pins.Seen, err = readBounded(path); err != nil && !os.IsNotExist(err) {
		return v, pcm.Errorf(pcm.Internal, "can't read what was seen of the log before: %w", err)
	}
	src := node.AuditSource{Checkpoint: func(context.Context) ([]byte, error) { return note, nil }}
	if archive == "" {
		src.Base = func(ctx context.Context) ([]byte, error) { return get(ctx, "base", node.MaxBase) }
	} else if get, err = get.with(archive, cell); err != nil {
		return v, err
	}
	src.Read = get.reader()
	v, split, err := node.Audit(ctx, src, pins)
	switch {
	case err != nil:
		return v, err
	case split:
		dir, _ := a.dataDir()
		name, err := node.SaveEvidence(filepath.Join(dir, "evidence"), pins.Seen, note)
		if err != nil {
			return v, err
		}
		if name != "" {
			a.hint("Both checkpoints are kept in %s.", filepath.Join(dir, "evidence", name))
		}
	case v.OK:
		if err := writeSeen(path, note); err != nil {
			return v, err
		}
		if mesh == "" {
			a.hint("The log is of %s; with --mesh that is checked.", v.Mesh)
		}
	}
	return v, nil
}

func (a *app) vkeysCommand() *cobra.Command {
	return &cobra.Command{
		Use: "vkeys", Short: "Print the keys that sign the ledger's checkpoints, one a line", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			get, _, err := a.ownLog(cmd.Context())
			if err != nil {
				return err
			}
			keys, err := get(cmd.Context(), "vkeys", tlog.MaxCheckpoint)
			if err != nil {
				return err
			}
			_, err = a.out.Write(keys)
			return written(err)
		},
	}
}

// ownLog is the log of the node's own cell.
func (a *app) ownLog(ctx context.Context) (getter, *api.Client, error) {
	c, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	st, err := c.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	return nodeLog(c, st.Cell), c, nil
}

func (a *app) proofCommand() *cobra.Command {
	var file, dir, archive string
	c := &cobra.Command{
		Use: "proof TRADE", Short: "Write a proof of a trade's records that is good offline", Args: exactly(1, "a trade ID"),
		Long: `Writes the records of a trade, each with its Merkle proof and the signed
checkpoint, in the format of C2SP tlog-proof: one proof after the other in one
file, or with --dir each in a file of its own, which other tools read as well.`,
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
			proofs, err := prove(ctx, get, client, trade)
			if err != nil {
				return err
			}
			if dir != "" {
				for _, p := range proofs {
					if err := writeProof(filepath.Join(dir, fmt.Sprintf("%s-%d.tlog-proof", trade.ID, p.Index)), p.Marshal()); err != nil {
						return err
					}
				}
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
			return nil
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "write to `FILE`; - is the output (default TRADE.tlog-proof)")
	c.Flags().StringVar(&archive, "archive", "", archiveFlag)
	c.Flags().StringVar(&dir, "dir", "", "write each proof to a file of its own in `DIR`")
	return c
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
// and its end in log time, by which records are ordered.
func prove(ctx context.Context, get getter, client *api.Client, trade api.Trade) ([]tlog.Proof, error) {
	tree, note, err := get.tree(ctx)
	if err != nil {
		return nil, err
	}
	size := tree.Head().Size
	bundles := int((size + tlog.Width - 1) / tlog.Width)
	begin, err := firstBundle(ctx, tree, client)
	if err != nil {
		return nil, err
	}
	var failed error
	first := begin + sort.Search(bundles-begin, func(i int) bool {
		i += begin
		entries, err := tree.Entries(ctx, uint64(i))
		if err != nil {
			failed = err
			return true
		}
		var r pcm.Record
		if err := pcm.Unmarshal(entries[0], &r); err != nil {
			failed = err
			return true
		}
		return r.Stamp >= trade.At.UnixMilli()
	})
	if failed != nil {
		return nil, failed
	}
	if begin > 0 && first == begin {
		return nil, pcm.Errorf(pcm.Unavailable, "records of %s are among the first %d of the ledger, which were removed here after their time: give the archive that has them with --archive", trade.ID, begin*tlog.Width)
	}
	var proofs []tlog.Proof
	for i := max(begin, first-1); i < bundles; i++ {
		entries, err := tree.Entries(ctx, uint64(i))
		if err != nil {
			return nil, err
		}
		for j, e := range entries {
			v, err := node.RecordView(e)
			if err != nil {
				return nil, err
			}
			if !trade.ClosedAt.IsZero() && v.Time.After(trade.ClosedAt.Add(afterwards)) {
				i = bundles
				break
			}
			if !tellsOf(v, trade.ID) {
				continue
			}
			index := uint64(i)*tlog.Width + uint64(j)
			hashes, err := tree.Prove(ctx, index)
			if err != nil {
				return nil, err
			}
			proofs = append(proofs, tlog.Proof{Entry: e, Index: index, Hashes: hashes, Checkpoint: note})
		}
	}
	if len(proofs) == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "no record of %s is within the %d that are signed yet: try again in a moment", trade.ID, size)
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
		Use: "verify-proof FILE", Short: "Check a proof without any network", Args: exactly(1, "a file"),
		Long: `Checks that the records in FILE are in the log whose signed checkpoint stands
there, and that a majority of the keys that you give have signed it. Take the
keys from somebody you trust, not from whoever gave you the proof.`,
		RunE: func(_ *cobra.Command, args []string) error {
			keys, err := parseKeys(vkeys)
			if err != nil {
				return err
			}
			f, err := openKind(args[0], "pcm ledger verify-proof")
			if err != nil {
				return err
			}
			defer f.Close()
			raw, err := io.ReadAll(io.LimitReader(f, tlog.MaxProofFile+1))
			if err != nil {
				return pcm.Errorf(pcm.Invalid, "can't read the proof: %w", err)
			}
			if len(raw) > tlog.MaxProofFile {
				return pcm.Errorf(pcm.Invalid, "%s has over %s: that is no proof", args[0], pcm.Bytes(tlog.MaxProofFile))
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

// proofVerdict is what verify-proof found.
type proofVerdict struct {
	ID      string           `json:"id"` // the log's origin
	OK      bool             `json:"ok"`
	Size    uint64           `json:"size"`
	Signers []string         `json:"signers"` // keys whose signature is good
	Problem string           `json:"problem,omitempty"`
	Records []api.RecordView `json:"records"`
}

func checkProofs(raw []byte, keys []tlog.Key) (v proofVerdict, err error) {
	proofs, err := tlog.ParseProofs(raw)
	if err != nil {
		return v, err
	}
	v.Signers, v.Records = []string{}, []api.RecordView{}
	var least []tlog.Key
	for i, p := range proofs {
		c, by, err := p.Check(keys)
		if err != nil {
			v.Problem = fmt.Sprintf("proof %d: %v", i+1, err)
			return v, nil
		}
		if i > 0 && c.Origin != v.ID {
			v.Problem = fmt.Sprintf("proof %d is of another log, %s", i+1, c.Origin)
			return v, nil
		}
		v.ID, v.Size = c.Origin, max(v.Size, c.Size)
		if i == 0 || len(by) < len(least) {
			least = by
		}
		if problem := checkRecord(p, c); problem != "" {
			v.Problem = fmt.Sprintf("proof %d: %s", i+1, problem)
			return v, nil
		}
		view, err := node.RecordView(p.Entry)
		if err != nil {
			v.Problem = fmt.Sprintf("proof %d: %v", i+1, err)
			return v, nil
		}
		v.Records = append(v.Records, view)
	}
	for _, k := range least {
		v.Signers = append(v.Signers, k.String())
	}
	switch need := len(keys)/2 + 1; {
	case len(keys) == 0:
		v.Problem = "who signed the checkpoint was not checked: give the keys of the cell's voters with --vkey"
	case !slices.ContainsFunc(keys, func(k tlog.Key) bool { return k.Name == v.ID }):
		v.Problem = fmt.Sprintf("the proof is of the log %s, and the keys given are of %s: take those of that cell's voters, 'pcm ledger vkeys' on one of its peers", v.ID, keys[0].Name)
	case len(least) < need:
		v.Problem = fmt.Sprintf("the checkpoint is signed by %d of the %d keys, at least %d are wanted", len(least), len(keys), need)
	}
	v.OK = v.Problem == ""
	return v, nil
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
	if v.OK {
		t.text("The proof is good: %s in the log %s at %s, signed by %s.", plural(len(v.Records), "record"), v.ID, plural(int(v.Size), "record"), plural(len(v.Signers), "key"))
	} else {
		t.text("The proof is NOT good: %s", plain(v.Problem))
	}
	t.row("RECORD", "TIME", "BY", "WHAT", "HASH")
	for _, r := range v.Records {
		t.row(fmt.Sprint(r.Number), r.Time.UTC().Format(time.RFC3339), or(id(t, r.By), "time"), strings.Join(r.Kinds, " "), r.Hash[:12])
	}
}

func (a *app) exportCommand() *cobra.Command {
	var archive string
	c := &cobra.Command{
		Use: "export", Short: "Write all records: --format jsonl (default) or csv", Args: noArgs,
		Long: `Writes all records up to the signed checkpoint, each checked against it.
jsonl has a line for each record, with the log's entry itself (base64) besides
what it says; csv has a row for each operation and each fact. Records that were
removed after their time are in it if the archive that has them is given.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.format != "table" && a.format != "jsonl" && a.format != "csv" {
				return pcm.Errorf(pcm.Invalid, "--format %s is not a format to export: jsonl or csv", a.format)
			}
			get, client, err := a.ownLog(cmd.Context())
			if err == nil {
				get, err = a.withArchive(cmd.Context(), get, client, archive)
			}
			if err != nil {
				return err
			}
			tree, _, err := get.tree(cmd.Context())
			if err != nil {
				return err
			}
			begin := 0
			if tree.Head().Size > 0 {
				if begin, err = firstBundle(cmd.Context(), tree, client); err != nil {
					return err
				}
			}
			if begin > 0 {
				a.hint("The first %d records were removed here after their time: give the archive that has them with --archive.", begin*tlog.Width)
			}
			w := bufio.NewWriter(a.out)
			write := exportJSON(w)
			if a.format == "csv" {
				write = exportCSV(w)
			}
			for n := uint64(begin); n*tlog.Width < tree.Head().Size; n++ {
				entries, err := tree.Entries(cmd.Context(), n)
				if err != nil {
					return err
				}
				for _, e := range entries {
					v, err := node.RecordView(e)
					if err != nil {
						return err
					}
					if err := write(v, e); err != nil {
						return written(err)
					}
				}
			}
			return written(w.Flush())
		},
	}
	c.Flags().StringVar(&archive, "archive", "", archiveFlag)
	return c
}

func exportJSON(w io.Writer) func(api.RecordView, []byte) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(v api.RecordView, entry []byte) error {
		return enc.Encode(struct {
			api.RecordView
			Entry string `json:"entry"`
		}{v, base64.StdEncoding.EncodeToString(entry)})
	}
}

func exportCSV(w io.Writer) func(api.RecordView, []byte) error {
	out := csv.NewWriter(w)
	head := true
	return func(v api.RecordView, _ []byte) error {
		if head {
			head = false
			out.Write([]string{"record", "time", "by", "kind", "job", "trade", "tasks", "amount", "unit", "peer", "text", "hash"})
		}
		for _, l := range recordLines(v) {
			tasks := ""
			if l.Tasks > 0 {
				tasks = strconv.Itoa(l.Tasks)
			}
			out.Write([]string{
				v.ID, v.Time.UTC().Format("2006-01-02T15:04:05.000Z"), string(v.By), l.Kind, string(l.Job), string(l.Trade),
				tasks, l.Amount, l.Unit, string(l.Peer), l.Text, v.Hash,
			})
		}
		out.Flush()
		return out.Error()
	}
}
