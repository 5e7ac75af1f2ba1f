package consensus

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
)

// Files of a cell's folder.
const (
	fileIdentity = "cell.cbor" // which cell this is
	fileLog      = "raft.db"   // Raft's votes, and its log with StoreBolt (bbolt)
	dirSnapshots = "snapshots" // Raft's snapshots
	dirHistory   = "history"   // records (files), documents and tiles (Badger)
)

// identity keeps a folder from being opened as another cell's or another peer's.
type identity struct {
	Version int        `cbor:"1,keyasint"`
	Mesh    pcm.MeshID `cbor:"2,keyasint"`
	Cell    pcm.CellID `cbor:"3,keyasint"`
	Self    pcm.PeerID `cbor:"4,keyasint"`
}

// checkIdentity compares the folder's identity with the wanted one, or writes it.
func checkIdentity(dir string, want identity) error {
	path := filepath.Join(dir, fileIdentity)
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeFile(path, pcm.MustMarshal(want))
	case err != nil:
		return pcm.Errorf(pcm.Internal, "can't read %s: %w", path, err)
	}
	var have identity
	if err := pcm.Unmarshal(data, &have); err != nil {
		return pcm.Errorf(pcm.Internal, "%s is damaged (%v): restore it from a backup, or move %s away and join the cell anew", path, err, dir)
	}
	if have != want {
		return pcm.Errorf(pcm.Conflict, "%s belongs to %s of %s (peer %s), not to %s of %s (peer %s): use another data folder",
			dir, have.Cell, have.Mesh, pcm.Short(have.Self), want.Cell, want.Mesh, pcm.Short(want.Self))
	}
	return nil
}

// writeFile writes a small file so that a crash leaves the old one or the new one.
func writeFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", path, err)
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", path, err)
	}
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}

const boltAdvice = "restore the folder from a backup; or, if other voters of the cell are alive, move the whole folder away, start again and have the cell take this peer in anew"

// openLog opens Raft's log. A damaged file is an error that names it, never a
// panic or a fault. The file's lock keeps a second process out.
func openLog(path string) (store *raftboltdb.BoltStore, err error) {
	if err := checkUnused(path); err != nil { // who writes to it makes it look damaged
		return nil, err
	}
	if err := checkBolt(path); err != nil {
		return nil, err
	}
	var file *os.File
	defer guard(func(cause any) {
		if file != nil {
			file.Close() // frees the lock
		}
		store, err = nil, pcm.Errorf(pcm.Internal, "%s is damaged (%v): %s", path, cause, boltAdvice)
	})()
	store, err = raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			Timeout:         500 * time.Millisecond,
			NoFreelistSync:  true, // rebuilt at open
			FreelistType:    bbolt.FreelistMapType,
			InitialMmapSize: 32 << 20,
			OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
				f, err := os.OpenFile(name, flag, perm)
				file = f
				return f, err
			},
		},
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, inUse(path)
	case err != nil:
		return nil, pcm.Errorf(pcm.Internal, "can't open %s: %w: %s", path, err, boltAdvice)
	}
	return store, nil
}

func inUse(path string) error {
	return pcm.Errorf(pcm.Conflict, "%s is in use: another node runs on this data folder; stop it first or use another folder", path)
}

// checkUnused tells whether another process holds bbolt's lock on the file.
func checkUnused(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't open %s: %w", path, err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return inUse(path)
	}
	return nil // where locks don't work, bbolt says so
}

// guard turns a panic, or a fault on a mapped file that is too short, into a
// call of report. Use: defer guard(report)().
func guard(report func(cause any)) func() {
	old := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(old)
		if cause := recover(); cause != nil {
			report(cause)
		}
	}
}
