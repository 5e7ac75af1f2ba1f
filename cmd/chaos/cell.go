package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
)

// patience bounds what ought to come soon on a machine that does much else.
var patience = 2 * time.Minute

// testCell is a cell whose peers are processes of this program.
type testCell struct {
	name     string
	genesis  ledger.Genesis
	root     pcm.Key
	voters   int
	dir      string // logs and sockets
	disk     *disk  // where the peers' folders are
	env      []string
	snapshot uint64 // entries after which peers take one
	older    string // the program of an older release; "": none

	mu      sync.Mutex
	procs   []*proc
	made    int          // processes' numbers so far
	noVotes []pcm.PeerID // those of replicas that stay replicas
	updated bool         // new peers are of this release

	outside pcm.PeerID // of the client that is of no cell; "": there is none

	logTime atomic.Int64 // newest that was heard of
	heard   atomic.Int64 // when, ms of this process
	terms   atomic.Uint64
	leaders atomic.Int64 // changes of the leader that were seen
}

var began = time.Now()

// elapsed is this process's monotonic time.
func elapsed() time.Duration { return time.Since(began) }

// keyOf makes a key of a name, so that a seed gives the same run.
func keyOf(name string) pcm.Key {
	sum := sha256.Sum256([]byte(name))
	k, err := pcm.KeyFromSeed(sum[:])
	if err != nil {
		panic(err) // of a seed of another length
	}
	return k
}

func newTestCell(dir string, d *disk, s settings, i int) *testCell {
	name := string(rune('a' + i))
	root := keyOf(fmt.Sprintf("root %d", s.seed))
	sum := sha256.Sum256(fmt.Append(nil, "cell ", s.seed, name))
	c := &testCell{name: name, root: root, voters: s.sizes[i], dir: dir, disk: d, env: s.env, older: s.older, snapshot: cmp.Or(s.snapshot, 600)}
	c.genesis = ledger.Genesis{Mesh: pcm.NewMeshID(root.Public()), Root: root.Public(), Cell: pcm.CellID("cell-" + letters(sum[:], 16)), Name: name}
	return c
}

// letters spells bytes with n letters and digits of IDs.
func letters(b []byte, n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	out := make([]byte, n)
	for i := range out {
		out[i] = alphabet[b[i]%32]
	}
	return string(out)
}

// start makes the cell whole: a founder, then the others, then all of them voters, and
// replicas that never vote.
func (c *testCell) start(ctx context.Context, replicas int) error {
	founder, err := c.add(true)
	if err != nil {
		return err
	}
	founder.configure(func(c *PeerConfig) { c.Founder = true })
	if err := founder.start(ctx); err != nil {
		return err
	}
	for i := range c.voters - 1 {
		if _, err := c.join(ctx, true); err != nil {
			return err
		}
		if i == 0 {
			if err := c.staysOdd(ctx, founder); err != nil {
				return err
			}
		}
	}
	for range replicas {
		if _, err := c.join(ctx, false); err != nil {
			return err
		}
	}
	return c.awaitVoters(ctx, c.voters)
}

// staysOdd holds that a lone voter does not make its one replica a voter: of two, both are needed.
func (c *testCell) staysOdd(ctx context.Context, leader *proc) error {
	return await(ctx, patience, c.name+": the leader sees that one replica is ready", func() error {
		var v Votes
		if err := leader.call("Votes", 5*time.Second, &v, 10*time.Second); err != nil {
			return err
		}
		switch {
		case len(v.Voters) > 1:
			return final{problem{isOdd, fmt.Sprintf("%s: with one replica, %d peers vote", c.name, len(v.Voters))}}
		case !strings.Contains(v.Plan, "waits for a second one"):
			return fmt.Errorf("its plan is: %s", v.Plan)
		}
		return nil
	})
}

// add makes a peer that does not run yet.
func (c *testCell) add(votes bool) (*proc, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made++
	name := fmt.Sprintf("%s%d", c.name, c.made)
	sum := sha256.Sum256(fmt.Append(nil, "peer ", c.genesis.Cell, name))
	key, err := pcm.KeyFromSeed(sum[:])
	if err != nil {
		return nil, err
	}
	dir, err := c.disk.folder(name)
	if err != nil {
		return nil, err
	}
	p := &proc{cell: c, name: name, id: key.Peer(), votes: votes, older: c.older != "" && !c.updated}
	if !votes {
		c.noVotes = append(c.noVotes, p.id)
	}
	p.cfg = PeerConfig{
		Seed: sum[:], Genesis: c.genesis, Dir: dir, Socket: filepath.Join(c.dir, name+".sock"),
		Listen: "/ip4/127.0.0.1/tcp/0", Voters: c.voters, Snapshot: c.snapshot,
	}
	c.procs = append(c.procs, p)
	return p, nil
}

// join starts a new peer and has the cell take it in.
func (c *testCell) join(ctx context.Context, votes bool) (*proc, error) {
	p, err := c.add(votes)
	if err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	return p, c.change(ctx, "add", p.id)
}

// change has any peer that can change the cell.
func (c *testCell) change(ctx context.Context, what string, id pcm.PeerID) error {
	return await(ctx, patience, fmt.Sprintf("%s: %s %s", c.name, what, pcm.Short(id)), func() error {
		var last error = errors.New("no peer runs")
		for _, p := range c.running() {
			if p.id == id && what != "add" {
				continue
			}
			if last = p.call("Change", Change{what, id, 5 * time.Second}, new(bool), 10*time.Second); last == nil {
				return nil
			}
		}
		return last
	})
}

func (c *testCell) awaitVoters(ctx context.Context, n int) error {
	return await(ctx, patience, fmt.Sprintf("%s has %d voters", c.name, n), func() error {
		for _, p := range c.running() {
			h, err := p.health(false)
			if err != nil {
				return err
			}
			if h.Role == consensus.RoleLeader && len(h.Voters) == n && h.LogTime > 0 {
				return nil
			}
		}
		return errors.New("not yet")
	})
}

// final is an error that waiting does not mend.
type final struct{ error }

// await polls a condition that has no channel of its own.
func await(ctx context.Context, most time.Duration, what string, ok func() error) error {
	deadline := time.After(most)
	for {
		err := ok()
		if err == nil {
			return nil
		}
		if f := (final{}); errors.As(err, &f) {
			return f.error
		}
		select {
		case <-time.After(30 * time.Millisecond):
		case <-deadline:
			return fmt.Errorf("waited %s in vain until %s: %w", most, what, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// all are the peers that are not gone for good.
func (c *testCell) all() []*proc {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(slices.DeleteFunc(slices.Clone(c.procs), func(p *proc) bool { return p.isGone() }))
}

// running are the peers that run, or are stopped for a while.
func (c *testCell) running() []*proc {
	return slices.DeleteFunc(c.all(), func(p *proc) bool { return !p.runs() })
}

// leader is who leads, as most recently claimed; nil if nobody does.
func (c *testCell) leader() *proc {
	var best *proc
	var term uint64
	for _, p := range c.running() {
		if h, err := p.health(false); err == nil && h.Role == consensus.RoleLeader && h.Term >= term {
			best, term = p, h.Term
		}
	}
	return best
}

// book says where all peers listen.
func (c *testCell) book() map[pcm.PeerID]string {
	book := map[pcm.PeerID]string{}
	for _, p := range c.all() {
		if listen := p.config().Listen; !strings.HasSuffix(listen, "/0") {
			book[p.id] = listen
		}
	}
	return book
}

// replicas are those that never vote.
func (c *testCell) replicas() []pcm.PeerID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.noVotes)
}

// update has peers that are made from now on be of this release.
func (c *testCell) update() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.updated = true
}

// hear takes in the cell's log time.
func (c *testCell) hear(t int64) {
	for {
		old := c.logTime.Load()
		if t <= old {
			return
		}
		if c.logTime.CompareAndSwap(old, t) {
			c.heard.Store(elapsed().Milliseconds())
			return
		}
	}
}

// now estimates the log time.
func (c *testCell) now() int64 {
	if t := c.logTime.Load(); t > 0 {
		return t + elapsed().Milliseconds() - c.heard.Load()
	}
	return 0
}
