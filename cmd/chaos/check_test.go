package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// Checkpoints at any sizes are of one log, and one that is not is found wherever it is.
func TestCheckpointsAreOfOneLog(t *testing.T) {
	const n = 300
	var records [][]byte
	var all hashes
	roots := [][tlog.HashSize]byte{tlog.EmptyRoot}
	for i := range n {
		records = append(records, fmt.Append(nil, "record ", i))
		more, err := xtlog.StoredHashes(int64(i), records[i], all)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, more...)
		root, err := xtlog.TreeHash(int64(i+1), all)
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, root)
	}
	for _, size := range []int{-1, 0, 1, 255, 256, 257, n} {
		cs := newCheckpoints()
		for i, root := range roots {
			if i == size {
				root[7] ^= 1
			}
			if err := cs.take("a1", tlog.Checkpoint{Size: uint64(i), Root: root}); err != nil {
				t.Fatal(err)
			}
		}
		if i := max(size, 0); (cs.take("a2", tlog.Checkpoint{Size: uint64(i), Root: roots[i]}) != nil) != (size >= 0) {
			t.Errorf("two heads of %d records: not told rightly", i)
		}
		var found problems
		cs.check(records, &found)
		if want := min(size+1, 1); len(found) != want || want == 1 && found[0].promise != isOneLog {
			t.Errorf("with a wrong root at %d: %v", size, found)
		}
	}
	cs := newCheckpoints()
	if err := cs.take("a1", tlog.Checkpoint{Size: n + 1}); err != nil {
		t.Fatal(err)
	}
	var found problems
	if cs.check(records, &found); len(found) != 1 {
		t.Errorf("a head of more records than there are: %v", found)
	}
}

// Two attempts of a task at once are a broken promise, unless the supervisor of the
// earlier one was killed while it ran.
func TestOverlapsAreFound(t *testing.T) {
	one, two := pcm.NewTradeID("job-aaaaaaaaaaaaaaaa", 1), pcm.NewTradeID("job-aaaaaaaaaaaaaaaa", 2)
	for _, c := range []struct {
		name               string
		second, killed     float64 // when the second attempt begins; when the first one's supervisor is killed
		overlaps, problems int
	}{
		{"one after the other", 13, 0, 0, 0},
		{"at once", 11, 0, 1, 1},
		{"at once, unfenced", 11, 10.5, 1, 0},
		{"at once, and the supervisor was killed long before", 11, 5, 1, 1},
		{"at once, and the supervisor was killed after it", 11, 12.5, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			signs := fmt.Sprintf("%s.0.1 10\n%s.0.1 12\n%s.0.2 %g\n%s.0.2 %g\n%s.0", one, one, two, c.second, two, c.second+2, two)
			if err := os.WriteFile(filepath.Join(dir, "job.0"), []byte(signs), 0o600); err != nil {
				t.Fatal(err)
			}
			r := &taskReport{sellers: map[pcm.TradeID]string{one: "anna", two: "bert"}, killed: map[string][]float64{}}
			if c.killed > 0 {
				r.killed["anna"] = []float64{c.killed}
			}
			r.read(dir)
			if r.overlaps != c.overlaps || len(r.problems) != c.problems || r.attempts != 2 {
				t.Errorf("%d overlaps of %d attempts, problems: %v", r.overlaps, r.attempts, r.problems)
			}
		})
	}
}

// A run that only takes too long has caught nothing.
func TestBrokenBy(t *testing.T) {
	late := problem{isBack, "after 40s: too little"}
	for _, c := range []struct {
		found problems
		want  []promise
	}{
		{problems{late}, nil},
		{problems{late, {isKept, "a: it [is] not"}, {isKept, "b: nor this"}, {isOneLog, "c"}}, []promise{isKept, isOneLog}},
	} {
		_, told, ok := strings.Cut(c.found.err(1).Error(), errBroken.Error()+":\n")
		if got := brokenBy(told); !ok || !slices.Equal(got, c.want) {
			t.Errorf("%q tells of %q, not of %q", told, got, c.want)
		}
	}
}

// Attempts that are lost are put down to the faults of the time that a lease takes to end.
func TestLosses(t *testing.T) {
	y := &tally{times: []times{{1_000, 2_000}, {100_000, 101_000}}}
	if got := y.lost([]loss{{500, 1}, {1_500, 2}, {13_900, 4}, {14_100, 8}, {200_000, 16}}); got != 6 {
		t.Errorf("%d attempts", got)
	}
}
