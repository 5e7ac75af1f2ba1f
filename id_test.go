package pcm

import (
	"strings"
	"testing"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\n b\x1b[31m\tc": "a b [31m c", "x\u202ey\u200b": "xy", "\xff ok \x00": "ok", strings.Repeat("é", 20): strings.Repeat("é", 8) + "…",
		" ": "", "fits in twenty bytes": "fits in twenty bytes",
	} {
		if got := Clean(in, 20); got != want || !Printable(got) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
