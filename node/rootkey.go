package node

import (
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/node/api"
)

// The root key of a mesh need not be on a machine that others can reach: it is
// needed when passports run out, and can lie elsewhere in between.

// RootKey says where a data folder is with the root key of its mesh.
func RootKey(dir string) (api.RootKey, error) {
	id, err := folderIdentity(dir)
	if err != nil {
		return api.RootKey{}, err
	}
	v := api.RootKey{ID: id.Mesh.Mesh, Here: id.Root != nil, Founded: id.Mesh.Founded}
	var p pcm.Passport
	if err := pcm.Unmarshal(id.Mesh.Passport.Payload, &p); err != nil {
		return v, pcm.Errorf(pcm.Internal, "the passport in %s can't be read: %w", filepath.Join(dir, meshFile), err)
	}
	v.Passport = time.UnixMilli(p.NotAfter).UTC()
	return v, nil
}

// ExportRootKey writes the root key to a file that isn't there yet.
func ExportRootKey(dir, file string) error {
	id, err := folderIdentity(dir)
	if err != nil {
		return err
	}
	if id.Root == nil {
		return pcm.Errorf(pcm.NotFound, "the root key of %s is not in %s: only the peer that founded the mesh, or to which the key was brought, has it", id.Mesh.Mesh, dir)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return pcm.Errorf(pcm.Conflict, "%s is there already: name another file", file)
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", file, err)
	}
	_, err = f.WriteString(hex.EncodeToString(id.Root.Seed()) + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", file, err)
	}
	return nil
}

// readRootKey reads an exported key, which must be that of the folder's mesh.
func readRootKey(id *identity, file string) (pcm.Key, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return pcm.Key{}, pcm.Errorf(pcm.NotFound, "can't read the exported key %s: %w", file, err)
	}
	k, err := parseKey(file, data)
	switch {
	case err != nil:
		return k, pcm.Errorf(pcm.Invalid, "%s holds no key (64 hex digits expected): name the file that 'pcm root-key export' wrote; nothing was changed", file)
	case pcm.NewMeshID(k.Public()) != id.Mesh.Mesh:
		return k, pcm.Errorf(pcm.Conflict, "the key in %s is not the root key of %s: name the file that 'pcm root-key export' wrote; nothing was changed", file, id.Mesh.Mesh)
	}
	return k, nil
}

// ImportRootKey brings the root key to a data folder whose node is stopped.
func ImportRootKey(dir, file string) error {
	id, err := folderIdentity(dir)
	if err != nil {
		return err
	}
	k, err := readRootKey(id, file)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, rootKeyFile), []byte(hex.EncodeToString(k.Seed())+"\n"))
}

// RemoveRootKey takes the root key out of a data folder whose node is stopped. The
// exported file must hold it: a mesh without its root key ends with its passports.
func RemoveRootKey(dir, exported string) error {
	id, err := folderIdentity(dir)
	if err != nil {
		return err
	}
	if id.Root == nil {
		return pcm.Errorf(pcm.NotFound, "the root key of %s is not in %s", id.Mesh.Mesh, dir)
	}
	if _, err := readRootKey(id, exported); err != nil {
		return err
	}
	path := filepath.Join(dir, rootKeyFile)
	if info, err := os.Stat(exported); err == nil {
		if own, err := os.Stat(path); err == nil && os.SameFile(info, own) {
			return pcm.Errorf(pcm.Refused, "%s is the key in the data folder itself, no copy of it: export it first", exported)
		}
	}
	if err := os.Remove(path); err != nil {
		return pcm.Errorf(pcm.Internal, "can't remove %s: %w", path, err)
	}
	return syncDir(dir)
}
