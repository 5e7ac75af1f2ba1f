package node

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// The files of the data folder that make the ledger a public log.
const (
	noteKeyFile    = "note.key"    // hex seed of the key that signs checkpoints
	checkpointsDir = "checkpoints" // what was signed, and what was seen
	signedFile     = "signed"      // the last checkpoint that this peer signed
	seenFile       = "seen"        // the greatest one that it saw
)

// Timing of checkpoints.
const (
	checkpointAge  = time.Second      // a served checkpoint is not older, as long as the log grows
	checkpointWait = 4 * time.Second  // for all that a checkpoint takes
	voterWait      = 2 * time.Second  // for one voter's signature
	exchangeEvery  = 30 * time.Second // how often checkpoints are compared that nobody asks for
	keysEvery      = 5 * time.Second  // how often it is looked who should sign
	keysRetry      = time.Second      // the same, as long as this peer is not among those
)

// transparency makes the cell's ledger a public log: it signs checkpoints as a
// voter, gathers the signatures of the others, and watches for a second history.
type transparency struct {
	n      *Node
	log    *slog.Logger
	dir    string
	alarms *alarms

	signing sync.Mutex // held while a checkpoint is judged and signed
	signer  tlog.Signer
	proven  bool // since the start: consistent with what a quorum signed last

	mu     sync.Mutex
	signed []byte // the last checkpoint that was signed, as in the file; nil: that is not known

	gather   chan struct{} // holds one element while somebody gathers
	latestMu sync.Mutex
	latest   []byte // the checkpoint that is served
	latestAt time.Time
	seen     []byte // the greatest checkpoint that was seen
}

// openTransparency reads what this peer has signed and seen. A peer that signs
// for the first time notes that it has signed nothing, before its key is known
// to anybody: whose note is missing later has lost its memory.
func openTransparency(n *Node) (*transparency, error) {
	t := &transparency{n: n, log: n.log.With("part", "transparency"), dir: filepath.Join(n.cfg.Dir, checkpointsDir), gather: make(chan struct{}, 1)}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't make %s: %w", t.dir, err)
	}
	_, err := os.Stat(filepath.Join(n.cfg.Dir, noteKeyFile))
	fresh := os.IsNotExist(err)
	key, err := loadKey(filepath.Join(n.cfg.Dir, noteKeyFile))
	if err != nil {
		return nil, err
	}
	t.signer = tlog.NewSigner(n.id.Mesh.Cell, key)
	if fresh {
		if err := t.remember(t.nothing()); err != nil {
			return nil, err
		}
	}
	if t.signed, err = t.load(signedFile); err != nil {
		return nil, err
	}
	if t.seen, err = t.load(seenFile); err != nil {
		return nil, err
	}
	t.alarms, err = openAlarms(filepath.Join(n.cfg.Dir, evidenceDir))
	return t, err
}

// load reads a checkpoint that this peer wrote; nil if there is none.
func (t *transparency) load(name string) ([]byte, error) {
	path := filepath.Join(t.dir, name)
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't read %s: %w", path, err)
	}
	c, err := tlog.ParseCheckpoint(data)
	switch {
	case err != nil:
		return nil, pcm.Errorf(pcm.Internal, "%s is damaged (%v): remove it; this peer then signs again when the others have shown what they signed", path, err)
	case c.Origin != pcm.LogOrigin(t.n.id.Mesh.Cell):
		return nil, nil // of a cell that this peer was in before
	}
	return data, nil
}

// nothing is the checkpoint of no records, signed.
func (t *transparency) nothing() []byte {
	return t.signer.Sign(tlog.Checkpoint{Origin: t.origin(), Root: tlog.EmptyRoot})
}

func (t *transparency) origin() string { return pcm.LogOrigin(t.n.id.Mesh.Cell) }

// remember notes durably what is signed now.
func (t *transparency) remember(note []byte) error {
	if err := writeFile(filepath.Join(t.dir, signedFile), note); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.signed = note
	return nil
}

// lastSigned is what was signed last; nil if that is not known.
func (t *transparency) lastSigned() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.signed
}

// tree is the log as this peer holds it now.
func (t *transparency) tree() *tlog.Tree {
	c := tlog.Checkpoint{Origin: t.origin()}
	c.Size, c.Root = t.n.cell.Head()
	return tlog.NewTree(c, t.read)
}

// treeOf is tree, with at least size records: it waits for them a moment.
func (t *transparency) treeOf(ctx context.Context, size uint64) (*tlog.Tree, error) {
	ctx, cancel := context.WithTimeout(ctx, voterWait/2)
	defer cancel()
	for {
		tree := t.tree()
		if tree.Head().Size >= size {
			return tree, nil
		}
		if err := t.n.cell.WaitApplied(ctx, t.n.cell.Applied()+1); err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "this peer has %d records of %s, not yet %d: try again in a moment", tree.Head().Size, pcm.Short(t.n.id.Mesh.Cell), size)
		}
	}
}

// read serves tiles and bundles of this peer's own records.
func (t *transparency) read(ctx context.Context, at tlog.Tile) ([]byte, error) {
	if !at.Entries {
		return t.n.cell.Tile(ctx, at.Level, at.Index, at.Width)
	}
	var bundle []byte
	from := at.Index * tlog.Width
	err := t.n.recordsOf(ctx, from, from+uint64(at.Width), func(_ uint64, leaf []byte) (err error) {
		if ctx.Err() != nil {
			return pcm.Errorf(pcm.Unavailable, "interrupted: %w", ctx.Err())
		}
		bundle, err = tlog.AppendEntry(bundle, leaf)
		return err
	})
	return bundle, err
}

// keys are the keys of the peers that sign, and whose they are.
func (t *transparency) keys() (keys []tlog.Key, of []pcm.PeerID) {
	t.n.cell.View(func() {
		for _, k := range t.n.state.NoteKeys() {
			keys, of = append(keys, tlog.NewKey(t.n.id.Mesh.Cell, k.Key)), append(of, k.Peer)
		}
	})
	return keys, of
}

// bound tells whether the cell knows the key of this peer. The caller holds t.signing.
func (t *transparency) bound() (ours bool) {
	t.n.cell.View(func() {
		m, ok := t.n.state.Member(t.n.self)
		ours = ok && bytes.Equal(m.NoteKey, t.signer.Key.Public)
	})
	return ours
}

// ownBound is bound for whoever does not hold t.signing, with the key.
func (t *transparency) ownBound() (ours bool, key []byte) {
	t.signing.Lock()
	defer t.signing.Unlock()
	return t.bound(), t.signer.Key.Public
}

// run binds keys to voters, and compares checkpoints now and then.
func (t *transparency) run(ctx context.Context) error {
	select {
	case <-t.n.member:
	case <-ctx.Done():
		return nil
	}
	var compared time.Time
	gone := map[pcm.PeerID]int{}
	for {
		wait := keysEvery
		if err := t.bindKeys(ctx, gone); err != nil && ctx.Err() == nil {
			t.log.Debug("can't bind note keys yet", "error", err)
			wait = keysRetry
		}
		if time.Since(compared) >= exchangeEvery {
			compared = time.Now()
			if err := t.compare(ctx); err != nil && ctx.Err() == nil {
				t.log.Debug("no checkpoint could be had", "error", err)
			}
		}
		if ours, _ := t.ownBound(); !ours {
			wait = keysRetry
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// goneRounds is for how many rounds a peer has not voted when its key is taken back.
const goneRounds = 3

// bindKeys has the cell know the key of this peer if it votes. A leader takes
// back the keys of peers that vote no more; gone counts for how long they don't.
func (t *transparency) bindKeys(ctx context.Context, gone map[pcm.PeerID]int) error {
	voters := t.n.cell.Voters()
	try, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ours, key := t.ownBound()
	if votes := slices.Contains(voters, t.n.self); votes && !ours {
		_, err := t.n.must(try, pcm.Op{NoteKey: &pcm.NoteKey{Peer: t.n.self, Key: key}})
		return err
	}
	if t.n.cell.Status().Leader != t.n.self || !ours {
		clear(gone)
		return nil
	}
	_, of := t.keys()
	for _, id := range of {
		if slices.Contains(voters, id) {
			delete(gone, id)
			continue
		}
		if gone[id]++; gone[id] < goneRounds {
			continue
		}
		if _, err := t.n.must(try, pcm.Op{NoteKey: &pcm.NoteKey{Peer: id}}); err != nil {
			return err
		}
		delete(gone, id)
	}
	return nil
}

// compare looks at a checkpoint of the others, if the log has grown since.
func (t *transparency) compare(ctx context.Context) error {
	t.latestMu.Lock()
	latest := t.latest
	t.latestMu.Unlock()
	if c, err := tlog.ParseCheckpoint(latest); err == nil && c.Size == t.tree().Head().Size {
		return nil
	}
	_, err := t.checkpoint(ctx, true)
	return err
}

// quorum is how many of some voters decide.
func quorum(voters int) int { return voters/2 + 1 }

// ofCell refuses what is asked of another cell.
func (t *transparency) ofCell(cell pcm.CellID) error {
	if cell != t.n.id.Mesh.Cell {
		return pcm.Errorf(pcm.NotFound, "this peer has no records of %q: it is of %s", cell, t.n.id.Mesh.Cell)
	}
	return nil
}

// LogCheckpoint is the head of the log of a cell, signed by the voters that could be reached.
func (n *Node) LogCheckpoint(ctx context.Context, cell pcm.CellID) ([]byte, error) {
	if err := n.glass.ofCell(cell); err != nil {
		return nil, err
	}
	return n.glass.checkpoint(ctx, true)
}

// LogTile is a tile or a bundle of entries, by its path below the log's prefix.
func (n *Node) LogTile(ctx context.Context, cell pcm.CellID, path string) ([]byte, error) {
	if err := n.glass.ofCell(cell); err != nil {
		return nil, err
	}
	at, err := tlog.ParsePath(path)
	if err != nil {
		return nil, err
	}
	if size := n.glass.tree().Head().Size; at.WidthIn(size) < at.Width {
		return nil, pcm.Errorf(pcm.NotFound, "%s is beyond the log's %d entries", path, size)
	}
	return n.glass.read(ctx, at)
}

// LogBase is the base from which the log can be verified without the records that
// were removed here and can't be served; NotFound if there are none.
func (n *Node) LogBase(_ context.Context, cell pcm.CellID) ([]byte, error) {
	if err := n.glass.ofCell(cell); err != nil {
		return nil, err
	}
	if n.servedFrom() == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "all records of %s are served here: it needs no base", pcm.Short(cell))
	}
	bases := n.cell.Bases()
	if len(bases) == 0 {
		return nil, pcm.Errorf(pcm.NotFound, "%s has no base here", pcm.Short(cell))
	}
	state, err := n.cell.BaseState(bases[0].Size)
	if err != nil {
		return nil, err
	}
	return baseFile(bases[0].Size, state), nil
}

// LogKeys are the verifier keys of those who sign the log of a cell.
func (n *Node) LogKeys(_ context.Context, cell pcm.CellID) ([]string, error) {
	if err := n.glass.ofCell(cell); err != nil {
		return nil, err
	}
	keys, _ := n.glass.keys()
	list := make([]string, len(keys))
	for i, k := range keys {
		list[i] = k.String()
	}
	return list, nil
}
