package node

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
)

// The files of a data folder that say who this peer is. All are 0600.
const (
	peerKeyFile    = "peer.key"    // hex seed of the peer's Ed25519 key
	accountKeyFile = "account.key" // hex seed of the account's
	rootKeyFile    = "root.key"    // hex seed of the mesh root's: only where the mesh was founded
	meshFile       = "mesh.json"
)

// identity is who this peer is and where it belongs.
type identity struct {
	Peer    pcm.Key
	Account pcm.Key
	Root    *pcm.Key // nil unless this peer holds the root key
	Mesh    membership
}

// membership is the content of mesh.json.
type membership struct {
	Mesh      pcm.MeshID `json:"mesh"`
	Root      string     `json:"root"` // the root's public key, hex
	Cell      pcm.CellID `json:"cell"`
	CellName  string     `json:"cell_name"`
	Founded   bool       `json:"founded"`         // this peer founded the cell
	Begun     bool       `json:"begun,omitempty"` // and the cell's folder was there once: never found it again
	Passport  pcm.Signed `json:"passport"`        // this peer's
	Bootstrap []string   `json:"bootstrap"`       // addresses of peers to begin with

	// Voters are those of the cell when this peer joined it. Missing where a release
	// joined that knew one cell a mesh.
	Voters []pcm.PeerID `json:"voters,omitempty"`
}

func (m membership) root() []byte {
	b, _ := hex.DecodeString(m.Root) // checked when it was read
	return b
}

// vouched are peers of the cell that are known to be so from elsewhere than its ledger.
func (m membership) vouched() []pcm.PeerID {
	if m.Voters != nil || m.Founded {
		return m.Voters
	}
	var list []pcm.PeerID
	for _, a := range m.Bootstrap {
		if _, id, ok := strings.Cut(a, "/p2p/"); ok {
			list = append(list, pcm.PeerID(id))
		}
	}
	return list
}

// loadKey reads a key file, making it if it isn't there.
func loadKey(path string) (pcm.Key, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		k := pcm.NewKey()
		return k, writeFile(path, []byte(hex.EncodeToString(k.Seed())+"\n"))
	}
	if err != nil {
		return pcm.Key{}, pcm.Errorf(pcm.Internal, "can't read the key %s: %w", path, err)
	}
	return parseKey(path, data)
}

func parseKey(path string, data []byte) (pcm.Key, error) {
	seed, err := hex.DecodeString(strings.TrimSpace(string(data)))
	if err == nil {
		var k pcm.Key
		if k, err = pcm.KeyFromSeed(seed); err == nil {
			return k, nil
		}
	}
	return pcm.Key{}, pcm.Errorf(pcm.Internal, "the key %s is damaged (64 hex digits expected): restore it from a backup, or remove the data folder to begin as a new peer", path)
}

// writeFile replaces a file as a whole, durably, for its owner alone.
func writeFile(path string, data []byte) error { return writeFileAs(path, data, 0o600) }

// writeFileAs is writeFile for whom a mode says.
func writeFileAs(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// loadIdentity reads who this peer is. Its second result is false when the data
// folder belongs to no mesh yet.
func loadIdentity(dir, accountKey string) (*identity, bool, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, false, pcm.Errorf(pcm.Internal, "can't make the data folder %s: %w", dir, err)
	}
	if accountKey == "" {
		accountKey = filepath.Join(dir, accountKeyFile)
	}
	id := &identity{}
	var err error
	if id.Peer, err = loadKey(filepath.Join(dir, peerKeyFile)); err != nil {
		return nil, false, err
	}
	if id.Account, err = loadKey(accountKey); err != nil {
		return nil, false, err
	}
	if err := finishMove(dir); err != nil {
		return nil, false, err
	}
	path := filepath.Join(dir, meshFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return id, false, nil
	}
	if err != nil {
		return nil, false, pcm.Errorf(pcm.Internal, "can't read %s: %w", path, err)
	}
	if err := json.Unmarshal(data, &id.Mesh); err != nil {
		return nil, false, pcm.Errorf(pcm.Internal, "%s is damaged (%v): restore it from a backup", path, err)
	}
	if root, err := hex.DecodeString(id.Mesh.Root); err != nil || pcm.NewMeshID(root) != id.Mesh.Mesh || !id.Mesh.Cell.Valid() {
		return nil, false, pcm.Errorf(pcm.Internal, "%s is damaged: mesh, root and cell don't belong together; restore it from a backup", path)
	}
	rootKey := filepath.Join(dir, rootKeyFile)
	switch data, err := os.ReadFile(rootKey); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, false, pcm.Errorf(pcm.Internal, "can't read the key %s: %w", rootKey, err)
	default:
		k, err := parseKey(rootKey, data)
		if err != nil {
			return nil, false, err
		}
		if pcm.NewMeshID(k.Public()) != id.Mesh.Mesh {
			return nil, false, pcm.Errorf(pcm.Internal, "the key %s is not the root key of %s: restore the right one, or move it away if another peer keeps it", rootKey, id.Mesh.Mesh)
		}
		id.Root = &k
	}
	return id, true, nil
}

// save writes mesh.json.
func (id *identity) save(dir string) error { return id.Mesh.write(filepath.Join(dir, meshFile)) }

func (m membership) write(path string) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(path, append(data, '\n'))
}

// nextMeshFile says where a peer that moves to another mesh will belong. While it
// is there, what is left of the old membership is still to be removed.
const nextMeshFile = meshFile + ".next"

// beginMove notes durably that the data folder now belongs to another mesh.
func (m membership) beginMove(dir string) error { return m.write(filepath.Join(dir, nextMeshFile)) }

// finishMove completes a move that was begun, also one that a crash cut short.
func finishMove(dir string) error {
	next := filepath.Join(dir, nextMeshFile)
	if _, err := os.Stat(next); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := forget(dir); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(dir, meshFile)); err != nil {
		return pcm.Errorf(pcm.Internal, "can't finish moving to another mesh: %w", err)
	}
	return syncDir(dir)
}

// forget removes what binds a data folder to its mesh; keys and artifacts stay. A
// root key is put aside, never deleted: without it its mesh can't go on.
func forget(dir string) error {
	root := filepath.Join(dir, rootKeyFile)
	err := os.Rename(root, root+".old")
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err,
		removeIfThere(filepath.Join(dir, meshFile)),
		os.RemoveAll(filepath.Join(dir, "cell")),
		os.RemoveAll(filepath.Join(dir, "specs")),
		removeIfThere(filepath.Join(dir, "peers")),
	)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't remove what binds %s to its mesh: %w", dir, err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// found makes a mesh of one: a root key, and a passport signed by it.
func (id *identity) found(dir, name, cellName string, labels pcm.Labels, now time.Time) error {
	root := pcm.NewKey()
	if err := writeFile(filepath.Join(dir, rootKeyFile), []byte(hex.EncodeToString(root.Seed())+"\n")); err != nil {
		return err
	}
	id.Root = &root
	id.Mesh = membership{
		Mesh: pcm.NewMeshID(root.Public()), Root: hex.EncodeToString(root.Public()),
		Cell: pcm.NewCellID(), CellName: cellName, Founded: true,
	}
	id.Mesh.Passport = id.issueOwn(name, labels, now)
	return id.save(dir)
}

// issueOwn signs this peer's own passport with the root key.
func (id *identity) issueOwn(name string, labels pcm.Labels, now time.Time) pcm.Signed {
	mesh, peer := id.Mesh.Mesh, id.Peer.Peer()
	return id.Root.Seal(pcm.DomainPassport, pcm.Passport{
		Mesh: mesh, Peer: peer, Account: id.Account.Account(), Name: name, Labels: labels,
		Roles:    []pcm.Role{pcm.RoleIssuer},
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(pcm.PassportLifetime).UnixMilli(),
		AccountBy: pcm.SignJoin(id.Account, mesh, peer),
	})
}
