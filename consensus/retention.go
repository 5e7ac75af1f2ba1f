package consensus

import (
	"context"
	"errors"

	"github.com/dgraph-io/badger/v4"

	"github.com/jointcloud/pcm"
)

// Bounds of what is removed together.
const (
	pruneBatch  = 64      // bundles of 256 records
	exportBytes = 8 << 20 // that are exported together, more or less
)

// Export stores bundles of 256 records each, the first of which has a number,
// elsewhere. When it returns nil they are durable there. It is called again with
// the same ones after a crash.
type Export func(first uint64, bundles [][][]byte) error

// Prune removes the content of the records below size, rounded down to whole
// tiles, after export has stored it: their hashes stay, so that all proofs can be
// made as before. There must be a base at size or after it, from which what is left
// can be verified. It tells how many were removed. A crash leaves records that are
// exported, and perhaps removed in part; the next call goes on there.
func (c *Cell) Prune(ctx context.Context, size uint64, export Export) (removed uint64, err error) {
	if !c.enter() {
		return 0, errClosing
	}
	defer c.wg.Done()
	c.pruning.Lock()
	defer c.pruning.Unlock()
	a := c.archive
	if err := a.settle(); err != nil {
		return 0, err
	}
	state := a.current()
	to := max(size/tileWidth*tileWidth, state.Pruned)
	switch n := len(state.Bases); {
	case state.Gap != nil:
		return 0, pcm.Errorf(pcm.Unavailable, "the history of this peer is not complete yet: nothing is removed")
	case to > state.Pruned && (n == 0 || state.Bases[n-1].Size < to):
		return 0, pcm.Errorf(pcm.Invalid, "there is no base from which records could be verified without the first %d", to)
	case to > state.Tiled:
		c.storeAllTiles()
		if to = min(to, max(a.current().Tiled, state.Pruned)); ctx.Err() != nil {
			return 0, pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
		}
	}
	for at, end := state.Erased, max(to, min(state.Left, state.Pruned)); at < end; {
		if err := ctx.Err(); err != nil {
			return removed, pcm.Errorf(pcm.Unavailable, "interrupted: %w", err)
		}
		next := min(at+pruneBatch*tileWidth, end)
		if err := a.exportBundles(ctx, at, next, state.Pruned, export); err != nil {
			return removed, err
		}
		// First nobody may read them any more, then they go.
		if err := a.do(&archiveOp{pruned: next, sync: true}); err != nil {
			return removed, err
		}
		if err := a.do(&archiveOp{erased: next}); err != nil {
			return removed, err
		}
		removed += next - at
		at = max(next, a.current().Erased)
	}
	return removed, nil
}

// exportBundles exports the bundles in [from, to). Those below gone may be what is
// left of a history that was cut off: they are exported only if they are whole.
func (a *archive) exportBundles(ctx context.Context, from, to, gone uint64, export Export) error {
	first, size := from/tileWidth, 0
	var bundles [][][]byte
	flush := func() error {
		if len(bundles) == 0 {
			return nil
		}
		err := export(first, bundles)
		first, bundles, size = first+uint64(len(bundles)), nil, 0
		return err
	}
	for n := from; n < to; n += tileWidth {
		bundle, err := a.bundle(ctx, n/tileWidth)
		if err != nil && n >= gone {
			return err
		}
		if err != nil {
			if err := flush(); err != nil {
				return err
			}
			first = n/tileWidth + 1
			continue
		}
		bundles = append(bundles, bundle)
		for _, r := range bundle {
			size += len(r)
		}
		if size >= exportBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// bundle reads the records of a full tile and holds them against it.
func (a *archive) bundle(ctx context.Context, n uint64) (bundle [][]byte, err error) {
	err = a.compare(ctx, n, 0, func(i uint64, r []byte, same bool) error {
		if !same {
			return pcm.Errorf(pcm.Internal, "record %d in %s is damaged: %s", i, a.dir, historyAdvice)
		}
		bundle = append(bundle, r)
		return nil
	})
	return bundle, err
}

// writePruned is the writer's part: the records below are no longer to be read, and
// the bases below no longer wanted.
func (a *archive) writePruned(wb *badger.WriteBatch, state *archiveState, to uint64) error {
	if to <= state.Pruned {
		return nil
	}
	if state.Gap != nil || to > state.Tiled {
		return errors.New("records were to be removed whose hashes are not here") // Prune saw to that
	}
	state.Pruned, state.Left = to, max(to, state.Left)
	return a.dropBases(wb, state, func(b Base) bool { return b.Size < to })
}

// erase drops the records below to, as far as they are no longer to be read, which is
// durable already.
func (a *archive) erase(state *archiveState, to uint64) error {
	to = min(to, state.Pruned)
	if to <= state.Erased {
		return nil
	}
	if err := a.files.Erase(to); err != nil {
		return err
	}
	state.Erased = to
	state.skipHole()
	return nil
}

// skipHole goes past records that never were here, only their hashes.
func (s *archiveState) skipHole() {
	if s.Erased >= s.Left && s.Left < s.Pruned {
		s.Erased, s.Left = s.Pruned, s.Pruned
	}
}

// removed says that records can't be had here.
func (c *Cell) removed(state archiveState) error {
	return pcm.Errorf(pcm.Unavailable, "the first %d records of %s were removed here after their time (pcm cell get keep): they are in the archives of its peers", state.Pruned, pcm.Short(c.cfg.Cell))
}
