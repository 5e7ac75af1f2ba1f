package main

import (
	"testing"

	"github.com/jointcloud/pcm"
)

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

// What is told of a driver's succession names the job.
func TestSuccessionLine(t *testing.T) {
	l := opLine(pcm.Op{Succeed: &pcm.Succeed{Job: "job-x", Term: 3}})
	if l.Kind != "succeed" || l.Job != "job-x" || l.Text != "term 3" {
		t.Errorf("%+v", l)
	}
}
