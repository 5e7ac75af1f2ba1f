// Package wal is a log for Raft that is only ever appended to. What comes in one
// call is one write and one fsync; a B+tree takes two, and rewrites pages.
//
// A folder holds segments, named by a number that grows. A segment begins with a
// header and goes on with frames, each with a checksum and a number that is one
// higher than the last one's: of entries that came together, or of a cut, which
// says that the entries from an index on are no more. So nothing is ever written
// twice to one place, and a crash can lose only what was never acknowledged: the
// frame at the end that was being written. A frame that is damaged and is not
// that one is an error when the log is opened, never a log that ends earlier.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm/consensus/frames"
)

// Sizes of files.
const (
	segmentSize = 32 << 20 // a segment that is larger is followed by the next one
	frameSize   = 8 << 20  // entries of one call that are more are several frames
	growLeast   = 64 << 10 // space is reserved ahead of what is written, twice as much each time
	growMost    = 4 << 20
)

// Log is a raft.LogStore. Its methods are safe for concurrent use; those that
// write are called one after the other.
type Log struct {
	dir string

	write  sync.Mutex // held by who writes
	seq    uint64     // of the next frame
	buf    []byte
	broken error // a write failed: nobody knows what is on the disk

	mu       sync.RWMutex // guards what follows; not held during I/O of writers
	segments []*segment   // oldest first; the last one is written to
	first    uint64       // index of places[0]
	places   []place
	closed   bool
}

// place is where an entry is.
type place struct {
	seg *segment
	at  int64
	n   uint32 // bytes, with its head
}

type segment struct {
	f        *os.File
	path     string
	number   uint64
	end      int64 // of the last frame
	reserved int64
	live     int // places that point here
}

const (
	magic      = "pcm raft log 1\n\x00"
	headerSize = frames.HeaderSize
	frameHead  = frames.HeadSize
	maxFrame   = frames.MaxBody
)

// Kinds of frames.
const (
	kindEntries = 0x5043574c
	kindCut     = 0x50435743 // body: an index
)

// An entry's head within a frame: checksum of all that follows, length of all
// that follows, index, term, when it was appended, type, length of extensions.
const entryHead = 4 + 4 + 8 + 8 + 8 + 1 + 4

// DamagedError says that a file does not hold what was once written to it.
type DamagedError = frames.DamagedError

// Exists tells whether a folder holds a log.
func Exists(dir string) bool {
	list, err := segmentsOf(dir)
	return err == nil && len(list) > 0
}

const suffix = ".wal"

func segmentPath(dir string, n uint64) string { return frames.Path(dir, n, suffix) }

// segmentsOf lists the numbers of a folder's segments.
func segmentsOf(dir string) ([]uint64, error) { return frames.List(dir, suffix) }

// Open opens the log in a folder, which is made if it is missing. An error of
// type [*DamagedError] says that it was once longer or other than it is. Nobody
// else may have the folder open; the caller sees to that.
func Open(dir string) (_ *Log, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	l := &Log{dir: dir}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	numbers, err := segmentsOf(dir)
	if err != nil {
		return nil, err
	}
	newest, err := readNumber(dir, fileNewest)
	if err != nil {
		return nil, err
	}
	if newest > 0 && (len(numbers) == 0 || numbers[len(numbers)-1] < newest) {
		return nil, frames.Damaged(segmentPath(dir, newest), "the file is gone")
	}
	for i, n := range numbers {
		if i > 0 && n != numbers[i-1]+1 {
			return nil, frames.Damaged(segmentPath(dir, numbers[i-1]+1), "the file is gone")
		}
		if err := l.load(n, i == len(numbers)-1); err != nil {
			return nil, err
		}
	}
	l.buf = nil // what was loaded
	start, err := readNumber(dir, fileStart)
	if err != nil {
		return nil, err
	}
	if start > l.last() { // an entry was there when it was noted, and none is deleted by both ends
		return nil, frames.Damaged(dir, "it ends at entry %d, and began at entry %d: its newest segments are gone, or cut short", l.last(), start)
	}
	if start > l.first {
		l.dropHead(start)
	}
	if len(l.segments) == 0 {
		err = l.roll(1)
	}
	return l, err
}

// Close closes the files. What was stored is durable already.
func (l *Log) Close() error {
	l.write.Lock()
	defer l.write.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	var errs []error
	for _, s := range l.segments {
		errs = append(errs, s.f.Close())
	}
	return errors.Join(errs...)
}

// IsMonotonic implements raft.MonotonicLogStore: entries are appended without gaps.
func (l *Log) IsMonotonic() bool { return true }

// Err is why nothing can be written any more, until the log is opened anew; nil if it can.
func (l *Log) Err() error {
	l.write.Lock()
	defer l.write.Unlock()
	return l.broken
}

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.places) == 0 {
		return 0, nil
	}
	return l.first, nil
}

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.last(), nil
}

// last needs the lock; 0 if the log is empty.
func (l *Log) last() uint64 {
	if len(l.places) == 0 {
		return 0
	}
	return l.first + uint64(len(l.places)) - 1
}

// GetLog implements raft.LogStore.
func (l *Log) GetLog(index uint64, out *raft.Log) error {
	// The lock is kept while the file is read, so that nobody closes it.
	l.mu.RLock()
	defer l.mu.RUnlock()
	if len(l.places) == 0 || index < l.first || index > l.last() || l.closed {
		return raft.ErrLogNotFound
	}
	p := l.places[index-l.first]
	buf := make([]byte, p.n)
	if _, err := p.seg.f.ReadAt(buf, p.at); err != nil {
		return err
	}
	e, n, err := decodeEntry(buf)
	if err != nil || n != len(buf) || e.Index != index {
		return frames.Damaged(p.seg.path, "entry %d at byte %d is not what was written", index, p.at)
	}
	*out = e
	return nil
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs implements raft.LogStore: the entries are durable when it returns nil.
// They go on from the last one without a gap; after an error that a write or an
// fsync brought, all further ones fail, since nobody knows what is on the disk.
func (l *Log) StoreLogs(logs []*raft.Log) error {
	l.write.Lock()
	defer l.write.Unlock()
	last, _ := l.LastIndex()
	for i, e := range logs {
		if i == 0 && last == 0 {
			last = e.Index - 1
		}
		if last+uint64(i)+1 != e.Index {
			return fmt.Errorf("%s: entry %d does not follow entry %d", l.dir, e.Index, last+uint64(i))
		}
	}
	for len(logs) > 0 {
		n, size := 0, 0
		for n < len(logs) && (n == 0 || size < frameSize) {
			size += entryHead + len(logs[n].Extensions) + len(logs[n].Data)
			n++
		}
		if err := l.storeFrame(logs[:n], size); err != nil {
			return err
		}
		logs = logs[n:]
	}
	return nil
}

func (l *Log) storeFrame(logs []*raft.Log, size int) error {
	buf := l.beginFrame(size)
	sizes := make([]uint32, len(logs))
	for i, e := range logs {
		from := len(buf)
		buf = appendEntry(buf, e)
		sizes[i] = uint32(len(buf) - from)
	}
	seg, at, err := l.append(buf, kindEntries)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.places) == 0 {
		l.first = logs[0].Index
	}
	at += frameHead
	for _, n := range sizes {
		l.places = append(l.places, place{seg, at, n})
		at += int64(n)
	}
	seg.live += len(sizes)
	return nil
}

// beginFrame is the buffer for a frame, with room for its head.
func (l *Log) beginFrame(size int) []byte {
	if cap(l.buf) < frameHead+size || cap(l.buf) > 2*frameSize {
		l.buf = make([]byte, 0, frameHead+size)
	}
	return l.buf[:frameHead]
}

func appendEntry(buf []byte, e *raft.Log) []byte {
	from := len(buf)
	buf = append(buf, 0, 0, 0, 0)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(entryHead-8+len(e.Extensions)+len(e.Data)))
	buf = binary.LittleEndian.AppendUint64(buf, e.Index)
	buf = binary.LittleEndian.AppendUint64(buf, e.Term)
	at := int64(0)
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	buf = binary.LittleEndian.AppendUint64(buf, uint64(at))
	buf = append(buf, byte(e.Type))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(e.Extensions)))
	buf = append(append(buf, e.Extensions...), e.Data...)
	binary.LittleEndian.PutUint32(buf[from:], frames.Checksum(buf[from+4:]))
	return buf
}

var errEntry = errors.New("an entry is malformed")

// decodeEntry reads an entry and says how many bytes it takes.
func decodeEntry(buf []byte) (e raft.Log, n int, err error) {
	if len(buf) < entryHead {
		return e, 0, errEntry
	}
	n = int(binary.LittleEndian.Uint32(buf[4:])) + 8
	ext := int(binary.LittleEndian.Uint32(buf[33:]))
	if n < entryHead || n > len(buf) || ext > n-entryHead || frames.Checksum(buf[4:n]) != binary.LittleEndian.Uint32(buf) {
		return e, 0, errEntry
	}
	e.Index, e.Term = binary.LittleEndian.Uint64(buf[8:]), binary.LittleEndian.Uint64(buf[16:])
	if at := int64(binary.LittleEndian.Uint64(buf[24:])); at != 0 {
		e.AppendedAt = time.Unix(0, at)
	}
	e.Type = raft.LogType(buf[32])
	if ext > 0 {
		e.Extensions = buf[entryHead : entryHead+ext : entryHead+ext]
	}
	if n > entryHead+ext {
		e.Data = buf[entryHead+ext : n : n]
	}
	return e, n, nil
}

// append writes a frame, whose body is there already, and makes it durable.
func (l *Log) append(frame []byte, kind uint32) (*segment, int64, error) {
	l.buf = frame
	if l.broken != nil {
		return nil, 0, l.broken
	}
	if len(frame) > maxFrame {
		return nil, 0, fmt.Errorf("%s: %d bytes are too many for one frame", l.dir, len(frame))
	}
	frames.Finish(frame, kind, l.seq)
	seg := l.segments[len(l.segments)-1]
	if seg.end > headerSize && seg.end+int64(len(frame)) > segmentSize {
		if err := l.roll(seg.number + 1); err != nil {
			return nil, 0, err
		}
		seg = l.segments[len(l.segments)-1]
	}
	if err := seg.reserve(int64(len(frame))); err != nil {
		return nil, 0, err // nothing was written: a disk that is full may have room again
	}
	at := seg.end
	_, err := seg.f.WriteAt(frame, at)
	if err == nil {
		err = frames.Datasync(seg.f)
	}
	if err != nil {
		l.broken = fmt.Errorf("%s can't be written: %w", seg.path, err)
		return nil, 0, l.broken
	}
	seg.end += int64(len(frame))
	l.seq++
	return seg, at, nil
}

// reserve sees to it that n more bytes have a place on the disk. Space that is
// there already makes an fsync cheaper, and a full disk shows before anything is
// written.
func (s *segment) reserve(n int64) error {
	if s.end+n <= s.reserved {
		return nil
	}
	more := max(n, min(max(growLeast, s.reserved), growMost))
	if err := frames.Allocate(s.f, s.end, more); err != nil {
		return fmt.Errorf("%s can't grow: %w", s.path, err)
	}
	s.reserved = s.end + more
	return nil
}

// roll begins a segment.
func (l *Log) roll(number uint64) error {
	path := segmentPath(l.dir, number)
	f, err := frames.Create(path, frames.Header(magic, number, l.seq))
	if err != nil {
		return err
	}
	s := &segment{f: f, path: path, number: number, end: headerSize, reserved: headerSize}
	l.mu.Lock()
	l.segments = append(l.segments, s)
	l.mu.Unlock()
	return writeNumber(l.dir, fileNewest, number) // on a full disk the segment is used all the same, later
}

// DeleteRange implements raft.LogStore: at either end, or all.
func (l *Log) DeleteRange(low, high uint64) error {
	l.write.Lock()
	defer l.write.Unlock()
	first, _ := l.FirstIndex()
	last, _ := l.LastIndex()
	switch {
	case low > high || last == 0 || high < first || low > last:
		return nil
	case high >= last:
		if low <= first {
			low = 0 // also those that a segment still has
		}
		if low == 0 { // what comes next may begin anywhere; ahead of the cut, as a start beyond the end is damage
			if err := writeNumber(l.dir, fileStart, 0); err != nil {
				return err
			}
		}
		if err := l.cut(low); err != nil {
			return err
		}
	case low <= first:
		if err := writeNumber(l.dir, fileStart, high+1); err != nil {
			return err
		}
		l.mu.Lock()
		l.dropHead(high + 1)
		l.mu.Unlock()
	default:
		return fmt.Errorf("%s: entries %d to %d are within %d to %d: only an end can be deleted", l.dir, low, high, first, last)
	}
	return l.sweep()
}

// cut drops the entries from an index on.
func (l *Log) cut(from uint64) error {
	if _, _, err := l.append(binary.LittleEndian.AppendUint64(l.beginFrame(8), from), kindCut); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropTail(from)
	return nil
}

// dropTail and dropHead need the lock.
func (l *Log) dropTail(from uint64) {
	keep := 0
	if from > l.first {
		keep = min(int(from-l.first), len(l.places))
	}
	for _, p := range l.places[keep:] {
		p.seg.live--
	}
	clear(l.places[keep:])
	l.places = l.places[:keep]
}

func (l *Log) dropHead(first uint64) {
	n := min(int(first-l.first), len(l.places))
	for _, p := range l.places[:n] {
		p.seg.live--
	}
	// What was in front is given back once it is more than what is left.
	if rest := l.places[n:]; n > len(rest) {
		l.places = append(make([]place, 0, 2*len(rest)), rest...)
	} else {
		clear(l.places[:n])
		l.places = rest
	}
	l.first += uint64(n)
}

// sweep removes the oldest segments that hold nothing any more.
func (l *Log) sweep() error {
	for {
		l.mu.Lock()
		if len(l.segments) < 2 || l.segments[0].live > 0 {
			l.mu.Unlock()
			return nil
		}
		s := l.segments[0]
		l.segments = slices.Delete(l.segments, 0, 1)
		l.mu.Unlock()
		s.f.Close() // only read since it was followed by another one
		if err := os.Remove(s.path); err != nil {
			return err
		}
	}
}
