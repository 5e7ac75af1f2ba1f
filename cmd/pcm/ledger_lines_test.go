package main

import "testing"

func TestWhatFor(t *testing.T) {
	for _, c := range []struct {
		kinds []string
		want  string
	}{
		{nil, ""}, {[]string{"enroll"}, "enroll"}, {[]string{"enroll", "dispute"}, "dispute"}, {[]string{"place", "award", "closed"}, "place award closed"},
	} {
		if got := whatFor(c.kinds); got != c.want {
			t.Errorf("%q: %q, want %q", c.kinds, got, c.want)
		}
	}
}
