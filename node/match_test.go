package node

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func TestIn(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "now", 999 * time.Millisecond: "now", time.Second: "in 1s", 90 * time.Second: "in 1m30s"} {
		if got := in(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

// The exit code of a task is said once, whether or not its adapter gives it as reason.
func TestFailure(t *testing.T) {
	for reason, want := range map[string]string{
		"":                 "failed with exit code 3",
		"exit code 3":      "failed with exit code 3",
		"exit code 13":     "failed with exit code 3: exit code 13",
		"memory ran short": "failed with exit code 3: memory ran short",
	} {
		if got := failure(pcm.Result{Outcome: pcm.OutcomeFailed, ExitCode: 3, Reason: reason}); got != want {
			t.Errorf("%q: %q, want %q", reason, got, want)
		}
	}
}
