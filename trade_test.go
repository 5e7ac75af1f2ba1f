package pcm_test

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/jointcloud/pcm"
)

// TestSpansWith adds indexes one by one, in any order, and compares with SpansOf.
func TestSpansWith(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		var all []int
		var s pcm.Spans
		for range r.IntN(40) {
			i := r.IntN(30)
			before := slices.Clone(s)
			with := s.With(i)
			if !slices.Equal(s, before) {
				t.Fatalf("%v was changed by With(%d)", before, i)
			}
			if s = with; !slices.Contains(all, i) {
				all = append(all, i)
			}
		}
		slices.Sort(all)
		if want := pcm.SpansOf(all); !slices.Equal(s, want) {
			t.Fatalf("adding %v makes %v, want %v", all, s, want)
		}
	}
}
