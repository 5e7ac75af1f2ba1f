package artifact

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jointcloud/pcm"
)

func TestRoundTrip(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	large := string(random(1, directChunks*ChunkSize+12345)) // with a list of its own
	src := write(t, map[string]string{
		"empty": "", "a": "x", "a.txt": "dot sorts before slash", "a-dir/in": "y", "hollow/": "", "deep/er/still/": "",
		"chunk": string(random(2, ChunkSize)), "chunk+1": string(random(3, ChunkSize+1)), "inline": string(random(4, inlineFile)),
		"beyond": string(random(5, inlineFile+1)), "large": large, "same-as-large": large, "link": "->a-dir/in", "deep/up": "->../a", "dangling": "->nowhere",
		"naïve – 名": "unicode",
	})
	if err := os.Chmod(filepath.Join(src, "a"), 0o700); err != nil {
		t.Fatal(err)
	}
	d, stats, err := s.Import(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	want := snapshot(t, src)
	want["a"] = "111 x" // executable for its owner, so for all
	if stats.Files != len(want)-1 {
		t.Errorf("%d files, want %d", stats.Files, len(want)-1)
	}
	dst := filepath.Join(t.TempDir(), "out")
	if err := s.Materialize(t.Context(), d, dst); err != nil {
		t.Fatal(err)
	}
	if got := snapshot(t, dst); !maps.Equal(got, want) {
		t.Errorf("laid out: %d entries, want %d", len(got), len(want))
	}
	if again := mustImport(t, s, dst); again != d {
		t.Errorf("what was laid out has another digest: %s, want %s", again, d)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(dst), ".pcm-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	equal(t, readAll(t, s, d, "large", 0), []byte(large))
	for _, off := range []int64{1, ChunkSize - 1, ChunkSize, directChunks*ChunkSize + 5, int64(len(large)), int64(len(large)) + 9} {
		equal(t, readAll(t, s, d, "large", off), []byte(large)[min(off, int64(len(large))):])
	}

	var b bytes.Buffer
	if err := s.Tar(t.Context(), d, &b); err != nil {
		t.Fatal(err)
	}
	n := 0
	for tr := tar.NewReader(&b); ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "large" {
			got, _ := io.ReadAll(tr)
			equal(t, got, []byte(large))
		}
	}
	if n != len(want)-1 {
		t.Errorf("tar has %d entries, want %d", n, len(want)-1)
	}
}

func TestSingleFileAndEmpty(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	for _, size := range []int{0, 1, inlineFile, inlineFile + 1, 3*ChunkSize + 7} {
		data := random(uint64(size), size)
		d := importBytes(t, s, data)
		if !s.Has(d) {
			t.Fatalf("%d bytes: not here", size)
		}
		equal(t, readAll(t, s, d, "", 0), data)
		dst := filepath.Join(t.TempDir(), "name-of-my-own")
		if err := s.Materialize(t.Context(), d, dst); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(dst)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, data)
		wantCode(t, s.Materialize(t.Context(), d, dst), pcm.Conflict, dst)
	}
	d := mustImport(t, s, write(t, nil))
	if d != Empty {
		t.Errorf("the empty folder is %s, want %s", d, Empty)
	}
	dst := filepath.Join(t.TempDir(), "empty")
	if err := s.Materialize(t.Context(), d, dst); err != nil {
		t.Fatal(err)
	}
	if got := snapshot(t, dst); len(got) != 1 {
		t.Errorf("the empty folder has %v", got)
	}
	if a, b := importBytes(t, s, []byte("x")), importBytes(t, s, []byte("x")); a != b {
		t.Error("the same content has two digests")
	}
}

func TestImportRefuses(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	outside := write(t, map[string]string{"secret": "s"})
	fifo := write(t, nil)
	if err := syscall.Mkfifo(filepath.Join(fifo, "pipe"), 0o600); err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		name, path string
		code       pcm.Code
		names      string
	}{
		{"absent", filepath.Join(outside, "nothing"), pcm.NotFound, "nothing"},
		{"through a file", filepath.Join(outside, "secret", "x"), pcm.NotFound, "secret"},
		{"absolute link", write(t, map[string]string{"in/l": "->" + filepath.Join(outside, "secret")}), pcm.Invalid, "in/l"},
		{"link out", write(t, map[string]string{"in/l": "->../../x"}), pcm.Invalid, "in/l"},
		{"link to above", write(t, map[string]string{"l": "->.."}), pcm.Invalid, "l"},
		{"link through a link", write(t, map[string]string{"d/x": "", "l": "->d", "m": "->l/../../x"}), pcm.Invalid, "m"},
		{"itself a link out", filepath.Join(write(t, map[string]string{"l": "->" + outside}), "l"), pcm.Invalid, outside},
		{"link in a circle", filepath.Join(write(t, map[string]string{"l": "->m", "m": "->l"}), "l"), pcm.Internal, "l"},
		{"pipe in a folder", fifo, pcm.Invalid, "pipe"},
		{"pipe", filepath.Join(fifo, "pipe"), pcm.Invalid, "pipe"},
		{"device", "/dev/null", pcm.Invalid, "device"},
		{"name that isn't text", write(t, map[string]string{"\xff\xfe": "x"}), pcm.Invalid, `\xff`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := s.Import(t.Context(), tt.path)
			wantCode(t, err, tt.code, tt.names)
		})
	}
	inner := write(t, map[string]string{"l": "->data", "data": "d"})
	d := mustImport(t, s, filepath.Join(inner, "l"))
	equal(t, readAll(t, s, d, "", 0), []byte("d"))
	if n := files(t, s, dirChunks); n != 0 {
		t.Errorf("%d chunks left by refused imports", n)
	}
}

func TestImportFSLeavesOut(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	dir := write(t, map[string]string{"out/ok": "1", "out/l": "->ok", "out/bad": "->/etc/passwd", "out/up": "->../../x", "stdout": "hi"})
	if err := syscall.Mkfifo(filepath.Join(dir, "out", "pipe"), 0o600); err != nil {
		t.Skip(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d, stats, err := s.ImportFS(t.Context(), root.FS(), ".")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := s.List(d)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Path)
	}
	if want := "out out/l out/ok stdout"; strings.Join(got, " ") != want {
		t.Errorf("stored %v, want %s", got, want)
	}
	if len(stats.Skipped) != 3 {
		t.Errorf("left out: %q, want 3", stats.Skipped)
	}
	sub, _, err := s.ImportFS(t.Context(), root.FS(), "out")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, readAll(t, s, sub, "ok", 0), []byte("1"))
	if d, _, err := s.ImportFS(t.Context(), fstest.MapFS{}, "."); err != nil || d != Empty {
		t.Errorf("no results are %s, %v; want %s", d, err, Empty)
	}
}

// changing is a file whose size or time is another after it was read.
type changing struct {
	fs.FS
	grow bool
}

type changingFile struct {
	fs.File
	c     *changing
	reads int
}

func (c *changing) Open(name string) (fs.File, error) {
	f, err := c.FS.Open(name)
	if err != nil || name == "." {
		return f, err
	}
	return &changingFile{File: f, c: c}, nil
}

type laterInfo struct{ fs.FileInfo }

func (l laterInfo) ModTime() time.Time { return l.FileInfo.ModTime().Add(time.Nanosecond) }

func (f *changingFile) Stat() (fs.FileInfo, error) {
	info, err := f.File.Stat()
	if f.reads > 0 && !f.c.grow {
		info = laterInfo{info}
	}
	return info, err
}

func (f *changingFile) Read(p []byte) (int, error) {
	f.reads++
	n, err := f.File.Read(p)
	if n == 0 && err == io.EOF && f.c.grow && len(p) > 0 {
		return 1, nil
	}
	return n, err
}

func TestImportNoticesChange(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	for _, grow := range []bool{true, false} {
		for _, size := range []int{0, 100, 2 * ChunkSize} {
			if size == 0 && !grow {
				continue // nothing is read of an empty file before its time is looked at
			}
			fsys := &changing{fstest.MapFS{"log": {Data: random(1, size), Mode: 0o644}}, grow}
			_, _, err := s.ImportFS(t.Context(), fsys, ".")
			wantCode(t, err, pcm.Conflict, "log", "changed")
		}
	}
	if n := files(t, s, dirChunks); n != 0 {
		t.Errorf("%d chunks left by failed imports", n)
	}
}

func TestDamageOnDisk(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	data := random(1, 3*ChunkSize)
	d := importBytes(t, s, data)
	first := pcm.DigestOf(data[:ChunkSize])
	if n := damage(t, s, dirChunks, func(name string) bool { return name == string(first) }); n != 1 {
		t.Fatalf("damaged %d chunks", n)
	}
	r, err := s.ReadFile(t.Context(), d, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(r)
	r.Close()
	wantCode(t, err, pcm.NotFound, "fetch it again")
	missing, err := s.Missing(d)
	if err != nil || len(missing) != 1 || missing[0] != first {
		t.Errorf("missing %v, %v; want the damaged chunk", missing, err)
	}
	dst := filepath.Join(t.TempDir(), "x")
	wantCode(t, s.Materialize(t.Context(), d, dst), pcm.NotFound)
	if left, _ := os.ReadDir(filepath.Dir(dst)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, _, err := s.Materialized(t.Context(), d); pcm.ErrorCode(err) != pcm.NotFound {
		t.Errorf("laid out for tasks: %v", err)
	}
	// Damage that reading hasn't found yet is mended by importing again.
	if again := importBytes(t, s, data); again != d || !s.Has(d) {
		t.Error("importing again doesn't mend")
	}
	damage(t, s, dirChunks, nil)
	importBytes(t, s, data)
	equal(t, readAll(t, s, d, "", 0), data)
	damage(t, s, dirTrees, nil)
	if s.Has(d) {
		if _, err := s.List(d); pcm.ErrorCode(err) != pcm.NotFound {
			t.Errorf("a damaged manifest: %v", err)
		}
	}
	if s.Has(d) {
		t.Error("a damaged manifest counts as here")
	}
}

func TestQuotaAndCollection(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	var mu sync.Mutex
	clock := func() time.Time { mu.Lock(); defer mu.Unlock(); now = now.Add(time.Minute); return now }
	s := openStore(t, Config{Dir: t.TempDir(), Quota: 8*ChunkSize + 64<<10, Now: clock})
	a := importBytes(t, s, random(1, 2*ChunkSize))
	b := importBytes(t, s, random(2, 2*ChunkSize), "job/b")
	c := importBytes(t, s, random(3, 2*ChunkSize))
	equal(t, readAll(t, s, a, "", 0), random(1, 2*ChunkSize)) // used later than c now
	d := importBytes(t, s, random(4, 3*ChunkSize))
	for _, tt := range []struct {
		name string
		d    pcm.Digest
		here bool
	}{{"used lately", a, true}, {"pinned", b, true}, {"used longest ago", c, false}, {"new", d, true}} {
		if s.Has(tt.d) != tt.here {
			t.Errorf("%s: here is %v", tt.name, !tt.here)
		}
	}
	if u := s.Usage(); u.Used > u.Quota || u.Artifacts != 3 || u.Pinned != 1 {
		t.Errorf("usage is %+v", u)
	}
	// Larger than could ever fit: refused with numbers, nothing of it stays, nothing pinned is lost.
	before := s.Usage().Used
	p := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(p, random(5, 9*ChunkSize), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Import(t.Context(), p)
	wantCode(t, err, pcm.Refused, "8.1MiB", "quota")
	if u := s.Usage(); u.Used > before {
		t.Errorf("a refused import left %s, before it were %s", u.Used, before)
	}
	equal(t, readAll(t, s, b, "", 0), random(2, 2*ChunkSize))
	if err := s.Unpin("job/b"); err != nil {
		t.Fatal(err)
	}
	e := importBytes(t, s, random(6, 7*ChunkSize))
	if s.Has(b) || !s.Has(e) {
		t.Error("what is no longer pinned isn't collected")
	}
	// The count is that of the disk.
	var disk int64
	for _, folder := range []string{dirTrees, dirChunks} {
		s.eachBlob(folder, func(_ sum, info fs.FileInfo) { disk += cost(info.Size()) })
	}
	for _, seg := range s.packs.segments {
		disk += seg.live
	}
	if u := s.Usage(); int64(u.Used) != disk {
		t.Errorf("%d bytes counted, %d on disk", u.Used, disk)
	}
}

func TestReserve(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Reserve: 1 << 60})
	p := filepath.Join(write(t, map[string]string{"f": "x"}), "f")
	_, _, err := s.Import(t.Context(), p)
	wantCode(t, err, pcm.Refused, "kept for the ledger")
}

func TestPinsOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	d := importBytes(t, s, []byte("x"), "job/1", `odd "owner"`)
	later := pcm.DigestOf([]byte("not here yet"))
	if err := s.Pin("job/2", d, later, later); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpin("job/1"); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, pinsFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("+ nonsense\n+ " + string(later)) // damaged, and cut short
	f.Close()
	for range 2 { // as left by a crash, and as rewritten
		s = openStore(t, Config{Dir: dir})
		if got := fmt.Sprint(s.Owners()); got != `[job/2 odd "owner"]` {
			t.Fatalf("owners are %s", got)
		}
		if got := s.Pins("job/2"); len(got) != 2 {
			t.Fatalf("pins are %v", got)
		}
	}
	for i := range 10_000 {
		owner := fmt.Sprintf("job/%d", i%7)
		if err := s.Pin(owner, d); err != nil {
			t.Fatal(err)
		}
		if err := s.Unpin(owner); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, pinsFile)); err != nil || info.Size() > 1<<20 {
		t.Errorf("the pins file grows without bound: %d bytes, %v", info.Size(), err)
	}
	wantCode(t, s.Pin("", d), pcm.Invalid)
	wantCode(t, s.Pin("x", "junk"), pcm.Invalid)
}

func TestReopen(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	data := random(1, 2*ChunkSize)
	d := importBytes(t, s, data)
	shared, release, err := s.Materialized(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	used := s.Usage().Used
	os.WriteFile(filepath.Join(dir, dirTmp, "rest"), []byte("of a crash"), 0o600)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, Config{Dir: dir})
	if got := s.Usage(); got.Used != used || got.Artifacts != 1 {
		t.Errorf("after reopening %+v, before %s", got, used)
	}
	if !s.Has(d) || files(t, s, dirTmp) != 0 {
		t.Error("content lost, or rests kept")
	}
	if _, err := os.Stat(shared); err != nil {
		t.Errorf("what a running task reads is gone: %v", err)
	}
	// After a restart of the machine nothing runs, and what wasn't synced isn't trusted.
	os.WriteFile(filepath.Join(dir, "boot"), []byte("another"), 0o600)
	s = openStore(t, Config{Dir: dir})
	if _, err := os.Stat(shared); err == nil {
		t.Error("a tree from before the machine's restart is still used")
	}
	again, release, err := s.Materialized(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	got, _ := os.ReadFile(again)
	equal(t, got, data)
}

func TestMaterializedIsSharedAndKept(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Quota: 10 * ChunkSize})
	src := write(t, map[string]string{"d/f": string(random(1, ChunkSize)), "run": "#!/bin/sh\n"})
	os.Chmod(filepath.Join(src, "run"), 0o755)
	d := mustImport(t, s, src)
	var wg sync.WaitGroup
	paths := make([]string, 8)
	releases := make([]func(), 8)
	for i := range paths {
		wg.Go(func() {
			p, release, err := s.Materialized(t.Context(), d)
			if err != nil {
				t.Error(err)
				return
			}
			paths[i], releases[i] = p, release
		})
	}
	wg.Wait()
	for _, p := range paths {
		if p != paths[0] {
			t.Fatalf("laid out twice: %s, %s", p, paths[0])
		}
	}
	for name, mode := range map[string]fs.FileMode{"d/f": 0o444, "run": 0o555, "d": fs.ModeDir | 0o555, ".": fs.ModeDir | 0o555} {
		if info, err := os.Stat(filepath.Join(paths[0], name)); err != nil || info.Mode() != mode {
			t.Errorf("%s has mode %v, want %v (%v)", name, info.Mode(), mode, err)
		}
	}
	if got := snapshot(t, paths[0]); !maps.Equal(got, snapshot(t, src)) {
		t.Error("the shared tree differs from its source")
	}
	// Held by a task it stays, however short space is; then it goes first.
	importBytes(t, s, random(2, 7*ChunkSize), "k")
	p := filepath.Join(t.TempDir(), "f")
	os.WriteFile(p, random(3, 2*ChunkSize), 0o644)
	if _, _, err := s.Import(t.Context(), p); pcm.ErrorCode(err) != pcm.Refused {
		t.Errorf("no room, yet: %v", err)
	}
	if _, err := os.Stat(paths[0]); err != nil {
		t.Fatalf("a tree in use was collected: %v", err)
	}
	for _, release := range releases {
		release()
		release() // a second call does nothing
	}
	if _, _, err := s.Import(t.Context(), p); err != nil {
		t.Errorf("with the shared tree free: %v", err)
	}
	if _, err := os.Stat(paths[0]); err == nil {
		t.Error("the unused tree is still there")
	}
}

func TestGivenUp(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir()})
	d := importBytes(t, s, random(1, 2*ChunkSize))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, s.Materialize(ctx, d, filepath.Join(t.TempDir(), "x")), pcm.Unavailable)
	_, _, err := s.Import(ctx, write(t, map[string]string{"f": string(random(2, ChunkSize))}))
	wantCode(t, err, pcm.Unavailable)
	if n := files(t, s, dirChunks); n != 2 {
		t.Errorf("%d chunks, want 2", n)
	}
}

// Importing, pinning, reading and collecting at once never loses what is pinned.
func TestConcurrentUse(t *testing.T) {
	s := openStore(t, Config{Dir: t.TempDir(), Quota: 6 * ChunkSize})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			owner := fmt.Sprintf("w%d", w)
			for i := range 25 {
				data := random(uint64(i%5+w*2), 400<<10) // some content is that of another worker
				d, _, err := s.ImportFS(context.Background(), fstest.MapFS{"f": {Data: data}}, ".", owner)
				if err != nil {
					t.Errorf("import: %v", err)
					return
				}
				r, err := s.ReadFile(context.Background(), d, "f", 0)
				if err != nil {
					t.Errorf("pinned, but: %v", err)
					return
				}
				got, err := io.ReadAll(r)
				r.Close()
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("pinned, but lost: %v", err)
					return
				}
				s.Unpin(owner)
			}
		})
	}
	wg.Wait()
}
