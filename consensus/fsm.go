package consensus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// fsm drives the Machine with what Raft has committed. Raft calls it from one
// goroutine. Once it has failed it applies nothing more: its state is then
// frozen, and Raft is being shut down.
type fsm struct {
	c       *Cell
	machine Machine

	mu     sync.RWMutex // held to write by Apply and Restore, to read by View
	failed bool         // of Raft's goroutine alone

	progressMu sync.Mutex
	applied    uint64 // Raft index of the last entry or configuration
	more       chan struct{}

	restoring atomic.Bool // a snapshot is taken over
	backlog   *backlog

	digests digests
}

// applied is what Raft hands to the proposer for its entry.
type applied struct {
	index   uint64
	results []pcm.CommandResult
}

func newFSM(c *Cell, m Machine) *fsm {
	return &fsm{c: c, machine: m, more: make(chan struct{}), backlog: newBacklog()}
}

// progress is the last applied index and a channel that is closed when it grows.
func (f *fsm) progress() (uint64, <-chan struct{}) {
	f.progressMu.Lock()
	defer f.progressMu.Unlock()
	return f.applied, f.more
}

func (f *fsm) advance(index uint64) {
	f.progressMu.Lock()
	defer f.progressMu.Unlock()
	f.applied = index
	close(f.more)
	f.more = make(chan struct{})
}

// halt stops the cell for good: going on could make this replica differ from
// the others, and a human has to look.
func (f *fsm) halt(index uint64, err error) error {
	f.failed = true
	e := pcm.Errorf(pcm.Internal, "entry %d of %s: %w: this replica has stopped so as not to differ from the others; keep its folder for inspection, and update or restore it", index, f.c.cfg.Cell, err)
	f.c.fail(e)
	return e
}

// Apply implements raft.FSM.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	if !f.failed {
		entries, err := f.prepare(logs)
		for i := 0; i < len(entries) && !f.failed; i++ {
			l := logs[i]
			if l.Type == raft.LogCommand {
				resp, err := f.applyOne(l, entries[i])
				if err != nil {
					f.halt(l.Index, err)
					break
				}
				out[i] = resp
			}
			f.advance(l.Index)
		}
		if err != nil && !f.failed {
			f.halt(logs[len(entries)].Index, err)
		}
	}
	for i := range out {
		if out[i] == nil && f.failed {
			out[i] = f.c.Err()
		}
	}
	return out
}

// prepare decodes entries and checks their signatures, but for those that this
// replica checked before. On an error it returns those ahead of the bad one.
func (f *fsm) prepare(logs []*raft.Log) ([]pcm.Entry, error) {
	entries := make([]pcm.Entry, 0, len(logs))
	known := f.c.archive.current().Applied // checked when it was applied the first time
	var cmds []pcm.Signed
	var of []int // the entry of each command
	var bad error
	for i, l := range logs {
		var e pcm.Entry
		if l.Type == raft.LogCommand {
			var mine bool
			if e, mine = f.c.proposer.mine(l.Data); mine {
				entries = append(entries, e)
				continue
			}
			if e, bad = f.decode(l); bad != nil {
				break
			}
			if l.Index > known {
				for range e.Commands {
					of = append(of, i)
				}
				cmds = append(cmds, e.Commands...)
			}
		}
		entries = append(entries, e)
	}
	if i := f.firstInvalid(cmds); i >= 0 {
		return entries[:of[i]], pcm.Errorf(pcm.Unauthorized, "a committed command has an invalid signature (signer %x)", cmds[i].Signer)
	}
	return entries, bad
}

func (f *fsm) decode(l *raft.Log) (pcm.Entry, error) {
	var e pcm.Entry
	if string(l.Extensions) != string(f.c.cfg.Cell) {
		return e, pcm.Errorf(pcm.Invalid, "the entry is of cell %q", l.Extensions)
	}
	if err := pcm.Unmarshal(l.Data, &e); err != nil {
		return e, pcm.Errorf(pcm.Invalid, "the entry is malformed: %w", err)
	}
	if e.Version < 1 || e.Version > pcm.EntryVersion {
		return e, pcm.Errorf(pcm.Invalid, "the entry has version %d, this release knows %d: update this peer", e.Version, pcm.EntryVersion)
	}
	return e, nil
}

// applyOne applies an entry. Its error halts the replica.
func (f *fsm) applyOne(l *raft.Log, e pcm.Entry) (resp any, err error) {
	if e.Digest != nil {
		if err := f.compare(l.Index, e.Digest); err != nil {
			return nil, err
		}
	}
	var effects pcm.Effects
	func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("the state machine panicked: %v\n%s", p, debug.Stack())
			}
		}()
		effects = f.machine.Apply(l.Index, e)
		f.c.archive.reserve()
	}()
	if err == nil && effects.Halt != nil {
		err = effects.Halt
	}
	if err == nil && len(effects.Results) != len(e.Commands) {
		err = fmt.Errorf("the state machine returned %d results for %d commands", len(effects.Results), len(e.Commands))
	}
	if err != nil {
		return nil, err
	}
	f.c.archive.put(&archiveOp{index: l.Index, first: effects.First, records: effects.Records, docs: effects.Documents, base: effects.Base, reserved: true})
	f.c.clock.observe(l.Term, e.Stamp)
	f.c.committed.observe(l.Term, e.Stamp)
	led := uint64(0)
	if _, mine := f.c.proposer.mine(l.Data); mine {
		led = l.Term
	}
	f.c.hub.applied(l.Index, led, effects.Events)
	f.backlog.applied(e, len(l.Data))
	return &applied{index: l.Index, results: effects.Results}, nil
}

// minVerify is the least number of signatures that is worth a goroutine: half of them cost more each.
const minVerify = 128

// firstInvalid checks signatures on all cores; -1 if all are valid.
func (f *fsm) firstInvalid(cmds []pcm.Signed) int {
	n := min(runtime.GOMAXPROCS(0), (len(cmds)+minVerify-1)/minVerify)
	if n <= 1 {
		return f.firstInvalidOf(cmds)
	}
	bad := make([]int, n)
	var wg sync.WaitGroup
	for i := range n {
		from, to := i*len(cmds)/n, (i+1)*len(cmds)/n
		wg.Go(func() {
			if bad[i] = f.firstInvalidOf(cmds[from:to]); bad[i] >= 0 {
				bad[i] += from
			}
		})
	}
	wg.Wait()
	for _, b := range bad {
		if b >= 0 {
			return b
		}
	}
	return -1
}

func (f *fsm) firstInvalidOf(cmds []pcm.Signed) int {
	for i, ok := range f.c.cfg.Verify(cmds) {
		if !ok {
			return i
		}
	}
	return -1
}

// A snapshot begins with this line, then the Raft index (8 bytes, big-endian)
// and the cell ID (its length in 2 bytes before it); the machine's state follows.
const snapshotMagic = "pcm cell snapshot 1\n"

// maxSnapshot bounds a snapshot that is read: 1 GiB.
const maxSnapshot = 1 << 30

// Snapshot implements raft.FSM: it encodes the hot state at once; writing it is
// for Persist.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed {
		return nil, f.c.Err()
	}
	f.mu.Lock()
	state, err := f.machine.Snapshot()
	f.mu.Unlock()
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "the state can't be encoded: %w", err)
	}
	f.backlog.taken(len(state))
	index, _ := f.progress()
	head := binary.BigEndian.AppendUint64([]byte(snapshotMagic), index)
	head = binary.BigEndian.AppendUint16(head, uint16(len(f.c.cfg.Cell)))
	head = append(head, f.c.cfg.Cell...)
	return &fsmSnapshot{archive: f.c.archive, head: head, state: state}, nil
}

type fsmSnapshot struct {
	archive     *archive
	head, state []byte
}

// Persist writes the snapshot. First the history up to it is made durable: Raft
// drops the log from which it could be made again.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.archive.flush(); err != nil {
		return err
	}
	if _, err := sink.Write(s.head); err != nil {
		return err
	}
	_, err := sink.Write(s.state)
	return err // Raft closes or cancels the sink
}

func (s *fsmSnapshot) Release() {}

// Restore implements raft.FSM: at start, and when this replica is too far
// behind for the leader's log.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxSnapshot+1))
	if err != nil {
		return err
	}
	index, state, err := f.openSnapshot(data)
	if err != nil {
		return err
	}
	// The state is there before the history that belongs to it is known to be missing.
	f.restoring.Store(true)
	defer f.restoring.Store(false)
	f.mu.Lock()
	err = f.machine.Restore(state)
	size, root := f.machine.Root()
	f.mu.Unlock()
	if err != nil {
		return err
	}
	f.digests.forget()
	a := f.c.archive
	if have := a.current(); size > have.Count {
		if err := a.do(&archiveOp{open: &gap{To: size, Root: root, Index: index}}); err != nil {
			return err
		}
		f.c.history.wake()
	}
	f.backlog.taken(len(state))
	f.c.hub.jumped(index)
	f.advance(index)
	return nil
}

func (f *fsm) openSnapshot(data []byte) (index uint64, state []byte, err error) {
	damaged := pcm.Errorf(pcm.Internal, "the snapshot is cut short or not one of a cell")
	rest, ok := bytes.CutPrefix(data, []byte(snapshotMagic))
	if !ok || len(rest) < 10 || len(data) > maxSnapshot {
		return 0, nil, damaged
	}
	index = binary.BigEndian.Uint64(rest)
	n := int(binary.BigEndian.Uint16(rest[8:]))
	rest = rest[10:]
	if len(rest) < n {
		return 0, nil, damaged
	}
	if cell := string(rest[:n]); cell != string(f.c.cfg.Cell) {
		return 0, nil, pcm.Errorf(pcm.Conflict, "the snapshot is of %s, this is %s", cell, f.c.cfg.Cell)
	}
	return index, rest[n:], nil
}
