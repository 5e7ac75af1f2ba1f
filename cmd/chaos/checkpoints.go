package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	xtlog "golang.org/x/mod/sumdb/tlog"

	"github.com/jointcloud/pcm/ledger/tlog"
)

// checkpoints are the heads of one cell's log that its peers signed during a run, as
// an auditor who asks all of them again and again has them.
type checkpoints struct {
	mu    sync.Mutex
	roots map[uint64][tlog.HashSize]byte // by size: as it was signed first
	first map[uint64]string              // by size: who signed it first
	count int                            // checkpoints that were signed
}

func newCheckpoints() *checkpoints {
	return &checkpoints{roots: map[uint64][tlog.HashSize]byte{}, first: map[uint64]string{}}
}

// take keeps a checkpoint. Its error is a problem: two were signed at one size.
func (cs *checkpoints) take(who string, c tlog.Checkpoint) error {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.count++
	root, ok := cs.roots[c.Size]
	switch {
	case !ok:
		cs.roots[c.Size], cs.first[c.Size] = c.Root, who
	case root != c.Root:
		return fmt.Errorf("%s and %s signed different heads of %d records", cs.first[c.Size], who, c.Size)
	}
	return nil
}

// auditEvery is how often each peer is asked for a checkpoint.
const auditEvery = 150 * time.Millisecond

// audit collects checkpoints until ctx ends.
func (c *clients) audit(ctx context.Context) {
	for ctx.Err() == nil {
		var wg sync.WaitGroup
		for _, p := range c.cell.running() {
			wg.Go(func() { c.auditOne(p) })
		}
		wg.Wait()
		wait(ctx, auditEvery)
	}
}

func (c *clients) auditOne(p *proc) {
	var note []byte
	if p.call("Checkpoint", true, &note, 2*auditEvery) != nil {
		return // it is down, or stopped
	}
	key := tlog.NewKey(c.cell.genesis.Cell, noteKey(p.config().Seed).Public())
	head, by, err := tlog.Open(note, []tlog.Key{key})
	switch {
	case err != nil:
		c.violated(isOneLog, "%s gave a checkpoint that can't be read: %v", p.name, err)
	case len(by) != 1:
		c.violated(isOneLog, "%s gave a checkpoint that it did not sign", p.name)
	default:
		if err := c.heads.take(p.name, head); err != nil {
			c.violated(isOneLog, "%v", err)
		}
	}
}

// check tells which checkpoints are not heads of the log of these records. If there are
// none, any two of them are consistent: the smaller one is of a part of the larger one's log.
func (cs *checkpoints) check(records [][]byte, found *problems) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var hashes hashes
	for i, r := range records {
		more, err := xtlog.StoredHashes(int64(i), r, hashes)
		if err != nil {
			found.add(isOneLog, "record %d: %v", i, err)
			return
		}
		hashes = append(hashes, more...)
	}
	for _, size := range sortedKeys(cs.roots) {
		if size > uint64(len(records)) {
			found.add(isOneLog, "%s signed a head of %d records, and there are %d", cs.first[size], size, len(records))
			continue
		}
		root := xtlog.Hash(tlog.EmptyRoot)
		if size > 0 {
			var err error
			if root, err = xtlog.TreeHash(int64(size), hashes); err != nil {
				found.add(isOneLog, "%d records have no root: %v", size, err)
				continue
			}
		}
		if root != xtlog.Hash(cs.roots[size]) {
			found.add(isOneLog, "%s signed a head of %d records that they don't have", cs.first[size], size)
		}
	}
}

// hashes are the stored hashes of a tree.
type hashes []xtlog.Hash

// ReadHashes implements tlog.HashReader.
func (h hashes) ReadHashes(indexes []int64) ([]xtlog.Hash, error) {
	out := make([]xtlog.Hash, len(indexes))
	for i, n := range indexes {
		if n < 0 || n >= int64(len(h)) {
			return nil, fmt.Errorf("hash %d of %d", n, len(h))
		}
		out[i] = h[n]
	}
	return out, nil
}
