package node

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// LedgerArchive is a folder with the records that peers of a cell have removed: full
// bundles of entries, as https://c2sp.org/tlog-tiles has them, below the cell's ID. They
// never change, so that any web server can serve them, and several peers may write
// to one folder.
type LedgerArchive struct {
	dir string // of the cell
}

// NewLedgerArchive is the archive of a cell in a folder, which may be that of the
// cell itself. Nothing has to be there.
func NewLedgerArchive(dir string, cell pcm.CellID) LedgerArchive {
	if info, err := os.Stat(filepath.Join(dir, "tile", "entries")); err == nil && info.IsDir() {
		return LedgerArchive{dir}
	}
	return LedgerArchive{filepath.Join(dir, string(cell))}
}

func (a LedgerArchive) path(n uint64) string {
	return filepath.Join(a.dir, filepath.FromSlash(tlog.Tile{Entries: true, Index: n, Width: tlog.Width}.Path()))
}

// Bundle reads a full bundle. Nothing of it has been checked. Errors: NotFound.
func (a LedgerArchive) Bundle(n uint64) ([]byte, error) {
	f, err := os.Open(a.path(n))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, pcm.Errorf(pcm.NotFound, "records %d to %d are not in the archive %s", n*tlog.Width, (n+1)*tlog.Width-1, a.dir)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "the archive can't be read: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > tlog.MaxBundle) {
		return nil, pcm.Errorf(pcm.Invalid, "%s is no bundle of entries", f.Name())
	}
	var data []byte
	if err == nil {
		data = make([]byte, info.Size())
		_, err = f.ReadAt(data, 0)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "the archive can't be read: %w", err)
	}
	return data, nil
}

// write makes bundles durable, the first of which has a number. One that is there as it
// should be is left alone.
func (a LedgerArchive) write(first uint64, bundles [][][]byte) error {
	fresh := map[string]bool{} // folders whose entries changed
	for i, records := range bundles {
		var bundle []byte
		for _, r := range records {
			var err error
			if bundle, err = tlog.AppendEntry(bundle, r); err != nil {
				return err
			}
		}
		n := first + uint64(i)
		if have, err := a.Bundle(n); err == nil && bytes.Equal(have, bundle) {
			fresh[filepath.Dir(a.path(n))] = true // perhaps the crash came before its name was durable
			continue
		}
		if err := a.makeDir(filepath.Dir(a.path(n))); err != nil {
			return pcm.Errorf(pcm.Internal, "can't make %s: %w", filepath.Dir(a.path(n)), err)
		}
		if err := writeFileAs(a.path(n), bundle, 0o644); err != nil {
			return err
		}
	}
	for dir := range fresh {
		if err := syncDir(dir); err != nil {
			return pcm.Errorf(pcm.Internal, "can't write to %s: %w", dir, err)
		}
	}
	return nil
}

// makeDir makes a folder that anybody may read, as the log is public, and those above it, each durable.
func (a LedgerArchive) makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := a.makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(dir))
}
