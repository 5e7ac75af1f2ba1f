package node

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/node/api"
)

// A backup is a tar archive, compressed by gzip: a manifest, the files that say
// who the peer is and what its operator has set, the specs of jobs, and the
// cell's snapshot file in portions. What is not in it: artifacts, records that the cell no
// longer keeps (the archive has those), and what the peer
// voted and signed. A restored peer must not go on from an old vote or an old
// signature: it takes no part in elections until the cell has taken it in again
// (consensus/memory.go), and signs no checkpoint before it has seen what the others signed.
const (
	manifestFile = "backup.json"
	snapshotPart = "cell.snapshot/" // and the number of the portion
	partBytes    = 8 << 20
)

// backedUp are the files of a data folder that a backup holds, where they exist;
// with a slash at the end, all files of that folder.
var backedUp = []string{
	peerKeyFile, noteKeyFile, meshFile, "operator.json", "config.yaml", "peers", checkpointsDir + "/" + seenFile, "specs/", auditDir + "/",
}

// maxBackedUp bounds one file of a backup, but for the cell's snapshot.
const maxBackedUp = 256 << 20

// Backup says what a backup is of.
type Backup struct {
	Version int           `json:"version"`
	Peer    pcm.PeerID    `json:"peer"`
	Name    string        `json:"name"`
	Account pcm.AccountID `json:"account"`
	Mesh    pcm.MeshID    `json:"mesh"`
	Cell    pcm.CellID    `json:"cell"`
	At      time.Time     `json:"at"`
	Root    bool          `json:"root_key"` // the mesh's root key is in it
	Voters  []pcm.PeerID  `json:"voters"`   // of the cell, then
	Release string        `json:"release"`
}

// SaveCell writes a snapshot file of the cell.
func (n *Node) SaveCell(ctx context.Context, w io.Writer) error {
	_, err := n.cell.Save(ctx, w, rootOf)
	return err
}

// rootOf reads what belongs to an encoded ledger.
func rootOf(state []byte) (uint64, [32]byte, error) {
	s := ledger.New(ledger.Genesis{})
	if err := s.Restore(state); err != nil {
		return 0, [32]byte{}, err
	}
	n, root := s.Root()
	return n, root, nil
}

// Backup writes a backup of this peer.
func (n *Node) Backup(ctx context.Context, root bool, w io.Writer) error {
	z := gzip.NewWriter(w)
	out := tar.NewWriter(z)
	add := func(name string, data []byte) error {
		err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now()})
		if err == nil {
			_, err = out.Write(data)
		}
		return err
	}
	b := Backup{
		Version: 1, Peer: n.self, Name: n.cfg.Name, Account: n.account, Mesh: n.id.Mesh.Mesh, Cell: n.id.Mesh.Cell,
		At: time.Now().UTC().Truncate(time.Second), Root: root && n.id.Root != nil, Voters: n.cell.Voters(), Release: n.cfg.Version,
	}
	manifest, err := json.MarshalIndent(b, "", "  ")
	if err == nil {
		err = add(manifestFile, append(manifest, '\n'))
	}
	if err == nil { // it may stand elsewhere
		err = add(accountKeyFile, []byte(hex.EncodeToString(n.id.Account.Seed())+"\n"))
	}
	if err == nil && b.Root {
		err = add(rootKeyFile, []byte(hex.EncodeToString(n.id.Root.Seed())+"\n"))
	}
	for _, name := range backedUp {
		if err != nil {
			return err
		}
		err = addFiles(n.cfg.Dir, name, add)
	}
	if err != nil {
		return err
	}
	parts := &partWriter{add: add}
	if _, err := n.cell.Save(ctx, parts, rootOf); err != nil {
		return err
	}
	return errors.Join(parts.flush(), out.Close(), z.Close())
}

// addFiles adds a file, or all regular files right below a folder.
func addFiles(dir, name string, add func(string, []byte) error) error {
	names := []string{name}
	if folder, ok := strings.CutSuffix(name, "/"); ok {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return pcm.Errorf(pcm.Internal, "can't read %s: %w", filepath.Join(dir, folder), err)
		}
		names = nil
		for _, e := range entries {
			if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".tmp-") {
				names = append(names, folder+"/"+e.Name())
			}
		}
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile, or never there
		}
		if err == nil && len(data) > maxBackedUp {
			err = pcm.Errorf(pcm.TooLarge, "it has more than %s", pcm.Bytes(maxBackedUp))
		}
		if err == nil {
			err = add(name, data)
		}
		if err != nil {
			return pcm.Errorf(pcm.Internal, "can't back up %s: %w", name, err)
		}
	}
	return nil
}

// partWriter cuts a stream into files of an archive, whose sizes must be known ahead.
type partWriter struct {
	add  func(string, []byte) error
	buf  bytes.Buffer
	next int
}

func (p *partWriter) Write(b []byte) (int, error) {
	p.buf.Write(b)
	if p.buf.Len() >= partBytes {
		return len(b), p.flush()
	}
	return len(b), nil
}

func (p *partWriter) flush() error {
	if p.buf.Len() == 0 {
		return nil
	}
	err := p.add(snapshotPart+decimals(p.next), p.buf.Bytes())
	p.next++
	p.buf.Reset()
	return err
}

// decimals numbers the portions so that their names sort.
func decimals(n int) string {
	const digits = "00000000"
	s := digits + strconv.Itoa(n)
	return s[len(s)-len(digits):]
}

// RestoreBackup makes a data folder from a backup. Without alone the peer comes
// back as one that has lost its part of the cell: the cell takes it in again. With
// alone it goes on as the cell's one voter, from the snapshot in the backup; what the cell did since is lost.
func RestoreBackup(dir string, r io.Reader, alone bool, reason string, log *slog.Logger) (Backup, error) {
	var b Backup
	if err := emptyFolder(dir); err != nil {
		return b, err
	}
	damaged := func(cause any) error {
		return pcm.Errorf(pcm.Invalid, "the backup is damaged, cut short, or none: %v", cause)
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return b, damaged(err)
	}
	in := tar.NewReader(z)
	head, err := in.Next()
	if err != nil || head.Name != manifestFile || head.Size > 1<<20 {
		return b, damaged("it does not begin with " + manifestFile)
	}
	if err := json.NewDecoder(in).Decode(&b); err != nil || b.Version != 1 {
		return b, damaged("its " + manifestFile + " can't be read, or is of a newer release")
	}
	part := filepath.Join(dir, "cell.snapshot")
	snapshot, err := os.OpenFile(part, os.O_CREATE|os.O_RDWR|os.O_TRUNC, 0o600)
	if err != nil {
		return b, pcm.Errorf(pcm.Internal, "can't write %s: %w", part, err)
	}
	defer os.Remove(part)
	defer snapshot.Close()
	for parts := 0; ; {
		head, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return b, damaged(err)
		}
		switch {
		case head.Typeflag != tar.TypeReg || head.Size > maxBackedUp:
			return b, damaged("it holds something that no backup has: " + head.Name)
		case head.Name == snapshotPart+decimals(parts):
			parts++
			_, err = io.Copy(snapshot, in)
		case restorable(head.Name):
			err = restoreFile(filepath.Join(dir, filepath.FromSlash(head.Name)), in)
		default:
			return b, damaged("it holds something that no backup has: " + head.Name)
		}
		if err != nil {
			return b, damaged(err)
		}
	}
	id, member, err := loadIdentity(dir, "")
	if err != nil {
		return b, err
	}
	if !member || id.Peer.Peer() != b.Peer || id.Mesh.Cell != b.Cell {
		return b, damaged("its parts don't belong together")
	}
	id.Mesh.Begun = true // a founder must not begin its cell anew
	if err := id.save(dir); err != nil {
		return b, err
	}
	if _, err := snapshot.Seek(0, io.SeekStart); err != nil {
		return b, err
	}
	if !alone {
		// Looked through, so that a bad backup shows now and not when it is needed.
		_, _, err = consensus.ReadSaved(snapshot)
		return b, err
	}
	_, err = consensus.Rebuild(filepath.Join(dir, "cell"), b.Mesh, b.Cell, b.Peer, reason, snapshot, rootOf, log)
	return b, err
}

// folderIdentity reads to whom a data folder belongs, and makes nothing that isn't there.
func folderIdentity(dir string) (*identity, error) {
	if _, err := os.Stat(filepath.Join(dir, meshFile)); err != nil {
		return nil, pcm.Errorf(pcm.Refused, "the data folder %s belongs to no mesh: name the right one with --data, or restore a whole peer with 'pcm restore'", dir)
	}
	id, _, err := loadIdentity(dir, filepath.Join(dir, peerKeyFile)) // the account's key may stand elsewhere, and isn't needed
	return id, err
}

// emptyFolder makes a folder, or finds it empty but for its lock.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return pcm.Errorf(pcm.Internal, "can't read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			return pcm.Errorf(pcm.Conflict, "the data folder %s is not empty (%s): a backup is restored into a new one, name it with --data", dir, e.Name())
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return pcm.Errorf(pcm.Internal, "can't make %s: %w", dir, err)
	}
	return nil
}

// restorable tells whether a file of an archive is one that backups have.
func restorable(name string) bool {
	if name == accountKeyFile || name == rootKeyFile || slices.Contains(backedUp, name) {
		return !strings.HasSuffix(name, "/")
	}
	folder, file := path.Split(name)
	return slices.Contains(backedUp, folder) && file != "" && file != "." && file != ".." && !strings.ContainsAny(file, `\`+"\x00")
}

func restoreFile(name string, r io.Reader) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Sync(), f.Close())
}

// InspectSnapshot reads a snapshot file of a cell, and checks it.
func InspectSnapshot(r io.Reader) (api.Snapshot, error) {
	info, state, err := consensus.ReadSaved(r)
	if err != nil {
		return api.Snapshot{}, err
	}
	s := ledger.New(ledger.Genesis{})
	if err := s.Restore(state); err != nil {
		return api.Snapshot{}, err
	}
	v := api.Snapshot{
		ID: info.Cell, Name: s.Genesis().Name, Mesh: info.Mesh, Peer: info.Peer, At: time.UnixMilli(info.At).UTC(), Index: info.Index, Term: info.Term,
		LogTime: logDate(s.Stamp()), Records: info.Records, Root: hex.EncodeToString(info.Root[:]), StateBytes: info.State, Voters: info.Voters,
		Removed: info.Pruned, Members: len(s.Members()), Jobs: len(s.Jobs()), Trades: len(s.Trades()),
	}
	s.Balances(func(ledger.BalanceKey, ledger.Balance) bool { v.Balances++; return true })
	if n, root := s.Root(); n != info.Records || root != info.Root {
		return v, pcm.Errorf(pcm.Invalid, "the snapshot's state is of %d records, its header says %d, or their roots differ", n, info.Records)
	}
	return v, nil
}

// RestoreCell replaces the cell's part of a stopped peer's data folder by a
// snapshot: the peer goes on as the cell's one voter. What was there is moved
// aside; where to, it tells.
func RestoreCell(dir string, r io.Reader, reason string, log *slog.Logger) (aside string, err error) {
	id, err := folderIdentity(dir)
	if err != nil {
		return "", err
	}
	cell := filepath.Join(dir, "cell")
	fresh := cell + ".restored"
	if err := os.RemoveAll(fresh); err != nil {
		return "", pcm.Errorf(pcm.Internal, "can't remove %s, left from before: %w", fresh, err)
	}
	if _, err := consensus.Rebuild(fresh, id.Mesh.Mesh, id.Mesh.Cell, id.Peer.Peer(), reason, r, rootOf, log); err != nil {
		return "", err
	}
	// What was signed may go beyond the snapshot: this peer must not contradict it.
	if err := removeIfThere(filepath.Join(dir, checkpointsDir, signedFile)); err != nil {
		return "", err
	}
	id.Mesh.Begun = true
	if err := id.save(dir); err != nil {
		return "", err
	}
	if _, err := os.Stat(cell); err == nil {
		aside = cell + ".before-" + time.Now().UTC().Format("20060102T150405")
		if err := os.Rename(cell, aside); err != nil {
			return "", pcm.Errorf(pcm.Internal, "can't move %s aside: %w", cell, err)
		}
	}
	if err := os.Rename(fresh, cell); err != nil {
		return aside, pcm.Errorf(pcm.Internal, "can't move %s in its place: %w", fresh, err)
	}
	return aside, syncDir(dir)
}
