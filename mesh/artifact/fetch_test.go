package artifact

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
)

func TestFetchAnySize(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	sizes := []int64{0, 1, inlineFile + 1, ChunkSize, 5*ChunkSize + 1, (directChunks+3)*ChunkSize + 99}
	if !testing.Short() {
		sizes = append(sizes, 1<<30+1)
	}
	for _, size := range sizes {
		t.Run(pcm.Bytes(size).String(), func(t *testing.T) {
			p := filepath.Join(t.TempDir(), "f")
			f, err := os.Create(p)
			if err != nil {
				t.Fatal(err)
			}
			f.Truncate(size) // mostly holes
			for at := int64(0); at < size; at += 16 * ChunkSize {
				f.WriteAt(random(uint64(at>>20), int(min(1000, size-at))), at)
			}
			f.Close()
			d := mustImport(t, a.store, p)
			if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
				t.Fatal(err)
			}
			dst := filepath.Join(t.TempDir(), "g")
			if err := b.store.Materialize(t.Context(), d, dst); err != nil {
				t.Fatal(err)
			}
			if again := mustImport(t, b.store, dst); again != d {
				t.Error("what arrived has another digest")
			}
		})
	}
	src := write(t, map[string]string{"a/b": "x", "e/": "", "l": "->a/b", "big": string(random(9, 300<<10))})
	d := mustImport(t, a.store, src)
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Fatal(err)
	}
	p, release, err := b.store.Materialized(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got := snapshot(t, p); !maps.Equal(got, snapshot(t, src)) {
		t.Errorf("the folder arrived as %d entries", len(got))
	}
}

func TestFetchTravelsOnce(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	data := random(1, 8*ChunkSize)
	d := importBytes(t, a.store, data)
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Error(err)
	}
	if c := b.svc.Counters(); c.BytesIn > 8*ChunkSize+4096 {
		t.Errorf("%d bytes travelled for %d", c.BytesIn, len(data))
	}
	// Another artifact with the same content but for its last chunk costs that chunk.
	before := b.svc.Counters().BytesIn
	e := importBytes(t, a.store, append(data[:7*ChunkSize:7*ChunkSize], random(2, ChunkSize)...))
	if err := b.svc.Fetch(t.Context(), e, a.id); err != nil {
		t.Fatal(err)
	}
	if n := b.svc.Counters().BytesIn - before; n > ChunkSize+4096 {
		t.Errorf("%d bytes travelled for one new chunk", n)
	}
}

func TestFetchResumes(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	data := random(1, 40*ChunkSize)
	d := importBytes(t, a.store, data)
	b.cutAfter(15*ChunkSize + ChunkSize/2)
	wantCode(t, b.svc.Fetch(t.Context(), d, a.id), pcm.Unavailable, pcm.Short(a.id))
	first := b.svc.Counters().BytesIn
	if first < 5*ChunkSize || first > 16*ChunkSize {
		t.Fatalf("%d bytes arrived whole before the cut", first)
	}
	if b.store.Has(d) {
		t.Fatal("half an artifact counts as here")
	}
	b.wrap = nil
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Fatal(err)
	}
	if rest := b.svc.Counters().BytesIn - first; rest > 41*ChunkSize-first {
		t.Errorf("%d bytes the second time, after %d the first", rest, first)
	}
	equal(t, readAll(t, b.store, d, "", 0), data)
}

func TestFetchResumesAfterCancel(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	d := importBytes(t, a.store, random(1, 64*ChunkSize))
	ctx, cancel := context.WithCancel(t.Context())
	b.wrap = func(st network.Stream) network.Stream {
		return &watched{st, func() {
			if b.svc.Counters().BlobsIn >= 5 {
				cancel()
			}
		}}
	}
	wantCode(t, b.svc.Fetch(ctx, d, a.id), pcm.Unavailable, "kept")
	b.wrap = nil
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Fatal(err)
	}
	if n := b.svc.Counters().BytesIn; n > 70*ChunkSize {
		t.Errorf("%d bytes travelled for 64 MiB", n)
	}
}

type watched struct {
	network.Stream
	read func()
}

func (w *watched) Read(p []byte) (int, error) {
	w.read()
	return w.Stream.Read(p)
}

func TestFetchManySmallInOneRoundTrip(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	for _, size := range []int{100, inlineFile + 1} { // in the manifest, and with a chunk of its own
		var ds []pcm.Digest
		for i := range 256 {
			d, _, err := a.store.ImportFS(t.Context(), fstest.MapFS{
				"stdout": {Data: random(uint64(i), size)}, "stderr": {}, "out/n.txt": {Data: fmt.Append(nil, i)}}, ".")
			if err != nil {
				t.Fatal(err)
			}
			ds = append(ds, d)
		}
		before := b.svc.Counters()
		if err := b.svc.FetchAll(t.Context(), ds, a.id); err != nil {
			t.Fatal(err)
		}
		rounds := int64(1)
		if size > inlineFile {
			rounds = 1 + 256*(inlineFile+1)/wantBytes + 1 // manifests, then chunks by wantBytes, pipelined
		}
		if n := b.svc.Counters().Requests - before.Requests; n > rounds {
			t.Errorf("%d requests for 256 results of %d bytes, want at most %d", n, size, rounds)
		}
		for i, d := range ds {
			equal(t, readAll(t, b.store, d, "stdout", 0), random(uint64(i), size))
		}
	}
	if n := b.opened.Load(); n > 2+4 {
		t.Errorf("%d streams were opened", n)
	}
}

func TestFetchFailsOver(t *testing.T) {
	a, b, dead, bare, liar := newSite(t, nil), newSite(t, nil), newSite(t, nil), newSite(t, nil), newSite(t, nil)
	stingy := newSite(t, func(c *ServiceConfig) { c.Allow = nil })
	b.meet(a, dead, bare, liar, stingy)
	dead.Close()
	data := random(1, 6*ChunkSize)
	d := importBytes(t, a.store, data)
	importBytes(t, stingy.store, data)
	liar.Handle(Protocol, func(_ context.Context, _ pcm.Passport, st network.Stream) {
		defer st.Close()
		name, _ := sumOf(d)
		for {
			req, err := readRequest(st)
			if err != nil {
				return
			}
			for _, it := range req.Items {
				if it.Tree {
					m, _ := a.store.manifest(name)
					writeAnswer(st, statusData, m)
				}
				for i := range len(it.Blobs) / sumSize {
					blob, _ := a.store.read(dirChunks, sum(it.Blobs[i*sumSize:]), make([]byte, ChunkSize))
					blob[77] ^= byte(i & 1) // every second is false
					writeAnswer(st, statusData, blob)
				}
			}
		}
	})
	// Without a good source, each one's fault is told.
	err := b.svc.Fetch(t.Context(), d, dead.id, bare.id, stingy.id, liar.id, liar.id)
	wantCode(t, err, pcm.Unavailable, pcm.Short(dead.id)+": can't be reached", pcm.Short(bare.id)+": this part of the artifact is not here",
		pcm.Short(stingy.id)+": you may not read", pcm.Short(liar.id)+": it is faulty or lies")
	wantCode(t, b.svc.Fetch(t.Context(), d, bare.id), pcm.NotFound)
	wantCode(t, b.svc.Fetch(t.Context(), d), pcm.NotFound)
	wantCode(t, b.svc.Fetch(t.Context(), "junk", a.id), pcm.Invalid)
	c := newSite(t, nil).meet(stingy, a, bare)
	wantCode(t, c.svc.Fetch(t.Context(), d, stingy.id), pcm.Forbidden)
	if err := b.svc.Fetch(t.Context(), d, dead.id, bare.id, stingy.id, liar.id, a.id); err != nil {
		t.Fatal(err)
	}
	equal(t, readAll(t, b.store, d, "", 0), data)
}

// A source that lost a chunk to its disk says so and serves the rest; another has it.
func TestFetchAroundDamage(t *testing.T) {
	a, b, c := newSite(t, nil), newSite(t, nil), newSite(t, nil)
	c.meet(a, b)
	data := random(1, 6*ChunkSize)
	d := importBytes(t, a.store, data)
	importBytes(t, b.store, data)
	bad := pcm.DigestOf(data[2*ChunkSize : 3*ChunkSize])
	damage(t, a.store, dirChunks, func(name string) bool { return name == string(bad) })
	if err := c.svc.Fetch(t.Context(), d, a.id, b.id); err != nil {
		t.Fatal(err)
	}
	equal(t, readAll(t, c.store, d, "", 0), data)
	if out := b.svc.Counters().BytesOut; out != ChunkSize {
		t.Errorf("the second source sent %d bytes, want the one chunk", out)
	}
	if a.store.Has(d) {
		t.Error("the damaged chunk still counts as here")
	}
	a.meet(c)
	if err := a.svc.Fetch(t.Context(), d, c.id); err != nil {
		t.Fatal(err)
	}
	equal(t, readAll(t, a.store, d, "", 0), data)
}

func TestFetchBounds(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	d := importBytes(t, a.store, random(1, 3*ChunkSize))
	e := importBytes(t, a.store, random(2, 3*ChunkSize))
	wantCode(t, b.svc.FetchWithin(t.Context(), 3*ChunkSize-1, []pcm.Digest{d}, a.id), pcm.TooLarge, "3MiB")
	wantCode(t, b.svc.FetchWithin(t.Context(), 5*ChunkSize, []pcm.Digest{d, e}, a.id), pcm.TooLarge, "6MiB")
	if n := files(t, b.store, dirChunks); n != 0 {
		t.Errorf("%d chunks were fetched of what is over the bound", n)
	}
	if err := b.svc.FetchWithin(t.Context(), 3*ChunkSize, []pcm.Digest{d}, a.id); err != nil {
		t.Error(err)
	}
	// What is here already doesn't count.
	if err := b.svc.FetchWithin(t.Context(), 3*ChunkSize, []pcm.Digest{d, e}, a.id); err != nil {
		t.Error(err)
	}
	small := newSite(t, nil).meet(a)
	small.store = openStore(t, Config{Dir: filepath.Join(t.TempDir(), "q"), Quota: 2 * ChunkSize})
	small.svc.cfg.Store = small.store
	wantCode(t, small.svc.Fetch(t.Context(), d, a.id), pcm.Refused, "quota")
	if n := files(t, small.store, dirChunks); n != 0 {
		t.Errorf("%d chunks are left of what didn't fit", n)
	}
}

// A malformed artifact is refused whoever sends it: its digest is right.
func TestFetchHostileManifest(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	for name, tree := range hostile() {
		data := pcm.MustMarshal(tree)
		if len(data) > MaxManifest {
			continue
		}
		d := pcm.DigestOf(data)
		root, _ := sumOf(d)
		if err := a.store.write(a.store.blobPath(dirTrees, root), data); err != nil {
			t.Fatal(err)
		}
		err := b.svc.Fetch(t.Context(), d, a.id)
		if code := pcm.ErrorCode(err); code != pcm.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := files(t, b.store, dirTrees); n != 0 {
		t.Errorf("%d malformed manifests were stored", n)
	}
}

// Only what belongs to a root that the asker may read is served.
func TestServesOnlyWhatBelongs(t *testing.T) {
	var open pcm.Digest
	a := newSite(t, func(c *ServiceConfig) {
		c.Allow = func(_ pcm.Passport, root pcm.Digest) bool { return root == open }
	})
	b := newSite(t, nil).meet(a)
	secret := random(1, ChunkSize)
	shut := importBytes(t, a.store, secret)
	open = importBytes(t, a.store, random(2, 2*ChunkSize))
	wantCode(t, b.svc.Fetch(t.Context(), shut, a.id), pcm.Forbidden)

	ask := func(root, blob pcm.Digest) error {
		st, err := b.Stream(t.Context(), a.id, Protocol)
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(t.Context(), st, func() {})
		defer c.close(nil)
		r, _ := sumOf(root)
		x, _ := sumOf(blob)
		if err := c.send(request{Items: []item{{Root: r[:], Blobs: x[:]}}}); err != nil {
			t.Fatal(err)
		}
		_, err = c.receive(nil, ChunkSize)
		return err
	}
	wantCode(t, ask(open, pcm.DigestOf(secret)), pcm.NotFound) // a chunk of another artifact
	wantCode(t, ask(shut, pcm.DigestOf(secret)), pcm.Forbidden)
	wantCode(t, ask(open, open), pcm.NotFound) // a manifest is no chunk
	if err := ask(open, pcm.DigestOf(random(2, 2*ChunkSize)[:ChunkSize])); err != nil {
		t.Errorf("what belongs: %v", err)
	}
}

// Nonsense ends the stream, takes no memory, and harms nobody else.
func TestServeNonsense(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	d := importBytes(t, a.store, random(1, ChunkSize))
	huge := binary.BigEndian.AppendUint32(nil, 100<<20)
	for name, msg := range map[string][]byte{
		"100 MB": append(huge, make([]byte, 1<<20)...), "not CBOR": {0, 0, 0, 2, 0xff, 0xff}, "empty": {0, 0, 0, 0},
		"no blobs": frame(pcm.MustMarshal(request{Items: []item{{Root: make([]byte, sumSize)}}})),
		"too many": frame(pcm.MustMarshal(request{Items: []item{{Root: make([]byte, sumSize), Blobs: make([]byte, (maxWanted+1)*sumSize)}}})),
		"bad root": frame(pcm.MustMarshal(request{Items: []item{{Root: make([]byte, 3), Tree: true}}})),
	} {
		st, err := b.Stream(t.Context(), a.id, Protocol)
		if err != nil {
			t.Fatal(err)
		}
		st.SetDeadline(time.Now().Add(10 * time.Second))
		st.Write(msg)
		if n, err := io.Copy(io.Discard, st); err == nil || n != 0 || strings.Contains(err.Error(), "deadline") {
			t.Errorf("%s: %d bytes in answer, %v; want a reset", name, n, err)
		}
	}
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Error(err)
	}
}

func frame(data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
}

// A server that answers nonsense is found out.
func TestFetchNonsense(t *testing.T) {
	a, b := newSite(t, nil), newSite(t, nil)
	b.meet(a)
	for name, answer := range map[string][]byte{
		"over the bound": append([]byte{byte(statusData)}, 0xff, 0xff, 0xff, 0xff),
		"unknown status": {99, 0, 0, 0, 0},
		"endless note":   {byte(statusMissing), 0xff, 0, 0, 0},
		"cut short":      {byte(statusData), 0, 0, 0, 9, 1},
		"nothing":        {},
	} {
		a.Handle(Protocol, func(_ context.Context, _ pcm.Passport, st network.Stream) {
			readRequest(st)
			st.Write(answer)
			st.Close()
		})
		err := b.svc.Fetch(t.Context(), pcm.DigestOf([]byte(name)), a.id)
		wantCode(t, err, pcm.Unavailable)
	}
	a.Handle(Protocol, func(_ context.Context, _ pcm.Passport, st network.Stream) {
		readRequest(st)
		writeAnswer(st, statusMissing, []byte("\x1b[2Jgone"))
		st.Close()
	})
	err := b.svc.Fetch(t.Context(), pcm.DigestOf([]byte("esc")), a.id)
	if wantCode(t, err, pcm.NotFound); strings.Contains(err.Error(), "\x1b") {
		t.Errorf("terminal escapes pass through: %q", err)
	}
}

// A peer gets no more streams than its share; others are served meanwhile.
func TestServeBounds(t *testing.T) {
	a, greedy, b := newSite(t, nil), newSite(t, nil), newSite(t, nil)
	greedy.meet(a)
	b.meet(a)
	data := random(1, 2*ChunkSize)
	d := importBytes(t, a.store, data)
	root, _ := sumOf(d)
	first, _ := sumOf(pcm.DigestOf(data[:ChunkSize]))
	req := request{Items: []item{{Root: root[:], Blobs: first[:]}}}
	busy := 0
	for range perPeerStreams + 2 {
		st, err := greedy.Stream(t.Context(), a.id, Protocol)
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(t.Context(), st, func() {})
		defer c.close(nil)
		if err := c.send(req); err != nil {
			t.Fatal(err)
		}
		if _, err := c.receive(nil, ChunkSize); pcm.ErrorCode(err) == pcm.Busy {
			busy++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if busy != 2 {
		t.Errorf("%d streams were refused, want 2", busy)
	}
	if err := b.svc.Fetch(t.Context(), d, a.id); err != nil {
		t.Errorf("another peer meanwhile: %v", err)
	}
}

func BenchmarkFetch256MiB(b *testing.B) {
	a, c := newSite(b, nil), newSite(b, nil)
	c.meet(a)
	data := random(1, 256*ChunkSize)
	d := importBytes(b, a.store, data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := c.svc.Fetch(b.Context(), d, a.id); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		forget(b, c.store)
		b.StartTimer()
	}
}

func BenchmarkFetch256Small(b *testing.B) {
	a, c := newSite(b, nil), newSite(b, nil)
	c.meet(a)
	var ds []pcm.Digest
	for i := range 256 {
		d, _, err := a.store.ImportFS(b.Context(), fstest.MapFS{"stdout": {Data: random(uint64(i), 200)}, "stderr": {}}, ".")
		if err != nil {
			b.Fatal(err)
		}
		ds = append(ds, d)
	}
	for b.Loop() {
		if err := c.svc.FetchAll(b.Context(), ds, a.id); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		forget(b, c.store)
		b.StartTimer()
	}
}

func BenchmarkImport64MiB(b *testing.B) {
	s := openStore(b, Config{Dir: b.TempDir()})
	p := filepath.Join(b.TempDir(), "f")
	os.WriteFile(p, random(1, 64*ChunkSize), 0o644)
	b.SetBytes(64 * ChunkSize)
	for b.Loop() {
		mustImport(b, s, p)
		b.StopTimer()
		forget(b, s)
		b.StartTimer()
	}
}

func BenchmarkImportSmallResult(b *testing.B) {
	s := openStore(b, Config{Dir: b.TempDir()})
	i := 0
	for b.Loop() {
		i++
		if _, _, err := s.ImportFS(b.Context(), fstest.MapFS{"stdout": {Data: fmt.Append(nil, i)}, "stderr": {}}, "."); err != nil {
			b.Fatal(err)
		}
	}
}

// forget deletes all content.
func forget(b *testing.B, s *Store) {
	b.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, folder := range []string{dirTrees, dirChunks} {
		s.eachBlob(folder, func(name sum, _ os.FileInfo) { s.dropFile(folder, name) })
	}
	for name := range s.packs.refs {
		s.unpack(name)
	}
	clear(s.trees)
}
