package ledger_test

import (
	"fmt"
	"strings"
	"time"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/ledger"
)

// moveTo has the story go on in another cell, which is founded if need be. All
// cells have one wall clock; each has a log time of its own.
func (s *story) moveTo(name string) string {
	wall := s.wall
	s.cells[s.in] = s.cell
	s.cell = s.cells[name]
	delete(s.cells, name)
	if s.cell == nil {
		s.cell = newCellNamed(name)
		s.name(string(s.genesis.Cell), "cell-"+name)
		s.stamp = 500_000 // no two cells agree on it
	}
	s.in, s.wall = name, wall
	return "ok"
}

// drawAbroad makes terms that are drawn up here terms of a trade in another cell.
func (s *story) drawAbroad(l line, seller *actor, name string, t *pcm.Terms) {
	c := s.cells[name]
	t.Home, t.Cell = s.genesis.Cell, c.genesis.Cell
	t.AwardBy = c.stamp + l.dur("award-in", time.Minute).Milliseconds()
	if home := l.str("home", ""); home != "" {
		t.Home = pcm.CellID(idOf("cell-", home))
		s.name(string(t.Home), "cell-"+home)
	}
	if p, ok := c.state.Pool(ledger.PoolKey{Peer: seller.peer, Pool: "local"}); ok {
		t.Offer = p.Offer
	}
}

// told are the results that a driver tells when it abandons: what the seller said last.
func (s *story) told(l line) []pcm.Result {
	name, t := l.trade()
	if !t.Abroad() || l.str("fault", "seller") != "task" {
		return nil
	}
	var results []pcm.Result
	for i := range l.spans().All {
		if r, ok := s.results[name][i]; ok {
			results = append(results, r)
		}
	}
	return results
}

func (s *story) showAbroad(b *strings.Builder, j *ledger.Job) {
	for _, p := range j.Places {
		if p.Terms != nil {
			fmt.Fprintf(b, "abroad %s in %s: %d undecided, %d in doubt, to pay %s for %s\n", p.Trade, p.Terms.Cell, p.Open, p.Doubt, p.Counted, none(list(p.Due)))
		}
	}
}

// showBought shows what the cell keeps of a trade abroad that is over for it.
func (s *story) showBought(b *strings.Builder, id pcm.TradeID) {
	doc, ok := s.docs[ledger.BoughtKey(id)]
	if !ok {
		b.WriteString("nothing is kept\n")
		return
	}
	var k ledger.Bought
	if err := pcm.UnmarshalLarge(doc, &k); err != nil {
		panic(err)
	}
	fmt.Fprintf(b, "of %s in %s, paid %s for %s, %d in doubt%s\n", k.Terms.Seller, k.Terms.Cell, k.Paid, none(list(k.Due)), k.Doubt, when(k.ByTime, ", cleared by time"))
}

func none(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
