package artifact

import (
	"fmt"
	"os"
	"testing"
	"testing/fstest"

	"github.com/jointcloud/pcm"
)

func result(t testing.TB, s *Store, i int, owners ...string) pcm.Digest {
	t.Helper()
	d, _, err := s.ImportFS(t.Context(), fstest.MapFS{"stdout": {Data: random(uint64(i), 2000)}, "n": {Data: fmt.Append(nil, i)}}, ".", owners...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestPackReopens(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	var ds []pcm.Digest
	for i := range 3000 {
		ds = append(ds, result(t, s, i))
	}
	if n := files(t, s, dirTrees); n != 0 {
		t.Errorf("%d small results have a file of their own", n)
	}
	if n := files(t, s, dirPacks); n != 2 {
		t.Errorf("%d segments for 6 MB, want 2", n)
	}
	if result(t, s, 7) != ds[7] {
		t.Error("the same result has another digest")
	}
	used := s.Usage()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = openStore(t, Config{Dir: dir})
		if got := s.Usage(); got.Used != used.Used || got.Artifacts != len(ds) {
			t.Fatalf("after reopening %+v, before %+v", got, used)
		}
		for i, d := range ds {
			equal(t, readAll(t, s, d, "n", 0), fmt.Append(nil, i))
		}
	}
	extra := result(t, s, 9999) // by this run: in a segment of its own
	if n := files(t, s, dirPacks); n != 3 {
		t.Errorf("%d segments, want 3", n)
	}

	// A record that a crash cut short, and one that the disk spoilt.
	first, last := s.segmentPath(1), s.segmentPath(2)
	b, err := os.ReadFile(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(last, b[:len(b)-100], 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	if s.Has(ds[2999]) || !s.Has(ds[2998]) || !s.Has(extra) {
		t.Error("of a segment that was cut short, all but the last record is to stay")
	}
	if b, err = os.ReadFile(first); err != nil {
		t.Fatal(err)
	}
	b[packHead+5] ^= 1
	if err := os.WriteFile(first, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(ds[0]); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("a spoilt record: %v", err)
	}
	if s.Has(ds[0]) {
		t.Error("a spoilt record counts as here")
	}
	if result(t, s, 0) != ds[0] || !s.Has(ds[0]) {
		t.Error("a spoilt record isn't mended")
	}
	equal(t, readAll(t, s, ds[1], "n", 0), []byte("1"))
}

func TestPackCollects(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Quota: 8 << 20})
	kept := map[int]pcm.Digest{}
	for i := range 12_000 { // 24 MB
		if i%50 == 0 {
			kept[i] = result(t, s, i, "keep")
		} else {
			result(t, s, i)
		}
	}
	for i, d := range kept {
		equal(t, readAll(t, s, d, "n", 0), fmt.Append(nil, i))
	}
	u := s.Usage()
	if u.Used > u.Quota {
		t.Errorf("%s in use of %s", u.Used, u.Quota)
	}
	disk, live := int64(0), int64(0)
	for id, seg := range s.packs.segments {
		info, err := os.Stat(s.segmentPath(id))
		if err != nil {
			t.Fatal(err)
		}
		disk += info.Size()
		live += seg.live
	}
	if live != int64(u.Used) || disk > 2*live+packSegment {
		t.Errorf("%d bytes on disk, %d live, %d counted", disk, live, u.Used)
	}
	if len(s.packs.refs) != u.Artifacts {
		t.Errorf("%d records, %d artifacts", len(s.packs.refs), u.Artifacts)
	}
}
