package records

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/jointcloud/pcm/consensus/frames"
)

// Open opens the records in a folder, which is made if it is missing. Spans, in their
// order, say which there are to be; all others are removed. Where records are missing
// that need not be durable, To is set back to what is there without a hole. An error
// that is a [frames.DamagedError] says that durable ones are missing; nothing is
// changed then.
func Open(dir string, spans []Span) (_ *Files, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f := &Files{dir: dir, size: segmentSize, count: segmentCount}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	numbers, err := frames.List(dir, suffix)
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		s := &segment{path: frames.Path(dir, n, suffix), first: n, base: n, end: n}
		f.segments = append(f.segments, s)
		if s.readIndexHead() && durable(spans, s.end) {
			continue
		}
		s.sealed = false
		if err := s.scan(strictFrom(spans, n)); err != nil {
			return nil, err
		}
	}
	if err := f.fit(spans); err != nil {
		return nil, err
	}
	left, err := frames.Glob(dir, "*.new")
	for _, path := range left {
		if err == nil {
			err = os.Remove(path)
		}
	}
	return f, err
}

// durable tells whether the record ahead of a number must be durable, so that its file
// needn't be read.
func durable(spans []Span, end uint64) bool {
	for _, s := range spans {
		if s.From < end && end <= s.To {
			return s.Holes || end <= s.Durable
		}
	}
	return false
}

// strictFrom is the first record at or above a number that may not be missing.
func strictFrom(spans []Span, n uint64) uint64 {
	for _, s := range spans {
		if !s.Holes && n < s.To {
			return max(n, s.From)
		}
	}
	return n
}

// scan reads a segment's file, as far as its frames are what was written. If its first
// records were erased, those from a number on are looked for.
func (s *segment) scan(from uint64) error {
	file, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	s.file, s.offsets, s.dirty = file, nil, true
	if err := frames.Settle(file); err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() > segmentSize+frames.HeadSize+MaxRecord {
		return frames.Damaged(s.path, "it has %d bytes", info.Size())
	}
	data := make([]byte, info.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return err
	}
	s.take(data, from)
	return nil
}

// again reads the file of a sealed segment anew, which must have the same records. Those that
// it is without may be there all the same, if a crash came before they were erased.
func (s *segment) again() (_ *segment, err error) {
	n := *s
	n.file = nil
	if err = n.scan(s.base); err == nil {
		if n.base < s.base && s.base < n.end {
			n.base, n.offsets = s.base, n.offsets[s.base-n.base:]
		}
		if n.base != s.base || n.end != s.end {
			err = n.damaged(n.end)
		}
	}
	if err != nil {
		n.close()
		return nil, err
	}
	return &n, nil
}

// take takes in what a file holds.
func (s *segment) take(data []byte, from uint64) {
	s.base, s.end, s.size, s.why = s.first, s.first, frames.HeaderSize, ""
	if _, ok := frames.ReadHeader(data, magic, s.first); !ok {
		s.size, s.why = 0, "its header is not that of a segment"
		return
	}
	for at := frames.HeaderSize; at < len(data); {
		k, body, ok := frames.Read(data[at:], s.end)
		switch {
		case ok && k == kind:
			s.offsets = append(s.offsets, uint32(at))
			at += frames.HeadSize + len(body)
			s.end, s.size = s.end+1, int64(at)
			continue
		case s.end < from: // those ahead of it are erased, or were to be
			if n := find(data[at:], from); n >= 0 {
				at += n
				s.base, s.end, s.size, s.offsets = from, from, int64(at), nil
				continue
			}
		}
		s.why = fmt.Sprintf("record %d at byte %d is not what was written", s.end, at)
		break
	}
}

// find finds the frame with a number; -1 if there is none.
func find(data []byte, number uint64) int {
	key := binary.LittleEndian.AppendUint64(nil, number)
	for at := 0; ; at++ {
		i := bytes.Index(data[at:], key)
		if i < 0 {
			return -1
		}
		at += i
		if at < frames.NumberAt {
			continue
		}
		if k, _, ok := frames.Read(data[at-frames.NumberAt:], number); ok && k == kind {
			return at - frames.NumberAt
		}
	}
}

// fit makes the segments those that there are to be.
func (f *Files) fit(spans []Span) error {
	for i, s := range f.segments {
		if i > 0 && s.base < f.segments[i-1].end {
			return frames.Damaged(s.path, "record %d is also in %s", s.base, f.segments[i-1].path)
		}
		s.keep = min(s.end, runEnd(spans, s.base))
	}
	for i := range spans {
		if err := f.measure(&spans[i]); err != nil {
			return err
		}
	}
	var left []*segment
	for _, s := range f.segments {
		err := error(nil)
		switch {
		case s.keep <= s.base:
			err = s.remove()
		case s.keep < s.end:
			left = append(left, s)
			err = s.cut(s.keep)
		case s.why != "":
			left = append(left, s)
			err = s.file.Truncate(s.size)
		default:
			left = append(left, s)
		}
		if err == nil && s.keep > s.base && !s.sealed && !endsAt(spans, s.end) {
			err = f.seal(s)
		}
		if err != nil {
			return err
		}
	}
	gone := len(left) < len(f.segments)
	f.segments = left
	if gone {
		return frames.SyncDir(f.dir)
	}
	return nil
}

// measure sets a span back to what is there of it.
func (f *Files) measure(sp *Span) error {
	if sp.Holes {
		return nil
	}
	at := sp.From
	var last *segment
	for _, s := range f.segments {
		if s.base <= at && at <= s.end {
			last = s
		}
		if s.base <= at && at < s.keep {
			at = s.keep
		}
	}
	at = min(at, sp.To)
	if at < sp.Durable {
		if last != nil && last.end == at && last.why != "" {
			return last.damaged(at)
		}
		return frames.Damaged(f.dir, "record %d is missing", at)
	}
	for _, s := range f.segments {
		if s.base >= at && s.base < sp.To { // behind a hole
			s.keep = s.base
		}
	}
	sp.To = at
	return nil
}

// runEnd is how far the spans go on from a number without a hole between them; 0 if it is in none.
func runEnd(spans []Span, n uint64) (end uint64) {
	for _, s := range spans {
		if s.From <= n && n < s.To || end != 0 && s.From == end {
			end = s.To
		}
	}
	return end
}

func endsAt(spans []Span, n uint64) bool {
	for _, s := range spans {
		if !s.Holes && s.To == n {
			return true
		}
	}
	return false
}
