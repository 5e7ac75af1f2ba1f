package consensus

import (
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/jointcloud/pcm"
)

// store is a Badger that is open while it is used. An open one looks for work forty
// times a second and holds megabytes, of which a cell at rest has no use; to open a
// small one takes some milliseconds.
type store struct {
	opt  badger.Options
	idle time.Duration // it is closed after so long without use
	fail func(error)   // called if it can't be closed, without waiting
	room func(dir string) bool

	mu     sync.Mutex
	db     *badger.DB // nil: it is closed
	users  int
	used   time.Time
	timer  *time.Timer
	ended  bool
	broken error
}

// A store is closed after storeIdle without use, if it has storeTables at most: of each
// one more is read when it is opened.
const (
	storeIdle   = 20 * time.Second
	storeTables = 64
)

// openStore opens a store; it is closed by close.
func openStore(opt badger.Options, idle time.Duration, fail func(error)) (*store, error) {
	s := &store{opt: opt, idle: idle, fail: fail, room: hasRoom}
	s.timer = time.AfterFunc(idle, s.rest)
	if err := s.use(func(*badger.DB) error { return nil }); err != nil {
		s.timer.Stop()
		return nil, err
	}
	return s, nil
}

// use calls f with the store open, to write: the caller has seen to room on the disk.
func (s *store) use(f func(*badger.DB) error) error {
	db, err := s.take(true)
	if err != nil {
		return err
	}
	return s.with(db, f)
}

// view reads.
func (s *store) view(f func(*badger.Txn) error) error {
	db, err := s.take(false)
	if err != nil {
		return err
	}
	return s.with(db, func(db *badger.DB) error { return db.View(f) })
}

func (s *store) with(db *badger.DB, f func(*badger.DB) error) error {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.users--
		s.used = time.Now()
	}()
	return f(db)
}

func (s *store) take(room bool) (_ *badger.DB, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return nil, s.broken
	case s.ended:
		return nil, errClosing
	case s.db == nil && !room && !s.room(s.opt.Dir): // to open it is to write
		return nil, noRoom(s.opt.Dir)
	case s.db == nil:
		defer guard(func(cause any) { err = pcm.Errorf(pcm.Internal, "%v", cause) })()
		db, err := badger.Open(s.opt)
		if err != nil {
			return nil, pcm.Errorf(pcm.Internal, "the history in %s can't be opened again: %w", s.opt.Dir, err)
		}
		s.db = db
		s.timer.Reset(s.idle)
	}
	s.users++
	return s.db, nil
}

func (s *store) opened() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.db != nil
}

// rest closes a store that was not used lately.
func (s *store) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.db == nil {
		return
	}
	if left := s.idle - time.Since(s.used); s.users > 0 || left > 0 {
		s.timer.Reset(max(left, s.idle/4))
		return
	}
	if len(s.db.Tables()) > storeTables || !s.room(s.opt.Dir) { // to close it is to write
		s.timer.Reset(s.idle)
		return
	}
	if err := s.closeNow(); err != nil {
		s.broken = err
		go s.fail(err)
	}
}

// closeNow needs mu.
func (s *store) closeNow() error {
	db := s.db
	s.db = nil
	if db == nil {
		return nil
	}
	if err := db.Close(); err != nil {
		return pcm.Errorf(pcm.Internal, "can't close %s: %w", s.opt.Dir, err)
	}
	return nil
}

// close ends the store. Nobody uses it any more.
func (s *store) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.timer.Stop()
	if s.db != nil && !s.room(s.opt.Dir) {
		return noRoom(s.opt.Dir) // to close Badger is to write; as after a crash, it is mended when it is opened
	}
	return s.closeNow()
}
