package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"pgregory.net/rapid"

	"github.com/jointcloud/pcm/consensus/frames"
)

func TestMain(m *testing.M) {
	flag.Parse()
	frames.Careless = flag.Lookup("test.bench").Value.String() == ""
	os.Exit(m.Run())
}

func entry(index, term uint64, size int) *raft.Log {
	return &raft.Log{
		Index: index, Term: term, Type: raft.LogType(index % 3), AppendedAt: time.Unix(0, int64(index)),
		Data: bytes.Repeat([]byte{byte(index + 1), byte(term) | 1}, (size+1)/2)[:size], Extensions: []byte("cell-test")[:index%10],
	}
}

func open(t testing.TB, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// compare holds a log against what it is to be.
func compare(t interface{ Fatalf(string, ...any) }, l *Log, first uint64, want []*raft.Log) {
	lo, _ := l.FirstIndex()
	hi, _ := l.LastIndex()
	if len(want) == 0 {
		if lo != 0 || hi != 0 {
			t.Fatalf("an empty log has entries %d to %d", lo, hi)
		}
		return
	}
	if lo != first || hi != first+uint64(len(want))-1 {
		t.Fatalf("entries %d to %d, want %d to %d", lo, hi, first, first+uint64(len(want))-1)
	}
	for _, w := range want {
		var got raft.Log
		if err := l.GetLog(w.Index, &got); err != nil {
			t.Fatalf("entry %d: %v", w.Index, err)
		}
		if got.Term != w.Term || got.Type != w.Type || !bytes.Equal(got.Data, w.Data) || !bytes.Equal(got.Extensions, w.Extensions) || !got.AppendedAt.Equal(w.AppendedAt) {
			t.Fatalf("entry %d is %+v, want %+v", w.Index, got, *w)
		}
	}
	for _, gone := range []uint64{0, lo - 1, hi + 1} {
		var got raft.Log
		if err := l.GetLog(gone, &got); !errors.Is(err, raft.ErrLogNotFound) {
			t.Fatalf("entry %d, outside of %d to %d: %v", gone, lo, hi, err)
		}
	}
}

// The log is what a slice is, whatever is stored, deleted and opened again.
func TestLikeASlice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		l, err := Open(dir)
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { l.Close() }()
		first, term := uint64(1), uint64(1)
		var want []*raft.Log
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			next := first + uint64(len(want))
			switch op := rapid.IntRange(0, 9).Draw(rt, "op"); {
			case op < 5:
				if len(want) == 0 && rapid.Bool().Draw(rt, "jump") { // after a snapshot from elsewhere
					next += uint64(rapid.IntRange(0, 1000).Draw(rt, "by"))
					first = next
				}
				var logs []*raft.Log
				for i := range rapid.IntRange(1, 20).Draw(rt, "n") {
					logs = append(logs, entry(next+uint64(i), term, rapid.IntRange(0, 3000).Draw(rt, "size")))
				}
				if err := l.StoreLogs(logs); err != nil {
					rt.Fatal(err)
				}
				want = append(want, logs...)
			case op < 6 && len(want) > 0: // a new leader's entries take the place of others
				keep := rapid.IntRange(0, len(want)-1).Draw(rt, "keep")
				if err := l.DeleteRange(first+uint64(keep), next-1); err != nil {
					rt.Fatal(err)
				}
				want = want[:keep]
				term++
			case op < 8 && len(want) > 0: // compaction
				n := rapid.IntRange(1, len(want)).Draw(rt, "drop")
				if err := l.DeleteRange(first, first+uint64(n)-1); err != nil {
					rt.Fatal(err)
				}
				want, first = want[n:], first+uint64(n)
			default:
				if err := l.Close(); err != nil {
					rt.Fatal(err)
				}
				if l, err = Open(dir); err != nil {
					rt.Fatal(err)
				}
			}
			compare(rt, l, first, want)
		}
		if len(want) > 0 {
			if err := l.StoreLog(entry(first+uint64(len(want))+1, term, 1)); err == nil {
				rt.Fatalf("an entry after a gap was taken")
			}
		}
	})
}

// A log of many segments gives back what was deleted, and goes on.
func TestSegments(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	const size, n = 1 << 20, 80
	var want []*raft.Log
	for i := range uint64(n) {
		want = append(want, entry(i+1, 1, size))
		if err := l.StoreLog(want[i]); err != nil {
			t.Fatal(err)
		}
	}
	if len(l.segments) < 3 {
		t.Fatalf("%d segments", len(l.segments))
	}
	if err := l.DeleteRange(1, 50); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(segmentPath(dir, 1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the first segment is still there: %v", err)
	}
	if err := l.DeleteRange(60, n); err != nil {
		t.Fatal(err)
	}
	want = want[50:59]
	more := []*raft.Log{entry(60, 2, 10), entry(61, 2, frameSize), entry(62, 2, 10)} // more than a frame
	if err := l.StoreLogs(more); err != nil {
		t.Fatal(err)
	}
	want = append(want, more...)
	compare(t, l, 51, want)
	l.Close()
	l = open(t, dir)
	compare(t, l, 51, want)
	if err := l.DeleteRange(51, 62); err != nil {
		t.Fatal(err)
	}
	l.Close()
	compare(t, open(t, dir), 0, nil)
}

// filled is a log with some frames of some entries, closed; it returns what is
// in it and the bytes of its last segment before and after the last frame.
func filled(t *testing.T, r *rand.Rand, dir string) (want []*raft.Log, last int, before, after []byte) {
	t.Helper()
	l := open(t, dir)
	next := uint64(1)
	for range 2 + r.IntN(5) {
		before, _ = os.ReadFile(segmentPath(dir, 1))
		var logs []*raft.Log
		for range 1 + r.IntN(4) {
			logs = append(logs, entry(next, 1, r.IntN(2000)))
			next++
		}
		if err := l.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
		want, last = append(want, logs...), len(logs)
	}
	l.Close()
	after, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	return want, last, before, after
}

// A crash while a frame is written leaves any of its sectors written: the log
// then ends before it or with it, and goes on.
func TestTornWrites(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	whole, cut := 0, 0
	for round := range 300 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(round))
		want, last, before, after := filled(t, r, dir)
		before = append(before, make([]byte, len(after)-len(before))...)
		lost := 0
		now := bytes.Clone(after)
		for at := 0; at < len(after); at += sector {
			end := min(at+sector, len(after))
			if !bytes.Equal(before[at:end], after[at:end]) && r.IntN(3) == 0 {
				copy(now[at:end], before[at:end])
				lost++
			}
		}
		if err := os.WriteFile(segmentPath(dir, 1), now, 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		if lost > 0 {
			want = want[:len(want)-last]
			cut++
		} else {
			whole++
		}
		compare(t, l, 1, want)
		more := entry(uint64(len(want))+1, 9, 700)
		if err := l.StoreLog(more); err != nil {
			t.Fatal(err)
		}
		l.Close()
		compare(t, open(t, dir), 1, append(want, more))
	}
	if whole == 0 || cut == 0 {
		t.Errorf("%d whole, %d cut: nothing was tested", whole, cut)
	}
}

// A flipped bit is found when the log is opened: it is never shorter than what
// was acknowledged, nor other.
func TestFlippedBits(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for round := range 400 {
		dir := filepath.Join(t.TempDir(), fmt.Sprint(round))
		want, _, _, after := filled(t, r, dir)
		used := len(bytes.TrimRight(after, "\x00"))
		now := bytes.Clone(after)
		at := r.IntN(used)
		now[at] ^= 1 << r.IntN(8)
		if err := os.WriteFile(segmentPath(dir, 1), now, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(dir)
		var damaged *DamagedError
		if err == nil {
			l.Close()
			t.Fatalf("round %d: byte %d of %d was flipped, and nobody noticed (%d entries were stored)", round, at, used, len(want))
		}
		if !errors.As(err, &damaged) || damaged.Path != segmentPath(dir, 1) {
			t.Fatalf("the error does not name the file: %v", err)
		}
	}
}

func TestMissingFiles(t *testing.T) {
	fill := func(t *testing.T) (dir string) {
		dir = t.TempDir()
		l := open(t, dir)
		for i := range uint64(100) {
			if err := l.StoreLog(entry(i+1, 1, 1<<20)); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.DeleteRange(1, 10); err != nil {
			t.Fatal(err)
		}
		l.Close()
		return dir
	}
	for name, harm := range map[string]func(dir string) error{
		"a segment": func(dir string) error { return os.Remove(segmentPath(dir, 2)) },
		"all segments": func(dir string) error {
			list, err := segmentsOf(dir)
			for _, n := range list {
				err = errors.Join(err, os.Remove(segmentPath(dir, n)))
			}
			return err
		},
		"the end of a segment": func(dir string) error { return os.Truncate(segmentPath(dir, 2), 20<<20) },
		"a header":             func(dir string) error { return os.WriteFile(segmentPath(dir, 2), make([]byte, 1<<20), 0o600) },
		"the newest segment":   func(dir string) error { return harmNewest(dir, os.Remove) },
		"the newest header": func(dir string) error {
			return harmNewest(dir, func(path string) error { return os.Truncate(path, 20) })
		},
		"the newest content": func(dir string) error {
			return harmNewest(dir, func(path string) error { return os.Truncate(path, 0) })
		},
		"the start": func(dir string) error { return os.WriteFile(filepath.Join(dir, fileStart), []byte("x"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := fill(t)
			if err := harm(dir); err != nil {
				t.Fatal(err)
			}
			l, err := Open(dir)
			var damaged *DamagedError
			if err == nil {
				l.Close()
			}
			if !errors.As(err, &damaged) {
				t.Errorf("it was opened, or with another error: %v", err)
			}
		})
	}
}

func harmNewest(dir string, harm func(path string) error) error {
	list, err := segmentsOf(dir)
	if err != nil {
		return err
	}
	return harm(segmentPath(dir, list[len(list)-1]))
}

// A log of one segment that is cut short is not taken for one that was just begun.
func TestLoneSegmentCutShort(t *testing.T) {
	for _, size := range []int64{0, 20, headerSize - 1} {
		dir := t.TempDir()
		l := open(t, dir)
		if err := l.StoreLog(entry(1, 1, 100)); err != nil {
			t.Fatal(err)
		}
		l.Close()
		if err := os.Truncate(segmentPath(dir, 1), size); err != nil {
			t.Fatal(err)
		}
		var damaged *DamagedError
		if l, err := Open(dir); !errors.As(err, &damaged) {
			t.Errorf("cut to %d bytes, it was opened, or with another error: %v", size, err)
			if err == nil {
				l.Close()
			}
		}
	}
}

// A log that ends before the entry where it begins has lost its newest segments.
func TestEndBeforeStart(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	for i := range uint64(70) {
		if err := l.StoreLog(entry(i+1, 1, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	if err := writeNumber(dir, fileStart, 69); err != nil { // the crash came before the oldest segments were removed
		t.Fatal(err)
	}
	if err := harmNewest(dir, func(path string) error { return os.Truncate(path, headerSize) }); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if l, err := Open(dir); !errors.As(err, &damaged) {
		t.Errorf("it was opened, or with another error: %v", err)
		if err == nil {
			l.Close()
		}
	}
}

// What others stored may look like a frame: a torn one that holds it is torn all the same.
func TestForgedFrame(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	first := entry(1, 1, 100)
	if err := l.StoreLog(first); err != nil {
		t.Fatal(err)
	}
	next := l.seq + 1
	forged := make([]byte, frameHead)
	binary.LittleEndian.PutUint32(forged, frames.Checksum(nil))
	binary.LittleEndian.PutUint32(forged[12:], kindEntries)
	binary.LittleEndian.PutUint64(forged[16:], next)
	binary.LittleEndian.PutUint32(forged[4:], frames.Checksum(forged[8:]))
	e := entry(2, 1, 4*sector)
	copy(e.Data, forged)
	at := l.segments[0].end
	if err := l.StoreLog(e); err != nil {
		t.Fatal(err)
	}
	l.Close()
	data, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	clear(data[(at/sector+3)*sector:]) // the last sectors didn't reach the disk
	if err := os.WriteFile(segmentPath(dir, 1), data, 0o600); err != nil {
		t.Fatal(err)
	}
	compare(t, open(t, dir), 1, []*raft.Log{first})
}

// A crash while a segment is begun, before its header is whole, loses nothing.
func TestTornSegment(t *testing.T) {
	for _, rest := range [][]byte{nil, make([]byte, 10), make([]byte, 4096), []byte("pcm raft")} {
		for _, n := range []uint64{1, 2} {
			dir := t.TempDir()
			var want []*raft.Log
			if n > 1 {
				l := open(t, dir)
				want = append(want, entry(1, 1, 100))
				if err := l.StoreLogs(want); err != nil {
					t.Fatal(err)
				}
				l.Close()
			}
			if err := os.WriteFile(segmentPath(dir, n)+".new", rest, 0o600); err != nil {
				t.Fatal(err)
			}
			l := open(t, dir)
			compare(t, l, 1, want)
			if err := l.StoreLog(entry(n, 1, 100)); err != nil {
				t.Fatal(err)
			}
			l.Close()
			compare(t, open(t, dir), 1, append(slices.Clip(want), entry(n, 1, 100)))
		}
	}
}

// After a write that failed, nothing more is taken: nobody knows what is there.
func TestFailedWrite(t *testing.T) {
	l := open(t, t.TempDir())
	if err := l.StoreLog(entry(1, 1, 10)); err != nil {
		t.Fatal(err)
	}
	l.segments[0].f.Close()
	first := l.StoreLog(entry(2, 1, 10))
	if first == nil {
		t.Fatal("a write to a closed file succeeded")
	}
	if err := l.StoreLog(entry(2, 1, 10)); err == nil || err.Error() != first.Error() {
		t.Errorf("the next one: %v", err)
	}
	if last, _ := l.LastIndex(); last != 1 {
		t.Errorf("the log ends at %d", last)
	}
}

// BenchmarkStore stores batches of entries of 400 bytes.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 64, 512} {
		b.Run(fmt.Sprintf("batch=%d", n), func(b *testing.B) {
			l := open(b, b.TempDir())
			next := uint64(1)
			for b.Loop() {
				logs := make([]*raft.Log, n)
				for i := range logs {
					logs[i] = entry(next, 1, 400)
					next++
				}
				if err := l.StoreLogs(logs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
