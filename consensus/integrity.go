package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/frames"
)

// bbolt and Badger map their files into memory and, on a damaged one, panic on
// goroutines of their own, which nobody can catch. So their structure is
// checked by plain reads before they see them.

// checkBolt checks a bbolt file; a missing or empty one is fine.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't open %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't stat %s: %w", path, err)
	}
	if info.Size() == 0 {
		return nil // just created: bbolt fills it
	}
	b := &boltFile{f: f, size: uint64(info.Size()), seen: map[uint64]bool{}}
	if err := b.check(); err != nil {
		return pcm.Errorf(pcm.Internal, "%s is damaged: %w: %s", path, err, boltAdvice)
	}
	return nil
}

// boltFile is a bbolt file as go.etcd.io/bbolt/internal/common lays it out.
type boltFile struct {
	f        *os.File
	size     uint64
	pageSize uint64
	pages    uint64 // high water mark: pages in use have lower numbers
	seen     map[uint64]bool
}

const (
	boltMagic      = 0xED0CDAED
	boltPageHeader = 16 // id u64, flags u16, count u16, overflow u32
	boltElement    = 16
	boltBranch     = 0x01
	boltLeaf       = 0x02
	boltBucket     = 0x01 // flag of a leaf element
	boltMaxDepth   = 64
)

var le = binary.LittleEndian

func (b *boltFile) check() error {
	var root, tx uint64
	at := uint64(0)
	spoilt := false
	for range 2 {
		var page [boltPageHeader + 64]byte
		if _, err := b.f.ReadAt(page[:], int64(at)); err != nil {
			break
		}
		meta := page[boltPageHeader:]
		at = uint64(os.Getpagesize())
		sum := fnv.New64a()
		sum.Write(meta[:56])
		if le.Uint32(meta) != boltMagic || sum.Sum64() != le.Uint64(meta[56:]) {
			spoilt = spoilt || page != [len(page)]byte{}
			continue
		}
		at = uint64(le.Uint32(meta[8:]))
		if n := le.Uint64(meta[48:]); b.pageSize == 0 || n > tx {
			b.pageSize, root, b.pages, tx = at, le.Uint64(meta[16:]), le.Uint64(meta[40:]), n
		}
	}
	if b.pageSize < 512 {
		return errors.New("neither of its meta pages is valid")
	}
	// The first sector of a page is written whole or not at all. bbolt would go by the
	// other page, of the transaction before: one vote would be forgotten.
	if spoilt {
		return errors.New("one of its meta pages is not what was written")
	}
	if want := b.pageSize * b.pages; b.size < want {
		return fmt.Errorf("it is cut short: %d bytes of %d", b.size, want)
	}
	return b.walk(root, 0, nil)
}

// walk checks a page of a bucket (nil: of the one of all buckets) and all below it. A file
// that another process writes to meanwhile may look damaged; its lock is checked first where
// it matters.
func (b *boltFile) walk(id uint64, depth int, bucket []byte) error {
	if id < 2 || id >= b.pages || depth > boltMaxDepth || b.seen[id] {
		return fmt.Errorf("page %d is out of place", id)
	}
	b.seen[id] = true
	var head [boltPageHeader]byte
	if _, err := b.f.ReadAt(head[:], int64(id*b.pageSize)); err != nil {
		return fmt.Errorf("page %d can't be read: %w", id, err)
	}
	overflow := uint64(le.Uint32(head[12:]))
	if le.Uint64(head[:]) != id || overflow >= b.pages-id {
		return fmt.Errorf("page %d holds something else", id)
	}
	page := make([]byte, (overflow+1)*b.pageSize)
	if _, err := b.f.ReadAt(page, int64(id*b.pageSize)); err != nil {
		return fmt.Errorf("page %d can't be read: %w", id, err)
	}
	return b.walkPage(id, page, depth, bucket)
}

func (b *boltFile) walkPage(id uint64, page []byte, depth int, bucket []byte) error {
	flags, count := le.Uint16(page[8:]), uint64(le.Uint16(page[10:]))
	size := uint64(len(page))
	if flags != boltBranch && flags != boltLeaf || boltPageHeader+count*boltElement > size {
		return fmt.Errorf("page %d holds something else", id)
	}
	for i := range count {
		at := boltPageHeader + i*boltElement
		e := page[at:]
		if flags == boltBranch {
			if at+uint64(le.Uint32(e))+uint64(le.Uint32(e[4:])) > size {
				return fmt.Errorf("page %d has a key out of bounds", id)
			}
			if err := b.walk(le.Uint64(e[8:]), depth+1, bucket); err != nil {
				return err
			}
			continue
		}
		key := at + uint64(le.Uint32(e[4:]))
		value := key + uint64(le.Uint32(e[8:]))
		end := value + uint64(le.Uint32(e[12:]))
		if end > size {
			return fmt.Errorf("page %d has a value out of bounds", id)
		}
		name, within := page[key:value], page[value:end]
		if !boltKnows(bucket, name, le.Uint32(e)&boltBucket != 0) {
			return fmt.Errorf("page %d has a key %q that nobody wrote", id, name)
		}
		if bucket != nil {
			continue
		}
		if len(within) < 16 {
			return fmt.Errorf("page %d has a bucket without a head", id)
		}
		if root := le.Uint64(within); root != 0 {
			if err := b.walk(root, depth+1, name); err != nil {
				return err
			}
		} else if inline := within[16:]; len(inline) < boltPageHeader {
			return fmt.Errorf("page %d has a damaged inline bucket", id)
		} else if err := b.walkPage(id, inline, depth+1, name); err != nil {
			return fmt.Errorf("an inline bucket: %w", err)
		}
	}
	return nil
}

// boltKnows tells whether a key can be one of Raft's store in bbolt (raft-boltdb), or of
// ours. Of a vote whose key has changed Raft would find nothing, and vote again.
func boltKnows(bucket, key []byte, isBucket bool) bool {
	switch string(bucket) {
	case "":
		return isBucket && (string(key) == "logs" || string(key) == "conf")
	case "logs":
		return !isBucket && len(key) == 8
	}
	return !isBucket && (bytes.Equal(key, keyCurrentTerm) || bytes.Equal(key, keyLastVoteTerm) || bytes.Equal(key, keyLastVoteCand) || bytes.HasPrefix(key, []byte("pcm/")))
}

// checkTables checks the tables of a Badger folder: each ends with its index,
// the index's length (4 bytes, big-endian), a checksum of the index and that
// one's length. A table that the manifest doesn't list yet was begun when the process was
// killed; Badger removes it.
func checkTables(dir string) error {
	files, err := frames.Glob(dir, "*.sst")
	if err != nil || len(files) == 0 {
		return err
	}
	manifest, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return err
	}
	defer manifest.Close()
	listed, _, err := badger.ReplayManifestFile(manifest, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("%s is damaged: %w", manifest.Name(), err)
	}
	for _, path := range files {
		if id, ok := table.ParseFileID(path); ok {
			if _, ok := listed.Tables[id]; !ok {
				continue
			}
		}
		if err := checkTable(path); err != nil {
			return fmt.Errorf("%s is damaged: %w", path, err)
		}
	}
	return nil
}

// dropEmpty removes memtables and value logs without a byte: when the power went, they
// had a name already and no content. Badger won't open them; what they were to hold
// is in Raft's log.
func dropEmpty(dir string) error {
	var files []string
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		list, err := frames.Glob(dir, pattern)
		if err != nil {
			return err
		}
		files = append(files, list...)
	}
	for _, path := range files {
		if info, err := os.Stat(path); err != nil || info.Size() > 0 {
			continue // Badger will tell
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

func checkTable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	// take reads the n bytes ahead of what was taken before.
	take := func(n int64) ([]byte, error) {
		if n < 0 || n > end {
			return nil, errors.New("it is cut short")
		}
		end -= n
		data := make([]byte, n)
		_, err := f.ReadAt(data, end)
		return data, err
	}
	length := func() (int64, error) {
		data, err := take(4)
		if err != nil {
			return 0, err
		}
		return int64(binary.BigEndian.Uint32(data)), nil
	}
	n, err := length()
	if err != nil {
		return err
	}
	if n > 64 {
		return errors.New("its end is not that of a table")
	}
	sum, err := take(n)
	if err != nil {
		return err
	}
	if n, err = length(); err != nil {
		return err
	}
	index, err := take(n)
	if err != nil {
		return err
	}
	if !crcMatches(sum, index) {
		return errors.New("its index doesn't match its checksum")
	}
	return nil
}

// crcMatches compares data with Badger's pb.Checksum: field 2 holds the sum,
// of CRC-32C unless field 1 names another algorithm, which we don't use.
func crcMatches(sum, data []byte) bool {
	want := uint64(0)
	for len(sum) > 0 {
		tag, n := binary.Uvarint(sum)
		if n <= 0 {
			return false
		}
		v, m := binary.Uvarint(sum[n:])
		if m <= 0 {
			return false
		}
		if tag == 2<<3 {
			want = v
		}
		sum = sum[n+m:]
	}
	return uint64(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))) == want
}
