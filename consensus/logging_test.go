package consensus

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// While a peer is away Raft says so many times a second: the log gets it once in
// ten seconds for each peer, in few words.
func TestRaftWarningsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newRaftLogger(slog.New(slog.NewTextHandler(&out, nil)))
		const one, two = "12D3KooWAlpha11111111111111111111111111111abcdefgh", "12D3KooWBeta222222222222222222222222222222ijklmnop"
		away := func() {
			for _, id := range []string{one, two} {
				server := raft.Server{ID: raft.ServerID(id), Address: raft.ServerAddress(id)}
				l.Accept("raft", hclog.Error, "failed to appendEntries to", "peer", server, "error", errors.New(strings.Repeat("é", 5000)), "term", 7)
			}
		}
		for range 300 {
			away()
			time.Sleep(10 * time.Millisecond)
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], "peer=abcdefgh ") || !strings.Contains(lines[1], "peer=ijklmnop ") || !strings.Contains(lines[0], "term=7") {
			t.Errorf("in three seconds: %q", lines)
		}
		if n := len(lines[0]); n > 400 {
			t.Errorf("a line has %d bytes", n)
		}
		time.Sleep(warnEvery)
		away()
		if n := strings.Count(out.String(), "\n"); n != 4 {
			t.Errorf("%d lines after ten seconds more, want 4", n)
		}
		// However many messages there are, few are remembered.
		for i := range 10 * maxWarnings {
			l.Accept("raft", hclog.Error, strings.Repeat("x", i))
		}
		if len(l.last) > maxWarnings {
			t.Errorf("%d messages are remembered", len(l.last))
		}
	})
}
