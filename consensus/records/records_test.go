package records

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/jointcloud/pcm/consensus/frames"
)

func TestMain(m *testing.M) {
	flag.Parse()
	frames.Careless = flag.Lookup("test.bench").Value.String() == ""
	os.Exit(m.Run())
}

type fatal interface {
	Helper()
	Fatalf(string, ...any)
}

// small has segments of a few records.
func small(t fatal, dir string, spans ...Span) *Files {
	t.Helper()
	f, err := Open(dir, spans)
	if err != nil {
		t.Fatalf("%v", err)
	}
	f.size, f.count = 1<<10, 20
	return f
}

// record is one that differs from others, of up to some 200 bytes, or of none.
func record(n uint64) []byte {
	return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n*0x9e3779b97f4a7c15), int(n*7%27))
}

func some(from, to uint64) (list [][]byte) {
	for n := from; n < to; n++ {
		list = append(list, record(n))
	}
	return list
}

func fill(t fatal, f *Files, from, to uint64) {
	t.Helper()
	if err := errors.Join(f.Append(from, some(from, to)), f.Write()); err != nil {
		t.Fatalf("%v", err)
	}
}

// readable are the records that can be read of those below a number; all must be what was written.
func readable(t fatal, f *Files, below uint64) map[uint64]bool {
	t.Helper()
	have := map[uint64]bool{}
	for n := uint64(0); n < below; {
		from := n
		err := f.Read(n, below, func(i uint64, r []byte) error {
			if i != n || !bytes.Equal(r, record(i)) {
				t.Fatalf("record %d, of those from %d on, is %x", i, from, r)
			}
			have[i] = true
			n++
			return nil
		})
		var missing *MissingError
		if err != nil && (!errors.As(err, &missing) || missing.Number != n) {
			t.Fatalf("record %d: %v", n, err)
		}
		if err != nil {
			n++
		}
	}
	return have
}

// The files are what a map is, whatever is appended, dropped, erased and opened again.
func TestLikeAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "")
		if err != nil {
			rt.Fatal(err)
		}
		const border, most = 500, 1000
		f := small(rt, dir)
		defer func() { f.Close() }()
		f.Border(border)
		want := map[uint64]bool{}
		low, ends := uint64(0), [2]uint64{0, border} // of the runs below and above the border
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			i := rapid.IntRange(0, 1).Draw(rt, "run")
			switch op := rapid.IntRange(0, 9).Draw(rt, "op"); {
			case op < 5:
				to := min(ends[i]+uint64(rapid.IntRange(1, 60).Draw(rt, "n")), []uint64{border, most}[i])
				fill(rt, f, ends[i], to)
				for n := ends[i]; n < to; n++ {
					want[n] = true
				}
				ends[i] = to
			case op < 6:
				from := max(low, uint64(rapid.IntRange(0, border).Draw(rt, "from"))+uint64(i)*border)
				if from >= ends[i] {
					continue
				}
				if err := f.Drop(from, []uint64{border, math.MaxUint64}[i]); err != nil {
					rt.Fatal(err)
				}
				maps.DeleteFunc(want, func(n uint64, _ bool) bool { return n >= from && n < ends[i] })
				ends[i] = from
			case op < 7 && low < ends[0]:
				low = uint64(rapid.IntRange(int(low), int(ends[0])).Draw(rt, "below"))
				if err := f.Erase(low); err != nil {
					rt.Fatal(err)
				}
				maps.DeleteFunc(want, func(n uint64, _ bool) bool { return n < low })
			case op < 8:
				lost, err := filepath.Glob(filepath.Join(dir, "*.idx"))
				if err == nil && len(lost) > 0 { // an index may go at any time
					err = os.Remove(rapid.SampledFrom(lost).Draw(rt, "lost"))
				}
				if err != nil {
					rt.Fatal(err)
				}
			default:
				durable := rapid.Bool().Draw(rt, "durable")
				if err := errors.Join(f.Sync(), f.Close()); err != nil {
					rt.Fatal(err)
				}
				spans := []Span{{To: low, Holes: true}, {From: low, To: ends[0]}, {From: border, To: ends[1]}}
				if durable {
					spans[1].Durable, spans[2].Durable = ends[0], ends[1]
				}
				f = small(rt, dir, spans...)
				f.Border(border)
				if spans[1].To != ends[0] || spans[2].To != ends[1] {
					rt.Fatalf("%+v are there, wanted up to %v", spans, ends)
				}
			}
			if got := readable(rt, f, most); !maps.Equal(got, want) {
				rt.Fatalf("%d records, want %d", len(got), len(want))
			}
		}
		if ends[0] > low {
			if err := f.Append(ends[0]-1, some(0, 1)); err == nil {
				rt.Fatalf("a record was taken twice")
			}
		}
	})
}

// copied is a folder as it is now.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	m := map[string]string{}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range files {
		data, e := os.ReadFile(path)
		err = errors.Join(err, e)
		m[path] = string(data)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// A file that ends at any byte is cut off behind the last record that is whole, and
// goes on from there; if durable ones are missing, it is damaged, and stays as it is.
func TestTornAtAnyByte(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	f.count = 100
	fill(t, f, 0, 5)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	kept := f.segments[0].size
	fill(t, f, 5, 12)
	f.Close()
	whole, err := os.ReadFile(segments(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for size := range whole {
		torn := t.TempDir()
		path := filepath.Join(torn, filepath.Base(segments(t, dir)[0]))
		data := bytes.Clone(whole[:size])
		if size%2 == 1 { // the size was durable, not the content
			data = append(data, make([]byte, len(whole)-size)...)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		before := contents(t, torn)
		spans := []Span{{To: 12, Durable: 5}}
		f, err := Open(torn, spans)
		if int64(size) < kept {
			var damaged *frames.DamagedError
			if !errors.As(err, &damaged) || !maps.Equal(before, contents(t, torn)) {
				t.Fatalf("cut at %d of %d: %v, or it was changed", size, len(whole), err)
			}
			continue
		}
		if err != nil || spans[0].To < 5 || spans[0].To > 11 {
			t.Fatalf("cut at %d of %d: %+v, %v", size, len(whole), spans, err)
		}
		fill(t, f, spans[0].To, 20)
		if got := readable(t, f, 20); len(got) != 20 {
			t.Fatalf("cut at %d: %d records", size, len(got))
		}
		f.Close()
		if f, err = Open(torn, []Span{{To: 20, Durable: 20}}); err != nil {
			t.Fatalf("cut at %d, then opened again: %v", size, err)
		}
		f.Close()
	}
}

// When the power goes, any of the pages that were written since the last Sync may be
// lost, in any of the segments. What was durable stays, and what follows is cut off.
func TestLostPages(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	dir := t.TempDir()
	f := small(t, dir)
	fill(t, f, 0, 90)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	fill(t, f, 90, 300)
	f.Close()
	for range 30 {
		lost := copied(t, dir)
		for _, path := range segments(t, lost) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			old := before[filepath.Join(dir, filepath.Base(path))]
			for at := max(len(old), frames.HeaderSize); at < len(data); at += 64 { // pages are small here
				if rng.IntN(60) == 0 {
					clear(data[at:min(at+64, len(data))])
				}
			}
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		spans := []Span{{To: 300, Durable: 90}}
		f, err := Open(lost, spans)
		if err != nil {
			t.Fatal(err)
		}
		fill(t, f, spans[0].To, 310)
		if got := readable(t, f, 310); len(got) != 310 {
			t.Fatalf("%d records, of which %d were kept", len(got), spans[0].To)
		}
		f.Close()
	}
}

// A flipped bit is told where it is: when the files are opened, or when the record is
// read. An index is made again. Nothing is read that was not written.
func TestFlippedBits(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	fill(t, f, 0, 25)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	whole := contents(t, dir)
	for name, content := range whole {
		for at := 0; at < len(content); at += 3 {
			for path, data := range whole {
				harmed := []byte(data)
				if path == name {
					harmed[at] ^= 1 << (at % 8)
				}
				if err := os.WriteFile(path, harmed, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			n, err := readAll(t, dir, 25)
			var damaged *frames.DamagedError
			switch index := filepath.Ext(name) == ".idx"; {
			case index && err != nil:
				t.Fatalf("byte %d of %s: %v", at, name, err)
			case !index && at >= frames.HeaderSize && (!errors.As(err, &damaged) || damaged.Path != name):
				t.Fatalf("byte %d of %s: %d records were read, %v", at, name, n, err)
			}
		}
	}
}

// readAll opens a folder and reads records that are durable, as far as it can.
func readAll(t testing.TB, dir string, to uint64) (n uint64, err error) {
	f, err := Open(dir, []Span{{To: to, Durable: to}})
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = f.Read(0, to, func(i uint64, r []byte) error {
		if i != n || !bytes.Equal(r, record(i)) {
			t.Fatalf("record %d is another one", i)
		}
		n++
		return nil
	})
	return n, err
}

// A file that is gone, or one that has records of others, is told.
func TestWrongFiles(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	fill(t, f, 0, 100)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	list := segments(t, dir)
	for i := range list {
		for name, harm := range map[string]func(path string) error{
			"gone":  os.Remove,
			"empty": func(path string) error { return os.Truncate(path, 0) },
			"another name": func(path string) error {
				return errors.Join(os.Remove(path), os.Link(list[(i+1)%len(list)], path))
			},
			"twice": func(path string) error {
				return twice(path, f.segments[i].first+1)
			},
		} {
			harmed := copied(t, dir)
			if err := harm(filepath.Join(harmed, filepath.Base(list[i]))); err != nil {
				t.Fatal(err)
			}
			var damaged *frames.DamagedError
			if n, err := readAll(t, harmed, 100); !errors.As(err, &damaged) {
				t.Errorf("%s, %s: %d records, %v", list[i], name, n, err)
			}
		}
	}
}

// twice makes a segment with the records of another one from a number on.
func twice(path string, first uint64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if at := find(data, first); at >= 0 {
		return os.WriteFile(frames.Path(filepath.Dir(path), first, suffix), append(frames.Header(magic, first, first), data[at:]...), 0o600)
	}
	return os.Remove(path) // it has one record only
}

// Sizes that only a liar writes are neither believed nor allocated.
func TestHostileSizes(t *testing.T) {
	for _, n := range []uint32{1, 1000, MaxRecord, MaxRecord + 1, math.MaxUint32} {
		dir := t.TempDir()
		head := make([]byte, frames.HeadSize)
		frames.Finish(head, kind, 1)
		binary.LittleEndian.PutUint32(head[8:], n)
		binary.LittleEndian.PutUint32(head[4:], frames.Checksum(head[8:]))
		data := append(frames.Header(magic, 0, 0), make([]byte, frames.HeadSize)...)
		frames.Finish(data[frames.HeaderSize:], kind, 0)
		if err := os.WriteFile(frames.Path(dir, 0, suffix), append(data, head...), 0o600); err != nil {
			t.Fatal(err)
		}
		spans := []Span{{To: 2}}
		f, err := Open(dir, spans)
		if err != nil || spans[0].To != 1 {
			t.Errorf("%d bytes: %+v, %v", n, spans, err)
			continue
		}
		f.Close()
	}
}

// What is erased is not on the disk any more, and the rest stays, also without its index.
func TestErasedIsGone(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	fill(t, f, 0, 100)
	for _, below := range []uint64{1, 19, 20, 33, 99, 100} {
		if err := f.Erase(below); err != nil {
			t.Fatal(err)
		}
		var all []byte
		for path, data := range contents(t, dir) {
			if filepath.Ext(path) == suffix {
				all = append(all, data...)
			}
		}
		for n := range uint64(100) {
			if r := record(n); len(r) > 0 && bytes.Contains(all, r) != (n >= below) {
				t.Errorf("record %d is on the disk: %v, erased below %d", n, n < below, below)
			}
		}
		if got := readable(t, f, 100); len(got) != int(100-below) {
			t.Errorf("%d records can be read, erased below %d", len(got), below)
		}
		bare := copied(t, dir)
		lost, err := filepath.Glob(filepath.Join(bare, "*.idx"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range lost {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		spans := []Span{{To: below, Holes: true}, {From: below, To: 100, Durable: 100}}
		g := small(t, bare, spans...)
		fill(t, g, 100, 130)
		if got := readable(t, g, 130); len(got) != int(130-below) {
			t.Errorf("%d records can be read without an index, erased below %d", len(got), below)
		}
		g.Close()
	}
	f.Close()
}

// A crash may come when the index says that records are gone, and before they are. They can go
// then, and the others can be read without that index, and cut off.
func TestErasedAfterCrash(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	fill(t, f, 0, 60)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	const below = 7
	path := segments(t, dir)[0]
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(f.Erase(below), f.Close(), os.WriteFile(path, before, 0o600)) // as if it had crashed in between
	if err != nil {
		t.Fatal(err)
	}
	spans := []Span{{To: below, Holes: true}, {From: below, To: 60, Durable: 60}}

	g := small(t, copied(t, dir), spans...)
	defer g.Close()
	if err := g.Erase(below); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(segments(t, g.dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint64(below) {
		if r := record(n); len(r) > 0 && bytes.Contains(after, r) {
			t.Errorf("record %d is still on the disk", n)
		}
	}
	if got := readable(t, g, 60); len(got) != 60-below {
		t.Errorf("%d records can be read, erased below %d", len(got), below)
	}

	g = small(t, copied(t, dir), spans...)
	defer g.Close()
	if err := removeIndex(segments(t, g.dir)[0]); err != nil {
		t.Fatal(err)
	}
	if got := readable(t, g, 60); len(got) != 60-below {
		t.Errorf("%d records can be read by an index that is made again, erased below %d", len(got), below)
	}

	g = small(t, copied(t, dir), spans...)
	defer g.Close()
	if err := g.Drop(below+1, 60); err != nil {
		t.Fatal(err)
	}
	if got := readable(t, g, 60); len(got) != 1 {
		t.Errorf("%d records can be read where all but one were dropped", len(got))
	}
}

// On a full disk nothing that was durable is lost, and nothing more is written.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	f := small(t, dir)
	f.size = 1 << 20
	fill(t, f, 0, 10)
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.count = 1000
	f.segments[0].file.Close()
	f.segments[0].file = full
	if err := errors.Join(f.Append(10, some(10, 20)), f.Write()); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a full disk: %v", err)
	}
	for name, err := range map[string]error{"append": f.Append(20, some(20, 21)), "sync": f.Sync(), "drop": f.Drop(0, 5), "erase": f.Erase(5)} {
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s after a failed write: %v", name, err)
		}
	}
	f.Close()
	spans := []Span{{To: 20, Durable: 10}}
	f = small(t, dir, spans...)
	defer f.Close()
	fill(t, f, spans[0].To, 20)
	if got := readable(t, f, 20); len(got) != 20 || spans[0].To != 10 {
		t.Errorf("%d records, %d of before", len(got), spans[0].To)
	}
}

// Others read while records are appended, dropped and erased; what they read is what was written.
func TestReadersBeside(t *testing.T) {
	f := small(t, t.TempDir())
	defer f.Close()
	done := make(chan struct{})
	errs := make(chan error, 3)
	for i := range cap(errs) {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			for {
				select {
				case <-done:
					errs <- nil
					return
				default:
				}
				from := rng.Uint64N(2000)
				err := f.Read(from, from+100, func(n uint64, r []byte) error {
					if !bytes.Equal(r, record(n)) {
						return fmt.Errorf("record %d is %x", n, r)
					}
					return nil
				})
				var missing *MissingError
				if err != nil && !errors.As(err, &missing) {
					errs <- err
					return
				}
			}
		}()
	}
	rng := rand.New(rand.NewPCG(1, 4))
	end := uint64(0)
	for end < 2000 {
		fill(t, f, end, end+50)
		end += 50
		if rng.IntN(4) == 0 {
			end -= 20
			if err := f.Drop(end, math.MaxUint64); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Erase(end / 2); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// Whatever a folder holds, it is opened or refused, and what can be read has the checksum of its number.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	files := small(f, dir)
	fill(f, files, 0, 30)
	if err := errors.Join(files.Sync(), files.Close()); err != nil {
		f.Fatal(err)
	}
	for path, data := range contents(f, dir) {
		if filepath.Ext(path) == suffix {
			f.Add([]byte(data), []byte(contents(f, dir)[indexPath(path)]), uint64(10), uint64(20))
		}
	}
	f.Fuzz(func(t *testing.T, segment, index []byte, from, durable uint64) {
		dir := t.TempDir()
		path := frames.Path(dir, 0, suffix)
		if err := errors.Join(os.WriteFile(path, segment, 0o600), os.WriteFile(indexPath(path), index, 0o600)); err != nil {
			t.Fatal(err)
		}
		from %= 100
		spans := []Span{{To: from, Holes: true}, {From: from, To: from + 100, Durable: min(durable, from+100)}}
		files, err := Open(dir, spans)
		if err != nil {
			return
		}
		defer files.Close()
		end := spans[1].To
		if end < from || end > from+100 {
			t.Fatalf("%+v", spans)
		}
		n := from
		err = files.Read(from, end, func(i uint64, r []byte) error { n++; return nil })
		var damaged *frames.DamagedError
		if err != nil && !errors.As(err, &damaged) || err == nil && n != end {
			t.Fatalf("%d of %d to %d were read: %v", n, from, end, err)
		}
		if err != nil {
			return
		}
		if err := files.Append(end, [][]byte{[]byte("next")}); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	f, err := Open(b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	batch := slices.Repeat([][]byte{make([]byte, 470)}, 64)
	b.ReportAllocs()
	for n := 0; n < b.N; n += len(batch) {
		if err := errors.Join(f.Append(uint64(n), batch), f.Write()); err != nil {
			b.Fatal(err)
		}
	}
}
