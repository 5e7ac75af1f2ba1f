package consensus

import (
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

func (s *store) isOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db != nil
}

// The history is closed while nobody needs it, and opened for whoever does.
func TestStoreClosesWhileItIsIdle(t *testing.T) {
	n := found(t, &book{}, func(c *Config) { c.storeIdle = 100 * time.Millisecond })
	shut := func() {
		t.Helper()
		n.await("a closed store", func() bool { return !n.archive.store.isOpen() })
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
		if n.archive.store.isOpen() {
			t.Error("reading records has opened the store")
		}
		if _, err := n.Document("cmd/" + id.String()); err != nil || !n.archive.store.isOpen() {
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
	if n.archive.store.isOpen() {
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
	n.await("a closed store", func() bool { return !s.isOpen() })
	room(false)
	if _, err := n.Document("cmd/" + id.String()); err == nil || s.isOpen() {
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
