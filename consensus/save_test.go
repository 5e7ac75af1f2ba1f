package consensus

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/jointcloud/pcm"
)

// rootOf reads a tally's state.
func rootOf(state []byte) (uint64, [32]byte, error) {
	m := newTally()
	if err := m.Restore(state); err != nil {
		return 0, [32]byte{}, err
	}
	n, root := m.Root()
	return n, root, nil
}

// TestSaveAndRebuild: a snapshot file holds all that a cell is. A lone voter made
// from it goes on where it was taken, with the whole history, and tells so.
func TestSaveAndRebuild(t *testing.T) {
	b := &book{}
	n := found(t, b, nil)
	var ids []pcm.CommandID
	for range 300 {
		id, _ := n.propose(t, n.cfg.Self)
		ids = append(ids, id)
	}
	var file bytes.Buffer
	info, err := n.Save(t.Context(), &file, rootOf)
	if err != nil {
		t.Fatal(err)
	}
	if info.Records != 300 || !slices.Equal(info.Voters, []pcm.PeerID{n.cfg.Self}) {
		t.Errorf("saved: %+v", info)
	}
	var again bytes.Buffer
	if _, err := n.Save(t.Context(), &again, rootOf); err != nil { // nothing new since
		t.Error(err)
	}
	n.propose(t, n.cfg.Self) // not in the file: lost
	if err := n.close(); err != nil {
		t.Fatal(err)
	}

	whole := file.Bytes()
	for at := 0; at < len(whole); at += max(1, len(whole)/97) {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		if _, _, err := ReadSaved(bytes.NewReader(bad)); err == nil {
			t.Fatalf("a file with another byte at %d of %d is read", at, len(whole))
		}
		if _, _, err := ReadSaved(bytes.NewReader(whole[:at])); err == nil {
			t.Fatalf("a file that ends at %d of %d is read", at, len(whole))
		}
	}

	dir := filepath.Join(t.TempDir(), "cell")
	rebuild := func(cell pcm.CellID) error {
		_, err := Rebuild(dir, testMesh, cell, n.cfg.Self, "a test", bytes.NewReader(whole), rootOf, quiet())
		return err
	}
	if err := rebuild("cell-other"); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("into another cell: %v", err)
	}
	if err := rebuild(testCell); err != nil {
		t.Fatal(err)
	}
	if err := rebuild(testCell); pcm.ErrorCode(err) != pcm.Conflict {
		t.Errorf("over a folder that is there: %v", err)
	}
	n.dir, n.cfg.Dir, n.cfg.Bootstrap = dir, dir, false
	n.open()
	n.await("leadership", func() bool { return n.leads() > 0 })
	if got := n.ids(t); !slices.Equal(got, ids) {
		t.Errorf("%d records after it was rebuilt, want %d", len(got), len(ids))
	}
	if _, err := n.Document("cmd/" + ids[7].String()); err != nil {
		t.Errorf("a document: %v", err)
	}
	if r := n.Recovered(); r == nil || r.Way != ByFile || r.Told {
		t.Errorf("recovered: %+v", r)
	}
	id, _ := n.propose(t, n.cfg.Self)
	second := n.admit(t, nil)
	second.await("the history", func() bool { return second.count() == 301 && second.RecordCount() == 301 })
	second.await("all of it", func() bool { ok, _, _ := second.History(); return ok })
	if got := second.ids(t); !slices.Equal(got, append(slices.Clone(ids), id)) {
		t.Errorf("a new replica has %d records", len(got))
	}
}
