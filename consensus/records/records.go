// Package records keeps a cell's records in files that are only appended to. A record
// is written once and never changed, so what a store that sorts would do for it, to
// write it again and again as it grows, is of no use.
//
// A folder holds segments, named by the number of their first record: a header and one
// frame for each record (see consensus/frames). Records that follow on each other follow
// on each other in the segments; where there is a hole, a segment begins. A segment that
// is full gets an index beside it, by which a record is found without memory for each; an
// index that is lost or damaged is made again.
//
// What is appended is durable after Sync. Which records there are to be, the caller
// knows, and says it to Open: what is missing of that is damage if it was durable before,
// and else cut off, to be appended again.
package records

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/jointcloud/pcm/consensus/frames"
)

// Bounds of segments and reads.
const (
	segmentSize  = 16 << 20 // bytes; the last record may go beyond
	segmentCount = 1 << 16  // records
	pendingSize  = 1 << 20  // bytes that are appended before they are written
	readCount    = 256      // records that are read together
	readSize     = 1 << 20  // bytes, more or less
)

// MaxRecord bounds a record, in bytes.
const MaxRecord = frames.MaxBody

const (
	magic  = "pcm records 1\n\x00\x00"
	suffix = ".rec"
	kind   = 0x50435752
)

// Files are the records in a folder. One goroutine writes; others may read meanwhile.
type Files struct {
	dir   string
	size  int64 // of a segment
	count int   // records of a segment

	mu       sync.RWMutex // held to write while anything below changes
	segments []*segment   // by number; without overlap
	border   uint64       // no segment has records on both sides of it
	broken   error        // a write failed: nobody knows what is on the disk
	closed   bool
}

// segment has the records in [base, end).
type segment struct {
	path  string
	first uint64 // names the file
	base  uint64 // more than first once records were erased
	bare  bool   // this process has made zeros of those below base
	end   uint64
	size  int64 // bytes of the file, up to the end of the last record that was written
	dirty bool  // not durable yet

	file    *os.File // nil: it is sealed, and durable
	sealed  bool     // nothing is appended any more; it has an index
	offsets []uint32 // where each record begins, unless it is sealed
	pending []byte   // appended and not written

	keep uint64 // while it is opened: its new end
	why  string // and why it has none beyond its end, if there is more in the file
}

// Span is some records, those in [From, To), that are to be there.
type Span struct {
	From, To uint64
	Durable  uint64 // those below it are in any case
	Holes    bool   // any of them may be missing
}

// ErrClosed says that the files are closed.
var ErrClosed = errors.New("the files of records are closed")

// Append adds records; the first has a number. They follow on others, or begin where
// there are none. They can be read after Write, and are durable after Sync. After an
// error nothing can be written any more.
func (f *Files) Append(first uint64, records [][]byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable(); err != nil || len(records) == 0 {
		return err
	}
	return f.spoil(f.append(first, records))
}

func (f *Files) usable() error {
	if f.closed {
		return ErrClosed
	}
	return f.broken
}

// spoil keeps the first error.
func (f *Files) spoil(err error) error {
	if err != nil && f.broken == nil {
		f.broken = err
	}
	return err
}

func (f *Files) append(first uint64, records [][]byte) error {
	n := uint64(len(records))
	var tail *segment
	for _, s := range f.segments {
		switch {
		case s.base < first+n && first < s.end:
			return fmt.Errorf("%s has records %d to %d: %d to %d can't be added", s.path, s.base, s.end, first, first+n)
		case s.end == first && !s.sealed && (s.base >= f.border || first < f.border):
			tail = s
		}
	}
	for i, r := range records {
		if len(r) > MaxRecord {
			return fmt.Errorf("record %d has %d bytes: at most %d", first+uint64(i), len(r), MaxRecord)
		}
		if tail != nil && (tail.length() > f.size || len(tail.offsets) >= f.count) {
			if err := f.seal(tail); err != nil {
				return err
			}
			tail = nil
		}
		if tail == nil {
			var err error
			if tail, err = f.begin(first + uint64(i)); err != nil {
				return err
			}
		}
		at := len(tail.pending)
		tail.offsets = append(tail.offsets, uint32(tail.length()))
		tail.pending = append(append(tail.pending, make([]byte, frames.HeadSize)...), r...)
		frames.Finish(tail.pending[at:], kind, tail.end)
		tail.end++
		if len(tail.pending) >= pendingSize {
			if err := tail.write(); err != nil {
				return err
			}
		}
	}
	return nil
}

// length is the size of the file once all is written.
func (s *segment) length() int64 { return s.size + int64(len(s.pending)) }

// begin makes a segment.
func (f *Files) begin(first uint64) (*segment, error) {
	path := frames.Path(f.dir, first, suffix)
	if err := removeIndex(path); err != nil { // of a file that had this name
		return nil, err
	}
	file, err := frames.Create(path, frames.Header(magic, first, first))
	if err != nil {
		return nil, fmt.Errorf("%s can't be made: %w", path, err)
	}
	s := &segment{path: path, first: first, base: first, end: first, size: frames.HeaderSize, file: file}
	i, _ := slices.BinarySearchFunc(f.segments, first, func(s *segment, n uint64) int {
		if s.base < n {
			return -1
		}
		return 1
	})
	f.segments = slices.Insert(f.segments, i, s)
	return s, nil
}

// write writes what waits.
func (s *segment) write() error {
	if len(s.pending) == 0 {
		return nil
	}
	if _, err := s.file.WriteAt(s.pending, s.size); err != nil {
		return fmt.Errorf("%s can't be written: %w", s.path, err)
	}
	s.size = s.length()
	s.dirty = true
	if cap(s.pending) > 2*pendingSize {
		s.pending = nil
	}
	s.pending = s.pending[:0]
	return nil
}

// seal ends a segment.
func (f *Files) seal(s *segment) error {
	if err := s.write(); err != nil {
		return err
	}
	if err := s.writeIndex(); err != nil {
		return err
	}
	s.sealed, s.offsets, s.pending = true, nil, nil
	if s.dirty { // the file is kept open: what fails to be written is told to whoever had it open
		return nil
	}
	return s.close()
}

func (s *segment) close() error {
	file := s.file
	s.file = nil
	if file == nil {
		return nil
	}
	return file.Close()
}

// Write has what was appended be read.
func (f *Files) Write() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spoil(f.write())
}

func (f *Files) write() error {
	if err := f.usable(); err != nil {
		return err
	}
	for _, s := range f.segments {
		if err := s.write(); err != nil {
			return err
		}
	}
	return nil
}

// Sync makes durable what was appended.
func (f *Files) Sync() error {
	f.mu.Lock()
	err := f.spoil(f.write())
	var dirty []*segment
	for _, s := range f.segments {
		if s.dirty {
			dirty = append(dirty, s)
		}
	}
	f.mu.Unlock()
	if err != nil {
		return err
	}
	for _, s := range dirty { // others may read meanwhile
		if err = frames.Datasync(s.file); err != nil {
			err = fmt.Errorf("%s can't be made durable: %w", s.path, err)
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		return f.spoil(err)
	}
	for _, s := range dirty {
		s.dirty = false
		if s.sealed {
			err = errors.Join(err, s.close())
		}
	}
	return f.spoil(err)
}

// Border has segments end at a number, so that what is appended on either side of it is
// dropped without the other.
func (f *Files) Border(n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.border = n
}

// Drop removes the records in [from, to). Others follow on them only behind a border.
func (f *Files) Drop(from, to uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	return f.spoil(f.drop(from, to))
}

func (f *Files) drop(from, to uint64) error {
	if !slices.ContainsFunc(f.segments, func(s *segment) bool { return from < s.end && s.base < to }) {
		return nil
	}
	var left []*segment
	for i, s := range f.segments {
		err := error(nil)
		switch {
		case from >= s.end || to <= s.base || from >= to:
			left = append(left, s)
		case to < s.end:
			err = fmt.Errorf("%s has records beyond %d", s.path, to)
		case from > s.base:
			left = append(left, s)
			err = s.cut(from)
		default:
			err = s.remove()
		}
		if err != nil {
			f.segments = append(left, f.segments[i:]...)
			return err
		}
	}
	gone := len(left) < len(f.segments)
	f.segments = left
	if gone { // a file that came back would hold other records than those that follow
		return frames.SyncDir(f.dir)
	}
	return nil
}

// cut drops a segment's records from a number on, which is above its base.
func (s *segment) cut(n uint64) error {
	if err := s.unseal(); err != nil {
		return err
	}
	if err := s.write(); err != nil {
		return err
	}
	at := s.offsets[n-s.base]
	if err := s.file.Truncate(int64(at)); err != nil {
		return err
	}
	s.offsets, s.end, s.size, s.dirty = s.offsets[:n-s.base], n, int64(at), true
	return frames.Sync(s.file)
}

// unseal makes a segment one that is appended to.
func (s *segment) unseal() error {
	if !s.sealed {
		return nil
	}
	n, err := s.again()
	if err != nil {
		return err
	}
	if err = removeIndex(s.path); err == nil {
		err = s.close()
	}
	n.sealed = false
	*s = *n
	return err
}

func (s *segment) remove() error {
	err := s.close()
	if err == nil {
		err = removeIndex(s.path)
	}
	if err == nil {
		err = os.Remove(s.path)
	}
	return err
}

// Erase removes the records below a number from the disk. It is no error if some of them
// are not there.
func (f *Files) Erase(below uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.usable(); err != nil {
		return err
	}
	return f.spoil(f.erase(below))
}

func (f *Files) erase(below uint64) error {
	gone := 0
	for _, s := range f.segments {
		switch {
		case s.end <= below:
			if err := s.remove(); err != nil {
				f.segments = f.segments[gone:]
				return err
			}
			gone++
		case s.base < below, s.first < s.base && !s.bare: // its index says so ahead of a crash, perhaps
			if err := f.eraseHead(s, max(s.base, below)); err != nil {
				return err
			}
		}
	}
	if gone == 0 {
		return nil
	}
	f.segments = slices.Clone(f.segments[gone:])
	return frames.SyncDir(f.dir)
}

// eraseHead makes zeros of a segment's first records. Its index goes on without them.
func (f *Files) eraseHead(s *segment, below uint64) error {
	if err := s.write(); err != nil {
		return err
	}
	offsets := s.offsets
	if s.sealed {
		var err error
		if offsets, err = s.readIndex(); err != nil {
			s.base = below // those ahead of it may be erased already
			n, err := s.again()
			if err != nil {
				return err
			}
			defer n.close()
			offsets = n.offsets
		}
	}
	at := int64(offsets[below-s.base])
	s.base, s.offsets = below, slices.Clone(offsets[below-s.base:])
	if err := f.seal(s); err != nil { // one that is appended to has all of its records
		return err
	}
	file, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = frames.Erase(file, frames.HeaderSize, at-frames.HeaderSize)
	if err == nil {
		err = frames.Datasync(file)
	}
	s.bare = err == nil
	return errors.Join(err, file.Close())
}

// Close closes the files. What was not made durable may be lost.
func (f *Files) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	var errs []error
	for _, s := range f.segments {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}
