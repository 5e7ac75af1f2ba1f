package records

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/jointcloud/pcm/consensus/frames"
)

// MissingError says that a record is not there.
type MissingError struct{ Number uint64 }

func (e *MissingError) Error() string { return fmt.Sprintf("record %d is missing", e.Number) }

// Read calls each with the records in [from, to), in order, and its error ends it. Each owns
// the bytes. A record that isn't there is a [MissingError], a damaged one a
// [frames.DamagedError].
func (f *Files) Read(from, to uint64, each func(n uint64, record []byte) error) error {
	for from < to {
		page, err := f.page(from, to)
		if err != nil {
			return err
		}
		for _, r := range page {
			if err := each(from, r); err != nil {
				return err
			}
			from++
		}
	}
	return nil
}

// page reads some records together, and at least one.
func (f *Files) page(from, to uint64) ([][]byte, error) {
	f.mu.RLock()
	s, page, err := f.pageOf(from, to)
	f.mu.RUnlock()
	if !errors.Is(err, errIndex) {
		return page, err
	}
	if err := f.reindex(s); err != nil {
		return nil, err
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	_, page, err = f.pageOf(from, to)
	return page, err
}

// errIndex says that by the index of a segment, nothing was found that could be its record.
var errIndex = errors.New("the index or the record is damaged")

func (f *Files) pageOf(from, to uint64) (*segment, [][]byte, error) {
	if f.closed {
		return nil, nil, ErrClosed
	}
	var s *segment
	for lo, hi := 0, len(f.segments); lo < hi; {
		mid := (lo + hi) / 2
		switch s = f.segments[mid]; {
		case from < s.base:
			hi, s = mid, nil
		case from >= s.end:
			lo, s = mid+1, nil
		default:
			lo = hi
		}
	}
	if s == nil {
		return nil, nil, &MissingError{from}
	}
	n := min(to, s.end, from+readCount) - from
	var offsets [readCount + 1]int64
	file := s.file
	if file == nil {
		var err error
		if file, err = os.Open(s.path); err != nil {
			return s, nil, fmt.Errorf("record %d: %w", from, err)
		}
		defer file.Close()
	}
	if s.sealed {
		if err := s.indexed(offsets[:n+1], from); err != nil {
			return s, nil, err
		}
	} else {
		for i := range n {
			offsets[i] = int64(s.offsets[from-s.base+i])
		}
		if offsets[n] = s.length(); from+n < s.end {
			offsets[n] = int64(s.offsets[from-s.base+n])
		}
		for n > 0 && offsets[n] > s.size { // they are not written yet
			n--
		}
		if n == 0 {
			return nil, nil, &MissingError{from}
		}
	}
	for n > 1 && offsets[n]-offsets[0] > readSize {
		n--
	}
	at, size := offsets[0], offsets[n]-offsets[0]
	if at < frames.HeaderSize || size < frames.HeadSize || at+size > s.size {
		return s, nil, s.wrong(from, at)
	}
	data := make([]byte, size)
	if _, err := file.ReadAt(data, at); err != nil {
		return s, nil, fmt.Errorf("record %d in %s: %w", from, s.path, err)
	}
	page := make([][]byte, n)
	for i := range page {
		k, body, ok := frames.Read(data, from+uint64(i))
		if !ok || k != kind {
			return s, nil, s.wrong(from+uint64(i), at+size-int64(len(data)))
		}
		page[i], data = body, data[frames.HeadSize+len(body):]
	}
	return s, page, nil
}

// wrong says that a record is not what was written, or else that its index may be wrong.
func (s *segment) wrong(n uint64, at int64) error {
	if s.sealed {
		return errIndex
	}
	return frames.Damaged(s.path, "record %d at byte %d is not what was written", n, at)
}

// damaged says what is wrong with a segment that was scanned and has not what it is to have.
func (s *segment) damaged(n uint64) error {
	if s.why != "" {
		return frames.Damaged(s.path, "%s", s.why)
	}
	return frames.Damaged(s.path, "record %d is missing", n)
}

// reindex makes a segment's index anew, if its records are what was written.
func (f *Files) reindex(s *segment) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	n, err := s.again()
	if err != nil {
		return err
	}
	defer n.close()
	return n.writeIndex()
}

// An index's head: magic, the numbers of the first record and of the one after the last,
// the size of the segment's file, checksum. The place of each record in the file follows
// (4 bytes each), and of the end, and a checksum of them.
const (
	indexMagic = "pcm rec index 1\n"
	indexHead  = 16 + 8 + 8 + 8 + 4
)

func indexPath(path string) string { return path + ".idx" }

func removeIndex(path string) error {
	err := os.Remove(indexPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeIndex writes the index of a segment, whole or not at all. It needn't be durable: it
// can be made again.
func (s *segment) writeIndex() error {
	data := append(make([]byte, 0, indexHead+4*len(s.offsets)+8), indexMagic...)
	data = binary.LittleEndian.AppendUint64(data, s.base)
	data = binary.LittleEndian.AppendUint64(data, s.end)
	data = binary.LittleEndian.AppendUint64(data, uint64(s.size))
	data = binary.LittleEndian.AppendUint32(data, frames.Checksum(data))
	for _, at := range s.offsets {
		data = binary.LittleEndian.AppendUint32(data, at)
	}
	data = binary.LittleEndian.AppendUint32(data, uint32(s.size))
	data = binary.LittleEndian.AppendUint32(data, frames.Checksum(data[indexHead:]))
	path := indexPath(s.path)
	err := os.WriteFile(path+".new", data, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	return err
}

// readIndexHead takes in what the index says of its segment; false: it is not whole, or of another file.
func (s *segment) readIndexHead() bool {
	file, err := os.Open(indexPath(s.path))
	if err != nil {
		return false
	}
	defer file.Close()
	var head [indexHead]byte
	if _, err := file.ReadAt(head[:], 0); err != nil || string(head[:16]) != indexMagic ||
		frames.Checksum(head[:indexHead-4]) != binary.LittleEndian.Uint32(head[indexHead-4:]) {
		return false
	}
	base, end, size := binary.LittleEndian.Uint64(head[16:]), binary.LittleEndian.Uint64(head[24:]), int64(binary.LittleEndian.Uint64(head[32:]))
	info, err := os.Stat(s.path)
	if err != nil || info.Size() != size || base < s.first || base >= end || end-base > segmentCount {
		return false
	}
	s.base, s.end, s.size, s.sealed = base, end, size, true
	return true
}

// readIndex reads all of an index and checks it.
func (s *segment) readIndex() ([]uint32, error) {
	data, err := os.ReadFile(indexPath(s.path))
	if err != nil {
		return nil, err
	}
	n := int(s.end - s.base)
	if len(data) != indexHead+4*(n+1)+4 || frames.Checksum(data[indexHead:len(data)-4]) != binary.LittleEndian.Uint32(data[len(data)-4:]) {
		return nil, errIndex
	}
	offsets := make([]uint32, n)
	for i := range offsets {
		offsets[i] = binary.LittleEndian.Uint32(data[indexHead+4*i:])
	}
	return offsets, nil
}

// indexed reads where the records from a number on begin, and where the last of them ends.
func (s *segment) indexed(offsets []int64, from uint64) error {
	file, err := os.Open(indexPath(s.path))
	if err != nil {
		return errIndex
	}
	defer file.Close()
	var data [4 * (readCount + 1)]byte
	part := data[:4*len(offsets)]
	if _, err := file.ReadAt(part, indexHead+4*int64(from-s.base)); err != nil {
		return errIndex
	}
	for i := range offsets {
		offsets[i] = int64(binary.LittleEndian.Uint32(part[4*i:]))
		if i > 0 && offsets[i] < offsets[i-1]+frames.HeadSize {
			return errIndex
		}
	}
	return nil
}
