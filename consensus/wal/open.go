package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jointcloud/pcm/consensus/frames"
)

// load reads a segment; only the last one may end with a frame that is not whole.
func (l *Log) load(number uint64, last bool) error {
	path := segmentPath(l.dir, number)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s := &segment{f: f, path: path, number: number, end: headerSize}
	defer func() {
		if s != nil {
			f.Close()
		}
	}()
	if last {
		if err := frames.Settle(f); err != nil {
			return err
		}
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// One buffer for all segments: they are a few large pieces of memory.
	if int64(cap(l.buf)) < info.Size() {
		l.buf = make([]byte, info.Size())
	}
	data := l.buf[:info.Size()]
	if _, err := io.ReadFull(f, data); err != nil {
		return err
	}
	damaged := func(format string, args ...any) error { return frames.Damaged(path, format, args...) }
	seq, ok := frames.ReadHeader(data, magic, number)
	if !ok {
		return damaged("its header is not that of a segment")
	}
	if len(l.segments) > 0 && seq != l.seq {
		return damaged("it begins with frame %d, and the file before it ends ahead of frame %d", seq, l.seq)
	}
	s.reserved = int64(len(data))
	l.segments = append(l.segments, s)
	s, l.seq = nil, seq // Close closes it now
	return l.loadFrames(l.segments[len(l.segments)-1], data, last)
}

func (l *Log) loadFrames(s *segment, data []byte, last bool) error {
	damaged := func(format string, args ...any) error { return frames.Damaged(s.path, format, args...) }
	for {
		rest := data[s.end:]
		kind, body, ok := frames.Read(rest, l.seq)
		if !ok {
			break
		}
		if err := l.replay(s, kind, body); err != nil {
			return damaged("frame %d at byte %d: %v", l.seq, s.end, err)
		}
		s.end += int64(frameHead + len(body))
		l.seq++
	}
	rest := data[s.end:]
	if len(bytes.Trim(rest, "\x00")) == 0 {
		return nil
	}
	if !last {
		return damaged("frame %d at byte %d is not what was written, and others follow", l.seq, s.end)
	}
	// Where the head is whole, a later frame begins behind it: what is within it is
	// what others had stored, and may look like a frame.
	from := int64(0)
	if n, ok := frames.Head(rest); ok {
		from = min(frameHead+n, int64(len(rest)))
	}
	if at := later(rest[from:], l.seq); at >= 0 {
		return damaged("frame %d at byte %d is not what was written, and a later one is at byte %d", l.seq, s.end, s.end+from+int64(at))
	}
	if !torn(rest, s.end) {
		return damaged("frame %d at byte %d was written whole, and is not what was written", l.seq, s.end)
	}
	// The crash came before it was durable, so nobody was told that it was. Its
	// remains go, as what is written there next may be shorter.
	if err := s.f.Truncate(s.end); err != nil {
		return err
	}
	s.reserved = s.end
	return frames.Sync(s.f)
}

// later finds a whole frame with a number above seq; -1 if there is none. It was
// written after frame seq was durable.
func later(data []byte, seq uint64) int {
	var kinds [2][4]byte
	binary.LittleEndian.PutUint32(kinds[0][:], kindEntries)
	binary.LittleEndian.PutUint32(kinds[1][:], kindCut)
	for _, kind := range kinds {
		for at := 0; ; {
			i := bytes.Index(data[at:], kind[:])
			if i < 0 {
				break
			}
			at += i + 1
			from := at - 1 - frames.KindAt
			if from < 0 || from+frameHead > len(data) {
				continue
			}
			n := binary.LittleEndian.Uint64(data[from+frames.NumberAt:])
			if n <= seq || n > seq+uint64(len(data)) {
				continue
			}
			if _, _, ok := frames.Read(data[from:], n); ok {
				return from
			}
		}
	}
	return -1
}

// sector is what a disk writes at least, whole.
const sector = 512

// torn tells whether a frame that is not whole can be one that was being written:
// then some sector of it is as it was before, zero, or beyond the end of the file.
// One whose sectors all were written is damaged. (Damage to a frame that holds a
// sector of zeros, and is the last one, is taken for the other.)
func torn(rest []byte, at int64) bool {
	n, ok := frames.Head(rest)
	end := frameHead + n
	if !ok {
		end = frameHead
	}
	if end > int64(len(rest)) {
		return true
	}
	for from := int64(0); from < end; {
		to := min(from+sector-(at+from)%sector, end)
		if len(bytes.Trim(rest[from:to], "\x00")) == 0 {
			return true
		}
		from = to
	}
	return false
}

// replay takes a frame in.
func (l *Log) replay(s *segment, kind uint32, body []byte) error {
	switch kind {
	case kindCut:
		if len(body) != 8 {
			return errors.New("a cut without an index")
		}
		l.dropTail(binary.LittleEndian.Uint64(body))
		return nil
	case kindEntries:
		at := s.end + frameHead
		for len(body) > 0 {
			e, n, err := decodeEntry(body)
			if err != nil {
				return err
			}
			switch {
			case len(l.places) == 0:
				l.first = e.Index
			case e.Index != l.last()+1:
				return fmt.Errorf("entry %d follows entry %d", e.Index, l.last())
			}
			l.places = append(l.places, place{s, at, uint32(n)})
			s.live++
			at += int64(n)
			body = body[n:]
		}
		return nil
	}
	return fmt.Errorf("it is of kind %x, which this release does not know", kind)
}

// Files of one number.
const (
	fileStart  = "start"  // index of the first entry: those before it are deleted, though a segment may still have them
	fileNewest = "newest" // a segment that was begun: if it is gone, the log was longer
)

func writeNumber(dir, name string, n uint64) error {
	data := binary.LittleEndian.AppendUint64(nil, n)
	data = binary.LittleEndian.AppendUint32(data, frames.Checksum(data))
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = frames.Sync(f)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil {
		err = frames.SyncDir(dir)
	}
	return err
}

// readNumber is 0 where there is no such file.
func readNumber(dir, name string) (uint64, error) {
	path := filepath.Join(dir, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if len(data) != 12 || frames.Checksum(data[:8]) != binary.LittleEndian.Uint32(data[8:]) {
		return 0, frames.Damaged(path, "its checksum is not that of its content")
	}
	return binary.LittleEndian.Uint64(data), nil
}
