package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node"
	"github.com/jointcloud/pcm/node/api"
)

// savedFile is what a command wrote.
type savedFile struct {
	ID    string    `json:"id"` // its path
	Bytes pcm.Bytes `json:"bytes"`
}

// saveTo writes a stream to a new file, for its owner alone. The file is there
// only when it is whole.
func saveTo(path string, open func() (io.ReadCloser, error)) (savedFile, error) {
	if _, err := os.Lstat(path); err == nil {
		return savedFile{}, pcm.Errorf(pcm.Conflict, "%s is there already: name another file", path)
	}
	in, err := open()
	if err != nil {
		return savedFile{}, err
	}
	defer in.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return savedFile{}, pcm.Errorf(pcm.Invalid, "can't write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	n, err := io.Copy(tmp, in)
	if e, ok := errors.AsType[*pcm.Error](err); ok { // of the node
		tmp.Close()
		return savedFile{}, e
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return savedFile{}, pcm.Errorf(pcm.Internal, "can't write %s: %w", path, err)
	}
	return savedFile{ID: path, Bytes: pcm.Bytes(n)}, nil
}

// openFile opens a file to read.
func openFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, pcm.Errorf(pcm.NotFound, "there is no file %s", path)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Invalid, "can't read %s: %w", path, err)
	}
	return f, nil
}

// stopped locks a data folder whose node must not run meanwhile.
func (a *app) stopped() (dir string, unlock func(), err error) {
	dir, _ = a.dataDir()
	if _, err := os.Stat(dir); err != nil {
		return dir, nil, pcm.Errorf(pcm.NotFound, "there is no data folder %s: name one with --data", dir)
	}
	unlock, err = lockData(dir)
	return dir, unlock, err
}

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{Use: "snapshot", Short: "Save, look into and restore all that a cell is", Long: `A snapshot file holds the state of a cell at one entry of its log, and the whole
history up to it, with checksums. It is for the worst case: as long as one peer
of the cell has its folder, 'pcm cell recover' loses less.`}
	c.RunE = a.group(c)
	save := &cobra.Command{
		Use: "save FILE", Short: "Write a snapshot of this node's cell to a file", Args: exactly(1, "a FILE to write"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			f, err := saveTo(args[0], func() (io.ReadCloser, error) { return c.SaveCell(cmd.Context()) })
			if err != nil {
				return err
			}
			if err := a.print(f, func(t *table) { t.text("%s: %s", f.ID, f.Bytes) }); err != nil {
				return err
			}
			a.hint("Next: pcm cell snapshot inspect %s", f.ID)
			return nil
		},
	}
	inspect := &cobra.Command{
		Use: "inspect FILE", Short: "Check a snapshot file and show what it holds; needs no node", Args: exactly(1, "a snapshot FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := openKind(args[0], "pcm cell snapshot inspect")
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := node.InspectSnapshot(f)
			if err != nil {
				return err
			}
			return a.print(v, func(t *table) { drawSnapshot(t, v) })
		},
	}
	var yes bool
	var reason string
	restore := &cobra.Command{
		Use: "restore FILE", Short: "Let this stopped node go on alone as its cell, from a snapshot file", Args: exactly(1, "a snapshot FILE"),
		Long: `Replaces the cell's part of a stopped node's data folder by a snapshot. The node
is then the one voter of its cell. What the cell did after the snapshot is lost,
and its other peers must not go on with their old folders: they stop loudly where
they know more. What was there is moved aside. That the cell was restored stands
in its ledger.`,
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := openKind(args[0], "pcm cell snapshot inspect")
			if err != nil {
				return err
			}
			defer f.Close()
			v, err := node.InspectSnapshot(f)
			if err != nil {
				return err
			}
			dir, unlock, err := a.stopped()
			if err != nil {
				return err
			}
			defer unlock()
			if !yes {
				t := &table{now: a.now()}
				drawSnapshot(t, v)
				io.WriteString(a.errOut, t.String())
				if err := a.confirm("put the cell back to this, losing what came after", v.Name); err != nil {
					return err
				}
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				return pcm.Errorf(pcm.Internal, "can't read %s again: %w", args[0], err)
			}
			aside, err := node.RestoreCell(dir, f, or(reason, "restored from a snapshot"), newLogger(Log{Format: "auto", Level: "warn"}, a.errOut))
			if err != nil {
				return err
			}
			if err := a.print(v, func(t *table) {
				t.text("%s is back at entry %d, with %s.", v.Name, v.Index, plural(int(v.Records), "record"))
				t.pair("Before", "%s", aside)
			}); err != nil {
				return err
			}
			a.hint("Next: %s up", a.self())
			return nil
		},
	}
	restore.Flags().BoolVar(&yes, "yes", false, "don't ask: what is lost is known")
	restore.Flags().StringVar(&reason, "reason", "", "why; it stands in the ledger")
	c.AddCommand(save, inspect, restore)
	return c
}

func drawSnapshot(t *table, v api.Snapshot) {
	t.pair("Cell", "%s (%s)", v.Name, v.ID)
	t.pair("Mesh", "%s", v.Mesh)
	t.pair("Written", "%s by %s", v.At.Format(time.RFC3339), pcm.Short(v.Peer))
	t.pair("Log", "up to entry %d, term %d", v.Index, v.Term)
	if !v.LogTime.IsZero() {
		t.pair("Log time", "%s", v.LogTime.UTC().Format(time.RFC3339))
	}
	t.pair("Ledger", "%s, root %s", plural(int(v.Records), "record"), v.Root)
	if v.Removed > 0 {
		t.pair("Kept", "from record %d on: of those before it has only the hashes", v.Removed)
	}
	t.pair("State", "%s: %s, %s, %s, %d balances", pcm.Bytes(v.StateBytes), plural(v.Members, "peer"), plural(v.Jobs, "open job"), plural(v.Trades, "open trade"), v.Balances)
	var voters []string
	for _, id := range v.Voters {
		voters = append(voters, pcm.Short(id))
	}
	t.pair("Voters", "%s", or(strings.Join(voters, ", "), "-"))
}

func (a *app) backupCommand() *cobra.Command {
	var root bool
	c := &cobra.Command{
		Use: "backup FILE", Short: "Write a backup of this node to a file: keys, settings, and its cell", Args: exactly(1, "a FILE to write"),
		Long: `Writes who this peer is (its keys), what was set, the specs of its jobs, and a
snapshot of its cell to a file, while the node runs. Artifacts are not in it.
Keep the file secret: whoever has it is this peer.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			f, err := saveTo(args[0], func() (io.ReadCloser, error) { return c.Backup(cmd.Context(), root) })
			if err != nil {
				return err
			}
			if err := a.print(f, func(t *table) { t.text("%s: %s", f.ID, f.Bytes) }); err != nil {
				return err
			}
			if cells, err := c.Cells(cmd.Context()); err == nil {
				for _, v := range cells.Items {
					if !v.Away && v.Removed > 0 {
						a.hint("The first %d records of the ledger are not in it, as they were removed after their time. Keep what has them as well: %s", v.Removed, or(v.Archive, "the archives of the cell's other peers"))
					}
				}
			}
			a.hint("Keep it secret: whoever has it is this peer. 'pcm restore --help' says how it comes back.")
			return nil
		},
	}
	c.Flags().BoolVar(&root, "root-key", true, "put the mesh's root key in it, where this node has it")
	return c
}

func (a *app) restoreCommand() *cobra.Command {
	var alone, yes bool
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make a new data folder from a backup", Args: exactly(1, "a backup FILE"),
		Long: `Makes the data folder anew from a backup. The peer comes back under its name, as
one that has forgotten what it voted and signed: it takes no part in elections
until its cell has taken it in again as a replica, which needs a majority of the
other voters, and then fetches what it missed. The old peer must not run any more.

If no other voter of the cell is left, --alone has it go on as the one voter of
the cell, from the snapshot in the backup. What the cell did since is lost.`,
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := openKind(args[0], "pcm restore")
			if err != nil {
				return err
			}
			defer f.Close()
			dir, _ := a.dataDir()
			unlock, err := lockData(dir)
			if err != nil {
				return err
			}
			defer unlock()
			if alone && !yes {
				if err := a.confirm("go on without all other voters, losing what the cell did since the backup", "alone"); err != nil {
					return err
				}
			}
			b, err := node.RestoreBackup(dir, f, alone, "restored from a backup", newLogger(Log{Format: "auto", Level: "warn"}, a.errOut))
			if err != nil {
				return err
			}
			if err := a.print(b, func(t *table) {
				t.text("Peer %s is back in %s.", b.Name, dir)
				t.pair("  peer", "%s", b.Peer)
				t.pair("  cell", "%s", b.Cell)
				t.pair("  backup of", "%s", b.At.Format(time.RFC3339))
				if b.Root {
					t.pair("  root key", "of %s", b.Mesh)
				}
			}); err != nil {
				return err
			}
			if !alone && len(b.Voters) == 1 && b.Voters[0] == b.Peer {
				a.hint("It was the one voter of its cell: unless others vote now, remove %s and restore with --alone", dir)
			}
			a.hint("Next: %s up", a.self())
			return nil
		},
	}
	c.Flags().BoolVar(&alone, "alone", false, "go on as the one voter of the cell: no other is left")
	c.Flags().BoolVar(&yes, "yes", false, "with --alone: don't ask")
	return c
}

func (a *app) rootKeyCommand() *cobra.Command {
	c := &cobra.Command{Use: "root-key", Short: "Keep the root key of the mesh elsewhere", Long: `The root key signs the passports of a mesh. It is needed when peers are let in or
passports run out, 30 days after they were issued; in between it can lie
elsewhere, offline. Without it no passport can be renewed for longer than that.`}
	c.RunE = a.group(c)
	status := func(cmd *cobra.Command) error {
		dir, _ := a.dataDir()
		v, err := node.RootKey(dir)
		if err != nil {
			return err
		}
		return a.print(v, func(t *table) {
			t.pair("Mesh", "%s", v.ID)
			t.pair("Root key", "%s", map[bool]string{true: "in " + dir, false: "not here"}[v.Here])
			t.pair("Passport", "of this peer, until %s: until then the key must have been at its issuer again, to renew it", v.Passport.Format(time.RFC3339))
		})
	}
	c.AddCommand(
		&cobra.Command{Use: "status", Short: "Show whether the root key is in this data folder", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return status(cmd) }},
		&cobra.Command{
			Use: "export FILE", Short: "Write the root key to a file; it stays here too", Args: exactly(1, "a FILE to write"),
			RunE: func(cmd *cobra.Command, args []string) error {
				dir, _ := a.dataDir()
				if err := node.ExportRootKey(dir, args[0]); err != nil {
					return err
				}
				if err := status(cmd); err != nil {
					return err
				}
				a.hint("Keep %s secret, and more than one copy of it. Next, with the node stopped: %s root-key remove --exported %s", args[0], a.self(), args[0])
				return nil
			},
		},
		&cobra.Command{
			Use: "import FILE", Short: "Bring the root key back to this stopped node", Args: exactly(1, "a FILE from 'pcm root-key export'"),
			RunE: a.withStopped(func(cmd *cobra.Command, dir string, args []string) error {
				if err := node.ImportRootKey(dir, args[0]); err != nil {
					return err
				}
				return status(cmd)
			}),
		},
	)
	var exported string
	remove := &cobra.Command{
		Use: "remove --exported FILE", Short: "Take the root key out of this stopped node's data folder", Args: noArgs,
		RunE: a.withStopped(func(cmd *cobra.Command, dir string, _ []string) error {
			if exported == "" {
				return pcm.Errorf(pcm.Invalid, "--exported is missing: name the file that 'pcm root-key export' wrote, so that it is seen to hold the key")
			}
			if err := node.RemoveRootKey(dir, exported); err != nil {
				return err
			}
			return status(cmd)
		}),
	}
	remove.Flags().StringVar(&exported, "exported", "", "the `FILE` that holds the key from now on")
	c.AddCommand(remove)
	return c
}

// withStopped runs f while the data folder is locked.
func (a *app) withStopped(f func(*cobra.Command, string, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		dir, unlock, err := a.stopped()
		if err != nil {
			return err
		}
		defer unlock()
		return f(cmd, dir, args)
	}
}
