package node

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/consensus"
	"github.com/jointcloud/pcm/ledger"
)

// maxAway bounds the other cells that this node speaks to at a time; beyond, the
// one that it spoke to longest ago is let go.
const maxAway = 64

// aways are this node's clients of other cells.
type aways struct {
	n     *Node
	peers func(pcm.CellID) []pcm.PeerID // that may be asked

	mu     sync.Mutex
	cells  map[pcm.CellID]*awayCell
	closed bool
}

type awayCell struct {
	*consensus.Away
	used time.Time
}

func newAways(n *Node) *aways {
	return &aways{n: n, peers: n.peersOf, cells: map[pcm.CellID]*awayCell{}}
}

// to is the client of another cell.
func (as *aways) to(cell pcm.CellID) (*consensus.Away, error) {
	if !cell.Valid() {
		return nil, pcm.Errorf(pcm.Invalid, "%.40q is not a cell ID", cell)
	}
	if cell == as.n.id.Mesh.Cell {
		return nil, pcm.Errorf(pcm.Invalid, "%s is this peer's own cell", cell)
	}
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.closed {
		return nil, pcm.Errorf(pcm.Unavailable, "this node is ending")
	}
	c := as.cells[cell]
	if c == nil {
		if len(as.cells) >= maxAway {
			as.letGo()
		}
		away, err := consensus.NewAway(consensus.AwayConfig{
			Cell: cell, Self: as.n.self, Host: as.n.mesh.Host(), Logger: as.n.log,
			Peers: func() []pcm.PeerID { return as.peers(cell) },
		})
		if err != nil {
			return nil, err
		}
		c = &awayCell{Away: away}
		as.cells[cell] = c
	}
	c.used = time.Now()
	return c.Away, nil
}

// letGo ends the client that was not used for longest. It needs the lock.
func (as *aways) letGo() {
	var oldest pcm.CellID
	for id, c := range as.cells {
		if oldest == "" || c.used.Before(as.cells[oldest].used) {
			oldest = id
		}
	}
	go as.cells[oldest].Close() // waits for its goroutines, which end at once
	delete(as.cells, oldest)
}

func (as *aways) close() {
	as.mu.Lock()
	as.closed = true
	cells := as.cells
	as.cells = nil
	as.mu.Unlock()
	for _, c := range cells {
		c.Close()
	}
}

// proposeIn has operations committed as one command, in this node's cell or in
// another one. The error is that of the proposal; what became of the operations is
// in the result. A cell takes commands of peers that it knows: the first
// operation of a peer in another cell is its Enroll.
func (n *Node) proposeIn(ctx context.Context, cell pcm.CellID, ops ...pcm.Op) (pcm.CommandResult, error) {
	if cell == n.id.Mesh.Cell {
		return n.propose(ctx, ops...)
	}
	away, err := n.aways.to(cell)
	if err != nil {
		return pcm.CommandResult{}, err
	}
	for {
		if away.LogTime() == 0 {
			if _, err := away.Locate(ctx); err != nil {
				return pcm.CommandResult{}, err
			}
		}
		results, err := away.Propose(ctx, n.id.Peer.Seal(pcm.DomainCommand, pcm.Command{
			Version: pcm.CommandVersion, ID: pcm.NewCommandID(), Mesh: n.id.Mesh.Mesh, Cell: cell,
			Peer: n.self, NotAfter: away.LogTime() + commandValidity.Milliseconds(), Ops: ops,
		}))
		if err != nil {
			return pcm.CommandResult{}, err
		}
		if !misdated(results[0]) || !pause(ctx, 100*time.Millisecond) {
			return results[0], nil
		}
		if _, err := away.Locate(ctx); err != nil { // also brings the log time
			return pcm.CommandResult{}, err
		}
	}
}

// mustIn has an operation committed in a cell, this node's or another one.
func (n *Node) mustIn(ctx context.Context, cell pcm.CellID, op pcm.Op) error {
	if cell == n.id.Mesh.Cell {
		_, err := n.must(ctx, op)
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	r, err := n.proposeIn(ctx, cell, pcm.Op{Enroll: &pcm.Enroll{Passport: n.mesh.Signed()}}, op)
	if err != nil {
		return err
	}
	return r.First()
}

// The questions that a cell's peers answer to peers outside it.
const (
	queryTrades  = "trades"
	querySummary = "summary"
	queryLevel   = "level" // of the cell's rules

	queryBalances = "balances"
)

// Bounds of questions and answers.
const (
	maxAskedTrades = 256
	maxAnswerBytes = pcm.MaxMessage / 2
	maxSummary     = 4096 // pools
)

// tradesAnswer is what a cell knows of the trades that were asked for.
type tradesAnswer struct {
	Trades  []*ledger.Trade `cbor:"1,keyasint,omitempty"` // open and archived
	Unknown []pcm.TradeID   `cbor:"2,keyasint,omitempty"` // to the cell, with all that was committed before the question
	Left    int             `cbor:"3,keyasint,omitempty"` // of the question's last, for which there was no room: to be asked for again
	Stamp   int64           `cbor:"4,keyasint"`           // log time of the answer
}

// summaryAnswer is what a cell's ledger says of what is sold in it.
type summaryAnswer struct {
	Name    string        `cbor:"1,keyasint"`
	Stamp   int64         `cbor:"2,keyasint"`
	Records uint64        `cbor:"3,keyasint"`
	Pools   []summaryPool `cbor:"4,keyasint,omitempty"`
	Level   int           `cbor:"5,keyasint,omitempty"` // of the ledger's rules
}

// summaryPool is a pool as a cell's ledger has it; the offer of that number says what it is.
type summaryPool struct {
	Peer     pcm.PeerID    `cbor:"1,keyasint"`
	Pool     pcm.PoolID    `cbor:"2,keyasint"`
	Offer    uint64        `cbor:"3,keyasint"`
	Free     pcm.Resources `cbor:"4,keyasint"`
	Slots    int           `cbor:"5,keyasint"`
	Credit   pcm.Micro     `cbor:"6,keyasint"`
	SilentMS int64         `cbor:"7,keyasint"` // since the seller's last renewal
}

// answerQuery answers a peer that may be outside the cell. All that was
// committed before the question is applied.
func (n *Node) answerQuery(from pcm.PeerID, method string, body []byte) ([]byte, error) {
	switch method {
	case queryTrades:
		var ids []pcm.TradeID
		if err := pcm.Unmarshal(body, &ids); err != nil {
			return nil, err
		}
		if len(ids) > maxAskedTrades {
			return nil, pcm.Errorf(pcm.TooLarge, "%d trades are asked for: at most %d at a time", len(ids), maxAskedTrades)
		}
		return n.answerTrades(from, ids)
	case queryBalances:
		return n.answerBalances(from, body)
	case querySummary:
		return pcm.Marshal(n.summary())
	case queryAccount:
		return n.answerAccount(from)
	case queryLevel:
		return pcm.Marshal(levelAnswer{n.level()})
	}
	return nil, pcm.Errorf(pcm.NotFound, "the question %.40q is not known to this release of pcm: update the peers of %s", method, n.id.Mesh.CellName)
}

// answerTrades tells of trades whom they concern: the driver, and the peers of buyer and seller.
func (n *Node) answerTrades(from pcm.PeerID, ids []pcm.TradeID) ([]byte, error) {
	var account pcm.AccountID
	if p, ok := n.mesh.Passport(from); ok {
		account = p.Account
	}
	answer := tradesAnswer{}
	size := 0
	for i, id := range ids {
		raw, err := n.rawTrade(id, &answer.Stamp)
		if pcm.ErrorCode(err) == pcm.NotFound {
			answer.Unknown = append(answer.Unknown, id)
			continue
		}
		if err != nil {
			return nil, err
		}
		t := new(ledger.Trade)
		if err := pcm.UnmarshalLarge(raw, t); err != nil {
			return nil, err
		}
		if from != t.Terms.Driver && !n.actsHere(from, &t.Terms) && (account == "" || account != t.Terms.Buyer && account != t.SellerAccount) {
			return nil, pcm.Errorf(pcm.Forbidden, "trade %s concerns neither peer %s nor its account", id, pcm.Short(from))
		}
		if size += len(raw); size > maxAnswerBytes && len(answer.Trades) > 0 {
			answer.Left = len(ids) - i
			break
		}
		answer.Trades = append(answer.Trades, t)
	}
	return pcm.Marshal(answer)
}

// rawTrade is a trade, open or archived, encoded, and the log time at which it was so.
func (n *Node) rawTrade(id pcm.TradeID, stamp *int64) (raw []byte, err error) {
	n.cell.View(func() {
		*stamp = n.state.Stamp()
		if t, ok := n.state.Trade(id); ok {
			raw = pcm.MustMarshal(t)
		}
	})
	if raw != nil {
		return raw, nil
	}
	return n.cell.Document(ledger.TradeKey(id))
}

// tradeHere is a trade of this cell, open or archived.
func (n *Node) tradeHere(id pcm.TradeID) (*ledger.Trade, error) {
	var stamp int64
	raw, err := n.rawTrade(id, &stamp)
	if err != nil {
		return nil, err
	}
	t := new(ledger.Trade)
	return t, pcm.UnmarshalLarge(raw, t)
}

// summary is what this cell's ledger says of what is sold in it.
func (n *Node) summary() summaryAnswer {
	var s summaryAnswer
	now := n.cell.LogTime()
	n.cell.View(func() {
		s.Name, s.Stamp = n.state.Genesis().Name, n.state.Stamp()
		s.Records, _ = n.state.Root()
		s.Level = n.state.Level()
		for _, row := range n.mesh.Offers() {
			m, ok := n.state.Member(row.Offer.Peer)
			if !ok || row.Offer.Cell != n.id.Mesh.Cell {
				continue
			}
			for _, pool := range row.Offer.Pools {
				p, ok := n.state.Pool(ledger.PoolKey{Peer: m.Peer, Pool: pool.ID})
				if !ok || len(s.Pools) >= maxSummary {
					continue
				}
				free, slots := p.Free()
				s.Pools = append(s.Pools, summaryPool{
					Peer: m.Peer, Pool: pool.ID, Offer: p.Offer, Free: free, Slots: slots, Credit: m.Credit, SilentMS: max(0, now-m.RenewedAt),
				})
			}
		}
	})
	return s
}

// tradesIn asks another cell for trades. Those that it doesn't know are missing
// in the answer: with all that was committed there before the call, they did not
// exist. Stamp is the log time of the last entry that the answer knows.
func (n *Node) tradesIn(ctx context.Context, cell pcm.CellID, ids []pcm.TradeID) (found map[pcm.TradeID]*ledger.Trade, stamp int64, err error) {
	away, err := n.aways.to(cell)
	if err != nil {
		return nil, 0, err
	}
	found = map[pcm.TradeID]*ledger.Trade{}
	for len(ids) > 0 {
		part := ids[:min(len(ids), maxAskedTrades)]
		var answer tradesAnswer
		if err := away.Query(ctx, queryTrades, part, &answer); err != nil {
			return nil, 0, err
		}
		told, err := answer.of(part)
		if err != nil {
			return nil, 0, pcm.Errorf(pcm.Unavailable, "%s: %w", pcm.Short(cell), err)
		}
		maps.Copy(found, told)
		if stamp == 0 || answer.Stamp < stamp {
			stamp = answer.Stamp
		}
		ids = ids[len(part)-answer.Left:]
	}
	return found, stamp, nil
}

// of are the trades of an answer to a question for the given ones. Each must be told
// of, or be said to be unknown: what is left out must not pass for what is not there.
func (answer *tradesAnswer) of(asked []pcm.TradeID) (map[pcm.TradeID]*ledger.Trade, error) {
	if answer.Left < 0 || answer.Left >= len(asked) {
		return nil, pcm.Errorf(pcm.Invalid, "it answers for none of %d trades", len(asked))
	}
	told := map[pcm.TradeID]*ledger.Trade{}
	for _, t := range answer.Trades {
		if t == nil {
			return nil, pcm.Errorf(pcm.Invalid, "its answer has a trade that is none")
		}
		told[t.ID] = t
	}
	answered := asked[:len(asked)-answer.Left]
	for _, id := range answered {
		if (told[id] == nil) != slices.Contains(answer.Unknown, id) {
			return nil, pcm.Errorf(pcm.Invalid, "it does not say of trade %s how it stands", id)
		}
	}
	if n := len(answer.Trades) + len(answer.Unknown); n != len(answered) {
		return nil, pcm.Errorf(pcm.Invalid, "it answers for %d trades of %d", n, len(answered))
	}
	return told, nil
}

// summaryOf asks another cell what is sold in it.
func (n *Node) summaryOf(ctx context.Context, cell pcm.CellID) (s summaryAnswer, err error) {
	away, err := n.aways.to(cell)
	if err != nil {
		return s, err
	}
	return s, away.Query(ctx, querySummary, nil, &s)
}

// levelIn is the level of the rules of a cell.
func (n *Node) levelIn(ctx context.Context, cell pcm.CellID) (level int, err error) {
	if cell == n.id.Mesh.Cell {
		n.cell.View(func() { level = n.state.Level() })
		return level, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dealsWait)
	defer cancel()
	s, err := n.summaryOf(ctx, cell)
	return s.Level, err
}
