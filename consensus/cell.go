// Package consensus runs cells: Raft groups of peers that hold one ledger
// together. A cell drives a state machine ([Machine]), which it knows only by
// its entries and their effects, and keeps the history of what it did. Messages
// travel over libp2p streams, below a path that names the cell.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus/wal"
)

// Profile is a set of timings.
type Profile string

// The profiles.
const (
	LAN Profile = "lan" // a silent leader is replaced after 1 to 4 s
	WAN Profile = "wan" // after 5 to 20 s; for links with long or uneven delays
)

// Config says what to open. Dir, Mesh, Cell, Self, Host and Machine are needed.
type Config struct {
	Dir     string // of this cell alone; made if it is missing
	Mesh    pcm.MeshID
	Cell    pcm.CellID
	Self    pcm.PeerID
	Host    host.Host // lets only admitted peers open streams; stays open after Close
	Machine Machine

	// Check decodes a command and tells whether it can be right, whatever the
	// state; nil: all can. It is called in parallel, before a command is proposed.
	// The machine of the peer that proposes gets what it returns (pcm.Entry.Decoded).
	Check func(pcm.Signed) (pcm.Command, error)

	// Verify tells which commands have valid signatures; nil: [pcm.VerifyBatch]. It
	// is called in parallel. Others than measurements have no use for another one:
	// all peers of a cell must come to the same verdict.
	Verify func([]pcm.Signed) []bool

	// Answer answers a question about the ledger by an admitted peer, which need
	// not be of the cell ([Away.Query]). All that was committed before the question
	// was asked is applied by then. It is called in parallel, at most maxQueries at
	// a time; nil: no questions are answered.
	Answer func(from pcm.PeerID, method string, body []byte) ([]byte, error)

	// Seal signs as this peer; nil: those whom a recovery leaves behind are not told.
	Seal func(pcm.Domain, any) pcm.Signed

	// Head is the signed head of this peer's history, for whom a recovery parted from
	// it: at most maxHead bytes, of the machine's own form. nil: they get none.
	Head func() []byte

	// Bootstrap founds the cell with this peer as its one voter, if Dir is
	// empty. Without it an empty Dir waits until the cell takes this peer in
	// ([Cell.AddReplica] on any member).
	Bootstrap bool

	// Trust names peers of the cell that are known from elsewhere (who issued
	// the passport, a signed descriptor). A voter takes Raft's messages only
	// from peers of the configuration that it knows, and from these.
	Trust []pcm.PeerID

	LogStore  string                // of Raft's log: StoreWAL or StoreBolt; "": StoreWAL
	Profile   Profile               // "": LAN
	MaxVoters int                   // 1, 3 or 5; 0: 3
	Settled   func() int            // what the machine's state says MaxVoters to be, 0 if nothing; called within View
	Eligible  func(pcm.PeerID) bool // who may become a voter; nil: everybody
	// Owner tells to whom a peer belongs: voters are spread over owners where
	// there is a choice. nil: each peer to itself.
	Owner     func(pcm.PeerID) string
	Site      func(pcm.PeerID) string // where it stands, the next thing to spread over; nil, "": by itself
	Stabilise time.Duration           // a replica is caught up for so long before it becomes a voter; 0: 2 s
	DeadAfter time.Duration           // a silent voter is replaced after it, if there is a replica; 0: 30 s
	Logger    *slog.Logger            // nil: slog.Default()
	Now       func() time.Time        // wall clock; nil: time.Now
	OnFailure func(error)             // called once if the cell stops by itself; nil: nothing

	// SnapshotEvery is the number of entries after which Raft's log is cut behind a
	// snapshot; a quarter more are kept beyond it. 0: 8192.
	SnapshotEvery uint64

	maxQueued   int                               // tests: bound of the proposer's queue
	digestEvery int                               // tests: entries between marks
	memberEvery time.Duration                     // tests: between rounds of the member loop
	tune        func(*raft.Config)                // tests
	silent      bool                              // tests: commits are not announced
	store       func(raft.LogStore) raft.LogStore // tests: wraps the store of Raft's log
	storeIdle   time.Duration                     // tests: see store
	restAfter   time.Duration                     // tests: see rest
	restBeat    time.Duration                     // tests: see rest
	restFor     time.Duration                     // tests: see rest
}

func (cfg *Config) complete() error {
	for _, n := range []struct {
		name  string
		empty bool
	}{
		{"Dir", cfg.Dir == ""}, {"Mesh", cfg.Mesh == ""}, {"Cell", cfg.Cell == ""}, {"Self", cfg.Self == ""},
		{"Host", cfg.Host == nil}, {"Machine", cfg.Machine == nil},
	} {
		if n.empty {
			return pcm.Errorf(pcm.Invalid, "consensus: Config.%s is missing", n.name)
		}
	}
	if id := cfg.Host.ID().String(); id != string(cfg.Self) {
		return pcm.Errorf(pcm.Invalid, "consensus: the host is peer %s, not %s", id, cfg.Self)
	}
	if cfg.Profile == "" {
		cfg.Profile = LAN
	}
	if cfg.Profile != LAN && cfg.Profile != WAN {
		return pcm.Errorf(pcm.Invalid, "cell profile %q is not known: use %q or %q", cfg.Profile, LAN, WAN)
	}
	if cfg.LogStore == "" {
		cfg.LogStore = StoreWAL
	}
	if cfg.LogStore != StoreWAL && cfg.LogStore != StoreBolt {
		return pcm.Errorf(pcm.Invalid, "the store %q of Raft's log is not known: use %q or %q", cfg.LogStore, StoreWAL, StoreBolt)
	}
	if cfg.MaxVoters == 0 {
		cfg.MaxVoters = 3
	}
	if !slices.Contains([]int{1, 3, 5}, cfg.MaxVoters) {
		return pcm.Errorf(pcm.Invalid, "a cell can't have %d voters at most: use 1, 3 or 5", cfg.MaxVoters)
	}
	if cfg.Eligible == nil {
		cfg.Eligible = func(pcm.PeerID) bool { return true }
	}
	if cfg.Owner == nil {
		cfg.Owner = func(id pcm.PeerID) string { return string(id) }
	}
	if cfg.Site == nil {
		cfg.Site = func(pcm.PeerID) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Verify == nil {
		cfg.Verify = func(batch []pcm.Signed) []bool { return pcm.VerifyBatch(pcm.DomainCommand, batch) }
	}
	if cfg.Stabilise == 0 {
		cfg.Stabilise = 2 * time.Second
	}
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = 30 * time.Second
	}
	if cfg.maxQueued == 0 {
		cfg.maxQueued = maxQueued
	}
	if cfg.digestEvery == 0 {
		cfg.digestEvery = digestEvery
	}
	if cfg.storeIdle == 0 {
		cfg.storeIdle = storeIdle
	}
	if cfg.memberEvery == 0 {
		cfg.memberEvery = time.Second
	}
	return nil
}

// raftConfig is Raft's part of the profile. CommitTimeout is also how often a
// busy leader tells followers of a commit when nothing new is to be sent; they
// needn't wait for it (see hub and announce).
func (cfg *Config) raftConfig(log *raftLogger) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(cfg.Self)
	rc.Logger = log.hclog()
	rc.MaxAppendEntries = 1024
	rc.BatchApplyCh = true
	rc.ShutdownOnRemove = false
	rc.TrailingLogs = trailingMost
	rc.SnapshotThreshold = 8192
	rc.SnapshotInterval = 2 * time.Minute
	if n := cfg.SnapshotEvery; n > 0 {
		rc.SnapshotThreshold, rc.TrailingLogs, rc.SnapshotInterval = n, n+n/4, time.Second
	}
	rc.NoLegacyTelemetry = true
	rc.HeartbeatTimeout = time.Second
	rc.ElectionTimeout = time.Second
	rc.LeaderLeaseTimeout = time.Second
	rc.CommitTimeout = 500 * time.Millisecond
	if cfg.Profile == WAN {
		rc.HeartbeatTimeout = 5 * time.Second
		rc.ElectionTimeout = 5 * time.Second
		rc.LeaderLeaseTimeout = 5 * time.Second
		rc.CommitTimeout = time.Second
	}
	if cfg.tune != nil {
		cfg.tune(rc)
	}
	return rc
}

// maxPool is how many idle streams Raft keeps to each peer: with none it would
// open one for each call.
const maxPool = 3

// Cell is this peer's part in one cell. Its methods are safe for concurrent use.
type Cell struct {
	cfg Config
	log *slog.Logger

	raft    *raft.Raft
	bolt    *raftboltdb.BoltStore // Raft's votes, and its log if that is not in wal
	votes   *voteStore            // in bolt
	wal     *wal.Log              // nil: it is in bolt
	logs    raft.LogStore         // either of them
	layer   *streamLayer
	trans   *raft.NetworkTransport
	fsm     *fsm
	archive *archive
	hub     *hub
	clock   *logClock
	// committed is the log time by committed entries alone: what a leader only
	// said must not become this peer's stamps when it leads itself.
	committed *logClock
	proposer  *proposer
	links     *links
	watch     *leaderWatch
	members   *members
	memory    memory
	rest      *rest
	beats     beats
	confirmer *confirmer
	reloading sync.Mutex // held while Raft's settings are changed
	trailing  uint64     // entries behind a snapshot, by the configuration; 0: as backlog has it
	cache     *logCache
	ahead     *ahead
	snaps     raft.SnapshotStore
	recovered *Recovery // under mu
	notices   *notices
	history   *history
	pruning   sync.Mutex // held by Prune

	protocols []protocol.ID // whose handlers are set
	unwatch   func()        // ends what watches connections

	ctx    context.Context // ends when Close begins to stop things
	cancel context.CancelFunc

	mu      sync.Mutex
	closing bool
	wg      sync.WaitGroup

	failOnce sync.Once
	failed   chan struct{}
	failure  error // set before failed is closed

	shutdownOnce sync.Once
	stopped      chan struct{} // closed when Raft has stopped
	stopErr      error         // set before
	closeOnce    sync.Once
	closeErr     error
}

var errClosing = pcm.Errorf(pcm.Unavailable, "this peer's part of the cell is closing")

// Open opens a cell's folder and takes part in the cell from then on, until
// Close. Errors: Conflict if the folder is in use or belongs to another cell or
// peer; Internal if a file is damaged, with its name and what to do.
func Open(cfg Config) (_ *Cell, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, pcm.Errorf(pcm.Internal, "can't make %s: %w", cfg.Dir, err)
	}
	c := &Cell{cfg: cfg, log: cfg.Logger, failed: make(chan struct{}), clock: &logClock{}, committed: &logClock{}, ahead: newAhead()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.hub, c.proposer, c.links, c.watch = newHub(c), newProposer(c), newLinks(cfg.Host, cfg.Cell, c.start), newLeaderWatch(c)
	c.members, c.history, c.fsm, c.rest = newMembers(c), newHistory(c), newFSM(c, cfg.Machine), newRest(c)
	c.confirmer, c.notices = &confirmer{c: c}, newNotices(c)
	defer func() {
		if err != nil {
			c.release()
		}
	}()
	logPath := filepath.Join(cfg.Dir, fileLog)
	if c.bolt, err = openLog(logPath); err != nil { // its lock keeps others out of the folder
		return nil, err
	}
	if err := checkIdentity(cfg.Dir, identity{1, cfg.Mesh, cfg.Cell, cfg.Self}); err != nil {
		return nil, err
	}
	if c.archive, err = openArchive(filepath.Join(cfg.Dir, dirHistory), cfg.storeIdle, cfg.Logger, c.fail); err != nil {
		return nil, err
	}
	c.members.readHolds()
	if err := c.startRaft(logPath); err != nil {
		return nil, err
	}
	c.serve(protoPropose, maxPending, c.anybody, c.answerPropose)
	c.serve(protoAdmin, 32, c.isMember, c.answerAdmin)
	c.serve(protoRecords, 4, c.isMember, c.answerRecords)
	c.serve(protoQuery, 64, c.anybody, newQueries(c).answer)
	c.serve(protoNotice, 2, c.anybody, c.notices.answer)
	c.handleStreams(protoEvents, c.anybody, c.hub.push)
	c.unwatch = c.rest.watch()
	for _, run := range []func(){c.watch.run, newSuccession(c).run, c.proposer.run, c.hub.follow, c.members.run, c.notices.run, c.history.run, c.keepTiles, c.keepSnapshots} {
		c.start(run)
	}
	return c, nil
}

// startRaft opens what Raft needs and starts it. Raft reads the whole log from
// the last snapshot on, so that damage in there shows now.
func (c *Cell) startRaft(logPath string) (err error) {
	defer guard(func(cause any) {
		err = pcm.Errorf(pcm.Internal, "%s is damaged (%v): %s", logPath, cause, boltAdvice)
	})()
	rlog := newRaftLogger(c.log)
	rc := c.cfg.raftConfig(rlog)
	if c.cfg.SnapshotEvery > 0 || c.cfg.tune != nil {
		c.trailing = rc.TrailingLogs
	}
	if err := c.openStore(); err != nil {
		return err
	}
	if c.cfg.store != nil {
		c.logs = c.cfg.store(c.logs)
	}
	cache := newLogCache(c.logs, cacheEntries, cacheBytes)
	cache.stored, cache.storing = c.stored, c.ahead.storing
	snaps, err := newSnapshots(c.cfg.Dir, 2, rlog)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't use %s: %w: %s", filepath.Join(c.cfg.Dir, dirSnapshots), err, boltAdvice)
	}
	list, err := snaps.List()
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't read %s: %w", filepath.Join(c.cfg.Dir, dirSnapshots), err)
	}
	last, err := c.logs.LastIndex()
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't read %s: %w: %s", logPath, err, boltAdvice)
	}
	if len(list) > 0 && last < list[0].Index {
		if err := c.dropOldLog(last); err != nil {
			return pcm.Errorf(pcm.Internal, "can't remove from %s what a snapshot replaces: %w", logPath, err)
		}
		last = list[0].Index
	}
	if have := c.archive.current().Applied; have > last {
		return pcm.Errorf(pcm.Internal, "%s and %s end at entry %d, but the history in %s holds entry %d: a part of the folder was lost or replaced; %s",
			logPath, filepath.Join(c.cfg.Dir, dirSnapshots), last, c.archive.dir, have, boltAdvice)
	}
	// Raft stores its term ahead of any entry and any snapshot.
	if term, err := c.bolt.GetUint64(keyCurrentTerm); last > 0 && (err != nil || term == 0) {
		return c.votesLost(c.cfg.Dir, last)
	}
	if err := c.openVotes(logPath, cache, snaps); err != nil {
		return err
	}
	exists, err := raft.HasExistingState(cache, c.votes, snaps)
	if err != nil {
		return pcm.Errorf(pcm.Internal, "can't read %s: %w: %s", logPath, err, boltAdvice)
	}
	if err := c.memory.recall(c.cfg.Dir, !exists && !c.cfg.Bootstrap); err != nil {
		return err
	}
	cache.replace, c.cache, c.snaps = c.mayReplace, cache, snaps
	if err := c.recover(cache, c.votes, snaps); err != nil {
		return err
	}
	if err := c.notices.open(rc.HeartbeatTimeout); err != nil {
		return err
	}
	c.layer = newStreamLayer(c.ctx, c.cfg.Host, c.cfg.Self, c.protocol(protoRaft), c.speaksRaft)
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: c.layer, MaxPool: maxPool, Timeout: 10 * rc.HeartbeatTimeout, Logger: rlog.hclog(),
	})
	voting, forward := c.memory.muted(steadyTransport{trans, c})
	if forward != nil {
		c.start(func() { forward(c.ctx) })
	}
	if !exists && c.cfg.Bootstrap {
		err = raft.BootstrapCluster(rc, cache, c.votes, snaps, trans, raft.Configuration{Servers: []raft.Server{{
			Suffrage: raft.Voter, ID: rc.LocalID, Address: raft.ServerAddress(c.cfg.Self),
		}}})
	}
	if err == nil {
		c.raft, err = raft.NewRaft(rc, c.fsm, cache, c.votes, snaps, voting)
	}
	if err != nil {
		trans.Close()
		return pcm.Errorf(pcm.Internal, "can't start from %s and %s: %w: %s", logPath, filepath.Join(c.cfg.Dir, dirSnapshots), err, boltAdvice)
	}
	c.ahead.know(c.raft.CommitIndex)
	c.trans = trans
	c.rest.begin()
	c.layer.listen()
	if v := c.voters(); len(v) == 1 && v[0] == c.cfg.Self {
		// Nobody else can lead: don't wait for the silence of a leader.
		c.start(func() {
			if err := c.stand(); err != nil {
				c.log.Debug("the lone voter waits for its election timeout", "cell", c.cfg.Cell, "error", err)
			}
			trans.CloseStreams() // half a MiB of buffers between this peer and itself
		})
	}
	return nil
}

// dropOldLog removes a log that ends ahead of the snapshot: a crash came between taking
// the snapshot over and removing what it replaces. A wal would refuse the next entry,
// as it takes none that doesn't follow.
func (c *Cell) dropOldLog(last uint64) error {
	first, err := c.logs.FirstIndex()
	if err != nil || last == 0 {
		return err
	}
	return c.logs.DeleteRange(first, last)
}

// start runs f on a goroutine that Close waits for; false when the cell is closing.
func (c *Cell) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return false
	}
	c.wg.Go(f)
	return true
}

// fail stops the cell for good, without waiting.
func (c *Cell) fail(err error) {
	c.failOnce.Do(func() {
		c.failure = err
		close(c.failed)
		c.log.Error("the cell has stopped", "cell", c.cfg.Cell, "error", err)
		go func() {
			if c.raft != nil {
				c.stopRaft()
			}
			if c.cfg.OnFailure != nil {
				c.cfg.OnFailure(err)
			}
		}()
	})
}

// Err is why the cell stopped by itself; nil while it works.
func (c *Cell) Err() error {
	select {
	case <-c.failed:
		return c.failure
	default:
		return nil
	}
}

// Run waits until ctx ends (nil) or the cell stops by itself (its error). The
// caller closes the cell in both cases.
func (c *Cell) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.failed:
		return c.failure
	}
}

// stopTime bounds the end of Raft: after a failed write its goroutines may wait for
// each other for ever.
const stopTime = 20 * time.Second

func (c *Cell) stopRaft() error {
	c.shutdownOnce.Do(func() {
		f, done := c.raft.Shutdown(), make(chan struct{})
		c.stopped = done
		go func() {
			c.stopErr = f.Error()
			close(done)
		}()
	})
	select {
	case <-c.stopped:
		return c.stopErr
	case <-time.After(stopTime):
		return pcm.Errorf(pcm.Internal, "Raft did not stop within %s", stopTime)
	}
}

// Close hands leadership over if there is somebody to take it, waiting at most
// until ctx ends, then stops. The peer stays what it is in the cell, voter or
// replica, and goes on when the folder is opened again.
func (c *Cell) Close(ctx context.Context) error {
	c.closeOnce.Do(func() {
		if c.Err() == nil {
			c.handOver(ctx)
			c.snapshotAtEnd(ctx)
		}
		c.closeErr = c.release()
	})
	return c.closeErr
}

// handOverTime bounds handing leadership over when a cell is closed.
const handOverTime = 3 * time.Second

// handOver gives leadership to another voter that can be reached. Failing is no
// error: the others elect one.
func (c *Cell) handOver(ctx context.Context) {
	if c.raft.State() != raft.Leader {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, handOverTime)
	defer cancel()
	for _, v := range c.voters() {
		if v == c.cfg.Self || !c.connected(v) {
			continue
		}
		if err := c.transfer(ctx, v); err != nil {
			c.log.Warn("could not hand leadership over", "cell", c.cfg.Cell, "to", pcm.Short(v), "error", err)
			continue
		}
		return
	}
}

// release stops and closes whatever is there, in the order in which it depends
// on each other.
func (c *Cell) release() error {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	c.cancel()
	for _, p := range c.protocols {
		c.cfg.Host.RemoveStreamHandler(p)
	}
	c.links.closeAll()
	if c.unwatch != nil {
		c.unwatch()
	}
	var errs []error
	if c.raft != nil {
		if err := c.stopRaft(); err != nil {
			errs = append(errs, fmt.Errorf("raft: %w", err))
		}
		c.proposer.drain()
	}
	c.wg.Wait()
	c.proposer.drain()
	if c.layer != nil {
		c.layer.Close()
	}
	if c.archive != nil {
		errs = append(errs, c.archive.close())
	}
	if c.wal != nil {
		errs = append(errs, c.wal.Close())
	}
	if c.bolt != nil {
		errs = append(errs, c.bolt.Close())
	}
	return errors.Join(errs...)
}

// LogTime estimates the cell's log time now, in ms: what a proposer adds a
// command's lifetime to. 0 as long as nothing is known of it.
func (c *Cell) LogTime() int64 {
	_, stamp := c.clock.read()
	return stamp
}

// Ready tells whether the cell can decide now, as far as this peer knows; if not, why.
func (c *Cell) Ready() (bool, string) {
	if err := c.Err(); err != nil {
		return false, err.Error()
	}
	if err := c.notices.stopped(); err != nil {
		return false, err.Error()
	}
	if c.Outside() {
		return false, fmt.Sprintf("this peer is not in %s: it was removed, or is not taken in yet; a voter takes it in with 'pcm cell add %s'", pcm.Short(c.cfg.Cell), c.cfg.Self)
	}
	leader, _ := c.watch.current()
	if leader == "" && c.forgot() {
		return false, fmt.Sprintf("%s is new or was lost, and no voter of %s has taken this peer in yet; it goes on by itself when they can be reached, and if there are none left, restore it from a backup ('pcm restore --help')", c.cfg.Dir, pcm.Short(c.cfg.Cell))
	}
	if leader == "" {
		return false, fmt.Sprintf("%s has no leader now", pcm.Short(c.cfg.Cell))
	}
	return true, ""
}

// Leads tells whether this peer leads the cell now, as far as it knows.
func (c *Cell) Leads() bool { return c.leads() > 0 }

// Outside tells whether the cell, as far as this peer knows it, does not have this peer.
// Nothing that it proposes is heard then.
func (c *Cell) Outside() bool { return len(c.servers()) > 0 && !c.isMember(c.cfg.Self) }

// leaderWatch knows the leader and wakes those who wait for another one.
type leaderWatch struct {
	c *Cell

	mu      sync.Mutex
	leader  pcm.PeerID
	changed chan struct{} // closed and replaced with each change
}

func newLeaderWatch(c *Cell) *leaderWatch { return &leaderWatch{c: c, changed: make(chan struct{})} }

// current is the leader ("" if none is known) and a channel that is closed when it changes.
func (w *leaderWatch) current() (pcm.PeerID, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leader, w.changed
}

// look takes in whom Raft holds to be the leader.
func (w *leaderWatch) look() {
	_, id := w.c.raft.LeaderWithID()
	if w.saw(id) {
		w.c.rest.end()
		w.c.members.wake()
	}
}

// saw takes in a leader; it tells whether it is another one.
func (w *leaderWatch) saw(id raft.ServerID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	other := pcm.PeerID(id) != w.leader
	if other {
		w.leader = pcm.PeerID(id)
		close(w.changed)
		w.changed = make(chan struct{})
		if id != "" {
			w.c.log.Info("the cell has a leader", "cell", w.c.cfg.Cell, "leader", id)
		} else {
			w.c.log.Info("the cell has no leader", "cell", w.c.cfg.Cell)
		}
	}
	return other
}

func (w *leaderWatch) run() {
	seen := make(chan raft.Observation, 64)
	o := raft.NewObserver(seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation:
			return true
		case raft.RequestVoteRequest, raft.RequestPreVoteRequest: // somebody misses the leader
			w.c.rest.rouse()
		}
		return false
	})
	w.c.raft.RegisterObserver(o)
	defer w.c.raft.DeregisterObserver(o)
	for {
		w.look()
		select {
		case <-seen: // one is dropped only while others wait here
		case <-w.c.ctx.Done():
			return
		}
	}
}

// maxVoters is how many voters the cell wants: what it has settled, or else the configuration.
func (c *Cell) maxVoters() int {
	if c.cfg.Settled != nil {
		n := 0
		c.View(func() { n = c.cfg.Settled() })
		if slices.Contains([]int{1, 3, 5}, n) {
			return n
		}
	}
	return c.cfg.MaxVoters
}
