package node

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func founded(t *testing.T) (string, *identity) {
	t.Helper()
	dir := t.TempDir()
	id, member, err := loadIdentity(dir, "")
	if err != nil || member {
		t.Fatalf("an empty folder: member %v, %v", member, err)
	}
	if err := id.found(dir, "anna", "home", nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir, id
}

func TestIdentityComesBack(t *testing.T) {
	dir, id := founded(t)
	again, member, err := loadIdentity(dir, "")
	if err != nil || !member {
		t.Fatalf("member %v, %v", member, err)
	}
	if again.Peer.Peer() != id.Peer.Peer() || again.Account.Account() != id.Account.Account() || again.Mesh.Mesh != id.Mesh.Mesh || again.Root == nil {
		t.Error("another identity came back")
	}
	for _, name := range []string{peerKeyFile, accountKeyFile, rootKeyFile, meshFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
}

func TestDamagedIdentityIsNamed(t *testing.T) {
	for _, c := range []struct{ file, content, want string }{
		{peerKeyFile, "0123", "peer.key is damaged"},
		{accountKeyFile, "", "account.key is damaged"},
		{rootKeyFile, "zz", "root.key is damaged"},
		{rootKeyFile, hex.EncodeToString(pcm.NewKey().Seed()), "is not the root key of mesh-"},
		{meshFile, `{"mesh": "me`, "mesh.json is damaged"},
		{meshFile, `{}`, "mesh, root and cell don't belong together"},
	} {
		dir, _ := founded(t)
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := loadIdentity(dir, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: %v, want %q", c.file, c.content, err, c.want)
		}
	}
}

// A move to another mesh is complete after the next start, wherever it was cut short.
func TestMoveSurvivesACrash(t *testing.T) {
	for _, crash := range []string{"after it was noted", "after mesh.json was removed", "after the cell was removed"} {
		dir, id := founded(t)
		other := pcm.NewKey()
		next := id.Mesh
		next.Mesh, next.Root, next.Cell, next.Founded = pcm.NewMeshID(other.Public()), hex.EncodeToString(other.Public()), pcm.NewCellID(), false
		if err := os.MkdirAll(filepath.Join(dir, "cell", "raft"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := next.beginMove(dir); err != nil {
			t.Fatal(err)
		}
		switch crash {
		case "after the cell was removed":
			os.RemoveAll(filepath.Join(dir, "cell"))
			fallthrough
		case "after mesh.json was removed":
			os.Remove(filepath.Join(dir, meshFile))
		}
		again, member, err := loadIdentity(dir, "")
		if err != nil || !member || again.Mesh.Mesh != next.Mesh || again.Root != nil {
			t.Fatalf("%s: member %v of %s, root %v, %v", crash, member, again.Mesh.Mesh, again.Root, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "cell")); err == nil {
			t.Errorf("%s: the old cell is still there", crash)
		}
		if _, err := os.Stat(filepath.Join(dir, rootKeyFile+".old")); err != nil {
			t.Errorf("%s: the old mesh's root key is lost: %v", crash, err)
		}
	}
}
