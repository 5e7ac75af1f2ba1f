package artifact

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/adaptertest/require"
)

// A disk that is full says so, and nothing half-written stays.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	require.SmallDisk(t, dir, "3m")
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
