package node

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

type packed struct {
	name, body string
	kind       byte
}

// backupOf packs files behind a manifest.
func backupOf(t *testing.T, b Backup, files ...packed) []byte {
	t.Helper()
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	out := tar.NewWriter(z)
	manifest, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append([]packed{{manifestFile, string(manifest), tar.TypeReg}}, files...) {
		if err := out.WriteHeader(&tar.Header{Name: f.name, Typeflag: f.kind, Mode: 0o600, Size: int64(len(f.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestHostileBackups: whatever a file holds, nothing outside the data folder is
// touched, and nothing that isn't of a backup is taken.
func TestHostileBackups(t *testing.T) {
	good := Backup{Version: 1}
	for _, c := range []struct {
		what string
		data []byte
	}{
		{"nothing", nil},
		{"no archive", []byte("hello")},
		{"another version", backupOf(t, Backup{Version: 2})},
		{"no identity", backupOf(t, good)},
		{"the parent", backupOf(t, good, packed{"../escaped", "x", tar.TypeReg})},
		{"the parent of a folder", backupOf(t, good, packed{"specs/../../escaped", "x", tar.TypeReg})},
		{"deeper than backups are", backupOf(t, good, packed{"specs/a/b", "x", tar.TypeReg})},
		{"an absolute path", backupOf(t, good, packed{"/tmp/escaped", "x", tar.TypeReg})},
		{"a link", backupOf(t, good, packed{"peer.key", "", tar.TypeSymlink})},
		{"a folder", backupOf(t, good, packed{"specs/", "", tar.TypeDir})},
		{"Raft's log", backupOf(t, good, packed{"cell/raft.db", "x", tar.TypeReg})},
		{"what was signed", backupOf(t, good, packed{"checkpoints/signed", "x", tar.TypeReg})},
		{"a file twice", backupOf(t, good, packed{"peers", "x", tar.TypeReg}, packed{"peers", "y", tar.TypeReg})},
		{"portions out of order", backupOf(t, good, packed{snapshotPart + "00000001", "x", tar.TypeReg})},
		{"cut short", backupOf(t, good, packed{"peers", strings.Repeat("x", 100), tar.TypeReg})[:60]},
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "data")
		if _, err := RestoreBackup(dir, bytes.NewReader(c.data), true, "", slog.New(slog.DiscardHandler)); pcm.ErrorCode(err) != pcm.Invalid {
			t.Errorf("%s: %v", c.what, err)
		}
		if entries, _ := os.ReadDir(parent); len(entries) > 1 {
			t.Errorf("%s: it wrote beside the data folder: %v", c.what, entries)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := RestoreBackup(dir, bytes.NewReader(backupOf(t, good)), false, "", slog.New(slog.DiscardHandler)); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("into a folder that is not empty: %v", err)
	}
}

// TestRootKeyElsewhere: the key can be taken out only if a file is seen to hold
// it, and brought back only if it is that of the mesh.
func TestRootKeyElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := RootKey(dir); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("of no mesh: %v", err)
	}
	id, _, err := loadIdentity(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := id.found(dir, "anna", "anna", nil, time.Now()); err != nil {
		t.Fatal(err)
	}
	here := func(want bool) {
		t.Helper()
		v, err := RootKey(dir)
		if err != nil || v.Here != want || v.ID != id.Mesh.Mesh || time.Until(v.Passport) < 29*24*time.Hour {
			t.Errorf("%+v, %v", v, err)
		}
	}
	here(true)
	file := filepath.Join(t.TempDir(), "key")
	if err := RemoveRootKey(dir, file); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("without a copy: %v", err)
	}
	if err := RemoveRootKey(dir, filepath.Join(dir, rootKeyFile)); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("with itself as the copy: %v", err)
	}
	if err := ExportRootKey(dir, file); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the exported key: %v, %v", info.Mode(), err)
	}
	if err := ExportRootKey(dir, file); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("over a file: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if _, err := loadKey(other); err != nil { // makes one
		t.Fatal(err)
	}
	if err := RemoveRootKey(dir, other); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("another key as the copy: %v", err)
	}
	here(true)
	if err := RemoveRootKey(dir, file); err != nil {
		t.Fatal(err)
	}
	here(false)
	if err := ExportRootKey(dir, filepath.Join(t.TempDir(), "none")); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("a key that isn't there: %v", err)
	}
	if err := ImportRootKey(dir, other); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("another mesh's: %v", err)
	}
	if err := ImportRootKey(dir, file); err != nil {
		t.Fatal(err)
	}
	here(true)
}
