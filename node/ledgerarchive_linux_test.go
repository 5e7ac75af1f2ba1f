package node

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// An archive whose disk is full says so, and holds whole bundles only: what it took
// stays, and the rest is taken when there is room.
func TestLedgerArchiveFull(t *testing.T) {
	dir := t.TempDir()
	require.SmallDisk(t, dir, "3m")
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	a := NewLedgerArchive(dir, "cell-abcdefghijklmnop")
	var bundles [][][]byte
	for i := range 5 { // of half a MiB each
		var records [][]byte
		for range tlog.Width {
			records = append(records, bytes.Repeat([]byte{byte('a' + i)}, 2<<10))
		}
		bundles = append(bundles, records)
	}
	whole := func() (n int) {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && path != filler {
				if n++; strings.Contains(d.Name(), "tmp") {
					t.Errorf("%s was left", path)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			raw, err := a.Bundle(uint64(i))
			if err != nil {
				t.Fatal(err)
			}
			records, err := tlog.SplitBundle(raw, tlog.Width)
			if err != nil || !bytes.Equal(records[255], bundles[i][255]) {
				t.Errorf("bundle %d is not whole: %v", i, err)
			}
		}
		return n
	}
	err := a.write(0, bundles)
	if err == nil || !strings.Contains(err.Error(), "no space left") || !strings.Contains(err.Error(), dir) {
		t.Fatalf("a full disk takes bundles: %v", err)
	}
	if n := whole(); n == 0 || n == len(bundles) {
		t.Fatalf("%d of %d bundles fit on the disk", n, len(bundles))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := a.write(0, bundles); err != nil {
		t.Fatal(err)
	}
	if n := whole(); n != len(bundles) {
		t.Errorf("%d of %d bundles are there", n, len(bundles))
	}
}
