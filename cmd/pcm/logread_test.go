package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
	"github.com/jointcloud/pcm/node/api"
)

const archivedCell = pcm.CellID("cell-abcdefghijklmnop")

// removedLog serves bundle 3 of a log; those before were removed.
type removedLog struct {
	api.Log
	asked atomic.Int32
}

func (l *removedLog) LogTile(_ context.Context, _ pcm.CellID, path string) ([]byte, error) {
	l.asked.Add(1)
	if path == (tlog.Tile{Entries: true, Index: 3, Width: tlog.Width}).Path() {
		return []byte("bundle 3"), nil
	}
	return nil, pcm.Errorf(pcm.Unavailable, "768 records were %w", api.ErrRemoved)
}

// Bundles come from the archive, a folder or what a web server makes of it, and the rest
// from the log. What neither has is named at once.
func TestReadArchive(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []uint64{0, 2} { // 1 is missing
		at := tlog.Tile{Entries: true, Index: n, Width: tlog.Width}
		path := filepath.Join(dir, string(archivedCell), filepath.FromSlash(at.Path()))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("bundle "+string(rune('0'+n))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := &removedLog{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- api.ServeLog(ctx, log, slog.New(slog.DiscardHandler), l) }()
	defer func() { cancel(); <-done }()
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer web.Close()

	for _, archive := range []string{dir, filepath.Join(dir, string(archivedCell)), web.URL, web.URL + "/" + string(archivedCell) + "/"} {
		get, err := urlLog("http://" + l.Addr().String() + api.LogPath(archivedCell))
		if err != nil {
			t.Fatal(err)
		}
		if get, err = get.with(archive, archivedCell); err != nil {
			t.Fatal(err)
		}
		for _, n := range []uint64{0, 2, 3} {
			at := tlog.Tile{Entries: true, Index: n, Width: tlog.Width}
			if data, err := get(ctx, at.Path(), tlog.MaxBundle); err != nil || string(data) != "bundle "+string(rune('0'+n)) {
				t.Errorf("bundle %d with %s: %q, %v", n, archive, data, err)
			}
		}
		before := log.asked.Load()
		_, err = get(ctx, tlog.Tile{Entries: true, Index: 1, Width: tlog.Width}.Path(), tlog.MaxBundle)
		if pcm.ErrorCode(err) != pcm.Unavailable || !strings.Contains(err.Error(), "records 256 to 511 are not in the archive "+archive) || !strings.Contains(err.Error(), "removed here") {
			t.Errorf("a bundle that nobody has, with %s: %v", archive, err)
		}
		if n := log.asked.Load() - before; n != 1 {
			t.Errorf("the log was asked %d times for what it has removed", n)
		}
	}
}
