package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/rpc"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/multiformats/go-multiaddr"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
	"github.com/jointcloud/pcm/ledger/tlog"
)

// peerEnv makes this program a peer of a cell, in place of the one that breaks them.
const peerEnv = "PCM_CHAOS_PEER"

// PeerConfig is what a peer reads from its standard input.
type PeerConfig struct {
	Seed     []byte // of its key
	Genesis  ledger.Genesis
	Dir      string // of the cell
	Socket   string // of its control
	Listen   string
	Founder  bool
	Trust    []pcm.PeerID
	Book     map[pcm.PeerID]string
	Voters   int // most
	Snapshot uint64
	Clock    time.Duration // how wrong its wall clock is
	Rules    map[pcm.PeerID]Rule
	NoVotes  []pcm.PeerID // who never votes
}

// servePeer is a whole process: it opens its part of the cell and does as it is told
// until its standard input ends.
func servePeer() error {
	in := json.NewDecoder(os.Stdin)
	var cfg PeerConfig
	if err := in.Decode(&cfg); err != nil {
		return err
	}
	key, err := pcm.KeyFromSeed(cfg.Seed)
	if err != nil {
		return err
	}
	h, err := libp2p.New(libp2p.Identity(key.LibP2P()), libp2p.ListenAddrStrings(cfg.Listen), libp2p.DisableRelay(), libp2p.DisableMetrics())
	if err != nil {
		return err
	}
	p := &Peer{wire: newWire(h), state: ledger.New(cfg.Genesis), genesis: cfg.Genesis, signer: tlog.NewSigner(cfg.Genesis.Cell, noteKey(cfg.Seed))}
	p.NoVotes(cfg.NoVotes, new(bool))
	p.clock.Store(int64(cfg.Clock))
	if err := p.Book(cfg.Book, new(bool)); err != nil {
		return err
	}
	if err := p.Faults(cfg.Rules, new(bool)); err != nil {
		return err
	}
	failed := make(chan error, 1)
	p.cell, err = consensus.Open(consensus.Config{
		Dir: cfg.Dir, Mesh: cfg.Genesis.Mesh, Cell: cfg.Genesis.Cell, Self: key.Peer(), Host: p.wire, Machine: p.state,
		Check:     ledger.Check,
		Bootstrap: cfg.Founder, Trust: cfg.Trust, MaxVoters: cfg.Voters, Stabilise: 300 * time.Millisecond,
		SnapshotEvery: cfg.Snapshot, Eligible: p.mayVote, Answer: p.answer,
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
		Now:       func() time.Time { return time.Now().Add(time.Duration(p.clock.Load())) },
		OnFailure: func(err error) { failed <- err },
	})
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := server.RegisterName("Peer", p); err != nil {
		return err
	}
	os.Remove(cfg.Socket) // of an earlier process
	l, err := net.Listen("unix", cfg.Socket)
	if err != nil {
		return err
	}
	go server.Accept(l)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			var more json.RawMessage
			if in.Decode(&more) != nil {
				return
			}
		}
	}()
	select {
	case err := <-failed:
		return err
	case <-ended:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return p.cell.Close(ctx)
}

// Peer is what a peer's process is asked for by net/rpc.
type Peer struct {
	wire    *wire
	cell    *consensus.Cell
	state   *ledger.State
	genesis ledger.Genesis
	clock   atomic.Int64
	signer  tlog.Signer
	noVotes atomic.Pointer[[]pcm.PeerID]
}

// noteKey is the key with which a peer signs checkpoints.
func noteKey(seed []byte) pcm.Key { return keyOf("note key " + string(seed)) }

// Checkpoint signs the head of the peer's log.
func (p *Peer) Checkpoint(_ bool, note *[]byte) error {
	c := tlog.Checkpoint{Origin: pcm.LogOrigin(p.genesis.Cell)}
	c.Size, c.Root = p.cell.Head()
	*note = p.signer.Sign(c)
	return nil
}

// NoVotes names the peers that follow and never vote.
func (p *Peer) NoVotes(ids []pcm.PeerID, _ *bool) error {
	p.noVotes.Store(&ids)
	return nil
}

func (p *Peer) mayVote(id pcm.PeerID) bool { return !slices.Contains(*p.noVotes.Load(), id) }

// methodOffer asks for a peer's current offer, by its ID.
const methodOffer = "offer"

// answer answers clients that are not of the cell.
func (p *Peer) answer(_ pcm.PeerID, method string, body []byte) ([]byte, error) {
	var id pcm.PeerID
	if err := pcm.Unmarshal(body, &id); err != nil || method != methodOffer {
		return nil, pcm.Errorf(pcm.NotFound, "there is no question %.40q", method)
	}
	var offer uint64
	p.cell.View(func() {
		if m, ok := p.state.Member(id); ok {
			offer = m.Offer
		}
	})
	return pcm.Marshal(offer)
}

// Votes are the peers that vote, and what the leader is about to do about that.
type Votes struct {
	Voters []pcm.PeerID
	Plan   string
}

// Votes asks the leader.
func (p *Peer) Votes(most time.Duration, out *Votes) error {
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	h, err := p.cell.Health(ctx)
	out.Voters, out.Plan = p.cell.Voters(), h.Plan
	return err
}

// Proposal is signed commands, encoded, and how long they may take.
type Proposal struct {
	Commands []byte
	For      time.Duration
}

// Answer is a proposal's outcome. Error is "" if there are results.
type Answer struct {
	Results []byte
	Error   string
	Code    pcm.Code
	LogTime int64
}

// Propose has commands applied.
func (p *Peer) Propose(in Proposal, out *Answer) error {
	var cmds []pcm.Signed
	if err := pcm.UnmarshalLarge(in.Commands, &cmds); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), in.For)
	defer cancel()
	results, err := p.cell.Propose(ctx, cmds...)
	out.LogTime = p.cell.LogTime()
	if err != nil {
		out.Error, out.Code = err.Error(), pcm.ErrorCode(err)
		return nil
	}
	out.Results = pcm.MustMarshal(results)
	return nil
}

// Query is a linearizable read of a peer's current offer.
type Query struct {
	Peer  pcm.PeerID
	For   time.Duration
	Stale bool // without asking the leader
}

// Reading is what was read.
type Reading struct {
	Offer   uint64
	Error   string
	LogTime int64
}

// Read reads.
func (p *Peer) Read(in Query, out *Reading) error {
	ctx, cancel := context.WithTimeout(context.Background(), in.For)
	defer cancel()
	if !in.Stale {
		if err := p.cell.Sync(ctx); err != nil {
			out.Error = err.Error()
			return nil
		}
	}
	p.cell.View(func() {
		if m, ok := p.state.Member(in.Peer); ok {
			out.Offer = m.Offer
		}
	})
	out.LogTime = p.cell.LogTime()
	return nil
}

// Health is how a peer is.
type Health struct {
	Role     consensus.Role
	Leader   pcm.PeerID
	Term     uint64
	Applied  uint64
	Commit   uint64
	Records  uint64
	Root     [32]byte // of Records
	Digest   [32]byte // of the state after Applied; asked for only
	Complete bool
	Resting  bool
	Voters   []pcm.PeerID
	Members  int
	LogTime  int64
	Broken   string // an invariant that does not hold
	Owed     []Owing
}

// Owing is what one account owes another.
type Owing struct {
	Buyer, Seller pcm.AccountID
	Amount        pcm.Micro
}

// Status tells how the peer is; with all, also what takes longer to know.
func (p *Peer) Status(all bool, out *Health) error {
	s := p.cell.Status()
	*out = Health{Role: s.Role, Leader: s.Leader, Term: s.Term, Commit: s.Commit, Complete: s.Complete, Resting: s.Resting, LogTime: s.LogTime, Members: len(s.Members)}
	out.Voters = p.cell.Voters()
	p.cell.View(func() {
		out.Applied = p.cell.Applied()
		out.Records, out.Root = p.state.Root()
		if !all {
			return
		}
		var err error
		if out.Digest, err = p.state.Digest(); err != nil {
			out.Broken = err.Error()
		}
		if err := p.state.Check(); err != nil {
			out.Broken = err.Error()
		}
		for k, b := range p.state.Balances {
			out.Owed = append(out.Owed, Owing{k.Buyer, k.Seller, b.Owed})
		}
	})
	return nil
}

// Page is some records, encoded, in order.
type Page struct{ Records [][]byte }

// pageBytes bounds a page, more or less.
const pageBytes = 4 << 20

var errPage = errors.New("the page is full")

// Records reads records from a number on.
func (p *Peer) Records(from uint64, out *Page) error {
	size := 0
	err := p.cell.Records(from, ^uint64(0), func(_ uint64, r []byte) error {
		out.Records = append(out.Records, r)
		if size += len(r); size > pageBytes {
			return errPage
		}
		return nil
	})
	if errors.Is(err, errPage) {
		err = nil
	}
	return err
}

// Book says where peers listen.
func (p *Peer) Book(book map[pcm.PeerID]string, _ *bool) error {
	for id, addr := range book {
		dec, err := peer.Decode(string(id))
		if err != nil {
			return err
		}
		a, err := multiaddr.NewMultiaddr(addr)
		if err != nil {
			return err
		}
		p.wire.Peerstore().AddAddr(dec, a, peerstore.PermanentAddrTTL)
		if p.cell != nil {
			p.cell.Trust(id)
		}
	}
	return nil
}

// Faults replaces the rules of the wire.
func (p *Peer) Faults(rules map[pcm.PeerID]Rule, _ *bool) error {
	decoded := map[peer.ID]Rule{}
	for id, r := range rules {
		dec, err := peer.Decode(string(id))
		if err != nil {
			return err
		}
		decoded[dec] = r
	}
	p.wire.set(decoded)
	return nil
}

// Clock sets how wrong the wall clock is.
func (p *Peer) Clock(off time.Duration, _ *bool) error {
	p.clock.Store(int64(off))
	return nil
}

// Change is a change of the cell's peers.
type Change struct {
	What string // add, remove, transfer
	Peer pcm.PeerID
	For  time.Duration
}

// Change changes the cell.
func (p *Peer) Change(in Change, _ *bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), in.For)
	defer cancel()
	switch in.What {
	case "add":
		return p.cell.AddReplica(ctx, in.Peer)
	case "remove":
		return p.cell.Remove(ctx, in.Peer)
	case "transfer":
		return p.cell.TransferLeadership(ctx, in.Peer)
	}
	return fmt.Errorf("change %q is not known", in.What)
}

// Address is where the peer listens.
func (p *Peer) Address(_ bool, out *string) error {
	if addrs := p.wire.Addrs(); len(addrs) > 0 {
		*out = addrs[0].String()
	}
	return nil
}
