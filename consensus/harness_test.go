package consensus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/jointcloud/pcm"
)

// tally is a deliberately simple machine: it remembers command IDs, and each
// new command becomes a record. Its whole state is in its snapshots.
type tally struct {
	stamp  int64
	leaves [][]byte // hashes of the records
	seen   map[pcm.CommandID]uint64
	stamps []int64 // of the entries applied since start, for tests
	terms  int     // entries with NewTerm
	due    int64   // a tick is wanted at this log time; 0: never
	level  int     // of its rules
	bent   byte    // differs from what the entries made
	ticks  int

	restoring func() // called by Restore; nil: nothing
	decoded   int    // commands that came decoded
}

func newTally() *tally { return &tally{seen: map[pcm.CommandID]uint64{}} }

func (m *tally) Apply(index uint64, e pcm.Entry) pcm.Effects {
	m.stamp = e.Stamp
	m.stamps = append(m.stamps, e.Stamp)
	if e.NewTerm {
		m.terms++
	}
	if len(e.Commands) == 0 && !e.NewTerm {
		m.ticks++
		m.due = 0
	}
	eff := pcm.Effects{First: uint64(len(m.leaves))}
	for i, s := range e.Commands {
		var cmd pcm.Command
		if err := pcm.Unmarshal(s.Payload, &cmd); err != nil {
			eff.Results = append(eff.Results, pcm.CommandResult{Index: index, Err: pcm.AsError(err)})
			continue
		}
		if cmd.Ops[0].Cancel != nil && cmd.Ops[0].Cancel.Reason == "panic" {
			panic("told to")
		}
		if e.Decoded != nil {
			if len(e.Decoded) != len(e.Commands) || e.Decoded[i].ID != cmd.ID {
				panic("what is decoded is another command")
			}
			m.decoded++
		}
		first, again := m.seen[cmd.ID]
		if !again {
			first = index
			m.seen[cmd.ID] = index
			r := pcm.Record{Number: uint64(len(m.leaves)), Index: index, Stamp: e.Stamp, Wall: e.Wall, Command: &s, Done: 1}
			if cmd.Ops[0].Cancel.Reason == "base" {
				eff.Base = m.base(e.Stamp)
				r.Facts = []pcm.Fact{{Based: &eff.Base.Based}}
			}
			record := pcm.MustMarshal(r)
			m.leaves = append(m.leaves, rfc6962.DefaultHasher.HashLeaf(record))
			eff.Records = append(eff.Records, record)
			eff.Documents = append(eff.Documents, pcm.Document{Key: "cmd/" + cmd.ID.String(), Value: s.Payload})
			eff.Events = append(eff.Events, pcm.Event{Index: index, Stamp: e.Stamp, By: cmd.Peer, Op: &cmd.Ops[0], To: []pcm.PeerID{pcm.PeerID(cmd.Ops[0].Cancel.Reason)}})
		}
		eff.Results = append(eff.Results, pcm.CommandResult{Index: first, Ops: []pcm.OpResult{{}}})
	}
	return eff
}

// base is one of several portions.
func (m *tally) base(stamp int64) *pcm.BaseState {
	state := bytes.Repeat(binary.BigEndian.AppendUint64(nil, uint64(len(m.leaves))), 3*basePortion/8-1)
	sum := sha256.Sum256(state)
	return &pcm.BaseState{Based: pcm.Based{Size: uint64(len(m.leaves)), Digest: sum[:]}, Stamp: stamp, State: state}
}

func (m *tally) Stamp() int64         { return m.stamp }
func (m *tally) Due(stamp int64) bool { return m.due != 0 && stamp >= m.due }

func (m *tally) Level() int { return m.level }

func (m *tally) Digest() ([32]byte, error) {
	size, root := m.Root()
	return sha256.Sum256(append(binary.BigEndian.AppendUint64(root[:], size), m.bent)), nil
}

func (m *tally) Root() (uint64, [32]byte) {
	tree := merkle.NewEmptyRange(0)
	for _, l := range m.leaves {
		tree.Append(l, nil)
	}
	sum := rfc6962.DefaultHasher.EmptyRoot()
	if len(m.leaves) > 0 {
		sum, _ = tree.GetRootHash(nil)
	}
	return uint64(len(m.leaves)), [32]byte(sum)
}

type tallyState struct {
	Stamp  int64
	Leaves [][]byte
	IDs    [][]byte
	At     []uint64
}

func (m *tally) Snapshot() ([]byte, error) {
	s := tallyState{Stamp: m.stamp, Leaves: m.leaves}
	for id, at := range m.seen {
		s.IDs, s.At = append(s.IDs, id[:]), append(s.At, at)
	}
	return pcm.Marshal(s)
}

func (m *tally) Restore(data []byte) error {
	var s tallyState
	if err := pcm.UnmarshalLarge(data, &s); err != nil {
		return err
	}
	if m.restoring != nil {
		m.restoring()
	}
	n := newTally()
	n.restoring = m.restoring
	n.stamp, n.leaves, n.level = s.Stamp, s.Leaves, m.level
	for i, id := range s.IDs {
		n.seen[pcm.CommandID(id)] = s.At[i]
	}
	*m = *n
	return nil
}

// node is one peer of a test.
type node struct {
	*Cell
	t    testing.TB
	key  pcm.Key
	host host.Host
	gate *gated // before it
	dir  string
	m    *tally
	cfg  Config
	book *book

	restoring func() // see tally
}

// book lets the hosts of one test find each other.
type book struct {
	mu    sync.Mutex
	nodes []*node
}

var testCell, testMesh = pcm.CellID("cell-test"), pcm.MeshID("mesh-test")

func quiet() *slog.Logger {
	if os.Getenv("PCM_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func newHost(t testing.TB, key pcm.Key) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.Identity(key.LibP2P()), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// prepare makes a node that isn't open yet.
func (b *book) prepare(t testing.TB, change func(*Config)) *node {
	t.Helper()
	n := &node{t: t, key: pcm.NewKey(), dir: t.TempDir(), book: b}
	n.cfg = Config{
		Dir: n.dir, Mesh: testMesh, Cell: testCell, Self: n.key.Peer(), Logger: quiet(),
		Stabilise: 50 * time.Millisecond, memberEvery: 50 * time.Millisecond,
		Seal: n.key.Seal,
		tune: func(rc *raft.Config) {
			rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
		},
	}
	if change != nil {
		change(&n.cfg)
	}
	n.connect()
	return n
}

// connect gives the node a host that knows all others.
func (n *node) connect() {
	n.host = newHost(n.t, n.key)
	n.gate = behindGate(n.host)
	n.cfg.Host = n.gate
	n.book.mu.Lock()
	defer n.book.mu.Unlock()
	n.book.nodes = slices.DeleteFunc(n.book.nodes, func(o *node) bool { return o == n })
	for _, o := range n.book.nodes {
		n.host.Peerstore().AddAddrs(o.host.ID(), o.host.Addrs(), peerstore.PermanentAddrTTL)
		o.host.Peerstore().ClearAddrs(n.host.ID())
		o.host.Peerstore().AddAddrs(n.host.ID(), n.host.Addrs(), peerstore.PermanentAddrTTL)
	}
	n.book.nodes = append(n.book.nodes, n)
}

func (n *node) open() *node {
	n.t.Helper()
	n.m = newTally()
	n.m.restoring = n.restoring
	n.cfg.Machine = n.m
	c, err := Open(n.cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.Cell = c
	n.t.Cleanup(func() { n.closeWithin(5 * time.Second) }) // there may be nobody left to hand over to
	return n
}

func (n *node) close() error { return n.closeWithin(patience) }

// closeSnapshotted closes the node with a snapshot of all it has applied.
func (n *node) closeSnapshotted(t testing.TB) {
	t.Helper()
	if err := n.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if err := n.close(); err != nil {
		t.Fatal(err)
	}
}

func (n *node) closeWithin(d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return n.Cell.Close(ctx)
}

// kill ends the node without a word to the others.
func (n *node) kill() {
	n.host.Close()
	n.Cell.closeOnce.Do(func() { n.Cell.closeErr = n.Cell.release() })
}

// found opens a cell of one.
func found(t testing.TB, b *book, change func(*Config)) *node {
	t.Helper()
	n := b.prepare(t, func(c *Config) {
		c.Bootstrap = true
		if change != nil {
			change(c)
		}
	}).open()
	n.await("a leader", func() bool { return n.leads() > 0 })
	return n
}

// three opens a cell of three voters; the first leads.
func three(t testing.TB, change func(*Config)) (nodes []*node) {
	t.Helper()
	nodes = append(nodes, found(t, &book{}, change))
	for range 2 {
		nodes = append(nodes, nodes[0].admit(t, change))
	}
	for _, n := range nodes {
		n.await("three voters", func() bool { return len(n.voters()) == 3 })
	}
	return nodes
}

// patience bounds what hangs: on a busy machine an election takes many seconds.
const patience = 90 * time.Second

// patient has timeouts longer than a test would wait for an election.
func patient(c *Config) {
	c.tune = func(rc *raft.Config) {
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = 120*time.Second, 120*time.Second, 120*time.Second
	}
}

// admit opens a peer that n has the cell take in.
func (n *node) admit(t testing.TB, change func(*Config)) *node {
	t.Helper()
	r := n.book.prepare(t, change).open()
	if err := n.AddReplica(t.Context(), r.cfg.Self); err != nil {
		t.Fatal(err)
	}
	return r
}

func (n *node) await(what string, ok func() bool) {
	n.t.Helper()
	await(n.t, what, ok)
}

// await polls a condition that has no channel of its own.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// command is a signed command that concerns a peer.
func (n *node) command(to pcm.PeerID) (pcm.CommandID, pcm.Signed) {
	id := pcm.NewCommandID()
	return id, n.key.Seal(pcm.DomainCommand, pcm.Command{
		Version: 1, ID: id, Mesh: testMesh, Cell: testCell, Peer: n.cfg.Self, NotAfter: n.LogTime() + 60_000,
		Ops: []pcm.Op{{Cancel: &pcm.Cancel{Job: "job-x", Reason: string(to)}}},
	})
}

func (n *node) propose(t testing.TB, to pcm.PeerID) (pcm.CommandID, pcm.CommandResult) {
	t.Helper()
	id, s := n.command(to)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, err := n.Propose(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := r[0].First(); err != nil {
		t.Fatal(err)
	}
	return id, r[0]
}

// ids are the command IDs in a node's records, in order.
func (n *node) ids(t testing.TB) (list []pcm.CommandID) {
	t.Helper()
	err := n.Records(0, n.RecordCount(), func(_ uint64, r []byte) error {
		var rec pcm.Record
		if err := pcm.Unmarshal(r, &rec); err != nil {
			return err
		}
		var cmd pcm.Command
		if err := pcm.Unmarshal(rec.Command.Payload, &cmd); err != nil {
			return err
		}
		list = append(list, cmd.ID)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (n *node) count() (records int) {
	n.View(func() { records = len(n.m.leaves) })
	return records
}

func (n *node) digest() [32]byte {
	var size uint64
	var root [32]byte
	n.View(func() { size, root = n.m.Root() })
	return sha256.Sum256(binary.BigEndian.AppendUint64(root[:], size))
}

func others(nodes []*node, not ...*node) []*node {
	return slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return slices.Contains(not, n) })
}

func leaderOf(t testing.TB, nodes ...*node) (leader *node) {
	t.Helper()
	await(t, "a leader", func() bool {
		leader = nil
		for _, n := range nodes {
			if n.leads() > 0 {
				leader = n
			}
		}
		return leader != nil
	})
	return leader
}

func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [64]byte
	n, err := f.ReadAt(b[:], at)
	if n == 0 {
		t.Fatal(err)
	}
	for i := range b {
		b[i] ^= 0x5a
	}
	if _, err := f.WriteAt(b[:n], at); err != nil {
		t.Fatal(err)
	}
}

func largest(t *testing.T, pattern string) string {
	t.Helper()
	files, _ := filepath.Glob(pattern)
	var best string
	var size int64 = -1
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > size {
			best, size = f, info.Size()
		}
	}
	if best == "" {
		t.Fatalf("no file matches %s", pattern)
	}
	return best
}

func peerInfo(h host.Host) *peer.AddrInfo { return &peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()} }
