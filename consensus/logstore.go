package consensus

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/wal"
)

// Stores of Raft's log.
const (
	StoreWAL  = "wal"  // files that are only appended to
	StoreBolt = "bolt" // bbolt, which holds Raft's votes in any case
)

const dirLog = "log" // Raft's log, but for StoreBolt

// keyStore is where bbolt keeps that the log is elsewhere, so that its loss shows.
var keyStore = []byte("pcm/log")

// openStore opens Raft's log: a wal, to which what bbolt has of it is moved, or bbolt
// itself. The votes stay in bbolt, which is open, and whose lock guards the folder.
func (c *Cell) openStore() error {
	dir := filepath.Join(c.cfg.Dir, dirLog)
	mark, err := c.bolt.Get(keyStore)
	if err != nil && !errors.Is(err, raftboltdb.ErrKeyNotFound) {
		return err
	}
	begun := string(mark) == StoreWAL
	switch has := wal.Exists(dir); {
	case c.cfg.LogStore == StoreBolt && (begun || has):
		return pcm.Errorf(pcm.Conflict, "Raft's log is in %s, not in bbolt: leave the store of the log as it is, or begin with an empty folder", dir)
	case c.cfg.LogStore == StoreBolt:
		c.logs = c.bolt
		return nil
	case begun && !has:
		return pcm.Errorf(pcm.Internal, "Raft's log was in %s, which was lost or replaced; %s", dir, boltAdvice)
	case !begun:
		if err := c.moveLog(dir); err != nil {
			return err
		}
	}
	w, err := wal.Open(dir)
	if err != nil {
		return storeError(dir, err)
	}
	c.logs, c.wal = w, w
	return nil
}

// votesLost says that entries up to last are there, and none of the votes of this peer.
func (c *Cell) votesLost(where string, last uint64) error {
	return pcm.Errorf(pcm.Internal, "%s holds entries up to %d, but %s knows no vote: a part of the folder was lost or replaced; %s", where, last, filepath.Join(c.cfg.Dir, fileLog), boltAdvice)
}

func storeError(dir string, err error) error {
	var damaged *wal.DamagedError
	if errors.As(err, &damaged) {
		return pcm.Errorf(pcm.Internal, "%w: %s", damaged, boltAdvice)
	}
	return pcm.Errorf(pcm.Internal, "can't open Raft's log in %s: %w", dir, err)
}

// moveLog copies the entries that bbolt has to a new wal. Only when all are there
// does bbolt say so, in one transaction; then it drops its own. A release that
// knows no wal then finds that its log is gone, and stops.
func (c *Cell) moveLog(dir string) error {
	first, err := c.bolt.FirstIndex()
	if err != nil {
		return err
	}
	last, err := c.bolt.LastIndex()
	if err != nil {
		return err
	}
	if last > 0 { // what is in dir is of a move that was interrupted
		if err := os.RemoveAll(dir); err != nil {
			return pcm.Errorf(pcm.Internal, "can't remove %s: %w", dir, err)
		}
	}
	w, err := wal.Open(dir)
	if err != nil {
		return storeError(dir, err)
	}
	defer w.Close()
	if have, err := w.LastIndex(); err != nil || have > 0 {
		return errors.Join(err, c.votesLost(dir, have))
	}
	const portion = 64
	for from := first; last > 0 && from <= last; from += portion {
		var logs []*raft.Log
		for i := from; i < from+portion && i <= last; i++ {
			var l raft.Log
			if err := c.bolt.GetLog(i, &l); err != nil {
				return pcm.Errorf(pcm.Internal, "entry %d in %s can't be read: %w: %s", i, filepath.Join(c.cfg.Dir, fileLog), err, boltAdvice)
			}
			logs = append(logs, &l)
		}
		if err := w.StoreLogs(logs); err != nil {
			return pcm.Errorf(pcm.Internal, "can't move Raft's log to %s: %w", dir, err)
		}
	}
	if err := c.bolt.Set(keyStore, []byte(StoreWAL)); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write %s: %w", filepath.Join(c.cfg.Dir, fileLog), err)
	}
	if last > 0 {
		c.log.Info("Raft's log was moved out of bbolt", "cell", c.cfg.Cell, "to", dir, "entries", last-first+1)
		if err := c.bolt.DeleteRange(first, last); err != nil {
			return pcm.Errorf(pcm.Internal, "can't write %s: %w", filepath.Join(c.cfg.Dir, fileLog), err)
		}
	}
	return nil
}

// stored takes note of how a write to Raft's log ended. A disk that is full may have
// room again, and Raft tries again. After any other failure nobody knows what is on
// the disk, and this peer's part in the cell ends: it must not acknowledge more.
func (c *Cell) stored(err error) {
	if err == nil || c.ctx.Err() != nil {
		return
	}
	full := errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
	if full && (c.wal == nil || c.wal.Err() == nil) { // where space can't be reserved ahead, the wal is broken by it
		return
	}
	c.fail(pcm.Errorf(pcm.Internal, "Raft's log in %s can't be written: %w: this peer has left its part in %s so as to acknowledge nothing that it might lose; look at the disk, then start it again", c.cfg.Dir, err, c.cfg.Cell))
}
