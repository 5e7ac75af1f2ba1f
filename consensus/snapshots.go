package consensus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/frames"
)

// Raft counts entries, but what a restart costs are the commands in them, to be
// applied again, and the bytes of the log, to be read. So snapshots are taken by
// those as well. To encode the state costs as much as it has, so a larger one is
// encoded less often: in all, a small part of what it costs to apply.
const (
	snapshotCommands = 40_000    // since the last one, and one more for each snapshotShare bytes that it had
	snapshotShare    = 64        //
	snapshotBytes    = 64 << 20  // of the log, since the last one
	trailingBytes    = 64 << 20  // of the log that is kept behind a snapshot, for followers that lag
	trailingLeast    = 64        // entries
	trailingMost     = 10240     //
	behindBytes      = 256 << 20 // the same, for one that lags and answers: where the log is cut while it takes a snapshot over, it needs the next one, again and again
	closingCommands  = 1_000     // an orderly end is worth a snapshot
	closingTime      = 5 * time.Second
)

// backlog is what was applied since the last snapshot.
type backlog struct {
	entries, commands, bytes atomic.Int64
	size                     atomic.Int64  // of the last snapshot's state
	due                      chan struct{} // has room for one
}

func newBacklog() *backlog { return &backlog{due: make(chan struct{}, 1)} }

// applied counts an entry.
func (b *backlog) applied(e pcm.Entry, bytes int) {
	b.entries.Add(1)
	n := b.commands.Add(int64(len(e.Commands)))
	if b.bytes.Add(int64(bytes)) < snapshotBytes && n < snapshotCommands+b.size.Load()/snapshotShare {
		return
	}
	select {
	case b.due <- struct{}{}:
	default:
	}
}

// taken begins anew with a snapshot of a state of some size.
func (b *backlog) taken(size int) {
	b.entries.Store(0)
	b.commands.Store(0)
	b.bytes.Store(0)
	b.size.Store(int64(size))
}

// trailing is how many entries are to be kept behind a snapshot.
func (b *backlog) trailing() uint64 {
	return min(max(b.within(trailingBytes), trailingLeast), trailingMost)
}

// within is how many entries, as they are lately, have that many bytes.
func (b *backlog) within(bytes int64) uint64 {
	n, have := b.entries.Load(), b.bytes.Load()
	if n == 0 {
		return trailingMost
	}
	return uint64(bytes / max(have/n, 1))
}

// keepSnapshots takes snapshots when they are due.
func (c *Cell) keepSnapshots() {
	for {
		select {
		case <-c.fsm.backlog.due:
			if err := c.snapshot(); err != nil && c.ctx.Err() == nil {
				c.log.Warn("no snapshot was taken; one is tried again later", "cell", c.cfg.Cell, "error", err)
			}
		case <-c.ctx.Done():
			return
		}
	}
}

// snapshot has Raft take one, and cut the log behind it.
func (c *Cell) snapshot() error {
	n := c.trailing
	if n == 0 {
		n = c.fsm.backlog.trailing()
	}
	n = max(n, min(c.members.behind(), c.fsm.backlog.within(behindBytes)))
	if err := c.reload(func(rc *raft.ReloadableConfig) { rc.TrailingLogs = n }); err != nil {
		return err
	}
	if err := c.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return err
	}
	return nil
}

// snapshotAtEnd saves the next start from applying much again. It is no error that
// there is none.
func (c *Cell) snapshotAtEnd(ctx context.Context) {
	if c.fsm.backlog.commands.Load() < closingCommands {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closingTime)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.snapshot() }() // ends with Raft at the latest
	select {
	case err := <-done:
		if err != nil {
			c.log.Debug("no snapshot was taken at the end", "cell", c.cfg.Cell, "error", err)
		}
	case <-ctx.Done():
	}
}

// Files of a snapshot: what Raft says of it, and a checksum of that.
const (
	fileMeta = "meta.json"
	fileSum  = "meta.sum"
)

// summedSnapshots adds to each snapshot a checksum of what Raft says of it. Raft has one
// of the state alone, and would believe another index: the entries up to there would
// never be applied, and this peer would answer with values of long ago.
type summedSnapshots struct {
	raft.SnapshotStore
	dir string
}

func newSnapshots(dir string, keep int, log *raftLogger) (raft.SnapshotStore, error) {
	store, err := raft.NewFileSnapshotStoreWithLogger(dir, keep, log.hclog())
	if err != nil {
		return nil, err
	}
	s := &summedSnapshots{store, filepath.Join(dir, dirSnapshots)}
	return s, s.check()
}

// check holds what Raft says of each snapshot against its checksum. Those without one, of
// an older release or of before a crash, get it now. One that Raft was removing goes.
func (s *summedSnapshots) check() error {
	list, err := frames.Glob(s.dir, "*-*-*")
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(dir string) bool { return strings.HasSuffix(dir, ".tmp") }) // Raft takes those for none
	newest := uint64(0)
	for _, dir := range list {
		if _, err := os.Stat(filepath.Join(dir, fileMeta)); err == nil {
			newest = max(newest, snapshotIndex(dir))
		}
	}
	for _, dir := range list {
		meta, sum := filepath.Join(dir, fileMeta), filepath.Join(dir, fileSum)
		want, wantErr := os.ReadFile(sum)
		have, err := sumOf(meta)
		switch {
		case errors.Is(err, fs.ErrNotExist) && snapshotIndex(dir) < newest: // Raft keeps the newest
			err = os.RemoveAll(dir)
		case errors.Is(err, fs.ErrNotExist) && errors.Is(wantErr, fs.ErrNotExist):
			err = nil // no snapshot, as Raft sees it
		case errors.Is(err, fs.ErrNotExist):
			err = frames.Damaged(meta, "the file is gone")
		case err != nil:
		case errors.Is(wantErr, fs.ErrNotExist):
			err = writeFile(sum, have)
		case wantErr != nil:
			err = wantErr
		case string(want) != string(have):
			err = frames.Damaged(meta, "its checksum is not that of its content")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// snapshotIndex is the index that the name of a snapshot's folder tells: term, index and time.
func snapshotIndex(dir string) uint64 {
	var term, index, at uint64
	fmt.Sscanf(filepath.Base(dir), "%d-%d-%d", &term, &index, &at)
	return index
}

func sumOf(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	return binary.LittleEndian.AppendUint32(nil, frames.Checksum(data)), err
}

// Create implements raft.SnapshotStore.
func (s *summedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, servers raft.Configuration, at uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, servers, at, trans)
	if err != nil {
		return nil, err
	}
	return &summedSink{sink, s.dir}, nil
}

type summedSink struct {
	raft.SnapshotSink
	dir string
}

// Close implements io.Closer: the snapshot is whole. If a crash comes now it gets its checksum at the next start.
func (k *summedSink) Close() error {
	if err := k.SnapshotSink.Close(); err != nil {
		return err
	}
	dir := filepath.Join(k.dir, k.ID())
	sum, err := sumOf(filepath.Join(dir, fileMeta))
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, fileSum), sum)
}
