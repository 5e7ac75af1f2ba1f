package consensus

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
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
