package artifact

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jointcloud/pcm"
)

// A disk that is full says so, and nothing half-written stays.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		t.Skipf("can't mount a small disk: %v", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	s := openStore(t, Config{Dir: filepath.Join(dir, "s")})
	kept := importBytes(t, s, random(1, ChunkSize), "k")
	p := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(p, random(2, 4*ChunkSize), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Import(t.Context(), p)
	wantCode(t, err, pcm.Refused, "full")
	if n := files(t, s, dirChunks) + files(t, s, dirTmp); n != 1 {
		t.Errorf("%d files, want that of the artifact before", n)
	}
	equal(t, readAll(t, s, kept, "", 0), random(1, ChunkSize))
}
