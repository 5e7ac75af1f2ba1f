package consensus

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/jointcloud/pcm"
)

// When a majority of a cell's voters is gone for good, a person may let one of the
// survivors go on alone, with what it has. That is done when its folder is opened:
// an entry behind the last one of its log, of a newer term, makes it the one
// voter, and the other survivors replicas. Nothing that it has is dropped; what
// only the lost ones had is gone. Survivors that have less follow it; one that
// had applied more would stop at that (see mayReplace), which is why the one with
// the longest log is to be chosen.

// Recovery is what was decided, and what came of it.
type Recovery struct {
	Keep   []pcm.PeerID `cbor:"1,keyasint"` // survivors: replicas from then on
	Lost   []pcm.PeerID `cbor:"2,keyasint"` // left behind, voters and others
	Reason string       `cbor:"3,keyasint"`
	Way    string       `cbor:"4,keyasint"` // how: by a survivor's folder, or from a file
	At     int64        `cbor:"5,keyasint"` // wall clock, ms
	Index  uint64       `cbor:"6,keyasint"` // the last entry that was there
	Term   uint64       `cbor:"7,keyasint"` // its term
	Told   bool         `cbor:"8,keyasint"` // it stands in the ledger
}

// How a cell was recovered.
const (
	ByFolder = "folder" // a survivor went on with its own folder
	ByFile   = "file"   // from a snapshot file
)

// Files of a recovery.
const (
	fileRecover   = "recover.cbor"   // is to be carried out
	fileRecovered = "recovered.cbor" // was carried out last
)

// Survivor is a peer of the cell when it has no leader.
type Survivor struct {
	Peer     pcm.PeerID
	Role     Role
	Answers  bool
	Last     uint64 // last entry in its log
	Term     uint64 // of that entry
	Applied  uint64
	Complete bool
	Forgot   bool
}

// further tells whether a survivor's log is ahead of another one's, as Raft compares them.
func (s Survivor) further(o Survivor) bool {
	return s.Term > o.Term || s.Term == o.Term && s.Last > o.Last
}

// Survivors asks every peer of the configuration that this peer knows.
func (c *Cell) Survivors(ctx context.Context) []Survivor {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	servers := c.servers()
	list := make([]Survivor, len(servers))
	var wg sync.WaitGroup
	for i, sv := range servers {
		s := &list[i]
		s.Peer, s.Role = pcm.PeerID(sv.ID), RoleReplica
		if sv.Suffrage == raft.Voter {
			s.Role = RoleVoter
		}
		if s.Peer == c.cfg.Self {
			a := c.ownStatus()
			s.Answers, s.Last, s.Term, s.Applied, s.Complete, s.Forgot = true, a.Last, a.Term, a.Applied, a.Complete, a.Forgot
			continue
		}
		wg.Go(func() {
			var a statusAnswer
			if c.ask(ctx, s.Peer, nil, protoAdmin, "status", statusRequest{}, &a) == nil {
				s.Answers, s.Last, s.Term, s.Applied, s.Complete, s.Forgot = true, a.Last, a.Term, a.Applied, a.Complete, a.Forgot
			}
		})
	}
	wg.Wait()
	slices.SortFunc(list, func(a, b Survivor) int { return strings.Compare(string(a.Peer), string(b.Peer)) })
	return list
}

// ownStatus is what this peer answers when it is asked how it is.
func (c *Cell) ownStatus() statusAnswer {
	a := statusAnswer{Applied: c.Applied(), Complete: c.archive.current().Gap == nil, Last: c.raft.LastIndex(), Forgot: c.forgot()}
	a.Term, _ = c.termOf(a.Last)
	return a
}

// termOf is the term of an entry in this peer's log, or of the last one in its snapshot.
func (c *Cell) termOf(index uint64) (uint64, error) {
	var l raft.Log
	err := c.cache.GetLog(index, &l)
	if err == nil {
		return l.Term, nil
	}
	if list, e := c.snaps.List(); e == nil && len(list) > 0 && list[0].Index == index {
		return list[0].Term, nil
	}
	return 0, err
}

// PlanRecovery tells whether this peer may go on without those that don't
// answer, and what that would be.
func (c *Cell) PlanRecovery(ctx context.Context) ([]Survivor, Recovery, error) {
	leader, _ := c.watch.current()
	list := c.Survivors(ctx)
	r, err := planRecovery(c.cfg.Self, leader, list)
	if stopped := c.notices.stopped(); stopped != nil {
		err = stopped
	}
	return list, r, err
}

func planRecovery(self, leader pcm.PeerID, list []Survivor) (Recovery, error) {
	r := Recovery{Way: ByFolder}
	voters, well := 0, 0
	var own Survivor
	for _, s := range list {
		if s.Role == RoleVoter {
			voters++
			if s.Answers && !s.Forgot {
				well++
			}
		}
		switch {
		case s.Peer == self:
			own = s
		case s.Answers:
			r.Keep = append(r.Keep, s.Peer)
		default:
			r.Lost = append(r.Lost, s.Peer)
		}
	}
	switch {
	case leader != "":
		return r, pcm.Errorf(pcm.Refused, "the cell has a leader, %s: there is nothing to recover", pcm.Short(leader))
	case own.Peer == "":
		return r, pcm.Errorf(pcm.Refused, "this peer is not in the cell: only a survivor can go on")
	case own.Forgot:
		return r, pcm.Errorf(pcm.Refused, "this peer's folder is new and holds nothing of the cell: run this on another survivor, or restore a backup")
	case well > voters/2:
		return r, pcm.Errorf(pcm.Refused, "%d of %d voters answer, which is a majority: they elect a leader by themselves in a moment", well, voters)
	}
	for _, s := range list {
		if s.Peer != self && s.Answers && !s.Forgot && s.further(own) {
			return r, pcm.Errorf(pcm.Refused, "peer %s has more of the log than this one (entry %d of term %d, here %d of term %d): run this there, so that nothing of it is lost", pcm.Short(s.Peer), s.Last, s.Term, own.Last, own.Term)
		}
	}
	r.Index, r.Term = own.Last, own.Term
	return r, nil
}

// OrderRecovery has a plan carried out when the folder is opened next. The
// caller closes the cell and opens it again.
func (c *Cell) OrderRecovery(r Recovery) error {
	r.At = c.cfg.Now().UnixMilli()
	return writeFile(filepath.Join(c.cfg.Dir, fileRecover), pcm.MustMarshal(r))
}

// Recovered is the last recovery that this folder went through; nil if there was none.
func (c *Cell) Recovered() *Recovery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recovered
}

// RecoveryTold notes that the recovery stands in the ledger.
func (c *Cell) RecoveryTold() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.recovered == nil {
		return nil
	}
	r := *c.recovered
	r.Told = true
	c.recovered = &r
	return writeFile(filepath.Join(c.cfg.Dir, fileRecovered), pcm.MustMarshal(r))
}

func readRecovery(path string) (*Recovery, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var r Recovery
	if err == nil {
		err = pcm.Unmarshal(data, &r)
	}
	if err != nil {
		return nil, pcm.Errorf(pcm.Internal, "%s is damaged (%v): remove it, and order the recovery again", path, err)
	}
	return &r, nil
}

// recover carries out what was ordered. A crash in between repeats it, which
// only adds another entry of the same kind.
func (c *Cell) recover(logs raft.LogStore, stable raft.StableStore, snaps raft.SnapshotStore) error {
	var err error
	if c.recovered, err = readRecovery(filepath.Join(c.cfg.Dir, fileRecovered)); err != nil {
		return err
	}
	path := filepath.Join(c.cfg.Dir, fileRecover)
	r, err := readRecovery(path)
	if r == nil || err != nil {
		return err
	}
	last, term, err := endOf(logs, snaps)
	if err != nil {
		return err
	}
	if last == 0 {
		return pcm.Errorf(pcm.Conflict, "%s holds nothing of the cell that could be recovered: remove %s", c.cfg.Dir, path)
	}
	current, err := stable.GetUint64(keyCurrentTerm)
	if err != nil && err.Error() != "not found" {
		return pcm.Errorf(pcm.Internal, "can't read the term: %w", err)
	}
	// Of a newer term than any that this peer has seen: no other log has such an entry there.
	current = max(current, term) + 1
	servers := []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(c.cfg.Self), Address: raft.ServerAddress(c.cfg.Self)}}
	for _, id := range r.Keep {
		if id != c.cfg.Self {
			servers = append(servers, raft.Server{Suffrage: raft.Nonvoter, ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
	}
	if err := stable.SetUint64(keyCurrentTerm, current); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the term: %w", err)
	}
	entry := &raft.Log{
		Index: last + 1, Term: current, Type: raft.LogConfiguration, AppendedAt: time.Now(),
		Data: raft.EncodeConfiguration(raft.Configuration{Servers: servers}),
	}
	if err := logs.StoreLog(entry); err != nil {
		return pcm.Errorf(pcm.Internal, "can't write the log: %w", err)
	}
	r.Index, r.Term = last, term
	if err := writeFile(filepath.Join(c.cfg.Dir, fileRecovered), pcm.MustMarshal(*r)); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return pcm.Errorf(pcm.Internal, "can't remove %s: %w", path, err)
	}
	c.recovered = r
	c.log.Warn("the cell was recovered: this peer is its one voter", "cell", c.cfg.Cell, "after", last, "lost", len(r.Lost), "kept", len(r.Keep), "reason", r.Reason)
	return nil
}

// endOf is the last entry of a log, or of the snapshot where that ends later, with its term.
func endOf(logs raft.LogStore, snaps raft.SnapshotStore) (index, term uint64, err error) {
	if index, err = logs.LastIndex(); err != nil {
		return 0, 0, pcm.Errorf(pcm.Internal, "can't read the log: %w", err)
	}
	if index > 0 {
		var l raft.Log
		if err := logs.GetLog(index, &l); err != nil {
			return 0, 0, pcm.Errorf(pcm.Internal, "can't read entry %d of the log: %w", index, err)
		}
		term = l.Term
	}
	list, err := snaps.List()
	if err != nil {
		return 0, 0, pcm.Errorf(pcm.Internal, "can't read the snapshots: %w", err)
	}
	if len(list) > 0 && list[0].Index > index {
		index, term = list[0].Index, list[0].Term
	}
	return index, term, nil
}

// mayReplace is asked before entries are removed from the log. Raft compacts its
// old end, and replaces its new end by what another leader has there. If what was
// applied here were to be replaced, the cell was recovered without what this peer
// knows, or two leaders were at work: its part in the cell ends then.
func (c *Cell) mayReplace(low, high uint64) error {
	applied := max(c.Applied(), c.archive.current().Applied) // the latter also from before the start
	if low > applied {
		return nil
	}
	first, err := c.cache.FirstIndex()
	if err != nil {
		return err
	}
	last, err := c.cache.LastIndex()
	if err != nil || low <= first || high < last {
		return err // compaction, or all is replaced by a snapshot
	}
	err = pcm.Errorf(pcm.Internal, "entries of %s from %d on are to be replaced, though this peer has applied %d: the cell was recovered without what this peer knows, or there are two of it; keep the folder %s for inspection, then move it away and start the peer again: the cell takes it in anew", c.cfg.Cell, low, applied, c.cfg.Dir)
	c.fail(err)
	return err
}
