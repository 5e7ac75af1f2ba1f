package artifact

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jointcloud/pcm"
)

// Config of a Store.
type Config struct {
	Dir     string           // made with mode 0700 if it isn't there; used by one Store at a time
	Quota   pcm.Bytes        // most that the store may take on disk; 0: no bound but Reserve
	Reserve pcm.Bytes        // space of the disk that is always left free for others, e.g. the ledger
	Logger  *slog.Logger     // default: none
	Now     func() time.Time // wall clock, for what was used last; default time.Now
}

// Store keeps artifacts on disk. It is safe for concurrent use.
//
//	trees/ab/<sum>    manifests
//	packs/<n>         small manifests, many to a file (see pack.go)
//	chunks/ab/<sum>   chunks and lists of chunks
//	shared/<sum>      trees laid out for tasks, read-only
//	tmp/              what is being written
//	pins              who needs what (see pins.go)
type Store struct {
	dir     string
	quota   int64
	reserve int64
	log     *slog.Logger
	now     func() time.Time

	scanned chan struct{} // closed once trees, shared and used are known
	stop    chan struct{} // closed by Close: ends the scan
	stripes [64]sync.Mutex
	gcMu    sync.Mutex // one collection at a time; taken before everything else
	syncMu  sync.Mutex // one Sync at a time
	packMu  sync.Mutex // one writer of packs at a time; taken before mu

	mu       sync.Mutex // all below
	used     int64      // bytes on disk, in blocks
	trees    map[sum]*treeInfo
	packs    packs
	sessions map[*session]struct{}
	shared   map[sum]*sharedTree
	pins     pinTable
	recent   map[sum]struct{} // trees and blobs of sessions that ended well during the present sweep; else nil
	unsynced []string         // files written since the last Sync …
	many     bool             // … or more than the list holds
}

// treeInfo is what is known of a manifest on disk.
type treeInfo struct {
	cost     int64
	used     time.Time
	stamped  time.Time // last use as written to the file's mtime
	complete bool      // everything it needs was seen here
	plain    bool      // needs nothing but the manifest
}

const (
	dirTrees  = "trees"
	dirChunks = "chunks"
	dirShared = "shared"
	dirTmp    = "tmp"

	maxUnsynced = 128 // files that Sync handles one by one
	block       = 4096
)

// cost is the space that a file of n bytes takes.
func cost(n int64) int64 { return (n + block - 1) / block * block }

// Open opens the store in cfg.Dir, making it if need be. What is on disk is
// counted in the background; calls that need the count wait for it.
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dir == "" || cfg.Quota < 0 || cfg.Reserve < 0 {
		return nil, pcm.Errorf(pcm.Invalid, "artifact store: folder %q, quota %d or reserve %d is not usable", cfg.Dir, cfg.Quota, cfg.Reserve)
	}
	s := &Store{
		dir: cfg.Dir, quota: int64(cfg.Quota), reserve: int64(cfg.Reserve), log: cfg.Logger, now: cfg.Now,
		scanned: make(chan struct{}), stop: make(chan struct{}),
		trees: map[sum]*treeInfo{}, sessions: map[*session]struct{}{}, shared: map[sum]*sharedTree{},
	}
	fail := func(err error) (*Store, error) {
		return nil, pcm.Errorf(pcm.Internal, "can't open the artifact store %s: %w; check the disk and the folder's owner", cfg.Dir, err)
	}
	if err := os.RemoveAll(s.path(dirTmp)); err != nil {
		removeTree(s.path(dirTmp))
	}
	for _, d := range []string{"", dirTrees, dirPacks, dirChunks, dirShared, dirTmp} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return fail(err)
		}
	}
	if err := s.loadPins(); err != nil {
		return fail(err)
	}
	if err := s.openShared(); err != nil {
		return fail(err)
	}
	go s.scan()
	return s, nil
}

// Close makes all content durable and closes the files. Nothing may use the store
// any more.
func (s *Store) Close() error {
	close(s.stop)
	<-s.scanned
	err := s.Sync()
	s.packMu.Lock()
	defer s.packMu.Unlock()
	if s.packs.file != nil {
		s.packs.file.Close()
		s.packs.file = nil
	}
	return err
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

func (s *Store) blobPath(folder string, name sum) string {
	h := name.String()
	return filepath.Join(s.dir, folder, h[:2], h)
}

// scan counts what is on disk.
func (s *Store) scan() {
	defer close(s.scanned)
	trees := map[sum]*treeInfo{}
	packs, used := s.scanPacks(trees)
	for _, folder := range []string{dirTrees, dirChunks} {
		s.eachBlob(folder, func(name sum, info fs.FileInfo) {
			used += cost(info.Size())
			if folder == dirTrees {
				trees[name] = &treeInfo{cost: cost(info.Size()), used: info.ModTime(), stamped: info.ModTime()}
			}
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used += used // what openShared counted is in it
	s.trees, s.packs = trees, packs
}

// eachBlob visits the files of trees/ or chunks/. It ends early when the store is closed.
func (s *Store) eachBlob(folder string, visit func(sum, fs.FileInfo)) {
	fans, err := os.ReadDir(s.path(folder))
	if err != nil {
		s.log.Error("can't read a folder of the artifact store", "folder", s.path(folder), "error", err)
		return
	}
	for _, fan := range fans {
		files, err := os.ReadDir(s.path(folder, fan.Name()))
		if err != nil {
			s.log.Error("can't read a folder of the artifact store", "folder", s.path(folder, fan.Name()), "error", err)
			continue
		}
		for _, f := range files {
			name, err := sumOf(pcm.Digest(f.Name()))
			if err != nil {
				continue // not ours
			}
			if info, err := f.Info(); err == nil && info.Mode().IsRegular() {
				visit(name, info)
			}
		}
		select {
		case <-s.stop:
			return
		default:
		}
	}
}

// Usage is the space that the store takes and its bounds.
type Usage struct {
	Used      pcm.Bytes
	Quota     pcm.Bytes // 0: none
	Free      pcm.Bytes // on the disk, for anyone
	Reserve   pcm.Bytes
	Artifacts int
	Pinned    int // artifacts with at least one owner
}

// Usage tells what the store takes.
func (s *Store) Usage() Usage {
	<-s.scanned
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{pcm.Bytes(s.used), pcm.Bytes(s.quota), pcm.Bytes(freeBytes(s.dir)), pcm.Bytes(s.reserve), len(s.trees), len(s.pins.count)}
}

// room takes n bytes of the quota, after collecting garbage if that is needed.
// The error has code Refused and says what is short.
func (s *Store) room(n int64) error {
	<-s.scanned
	for range 3 {
		s.mu.Lock()
		if s.short(n) <= 0 {
			s.used += n
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if s.collect(n) == 0 {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.short(n) <= 0 {
		s.used += n
		return nil
	}
	if free := freeBytes(s.dir); free-n < s.reserve {
		return pcm.Errorf(pcm.Refused, "no room for %s of content: the disk of %s has %s free, of which %s are kept for the ledger; free some space on it",
			pcm.Bytes(n), s.dir, pcm.Bytes(free), pcm.Bytes(s.reserve))
	}
	return pcm.Errorf(pcm.Refused, "no room for %s of content: %s of the store's quota of %s are in use, by artifacts that open jobs or kept results need; raise the quota or remove old jobs",
		pcm.Bytes(n), pcm.Bytes(s.used), pcm.Bytes(s.quota))
}

// short is how many bytes must go before n more fit; mu is held.
func (s *Store) short(n int64) int64 {
	d := int64(-1)
	if s.quota > 0 {
		d = s.used + n - s.quota
	}
	if s.reserve > 0 {
		d = max(d, s.reserve+n-freeBytes(s.dir))
	}
	return d
}

func (s *Store) release(n int64) {
	s.mu.Lock()
	s.used -= cost(n)
	s.mu.Unlock()
}

// diskError names what a failed write means; a full disk is not a bug.
func (s *Store) diskError(what string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return pcm.Errorf(pcm.Refused, "can't %s: the disk of %s is full (%s free); free some space on it: %w", what, s.dir, pcm.Bytes(freeBytes(s.dir)), err)
	}
	return pcm.Errorf(pcm.Internal, "can't %s: %w", what, err)
}

// session protects the blobs that an import or transfer has put or found so
// far, while no complete tree names them, from the collection.
type session struct {
	s     *Store
	blobs map[sum]bool // true: written by this session; guarded by s.mu
	trees map[sum]bool
	fresh int64 // bytes written
}

// begin opens a session that needs the given trees. It waits for a collection
// under way, so that a collection knows of every session's trees.
func (s *Store) begin(trees ...sum) *session {
	ses := &session{s: s, blobs: map[sum]bool{}, trees: map[sum]bool{}}
	for _, t := range trees {
		ses.trees[t] = true
	}
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	s.mu.Lock()
	s.sessions[ses] = struct{}{}
	s.mu.Unlock()
	return ses
}

// end closes the session. With keep, what it wrote stays; else what only this
// session wrote, and nobody else has found since, is deleted.
func (ses *session) end(keep bool) {
	s := ses.s
	s.mu.Lock()
	defer s.mu.Unlock()
	defer delete(s.sessions, ses)
	if keep {
		for other := range s.sessions {
			for b := range ses.blobs {
				if other != ses && other.blobs[b] {
					other.blobs[b] = false // a tree needs it now
				}
			}
		}
		if s.recent != nil {
			for b := range ses.blobs {
				s.recent[b] = struct{}{}
			}
			for t := range ses.trees {
				s.recent[t] = struct{}{}
			}
		}
		return
	}
	for t := range ses.trees {
		if info := s.trees[t]; info != nil {
			info.complete = info.plain
		}
	}
	for b, fresh := range ses.blobs {
		if fresh && !s.inSession(b, ses) {
			s.dropFile(dirChunks, b)
		}
	}
}

// inSession tells whether a session other than not needs the blob; mu is held.
func (s *Store) inSession(b sum, not *session) bool {
	for other := range s.sessions {
		if other == not {
			continue
		}
		if _, ok := other.blobs[b]; ok {
			return true
		}
	}
	return false
}

// hold protects a blob from now on.
func (ses *session) hold(b sum) {
	ses.s.mu.Lock()
	if _, ok := ses.blobs[b]; !ok {
		ses.blobs[b] = false
	}
	ses.s.mu.Unlock()
}

// put stores a blob whose sum is name.
func (ses *session) put(name sum, data []byte) error {
	s := ses.s
	ses.hold(name)
	stripe := &s.stripes[name[0]%64]
	stripe.Lock()
	defer stripe.Unlock()
	file := s.blobPath(dirChunks, name)
	if s.same(file, data) {
		return nil
	}
	if err := s.write(file, data); err != nil {
		return err
	}
	s.mu.Lock()
	ses.blobs[name] = true
	ses.fresh += int64(len(data))
	s.mu.Unlock()
	return nil
}

// putTree stores a checked manifest.
func (ses *session) putTree(name sum, t Tree, data []byte, complete bool) error {
	s := ses.s
	s.mu.Lock()
	ses.trees[name] = true
	s.mu.Unlock()
	stripe := &s.stripes[name[0]%64]
	stripe.Lock()
	defer stripe.Unlock()
	cost, err := s.putManifest(name, t, data)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	old := s.trees[name]
	s.trees[name] = &treeInfo{
		cost: cost, used: now, stamped: now, plain: t.plain(),
		complete: complete || t.plain() || old != nil && old.complete,
	}
	return nil
}

// plain tells whether the tree needs no blob.
func (t Tree) plain() bool {
	for _, e := range t.Entries {
		if len(e.Chunks)+len(e.Lists) > 0 {
			return false
		}
	}
	return true
}

// same tells whether file holds exactly data.
func (s *Store) same(file string, data []byte) bool {
	info, err := os.Lstat(file)
	if err != nil || info.Size() != int64(len(data)) {
		return false
	}
	old, err := os.ReadFile(file)
	return err == nil && bytes.Equal(old, data)
}

// write puts data in place under file's name in one step, or not at all.
func (s *Store) write(file string, data []byte) error {
	n := int64(len(data))
	if old, err := os.Lstat(file); err == nil {
		s.release(old.Size()) // of another content: damaged
		os.Remove(file)
	}
	if err := s.room(cost(n)); err != nil {
		return err
	}
	err := s.writeFile(file, data)
	if err != nil {
		s.release(n)
		return s.diskError("store content", err)
	}
	s.mu.Lock()
	s.unsync(file)
	s.mu.Unlock()
	return nil
}

// unsync notes that a file isn't durable yet; mu is held.
func (s *Store) unsync(file string) {
	if len(s.unsynced) < maxUnsynced {
		s.unsynced = append(s.unsynced, file)
	} else {
		s.many = true
	}
}

func (s *Store) writeFile(file string, data []byte) error {
	f, err := os.CreateTemp(s.path(dirTmp), "blob-")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		if err = os.Rename(f.Name(), file); errors.Is(err, fs.ErrNotExist) {
			if err = os.MkdirAll(filepath.Dir(file), 0o700); err == nil {
				err = os.Rename(f.Name(), file)
			}
		}
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// dropFile deletes a blob or manifest; mu is held.
func (s *Store) dropFile(folder string, name sum) int64 {
	file := s.blobPath(folder, name)
	info, err := os.Lstat(file)
	if err != nil || os.Remove(file) != nil {
		return 0
	}
	n := cost(info.Size())
	s.used -= n
	return n
}

// errMissing is a blob that isn't here, or was damaged and is gone now.
var errMissing = errors.New("a piece of the content is not here")

// read returns the verified blob in buf, which has room for it.
// The error is errMissing if it isn't here in this form.
func (s *Store) read(folder string, name sum, buf []byte) ([]byte, error) {
	f, err := os.Open(s.blobPath(folder, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errMissing
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't read the artifact store: %w", err)
	}
	defer f.Close()
	n, err := io.ReadFull(f, buf)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		s.damaged(folder, name, err)
		return nil, errMissing
	}
	if sha256.Sum256(buf[:n]) != name {
		s.damaged(folder, name, errors.New("its content doesn't match its name"))
		return nil, errMissing
	}
	return buf[:n], nil
}

// damaged deletes a file that can't be right, so that it is fetched again.
func (s *Store) damaged(folder string, name sum, why error) {
	<-s.scanned
	s.log.Warn("removed a damaged file of the artifact store", "file", s.blobPath(folder, name), "error", why)
	s.mu.Lock()
	defer s.mu.Unlock()
	if folder == dirTrees {
		s.dropTree(name)
	} else {
		s.dropFile(folder, name)
	}
	for _, t := range s.trees {
		t.complete = t.plain // found out again by who asks
	}
}

// Sync makes durable what was stored before the call. Calls that come together
// share the work.
func (s *Store) Sync() error {
	s.syncMu.Lock()
	defer s.syncMu.Unlock()
	perr := s.syncPacks() // first: a segment that is full meanwhile is in the list then
	s.mu.Lock()
	files, many := s.unsynced, s.many
	s.unsynced, s.many = nil, false
	s.mu.Unlock()
	err := errors.Join(perr, s.syncFiles(files, many))
	if err != nil {
		s.mu.Lock()
		s.many = true
		s.mu.Unlock()
		return s.diskError("make content durable", err)
	}
	return nil
}

func (s *Store) syncFiles(files []string, many bool) error {
	if len(files) == 0 && !many {
		return nil
	}
	if many || len(files) > maxUnsynced/2 {
		if done, err := syncAll(s.dir); done || err != nil {
			return err
		}
	}
	if many { // without a call for all: every file there is
		for _, folder := range []string{dirTrees, dirChunks} {
			s.eachBlob(folder, func(name sum, _ fs.FileInfo) { files = append(files, s.blobPath(folder, name)) })
		}
		s.mu.Lock()
		for id := range s.packs.segments {
			files = append(files, s.segmentPath(id))
		}
		s.mu.Unlock()
	}
	dirs := map[string]bool{}
	for _, file := range files {
		if err := syncPath(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		dirs[filepath.Dir(file)] = true
	}
	for dir := range dirs {
		if err := syncPath(dir); err != nil {
			return err
		}
	}
	return nil
}

func syncPath(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// removeTree deletes a folder whose folders may be read-only.
func removeTree(dir string) error {
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
