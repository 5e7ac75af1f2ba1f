package consensus

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/dgraph-io/badger/v4"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/records"
)

// View runs f while no entry is applied, so that f may read the Machine. Many
// views run beside each other. f must be quick, must not wait for an entry to
// be applied, and must not call View.
func (c *Cell) View(f func()) {
	c.fsm.mu.RLock()
	defer c.fsm.mu.RUnlock()
	f()
}

// WaitApplied waits until the entry with a Raft index was applied here. When
// ctx ends before, the error has code Unavailable.
func (c *Cell) WaitApplied(ctx context.Context, index uint64) error {
	for {
		applied, more := c.fsm.progress()
		if applied >= index {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return pcm.Errorf(pcm.Unavailable, "this peer has applied entry %d of %s and waits for %d: %w", applied, pcm.Short(c.cfg.Cell), index, ctx.Err())
		case <-c.failed:
			return c.Err()
		case <-c.ctx.Done():
			return errClosing
		}
	}
}

// Applied is the Raft index of the last entry that was applied here.
func (c *Cell) Applied() uint64 {
	n, _ := c.fsm.progress()
	return n
}

// RecordCount is the number of records of the cell, as applied here.
func (c *Cell) RecordCount() uint64 {
	c.archive.settle() // on an error the count is that of before
	return c.archive.current().Count
}

// History tells whether all records are here; if not, which are still being
// fetched from other peers.
func (c *Cell) History() (complete bool, from, to uint64) {
	if g := c.archive.current().Gap; g != nil {
		return false, g.Next, g.To
	}
	return !c.fsm.restoring.Load(), 0, 0
}

// Record is the n-th record, encoded. Errors: NotFound if there is none yet,
// Unavailable while it is being fetched, and when it was removed here.
func (c *Cell) Record(n uint64) ([]byte, error) {
	var out []byte
	err := c.Records(n, n+1, func(_ uint64, r []byte) error {
		out = r
		return nil
	})
	if err == nil && out == nil {
		err = pcm.Errorf(pcm.NotFound, "%s has no record %d: it has %d", pcm.Short(c.cfg.Cell), n, c.RecordCount())
	}
	return out, err
}

// Records calls f with the records in [from, to), or as far as there are any,
// in order. f owns the bytes; its error ends the walk and is returned. Of those that
// were removed here, see [Cell.Pruned], none can be had: Unavailable.
func (c *Cell) Records(from, to uint64, f func(n uint64, record []byte) error) error {
	if err := c.archive.settle(); err != nil {
		return err
	}
	state := c.archive.current()
	to = min(to, state.Count)
	if from < min(to, state.Pruned) {
		return c.removed(state)
	}
	if g := state.Gap; g != nil && from < g.To && to > g.From {
		return pcm.Errorf(pcm.Unavailable, "records %d to %d of %s are being fetched from other peers: retry later or ask another peer", g.From, g.To, pcm.Short(c.cfg.Cell))
	}
	return c.archive.records(from, to, f)
}

// historyAdvice is what to do about a history that is damaged.
const historyAdvice = "move that folder away and start again; it is then fetched from the cell's other peers (a cell of one peer: restore it from a backup)"

func (a *archive) records(from, to uint64, f func(n uint64, record []byte) error) error {
	var own error
	err := a.files.Read(from, to, func(n uint64, r []byte) error {
		own = f(n, r)
		return own
	})
	var missing *records.MissingError
	switch {
	case err == nil || own != nil:
		return own
	case errors.Is(err, records.ErrClosed):
		return errClosing
	case errors.As(err, &missing):
		return pcm.Errorf(pcm.Internal, "record %d is missing in %s: %s", missing.Number, a.dir, historyAdvice)
	}
	return pcm.Errorf(pcm.Internal, "the records in %s can't be read (%w): %s", a.dir, err, historyAdvice)
}

// Document is a stored document, e.g. of a finished job. Error: NotFound.
func (c *Cell) Document(key string) ([]byte, error) {
	if err := c.archive.settle(); err != nil {
		return nil, err
	}
	var out []byte
	err := c.archive.store.view(func(txn *badger.Txn) error {
		item, err := txn.Get(documentKey(key))
		if err != nil {
			return err
		}
		out, err = item.ValueCopy(nil)
		return err
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, pcm.Errorf(pcm.NotFound, "%s has no document %q", pcm.Short(c.cfg.Cell), key)
	case err != nil || len(out) < 8:
		return nil, pcm.Errorf(pcm.Internal, "document %q in %s can't be read: %v", key, c.archive.dir, err)
	}
	return out[8:], nil
}

// DocumentQuery selects documents by key.
type DocumentQuery struct {
	Prefix  string // of the key, e.g. "job/"
	After   string // the last key of the page before; "": from the beginning
	Reverse bool   // from the greatest key down
	Limit   int    // 1 to 1000; 0: 100
}

// Documents is a page of documents in the order of their keys. next is the
// After of the following page; "" if there is none.
func (c *Cell) Documents(q DocumentQuery) (page []pcm.Document, next string, err error) {
	if q.Limit == 0 {
		q.Limit = 100
	}
	if q.Limit < 0 || q.Limit > 1000 {
		return nil, "", pcm.Errorf(pcm.Invalid, "limit is %d: 1 to 1000", q.Limit)
	}
	if err := c.archive.settle(); err != nil {
		return nil, "", err
	}
	stored, more, err := c.archive.documents(q, maxFrame)
	if err != nil {
		return nil, "", err
	}
	for _, d := range stored {
		page = append(page, pcm.Document{Key: d.Key, Value: d.Value})
	}
	if more {
		next = page[len(page)-1].Key
	}
	return page, next, nil
}

// documents reads a page of at most q.Limit documents, and of about maxBytes if
// that is less, but always one.
func (a *archive) documents(q DocumentQuery, maxBytes int) (page []storedDocument, more bool, err error) {
	prefix := documentKey(q.Prefix)
	err = a.store.view(func(txn *badger.Txn) error {
		opt := badger.DefaultIteratorOptions
		opt.Reverse = q.Reverse
		opt.PrefetchSize = min(q.Limit, 64)
		it := txn.NewIterator(opt)
		defer it.Close()
		start := prefix
		switch {
		case q.After != "":
			start = documentKey(q.After)
		case q.Reverse:
			start = append(append([]byte{}, prefix...), 0xff)
		}
		size := 0
		for it.Seek(start); it.ValidForPrefix(prefix); it.Next() {
			item := it.Item()
			key := string(item.Key()[2:])
			if key == q.After {
				continue
			}
			if len(page) == q.Limit || size > 0 && size+int(item.ValueSize()) > maxBytes {
				more = true
				return nil
			}
			v, err := item.ValueCopy(nil)
			if err != nil || len(v) < 8 {
				return pcm.Errorf(pcm.Internal, "document %q in %s can't be read: %v", key, a.dir, err)
			}
			size += len(v) + len(key)
			page = append(page, storedDocument{Key: key, Index: binary.BigEndian.Uint64(v), Value: v[8:]})
		}
		return nil
	})
	return page, more, err
}
