package mesh

import (
	"errors"
	"testing"
	"time"

	"github.com/jointcloud/pcm"
)

// describe is a descriptor of a cell by its leader, who is its one voter.
func (p *testPeer) describe(s *site, cell pcm.CellID, term, number uint64, mend func(*pcm.Descriptor)) pcm.Signed {
	now := p.cfg.Now()
	d := pcm.Descriptor{
		Mesh: s.mesh, Cell: cell, Name: "east", Number: number, Term: term, Leader: p.key.Peer(), Members: 1, MaxMembers: 9, Open: true,
		Voters:   []pcm.DescribedPeer{{Peer: p.key.Peer(), Account: p.account.Account(), Addrs: p.AddrsOf(p.key.Peer())}},
		IssuedAt: now.UnixMilli(), NotAfter: now.Add(time.Hour).UnixMilli(),
	}
	if mend != nil {
		mend(&d)
	}
	return p.key.Seal(pcm.DomainCell, d)
}

func (p *testPeer) knows(cell pcm.CellID, term, number uint64) func() bool {
	return func() bool {
		for _, r := range p.Cells() {
			if r.Descriptor.Cell == cell {
				return r.Descriptor.Term == term && r.Descriptor.Number == number
			}
		}
		return false
	}
}

// What a leader says of its cell reaches peers that are not connected to it, and newcomers.
func TestCellsAreKnownEverywhere(t *testing.T) {
	s := newSite(t)
	a, b, c := line(s)
	eventually(t, "b relays between two", func() bool { return len(b.cellTopic.ListPeers()) == 2 })
	cell := pcm.NewCellID()
	changed := c.CellsChanged()
	// Gossip that comes before b has taken c into its overlay passes c by; a leader tells again.
	tell := func(term uint64) (number uint64) {
		last := time.Time{}
		eventually(t, "c knows the cell", func() bool {
			if time.Since(last) > 3*time.Second {
				number, last = number+1, time.Now()
				if err := a.PublishCell(a.describe(s, cell, term, number, nil)); err != nil {
					t.Fatal(err)
				}
			}
			return c.knows(cell, term, number)()
		})
		return number
	}
	number := tell(1)
	<-changed
	row := c.Cells()[0]
	if row.Source != b.key.Peer() || row.Passport.Name != "a" || row.Descriptor.Room() != 8 {
		t.Errorf("row %+v", row)
	}
	if sees(c, a)() {
		t.Fatal("a and c are connected: the test shows nothing")
	}
	d := s.peer("d", b)
	eventually(t, "a newcomer knows the cell", d.knows(cell, 1, number))
	tell(2)
	err := a.PublishCell(b.describe(s, cell, 3, 1, nil))
	wantCode(t, err, pcm.Invalid)
}

// No peer can speak for a cell that is known and that it doesn't vote in; nor
// forge, replay or outlive.
func TestCellNewsAreChecked(t *testing.T) {
	s := newSite(t)
	a, b, c := s.peer("a"), s.peer("b"), s.peer("c")
	cell := pcm.NewCellID()
	take := func(by *testPeer, d pcm.Signed, passport pcm.Signed) error {
		return c.acceptCell(cellNews{d, passport}, by.key.Peer(), false)
	}
	if err := take(a, a.describe(s, cell, 5, 5, nil), a.Signed()); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		what   string
		forged bool
		err    error
	}{
		{"the same again", false, take(a, a.describe(s, cell, 5, 5, nil), a.Signed())},
		{"an older one", false, take(a, a.describe(s, cell, 4, 9, nil), a.Signed())},
		{"a stranger's, of a huge term", false, take(b, b.describe(s, cell, 1<<60, 1, nil), b.Signed())},
		{"one with another's passport", true, take(a, a.describe(s, cell, 6, 1, nil), b.Signed())},
		{"one for another account", true, take(a, a.describe(s, cell, 6, 1, func(d *pcm.Descriptor) { d.Voters[0].Account = b.account.Account() }), a.Signed())},
		{"one of another mesh", true, take(a, a.describe(s, cell, 6, 1, func(d *pcm.Descriptor) { d.Mesh = pcm.NewMeshID(pcm.NewKey().Public()) }), a.Signed())},
		{"one that has expired", false, take(a, a.describe(s, cell, 6, 1, func(d *pcm.Descriptor) {
			d.IssuedAt, d.NotAfter = 1, a.cfg.Now().Add(-time.Hour).UnixMilli()
		}), a.Signed())},
	} {
		if k.err == nil || errors.Is(k.err, errNotNews) == k.forged {
			t.Errorf("%s: %v", k.what, k.err)
		}
	}
	if !c.knows(cell, 5, 5)() {
		t.Errorf("c knows %+v", c.Cells())
	}
	// A voter that the leader named takes over; then the former leader says nothing any more.
	both := func(d *pcm.Descriptor) {
		d.Voters = append(d.Voters, pcm.DescribedPeer{Peer: b.key.Peer(), Account: b.account.Account()})
		if d.Leader == b.key.Peer() {
			d.Voters = d.Voters[:1]
		}
		if len(d.Voters) == 2 && d.Voters[0].Peer > d.Voters[1].Peer {
			d.Voters[0], d.Voters[1] = d.Voters[1], d.Voters[0]
		}
		d.Members = 2
	}
	if err := take(a, a.describe(s, cell, 5, 6, both), a.Signed()); err != nil {
		t.Fatal(err)
	}
	if err := take(b, b.describe(s, cell, 6, 1, both), b.Signed()); err != nil {
		t.Fatal(err)
	}
	if err := take(a, a.describe(s, cell, 7, 1, nil), a.Signed()); !errors.Is(err, errNotNews) {
		t.Errorf("a voter of the past is heard: %v", err)
	}
	// Who leads the cell isn't kept from saying so by what it was told.
	if err := c.PublishCell(c.describe(s, cell, 1, 1, nil)); err != nil || !c.knows(cell, 1, 1)() {
		t.Errorf("a leader's own word: %v, %+v", err, c.Cells())
	}
}

func TestBookOfCellsIsBounded(t *testing.T) {
	b := newCellBook()
	now := time.Now()
	put := func(cell pcm.CellID) (bool, bool) {
		return b.put(CellRow{Descriptor: pcm.Descriptor{Cell: cell, Leader: pcm.PeerID("leader of " + cell), Term: 1, NotAfter: now.Add(time.Hour).UnixMilli()}, ReceivedAt: now}, pcm.Signed{}, false)
	}
	for range maxCells {
		if added, full := put(pcm.NewCellID()); !added || full {
			t.Fatal("no room within the bound")
		}
	}
	if added, full := put(pcm.NewCellID()); added || !full {
		t.Errorf("a cell beyond the bound: added %v, full %v", added, full)
	}
	if all, complete := b.newer(nil, now, 1<<20); len(all) != maxCells || !complete {
		t.Errorf("%d of %d cells in an answer", len(all), maxCells)
	}
	if some, complete := b.newer(nil, now, 10*256); len(some) != 10 || complete {
		t.Errorf("%d cells in a bounded answer, complete %v", len(some), complete)
	}
	b.drop(now.Add(2 * time.Hour))
	if len(b.list(now)) != 0 || b.digest() != (bookSum{}) {
		t.Error("expired cells are kept")
	}
}

// A peer is in one cell: it can't fill the book with cells that it says it leads.
func TestPeerSpeaksForOneCell(t *testing.T) {
	s := newSite(t)
	a, c := s.peer("a"), s.peer("c")
	take := func(cell pcm.CellID, term uint64, late time.Duration) error {
		return c.acceptCell(cellNews{a.describe(s, cell, term, 1, func(d *pcm.Descriptor) { d.IssuedAt += late.Milliseconds() }), a.Signed()}, a.key.Peer(), false)
	}
	first, second := pcm.NewCellID(), pcm.NewCellID()
	for i, k := range []struct {
		cell pcm.CellID
		term uint64
		late time.Duration
		news bool
	}{
		{first, 1, 0, true},
		{second, 1, -time.Minute, false}, // where it was before
		{second, 1, time.Second, true},   // it has moved
		{first, 9, 0, false},
		{first, 9, 2 * time.Second, true},
	} {
		if err := take(k.cell, k.term, k.late); (err == nil) != k.news || err != nil && !errors.Is(err, errNotNews) {
			t.Errorf("descriptor %d: %v", i, err)
		}
	}
	if rows := c.Cells(); len(rows) != 1 || rows[0].Descriptor.Cell != first {
		t.Errorf("c knows %d cells by a: %+v", len(rows), rows)
	}
	b := newCellBook()
	b.put(CellRow{Descriptor: c.Cells()[0].Descriptor, ReceivedAt: c.cfg.Now()}, pcm.Signed{}, false)
	if b.digest() != c.cells.digest() {
		t.Error("what was dropped still counts in the book's digest")
	}
	if err := take(first, 10, -24*time.Hour); err == nil { // now it holds for a day and an hour
		t.Error("a descriptor that holds for days is taken")
	}
}

func FuzzCellNews(f *testing.F) {
	key := pcm.NewKey()
	d := pcm.Descriptor{Cell: pcm.NewCellID(), Name: "x", Leader: key.Peer(), Voters: []pcm.DescribedPeer{{Peer: key.Peer(), Account: key.Account(), Addrs: []string{"/ip4/1.2.3.4/tcp/1"}}}}
	fuzzSeeds(f, cellNews{key.Seal(pcm.DomainCell, d), key.Seal(pcm.DomainPassport, pcm.Passport{Name: "x"})})
	f.Fuzz(func(_ *testing.T, data []byte) {
		if n, err := decodeCellNews(data); err == nil {
			pcm.OpenDescriptor(n.Descriptor, time.Now())
		}
	})
}
