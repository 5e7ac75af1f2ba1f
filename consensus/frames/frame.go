// Package frames is what files that are only appended to have in common: a
// header, frames with checksums and numbers that grow by one, and how they get to the
// disk. Raft's log (consensus/wal) and the records (consensus/records) are made of them.
package frames

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A header: magic (16 bytes), the segment's number, the number of its first frame, checksum.
const (
	magicSize  = 16
	HeaderSize = magicSize + 8 + 8 + 4
)

// A frame's head: checksum of the body, checksum of the rest of the head, length of the body, kind, number.
const (
	HeadSize = 4 + 4 + 4 + 4 + 8
	KindAt   = 12      // where in it the kind is
	NumberAt = 16      // and the number
	MaxBody  = 1 << 30 // bytes of a body
)

var table = crc32.MakeTable(crc32.Castagnoli)

// Checksum is CRC-32C.
func Checksum(data []byte) uint32 { return crc32.Checksum(data, table) }

// DamagedError says that a file does not hold what was once written to it.
type DamagedError struct {
	Path string
	Why  string
}

// Damaged says so of a file.
func Damaged(path, format string, args ...any) error {
	return &DamagedError{path, fmt.Sprintf(format, args...)}
}

func (e *DamagedError) Error() string { return fmt.Sprintf("%s is damaged: %s", e.Path, e.Why) }

// Header is that of a segment. Magic has 16 bytes.
func Header(magic string, number, first uint64) []byte {
	head := append(make([]byte, 0, HeaderSize), magic[:magicSize]...)
	head = binary.LittleEndian.AppendUint64(head, number)
	head = binary.LittleEndian.AppendUint64(head, first)
	return binary.LittleEndian.AppendUint32(head, Checksum(head))
}

// ReadHeader reads the header of the segment with a number: the number of its first frame.
func ReadHeader(data []byte, magic string, number uint64) (first uint64, ok bool) {
	if len(data) < HeaderSize || string(data[:magicSize]) != magic || binary.LittleEndian.Uint64(data[magicSize:]) != number ||
		Checksum(data[:HeaderSize-4]) != binary.LittleEndian.Uint32(data[HeaderSize-4:]) {
		return 0, false
	}
	return binary.LittleEndian.Uint64(data[magicSize+8:]), true
}

// Finish fills in the head of a frame whose body is there.
func Finish(frame []byte, kind uint32, number uint64) {
	binary.LittleEndian.PutUint32(frame, Checksum(frame[HeadSize:]))
	binary.LittleEndian.PutUint32(frame[8:], uint32(len(frame)-HeadSize))
	binary.LittleEndian.PutUint32(frame[KindAt:], kind)
	binary.LittleEndian.PutUint64(frame[NumberAt:], number)
	binary.LittleEndian.PutUint32(frame[4:], Checksum(frame[8:HeadSize]))
}

// Read reads the frame with a number at the beginning of data.
func Read(data []byte, number uint64) (kind uint32, body []byte, ok bool) {
	n, ok := Head(data)
	if !ok || binary.LittleEndian.Uint64(data[NumberAt:]) != number || HeadSize+n > int64(len(data)) {
		return 0, nil, false
	}
	body = data[HeadSize : HeadSize+n : HeadSize+n]
	return binary.LittleEndian.Uint32(data[KindAt:]), body, Checksum(body) == binary.LittleEndian.Uint32(data)
}

// Head tells whether data begins with a frame's head, and how long the body is.
func Head(data []byte) (n int64, ok bool) {
	if len(data) < HeadSize || Checksum(data[8:HeadSize]) != binary.LittleEndian.Uint32(data[4:]) {
		return 0, false
	}
	n = int64(binary.LittleEndian.Uint32(data[8:]))
	return n, n <= MaxBody
}
