package artifact

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
)

// Manifests that need nothing but themselves and are small, as the results of
// most tasks, stand one after another in segment files: a file of its own for
// each would cost many times more to make and to sync. A record is the length
// of the manifest (4 bytes, big-endian), its sum and the manifest. Segments are
// only appended to, and only by the run that made them; what a crash cut short
// is passed over. Deleted records leave the index at once and the disk when
// the sweep rewrites their segment, so the disk holds at most about twice
// what is counted.

const (
	dirPacks    = "packs"
	packMax     = 16 << 10 // bytes of a manifest that is packed
	packSegment = 4 << 20  // bytes of a segment
	packHead    = 4 + sumSize
)

// packRef is where a record's manifest stands.
type packRef struct {
	segment uint32
	n       int32
	off     int64
}

func (r packRef) cost() int64 { return packHead + int64(r.n) }

type segment struct{ size, live int64 }

// packs is the index; guarded by Store.mu, and appending by Store.packMu as well.
type packs struct {
	refs     map[sum]packRef
	segments map[uint32]*segment
	id       uint32   // of the last segment
	file     *os.File // the last segment, if this run made it
	dirty    bool     // the file has what isn't synced
}

func (s *Store) segmentPath(id uint32) string {
	return s.path(dirPacks, fmt.Sprintf("%08d", id))
}

// scanPacks reads the segments of earlier runs. Only the scan uses its result yet.
func (s *Store) scanPacks(trees map[sum]*treeInfo) (p packs, used int64) {
	p = packs{refs: map[sum]packRef{}, segments: map[uint32]*segment{}}
	names, err := os.ReadDir(s.path(dirPacks))
	if err != nil {
		s.log.Error("can't read a folder of the artifact store", "folder", s.path(dirPacks), "error", err)
		return p, 0
	}
	for _, d := range names {
		id, err := strconv.ParseUint(d.Name(), 10, 32)
		if err != nil {
			continue // not ours
		}
		p.id = max(p.id, uint32(id))
		seg := &segment{}
		p.segments[uint32(id)] = seg
		if err := s.scanSegment(uint32(id), seg, &p, trees); err != nil {
			s.log.Warn("passed over the damaged end of a segment", "file", s.segmentPath(uint32(id)), "error", err)
		}
		used += seg.live
	}
	return p, used
}

func (s *Store) scanSegment(id uint32, seg *segment, p *packs, trees map[sum]*treeInfo) error {
	f, err := os.Open(s.segmentPath(id))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	seg.size = info.Size()
	r, buf := bufio.NewReader(f), make([]byte, packMax)
	for off := int64(0); ; {
		var head [packHead]byte
		if _, err := io.ReadFull(r, head[:]); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		n, name := binary.BigEndian.Uint32(head[:]), sum(head[4:])
		if n > packMax {
			return fmt.Errorf("a record of %d bytes", n)
		}
		if _, err := io.ReadFull(r, buf[:n]); err != nil {
			return err
		}
		if sha256.Sum256(buf[:n]) != name {
			return errors.New("a record's content doesn't match its name")
		}
		ref := packRef{id, int32(n), off + packHead}
		off += ref.cost()
		if _, again := p.refs[name]; !again {
			p.refs[name] = ref
			seg.live += ref.cost()
			trees[name] = &treeInfo{cost: ref.cost(), used: info.ModTime(), stamped: info.ModTime(), complete: true, plain: true}
		}
	}
}

// readPacked reads a record; the caller checks its sum. It is fs.ErrNotExist if there is none.
func (s *Store) readPacked(name sum) ([]byte, error) {
	for {
		s.mu.Lock()
		ref, ok := s.packs.refs[name]
		s.mu.Unlock()
		if !ok {
			return nil, fs.ErrNotExist
		}
		f, err := os.Open(s.segmentPath(ref.segment))
		if err == nil {
			data := make([]byte, ref.n)
			_, err = f.ReadAt(data, ref.off)
			f.Close()
			if err == nil {
				return data, nil
			}
		}
		s.mu.Lock()
		moved := s.packs.refs[name] != ref
		s.mu.Unlock()
		if !moved {
			return nil, err
		}
	}
}

// packed tells whether the record is here.
func (s *Store) packed(name sum) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.packs.refs[name]
	return ok
}

// pack appends a record, whose space was taken already.
func (s *Store) pack(name sum, data []byte) error {
	s.packMu.Lock()
	defer s.packMu.Unlock()
	s.mu.Lock()
	id, f, seg := s.packs.id, s.packs.file, s.packs.segments[s.packs.id]
	s.mu.Unlock()
	rec := binary.BigEndian.AppendUint32(make([]byte, 0, packHead+len(data)), uint32(len(data)))
	rec = append(append(rec, name[:]...), data...)
	if f == nil || seg.size+int64(len(rec)) > packSegment {
		var err error
		if id, f, seg, err = s.newSegment(id + 1); err != nil {
			return err
		}
	}
	at := seg.size
	if _, err := f.WriteAt(rec, at); err != nil {
		f.Truncate(at)
		return err
	}
	ref := packRef{id, int32(len(data)), at + packHead}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.packs.refs[name]; ok { // it moves
		s.packs.segments[old.segment].live -= old.cost()
	}
	s.packs.refs[name] = ref
	seg.size += ref.cost()
	seg.live += ref.cost()
	s.packs.dirty = true
	return nil
}

// newSegment begins segment id; packMu is held.
func (s *Store) newSegment(id uint32) (uint32, *os.File, *segment, error) {
	f, err := os.OpenFile(s.segmentPath(id), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, nil, nil, err
	}
	seg := &segment{}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.packs.file; old != nil {
		s.unsync(old.Name())
		old.Close()
	}
	s.packs.id, s.packs.file, s.packs.segments[id] = id, f, seg
	s.unsync(f.Name()) // and with it the folder's new name
	return id, f, seg, nil
}

// unpack takes a record out of the index and returns its space; mu is held.
func (s *Store) unpack(name sum) int64 {
	ref, ok := s.packs.refs[name]
	if !ok {
		return 0
	}
	delete(s.packs.refs, name)
	s.packs.segments[ref.segment].live -= ref.cost()
	s.used -= ref.cost()
	return ref.cost()
}

// repack rewrites the segments of which less than half is left; gcMu is held.
func (s *Store) repack() {
	s.mu.Lock()
	var sparse []uint32
	for id, seg := range s.packs.segments {
		if seg.live*2 < seg.size && (id != s.packs.id || s.packs.file == nil) {
			sparse = append(sparse, id)
		}
	}
	stay := map[uint32][]sum{}
	for name, ref := range s.packs.refs {
		if slices.Contains(sparse, ref.segment) {
			stay[ref.segment] = append(stay[ref.segment], name)
		}
	}
	s.mu.Unlock()
	for _, id := range sparse {
		if err := s.repackSegment(id, stay[id]); err != nil {
			s.log.Error("can't rewrite a segment of the artifact store", "file", s.segmentPath(id), "error", err)
			return
		}
	}
}

func (s *Store) repackSegment(id uint32, stay []sum) error {
	for _, name := range stay {
		data, err := s.readPacked(name)
		if err != nil || sha256.Sum256(data) != name {
			s.damaged(dirTrees, name, fmt.Errorf("its segment can't be read: %v", err))
			continue
		}
		if !s.packed(name) {
			continue
		}
		if err := s.pack(name, data); err != nil {
			return err
		}
	}
	if err := s.syncPacks(); err != nil { // what has moved may have been durable
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.packs.segments, id)
	return os.Remove(s.segmentPath(id))
}

// syncPacks makes the last segment durable.
func (s *Store) syncPacks() error {
	s.packMu.Lock() // it may not be closed meanwhile
	defer s.packMu.Unlock()
	s.mu.Lock()
	f, dirty := s.packs.file, s.packs.dirty
	s.packs.dirty = false
	s.mu.Unlock()
	if f == nil || !dirty {
		return nil
	}
	err := f.Sync()
	if err != nil {
		s.mu.Lock()
		s.packs.dirty = true
		s.mu.Unlock()
	}
	return err
}

// putManifest stores a manifest where its kind belongs.
func (s *Store) putManifest(name sum, t Tree, data []byte) (cost int64, err error) {
	if old, err := s.manifest(name); err == nil && string(old) == string(data) {
		if s.packed(name) {
			return packHead + int64(len(data)), nil
		}
		return costOf(data), nil
	}
	if !t.plain() || len(data) > packMax {
		return costOf(data), s.write(s.blobPath(dirTrees, name), data)
	}
	n := packHead + int64(len(data))
	if err := s.room(n); err != nil {
		return 0, err
	}
	if err := s.pack(name, data); err != nil {
		s.mu.Lock()
		s.used -= n
		s.mu.Unlock()
		return 0, s.diskError("store content", err)
	}
	return n, nil
}

func costOf(data []byte) int64 { return cost(int64(len(data))) }

// dropTree deletes a manifest, wherever it stands; mu is held.
func (s *Store) dropTree(name sum) int64 {
	delete(s.trees, name)
	if n := s.unpack(name); n > 0 {
		return n
	}
	return s.dropFile(dirTrees, name)
}
