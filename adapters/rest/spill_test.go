package rest

import (
	"errors"
	"strings"
	"testing"
)

// The rest of a stream is what was not delivered, if the stream begins as what was.
func TestRestOfStream(t *testing.T) {
	for _, c := range []struct {
		read, whole, want string
		err               error
	}{
		{"", "all of it", "all of it", nil},
		{"all", "all of it", "all of it", nil},
		{"all of it", "all of it", "all of it", nil},
		{"all of it", "all", "all of it", nil}, // shorter: there is nothing more
		{"another", "all of it, and more", "another", errOther},
	} {
		for _, piece := range []int{1, 2, 100} {
			var out strings.Builder
			s := newSpilled(&out, "key")
			if _, err := s.Write([]byte(c.read)); err != nil {
				t.Fatal(err)
			}
			s.lost = true
			if _, err := s.Write([]byte("lost")); err != nil {
				t.Fatal(err)
			}
			to := newRest(s)
			var err error
			for p := []byte(c.whole); len(p) > 0 && err == nil; p = p[min(piece, len(p)):] {
				_, err = to.Write(p[:min(piece, len(p))])
			}
			if out.String() != c.want || !errors.Is(err, c.err) {
				t.Errorf("read %q of %q by %d: %q, %v; expected %q, %v", c.read, c.whole, piece, out.String(), err, c.want, c.err)
			}
		}
	}
}

// Where the begin of a log is lost, what comes counts all the same, and it is said
// that something is missing.
func TestLostBegin(t *testing.T) {
	for log, want := range map[string]struct {
		out, err string
		lost     int
	}{
		"boot\nNs begins\nhello\nNe oops\nNb 6 5\nNx 3\n": {"hello\n", "oops\n", 0},
		"llo\nNe oops\nworld\nNb 12 5\nNx 3\n":            {"world\n", "oops\n", 1},
		"Nb 0 0\nNx 3\n":                                  {"", "", 1},
	} {
		var out, errs strings.Builder
		lost := 0
		m := &marks{nonce: []byte("N"), stdout: &out, stderr: &errs, lose: func() { lost++ }}
		if _, err := m.Write([]byte(log)); err != nil {
			t.Fatal(err)
		}
		if err := m.close(); err != nil || out.String() != want.out || errs.String() != want.err || lost != want.lost || !m.ended || m.code != 3 || !m.sized {
			t.Errorf("%q: stdout %q, stderr %q, lost %d times, %v, %+v", log, out.String(), errs.String(), lost, err, m)
		}
	}
}
