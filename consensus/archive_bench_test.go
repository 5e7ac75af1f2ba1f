package consensus

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/jointcloud/pcm"
)

// BenchmarkArchive writes the history of commands as cmd/bench proposes them: a
// record of 470 bytes and a document of 380 bytes each, 64 to an entry.
func BenchmarkArchive(b *testing.B) {
	a, err := openArchive(b.TempDir(), slog.New(slog.DiscardHandler), func(err error) { b.Error(err) })
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
