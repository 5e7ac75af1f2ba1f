package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jointcloud/pcm"
)

// BenchmarkArchive writes the history of commands as cmd/bench proposes them: a
// record of 470 bytes and a document of 380 bytes each, 64 to an entry.
func BenchmarkArchive(b *testing.B) {
	a, err := openArchive(b.TempDir(), storeIdle, slog.New(slog.DiscardHandler), func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	defer a.close()
	const each = 64
	r := rand.NewChaCha8([32]byte{})
	bytes := func(n int) []byte {
		p := make([]byte, n)
		r.Read(p)
		return p
	}
	b.ReportAllocs()
	for n := 0; n < b.N; n += each {
		op := &archiveOp{index: uint64(n/each + 1), first: uint64(n), reserved: true}
		for range each {
			op.records = append(op.records, bytes(470))
			op.docs = append(op.docs, pcm.Document{Key: fmt.Sprintf("job-%x", bytes(8)), Value: bytes(380)})
		}
		a.reserve()
		a.put(op)
	}
	if err := a.settle(); err != nil {
		b.Fatal(err)
	}
}

// What is archived waits a moment for more, unless somebody waits for it.
func TestArchiveGathers(t *testing.T) {
	for _, c := range []struct {
		name string
		then func(a *archive) // after a millisecond
		n    int
		took time.Duration
	}{
		{"nobody waits", func(a *archive) { a.put(&archiveOp{}) }, 2, archiveDelay},
		{"a reader waits", func(a *archive) { a.hurry <- struct{}{} }, 1, time.Millisecond},
		{"somebody waits for an op", func(a *archive) { a.put(&archiveOp{answer: make(chan error, 1)}) }, 2, time.Millisecond},
		{"many are there", func(a *archive) {
			for range archiveQueue / 2 {
				a.put(&archiveOp{})
			}
		}, archiveQueue/2 + 1, time.Millisecond},
		{"it closes", func(a *archive) { close(a.queue) }, 1, time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &archive{queue: make(chan *archiveOp, archiveQueue), hurry: make(chan struct{}, 1)}
				time.AfterFunc(time.Millisecond, func() { c.then(a) })
				began := time.Now()
				if batch := a.gather([]*archiveOp{{}}); len(batch) != c.n || time.Since(began) != c.took {
					t.Errorf("%d ops were gathered after %v, not %d after %v", len(batch), time.Since(began), c.n, c.took)
				}
			})
		})
	}
}

// A document that was fetched never replaces a newer one, though both are written together.
func TestFetchedDocumentsAreOlder(t *testing.T) {
	a, err := openArchive(t.TempDir(), storeIdle, slog.New(slog.DiscardHandler), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	g := gap{Index: 60}
	if err := a.do(&archiveOp{open: &g}); err != nil {
		t.Fatal(err)
	}
	fetched := func(of string, index uint64) *archiveOp {
		return &archiveOp{pulled: &g, pages: []storedDocument{{Key: "job", Index: index, Value: []byte(of)}}}
	}
	applied := &archiveOp{index: 100, docs: []pcm.Document{{Key: "job", Value: []byte("entry 100")}}}
	for i, batch := range [][]*archiveOp{
		{applied, fetched("entry 50", 50)},
		{fetched("entry 120", 120), fetched("entry 110", 110)},
	} {
		if err := a.write(batch); err != nil { // the writer has nothing to do
			t.Fatal(err)
		}
		page, _, err := a.documents(DocumentQuery{Limit: 2}, maxFrame)
		if want := []string{"entry 100", "entry 120"}[i]; err != nil || len(page) != 1 || string(page[0].Value) != want {
			t.Errorf("%+v (%v) is stored, the newest is of %s", page, err, want)
		}
	}
}

// A table that Badger had begun to write when the process was killed is no damage.
func TestTableHalfWritten(t *testing.T) {
	n := found(t, &book{}, nil)
	n.propose(t, n.cfg.Self)
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(n.dir, dirHistory, "009999.sst")
	if err := os.WriteFile(half, make([]byte, 7), 0o600); err != nil {
		t.Fatal(err)
	}
	n.open()
	n.propose(t, n.cfg.Self)
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the table is there still: %v", err)
	}
}
