package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"

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

What was bought in another cell stands in two ledgers: at home that it was placed and
accepted, in the other cell what is owed. With that cell's log, both go into one file:

  pcm ledger proof TRADE --from http://SITE:7421/v1/cells/CELL/log

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
