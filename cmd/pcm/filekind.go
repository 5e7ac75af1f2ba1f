package main

import (
	"bytes"
	"io"
	"os"

	"github.com/jointcloud/pcm"
)

// fileKinds are the files that commands write, by how they begin, with what reads
// them: so that whoever takes one for another is told.
var fileKinds = []struct{ begins, what, reader string }{
	{"\x1f\x8b", "a backup of a peer", "pcm restore"},
	{"pcm cell snapshot file ", "a snapshot of a cell", "pcm cell snapshot inspect"},
	{"c2sp.org/tlog-proof", "a proof of records", "pcm ledger verify-proof"},
}

// openKind opens a file that must begin as what the reader reads, if it begins like
// any of them; what is none of them is for the reader to refuse.
func openKind(path, reader string) (*os.File, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	head := make([]byte, 32)
	n, _ := io.ReadFull(f, head)
	for _, k := range fileKinds {
		if k.reader != reader && bytes.HasPrefix(head[:n], []byte(k.begins)) {
			f.Close()
			return nil, pcm.Errorf(pcm.Invalid, "%s is %s: '%s %s' takes it", path, k.what, k.reader, path)
		}
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, pcm.Errorf(pcm.Invalid, "can't read %s: %w", path, err)
	}
	return f, nil
}
