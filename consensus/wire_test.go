package consensus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/jointcloud/pcm"
)

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	w := bufio.NewWriter(&buf)
	want := request{ID: 7, Method: "propose", Body: make([]byte, 200_000)}
	if err := writeFrame(w, want); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	var got request
	if err := readFrame(&buf, &got); err != nil || got.ID != 7 || len(got.Body) != 200_000 {
		t.Errorf("frame came back as %d, %d bytes, %v", got.ID, len(got.Body), err)
	}
	if err := writeFrame(w, request{Body: make([]byte, maxFrame)}); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("too large a frame: %v", err)
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], 100<<20)
	if err := readFrame(bytes.NewReader(head[:]), &got); pcm.ErrorCode(err) != pcm.TooLarge {
		t.Errorf("announced 100 MiB: %v", err)
	}
	// A length without the bytes costs no memory.
	binary.BigEndian.PutUint32(head[:], maxFrame)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if err := readFrame(bytes.NewReader(head[:]), &got); err != io.ErrUnexpectedEOF && err != io.EOF {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("100 empty frames of 4 MiB took %d bytes", used)
	}
}

func FuzzFrame(f *testing.F) {
	var buf bytes.Buffer
	w := bufio.NewWriter(&buf)
	writeFrame(w, request{ID: 1, Method: "propose", Body: pcm.MustMarshal(proposeRequest{[]pcm.Signed{{}}})})
	writeFrame(w, response{ID: 1, Err: pcm.Errorf(pcm.Busy, "x")})
	writeFrame(w, eventFrame{Index: 1, At: []int{0}, Events: []pcm.Event{{}}})
	w.Flush()
	f.Add(buf.Bytes())
	f.Add([]byte{0, 0, 0, 1, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, v := range []any{&request{}, &response{}, &eventFrame{}, &proposeAnswer{}, &documentsAnswer{}} {
			readFrame(bytes.NewReader(data), v) // must not panic
		}
	})
}

// A hostile peer sends what isn't a request, and more streams than it may have:
// the others go on.
func TestHostileStreams(t *testing.T) {
	b := &book{}
	n := found(t, b, nil)
	stranger := newHost(t, pcm.NewKey())
	if err := stranger.Connect(t.Context(), *peerInfo(n.host)); err != nil {
		t.Fatal(err)
	}
	for _, proto := range []string{protoRaft, protoAdmin, protoRecords} { // events may be asked for by whom the host lets in
		s, err := stranger.NewStream(t.Context(), n.host.ID(), n.protocol(proto))
		if err != nil {
			continue
		}
		s.Write([]byte{0, 0, 0, 1, 0xf6})
		s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := s.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("%s: a stranger's stream gave %d bytes, %v", proto, got, err)
		}
	}
	var head [4]byte
	binary.BigEndian.PutUint32(head[:], 100<<20)
	for _, junk := range [][]byte{append(head[:], "x"...), {0, 0, 0, 2, 0xff, 0xff}} {
		s, err := stranger.NewStream(t.Context(), n.host.ID(), n.protocol(protoPropose))
		if err != nil {
			t.Fatal(err)
		}
		s.Write(junk)
		s.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := s.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("junk gave %d bytes, %v", got, err)
		}
	}
	n.propose(t, n.cfg.Self)
}

func isTimeout(err error) bool {
	e, ok := err.(interface{ Timeout() bool })
	return ok && e.Timeout()
}

// memStore is a raft.LogStore that counts reads.
type memStore struct {
	*raft.InmemStore
	reads int
}

func (m *memStore) GetLog(i uint64, l *raft.Log) error { m.reads++; return m.InmemStore.GetLog(i, l) }

func TestLogCacheIsBounded(t *testing.T) {
	under := &memStore{InmemStore: raft.NewInmemStore()}
	c := newLogCache(under, 8, 10*1024)
	store := func(index uint64, size int) {
		t.Helper()
		if err := c.StoreLog(&raft.Log{Index: index, Data: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	cached := func(index uint64, term uint64) bool {
		t.Helper()
		before := under.reads
		var l raft.Log
		if err := c.GetLog(index, &l); err != nil || l.Index != index || l.Term != term {
			t.Fatalf("entry %d: got %d of term %d, %v", index, l.Index, l.Term, err)
		}
		return under.reads == before
	}
	for i := uint64(1); i <= 20; i++ {
		store(i, 10)
	}
	for i := uint64(1); i <= 20; i++ {
		if got, want := cached(i, 0), i > 12; got != want {
			t.Errorf("entry %d cached: %v, want %v", i, got, want)
		}
	}
	for i := uint64(21); i <= 24; i++ {
		store(i, 4000)
	}
	if c.bytes > c.most {
		t.Errorf("%d bytes are cached, at most %d may", c.bytes, c.most)
	}
	if cached(22, 0) || !cached(23, 0) || !cached(24, 0) {
		t.Error("the byte bound keeps the wrong entries")
	}
	// A conflict: the tail is replaced.
	if err := c.DeleteRange(23, 24); err != nil {
		t.Fatal(err)
	}
	if err := c.StoreLog(&raft.Log{Index: 23, Term: 2}); err != nil {
		t.Fatal(err)
	}
	if !cached(23, 2) {
		t.Error("the entry that was written last isn't cached")
	}
	if cached(20, 0) {
		t.Error("entries from before a conflict are still cached")
	}
}

func TestClock(t *testing.T) {
	c := &logClock{}
	if _, s := c.read(); s != 0 {
		t.Errorf("unknown log time reads %d", s)
	}
	c.observe(3, 10_000)
	c.observe(3, 5_000) // replayed
	if _, s := c.read(); s < 10_000 {
		t.Errorf("within a term log time went back to %d", s)
	}
	c.observe(2, 90_000)
	if _, s := c.read(); s > 60_000 {
		t.Errorf("an older term's stamp was believed: %d", s)
	}
	c.observe(4, 8_000)
	if term, s := c.read(); term != 4 || s < 8_000 || s > 9_500 {
		t.Errorf("the new leader's log time reads %d of term %d", s, term)
	}
	st := newStamper(5_000, time.UnixMilli(1))
	if a, b := st.next(), st.next(); a < 5_000 || b < a {
		t.Errorf("stamps %d, %d", a, b)
	}
}

// recorder is a stream that takes note of each write.
type recorder struct {
	network.Stream
	writes [][]byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.writes = append(r.writes, bytes.Clone(b))
	return len(b), nil
}
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

// Frames that are queued together are one write.
func TestFramesLeaveTogether(t *testing.T) {
	r := &recorder{}
	w := newFrameWriter(r)
	for left := 2; left >= 0; left-- {
		if err := w.write(left, func() bool { return left > 0 }); err != nil {
			t.Fatal(err)
		}
	}
	if len(r.writes) != 1 {
		t.Fatalf("%d writes", len(r.writes))
	}
	in := bytes.NewReader(r.writes[0])
	for want := 2; want >= 0; want-- {
		got := -1
		if err := readFrame(in, &got); err != nil || got != want {
			t.Errorf("read %d (%v), not %d", got, err, want)
		}
	}
}
