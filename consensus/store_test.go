package consensus

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// The history is closed while nobody needs it, and opened for whoever does.
func TestStoreClosesWhileItIsIdle(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.storeIdle = 100 * time.Millisecond })
	shut := func() {
		t.Helper()
		n.await("a closed store", func() bool { return !n.archive.store.opened() })
	}
	var want []pcm.CommandID
	for i := range 3 {
		id, _ := n.propose(t, n.cfg.Self)
		want = append(want, id)
		n.RecordCount() // it is written
		shut()
		if got := n.ids(t); len(got) != i+1 || got[i] != id {
			t.Fatalf("records %v, proposed %v", got, want)
		}
		if n.archive.store.opened() {
			t.Error("reading records has opened the store")
		}
		if _, err := n.Document("cmd/" + id.String()); err != nil || !n.archive.store.opened() {
			t.Errorf("it was read closed: %v", err)
		}
		shut()
	}
	// Time alone opens nothing.
	before := n.Applied()
	n.View(func() { n.m.due = 1 })
	n.await("the tick", func() bool {
		n.RecordCount() // what was applied is written
		return n.Applied() > before && n.archive.current().Applied >= n.Applied()
	})
	if n.archive.store.opened() {
		t.Error("an entry without records has opened the store")
	}
	if err := n.SyncHistory(); err != nil {
		t.Fatal(err)
	}
	shut()
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	n.open()
	n.await("its records", func() bool { return n.count() == len(want) })
	if got := n.ids(t); len(got) != len(want) {
		t.Errorf("records %v, proposed %v", got, want)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
	if err := n.archive.store.use(nil); err == nil {
		t.Error("it was opened after its end")
	}
}

// Many use the store at a time while it closes again and again.
func TestStoreIsOpenForItsUsers(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.storeIdle = time.Millisecond })
	id, _ := n.propose(t, n.cfg.Self)
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			for range 50 {
				if _, err := n.Document("cmd/" + id.String()); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A store is not opened for readers on a full disk, where that would end the process; it is
// neither broken by that.
func TestStoreOpensWhereThereIsRoom(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.storeIdle = 50 * time.Millisecond })
	id, _ := n.propose(t, n.cfg.Self)
	if err := n.SyncHistory(); err != nil { // nothing is left to be written, for which it would be opened
		t.Fatal(err)
	}
	s := n.archive.store
	room := func(ok bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.room = func(string) bool { return ok }
	}
	n.RecordCount() // it is written
	n.await("a closed store", func() bool { return !s.opened() })
	room(false)
	if _, err := n.Document("cmd/" + id.String()); err == nil || s.opened() {
		t.Errorf("it was opened without room: %v", err)
	}
	room(true)
	if _, err := n.Document("cmd/" + id.String()); err != nil {
		t.Error(err)
	}
	if err := n.Err(); err != nil {
		t.Error(err)
	}
}

// waits is a log that notes that the history waits.
type waits chan struct{}

func (w waits) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("the history waits")) {
		select {
		case w <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

// A store for which there are no file descriptors is opened when there are some again: the cell goes on meanwhile.
func TestStoreWaitsForDescriptors(t *testing.T) {
	told := make(waits, 1)
	n := found(t, &book{}, func(c *Config) { c.storeIdle, c.Logger = 50*time.Millisecond, slog.New(slog.NewTextHandler(told, nil)) })
	if err := n.SyncHistory(); err != nil {
		t.Fatal(err)
	}
	n.await("a closed store", func() bool { return !n.archive.store.opened() })
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	restore := sync.OnceFunc(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	defer restore()
	id, _ := n.propose(t, n.cfg.Self)
	n.await("the history to wait", func() bool { return len(told) > 0 || n.Err() != nil })
	n.propose(t, n.cfg.Self)
	restore()
	if err := n.SyncHistory(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Document("cmd/" + id.String()); err != nil || n.Err() != nil {
		t.Errorf("%v, %v", err, n.Err())
	}
}
