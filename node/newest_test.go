package node

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A long list shows the newest, in whatever order they come.
func TestNewest(t *testing.T) {
	for _, size := range []int{0, 1, 9, 10, 11, 20, 1000} {
		l := newest[int]{at: func(v *int) int64 { return int64(*v) }, most: 10}
		for _, v := range rand.Perm(size) {
			l.add(&v)
			if len(l.kept) >= 20 {
				t.Fatalf("%d are kept of %d", len(l.kept), size)
			}
		}
		var got []int
		for _, v := range l.all() {
			got = append(got, *v)
		}
		slices.Sort(got)
		var want []int
		for v := max(0, size-10); v < size; v++ {
			want = append(want, v)
		}
		if !slices.Equal(got, want) {
			t.Errorf("of %d: %v", size, got)
		}
	}
}
