package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// disk is where peers keep their folders: a file system of this process's own over
// a folder below it, so that what no program can ask of a real disk can happen. It
// remembers what was overwritten since the last fsync of each file: when the power
// goes, that comes back. Folders and names are durable at once.
type disk struct {
	mount, below string
	server       *fuse.Server // nil: a plain folder

	mu      sync.Mutex
	folders map[string]*folder
}

// folder is one peer's part of the disk.
type folder struct {
	mu      sync.Mutex
	failing bool             // fsync fails
	full    bool             // there is no room
	slow    time.Duration    // of each fsync
	undo    map[string]*undo // by path
	open    int              // files
	closed  chan struct{}    // closed and replaced whenever a file is closed
	refused int              // operations that failed by our will
}

// undo is a file as it was at its last fsync: its size, and those of its blocks that
// were written since.
type undo struct {
	size   int64
	blocks map[int64][]byte // by number; the last may be short
}

const blockSize = 4096

var zeros [blockSize]byte

// save keeps the blocks from one offset to another, unless they were kept already.
func (u *undo) save(f io.ReaderAt, from, to int64) error {
	for n := from / blockSize; n*blockSize < min(to, u.size); n++ {
		if u.blocks[n] != nil {
			continue
		}
		var buf [blockSize]byte
		block := buf[:min(blockSize, u.size-n*blockSize)]
		// What lies beyond the file's present end was cut off, and kept then.
		if _, err := f.ReadAt(block, n*blockSize); err != nil && err != io.EOF {
			return err
		}
		if bytes.Equal(block, zeros[:len(block)]) { // most of a file whose room is reserved
			u.blocks[n] = zeros[:len(block)]
		} else {
			u.blocks[n] = bytes.Clone(block)
		}
	}
	return nil
}

// since is what a file was; it is taken note of with the first change.
func (f *folder) since(path string, size int64) *undo {
	u := f.undo[path]
	if u == nil {
		u = &undo{size: size, blocks: map[int64][]byte{}}
		f.undo[path] = u
	}
	return u
}

// newDisk mounts a disk in a folder. Where that can't be had, its error says why.
func newDisk(dir string) (*disk, error) {
	d := plainDisk(dir)
	d.mount = filepath.Join(dir, "disk")
	if err := os.MkdirAll(d.mount, 0o700); err != nil {
		return nil, err
	}
	root := &fs.LoopbackRoot{Path: d.below}
	top := &diskNode{LoopbackNode: fs.LoopbackNode{RootData: root}, d: d}
	root.RootNode = top
	zero := time.Duration(0)
	server, err := fs.Mount(d.mount, top, &fs.Options{
		AttrTimeout: &zero, EntryTimeout: &zero,
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "pcm-chaos", Name: "pcm-chaos", MaxWrite: 1 << 20},
	})
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "faults of disks need FUSE, which this machine does not offer: %w", err)
	}
	d.server = server
	if err := sealFUSE(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// sealFUSE keeps the connections to FUSE from the processes that are started here: a
// mount ends with the last who has its connection, and until then whoever reads from
// it waits for an answer that nobody gives.
func sealFUSE() error {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || to != "/dev/fuse" {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		unix.CloseOnExec(fd)
	}
	return nil
}

// plainDisk is one without faults.
func plainDisk(dir string) *disk {
	below := filepath.Join(dir, "below")
	return &disk{mount: below, below: below, folders: map[string]*folder{}}
}

// folder makes a peer's folder.
func (d *disk) folder(name string) (string, error) {
	d.of(name)
	return filepath.Join(d.mount, name), os.MkdirAll(filepath.Join(d.below, name), 0o700)
}

func (d *disk) of(name string) *folder {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.folders[name]
	if f == nil {
		f = &folder{undo: map[string]*undo{}, closed: make(chan struct{})}
		d.folders[name] = f
	}
	return f
}

// faulty tells whether the disk can have faults.
func (d *disk) faulty() bool { return d.server != nil }

// set changes how a peer's folder behaves.
func (f *folder) set(change func(*folder)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// close unmounts the disk; nobody uses it any more.
func (d *disk) close() error {
	if d.server == nil {
		return nil
	}
	return d.server.Unmount()
}

// cutPower brings back what was overwritten since the last fsyncs. The peer was
// killed; its files are closed by the kernel, which writes what it still holds of them.
func (d *disk) cutPower(ctx context.Context, name string) (lost int, err error) {
	f := d.of(name)
	for {
		f.mu.Lock()
		open, closed := f.open, f.closed
		if open == 0 {
			break
		}
		f.mu.Unlock()
		select {
		case <-closed:
		case <-time.After(patience):
			return 0, pcm.Errorf(pcm.Internal, "%d files of %s stay open", open, name)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	defer f.mu.Unlock()
	for path, u := range f.undo {
		file, err := os.OpenFile(filepath.Join(d.below, path), os.O_RDWR, 0)
		if os.IsNotExist(err) {
			continue // removed meanwhile, which is durable
		}
		if err != nil {
			return lost, err
		}
		err = file.Truncate(u.size)
		for n, block := range u.blocks {
			if err == nil {
				_, err = file.WriteAt(block, n*blockSize)
			}
		}
		lost += 1 + len(u.blocks)
		file.Close()
		if err != nil {
			return lost, err
		}
	}
	clear(f.undo)
	return lost, nil
}

// diskNode is a file or folder.
type diskNode struct {
	fs.LoopbackNode
	d *disk
}

// WrapChild implements fs.NodeWrapChilder.
func (n *diskNode) WrapChild(ctx context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &diskNode{LoopbackNode: fs.LoopbackNode{RootData: n.RootData}, d: n.d}
}

// where is the node's path, and whose it is.
func (n *diskNode) where() (string, *folder) {
	path := n.Path(n.Root())
	top, _, _ := strings.Cut(path, "/")
	return path, n.d.of(top)
}

// Open implements fs.NodeOpener.
func (n *diskNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	path, f := n.where()
	file, err := os.OpenFile(filepath.Join(n.d.below, path), int(flags)&^syscall.O_APPEND, 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	fh, errno := f.handle(n, file)
	return fh, 0, errno
}

// Create implements fs.NodeCreater.
func (n *diskNode) Create(ctx context.Context, name string, flags uint32, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	_, f := n.where()
	if f.noRoom() {
		return nil, nil, 0, syscall.ENOSPC
	}
	inode, fh, _, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	fh.(fs.FileReleaser).Release(ctx) // opened again as ours
	node := inode.Operations().(*diskNode)
	path, _ := n.where()
	file, err := os.OpenFile(filepath.Join(n.d.below, path, name), int(flags)&(syscall.O_ACCMODE), 0)
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	fh, errno = f.handle(node, file)
	return inode, fh, 0, errno
}

// Unlink implements fs.NodeUnlinker.
func (n *diskNode) Unlink(ctx context.Context, name string) syscall.Errno {
	errno := n.LoopbackNode.Unlink(ctx, name)
	if errno == 0 {
		path, f := n.where()
		f.forget(filepath.Join(path, name))
	}
	return errno
}

// Rename implements fs.NodeRenamer: what is not durable yet is so under the new name.
func (n *diskNode) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	errno := n.LoopbackNode.Rename(ctx, name, to, newName, flags)
	if errno != 0 {
		return errno
	}
	path, f := n.where()
	before := filepath.Join(path, name)
	after := filepath.Join(to.EmbeddedInode().Path(n.Root()), newName)
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.undo, after)
	for p, u := range f.undo {
		if rest, ok := strings.CutPrefix(p, before); ok && (rest == "" || rest[0] == '/') {
			delete(f.undo, p)
			f.undo[after+rest] = u
		}
	}
	return 0
}

// Setattr implements fs.NodeSetattrer.
func (n *diskNode) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		path, f := n.where()
		if errno := f.willResize(n.d, path, int64(size)); errno != 0 {
			return errno
		}
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

// Statfs implements fs.NodeStatfser.
func (n *diskNode) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	errno := n.LoopbackNode.Statfs(ctx, out)
	if _, f := n.where(); f.noRoom() {
		out.Bavail, out.Bfree = 0, 0
	}
	return errno
}

// forget drops what is known of a file or folder that was removed.
func (f *folder) forget(path string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.undo {
		if rest, ok := strings.CutPrefix(p, path); ok && (rest == "" || rest[0] == '/') {
			delete(f.undo, p)
		}
	}
}

func (f *folder) noRoom() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.full {
		f.refused++
	}
	return f.full
}

// handle makes an open file; it takes over file.
func (f *folder) handle(n *diskNode, file *os.File) (fs.FileHandle, syscall.Errno) {
	reader, err := os.Open(file.Name())
	if err != nil {
		file.Close()
		return nil, fs.ToErrno(err)
	}
	f.mu.Lock()
	f.open++
	f.mu.Unlock()
	return &diskFile{LoopbackFile: fs.NewLoopbackFileFromOS(file), file: file, reader: reader, n: n, f: f}, 0
}

// willResize notes what a change of size takes away.
func (f *folder) willResize(d *disk, path string, size int64) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := os.Open(filepath.Join(d.below, path))
	if err != nil {
		return fs.ToErrno(err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return fs.ToErrno(err)
	}
	if size > st.Size() && f.full {
		f.refused++
		return syscall.ENOSPC
	}
	if err := f.since(path, st.Size()).save(file, size, st.Size()); err != nil {
		return fs.ToErrno(err)
	}
	return 0
}

// diskFile is an open file.
type diskFile struct {
	*fs.LoopbackFile
	file   *os.File
	reader *os.File // the same file; the handle may be for writing only
	n      *diskNode
	f      *folder
}

// PassthroughFd keeps the kernel from going around this file system.
func (h *diskFile) PassthroughFd() (int, bool) { return 0, false }

// Setattr implements fs.FileSetattrer.
func (h *diskFile) Setattr(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return h.n.Setattr(ctx, nil, in, out)
}

// Write implements fs.FileWriter.
func (h *diskFile) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	path, _ := h.n.where()
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	st, err := h.file.Stat()
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	end := off + int64(len(data))
	if h.f.full && end > st.Size() {
		h.f.refused++
		return 0, syscall.ENOSPC
	}
	if err := h.f.since(path, st.Size()).save(h.reader, off, end); err != nil {
		return 0, fs.ToErrno(err)
	}
	return h.LoopbackFile.Write(ctx, data, off)
}

// Allocate implements fs.FileAllocater.
func (h *diskFile) Allocate(ctx context.Context, off uint64, size uint64, mode uint32) syscall.Errno {
	path, _ := h.n.where()
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if h.f.full {
		h.f.refused++
		return syscall.ENOSPC
	}
	if mode&^unix.FALLOC_FL_KEEP_SIZE != 0 {
		return syscall.ENOTSUP // what takes content away is not remembered
	}
	st, err := h.file.Stat()
	if err != nil {
		return fs.ToErrno(err)
	}
	h.f.since(path, st.Size())
	return h.LoopbackFile.Allocate(ctx, off, size, mode)
}

// Fsync implements fs.FileFsyncer. What was written so far is durable; the disk
// below needn't hear of it, as this process outlives the peers.
func (h *diskFile) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	path, _ := h.n.where()
	h.f.mu.Lock()
	slow, failing := h.f.slow, h.f.failing
	h.f.mu.Unlock()
	if slow > 0 {
		<-time.After(slow)
	}
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if failing {
		h.f.refused++
		return syscall.EIO
	}
	delete(h.f.undo, path)
	return 0
}

// Release implements fs.FileReleaser.
func (h *diskFile) Release(ctx context.Context) syscall.Errno {
	errno := h.LoopbackFile.Release(ctx)
	h.reader.Close()
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.open--
	close(h.f.closed)
	h.f.closed = make(chan struct{})
	return errno
}
